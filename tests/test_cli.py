"The command: quick to answer, one sentence for a mistake, nothing half made"
import errno, os, resource, signal, subprocess, sys, tempfile, time
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import outside_tests, root

from compresscal.cli import DEFAULTS, main, make_parser

command = [sys.executable, '-c', 'import sys; from compresscal.cli import main; sys.exit(main())']

def call(*args, **kwargs):
    "Run the command in a process of its own"
    return subprocess.run([*command, *args], env=outside_tests(root) | dict(HF_HUB_OFFLINE='1'), capture_output=True, text=True, cwd=root, **kwargs)

def failure(capsys, *args):
    "Exit code and last line of a command that fails"
    code = main(['study', *map(str, args)])
    said = capsys.readouterr()
    assert 'Traceback' not in said.err and not said.out
    return code, said.err.strip().splitlines()[-1]

@pytest.mark.parametrize('args', [['--help'], ['study', '--help'], ['--version']])
def test_quick_answers(args):
    "Under half a second of computing, so that the machine's load does not matter"
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    spent = []
    for _ in range(3):
        before = used()
        assert call(*args).returncode==0
        spent.append(used()-before)
    assert min(spent)<.5

def test_help_names_all_methods():
    "The command names them without importing the package's modules"
    from compresscal.methods import METHODS
    said = next(o.help for o in make_parser()._subparsers._group_actions[0].choices['study']._actions if o.dest=='methods')
    assert all(name in said for name in METHODS)

def test_defaults_are_those_of_study():
    from compresscal.study import Study
    assert {f.name: f.default for f in fields(Study) if f.name!='device'}==DEFAULTS

def test_help_names_every_default(capsys):
    with pytest.raises(SystemExit): main(['study', '--help'])
    said = ' '.join(capsys.readouterr().out.split())
    for d in DEFAULTS.values(): assert f"(default: {' '.join(d) if isinstance(d, tuple) else d})" in said

def test_no_command_shows_help(capsys): assert main([])==2 and 'study' in capsys.readouterr().out

def test_version(capsys):
    import compresscal
    assert main(['--version'])==0 and compresscal.__version__ in capsys.readouterr().out

def test_lists_are_repeated_or_spaced():
    a = make_parser().parse_args('study --methods wanda:0.5 magnitude:2:4 --methods wanda:0.7 --sources a,b.txt'.split())
    assert a.methods==['wanda:0.5', 'magnitude:2:4', 'wanda:0.7'] and a.sources==['a,b.txt']

@pytest.mark.parametrize('args, says', [
    (['--methods', 'wonda:0.5'], "did you mean 'wanda'"), (['--methods', 'wanda'], "'wanda:0.5'"), (['--methods', 'wanda:1.5'], '1.5'), (['--methods', 'wanda:4:2'], '4:2'),
    (['--sets', '0'], '`n_sets`'), (['--model', 'no/such-model'], 'no/such-model'), (['--model', '/no/such/folder'], '/no/such/folder'), (['--length', '0'], '`length`')])
def test_mistakes(args, says, capsys, tmp_path):
    code, line = failure(capsys, *args, '--out', tmp_path/'s')
    assert code==2 and says in line

@pytest.mark.parametrize('args, says', [
    (['--sources', 'dogs'], "did you mean 'docs'"), (['--sources', 'no/such.txt'], 'no/such.txt'), (['--evaluate', 'doc'], 'docs'), (['--length', '1000'], 'context of 128'),
    (['--methods', 'wanda:2:3'], '2:3')])
def test_mistakes_seen_with_the_model(args, says, capsys, tmp_path, tiny_checkpoint):
    code, line = failure(capsys, '--model', tiny_checkpoint, '--length', 64, *args, '--out', tmp_path/'s')
    assert code==2 and says in line
    assert not list((tmp_path/'s').glob('cells/*')) and not list((tmp_path/'s').glob('results.csv'))

@pytest.mark.parametrize('name, content, says', [('a.txt', b'', 'a.txt'), ('a.txt', bytes(range(256))*9, 'a.txt'), ('a.jsonl', b'{"text": "fine"}\n{"text": \n', 'a.jsonl')])
def test_broken_files(name, content, says, capsys, tmp_path, tiny_checkpoint):
    (tmp_path/name).write_bytes(content)
    code, line = failure(capsys, '--model', tiny_checkpoint, '--sources', tmp_path/name, '--length', 32, '--out', tmp_path/'s')
    assert code==2 and says in line

def test_unknown_option(capsys):
    with pytest.raises(SystemExit) as e: main(['study', '--nope'])
    assert e.value.code==2

def test_folder_below_a_file(capsys, tmp_path):
    (tmp_path/'file').touch()
    code, line = failure(capsys, '--out', tmp_path/'file'/'study')
    assert code==1 and 'cannot write' in line and os.listdir(tmp_path)==['file']

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='permissions of POSIX systems')
def test_folder_without_permission():
    "As root nothing is forbidden, so a child process becomes an ordinary user; what it needs is imported before"
    import compresscal.study
    with tempfile.TemporaryDirectory() as d, tempfile.TemporaryFile('w+') as said:
        for p,mode in ((Path(d), 0o755), (Path(d)/'closed', 0o555)): p.mkdir(exist_ok=True); p.chmod(mode)
        if not (pid := os.fork()):
            try:
                if os.geteuid()==0: os.setgroups([]); os.setgid(65534); os.setuid(65534)
                sys.stderr = said
                code = main(['study', '--out', d+'/closed/study'])
                said.flush()
            finally: os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])==1
        said.seek(0)
        assert 'cannot write' in (line := said.read().strip().splitlines()[-1]) and 'closed' in line and not os.listdir(d+'/closed')

def test_disk_full(capsys, tmp_path, monkeypatch, tiny_checkpoint):
    real, count = os.fsync, iter(range(10**6))
    def full(handle):
        if next(count)>12: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle)
    monkeypatch.setattr(os, 'fsync', full)
    code, line = failure(capsys, '--model', tiny_checkpoint, '--sources', 'random', '--length', 32, '--sequences', 4, '--out', tmp_path/'s')
    assert code==1 and 'No space left' in line and not [p for p in (tmp_path/'s').rglob('*.part')]

def test_interrupted(capsys, tmp_path, monkeypatch):
    from compresscal import study
    def stop(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(study.Study, 'run', stop)
    code, line = failure(capsys, '--out', tmp_path/'s')
    assert code==130 and 'same command' in line

def test_traceback_on_demand(tmp_path):
    with pytest.raises(ValueError, match='wanda'): main(['study', '--methods', 'wonda:0.5', '--traceback', '--out', str(tmp_path/'s')])

@pytest.mark.slow
def test_a_study_from_the_shell(tmp_path, tiny_checkpoint):
    "A whole study of a small model on local text, then Ctrl-C in a second one"
    (tmp_path/'mine.txt').write_text('\n\n'.join(f'Paragraph {i} of a text about nothing but the number {i*i}.'*9 for i in range(2000)))
    args = ['study', '--model', str(tiny_checkpoint), '--sources', str(tmp_path/'mine.txt'), 'random', *'--methods wanda:2:4 --sets 2 --sequences 4 --length 64'.split()]
    said = call(*args, '--out', str(tmp_path/'a'))
    assert said.returncode==0, said.stderr
    assert max(map(len, said.stdout.splitlines()))<=80 and 'mine.txt' in said.stdout and {'results.csv', 'figure.png', 'figure.pdf', 'report.html', 'provenance.json'} <= set(os.listdir(tmp_path/'a'))
    with subprocess.Popen([*command, *args, '--sets', '9', '--out', str(tmp_path/'b')], env=outside_tests(root) | dict(HF_HUB_OFFLINE='1'), stderr=subprocess.PIPE, text=True,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as p: # a background job would ignore it
        while p.poll() is None and not list(tmp_path.glob('b/cells/*')): time.sleep(.01)
        p.send_signal(signal.SIGINT)
        said = p.communicate()[1]
    assert p.returncode==130 and 'goes on where it was' in said.splitlines()[-1] and 'Traceback' not in said

def sets(*args): return main(['sets', *map(str, args)])

def test_sets_are_made_and_found_again(capsys, tmp_path, tiny_checkpoint):
    "Drawn, written or mixed; the same command finds what is there, another is refused"
    from compresscal import CalibrationSet
    for i,source in enumerate(('docs', 'random:docs', 'self:carlini', 'docs=0.5+self=0.5')):
        asked = [source, '--model', tiny_checkpoint, '--sets', 2, '--sequences', 4, '--length', 64, '--out', tmp_path/f'{i}']
        assert sets(*asked)==0
        first = [CalibrationSet.load(tmp_path/f'{i}'/n) for n in ('000', '001')]
        assert first[0]!=first[1] and all(s.tokens.shape==(4, 64) for s in first)
        assert first[0].hash in (tmp_path/f'{i}'/'000.md').read_text()
        assert sets(*asked)==0 and [CalibrationSet.load(tmp_path/f'{i}'/n) for n in ('000', '001')]==first
        assert {p.name for p in (tmp_path/f'{i}').iterdir()}=={'000', '000.md', '001', '001.md', 'asked.json'}
    assert sets('docs', '--model', tiny_checkpoint, '--sequences', 5, '--out', tmp_path/'0')==2
    assert 'same command' in capsys.readouterr().err.splitlines()[-1]

@pytest.mark.parametrize('args, says', [(['dogs'], "did you mean 'docs'"), (['self:carlin'], 'one of plain'), (['docs', '--sequences', 0], '`n_sequences`'), (['self', '--length', 129], 'context of 128'),
    (['docs', '--length', 0], '`length`'), (['docs=0.5+code=0.6'], 'sum to 1'), (['docs', '--model', '/no/such/folder'], '/no/such/folder')])
def test_mistakes_about_sets(args, says, capsys, tmp_path, tiny_checkpoint):
    assert sets('--model', tiny_checkpoint, '--out', tmp_path/'s', *args)==2
    assert says in capsys.readouterr().err.strip().splitlines()[-1]
    assert not [p for p in (tmp_path/'s').rglob('*') if p.name!='asked.json']
    assert sets('docs', '--model', tiny_checkpoint, '--sequences', 2, '--length', 32, '--out', tmp_path/'s')==0 # the folder is as good as new
