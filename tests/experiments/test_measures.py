"Names, settings that decide a result, and results of one form"
import json, pickle, sys
from dataclasses import dataclass
import pytest, torch
from compresscal.calibration.calibration_set import CalibrationSet
from compresscal.evaluation.perplexity import perplexity
from compresscal.evaluation.fidelity import fidelity
from compresscal.experiments.inputs import file_places, text_places, whole_name
from compresscal.experiments.measures import (FidelityMeasure, GPTQPerplexityMeasure, Measure, PerplexityMeasure, SummariesMeasure, TaskMeasure, file_content,
                                  parse_measure)
from test_fidelity import disturb
from test_perplexity import rows

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
    from compresscal.experiments import measures
    measures._task_settings.cache_clear()
    monkeypatch.setitem(sys.modules, 'lm_eval', None)
    monkeypatch.setitem(sys.modules, 'lm_eval.tasks', None)
    assert parse_measure('task:piqa')==TaskMeasure('piqa') # a name can be read without it
    with pytest.raises(ImportError, match=r"pip install 'compresscal\[eval\]'"): TaskMeasure('piqa').check()

def test_a_real_task(shared):
    pytest.importorskip('lm_eval')
    from compresscal.models.loading import load_model
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

# what names stand for

def test_a_named_text_is_known_by_its_content(monkeypatch):
    "Another version of the installed packages, or of WikiText, is another text"
    from compresscal.evaluation import perplexity
    from compresscal.experiments import measures
    found = []
    for rows in (['one', 'two'], ['one', 'two and more'], ['one', 'two']):
        measures.named_text.cache_clear()
        monkeypatch.setattr(perplexity, 'text_rows', lambda source, split: rows)
        found.append([GPTQPerplexityMeasure(o).identity() for o in ('docs', 'wikitext')])
    measures.named_text.cache_clear()
    assert found[0]==found[2] and found[0][0]!=found[1][0] and found[0][1]!=found[1][1]

def test_another_set_on_the_hub_is_known_by_its_commit(monkeypatch):
    from types import SimpleNamespace
    from compresscal.experiments import measures
    measures.named_text.cache_clear()
    monkeypatch.setattr(measures, 'open_corpus', lambda source, split: SimpleNamespace(manifest=dict(kind='hub', path='allenai/c4', revision='abc', license='none')))
    assert GPTQPerplexityMeasure('c4').identity()==dict(text=dict(kind='hub', path='allenai/c4', revision='abc'))
    measures.named_text.cache_clear()

def test_fetched_rows_decide(monkeypatch):
    "The rows that the harness fetches, and those that it shows as solved examples"
    from types import SimpleNamespace
    from compresscal.experiments import measures
    from compresscal.evaluation import tasks
    def task(asked, shown): return [SimpleNamespace(eval_docs=asked, sampler=SimpleNamespace(fewshot_docs=lambda: shown))]
    def identity(*rows, **settings):
        measures.fetched_rows.cache_clear()
        monkeypatch.setattr(tasks, 'load_task', lambda name: task(*rows))
        return TaskMeasure('piqa', **settings).identity()
    one, other = [dict(goal='a', label=0)], [dict(goal='a', label=1)]
    assert identity(one, one)==identity(one, other)!=identity(other, one)
    assert identity(one, one, n_fewshot=1)!=identity(one, other, n_fewshot=1)
    measures.fetched_rows.cache_clear()

def test_questions_of_ones_own_are_in_the_settings(tmp_path):
    assert TaskMeasure('mine', file=str(write_rows(tmp_path/'a.jsonl'))).identity()=={}==TaskMeasure('continuation_docs').identity()

def summaries(tmp_path, **settings):
    (tmp_path/'s.jsonl').write_text(json.dumps(dict(document='A text that is to be summed up.', summary='A text.')))
    return SummariesMeasure(str(tmp_path/'s.jsonl'), **settings)

def test_weights_of_judges_decide(tiny_checkpoint, tmp_path, monkeypatch):
    "Those of BERTScore's folder, of the embedded model, of a judge's folder, and a commit of the Hub"
    from compresscal.experiments import measures
    from compresscal.models import loading
    asked = [dict(bertscore=str(tiny_checkpoint)), dict(judges='harim:decoder'), dict(judges=f'harim:decoder;model={tiny_checkpoint}'), dict(judges='harim')]
    def told(): return [[m.settings(), m.identity()] for m in (summaries(tmp_path, **o) for o in asked)]
    monkeypatch.setattr(loading, 'embedded_folder', lambda: tiny_checkpoint)
    monkeypatch.setattr(measures, 'hub_commit', lambda name, revision: 'a'*40)
    first, same = told(), told()
    (tiny_checkpoint/'config.json').write_text((tiny_checkpoint/'config.json').read_text()+' ')
    monkeypatch.setattr(measures, 'hub_commit', lambda name, revision: 'b'*40)
    assert first==same and all(a!=b for a,b in zip(first, told(), strict=True))
    assert json.loads(json.dumps(first))==first

def test_a_commit_is_found_in_the_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants
    from compresscal.experiments.measures import hub_commit
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    (tmp_path/'models--some--judge'/'refs').mkdir(parents=True)
    (tmp_path/'models--some--judge'/'refs'/'main').write_text('c'*40)
    assert hub_commit('some/judge')=='c'*40 and hub_commit('no/judge') is None

def test_nested_settings_of_judges():
    from compresscal.experiments.measures import named_weights, weights_identity
    assert named_weights(dict(nli=dict(model='embedded', dtype='float32'), empty='nan'))==[weights_identity('embedded')]
    assert named_weights(dict(model='folder', files='hash'))==named_weights(dict(function='mine'))==[]

# where they read, and what they are called elsewhere

def test_where_measures_read(tmp_path):
    path = write_rows(tmp_path/'a.jsonl')
    assert parse_measure('gptq:c4').reads()==text_places('allenai/c4:en') and parse_measure('gptq:wikitext').reads().isdisjoint(text_places('wikitext'))
    assert parse_measure(f'task:mine,file={path}').reads()==parse_measure(f'gptq:{tmp_path}/*.jsonl').reads()==text_places(path)!=set()
    assert parse_measure('task:continuation_code').reads()==text_places('code', 'test') and parse_measure('docs').reads()==set()==Measure().reads()

def test_names_hold_elsewhere(tmp_path, monkeypatch):
    path = write_rows(tmp_path/'a.jsonl')
    monkeypatch.chdir(tmp_path)
    for name in ('kl:docs', 'docs', 'gptq:wikitext', 'task:piqa', 'summaries:docstrings,n=3,judges=harim+unsupported'): assert parse_measure(name).elsewhere().name==name
    for name in ('a.jsonl', 'kl:{}', 'gptq:{},length=64', 'task:mine,limit=2,file={}', 'summaries:{},judges=harim:decoder;model={}+unsupported,bertscore={}'):
        assert parse_measure(name.replace('{}', 'a.jsonl')).elsewhere().name==name.replace('{}', str(path)).replace('a.jsonl', str(path) if name=='a.jsonl' else 'a.jsonl')

def test_text_of_any_suffix_is_measured_as_text(tmp_path):
    (tmp_path/'a.tex').write_text('A text.')
    (tmp_path/'a.txt').write_text('A text.')
    said = f"text:{tmp_path/'a.tex'}"
    assert parse_measure(said).text==said and parse_measure(f'gptq:{said},length=64').source==said
    assert parse_measure(f'gptq:{said}').settings()['format']=='text'
    assert 'format' not in parse_measure(f"gptq:{tmp_path/'a.txt'}").settings()
    assert text_places(said)==file_places(tmp_path/'a.tex')
    assert whole_name(f'random:{said}=0.5+docs=0.5')==f'random:{said}=0.5+docs=0.5'
    for name in ('no/such.utf8', 'kl:nothing.foo', 'gptq:text:nothing'):
        with pytest.raises(ValueError, match='where there is none'): parse_measure(name)
