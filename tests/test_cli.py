"The commands: quick to answer, one sentence for a mistake, one document for a script, nothing half made"
import errno, inspect, io, json, os, random, resource, signal, subprocess, sys, tempfile, time, warnings
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import outside_tests, root

from compresscal import cli
from compresscal.cli import COMMANDS, DEFAULTS, MEASURES, RECIPE, RECIPES, STUDIES, main, make_parser
from compresscal.console import EXIT_CODES, PlainLines, as_json, explain, padded, readable_log, table_rows

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

@pytest.mark.parametrize('args', [['--help'], ['generate', '--help'], ['--version']])
def test_quick_answers(args):
    "Under half a second of computing, so that the machine's load does not matter"
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    spent = []
    for _ in range(3):
        before = used()
        assert call(*args).returncode==0
        spent.append(used()-before)
    assert min(spent)<.5

def parsers(): return make_parser()._subparsers._group_actions[0].choices

def test_help_knows_what_the_package_knows():
    "The command names it without importing the package's modules"
    from compresscal.measures import kinds
    from compresscal.methods import METHODS
    from compresscal.study import PRESETS as studies
    from compresscal.synthesis import PRESETS, Recipe
    assert all(name in cli.METHODS for name in METHODS) and all(f'{k}:' in MEASURES for k in kinds if k!='perplexity')
    assert tuple(PRESETS)==RECIPES and tuple(studies)==STUDIES and {*RECIPE}=={f.name for f in fields(Recipe)}

def test_every_option_reaches_its_function():
    from compresscal.compressing import compress_model, evaluate
    from compresscal.diagnosing import diagnose
    from compresscal.drawing import draw_sets, write_sets
    taken = dict(sample=draw_sets, generate=write_sets, diagnose=diagnose, compress=compress_model, evaluate=evaluate)
    assert [*parsers()]==[*COMMANDS]
    for name,function in taken.items():
        said = {o.dest for o in parsers()[name]._actions}-{'help', 'json', 'quiet', 'traceback'}-(RECIPE.keys() if name=='generate' else set())
        assert said<={*inspect.signature(function).parameters}, name
        assert {*inspect.signature(function).parameters}-said<={'progress', 'command', 'changes', 'n_sets'}, name
    assert {o.dest for o in parsers()['study']._actions}>=DEFAULTS.keys()

def test_exit_codes_are_in_the_help():
    said = ' '.join(make_parser().format_help().split())
    assert all(f'{code} {what}' in said for code,what in EXIT_CODES.items())

def test_defaults_are_those_of_study():
    from compresscal.study import Study
    assert {f.name: f.default for f in fields(Study) if f.name!='device'}==DEFAULTS

def test_help_names_every_default(capsys):
    with pytest.raises(SystemExit): main(['study', '--help'])
    said = ' '.join(capsys.readouterr().out.split())
    for d in DEFAULTS.values(): assert d==() or f"(default: {' '.join(d) if isinstance(d, tuple) else d})" in said

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

@pytest.mark.parametrize('line, says', [('study --nope', '--nope'), ('study --seqences 3', "did you mean '--sequences'"), ('stduy', "did you mean 'study'"), ('compress embedded', 'METHOD'),
    ('generate --t-initail 2', "did you mean '--t-initial'"), ('generate --top-k many', 'invalid int'), ('study impact', 'impact:cpu'), ('study impct:cpu', "did you mean 'impact'"),
    ('study impact:gpu', "one of full, cpu"), ('study no.toml', 'no.toml'), ('study status a b', 'one folder'), ('evaluate embeded', "did you mean 'embedded'"), ('evaluate embedded --evaluate doks', "did you mean 'docs'"),
    ('evaluate embedded --evaluate kl:docs', 'dense model'), ('diagnose docs dogs', "did you mean 'docs'"), ('diagnose docs --method rtn:4', 'look at text'), ('diagnose docs --leakage self', 'people wrote'),
    ('compress embedded wnda:0.5 --out o', "did you mean 'wanda'"), ('compress embedded wanda:0.5 --out o', 'such as docs'), ('compress embedded wanda:0.5 --out o --calibration dogs', "did you mean 'docs'"),
    ('generate carlin', "did you mean 'carlini'"), ('generate self:t_inital=2', "did you mean 't_initial'"), ('generate --eos never', '`eos`'), ('sample random --rule pack', 'not read')])
def test_slips(line, says, capsys, tmp_path, monkeypatch):
    "A sentence for people, a document for a script, and nothing written"
    monkeypatch.chdir(tmp_path)
    code = 1 if 'no.toml' in line else 2
    assert main(line.split())==code
    said = capsys.readouterr()
    assert says in said.err and 'Traceback' not in said.err and not said.out and not os.listdir(tmp_path)
    assert main([*line.split(), '--json'])==code
    told = json.loads(capsys.readouterr().out)
    assert told['code']==code and says in told['error']

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

def sample(*args): return main(['sample', *map(str, args)])

def test_sets_are_made_and_found_again(capsys, tmp_path, tiny_checkpoint, monkeypatch):
    "Drawn, written or mixed; the same command finds what is there without making it, another is refused"
    from compresscal import CalibrationSet, drawing
    for i,source in enumerate(('docs', 'random:docs', 'self:carlini', 'docs=0.5+self=0.5')):
        asked = [source, '--model', tiny_checkpoint, '--sets', 2, '--sequences', 4, '--length', 64, '--out', tmp_path/f'{i}']
        assert sample(*asked)==0
        first = [CalibrationSet.load(tmp_path/f'{i}'/n) for n in ('000', '001')]
        assert first[0]!=first[1] and all(s.tokens.shape==(4, 64) for s in first)
        assert first[0].hash in (tmp_path/f'{i}'/'000.md').read_text()
        with monkeypatch.context() as m:
            m.setattr(drawing, 'calibration_sets', None)
            assert sample(*asked)==0
        assert {p.name for p in (tmp_path/f'{i}').iterdir()}=={'000', '000.md', '001', '001.md', 'asked.json'}
    assert sample('docs', '--model', tiny_checkpoint, '--sequences', 5, '--out', tmp_path/'0')==2
    assert 'same command' in capsys.readouterr().err.splitlines()[-1]

def test_a_changed_file_is_another_question(capsys, tmp_path, tiny_checkpoint):
    (tmp_path/'a.txt').write_text('One thing after another. '*900)
    asked = [tmp_path/'a.txt', '--model', tiny_checkpoint, '--sequences', 2, '--length', 64, '--rule', 'pack', '--out', tmp_path/'s']
    assert sample(*asked)==0==sample(*asked)
    (tmp_path/'a.txt').write_text('One thing after the other. '*900)
    assert sample(*asked)==2 and 'same command' in capsys.readouterr().err

def test_changed_sets_are_not_taken(capsys, tmp_path, tiny_checkpoint):
    asked = ['docs', '--model', tiny_checkpoint, '--sequences', 2, '--length', 64, '--out', tmp_path/'s']
    assert sample(*asked)==0
    note = tmp_path/'s'/'000'/'manifest.json'
    note.write_text(note.read_text().replace('docs', 'dogs', 1))
    assert sample(*asked)==2 and 'was changed after it was saved' in capsys.readouterr().err

def test_a_folder_does_not_hide_a_source(tmp_path, monkeypatch, tiny_checkpoint):
    "`docs` is the source, `./docs` the folder"
    from compresscal.inputs import saved_sets
    monkeypatch.chdir(tmp_path)
    asked = ['docs', '--model', tiny_checkpoint, '--sequences', 2, '--length', 64, '--out', 'docs']
    assert sample(*asked)==0==sample(*asked)
    assert not saved_sets('docs') and len(saved_sets('./docs'))==1

@pytest.mark.parametrize('args, says', [(['dogs'], "did you mean 'docs'"), (['self:carlin'], 'one of plain'), (['docs', '--sequences', 0], '`n_sequences`'), (['self', '--length', 129], 'context of 128'),
    (['docs', '--length', 0], '`length`'), (['docs=0.5+code=0.6'], 'sum to 1'), (['docs', '--model', '/no/such/folder'], '/no/such/folder')])
def test_mistakes_about_sets(args, says, capsys, tmp_path, tiny_checkpoint):
    assert sample('--model', tiny_checkpoint, '--out', tmp_path/'s', *args)==2
    assert says in capsys.readouterr().err.strip().splitlines()[-1]
    assert not [p for p in (tmp_path/'s').rglob('*') if p.name!='asked.json']
    assert sample('docs', '--model', tiny_checkpoint, '--sequences', 2, '--length', 32, '--out', tmp_path/'s')==0 # the folder is as good as new

def document(capsys, *args, code=0):
    "What a command gives to a script"
    capsys.readouterr()
    assert main([*map(str, args), '--json'])==code
    return json.loads(capsys.readouterr().out)

def test_generate(capsys, tmp_path, tiny_checkpoint):
    "Options are fields of the recipe; the batch size changes nothing; the same set has the same hash from `sample`"
    size = ['--model', tiny_checkpoint, '--sequences', 4, '--length', 48]
    a = document(capsys, 'generate', *size, '--t-initial', 2, '--schedule', 9, '--top-k', 20, '--out', tmp_path/'a')
    b = document(capsys, 'generate', 'self:t_initial=2.0,schedule=9', *size, '--top-k', 20, '--batch-size', 1, '--out', tmp_path/'b')
    c = document(capsys, 'sample', 'self:t_initial=2.0,schedule=9,top_k=20', *size, '--out', tmp_path/'c')
    assert a['sets'][0]['hash']==b['sets'][0]['hash']==c['sets'][0]['hash'] and a['name']=='self:t_initial=2.0,schedule=9,top_k=20'
    d = document(capsys, 'generate', *size, '--temperatures', .5, 1.5, '--no-bos', '--special-tokens', '--out', tmp_path/'d')
    assert d['recipe']['temperatures']==[.5, 1.5] and d['recipe']['special_tokens'] and d['sets'][0]['hash']!=a['sets'][0]['hash']

def test_interrupted_writing_is_said_to_go_on(capsys, tmp_path, tiny_checkpoint, monkeypatch):
    from compresscal import drawing
    def stop(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(drawing, 'self_calibration_sets', stop)
    assert main(['generate', '--model', str(tiny_checkpoint), '--length', '64', '--out', str(tmp_path/'s')])==130
    assert 'same command goes on' in capsys.readouterr().err

def test_diagnose(capsys, tmp_path, tiny_checkpoint):
    "Kept and drawn sets, distances, predicted damage, leaks"
    model, size = ['--model', tiny_checkpoint], ['--sequences', 2, '--length', 48]
    assert sample('docs', *model, *size, '--sets', 2, '--out', tmp_path/'kept')==0
    d = document(capsys, 'diagnose', tmp_path/'kept', 'random', *model, *size, '--reference', 'docs', '--method', 'wanda:0.5', '--leakage', 'code')
    assert [*d['sets']]==['kept/000', 'kept/001', 'random', 'docs (reference)'] and {*d['distances']}=={*d['damage']['scores']}=={'kept/000', 'kept/001', 'random'}
    assert d['damage']['method']=='Wanda 50%' and len(d['leakage'])==3 and 'Hessian distance' in d['distances']['random']
    words = document(capsys, 'diagnose', tmp_path/'kept', *model, '--words')
    assert words['damage'] is None and 'perplexity' not in words['sets']['kept/000'] and words['sets']['kept/000']['tokens']==96

@pytest.mark.slow
def test_diagnose_on_a_page(capsys, tmp_path, tiny_checkpoint):
    "All of it, and the pictures, on a page that loads nothing"
    d = document(capsys, 'diagnose', 'docs', 'random', '--model', tiny_checkpoint, '--sequences', 4, '--length', 64, '--reference', 'code', '--html', tmp_path/'p.html', '--figures', tmp_path/'f')
    page = (tmp_path/'p.html').read_text()
    assert page.count('<svg')==4 and 'src=' not in page and 'href="http' not in page.replace('xlink:href="http', '') and d['sets']['random']['hash'] in page
    assert {o.name for o in (tmp_path/'f').iterdir()}=={f'{n}.{k}' for n in ('ranks', 'positions', 'distances', 'damage') for k in ('png', 'pdf')}
    assert d['damage']['method']=='any method'

def test_a_leak_is_found(capsys, tmp_path, tiny_checkpoint):
    "Held-out text that was calibrated on"
    from compresscal import open_corpus
    texts = [o.text for o in open_corpus('docs', split='test').read() if len(o.text)>600][:6]
    (tmp_path/'mine.jsonl').write_text('\n'.join(json.dumps(dict(text=t)) for t in texts))
    d = document(capsys, 'diagnose', tmp_path/'mine.jsonl', '--model', tiny_checkpoint, '--words', '--sequences', 6, '--length', 128, '--leakage', 'docs')
    assert d['leakage'][0]['with_a_run_of_13']>=3 and d['leakage'][0]['near_copies']>=1 # a window that stands in a document is one

def test_sets_of_another_tokenizer_are_refused(capsys, tmp_path, tiny_checkpoint):
    assert sample('docs', '--sequences', 2, '--length', 64, '--out', tmp_path/'kept')==0
    for line in (['diagnose', tmp_path/'kept', '--model', tiny_checkpoint], ['compress', tiny_checkpoint, 'wanda:0.5', '--calibration', tmp_path/'kept', '--out', tmp_path/'out']):
        assert main([*map(str, line)])==2 and 'made with another' in capsys.readouterr().err
    assert not (tmp_path/'out').exists() and not [o for o in tmp_path.iterdir() if 'out' in o.name]

@pytest.mark.parametrize('method, calibrated', [pytest.param('wanda:0.5', True, marks=pytest.mark.slow), ('gptq:bits=3,group_size=16', True), ('rtn:4,group_size=16', False),
    pytest.param('sparsegpt:2:4+gptq:4,group_size=16', True, marks=pytest.mark.slow)])
def test_compress(method, calibrated, capsys, tmp_path, tiny_checkpoint):
    "In memory and from disk the same checkpoint, with its account; and the numbers of a call in Python"
    import torch
    from compresscal import CalibrationSet, StoredCodes, compress, load_model
    from compresscal.names import parse_method
    asked = ['compress', tiny_checkpoint, method, *(['--calibration', 'self', '--sequences', 4, '--length', 64] if calibrated else [])]
    said = document(capsys, *asked, '--out', tmp_path/'memory', '--evaluate', 'docs', 'kl:docs', '--evaluation-sequences', 3)
    assert document(capsys, *asked, '--out', tmp_path/'disk', '--offload')['fingerprint']==said['fingerprint']
    (a,_), (b,_), (c,_) = (load_model(o) for o in (tmp_path/'memory', tmp_path/'disk', tiny_checkpoint))
    calibration = CalibrationSet.load(tmp_path/'memory'/'calibration') if calibrated else None
    report = compress(c, parse_method(method), calibration)
    for (k,x),y,z in zip(a.state_dict().items(), b.state_dict().values(), c.state_dict().values()): assert torch.equal(x, y) and torch.equal(x, z), k
    assert {*said['results']}=={'dense', said['label']} and said['results'][said['label']]['kl:docs']['kl']>0
    assert dict(StoredCodes(tmp_path/'memory')).keys()==dict(StoredCodes(tmp_path/'disk')).keys()==report.quantized.keys()
    account = json.loads((tmp_path/'memory'/'compression.json').read_text())
    assert len(account['layers'])==len(report.rows) and (account['calibration'] or {}).get('hash')==(calibration and calibration.hash)
    names = {'compression.json', 'compression.md', 'compression.png', 'config.json', 'tokenizer.json'} | ({'calibration', 'calibration.md'} if calibrated else set())
    assert names<={*os.listdir(tmp_path/'memory')} and names<={*os.listdir(tmp_path/'disk')} and not [o for o in os.listdir(tmp_path) if o[0]=='.']

def test_a_checkpoint_is_whole_or_not_there(capsys, tmp_path, tiny_checkpoint, monkeypatch):
    "Nothing is left of a run that was stopped, found the disk full, or met a bad layer; what was there stays"
    from compresscal import compressing
    asked = ['compress', str(tiny_checkpoint), 'rtn:4,group_size=16', '--out', str(tmp_path/'out')]
    def fails(error):
        def raised(*args, **kwargs): raise error
        return raised
    for where,error,code in (('_keep_account', KeyboardInterrupt(), 130), ('write_atomically', OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1), ('compress', ValueError('no'), 2), ('compress', MemoryError(), 1)):
        with monkeypatch.context() as m:
            m.setattr(compressing, where, fails(error))
            assert main(asked)==code and [*os.listdir(tmp_path)]==['tiny'], where
    capsys.readouterr()
    (tmp_path/'.out.part'/'half').mkdir(parents=True) # of a process that was killed
    (tmp_path/'.out.lock').touch()
    assert main(asked)==0 and sorted(os.listdir(tmp_path))==['out', 'tiny'] and not (tmp_path/'out'/'half').exists()
    assert main(asked)==2 and 'new or empty' in capsys.readouterr().err
    assert main([*asked[:-1], str(tiny_checkpoint)])==2 # not over the model itself
    with compressing.new_folder(tmp_path/'busy') as aside:
        aside.mkdir()
        assert main([*asked[:-1], str(tmp_path/'busy')])==1 and 'another command' in capsys.readouterr().err

def test_streaming_goes_on_where_it_was(capsys, tmp_path, tiny_checkpoint, monkeypatch):
    from compresscal import compression
    asked, real, seen = ['compress', str(tiny_checkpoint), 'rtn:4,group_size=16', '--offload', '--out', str(tmp_path/'out')], compression._compress_block, []
    def stop(block, *args):
        seen.append(block.index)
        if block.index==1 and seen.count(1)==1: raise KeyboardInterrupt
        return real(block, *args)
    monkeypatch.setattr(compression, '_compress_block', stop)
    assert main(asked)==130 and 'goes on where it was' in capsys.readouterr().err and not (tmp_path/'out').exists()
    assert main(asked)==0 and seen==[0, 1, 1] and sorted(os.listdir(tmp_path))==['out', 'tiny']

def test_evaluate(capsys, tmp_path, tiny_checkpoint):
    "A model is no distance from itself; the numbers are those of Python; each document is in the file"
    from compresscal import load_model, perplexity
    from compresscal.inputs import held_out_text
    size = ['--evaluation-sequences', 3, '--length', 64]
    assert main(['compress', str(tiny_checkpoint), 'magnitude:0.5', '--out', str(tmp_path/'small')])==0
    said = document(capsys, 'evaluate', tiny_checkpoint, tmp_path/'small', '--dense', tiny_checkpoint, '--evaluate', 'docs', 'kl:code', *size, '--out', tmp_path/'all.json')
    assert [*said['results']]==['tiny', 'small'] and 'kl:code' not in said['results']['tiny'] and said['results']['small']['kl:code']['metrics']['kl']>0
    model, tokenizer = load_model(tmp_path/'small')
    assert said['results']['small']['docs']['metrics']['perplexity']==perplexity(model, held_out_text('docs', tokenizer, 3, 64), tokenizer).value
    assert len(json.loads((tmp_path/'all.json').read_text())['results']['small']['docs']['documents']['nats'])==3
    assert main(['evaluate', 'embedded', '--dense', str(tiny_checkpoint), '--evaluate', 'kl:docs', *map(str, size)])==2 and 'tokenizer' in capsys.readouterr().err

def study(*args, **kwargs): return ['study', *map(str, args), '--sequences', 3, '--length', 32, '--evaluation-sequences', 2, '--evaluate', 'docs']

def test_study_from_a_file(capsys, tmp_path, tiny_checkpoint):
    "Written down and run; options change single fields; its state is told"
    asked = ['--model', tiny_checkpoint, '--methods', 'wanda:2:4', '--sources', 'random', '--sets', 2, '--replicates', 0]
    assert main([*map(str, study(*asked)), '--save', str(tmp_path/'s.toml'), '--out', str(tmp_path/'s')])==0
    capsys.readouterr()
    said = document(capsys, 'study', tmp_path/'s.toml')
    assert {(r['method'], r['set']) for r in said['rows']}=={('dense', 0), ('Wanda 2:4', 0), ('Wanda 2:4', 1)}
    told = document(capsys, 'study', 'status', tmp_path/'s')
    assert told['done']==3 and told['left']==told['failed']==0
    assert {r['set'] for r in document(capsys, 'study', '--sets', 1, tmp_path/'s.toml')['rows']}=={0} # a word after options
    (tmp_path/'s.toml').write_text((tmp_path/'s.toml').read_text()+'engine = "local"\n')
    assert document(capsys, 'study', tmp_path/'s.toml', '--threads', 1)['rows']==said['rows']
    assert main(['study', str(tmp_path/'s.toml'), '--workers', '2'])==2 and 'workers' in capsys.readouterr().err
    assert main(['study', str(tmp_path/'s.toml'), '--save', str(tmp_path/'s.ipynb')])==0 and 'parameters' in (tmp_path/'s.ipynb').read_text()

def test_failed_cells_have_a_code_of_their_own(capsys, tmp_path, tiny_checkpoint, monkeypatch):
    from compresscal import cells
    real = cells.compress
    def fails(model, method, *args, **kwargs):
        if method.label=='Wanda 2:4': raise ValueError('not this one')
        return real(model, method, *args, **kwargs)
    monkeypatch.setattr(cells, 'compress', fails)
    asked = study('--model', tiny_checkpoint, '--methods', 'wanda:2:4', 'magnitude:2:4', '--sources', 'random', '--sets', 1, '--replicates', 0, '--out', tmp_path/'s')
    said = document(capsys, *asked, code=3)
    assert len(said['failures'])==1 and {r['method'] for r in said['rows'] if r['value'] is not None}=={'dense', 'Magnitude 2:4'}
    monkeypatch.undo()
    assert document(capsys, *asked)['failures']==[]

def test_what_errors_mean():
    import torch
    from safetensors import SafetensorError
    assert explain(torch.OutOfMemoryError('CUDA'))[0]==explain(RuntimeError("DefaultCPUAllocator: can't allocate memory"))[0]==1
    assert explain(SafetensorError('Error: I/O error: No space left on device (os error 28)'))[0]==1
    assert explain(ModuleNotFoundError("No module named 'ray'"))[0]==1 and explain(ImportError('cannot import name'))==explain(KeyError('x'))==None
    assert explain(ArithmeticError('a check failed'))==(3, 'a check failed') and explain(ZeroDivisionError()) is None

def test_a_fault_of_the_program_is_not_hidden(capsys, tmp_path, monkeypatch):
    from compresscal import drawing
    def broken(*args, **kwargs): raise ZeroDivisionError('at last')
    monkeypatch.setattr(drawing, 'draw_sets', broken)
    with pytest.raises(ZeroDivisionError): main(['sample', 'docs', '--json'])
    assert json.loads(capsys.readouterr().out)['kind']=='ZeroDivisionError'

def test_json_takes_everything():
    import numpy as np, torch
    value = dict(a=np.float32(1.5), b=torch.tensor([1, 2]), c=(float('nan'), Path('x')), d={1: {2}}, e=np.arange(2))
    assert json.loads(as_json(value))==dict(a=1.5, b=[1, 2], c=[None, 'x'], d={'1': [2]}, e=[0, 1])

def test_nobody_reads():
    "`compresscal ... | head -0` ends quietly"
    code = "import sys; from argparse import Namespace; from compresscal.cli import Answer, _tell; sys.exit(_tell(Answer('x'*10**6, {}), Namespace(json=False)))"
    with subprocess.Popen([sys.executable, '-c', code], env=outside_tests(root), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        p.stdout.close()
        assert not p.stderr.read()
    assert p.returncode==0

def test_lines_of_a_log():
    "Whatever pieces text comes in, it passes unchanged; of bars there are as many lines as time allows; nested bars and colours leave no trace"
    from tqdm import tqdm
    text, g = 'one\ntwo\n\nthree and four\n', random.Random(0)
    for _ in range(50):
        log, at = PlainLines(out := io.StringIO()), 0
        while at<len(text): n = g.randint(1, 6); log.write(text[at:at+n]); at += n
        assert out.getvalue()==text
    now = [0.]
    log = PlainLines(out := io.StringIO(), 10, lambda: now[0])
    for _ in tqdm(range(10), desc='outer', file=log, mininterval=0):
        for _ in tqdm(range(10), desc='inner', file=log, mininterval=0, leave=False, colour='green'): now[0] += 1
        log.write('said between\n')
    said = out.getvalue()
    assert not {'\r', '\x1b', '█'} & {*said} and said.count('said between')==10 and 8<=len([l for l in said.splitlines() if l[:5] in ('inner', 'outer')])<=14

def test_warnings_in_a_log():
    with readable_log(out := io.StringIO()):
        warnings.warn('something is small')
    assert out.getvalue()=='something is small\n'

def test_tables_in_a_terminal():
    rows = table_rows('**Title**\n\n| a | b |\n| :--- | ---: |\n| one \\| two | 3 |\n')
    assert rows==[['a', 'b'], ['one \\| two', '3']]
    wide = [['x', *(f'column {i}' for i in range(30))], ['row', *map(str, range(30))]]
    assert max(map(len, padded(wide, 80).splitlines()))<=80 and all(f'column {i}' in padded(wide, 80) for i in range(30))

@pytest.mark.slow
def test_a_log_has_lines_and_quiet_is_quiet(tmp_path, tiny_checkpoint):
    asked = ['generate', '--model', str(tiny_checkpoint), '--sequences', '2', '--length', '32']
    loud, quiet = (call(*asked, *more, '--out', str(tmp_path/name)) for name,more in (('a', []), ('b', ['--quiet'])))
    assert loud.returncode==quiet.returncode==0 and '\r' not in loud.stderr and 'datasheet' in loud.stderr and not quiet.stderr and quiet.stdout
