"Dependence on the source against its definition, and what it must be where the truth is known"
import math
import numpy as np, pytest, torch
from compresscal.hallucination.dependence import *
from compresscal.summaries.prompts import fit
from compresscal.hallucination.risk import metric_of, risk_ratio
from conftest import small_model
from test_conditional import plainly
from test_harim import SOURCES, SUMMARIES

pytestmark = pytest.mark.usefixtures('one_thread')

def defined(model, given, without, target):
    "KL of each token over the whole vocabulary, in double precision"
    p, q = (plainly(model, o, target).log_softmax(-1) for o in (given, without))
    return (p.exp()*(p-q)).sum(-1).numpy()

@pytest.mark.parametrize('kind', ['bart', 't5'])
def test_encoder_decoder_equals_its_definition(kind, framed_tokenizer):
    model = small_model(kind, 259)
    ids = lambda text, most: framed_tokenizer(text, truncation=True, max_length=most)['input_ids']
    found = Dependence((model, framed_tokenizer), source_length=250, target_length=40).score(SOURCES, SUMMARIES)
    for a,b,o,v in zip(SOURCES, SUMMARIES, found.parts['kl'], found.values):
        expected = defined(model, ids(a, 250), [0, 1], ids(b, 40))[1:-1] # special tokens are not of the summary
        assert o==pytest.approx(expected, abs=1e-4, rel=1e-5) and v==pytest.approx(expected.mean(), abs=1e-4, rel=1e-5)
    assert found.parts['source_cut']==found.parts['summary_cut']==[False]*4+[True] and len(found.notes)==2

def test_decoder_equals_its_definition(tiny_tokenizer):
    model = small_model('llama', 259)
    found = Dependence((model, tiny_tokenizer), prompt='question').score(SOURCES[:4], SUMMARIES[:4])
    without = fit('question', tiny_tokenizer, '', 512).ids
    for a,b,o in zip(SOURCES, SUMMARIES, found.parts['kl']):
        assert o==pytest.approx(defined(model, fit('question', tiny_tokenizer, a, 384).ids, without, tiny_tokenizer(b)['input_ids']), abs=1e-4, rel=1e-5)
    alone = [Dependence((model, tiny_tokenizer), prompt='question').score([a], [b]).values[0] for a,b in zip(SOURCES[:4], SUMMARIES)]
    small = Dependence((model, tiny_tokenizer), prompt='question', tokens_at_once=1).score(SOURCES[:4], SUMMARIES[:4])
    assert found.values==pytest.approx(alone, abs=1e-4) and small.values==pytest.approx(alone, abs=1e-4) and (found.values>0).all()

def test_a_source_that_says_nothing(framed_tokenizer):
    model = small_model('bart', 259)
    with torch.no_grad():
        for o in model.model.decoder.layers: o.encoder_attn.out_proj.weight.zero_(), o.encoder_attn.out_proj.bias.zero_()
    found = Dependence((model, framed_tokenizer), source_length=250).score(SOURCES, SUMMARIES)
    assert found.values==pytest.approx(0, abs=1e-6)

def test_the_embedded_model_depends_on_what_it_read():
    "A made-up name that only the source has: the token where it begins depends on the source most"
    source = 'The function zorblat returns the rows of a table. Call zorblat with a table. The result of zorblat is a list.'
    found = Dependence(prompt='document').score([source, 'It is a list.'], ['Return what zorblat returns']*2)
    assert found.values[0]>found.values[1]>0

def test_empty_and_odd_texts():
    found = Dependence('no/such-model').score(['', 'a'], ['a', ' '])
    assert np.isnan(found.values).all() and [len(o) for o in found.parts['kl']]==[0, 0] and len(found.notes)==1
    with pytest.raises(ValueError, match='got 2 summaries of 1 documents'): Dependence().score(['a'], ['a', 'b'])

def test_neither_end_is_better(tiny_tokenizer):
    found = Dependence((small_model('llama', 259), tiny_tokenizer)).score(SOURCES[:2], SUMMARIES[:2])
    assert found.higher_is_better is None and metric_of(found).higher_is_better is None
    with pytest.raises(ValueError, match='use it as a covariate'): risk_ratio(found, found, variant='difference')

def test_nan_is_refused(framed_tokenizer):
    model = small_model('bart', 259)
    with torch.no_grad(): model.final_logits_bias.fill_(torch.nan)
    with pytest.raises(ValueError, match='must give finite logits'): Dependence((model, framed_tokenizer)).score(['a'], ['b'])

def test_colours_follow_the_steps():
    steps = dict(grey=0., blue=1., red=3.)
    marks = mark_tokens('a🙂 b', [0., .9, 1., 3., math.nan], [(0, 1), (1, 2), (1, 2), (2, 4), (4, 4)], steps=steps).marks
    assert [(o.start, o.end, o.colour) for o in marks]==[(0, 1, 'grey'), (1, 2, 'grey'), (1, 2, 'blue'), (2, 4, 'red')]
    for wrong in ({}, dict(red=2., blue=1.), dict(pink=1.)):
        with pytest.raises(ValueError, match='`steps` must lead'): mark_tokens('a', [1.], [(0, 1)], steps=wrong)
    shown = Dependence(prompt='document').show('Return rows.', 'Rows <b> & 🙂')
    assert '&lt;' in shown.to_html() and '<b> &' not in shown.to_html() and shown.title.startswith('Dependence on the source: ')
