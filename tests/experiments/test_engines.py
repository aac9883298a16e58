"Every job ends once, whatever happens to it, to its worker or to us; nothing is left running"
import os, random, signal, subprocess, sys, time
from collections import Counter, deque
from contextlib import suppress
from functools import partial
from multiprocessing.reduction import ForkingPickler

import psutil
import pytest
from conftest import outside_tests, root

from compresscal.experiments.jobs import Failure
from compresscal.experiments.engines import Local, Pool, Ray, _PoolWorker, engine_from, fitting, free_cores, free_memory
from compresscal.experiments.jobs import Worker, conduct, do_job, out_of_memory, torch_threads

setup = partial(partial, eval) # a job is an expression
die, me = "__import__('os').kill(__import__('os').getpid(), 9)", "__import__('os').getpid()"

def nap(seconds, value='0'): return f"(__import__('time').sleep({seconds}), {value})[1]"
def ends(outcomes): return {o.job: o for o in outcomes if o.state!='started'}
def told(outcomes): return {o.job: (o.state, o.value, o.error and (o.error.type, o.error.message, o.error.kind)) for o in outcomes if o.state!='started'}
def once(outcomes): return set(Counter(o.job for o in outcomes if o.state!='started').values())=={1}
def workers(of=None):
    found = []
    for p in psutil.Process(of).children(recursive=True):
        with suppress(psutil.Error): found += [p]*('spawn_main' in ' '.join(p.cmdline()))
    return found

def gone(processes, seconds=5): return not psutil.wait_procs(processes, timeout=seconds)[1]

def pool(workers=2, **kwargs): return Pool(workers=workers, threads=1, **kwargs)

mixed = [*([((g, i), f'{g}*100+{i}') for i in range(4)] for g in range(3)), [('bad', '1/0'), ('after', '1')],
         [('sum', "(lambda t: t.randn(200, 300, generator=t.Generator().manual_seed(0)).mm(t.ones(300, 200)).double().sum().item())(__import__('torch'))")]]

def test_the_same_from_each_engine():
    here, there = (list(e.run(setup, mixed)) for e in (Local(threads=1), pool()))
    assert told(here)==told(there) and told(here)['bad']==('failed', None, ('ZeroDivisionError', 'division by zero', 'error'))
    for outcomes in (here, there): assert once(outcomes) and Counter(o.job for o in outcomes if o.state=='started').keys()==ends(outcomes).keys()
    assert not workers()

def test_threads_are_those_that_were_asked_for():
    n = "__import__('torch').get_num_threads()"
    import torch
    before = torch.get_num_threads()
    assert ends(Local(threads=3).run(setup, [[(1, n)]]))[1].value==3 and torch.get_num_threads()==before
    assert ends(Pool(workers=1, threads=2).run(setup, [[(1, n)]]))[1].value==2
    with torch_threads(2): assert ends(Pool(workers=1).run(setup, [[(1, n)]]))[1].value==2

def test_threads_are_put_back_when_setup_raises():
    import torch
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError): list(Local(threads=before+1).run(partial(eval, '1/0'), [[(1, '1')]]))
    assert torch.get_num_threads()==before

@pytest.mark.parametrize('job', ["__import__('torch').zeros(2**50)", 'bytearray(2**50)'])
def test_memory_is_told_from_other_errors(job): assert ends(Local().run(setup, [[(1, job)]]))[1].error.kind=='memory'

def test_memory_behind_another_error():
    try:
        try: raise MemoryError
        except MemoryError as e: raise KeyError('layer 3') from e
    except KeyError as e: assert out_of_memory(e) and Failure.of(e).kind=='memory'
    assert not out_of_memory(ValueError('out of memory'))

def test_notes_are_told():
    e = ValueError('not square')
    e.add_note('while computing GPTQ')
    assert Failure.of(e).message=='not square\nwhile computing GPTQ'

# who does which job: no processes, so that thousands of histories are tried

class Chance(Worker):
    def send(self, job): pass
    def stop(self): pass

class ChanceCrew:
    "Workers that answer in any order, and die at any time, as the random generator wants it"
    hint = ''
    def __init__(self, rng, size, deadly): self.rng, self.size, self.deadly, self.hired, self.closed = rng, size, deadly, 0, False
    def hire(self): self.hired += 1; return Chance(deque(), where=f'w{self.hired}')
    def close(self): self.closed = True
    def wait(self, team, seconds):
        able = [w for w in team if w.job or not w.ready]
        return [(w, self.word(w)) for w in self.rng.sample(able, self.rng.randint(1, len(able)))]
    def word(self, w):
        dead = ('dead', Failure('WorkerDied', 'by chance', kind='died'), 0.)
        if not w.ready: return dead if self.rng.random()<self.deadly/4 else ('unfit', Failure('ValueError', 'no model'), 0.) if self.rng.random()<self.deadly/8 else ('ready', w.where, 0.)
        return dead if self.rng.random()<self.deadly or w.job[1]=='deadly' else ('done', w.job[1], 1.)

@pytest.mark.parametrize('deadly', [0, .05, .3])
def test_every_job_ends_once_in_any_history(deadly):
    gave_up = 0
    for seed in range(300):
        rng = random.Random(seed)
        groups = [[((g, i), 'deadly' if rng.random()<.05 else (g, i)) for i in range(rng.randint(0, 6))] for g in range(rng.randint(1, 8))]
        crew, outcomes = ChanceCrew(rng, rng.randint(1, 5), deadly), []
        try: outcomes += conduct(crew, [g for g in groups if g], retries=rng.randint(0, 2))
        except RuntimeError as e: gave_up += 1; assert 'no worker could begin' in str(e); continue
        finally: assert crew.closed
        found = ends(outcomes)
        assert found.keys()=={id for g in groups for id,_ in g} and (once(outcomes) or not found)
        assert all(o.value==o.job if o.state=='done' else o.error.kind=='died' for o in found.values())
        assert all(found[id].state=='failed' for g in groups for id,job in g if job=='deadly')
    assert gave_up < 300*deadly+1

def test_a_group_stays_together():
    "Without death and with as many groups as workers, each group has one worker and its order, but for what others take from its end"
    outcomes = list(conduct(ChanceCrew(random.Random(0), 3, 0), [[((g, i), 0) for i in range(20)] for g in range(3)], retries=1))
    for g in range(3):
        by = [(o.job[1], o.where) for o in outcomes if o.state=='started' and o.job[0]==g]
        assert len({w for i,w in by if i<5})==1 and all(a<b for w in {w for _,w in by} for a,b in zip(*(lambda l: (l, l[1:]))([i for i,v in by if v==w])))

def test_an_idle_worker_takes_from_the_longest_group():
    outcomes = list(pool().run(setup, [[(i, nap(.15, me)) for i in range(12)]]))
    assert len({o.value for o in ends(outcomes).values()})==2 and once(outcomes)

# processes

def test_a_worker_that_dies_is_replaced(tmp_path):
    "Once is forgiven"
    flag = tmp_path/'died once'
    job = f"__import__('pathlib').Path({str(flag)!r}).exists() or (__import__('pathlib').Path({str(flag)!r}).touch(), {die})"
    outcomes = list(pool(1).run(setup, [[('once', job), ('then', '2'), ('always', die), ('last', '3')]]))
    found = ends(outcomes)
    assert {j: o.state for j,o in found.items()}==dict(once='done', then='done', always='failed', last='done')
    assert found['always'].error.kind=='died' and 'SIGKILL' in found['always'].error.message and Counter(o.job for o in outcomes)['always']==3

def test_no_second_try_if_none_is_wanted():
    outcomes = list(pool(1, retries=0).run(setup, [[('dies', "__import__('os')._exit(7)"), ('fine', '1')]]))
    assert [(o.job, o.state) for o in outcomes]==[('dies', 'started'), ('dies', 'failed'), ('fine', 'started'), ('fine', 'done')] and 'exit code 7' in outcomes[1].error.message

def test_setup_that_fails_is_one_error():
    with pytest.raises(RuntimeError, match="ValueError: could not convert string to float: 'model'$") as e: list(pool().run(partial(float, 'model'), [[(1, '1')], [(2, '2')]]))
    assert 'do, said = setup()' in e.value.__notes__[0]
    with pytest.raises(RuntimeError, match='exit code 3'): list(pool(1).run(partial(os._exit, 3), [[(1, '1')], [(2, '2')]]))
    assert not workers()

def test_what_cannot_be_sent():
    found = ends(pool(1).run(setup, [[('value', 'lambda: 0'), ('fine', '1')]]))
    assert found['value'].state=='failed' and 'pickle' in found['value'].error.message and found['fine'].value==1
    with pytest.raises(TypeError, match="a job must be something that another process can read, got 'job'"): list(pool(1).run(setup, [[('job', lambda: 0)]]))
    with pytest.raises(TypeError, match='`setup` must be'): list(pool(1).run(lambda: eval, [[('job', '1')]]))
    assert not workers()

class Unread:
    "Can be sent and cannot be read"
    def __reduce__(self): return int, ('not a number',)

def test_a_job_that_a_worker_cannot_read_is_a_failure_and_the_worker_lives():
    found = ends(pool(1, retries=0).run(setup, [[('unread', Unread()), ('fine', me)]]))
    assert found['unread'].error.type=='ValueError' and 'not a number' in found['unread'].error.message
    assert found['fine'].where==found['unread'].where

def interactive(code):
    "Run a program that is in no file, as a notebook is not"
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=outside_tests(root), timeout=300)

def test_what_is_defined_in_a_notebook_is_refused_before_a_worker_starts():
    ran = interactive("""
from functools import partial
from compresscal.experiments.engines import Pool
class Mine: pass
def own(): return eval
def hire(self): raise AssertionError('a worker was started')
Pool.__dict__['run'].__globals__['_PoolCrew'].hire = hire
for setup,job in ((partial(partial, eval), Mine()), (own, '1')):
    try: list(Pool(workers=1, threads=1).run(setup, [[('a', job)]]))
    except ValueError as e: print(e)
""")
    first, second = ran.stdout.splitlines()
    assert first.startswith('a worker cannot read Mine, which was defined in a notebook') and 'import it from there' in first
    assert second.startswith('a worker cannot read own,') and not ran.stderr

study_of = """
from dataclasses import dataclass
from compresscal.experiments.engines import Pool
from compresscal.compression.methods import Magnitude
from compresscal.experiments.measures import Measure
from compresscal.experiments.study import Study
@dataclass(frozen=True)
class Mine(Magnitude): pass
@dataclass(frozen=True)
class Own(Measure):
    name = 'own'
    def settings(self): return {}
for study in (Study(methods=[Mine(.5)], sources=['code']), Study(methods=['rtn:4'], evaluations=dict(own=Own()))):
    try: study.run('OUT', engine=Pool(workers=1, threads=1), progress=False)
    except ValueError as e: print(e)
"""

@pytest.mark.parametrize('interpreter', [['-c'], []])
def test_a_study_says_so_before_it_gathers_text(tmp_path, interpreter):
    code = study_of.replace('OUT', str(tmp_path/'out'))
    how = dict(args=[sys.executable, *interpreter, code]) if interpreter else dict(args=[sys.executable, '-'], input=code)
    ran = subprocess.run(**how, capture_output=True, text=True, env=outside_tests(root), timeout=300)
    assert [o.partition(', which')[0] for o in ran.stdout.splitlines()]==['a worker cannot read Mine', 'a worker cannot read Own']
    assert not ran.stderr and not (tmp_path/'out').exists()

def test_what_is_defined_in_a_script_is_read(tmp_path):
    path = tmp_path/'script.py'
    path.write_text("""
from functools import partial
from compresscal.experiments.engines import Pool
class Mine:
    def __str__(self): return 'mine'
if __name__=='__main__':
    for o in Pool(workers=1, threads=1).run(partial(partial, str), [[('a', Mine())]]): print(o.state, o.value)
""")
    ran = subprocess.run([sys.executable, path], capture_output=True, text=True, env=outside_tests(root), timeout=300)
    assert ran.stdout.splitlines()[-1]=='done mine' and not ran.stderr

def test_tensors_are_not_moved_to_be_looked_at():
    import torch
    tensor = torch.zeros(3)
    Pool().check(dict(tensor=[tensor, torch.nn.Linear(2, 2)]))
    assert not tensor.is_shared()

class Pipe:
    "A pipe into which something is put between two glances"
    def __init__(self, data): self.data, self.glances = data, 0
    def poll(self): self.glances += 1; return self.glances>1
    def recv_bytes(self): return self.data

class Dead:
    exitcode = -9
    def is_alive(self): return False
    def join(self, seconds): pass

def test_a_result_sent_just_before_death_counts():
    worker = _PoolWorker(deque())
    worker.pipe, worker.process = Pipe(bytes(ForkingPickler.dumps(('done', 5, 1.)))), Dead()
    assert worker.hear()==('done', 5, 1.)

bars = "[__import__('tqdm').tqdm(disable=True), __import__('multiprocessing').get_context('spawn').Lock()][:0]"

@pytest.mark.parametrize('ending', ['', 'die', 'early'])
def test_no_semaphore_is_left_behind(ending):
    "Whether workers end by themselves, or in the middle of a job in which a progress bar was shown"
    job = dict(die=f"[__import__('tqdm').tqdm(disable=True), {die}]", early=f"[__import__('tqdm').tqdm(disable=True), {nap(60)}]").get(ending, bars)
    ran = interactive(f"""
from functools import partial
from compresscal.experiments.engines import Pool
outcomes = Pool(workers=2, threads=1, retries=0).run(partial(partial, eval), [[(i, {job!r})] for i in range(4)])
if {ending!r}=='early':
    for o in outcomes: break
    __import__('time').sleep(1)
    outcomes.close()
else: print(*sorted(o.state for o in outcomes))
""")
    assert not ran.stderr and (ending=='early' or 'failed' in ran.stdout or ran.stdout.split().count('done')==4)

def test_a_job_over_its_time_is_ended_and_others_go_on():
    outcomes = list(pool(2, timeout=1).run(setup, [[('hangs', nap(60)), ('after it', '1')], [('other', '2')]]))
    found = ends(outcomes)
    assert once(outcomes) and {j: o.state for j,o in found.items()}=={'hangs': 'failed', 'after it': 'done', 'other': 'done'}
    assert (found['hangs'].error.type, found['hangs'].error.kind)==('JobTimeout', 'time') and '1 seconds' in found['hangs'].error.message
    assert [o.state for o in outcomes if o.job=='hangs']==['started', 'failed'] and not workers()

class SlowCrew(ChanceCrew):
    "Every job is over at once, and its message waits"
    def wait(self, team, seconds): return [(w, ('ready', w.where, 0.) if not w.ready else ('done', w.job[1], 0.)) for w in team]

def test_who_listens_slowly_ends_no_job_that_is_over():
    outcomes = []
    for o in conduct(SlowCrew(random.Random(0), 2, 0), [[(g, g)] for g in range(4)], 0, timeout=.01):
        outcomes.append(o)
        time.sleep(.02)
    assert {o.state for o in ends(outcomes).values()}=={'done'}

@pytest.mark.parametrize('wrong', [0, -1, True, float('inf'), float('nan'), '60'])
@pytest.mark.parametrize('kind', [Pool, Ray])
def test_a_limit_is_a_number_of_seconds(kind, wrong):
    with pytest.raises(ValueError, match='`timeout` must be a number of seconds above 0'): kind(timeout=wrong)

def test_this_process_cannot_end_its_own_job():
    with pytest.raises(ValueError, match="use engine='pool'"): engine_from('local', timeout=60)
    assert engine_from('pool', timeout=60)==Pool(timeout=60)

def test_large_values(): assert len(ends(pool(1).run(setup, [[(1, 'bytes(30_000_000)'), (2, 'bytes(10)')]]))[1].value)==30_000_000

def test_closing_stops_the_workers_at_once():
    outcomes = pool().run(setup, [[(1, nap(60))], [(2, nap(60))]])
    for _ in range(2): assert next(outcomes).state=='started'
    running, start = workers(), time.monotonic()
    assert len(running)==2
    outcomes.close()
    assert gone(running) and time.monotonic()-start<3

def script(tmp_path, guard=True):
    "A process that runs a pool of two workers, each at a job of a minute"
    path = tmp_path/'script.py'
    path.write_text(f"""
import signal
from functools import partial
from compresscal.experiments.engines import Pool
signal.signal(signal.SIGINT, signal.default_int_handler) # which what runs in the background of a shell has not
{"if __name__=='__main__':" if guard else "if True:"}
    for o in Pool(workers=2, threads=1).run(partial(partial, eval), [[(1, {nap(60)!r})], [(2, {nap(60)!r})]]): print(o.job, o.state, flush=True)
""")
    return subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=outside_tests(root), start_new_session=True)

@pytest.mark.parametrize('end', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_orphans(tmp_path, end):
    "However our process ends, its workers end, in the middle of a job"
    with script(tmp_path) as process:
        for _ in range(2): assert 'started' in process.stdout.readline()
        running = workers(process.pid)
        assert len(running)==2
        (os.killpg if end==signal.SIGINT else os.kill)(process.pid, end) # Ctrl-C goes to all of them
        process.wait(10)
        assert gone(running)
        if end==signal.SIGINT: assert process.stderr.read().count('Traceback')==1

def test_a_script_without_a_guard_is_told_so(tmp_path):
    with script(tmp_path, guard=False) as process: out, err = process.communicate(timeout=60)
    assert process.returncode==1 and "under `if __name__ == '__main__':`" in err.splitlines()[-1]

@pytest.mark.slow
def test_pool_workers_killed_at_random():
    "kill -9 of workers, 25 times at random moments: every job is done once, as if nothing had happened"
    rng, kills, job = random.Random(0), 0, nap(.05, '{}')
    groups = [[((g, i), job.format(f'{g}*1000+{i}')) for i in range(20)] for g in range(20)]
    outcomes = []
    for o in pool(retries=30).run(setup, groups):
        outcomes.append(o)
        if kills<25 and rng.random()<.1 and (running:=workers()):
            time.sleep(rng.uniform(0, .06))
            rng.choice(running).kill()
            kills += 1
    assert kills==25 and once(outcomes) and told(outcomes)=={(g, i): ('done', g*1000+i, None) for g in range(20) for i in range(20)}
    assert not workers()

# how many

def test_limits_of_containers(tmp_path):
    def write(name, text): (tmp_path/name).parent.mkdir(parents=True, exist_ok=True); (tmp_path/name).write_text(text)
    free, cores = psutil.virtual_memory().available, free_cores(tmp_path)
    assert free_memory(tmp_path)==pytest.approx(free, rel=.2)
    write('proc/self/cgroup', '0::/job/step\n')
    write('sys/fs/cgroup/job/step/memory.max', 'max\n')
    write('sys/fs/cgroup/job/memory.max', '1000000\n')
    write('sys/fs/cgroup/job/memory.current', '700000\n')
    write('sys/fs/cgroup/job/memory.stat', 'anon 1\ninactive_file 100000\n')
    write('sys/fs/cgroup/cpu.max', '150000 100000\n')
    assert free_memory(tmp_path)==400_000 and free_cores(tmp_path)==1
    write('proc/self/cgroup', '5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n')
    write('sys/fs/cgroup/memory/memory.limit_in_bytes', '500000\n')
    write('sys/fs/cgroup/memory/memory.usage_in_bytes', '200000\n')
    write('sys/fs/cgroup/cpu/cpu.cfs_quota_us', '-1\n')
    write('sys/fs/cgroup/cpu/cpu.cfs_period_us', '100000\n')
    assert free_memory(tmp_path)==300_000 and free_cores(tmp_path)==cores

def test_a_worker_that_does_not_fit_is_warned_of():
    with pytest.warns(UserWarning, match='a worker needs 1048576.0 GiB'): assert Pool(threads=1, memory=2**50).size()==1
    assert Pool(threads=1, memory=1).size()==free_cores() and Pool(workers=7, threads=3).size()==7

@pytest.mark.parametrize('wrong', [dict(workers=0), dict(threads=1.5), dict(memory=-1), dict(retries=-1), dict(workers=True)])
@pytest.mark.parametrize('kind', [Pool, Ray])
def test_mistakes_are_seen_at_once(kind, wrong):
    with pytest.raises(ValueError, match=f'`{next(iter(wrong))}` must be a whole number'): kind(**wrong)

def test_by_name():
    assert engine_from('pool', workers=2, threads=None)==Pool(workers=2) and engine_from(e:=Local(2)) is e
    for wrong, says in ((('pol',), "did you mean 'pool'"), (('local', dict(memory=3)), 'takes threads'), ((Local(), dict(threads=3)), 'must be given to the engine itself')):
        with pytest.raises(ValueError, match=says): engine_from(wrong[0], **dict(*wrong[1:]))
    with pytest.raises(TypeError, match='have a method `run`'): engine_from(3)

def test_places_in_a_cluster():
    assert fitting([dict(CPU=8., memory=10.), dict(CPU=2., memory=100.)], dict(CPU=2, memory=5))==3
    assert fitting([dict(CPU=8.)], dict(CPU=.5, GPU=0))==16 and fitting([dict(CPU=8.)], dict(CPU=1, GPU=1))==1

# Ray

def test_ray_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(ImportError, match=r"pip install 'compresscal\[ray\]'"): next(Ray().run(setup, [[(1, '1')]]))

@pytest.fixture
def cluster(monkeypatch):
    "Two machines of one core, as processes of this one"
    ray = pytest.importorskip('ray')
    monkeypatch.setenv('RAY_worker_niceness', '0') # Ray's workers give way to all others, which on a busy machine means that they never get on
    from ray.cluster_utils import Cluster
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, include_dashboard=False))
    try:
        cluster.second = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False, logging_level='ERROR')
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()

@pytest.mark.slow
def test_ray_with_a_machine_that_is_lost(cluster, tmp_path):
    "Two nodes, one killed in the middle: each job ends once, with the results of this process"
    flag = tmp_path/'both work'
    wait = f"[__import__('time').sleep(.05) for _ in iter(__import__('pathlib').Path({str(flag)!r}).exists, True)][:0]"
    groups = [[('wait', wait)], *mixed, *([((g, i), nap(.2, f'{g}*{i}')) for i in range(3)] for g in range(10, 16)), [('dies', "__import__('os')._exit(3)"), ('after it', '5')]]
    outcomes, lost = [], None
    for o in Ray(threads=1).run(setup, groups):
        outcomes.append(o)
        if len({o.where for o in outcomes})==2: flag.touch()
        if lost is None and flag.exists() and o.job==(10, 2) and o.state=='done':
            cluster.remove_node(cluster.second, allow_graceful=False)
            lost = len(outcomes)
    tries = Counter(o.job for o in outcomes if o.state=='started')
    assert tries.pop('dies')==2 and max(tries.values())==2 and lost<len(outcomes)-10 # a job of the lost machine was tried again
    found = told(outcomes)
    assert once(outcomes) and found['dies'][2][2]=='died' and found['after it'][1]==5
    here = told(Local(threads=1).run(setup, [g for g in groups if g[0][0]!='dies']))
    assert {j: v for j,v in found.items() if j not in ('dies', 'after it')}==here
    # the same crew, on what is left
    with pytest.raises(RuntimeError, match='could not convert'): list(Ray(threads=1, workers=1).run(partial(float, 'model'), [[(1, '1')]]))
    value = ends(Ray(threads=1, workers=1).run(setup, [[('value', "__import__('threading').Lock()"), ('fine', '1')]]))
    assert value['value'].state=='failed' and value['fine'].value==1
    outcomes = Ray(threads=1, workers=1).run(setup, [[(1, nap(60))]])
    assert next(outcomes).state=='started'
    outcomes.close()

def test_each_worker_of_a_pool_has_a_gpu_of_its_own(monkeypatch):
    "The variable alone is looked at: that `cuda` is then the GPU it names is CUDA's own promise"
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,5')
    seen = nap(.3, "(__import__('os').getpid(), __import__('os').environ['CUDA_VISIBLE_DEVICES'])")
    engine = Pool(workers=4, threads=1, gpus=1)
    assert engine.size()==2
    found = {o.value for o in ends(engine.run(setup, [[(i, seen)] for i in range(6)])).values()}
    assert sorted(gpu for _,gpu in found)==['2', '5'] and len({pid for pid,_ in found})==2

def test_the_gpu_of_a_dead_worker_goes_to_the_next(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '7')
    jobs = [[('dies', die), ('sees', "__import__('os').environ['CUDA_VISIBLE_DEVICES']")]]
    found = ends(Pool(workers=1, threads=1, retries=0, gpus=1).run(setup, jobs))
    assert found['dies'].error.kind=='died' and found['sees'].value=='7'

def test_more_gpus_than_there_are_is_refused(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
    with pytest.raises(ValueError, match='visible, 1, got 2'): Pool(gpus=2)
