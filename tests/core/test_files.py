"Files are whole or absent, others may read them, and every byte of them counts"
import ast, os, re, shutil, stat
import pytest, torch
from compresscal.core import files
from compresscal.compression.methods import RTN
from compresscal.compression.compress import compress
from compresscal.checkpoints.save import save
from compresscal.core.files import file_fingerprint, give_usual_mode, write_atomically
from compresscal.calibration.generation import Script, generate
from compresscal.models.loading import load_model
from compresscal.experiments.preparation import keep_model
from compresscal.vocabulary.reduced_checkpoints import save_full, save_reduced
from compresscal.calibration.calibration_set import CalibrationSet
from compresscal.models.new_checkpoint import ShardWriter
from compresscal.vocabulary.usage import used_tokens
from compresscal.vocabulary.reduction import reduce_vocabulary
from conftest import root

# ---- fingerprints

@pytest.fixture
def large(tmp_path, monkeypatch):
    "A file that counts as large and as not touched for a while, and a cache of its own"
    monkeypatch.setenv('COMPRESSCAL_CACHE', str(tmp_path/'cache'))
    for name,value in dict(_large=2**20, _settled=-1).items(): monkeypatch.setattr(files, name, value)
    (tmp_path/'model.safetensors').write_bytes(bytes(3*2**20))
    return tmp_path/'model.safetensors'

def edit(path, at, byte=b'x'):
    with open(path, 'r+b') as f:
        f.seek(at)
        f.write(byte)

def test_an_edit_anywhere_changes_the_fingerprint(tmp_path, monkeypatch):
    monkeypatch.setenv('COMPRESSCAL_CACHE', str(tmp_path/'cache'))
    path = tmp_path/'model.safetensors'
    with open(path, 'wb') as f: f.truncate(80*2**20)
    found = [file_fingerprint(path)]
    for at in (2**20+7, 80*2**20-1): # the first lies between evenly spaced blocks
        edit(path, at)
        found.append(file_fingerprint(path))
    assert len(set(found))==3 and all(o.startswith('blake2b:') for o in found)

def test_a_copy_has_the_same_fingerprint(large, tmp_path):
    shutil.copy(large, tmp_path/'copy')
    assert file_fingerprint(large)==file_fingerprint(tmp_path/'copy')

def test_a_large_file_is_read_once(large, monkeypatch):
    read, hash_content = [], files._hash_content
    monkeypatch.setattr(files, '_hash_content', lambda *o: read.append(o) or hash_content(*o))
    found = {file_fingerprint(large) for _ in range(3)}
    assert len(found)==len(read)==1
    was = os.stat(large)
    edit(large, 2**20)
    os.utime(large, ns=(was.st_atime_ns, was.st_mtime_ns)) # hides the edit from all but the time of the last change of status
    assert file_fingerprint(large) not in found and len(read)==2

def test_a_file_of_this_moment_is_not_remembered(large, tmp_path, monkeypatch):
    monkeypatch.setattr(files, '_settled', 10**12)
    file_fingerprint(large)
    assert not (tmp_path/'cache').exists()

def test_a_cache_that_is_damaged_or_cannot_be_written(large, tmp_path, monkeypatch):
    found = file_fingerprint(large)
    note, = (tmp_path/'cache'/'fingerprints').iterdir()
    note.write_bytes(b'\xff half')
    assert file_fingerprint(large)==found
    (tmp_path/'a file').touch()
    monkeypatch.setenv('COMPRESSCAL_CACHE', str(tmp_path/'a file'))
    assert file_fingerprint(large)==found

def test_small_files_keep_their_names(tmp_path):
    "What earlier versions have written down of files up to 64 MiB holds"
    (tmp_path/'a').write_bytes(b'abc'*10**6)
    assert file_fingerprint(tmp_path/'a')=='blake2b:edd9e20f12d81e927b0f82e799ff1427'

# ---- permissions

@pytest.fixture(params=[0o022, 0o027, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)

def modes(folder): return {o.relative_to(folder).as_posix(): stat.S_IMODE(o.stat().st_mode) for o in folder.rglob('*') if o.is_file()}

def written(place, model, tokenizer):
    "One of everything that goes to disk through safetensors"
    write_atomically(place/'a.txt', 'text')
    CalibrationSet(torch.arange(8).view(2, 4), {}).save(place/'set')
    generate(model, Script([[1]]), 4, range(2), folder=place/'written', progress=False)
    used_tokens(['some text'], tokenizer).save(place/'usage')
    keep_model(place, 'mark', model, tokenizer)
    save(model, compress(model, RTN(4)), place/'quantized', 'dense', tokenizer)
    with ShardWriter(load_model(place/'quantized', offload=True)[0], place/'streamed'): pass
    reduction = reduce_vocabulary(model, used_tokens(['some text'], tokenizer))
    save_reduced(reduction, place/'reduced')
    save_full(reduction, place/'full')

def test_others_may_read_what_they_may_read_elsewhere(umask, tmp_path, tiny_model, tiny_tokenizer):
    written(tmp_path, tiny_model, tiny_tokenizer)
    found = modes(tmp_path)
    assert sum(o.endswith('.safetensors') for o in found)>=10
    assert {k: oct(v) for k,v in found.items() if v!=0o666&~umask}=={}

def test_no_probe_is_left(tmp_path):
    (tmp_path/'a.safetensors').touch(0o600)
    give_usual_mode(tmp_path)
    assert [o.name for o in tmp_path.iterdir()]==['a.safetensors']

def test_whoever_writes_with_safetensors_sets_the_mode():
    "A module that calls `save_file`, or saves a model, calls `give_usual_mode` too"
    found = {}
    for path in sorted((root/'compresscal').rglob('*.py')):
        if not re.search('save_(file|pretrained|model)', path.read_text()): continue
        calls = {ast.unparse(o.func).split('.')[-1] for o in ast.walk(ast.parse(path.read_text())) if isinstance(o, ast.Call)}
        if calls & {'save_file','save_pretrained','save_model'}: found[path.relative_to(root).as_posix()] = 'give_usual_mode' in calls
    assert found and [k for k,v in found.items() if not v]==[]
