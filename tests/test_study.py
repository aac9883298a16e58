"The store loses no finished cell and keeps no half one; the same study gives the same bytes, however it was interrupted"
import csv, errno, io, json, os, random, signal, subprocess, sys, time
from dataclasses import replace

import pytest
import torch
from conftest import outside_tests, root

from compresscal import store as store_module, study as module
from compresscal.calibration import CalibrationSet
from compresscal.compression import Magnitude, Wanda
from compresscal.store import Store, claim, content_key, file_stamp, keep_sets
from compresscal.study import Results, Study, parse_method

def tokens(seed, n=4, length=24): return torch.randint(3, 259, (n, length), generator=torch.Generator().manual_seed(seed))

def sets(seed, n): return [CalibrationSet.from_tokens(tokens(10*seed+i), source=f'source {seed}', set_index=i) for i in range(n)]

@pytest.fixture
def small(tiny_model, tiny_tokenizer):
    "Two methods, two sources of two sets, one held-out text: six compressed models with the dense one"
    return Study({'tiny': (tiny_model, tiny_tokenizer)}, ['magnitude:0.5', 'wanda:0.5'], {'a': sets(1, 2), 'b': sets(2, 2)},
                 evaluations={'text': CalibrationSet.from_tokens(tokens(99))})

def counted(limit=10**9):
    "`compute` that notes what it was asked, and fails after `limit` cells"
    asked = []
    def compute(model, method, calibration, texts, tokenizer):
        if len(asked)==limit: raise InterruptedError('stopped here')
        asked.append((method, calibration and calibration.hash, *texts))
        yield from module.compute(model, method, calibration, texts, tokenizer)
    compute.asked = asked
    return compute

def state(folder): return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (folder/'cells').iterdir()}
def parts(folder): return [p for p in folder.rglob('*') if p.name.endswith('.part')]
def table(folder): return (folder/'results.csv').read_bytes()

@pytest.fixture(autouse=True)
def plain_pictures(monkeypatch, request):
    "Drawing takes most of the time of a small study: only tests of the report draw"
    if 'report' not in request.node.name: monkeypatch.setattr(module.Picture, 'to_bytes', lambda self, format='png': b'<svg></svg>')

whole = {}

@pytest.fixture
def undisturbed(small, tmp_path):
    if not whole:
        small.run(tmp_path/'whole')
        whole['table'] = table(tmp_path/'whole')
    return whole['table']

def test_every_cell_once(small, tmp_path):
    compute = counted()
    results = small.run(tmp_path/'s', compute=compute)
    assert len(results.rows)==len(compute.asked)==len(set(compute.asked))==6
    assert [(r['method'], r['source'], r['set']) for r in results.rows]==[('dense', 'none', 0), ('Magnitude 50%', 'none', 0), *(('Wanda 50%', s, i) for s in 'ab' for i in (0, 1))]

def test_second_run_does_nothing(small, tmp_path):
    small.run(tmp_path/'s')
    files = lambda: {p: (p.stat().st_ino, p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path/'s').rglob('*') if p.is_file()}
    before, compute = files(), counted(0)
    small.run(tmp_path/'s', compute=compute)
    assert files()==before and not compute.asked

@pytest.mark.parametrize('stop', range(6))
def test_resumes_where_it_stopped(small, tmp_path, undisturbed, stop):
    with pytest.raises(InterruptedError): small.run(tmp_path/'s', compute=counted(stop))
    kept = state(tmp_path/'s')
    assert len(kept)==stop
    small.run(tmp_path/'s', compute=(compute := counted()))
    assert len(compute.asked)==6-stop and table(tmp_path/'s')==undisturbed and kept.items() <= state(tmp_path/'s').items()

@pytest.mark.parametrize('call', ['write_atomically', 'fsync', 'replace'])
@pytest.mark.parametrize('stop', [0, 3, 5, 8, 11, 16, 17, 18, 19, 20])
def test_disk_full_leaves_nothing_half(small, tmp_path, undisturbed, monkeypatch, call, stop):
    "The disk fills up at the `stop`th write, whichever file that is"
    count, owners = iter(range(10**6)), [os] if call!='write_atomically' else [module, store_module]
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
    with pytest.warns(UserWarning, match='damaged'): small.run(tmp_path/'s', compute=(compute := counted()))
    assert len(compute.asked)==1 and table(tmp_path/'s')==undisturbed

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
    results = small.run(tmp_path/'s', compute=(compute := counted()))
    assert sum(m==Magnitude(.5) for m,*_ in compute.asked)==1
    row = next(r for r in results.summary() if r['method']=='Magnitude 50%')
    assert row['sd']==0 and row['low']==row['high']==row['mean'] and row['source']=='none'

def test_model_is_dense_again(small, tmp_path):
    model = small.models['tiny'][0]
    before = {k: v.clone() for k,v in model.state_dict().items()}
    small.run(tmp_path/'s')
    assert all(torch.equal(v, before[k]) for k,v in model.state_dict().items())
    with pytest.raises(InterruptedError): small.run(tmp_path/'t', compute=counted(3))
    assert all(torch.equal(v, before[k]) for k,v in model.state_dict().items())

def test_cells_do_not_depend_on_the_grid(small, tmp_path):
    "Another order gives the same numbers, and a larger grid computes only what is new"
    first = {r['cell']: r['perplexity'] for r in small.run(tmp_path/'s').rows}
    turned = replace(small, methods=small.methods[::-1], sources=dict(reversed(small.sources.items())))
    assert {r['cell']: r['perplexity'] for r in turned.run(tmp_path/'t').rows}==first
    replace(small, methods=[*small.methods, 'wanda:0.7']).run(tmp_path/'s', compute=(compute := counted()))
    assert [m for m,*_ in compute.asked]==[Wanda(.7)]*4

def test_another_evaluation_adds_cells(small, tmp_path):
    small.run(tmp_path/'s')
    more = replace(small, evaluations={**small.evaluations, 'other': CalibrationSet.from_tokens(tokens(98))})
    more.run(tmp_path/'s', compute=(compute := counted()))
    assert {texts for _,_,*texts in map(list, compute.asked) for texts in texts}=={'other'}

def test_changed_weights_are_another_model(small, tmp_path):
    small.run(tmp_path/'s')
    with torch.no_grad(): next(small.models['tiny'][0].parameters())[3, 0] += .5
    small.run(tmp_path/'s', compute=(compute := counted()))
    assert len(compute.asked)==6

def test_numbers_survive_the_table(small, tmp_path):
    results = small.run(tmp_path/'s')
    read = list(csv.DictReader(io.StringIO(table(tmp_path/'s').decode())))
    assert [float(r['perplexity']) for r in read]==[r['perplexity'] for r in results.rows]
    said = table(tmp_path/'s').decode().lower()
    assert not any(o.lower() in said for o in (torch.__version__, os.uname().nodename, str(tmp_path), 'seconds')) and 'host' in (tmp_path/'s'/'provenance.json').read_text()

def test_two_processes_are_kept_apart(small, tmp_path):
    code = f'from compresscal.store import claim\nwith claim({str(tmp_path/"s")!r}): print("in", flush=True); input()'
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
    grown = Results([r | dict(perplexity=r['perplexity']*10**k) for k,r in zip((0, 1, 2, 3, 7, 20), results.rows)])
    assert max(map(len, repr(grown).splitlines()))<=80

def test_infinite_perplexity_is_shown(small, tmp_path):
    results = small.run(tmp_path/'s')
    broken = Results([r | (dict(perplexity=float('inf')) if i==3 else {}) for i,r in enumerate(results.rows)])
    assert 'nan' in repr(broken) and 'inf' in broken.to_csv()

@pytest.mark.parametrize('wrong, says', [(dict(methods=['wonda:0.5']), "did you mean 'wanda'"), (dict(methods=['wanda:0']), 'sparsity'), (dict(methods=['wanda:4:2']), '4:2'),
    (dict(methods=[]), '`methods`'), (dict(n_sets=0), '`n_sets`'), (dict(length=2.5), '`length`'), (dict(methods=['wanda:x=1']), 'does not take')])
def test_mistakes_are_seen_at_once(wrong, says):
    with pytest.raises(ValueError, match=says): Study(**wrong)

@pytest.mark.parametrize('text, method', [('wanda:0.5', Wanda(.5)), ('WANDA:2:4', Wanda('2:4')), ('magnitude:50%', Magnitude(.5)), (' magnitude : 0.5', Magnitude(.5)), ('wanda:sparsity=4:8', Wanda('4:8'))])
def test_methods_by_name(text, method): assert parse_method(text)==method

def test_length_beyond_the_context_is_refused_before_work(small, tmp_path):
    with pytest.raises(ValueError, match='context of 128 tokens, got 129'): replace(small, length=129, sources=['random']).run(tmp_path/'s', compute=(compute := counted()))
    assert not compute.asked

def test_full_disk_inside_a_calibration_set(small, tmp_path):
    "safetensors reports a full disk in its own way"
    code = f"""
import resource, signal, torch
from pathlib import Path
from compresscal.calibration import CalibrationSet
from compresscal.store import claim, keep_sets
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
    with pytest.raises(ValueError, match='not calibrated on'): Study(sources=['mine.txt', 'docs'], evaluations=['docs', 'mine.txt'])

def test_nm_that_does_not_divide_is_refused_before_work(small, tmp_path):
    with pytest.raises(ValueError, match='2:3'): replace(small, methods=['magnitude:0.5', 'wanda:2:3']).run(tmp_path/'s', compute=(compute := counted()))
    assert not compute.asked

def alone(): return outside_tests(root) | dict(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1') # a small model's threads mostly wait for each other

def killed(command, out, rng):
    "Start a study, kill it at a random moment, and return the records that were finished then"
    wait, had = rng.choice([0, 0, 1, 1, 2, 3]), len(list(out.glob('cells/*.json')))
    with subprocess.Popen(command, env=alone(), cwd=out.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and len(list(out.glob('cells/*.json')))<had+wait: time.sleep(.003)
        time.sleep(rng.uniform(0, .5 if wait else 9))
        process.send_signal(signal.SIGKILL)
    return state(out) if (out/'cells').exists() else {}

@pytest.mark.slow
def test_killed_ten_times(tmp_path):
    "`compresscal study`, killed ten times at random moments, ends with the bytes of an undisturbed run, and no finished cell is computed twice"
    from compresscal.models import embedded_folder
    if not (embedded_folder()/'config.json').exists(): pytest.skip('no embedded model')
    command = [sys.executable, '-c', 'import sys; from compresscal.cli import main; sys.exit(main())', 'study', *'--sets 2 --sequences 8 --evaluation-sequences 8'.split()]
    run = lambda out: subprocess.run([*command, '--out', str(out)], env=alone(), cwd=tmp_path, check=True, capture_output=True)
    rng, seen = random.Random(0), {}
    for _ in range(10):
        found = killed([*command, '--out', str(tmp_path/'killed')], tmp_path/'killed', rng)
        assert seen.items() <= found.items()
        seen = found
    run(tmp_path/'killed')
    run(tmp_path/'whole')
    assert table(tmp_path/'killed')==table(tmp_path/'whole') and seen.items() <= state(tmp_path/'killed').items() and not parts(tmp_path/'killed')
