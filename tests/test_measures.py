"Names, settings that decide a result, and results of one form"
import copy, json, pickle, sys
from dataclasses import dataclass
import pytest, torch
from compresscal.calibration import CalibrationSet
from compresscal.evaluation import perplexity
from compresscal.fidelity import fidelity
from compresscal.measures import (FidelityMeasure, GPTQPerplexityMeasure, Measure, PerplexityMeasure, TaskMeasure, file_content,
                                  parse_measure)
from test_evaluation import rows
from test_fidelity import disturb

pytestmark = pytest.mark.usefixtures('one_thread')
NAMES = {'docs': PerplexityMeasure('docs'), 'kl:code': FidelityMeasure('code'), 'kl:self:carlini': FidelityMeasure('self:carlini'),
    'gptq:wikitext': GPTQPerplexityMeasure('wikitext'), 'gptq:docs,length=128': GPTQPerplexityMeasure('docs', 128), 'task:piqa': TaskMeasure('piqa'),
    'task:arc_easy,n_fewshot=5,limit=100': TaskMeasure('arc_easy', n_fewshot=5, limit=100), 'task:boolq,seed=3,bos=True': TaskMeasure('boolq', seed=3, bos=True),
    'wikimedia/wikipedia:20231101.en': PerplexityMeasure('wikimedia/wikipedia:20231101.en'), 'kl:allenai/c4:en': FidelityMeasure('allenai/c4:en')}

@pytest.mark.parametrize('name', NAMES)
def test_names(name):
    "A measure is what its name says, and is called what it was read from"
    m = parse_measure(name)
    assert m==NAMES[name] and m.name==name and hash(m)==hash(NAMES[name]) and pickle.loads(pickle.dumps(m))==m
    assert m.needs_dense==name.startswith('kl') and m.text==(None if name.startswith(('gptq','task')) else name.removeprefix('kl:'))

def test_other_ways_to_say_it(tmp_path):
    path = tmp_path/'my,text=1.txt'
    path.write_text('text')
    assert parse_measure('perplexity:docs')==parse_measure('docs')==parse_measure(PerplexityMeasure('docs'))
    assert parse_measure(' task:piqa , limit = 3'.strip())==TaskMeasure('piqa', limit=3)
    assert parse_measure(path)==PerplexityMeasure(str(path)) and parse_measure(f'kl:{path}')==FidelityMeasure(str(path))
    assert parse_measure('task:piqa,batch_size=2').batch_size==2 and parse_measure('task:piqa,batch_size=2')==TaskMeasure('piqa')
    assert parse_measure('mine', texts=['mine'])==PerplexityMeasure('mine') and parse_measure('kl:mine', texts=['mine'])==FidelityMeasure('mine')
    assert parse_measure('kl:docs', texts=['kl:docs'])==PerplexityMeasure('kl:docs') # the caller's own name comes first
    assert parse_measure('*.txt').text=='*.txt'

@pytest.mark.parametrize('name,message', [('dosc', "did you mean 'docs'"), ('kl:dosc', "did you mean 'docs'"), ('lk:docs', "did you mean 'kl:docs'"),
    ('tasks:piqa', "did you mean 'task:piqa'"), ('task:', "such as 'task:arc_easy'"), ('kl:', "such as 'kl:docs'"), ('task:piqa,limits=4', "did you mean 'limit'"),
    ('gptq:wikitext,stride=4', "settings of 'gptq', got 'stride'"), ('task:piqa,limit=many', "whole number of at least 1, got 'many'"), ('task:piqa,n_fewshot=-1', "at least 0, got -1"),
    ('task:piqa,limit=1.5', "got 1.5"), ('task:piqa,file=nowhere.jsonl', "must be a file, got 'nowhere.jsonl'"), ('self:carlini', "text that people wrote"),
    ('perplexity:random', "text that people wrote"), ('docs=1+code=1', "text that people wrote"), ('gptq:self', "text that people wrote"), ('gptq:docs,length=1', "at least 2, got 1")])
def test_what_is_refused(name, message):
    with pytest.raises(ValueError, match=message): parse_measure(name)

def test_only_names_and_measures():
    with pytest.raises(TypeError, match="a name or a measure, got int"): parse_measure(3)
    for kind in (PerplexityMeasure, FidelityMeasure, TaskMeasure, GPTQPerplexityMeasure):
        with pytest.raises(TypeError): kind()

# settings

def test_settings_are_json_and_tell_measures_apart():
    pytest.importorskip('lm_eval')
    measures = [m for m in NAMES.values() if m.text is None]+[PerplexityMeasure('docs'), FidelityMeasure('docs'), TaskMeasure('piqa', limit=3)]
    said = [json.dumps(m.settings(), sort_keys=True) for m in measures]
    assert len(set(said))==len(measures)
    assert PerplexityMeasure('docs').settings()==PerplexityMeasure('code').settings() # the text's own hash tells them apart
    assert TaskMeasure('piqa', batch_size=2).settings()==TaskMeasure('piqa').settings()

def write_rows(path, n=6):
    path.write_text('\n'.join(json.dumps(dict(question=f"number {i} and", choices=["then some more", "zzzz"], label=i%2)) for i in range(n)))
    return path

def test_a_file_decides_by_its_content(tmp_path):
    pytest.importorskip('lm_eval')
    path = write_rows(tmp_path/'a.jsonl')
    task,stream = TaskMeasure('mine', file=str(path)),GPTQPerplexityMeasure(str(path))
    before = task.settings(),stream.settings()
    assert str(tmp_path) not in json.dumps(before)
    (moved:=tmp_path/'elsewhere').mkdir()
    (moved/'b.jsonl').write_bytes(path.read_bytes())
    assert TaskMeasure('mine', file=str(moved/'b.jsonl')).settings()==before[0] and GPTQPerplexityMeasure(str(moved/'b.jsonl')).settings()==before[1]
    path.write_text(path.read_text().replace('number 3', 'number 7')) # of the same size
    assert task.settings()!=before[0] and stream.settings()!=before[1]
    assert file_content(tmp_path/'none')==[] and len(file_content(tmp_path))==2 and len(file_content(tmp_path/'*.jsonl'))==1

# results

def check_form(result, n):
    assert list(result)==['metrics','counts','documents'] and json.loads(json.dumps(result))==result
    assert all(type(v) is float for v in result['metrics'].values()) and result['counts']['documents']==n
    assert {len(v) for v in result['documents'].values()}=={n}

def test_perplexity(tiny_model, tiny_tokenizer):
    text = CalibrationSet.from_tokens(rows(4, 20, 259))
    found,p = PerplexityMeasure('mine').measure(tiny_model, tiny_tokenizer, text),perplexity(tiny_model, text, tiny_tokenizer)
    check_form(found, 4)
    assert list(found['metrics'])[:2]==['perplexity','bits_per_byte'] and found['metrics']['perplexity']==p.value and found['documents']['nats']==list(p.window_nats)
    assert found['counts']['tokens']==p.tokens and PerplexityMeasure('mine').reference(tiny_model, tiny_tokenizer, text) is None
    assert list(PerplexityMeasure('mine').measure(tiny_model, None, text)['metrics'])==['perplexity']

def test_gptq_perplexity(tiny_model, tiny_tokenizer, tmp_path):
    (tmp_path/'lines.txt').write_text("A line of text.\n\nAnother one.\n"*30)
    m = parse_measure(f"gptq:{tmp_path/'lines.txt'},length=50")
    found = m.measure(tiny_model, tiny_tokenizer, None, m.reference(tiny_model, tiny_tokenizer, None))
    p = perplexity(tiny_model, tmp_path/'lines.txt', tiny_tokenizer, protocol='gptq', length=50)
    check_form(found, len(p.window_nats))
    assert found['metrics']['perplexity']==p.value

def test_fidelity(tiny_model, tiny_tokenizer):
    text,other,m = CalibrationSet.from_tokens(rows(4, 20, 259)),disturb(tiny_model),FidelityMeasure('mine')
    reference = m.reference(tiny_model, tiny_tokenizer, text)
    found,f = m.measure(other, tiny_tokenizer, text, reference),fidelity(tiny_model, other, text)
    check_form(found, 4)
    assert found['metrics']==dict(kl=f.kl, agreement=f.agreement, flips=f.flips) and sum(found['documents']['flips'])==round(f.flips*f.tokens)
    assert m.measure(tiny_model, tiny_tokenizer, text, reference)['metrics']==dict(kl=0., agreement=1., flips=0.)
    with pytest.raises(ValueError, match="made of the dense model"): m.measure(other, tiny_tokenizer, text)
    assert 'written_by_model' not in found['counts']
    written = CalibrationSet.from_tokens(text.tokens, kind='self')
    assert m.measure(other, tiny_tokenizer, written, m.reference(tiny_model, tiny_tokenizer, written))['counts']['written_by_model']==1

def test_task_from_a_file(tiny_model, tiny_tokenizer, tmp_path):
    pytest.importorskip('lm_eval')
    m = TaskMeasure('mine', file=str(write_rows(tmp_path/'mine.jsonl')), limit=5)
    m.check(tiny_model, tiny_tokenizer)
    found = m.measure(tiny_model, tiny_tokenizer)
    check_form(found, 5)
    assert list(found['metrics'])[0]=='acc' and found['counts']['chance']==.5 and m.reference(tiny_model, tiny_tokenizer, None) is None
    assert TaskMeasure('mine', file=m.file, limit=5, batch_size=2).measure(tiny_model, tiny_tokenizer)['metrics']==found['metrics']
    right = [float(max(range(2), key=l.__getitem__)==g) for l,g in zip(found['documents']['logliks'], found['documents']['gold'])]
    assert found['documents']['acc']==right

def test_task_is_checked_early(tmp_path, monkeypatch):
    pytest.importorskip('lm_eval')
    with pytest.raises(ValueError, match="did you mean 'piqa'"): TaskMeasure('pipqa').check()
    with pytest.raises(ValueError, match="a single task, got the group 'mmlu'"): TaskMeasure('mmlu').check()
    (tmp_path/'bad.jsonl').write_text('{"question": "a"}')
    with pytest.raises(ValueError, match="has no column"): TaskMeasure('mine', file=str(tmp_path/'bad.jsonl')).check()

def test_a_missing_harness_says_what_to_install(monkeypatch):
    from compresscal import measures
    measures._task_settings.cache_clear()
    monkeypatch.setitem(sys.modules, 'lm_eval', None)
    monkeypatch.setitem(sys.modules, 'lm_eval.tasks', None)
    assert parse_measure('task:piqa')==TaskMeasure('piqa') # a name can be read without it
    with pytest.raises(ImportError, match=r"pip install 'compresscal\[eval\]'"): TaskMeasure('piqa').check()

def test_a_real_task(shared):
    pytest.importorskip('lm_eval')
    from compresscal.models import load_model
    model,tokenizer = load_model(shared/'data'/'model_stories260K'/'transformers')
    m = parse_measure(f"task:arc_easy,limit=20,file={shared/'data'/'eval_arc'/'ARC-Easy.jsonl'}")
    m.check()
    found = m.measure(model, tokenizer)
    check_form(found, 20)
    assert 0<=found['metrics']['acc']<=1 and .2<found['counts']['chance']<.34

# one's own

@dataclass(frozen=True)
class Largest(Measure):
    "A measure somebody else wrote"
    text = 'docs'
    name = 'largest'
    def settings(self): return dict(measure='largest')
    def measure(self, model, tokenizer, text, reference=None): return dict(metrics=dict(largest=1.), counts=dict(documents=0), documents={})

def test_own_measures():
    assert parse_measure(Largest()) is not None and Largest().reference(None, None, None) is None and Largest().check() is None and not Largest().needs_dense
    for ask in (lambda m: m.name, lambda m: m.settings(), lambda m: m.measure(None, None, None)):
        with pytest.raises(NotImplementedError, match="Measure must"): ask(Measure())
