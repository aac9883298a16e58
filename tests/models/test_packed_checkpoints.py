"Checkpoints that other tools have quantized are models like any other"
import json, os, subprocess
import numpy as np
import pytest, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from compresscal.compression.compress import compress
from compresscal.compression.methods import RTN
from compresscal.models.blocks import decoder_blocks
from compresscal.models.loading import load_model, load_tokenizer
from compresscal.models.packed_checkpoints import check_packing
from compresscal.models.quantized_before import quantized_before, said_quantized
from test_packed_codes import layer, meaning, pack_awq, pack_gptq

gptq = dict(quant_method='gptq', bits=4, group_size=16, sym=False, desc_act=False, checkpoint_format='gptq')
awq = dict(quant_method='awq', bits=4, group_size=16, zero_point=True, version='gemm')
ids = torch.arange(3, 43).view(2, 20)

def packed(folder, about, bits=4, desc_act=False, bias=False):
    "Pack all layers of a checkpoint with codes of chance; the weights that they mean, by name"
    tensors, means = load_file(folder/'model.safetensors'), {}
    for i,name in enumerate(o for o in list(tensors) if '_proj.' in o):
        n_out, width = tensors.pop(name).shape
        codes, zeros, scales = layer(n_out, width, width//16, bits, seed=i)
        groups = np.random.default_rng(i).permutation(np.arange(width)//16) if desc_act else np.arange(width)//16
        if about['quant_method']=='awq': parts = pack_awq(codes, zeros, scales)
        else: parts = pack_gptq(codes, zeros, scales, bits, about.get('checkpoint_format')!='gptq_v2', groups)
        if bias: parts['bias'] = torch.zeros(n_out).half()
        tensors |= {f"{name.removesuffix('.weight')}.{k}": t.contiguous() for k,t in parts.items()}
        means[name] = meaning(codes, zeros, scales, groups)
    save_file(tensors, folder/'model.safetensors', metadata=dict(format='pt'))
    config = json.loads((folder/'config.json').read_text())
    (folder/'config.json').write_text(json.dumps(config|dict(quantization_config=about, dtype='float16')))
    return means

@pytest.mark.parametrize('about,how', [(gptq, {}), (gptq, dict(bits=3)), (gptq, dict(bits=8, desc_act=True)), (gptq, dict(bits=2, bias=True)),
                                       (gptq|dict(checkpoint_format='gptq_v2'), {}), (awq, {}), (awq, dict(bias=True))], ids=str)
def test_a_packed_checkpoint_is_a_model(tiny_checkpoint, about, how):
    means = packed(tiny_checkpoint, about|dict(bits=how.get('bits', 4)), **how)
    model, tokenizer = load_model(tiny_checkpoint)
    assert model.dtype==torch.float16 and not model.training and len(tokenizer)==259
    for k,t in means.items(): assert torch.equal(model.state_dict()[k], t)
    lean = load_model(tiny_checkpoint, offload=True)[0]
    with torch.no_grad(): assert torch.equal(lean(ids).logits, model(ids).logits)
    assert quantized_before(model)==dict(method=about['quant_method'], bits=how.get('bits', 4), group_size=16)
    assert quantized_before(model)==quantized_before(load_tokenizer(tiny_checkpoint)[0])

def test_it_is_compressed_and_saved_as_a_dense_model(tiny_checkpoint, tmp_path):
    packed(tiny_checkpoint, gptq)
    model = load_model(tiny_checkpoint, dtype='float32')[0]
    report = compress(model, RTN(3, 8))
    assert 'quantized before, by gptq, 4 bits in groups of 16' in repr(report)
    model.save_pretrained(tmp_path/'again')
    config = json.loads((tmp_path/'again'/'config.json').read_text())
    assert 'quantization_config' not in config and config['quantized_before']==dict(method='gptq', bits=4, group_size=16)
    again = AutoModelForCausalLM.from_pretrained(tmp_path/'again')
    with torch.no_grad(): assert torch.equal(again(ids).logits, model(ids).logits)

def test_its_blocks_are_compressed_on_disk(tiny_checkpoint, tmp_path):
    packed(tiny_checkpoint, awq)
    (tiny_checkpoint/'quantize_config.json').write_text('{}')
    model, lean = load_model(tiny_checkpoint)[0], load_model(tiny_checkpoint, offload=True)[0]
    compress(model, RTN(3, 8)); compress(lean, RTN(3, 8), out=tmp_path/'new')
    new = load_model(tmp_path/'new')[0]
    for k,t in model.state_dict().items(): assert torch.equal(new.state_dict()[k], t)
    assert quantized_before(new)['method']=='awq' and not (tmp_path/'new'/'quantize_config.json').exists()

wrong = [(gptq|dict(checkpoint_format='marlin'), "checkpoint_format is 'marlin'"), (awq|dict(version='gemv_fast'), "layout is 'gemv_fast'"), (awq|dict(bits=8), 'its codes have 8 bits, not 4'),
         (dict(quant_method='compressed-tensors', format='int-quantized', config_groups=dict(a=dict(targets=['Linear'], weights={}, input_activations=dict(num_bits=8)))), 'round their inputs too'),
         (dict(quant_method='compressed-tensors', format='pack-quantized', config_groups=dict(a=dict(targets=['Linear'], weights={})), kv_cache_scheme=dict(num_bits=8)), 'keys and values')]

@pytest.mark.parametrize('about,why', wrong)
def test_what_cannot_be_read_is_refused_before_weights_are(tiny_checkpoint, about, why):
    config = json.loads((tiny_checkpoint/'config.json').read_text())
    (tiny_checkpoint/'config.json').write_text(json.dumps(config|dict(quantization_config=about)))
    (tiny_checkpoint/'model.safetensors').unlink()
    with pytest.raises(ValueError, match=why) as e: load_model(tiny_checkpoint)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('part,shape,why', [('qzeros', (1, 4), 'its zeros are'), ('scales', (2, 3), 'its scales are'), ('qweight', (5, 32), '5 words hold 32 codes'), (None, None, 'it has no qzeros')])
def test_parts_that_do_not_fit(tiny_checkpoint, part, shape, why):
    packed(tiny_checkpoint, gptq)
    tensors = load_file(tiny_checkpoint/'model.safetensors')
    if part is None: tensors.pop('model.layers.1.self_attn.q_proj.qzeros')
    else: tensors[f'model.layers.1.self_attn.q_proj.{part}'] = torch.zeros(shape, dtype=tensors[f'model.layers.1.self_attn.q_proj.{part}'].dtype)
    save_file(tensors, tiny_checkpoint/'model.safetensors')
    with pytest.raises(ValueError, match=f'model.layers.1.self_attn.q_proj must be packed as its format has it, but {why}'): load_model(tiny_checkpoint)

def test_a_missing_library_is_named(monkeypatch):
    import importlib.util
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    about = dict(quant_method='compressed-tensors', format='pack-quantized', config_groups=dict(a=dict(targets=['Linear'], weights={})))
    with pytest.raises(ImportError, match=r'pip install "compresscal\[compressed-tensors\]"'): check_packing(about)

def test_a_layer_that_is_not_packed_stays(tiny_checkpoint):
    "Such as those that `dynamic` or `modules_to_not_convert` leave alone"
    before = load_file(tiny_checkpoint/'model.safetensors')
    means = packed(tiny_checkpoint, gptq)
    tensors, name = load_file(tiny_checkpoint/'model.safetensors'), 'model.layers.0.mlp.up_proj'
    tensors = {k: t for k,t in tensors.items() if not k.startswith(f'{name}.')}|{f'{name}.weight': before[f'{name}.weight']}
    save_file(tensors, tiny_checkpoint/'model.safetensors')
    state = load_model(tiny_checkpoint)[0].state_dict()
    assert torch.equal(state[f'{name}.weight'], before[f'{name}.weight'].half())
    assert torch.equal(state['model.layers.1.mlp.up_proj.weight'], means['model.layers.1.mlp.up_proj.weight'])

_ONESHOT = """
import sys, torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import AutoModelForCausalLM, AutoTokenizer
source, out = sys.argv[1:]
def scheme(target, bits, symmetric=True):
    return QuantizationScheme(targets=[target], weights=QuantizationArgs(num_bits=bits, group_size=16, strategy='group', symmetric=symmetric))
kinds = dict(four=[scheme('Linear', 4)], asymmetric=[scheme('Linear', 4, False)], mixed=[scheme('re:.*mlp.*', 4), scheme('re:.*self_attn.*', 8)])
for name,schemes in kinds.items():
    model = AutoModelForCausalLM.from_pretrained(source)
    groups = {f'group_{i}': o for i,o in enumerate(schemes)}
    oneshot(model=model, tokenizer=AutoTokenizer.from_pretrained(source), recipe=QuantizationModifier(config_groups=groups, ignore=['lm_head']))
    model.save_pretrained(f'{out}/{name}', save_compressed=True)
"""

@pytest.mark.slow
def test_checkpoints_of_llm_compressor(tiny_checkpoint, tiny_tokenizer, tmp_path):
    python = os.environ.get('COMPRESSCAL_LLMCOMPRESSOR_PYTHON') or pytest.skip('no Python with llm-compressor: name one in COMPRESSCAL_LLMCOMPRESSOR_PYTHON')
    dense = load_model(tiny_checkpoint)[0]
    done = subprocess.run([python, '-c', _ONESHOT, str(tiny_checkpoint), str(tmp_path)], capture_output=True, text=True, env=os.environ|dict(PYTHONPATH=''))
    assert not done.returncode, done.stderr[-2000:]
    for name,bits in dict(four=4, asymmetric=4, mixed=None).items():
        tiny_tokenizer.save_pretrained(tmp_path/name)
        model = load_model(tmp_path/name)[0]
        assert quantized_before(model)==dict(method='compressed-tensors', **dict(bits=bits) if bits else {}, group_size=16)
        for mine,theirs in zip(decoder_blocks(dense), decoder_blocks(model)):
            for o in mine.linears: # half a step of a grid of 4 bits over 16 weights at most, which is less than 1/14 of the largest, rounded
                moved, most = (o.weight-theirs[o.name].weight).abs().max(), o.weight.abs().max()
                assert 0<moved<most/7
        if name=='asymmetric': continue # transformers reads it only with a note in its configuration
        again = AutoModelForCausalLM.from_pretrained(tmp_path/name)
        with torch.no_grad(): assert torch.equal(again(ids).logits, model(ids).logits)
