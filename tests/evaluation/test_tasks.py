"Tasks: files become rows, and scores equal a plain computation that uses none of the harness's code."
import copy, csv, json, logging, math, random, re, sys
from functools import partial
from itertools import count
from statistics import fmean
from xml.etree import ElementTree
import pytest, torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast
from compresscal.evaluation import tasks
from compresscal.models.loading import load_model
from compresscal.models.blocks import fingerprint
from compresscal.text.corpora import Corpus
from compresscal.text.installed_text import Document
from compresscal.evaluation.task_files import continuation_rows, read_task_rows, rows_stamp, task_forms, task_rows
from compresscal.evaluation.tasks import HarnessModel, TaskModel, TaskScore, TaskScores, evaluate_tasks, load_task, score_pairs, score_rows, task_settings

pytestmark = pytest.mark.usefixtures('one_thread')

@pytest.fixture(scope='module')
def stories(shared): return load_model(shared/'data'/'model_stories260K'/'transformers')

# The prompts of the published task definitions, written a second time. Each gives questions as (contexts, continuations, number of the right one).
def json_lines(path): return [json.loads(o) for o in path.read_text(encoding='utf-8').splitlines() if o.strip()]
def same_context(context, choices, gold): return [context]*len(choices), [f' {o}' for o in choices], gold

def arc(path): return [same_context(f"Question: {o['question']}\nAnswer:", o['choices'], o['label']) for o in json_lines(path)]
def openbookqa(path): return [same_context(o['question'], o['choices'], o['label']) for o in json_lines(path)]
def boolq(path): return [same_context(f"{o['passage']}\nQuestion: {o['question']}?\nAnswer:", ['no', 'yes'], int(o['answer'])) for o in json_lines(path)]
def rte(path): return [same_context(f"{o['premise']}\nQuestion: {o['hypothesis']} True or False?\nAnswer:", ['True', 'False'], int(o['label']!='entailment')) for o in json_lines(path)]

def winogrande(path):
    parts = [(o, o['question'].split('_')) for o in json_lines(path)]
    return [([head+c for c in o['choices']], [' '+tail.strip()]*2, o['label']) for o,(head,tail) in parts]

def hellaswag(path):
    clean = lambda text: re.sub(r'\[.*?\]', '', text.strip().replace(' [title]', '. ')).replace('  ', ' ')
    large = lambda text: re.sub(r'(?s)^(.*[.!?"] |[^:]*: )([a-z].*)$', lambda m: m[1]+m[2].capitalize(), text)
    return [same_context(clean(large(o['question'])), [clean(c) for c in o['choices']], o['label']) for o in json_lines(path)]

def copa(path):
    "The definition puts a blank before a choice, and so does the delimiter: there are two"
    small = lambda text: ' '+text[0].lower()+text[1:]
    word = dict(cause='because', effect='therefore')
    return [same_context(f"{o.findtext('p').strip()[:-1]} {word[o.get('asks-for')]}", [small(o.findtext('a1')), small(o.findtext('a2'))], int(o.get('most-plausible-alternative'))-1)
            for o in ElementTree.parse(path).getroot().iter('item')]

def lambada(path): return [([head], [' '+last], 0) for head,_,last in (o['text'].rpartition(' ') for o in json_lines(path))]

published = dict(arc_easy=('eval_arc/ARC-Easy.jsonl', arc), boolq=('eval_boolq/boolq_dev.jsonl', boolq), copa=('eval_copa/copa-dev.xml', copa),
    hellaswag=('eval_hellaswag/hellaswag_first2000.jsonl', hellaswag), lambada_openai=('eval_lambada/lambada_test.jsonl', lambada),
    openbookqa=('eval_openbookqa/openbookqa.jsonl', openbookqa), winogrande=('eval_winogrande/winogrande.jsonl', winogrande), rte=('glue_rte/rte_val.jsonl', rte))

@torch.no_grad()
def plain_score(model, tokenizer, context, continuation):
    "Log-likelihood and greedy match from one forward pass of the whole model, in double precision after the logits"
    ids = lambda text: tokenizer(text, verbose=False)['input_ids']
    n = len(ids(context.rstrip()))
    whole = torch.tensor((ids(context.rstrip())+ids(context+continuation)[n:])[-model.config.max_position_embeddings-1:])
    size = len(ids(context+continuation))-n
    logits = model(whole[None,:-1].to(model.device)).logits[0,-size:].double().log_softmax(-1).cpu()
    return float(logits.gather(1, whole[-size:,None]).sum()), bool((logits.argmax(-1)==whole[-size:]).all())

def compare(model, tokenizer, shared, task, limit):
    "The harness's scores and the plain ones"
    place,read = published[task]
    questions = read(shared/'data'/place)[:limit]
    plain = [[plain_score(model, tokenizer, c, t) for c,t in zip(*o[:2])] for o in questions]
    found = evaluate_tasks(model, tokenizer, task, files={task: shared/'data'/place}, limit=limit)[task]
    assert found.counts['documents']==len(questions)==limit
    for mine,theirs in zip(plain, found.documents['logliks'], strict=True): assert theirs==pytest.approx([o for o,_ in mine], abs=1e-4)
    if task=='lambada_openai':
        assert found.metrics['acc']==fmean(o[0][1] for o in plain)
        assert found.metrics['perplexity']==pytest.approx(math.exp(-fmean(o[0][0] for o in plain)), rel=1e-4)
        return
    best = lambda values: max(range(len(values)), key=values.__getitem__)
    right = [float(best([s for s,_ in mine])==gold) for mine,(_,_,gold) in zip(plain, questions)]
    assert found.documents['acc']==right and found.metrics['acc']==fmean(right)
    assert found.documents['gold']==[gold for _,_,gold in questions]
    if 'acc_norm' in found.metrics:
        normed = [float(best([s/(len(t)-1) for (s,_),t in zip(mine, o[1])])==o[2]) for mine,o in zip(plain, questions)]
        assert found.documents['acc_norm']==normed

@pytest.mark.parametrize('task', published)
def test_scores_equal_a_plain_computation(task, stories, shared): compare(*stories, shared, task, 3 if task=='boolq' else 8)

@pytest.mark.slow
@pytest.mark.parametrize('task', published)
def test_scores_equal_a_plain_computation_on_more(task, stories, shared): compare(*stories, shared, task, 80)

@pytest.mark.slow
@pytest.mark.parametrize('task', ['arc_easy', 'winogrande', 'lambada_openai'])
def test_scores_equal_a_plain_computation_with_the_embedded_model(task, shared): compare(*load_model(), shared, task, 24)

def test_solved_examples(stories, shared):
    "They are drawn from the file with the seed given, the question itself left out, and stand before it with their answers"
    model,tokenizer = stories
    path,rng,n = shared/'data'/published['arc_easy'][0],random.Random(7),2
    rows = json_lines(path)[:30]
    found = evaluate_tasks(model, tokenizer, 'arc_easy', files=dict(arc_easy=rows), n_fewshot=n, seed=7, limit=4)['arc_easy']
    ask = lambda o: f"Question: {o['question']}\nAnswer:"
    for row,theirs in zip(rows[:4], found.documents['logliks'], strict=True):
        shown = [o for o in rng.sample(rows, n+1) if o is not row][:n]
        context = ''.join(f"{ask(o)} {o['choices'][o['label']]}\n\n" for o in shown)+ask(row)
        assert theirs==pytest.approx([plain_score(model, tokenizer, context, ' '+c)[0] for c in row['choices']], abs=1e-4)
    assert found.settings['n_fewshot']==n and found.settings['seed']==7
    other = evaluate_tasks(model, tokenizer, 'arc_easy', files=dict(arc_easy=rows), n_fewshot=n, seed=8, limit=4)['arc_easy']
    assert other.documents['logliks']!=found.documents['logliks'] and other.documents['id']!=found.documents['id']

def test_solved_examples_from_another_file(stories, shared):
    "A file for the training split serves the examples, not the question's own file"
    rows = json_lines(shared/'data'/published['arc_easy'][0])
    for files in (dict(test=rows[:4], train=rows[10:12]), dict(validation=rows[:4], train=rows[10:12])):
        task, = load_task('arc_easy', files)
        assert len(task.eval_docs)==4 and [o['question'] for o in task.sampler.fewshot_docs()]==[o['question'] for o in rows[10:12]]
    task, = load_task('arc_easy', dict(validation=rows[:4]))
    assert len(task.sampler.fewshot_docs())==4 and task.config.test_split=='validation' # the harness leaves out the question itself for a split of that name only

def test_whole_texts(stories, shared):
    "Word perplexity of the harness: windows of the model's context, the beginning-of-text token scored once, words of the page before its blanks are removed"
    model,tokenizer = stories
    page = read_task_rows(shared/'data'/'text_wikitext2'/'wiki.valid.txt')[1]['page'][:3000]
    found = evaluate_tasks(model, tokenizer, 'wikitext', files=dict(wikitext=[dict(page=page)]))['wikitext']
    task, = load_task('wikitext', [dict(page=page)])
    ids = [tokenizer.bos_token_id]+tokenizer(task.doc_to_target(task.eval_docs[0]), verbose=False)['input_ids']
    assert ids[:2]==[1, 1] # the tokenizer's and the harness's
    limit,nats = model.config.max_position_embeddings,0.
    for start in range(1, len(ids), limit):
        stop = min(start+limit, len(ids))
        head = max(0, stop-limit-1) # the last window is filled up with text that has been scored
        with torch.no_grad(): logits = model(torch.tensor([ids[head:stop-1]])).logits[0].double().log_softmax(-1)
        nats -= sum(float(logits[t-head-1,ids[t]]) for t in range(start, stop))
    words = len(re.split(r'\s+', page))
    assert len(ids)>2*limit and found.documents['nats']==pytest.approx([nats], rel=1e-6)
    assert found.metrics['word_perplexity']==pytest.approx(math.exp(nats/words), rel=1e-5)
    assert found.metrics['bits_per_byte']==pytest.approx(nats/math.log(2)/len(page.encode()), rel=1e-6)
    assert (found.documents['words'], found.documents['bytes'])==([words], [len(page.encode())])

def test_pages_of_wikitext(shared):
    "A line with one equals sign on each side begins a page"
    path = shared/'data'/'text_wikitext2'/'wiki.valid.txt'
    pages = [o['page'] for o in read_task_rows(path)]
    titles = [re.sub(r'^= (.*) =$', r'\1', o.strip().split('\n')[0].strip()) for o in pages]
    assert len(pages)==60 and not any(o.startswith('=') for o in titles)
    assert '\n'.join(pages)==path.read_text(encoding='utf-8')

@pytest.mark.parametrize('task', ['arc_easy', 'boolq', 'lambada_openai'])
def test_batch_size_does_not_matter(task, stories, shared):
    run = lambda n: evaluate_tasks(*stories, task, files={task: shared/'data'/published[task][0]}, limit=4, batch_size=n)[task].documents
    one,many = run(1),run(7)
    for a,b in zip(one['logliks'], many['logliks'], strict=True): assert a==pytest.approx(b, abs=1e-4)
    assert (one['acc'], one['id'])==(many['acc'], many['id'])

def test_limit(stories, shared):
    "The first questions, each with the score it has among all"
    files = dict(openbookqa=shared/'data'/published['openbookqa'][0])
    few,more = (evaluate_tasks(*stories, 'openbookqa', files=files, limit=n)['openbookqa'] for n in (3, 8))
    assert few.documents['id']==more.documents['id'][:3] and few.documents['gold']==more.documents['gold'][:3]
    assert few.counts['documents']==3 and few.settings['limit']==3

def test_the_harness_own_model(stories, shared):
    "The same numbers come from the model class of the harness, where the package it needs is installed"
    pytest.importorskip('accelerate')
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    model,tokenizer = stories
    for name,(place,_) in published.items():
        task, = load_task(name, shared/'data'/place)
        task.set_config('num_fewshot', 0)
        theirs = evaluate(HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=4), dict(tasks={name: task}), limit=12, bootstrap_iters=0)
        ours = evaluate_tasks(model, tokenizer, name, files={name: shared/'data'/place}, limit=12)[name]
        for o,logliks in zip(theirs['samples'][name], ours.documents['logliks'], strict=True): assert [s for s,_ in o['filtered_resps']]==pytest.approx(logliks, abs=1e-4)
        for k,v in ours.metrics.items(): assert v==pytest.approx(theirs['results'][name][f'{k},none'], rel=1e-4)

def test_tokens_are_cut_as_by_the_harness(stories, shared):
    "Contexts that end in blanks, no context, and continuations without a blank"
    from lm_eval.api.model import TemplateLM
    model,tokenizer = stories
    own = TaskModel(model, tokenizer)
    class Other:
        backend = 'causal'
        def tok_encode(self, text, **kwargs): return tokenizer(text)['input_ids']
    asked = [("Once upon", " a time"), ("Once upon  ", "a time"), ("Once up", "on"), ("Once\n", "upon"), ("  Once", " upon\n")]
    assert list(own.pairs(asked))==[TemplateLM._encode_pair(Other(), *o) for o in asked]
    assert list(own.pairs([("", " a time")]))==[([1], tokenizer(" a time", add_special_tokens=False)['input_ids'])]

def test_beginning_of_text(tiny_model, tiny_tokenizer):
    "A tokenizer that adds no such token by itself can be made to"
    bare,headed = (list(TaskModel(tiny_model, tiny_tokenizer, bos=o).pairs([("ab", "c"), ("ab", "d")])) for o in (None, True))
    assert [(len(c), len(t)) for c,t in bare]==[(2, 1)]*2 and [c for c,_ in headed]==[[0]+c for c,_ in bare]
    rows = [dict(question="ab", choices=["c", "d"], label=0)]
    scores = [evaluate_tasks(tiny_model, tiny_tokenizer, 'mine', files=dict(mine=rows), bos=o)['mine'] for o in (None, True, False)]
    assert scores[0].documents==scores[2].documents!=scores[1].documents and scores[1].settings['bos'] is True
    nothing = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match='beginning-of-text'): TaskModel(tiny_model, nothing, bos=True)
    with pytest.raises(ValueError, match='stand before a text without context'): list(TaskModel(tiny_model, nothing).pairs([("", "a")]))

def test_a_context_that_is_too_long_loses_its_head(tiny_model, tiny_tokenizer):
    "and the result says so"
    long,cut = "x"*200+"yz",("x"*200+"yz")[-127:]
    one = TaskModel(tiny_model, tiny_tokenizer)
    (score,_),(same,_) = score_pairs(one, one.pairs([(long, "ab"), (cut, "ab")]))
    assert score==pytest.approx(same, abs=1e-5) and one.truncated==1
    found = evaluate_tasks(tiny_model, tiny_tokenizer, 'mine', files=dict(mine=[dict(question=long, choices=["ab", "c"], label=0)]))['mine']
    assert found.counts['truncated']==2
    with pytest.raises(ValueError, match='must have 1 to 128 tokens'): score_pairs(one, one.pairs([("a", "b"*129)]))

def test_texts_are_read_once(tiny_model, tiny_tokenizer, monkeypatch):
    "A context with several texts behind it is one row; two continuations of one token after the same context are one text"
    seen = []
    for name in ('run_decoder', 'run_branches'):
        run = getattr(tasks, name)
        monkeypatch.setattr(tasks, name, lambda model, rows, *mask, run=run, name=name: seen.append((name, len(rows))) or run(model, rows, *mask))
    one = TaskModel(tiny_model, tiny_tokenizer)
    score_pairs(one, one.pairs([("is it", "y"), ("is it", "n"), ("is i", "ty")]))
    assert seen==[('run_decoder', 1)] # "is it" for y, n and t y
    seen.clear()
    score_pairs(one, one.pairs([("is it", "y"), ("is it", "n"), ("is it", "no"), ("is i", "ty")]))
    assert seen==[('run_branches', 1), ('run_decoder', 1)]

@pytest.mark.parametrize('batch_size', [1, 5, 64])
def test_branches_change_no_score(batch_size, stories, shared, monkeypatch):
    "Two questions in one row or many, beside one reading of each text"
    model,tokenizer = stories
    rows = json_lines(shared/'data'/published['arc_easy'][0])[:12]
    asked = [(o['question'], ' '+c) for o in rows for c in o['choices']]+[('Once', ' upon'), ('', 'alone')]
    def scores():
        one = TaskModel(model, tokenizer, batch_size)
        return score_pairs(one, one.pairs(asked))
    found = scores()
    monkeypatch.setattr(tasks, 'reads_branches', lambda model: False)
    plain = scores()
    assert [o for o,_ in found]==pytest.approx([o for o,_ in plain], abs=1e-4) and [g for _,g in found]==[g for _,g in plain]

def test_rows_beyond_a_window_have_no_branches(tiny_tokenizer, monkeypatch):
    "A layer with a window would see too much under a mask of its own"
    config = Gemma2Config(vocab_size=len(tiny_tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                          head_dim=16, max_position_embeddings=128, sliding_window=8, initializer_range=.3)
    model = Gemma2ForCausalLM(config).eval()
    asked = [('abc', 'def'), ('abc', 'gh'), ('abcdefghijkl', 'mno'), ('abcdefghijkl', 'pq')]
    one, seen = TaskModel(model, tiny_tokenizer), []
    run = tasks.run_branches
    monkeypatch.setattr(tasks, 'run_branches', lambda model, rows: seen.append([o.context for o in rows]) or run(model, rows))
    found = score_pairs(one, one.pairs(asked))
    assert seen==[[len(next(one.pairs(asked[:1]))[0])]]
    for (context,target),(score,_) in zip(asked, found): assert score==pytest.approx(plain_score(model, tiny_tokenizer, context, target)[0], abs=1e-4)

@pytest.mark.parametrize('kind', ['gemma2', 'gpt2', 'bfloat16'])
def test_other_models(kind, tiny_tokenizer, tiny_model):
    "Soft-capped logits, another family, half precision: as the whole model gives them"
    size = dict(vocab_size=len(tiny_tokenizer), bos_token_id=0, eos_token_id=1, pad_token_id=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind=='gemma2':
            model = Gemma2ForCausalLM(Gemma2Config(**size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
                max_position_embeddings=128, final_logit_softcapping=2., initializer_range=.3)).eval()
        elif kind=='gpt2': model = GPT2LMHeadModel(GPT2Config(**size, n_embd=32, n_layer=2, n_head=2, n_positions=128, initializer_range=.3)).eval()
        else: model = tiny_model.bfloat16()
    rows = [dict(question="ab cd", choices=["efg", "h", "ij klm"], label=1), dict(question="x", choices=["y", "zz"], label=0)]
    found = evaluate_tasks(model, tiny_tokenizer, 'mine', files=dict(mine=rows))['mine'].documents['logliks']
    for row,scores in zip(rows, found):
        assert scores==pytest.approx([plain_score(model, tiny_tokenizer, row['question'], ' '+c)[0] for c in row['choices']], abs=.1 if kind=='bfloat16' else 1e-4)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_cuda(shared):
    model,tokenizer = load_model(shared/'data'/'model_stories260K'/'transformers')
    compare(model.cuda(), tokenizer, shared, 'arc_easy', 16)

def test_a_model_without_numbers_is_refused(tiny_model, tiny_tokenizer):
    with torch.no_grad(): tiny_model.lm_head.weight.fill_(float('nan'))
    with pytest.raises(ValueError, match='finite log-likelihoods, got NaN'): evaluate_tasks(tiny_model, tiny_tokenizer, 'mine', files=dict(mine=[dict(question="a", choices=["b", "c"], label=0)]))

def test_nothing_is_left_behind(tiny_model, tiny_tokenizer):
    "Weights, tokenizer, training flags, random states, the harness's log and bars are as they were"
    import datasets, lm_eval.api.task
    tiny_model.train()
    state = lambda: (fingerprint(tiny_model), tiny_tokenizer.pad_token, len(tiny_tokenizer), tiny_tokenizer.padding_side, tiny_model.training, torch.get_rng_state().tolist(),
        random.getstate(), logging.getLogger('lm_eval').level, lm_eval.api.task.tqdm, datasets.are_progress_bars_disabled(), [id(p) for p in tiny_model.parameters()])
    before = state()
    rows = [dict(question="ab", choices=["c", "d"], label=0), dict(question="b", choices=["c", "d"], label=1)]
    evaluate_tasks(tiny_model, tiny_tokenizer, 'mine', files=dict(mine=rows), n_fewshot=1)
    assert state()==before
    with pytest.raises(ValueError): evaluate_tasks(tiny_model, tiny_tokenizer, 'mine', files=dict(mine=rows), n_fewshot=2)
    assert state()==before

def test_nothing_is_printed(tiny_model, tiny_tokenizer, capfd):
    evaluate_tasks(tiny_model, tiny_tokenizer, ['mine', 'hellaswag'], files=dict(mine=[dict(question="ab", choices=["c", "d"], label=0)],
        hellaswag=[dict(question="Cooking: He cooks. she", choices=["eats", "reads"], label=0)]))
    assert capfd.readouterr()==('', '')

@pytest.fixture
def no_harness(monkeypatch):
    for name in [o for o in sys.modules if o.split('.')[0]=='lm_eval']: monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'lm_eval', None)

def test_without_the_harness(no_harness, tiny_model, tiny_tokenizer):
    "The continuation task needs nothing; the rest names the line to type"
    found = evaluate_tasks(tiny_model, tiny_tokenizer, 'continuation_docs', limit=12)['continuation_docs']
    assert (found.counts['documents'], found.counts['chance'])==(12, .25) and 'harness' not in found.settings
    for run in (partial(evaluate_tasks, tiny_model, tiny_tokenizer), task_settings):
        with pytest.raises(ImportError, match=re.escape("pip install 'compresscal[eval]'")): run('arc_easy')

def test_own_scores_equal_those_of_the_harness(stories):
    "The rows of the continuation task, given to the harness as a file, have the same scores, identities and counts"
    rows = continuation_rows('docs', 20)
    harness = evaluate_tasks(*stories, 'mine', files=dict(mine=rows))['mine']
    own = evaluate_tasks(*stories, 'continuation_docs', limit=20)['continuation_docs']
    assert (own.metrics, own.counts, own.documents)==(harness.metrics, harness.counts, harness.documents)

def test_a_task_can_be_told_apart_from_chance():
    "The embedded model finds the true continuation; more so of code, which repeats itself"
    model,tokenizer = load_model()
    found = evaluate_tasks(model, tokenizer, 'continuation_docs', limit=40)['continuation_docs']
    assert found.metrics['acc']-5*found.error('acc')>.25
    assert found.error('acc')==pytest.approx(math.sqrt(found.metrics['acc']*(1-found.metrics['acc'])/39), rel=1e-9)

def test_error_is_that_of_the_harness(stories, shared):
    from lm_eval.api.metrics import mean_stderr
    found = evaluate_tasks(*stories, 'rte', files=dict(rte=shared/'data'/published['rte'][0]), limit=20)['rte']
    assert found.error('acc')==pytest.approx(mean_stderr(found.documents['acc']))

def test_record_is_json(stories, shared):
    for task in ('arc_easy', 'lambada_openai', 'winogrande'):
        found = evaluate_tasks(*stories, task, files={task: shared/'data'/published[task][0]}, limit=4)
        record = found.record(task)
        assert json.loads(json.dumps(record))==record and next(iter(record['metrics']))=='acc'
        assert all(len(o)==4 for o in record['documents'].values()) and all(isinstance(o, float) for o in record['metrics'].values())
        assert json.loads(json.dumps(found[task].settings))==task_settings(task, file=shared/'data'/published[task][0], limit=4)

# files

def test_kinds_of_files(tmp_path):
    "JSONL, JSON, CSV and Parquet give the same rows"
    from datasets import Dataset
    rows = [dict(question="Ice, is", choices=["cold", "hot"], label=0), dict(question='She said "no"\nand', choices=["left", "went"], label=1)]
    (tmp_path/'a.jsonl').write_text(''.join(json.dumps(o)+'\n' for o in rows))
    (tmp_path/'a.json').write_text(json.dumps(rows))
    Dataset.from_list(rows).to_parquet(tmp_path/'a.parquet')
    with open(tmp_path/'a.csv', 'w', newline='') as file:
        out = csv.DictWriter(file, list(rows[0]))
        out.writeheader()
        out.writerows(dict(o, choices=json.dumps(o['choices'])) for o in rows)
    for kind in ('jsonl', 'json', 'parquet', 'csv'): assert read_task_rows(tmp_path/f'a.{kind}')==rows, kind

def test_rows_of_the_hub_and_plain_rows_are_the_same_task(tiny_model, tiny_tokenizer):
    hub = [dict(id='q1', question="Ice is", choices=dict(text=["cold", "hot", "old"], label=["1", "2", "3"]), answerKey="2")]
    plain = [dict(question="Ice is", choices=["cold", "hot", "old"], label=1)]
    a,b = (evaluate_tasks(tiny_model, tiny_tokenizer, 'arc_challenge', files=dict(arc_challenge=o))['arc_challenge'] for o in (hub, plain))
    assert a.documents==b.documents and a.documents['gold']==[1] and a.settings['rows']!=b.settings['rows']

def test_storycloze(tiny_model, tiny_tokenizer, tmp_path):
    "The file its authors send on request, under both years, and the open substitute in the columns of the Hub"
    names = ['InputStoryid', *(f'InputSentence{i}' for i in range(1, 5)), 'RandomFifthSentenceQuiz1', 'RandomFifthSentenceQuiz2', 'AnswerRightEnding']
    with open(tmp_path/'val.csv', 'w', newline='') as file: csv.writer(file).writerows([names, ['x', "A.", "B.", "C.", "D.", "Good, end.", "Bad end.", '1'], ['y', "A.", "B.", "C.", "D.", "No.", "Yes.", '2']])
    hub = task_rows(tmp_path/'val.csv', task_forms['storycloze_2016'])
    found = evaluate_tasks(tiny_model, tiny_tokenizer, ['storycloze_2016', 'storycloze_2018', 'xstorycloze_en'],
        files=dict(storycloze_2016=tmp_path/'val.csv', storycloze_2018=tmp_path/'val.csv', xstorycloze_en=hub))
    for o in found.scores:
        assert o.documents['gold']==[0, 1] and o.counts['chance']==.5
        assert o.documents['logliks'][0]==pytest.approx([plain_score(tiny_model, tiny_tokenizer, "A. B. C. D.", c)[0] for c in (" Good, end.", " Bad end.")], abs=1e-4)

def test_piqa(tiny_model, tiny_tokenizer):
    rows = [dict(question="To dry", choices=["wring", "soak"], label=1)]
    found = evaluate_tasks(tiny_model, tiny_tokenizer, 'piqa', files=dict(piqa=rows))['piqa']
    assert found.documents['logliks'][0]==pytest.approx([plain_score(tiny_model, tiny_tokenizer, "Question: To dry\nAnswer:", c)[0] for c in (" wring", " soak")], abs=1e-4)

def test_rows_without_an_answer_are_refused(tiny_model, tiny_tokenizer):
    rows = [dict(sentence1="a", sentence2="b", label=-1)]
    with pytest.raises(ValueError, match="'rte' must say which choice is right, document 0 has -1"): evaluate_tasks(tiny_model, tiny_tokenizer, 'rte', files=dict(rte=rows))

def test_the_hub_cannot_be_reached(tiny_model, tiny_tokenizer):
    with pytest.raises(ConnectionError, match=r"task 'storycloze_2016' could not be had from the Hub .*files=\{'storycloze_2016': path\}"): evaluate_tasks(tiny_model, tiny_tokenizer, 'storycloze_2016')

@pytest.mark.parametrize('wrong, said', [
    (dict(tasks='arc_esay'), "did you mean 'arc_easy'"), (dict(tasks=[]), 'at least one task'), (dict(tasks='gsm8k', files=dict(gsm8k=[dict(question='a', answer='#### 1')])), 'of kind generate_until'),
    (dict(tasks='mine', files=dict(mine=[dict(question='a', choices=['b', 'c'])])), "row 1: has no column 'label'"), (dict(tasks='piqa', files=dict(piqa='nowhere.jsonl')), 'no such file'),
    (dict(tasks='piqa', files=dict(pica=[])), 'must be for tasks among piqa, got pica'), (dict(tasks='ai2_arc', files=dict(ai2_arc=[])), "got the group 'ai2_arc'"), (dict(tasks='piqa', n_fewshot=-1), '`n_fewshot`'),
    (dict(tasks='piqa', limit=.5), '`limit`'), (dict(tasks='piqa', batch_size=0), '`batch_size`'), (dict(tasks='continuation_docs', n_fewshot=1), 'must be 0 for'),
    (dict(tasks='wikitext', files=dict(wikitext=[dict(page='a b')]*3), n_fewshot=1), 'a task of whole texts')])
def test_mistakes_are_named(wrong, said, tiny_model, tiny_tokenizer):
    with pytest.raises(ValueError, match=re.escape(said)): evaluate_tasks(tiny_model, tiny_tokenizer, **wrong)

def test_settings_decide(tmp_path):
    "Another file, count, number or seed of examples is another result; another name of the file is not"
    rows = [dict(question="Ice is", choices=["cold", "hot"], label=0)]*3
    for name in ('a.jsonl', 'b.jsonl'): (tmp_path/name).write_text('\n'.join(map(json.dumps, rows)))
    base = task_settings('piqa', file=tmp_path/'a.jsonl')
    assert base==task_settings('piqa', file=tmp_path/'b.jsonl')==task_settings('piqa', file=tmp_path/'a.jsonl', seed=5)
    others = [task_settings('piqa', file=tmp_path/'a.jsonl', **o) for o in (dict(limit=2), dict(n_fewshot=1), dict(n_fewshot=1, seed=1), dict(bos=False))]+[task_settings('piqa'), task_settings('piqa', file=rows[:2])]
    assert len({json.dumps(o, sort_keys=True) for o in [base, *others]})==7
    assert task_settings('continuation_docs')!=task_settings('continuation_docs', seed=1)

@pytest.mark.slow
def test_names_of_the_papers_are_known():
    "Each has a version and prompts; where the Hub's rows are not needed to know it"
    for name in ('arc_easy', 'arc_challenge', 'boolq', 'hellaswag', 'lambada_openai', 'openbookqa', 'piqa', 'rte', 'storycloze_2016', 'storycloze_2018', 'xstorycloze_en', 'winogrande', 'copa', 'wikitext'):
        settings = task_settings(name)
        assert settings['data'][0] and settings['harness'], name
        assert name in task_forms

def test_the_search_for_tasks_finds_what_the_index_holds():
    "The folders found by reading the text of the index name what the whole index does, for each kind of entry"
    homes,groups = tasks._homes()
    for name in ('arc_easy', 'boolq', 'rte', 'copa', 'mmlu_anatomy', 'gsm8k', 'sciq', 'xstorycloze_en'): assert name in tasks._manager(name).all_subtasks
    assert {'ai2_arc', 'mmlu', 'glue', 'xstorycloze'}<=groups and len(homes)>10_000

# ---- what decides a task, and how much is read for it

def endless(words):
    "A shard that never ends"
    for i in count(): yield Document(' '.join(f'{w}{i}' for w in words), f'{i}')

def test_a_task_is_made_of_an_endless_source():
    source = Corpus('web', {}, dict(all=lambda: endless([f'word{j}x' for j in range(40)])))
    rows = continuation_rows(source, 20, pool=50)
    assert len(rows)==20 and rows==continuation_rows(source, 20, pool=50) and rows[:5]==continuation_rows(source, 5, pool=50)
    assert continuation_rows(source, 3, seed=10**40, pool=50)!=rows[:3]
    short = Corpus('web', {}, dict(all=lambda: endless(['short'])))
    with pytest.raises(ValueError, match='must hold at least 4 documents'): continuation_rows(short, 20, pool=50)

def test_a_pool_larger_than_the_source_changes_nothing():
    assert continuation_rows('docs', 9)==continuation_rows('docs', 9, pool=10**6)

@pytest.mark.parametrize('wrong', [dict(pool=0), dict(seed=-1)])
def test_bad_settings_of_continuations(wrong):
    with pytest.raises(ValueError, match=f'`{next(iter(wrong))}` must'): continuation_rows('docs', 5, **wrong)

def test_nasty_names_of_tasks_are_shown_as_names():
    scores = TaskScores((TaskScore('a|b<i>\x1b[31m', dict(acc=.5), dict(documents=2, chance=.5), dict(acc=[0., 1.]), {}),))
    table = scores._repr_markdown_()
    assert '\x1b' not in table+repr(scores) and '<i>' not in table
    assert {o.count('|')-o.count(r'\|') for o in table.split('\n')}=={7}
