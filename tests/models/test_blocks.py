"Every family runs block by block as it does whole, what cannot is refused, and nothing is left behind"
import copy,os,subprocess,sys
import pytest,torch
from tokenizers import Tokenizer,models as tokenizer_models,pre_tokenizers
from torch import nn
from transformers import (AutoModelForCausalLM,PreTrainedTokenizerFast,BertConfig,T5Config,LlamaConfig,MistralConfig,Qwen2Config,Qwen3Config,
                          GemmaConfig,Gemma2Config,Gemma3TextConfig,PhiConfig,Phi3Config,OPTConfig,GPT2Config,GPTNeoXConfig,FalconConfig,MixtralConfig,
                          Qwen3MoeConfig,GptOssConfig,JetMoeConfig,AfmoeConfig,Gemma4TextConfig,LlamaModel,LlamaForCausalLM,BertLMHeadModel,T5ForConditionalGeneration)
from transformers.modeling_outputs import BaseModelOutputWithPast
from compresscal.models.structure import find_blocks
from compresscal.models.loading import load_model
from compresscal.models.blocks import Block, LinearLayer, capture, check_finite, check_replay, context_length, decoder_blocks, evaluation_mode, fingerprint, replace_forward, watch_inputs

std = dict(vocab_size=96, hidden_size=32, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
           pad_token_id=0, bos_token_id=1, eos_token_id=2)
falcon = {k: v for k,v in std.items() if k not in ("num_key_value_heads","intermediate_size")}
sliding = ["sliding_attention","full_attention","sliding_attention"]
families = dict(
    llama=LlamaConfig(**std), llama_tied=LlamaConfig(**std, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    mistral=MistralConfig(**std, sliding_window=5),
    qwen2=Qwen2Config(**std, use_sliding_window=True, sliding_window=5, max_window_layers=1), qwen3=Qwen3Config(**std, head_dim=16),
    gemma=GemmaConfig(**std, head_dim=8), gemma2=Gemma2Config(**std, head_dim=8, sliding_window=5, layer_types=sliding),
    gemma3=Gemma3TextConfig(**std, head_dim=8, sliding_window=5, layer_types=sliding),
    phi=PhiConfig(**std), phi3=Phi3Config(**std, sliding_window=5),
    opt=OPTConfig(vocab_size=96, hidden_size=32, ffn_dim=56, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64, word_embed_proj_dim=32, pad_token_id=0),
    opt_350m=OPTConfig(vocab_size=96, hidden_size=32, ffn_dim=56, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64, word_embed_proj_dim=16,
                       do_layer_norm_before=False, pad_token_id=0),
    gpt2=GPT2Config(vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2),
    neox=GPTNeoXConfig(vocab_size=96, hidden_size=32, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64),
    neox_sequential=GPTNeoXConfig(vocab_size=96, hidden_size=32, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64, use_parallel_residual=False),
    falcon_7b=FalconConfig(**falcon, multi_query=True, parallel_attn=True, new_decoder_architecture=False, alibi=False),
    falcon_40b=FalconConfig(**falcon, num_kv_heads=2, new_decoder_architecture=True, parallel_attn=True, alibi=False),
    falcon_11b=FalconConfig(**falcon, num_kv_heads=2, new_decoder_architecture=True, parallel_attn=True, num_ln_in_parallel_attn=1, alibi=False),
    falcon_rw=FalconConfig(**falcon, multi_query=False, parallel_attn=False, new_decoder_architecture=False, alibi=True, bias=True),
    mixtral=MixtralConfig(**std, num_local_experts=4, num_experts_per_tok=2, sliding_window=5),
    qwen3_moe=Qwen3MoeConfig(**std, head_dim=8, moe_intermediate_size=24, num_experts=6, num_experts_per_tok=2, decoder_sparse_step=1, mlp_only_layers=[1]),
    gemma4=Gemma4TextConfig(**std|dict(num_hidden_layers=5), head_dim=8, global_head_dim=16, sliding_window=5, num_kv_shared_layers=1, vocab_size_per_layer_input=96,
                            hidden_size_per_layer_input=8, layer_types=["sliding_attention","full_attention"]*2+["full_attention"]), # the last block reads keys that an earlier one left
    gpt_oss=GptOssConfig(**std, head_dim=8, sliding_window=5, layer_types=sliding, num_local_experts=4, num_experts_per_tok=2),
)
each_family = pytest.mark.parametrize("family", families)
paddings = dict(none=None, left=[[0]*3+[1]*5, [1]*8, [0]*6+[1]*2], right=[[1]*5+[0]*3, [1]*8, [1]*2+[0]*6])

def make(family):
    "A model of a family as transformers initializes it"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(families[family], experts_implementation='eager').eval()

def build(family, dtype=torch.float32, seed=0, **kwargs):
    config = copy.deepcopy(families[family]) if isinstance(family, str) else family
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, **dict(dict(experts_implementation="eager"), **kwargs)).eval()
        for p in model.parameters(): p.data += .02*torch.randn_like(p) # norms and biases away from their ones and zeros
    return model.to(dtype)

def batch(padding, rows=3, length=8):
    ids = torch.randint(3, 96, (rows,length), generator=torch.Generator().manual_seed(1))
    return ids,None if paddings[padding] is None else torch.tensor(paddings[padding])

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A saved model with a tokenizer"
    path = tmp_path_factory.mktemp("model")
    build("llama").to(torch.bfloat16).save_pretrained(path)
    words = Tokenizer(tokenizer_models.WordLevel({f"w{i}": i for i in range(96)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(path)
    return path

def copied(folder, tmp_path, **files):
    "A copy of `folder` in which files have other content, or are gone"
    for f in folder.iterdir():
        if files.get(f.stem, "")is not None: (tmp_path/f.name).write_bytes(files.get(f.stem, f.read_bytes()))
    return tmp_path

def own_states(model, ids, mask):
    "Hidden states after each block, and logits, from the model's own forward"
    seen = []
    hooks = [b.register_forward_hook(lambda m,a,out: seen.append(out[0] if isinstance(out, tuple) else out)) for b in find_blocks(model)[1]]
    with torch.no_grad(): out = model(ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
    for h in hooks: h.remove()
    return seen,out


# block by block

@each_family
@pytest.mark.parametrize("padding", paddings)
def test_equals_own_forward(family, padding):
    model,(ids,mask) = build(family),batch(padding)
    states,out = own_states(model, ids, mask)
    captured = capture(model, ids, mask)
    assert torch.equal(captured.hidden, out.hidden_states[0])
    for i,block in enumerate(decoder_blocks(model)):
        captured.step(block)
        assert torch.equal(captured.hidden, states[i]), block
        if i<2: assert torch.equal(captured.hidden, out.hidden_states[i+1])
    assert torch.equal(captured.logits(), out.logits)

@pytest.mark.parametrize("family", ["llama","gemma3","opt","gpt2","neox","phi","falcon_7b","falcon_rw","mixtral"])
def test_equals_own_forward_eager_attention(family):
    model,(ids,mask) = build(family, attn_implementation="eager"),batch("left")
    states,out = own_states(model, ids, mask)
    captured = capture(model, ids, mask)
    for block,state in zip(decoder_blocks(model), states): assert torch.equal(captured.step(block).hidden, state)
    assert torch.equal(captured.logits(), out.logits)

@each_family
@pytest.mark.parametrize("dtype,within", [(torch.float32,1e-5),(torch.bfloat16,2e-2)], ids=["float32","bfloat16"])
def test_across_batch_sizes(family, dtype, within):
    model = build(family, dtype)
    blocks = decoder_blocks(model)
    for padding in paddings:
        ids,mask = batch(padding)
        whole,alone = capture(model, ids, mask),[capture(model, ids[i:i+1], None if mask is None else mask[i:i+1]) for i in range(3)]
        kept = torch.ones_like(ids, dtype=bool) if mask is None else mask.bool()
        for block in blocks:
            a = whole.step(block).hidden[kept].float()
            b = torch.cat([c.step(block).hidden for c in alone])[kept].float()
            assert ((a-b).norm()/a.norm()).item()<within, block

def test_blocks_keep_their_own_arguments():
    model,(ids,mask) = build("gemma3"),batch("left")
    captured = capture(model, ids, mask)
    sliding,full = captured.calls[0][1],captured.calls[1][1]
    assert not torch.equal(sliding["attention_mask"], full["attention_mask"])
    assert not torch.equal(sliding["position_embeddings"][0], full["position_embeddings"][0])

def test_given_hidden_states_and_position_ids():
    model,(ids,mask) = build("gpt2"),batch("left")
    blocks,positions = decoder_blocks(model),(mask.cumsum(1)-1).clamp(min=0)
    captured = capture(model, ids, mask, position_ids=positions)
    with torch.no_grad(): own = model(ids, attention_mask=mask, position_ids=positions).logits
    hidden = captured.hidden
    for block in blocks: hidden = captured.run(block, hidden)
    assert not torch.equal(captured.hidden, hidden) # `run` stores nothing
    captured.hidden = hidden
    assert torch.equal(captured.logits(), own)

def test_one_block():
    config = copy.deepcopy(families["falcon_7b"])
    config.num_hidden_layers = 1
    assert len(decoder_blocks(build(config)))==1

def test_capture_computes_no_block_and_no_head():
    model = build("llama")
    tokens = []
    for m in model.modules():
        if isinstance(m, nn.Linear): m.register_forward_hook(lambda m,args,out: tokens.append(args[0].shape[:-1].numel()))
    capture(model, *batch("left"))
    assert tokens==[1]*7 # one token through the first block


def test_real_models(shared):
    "Trained models, and lengths at which attention works in tiles"
    for name in ("model_stories260K","model_stories260K_ffn256"):
        folder = next((shared/"data"/name).rglob("config.json")).parent
        model,tokenizer = load_model(folder)
        assert len(decoder_blocks(model))==model.config.num_hidden_layers
        ids = torch.randint(len(tokenizer), (3,min(256, model.config.max_position_embeddings)), generator=torch.Generator().manual_seed(0))
        check_replay(model, ids)
        check_replay(model, ids, (torch.arange(ids.shape[1])>=torch.tensor([[0],[9],[70]])).long())


# linear layers and shared inputs

qkv = ("self_attn.q_proj","self_attn.k_proj","self_attn.v_proj")
@pytest.mark.parametrize("family,shared", dict(llama=[qkv,("mlp.gate_proj","mlp.up_proj")], gemma3=[qkv,("mlp.gate_proj","mlp.up_proj")], opt=[qkv], gpt2=[], phi3=[],
    phi=[(*qkv,"mlp.fc1")], neox=[], falcon_7b=[("self_attention.query_key_value","mlp.dense_h_to_4h")], falcon_40b=[],
    falcon_11b=[("self_attention.query_key_value","mlp.dense_h_to_4h")], falcon_rw=[], mixtral=[qkv], qwen3_moe=[qkv]).items())
def test_shared_inputs(family, shared):
    for block in decoder_blocks(build(family))[::2]: assert [g for g in block.groups if len(g)>1]==shared

@each_family
def test_weights_make_the_outputs(family):
    "Every watched input times `weight` is what the layer gives, bias aside; each layer is in one group"
    model,(ids,mask) = build(family),batch("right")
    captured = capture(model, ids, mask)
    for block in decoder_blocks(model):
        assert sorted(n for g in block.groups for n in g)==sorted(o.name for o in block.linears)
        outputs,inputs = {},{}
        hooks = [m.register_forward_hook(lambda m,a,out,name=name: outputs.update({name: out.clone()})) for name,m in block.module.named_modules() if any(o.name==name for o in block.linears)]
        with watch_inputs(block, lambda names,x,rows: inputs.update({n: x for n in names})): captured.step(block)
        for h in hooks: h.remove()
        assert set(outputs)<=set(inputs)
        for name,out in outputs.items():
            layer,bias = block[name],getattr(block.module.get_submodule(name), "bias", None)
            y = inputs[name]@layer.weight.T+(0 if bias is None else bias.detach())
            torch.testing.assert_close(y, out.reshape(y.shape), rtol=1e-4, atol=1e-5)

@each_family
def test_writing_weights_changes_the_model(family):
    model = build(family)
    for block in decoder_blocks(model):
        for layer in block.linears: layer.weight.zero_()
        assert all((p==0).all() for o in block.linears for p in [o.parameter])

@each_family
def test_padding_never_reaches_the_callback(family):
    model,(ids,mask) = build(family),batch("left")
    block,captured = decoder_blocks(model)[0],capture(model, ids, mask)
    every,kept = {},{}
    with watch_inputs(block, lambda names,x,rows: every.update({names: (x,rows)})): captured.run(block)
    with watch_inputs(block, lambda names,x,rows: kept.update({names: (x,rows)}), mask): captured.run(block)
    real = mask.flatten().bool()
    for names,(x,rows) in every.items():
        assert torch.equal(kept[names][1], rows[real[rows]])
        assert torch.equal(kept[names][0], x[real[rows]])
        if block[names[0]].expert is None: assert torch.equal(rows, torch.arange(24))

@pytest.mark.parametrize("family", ["mixtral","qwen3_moe"])
def test_experts_see_their_routed_tokens(family):
    model,(ids,mask) = build(family),batch("none")
    block,captured,router = decoder_blocks(model)[0],capture(model, ids, mask),{}
    hook = block.module.mlp.gate.register_forward_hook(lambda m,args,out: router.update(x=args[0].reshape(-1, 32), chosen=out[2]))
    seen = {}
    with watch_inputs(block, lambda names,x,rows: seen.update({n: (x,rows) for n in names})): captured.run(block)
    hook.remove()
    n = len(block.module.mlp.experts.gate_up_proj)
    for e in range(n):
        tokens = (router["chosen"]==e).any(-1).nonzero()[:,0]
        if len(tokens)==0:
            assert f"mlp.experts.gate_up_proj.{e}" not in seen
            continue
        x,rows = seen[f"mlp.experts.gate_up_proj.{e}"]
        assert sorted(rows.tolist())==tokens.tolist() and torch.equal(x, router["x"][rows])
        gate,up = (x@block[f"mlp.experts.gate_up_proj.{e}"].weight.T).chunk(2, -1)
        down,rows_down = seen[f"mlp.experts.down_proj.{e}"]
        assert torch.equal(rows_down, rows)
        torch.testing.assert_close(down, nn.functional.silu(gate)*up)
    assert sum(len(seen[f"mlp.experts.down_proj.{e}"][1]) for e in range(n) if f"mlp.experts.down_proj.{e}" in seen)==24*2

def test_routers_are_left_out():
    config = AfmoeConfig(**std, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, num_dense_layers=0, num_shared_experts=1,
                         sliding_window=5, layer_types=sliding)
    for block in decoder_blocks(build(config)):
        names = [o.name for o in block.linears]
        assert "mlp.shared_experts.up_proj" in names and not any("router" in o for o in names)

def test_refuses_experts_whose_tokens_cannot_be_told():
    "JetMoE cuts the routed tokens of all experts from one tensor, so that no index tells whose they are"
    config = JetMoeConfig(**{k: v for k,v in std.items() if k!="num_attention_heads"}, kv_channels=8, num_local_experts=4, num_experts_per_tok=2)
    with pytest.raises(ValueError, match="one row for each token"): decoder_blocks(build(config))

def test_a_watch_ends_with_its_context():
    model,(ids,mask) = build("llama"),batch("none")
    block,captured,calls = decoder_blocks(model)[0],capture(model, ids, mask),[]
    with pytest.raises(ZeroDivisionError):
        with watch_inputs(block, lambda *o: 1/0): captured.run(block)
    with watch_inputs(block, lambda *o: calls.append(o)): pass
    captured.run(block)
    assert calls==[] and not block.module._forward_pre_hooks


# nothing is left behind

def state(model): return [(n, m.training, m.__dict__.get("forward"), len(m._forward_hooks), len(m._forward_pre_hooks)) for n,m in model.named_modules()]

@each_family
def test_model_is_left_as_it_was(family):
    model = build(family)
    model.train()
    find_blocks(model)[1][1].eval() # a mixture of flags
    before,weights = state(model),fingerprint(model)
    grads = [p.requires_grad for p in model.parameters()]
    blocks,captured = decoder_blocks(model),capture(model, *batch("left"))
    for block in blocks:
        with watch_inputs(block, lambda *o: None): captured.step(block)
    captured.logits()
    assert state(model)==before and fingerprint(model)==weights and [p.requires_grad for p in model.parameters()]==grads

def test_model_is_left_as_it_was_after_a_failure(monkeypatch):
    model = build("llama").train()
    blocks,captured,before = decoder_blocks(model),capture(model, *batch("none")),state(model)
    def fail(*args, **kwargs): raise RuntimeError("on purpose")
    for module,run in [(model.model.norm, lambda: capture(model, *batch("none"))), (model.model.norm, captured.logits), (blocks[1].module.mlp, lambda: captured.run(blocks[1])),
                       (model.model.norm, lambda: check_replay(model)), (model.model.rotary_emb, lambda: capture(model, *batch("none")))]:
        with monkeypatch.context() as patch:
            patch.setattr(type(module), "forward", fail)
            with pytest.raises(RuntimeError, match="on purpose"): run()
        assert state(model)==before

def test_forward_of_its_own_comes_back():
    "As accelerate's hooks do, a module may carry a forward of its own"
    model = build("llama")
    module = find_blocks(model)[1][1]
    module.forward = own = module.forward
    decoder_blocks(model)
    assert module.__dict__["forward"] is own

def test_dropout_is_off():
    config = copy.deepcopy(families["gpt2"])
    config.resid_pdrop = config.attn_pdrop = config.embd_pdrop = .5
    model,(ids,_) = build(config),batch("none")
    with torch.no_grad(): own = model(ids).logits
    model.train()
    captured = capture(model, ids)
    for block in decoder_blocks(model): captured.step(block)
    assert torch.equal(captured.logits(), own)

@pytest.mark.parametrize("mode", [torch.inference_mode,torch.no_grad,torch.enable_grad])
def test_gradient_modes(mode):
    model,(ids,mask) = build("opt_350m"),batch("left")
    with torch.no_grad(): own = model(ids, attention_mask=mask).logits
    with mode():
        blocks,captured = decoder_blocks(model),capture(model, ids, mask)
        for block in blocks:
            with watch_inputs(block, lambda *o: None, mask): captured.step(block)
        logits = captured.logits()
    assert torch.equal(logits, own) and not logits.requires_grad and not logits.is_inference()
    blocks[0].linears[0].weight.mul_(0)


# refusals

def test_refuses_state_between_blocks():
    model,kept = build("llama"),{}
    model.model.layers[0].register_forward_hook(lambda m,a,out: kept.update(h=out))
    model.model.layers[2].register_forward_pre_hook(lambda m,a: (a[0]+kept["h"], *a[1:]))
    with pytest.raises(ValueError, match="model.layers.2 differs"): decoder_blocks(model)

@pytest.mark.parametrize("kept_by,used_by", [(0,1),(1,2)])
def test_refuses_state_of_the_block_before(kept_by, used_by):
    model,kept = build("llama"),{}
    model.model.layers[kept_by].register_forward_hook(lambda m,a,out: kept.update(h=out))
    model.model.layers[used_by].register_forward_pre_hook(lambda m,a: (a[0]+.5*kept["h"], *a[1:]))
    with pytest.raises(ValueError, match=f"model.layers.{used_by} differs"): decoder_blocks(model)

class Between(LlamaModel):
    "Scales hidden states on their way from block to block, which no block knows of"
    def forward(self, input_ids=None, attention_mask=None, use_cache=None, **kwargs):
        hidden,positions = self.embed_tokens(input_ids),torch.arange(input_ids.shape[1])[None]
        for i,block in enumerate(self.layers):
            hidden = block(hidden*(1+i), position_ids=positions, position_embeddings=self.rotary_emb(hidden, position_ids=positions))
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden))

def test_refuses_work_between_blocks():
    model = build("llama")
    model.model.__class__ = Between
    with pytest.raises(ValueError, match="model.layers.1 differs"): decoder_blocks(model)

def test_refuses_inputs_written_in_place():
    model = build("opt")
    module = model.model.decoder.layers[1]
    own = module.forward
    module.forward = lambda hidden, **kwargs: own(hidden.mul_(2), **kwargs)
    with pytest.raises(ValueError, match="model.decoder.layers.1 writes into it"): decoder_blocks(model)

def test_refuses_inputs_written_in_place_though_a_second_time_changes_nothing():
    model = build("opt")
    module = model.model.decoder.layers[1]
    own = module.forward
    module.forward = lambda hidden, **kwargs: own(hidden.clamp_(-.1, .1), **kwargs)
    with pytest.raises(ValueError, match="model.decoder.layers.1 writes into it"): decoder_blocks(model)

def test_refuses_weights_around_the_blocks_that_are_not_finite():
    model = build("llama")
    model.model.norm.weight.data[3] = torch.inf
    with pytest.raises(ValueError, match="model.norm.weight holds 1"): decoder_blocks(model)

def test_refuses_a_head_that_differs():
    "The head adds what the first block was given, by a way that no argument shows"
    model,kept = build("llama"),{}
    first = model.model.layers[0]
    own = first.forward
    def forward(hidden, **kwargs):
        kept.update(h=hidden[:,:1])
        return own(hidden, **kwargs)
    first.forward = forward
    model.model.norm.register_forward_hook(lambda m,a,out: out+kept["h"])
    with pytest.raises(ValueError, match="its head differs"): decoder_blocks(model)

def test_refuses_blocks_used_several_times():
    model = build("llama")
    model.model.layers[2] = model.model.layers[0]
    with pytest.raises(ValueError, match="one block several times"): decoder_blocks(model)

def test_refuses_shared_weights():
    model = build("llama")
    model.model.layers[2].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(ValueError, match="layers.2.mlp.up_proj is shared with model.layers.0.mlp.up_proj"): decoder_blocks(model)

def test_refuses_blocks_that_are_skipped():
    model = build("llama")
    model.config.num_hidden_layers = 2
    with pytest.raises(ValueError, match="one list of 2 decoder blocks"): decoder_blocks(model)

def test_refuses_kinds_of_model():
    with pytest.raises(ValueError, match="has an encoder"): decoder_blocks(T5ForConditionalGeneration(T5Config(vocab_size=96, d_model=16, d_ff=16, d_kv=8, num_layers=2, num_heads=2)))
    with pytest.raises(ValueError, match="no language-model head"): decoder_blocks(build("llama").model)
    bert = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    with pytest.raises(ValueError, match="must be causal"): decoder_blocks(BertLMHeadModel(BertConfig(**bert)))
    assert decoder_blocks(BertLMHeadModel(BertConfig(**bert, is_decoder=True)))
    with pytest.raises(TypeError, match="got Linear"): decoder_blocks(nn.Linear(2, 2))

def test_refuses_weights_that_are_not_there_or_not_plain():
    with torch.device("meta"): absent = LlamaForCausalLM(families["llama"])
    with pytest.raises(ValueError, match="not in memory, such as model.embed_tokens.weight"): decoder_blocks(absent)
    packed = build("llama")
    packed.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match="layers.0.mlp.up_proj.weight.*uint8"): decoder_blocks(packed)
    quantized = build("llama")
    quantized.config.quantization_config = dict(quant_method="gptq")
    with pytest.raises(ValueError, match="quantized already"): decoder_blocks(quantized)

def test_refuses_weights_it_cannot_watch():
    class Cast(nn.Linear):
        def forward(self, x): return nn.functional.linear(x, self.weight.double().float(), self.bias)
    model = build("llama")
    up = model.model.layers[1].mlp.up_proj
    model.model.layers[1].mlp.up_proj = Cast(up.in_features, up.out_features)
    with pytest.raises(ValueError, match="model.layers.1.mlp.up_proj was not seen"): decoder_blocks(model)

def test_refuses_experts_that_are_multiplied_together():
    with pytest.raises(ValueError, match="set_experts_implementation"): decoder_blocks(build("mixtral", experts_implementation="grouped_mm"))

@pytest.mark.parametrize("value", [float("nan"),float("inf")])
def test_names_weights_that_are_not_finite(value):
    model = build("mixtral")
    model.model.layers[1].mlp.experts.down_proj.data[2,3,4] = value
    with pytest.raises(ValueError, match="model.layers.1.mlp.experts.down_proj holds 1"): decoder_blocks(model)
    large = build("llama").half()
    large.model.layers[0].mlp.up_proj.weight.data[:] = 6e4 # finite, though a sum in float16 would not be
    check_finite(large)

def test_refuses_tokens_it_cannot_read():
    model,(ids,mask) = build("llama"),batch("left")
    for wrong,what in [((ids[0],), "sequences, length"), ((ids+96,), "0..95, got [0-9]+..[0-9]+; the model has 96 tokens and these are of a tokenizer with [0-9]+ or more"), ((ids-10,), "0..95"), ((ids, mask[:2]), "shape of `input_ids`"), ((ids[:0],), "sequences, length"),
                       ((ids.repeat(1, 9),), "context of 64 tokens, got 72")]:
        with pytest.raises(ValueError, match=what): capture(model, *wrong)


def test_names_are_shown_as_names():
    "Of blocks and layers, which come from whoever wrote the model"
    nasty = "a|b<i>\x1b[31m"
    block = Block(0, nasty, nn.Linear(2, 2), (LinearLayer(nasty, nn.Parameter(torch.ones(2, 3))),), ((nasty,),))
    shown = block._repr_markdown_()
    assert shown.splitlines()[0]==r"**a\|b&lt;i&gt;\\x1b[31m**" and shown.splitlines()[-1]==r"| a\|b&lt;i&gt;\\x1b[31m | [2, 3] |"
    assert "\x1b" not in f"{block!r} {block[nasty]!r}"


# what other modules use

def test_context_length():
    assert [context_length(build(o)) for o in ("llama","gpt2","gemma3")]==[64]*3

def test_what_was_changed_is_put_back_after_a_failure():
    model = build("llama").train()
    model.lm_head.eval()
    with pytest.raises(KeyError), evaluation_mode(model), replace_forward([model.lm_head], lambda i,x: x):
        assert not model.training and model.lm_head(3)==3 and not torch.is_grad_enabled()
        raise KeyError
    assert model.training and not model.lm_head.training and torch.is_grad_enabled() and "forward" not in vars(model.lm_head)


# fingerprint

@each_family
def test_fingerprint_survives_saving(family, tmp_path):
    model = build(family)
    model.save_pretrained(tmp_path)
    assert fingerprint(AutoModelForCausalLM.from_pretrained(tmp_path))==fingerprint(model)

def test_fingerprint_is_of_content(folder):
    model = load_model(folder)[0]
    one = fingerprint(model)
    assert fingerprint(load_model(folder, dtype="float32")[0])!=one
    model.model.layers[2].mlp.up_proj.weight.data[-1,-1] += 1
    assert fingerprint(model)!=one
    model = load_model(folder)[0]
    model.config.rms_norm_eps = .1
    assert fingerprint(model)!=one

@pytest.mark.slow
def test_fingerprint_is_the_same_in_another_process(folder):
    code = f"from compresscal.models.blocks import fingerprint; from compresscal.models.loading import load_model; print(fingerprint(load_model({str(folder)!r})[0]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ|dict(PYTHONHASHSEED="7"))
    assert done.stdout.strip()==fingerprint(load_model(folder)[0])
