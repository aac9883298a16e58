"Descriptions against counting by hand, for every kind of set and tokenizer, and for what a model wrote"
import math
import numpy as np, pytest, torch
from compresscal.calibration.calibration_set import CalibrationSet
from compresscal.calibration.sampling import mix, sample_sets
from compresscal.choosing.description import (SET_MEASURES, compare_sets, describe_set, distinct_share, plot_positions, plot_ranks, repetition_rate, row_origin,
                                     self_similarity, written_by_model, zipf_exponent)
from compresscal.choosing.distances import plot_distances
from compresscal.choosing.readings import profile
from compresscal.calibration.self_text import random_vocabulary, self_calibrate

pytestmark = pytest.mark.usefixtures('one_thread')
texts = [f"Text {i}. "+'abc def ghi '*(i%7)+'zyx '*(i%3)+f'end of number {i}.' for i in range(60)]

def given(tokens, mask=None): return CalibrationSet.from_tokens(torch.tensor(tokens), None if mask is None else torch.tensor(mask).bool())

def test_zipf_exponent_is_the_maximum():
    counts = np.random.default_rng(0).integers(1, 50, 80)
    logs,ranks = np.log(np.arange(1, 81)),np.sort(counts)[::-1]
    def likelihood(s): return -(s*ranks@logs)-ranks.sum()*np.log(np.exp(-s*logs).sum())
    s = zipf_exponent(counts)
    assert likelihood(s)>max(likelihood(s-1e-3), likelihood(s+1e-3))
    assert zipf_exponent(np.r_[counts, 0, 0])==s and math.isnan(zipf_exponent([])) and zipf_exponent([10**9, 1])>20

def test_measures_by_hand():
    a = given([[5,6,7,5,6,7], [5,6,8,9,9,9]])
    assert distinct_share(a, 1)==5/12 and distinct_share(a, 2)==6/10 and math.isnan(distinct_share(a, 7))
    assert repetition_rate(a, 2)==pytest.approx((2/5+1/5)/2) and repetition_rate(a, 3)==pytest.approx((1/4+0)/2) and math.isnan(repetition_rate(a, 7))
    assert self_similarity(a, 2)==pytest.approx(1/6) and self_similarity(a, 6)==0 and math.isnan(self_similarity(a[0], 2))
    assert self_similarity(given([[1,2,3]]*4), 2)==1

def test_similarity_in_blocks():
    "More rows than stand in one block of the computation"
    tokens = torch.randint(0, 30, (1300,5), generator=torch.Generator().manual_seed(0))
    rows = [set(r) for r in tokens.tolist()]
    expected = np.mean([len(rows[i]&rows[j])/len(rows[i]|rows[j]) for i in range(990, 1010) for j in range(i)])
    assert self_similarity(CalibrationSet.from_tokens(tokens), 1)==pytest.approx(expected, rel=.02)

def test_padding_and_special_tokens_do_not_count(tiny_tokenizer):
    plain = given([[5,6,7,8,9,5], [6,6,6,6,6,6]])
    padded = given([[0,5,6,7,8,9,5,2,2], [2,0,6,6,6,6,6,6,1]], [[1]*7+[0]*2, [0]+[1]*8])
    a,b = describe_set(plain, tiny_tokenizer).values,describe_set(padded, tiny_tokenizer).values
    for k in ('distinct','zipf','distinct_1','distinct_2','distinct_3','repetition','similarity'): assert a[k]==b[k]
    assert (a['tokens'],b['tokens'])==(12,15) and (a['bos_head'],b['bos_head'])==(0,1)
    assert (b['eos'],b['cut_end'],a['cut_end'])==(.5,0,1) # neither is full

def test_edges_by_hand(tiny_tokenizer):
    found = describe_set(given([[0,5,1,0,6,7,1,0,8,9], [0,5,5,5,5,5,5,5,5,1]]), tiny_tokenizer).values
    assert (found['bos_head'],found['bos_inside'],found['eos'],found['parts'],found['cut_end'])==(1,1,1.5,2,.5)
    assert found['part_length']==3.5 and found['eos_place']==pytest.approx((2/9+6/9+1)/3)
    tiny_tokenizer = type(tiny_tokenizer)(tokenizer_object=tiny_tokenizer.backend_tokenizer, bos_token='</s>', eos_token='</s>') # one token for both
    found = describe_set(given([[1,5,6,1,7,8]]), tiny_tokenizer).values
    assert (found['bos_head'],found['eos'],found['parts'],found['cut_end'])==(1,1,2,1)
    neither = type(tiny_tokenizer)(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    assert not {'bos_head','eos','cut_end'} & set(describe_set(given([[1,5,6,1,7,8]]), neither).values)

def test_every_kind_of_set(tiny_tokenizer, tiny_model):
    from compresscal.choosing.selection import at_random
    one,two = sample_sets(texts, tiny_tokenizer, 2, 6, 30)
    packed, = sample_sets(texts, tiny_tokenizer, 1, 6, 30, rule='pack')
    short, = sample_sets(texts, tiny_tokenizer, 1, 6, 110, rule='pad')
    noise, = random_vocabulary(tiny_tokenizer, 1, 6, 30)
    own = self_calibrate(tiny_model, tiny_tokenizer, 6, 30, progress=False)
    mixed = mix({one:.5, own:.5}, 6)
    chosen = at_random(mix({mixed:.5, noise:.5}, 6), 4, seed=1)
    every = dict(one=one, two=two, packed=packed, short=short, noise=noise, own=own, mixed=mixed, chosen=chosen, tokens=given([[5,6,7]]), rows=packed[[2,0]])
    for k,o in every.items():
        found = describe_set(o, tiny_tokenizer, profile(tiny_model, o))
        assert found.values['sequences']==len(o) and set(found.values)<=set(SET_MEASURES) and repr(found) and found._repr_markdown_().startswith('|  | ')
        assert found.to_pandas()['distinct tokens']==len(found.counts) and math.isfinite(found.values['entropy'])
        assert ('own' in found.values)==bool(written_by_model(o).any()) and ('perplexity' in found.values)==bool((~written_by_model(o)).any())
    value = lambda k: describe_set(every[k], tiny_tokenizer).values
    assert value('packed')['eos']>0 and value('packed')['cut_head']>0 and value('short')['cut_end']==0==value('short')['cut_head']
    assert value('one')['too_short']==value('two')['too_short'] and 'cut_head' not in value('own')
    for i in range(len(chosen)): # rows of a selection of a mixture of mixtures
        manifest,row = row_origin(chosen.manifest, i)
        assert torch.equal(dict(sampled=one, random=noise, self=own)[manifest['kind']].tokens[row], chosen.tokens[i])
    compare_sets({k: every[k] for k in ('one','packed','mixed','noise')}, tiny_tokenizer, tiny_model)._repr_markdown_()

def test_mixed_rows_are_scored_apart(tiny_tokenizer, tiny_model):
    human, = sample_sets(texts, tiny_tokenizer, 1, 6, 30)
    own = self_calibrate(tiny_model, tiny_tokenizer, 6, 30, progress=False)
    both = mix({human:.5, own:.5}, 6)
    read,wrote = profile(tiny_model, both),written_by_model(both)
    found = describe_set(both, read=read).values
    assert wrote.sum()==3 and found['self']==.5
    assert found['own']==pytest.approx(float(read.sequence_perplexity[wrote].log().mean().exp()), rel=1e-4)
    assert found['perplexity']==pytest.approx(float(read.sequence_perplexity[~wrote].log().mean().exp()), rel=1e-4)
    assert 'own' not in describe_set(human, read=profile(tiny_model, human)).values

def test_comparison(tiny_tokenizer, tiny_model):
    one,two = sample_sets(texts, tiny_tokenizer, 2, 6, 30)
    sets = {'one':one, 'two':two, 'noise':random_vocabulary(tiny_tokenizer, 1, 6, 30)[0]}
    found = compare_sets(sets, tiny_tokenizer, tiny_model, reference='one', labels={'two':['a','b','a','a','b','a']}, batch_size=4)
    profiles = {k: profile(tiny_model, o, moments=True, batch_size=4) for k,o in sets.items()}
    same = compare_sets(sets, tiny_tokenizer, profiles=profiles, reference='one')
    assert found.distances.keys()=={'two','noise'} and found.to_pandas()['Hessian distance'].equals(same.to_pandas()['Hessian distance'])
    assert found.to_pandas().loc['two','label a']==4/6 and found.to_pandas()['perplexity'].dtype==float and found.to_pandas()['tokens'].dtype==int
    text = found._repr_markdown_()
    assert '| from one: norm distance |' in text and '| label a |' in text and repr(found)=='SetComparison(one, two, noise, from one)'
    for p in (plot_ranks(found), plot_positions(found), plot_distances(found.distances)):
        assert p.figure.axes and p.alt and p.to_bytes('svg')==p.to_bytes('svg')
    words = compare_sets(sets, reference='noise')
    assert 'perplexity' not in words.to_pandas() and words.distances['one'].layers.empty

def test_bad_input(tiny_tokenizer, tiny_model):
    one,two = sample_sets(texts, tiny_tokenizer, 2, 6, 30)
    with pytest.raises(ValueError, match='`labels` must have one for each of the 6 sequences, got 2'): describe_set(one, labels=['a','b'])
    read = profile(tiny_model, two)
    with pytest.raises(ValueError, match=f'`read` must be the profile of the set {one.hash}, got that of {two.hash}'): describe_set(one, read=read)
    with pytest.raises(ValueError, match="`reference` must be one of a, b, got 'c'"): compare_sets(dict(a=one, b=two), reference='c')
    with pytest.raises(ValueError, match="`profiles` must be of sets among a, got 'c'"): compare_sets(dict(a=one), profiles=dict(c=None))
    with pytest.raises(ValueError, match='`sets` must map names to calibration sets'): compare_sets({})
    with pytest.raises(ValueError, match="got 'a' without a profile"): plot_positions(compare_sets(dict(a=one)))

def test_a_full_size_set_takes_seconds():
    "128 windows of 2,048 tokens"
    from time import process_time
    tokens = torch.randint(0, 32000, (128,2048), generator=torch.Generator().manual_seed(0))
    before = process_time()
    found = describe_set(CalibrationSet.from_tokens(tokens))
    assert found.values['tokens']==2**18 and process_time()-before<10

def test_nasty_names_are_shown_as_names(tiny_tokenizer):
    nasty,tokens = 'a|b<i>\x1b[31m',torch.randint(3, 200, (3, 20), generator=torch.Generator().manual_seed(0))
    one,two = (CalibrationSet.from_tokens(tokens+i, name=nasty) for i in range(2))
    compared = compare_sets({nasty: one, 'two': two}, reference=nasty, labels={nasty: [nasty]*3})
    shown = [compared, compared.descriptions[nasty], compared.distances['two']]
    for o in shown:
        assert '\x1b' not in o._repr_markdown_()+repr(o) and '<i>' not in o._repr_markdown_()
        columns = [{l.count('|')-l.count(r'\|') for l in part.split('\n')} for part in o._repr_markdown_().split('\n\n') if part[:1]=='|']
        assert all(len(c)==1 for c in columns) and columns
