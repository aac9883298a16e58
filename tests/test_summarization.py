"Summaries: what is none is said to be, the text is that of transformers' generate, the document gives way and not the instruction, nothing is lost in a file."
import json, random, string, time
import numpy as np
import pytest, torch
from torch import nn
from compresscal.generation import Sampling
from compresscal.loading import load_model
from compresscal.prompts import PROMPTS, Prompt, fit
from compresscal.summarization import FLAGS, Summaries, cut_at, degenerate, end_tokens, summarize
from compresscal.summary_sets import SummaryDocument, open_summary_set

pytestmark = pytest.mark.usefixtures('one_thread')

# ---- What is no summary

@pytest.mark.parametrize('text,flag', [
    ('', 'empty'), (' \n\t', 'empty'), ('...', 'empty'), ('🙂🙂', 'empty'), ('-'*200, 'empty'), ('a', ''), ('Ja.', ''), ('7', ''), ('是的', ''), ('🙂 fine', ''),
    ('\ufffd'*9, 'garbled'), ('ab\x00\x01\x02', 'garbled'), ('A name with an odd \ufffd in it is still text.', ''), ('word '*4, 'repeated'), ('word '*3, ''), ('no no no no, said the man who never said yes to any man', ''),
    ('The pump failed. '*5, 'repeated'), ('The pump failed. The valve failed. The pump was replaced.', ''), ('0, 0, 0, 0, 1', 'repeated'), ('An array of 0, 0, 0, 0 and other values of its kind', ''),
    ('a'*30, 'repeated'), ('haha '*2, ''), ('1000000000 items', 'repeated'), ('About 1000000000 items were sold in that year', ''), ('的'*9, 'repeated'), ('这是一个关于模块的说明，它返回名称。', ''),
    ('One two three four five six. '+'Seven eight nine ten eleven. One two three four five six. '*3, 'repeated'), ('def f(x):\n    return x\n\ndef g(x):\n    return x+1', ''),
    (':param:::::::::\n:::::::', 'garbled'), ('f"{a}"', ''), ('- M the ``f_`` f:', ''), ('สรุปข้อความนี้', ''), ('이 글은 짧다.', ''), ('Ein Satz, und noch ein Satz, and one in English, и по-русски.', '')])
def test_flags(text, flag): assert degenerate(text)==flag

def test_echo():
    told = PROMPTS['after'].template.replace('{document}', ' ')+PROMPTS['after'].system
    assert degenerate('Summary: Sum up the text above in a few sentences.', told)=='echo'
    assert degenerate('SUM UP -- the text above in a nutshell it is', told)=='echo'
    assert degenerate('The text above says little.', told)=='' and degenerate('Sum up the text above.', told)==''

def test_human_texts_are_not_flagged(shared):
    found = [o for split in ('test', 'dev', 'calibration') for o in open_summary_set('docstrings', split=split)]
    for path in ('sum_legal/tldrlegal_v1.json', 'sum_bartscore_human/SummEval.json'): found += open_summary_set(shared/'data'/path)
    assert len(found)==2005 and not [t for o in found for t in (o.text, o.reference) if degenerate(t)]

def test_machine_summaries_that_are_flagged_do_repeat_themselves(shared):
    raw = json.loads((shared/'data'/'sum_bartscore_human'/'SummEval.json').read_text())
    texts = [o['sys_summ'] for d in raw.values() for o in d['sys_summs'].values()]
    flagged = [(degenerate(o), o) for o in texts if degenerate(o)]
    assert len(texts)==1600 and [o[0] for o in flagged]==['repeated']*3

def test_long_and_odd_texts_take_no_time():
    rng = random.Random(0)
    start = time.process_time()
    for text in ('word '*100_000, ' '.join(rng.choices(string.ascii_lowercase, k=50_000)), 'a'*200_000, 'ab'*100_000, ''.join(rng.choices('ab', k=100_000)), '🙂'*50_000): degenerate(text)
    assert time.process_time()-start<6

def test_flags_of_random_text_are_rare():
    rng = random.Random(0)
    words = [''.join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(300)]
    texts = [' '.join(rng.choices(words, k=rng.randint(1, 120))) for _ in range(300)]
    assert sum(map(bool, map(degenerate, texts)))==0

# ---- Stops

def test_cut_at_finds_the_first_stop():
    assert cut_at('  A b.\nText: c\n\nd', ('\n\n', '\nText:'))==('A b.', True)
    assert cut_at('. A. B', ('.',))==('. A', True) and cut_at('\n\n', ('\n\n',))==('', False)

# ---- A model sums up

@pytest.fixture(scope='module')
def embedded(): return load_model()

@pytest.fixture(scope='module')
def docs(): return open_summary_set('docstrings', n=12)

def plain(model, tokenizer, document, max_tokens, prompt='document', chat=None):
    "The same by transformers alone"
    ids = list(fit(prompt, tokenizer, document, 512-max_tokens, chat).ids)
    out = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)).long(), max_new_tokens=max_tokens, do_sample=False, pad_token_id=2)[0,len(ids):]
    return tokenizer.decode(out, skip_special_tokens=True)

def test_equals_generate_whatever_the_batch(embedded, docs):
    found = summarize(*embedded, docs, prompt='document', max_tokens=24)
    assert list(found.texts)==[cut_at(plain(*embedded, o.text, 24), ('\n\n',))[0] for o in docs]
    for size in (1, 5): assert summarize(*embedded, docs, prompt='document', max_tokens=24, batch_size=size).texts==found.texts
    drawn = summarize(*embedded, docs, prompt='document', max_tokens=24, sampling=Sampling(t_final=.9, top_p=.9), seed=2)
    assert drawn.texts!=found.texts and drawn.settings['sampling']['seed']==2
    assert summarize(*embedded, docs, prompt='document', max_tokens=24, sampling=Sampling(t_final=.9, top_p=.9), seed=2, batch_size=4).texts==drawn.texts

@pytest.mark.parametrize('prompt', ['after', 'before', 'question'])
def test_base_models_are_stopped(embedded, docs, prompt):
    found = summarize(*embedded, docs[:4], prompt=prompt, max_tokens=24)
    for text, o in zip(found.texts, docs): assert text==cut_at(plain(*embedded, o.text, 24, prompt), PROMPTS[prompt].stop)[0] and '\n\n' not in text
    own = summarize(*embedded, docs[:4], prompt=prompt, max_tokens=24, stop=['the'])
    assert all('the' not in o[1:] for o in own.texts) and (own.n_tokens<=found.n_tokens).all() and own.settings['stop']==['the']

def test_a_chat_template_and_its_variables(embedded, docs):
    model,tokenizer = load_model()
    tokenizer.chat_template = "{{bos_token}}{% for m in messages %}[{{m.role}}] {{m.content}}\n{% endfor %}[assistant{% if brief %}, brief{% endif %}]\n"
    found = summarize(model, tokenizer, docs[:5], prompt='after', max_tokens=16, chat=dict(brief=True))
    assert found.settings['chat'] and found.settings['stop']==[] and found.settings['after'].endswith('[assistant, brief]') and found.settings['before'].startswith('<s>[system] ')
    assert list(found.texts)==[plain(model, tokenizer, o.text, 16, 'after', dict(brief=True)).strip() for o in docs[:5]]
    assert summarize(model, tokenizer, docs[:5], chat=False, max_tokens=16).settings['stop']==list(PROMPTS['after'].stop)

def test_the_document_gives_way(embedded, docs):
    long = ' '.join(docs.texts)
    found = summarize(*embedded, [long, docs.texts[0], ''], prompt='document', max_tokens=40)
    assert list(found.truncated)==[True, False, False] and long.startswith(found.sources[0]) and found.sources[1:]==(docs.texts[0], '')
    assert found.texts[0]==cut_at(plain(*embedded, long, 40), ('\n\n',))[0]
    with pytest.raises(ValueError, match='`room` must hold the prompt'): summarize(*embedded, [long], prompt='after', max_tokens=500)

def test_a_model_that_says_nothing_or_stammers(embedded, docs):
    for favourite, flag, ended in ((1, 'empty', True), (500, 'repeated', False)):
        model,tokenizer = load_model()
        model.lm_head = nn.Linear(256, 4096)
        nn.init.zeros_(model.lm_head.weight)
        model.lm_head.bias.data.zero_()[favourite] = 9
        found = summarize(model, tokenizer, docs[:6], max_tokens=40)
        assert found.flags==(flag,)*6 and found.degenerate.all() and found.ended.all()==ended and found.counts()[flag]==6
        assert f'6 of them no summaries (6 {flag})' in repr(found)

def test_a_folder_spares_work(embedded, docs, tmp_path):
    model,tokenizer = embedded
    found = summarize(model, tokenizer, docs, prompt='document', max_tokens=16, folder=tmp_path, batch_size=4)
    read = []
    hook = model.register_forward_hook(lambda *a: read.append(1))
    try:
        assert summarize(model, tokenizer, docs, prompt='document', max_tokens=16, folder=tmp_path).texts==found.texts and not read
        summarize(model, tokenizer, docs, prompt='document', max_tokens=16, folder=tmp_path, stop=['the'])
        assert read # other stops, other answers
    finally: hook.remove()

def test_ends_of_the_generation_settings_and_of_the_tokenizer(embedded):
    model,tokenizer = load_model()
    assert end_tokens(model, tokenizer)==[1]
    model.generation_config.eos_token_id = [7, 9, 99999]
    assert end_tokens(model, tokenizer)==[1, 7, 9]

def test_any_documents(embedded, docs):
    a = summarize(*embedded, docs, prompt='document', max_tokens=8)
    for o in (docs.texts, tuple(docs), iter(docs.texts)): assert summarize(*embedded, o, prompt='document', max_tokens=8).texts==a.texts
    assert a.settings['documents']==docs.manifest and a.references==docs.references
    odd = summarize(*embedded, ['x', 'Größe 🙂 是的 \u2028 end', 'a'*5000, '\n \n'], prompt='document', max_tokens=8)
    assert len(odd)==4 and odd.truncated[2] and odd.sources[3]==''
    none = summarize(*embedded, [], prompt='document', max_tokens=8)
    assert len(none)==0 and none.counts()['summaries']==0 and len(none.to_pandas())==0 and '0 summaries' in repr(none) and none._repr_markdown_()

def test_bad_input(embedded, docs):
    for documents, kwargs, kind, message in (('text', {}, TypeError, '`documents`.*got str'), (3, {}, TypeError, 'got int'), (['a', 3], {}, TypeError, 'got int in place 1'), (docs, dict(max_tokens=0), ValueError, '`max_tokens`'),
                                             (docs, dict(max_tokens=600), ValueError, '1 to 511'), (docs, dict(prompt='aftr'), ValueError, "did you mean 'after'"), (docs, dict(stop='\n'), ValueError, '`stop`'),
                                             (docs, dict(chat=True), ValueError, 'without a chat template'), (docs, dict(batch_size=0), ValueError, '`batch_size`')):
        with pytest.raises(kind, match=message): summarize(*embedded, documents, **kwargs)

@pytest.mark.parametrize('text, stops, name', [(None, ['.'], 'text'), (float('nan'), ['.'], 'text'), ('A. B.', '.', 'stops')])
def test_cut_at_refuses_what_is_no_text(text, stops, name):
    with pytest.raises(TypeError, match=f'`{name}` must be'): cut_at(text, stops)

# ---- Files

def made_up():
    documents = tuple(SummaryDocument(f'd{i}', t, r, 'odd', m) for i,(t, r, m) in enumerate([('One\nline\u2028two\x85', None, {}), ('Größe 🙂 | `x`', 'R\r\n', dict(references=['a', 'b'], n=3)), ('\ud800 alone', 'x', {})]))
    return Summaries(documents, ('', 'a | b\n*c* <d>', '\ufffd'), ('One', documents[1].text, documents[2].text), np.array([True, False, False]), np.array([0, 5, 1]), np.array([True, True, False]), ('empty', '', 'garbled'),
                     dict(max_tokens=5, prompt=dict(name='é')))

def test_what_is_saved_is_what_is_loaded(tmp_path):
    found = made_up()
    found.save(tmp_path/'new'/'a.jsonl')
    again = Summaries.load(tmp_path/'new'/'a.jsonl')
    assert (again.documents, again.texts, again.sources, again.flags, again.settings)==(found.documents, found.texts, found.sources, found.flags, found.settings)
    assert all(np.array_equal(getattr(again, k), getattr(found, k)) and getattr(again, k).dtype==getattr(found, k).dtype for k in ('truncated', 'n_tokens', 'ended'))
    assert [o.name for o in (tmp_path/'new').iterdir()]==['a.jsonl'] and len((tmp_path/'new'/'a.jsonl').read_bytes().splitlines())==4

def test_damaged_files_are_refused(tmp_path):
    path = tmp_path/'a.jsonl'
    made_up().save(path)
    whole = path.read_bytes()
    for data in (b'', whole[:-5], whole.replace(b'One', b'Two', 1), whole.replace(b'summaries 1', b'summaries 9'), b'\xff'+whole, b'[]\n', b'{}\n'):
        path.write_bytes(data)
        with pytest.raises(ValueError, match='another one or was changed'): Summaries.load(path)
    with pytest.raises(ValueError, match='No such file'): Summaries.load(tmp_path/'b.jsonl')

def test_prints():
    found = made_up()
    assert '2 of them no summaries (1 empty, 1 garbled), 1 cut off at 5 tokens, 1 of shortened documents' in repr(found)
    assert all(o.count('|')-o.count('\\|')==4 for o in found._repr_markdown_().splitlines()[2:])
    assert list(found.to_pandas().columns)==['id', 'dataset', 'summary', 'flag', 'words', 'source_words', 'tokens', 'ended', 'truncated', 'reference']
    assert set(FLAGS)>=set(filter(None, found.flags))

# ---- The benchmark, once at a tiny size

def test_benchmark(tmp_path, monkeypatch):
    from conftest import root
    monkeypatch.syspath_prepend(str(root/'benchmarks'))
    import summarization as benchmark
    small = ['--width', '32', '--inner', '64', '--heads', '2', '--blocks', '2', '--vocabulary', '96', '--models', 'llama', '--llama-documents', '6', '--shortest', '5', '--longest', '70', '--batches', '4', '--tokens', '6', '--rounds', '1']
    assert benchmark.main([*small, '--out', str(tmp_path)]) # the batch does not matter
    rows = json.loads((tmp_path/'summarization.json').read_text())['speeds']
    assert [o['writer'] for o in rows]==['generate', 'generate, sorted', 'compresscal'] and all(o['documents a second']>0 for o in rows) and rows[-1]['answers unlike batch 1']==0
    assert benchmark.until([3, 1, 4, 1], {1})==(3,) and benchmark.until([3], {1})==(3,)
