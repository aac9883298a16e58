"SummaC: both scores against plain loops over single pairs, the published head, cuts and limits, odd input one by one, and claims."
import hashlib, io, json, math, random, urllib.request
import numpy as np, pandas as pd, pytest, torch
from safetensors.torch import save_file
from compresscal.hallucination.entailment import EntailmentFunction, EntailmentModel
from compresscal.hallucination.risk import METRICS, metric_of, risk_ratio
from compresscal.summaries.scores import Judge, Scores
from compresscal.text.sentences import split_sentences
from compresscal.hallucination.summac import (EDGES, HEAD_ADDRESS, HEAD_SHA256, VERDICTS, Claims, ConvHead, Cutting, Support, SummaCConv, SummaCZS, find_support, histograms,
                                open_head, zero_shot)
from test_entailment import albert, bert

pytestmark = pytest.mark.usefixtures('one_thread')

def spread(pairs):
    "Probabilities that look random, are the same for the same pair, and lie where such models put them: near 0, near 1, on the edges, and anywhere"
    rows = []
    for a,b in pairs:
        g = random.Random(hashlib.sha256(f'{a}|{b}'.encode('utf-8', 'replace')).hexdigest())
        e = g.choice([g.random(), g.random()**8, 1-g.random()**8, g.choice(EDGES)])
        c = (1-e)*g.random()
        rows.append([e, 1-e-c, c])
    return rows

def text(g, most):
    def sentence(): return ' '.join(f'w{g.randint(0, 59)}' for _ in range(g.randint(2, 8))).capitalize()+'.'
    return ' '.join(sentence() for _ in range(g.randint(1, most)))

def documents(n, source=40, summary=14, seed=0):
    g = random.Random(seed)
    return [text(g, source) for _ in range(n)],[text(g, summary) for _ in range(n)]

def toy_head(seed=0):
    g = np.random.default_rng(seed)
    return ConvHead(g.normal(size=23)*.3, g.normal(), g.normal(size=(2, 3)), g.normal(size=2))

@pytest.fixture(scope='session')
def head_file(shared):
    path = shared/'data'/'sum_summac_reference'/'summac_conv_vitc_sent_perc_e.bin'
    if not path.is_file(): pytest.skip('the published head is not here')
    return path

# ---- Plain loops

BINS = [0.0, 0.01, 0.02, 0.03, 0.04, 0.07, 0.13, 0.37, 0.90, 0.91, 0.92, 0.93, 0.94, 0.95, 0.955, 0.96, 0.965, 0.97, 0.975, 0.98, 0.985, 0.99, 0.995, 1.0]

def plain_zs(source, summary, ask, con=False, ent=True):
    each = []
    for s in split_sentences(summary):
        e = c = 0
        for d in split_sentences(source):
            p = ask(d, s)
            e,c = max(e, p[0]),max(c, p[2])
        each.append((e if ent else 1)-(c if con or not ent else 0))
    return sum(each)/len(each)

def plain_conv(source, summary, ask, head, most=None):
    "With numpy's histogram, in plain Python but for that"
    outputs = []
    for s in split_sentences(summary)[:most]:
        counts,_ = np.histogram([ask(d, s)[0] for d in split_sentences(source)], bins=BINS)
        outputs.append(sum(float(w)*int(n) for w,n in zip(head['mlp.weight'][0], counts))+float(head['mlp.bias'][0]))
    mean = sum(outputs)/len(outputs)
    z = [sum(float(head['layer_final.weight'][k,i])*mean for i in range(3))+float(head['layer_final.bias'][k]) for k in range(2)]
    top = max(z)
    return math.exp(z[1]-top)/(math.exp(z[0]-top)+math.exp(z[1]-top))

def as_tensors(head): return {'mlp.weight': torch.tensor(head.weights)[None], 'mlp.bias': torch.tensor(head.bias)[None], 'layer_final.weight': torch.tensor(head.final_weights), 'layer_final.bias': torch.tensor(head.final_bias)}

@pytest.mark.parametrize('settings', [dict(), dict(use_contradiction=True), dict(use_entailment=False, use_contradiction=True)])
def test_zero_shot_is_its_plain_loop(settings):
    sources,summaries = documents(25)
    found = SummaCZS(spread, **settings).score(sources, summaries)
    expected = [plain_zs(a, b, lambda d,s: spread([(d, s)])[0], settings.get('use_contradiction', False), settings.get('use_entailment', True)) for a,b in zip(sources, summaries)]
    assert np.abs(found.values-expected).max()<1e-12 and found.values.std()>.01

def test_conv_is_its_plain_loop():
    sources,summaries = documents(25)
    for head in (toy_head(0), toy_head(1)):
        found = SummaCConv(spread, head=head).score(sources, summaries)
        expected = [plain_conv(a, b, lambda d,s: spread([(d, s)])[0], as_tensors(head)) for a,b in zip(sources, summaries)]
        assert np.abs(found.values-expected).max()<1e-12 and found.values.std()>.01

def test_conv_with_the_published_head(head_file):
    sources,summaries = documents(25)
    tensors = torch.load(head_file, weights_only=True)
    found = SummaCConv(spread, head=head_file).score(sources, summaries)
    expected = [plain_conv(a, b, lambda d,s: spread([(d, s)])[0], tensors) for a,b in zip(sources, summaries)]
    assert np.abs(found.values-expected).max()<1e-6 and found.values.std()>.01
    first = SummaCConv(spread, head=head_file, summary_limit=10).score(sources, summaries)
    assert np.abs(first.values-[plain_conv(a, b, lambda d,s: spread([(d, s)])[0], tensors, 10) for a,b in zip(sources, summaries)]).max()<1e-6
    assert max(len(split_sentences(o)) for o in summaries)>10 and (first.values!=found.values).any()

@torch.no_grad()
def test_layers_of_torch_agree_in_single_precision(head_file):
    "The head as two linear layers of float32, as it was trained"
    tensors,(one,two) = torch.load(head_file, weights_only=True),(torch.nn.Linear(23, 1), torch.nn.Linear(3, 2))
    one.load_state_dict({k: tensors[f'mlp.{k}'] for k in ('weight', 'bias')}), two.load_state_dict({k: tensors[f'layer_final.{k}'] for k in ('weight', 'bias')})
    found,head = find_support(*documents(10), spread),open_head(head_file)
    for o in found:
        f = one(torch.from_numpy(histograms(o.entailment)).float()).mean()
        assert np.allclose(head.logits(head.features(o.entailment).mean()), two(f.repeat(3)).numpy(), rtol=1e-5, atol=1e-5)

@pytest.mark.parametrize('make, order, types', [(bert, [2, 1, 0], True), (albert, [0, 2, 1], True)])
@torch.no_grad()
def test_both_with_a_model_one_pair_at_a_time(make, order, types, head_file):
    (model,tokenizer),(sources,summaries) = make(),documents(3, 12, 5)
    model.double() # in float32 the last bits of a pair alone and in a batch differ
    def ask(d, s): return model(**tokenizer(d, s, return_tensors='pt', return_token_type_ids=types)).logits[0].softmax(-1)[order].tolist()
    scorer = EntailmentModel((model, tokenizer))
    zs,conv = SummaCZS(scorer).score(sources, summaries),SummaCConv(scorer, head=head_file).score(sources, summaries)
    tensors = torch.load(head_file, weights_only=True)
    assert np.abs(zs.values-[plain_zs(a, b, ask) for a,b in zip(sources, summaries)]).max()<1e-6
    assert np.abs(conv.values-[plain_conv(a, b, ask, tensors) for a,b in zip(sources, summaries)]).max()<1e-6

def test_histograms_are_those_of_numpy():
    g = np.random.default_rng(0)
    values = np.concatenate([g.random((40, 20)), g.choice(EDGES, (40, 20)), np.nextafter(g.choice(EDGES[1:], (20, 20)), 0), np.float64(np.float32(g.choice(EDGES[:-1], (20, 20))))])
    expected = [np.histogram(o, bins=BINS)[0] for o in values.T]
    assert EDGES==tuple(BINS) and (histograms(values)==expected).all() and histograms(values).sum()==values.size

def test_edges_of_ones_own():
    head = ConvHead([1., 2.], 0, [[0]*3, [1]*3], [0, 0], edges=(0, .5, 1))
    assert head.features(np.array([[.1, .6], [.5, 1.]])).tolist()==[3, 4]

# ---- Sharing

def test_two_judges_ask_once():
    calls = []
    scorer = EntailmentFunction(lambda pairs: calls.append(len(pairs)) or spread(pairs), 'spread')
    sources,summaries = documents(10)
    for judge in (SummaCZS(scorer), SummaCConv(scorer, head=toy_head()), SummaCZS(scorer, use_contradiction=True)): judge.score(sources*2, summaries*2)
    SummaCZS(scorer).claims(sources[0], summaries[0])
    distinct = {(d, s) for a,b in zip(sources, summaries) for d in split_sentences(a) for s in split_sentences(b)}
    assert calls==[len(distinct)]==[scorer.asked]

def test_company_does_not_change_a_score():
    sources,summaries = documents(12, 10, 4)
    together = SummaCZS(bert()).score(sources, summaries).values
    assert together.tolist()==[SummaCZS(bert()).score([a], [b]).values[0] for a,b in zip(sources, summaries)]
    assert together[::-1].tolist()==SummaCZS(bert()).score(sources[::-1], summaries[::-1]).values.tolist()

# ---- Cuts and limits

def test_parts_are_cut_as_said():
    a,b = 'One of the parts is here.\n\nAnother. Third one.\n\n\n Last of them.  ','Here is one.\nAnd here is two.'
    assert [a[i:j] for i,j in Cutting('paragraph').spans(a)[0]]==['One of the parts is here.', 'Another. Third one.', 'Last of them.']
    assert [b[i:j] for i,j in Cutting('paragraph').spans(b)[0]]==['Here is one.', 'And here is two.']
    assert Cutting('document').spans(a, 1)==([(0, len(a))], 0) and Cutting('document', shortest=999).spans('a')==([(0, 1)], 0)
    assert [len(Cutting(('document', 'sentence')).spans(o, side)[0]) for side,o in enumerate((a, b))]==[1, 2]
    assert Cutting(splitter=lambda o: o.split('.')[:-1]).settings()['splitter'].endswith('<lambda>')

@pytest.mark.parametrize('granularity, pairs', [('sentence', 6), ('paragraph', 2), ('document', 1), (('document', 'sentence'), 2), (('paragraph', 'document'), 2)])
def test_granularity(granularity, pairs):
    scorer = EntailmentFunction(spread)
    found = SummaCZS(scorer, granularity=granularity).score(['One is here. Two is here.\n\nThree is here.'], ['One is. Two is.'])
    assert scorer.asked==pairs and len(found.parts['sentences'][0])==(2 if 'sentence' in granularity else 1)
    assert found.settings['granularity']==([granularity]*2 if isinstance(granularity, str) else list(granularity))

def plain_original(source, summary, ask, splitter, head=None):
    "What the published program does with one pair, but for its sentences"
    a,b = [o for o in split_sentences(source, splitter) if len(o)>10][:100],[o for o in split_sentences(summary, splitter) if len(o)>10]
    table = [[ask(d, s)[0] for s in b] for d in a] if a and b else [[0.]]
    if head is None: return sum(max(o) for o in zip(*table))/len(table[0])
    f = np.mean([head.features(np.array(o)[:, None])[0] for o in list(zip(*table))[:10]])
    z = head.logits(f)
    return float(np.exp(z[1])/np.exp(z).sum())

def test_original_limits():
    "Short sentences, more than 100 sentences of a source, more than 10 of a summary, and empty ones"
    sources,summaries = documents(12, 230, 30, seed=4)
    sources,summaries = sources+['', 'A source of one sentence.', 'Short.'],summaries+['A summary.', ' \n', 'A whole sentence.']
    head = toy_head()
    ask = lambda d,s: spread([(d, s)])[0]
    scorer = EntailmentFunction(spread)
    zs,conv = (o.score(sources, summaries) for o in (SummaCZS.original(scorer, splitter='rules'), SummaCConv.original(scorer, splitter='rules', head=head)))
    assert np.allclose(zs.values, [plain_original(a, b, ask, 'rules') for a,b in zip(sources, summaries)], atol=1e-12)
    assert np.allclose(conv.values, [plain_original(a, b, ask, 'rules', head) for a,b in zip(sources, summaries)], atol=1e-12)
    assert zs.values[-3:].tolist()==[0, 0, 0] and any('of sources were too short or beyond the limit, and not read' in o for o in zs.notes)
    assert any('3 of 15 pairs have no parts on one side; such a pair is scored as one sentence without support' in o for o in zs.notes)
    assert not np.allclose(zs.values, np.nan_to_num(SummaCZS(scorer).score(sources, summaries).values))

def test_the_constant_of_the_published_head(head_file):
    found = SummaCConv.original(spread, splitter='rules', head=head_file).score(['A source of words.', ''], ['', 'A summary of words.'])
    assert found.values[0]==found.values[1]==pytest.approx(.2, abs=.001)

def test_original_takes_punkt():
    for judge in (SummaCZS, SummaCConv):
        made = judge.original(spread)
        assert made.settings()|dict(nli=0)==judge(spread, splitter='punkt', shortest=11, source_limit=100, summary_limit=10 if judge is SummaCConv else None, empty='zero').settings()|dict(nli=0)
    from nltk.data import find
    try: find('tokenizers/punkt_tab')
    except LookupError:
        with pytest.raises(LookupError, match='punkt_tab'): SummaCZS.original(spread).score(['A source.'], ['A summary.'])
    else: assert SummaCZS.original(spread).score(['A source of words.'], ['A summary of words.']).scored==1

def test_limits_are_said():
    found = SummaCZS(spread, source_limit=2, summary_limit=1).score(['One. Two. Three. Four.'], ['One. Two.'])
    assert found.notes==('2 parts of sources were too short or beyond the limit, and not read', '1 parts of summaries were too short or beyond the limit, and not read')
    assert SummaCZS(spread).score(['One. Two.'], ['One.']).notes==()

def test_cut_pairs_are_said():
    model,tokenizer = bert()
    found = SummaCZS(EntailmentModel((model, tokenizer), max_length=20)).score(['w1 w2. '+'w3 '*40+'.'], ['w1 w2.'])
    assert found.notes==('1 of 2 pairs fill all tokens that the model reads, and may have been cut',)

# ---- Odd input, one by one

def judges(**settings): return SummaCZS(spread, **settings),SummaCConv(spread, head=toy_head(), **settings)

@pytest.mark.parametrize('source, summary', [('', 'A summary.'), ('A source.', ''), ('', ''), (' \n\t', 'A summary.'), ('A source.', '\n\n \n')])
@pytest.mark.parametrize('granularity', ['sentence', 'paragraph', 'document'])
def test_an_empty_side_has_no_score(source, summary, granularity):
    for o in judges(granularity=granularity):
        found = o.score([source, 'A source.'], [summary, 'A summary.'])
        assert np.isnan(found.values).tolist()==[True, False] and found.notes==('1 of 2 pairs have no parts on one side; such a pair has no score',)
        assert found.parts['sentence_scores'][0]==found.parts['evidence'][0]==[]
        assert np.isfinite(type(o)(spread, granularity=granularity, empty='zero', **dict(head=toy_head()) if 'conv' in o.name else {}).score([source], [summary]).values).all()

def test_nothing_at_all():
    for o in judges(): assert len(o.score([], []))==0

def test_only_empty_ones_load_no_model():
    assert np.isnan(SummaCZS('nobody/nothing').score(['', 'A source.'], ['A summary.', '']).values).all()

def test_one_word():
    for o in judges(): assert o.score(['Word'], ['Word']).scored==1 and o.score(['w1 w2. w3 w4.'], ['x']).scored==1

def test_a_summary_longer_than_its_source():
    (source,),(summary,) = documents(1, 2, 2)
    found = SummaCZS(spread).score([source], [long := summary+' '+text(random.Random(1), 60)])
    assert len(found.parts['sentence_scores'][0])==len(split_sentences(long)) and abs(found.values[0]-plain_zs(source, long, lambda d,s: spread([(d, s)])[0]))<1e-12

@pytest.mark.parametrize('o', ['👩🏽‍🚀🚀🔥', 'مرحبا بالعالم. كيف الحال؟', '日本語の文です。もう一つ。', 'Привет мир. 안녕하세요. Hello 👋 world! ¿Qué tal?', '\x00\u200b\ufeff.', '...!?', '\ud800 alone.'])
def test_any_script(o):
    for judge in judges():
        found = judge.score([o, 'A source.'], ['A summary. 中文。', o])
        assert found.scored==2, found
    repr(SummaCZS(spread).claims(o, o)), SummaCZS(spread).claims(o, o)._repr_html_()

def test_a_source_of_a_hundred_thousand_words():
    g = random.Random(0)
    source = ' '.join(' '.join(f'w{g.randint(0, 59)}' for _ in range(20)).capitalize()+'.' for _ in range(5_000))
    def quick(pairs): return np.array([[len({*a.lower().rstrip('.').split()} & {*b.lower().rstrip('.').split()})/9, 0, 0] for a,b in pairs]).clip(0, 1)
    scorer = EntailmentFunction(quick, 'quick')
    found = SummaCZS(scorer).score([source], ['W1 w2 w3. W4 w5 w6.'])
    assert len(source.split())==100_000 and scorer.asked==10_000 and found.scored==1
    conv = SummaCConv(scorer, head=toy_head()).score([source], ['W1 w2 w3. W4 w5 w6.'])
    assert conv.values[0] in (0, 1) or 0<conv.values[0]<1 and np.isfinite(conv.parts['logits'][0]).all()
    assert SummaCZS(bert(), granularity=('document', 'sentence')).score([source], ['W1 w2.']).scored==1
    assert SummaCZS(scorer, source_limit=100).score([source], ['W1 w2 w3.']).notes==('4,900 parts of sources were too short or beyond the limit, and not read',)

def test_nan_of_a_model_is_an_error_and_no_score():
    model,tokenizer = bert()
    with torch.no_grad(): model.classifier.weight[:] = math.nan
    for o in (SummaCZS((model, tokenizer)), SummaCConv((model, tokenizer), head=toy_head())):
        with pytest.raises(ValueError, match='must give probabilities, got entailment nan for premise'): o.score(['w1 w2.'], ['w3.'])

@pytest.mark.parametrize('sources, summaries, error', [('text', ['a'], TypeError), (['a'], [None], TypeError), (['a', 'b'], ['c'], ValueError), ([3], ['a'], TypeError)])
def test_input_that_is_none(sources, summaries, error):
    for o in judges():
        with pytest.raises(error, match='`sources`|`summaries`'): o.score(sources, summaries)

@pytest.mark.parametrize('settings, said', [(dict(granularity='word'), '`granularity`'), (dict(granularity=['sentence']), '`granularity`'), (dict(splitter='spacy'), '`splitter`'), (dict(shortest=0), '`shortest`'),
                                            (dict(source_limit=0), '`source_limit`'), (dict(summary_limit=1.5), '`summary_limit`'), (dict(empty='0'), '`empty`')])
def test_settings_that_make_no_sense(settings, said):
    for judge in (SummaCZS, SummaCConv):
        with pytest.raises(ValueError, match=said): judge(**settings)
    with pytest.raises(ValueError, match='got neither'): SummaCZS(use_entailment=False)

def test_contradiction_needs_a_model_that_knows_it():
    two = bert({0: 'entailment', 1: 'not_entailment'})
    with pytest.raises(ValueError, match='`use_contradiction` needs a model that knows contradiction'): SummaCZS(two, use_contradiction=True).score(['w1.'], ['w2.'])
    assert SummaCZS(two).score(['w1.'], ['w2.']).scored==SummaCConv(two, head=toy_head()).score(['w1.'], ['w2.']).scored==1
    assert SummaCZS(two).claims('w1.', 'w2.').to_pandas().verdict[0] in VERDICTS

# ---- The head

def write_head(path, head=None, **changed):
    tensors = {k: v.clone().float() for k,v in as_tensors(head or toy_head()).items()}|changed
    if path.suffix=='.safetensors': save_file(tensors, path)
    else: torch.save(tensors, path)
    return path

@pytest.mark.parametrize('name', ['mine.bin', 'mine.safetensors'])
def test_a_head_of_ones_own_is_a_choice(name, tmp_path):
    path = write_head(tmp_path/name)
    for wrong in (lambda: open_head(path), lambda: SummaCConv(spread, head=path)):
        with pytest.raises(ValueError, match=f'`head` must have sha256 {HEAD_SHA256}, got .*sha256=None'): wrong()
    head = open_head(path, sha256=None)
    sources,summaries = documents(5)
    assert np.allclose(SummaCConv(spread, head=head).score(sources, summaries).values, SummaCConv(spread, head=toy_head()).score(sources, summaries).values, atol=1e-5)
    assert head.fingerprint==f'sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}'==SummaCConv(spread, head=head).settings()['head']
    assert open_head(path, sha256=head.sha256).fingerprint==head.fingerprint

class Trap:
    def __reduce__(self): return (print, ('trapped',))

@pytest.mark.parametrize('content', [b'', b'no tensors', {'mlp.weight': torch.zeros(1, 23)}, {'a': 1}, [1, 2], {'mlp.weight': torch.zeros(2, 23), 'mlp.bias': torch.zeros(1), 'layer_final.weight': torch.zeros(2, 3), 'layer_final.bias': torch.zeros(2)},
                                     {'mlp.weight': torch.zeros(1, 50), 'mlp.bias': torch.zeros(1), 'layer_final.weight': torch.zeros(2, 3), 'layer_final.bias': torch.zeros(2)},
                                     {'mlp.weight': torch.full((1, 23), math.nan), 'mlp.bias': torch.zeros(1), 'layer_final.weight': torch.zeros(2, 3), 'layer_final.bias': torch.zeros(2)}, Trap()])
def test_files_that_are_no_head(content, tmp_path, capsys):
    path = tmp_path/'head.bin'
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match='head'): open_head(path, sha256=None)
    assert 'trapped' not in capsys.readouterr().out
    with pytest.raises(ValueError, match='and there is none'): SummaCConv(spread, head=tmp_path/'nowhere.bin')

def publish(monkeypatch, tmp_path, data):
    "The network, which holds one file"
    asked = []
    def urlopen(address, timeout):
        asked.append(address)
        if data is None: raise OSError('no route')
        return io.BytesIO(data)
    monkeypatch.setattr(urllib.request, 'urlopen', urlopen)
    monkeypatch.setenv('COMPRESSCAL_CACHE', str(tmp_path/'cache'))
    return asked

def test_the_published_head_is_fetched_once(head_file, monkeypatch, tmp_path):
    asked = publish(monkeypatch, tmp_path, head_file.read_bytes())
    judge = SummaCConv(spread)
    local = SummaCConv(spread, head=head_file)
    assert judge.settings()==local.settings() and asked==[] # nothing is fetched to say what it will be
    sources,summaries = documents(4)
    for _ in range(2): assert (SummaCConv(spread).score(sources, summaries).values==local.score(sources, summaries).values).all()
    assert asked==[HEAD_ADDRESS] and judge.settings()['head']==f'sha256:{HEAD_SHA256}'
    kept = tmp_path/'cache'/'summac'/head_file.name
    kept.write_bytes(b'spoilt')
    with pytest.raises(ValueError, match='remove .*and it will be fetched again'): judge.score(sources, summaries)

def test_a_wrong_head_is_refused_and_leaves_nothing(monkeypatch, tmp_path):
    publish(monkeypatch, tmp_path, b'another file')
    scorer = EntailmentFunction(spread)
    with pytest.raises(ValueError, match=f'must have sha256 {HEAD_SHA256}'): SummaCConv(scorer).score(['A source.'], ['A summary.'])
    assert scorer.asked==0 and not [o for o in tmp_path.rglob('*') if o.is_file()] # refused before the long work

def test_no_connection(monkeypatch, tmp_path):
    publish(monkeypatch, tmp_path, None)
    with pytest.raises(ValueError, match='could not be fetched .no route.: give `head` a local copy of https'): SummaCConv(spread).score(['A source.'], ['A summary.'])

def test_long_documents_saturate_and_logits_do_not(head_file):
    judge = SummaCConv(lambda pairs: [[.999, .001, 0]]*len(pairs), head=head_file)
    found = judge.score([' '.join(f'W{i} is.' for i in range(n)) for n in (10, 50, 400, 800)], ['A summary.']*4)
    margin = np.array([b-a for a,b in found.parts['logits']])
    assert found.values[2]==found.values[3]==1 and (np.diff(margin)>0).all()

# ---- What is returned

def test_scores_and_their_parts():
    sources,summaries = documents(6)
    for judge in judges():
        found = judge.score(sources, summaries)
        assert isinstance(found, Scores) and isinstance(judge, Judge) and found.name in METRICS and metric_of(judge).bounds==(0, 1) and found.bounds==(0, 1)
        assert json.loads(json.dumps(found.settings))==found.settings==judge.settings()
        for i,(a,b) in enumerate(zip(sources, summaries)):
            assert found.parts['sentences'][i]==split_sentences(b)
            for s,best in zip(split_sentences(b), found.parts['evidence'][i]): assert max(split_sentences(a), key=lambda d: spread([(d, s)])[0][0])==best
        table = found.to_pandas()
        assert list(table)[:2]==[judge.name, 'sentences'] and len(table)==6
    zs,conv = (o.score(sources, summaries) for o in judges())
    assert np.allclose(zs.values, [np.mean(o) for o in zs.parts['sentence_scores']])
    odds = [np.mean([math.log(p/(1-p)) for p in o]) for o in conv.parts['sentence_scores']]
    assert np.allclose([b-a for a,b in conv.parts['logits']], odds) and np.allclose(conv.values, 1/(1+np.exp(-np.array(odds))))
    assert SummaCZS(spread, use_contradiction=True).bounds==(-1, 1)

def test_settings_tell_judges_apart():
    made = [SummaCZS(spread), SummaCZS(spread, splitter='lines'), SummaCZS(spread, granularity='document'), SummaCZS(spread, use_contradiction=True), SummaCZS(spread, empty='zero'),
            SummaCZS(len), SummaCZS(spread, source_limit=100), SummaCConv(spread), SummaCConv(spread, head=toy_head(0)), SummaCConv(spread, head=toy_head(1))]
    assert len({json.dumps(o.settings()) for o in made})==len(made) and SummaCConv(spread, head=toy_head()).settings()==SummaCConv(spread, head=toy_head()).settings()
    assert 'SummaCZS(EntailmentModel(tals/albert-xlarge-vitaminc-mnli, max_length=500), granularity=' in repr(SummaCZS())

def test_scores_make_a_risk():
    sources,summaries = documents(20)
    judge = SummaCZS(spread)
    risk = risk_ratio(judge.score(sources, summaries), judge.score(sources, summaries[::-1]))
    assert risk.n==20 and 0<risk.estimate<9 and 'SummaC-ZS' in repr(risk)

# ---- Claims

ANSWERS = {('Ann won.', 'Ann won it.'): [.9, .1, 0], ('Bob lost.', 'Bob won.'): [.01, .19, .8], ('Bob lost.', 'Carl slept.'): [.3, .7, 0]}
def told(pairs): return [ANSWERS.get(o, [.05, .9, .05]) for o in pairs]

def test_claims():
    for judge in (SummaCZS(told), SummaCConv(told)): # no head is needed to look
        found = judge.claims('Ann won. Bob lost.', 'Ann won it. Bob won. Carl slept.')
        table = found.to_pandas()
        assert table.verdict.tolist()==['supported', 'contradicted', 'unsupported'] and table.evidence.tolist()==['Ann won.', 'Bob lost.', 'Bob lost.']
        assert table.claim.tolist()==['Ann won it.', 'Bob won.', 'Carl slept.'] and table.source_part.tolist()==[0, 1, 1] and table.entailment.tolist()==[.9, .05, .3]
        above,below = found.texts
        assert [(o.label, o.colour, above.text[o.start:o.end]) for o in above.marks]==[('1', 'green', 'Ann won it.'), ('2', 'violet', 'Bob won.'), ('3', 'red', 'Carl slept.')]
        assert [(o.label, below.text[o.start:o.end]) for o in below.marks]==[('1', 'Ann won.'), ('2', 'Bob lost.'), ('3', 'Bob lost.')]
        assert repr(found).startswith('Summary: 1 of 3 claims supported\n>>>Ann won it.<<<[1]') and '>>>Bob lost.<<<[2, 3]' in repr(found)
        assert found._repr_html_().count('<sup>')==5 and 'title="supported: entailment 0.90, contradiction 0.05"' in found._repr_html_()

def test_claims_follow_the_threshold():
    support = SummaCZS(told).claims('Ann won. Bob lost.', 'Ann won it. Bob won. Carl slept.').support
    verdicts = lambda t: Claims(support, t).to_pandas().verdict.tolist()
    assert verdicts(0)==['supported']*3 and verdicts(.3)==['supported', 'contradicted', 'supported'] and verdicts(.9)==['supported', 'unsupported', 'unsupported'] and verdicts(1)==['unsupported']*3
    for bad in (-1, 2, True):
        with pytest.raises(ValueError, match='`threshold`'): Claims(support, bad)

def test_claims_of_nothing_and_of_odd_texts():
    for a,b in (('', 'A claim.'), ('A source.', ''), ('', '')):
        found = SummaCZS(told).claims(a, b)
        assert len(found)==len(found.to_pandas())==0 and '0 of 0 claims' in repr(found) and list(found.to_pandas())[:2]==['claim', 'verdict']
    found = SummaCZS(told).claims('<b>A</b> & so.', '<script>x</script> said.')
    assert '<script>' not in found._repr_html_() and '&lt;script&gt;' in found._repr_html_()
    assert '[...]' in repr(SummaCZS(told).claims('Ann won. '+'Nothing happened there. '*30+'Bob lost.', 'Ann won it.', context=2))
    assert SummaCZS(told, granularity='document').claims('Ann won. Bob lost.', 'Carl slept.').texts[1].marks[0].end==18

def test_support_as_a_table():
    o, = find_support(['Ann won. Bob lost.'], ['Ann won it. Bob won.'], told)
    assert o.to_pandas().loc['Ann won.', 'Ann won it.']==.9 and o.to_pandas().shape==(2, 2) and o.best==[0, 0] and o.contradiction[1, 1]==.8
