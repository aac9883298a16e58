"The commands: quick to answer, one sentence for a mistake, one document for a script, nothing half made"
import errno, inspect, io, json, os, random, re, resource, signal, subprocess, sys, tempfile, time, warnings
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import outside_tests, root

from compresscal.commands import cli
from compresscal.commands.cli import COMMANDS, VOCABULARY, command_line, main
from compresscal.commands.console import EXIT_CODES, PlainLines, explain, padded, readable_log
from compresscal.core.rows import as_json
from compresscal.commands.drawing_commands import RecipeOptions
from compresscal.commands.options import MEASURE_HELP, METHOD_HELP, presets
from compresscal.commands.study_command import ENGINE, FIELDS, study_presets
from compresscal.commands.words import in_order

command = [sys.executable, '-c', 'import sys; from compresscal.commands.cli import main; sys.exit(main())']

def call(*args, **kwargs):
    "Run the command in a process of its own"
    return subprocess.run([*command, *args], env=outside_tests(root) | dict(HF_HUB_OFFLINE='1'), capture_output=True, text=True, cwd=root, **kwargs)

def failure(capsys, *args):
    "Exit code and last line of a command that fails"
    code = main(['study', *map(str, args)])
    said = capsys.readouterr()
    assert 'Traceback' not in said.err and not said.out
    return code, said.err.strip().splitlines()[-1]

@pytest.mark.parametrize('args', [['--help'], ['study', '--help'], ['generate', '--help'], ['--version']])
def test_quick_answers(args):
    "Under half a second of computing, so that the machine's load does not matter"
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    spent = []
    for _ in range(3):
        before = used()
        assert call(*args).returncode==0
        spent.append(used()-before)
    assert min(spent)<.5

def test_help_loads_nothing_heavy():
    code = '''import sys
from compresscal.commands.cli import main
for line in (['--help'], ['study', '--help'], ['vocabulary', 'report', '--help']):
    try: main(line)
    except SystemExit as e: assert not e.code
print([o for o in ('torch', 'transformers', 'pandas', 'matplotlib', 'numpy', 'datasets', 'pydantic') if o in sys.modules])'''
    said = subprocess.run([sys.executable, '-c', code], env=outside_tests(root), capture_output=True, text=True)
    assert said.stdout.splitlines()[-1]=='[]', said.stderr

def commands(): return command_line().commands

def words(line): return in_order(command_line(), line.split())[0]

def options(name):
    "Parameter of a command -> its option, without those that all commands have"
    command = commands()[name] if name in commands() else commands()['vocabulary'].commands[name]
    return {o.name: o for o in command.params if o.name not in ('json', 'quiet', 'traceback')}

def help_of(capsys, *line):
    with pytest.raises(SystemExit): main([*line, '--help'])
    return ' '.join(capsys.readouterr().out.split())

def works():
    "Command -> the function that does its work"
    from compresscal.commands import compressing, diagnosing, drawing, reducing, summarizing
    return dict(sample=drawing.draw_sets, generate=drawing.write_sets, diagnose=diagnosing.diagnose, compress=compressing.compress_model,
                evaluate=compressing.evaluate, summarize=summarizing.write_summaries, hallucination=summarizing.compare_summaries,
                report=reducing.report_vocabulary, reduce=reducing.reduce_model, restore=reducing.restore_model)

def test_help_knows_what_the_package_knows():
    "The command names it without importing the package's modules"
    from compresscal.experiments.measures import kinds
    from compresscal.compression.methods import METHODS
    from compresscal.experiments.study import STUDY_PRESETS as studies, Study
    from compresscal.calibration.self_text import RECIPE_PRESETS, Recipe
    assert all(name in METHOD_HELP for name in METHODS) and all(f'{k}:' in MEASURE_HELP for k in kinds if k!='perplexity')
    assert tuple(RECIPE_PRESETS)==presets() and tuple(studies)==study_presets()
    assert [*RecipeOptions.__annotations__]==[f.name for f in fields(Recipe)] and [*FIELDS]==[f.name for f in fields(Study)]

def test_every_option_reaches_its_function():
    assert [*commands()]==[*COMMANDS, 'vocabulary'] and [*commands()['vocabulary'].commands]==[*VOCABULARY]
    for name,function in works().items():
        said = {o.removeprefix('no_') for o in options(name)}-(RecipeOptions.__annotations__.keys() if name=='generate' else set())
        said -= {'format'} # is written into the name of the source
        if name=='compress': said |= {'save_as'} # by --format, too
        assert said<={*inspect.signature(function).parameters}, name
        assert {*inspect.signature(function).parameters}-said<={'progress', 'command', 'changes'}, name
    assert {*options('study')}=={*FIELDS, *ENGINE, 'what', 'out', 'save', 'dry_run', 'track', 'pilot', 'no_retry', 'fail_fast', 'keep'}

def test_exit_codes_are_in_the_help(capsys):
    said = help_of(capsys)
    assert all(f'{code} {what}' in said for code,what in EXIT_CODES.items())

def test_what_is_read_from_the_source_is_what_python_has():
    "Names and defaults of every function and class behind a command"
    from compresscal.calibration.self_text import Recipe
    from compresscal.commands.docments import source_parameters
    from compresscal.experiments.engines import Pool, Ray
    from compresscal.experiments.study import Study
    for function in (*works().values(), Recipe, Study, Pool, Ray):
        place = f"{function.__module__.removeprefix('compresscal.')}.{function.__name__}"
        there = {k: o for k,o in inspect.signature(function).parameters.items() if o.kind is not o.VAR_KEYWORD}
        assert {k: o.default for k,o in source_parameters(place).items()}=={k: None if o.default is o.empty else o.default for k,o in there.items()}, place

def test_help_names_every_default(capsys):
    from compresscal.experiments.study import Study
    said = help_of(capsys, 'study')
    for d in (f.default for f in fields(Study)): assert d in ((), None, False) or f"(default: {' '.join(d) if isinstance(d, tuple) else d})" in said

@pytest.mark.parametrize('name', [*COMMANDS, *VOCABULARY])
def test_every_option_is_explained(name):
    "In words that no markup of a terminal can change"
    for o in options(name).values(): assert o.help and not {'[', '`'} & {*o.help}, o.name

def test_no_command_shows_help(capsys): assert main([])==2 and 'study' in capsys.readouterr().out

def test_version(capsys):
    import compresscal
    assert main(['--version'])==0 and compresscal.__version__ in capsys.readouterr().out

def test_lists_are_repeated_or_spaced():
    said = words('study --methods wanda:0.5 magnitude:2:4 --methods wanda:0.7 --sources a,b.txt')
    assert said==['study', '--methods=wanda:0.5', '--methods=magnitude:2:4', '--methods=wanda:0.7', '--sources=a,b.txt', '--']

@pytest.mark.parametrize('line, says', [('sample docs --seed -1', '--seed=-1 -- docs'), ('sample --seed=-1 docs', '--seed=-1 -- docs'), ('summarize embedded --prompt=-x --out o', '--prompt=-x --out=o -- embedded'),
    ('generate --prefix 2 8 carlini', '--prefix 2 8 -- carlini'), ('diagnose --words docs random', '--words -- docs random'), ('study --eng pool x.toml', '--engine=pool -- x.toml'), ('sample -- -x', '-- -x')])
def test_words_in_order(line, says): assert words(line)[1:]==says.split()

def test_a_text_may_begin_with_a_dash():
    assert in_order(command_line(), ['summarize', 'embedded', '--prompt', '- {document} -', '--out', 'o'])[0]==['summarize', '--prompt=- {document} -', '--out=o', '--', 'embedded']

@pytest.mark.parametrize('args, says', [
    (['--methods', 'wonda:0.5'], "did you mean 'wanda'"), (['--methods', 'wanda'], "'wanda:0.5'"), (['--methods', 'wanda:1.5'], '1.5'), (['--methods', 'wanda:4:2'], '4:2'),
    (['--sets', '0'], '`n_sets`'), (['--model', '/no/such/folder'], '/no/such/folder'), (['--length', '0'], '`length`')])
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
    ('evaluate embedded --evaluate kl:docs', 'dense model'), ('diagnose docs dogs', "did you mean 'docs'"), ('diagnose docs --reference code --method rtn:4', 'look at text'), ('diagnose docs --leakage self', 'people wrote'),
    ('compress embedded wnda:0.5 --out o', "did you mean 'wanda'"), ('compress embedded wanda:0.5 --out o', 'such as docs'), ('compress embedded wanda:0.5 --out o --calibration dogs', "did you mean 'docs'"),
    ('generate carlin', "did you mean 'carlini'"), ('generate self:t_inital=2', "did you mean 't_initial'"), ('generate --eos never', '`eos`'), ('sample random --rule pack', 'not read')])
def test_slips(line, says, capsys, tmp_path, monkeypatch):
    "A sentence for people, a document for a script, and nothing written"
    monkeypatch.chdir(tmp_path)
    code = 2
    assert main(line.split())==code
    said = capsys.readouterr()
    assert says in said.err and 'Traceback' not in said.err and not said.out and not os.listdir(tmp_path)
    assert main([*line.split(), '--json'])==code
    told = json.loads(capsys.readouterr().out)
    assert told['code']==code and says in told['error']

def test_folder_below_a_file(capsys, tmp_path):
    (tmp_path/'file').touch()
    code, line = failure(capsys, '--out', tmp_path/'file'/'study')
    assert code==2 and 'cannot write' in line and os.listdir(tmp_path)==['file']

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='permissions of POSIX systems')
def test_folder_without_permission():
    "As root nothing is forbidden, so a child process becomes an ordinary user; what it needs is imported before"
    import compresscal.experiments.study
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
    from compresscal.experiments import study
    def stop(self, out, **kwargs):
        Path(out).mkdir()
        raise KeyboardInterrupt
    monkeypatch.setattr(study.Study, 'run', stop)
    code, line = failure(capsys, '--out', tmp_path/'s')
    assert code==130 and f"kept in {tmp_path/'s'}; the same command goes on" in line

def test_traceback_on_demand(capsys, tmp_path):
    assert main(['study', '--methods', 'wonda:0.5', '--traceback', '--out', str(tmp_path/'s')])==2
    said = capsys.readouterr().err
    assert 'Traceback' in said and 'ValueError' in said and said.strip().endswith("did you mean 'wanda'?")

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
    from compresscal.commands import drawing
    from compresscal import CalibrationSet
    for i,source in enumerate(('docs', 'random:docs', 'self:carlini', 'docs=0.5+self=0.5', 'weighted:docs=0.9+self=0.1')):
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
    from compresscal.experiments.inputs import saved_sets
    monkeypatch.chdir(tmp_path)
    asked = ['docs', '--model', tiny_checkpoint, '--sequences', 2, '--length', 64, '--out', 'docs']
    assert sample(*asked)==0==sample(*asked)
    assert not saved_sets('docs') and len(saved_sets('./docs'))==1

@pytest.mark.parametrize('args, says', [(['dogs'], "did you mean 'docs'"), (['self:carlin'], 'one of plain'), (['docs', '--sequences', 0], '`n_sequences`'), (['self', '--length', 129], 'context of 128'),
    (['docs', '--length', 0], '`length`'), (['docs=0.5+code=0.6'], 'sum to 1'), (['weighted:docs=0.5+code=0.6'], 'sum to 1'), (['weighted:docs'], 'two sources or more'), (['docs', '--model', '/no/such/folder'], '/no/such/folder')])
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
    from compresscal.commands import drawing
    def stop(*args, folder, **kwargs):
        if here: folder.mkdir()
        raise KeyboardInterrupt
    monkeypatch.setattr(drawing, 'self_calibration_sets', stop)
    for here,says in ((False, 'Nothing was finished'), (True, f"kept in {tmp_path/'s'/'.written'}; the same command goes on")):
        assert main(['generate', '--model', str(tiny_checkpoint), '--length', '64', '--out', str(tmp_path/'s')])==130
        assert says in capsys.readouterr().err

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
    from compresscal.compression.names import parse_method
    asked = ['compress', tiny_checkpoint, method, *(['--calibration', 'self', '--sequences', 4, '--length', 64] if calibrated else [])]
    said = document(capsys, *asked, '--format', 'dense', '--out', tmp_path/'memory', '--evaluate', 'docs', 'kl:docs', '--evaluation-sequences', 3)
    assert document(capsys, *asked, '--format', 'dense', '--out', tmp_path/'disk', '--offload')['fingerprint']==said['fingerprint']
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
    from compresscal.checkpoints import account
    from compresscal.commands import compressing
    asked = ['compress', str(tiny_checkpoint), 'rtn:4,group_size=16', '--out', str(tmp_path/'out')]
    def fails(error):
        def raised(*args, **kwargs): raise error
        return raised
    for module,where,error,code in ((compressing, 'write_calibration', KeyboardInterrupt(), 130), (account, 'write_atomically', OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1),
                                    (compressing, 'compress', ValueError('no'), 1), (compressing, 'compress', MemoryError(), 1)):
        with monkeypatch.context() as m:
            m.setattr(module, where, fails(error))
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
    from compresscal.compression import compress as compression
    asked, real, seen = ['compress', str(tiny_checkpoint), 'rtn:4,group_size=16', '--offload', '--out', str(tmp_path/'out')], compression._compress_block, []
    def stop(block, *args):
        seen.append(block.index)
        if block.index==1 and seen.count(1)==1: raise KeyboardInterrupt
        return real(block, *args)
    monkeypatch.setattr(compression, '_compress_block', stop)
    assert main(asked)==130 and not (tmp_path/'out').exists()
    kept = Path(capsys.readouterr().err.partition('kept in ')[2].partition('; the same command goes on')[0])
    assert kept==tmp_path/'.out.work' and list(kept.iterdir()) # what is named is there
    assert main(asked)==0 and seen==[0, 1, 1] and sorted(os.listdir(tmp_path))==['out', 'tiny']

def test_evaluate(capsys, tmp_path, tiny_checkpoint):
    "A model is no distance from itself; the numbers are those of Python; each document is in the file"
    from compresscal import load_model, perplexity
    from compresscal.experiments.inputs import held_out_text
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

def test_a_dry_run_of_a_study_writes_nothing(capsys, tmp_path, tiny_checkpoint, monkeypatch):
    "It says what is left; what is finished costs nothing; stopped, it speaks of no finished work"
    asked = study('--model', tiny_checkpoint, '--methods', 'wanda:2:4', '--sources', 'random', '--sets', 2, '--replicates', 0, '--out', tmp_path/'s')
    said = document(capsys, *asked, '--dry-run')
    assert (said['dry_run'], said['cells'], said['finished'], said['jobs'])==(True, 3, 0, 3) and not (tmp_path/'s').exists()
    assert said['total']['cpu_seconds']>0 and said['total']['memory']>2**26
    assert main([*asked, '--dry-run', '--quiet'])==0
    out, err = capsys.readouterr()
    assert 'compress Wanda 2:4' in out and 'None of 3 cells' in out and err=='' and not (tmp_path/'s').exists()
    document(capsys, *asked)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path/'s').rglob('*')}
    assert document(capsys, *asked, '--dry-run')['finished']==3
    assert {p: p.stat().st_mtime_ns for p in (tmp_path/'s').rglob('*')}==before
    from compresscal.experiments.study import Study
    def stop(self, *args): raise KeyboardInterrupt
    monkeypatch.setattr(Study, 'estimate', stop)
    assert main([*asked, '--dry-run'])==130 and 'kept in' not in capsys.readouterr().err

def test_failed_cells_have_a_code_of_their_own(capsys, tmp_path, tiny_checkpoint, monkeypatch):
    from compresscal.compression import compress as module
    real = module.compress
    def fails(model, method, *args, **kwargs):
        if method.label=='Wanda 2:4': raise ValueError('not this one')
        return real(model, method, *args, **kwargs)
    monkeypatch.setattr(module, 'compress', fails)
    asked = study('--model', tiny_checkpoint, '--methods', 'wanda:2:4', 'magnitude:2:4', '--sources', 'random', '--sets', 1, '--replicates', 0, '--out', tmp_path/'s')
    said = document(capsys, *asked, code=3)
    assert len(said['failures'])==1 and {r['method'] for r in said['rows'] if r['value'] is not None}=={'dense', 'Magnitude 2:4'}
    monkeypatch.undo()
    assert document(capsys, *asked)['failures']==[]

def caught(work, *args):
    "What an error means that was raised by `work`"
    try: work(*args)
    except BaseException as e: return explain(e)

def fails(error): raise error

def test_what_errors_mean():
    import torch
    from safetensors import SafetensorError
    assert caught(fails, torch.OutOfMemoryError('CUDA'))[0]==caught(fails, RuntimeError("DefaultCPUAllocator: can't allocate memory"))[0]==1
    assert caught(fails, SafetensorError('Error: I/O error: No space left on device (os error 28)'))[0]==1
    assert caught(fails, ModuleNotFoundError("No module named 'ray'", name='ray'))[0]==1
    for error in (ImportError('cannot import name'), KeyError('x'), ZeroDivisionError(), ArithmeticError('of Python'), ModuleNotFoundError("No module", name='compresscal.nothing')):
        assert caught(fails, error) is None
    assert caught(fails, type('CheckFailed', (Exception,), {})('a check failed'))==(3, 'a check failed')

def test_only_errors_that_the_package_raises_are_the_users():
    "Not those of Python, where the program calls a function wrongly, nor those of libraries"
    from compresscal.commands.console import padded
    from compresscal.core.spelling import check_model
    assert caught(check_model, 'embeded')[0]==2
    for work,args in ((check_model, ()), (padded, (3,)), (json.loads, ('{',)), (int, ('x',))): assert caught(work, *args) is None

def test_a_network_is_known_behind_other_errors():
    from compresscal.calibration.sources import calibration_sets
    code, said = caught(calibration_sets, 'no/such', None, 1, 1, 8)
    assert code==1 and 'no/such' in said

def test_a_fault_of_the_program_is_not_hidden(capsys, tmp_path, monkeypatch):
    from compresscal.commands import drawing
    def broken(*args, **kwargs): return {}['at \x1b[31mlast']
    monkeypatch.setattr(drawing, 'draw_sets', broken)
    monkeypatch.chdir(tmp_path)
    assert main(['sample', 'docs', '--json'])==1
    said = capsys.readouterr()
    assert json.loads(said.out)['kind']=='KeyError' and 'Traceback' in said.err and 'issues' in said.err.splitlines()[-1] and '\x1b' not in said.err

def test_json_takes_everything():
    import numpy as np, torch
    value = dict(a=np.float32(1.5), b=torch.tensor([1, 2]), c=(float('nan'), Path('x')), d={1: {2}}, e=np.arange(2))
    assert json.loads(as_json(value))==dict(a=1.5, b=[1, 2], c=[None, 'x'], d={'1': [2]}, e=[0, 1])

def test_nobody_reads():
    "`compresscal ... | head -0` ends quietly"
    code = "import sys; from argparse import Namespace; from compresscal.commands.cli import CommandAnswer, _tell; sys.exit(_tell(CommandAnswer('x'*10**6, {}), Namespace(json=False)))"
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

NASTY = 'a|b<i>\x1b[31m'

def test_tables_in_a_terminal():
    wide = [['x', *(f'column {i}' for i in range(30))], ['row', *map(str, range(30))]]
    assert max(map(len, padded(wide, 80).splitlines()))<=80 and all(f'column {i}' in padded(wide, 80) for i in range(30))
    shown = padded([['', NASTY, 'other'], ['tokens', '1', '2']]).splitlines()
    assert '\x1b' not in shown[0] and len(shown)==2 and [len(o) for o in shown]==[len(shown[0])]*2

def test_names_keep_to_their_columns(capsys, tmp_path, tiny_checkpoint):
    "On the terminal and on the page, whatever the sets are called"
    from html.parser import HTMLParser
    size = ['--model', tiny_checkpoint, '--sequences', 2, '--length', 32]
    assert sample('docs', *size, '--out', tmp_path/'s')==0
    (tmp_path/'s'/'000').rename(tmp_path/NASTY)
    capsys.readouterr()
    asked = ['diagnose', tmp_path/NASTY, 'random', *size, '--reference', 'docs', '--html', tmp_path/'p.html']
    assert main([*map(str, asked)])==0
    said, name = capsys.readouterr(), NASTY.replace('\x1b', '\\x1b')
    assert '\x1b' not in said.out+said.err
    numbers = [l for l in said.out.splitlines() if l.startswith('tokens')][0]
    assert numbers.split()[1:]==['64']*3 and name in said.out
    class Rows(HTMLParser):
        rows, text = [], None
        def handle_starttag(self, tag, attrs):
            if tag=='tr': self.rows.append([])
            if tag in ('td', 'th'): self.rows[-1].append('')
            self.text = tag if tag in ('td', 'th') else self.text
            assert tag!='i'
        def handle_endtag(self, tag): self.text = None if tag in ('td', 'th') else self.text
        def handle_data(self, data):
            if self.text: self.rows[-1][-1] += data
    page = Rows()
    page.feed((tmp_path/'p.html').read_text())
    assert ['', name, 'random', 'docs (reference)'] in page.rows and ['tokens', '64', '64', '64'] in page.rows
    assert {len(r) for r in page.rows[:10]}=={4}

def test_what_others_wrote_does_not_reach_the_terminal(capsys, monkeypatch, tmp_path):
    from compresscal.commands import drawing
    answer = cli.CommandAnswer(f'text {NASTY}', dict(name=NASTY), note=f'note {NASTY}')
    def drawn(**kwargs):
        warnings.warn(f'warned {NASTY}')
        return answer
    def refused(**kwargs): raise OSError(NASTY)
    monkeypatch.chdir(tmp_path)
    for work,args in ((drawn, []), (refused, []), (drawn, ['--json'])):
        monkeypatch.setattr(drawing, 'draw_sets', work)
        main(['sample', 'docs', *args])
        said = capsys.readouterr()
        assert '\x1b' not in said.out+said.err and (work is refused or 'warned a|b' in said.err)
    assert json.loads(said.out)['name']==NASTY # a script gets what is

@pytest.mark.slow
def test_a_log_has_lines_and_quiet_is_quiet(tmp_path, tiny_checkpoint):
    asked = ['generate', '--model', str(tiny_checkpoint), '--sequences', '2', '--length', '32']
    loud, quiet = (call(*asked, *more, '--out', str(tmp_path/name)) for name,more in (('a', []), ('b', ['--quiet'])))
    assert loud.returncode==quiet.returncode==0 and '\r' not in loud.stderr and 'datasheet' in loud.stderr and not quiet.stderr and quiet.stdout

def outputs():
    "Each command that writes, and the option that says where"
    yield from (('sample docs', '--out', 'folder'), ('generate', '--out', 'folder'), ('diagnose docs', '--html', 'file'), ('diagnose docs', '--figures', 'folder'),
                ('compress embedded magnitude:0.5', '--out', 'folder'), ('evaluate embedded', '--out', 'file'), ('summarize embedded', '--out', 'file'),
                ('hallucination a.jsonl b.jsonl', '--out', 'folder'), ('vocabulary reduce embedded docs', '--out', 'folder'),
                ('vocabulary restore embedded', '--out', 'folder'), ('study', '--out', 'folder'), ('study', '--save', 'file.toml'))

@pytest.mark.parametrize('line, option, kind', [*outputs()])
def test_where_results_go_is_looked_at_first(line, option, kind, capsys, tmp_path, monkeypatch):
    "Nothing is imported for the work, nothing is written, and the path that was given is named"
    monkeypatch.chdir(tmp_path)
    Path('file').touch()
    for name in ('a.jsonl', 'b.jsonl'): Path(name).touch()
    Path('folder.toml').mkdir()
    for module in ('drawing', 'diagnosing', 'compressing', 'summarizing', 'reducing'): monkeypatch.setitem(sys.modules, f'compresscal.{module}', None)
    if line=='study': monkeypatch.setattr('compresscal.experiments.study.Study.run', None)
    wrong = ['file/x'] + (['folder.toml'] if kind!='folder' else ['file'])
    for place in [o+'.toml' if 'toml' in kind and not o.endswith('toml') else o for o in wrong]:
        before = sorted(os.listdir())
        assert main([*line.split(), option, place])==2, place
        said = capsys.readouterr().err
        assert place.split('/')[0] in said.splitlines()[-1] and '.part' not in said and sorted(os.listdir())==before

def test_a_closed_folder_is_seen_first(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'access', lambda *args: False)
    assert main(['evaluate', 'embedded', '--out', str(tmp_path/'new'/'x.json')])==1
    said = capsys.readouterr().err
    assert str(tmp_path) in said and 'cannot write' in said and not os.listdir(tmp_path)

@pytest.mark.parametrize('line, says', [('study status s --methods wanda:0.5', '--methods'), ('study status s --workers 2', '--workers'), ('study status s --out t', '--out'),
    ('study --save s.toml --workers 2', '--workers'), ('sample docs --column text', '`column`'), ('sample docs --revision main', '`revision`'), ('sample a.txt --column text', '`column`'),
    ('sample a.jsonl --revision main', '`revision`'), ('sample docs=0.5+self=0.5 --column text', '`column`'), ('generate --text docs', '`text`'), ('generate --prefix 2 8', '`prefix`'),
    ('generate --schedule 9', '`schedule`'), ('generate temperatures --t-final 2', '`t_final`'), ('diagnose docs --method wanda:0.5', '--method'),
    ('diagnose docs --reference code --words --method wanda:0.5', '--method'), ('diagnose kept --length 9', '--length'), ('diagnose kept --sequences 9', '--sequences'),
    ('diagnose kept --sets 9', '--sets'), ('diagnose kept --seed 9', '--seed'), ('diagnose kept --reference docs --length 9', '--length'), ('hallucination a.jsonl a.jsonl --worst 2', '--worst')])
def test_what_does_nothing_is_refused(line, says, capsys, tmp_path, monkeypatch):
    from compresscal import CalibrationSet
    import torch
    monkeypatch.chdir(tmp_path)
    for name in ('a.txt', 'a.jsonl'): Path(name).write_text('"text"')
    CalibrationSet.from_tokens(torch.arange(8).view(2, 4), name='kept').save('kept')
    before = sorted(os.listdir())
    assert main(line.split())==2 and says in capsys.readouterr().err and sorted(os.listdir())==before

def test_what_does_nothing_but_to_speed_is_mentioned(capsys, tmp_path, monkeypatch):
    from compresscal.commands import drawing
    monkeypatch.setattr(drawing, 'draw_sets', lambda **kwargs: cli.CommandAnswer('drawn', {}))
    for source,idle in (('docs', True), ('self', False), ('docs=0.5+self=0.5', False)):
        assert main(['sample', source, '--batch-size', '2', '--device', 'cpu', '--out', str(tmp_path/'s')])==0
        said = capsys.readouterr().err
        assert ('--batch-size has no effect' in said)==('--device has no effect' in said)==idle

@pytest.mark.parametrize('name', ['vocabulary report embedded docs', 'vocabulary reduce embedded docs --out o', 'vocabulary restore f --out o', 'hallucination a b'])
def test_no_device_where_nothing_is_put_on_one(name, capsys):
    assert main([*name.split(), '--device', 'cpu'])==2 and '--device' in capsys.readouterr().err

def test_defaults_are_those_of_the_functions():
    "Numbers that the help shows are those that Python takes"
    seen = 0
    for name,function in works().items():
        for o in options(name).values():
            said = re.search(r'\(default: (\d+)\)$', o.help or '')
            if not said or o.name not in inspect.signature(function).parameters: continue
            there = inspect.signature(function).parameters[o.name].default
            if there is None: there = int(re.search(rf'\b{o.name}:.*None: ([\d,]+)', inspect.getsource(function))[1].replace(',', ''))
            assert there==int(said[1]), f'{name} {o.name}'
            seen += 1
    assert seen>=10

def test_help_says_what_docs_are(capsys):
    for name in ('study', 'sample', 'diagnose', 'compress'): assert 'docs (docstrings of the packages installed here)' in help_of(capsys, name)
    assert 'file=rows.jsonl' in help_of(capsys, 'evaluate')

@pytest.mark.parametrize('line, says', [('sample texts/stroies.txt', "did you mean 'texts/stories.txt'"), ('sample texts/notes.docx', '.jsonl'), ('diagnose text/stories.txt', "did you mean 'texts/stories.txt'"),
    ('evaluate embedded --evaluate texts/stores.txt', "did you mean 'texts/stories.txt'"), ('evaluate embedded --evaluate kl:texts/notes.docx', '.jsonl'),
    ('evaluate ./modle', "did you mean 'model'"), ('evaluate texts', 'config.json'), ('evaluate a/b/c', 'there is none'), ('evaluate texts/stories.txt', 'got the file'),
    ('compress embedded wanda:0.5 --calibration texts/stories.text --out o', "did you mean 'texts/stories.txt'"), ('study --sources texts/stores.txt', "did you mean 'texts/stories.txt'"),
    ('study stdy.toml', "did you mean 'study.toml'"), ('study latin.toml', 'latin.toml'), ('study bad.toml', 'bad.toml'), ('summarize embedded --documents texts/stores.txt --out o', "texts/stories.txt"),
    ('hallucination dense.jsonl x=texts/stores.txt', 'dense.jsonl'), ('vocabulary report embedded texts/stores.txt', 'texts/stories.txt'), ('vocabulary report ./modle docs', "did you mean 'model'")])
def test_what_is_missing_is_called_missing(line, says, capsys, tmp_path, monkeypatch):
    "With the nearest name that is there, before anything is loaded"
    monkeypatch.chdir(tmp_path)
    for name in ('texts', 'model'): Path(name).mkdir()
    Path('texts/stories.txt').write_text('Once.')
    Path('texts/notes.docx').write_text('Once.')
    Path('study.toml').write_text('n_sets = 2')
    Path('bad.toml').write_text('n_sets = = 2')
    Path('latin.toml').write_bytes('models = ["caf\xe9"]'.encode('latin-1'))
    monkeypatch.setattr('compresscal.models.loading.load_model', None)
    assert main(line.split())==2 and says in capsys.readouterr().err.strip().splitlines()[-1]

@pytest.mark.parametrize('line', ['evaluate embeded', 'evaluate ./nowhere', 'sample dogs', 'diagnose no/such.txt', 'compress embedded wnda:0.5 --out o', 'evaluate embedded --evaluate doks', 'study impct:cpu',
    'study no.toml', 'study --methods wonda:0.5', 'study --sources dogs', 'sample docs --out file/x', 'hallucination a.jsonl b.jsonl', 'vocabulary report embeded docs', 'summarize embeded --out o'])
def test_slips_are_seen_without_torch(line, tmp_path):
    (tmp_path/'file').touch()
    code = f'import os, sys; os.chdir({str(tmp_path)!r}); from compresscal.commands.cli import main; print(main({line.split()!r}), "torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], env=outside_tests(root), capture_output=True, text=True).stdout.split()==['2', 'False']

def test_a_path_may_hold_an_equals_sign(capsys, tmp_path, tiny_checkpoint, monkeypatch):
    "It is no mixture, no setting and no TOML where it is there"
    from compresscal.experiments.notebooks import write_notebook
    monkeypatch.chdir(tmp_path)
    name = 'lr=0.1+decay=0.5'
    Path(name).mkdir()
    (Path(name)/'a=b.txt').write_text('One thing after another. '*900)
    size = ['--model', tiny_checkpoint, '--sequences', 2, '--length', 32, '--rule', 'pack']
    for i,source in enumerate((name, f'{name}/a=b.txt')): assert sample(source, *size, '--out', f'out{i}')==0
    Path('n=1').mkdir()
    Path('n=1/study.toml').write_text('n_sets = 2\n')
    assert main(['study', 'n=1/study.toml', '--save', 'n=1/again.toml'])==0 and 'n_sets = 2' in Path('n=1/again.toml').read_text()
    write_notebook('n=1/study.ipynb', 'n=1/again.toml')
    assert 'n_sets' in Path('n=1/study.ipynb').read_text()

def refusing(error):
    def work(*args, **kwargs): raise error
    return work

@pytest.mark.parametrize('line, error, code', [('sample docs', None, 0), ('sample docs', OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1), ('sample docs', MemoryError(), 1), ('sample docs', ModuleNotFoundError('x', name='x'), 1),
    ('sample docs', PermissionError(errno.EACCES, 'closed'), 1), ('sample docs', ZeroDivisionError(), 1), ('sample docs', TypeError('of Python'), 1), ('sample dogs', None, 2), ('study no.toml', None, 2),
    ('hallucination no.jsonl no2.jsonl', None, 2), ('sample', None, 2), ('nothing', None, 2), ('', None, 2), ('sample docs', FileNotFoundError(errno.ENOENT, 'gone', 'x'), 2),
    ('sample docs', type('CheckFailed', (Exception,), {})('no'), 3), ('sample docs', KeyboardInterrupt(), 130),
    ('evaluate no/such-model', None, 1), ('compress no/such-model rtn:4 --out o', None, 1), ('vocabulary report no/such-model docs', None, 1), ('sample no/such-set', None, 1), ('evaluate embedded --evaluate no/such-set', None, 1)])
def test_exit_codes(line, error, code, capsys, tmp_path, monkeypatch):
    "As the help says; a Hub that cannot be reached has one code, whatever it was asked for"
    from compresscal.commands import drawing
    monkeypatch.chdir(tmp_path)
    if line=='sample docs': monkeypatch.setattr(drawing, 'draw_sets', refusing(error) if error else lambda **kwargs: cli.CommandAnswer('done', {}))
    assert main(line.split())==code and code in EXIT_CODES
    if line and 'sample docs' not in line:
        capsys.readouterr()
        assert main([*line.split(), '--json'])==code and json.loads(capsys.readouterr().out)['code']==code

def test_a_failed_check_has_a_code(capsys, tmp_path, tiny_checkpoint, monkeypatch):
    from compresscal.experiments import results
    monkeypatch.setattr(results.Results, 'failed_checks', lambda self: [type(self.checks()[0])('noise', False, 'too loud')])
    said = document(capsys, *study('--model', tiny_checkpoint, '--methods', 'magnitude:0.5', '--sources', 'random', '--sets', 1, '--replicates', 0, '--out', tmp_path/'s'), code=3)
    assert said['failed_checks']==[dict(name='noise', sentence='too loud')]

_OF_TEXT = ('sample {}', 'compress smollm2 wanda:2:4 --calibration {}', 'compress smollm2 wanda:2:4 --calibration docs --evaluate kl:{}',
            'evaluate smollm2 --evaluate {}', 'evaluate smollm2 --evaluate gptq:{}', 'diagnose {} --model smollm2', 'diagnose docs --reference {}',
            'diagnose docs --leakage {}', 'study --model smollm2 --sources {}', 'study --model smollm2 --evaluate {}', 'generate --start text --text {}',
            'vocabulary report smollm2 {}', 'vocabulary reduce smollm2 {}')

@pytest.mark.parametrize('name', ['no/such.utf8', 'nothing.foo', 'text:no/such'])
def test_missing_text_is_seen_before_a_model_is_loaded(name, tmp_path, capsys, monkeypatch):
    from compresscal.models import loading
    def load(*args, **kwargs): raise AssertionError('a model is looked for')
    monkeypatch.setattr(loading, 'named_folder', load)
    for line in _OF_TEXT:
        out = [] if line.startswith(('evaluate', 'diagnose', 'vocabulary report')) else ['--out', str(tmp_path/'new')]
        assert main([*line.format(name).split(), *out])==2, line
        said = capsys.readouterr().err
        assert f"must be a file or folder that exists, got {name.removeprefix('text:')!r}, where there is none" in said, (line, said)
    assert not (tmp_path/'new').exists()

def test_text_of_any_suffix_is_drawn_by_either_spelling(tmp_path, capsys):
    book = '\n\n'.join(f'Paragraph {i} of a book, with a few words of its own: {i*i}.'*40 for i in range(40))
    for o in ('a.utf8', 'a.foo'): (tmp_path/o).write_text(book)
    found = {}
    for i,words in enumerate((['a.utf8'], ['a.utf8', '--format', 'text'], ['text:a.foo'], ['a.foo', '--format', 'text'])):
        kind, words[0] = words[0][-4:], words[0].replace('a.', f'{tmp_path}/a.')
        assert main(['sample', *words, '--sets', '2', '--sequences', '2', '--length', '32', '--out', str(tmp_path/str(i)), '--json'])==0
        found.setdefault(kind, []).append([o['hash'] for o in json.loads(capsys.readouterr().out)['sets']])
    for a,b in found.values(): assert a==b # windows are drawn by the names of documents, so a.utf8 and a.foo differ
    assert main(['sample', f'{tmp_path}/a.foo', '--out', str(tmp_path/'x')])==2
    assert 'if that is text, say so' in capsys.readouterr().err
    assert main(['sample', 'docs', '--format', 'text', '--out', str(tmp_path/'x')])==2
    assert main(['sample', f'text:{tmp_path}/a.foo', '--column', 'text', '--out', str(tmp_path/'x')])==2
