"Counts of n-grams against counting, distances against their definitions, and what they must not depend on"
import math
from collections import Counter
import numpy as np, pytest, torch
from compresscal.calibration.calibration_set import CalibrationSet
from compresscal.calibration.sampling import sample_sets
from compresscal.choosing.distances import count_ngrams, distance, hessian_distance, norm_distance, outlier_overlap, plot_distances, text_distance
from compresscal.choosing.readings import profile
from test_input_statistics import make, rows

pytestmark = pytest.mark.usefixtures('one_thread')

def text(seed, n=6, length=12, size=6, **kwargs):
    return CalibrationSet.from_tokens(torch.randint(3, 3+size, (n,length), generator=torch.Generator().manual_seed(seed)), **kwargs)

@pytest.mark.parametrize('n', [1,2,3,5])
def test_counts_are_counts(n, tiny_tokenizer):
    a = text(0)
    tokens,mask = torch.cat([text(1, length=9).tokens, text(2, length=9).tokens], 1),torch.ones(6, 18, dtype=torch.bool)
    tokens[2,4],tokens[3,0] = 1,0 # special tokens
    mask[0,:5],mask[4,10:] = False,False
    b = CalibrationSet.from_tokens(tokens, mask)
    def grams(ids): return Counter(tuple(ids[i:i+n]) for i in range(len(ids)-n+1) if min(ids[i:i+n])>2)
    expected = [grams(r) for r in a.tokens.tolist()]+[grams(r[m].tolist()) for r,m in zip(b.tokens, b.mask)]
    found = count_ngrams([a,b], n, tiny_tokenizer).toarray()
    assert [sorted(r[r>0]) for r in found]==[sorted(c.values()) for c in expected]
    assert found.shape[1]==len(set().union(*expected))
    everywhere = {k: [c[k] for c in expected] for k in set().union(*expected)}
    assert sorted(found.T.tolist())==sorted(everywhere.values())

def test_large_ids_do_not_overflow():
    tokens = torch.randint(0, 2**31, (4,50), generator=torch.Generator().manual_seed(0))
    assert count_ngrams([CalibrationSet.from_tokens(tokens)], 8).shape==(4,4*43)

def test_divergence_is_its_definition():
    a,b = text(0),text(1)
    def p(o): c = Counter(o.tokens.flatten().tolist()); return {k: v/o.tokens.numel() for k,v in c.items()}
    pa,pb = p(a),p(b)
    m = {k: (pa.get(k, 0)+pb.get(k, 0))/2 for k in {*pa,*pb}}
    kl = lambda q: sum(v*math.log2(v/m[k]) for k,v in q.items())
    assert text_distance(a, b)[0]==pytest.approx((kl(pa)+kl(pb))/2)
    assert text_distance(b, a)[0]==pytest.approx(text_distance(a, b)[0])

def test_chance_is_what_equal_sources_give():
    "Sets of one source lie within the hands dealt from both, sets of another do not"
    found = [text_distance(text(i, 40), text(100+i, 40), permutations=50) for i in range(8)]
    assert np.mean([a for a,_ in found])==pytest.approx(np.mean([b for _,b in found]), rel=.5)
    other,chance = text_distance(text(0, 40), text(1, 40, size=5), permutations=50)
    assert other>10*chance
    assert text_distance(text(0), text(1), seed=1)==text_distance(text(0), text(1), seed=1)!=text_distance(text(0), text(1), seed=2)
    assert math.isnan(text_distance(text(0), text(1), permutations=0)[1])

def test_scale_and_order_of_channels_do_not_matter():
    g = torch.Generator().manual_seed(0)
    a,b,order = torch.rand(50, generator=g)+.1,torch.rand(50, generator=g)+.1,torch.randperm(50, generator=g)
    assert norm_distance(a, b)==pytest.approx(norm_distance(7*a, b/3), rel=1e-5)==pytest.approx(norm_distance(b[order], a[order]), rel=1e-5)
    x,y = torch.randn(80, 20, generator=g),torch.randn(90, 20, generator=g)
    A,B = x.T@x,y.T@y
    assert 0<hessian_distance(A, B)<1 and hessian_distance(A, B)==pytest.approx(hessian_distance(9*B, A/4), rel=1e-4)
    assert hessian_distance(A, A)==pytest.approx(0, abs=1e-6) and math.isnan(hessian_distance(A, 0*B)) and math.isnan(norm_distance(a, 0*b))
    assert outlier_overlap(a, a, .1)==1 and outlier_overlap(a, -a, .1)==0

def test_every_layer_of_a_model_with_experts():
    model = make('mixtral')
    sets = [CalibrationSet.from_tokens(o, name=k) for k,o in (('a',rows(6)),('b',rows(2, 4).flip(1)))]
    read = [profile(model, o, moments=True) for o in sets]
    found = distance(*sets, profiles=read)
    assert len(found.layers)==len({id(s) for s in read[0].statistics.values()}) and set(found.layers.block)=={0,1,2}
    unseen = [s for s in {id(s): s for s in read[1].statistics.values()}.values() if not s.tokens]
    assert found.layers.norms.isna().sum()==found.layers.hessian.isna().sum()==found.layers.outliers.isna().sum()==len(unseen)
    assert r'| mlp.experts.down_proj.\* | 12 |' in found._repr_markdown_()
    assert plot_distances({'a': found}).figure.axes and found.to_pandas().equals(found.layers)

def test_partial_readings():
    model,sets = make('llama'),[CalibrationSet.from_tokens(rows(6)),CalibrationSet.from_tokens(rows(6).flip(0)[:,2:], name='x')]
    norms = [profile(model, o, peaks=False, layers='down_proj') for o in sets]
    found = distance(*sets, profiles=norms)
    assert list(found.layers)==['block','layer','norms'] and len(found.layers)==3 and 'Hessian' not in repr(found)
    assert len(plot_distances({'a': found}).figure.axes)==1
    with pytest.raises(ValueError, match='`profiles` must be of one model'): distance(*sets, profiles=(norms[0],profile(model, sets[1])))
    with pytest.raises(ValueError, match='`profiles` must be of the sets compared'): distance(*sets, profiles=norms[::-1])
    with pytest.raises(ValueError, match='from one reference'): plot_distances({'a': found, 'b': distance(*sets[::-1], profiles=norms[::-1])})
    with pytest.raises(ValueError, match='at least one'): plot_distances({})

def test_bad_input():
    with pytest.raises(ValueError, match='`n` must be a whole number, 1 or more, got 0'): count_ngrams([text(0)], 0)
    with pytest.raises(ValueError, match='`n` must leave an n-gram in both sets, got 13'): text_distance(text(0), text(1), 13)
    with pytest.raises(ValueError, match="`candidate` must be of the reference's tokenizer x, got y"): distance(text(0, tokenizer='y'), text(1, tokenizer='x'))
    with pytest.raises(ValueError, match='`b` must have the shape of `a`'): hessian_distance(torch.eye(3), torch.eye(2))
    with pytest.raises(ValueError, match='`b` must have the shape of `a`'): outlier_overlap(torch.ones(3), torch.ones(2))
