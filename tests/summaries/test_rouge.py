"ROUGE: to the last bit what rouge-score says, on any text, at any length."
import random, subprocess, sys, time
import numpy as np, pytest
from conftest import root
from rouge_score.rouge_scorer import RougeScorer, _lcs_table, lcs_ind
from compresscal.summaries.rouge import ROUGE_KINDS, PARTS, _lcs_places, _places, _shared_runs, lcs_length, rouge

def plain(a, b): return _lcs_table(a, b)[-1][-1]

def some(g, most, letters='abcde'): return [g.choice(letters) for _ in range(g.randint(0, most))]

def test_the_subsequence_is_as_long_as_in_the_full_table():
    g = random.Random(0)
    for most in (3, 10, 70, 130):
        for _ in range(40):
            a,b = some(g, most),some(g, most, 'abcdexyz')
            assert lcs_length(a, b)==lcs_length(b, a)==plain(a, b)

@pytest.mark.parametrize('kept', [0, 2**26])
def test_the_subsequence_is_the_one_rouge_score_takes(kept):
    g = random.Random(1)
    for _ in range(400):
        a,b = some(g, 40, 'abcdefgh'),some(g, 40, 'abcdexyz')
        assert _lcs_places(a, _places(b), len(b), kept)==lcs_ind(a, b)

def random_text(g, sentences=5, length=12, words='the cat sat on a mat running runs runner houses House 3.5 naïve 1990s e-mail'.split()):
    return '\n'.join(' '.join(g.choice(words) for _ in range(g.randint(1, length))) for _ in range(g.randint(1, sentences)))

@pytest.mark.parametrize('stem', [False, True])
def test_all_kinds_are_those_of_rouge_score(stem):
    g,kinds = random.Random(2),[*ROUGE_KINDS, 'rouge3', 'rouge9']
    pairs = [(random_text(g), random_text(g)) for _ in range(150)]
    found = rouge([a for a,_ in pairs], [b for _,b in pairs], kinds, stem=stem, splitter='lines')
    scorer = RougeScorer(kinds, use_stemmer=stem)
    for i,(a,b) in enumerate(pairs):
        theirs = scorer.score(b, a)
        for k in kinds:
            ours = found.loc[i, [f'{k}_{p}' for p in PARTS]].to_numpy()
            assert np.nan_to_num(ours)==pytest.approx(list(theirs[k]), abs=0, rel=1e-15) # nan is where rouge-score takes a share of nothing

def test_the_splitter_is_used(monkeypatch):
    import nltk
    from compresscal.text.sentences import split_sentences
    monkeypatch.setattr(nltk, 'sent_tokenize', split_sentences)
    a,b = "The cat sat. A dog ran. It sat.","It ran. The dog and the cat sat."
    theirs = RougeScorer(['rougeLsum'], split_summaries=True).score(b, a)['rougeLsum']
    assert rouge([a], [b], ['rougeLsum']).iloc[0].tolist()==pytest.approx(list(theirs))
    assert rouge([a], [b], ['rougeLsum'], splitter='lines').iloc[0].tolist()!=pytest.approx(list(theirs))

def test_of_several_references_the_best_counts():
    g = random.Random(3)
    references,predictions = [[random_text(g) for _ in range(4)] for _ in range(40)],[random_text(g) for _ in range(40)]
    found,scorer = rouge(predictions, references, splitter='lines'),RougeScorer([*ROUGE_KINDS])
    for i,(r,p) in enumerate(zip(references, predictions)):
        theirs = scorer.score_multi(r, p)
        assert [np.nan_to_num(found.loc[i, f'{k}_f']) for k in ROUGE_KINDS]==pytest.approx([theirs[k].fmeasure for k in ROUGE_KINDS])

def test_shared_runs_are_counted_with_their_multiplicity():
    g = random.Random(4)
    for n in (1, 2, 3):
        for _ in range(50):
            a,b = some(g, 20, 'ab'),some(g, 20, 'abc')
            runs = lambda o: [tuple(o[i:i+n]) for i in range(len(o)-n+1)]
            assert _shared_runs(a, b, n)==sum(min(runs(a).count(o), runs(b).count(o)) for o in set(runs(a)))

@pytest.mark.parametrize('prediction, reference', [('', ''), ('', 'a b'), ('a b', ''), (' \n', 'a b'), ('🙂', 'a b'), ('今天', '今天')])
def test_without_words_there_is_no_score(prediction, reference): assert rouge([prediction], [reference]).isna().all(axis=None)

def test_one_word():
    found = rouge(['one', 'one two', 'one'], ['one', 'one', 'one two'])
    assert found.rouge1_f.tolist()==[1, 2/3, 2/3]
    assert np.isnan(found.rouge2_f).all() and found.rouge2_precision.isna().tolist()==[True, False, True] and found.rouge2_recall.isna().tolist()==[True, True, False]

def test_other_scripts_with_their_own_words():
    assert rouge(['今天下雨'], ['今天下雪'], ['rouge1', 'rouge2', 'rougeL'], tokenizer='unicode').filter(like='_f').iloc[0].tolist()==pytest.approx([.75, 2/3, .75])
    assert rouge(['Он читал'], ['он писал'], ['rouge1'], tokenizer='unicode').rouge1_f[0]==.5
    assert rouge(['a-b c'], ['a-b d'], ['rouge1'], tokenizer=str.split).rouge1_f[0]==.5

@pytest.mark.parametrize('arguments, settings, error', [
    (('a', ['a']), {}, TypeError), ((['a'], 'a'), {}, TypeError), ((['a'], [None]), {}, TypeError), (([1], ['a']), {}, TypeError), ((['a'], [['a', 2]]), {}, TypeError), ((['a'], [[]]), {}, TypeError),
    ((['a'], ['a', 'b']), {}, ValueError), ((['a'], ['a']), dict(kinds='rouge1'), ValueError), ((['a'], ['a']), dict(kinds=[]), ValueError), ((['a'], ['a']), dict(kinds=['rouge10']), ValueError),
    ((['a'], ['a']), dict(splitter='none'), ValueError), ((['a'], ['a']), dict(tokenizer='none'), ValueError)])
def test_wrong_input_is_refused(arguments, settings, error):
    with pytest.raises(error, match='`(predictions|references|kinds|splitter|tokenizer)` must'): rouge(*arguments, **settings)

def test_no_pairs(): assert rouge([], []).shape==(0, 12)

def test_long_texts_take_seconds():
    g = np.random.default_rng(0)
    text = lambda n: ' '.join(f'w{i}' for i in np.minimum(g.zipf(1.2, n), 50_000))
    long,other,short = text(100_000),text(40_000),text(200)
    for a,b,kinds in [(short, long, ROUGE_KINDS), (long, short, ROUGE_KINDS), (other, long, ['rougeL']), (text(5_000), text(20_000), ['rougeLsum'])]:
        start = time.process_time()
        assert 0<rouge([a], [b], kinds).iloc[0].min()<1
        assert time.process_time()-start<20 # about a second here

def test_torch_is_not_loaded():
    code = 'import sys; from compresscal.summaries.rouge import rouge; rouge(["a b."], ["a b c"], stem=True); print([o for o in ("torch", "transformers") if o in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True, check=True).stdout.strip()=='[]'
