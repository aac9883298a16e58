"Importance matrices beside those that llama.cpp makes, and in its quantizer; the file itself is shown in the notebook."
import os, shutil, subprocess
from pathlib import Path
import pytest, torch
from compresscal.calibration.sampling import sample_sets
from compresscal.checkpoints.gguf_files import write_gguf
from compresscal.checkpoints.imatrix import write_imatrix
from compresscal.models.loading import load_model
from compresscal.text.installed_text import held_out_documents

@pytest.fixture(scope='module')
def tool():
    "Runs `llama-imatrix` or `llama-quantize`, which lie on the path, or beside the Python that COMPRESSCAL_LLAMACPP_PYTHON names"
    beside = os.environ.get('COMPRESSCAL_LLAMACPP_PYTHON')
    def run(name, *args):
        found = shutil.which(name) or (beside and shutil.which(name, path=Path(beside).parent)) or pytest.skip(f'no {name}: put it on the path')
        done = subprocess.run([found, *map(str, args)], capture_output=True, text=True, timeout=600)
        assert not done.returncode, done.stdout[-2000:]+done.stderr[-4000:]
        return done.stdout+done.stderr
    return run

@pytest.fixture(scope='module')
def material(tmp_path_factory):
    "The embedded model as a file, a calibration set, and the folder they are in"
    folder = tmp_path_factory.mktemp('imatrix')
    model,tokenizer = load_model()
    made, = sample_sets([o.text for o in held_out_documents()['docs']['dev']], tokenizer, 1, 12, 64)
    return model,tokenizer,made,write_gguf(model, tokenizer, {}, folder/'f32.gguf', rest='F32'),folder

def sums(file):
    from gguf import GGUFReader
    return {o.name: torch.from_numpy(o.data.copy()).flatten() for o in GGUFReader(file).tensors}

def bytes_of(file):
    from gguf import GGUFReader
    return {o.name: torch.from_numpy(o.data.copy()).flatten() for o in GGUFReader(file).tensors if o.name.startswith('blk.') and len(o.shape)>1}

@pytest.fixture(scope='module')
def theirs(material, tool):
    "The importance matrix that llama.cpp's tool makes of the text that `to_text` writes"
    _,tokenizer,made,file,folder = material
    copy = made.to_text(tokenizer, folder/'text.txt')
    assert copy.in_place==1, copy
    tool('llama-imatrix', '-m', file, '-f', copy.path, '-c', made.length, '-b', made.length, '--parse-special', '--no-ppl', '-t', 1,
         '-ctk', 'f32', '-ctv', 'f32', '-fa', 'off', '-o', folder/'theirs.gguf')
    return folder/'theirs.gguf'

@pytest.mark.slow
def test_llama_imatrix_gathers_the_same(material, theirs):
    "The sums that come from the tokens"
    model,_,made,_,folder = material
    own,other = sums(write_imatrix(model, made, folder/'own.gguf', progress=False)),sums(theirs)
    assert own.keys()==other.keys() and len(own)==2*7*4
    for name,o in own.items():
        torch.testing.assert_close(other[name], o, rtol=1e-4, atol=1e-6*float(o.max()))
        if name.endswith('counts'): assert o.tolist()==[made.tokens.numel()]

@pytest.mark.slow
@pytest.mark.parametrize('kind', ['IQ4_NL','Q4_0'])
def test_llama_quantize_reads_it(material, theirs, tool, kind):
    "It rounds otherwise than without one, and as with llama.cpp's own"
    model,_,made,file,folder = material
    files = dict(own=write_imatrix(model, made, folder/'own.gguf', progress=False), theirs=theirs, none=None)
    made = {}
    for name,o in files.items():
        said = tool('llama-quantize', *(['--imatrix', o] if o else []), file, folder/f'{name}-{kind}.gguf', kind, 1)
        assert ('have 28 importance matrix entries' in said)==(o is not None), said
        made[name] = bytes_of(folder/f'{name}-{kind}.gguf')
    for name,o in made['own'].items():
        assert float((o==made['theirs'][name]).float().mean())>.999 and not torch.equal(o, made['none'][name]), name
