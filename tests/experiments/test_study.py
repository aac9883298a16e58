"The store loses no finished cell and keeps no half one; the same study gives the same bytes, however it was interrupted"
import csv, errno, io, json, multiprocessing, os, random, shutil, signal, subprocess, sys, time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from conftest import outside_tests, root
from small_studies import counted, sets, tokens

from compresscal.text import installed_text as installed_module
from compresscal.experiments import store as store_module
from compresscal.calibration.calibration_set import CalibrationSet
from compresscal.calibration.sampling import sample_sets
from compresscal.core.checks import CheckFailed
from compresscal.compression.methods import Magnitude, Wanda
from compresscal.experiments.engines import Local, Pool, Ray
from compresscal.experiments.measures import Measure, parse_measure
from compresscal.compression.names import parse_method
from compresscal.experiments.notebooks import parameters, run_notebook
from compresscal.experiments.progress import status
from compresscal.experiments.results import Results
from compresscal.experiments.store import Store, claim, content_key, file_stamp, keep_sets
from compresscal.experiments.study import Study, preset, read_study, write_toml

@pytest.fixture
def small(tiny_model, tiny_tokenizer):
    "Two methods, two sources of two sets, one held-out text: six compressed models with the dense one, and no null controls"
    return Study({'tiny': (tiny_model, tiny_tokenizer)}, ['magnitude:0.5', 'wanda:0.5'], {'a': sets(1, 2), 'b': sets(2, 2)},
                 evaluations={'text': CalibrationSet.from_tokens(tokens(99))}, replicates=0)

def state(folder): return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (folder/'cells').iterdir()}
def parts(folder): return [p for p in folder.rglob('*') if p.name.endswith('.part')]
def table(folder): return (folder/'results.csv').read_bytes()

@pytest.fixture(autouse=True)
def plain_pictures(monkeypatch, request):
    "Drawing takes most of the time of a small study: only tests of the report draw"
    if 'report' not in request.node.name: monkeypatch.setattr(Results, 'pictures', lambda results: {})

whole = {}

@pytest.fixture
def undisturbed(small, tmp_path):
    if not whole:
        small.run(tmp_path/'whole')
        whole['table'] = table(tmp_path/'whole')
    return whole['table']

def test_every_cell_once(small, tmp_path):
    engine = counted()
    results = small.run(tmp_path/'s', engine=engine)
    assert len(engine.asked)==len(set(engine.asked))==6
    assert [(r['method'], r['source'], r['set']) for r in results.select(metric='perplexity').rows]==[('dense', 'none', 0), ('Magnitude 50%', 'none', 0), *(('Wanda 50%', s, i) for s in 'ab' for i in (0, 1))]

def test_second_run_does_nothing(small, tmp_path):
    small.run(tmp_path/'s')
    files = lambda: {p: (p.stat().st_ino, p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path/'s').rglob('*') if p.is_file()}
    before, engine = files(), counted(0)
    small.run(tmp_path/'s', engine=engine)
    assert files()==before and not engine.asked

@pytest.mark.parametrize('stop', range(6))
def test_resumes_where_it_stopped(small, tmp_path, undisturbed, stop):
    with pytest.raises(InterruptedError): small.run(tmp_path/'s', engine=counted(stop))
    kept = state(tmp_path/'s')
    assert len(kept)==stop
    small.run(tmp_path/'s', engine=(engine := counted()))
    assert len(engine.asked)==6-stop and table(tmp_path/'s')==undisturbed and kept.items() <= state(tmp_path/'s').items()

@pytest.mark.parametrize('call', ['write_atomically', 'fsync', 'replace'])
@pytest.mark.parametrize('stop', [0, 3, 5, 8, 11, 17, 23, 30, 36, 37, 38])
def test_disk_full_leaves_nothing_half(small, tmp_path, undisturbed, monkeypatch, call, stop):
    "The disk fills up at the `stop`th write, whichever file that is"
    count, owners = iter(range(10**6)), [os] if call!='write_atomically' else [installed_module, store_module]
    real = getattr(owners[0], call)
    def full(*args):
        if next(count)==stop: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)
    with monkeypatch.context() as m:
        for o in owners: m.setattr(o, call, full)
        try: small.run(tmp_path/'s')
        except OSError as e: assert e.errno==errno.ENOSPC
    assert not parts(tmp_path/'s')
    for p in (tmp_path/'s'/'cells').glob('*'): json.loads(p.read_bytes())
    small.run(tmp_path/'s')
    assert table(tmp_path/'s')==undisturbed

@pytest.mark.parametrize('damage', [lambda b: b'', lambda b: b[:len(b)//2], lambda b: b'[]', lambda b: b.replace(b'"bytes"', b'"bits"'), lambda b: b'\x00'*len(b), lambda b: b'null'])
def test_damaged_record_is_computed_again(small, tmp_path, undisturbed, damage):
    small.run(tmp_path/'s')
    record = sorted((tmp_path/'s'/'cells').iterdir())[3]
    record.write_bytes(damage(record.read_bytes()))
    with pytest.warns(UserWarning, match='damaged'): small.run(tmp_path/'s', engine=(engine := counted()))
    assert len(engine.asked)==1 and table(tmp_path/'s')==undisturbed

def test_record_under_a_wrong_name_is_not_taken(tmp_path):
    with claim(tmp_path/'s') as folder:
        key = Store(folder).put(dict(a=1), dict(x=2.))
        other = content_key(dict(a=2))
        (folder/'cells'/f'{key}.json').rename(folder/'cells'/f'{other}.json')
        with pytest.warns(UserWarning, match='damaged'): assert Store(folder).get(other) is None

def test_leftovers_of_a_killed_process_are_swept(tmp_path):
    with claim(tmp_path/'s') as folder: (folder/'cells'/'.x.json.1234.part').touch(); (folder/'sets'/'.y.1234.part'/'000').mkdir(parents=True)
    with claim(tmp_path/'s') as folder: assert not parts(folder)

def test_method_without_text_has_one_cell_and_no_spread(small, tmp_path):
    results = small.run(tmp_path/'s', engine=(engine := counted()))
    assert sum(m==Magnitude(.5) for m,*_ in engine.asked)==1
    row = next(r for r in results.summary().itertuples() if r.method=='Magnitude 50%')
    assert row.sd==0 and row.low==row.high==row.mean and row.source=='none'

def test_model_is_dense_again(small, tmp_path):
    model = small.models['tiny'][0]
    before = {k: v.clone() for k,v in model.state_dict().items()}
    small.run(tmp_path/'s')
    assert all(torch.equal(v, before[k]) for k,v in model.state_dict().items())
    with pytest.raises(InterruptedError): small.run(tmp_path/'t', engine=counted(3))
    assert all(torch.equal(v, before[k]) for k,v in model.state_dict().items())

def test_cells_do_not_depend_on_the_grid(small, tmp_path):
    "Another order gives the same numbers, and a larger grid computes only what is new"
    first = {r['cell']: r['value'] for r in small.run(tmp_path/'s').rows}
    turned = replace(small, methods=small.methods[::-1], sources=dict(reversed(small.sources.items())))
    assert {r['cell']: r['value'] for r in turned.run(tmp_path/'t').rows}==first
    replace(small, methods=[*small.methods, 'wanda:0.7']).run(tmp_path/'s', engine=(engine := counted()))
    assert [m for m,*_ in engine.asked]==[Wanda(.7)]*4

def test_another_evaluation_adds_cells(small, tmp_path):
    small.run(tmp_path/'s')
    more = replace(small, evaluations={**small.evaluations, 'other': CalibrationSet.from_tokens(tokens(98))})
    more.run(tmp_path/'s', engine=(engine := counted()))
    assert {texts for _,_,*texts in map(list, engine.asked) for texts in texts}=={'other'}

def test_changed_weights_are_another_model(small, tmp_path):
    small.run(tmp_path/'s')
    with torch.no_grad(): next(small.models['tiny'][0].parameters())[3, 0] += .5
    small.run(tmp_path/'s', engine=(engine := counted()))
    assert len(engine.asked)==6

def test_numbers_survive_the_table(small, tmp_path):
    results = small.run(tmp_path/'s')
    read = list(csv.DictReader(io.StringIO(table(tmp_path/'s').decode())))
    assert [float(r['value']) for r in read]==[r['value'] for r in results.rows]
    said = table(tmp_path/'s').decode().lower()
    assert not any(o.lower() in said for o in (torch.__version__, os.uname().nodename, str(tmp_path), 'seconds')) and 'host' in (tmp_path/'s'/'provenance.json').read_text()

def test_two_processes_are_kept_apart(small, tmp_path):
    code = f'from compresscal.experiments.store import claim\nwith claim({str(tmp_path/"s")!r}): print("in", flush=True); input()'
    with subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as other:
        assert other.stdout.readline()=='in\n'
        with pytest.raises(BlockingIOError, match='in use by another'): small.run(tmp_path/'s')
        other.kill()
    small.run(tmp_path/'s')

def test_a_foreign_folder_is_refused(small, tmp_path):
    (tmp_path/'results.csv').write_text('mine')
    with pytest.raises(ValueError, match='holds another results.csv'): small.run(tmp_path)
    assert os.listdir(tmp_path)==['results.csv']

def test_report_shows_text_and_runs_none(small, tmp_path):
    evil = '<script>alert(1)</script>'
    replace(small, sources={evil: sets(1, 2)}).run(tmp_path/'s', command=evil)
    page = (tmp_path/'s'/'report.html').read_text()
    assert '<script' not in page and '&lt;script&gt;' in page
    assert not [o for o in ('src="http', 'href="http') if o in page.replace('href="https://aclanthology.org', '')]

def test_wide_results_stay_within_eighty_columns(small, tmp_path):
    results = small.run(tmp_path/'s')
    rows = results.select(metric='perplexity').rows
    grown = Results([r | dict(value=r['value']*10**k) for k,r in zip((0, 1, 2, 3, 7, 20), rows, strict=True)])
    assert max(map(len, repr(grown).splitlines()))<=80

def test_models_as_they_are(tiny_checkpoint, tiny_tokenizer, tmp_path):
    "Dense, quantized by others and by us side by side: no method, no text that is drawn for one"
    from compresscal import RTN, compress, load_model
    from compresscal.checkpoints.save import save
    from test_packed_checkpoints import gptq, packed
    theirs = shutil.copytree(tiny_checkpoint, tmp_path/'theirs')
    packed(theirs, gptq)
    model, tokenizer = load_model(tiny_checkpoint)
    save(model, compress(model, RTN(4, 32, symmetric=True)), tmp_path/'ours', 'compressed-tensors', tokenizer)
    models = dict(dense=tiny_checkpoint, theirs=theirs, ours=tmp_path/'ours')
    study = Study(models=models, methods=(), evaluations=['docs'], n_evaluation=2, length=32)
    found = study.run(tmp_path/'s')
    assert study.sources==() and not [*(tmp_path/'s').glob('sets/*self*')] and {r['method'] for r in found.rows}=={'dense'}
    assert [l.split()[0] for l in repr(found).splitlines()[2:]]==[*models] and 'gptq, 4 bits' in repr(found) and 'compressed-tensors, 4 bits' in repr(found)
    assert found.quantized.keys()=={'theirs', 'ours'} and 'by gptq, 4 bits in groups of 16' in (tmp_path/'s'/'report.html').read_text()
    assert eval(repr(study), dict(Study=Study, PosixPath=Path, Path=Path))==study # fastcore, once imported, shows paths in its own way
    again = read_study(tmp_path/'s'/'study.toml')[0]
    assert again.methods==() and again.run(tmp_path/'s').to_csv()==found.to_csv()
    assert study.estimate(tmp_path/'other').total.seconds>0

def test_infinite_perplexity_is_shown(small, tmp_path):
    results = small.run(tmp_path/'s')
    broken = Results([r | (dict(value=float('inf')) if r['method']=='Wanda 50%' and not r['set'] else {}) for r in results.rows])
    assert ' inf' in repr(broken) and ',inf,' in broken.to_csv()

@pytest.mark.parametrize('wrong, says', [(dict(methods=['wonda:0.5']), "did you mean 'wanda'"), (dict(methods=['wanda:0']), 'sparsity'), (dict(methods=['wanda:4:2']), '4:2'),
    (dict(methods=[], evaluations=['kl:docs']), '`methods`'), (dict(sources=[]), '`sources`'), (dict(sources=['self', 'dcos']), "did you mean 'docs'"), (dict(sources=['self:carlni']), "did you mean 'carlini'"),
    (dict(n_sets=0), '`n_sets`'), (dict(sources=['weighted:docs']), "two sources or more"), (dict(sources=['weighted:docs=0.5+dcos=0.5']), "did you mean 'docs'"), (dict(length=2.5), '`length`'), (dict(methods=['wanda:x=1']), "must be one of sparsity")])
def test_mistakes_are_seen_at_once(wrong, says):
    with pytest.raises(ValueError, match=says): Study(**wrong)

def test_no_progress_means_none(small, tmp_path, monkeypatch, capfd):
    "Not while the model writes its calibration text, either"
    monkeypatch.delenv('IN_TEST')
    replace(small, methods=['wanda:0.5'], sources=['self'], n_sets=1, n_sequences=2, length=8).run(tmp_path/'s', progress=False)
    assert capfd.readouterr()==('', '')

@pytest.mark.parametrize('text, method', [('wanda:0.5', Wanda(.5)), ('WANDA:2:4', Wanda('2:4')), ('magnitude:50%', Magnitude(.5)), (' magnitude : 0.5', Magnitude(.5)), ('wanda:sparsity=4:8', Wanda('4:8'))])
def test_methods_by_name(text, method): assert parse_method(text)==method

def test_length_beyond_the_context_is_refused_before_work(small, tmp_path):
    with pytest.raises(ValueError, match='context of 128 tokens, got 129'): replace(small, length=129, sources=['random']).run(tmp_path/'s', engine=(engine := counted()))
    assert not engine.asked

def test_full_disk_inside_a_calibration_set(small, tmp_path):
    "safetensors reports a full disk in its own way"
    code = f"""
import resource, signal, torch
from pathlib import Path
from compresscal.calibration.calibration_set import CalibrationSet
from compresscal.experiments.store import claim, keep_sets
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
big = CalibrationSet.from_tokens(torch.ones(64, 256, dtype=torch.int64))
with claim({str(tmp_path/'s')!r}) as folder:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY)) # files may not grow beyond this, as on a disk that is full
    try: keep_sets(folder, dict(n_sets=1), lambda: [big])
    except OSError as e: print(e.errno)
"""
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root)
    assert out.stdout.strip()==str(errno.EFBIG), out.stderr
    assert not parts(tmp_path/'s') and not os.listdir(tmp_path/'s'/'sets')

def test_damaged_set_is_sampled_again(tmp_path):
    asked, made = dict(n_sets=2), []
    def make(): made.append(1); return sets(1, 2)
    with claim(tmp_path/'s') as folder:
        first = keep_sets(folder, asked, make)
        assert keep_sets(folder, asked, make)==first and len(made)==1
        victim = next((folder/'sets').glob('*/001/tokens.safetensors'))
        victim.write_bytes(victim.read_bytes()[:-7])
        with pytest.warns(UserWarning, match='damaged'): assert keep_sets(folder, asked, make)==first
        assert len(made)==2

def test_a_changed_file_is_another_source(tmp_path):
    path = tmp_path/'a.txt'
    path.write_text('one')
    before = file_stamp(path)
    path.write_text('two, longer')
    assert before and file_stamp(path)!=before and file_stamp('docs')==[] and len(file_stamp(str(tmp_path/'*.txt')))==1

def test_text_that_is_calibrated_on_is_not_evaluated_on(tmp_path):
    (mine := tmp_path/'mine.txt').write_text('some text')
    for evaluation in (str(mine), f'kl:{mine}', mine):
        with pytest.raises(ValueError, match='not calibrated on'): Study(sources=[str(mine), 'docs'], evaluations=['docs', evaluation])

def test_nm_that_does_not_divide_is_refused_before_work(small, tmp_path):
    with pytest.raises(ValueError, match='2:3'): replace(small, methods=['magnitude:0.5', 'wanda:2:3']).run(tmp_path/'s', engine=(engine := counted()))
    assert not engine.asked

def alone(): return outside_tests(root) | dict(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1') # a small model's threads mostly wait for each other

# What happens in a cell stays in it

@dataclass(frozen=True)
class Odd(Measure):
    "Counts weights that are zero; at its third call, in whatever process, it does as the file `how` says"
    how: str
    name = 'zeros'
    def settings(self): return dict(measure='zeros')
    def measure(self, model, tokenizer, text, reference=None):
        with open(self.how+'.calls', 'a') as f:
            f.write('.')
            f.flush()
            third = f.tell()==3
        word = Path(self.how).read_text() if third else ''
        if word=='raise': raise ArithmeticError('this set is odd')
        if word=='memory': raise MemoryError
        if word=='allocate': torch.empty(2**50)
        if word=='die': os.kill(os.getpid(), signal.SIGKILL)
        return dict(metrics=dict(zeros=float(sum((p==0).sum() for p in model.parameters()))), counts=dict(documents=1), documents={})

@pytest.fixture
def odd(small, tmp_path):
    "The small study with a measure that can be told to fail"
    (tmp_path/'how').write_text('')
    return replace(small, evaluations=dict(zeros=Odd(str(tmp_path/'how'))))

@pytest.mark.parametrize('word, kind, type', [('raise', 'error', 'ArithmeticError'), ('memory', 'memory', 'MemoryError'), ('allocate', 'memory', 'RuntimeError')])
def test_a_cell_that_fails(odd, tmp_path, word, kind, type):
    "It is kept with its error, the others are finished, and the next run tries it again"
    whole = odd.run(tmp_path/'whole').to_csv()
    (tmp_path/'how').write_text(word)
    (tmp_path/'how.calls').unlink()
    with pytest.warns(UserWarning, match=f'1 of 6 cells failed, the first with {type}'): results = odd.run(tmp_path/'s')
    failure, = results.failures
    assert len(results.rows)==5 and failure['kind']==kind and failure['attempts']==1 and failure['type']==type
    assert failure['method']=='Wanda 50%' and failure['source']=='a' and 'this set is odd' in (tmp_path/'s'/'report.html').read_text() or word!='raise'
    said = status(tmp_path/'s')
    assert (said.done, said.failed, said.left, said.running)==(5, 1, 0, 0) and type in repr(said)
    kept = state(tmp_path/'s')
    again = odd.run(tmp_path/'s')
    assert again.to_csv()==whole and not again.failures and kept.items() <= state(tmp_path/'s').items() and status(tmp_path/'s').done==6

def test_a_method_that_looks_at_text_it_should_not_see(small, tmp_path):
    "Spread where there must be none is said loudly, and the files are there to be looked into"
    class Fickle(Magnitude):
        def compress_layer(self, weight, statistics): return weight+.01*next(calls)
    calls = iter(range(1, 1000))
    with pytest.raises(CheckFailed, match='cannot be trusted.*Fickle'): replace(small, methods=[Fickle(.5)], replicates=1).run(tmp_path/'s')
    assert (tmp_path/'s'/'report.html').exists()

@dataclass(frozen=True)
class Breaks(Measure):
    "Fails where it is said to, at every model or at the dense one"
    where: str
    name = 'breaks'
    def settings(self): return dict(measure='breaks')
    def reference(self, model, tokenizer, text):
        if self.where=='reference': raise LookupError('nothing to remember')
    def measure(self, model, tokenizer, text, reference=None):
        if self.where=='measure': raise ArithmeticError('cannot be measured')
        if self.where=='stop': raise KeyboardInterrupt
        value = torch.tensor(1.) if self.where=='result' else 1.
        return dict(metrics=dict(one=value), counts={}, documents={})

@pytest.fixture
def compressions(monkeypatch):
    "The methods by which models were compressed, in order"
    from compresscal.compression import compress as module
    found, real = [], module.compress
    def compress(model, method, *args, **kwargs):
        found.append(method)
        return real(model, method, *args, **kwargs)
    monkeypatch.setattr(module, 'compress', compress)
    return found

@pytest.mark.parametrize('where, says', [('measure', 'cannot be measured'), ('reference', 'nothing to remember'), ('result', 'must give numbers of Python')])
def test_a_measure_that_fails_stops_no_other(small, tmp_path, compressions, where, says):
    "Its cells fail with its own error; those of the others are kept; the next run computes only what is missing"
    text, alone = small.evaluations['text'], small.run(tmp_path/'alone').to_csv()
    both = replace(small, evaluations=dict(breaks=Breaks(where), text=text))
    with pytest.warns(UserWarning, match='6 of 12 cells failed'): results = both.run(tmp_path/'s')
    assert {(f['evaluation'], says in f['message']) for f in results.failures}=={('breaks', True)} and len(results.failures)==6
    assert results.select(evaluation='text').to_csv()==alone
    compressions.clear()
    again = replace(both, evaluations=dict(breaks=Breaks(''), text=text)).run(tmp_path/'s', engine=(engine := counted()))
    assert {asked[2:] for asked in engine.asked}=={('breaks',)} and len(compressions)==5
    assert not again.failures and again.select(evaluation='text').to_csv()==alone

def test_ctrl_c_within_a_measure_stops_the_study(small, tmp_path):
    with pytest.raises(KeyboardInterrupt): replace(small, evaluations=dict(breaks=Breaks('stop'))).run(tmp_path/'s')

def test_what_stops_a_model_stops_all_that_is_measured_on_it(small, tmp_path):
    class Heavy(Magnitude):
        def compress_layer(self, weight, statistics): raise MemoryError('too large')
    study = replace(small, methods=[Heavy(.5)], evaluations=dict(breaks=Breaks(''), text=small.evaluations['text']))
    with pytest.warns(UserWarning, match='2 of 4 cells failed'): results = study.run(tmp_path/'s')
    assert {(f['evaluation'], f['type'], f['kind']) for f in results.failures}=={(o, 'MemoryError', 'memory') for o in ('breaks', 'text')}

# What decides a cell

def keys(study, tmp_path):
    "Names of the cells of a study that is not run"
    from compresscal.experiments.preparation import cells_of, named, prepare
    from compresscal.experiments.store import open_store
    with open_store(tmp_path) as store:
        (name, source), = named(study.models).items()
        return {content_key(d) for _,_,decides in cells_of(study, prepare(study, store, name, source, True)) for d in decides.values()}

@pytest.mark.parametrize('change', ['chat template', 'end of text', 'generation settings', 'vocabulary', 'number format'])
def test_a_model_is_more_than_its_weights(small, tiny_tokenizer, tmp_path, change):
    import copy
    model, before = small.models['tiny'][0], keys(small, tmp_path)
    tokenizer = copy.deepcopy(tiny_tokenizer)
    if change=='chat template': tokenizer.chat_template = "{{ messages[0]['content'] }}"
    if change=='end of text': tokenizer.eos_token = '<pad>'
    if change=='generation settings': model.generation_config.eos_token_id = 7
    if change=='vocabulary': tokenizer.add_tokens(['another'])
    if change=='number format': model = model.to(torch.bfloat16)
    after = keys(replace(small, models=dict(tiny=(model, tokenizer))), tmp_path)
    assert len(after)==len(before) and not after & before

def test_a_method_is_more_than_its_name(small, tmp_path):
    "A class of the same name and settings that does another thing, with its source at hand or without"
    kinds = []
    for factor in (1, 2):
        class Mine(Magnitude):
            if factor==1:
                def compress_layer(self, weight, statistics=None): return super().compress_layer(weight)
            else:
                def compress_layer(self, weight, statistics=None): return 2*super().compress_layer(weight)
        kinds.append(Mine)
    for factor in (3, 4, 4):
        space = dict(Magnitude=Magnitude)
        exec(f'class Mine(Magnitude):\n    def compress_layer(self, weight, statistics=None): return {factor}*weight', space)
        kinds.append(space['Mine'])
    dense, *found = [keys(replace(small, methods=[o(.5)]), tmp_path) for o in (Magnitude, *kinds)]
    assert len({frozenset(o) for o in (dense, *found)})==5 and found[3]==found[4] and all(len(o & dense)==1 for o in found)

def test_threads_belong_to_a_replicate_and_not_to_a_machine():
    from compresscal.experiments.cells import threads_of
    from compresscal.experiments.jobs import torch_threads
    found = set()
    for n in (1, 2, 3):
        with torch_threads(n): found.add(tuple(map(threads_of, range(5))))
    assert found=={(None, None, 2, None, 1)}

def test_the_threads_that_were_used_are_recorded(small, tmp_path):
    replace(small, methods=['wanda:0.5'], replicates=2).run(tmp_path/'s', engine=Local(threads=1))
    records = [json.loads(p.read_bytes()) for p in (tmp_path/'s'/'cells').iterdir()]
    used = {r['decides']['replicate']: json.loads((tmp_path/'s'/'provenance'/f"{content_key(r['decides'])}.json").read_bytes())['threads'] for r in records}
    assert used=={0: 1, 1: 1, 2: 2}

# What is asked

def test_sets_are_what_they_are_called(small, tmp_path):
    "Sets of four sequences are no sets of eight, and sets of one source are of one size"
    with pytest.raises(ValueError, match="`n_sequences` must be at most what the sets of 'a' hold, 4, got 8"): replace(small, n_sequences=[2, 8])
    uneven = dict(a=[CalibrationSet.from_tokens(tokens(i, n)) for i,n in enumerate((8, 4))])
    with pytest.raises(ValueError, match="sets of 4 x 24, 8 x 24 tokens in 'a'"): replace(small, sources=uneven)
    with pytest.raises(ValueError, match="at least one calibration set, got none in 'a'"): replace(small, sources=dict(a=[]))
    with pytest.raises(TypeError, match="lists of calibration sets, got str in 'a'"): replace(small, sources=dict(a=['docs']))
    for i,o in enumerate(uneven['a']): o.save(tmp_path/'kept'/f'{i:03}')
    with pytest.raises(ValueError, match="sets of 4 x 24, 8 x 24 tokens"): replace(small, sources=[str(tmp_path/'kept')]).run(tmp_path/'s', engine=(engine := counted()))
    assert not engine.asked
    assert {r['n_sequences'] for r in replace(small, n_sequences=[2, 4]).run(tmp_path/'s').rows}=={0, 2, 4}

@pytest.fixture
def own(tmp_path, monkeypatch):
    "A text file in the current folder, with other ways to reach it"
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    (tmp_path/'own.txt').write_text('\n\n'.join(' '.join(f'w{rng.randrange(9999)}' for _ in range(200)) for _ in range(140)))
    (tmp_path/'rows.jsonl').write_text('\n'.join(json.dumps(dict(question=f'{i}', choices=['a', 'b'], label=0, text=f'text {i}')) for i in range(9)))
    (tmp_path/'link.txt').symlink_to('own.txt')
    return tmp_path/'own.txt'

@pytest.mark.parametrize('source, evaluation', [('c4', 'gptq:c4'), ('c4', 'kl:c4'), ('c4', 'allenai/c4:en'), ('docs=0.5+c4=0.5', 'gptq:allenai/c4:en'), ('own.txt', 'gptq:own.txt'),
    ('own.txt', 'gptq:{whole}'), ('{whole}', 'kl:own.txt'), ('own.txt', 'link.txt'), ('*.txt', 'own.txt'), ('own.txt', 'gptq:*.txt'), ('docs=0.5+own.txt=0.5', 'gptq:./own.txt'),
    ('rows.jsonl', 'task:mine,file=./rows.jsonl'), ('self:start=text,text=own.txt', 'own.txt'), ('rows.jsonl', 'summaries:./rows.jsonl')])
def test_no_text_is_calibrated_on_and_judged_by(own, source, evaluation):
    with pytest.raises(ValueError, match='not calibrated on.*reads the same text as'):
        Study(sources=['docs', source.format(whole=own)], evaluations=['docs', evaluation.format(whole=own)])

def test_text_that_is_kept_apart_is_allowed(own):
    Study(sources=['docs', 'code', 'own.txt', 'wikitext', 'random:c4'], evaluations=['docs', 'gptq:docs', 'kl:code', 'task:continuation_docs', 'gptq:wikitext', 'gptq:c4'])

def test_documents_are_compared_whatever_they_are_called(small, own, tmp_path):
    "Copies of a file, sets that were drawn elsewhere, and the same set under two names"
    tokenizer = small.models['tiny'][1]
    (tmp_path/'copy.txt').write_text(own.read_text())
    drawn = sample_sets(str(own), tokenizer, 2, 4, 100)
    def run(**changes): return replace(small, methods=['wanda:0.5'], **changes).run(tmp_path/'s', engine=(engine := counted()), progress=False), engine
    for changes in (dict(sources=dict(a=drawn), evaluations=dict(b=drawn[1])), dict(sources=['own.txt'], evaluations=['copy.txt'], n_sets=1, n_sequences=8, length=100, n_evaluation=8),
                    dict(sources=dict(a=drawn), evaluations=[f'gptq:{own},length=100'])):
        with pytest.raises(ValueError, match='not calibrated on.*evaluation documents? stand'): run(**changes)
    results, engine = run(sources=dict(a=drawn[:1]), evaluations=dict(b=drawn[1])) # of one file, but not of one document
    assert len(engine.asked)==2 and not results.failures

def test_a_set_of_the_hub_is_not_read_whole(small, monkeypatch):
    "No document is fetched to find that out"
    from compresscal.experiments.preparation import check_documents
    drawn = CalibrationSet.from_tokens(tokens(1), kind='mix', parts=[dict(kind='sampled', source=dict(kind='hub', path='allenai/c4', config='en', data_files=None, split='train'))])
    for evaluation,shared in (('gptq:c4', True), ('gptq:wikitext', False), ('task:piqa', False)):
        asked = replace(small, evaluations=[evaluation]), {('a', 4, 24): [drawn]}, {}, small.models['tiny'][1]
        if not shared: check_documents(*asked)
        else:
            with pytest.raises(ValueError, match='not calibrated on.*allenai/c4'): check_documents(*asked)

def test_an_engine_that_cannot_have_them_refuses_methods_before_work(small, tmp_path):
    class Picky(Local):
        def check(self, things): raise ValueError(f"cannot send {', '.join(things)}")
    with pytest.raises(ValueError, match='cannot send Magnitude 50%, Wanda 50%, text, tiny'): small.run(tmp_path/'s', engine=Picky())
    assert not (tmp_path/'s').exists()

def test_names_do_not_speak_to_a_terminal_or_a_page(small, tmp_path):
    from compresscal.experiments.cells import Job
    from compresscal.experiments.notebooks import write_notebook
    evil = 'a|b<i>\x1b[31m'
    assert '\x1b' not in repr(Job(evil, source=evil)) and '\x1b' not in repr(replace(small, sources={evil: sets(1, 2)}))
    cells = json.loads(write_notebook(tmp_path/'s.ipynb', dict(sources=[evil]), evil).read_text())['cells']
    assert '\x1b' not in json.dumps(cells, ensure_ascii=False) and r'a\|b&lt;i&gt;' in ''.join(cells[0]['source']) and '<i>' not in ''.join(cells[0]['source'])
    @dataclass(frozen=True)
    class Evil(Breaks):
        def measure(self, model, tokenizer, text, reference=None): raise ArithmeticError(evil)
    with pytest.warns(UserWarning, match='cells failed') as said: replace(small, evaluations=dict(evil=Evil(''))).run(tmp_path/'s')
    assert not any('\x1b' in str(o.message) for o in said)

@pytest.mark.parametrize('family, says', [([('a', 'b'), ('b', 'a')], 'each pair once'), ([('a', 'b'), ('a', 'b')], 'each pair once'), ([('a', 'a')], 'against itself'),
    ([('wanda:0.5', 'Wanda 50%')], 'against itself'), ([('a', 'wanda:0.5')], 'comparisons'), (['ab'], 'pairs'), ([('a', 'c')], 'comparisons')])
def test_a_family_of_comparisons(small, family, says):
    with pytest.raises(ValueError, match=says): replace(small, comparisons=family)
    six = replace(small, sources={'a': sets(1, 6), 'b': sets(2, 6)})
    assert replace(six, comparisons=[['a', 'b'], ['magnitude:0.5', 'wanda:0.5']]).comparisons==(('a', 'b'), ('Magnitude 50%', 'Wanda 50%'))

@pytest.mark.parametrize('asked', [{}, dict(methods=['wanda:2:4', 'gptq:3,group_size=none', 'sparsegpt:2:4+gptq', 'awq:3'], n_sets=6, comparisons=[('docs', 'code'), ('wanda:2:4', 'awq:3')]),
    dict(sources={'mine': 'docs=0.5+code=0.5', "a 'b' \\": 'self:carlini'}, evaluations={'one': 'kl:docs', 'two': 'gptq:docs'}, n_sequences=[8, 4], length=(32,), device='cpu'),
    dict(models=[None], sources='docs', evaluations='code')])
def test_a_study_is_shown_as_the_call_that_makes_it(asked):
    study = Study(**asked)
    assert eval(repr(study), dict(Study=Study))==study
    assert all(eval(repr(o), dict(Study=Study))==o for o in (preset('impact'), preset('hallucination', 'cpu')))

def test_what_must_be_supplied_is_said(small):
    shown = repr(replace(small, evaluations=dict(small.evaluations, p='kl:docs')))
    assert shown.startswith("Study(models={'tiny': <a model and its tokenizer>}, methods=('magnitude:sparsity=0.5', 'wanda:sparsity=0.5'), sources={'a': [<the calibration set ")
    assert f"'text': <the calibration set {small.evaluations['text'].hash}>, 'p': 'kl:docs'" in shown

# What is left beside the answer

def left(study, own, place):
    "A study of addresses, run in one folder and written down"
    from compresscal.experiments.study import leave_question
    place.mkdir()
    leave_question(study, place, place.name)
    return read_study(place/'study.toml')[0], parameters(place/'study.ipynb')

def test_addresses_hold_from_anywhere(own, tmp_path, tiny_checkpoint, monkeypatch):
    study = Study(models=[tiny_checkpoint.name, 'embedded'], sources=['own.txt', 'docs=0.5+own.txt=0.5', 'docs'],
                  evaluations=['kl:code', 'gptq:docs', 'task:mine,file=rows.jsonl', 'summaries:rows.jsonl,n=3'])
    (tmp_path/'elsewhere').mkdir()
    read, asked = left(study, own, tmp_path/'out')
    monkeypatch.chdir(tmp_path/'elsewhere')
    assert asked.pop('out')==str(tmp_path/'out') and asked.pop('engine')=='local' and asked.pop('progress')
    assert Study(**asked)==read # no file is missing from here
    assert read.models==(str(tiny_checkpoint), 'embedded')
    assert read.sources=={'own.txt': str(own), 'docs=0.5+own.txt=0.5': f'docs=0.5+{own}=0.5', 'docs': 'docs'}
    assert read.evaluations=={'kl:code': 'kl:code', 'gptq:docs': 'gptq:docs', 'task:mine,file=rows.jsonl': f"task:mine,file={tmp_path/'rows.jsonl'}",
                              'summaries:rows.jsonl,n=3': f"summaries:{tmp_path/'rows.jsonl'},n=3"} # called as in the tables of the first run

def test_a_url_is_left_as_it_is():
    from compresscal.experiments.study import whole_place
    assert whole_place('s3://a/b')=='s3://a/b' and whole_place('a')==os.path.abspath('a')

@pytest.mark.slow
def test_the_notebook_that_is_left_runs_from_another_folder(own, tmp_path, tiny_checkpoint, monkeypatch):
    pytest.importorskip('papermill')
    study = Study(models=[tiny_checkpoint.name], methods=['wanda:0.5'], sources=['own.txt'], n_sets=2, n_sequences=2, length=64, evaluations=['docs'], n_evaluation=4, replicates=0)
    before = study.run('out').to_csv()
    (tmp_path/'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path/'elsewhere')
    kept = state(tmp_path/'out')
    run_notebook(tmp_path/'out'/'study.ipynb', tmp_path/'executed.ipynb')
    assert state(tmp_path/'out')==kept and (tmp_path/'out'/'results.csv').read_text()==before and not os.listdir(tmp_path/'elsewhere')

def test_null_controls_are_computed(small, tmp_path):
    "The same set again, not fetched: another address, other orders and numbers of threads"
    results = replace(small, replicates=3).run(tmp_path/'s', engine=(engine := counted()))
    rows = [r for r in results.select(metric='perplexity').rows if r['replicate']]
    assert [(r['method'], r['source'], r['set'], r['replicate']) for r in rows]==[*(('Magnitude 50%', 'a', i, 1) for i in (0, 1)), *(('Wanda 50%', 'a', 0, i) for i in (1, 2, 3))]
    assert len(engine.asked)==6+5 and len({r['cell'] for r in results.rows})==6+5
    first = {r['method']: r['value'] for r in reversed(results.select(metric='perplexity', replicate=0).rows)}
    assert all(r['value']==first['Magnitude 50%'] for r in rows[:2])
    assert all(abs(r['value']/first['Wanda 50%']-1)<1e-3 for r in rows[2:])

def test_sizes_are_nested(tiny_model, tiny_tokenizer, tmp_path):
    study = Study({'tiny': (tiny_model, tiny_tokenizer)}, ['wanda:0.5'], ['docs', 'random'], n_sets=2, n_sequences=[2, 4], length=[16, 24], evaluations=['docs'], n_evaluation=2, replicates=0)
    results = study.run(tmp_path/'s')
    rows = [r for r in results.select(metric='perplexity').rows if r['method']!='dense']
    assert len(rows)==2*2*2*2 and len({r['calibration'] for r in rows})==16
    found = {(n.partition(' of ')[0], len(s), s.length): s for n,_,s in results.sets if 'held out' not in n}
    assert all(found[name, 4, l][:2]==found[name, 2, l] for name in ('docs, 0', 'docs, 1', 'random, 0') for l in (16, 24))

def test_a_source_may_be_weighted(tiny_model, tiny_tokenizer, tmp_path):
    "It has cells of its own, other text than the mixture by rows, and the same results when it is opened again"
    weighted, mixed = 'weighted:docs=0.9+code=0.1', 'docs=0.9+code=0.1'
    study = Study({'tiny': (tiny_model, tiny_tokenizer)}, ['wanda:0.5'], [weighted, mixed], n_sets=2, n_sequences=[2, 10], length=24, evaluations=['docs'], n_evaluation=2, replicates=0)
    results, engine = study.run(tmp_path/'s'), counted()
    rows = [r for r in results.select(metric='perplexity').rows if r['method']!='dense']
    assert {r['source'] for r in rows}=={weighted, mixed} and len({r['calibration'] for r in rows})==8==len({r['cell'] for r in rows})
    kept = [s for n,_,s in results.sets if n.startswith('weighted:')]
    assert len(kept)==4 and all(s.token_weights.sort().values.unique().numel()==2 for s in kept)
    assert all(float(s.token_weights.max()/s.token_weights.min())==pytest.approx(9) for s in kept) # of as many rows each, in every size
    again = study.run(tmp_path/'s', engine)
    assert engine.asked==[] and again.to_csv()==results.to_csv()
    opened = Results.open(tmp_path/'s')
    assert [(s, s.weights is None) for _,_,s in opened.sets]==[(s, s.weights is None) for _,_,s in results.sets]
    assert all('weighted so that each set has a given share' in s.datasheet() for s in kept)
    with pytest.raises(ValueError, match='must be multiples of 2'): replace(study, n_sequences=[3, 10])

def test_kept_sets_are_a_source(small, tmp_path):
    "A folder of sets is as good as the sets"
    for name,group in small.sources.items():
        for i,s in enumerate(group): s.save(tmp_path/name/f'{i:03}')
    values = lambda o: [r['value'] for r in o.rows]
    assert values(replace(small, sources=[str(tmp_path/'a'), tmp_path/'b']).run(tmp_path/'s'))==values(small.run(tmp_path/'t'))

def test_several_models_in_one_study(small, tiny_checkpoint, tmp_path):
    study = replace(small, models={'memory': small.models['tiny'], 'folder': str(tiny_checkpoint)})
    rows = study.run(tmp_path/'s').select(metric='perplexity').rows
    values = [[r['value'] for r in rows if r['model']==m] for m in ('memory', 'folder')]
    assert values[0]==values[1] and len(values[0])==6 and len({r['cell'] for r in rows})==6 # the same weights: the same cells

def test_from_a_file_and_back(tmp_path):
    (path := tmp_path/'s.toml').write_text(write_toml(preset('impact', 'cpu', n_sets=7, n_sequences=[4, 8], comparisons=[('docs', 'code'), ('wanda:2:4', 'sparsegpt:2:4')])))
    study, how = read_study(path)
    assert study==preset('impact', 'cpu', n_sets=7, n_sequences=[4, 8], comparisons=[('docs', 'code'), ('wanda:2:4', 'sparsegpt:2:4')]) and not how

@pytest.mark.parametrize('text, says', [('n_sts = 3', "did you mean 'n_sets'"), ('preset = "impct"', "did you mean 'impact'"), ('[engine]\nname = "poll"', "did you mean 'pool'"),
    ('[engine]\nname = "pool"\nworker = 2', "got 'worker'"), ('n_sets = [', 'must be a TOML file'), ('preset = "impact"\nsize = "gpu"', "'gpu'"), ('methods = ["wonda:0.5"]', "did you mean 'wanda'")])
def test_mistakes_in_a_file(tmp_path, text, says):
    (path := tmp_path/'s.toml').write_text(text)
    with pytest.raises(ValueError, match=says): read_study(path)

@pytest.mark.slow
@pytest.mark.parametrize('word', ['', 'die'])
def test_a_pool_gives_the_same_bytes(odd, tmp_path, word):
    "Also when one of its workers is killed in the midst of a cell"
    odd = replace(odd, replicates=2)
    whole = odd.run(tmp_path/'whole', engine=Local(threads=1)).to_csv()
    (tmp_path/'how').write_text(word)
    (tmp_path/'how.calls').unlink()
    assert odd.run(tmp_path/'s', engine=Pool(workers=2, threads=1)).to_csv()==whole
    assert (tmp_path/'s'/'results.csv').read_text()==whole
    assert {json.loads(p.read_text())['where'] for p in (tmp_path/'s'/'provenance').iterdir()}.isdisjoint(json.loads(p.read_text())['where'] for p in (tmp_path/'whole'/'provenance').iterdir())

@pytest.mark.slow
def test_ray_gives_the_same_bytes_though_a_machine_is_lost(small, tmp_path, monkeypatch):
    "Two nodes, one of which is killed when a third of the study is done"
    monkeypatch.setenv('RAY_worker_niceness', '0') # or its workers starve on a machine with other work to do
    ray = pytest.importorskip('ray')
    from ray.cluster_utils import Cluster
    small = replace(small, methods=['magnitude:0.5', 'wanda:0.5', 'wanda:0.7', 'gptq:4,group_size=none'], replicates=2)
    whole = small.run(tmp_path/'whole', engine=Local(threads=1)).to_csv()
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, include_dashboard=False))
    try:
        second, places = cluster.add_node(num_cpus=1), set()
        ray.init(address=cluster.address, log_to_driver=False, logging_level='ERROR')
        class Losing(Ray):
            def run(self, setup, groups):
                ended, lost = 0, False
                for o in super().run(setup, groups):
                    places.add(o.where)
                    yield o
                    ended += o.state=='done'
                    if len(places)<2 and ended<20: time.sleep(.5) # the other machine's worker is still importing
                    if not lost and ended>=8 and len(places)==2:
                        cluster.remove_node(second, allow_graceful=False)
                        lost = True
                assert lost
        assert small.run(tmp_path/'s', engine=Losing(threads=1, memory=2**28)).to_csv()==whole
        assert len(places)>=2
    finally:
        ray.shutdown()
        cluster.shutdown()

@pytest.mark.slow
def test_killed_twenty_five_times(small, tmp_path):
    "`kill -9` at random moments of a run: what is finished stays byte for byte, and the end is that of an undisturbed run"
    grown = replace(small, methods=['magnitude:0.5', 'magnitude:0.7', 'wanda:0.5', 'wanda:0.7', 'wanda:2:4', 'sparsegpt:0.5', 'gptq:4,group_size=none'], replicates=1,
                    sources={k: sets(i, 7) for i,k in enumerate('abcd')})
    grown.run(tmp_path/'whole')
    rng, content = random.Random(0), lambda: {p.name: p.read_bytes() for p in (tmp_path/'s'/'cells').glob('*.json')}
    seen, moments = {}, []
    while len(moments)<25:
        process, aim = multiprocessing.get_context('fork').Process(target=grown.run, args=(tmp_path/'s',)), len(seen)+rng.choice([0, 1, 2, 3])
        process.start()
        while len(list((tmp_path/'s'/'cells').glob('*.json')))<aim and process.is_alive(): time.sleep(.002)
        time.sleep(rng.uniform(0, .3))
        process.kill()
        process.join()
        found = content() if (tmp_path/'s'/'cells').exists() else {}
        assert seen.items() <= found.items()
        moments.append((len(found), process.exitcode))
        seen = found
    assert sum(code==-signal.SIGKILL for _,code in moments)>=20 and len({n for n,_ in moments})>=10, moments
    grown.run(tmp_path/'s', engine=(engine := counted()))
    assert table(tmp_path/'s')==table(tmp_path/'whole') and seen.items() <= content().items() and not parts(tmp_path/'s')
    print(f'kills after {[n for n,_ in moments]} of {len(content())} records')
    assert len(engine.asked)==len(content())-len(seen) and not list((tmp_path/'s'/'running').glob('*.json'))

def killed(command, out, rng):
    "Start a study, kill it at a random moment, and return the records that were finished then"
    wait, had = rng.choice([0, 0, 1, 1, 2, 3]), len(list(out.glob('cells/*.json')))
    with subprocess.Popen(command, env=alone(), cwd=out.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and len(list(out.glob('cells/*.json')))<had+wait: time.sleep(.003)
        time.sleep(rng.uniform(0, .5 if wait else 9))
        process.send_signal(signal.SIGKILL)
    return state(out) if (out/'cells').exists() else {}

@pytest.mark.slow
def test_the_command_is_killed(tmp_path):
    "`compresscal study`, killed at random moments, ends with the bytes of an undisturbed run, and no finished cell is computed twice"
    from compresscal.core.files import embedded_folder
    if not (embedded_folder()/'config.json').exists(): pytest.skip('no embedded model')
    command = [sys.executable, '-c', 'import sys; from compresscal.commands.cli import main; sys.exit(main())', 'study', *'--sets 2 --sequences 8 --evaluation-sequences 8'.split()]
    run = lambda out: subprocess.run([*command, '--out', str(out)], env=alone(), cwd=tmp_path, check=True, capture_output=True)
    rng, seen = random.Random(0), {}
    for _ in range(4):
        found = killed([*command, '--out', str(tmp_path/'killed')], tmp_path/'killed', rng)
        assert seen.items() <= found.items()
        seen = found
    run(tmp_path/'killed')
    run(tmp_path/'whole')
    assert table(tmp_path/'killed')==table(tmp_path/'whole') and seen.items() <= state(tmp_path/'killed').items() and not parts(tmp_path/'killed')

def test_the_report_says_which_weights_were_quantized_before(small, tmp_path):
    small.run(tmp_path/'plain', progress=False)
    small.models['tiny'][0].config.gguf = dict(file='a<b>.gguf', types=dict(F32=5, Q4_1=14))
    found = small.run(tmp_path/'quantized', progress=False)
    assert found.quantized==dict(tiny=dict(file='a<b>.gguf', types=dict(Q4_1=14)))
    for folder,says in (('plain', False), ('quantized', True)):
        about = json.loads((tmp_path/folder/'provenance.json').read_text())
        assert ('quantized' in about)==says
        for page in ('report.html', 'tables.md', 'tables.tex'):
            text = (tmp_path/folder/page).read_text()
            assert ('quantized before' in text)==('are compared with a bias' in text)==says, page
        assert 'a<b>' not in (tmp_path/folder/'report.html').read_text()
