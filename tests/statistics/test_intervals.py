"Intervals hold the true value as often as they say"
import math
import numpy as np
import pytest
from scipy import stats
from compresscal.statistics.intervals import *

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
    for f in (lambda: summarize_values([1, 2], level), lambda: accuracy_interval(1, 2, level), lambda: crossed_interval(draws(0, 3, 3), level=level),
              lambda: bootstrap_documents(draws(0, 20), level=level), lambda: crossed_bootstrap(draws(0, 10, 20), level=level)):
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

def test_values_that_are_not_finite(): assert summarize_values([1., math.nan]).interval is None

def test_wilson_by_hand():
    z, p, n = stats.norm.ppf(.975), .7, 20
    centre, half = (p+z*z/2/n)/(1+z*z/n), z*math.sqrt(p*(1-p)/n+z*z/4/n/n)/(1+z*z/n)
    assert [*accuracy_interval(14, 20)]==pytest.approx([centre-half, centre+half])
    assert accuracy_interval(0, 5).low==pytest.approx(0, abs=1e-12) and accuracy_interval(5, 5).high==pytest.approx(1)

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

@pytest.mark.parametrize('correct, guess', [(0, True), (10, True), (25, True), (33, True), (40, False), (100, False)])
def test_worse_than_guessing_is_no_ability(correct, guess):
    assert includes_chance(correct, 100, .25) is guess
    share = stats.binomtest(correct, 100, .25, alternative='greater').pvalue
    assert (share>.025)==guess
