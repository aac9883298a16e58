"AWQ's scales and clips against the original's, and what the original cannot do"
import copy,math
import pytest,torch
from safetensors.torch import load_file
from transformers import Qwen3MoeConfig
from compresscal.compression.input_statistics import InputStatistics,collect
from compresscal.models.loading import load_model
from compresscal.models.blocks import capture,decoder_blocks,evaluation_mode
from compresscal.compression.awq import (block_losses,clip_search,clip_weight,linear_losses,may_clip,round_scaled,sample_inputs,
                                 scale_block,scale_candidates)
from test_blocks import batch,build,each_family,std

layers = ["real_L0_self_attn_q_proj","syn_128x256_dead7","syn_128x256_ties","syn_256x256","syn_96x320_ragged"]

def results(shared, layer, kind):
    "The oracle's results of one kind for a layer: weights, inputs, and `(group size, result)`"
    o = load_file(shared/"oracles"/"layers"/f"{layer}.safetensors")
    return o["W"],o["X"],[(int(k.partition("_g")[2]),k) for k in o if k.startswith(kind) and "." not in k],o

@pytest.mark.parametrize("layer", layers)
def test_scales_are_the_originals(shared, layer):
    "The same ratio, scales within 1e-6, all 20 losses within 1e-5"
    w,x,found,o = results(shared, layer, "awqscale4")
    assert found
    for group_size,name in found:
        candidates = scale_candidates(x.abs().mean(0))
        losses = linear_losses(w, candidates, x.T@x, 4, group_size)/(len(x)*len(w))
        torch.testing.assert_close(losses, o[name+".losses"].double(), rtol=1e-5, atol=0)
        assert losses.argmin()==o[name+".losses"].argmin()
        torch.testing.assert_close(candidates[losses.argmin()], o[name], rtol=1e-6, atol=0)

@pytest.mark.parametrize("layer", layers)
def test_clips_are_the_originals(shared, layer):
    "Every maximum, and the weights that are clipped and rounded, to the last bit"
    w,x,found,o = results(shared, layer, "awqclip4")
    assert found
    sample = x[::max(len(x)//512, 1)]
    for group_size,name in found:
        maxima = clip_search(w, 4, group_size, rows=sample)
        assert torch.equal(maxima, o[name][...,0])
        assert torch.equal(round_scaled(clip_weight(w, maxima, group_size), torch.ones(w.shape[1]), 4, group_size), o[name+".W"])

@pytest.mark.parametrize("layer", layers)
def test_rounding_is_the_originals(shared, layer):
    w,_,found,o = results(shared, layer, "awqrtn4")
    for group_size,name in found: assert torch.equal(round_scaled(w, torch.ones(w.shape[1]), 4, group_size), o[name])

def awq(model, tokens, bits=4, group_size=64, batch_size=32, clip=True, rows=True, **kwargs):
    "AWQ for a whole model, each block fed by the uncompressed past; what was found"
    batches,scalings,maxima = [capture(model, o) for o in tokens.split(batch_size)],{},{}
    for block in decoder_blocks(model):
        inputs = collect(block, batches, moments=True, magnitudes=True)
        if rows: sample_inputs(block, batches, inputs)
        after = [b.run(block) for b in batches]
        for o in scale_block(block, batches, inputs, bits, group_size, **kwargs): scalings[block.name,o.layers] = o
        for o in block.linears:
            w,s = o.weight,inputs[o.name]
            if clip and may_clip(o.name):
                maxima[f"{block.name}.{o.name}"] = clip_search(w, bits, group_size, rows=s.sample, moments=s.moments)
                w = clip_weight(w, maxima[f"{block.name}.{o.name}"], group_size)
            o.weight.copy_(round_scaled(w, torch.ones(w.shape[1]), bits, group_size))
        for b,o in zip(batches, after): b.hidden = o
    return scalings,maxima

def perplexity(model, tokens):
    loss = 0
    with torch.no_grad():
        for o in tokens.split(16): loss += torch.nn.functional.cross_entropy(model(o).logits[:,:-1].flatten(0, 1).double(), o[:,1:].flatten(), reduction="sum")
    return float((loss/tokens[:,1:].numel()).exp())

def test_whole_model_is_the_originals(shared):
    """Every ratio, scales within 1e-6, 99.5 % of the maxima, 99.5 % of the weights, perplexity within 0.1 %.
    A group that is clipped on both sides has its zero halfway between two codes, so the last bit of a scale can turn it."""
    model = load_model(next((shared/"data"/"model_stories260K_ffn256").rglob("config.json")).parent)[0]
    tokens,o = load_file(shared/"oracles"/"tokens_stories260K.safetensors"),load_file(shared/"oracles"/"whole_model"/"ffn256_awq4_g64.safetensors")
    scalings,maxima = awq(model, tokens["calib"][:32])
    scales = {f"scale.{block}.{s.producer}->{'+'.join(n.rpartition('.')[2] for n in s.layers)}": s for (block,_),s in scalings.items() if s.scales is not None}
    assert set(scales)=={k for k in o if k.startswith("scale.")}
    for k,s in scales.items(): torch.testing.assert_close(s.scales, o[k], rtol=1e-6, atol=0)
    assert set(maxima)=={k[5:] for k in o if k.startswith("clip.")}
    differ = [~torch.isclose(m, o[f"clip.{k}"][...,0], rtol=1e-5, atol=0) for k,m in maxima.items()]
    assert sum(int(d.sum()) for d in differ)<.005*sum(d.numel() for d in differ)
    state,weights = model.state_dict(),[k for k in o if k.startswith("model.layers.")]
    equal = [torch.isclose(state[k], o[k], rtol=1e-5, atol=1e-7) for k in weights]
    assert sum(int(e.sum()) for e in equal)>.995*sum(e.numel() for e in equal)
    ours = [perplexity(model, tokens[k]) for k in ("eval_self","eval_hand")]
    for k in weights: state[k].copy_(o[k])
    theirs = [perplexity(model, tokens[k]) for k in ("eval_self","eval_hand")]
    assert [round(theirs[0], 3),round(theirs[1], 2)]==[4.418,3.78]
    assert all(abs(a/b-1)<1e-3 for a,b in zip(ours, theirs))


# the search of a block

def start(family, dtype=torch.float32, padding="none", **kwargs):
    "A block, text at its input, and the statistics of its inputs"
    model = build(family, dtype, **kwargs)
    captured,block = capture(model, *batch(padding)),decoder_blocks(model)[0]
    inputs = collect(block, [captured], moments=True, magnitudes=True)
    sample_inputs(block, [captured], inputs)
    return block,captured,inputs

@each_family
@pytest.mark.parametrize("search", ["block","linear"])
def test_every_family(family, search):
    "The block computes the same, and statistics are those of the scaled block"
    block,captured,inputs = start(family, padding="left")
    kept = captured.inputs["attention_mask"].bool()
    before = captured.run(block)[kept]
    done = scale_block(block, [captured], inputs, 3, 16, search=search, grouped_query=True)
    after = captured.run(block)[kept]
    assert (after-before).norm()<1e-5*before.norm()
    assert sorted(n for o in done for n in o.layers)==sorted(o.name for o in block.linears)
    assert all((o.ratio is None)==(o.why is not None) and (o.losses is None or o.losses.isfinite().all() and o.losses.argmin()==round(o.ratio*20)) for o in done)
    fresh = collect(block, [captured], moments=True, magnitudes=True)
    sample_inputs(block, [captured], fresh)
    for name,o in fresh.items():
        if not o.tokens: continue
        for a,b in ((inputs[name].moments,o.moments),(inputs[name].absolute.float(),o.absolute.float()),(inputs[name].sample,o.sample)):
            assert (a-b).norm()<1e-4*b.norm(), name

def reference(block, captured, name, layers, s, bits, group_size):
    "Loss of scales as the original computes it: the module runs with other weights, here on a copy of the block"
    def out(module):
        found = {}
        hook = module.get_submodule(name).register_forward_hook(lambda m,a,o: found.update(out=o[0] if isinstance(o, tuple) else o))
        args,kwargs = captured.calls[block.index]
        with evaluation_mode(module), hook: module(captured.hidden, *args, **kwargs)
        return found["out"]
    changed = copy.deepcopy(block.module)
    for n in layers:
        w = changed.get_submodule(n).weight
        w.data = round_scaled(w.data, s, bits, group_size)
    d = (out(changed)-out(block.module)).float()
    mask = captured.inputs.get("attention_mask")
    return (d if mask is None else d[mask.bool()]).square().mean().double()

@pytest.mark.parametrize("family,name,names", [("llama","self_attn",["self_attn.q_proj","self_attn.k_proj","self_attn.v_proj"]), ("gemma2","mlp",["mlp.gate_proj","mlp.up_proj"]),
    ("phi","",["self_attn.q_proj","self_attn.k_proj","self_attn.v_proj","mlp.fc1"]), ("falcon_7b","",["self_attention.query_key_value","mlp.dense_h_to_4h"])])
@pytest.mark.parametrize("padding", ["none","left","right"])
def test_block_losses(family, name, names, padding):
    block,captured,inputs = start(family, padding=padding)
    candidates = scale_candidates(inputs[names[0]].absolute/inputs[names[0]].tokens, 4)
    found, = block_losses(block, [captured], [(name, [block[n] for n in names], candidates)], 3, 16)
    torch.testing.assert_close(found, torch.stack([reference(block, captured, name, names, s, 3, 16) for s in candidates]), rtol=1e-4, atol=0)
    done = scale_block(block, [captured], inputs, 3, 16, steps=4)
    torch.testing.assert_close(next(o for o in done if list(o.layers)==names).losses, found)

def test_batches_add_up():
    "The search does not depend on how the text is cut into batches"
    results = []
    for size in (1,2,3):
        model = build("llama")
        ids,mask = batch("right")
        batches = [capture(model, *o) for o in zip(ids.split(size), mask.split(size))]
        block = decoder_blocks(model)[0]
        inputs = collect(block, batches, moments=True, magnitudes=True)
        sample_inputs(block, batches, inputs, tokens=5)
        results.append((inputs,scale_block(block, batches, inputs, 3, 16)))
    for inputs,done in results[1:]:
        for a,b in zip(done, results[0][1]):
            assert a.layers==b.layers and a.ratio==b.ratio
            if a.losses is not None: torch.testing.assert_close(a.losses, b.losses, rtol=1e-4, atol=0)
        for n in inputs: torch.testing.assert_close(inputs[n].sample, results[0][0][n].sample, rtol=1e-4, atol=1e-6)

def test_single_layers_are_scored_alike():
    "Where one layer reads an input, both searches have one objective"
    found = []
    for search in ("block","linear"):
        block,captured,inputs = start("opt")
        found.append(scale_block(block, [captured], inputs, 3, 16, search=search))
    for a,b in zip(*found):
        if len(a.layers)==1: torch.testing.assert_close(a.losses, b.losses)
        assert (a.scored,b.scored)==(("self_attn","linear") if len(a.layers)>1 else ("linear","linear"))

def test_grouped_query_attention():
    block,captured,inputs = start("llama")
    left = scale_block(block, [captured], inputs, 3, 16)[-1]
    assert left.layers==("self_attn.o_proj",) and "grouped_query" in left.why and "grouped_query" in repr(left)
    block,captured,inputs = start("llama")
    done = next(o for o in scale_block(block, [captured], inputs, 3, 16, grouped_query=True) if o.layers==left.layers)
    s = done.scales.view(2, 2, 8) # value head, query head, feature
    assert done.ratio>0 and torch.equal(s[:,0], s[:,1]) and not torch.equal(s[0], s[1])
    assert done.losses.min()<done.losses[0]

@pytest.mark.parametrize("group_size", [None,5,24,64])
@pytest.mark.parametrize("search", ["block","linear"])
def test_short_text_and_odd_groups(group_size, search):
    "One sequence of 5 tokens; one group for each output, groups that do not divide the width, and those that are wider"
    model = build("llama")
    scalings,maxima = awq(model, batch("none")[0][:1,:5], 4, group_size, search=search)
    assert len(scalings)==12 and all(m.isfinite().all() for m in maxima.values()) and all(p.isfinite().all() for p in model.parameters())
    shape = math.ceil(32/min(group_size or 32, 32))
    assert maxima["model.layers.0.mlp.up_proj"].shape==(56,shape)

@pytest.mark.parametrize("dtype,within", [(torch.bfloat16,1.5e-2),(torch.float16,3e-3)], ids=str)
@pytest.mark.parametrize("search", ["block","linear"])
def test_low_precision(dtype, within, search):
    model = build("gemma2", dtype)
    captured,block = capture(model, *batch("none")),decoder_blocks(model)[0]
    inputs,before = collect(block, [captured], moments=True, magnitudes=True),captured.run(block).float()
    done = scale_block(block, [captured], inputs, 4, 16, search=search)
    assert {p.dtype for p in model.parameters()}=={dtype} and sum(o.ratio is not None for o in done)==3
    assert (captured.run(block).float()-before).norm()<within*before.norm()

def test_scales_that_half_precision_cannot_hold(monkeypatch):
    "A silent feature gets the smallest scale, by which what makes it is divided"
    block,captured,_ = start("llama", torch.float16)
    block.module.mlp.gate_proj.weight.data[3] = 0
    block.module.mlp.up_proj.weight.data[3,7] = 1e4
    inputs = collect(block, [captured], moments=True, magnitudes=True)
    assert inputs["mlp.down_proj"].absolute[3]==0
    monkeypatch.setattr("compresscal.compression.awq.linear_losses", lambda w,candidates,*rest: torch.arange(20, 0, -1).double()) # the higher the better
    done = {o.layers: o for o in scale_block(block, [captured], inputs, 4, 16, search="linear", grouped_query=True)}
    assert done["self_attn.o_proj",].ratio==.95 and done["mlp.down_proj",].ratio==0 and done["mlp.down_proj",].loss[0]==done["mlp.down_proj",].loss[1]
    assert all(p.isfinite().all() for p in block.module.parameters()) and captured.run(block).isfinite().all()

def test_weights_are_put_back_after_a_failure():
    block,captured,inputs = start("mixtral")
    before,calls = {n: p.clone() for n,p in block.module.named_parameters()},[]
    def fail(module, args):
        calls.append(1)
        if len(calls)>2: raise RuntimeError("interrupted")
    with block.module.mlp.experts.register_forward_pre_hook(fail), pytest.raises(RuntimeError, match="interrupted"):
        own = [o for o in block.linears if "gate_up" in o.name]
        block_losses(block, [captured], [("mlp.experts", own, scale_candidates(torch.ones(32)))], 3)
    assert all(torch.equal(p, before[n]) for n,p in block.module.named_parameters())

def test_layers_that_stay_as_they_are():
    "Layers that are not rounded are scaled with the others, but not scored"
    block,captured,inputs = start("llama")
    before = captured.run(block)
    done = scale_block(block, [captured], inputs, 3, 16, names=["self_attn.v_proj","mlp.up_proj","mlp.gate_proj"])
    assert [(len(o.layers),o.scored) for o in done]==[(3,"linear"),(2,"mlp")]
    assert (captured.run(block)-before).norm()<1e-5*before.norm()

def test_experts_without_tokens():
    config = Qwen3MoeConfig(**std, head_dim=8, moe_intermediate_size=24, num_experts=24, num_experts_per_tok=1, decoder_sparse_step=1, mlp_only_layers=[])
    block,captured,inputs = start(config)
    unseen = {n for n,o in inputs.items() if not o.tokens}
    assert unseen
    for search in ("block","linear"):
        done = scale_block(block, [captured], inputs, 3, 16, search=search)
        assert {n for o in done if o.why=="no token reached it" for n in o.layers}=={n for n in unseen if "down_proj" in n}
        assert all(p.isfinite().all() for p in block.module.parameters())

def test_forward_passes_in_another_format():
    "Under autocast the scored modules run in bfloat16, and everything else as before"
    block,captured,inputs = start("llama")
    candidates = scale_candidates(inputs["mlp.down_proj"].absolute/inputs["mlp.down_proj"].tokens)
    w,m = block["mlp.down_proj"].weight,inputs["mlp.down_proj"].moments
    plain = linear_losses(w, candidates, m, 3, 16),clip_search(w, 3, 16, moments=m)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        assert all(map(torch.equal, plain, (linear_losses(w, candidates, m, 3, 16),clip_search(w, 3, 16, moments=m))))
        done = scale_block(block, [captured], inputs, 3, 16)
    assert [o.why is None for o in done]==[True,True,True,False]


# pure functions

def test_clipping_by_moments_is_clipping_by_all_tokens():
    g = torch.Generator().manual_seed(0)
    w,x = torch.randn(40, 100, generator=g),torch.randn(300, 100, generator=g)@torch.randn(100, 100, generator=g)
    for group_size in (16,32,None):
        a,b = clip_search(w, 3, group_size, rows=x),clip_search(w, 3, group_size, moments=x.T@x)
        assert (a==b).float().mean()>.99
    def loss(m): return (x@(round_scaled(clip_weight(w, m), torch.ones(100), 3)-w).T).square().sum(0)
    largest = w.abs().amax(1, keepdim=True)
    tried = torch.stack([loss(largest*(1-i/20)) for i in range(10)])
    torch.testing.assert_close(loss(clip_search(w, 3, rows=x)), tried.amin(0), rtol=1e-4, atol=0) # the best of ten for every output

@pytest.mark.parametrize("symmetric", [False,True])
def test_losses_are_those_of_the_outputs(symmetric):
    g = torch.Generator().manual_seed(0)
    w,x = torch.randn(30, 300, generator=g),torch.randn(50, 300, generator=g)
    candidates = scale_candidates(x.abs().mean(0)*torch.linspace(.1, 5, 300), 6)
    expected = torch.stack([(x@(round_scaled(w, s, 4, 64, symmetric)-w).T).double().square().sum() for s in candidates])
    torch.testing.assert_close(linear_losses(w, candidates, x.T@x, 4, 64, symmetric), expected, rtol=1e-5, atol=0)

def test_a_silent_input():
    "Nothing is known of it, and nothing breaks"
    s = InputStatistics(8, moments=True, magnitudes=True).add(torch.zeros(5, 8), 1)
    candidates = scale_candidates(s.absolute/s.tokens)
    assert torch.equal(candidates, torch.ones(20, 8))
    w = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(linear_losses(w, candidates, s.moments), torch.zeros(20, dtype=torch.float64))
    assert torch.equal(clip_search(w, moments=s.moments), w.abs().amax(1, keepdim=True)) # of equals the largest

def test_statistics_without_moments_are_divided_too():
    x,s = torch.rand(9, 4, generator=torch.Generator().manual_seed(0)),torch.tensor([.5,1,2,4])
    a,b = (InputStatistics(4).add(o, 1) for o in (x, x/s))
    a.divide(s)
    torch.testing.assert_close(a.norms, b.norms)

def test_wrong_settings():
    block,captured,inputs = start("llama")
    with pytest.raises(ValueError, match="`bits`"): scale_block(block, [captured], inputs, 1)
    with pytest.raises(ValueError, match="`group_size`"): scale_block(block, [captured], inputs, 4, 0)
    with pytest.raises(ValueError, match="`search` must be 'block' or 'linear', got 'hessian'"): scale_block(block, [captured], inputs, search="hessian")
    with pytest.raises(ValueError, match="sums of absolute values"): scale_block(block, [captured], collect(block, [captured], moments=True))
    with pytest.raises(ValueError, match="`tokens` must be at least 1, got 0"): sample_inputs(block, [captured], inputs, 0)
    with pytest.raises(ValueError, match="got neither"): clip_search(block.linears[0].weight)
