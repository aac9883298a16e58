"Correlation and partial correlation: against plain computations, and on made-up data whose truth is known"
import math
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from compresscal.statistics.correlation import correlate, partial

def table(rng, groups=30, each=6, within=.6, between=-.5, noise=1.):
    "Rows in groups: x and y go together by `within` inside the groups and by `between` across them"
    group = np.repeat(np.arange(groups), each)
    a = rng.normal(size=groups)
    b = between*a + math.sqrt(1-between**2)*rng.normal(size=groups)
    u = rng.normal(size=len(group))
    v = within*u + math.sqrt(1-within**2)*noise*rng.normal(size=len(group))
    return 3*a[group]+u, 3*b[group]+v, group

def test_equal_to_scipy():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, (2, 60)).astype(float) # many ties
    for how,other in (('spearman', stats.spearmanr), ('pearson', stats.pearsonr), ('kendall', stats.kendalltau)):
        assert correlate(x, y, how=how, n_resamples=0).pooled.value==pytest.approx(other(x, y).statistic, abs=1e-12)

@pytest.mark.parametrize('how', ['spearman', 'pearson', 'kendall'])
def test_within_and_between_are_what_they_say(how):
    x, y, g = table(np.random.default_rng(1))
    other = dict(spearman=stats.spearmanr, pearson=stats.pearsonr, kendall=stats.kendalltau)[how]
    found, frame = correlate(x, y, g, how=how, n_resamples=99), pd.DataFrame(dict(x=x, y=y, g=g))
    means = frame.groupby('g').mean()
    assert found.within.value==pytest.approx(np.mean([other(o.x, o.y).statistic for _,o in frame.groupby('g')]), abs=1e-12)
    assert found.between.value==pytest.approx(other(means.x, means.y).statistic, abs=1e-12)
    assert found.within.low<found.within.value<found.within.high and found.within.value>0>found.between.value
    assert found==correlate(x, y, g, how=how, n_resamples=99) and found!=correlate(x, y, g, how=how, n_resamples=99, seed=1)

def test_missing_and_constant_groups_are_counted():
    x = [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, None]
    y = [1, 2, 3, 3, 2, 1, 5, 5, 5, 1, math.nan, 3]
    g = [*'aaabbbccc', None, 'd', 'd']
    c = correlate(x, y, g)
    assert (c.missing, c.pooled.n, c.within.n, c.within.left_out, c.within.value, c.between.n)==(3, 9, 2, 1, 0, 3)
    assert math.isnan(correlate([1, 1, 1], [1, 2, 3]).pooled.value) and math.isnan(correlate([], []).pooled.value)
    empty = correlate([1, 2], [2, 1], ['a', 'b'])
    assert math.isnan(empty.within.value) and empty.within.left_out==2 and empty.between.value==-1

@pytest.mark.parametrize('how', ['pearson', pytest.param('spearman', marks=pytest.mark.slow)])
def test_intervals_hold(how):
    "Of 95 % intervals with 30 groups some 92 % hold the truth, for all three numbers; of a hundred, then, hardly fewer than 85"
    rng, held, times = np.random.default_rng(2), np.zeros(3), 100
    turn = (lambda r: r) if how=='pearson' else (lambda r: 6/np.pi*np.arcsin(r/2)) # of a normal distribution
    big = correlate(*table(np.random.default_rng(3), groups=20000), how=how, n_resamples=0) # the truth, as near as one comes: group means hold noise
    truth = [big.pooled.value, big.within.value, big.between.value]
    assert truth[1]==pytest.approx(turn(.6), abs=.08) # six rows: the mean of small correlations is biased
    for _ in range(times):
        found = correlate(*table(rng), how=how, n_resamples=199)
        held += [e.low<=t<=e.high for e,t in zip((found.pooled, found.within, found.between), truth)]
    assert (held/times>.84).all(), held/times

def test_drawing_groups_is_wider():
    "Rows of a group are alike, so drawing rows promises too much"
    x, y, g = table(np.random.default_rng(4), each=20)
    width = lambda e: e.high-e.low
    assert width(correlate(x, y, g).pooled)>2*width(correlate(x, y).pooled)

def test_partial_is_the_plain_computation():
    rng = np.random.default_rng(5)
    system, length = rng.choice(list('abcd'), 80), rng.normal(size=80)
    x, y = (rng.normal(size=80)+length+(system=='a')*3 for _ in range(2))
    dummies = np.column_stack([length, *[system==s for s in 'abcd']]).astype(float)
    residual = lambda v: v-dummies@np.linalg.lstsq(dummies, v, rcond=None)[0]
    given = dict(system=system, length=length)
    assert partial(x, y, given, n_resamples=0).value==pytest.approx(stats.spearmanr(residual(x), residual(y)).statistic, abs=1e-9)
    assert partial(x, y, given, how='kendall', n_resamples=0).value==pytest.approx(stats.kendalltau(residual(x), residual(y)).statistic, abs=1e-9)
    early = [residual(stats.rankdata(v)) for v in (x, y)]
    assert partial(x, y, given, ranks='values', n_resamples=0).value==pytest.approx(np.corrcoef(*early)[0, 1], abs=1e-9)
    assert partial(x, y, [system, length], n_resamples=0)==partial(x, y, given, n_resamples=0)
    assert partial(np.exp(x), y**3, given, ranks='values', n_resamples=0)==partial(x, y, given, ranks='values', n_resamples=0) # stretching changes nothing
    assert abs(partial(x, y, given).value)<.3<correlate(x, y).pooled.value

def test_partial_keeps_ties_of_residuals():
    "Rows alike in everything have one residual, whatever rounding makes of it, and so one rank"
    rng = np.random.default_rng(8)
    for _ in range(20):
        system, x, y = rng.integers(0, 7, 60), rng.integers(0, 3, 60)/3, rng.integers(0, 3, 60)/7
        left = [np.round(v-pd.Series(v).groupby(system).transform('mean').to_numpy(), 9) for v in (x, y)]
        assert partial(x, y, [f's{o}' for o in system], n_resamples=0).value==pytest.approx(stats.spearmanr(*left).statistic, abs=1e-9)

def test_partial_leaves_out_incomplete_rows():
    x, y, given = [1, 2, 4, 3, math.nan, 9], [2, 1, 3, 5, 6, 7], ['a', 'b', 'a', 'b', 'a', None]
    found = partial(x, y, given)
    assert (found.n, found.left_out, found.value)==(4, 2, partial(x[:4], y[:4], given[:4]).value)
    with pytest.raises(ValueError, match="each of 6 rows, got 5 in 'given'"): partial(x, y, given[:5])
    for args, says in (((None, y, given), '`x` must be a column of numbers'), ((x, 'abcdef', given), '`y` must be a column'), ((x, y, None), '`given` must be columns, got NoneType')):
        with pytest.raises(TypeError, match=says): partial(*args)

@pytest.mark.parametrize('how', ['kendall', 'pearson'])
def test_ranks_that_would_be_ignored_are_refused(how):
    with pytest.raises(ValueError, match=f"`ranks` must be residuals unless `how` is spearman, got 'values' with '{how}'"):
        partial([1, 2, 3], [1, 3, 2], [1, 1, 2], how=how, ranks='values')

def test_an_estimate_names_what_was_drawn():
    rng = np.random.default_rng(0)
    x, y, group = rng.random(48), rng.random(48), np.repeat(np.arange(12), 4)
    c = correlate(x, y, group, n_resamples=99)
    assert [e.over for e in c.kinds.values()]==['48 rows in 12 groups', '12 groups', '12 groups'] and '48 rows in 12 groups' in repr(c)
    assert '48 rows in 12 groups' in c._repr_markdown_() and c.to_pandas().groups.tolist()==[12, 0, 0]
    assert partial(x, y, rng.random(48), groups=group, n_resamples=99).over=='48 rows in 12 groups'
    assert correlate(x, y, n_resamples=0).pooled.over==partial(x, y, rng.random(48), n_resamples=0).over=='48 rows'

def test_shown():
    x, y, g = table(np.random.default_rng(13))
    for o in (correlate(x, y, g, n_resamples=50),):
        lines = o._repr_markdown_().splitlines()
        bars = {l.count('|') for l in lines if l.startswith('|')}
        assert len(bars)==1 and len(repr(o).splitlines())>2 and len(o.to_pandas())
