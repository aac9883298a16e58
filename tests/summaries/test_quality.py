"Quality: rouge-score's numbers on real summaries, means with and without what is no summary, never a silent zero."
import json, math
import numpy as np
import pandas as pd
import pytest
from rouge_score import rouge_scorer
from compresscal.summaries.bertscore import BERTScore
from compresscal.summaries.quality import Quality, quality
from compresscal.summaries.summarize import Summaries, degenerate
from compresscal.summaries.summary_sets import SummaryDocument, open_summary_set

pytestmark = pytest.mark.usefixtures('one_thread')

def made(texts, references, meta=None):
    documents = tuple(SummaryDocument(f'd{i}', 'The text.', r, 's', m) for i,(r, m) in enumerate(zip(references, meta or [{}]*len(texts))))
    n = len(texts)
    return Summaries(documents, tuple(texts), ('The text.',)*n, np.zeros(n, bool), np.ones(n, int), np.ones(n, bool), tuple(map(degenerate, texts)), dict(max_tokens=9))

def test_real_summaries_equal_rouge_score(shared):
    raw = json.loads((shared/'data'/'sum_bartscore_human'/'SummEval.json').read_text())
    docs = open_summary_set(shared/'data'/'sum_bartscore_human'/'SummEval.json')
    texts = [next(iter(o['sys_summs'].values()))['sys_summ'] for o in raw.values()]
    found = quality((texts, docs.references), splitter='lines')
    kinds = ['rouge1', 'rouge2', 'rougeL', 'rougeLsum']
    theirs = rouge_scorer.RougeScorer(kinds)
    for i in range(0, 100, 9):
        row = theirs.score(docs.references[i], texts[i])
        for k in kinds: np.testing.assert_allclose(found.scores.loc[i, [f'{k}_precision', f'{k}_recall', f'{k}_f']].astype(float), row[k], atol=1e-12)
    best = quality((texts, [o.meta['references'] for o in docs]), ['rouge1', 'rougeL'], references='best')
    for i in range(0, 100, 17):
        row = theirs.score_multi(docs[i].meta['references'], texts[i])
        for k in ('rouge1', 'rougeL'): assert best.scores.loc[i, f'{k}_f']==pytest.approx(row[k].fmeasure)
    assert (best.scores.rouge1_f>=found.scores.rouge1_f-1e-12).all() and best.means().loc['rouge1_f', 'mean']>found.means().loc['rouge1_f', 'mean']

def test_means_with_and_without():
    good, bad = ['Return the name of the module.']*12, ['the name '*9]*4
    found = quality(made(good+bad+['', '---'], ['Return the name.']*18), ['rouge1'])
    means, scores = found.means(), found.scores.rouge1_f
    assert scores[16:].isna().all() and scores.notna().sum()==16 and found.flags[12:]==('repeated',)*4+('empty',)*2
    row = means.loc['rouge1_f']
    assert (row['n'], row['n_all'])==(12, 16) and row['mean']==pytest.approx(scores[:12].mean()) and row['mean_all']==pytest.approx(scores[:16].mean())
    assert row['low']==pytest.approx(row['high'])==pytest.approx(row['mean']) # twelve alike
    assert '18 documents, 6 answers are no summaries (2 empty, 4 repeated)' in repr(found)

def test_an_interval_holds_the_mean_and_needs_ten():
    rng = np.random.default_rng(0)
    words = 'a return module name of the class value array index for each set given new'.split()
    texts, refs = ([' '.join(rng.permutation(words)[:rng.integers(4, 12)]) for _ in range(40)] for _ in range(2))
    row = quality((texts, refs), ['rouge1']).means().loc['rouge1_f']
    assert row['low']<row['mean']<row['high'] and row['high']-row['low']<.3
    wide = quality((texts, refs), ['rouge1'], level=.99).means().loc['rouge1_f']
    assert wide['low']<row['low'] and wide['high']>row['high']
    few = quality((texts[:9], refs[:9]), ['rouge1'])
    assert np.isnan(few.means().loc['rouge1_f', 'low']) and 'rouge1' in repr(few)

def test_several_references():
    meta = [dict(references=['no match here', 'the cat sat']), {}]
    given = made(['the cat sat', 'a dog ran'], ['no match here', 'a dog'], meta)
    first, best = (quality(given, ['rouge1'], references=o).scores.rouge1_f for o in ('first', 'best'))
    assert first[0]==0 and best[0]==1 and first[1]==best[1]>0

def test_bertscore_beside_rouge():
    scorer = BERTScore('embedded', device='cpu')
    texts, refs = ['Return the name.', '', 'Adjust color balance.', 'x'], ['Return the module name.', 'a', 'Adjust image color balance.', None]
    found = quality((texts, refs), ['rouge1'], scorer)
    plain = scorer.score(texts, refs)
    np.testing.assert_allclose(found.scores[['bertscore_precision', 'bertscore_recall', 'bertscore_f']], plain, atol=1e-5)
    assert found.settings['bertscore']==scorer.settings() and found.without==1 and 'bertscore' in repr(found)
    both = quality((['Return the name.'], [['Adjust image color balance.', 'Return the module name.', ' ']]), [], scorer, references='best')
    assert both.scores.bertscore_f[0]==pytest.approx(plain[0, 2], abs=1e-5) and list(both.scores)==['bertscore_precision', 'bertscore_recall', 'bertscore_f']

def test_nothing_to_compare():
    for found in (quality(made(['a b'], [None])), quality(made([''], ['a'])), quality(([], [])), quality((['a'], [[]])), quality((['a'], [' ']))):
        assert found.scores.isna().all(axis=None) and found.means()['n'].eq(0).all() and repr(found) and found._repr_markdown_() and len(found.to_pandas())==len(found)

def test_any_script():
    found = quality((['这是模块的名称', 'имя модуля'], ['这是模块的名称', 'имя модуля']), ['rouge1'], tokenizer='unicode')
    assert (found.scores.rouge1_f==1).all()

def test_prints():
    found = quality(made(['a b c']*11, ['a b']*11), ['rouge1', 'rougeL'])
    assert all(o.count('|')==7 for o in found._repr_markdown_().splitlines()[2:6]) and len(repr(found).splitlines())==4
    assert isinstance(found, Quality) and list(found.to_pandas().columns)[:2]==['id', 'flag'] and isinstance(found.to_pandas(), pd.DataFrame)
    json.dumps(found.settings)

def test_bad_input():
    for args, kwargs, kind, message in (('text', {}, TypeError, 'got str'), ((['a'], ['a', 'b']), {}, ValueError, 'got 1 and 2'), (([3], ['a']), {}, TypeError, 'got int'), (['ab', 'ac'], {}, TypeError, 'pair of lists'), ((None, ['a']), {}, TypeError, 'pair of lists'), ((['a'], [math.nan]), {}, TypeError, 'references, got float'), ((['a'], [['b', None]]), {}, TypeError, 'references, got NoneType'),
                                        ((['a'], ['a']), dict(kinds=[]), ValueError, 'got neither'),
                                        ((['a'], ['a']), dict(references='worst'), ValueError, "first or best, got 'worst'"), ((['a'], ['a']), dict(kinds=['rouge']), ValueError, 'rouge'), ((['a'], ['a']), dict(level=95), ValueError, '`level`')):
        with pytest.raises(kind, match=message): quality(args, **kwargs).means()
