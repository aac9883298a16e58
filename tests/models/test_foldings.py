"What can be scaled in every family, that nothing changes by it, and that all weights are put back"
import pytest,torch
from torch import nn
from transformers import AfmoeConfig,FalconConfig,Qwen2MoeConfig,Qwen3MoeConfig
from compresscal.models.foldings import Folding,_around,_offset,_small,call_again,find_foldings,record_calls
from compresscal.models.blocks import Block,LinearLayer,capture,decoder_blocks,fingerprint
from test_blocks import batch,build,each_family,std

def first_block(family, dtype=torch.float32, padding="none", index=0):
    "A block and text at its input"
    model = build(family, dtype)
    blocks,captured = decoder_blocks(model),capture(model, *batch(padding))
    for b in blocks[:index]: captured.step(b)
    return blocks[index],captured

def short(folding):
    "`layers <- producer`, layers without their path, experts without their number"
    def words(name): return [o for o in name.split(".") if not o.isdigit()]
    layers = dict.fromkeys(words(o)[-1] for o in folding.layers)
    return f"{' '.join(layers)} <- {'.'.join(words(folding.producer))}{' (1+w)'*folding.offset}{' shared'*folding.shared}"

qkv,mlp = "q_proj k_proj v_proj <- input_layernorm","gate_proj up_proj <- post_attention_layernorm"
llama = [qkv, mlp, "o_proj <- self_attn.v_proj shared", "down_proj <- mlp.up_proj"]
gemma2 = ["q_proj k_proj v_proj <- input_layernorm (1+w)", "gate_proj up_proj <- pre_feedforward_layernorm (1+w)", *llama[2:]]
moe = [qkv, "gate_up_proj <- post_attention_layernorm", llama[2], "down_proj <- mlp.experts.gate_up_proj"]
neox = ["query_key_value <- input_layernorm", "dense_h_to_4h <- post_attention_layernorm", "dense <- attention.query_key_value"]
parallel = ["query_key_value dense_h_to_4h <- input_layernorm", "dense <- self_attention.query_key_value shared"]
expected = dict(llama=llama, llama_tied=llama, mistral=llama, qwen2=llama, qwen3=llama, gemma=[qkv+" (1+w)", mlp+" (1+w)", *llama[2:]], gemma2=gemma2, gemma3=gemma2,
    phi=["q_proj k_proj v_proj fc1 <- input_layernorm", "dense <- self_attn.v_proj shared"],
    phi3=["qkv_proj <- input_layernorm", "gate_up_proj <- post_attention_layernorm", "o_proj <- self_attn.qkv_proj shared", "down_proj <- mlp.gate_up_proj"],
    opt=["q_proj k_proj v_proj <- self_attn_layer_norm", "fc1 <- final_layer_norm", "out_proj <- self_attn.v_proj", "fc2 <- fc1"],
    opt_350m=["out_proj <- self_attn.v_proj", "fc2 <- fc1"], # its norms also make what is added to the output
    gpt2=["c_attn <- ln_1", "c_fc <- ln_2", "c_proj <- attn.c_attn"], neox=neox, neox_sequential=neox, falcon_7b=parallel, falcon_11b=parallel,
    falcon_40b=["query_key_value <- ln_attn", "dense_h_to_4h <- ln_mlp", parallel[1]],
    falcon_rw=["query_key_value <- input_layernorm", "dense_h_to_4h <- post_attention_layernorm", "dense <- self_attention.query_key_value"],
    mixtral=moe, qwen3_moe=moe,
    gemma4=[qkv, "gate_proj up_proj <- pre_feedforward_layernorm", "down_proj <- mlp.up_proj"], # values are normalized
    gpt_oss=moe[:3]) # its experts clamp what they multiply

@each_family
@pytest.mark.parametrize("dtype", [torch.float32,torch.bfloat16,torch.float16], ids=str)
def test_what_can_be_scaled(family, dtype):
    block,captured = first_block(family, dtype)
    weights = fingerprint(captured.model)
    found,left = find_foldings(block, captured)
    assert list(dict.fromkeys(map(short, found)))==expected[family]
    assert fingerprint(captured.model)==weights and not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in captured.model.modules())
    names = [n for o in found for n in o.layers]
    assert sorted([*names,*left])==sorted(o.name for o in block.linears) # each layer once

def test_blocks_differ_within_a_model():
    block,captured = first_block("qwen3_moe", index=1)
    assert [short(o) for o in find_foldings(block, captured)[0]]==llama
    block,captured = first_block("gemma4", index=4) # reads keys and values that an earlier block left
    assert [short(o) for o in find_foldings(block, captured)[0]]==["q_proj <- input_layernorm", *expected["gemma4"][1:]]

def test_reasons():
    why = find_foldings(*first_block("gpt2"))[1]
    assert list(why)==["mlp.c_proj"] and "mlp.c_fc changes more than its input" in why["mlp.c_proj"]
    why = find_foldings(*first_block("opt_350m"))[1]
    assert why["self_attn.q_proj"]=="nothing before it in the block could take the inverse" and "self_attn_layer_norm" in why["fc1"]

def random_scales(folding, seed):
    g = torch.Generator().manual_seed(seed)
    return folding.share(torch.rand(folding.consumers[0].weight.shape[1], generator=g).mul(3).exp())/4

@each_family
@pytest.mark.parametrize("padding", ["none","left"])
def test_folding_changes_nothing(family, padding):
    "Random scales from 1/4 to 5 in every input of every block"
    model = build(family)
    captured = capture(model, *batch(padding))
    with torch.no_grad(): before = model(**captured.inputs).logits
    for block in decoder_blocks(model):
        found,_ = find_foldings(block, captured)
        out = captured.run(block)
        for i,o in enumerate(found): o.fold(random_scales(o, i))
        captured.step(block)
        assert ((captured.hidden-out).norm()/out.norm()).item()<1e-5
    with torch.no_grad(): after = model(**captured.inputs).logits
    assert ((after-before).norm()/before.norm()).item()<1e-4
@each_family
def test_powers_of_two_change_no_bit(family):
    block,captured = first_block(family)
    out = captured.run(block)
    for o in find_foldings(block, captured)[0]:
        o.fold(o.share((random_scales(o, 0)>1).float())+1 if not o.shared else torch.full((o.consumers[0].weight.shape[1],), 2.))
        after = captured.run(block)
        assert torch.equal(after, out) or o.offset and (after-out).norm()<1e-6*out.norm(), o
        out = after

def test_an_expert_without_tokens_is_scaled_with_the_others():
    config = Qwen3MoeConfig(**std, head_dim=8, moe_intermediate_size=24, num_experts=24, num_experts_per_tok=1, decoder_sparse_step=1, mlp_only_layers=[])
    block,captured = first_block(config)
    found,left = find_foldings(block, captured)
    assert not left and max(len(o.layers) for o in found)==24 and sum("experts.down_proj" in o.layers[0] for o in found)==24
    ids = torch.randint(3, 96, (8,60), generator=torch.Generator().manual_seed(7)) # a text that reaches the others as well
    other = capture(captured.model, ids)
    before = other.run(block)
    for i,o in enumerate(found): o.fold(random_scales(o, i))
    assert ((other.run(block)-before).norm()/before.norm()).item()<1e-5

@pytest.mark.parametrize("config", [
    Qwen2MoeConfig(**std, moe_intermediate_size=24, shared_expert_intermediate_size=40, num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1),
    AfmoeConfig(**std, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, num_dense_layers=0, num_shared_experts=1, sliding_window=5,
                layer_types=["sliding_attention","full_attention","sliding_attention"]),
    FalconConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, multi_query=True, parallel_attn=True, alibi=True)], ids=["qwen2_moe","afmoe","falcon_alibi"])
def test_families_nobody_thought_of(config):
    block,captured = first_block(config)
    found,left = find_foldings(block, captured)
    before = captured.run(block)
    for i,o in enumerate(found): o.fold(random_scales(o, i))
    assert len(found)>1 and ((captured.run(block)-before).norm()/before.norm()).item()<1e-5
    shared = [o for o in found if any("shared_expert" in n for n in o.layers) and len(o.layers)>1]
    for o in shared: # shared and routed experts read one norm, and so do both routers
        assert any("experts.gate_up_proj" in n for n in o.layers) and any("gate" in c.name for c in o.consumers if c.name not in o.layers)

def test_a_second_reader_is_noticed():
    "What else reads a norm's output or a value need not be a product"
    for where in ("input_layernorm","self_attn.v_proj"):
        block,captured = first_block("llama")
        kept = {}
        block.module.get_submodule(where).register_forward_hook(lambda m,a,out: kept.update(x=out))
        block.module.register_forward_hook(lambda m,a,out: out+kept["x"].mean(-1, keepdim=True))
        assert where not in [o.producer for o in find_foldings(block, captured)[0]]

def test_what_is_left_for_later_blocks_must_not_change(monkeypatch):
    "A value that is also put into a dictionary for a later block cannot be scaled"
    class Keeping(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
        def forward(self, hidden_states, store, **kwargs):
            hook = self.inner.self_attn.v_proj.register_forward_hook(lambda m,a,out: store.update(values=out))
            try: return self.inner(hidden_states, **kwargs)
            finally: hook.remove()
    model = build("llama")
    plain,captured = decoder_blocks(model)[0],capture(model, *batch("none"))
    block = Block(0, plain.name, Keeping(plain.module), tuple(LinearLayer(f"inner.{o.name}", o.parameter) for o in plain.linears), tuple(tuple(f"inner.{n}" for n in g) for g in plain.groups))
    def small(*args):
        made = _small(*args)
        made.calls[0][1]["store"] = {}
        return made
    monkeypatch.setattr("compresscal.models.foldings._small", small)
    assert [short(o) for o in find_foldings(block, captured)[0]]==[o.replace("<- ", "<- inner.") for o in llama if "o_proj" not in o]

def test_an_exact_rule_for_norms():
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    class Norm(nn.Module):
        def __init__(self, rule):
            super().__init__()
            self.weight,self.rule = nn.Parameter(torch.linspace(-.5, 2, 8)),rule
        def forward(self, x): return self.rule(self.weight)*x/x.norm(dim=-1, keepdim=True)
    factors = torch.tensor([1.,2,1,2,2,1,2,1])
    for rule,offset in [(lambda w: w, False), (lambda w: 1+w, True), (lambda w: w.exp(), None)]:
        norm = Norm(rule)
        weight = norm.weight.detach().clone()
        with torch.no_grad(): assert _offset(norm, (x,), {}, norm(x), factors) is offset
        assert torch.equal(norm.weight, weight)

def test_weights_are_put_back_after_a_failure():
    block,captured = first_block("llama")
    weights = fingerprint(captured.model)
    for n in range(3, 7):
        left = iter(range(n))
        def fail(module, args):
            if next(left)==n-1: raise KeyboardInterrupt
        with block.module.mlp.register_forward_pre_hook(fail), pytest.raises(KeyboardInterrupt): find_foldings(block, captured)
        assert fingerprint(captured.model)==weights

def test_closest_module():
    block,captured = first_block("phi")
    assert _around(block, captured, ("self_attn.q_proj","self_attn.v_proj"))=="self_attn"
    assert _around(block, captured, ("self_attn.q_proj","mlp.fc1"))=="" # the block itself
    assert _around(block, captured, ("mlp.fc1",)) is None
    block,captured = first_block("mixtral")
    assert _around(block, captured, ("mlp.experts.gate_up_proj.0","mlp.experts.gate_up_proj.1"))=="mlp.experts"
    assert _around(block, captured, ("mlp.experts.gate_up_proj.0","self_attn.q_proj"))==""
    block,captured = first_block("llama")
    noise = []
    block.module.mlp.register_forward_hook(lambda m,a,out: noise.append(1) or out+len(noise))
    assert _around(block, captured, ("mlp.gate_proj","mlp.up_proj"))=="" # `mlp` gives something else each time

def test_outputs_that_are_changed_later_are_kept():
    "Falcon adds attention's output into the small network's"
    block,captured = first_block("falcon_7b")
    calls = record_calls(block, captured, ["mlp","self_attention"])
    for name,(args,kwargs,out) in calls.items():
        with torch.no_grad(): assert torch.equal(call_again(block, name, args, kwargs), out)

def test_half_precision_has_limits():
    w = nn.Parameter(torch.ones(4, 3).half())
    o = Folding(("b",), "a", (LinearLayer("b", nn.Parameter(torch.ones(2, 4).half())),), (LinearLayer("a", w),), rows=torch.arange(4))
    assert o.fits(torch.ones(4)) and not o.fits(torch.tensor([1,1,1,1e-5])) and not o.fits(torch.tensor([1,1,1,1e5]))
    half = Folding(o.layers, o.producer, (LinearLayer("b", nn.Parameter(torch.ones(2, 4))),), (LinearLayer("a", nn.Parameter(torch.ones(4, 3))),), rows=o.rows)
    assert half.fits(torch.tensor([1,1,1,1e-5]))

def test_a_small_text_runs_where_the_batch_is():
    block,captured = first_block("llama", padding="left")
    small = _small(captured, 24, 1)
    assert small.hidden.shape==(24,1,32) and torch.equal(small.hidden[0,0], captured.hidden[0,0])
    assert small.run(block).shape==(24,1,32) and len(small.calls)==len(captured.calls)
