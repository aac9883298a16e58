"Tests agree with plain counting of all cases, and intervals of differences hold the true one as often as they say"
import itertools, math
import numpy as np
import pytest
from scipy import stats
from compresscal.statistics.comparisons import *
from compresscal.statistics.intervals import COVERS

def mean(values): return float(np.mean([*values]))
def draws(seed, *shape): return np.random.default_rng(seed).normal(size=shape)

@pytest.mark.parametrize('level', [0, 1, 95, -1])
def test_levels_that_are_none(level):
    for f in (lambda: compare_answers([1], [1], level), lambda: superiority_interval(.5, 3, 3, level)):
        with pytest.raises(ValueError, match='`level`'): f()

@pytest.mark.parametrize('n', [2, 3, 6])
def test_signs_are_all_counted(n):
    a, b = draws(n, n)+1, draws(n+1, n)
    means = [mean(s*(x-y) for s,x,y in zip(signs, a, b)) for signs in itertools.product((-1, 1), repeat=n)]
    c = compare_paired(a, b)
    assert c.p==pytest.approx(mean(abs(m)>=abs(mean(a-b))-1e-12 for m in means)) and c.smallest==2/2**n and 'exact' in c.test
    assert c.greater==mean(a>b) and compare_paired(b, a).p==pytest.approx(c.p)

def test_paired_p_is_uniform_under_no_difference():
    p = [compare_paired(*draws(i, 2, 6)).p for i in range(150)]
    assert mean(np.array(p)<=.1)<.16

@pytest.mark.parametrize('seed', range(3))
def test_ranks_are_those_of_scipy(seed):
    a, b = draws(seed, 2, 7)
    assert compare_paired(a, b, test='wilcoxon').p==pytest.approx(stats.wilcoxon(a, b, method='exact').pvalue)

@pytest.mark.parametrize('n, m', [(3, 3), (5, 4)])
@pytest.mark.parametrize('digits', [8, 0]) # without ties, and with
def test_unpaired_is_plain_counting(n, m, digits):
    a, b = np.round(draws(1, n)*3+2, digits), np.round(draws(2, m)*3, digits)
    pairs = [(x>y)+(x==y)/2 for x in a for y in b]
    c, pooled = compare_unpaired(a, b), np.r_[a, b]
    def u(chosen): return sum((x>y)+(x==y)/2 for x in pooled[list(chosen)] for y in np.delete(pooled, chosen))
    all_u, at = [u(o) for o in itertools.combinations(range(n+m), n)], sum(pairs)
    tails = mean(x>=at for x in all_u), mean(x<=at for x in all_u)
    assert c.greater==pytest.approx(mean(pairs)) and c.p==pytest.approx(min(1, 2*min(tails))) and 'exact' in c.test

@pytest.mark.parametrize('n, m', [(3, 3), (5, 5), (10, 10), (4, 10)])
@pytest.mark.parametrize('true', [.5, .8, .95])
def test_superiority_interval_covers(n, m, true):
    a, b = draws(n, 500, n)+stats.norm.ppf(true)*2**.5, draws(m+20, 500, m)
    assert mean(true in superiority_interval(float((x[:, None]>y).mean()), n, m) for x,y in zip(a, b))>(.84 if n==m==3 else .91) # all that twenty deals of three and three allow is .9

def test_superiority_interval_is_symmetric():
    for greater in (0, .1, .5, 1):
        low, high = superiority_interval(greater, 4, 6)
        assert [1-high, 1-low]==pytest.approx([*superiority_interval(1-greater, 6, 4)], abs=1e-9) and low<=greater<=high

def test_holm_by_hand():
    assert holm(dict(a=.01, b=.02, c=.03, d=.5))==pytest.approx(dict(a=.04, b=.06, c=.06, d=.5))
    found = holm(dict(a=.01, b=math.nan, c=.02))
    assert found['a']==pytest.approx(.03) and found['c']==pytest.approx(.04) and math.isnan(found['b'])

@pytest.mark.parametrize('seed', range(3))
def test_holm_is_its_definition(seed):
    "The k-th smallest of m is multiplied by m-k+1, and none is smaller than one before it"
    p, largest, adjusted = np.random.default_rng(seed).random(12)**3, 0, {}
    for k,i in enumerate(np.argsort(p)): adjusted[i] = largest = max(largest, min(1, (12-k)*p[i]))
    assert holm(dict(enumerate(p)))==pytest.approx(adjusted)

def test_holm_is_that_of_statsmodels():
    from statsmodels.stats.multitest import multipletests
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 40):
        p = rng.integers(0, 20, n)/20 # with ties
        assert [*holm(dict(enumerate(p))).values()]==multipletests(p, method='holm')[1].tolist()

def test_ranges_are_all_counted():
    groups = dict(a=[1., 5.], b=[2., 2.5], c=[7.])
    pooled, found = sum(groups.values(), []), []
    for o in itertools.permutations(pooled): found.append(np.ptp([mean(o[:2]), mean(o[2:4]), o[4]]))
    r = range_under_permutation(groups)
    assert r.exact and r.permutations==30 and r.range==pytest.approx(4.75) and (r.lowest, r.highest)==('b', 'c')
    assert r.expected==pytest.approx(mean(found)) and r.p==pytest.approx(mean(x>=4.75-1e-9 for x in found))

def test_range_p_is_uniform_under_no_difference():
    p = [range_under_permutation(dict(enumerate(draws(i, 4, 3))), 199).p for i in range(200)]
    assert mean(np.array(p)<=.1)<.16

def test_answers_against_statsmodels():
    from statsmodels.stats.contingency_tables import mcnemar
    rng = np.random.default_rng(0)
    a, b = (rng.random((2, 150))<.6).astype(float)
    table = [[sum((a==x)&(b==y)) for y in (1, 0)] for x in (1, 0)]
    f = compare_answers(a, b)
    assert f.p==pytest.approx(mcnemar(table, exact=True).pvalue) and (f.lost, f.gained)==(table[0][1], table[1][0])
    assert f.change==pytest.approx(b.mean()-a.mean()) and f.share==pytest.approx((a!=b).mean())

def test_interval_of_a_change_covers():
    def held(i):
        rng = np.random.default_rng(i)
        a = rng.random(200)<.6
        return -.04 in compare_answers(a, np.where(rng.random(200)<np.where(a, .1, .05), ~a, a)).interval # .6*.1 lost, .4*.05 gained
    assert mean(map(held, range(400)))==pytest.approx(.95, abs=.03)

def test_answers_are_zero_or_one():
    with pytest.raises(ValueError, match='only 0 and 1'): compare_answers([.5], [1])

@pytest.mark.parametrize('shift', [0, .3, 1])
def test_share_of_documents_covers(shift):
    "P(a > b) on the same documents, ties counting half"
    def pair(rng, n): return np.round(rng.normal(shift, 1, n)), np.round(rng.normal(0, 1, n))
    a, b = pair(np.random.default_rng(99), 400_000)
    true = mean((a>b)+(a==b)/2)
    found = [compare_paired(*pair(np.random.default_rng(i), 50), test=None, covers='documents (set fixed)') for i in range(300)]
    assert mean(true in c.greater_interval for c in found)==pytest.approx(.955, abs=.03)
    assert all(0<=c.greater_interval.low<=c.greater<=c.greater_interval.high<=1 and c.interval.covers=='documents (set fixed)' for c in found)

def test_many_documents_take_little_memory():
    "Signs are drawn in batches, with the same result whatever their size"
    import tracemalloc
    a, b = draws(0, 2, 4000)
    tracemalloc.start()
    p = compare_paired(a, b, covers='documents (set fixed)', n_resamples=999).p
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak<1e8 and 0<p<=1

@pytest.mark.parametrize('test', ['signs', 'wilcoxon'])
def test_one_pair_says_nothing(test):
    "With the other sign a single difference is as large"
    assert compare_paired([3.], [1.], test=test).p==1

def test_weights_count_as_copies():
    "A document of weight 2 decides as much as two like it, and P(a>b) knows no more than the documents do"
    rng = np.random.default_rng(3)
    a, b, w = rng.random(30), rng.random(30), rng.integers(1, 4, 30)
    found, copied = compare_paired(a, b, weights=w, covers=COVERS[1]), compare_paired(np.repeat(a, w), np.repeat(b, w), covers=COVERS[1])
    assert [found.difference, found.greater]==pytest.approx([copied.difference, copied.greater])
    assert found.greater_interval.width>copied.greater_interval.width and found.greater in found.greater_interval
    alike, plain = compare_paired(a, b, weights=[7]*30, covers=COVERS[1]), compare_paired(a, b, covers=COVERS[1])
    assert alike==plain

@pytest.mark.parametrize('weights', [[1, 0, 1], [1, -1, 1], [1, math.nan, 1], [1, 1], [1, math.inf, 1]])
def test_odd_weights(weights):
    with pytest.raises(ValueError, match='`weights` must be a number above 0'): compare_paired([1, 2, 3], [3, 2, 1], weights=weights)

def test_pairs_are_distinct():
    assert distinct_pairs((o for o in [['a', 'b'], ('a', 'c')]))==(('a', 'b'), ('a', 'c'))
    for odd in ([('a', 'b'), ('b', 'a')], [('a', 'b')]*2, [('a', 'a')], [('a',)], ['ab'], [('a', 'b', 'c')]):
        with pytest.raises(ValueError, match='`comparisons` must'): distinct_pairs(odd)

def test_seeds_decide():
    few = dict(a=draws(1, 8), b=draws(2, 8), c=draws(3, 8))
    assert range_under_permutation(few, 500, 1)==range_under_permutation(few, 500, 1)!=range_under_permutation(few, 500, 2)

def test_values_that_are_not_finite():
    c = compare_unpaired([1., math.inf], [2., 3.])
    assert c.greater==.5 and c.interval is None and math.isnan(c.p) and math.isnan(c.difference)
