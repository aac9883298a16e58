"Reviews: every number is that of the part it comes from, controls are what they say, records come back."
import json
import numpy as np
import pandas as pd
import pytest
from compresscal.hallucination.judges import FunctionJudge
from compresscal.summaries.overlap import overlap
from compresscal.summaries.quality import quality
from compresscal.hallucination.reviews import ABOUT, CONTROLS, controls, review, review_from, review_record
from compresscal.text.sentences import split_sentences
from compresscal.summaries.summarize import Summaries, degenerate
from compresscal.summaries.summary_sets import SummaryDocument

SOURCES = ('Alice met Bob in Paris in 1999. They drank tea. It rained.', 'The list holds 3 items. Each item has a name.', 'Snow fell on the hills. Nobody came.',
           'Call `run_all` first. Then wait.')

def made(texts, references=('Alice drank tea.', None, 'Snow fell.', 'Call run_all.'), datasets=('a', 'a', 'b', 'b'), sources=SOURCES):
    documents = tuple(SummaryDocument(f'd{i}', s, r, d, {}) for i,(s,r,d) in enumerate(zip(sources, references, datasets)))
    n = len(documents)
    return Summaries(documents, tuple(texts), tuple(sources), np.zeros(n, bool), np.ones(n, int), np.ones(n, bool), tuple(map(degenerate, texts)), dict(max_tokens=9, model=dict(fingerprint='m')))

TEXTS = ('Alice met Bob in London.', 'The list holds 4 items.', '', 'wait wait wait wait wait wait wait wait')
length = FunctionJudge('length', lambda sources, summaries: [len(o) for o in summaries])

def test_numbers_are_those_of_their_parts():
    found = review(made(TEXTS), [length], progress=False)
    copied, near = overlap(SOURCES, TEXTS, progress=False).to_pandas(), quality(made(TEXTS), progress=False).scores
    for k in copied: np.testing.assert_array_equal(found[k], copied[k])
    for k in near: np.testing.assert_array_equal(found[k.replace('_', '_reference_', 1)], near[k])
    np.testing.assert_array_equal(found['length'], [24, 23, np.nan, 39])
    assert list(found.degenerate)==[False, False, True, True] and found.texts==TEXTS and list(found.table)[:3]==list(ABOUT)
    assert found.shown[0]=='length' and len({*found.shown})==len(found.shown)

def test_a_judge_replaces_a_column_of_its_name():
    "The judge that is asked by name is the one that counts"
    found = review(made(TEXTS), [FunctionJudge('unsupported', lambda a, b: [.25]*len(b), (0, 1), False)], progress=False)
    np.testing.assert_array_equal(found['unsupported'], [.25, .25, np.nan, .25])
    assert list(found.table).count('unsupported')==1

def test_without_references():
    found = review(made(TEXTS, (None,)*4), progress=False)
    assert not [k for k in found.table if 'reference' in k] and 'reference' not in controls(made(TEXTS, (None,)*4))

@pytest.mark.parametrize('seed', range(5))
def test_controls(seed):
    written = made(TEXTS)
    found = controls(written, sentences=2, seed=seed)
    assert list(found)==list(CONTROLS) and set(found['empty'].texts)=={''}
    assert found['lead'].texts==tuple(' '.join(split_sentences(o)[:2]) for o in SOURCES)
    assert found['reference'].texts==('Alice drank tea.', '', 'Snow fell.', 'Call run_all.')
    assert found['other'].texts==(TEXTS[1], TEXTS[0], TEXTS[3], TEXTS[2]) # two of a data set can only change places
    for k,o in found.items(): assert o.documents is written.documents and o.flags==tuple(map(degenerate, o.texts)) and o.settings['control']==k

def test_a_document_alone_in_its_set_has_no_other():
    assert controls(made(TEXTS, datasets=('a', 'b', 'b', 'b')))['other'].texts[0]==''

def test_records_come_back():
    found = review(made(TEXTS), [length], progress=False)
    record = review_record(found)
    assert json.loads(json.dumps(record, allow_nan=False))==record
    again = review_from(record)
    pd.testing.assert_frame_equal(again.table, found.table, check_dtype=False)
    assert (again.metrics, again.texts, again.notes)==(found.metrics, found.texts, found.notes)
    assert record['metrics']['length']==pytest.approx(23.5) and record['metrics']['degenerate']==.5 # the repeated one does not count
    assert record['counts']==dict(documents=4, empty=1, garbled=0, echo=0, repeated=1)

def test_all_degenerate_has_no_means():
    record = review_record(review(made(('',)*4), [length], progress=False))
    assert record['metrics']==dict(degenerate=1.)
    assert 'no summaries' in repr(review_from(record)) and '| 4 documents, 4 no summaries' in review_from(record)._repr_markdown_()

@pytest.mark.parametrize('text', ['', 'word', 'x '*100_000, 'Ünïcode 漢字 🙂 نص', '\x00\ufffd'])
@pytest.mark.parametrize('place', ['source', 'summary'])
def test_odd_texts(text, place):
    "Each has a row, and what has no number is nan"
    sources, texts = (list(SOURCES), list(TEXTS))
    (sources if place=='source' else texts)[0] = text
    found = review(made(texts, sources=tuple(sources)), [length], progress=False)
    assert len(found)==4 and found['words'][1]==5 and np.isfinite(found['coverage'][1])
    review_from(json.loads(json.dumps(review_record(found), allow_nan=False)))

@pytest.mark.parametrize('judges,kind,says', [([3], TypeError, 'got int'), ([length, length], ValueError, "two called 'length'"), (['harm'], ValueError, "did you mean 'harim'")])
def test_wrong_judges(judges, kind, says):
    with pytest.raises(kind, match=says): review(made(TEXTS), judges, progress=False)

def test_other_records_are_refused():
    with pytest.raises(ValueError, match='must be that of a review'): review_from(dict(metrics={}, documents={}))
    with pytest.raises(TypeError, match='got list'): review([], progress=False)
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(ValueError, match='`sentences`'): controls(made(TEXTS), sentences=wrong)

def no_column(o): del o['documents']['flag']
def short_column(o): o['documents']['words'].pop()
def lost_summary(o): o['documents']['summary'].pop()
def odd_metric(o): o['review']['metrics']['length']['colour'] = 'red'
def no_notes(o): del o['review']['notes']
def no_numbers(o): o['documents']['words'][0] = 'many'
def no_documents(o): o['documents'] = None

@pytest.mark.parametrize('damage, says', [(no_column, "lacks 'flag'"), (short_column, "'words' has 3 rows where 'dataset' has 4"), (lost_summary, "'summary' has 3 rows"),
    (odd_metric, 'colour'), (no_notes, "lacks 'notes'"), (no_numbers, 'many'), (no_documents, "lacks 'documents'")])
def test_a_damaged_record_says_what_is_wrong(damage, says):
    record = json.loads(json.dumps(review_record(review(made(TEXTS), [length], progress=False))))
    damage(record)
    with pytest.raises(ValueError, match=f'`record` must be that of a review.*{says}'): review_from(record)
