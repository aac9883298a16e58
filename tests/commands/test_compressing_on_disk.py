"A model that is compressed on disk and packed: killed at any moment, gone on with, and the same in the end"
import os, shutil, subprocess, sys
from collections import Counter
from pathlib import Path
import pytest, torch
from conftest import root
from compresscal.checkpoints.inspection import inspect_checkpoint, verify_checkpoint
from compresscal.commands.cli import main
from compresscal.commands.compressing import compress_model
from compresscal.models.loading import load_model
from compresscal.models.new_checkpoint import NOTES

def same(a, b):
    "Have two folders the same weights, configuration and files?"
    (x,_), (y,_) = load_model(a), load_model(b)
    assert x.state_dict().keys()==y.state_dict().keys() and all(torch.equal(x.state_dict()[k], t) for k,t in y.state_dict().items())
    return {o.name for o in Path(a).iterdir()}=={o.name for o in Path(b).iterdir()}-{NOTES}

def same_file(a, b):
    "Have the GGUF files of two folders the same tensors?"
    from gguf import GGUFReader
    a, b = ({o.name: (o.tensor_type, o.data.tobytes()) for o in GGUFReader(folder/'model.gguf').tensors} for folder in (a, b))
    return a==b

@pytest.mark.parametrize('method,format', [('rtn:4,group_size=32', None), ('gptq:4,group_size=16', 'compressed-tensors'), ('rtn:4,group_size=32', 'gguf'), ('wanda:0.5', None)])
def test_from_disk_as_in_memory(method, format, tmp_path, tiny_checkpoint):
    "The same weights in the same format; the account, the list of files and a second compression agree"
    if format=='gguf': pytest.importorskip('gguf')
    source = str(tiny_checkpoint) if format!='gguf' else 'embedded' # whose tokenizer llama.cpp knows
    how = dict(save_as=format) | ({} if method[:3]=='rtn' else dict(calibration='self', n_sequences=4, length=32))
    whole, disk = (compress_model(source, method, tmp_path/o, offload=o=='disk', **how) for o in ('whole', 'disk'))
    assert whole.data['format']==disk.data['format']==(format or ('dense' if method=='wanda:0.5' else 'compressed-tensors'))
    if format!='gguf':
        same(tmp_path/'whole', tmp_path/'disk')
        assert verify_checkpoint(tmp_path/'disk', progress=False).differing==0
    else: assert same_file(tmp_path/'whole', tmp_path/'disk')
    assert inspect_checkpoint(tmp_path/'disk').fine and sorted(os.listdir(tmp_path))==['disk', 'tiny', 'whole']

# ---- Killed

killed = """
import os, signal, sys
from compresscal.checkpoints import packing
from compresscal.commands.cli import main
from compresscal.compression import compress as compression
log, argv = sys.argv[1], sys.argv[2:]
left = None
def noted(module, name, say):
    real = getattr(module, name)
    def call(*args, **kwargs):
        found = real(*args, **kwargs)
        with open(log, 'a') as file: file.write(say(*args)+chr(10))
        return found
    setattr(module, name, call)
def killing(name):
    real = getattr(os, name)
    def call(*args, **kwargs):
        global left
        left -= 1
        if left<0: os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(os, name, call)
noted(compression, '_compress_block', lambda block, *rest: f'block {block.index}')
noted(packing, 'pack_shard', lambda file, *rest: f'pack {file.name}')
for name in ('replace', 'rename', 'unlink', 'rmdir'): killing(name) # what a step ends with
for k in range(1, 1000, 7):
    child = os.fork()
    if not child:
        left = k
        os._exit(main(argv))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open(log, 'a') as file: file.write(f'end {status}'+chr(10))
    if status!=-signal.SIGKILL: break
"""

def killed_often(log, *argv):
    "Run a command that is killed after more and more renames, until it ends; what was logged, by run"
    done = subprocess.run([sys.executable, '-c', killed, str(log), *map(str, argv)], capture_output=True, text=True, env=os.environ|dict(PYTHONPATH=str(root), OMP_NUM_THREADS='1'))
    lines = log.read_text().splitlines() if log.exists() else [done.stderr]
    over = lines[-1]=='end 0' or lines[-1]=='end 2' and 'an earlier run' in done.stderr or 'which holds something' in done.stderr # it was killed when all was done
    assert over, (lines[-1], done.stderr[-3000:])
    return lines

@pytest.mark.slow
@pytest.mark.parametrize('format', ['compressed-tensors', 'gguf', 'dense'])
def test_killed_at_any_moment(format, tmp_path, tiny_checkpoint):
    if format=='gguf': pytest.importorskip('gguf')
    asked = ['compress', tiny_checkpoint, 'gptq:4,group_size=32', '--calibration', 'self', '--sequences', '4', '--length', '32', '--offload', '--format', format, '--out']
    if format=='gguf': asked[1:9] = ['embedded', 'rtn:4,group_size=32'] # whose tokenizer llama.cpp knows
    assert main([*map(str, asked), str(tmp_path/'once')])==0
    lines = killed_often(tmp_path/'log', *asked, tmp_path/'often')
    deaths, work = lines.count('end -9'), Counter(o for o in lines if not o.startswith('end'))
    assert deaths>3 # at so many places
    for what,n in work.items(): assert n<=3, (what, n) # a step that was killed before its end is done again; one that has ended is not
    assert sum(o.startswith('block') for o in work)==(4 if format=='gguf' else 2)
    if format=='gguf': assert same_file(tmp_path/'once', tmp_path/'often')
    else: assert same(tmp_path/'once', tmp_path/'often')
    assert inspect_checkpoint(tmp_path/'often').fine and {'log', 'often', 'once', 'tiny'}>={*os.listdir(tmp_path)}-{'.often.work', '.often.lock'}
    assert not [o for o in (tmp_path/'.often.work').rglob('*') if o.name!='handed-over']

def test_what_was_there_stays(tmp_path, tiny_checkpoint, monkeypatch):
    "Another command for the same folder, and one that fails, leave the work of the first alone"
    from compresscal.checkpoints import packed_folders
    asked = ['compress', str(tiny_checkpoint), 'rtn:4,group_size=32', '--offload', '--out', str(tmp_path/'out')]
    with monkeypatch.context() as m:
        def stopped(*args): raise KeyboardInterrupt
        m.setitem(packed_folders.PACKERS, 'compressed-tensors', stopped)
        assert main(asked)==130
    dense = {o.name: o.stat().st_mtime_ns for o in (tmp_path/'.out.work'/'dense').glob('*.safetensors')}
    assert len(dense)==5 and not (tmp_path/'out').exists() # two blocks, their codes, and what is around them
    assert main([*asked[:2], 'rtn:3,group_size=32', *asked[3:]])==2 # other settings
    assert {o.name: o.stat().st_mtime_ns for o in (tmp_path/'.out.work'/'dense').glob('*.safetensors')}==dense
    (tmp_path/'out').mkdir(); (tmp_path/'out'/'mine').touch()
    assert main(asked)==2 and [*os.listdir(tmp_path/'out')]==['mine'] and (tmp_path/'.out.work'/'dense').exists()
    shutil.rmtree(tmp_path/'out')
    assert main(asked)==0 and sorted(os.listdir(tmp_path))==['out', 'tiny']

def test_a_disk_without_room_is_known_first(tmp_path, tiny_checkpoint, monkeypatch, capsys):
    from compresscal.compression import compress as compression
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10**6, 10**6, 10**3))
    monkeypatch.setattr(compression, '_compress_block', lambda *args: pytest.fail('it was begun'))
    for offload in ([], ['--offload']):
        assert main(['compress', str(tiny_checkpoint), 'rtn:4,group_size=32', *offload, '--out', str(tmp_path/'out')])==1
        assert 'writing takes about' in capsys.readouterr().err and os.listdir(tmp_path)==['tiny']
