"Our files are those of lm-evaluation-harness, read with its own code; its files are read by us."
import copy, json, re
import pytest
from compresscal.evaluation.harness_files import harness_found, write_harness_files
from compresscal.evaluation.paired_answers import compare_samples, read_answers, row_hash, samples_in
from compresscal.evaluation.tasks import TaskScore, evaluate_tasks, load_task
from compresscal.commands.cli import main

pytestmark = pytest.mark.usefixtures('one_thread')
rows = [dict(question=f'Letter {i%7} and {i} is', choices=['good', 'bad', f'c{i}'], label=i%3) for i in range(9)]

@pytest.fixture
def scores(tiny_model, tiny_tokenizer):
    return evaluate_tasks(tiny_model, tiny_tokenizer, ['mine', 'continuation_docs'], files=dict(mine=rows), limit=8, progress=False)

def theirs(model, tokenizer, folder, name):
    "What `lm_eval --output_path --log_samples` does, with the harness's own model"
    from lm_eval.evaluator import evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
    task, = load_task('mine', rows)
    task.set_config('num_fewshot', 0)
    task.set_fewshot_seed(0)
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.log_experiment_args('hf', dict(pretrained=name), None, None, False)
    found = evaluate(HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=4), dict(tasks=dict(mine=task)), limit=8)
    samples = found.pop('samples')
    tracker.save_results_aggregated(results=found, samples=samples)
    tracker.save_results_samples(task_name='mine', samples=samples['mine'])
    return found

def lines(path): return [json.loads(o) for o in path.read_text().splitlines()]

def test_the_same_files(tiny_model, tiny_tokenizer, scores, tmp_path):
    pytest.importorskip('accelerate')
    theirs(tiny_model, tiny_tokenizer, tmp_path/'theirs', 'tiny/model')
    write_harness_files(scores['mine'], tmp_path/'ours', 'tiny/model', files=dict(mine=rows))
    names = [sorted(re.sub(r'_[\dT.:-]+(?=\.json)', '_TIME', str(o.relative_to(tmp_path/k))) for o in (tmp_path/k).rglob('*.json*')) for k in ('theirs', 'ours')]
    assert names[0]==names[1]==['tiny__model/results_TIME.json', 'tiny__model/samples_mine_TIME.jsonl']
    a, b = (lines(samples_in(tmp_path/k)['mine']) for k in ('theirs', 'ours'))
    for x,y in zip(a, b, strict=True):
        nats = [[float(o) for o,_ in (r[0] for r in s.pop('resps'))] for s in (x, y)]
        assert nats[1]==pytest.approx(nats[0], abs=1e-4)
        assert [o[1] for o in x['filtered_resps']]==[o[1] for o in y['filtered_resps']] # would the model write it?
        x.pop('filtered_resps'), y.pop('filtered_resps')
        assert x==y
    a, b = (json.loads(next((tmp_path/k).rglob('results_*.json')).read_text()) for k in ('theirs', 'ours'))
    for k in ('versions', 'n-shot', 'higher_is_better', 'n-samples', 'task_hashes', 'model_name', 'model_name_sanitized'): assert a[k]==b[k], k
    assert a['results'].keys()==b['results'].keys() and b['results']['mine']==pytest.approx(a['results']['mine'])
    assert a.keys()-b.keys()==set() and a['configs']['mine'].keys()-b['configs']['mine'].keys()<={'custom_dataset'}

def test_read_back_with_their_code(scores, tmp_path):
    from lm_eval.utils import get_file_datetime, get_file_task_name, get_latest_filename, get_results_filenames, get_sample_results_filenames, make_table
    written = [str(o) for o in write_harness_files(scores, tmp_path, 'tiny', files=dict(mine=rows))]
    assert [get_file_task_name(o.rpartition('/')[2]) for o in get_sample_results_filenames(written)]==['continuation_docs', 'mine']
    results, = get_results_filenames(written)
    assert get_file_datetime(get_latest_filename(written)) in results
    table = make_table(json.loads(open(results).read()))
    for name in ('mine', 'continuation_docs'):
        for metric in ('acc', 'acc_norm'): assert re.search(rf'{name if metric=="acc" else ""}.*\|{metric} *\|.*{scores[name].metrics[metric]:.3f}', table), table

def test_as_a_data_set(scores, tmp_path):
    "The reason for which the harness makes texts of its answers"
    from datasets import load_dataset
    path = write_harness_files(scores['mine'], tmp_path, 'tiny', files=dict(mine=rows))[1]
    found = load_dataset('json', data_files=str(path), split='train', cache_dir=str(tmp_path/'cache'))
    assert found['acc']==[int(o) for o in scores['mine'].documents['acc']] or [float(o) for o in found['acc']]==scores['mine'].documents['acc']

def test_a_hash_of_a_row_is_theirs(scores, tmp_path):
    path = write_harness_files(scores['mine'], tmp_path, 'tiny', files=dict(mine=rows))[1]
    for o in lines(path): assert row_hash({k: v for k,v in o.items() if k!='doc_hash'})==o['doc_hash']

def test_other_kinds_of_tasks(tiny_model, tiny_tokenizer, shared):
    "A task whose answer is what the model would write, and one of multiple choice with solved examples"
    for name,place,shown in (('lambada_openai', 'eval_lambada/lambada_test.jsonl', 0), ('boolq', 'eval_boolq/boolq_dev.jsonl', 2)):
        how = dict(files={name: shared/'data'/place}, limit=3, n_fewshot=shown, seed=5, progress=False)
        found = evaluate_tasks(tiny_model, tiny_tokenizer, name, **how)[name]
        again = harness_found(found, shared/'data'/place, bootstrap_iters=0)['results'][name]
        for k,v in found.metrics.items(): assert again[f'{k},none']==pytest.approx(v)

def test_a_record_of_a_study(tiny_model, tiny_tokenizer, scores, tmp_path):
    from compresscal import parse_measure
    (tmp_path/'mine.jsonl').write_text(''.join(json.dumps(o)+'\n' for o in rows))
    measure = parse_measure(f'task:mine,file={tmp_path/"mine.jsonl"},limit=8')
    record = measure.measure(tiny_model, tiny_tokenizer)
    again = TaskScore('mine', **json.loads(json.dumps(record)), settings=measure.settings())
    found, expected = harness_found(again, tmp_path/'mine.jsonl'), harness_found(scores['mine'], rows)
    assert found['results']==expected['results'] and found['samples']==expected['samples']

def test_nothing_is_left_where_writing_fails(scores, tmp_path, monkeypatch):
    from lm_eval.loggers import EvaluationTracker
    monkeypatch.setattr(EvaluationTracker, 'save_results_samples', lambda *args, **kwargs: None)
    with pytest.raises(OSError, match='1 of 2 files'): write_harness_files(scores['mine'], tmp_path/'out', 'tiny', files=dict(mine=rows))
    assert not [*(tmp_path/'out').iterdir()]

def test_two_models_compared_from_a_shell(tiny_model, tiny_tokenizer, scores, tmp_path, capsys):
    write_harness_files(scores, tmp_path, 'dense', files=dict(mine=rows))
    for p in tiny_model.parameters(): p.data.neg_()
    other = evaluate_tasks(tiny_model, tiny_tokenizer, ['mine', 'continuation_docs'], files=dict(mine=rows), limit=8, progress=False)
    write_harness_files(other, tmp_path, 'other', files=dict(mine=rows))
    assert main(['compare', str(tmp_path/'dense'), str(tmp_path/'other'), '--json'])==0
    found = {o['task']: o for o in json.loads(capsys.readouterr().out)['tasks']}
    for name in ('mine', 'continuation_docs'):
        before, after = (o[name].documents['acc'] for o in (scores, other))
        assert (found[name]['lost'], found[name]['gained'])==(sum(a>b for a,b in zip(before, after)), sum(a<b for a,b in zip(before, after)))
    assert main(['compare', str(tmp_path/'dense'), str(tmp_path)])==2
    assert 'must be the folder of one model' in capsys.readouterr().err

def test_several_ways_to_read_an_answer(tmp_path):
    of = lambda i, way, right: json.dumps(dict(doc_id=i, doc=i, filter=way, metrics=['exact_match'], exact_match=right))
    path = tmp_path/'samples_gsm8k_2026-01-01T00-00-00.jsonl'
    path.write_text('\n'.join([of(0, 'strict', 0), of(1, 'strict', 1), of(0, 'flexible', 1.), of(1, 'flexible', 1.)]))
    assert read_answers(path).correct.tolist()==[False, True] and read_answers(path, filter='flexible').correct.all()
    assert compare_samples(path, path).flips['gsm8k'].p==1
