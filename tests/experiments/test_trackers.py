"What tracking tools are told of a study, read back with the tools; each test is skipped where its tool is not installed."
import json, warnings
import pytest
from compresscal import Study
from compresscal.experiments.callbacks import StudyCallback
from compresscal.experiments.trackers import callback_from

pytestmark = pytest.mark.usefixtures('one_thread')

class Fails(StudyCallback):
    def __init__(self): self.calls = []
    def fail(self, method):
        self.calls.append(method)
        raise RuntimeError(method)
    def on_start(self, start): self.fail('start')
    def on_cell(self, event): self.fail('cell')
    def on_end(self, results): self.fail('end')

def asked(checkpoint, **changes):
    how = dict(methods=['magnitude:0.5', 'rtn:4,group_size=none'], sources=['docs'], evaluations=['code'], n_sets=1, n_sequences=2, length=24, n_evaluation=2, replicates=0)
    return Study(models=[str(checkpoint)], **how|changes)

def test_one_that_fails_loses_nothing(tiny_checkpoint, tmp_path):
    failing, seen = Fails(), []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        results = asked(tiny_checkpoint).run(tmp_path/'study', callbacks=[failing, seen.append], progress=False)
    assert failing.calls==['start', 'cell', 'cell', 'cell', 'end'] and [o.done for o in seen]==[1, 2, 3]
    assert sum('callback Fails failed in on_start' in str(o.message) for o in said)==1 and not any('on_cell' in str(o.message) for o in said)
    undisturbed = asked(tiny_checkpoint).run(tmp_path/'other', progress=False)
    assert undisturbed.rows==results.rows and (tmp_path/'other'/'results.csv').read_bytes()==(tmp_path/'study'/'results.csv').read_bytes()

def test_the_end_is_said_where_a_study_stops(tiny_checkpoint, tmp_path):
    ends = []
    class Stops(StudyCallback):
        def on_cell(self, event): raise KeyboardInterrupt
        def on_end(self, results): ends.append(results)
    with pytest.raises(KeyboardInterrupt): asked(tiny_checkpoint).run(tmp_path/'study', callbacks=[Stops()], progress=False)
    assert ends==[None] and len([*(tmp_path/'study'/'cells').iterdir()])==1 # what was finished is kept
    assert len(asked(tiny_checkpoint).run(tmp_path/'study', progress=False).rows)>=3

def test_a_missing_tool_is_said_before_work(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr('compresscal.experiments.trackers.find_spec', lambda name: None)
    for name in ('tensorboard', 'wandb', 'mlflow'):
        with pytest.raises(ImportError, match=rf"pip install 'compresscal\[{name}\]'"): asked(tiny_checkpoint).run(tmp_path/'study', callbacks=name)
    assert not (tmp_path/'study').exists()

def values(results): return {(r['method'], r['metric']): r['value'] for r in results.rows}

def test_tensorboard(tiny_checkpoint, tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    results = asked(tiny_checkpoint).run(tmp_path/'study', callbacks='tensorboard', progress=False)
    run, = (tmp_path/'study'/'tensorboard').iterdir()
    read = EventAccumulator(str(run)).Reload()
    for (method,metric),value in values(results).items():
        tag, = [o for o in read.Tags()['scalars'] if o.startswith(f'code/{metric}/') and f'/{method}/' in o]
        assert read.Scalars(tag)[0].value==pytest.approx(value, rel=1e-6)
    assert [o.value for o in read.Scalars('study/cells')]==[1, 2, 3]

def logged(data):
    "The records in a log of wandb: blocks of 32 KiB, after 7 bytes of its own, hold pieces with their length and kind"
    at, held = 7, b''
    while at+7<=len(data):
        left = 32768-at%32768
        size, kind = int.from_bytes(data[at+4:at+6], 'little'), data[at+6]
        if left<7 or not kind: at += left
        else:
            held += data[at+7:at+7+size]
            at += 7+size
            if kind in (1, 4): yield held
            held = b'' if kind in (1, 4) else held

def test_wandb(tiny_checkpoint, tmp_path):
    pytest.importorskip('wandb')
    results = asked(tiny_checkpoint).run(tmp_path/'study', callbacks='wandb:project=mine', progress=False)
    log, = (tmp_path/'study'/'wandb').glob('offline-run-*/run-*.wandb')
    from wandb.proto.wandb_internal_pb2 import Record
    history, project = [], ''
    for data in logged(log.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        project = project or record.run.project
        if record.HasField('history'): history.append({o.key or '/'.join(o.nested_key): json.loads(o.value_json) for o in record.history.item})
    found = {k: v for row in history for k,v in row.items()}
    assert project=='mine' and len(history)==3
    for (method,metric),value in values(results).items(): assert value in [v for k,v in found.items() if f'/{method}/' in k and f'/{metric}/' in k]

def test_mlflow(tiny_checkpoint, tmp_path):
    pytest.importorskip('mlflow')
    from mlflow import MlflowClient
    results = asked(tiny_checkpoint).run(tmp_path/'study', callbacks=['mlflow:experiment=mine'], progress=False)
    client = MlflowClient(f'sqlite:///{tmp_path/"study"/"mlflow.db"}')
    run, = client.search_runs([client.get_experiment_by_name('mine').experiment_id])
    assert run.info.status=='FINISHED' and run.data.tags['cells']=='3 of 3' and run.data.params['n_sets']=='1'
    assert sorted(run.data.metrics.values())==pytest.approx(sorted(values(results).values()))
