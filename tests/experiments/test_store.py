"A folder that loses nothing, the same at a distance, and what it tells of a study that runs or was killed"
import errno, json, multiprocessing, os, random, signal, socket, threading, time
from dataclasses import replace
from types import SimpleNamespace

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from compresscal.experiments import store as module
from compresscal.calibration.calibration_set import CalibrationSet
from compresscal.experiments.mirror import Mirror, fetch_mirrored, is_url, offer, publish
from compresscal.experiments.progress import held, spell, status, time_to_go
from compresscal.experiments.store import Store, claim, content_key, keep_sets, local_copy, open_store

def failure(**kwargs): return SimpleNamespace(**dict(type='ValueError', message='no', traceback='line 1', kind='error')|kwargs)
def sets(n): return [CalibrationSet.from_tokens(torch.randint(3, 259, (4, 24), generator=torch.Generator().manual_seed(i)), name='a') for i in range(n)]
def files(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file() and p.name!='.lock'}
def job(i, kind='wanda'): return [dict(job=i, text=t) for t in ('docs', 'code')], dict(id=f'job {i}', label=f'{kind}, set {i}', kind=kind, cells=[content_key(dict(job=i, text=t)) for t in ('docs', 'code')])

# failures

def test_failures_are_counted_and_forgotten(tmp_path):
    with claim(tmp_path/'s') as folder:
        store, decides = Store(folder), dict(a=1)
        for i in (1, 2): assert store.fail(decides, failure(), model='tiny', set=3)['attempts']==i
        kept = store.failures()[content_key(decides)]
        assert kept['decides']==decides and (kept['model'], kept['set'], kept['type'], kept['kind'])==('tiny', 3, 'ValueError', 'error')
        assert store.get(content_key(decides)) is None
        store.put(decides, dict(x=1.))
        assert store.failures()=={}

def test_a_damaged_failure_is_no_failure(tmp_path):
    with claim(tmp_path/'s') as folder:
        store = Store(folder)
        store.fail(dict(a=1), failure())
        store.path('failures', content_key(dict(a=1))).write_text('{"att')
        assert store.failures()=={} and store.fail(dict(a=1), failure())['attempts']==1

@pytest.mark.parametrize('value', [float('inf'), float('-inf'), 1e-300, 0.1+0.2])
def test_numbers_survive(tmp_path, value):
    with claim(tmp_path/'s') as folder: assert Store(folder).get(Store(folder).put(dict(a=1), dict(metrics=dict(x=value))))==dict(metrics=dict(x=value))

def test_not_a_number_survives(tmp_path):
    with claim(tmp_path/'s') as folder: assert repr(Store(folder).get(Store(folder).put(dict(a=1), dict(x=float('nan')))))=="{'x': nan}"

def test_marks_of_a_killed_process_are_swept(tmp_path):
    with claim(tmp_path/'s') as folder: Store(folder).start('job 1', 'host:1')
    assert len(list((tmp_path/'s'/'running').iterdir()))==1
    with claim(tmp_path/'s') as folder:
        assert not list((folder/'running').iterdir())
        Store(folder).start('job 1', 'host:1')
        Store(folder).stop('job 1')
        Store(folder).stop('job 1') # twice is no mistake
        assert not list((folder/'running').iterdir())

@pytest.fixture(params=[NotImplementedError('no flock'), OSError(errno.ENOLCK, 'no locks'), OSError(errno.ENOTSUP, 'no locks')], ids=str)
def no_locks(request, monkeypatch):
    "A file system that knows no locks"
    def acquire(*args, **kwargs): raise request.param
    monkeypatch.setattr('compresscal.experiments.store.FileLock.acquire', acquire)

def test_without_locks_a_running_process_keeps_its_files(no_locks, tmp_path):
    "Two processes work in one folder, and a third has been killed there"
    with claim(tmp_path/'s') as folder:
        store, here = Store(folder), socket.gethostname()
        for job,where in (('mine', f'{here}:{os.getpid()}'), ('elsewhere', 'host:1'), ('of a dead one', f'{here}:{2**22+1}')): store.start(job, where)
        begun, old, old_set = folder/'cells'/'.a.json.part', folder/'cells'/'.b.json.part', folder/'sets'/'.c.part'
        for o in (begun, old): o.touch()
        for o in (folder/'sets'/'.d.part'/'000', old_set): o.mkdir(parents=True)
        for o in (old, old_set): os.utime(o, (0, 0))
        with claim(folder):
            marks = {json.loads(o.read_bytes())['job'] for o in (folder/'running').iterdir()}
            assert marks=={'mine', 'elsewhere'} and begun.exists() and (folder/'sets'/'.d.part'/'000').exists()
            assert not old.exists() and not old_set.exists()

def test_other_errors_of_a_lock_are_told(tmp_path, monkeypatch):
    def acquire(*args, **kwargs): raise OSError(errno.EROFS, 'read-only')
    monkeypatch.setattr('compresscal.experiments.store.FileLock.acquire', acquire)
    with pytest.raises(OSError, match='cannot write'):
        with claim(tmp_path/'s'): pass

@pytest.mark.parametrize('where', ['cells', 'failures', 'provenance', 'running'])
def test_full_disk_leaves_nothing_half(tmp_path, monkeypatch, where):
    with claim(tmp_path/'s') as folder:
        store, before = Store(folder), files(folder)
        real = os.replace
        def full(a, b):
            if where in str(b): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(a, b)
        monkeypatch.setattr(os, 'replace', full)
        with pytest.raises(OSError, match='No space'):
            store.start('job 1')
            store.fail(dict(a=2), failure())
            store.put(dict(a=1), dict(x=1.), dict(seconds=1.))
        monkeypatch.undo()
        assert not [n for n in files(folder) if '.part' in n] and not [n for n in files(folder) if n.startswith(where)]
        assert store.get(content_key(dict(a=1))) is None
        store.put(dict(a=1), dict(x=1.), dict(seconds=1.))
        assert store.get(content_key(dict(a=1)))==dict(x=1.) and before.keys() <= files(folder).keys()

# a process that is killed

def work(out, n=40, planned=None):
    "A study of `n` jobs, two cells each; of every seventh no cell can be finished"
    with claim(out) as folder:
        store, jobs = Store(folder), [dict(id=f'job {i}', label=f'job {i}', kind='a', cells=[content_key(dict(i=i, text=t)) for t in 'xy']) for i in range(n)]
        store.plan(jobs)
        if planned: planned.set()
        for i,j in enumerate(jobs):
            if all(store.get(c) for c in j['cells']): continue
            store.start(j['id'], 'here:1')
            for t in 'xy':
                if i%7==3: store.fail(dict(i=i, text=t), failure())
                else: store.put(dict(i=i, text=t), dict(value=i/7, many=list(range(500))), dict(job=j['id'], seconds=1.))
            store.stop(j['id'])

def cells(folder): return {n: b for n,b in files(folder).items() if n.startswith('cells/') and '.part' not in n}

def test_killed_while_it_writes(tmp_path):
    "kill -9, 25 times: no finished record changes, no half one is seen, and the status is right each time"
    rng, seen, out, fork, hit = random.Random(0), {}, tmp_path/'s', multiprocessing.get_context('fork'), 0 # forked: an import takes longer than the work
    for _ in range(25):
        process = fork.Process(target=work, args=(out, 40, planned := fork.Event()))
        process.start()
        planned.wait(30)
        time.sleep(rng.uniform(0, .03))
        process.kill()
        process.join()
        hit += process.exitcode==-signal.SIGKILL
        told, found = status(out), cells(out)
        assert seen.items() <= found.items() and told.done==len(found) and told.working is False and told.running==0
        assert told.done+told.failed+told.left==80 and told.interrupted<=1
        for b in found.values(): json.loads(b)
        seen = found
    assert hit>=10 # the others had finished before
    work(out)
    work(whole := tmp_path/'whole')
    assert cells(out)==cells(whole) and len(cells(whole))==68 and not [n for n in files(out) if '.part' in n]
    assert (told := status(out)).done==68 and (told.failed, told.left, told.running)==(12, 0, 0)

def test_status_while_it_works(tmp_path):
    "Asked again and again, it disturbs nothing and always adds up"
    fork, told = multiprocessing.get_context('fork'), []
    process = fork.Process(target=work, args=(tmp_path/'s', 40, planned := fork.Event()))
    process.start()
    planned.wait(30)
    while process.is_alive(): told.append(status(tmp_path/'s'))
    assert process.exitcode==0 and len(told)>3 and all(t.done+t.running+t.failed+t.left==80 for t in told) and [t.done for t in told]==sorted(t.done for t in told)
    assert status(tmp_path/'s').working is False and all(t.interrupted==0 for t in told if t.working)

def test_asking_does_not_keep_a_study_out(tmp_path):
    "The question holds the lock for a moment; a study that begins then waits for that moment"
    with claim(tmp_path/'s'): pass
    stop = threading.Event()
    def ask():
        while not stop.is_set(): held(tmp_path/'s')
    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(6):
            with claim(tmp_path/'s'): pass
    finally: stop.set(); asking.join()

# progress

def test_a_folder_without_a_plan(tmp_path):
    with claim(tmp_path/'s') as folder: Store(folder).put(dict(a=1), dict(x=1.))
    told = status(tmp_path/'s')
    assert (told.done, told.left, told.to_go) == (1, 0, None) and 'no plan' in repr(told)

def test_earlier_failures_are_tried_again(tmp_path):
    (d, j), (e, k) = job(1), job(2)
    with claim(tmp_path/'s') as folder:
        store = Store(folder)
        for o in d: store.fail(o, failure())
        time.sleep(.01)
        store.plan([j, k])
        assert (status(folder).failed, status(folder).left)==(0, 4)
        store.fail(e[0], failure())
        assert (status(folder).failed, status(folder).left)==(1, 3)
    assert (status(tmp_path/'s').failed, status(tmp_path/'s').left)==(3, 1)

def test_the_estimate_is_honest(tmp_path):
    "Kinds that nobody has seen make it `at least`; a job in two goes counts by the longer; another study's jobs do not count"
    (d, j), (e, k), (f, l) = job(1), job(2), job(3, 'gptq')
    with claim(tmp_path/'s') as folder:
        store = Store(folder)
        store.plan([j, k])
        assert status(folder).to_go is None and 'nothing of the kind wanda has finished' in repr(status(folder))
        for o,seconds in zip(d, (100., 3.)): store.put(o, dict(x=1.), dict(job='job 1', seconds=seconds))
        store.put(dict(z=1), dict(x=1.), dict(job='job of another plan', seconds=1e9))
        told = status(folder)
        assert told.to_go==(50., 200.) and not told.at_least and told.done==2
        store.plan([j, k, l], workers=4)
        assert status(folder).at_least and 'at least 0.8 to 3.3 min' in repr(status(folder)) and 'gptq' in repr(status(folder))
        store.start('job 2', 'host:1')
        time.sleep(.05)
        assert status(folder).to_go[1]<200 and status(folder).running==2
        for o in (*e, *f): store.put(o, dict(x=1.), dict(job='job 2', seconds=1.))
        assert status(folder).to_go==(0., 0.) and status(folder).left==0

def test_what_a_damaged_file_tells_is_left_out(tmp_path):
    (d, j), = [job(1)]
    with claim(tmp_path/'s') as folder:
        store = Store(folder)
        store.plan([j])
        keys = [store.put(o, dict(x=1.), dict(job='job 1', seconds=5.)) for o in d]
        for key,text in zip(keys, ('{"job": "job 1", "seco', '{"job": "job 1", "seconds": "many"}')): (folder/'provenance'/f'{key}.json').write_text(text)
    assert status(tmp_path/'s').done==2

def test_names_and_messages_do_nothing_to_a_terminal_or_a_page(tmp_path):
    nasty = 'a|b<i>\x1b[31m\n# head'
    with claim(tmp_path/'s<i>') as folder:
        store = Store(folder)
        decides, plan = job(1)
        store.plan([dict(plan, label=nasty)])
        store.fail(decides[0], SimpleNamespace(type='ValueError', message=f'{nasty}', traceback='', kind='error'), label=nasty)
        store.start('job 1', 'host:1')
        for told in (status(folder), replace(status(folder), jobs=((nasty, nasty, 1.),))):
            assert '\x1b' not in repr(told)+told._repr_markdown_() and '<i>' not in told._repr_markdown_()
            assert len(repr(told).splitlines())==len(told._repr_markdown_().splitlines())==sum(1 for _ in told.lines())
            assert all(o.startswith('- ') for o in told._repr_markdown_().splitlines())

def test_estimates_hold():
    "Jobs whose times vary: the range holds the true time to go in most studies, and it is not absurdly wide"
    rng, held, width = random.Random(0), 0, []
    for _ in range(400):
        times = {k: [m*rng.lognormvariate(0, .3) for _ in range(30)] for k,m in (('wanda', 5), ('gptq', 60))}
        n = rng.randint(2, 20)
        (low, high), _ = time_to_go({k: v[:n] for k,v in times.items()}, [(k, 1, 0.) for k,v in times.items() for _ in v[n:]], workers=2)
        held += low<=sum(sum(v[n:]) for v in times.values())/2<=high
        width.append(high/low)
    assert held>=.95*400 and sorted(width)[200]<3

def test_times_for_people(): assert [spell(s) for s in (.4, 61, 100, 7200, 200_000)]==['0 s', '61 s', '1.7 min', '2.0 h', '2.3 days']

# the mirror

@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('COMPRESSCAL_CACHE', str(tmp_path/'cache'))
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = ['']
    yield
    MemoryFileSystem.store.clear()

def another_machine(monkeypatch, tmp_path, name): monkeypatch.setenv('COMPRESSCAL_CACHE', str(tmp_path/name))

@pytest.fixture(params=['memory://bucket/study', 'file://'])
def url(request, tmp_path): return request.param if 'memory' in request.param else f"file://{tmp_path/'far away'}"

def test_another_machine_finds_everything(url, tmp_path, monkeypatch):
    made = []
    def make(): made.append(1); return sets(2)
    with open_store(url) as store:
        key = store.put(dict(a=1), dict(x=1.), dict(seconds=2.))
        store.fail(dict(b=1), failure())
        first = store.sets(dict(n_sets=2), make)
        store.plan([job(1)[1]])
        store.start('job 1')
        (store.folder/'results.csv').write_text('a,b')
        (store.folder/'figures').mkdir()
        (store.folder/'figures'/'one.png').write_bytes(b'png')
    another_machine(monkeypatch, tmp_path, 'other')
    told = status(url)
    assert told.working is None and 'cannot be seen' in repr(told) and told.left==2
    with open_store(url) as store:
        assert store.get(key)==dict(x=1.) and len(store.failures())==1 and store.sets(dict(n_sets=2), make)==first and made==[1]
        store.put(dict(b=1), dict(x=2.))
    names = Mirror(url, tmp_path).names()
    assert {'results.csv', 'figures/one.png', 'plan.json', f'cells/{key}.json', f'provenance/{key}.json'} <= names
    assert not [n for n in names if n.startswith(('failures', 'running')) or '.part' in n or 'lock' in n or 'probe' in n]

def test_a_finished_cell_is_sent_at_once(url, tmp_path):
    with open_store(url) as store:
        key = store.put(dict(a=1), dict(x=1.))
        assert f'cells/{key}.json' in Mirror(url, tmp_path).names()

def faulty(monkeypatch, kind, rate, rng, error=ConnectionError):
    "A file system whose calls fail at this rate, before or after the work"
    def shaky(real):
        def call(*args, **kwargs):
            if rng.random()<rate/2: raise error('no answer')
            out = real(*args, **kwargs)
            if rng.random()<rate/2: raise error('answer lost')
            return out
        return call
    for name in ('pipe_file', 'cat_file', 'find', 'rm_file', 'mv', 'makedirs'): monkeypatch.setattr(kind, name, shaky(getattr(kind, name)))

@pytest.mark.parametrize('error', [ConnectionError, TimeoutError, OSError, RuntimeError])
def test_a_network_that_fails_often(url, tmp_path, monkeypatch, error):
    "One call in five fails; nothing is lost"
    monkeypatch.setitem(Mirror.__init__.__kwdefaults__, 'pause', .0001)
    faulty(monkeypatch, MemoryFileSystem if 'memory' in url else LocalFileSystem, .2, random.Random(0), error)
    with pytest.warns() as said:
        import warnings; warnings.warn('at least one')
        for machine in range(4):
            another_machine(monkeypatch, tmp_path, f'machine {machine}')
            for _ in range(20): # until the network lets one finish
                try:
                    with open_store(url) as store:
                        for i in range(8*machine): assert store.get(content_key(dict(i=i)))==dict(x=i/7)
                        for i in range(8*machine, 8*machine+8): store.put(dict(i=i), dict(x=i/7))
                        assert len(store.sets(dict(n_sets=2), lambda: sets(2)))==2
                    break
                except OSError: pass
    monkeypatch.undo()
    names = Mirror(url, tmp_path).names()
    assert len([n for n in names if n.startswith('cells/') and '/.' not in n])==32

def test_a_place_that_cannot_be_written_is_refused_before_work(tmp_path):
    (tmp_path/'file').touch()
    with pytest.raises(OSError, match='cannot write at'):
        with open_store(f"file://{tmp_path/'file'/'below'}"): raise AssertionError
    with pytest.raises(ValueError, match='fsspec knows'):
        with open_store('nosuch://bucket'): pass

def test_a_network_that_is_gone_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(Mirror.__init__.__kwdefaults__, 'pause', .0001)
    def down(*args, **kwargs): raise ConnectionError('gone')
    with pytest.warns(UserWarning, match='it is safe in'), pytest.raises(OSError, match='nothing is lost'):
        with open_store('memory://bucket/study') as store:
            monkeypatch.setattr(MemoryFileSystem, 'pipe_file', down)
            for i in range(3): store.put(dict(i=i), dict(x=1.))
    monkeypatch.undo()
    monkeypatch.setenv('COMPRESSCAL_CACHE', str(tmp_path/'cache'))
    with open_store('memory://bucket/study'): pass
    assert len(Mirror('memory://bucket/study', tmp_path).names())==3

def test_an_error_of_the_study_is_told_before_that_of_the_network(monkeypatch):
    monkeypatch.setitem(Mirror.__init__.__kwdefaults__, 'pause', .0001)
    def down(*args, **kwargs): raise ConnectionError('gone')
    with pytest.warns(UserWarning, match='it is safe in'), pytest.raises(KeyError, match='mine'):
        with open_store('memory://bucket/study') as store:
            monkeypatch.setattr(MemoryFileSystem, 'pipe_file', down)
            store.put(dict(i=1), dict(x=1.))
            raise KeyError('mine')

def test_names_from_afar_are_not_trusted(tmp_path):
    fs, key = fsspec.filesystem('memory'), 'a'*32
    for name in ('cells/../../evil.json', 'cells/x.json', 'results.csv', f'sets/{key}/../../evil', f'sets/{key}/000/manifest.json', 'running/x.json'): fs.store[f'/bucket/study/{name}'] = None
    for name in list(fs.store): del fs.store[name]; fs.pipe_file(name, b'{}') if '..' not in name else fs.store.__setitem__(name, __import__('fsspec.implementations.memory').implementations.memory.MemoryFile(fs, name, b'{}'))
    fs.pipe_file(f'/bucket/study/sets/{key}.json', json.dumps(['000/manifest.json', '../../evil']).encode())
    for o in ('cells', 'sets'): (tmp_path/'here'/o).mkdir(parents=True)
    fetch_mirrored(Mirror('memory://bucket/study', tmp_path/'here'))
    assert not files(tmp_path/'here') and sorted(p.name for p in tmp_path.iterdir() if p.name!='cache')==['here']

def test_a_set_that_was_half_sent_is_not_fetched(tmp_path, monkeypatch):
    with open_store('memory://bucket/study') as store: store.sets(dict(n_sets=2), lambda: sets(2))
    fs = fsspec.filesystem('memory')
    fs.rm_file(sorted(n for n in fs.store if n.endswith('tokens.safetensors'))[1])
    another_machine(monkeypatch, tmp_path, 'other')
    with open_store('memory://bucket/study') as store:
        assert not list((store.folder/'sets').iterdir())
        assert store.sets(dict(n_sets=2), lambda: sets(2))==sets(2)
    another_machine(monkeypatch, tmp_path, 'third')
    with open_store('memory://bucket/study') as store: assert len(list((store.folder/'sets').iterdir()))==1

def test_two_processes_of_one_machine_are_kept_apart():
    with open_store('memory://bucket/study'):
        with pytest.raises(BlockingIOError, match='in use by another'):
            with open_store('memory://bucket/study'): pass

@pytest.mark.parametrize('place, url', [('s3://a/b', True), ('gs://a', True), ('a/b', False), ('/a', False), (r'C:\a', False), ('~/a', False), ('memory://x', True)])
def test_urls_are_told_from_paths(place, url): assert is_url(place)==url
