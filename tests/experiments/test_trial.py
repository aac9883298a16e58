"A trial adds up what it tried, counts out what is finished, and leaves nothing behind"
import os, tempfile
from dataclasses import dataclass, replace

import pytest
import torch
from small_studies import sets, tokens

from compresscal.calibration.calibration_set import CalibrationSet
from compresscal.compression.estimate import RunEstimate
from compresscal.compression.methods import Magnitude, Wanda
from compresscal.experiments import trial as trial_module
from compresscal.experiments.engines import Local, Pool, Ray
from compresscal.experiments.measures import Measure, SummariesMeasure, parse_measure
from compresscal.experiments.results import Results
from compresscal.experiments.store import Store
from compresscal.experiments.study import Study
from compresscal.experiments.trial import MeasureTrial, TriedMeasure, try_sizes

@pytest.fixture
def small(tiny_model, tiny_tokenizer):
    "Two methods, two sources of two sets, one held-out text: six compressed models with the dense one, and no null controls"
    return Study({'tiny': (tiny_model, tiny_tokenizer)}, [Magnitude(.5), Wanda(.5)], {'a': sets(1, 2), 'b': sets(2, 2)},
                 evaluations={'text': CalibrationSet.from_tokens(tokens(99))}, replicates=0)

@pytest.fixture(autouse=True)
def plain_pictures(monkeypatch): monkeypatch.setattr(Results, 'pictures', lambda results: {})

@pytest.fixture(autouse=True)
def nothing_left(tmp_path, monkeypatch):
    "Temporary files go to a folder of their own, which must be empty in the end"
    place = tmp_path/'temporary'
    place.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(place))
    yield
    assert [*place.iterdir()]==[]

def stops_after(jobs):
    class Stopped(Local):
        def run(self, setup, groups):
            for i,o in enumerate(super().run(setup, groups)):
                if i==2*jobs: raise InterruptedError('stopped here')
                yield o
    return Stopped()

def files(folder): return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob('*')}
def times(found): return {o['part']: o['times'] for o in found.rows()[:-1]}

GIB = 2**30

@pytest.fixture
def fakes(monkeypatch):
    "Every probe takes what it is told to: nothing is compressed or measured, and no table is written"
    result = dict(metrics=dict(perplexity=9.), counts=dict(documents=4), documents=dict(nats=[1.]*4))
    measured = TriedMeasure(4, RunEstimate(3., 2., 2*GIB, 0), RunEstimate(5., 4., 3*GIB, 0), RunEstimate(.5, .25, 0, 0), GIB//2, {True: result, False: result}, 4)
    monkeypatch.setattr(trial_module, 'try_compressing', lambda worker, job, device: RunEstimate(8., 7. if job.calibration else 6., 4*GIB, 0))
    monkeypatch.setattr(MeasureTrial, 'run', lambda self: measured)
    monkeypatch.setattr(trial_module, 'try_keeping', lambda store, what, result, device: (store.put(dict(what=what), result), RunEstimate(0., 1., 0, 1000)))
    monkeypatch.setattr(trial_module, 'try_starting', lambda: RunEstimate(9., 10., GIB, 0))
    monkeypatch.setattr(trial_module.StudyTrial, 'write', lambda self, folder: (folder/'page').write_text('x'*50))

def of(found, part): return next(o for o in found.rows() if o['part']==part)

def test_parts_are_added_up(small, tmp_path, fakes):
    found = small.estimate(tmp_path/'s')
    assert (found.cells, found.finished, found.jobs, found.workers)==(6, 0, 6, 1)
    assert times(found)=={'prepare models and text': 1, 'load the dense model': 1, 'compress Magnitude 50%': 1, 'compress Wanda 50%': 4, 'measure text': 6, 'make tables and figures': 1}
    assert [of(found, f'compress {o}')['cpu_seconds'] for o in ('Magnitude 50%', 'Wanda 50%')]==[6., 4*7.]
    assert [of(found, f'compress {o}')['seconds'] for o in ('Magnitude 50%', 'Wanda 50%')]==[8., 4*8.]
    assert of(found, 'measure text')['cpu_seconds']==(2.+1.)+5*(4.+1.) # the dense model, and five others; a record of each
    assert (of(found, 'measure text')['seconds'], of(found, 'measure text')['disk'])==(3.+5*5., 6000)
    assert of(found, 'compress Wanda 50%')['memory']==4*GIB+GIB//2 # with what is remembered of the dense model
    assert found.total.memory==4*GIB+GIB//2
    assert of(found, 'make tables and figures')['disk']==50
    assert found.total.cpu_seconds==sum(o.each.cpu_seconds*o.runs for o in found.parts)

def test_workers_share_jobs(small, tmp_path, fakes):
    found = small.estimate(tmp_path/'s', engine=Pool(workers=4, threads=1))
    assert (found.workers, of(found, 'start workers')['times'], of(found, 'load the dense model')['times'])==(4, 4, 4)
    assert (of(found, 'start workers')['cpu_seconds'], of(found, 'start workers')['seconds'])==(40., 9.)
    assert of(found, 'compress Wanda 50%')['seconds']==pytest.approx(4*8.*2/6) # six jobs on four workers: two rounds
    model, _ = small.models['tiny']
    weights = sum(p.nbytes for p in model.parameters())
    alone = small.estimate(tmp_path/'s')
    assert of(found, 'prepare models and text')['disk']-of(alone, 'prepare models and text')['disk']==weights # written for the workers
    assert small.estimate(tmp_path/'s', engine=Pool(workers=40, threads=1)).workers==6 # no more than there are jobs

def test_a_cluster_is_not_asked(small, tmp_path, fakes):
    assert small.estimate(tmp_path/'s', engine=Ray(workers=2)).notes==[]
    found = small.estimate(tmp_path/'s', engine=Ray())
    assert found.workers==1 and 'not known' in found.notes[0]

def test_finished_cells_cost_nothing(small, tmp_path):
    folder = tmp_path/'s'
    with pytest.raises(InterruptedError): small.run(folder, engine=stops_after(3))
    before = files(folder)
    found = small.estimate(folder)
    assert (found.cells, found.finished, found.jobs)==(6, 3, 3)
    assert times(found)['measure text']==3 and of(found, 'compress Wanda 50%')['times']+times(found).get('compress Magnitude 50%', 0)==3
    assert 'load the dense model' in times(found) and files(folder)==before
    small.run(folder)
    done, before = small.estimate(folder), files(folder)
    assert (done.finished, done.jobs, times(done))==(6, 0, {'prepare models and text': 1, 'make tables and figures': 1})
    assert files(folder)==before

def test_a_measure_is_finished_by_itself(small, tmp_path):
    small.run(tmp_path/'s')
    more = replace(small, evaluations=dict(small.evaluations, again=CalibrationSet.from_tokens(tokens(98))))
    found = more.estimate(tmp_path/'s')
    assert (found.cells, found.finished, found.jobs)==(12, 6, 6)
    assert {k: v for k,v in times(found).items() if k.startswith('measure')}=={'measure again': 6}

def test_nothing_is_made(small, tmp_path):
    for engine in ('local', Pool(workers=2, threads=1)):
        small.estimate(tmp_path/'not'/'there', engine=engine)
        assert not (tmp_path/'not').exists()

def test_a_broken_trial_leaves_nothing(small, tmp_path, monkeypatch):
    model, _ = small.models['tiny']
    before = {k: v.clone() for k,v in model.state_dict().items()}
    def stop(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(trial_module, 'try_keeping', stop)
    with pytest.raises(KeyboardInterrupt): small.estimate(tmp_path/'s')
    assert not (tmp_path/'s').exists() and all(torch.equal(v, before[k]) for k,v in model.state_dict().items())

def test_the_model_is_as_before(small, tmp_path):
    model, _ = small.models['tiny']
    before = {k: v.clone() for k,v in model.state_dict().items()}
    small.estimate(tmp_path/'s')
    assert all(torch.equal(v, before[k]) for k,v in model.state_dict().items())

def test_a_folder_of_other_results_is_refused(small, tmp_path):
    (tmp_path/'results.csv').write_text('mine')
    with pytest.raises(ValueError, match='`out` must be a new folder'): small.estimate(tmp_path)

def test_a_study_at_a_url_is_read(small, tmp_path, monkeypatch):
    import fsspec
    monkeypatch.setenv('COMPRESSCAL_CACHE', str(tmp_path/'cache'))
    place, fs = 'memory://trial/study', fsspec.filesystem('memory')
    with pytest.raises(InterruptedError): small.run(place, engine=stops_after(2))
    monkeypatch.setenv('COMPRESSCAL_CACHE', str(tmp_path/'another'))
    before = {p: fs.cat(p) for p in fs.find('/trial/study')}
    assert small.estimate(place).finished==2
    assert {p: fs.cat(p) for p in fs.find('/trial/study')}==before and not (tmp_path/'another').exists()

def test_text_of_the_model_is_not_written(small, tmp_path, monkeypatch):
    asked = []
    def writing(model, tokenizer, recipe, sequences, length):
        asked.append((sequences, length))
        return RunEstimate(100., 90., GIB, 0)
    monkeypatch.setattr(trial_module, 'try_writing', writing)
    written = replace(small, sources=['self', 'random=0.5+self=0.5', 'weighted:random=0.9+self=0.1'], n_sets=2, n_sequences=6, length=24, methods=[Wanda(.5)])
    found = written.estimate(tmp_path/'s')
    assert asked==[(12, 24), (6, 24), (6, 24)] and times(found)['compress Wanda 50%']==6
    assert 270<=of(found, 'prepare models and text')['cpu_seconds']<280

def test_text_that_was_written_costs_nothing(small, tmp_path, monkeypatch):
    written = replace(small, sources=['self'], n_sets=2, n_sequences=4, length=24, methods=[Wanda(.5)])
    with pytest.raises(InterruptedError): written.run(tmp_path/'s', engine=stops_after(2))
    def writing(*args): raise AssertionError('this is there')
    monkeypatch.setattr(trial_module, 'try_writing', writing)
    found = written.estimate(tmp_path/'s')
    assert (found.finished, found.jobs)==(2, 1)

def test_models_with_the_same_weights_are_compressed_once(small, tmp_path, fakes):
    model = small.models['tiny']
    found, again = (replace(small, models=o).estimate(tmp_path/'s') for o in ({'a': model}, {'a': model, 'b': model}))
    assert (found.jobs, found.cells)==(again.jobs, again.cells)
    assert times(again)['prepare models and text']==2

@dataclass(frozen=True)
class Whole(Measure):
    "A measure that cannot be cut"
    asked:tuple=()
    name = 'whole'
    def settings(self): return dict(measure='whole')
    def measure(self, model, tokenizer, text, reference=None):
        calls.append(1)
        return dict(metrics=dict(zeros=1.), counts={}, documents={})

calls = []

def test_what_cannot_be_cut_is_measured_once(small, tmp_path):
    calls.clear()
    found = replace(small, evaluations=dict(whole=Whole())).estimate(tmp_path/'s')
    assert calls==[1] and times(found)['measure whole']==6

def test_a_result_that_no_record_can_hold_is_found_now(small, tmp_path):
    class Wrong(Whole):
        def measure(self, model, tokenizer, text, reference=None): return dict(metrics=dict(a=torch.ones(1)), counts={}, documents={})
    with pytest.raises(TypeError, match="'wrong' must give numbers"): replace(small, evaluations=dict(wrong=Wrong())).estimate(tmp_path/'s')

def test_tables_that_fail_are_left_out(small, tmp_path, monkeypatch):
    def broken(self, folder): raise ZeroDivisionError('of equal numbers')
    monkeypatch.setattr(trial_module.StudyTrial, 'write', broken)
    found = small.estimate(tmp_path/'s')
    assert 'make tables and figures' not in times(found) and 'ZeroDivisionError: of equal numbers' in found.notes[0]

def test_sizes_of_a_slow_model():
    "A first time that is too long is not repeated"
    class Slow:
        def __init__(self): self.asked = []
        def __call__(self, n): self.asked.append(n)
    quick, slow = Slow(), Slow()
    try_sizes(quick, 8, 20, torch.device('cpu'))
    assert quick.asked==[1, 1, 8, 16, 20]
    try_sizes(slow, 8, 20, torch.device('cpu'), most=0.)
    assert slow.asked==[1]

def test_parts_of_measures_are_of_the_same_documents():
    whole = parse_measure('summaries:docstrings,n=12')
    part, _ = whole.part(5)
    assert isinstance(part, SummariesMeasure) and part.settings()!=whole.settings()
    from compresscal.summaries.summary_sets import open_summary_set
    ids = [[o.id for o in open_summary_set('docstrings', n)] for n in (12, 5)]
    assert ids[0][:5]==ids[1]
