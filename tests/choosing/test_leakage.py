"Shared runs and near copies: what a plain search finds, on any kind of input, and text shown as it stands."
import re, subprocess, sys, time
import numpy as np, pytest, torch
from conftest import root
from compresscal.text.installed_text import Document
from compresscal.choosing.leakage import _documents, _one_row, _near_copies, _shingles, _Vocabulary, common_texts, leakage, plot_leakage
from compresscal.calibration.calibration_set import CalibrationSet

def random_texts(seed, n, size=60, vocabulary=12):
    g = np.random.default_rng(seed)
    return [' '.join(f'w{i}' for i in g.integers(0, vocabulary, g.integers(1, size))) for _ in range(n)]

def plain_search(calibration, evaluation, n):
    "For each evaluation document the starts of runs that stand in the calibration text"
    split = lambda o: re.findall(r'\w+', o.lower())
    known = {tuple(w[i:i+n]) for o in calibration for w in [split(o)] for i in range(len(w)-n+1)}
    return [[i for i in range(len(w)-n+1) if tuple(w[i:i+n]) in known] for o in evaluation for w in [split(o)]]

@pytest.mark.parametrize('n', [1, 2, 3, 5, 13])
def test_runs_are_those_of_a_plain_search(n):
    a,b = random_texts(n, 20),random_texts(n+100, 30)
    b[3] = 'before '+a[5]+' after'
    found,expected = leakage(a, b, n, near=None),plain_search(a, b, n)
    assert found.found==sum(map(len, expected))
    for d,(text,starts) in enumerate(zip(b, expected)):
        runs = max(len(text.split())-n+1, 0)
        assert (found.shares[d]==len(starts)/runs) if runs else np.isnan(found.shares[d])
        covered = {i for o in found.matches if o.document==d for i in range(o.start, o.end)}
        assert covered=={i+j for i in starts for j in range(n)}
    for o in found.matches: # the head of each match stands where it is said to stand
        assert b[o.document].split()[o.start:o.start+n]==a[o.source].split()[o.source_start:o.source_start+n]

def test_matches_of_a_document_do_not_overlap():
    found = leakage(random_texts(0, 20), random_texts(1, 30), 3, near=None)
    for d in found.offending:
        spans = [(o.start, o.end) for o in found.matches if o.document==d]
        assert spans==sorted(spans) and all(a[1]<=b[0] for a,b in zip(spans, spans[1:]))

def test_case_and_punctuation_do_not_matter():
    assert leakage(['İstanbul, the CITY: of "seven" hills!'], ['(the city; of Seven hills)'], 5).found==1
    assert leakage(['a-b c'], ['a b c'], 3).found==1 and leakage(['ab c'], ['a b c'], 2).found==0

def near_pairs(seed, n=150, words=120):
    g = np.random.default_rng(seed)
    originals = [' '.join(f'w{i}' for i in g.integers(0, 5000, words)) for _ in range(n)]
    change = lambda text, share: ' '.join('changed' if g.random()<share else o for o in text.split())
    return originals,[change(o, s) for o,s in zip(originals, g.uniform(0, .06, n))]

def exact_similarities(a, b):
    vocabulary = _Vocabulary()
    x,y = (list(_shingles(_one_row(o, vocabulary), 5)) for o in (a, b))
    return np.array([len({*p} & {*q})/len({*p} | {*q}) for p,q in zip(x, y)])

def test_near_copies_are_found_and_their_similarity_is_exact():
    missed,pairs = 0,0
    for seed in range(4):
        a,b = near_pairs(seed)
        similar,found = exact_similarities(a, b),{o.document: o for o in leakage(a, b, near=.8).copies if not o.within}
        for d,s in enumerate(similar):
            if d in found: assert found[d].source==d and found[d].similarity==s>=.8
            elif s>=.8: missed += 1
        pairs += int((similar>=.8).sum())
    assert pairs>200 and missed/pairs<.01

def test_a_document_shorter_than_a_short_run_has_copies_too():
    assert [o.similarity for o in leakage(['two words', 'three'], ['Two words!', '', 'other'], near=.9).copies]==[1]

def test_a_document_within_another_is_a_copy():
    page,other = (' '.join(f'{w}{i}' for i in range(60)) for w in ('word', 'other'))
    for a,b in ((page, f'{other} {page} {other} {other}'), (f'{other} {page} {other}', page)):
        copy, = leakage([other[:90], a], [b, 'nothing of it']).copies
        assert (copy.document, copy.source, copy.similarity, copy.within)==(0, 1, 1, True)
    assert common_texts([page], [page[:200]+' and '+other], share=.9)==[] and leakage([page], [f'{other} {page} {other}'], near=None).copies==()
    assert common_texts([[0,5,6,7,8]], [[9,5,6,7]], 3, .5)==[(0, 0, .5)]

def test_any_kind_of_documents():
    ids = [[5,6,7,8], [9,5,6,7]]
    kinds = [ids, np.array(ids), torch.tensor(ids), list(torch.tensor(ids)), (tuple(o) for o in ids), CalibrationSet.from_tokens(torch.tensor(ids)), [list(map(np.int64, o)) for o in ids]]
    for kind in kinds: assert leakage(kind, [[0,5,6,7]], 3).found==1
    assert leakage((Document(o, str(i)) for i,o in enumerate(['a b c d'])), ['b c d'], 3).found==1
    padded = CalibrationSet.from_tokens(torch.tensor([[5,6,0,0], [7,8,9,5]]), torch.tensor([[1,1,0,0],[1,1,1,1]]).bool())
    assert leakage(padded, [[6,0,0]], 3).found==0 and leakage(padded, [[7,8,9]], 3).found==1

@pytest.mark.parametrize('calibration, evaluation, error', [
    ('one text', ['a'], 'list of documents'), (b'bytes', ['a'], 'list of documents'), ([b'bytes'], ['a'], 'all texts or all rows'), ([[1.5]], [[1]], 'all texts or all rows'),
    (['a', [1]], ['a'], 'all texts or all rows'), ([1, 2], [[1]], 'all texts or all rows'), (['a'], [[1]], 'both be texts'), ([None], ['a'], 'all texts or all rows')])
def test_wrong_kinds_are_refused(calibration, evaluation, error):
    with pytest.raises(TypeError, match=error): leakage(calibration, evaluation)

@pytest.mark.parametrize('settings', [dict(n=0), dict(n=2.5), dict(n=-1), dict(words=0), dict(permutations=0), dict(near=0), dict(near=-.1), dict(near=1.1), dict(near=float('nan')), dict(ignore=[1])])
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ValueError, match=f'`{next(iter(settings))}` must'): leakage(['a'], ['a'], **settings)

def test_nothing_in_common_and_nothing_long_enough():
    clean = leakage(['a b c d'], ['e f g h'], 3)
    assert (clean.found, clean.share_of_runs, clean.share_of_documents, clean.offending, len(clean.to_pandas()))==(0, 0, 0, [], 0)
    short = leakage(['a b'], ['e f', ''], 3)
    assert (short.runs, short.too_short, short.share_of_runs, short.share_of_documents)==(0, 2, 0, 0) and np.isnan(short.shares).all()
    assert '0 of 0 (0.0%)' in repr(short) and '0 of 0' in short._repr_markdown_()
    with pytest.raises(ValueError, match='`calibration` must hold at least one'): leakage([], ['a'])

def test_ignored_ids_stand_in_no_run():
    a,b = [[0,5,6,7]],[[0,5,6,7,0,5,6]]
    assert leakage(a, b, 3).found==3 and leakage(a, b, 3, ignore=[0]).found==1 and leakage(a, b, 3, ignore=np.array([0])).found==1

@pytest.mark.parametrize('context', [None, 0, 1, 5, 60])
def test_a_document_is_shown_as_it_stands(context):
    a,b = random_texts(0, 5),['<b>Start &amp;</b>\n\n  '+', '.join(random_texts(0, 5))+' -- the end\n', 'none in common & <i>']
    found = leakage(a, b, 4)
    for d in range(2):
        marked = found.show(d, context=context)
        parts = list(marked.parts())
        at = 0
        for t,_ in parts: # what is shown stands in the text, in this order
            if t is not None: at = b[d].index(t, at)+len(t)
        if context is None: assert ''.join(t for t,_ in parts)==b[d]
        assert sum(m is not None for _,m in parts)==sum(o.document==d for o in found.matches)
        body = marked._repr_html_().split('<div')[1]
        assert '<b>' not in body and '<i>' not in body and body.count('<mark ')==body.count('</mark>')

def test_token_ids_are_shown_as_text_by_a_tokenizer(tiny_tokenizer):
    ids = tiny_tokenizer('hello world')['input_ids']
    marked = leakage([ids[3:9]], [ids], 4).show(0, tiny_tokenizer)
    assert [t for t,m in marked.parts() if m]==[tiny_tokenizer.decode(ids[3:9])]

def test_the_same_twice():
    a,b = near_pairs(9)
    first,second = leakage(a, b),leakage(a, b)
    assert first.matches==second.matches and first.copies==second.copies and first.offending==second.offending

def test_the_table_is_worst_first():
    text = ' '.join(f'w{i}' for i in range(200))
    found = leakage([text], ['nothing of it', ' '.join(text.split()[:40]+['x']*60), text], 13)
    table = found.to_pandas()
    assert table.document.tolist()==[2, 1] and table.longest.tolist()==[200, 40] and table.copy_of.tolist()[0]==0 and table.isna().copy_of.tolist()==[False, True]
    assert table.excerpt[1].startswith('w0 w1 w2')

def test_the_picture_has_a_line_for_each_source():
    a,b = random_texts(0, 20),random_texts(1, 30)
    picture = plot_leakage(dict(first=a, second=b), b, lengths=(2, 4, 8))
    assert 'second goes from 100 at 2 to 100 at 8' in picture.alt
    shares = [100*leakage(a, b, n, near=None).share_of_documents for n in (2, 4, 8)]
    assert f'first goes from {shares[0]:.4g} at 2 to {shares[-1]:.4g} at 8' in picture.alt

def test_torch_is_not_loaded():
    code = 'import sys; from compresscal.choosing.leakage import leakage; leakage(["a b c"], ["a b c"], 2); print([o for o in ("torch", "transformers") if o in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True, check=True).stdout.strip()=='[]'

def test_real_text(shared):
    "A calibration file that another compressor ships holds nothing of WikiText's validation part, until a paragraph is put there"
    paragraphs = [o for o in (shared/'data'/'text_wikitext2'/'wiki.valid.txt').read_text().split('\n') if len(o.split())>60][:400]
    shipped = [o for o in (shared/'data'/'text_exllamav2_cal'/'wiki.utf8').read_text().split('\n') if o.strip()]
    assert leakage(shipped, paragraphs).offending==[]
    accident = leakage(shipped+[paragraphs[7]], paragraphs)
    assert accident.offending==[7] and accident.shares[7]==accident.copies[0].similarity==1 and accident.matches[0].source==len(shipped)
    assert leakage(paragraphs, paragraphs).share_of_runs==1

@pytest.mark.slow
def test_ten_thousand_documents_take_seconds():
    g = np.random.default_rng(0)
    words = np.array([f'w{i}' for i in range(50_000)])
    a,b = ([' '.join(words[np.minimum(g.zipf(1.3, 300)-1, 49_999)]) for _ in range(10_000)] for _ in range(2))
    start = time.process_time()
    leakage(a, b)
    assert time.process_time()-start<60 # 6 s here

def plainly_contained(calibration, evaluation, n, share):
    "Pairs of which so much of the shorter's different runs is in the longer"
    def runs(text): return {tuple(words[i:i+n]) for words in [text.split()] for i in range(len(words)-n+1)}
    pairs = ((i, j, a, b) for i,a in enumerate(map(runs, calibration)) for j,b in enumerate(map(runs, evaluation)) if a and b)
    found = [(i, j, len(a&b)/min(len(a), len(b))) for i,j,a,b in pairs]
    return [o for o in found if o[2]>=share]

@pytest.mark.parametrize('n', [2, 3, 5])
def test_containment_is_that_of_a_plain_count(n):
    "Texts of very different lengths, some of which are cut from others"
    a = [o for o in random_texts(n, 40, 80, 30) if len(o.split())>=n]
    b = [o for o in random_texts(n+9, 40, 15, 30) if len(o.split())>=n]+[' '.join(o.split()[3:]) for o in a if len(o.split())>n+4]
    found = common_texts(a, b, n, .3)
    assert [o[:2] for o in found]==[o[:2] for o in plainly_contained(a, b, n, .3)] and len(found)>20
    assert [o[2] for o in found]==pytest.approx([o[2] for o in plainly_contained(a, b, n, .3)])
