"What several test files need: the checkout, a copy of it, shared material, and a tiny model."
import os, re, shutil, subprocess
from collections import Counter
from pathlib import Path
import pytest

os.environ.update(HF_HUB_OFFLINE='1', IN_TEST='1', MPLBACKEND='agg')
os.environ.setdefault('OMP_WAIT_POLICY', 'passive') # a thread that waits takes no processor time; two threads are asked for in places
os.environ.setdefault('OMP_NUM_THREADS', '1') # tests run in several processes, and on small matrices more threads mostly wait for each other
root = Path(__file__).resolve().parents[1]

def source_files():
    "Files of the checkout that Git knows or would add; without Git, all but what is built"
    if (root/'.git').exists():
        out = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=root, capture_output=True, text=True, check=True).stdout
        return [p for o in out.split('\0') if o and (p := Path(o)) and (root/p).exists()]
    built = lambda p: any(o.startswith(('_', '.')) or o in ('build', 'dist') for o in p.parent.parts)
    return [p for o in sorted(root.rglob('*')) if o.is_file() and not built(p := o.relative_to(root))]

def copy_checkout(dest):
    "A copy of the working tree at `dest`, without what is built"
    for p in source_files():
        (dest/p).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root/p, dest/p, follow_symlinks=False)
    return dest

def outside_tests(folder):
    "Environment for a command that a developer would run in `folder`"
    return {k:v for k,v in os.environ.items() if k not in ('IN_TEST', 'PYTEST_CURRENT_TEST')} | dict(PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE='1')

@pytest.fixture(scope='module')
def one_thread():
    "Matrices are so small that a second thread mostly waits"
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

@pytest.fixture
def reads(monkeypatch):
    "How often each block of a model on disk was read"
    from compresscal.models.disk_blocks import BlockOnDisk
    found, own = Counter(), BlockOnDisk.__enter__
    def enter(self):
        found[self.index] += not self.users
        return own(self)
    monkeypatch.setattr(BlockOnDisk, '__enter__', enter)
    return found

@pytest.fixture
def checkout(tmp_path): return copy_checkout(tmp_path/'checkout')

@pytest.fixture(scope='session')
def shared():
    "Folder of real data and reference outputs that lies beside the checkout"
    folder = Path(os.environ.get('COMPRESSCAL_SHARED') or root.parent/'shared')
    if not folder.is_dir(): pytest.skip(f'no folder {folder}: set COMPRESSCAL_SHARED to where the shared material lies')
    return folder

@pytest.fixture(scope='session')
def tiny_tokenizer():
    "One token a byte, with `<s>` `</s>` `<pad>` before them: 259 tokens, nothing unknown"
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    special = ['<s>', '</s>', '<pad>']
    vocab = {o:i for i,o in enumerate(special+sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token='<s>', eos_token='</s>', pad_token='<pad>', model_max_length=128)

@pytest.fixture(scope='session')
def short_tokenizer():
    "The embedded model's tokenizer with 512 of its 4,096 tokens, because every reader of a GGUF file goes through all of them"
    import json
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast
    from compresscal.core.files import embedded_folder
    content = json.loads((embedded_folder()/'tokenizer.json').read_text())
    kept = {k: i for k,i in content['model']['vocab'].items() if i<512}
    content['model'] |= dict(vocab=kept, merges=[o for o in content['model']['merges'] if ''.join(o) in kept])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), bos_token='<s>', eos_token='</s>', pad_token='<pad>')

@pytest.fixture
def tiny_model(tiny_tokenizer):
    "A random Llama of 2 blocks and width 32, the same at every call"
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(vocab_size=len(tiny_tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()

@pytest.fixture
def tiny_checkpoint(tiny_model, tiny_tokenizer, tmp_path):
    "A folder that holds the tiny model and its tokenizer"
    tiny_model.save_pretrained(tmp_path/'tiny')
    tiny_tokenizer.save_pretrained(tmp_path/'tiny')
    return tmp_path/'tiny'

def small_model(kind, vocabulary, **changes):
    "A random BART, T5 or Llama of one block or two, the same at every call; weights large enough that predictions differ"
    import torch
    from transformers import BartConfig, BartForConditionalGeneration, LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration
    ids = dict(vocab_size=vocabulary, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    bart = dict(d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
                max_position_embeddings=256, init_std=.3, decoder_start_token_id=1, forced_eos_token_id=None)
    t5 = dict(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=2, initializer_factor=1.)
    llama = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
                 initializer_range=.3)
    config,model,own = dict(bart=(BartConfig, BartForConditionalGeneration, bart), t5=(T5Config, T5ForConditionalGeneration, t5),
                            llama=(LlamaConfig, LlamaForCausalLM, llama))[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model(config(**ids|own|changes)).eval()

@pytest.fixture
def framed_tokenizer(tiny_tokenizer):
    "The tiny tokenizer with `<s>` before and `</s>` behind each text, as BART's"
    import copy
    from tokenizers.processors import TemplateProcessing
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer._tokenizer.post_processor = TemplateProcessing(single='<s> $A </s>', special_tokens=[('<s>', 0), ('</s>', 1)])
    return tokenizer

@pytest.fixture(scope='session')
def browser(tmp_path_factory):
    "Function that opens an address in headless Chromium, without a network: the page after its scripts have run, and what they wrote to the console"
    names = [os.environ.get('CHROME', ''), 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome']
    if not (program := next(filter(None, map(shutil.which, names)), None)): pytest.skip('no Chromium or Chrome on the path, nor in the variable CHROME')
    options = ['--headless=new', '--no-sandbox', '--disable-gpu', '--disable-background-networking', '--host-resolver-rules=MAP * ~NOTFOUND',
               '--enable-logging=stderr', f'--user-data-dir={tmp_path_factory.mktemp("profile")}', '--dump-dom']
    def opened(address, *more, seconds=10):
        done = subprocess.run([program, *options, f'--virtual-time-budget={seconds*1000}', *more, address], capture_output=True, text=True, timeout=600, check=True)
        return done.stdout, [o for o in done.stderr.splitlines() if 'CONSOLE' in o]
    return opened

@pytest.fixture(scope='session')
def width(browser, tmp_path_factory):
    "How wide a page is, and how much of that is seen in a window of 390 pixels, in Chromium"
    folder = tmp_path_factory.mktemp('pages')
    def measured(page):
        (folder/'page.html').write_text(page)
        frame = '<iframe src="page.html" style="width:390px;height:900px;border:0" onload="const e=this.contentDocument.documentElement;document.title=e.scrollWidth+\' of \'+e.clientWidth"></iframe>'
        (folder/'frame.html').write_text(f'<!doctype html>{frame}')
        said, _ = browser((folder/'frame.html').as_uri(), '--allow-file-access-from-files')
        return [int(o) for o in re.search(r'<title>(\d+) of (\d+)</title>', said).groups()]
    return measured
