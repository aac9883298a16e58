"Intervals hold the true value as often as they say; tests agree with plain counting of all cases"
import itertools, math
import numpy as np
import pytest
from scipy import stats
from compresscal.statistics.uncertainty import *

def mean(values): return float(np.mean([*values]))
def stdev(values): return float(np.std([*values], ddof=1))
def draws(seed, *shape): return np.random.default_rng(seed).normal(size=shape)

@pytest.mark.parametrize('n, t', [(2, 12.7062), (3, 4.3027), (5, 2.7764), (10, 2.2622), (31, 2.0423)]) # printed tables
def test_t_interval(n, t):
    values = draws(n, n).tolist()
    s = summarize_values(values)
    assert [*s.interval]==pytest.approx([mean(values)+sign*t*stdev(values)/math.sqrt(n) for sign in (-1, 1)], abs=1e-4)
    assert s.interval.covers=='sets (documents fixed)'

@pytest.mark.parametrize('n', [2, 3, 10])
def test_t_interval_covers(n):
    assert mean(0 in summarize_values(v).interval for v in draws(1, 1000, n))==pytest.approx(.95, abs=.025)

@pytest.mark.parametrize('level', [0, 1, 95, -1])
def test_levels_that_are_none(level):
    for f in (lambda: summarize_values([1, 2], level), lambda: accuracy_interval(1, 2, level), lambda: compare_answers([1], [1], level), lambda: crossed_interval(draws(0, 3, 3), level=level),
              lambda: bootstrap_documents(draws(0, 20), level=level), lambda: crossed_bootstrap(draws(0, 10, 20), level=level), lambda: superiority_interval(.5, 3, 3, level)):
        with pytest.raises(ValueError, match='`level`'): f()

def test_no_bootstrap_over_few():
    with pytest.raises(ValueError, match='at least 10 sets'): crossed_bootstrap(draws(0, 9, 50))
    with pytest.raises(ValueError, match='at least 10 documents'): bootstrap_documents(draws(0, 9))

def documents(rng, n=80):
    tokens = rng.integers(20, 300, n)
    return tokens*rng.normal(3, .5, n), tokens

@pytest.mark.parametrize('statistic, true', [('ratio', 3.), ('perplexity', math.exp(3))])
def test_standard_error_is_the_spread_over_draws_of_documents(statistic, true):
    f = lambda x, y: x.sum()/y.sum() if statistic=='ratio' else math.exp(x.sum()/y.sum())
    samples = [documents(np.random.default_rng(i)) for i in range(600)]
    assert mean(standard_error(*s, statistic) for s in samples)==pytest.approx(stdev(f(*s) for s in samples), rel=.1)
    assert mean(abs(f(*s)-true)<1.96*standard_error(*s, statistic) for s in samples)==pytest.approx(.95, abs=.03)

def test_documents_bootstrap_covers():
    found = [bootstrap_documents(*documents(np.random.default_rng(i)), statistic='perplexity', n_resamples=400) for i in range(100)]
    assert mean(math.exp(3) in i for i in found)==pytest.approx(.95, abs=.05)
    assert found[0].covers=='documents (set fixed)'

def test_documents_bootstrap_is_plain_resampling():
    x, y = documents(np.random.default_rng(0), 40)
    chosen = np.random.default_rng(1).integers(0, 40, (20_000, 40))
    plain = np.quantile(np.exp(x[chosen].sum(1)/y[chosen].sum(1)), [.025, .975])
    assert [*bootstrap_documents(x, y, statistic='perplexity', method='percentile', n_resamples=20_000)]==pytest.approx(plain, rel=.005)

def test_seeds_decide():
    x, y = documents(np.random.default_rng(0), 40)
    assert bootstrap_documents(x, y, seed=1)==bootstrap_documents(x, y, seed=1)!=bootstrap_documents(x, y, seed=2)
    t = draws(0, 12, 30)
    assert crossed_bootstrap(t, seed=1)==crossed_bootstrap(t, seed=1)!=crossed_bootstrap(t, seed=2)
    few = dict(a=draws(1, 8), b=draws(2, 8), c=draws(3, 8))
    assert range_under_permutation(few, 500, 1)==range_under_permutation(few, 500, 1)!=range_under_permutation(few, 500, 2)

def crossed(seed, S, D, sets, docs, rest):
    rng = np.random.default_rng(seed)
    return 5+sets*rng.normal(size=(S, 1))+docs*rng.normal(size=(1, D))+rest*rng.normal(size=(S, D))

@pytest.mark.parametrize('S, D, sets, docs, rest, least', [(3, 50, .1, 1, .3, .92), (3, 50, 1, .1, .3, .92), (5, 100, .3, 1, 1, .92), (10, 40, .3, 1, .3, .92), (2, 40, .1, 1, .1, .92)])
def test_two_way_interval_covers(S, D, sets, docs, rest, least):
    assert least<mean(5 in crossed_interval(crossed(i, S, D, sets, docs, rest)) for i in range(400))<=1

def test_two_way_variance_is_that_of_the_textbook():
    "A table without a set effect: the variance over documents alone"
    t = np.tile(draws(0, 1, 60), (4, 1))
    plain = summarize_values(t[0], covers='documents (set fixed)').interval
    assert [*crossed_interval(t)]==pytest.approx([*plain], rel=.02)
    assert [*crossed_interval(t.T)]==pytest.approx([*summarize_values(t[0]).interval], rel=.02)

def test_two_way_interval_of_a_perplexity():
    rng = np.random.default_rng(0)
    tokens = rng.integers(50, 400, 60)
    def held(i):
        rng = np.random.default_rng(i)
        nats = tokens*(3+.05*rng.normal(size=(4, 1))+.3*rng.normal(size=(1, 60))+.05*rng.normal(size=(4, 60)))
        return math.exp(3+.05**2/2) in crossed_interval(nats, tokens, statistic='perplexity')
    assert mean(map(held, range(400)))==pytest.approx(.95, abs=.04)

def test_crossed_bootstrap_is_plain_resampling():
    t, rng = crossed(0, 12, 30, .5, 1, .5), np.random.default_rng(5)
    plain = [t[rng.integers(0, 12, 12)][:, rng.integers(0, 30, 30)].mean() for _ in range(8000)]
    assert [*crossed_bootstrap(t)]==pytest.approx(np.quantile(plain, [.025, .975]), rel=.01)

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

def test_values_that_are_not_finite():
    c = compare_unpaired([1., math.inf], [2., 3.])
    assert c.greater==.5 and c.interval is None and math.isnan(c.p) and math.isnan(c.difference)
    assert summarize_values([1., math.nan]).interval is None

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

def test_wilson_by_hand():
    z, p, n = stats.norm.ppf(.975), .7, 20
    centre, half = (p+z*z/2/n)/(1+z*z/n), z*math.sqrt(p*(1-p)/n+z*z/4/n/n)/(1+z*z/n)
    assert [*accuracy_interval(14, 20)]==pytest.approx([centre-half, centre+half])
    assert accuracy_interval(0, 5).low==pytest.approx(0, abs=1e-12) and accuracy_interval(5, 5).high==pytest.approx(1)

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

def plain_fieller(x, y, ratios):
    "Ratios that a t test of the differences x-r*y does not refuse"
    return [r for r in ratios if stats.ttest_1samp(x-r*y, 0).pvalue>=.05]

@pytest.mark.parametrize('seed', range(4))
def test_ratio_interval_is_what_a_t_test_does_not_refuse(seed):
    x, y = np.random.default_rng(seed).random((2, 15))+.2
    low, high = ratio_interval(x, y)
    held = plain_fieller(x, y, np.linspace(.2, 5, 2000))
    assert (held[0], held[-1])==pytest.approx((low, high), abs=.005)

@pytest.mark.parametrize('seed', range(6))
def test_ratio_interval_has_no_end_where_the_denominator_may_be_zero(seed):
    rng = np.random.default_rng(seed)
    x, y = (rng.random((2, 12))<.2).astype(float)
    if not y.any(): y[0] = 1.
    low, high = ratio_interval(x, y)
    held = plain_fieller(x, y, [.999*low, 1.001*low, 1e3, 1e6] if low else [1e-9, 1e3, 1e6])
    assert high==math.inf if stats.ttest_1samp(y, 0).pvalue>.05 else high<math.inf
    if high==math.inf and y.any() and x.any(): assert 1e6 in held and .999*low not in held

def test_ratio_interval_covers():
    def held(i):
        rng = np.random.default_rng(i)
        both = rng.normal(size=40)
        return 2 in ratio_interval(*((both+rng.normal(size=40)<2**.5*stats.norm.ppf(o)).astype(float)+.01*o for o in (.4, .2)))
    assert mean(map(held, range(300)))==pytest.approx(.95, abs=.035)

def test_documents_are_drawn_group_by_group():
    "Means of groups vary apart, so the variance of the whole is the weighted sum of theirs"
    rng = np.random.default_rng(0)
    groups = np.repeat(['a', 'b'], [30, 90])
    values = np.r_[rng.normal(0, 1, 30), rng.normal(5, 2, 90)]
    found = bootstrap_documents(values, groups=groups, method='percentile')
    error = math.sqrt(sum((values[groups==g].std()/n**.5*n/120)**2 for g,n in (('a', 30), ('b', 90))))
    assert [*found]==pytest.approx([values.mean()+z*error for z in (-1.96, 1.96)], abs=.03)
    order = rng.permutation(120)
    assert [*bootstrap_documents(values[order], groups=groups[order])]==pytest.approx([*bootstrap_documents(values, groups=groups)], abs=.03)

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

@pytest.mark.parametrize('scale', [1., 1e-6, 1e9])
def test_a_ratio_that_is_the_same_everywhere_has_an_interval(scale):
    "Numerators and denominators vary, their ratio does not"
    y = np.random.default_rng(0).integers(1, 50, 30)*scale
    for how in (dict(), dict(groups=['a']*12+['b']*18), dict(statistic=lambda x, y, axis: x.sum(axis)/y.sum(axis))):
        found = bootstrap_documents(.3*y, y, n_resamples=99, **how)
        assert [*found]==pytest.approx([.3, .3], rel=1e-9) and 'nothing varies' in found.method
    assert [*bootstrap_documents(.3*y, y, statistic='perplexity', n_resamples=99)]==pytest.approx([math.exp(.3)]*2)
    other = np.where(np.arange(30), .3*y, .31*y)
    assert bootstrap_documents(other, y, n_resamples=99).width>0

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

@pytest.mark.parametrize('correct, guess', [(0, True), (10, True), (25, True), (33, True), (40, False), (100, False)])
def test_worse_than_guessing_is_no_ability(correct, guess):
    assert includes_chance(correct, 100, .25) is guess
    share = stats.binomtest(correct, 100, .25, alternative='greater').pvalue
    assert (share>.025)==guess

def test_pairs_are_distinct():
    assert distinct_pairs((o for o in [['a', 'b'], ('a', 'c')]))==(('a', 'b'), ('a', 'c'))
    for odd in ([('a', 'b'), ('b', 'a')], [('a', 'b')]*2, [('a', 'a')], [('a',)], ['ab'], [('a', 'b', 'c')]):
        with pytest.raises(ValueError, match='`comparisons` must'): distinct_pairs(odd)
