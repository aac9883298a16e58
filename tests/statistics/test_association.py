"Correlation, partial correlation and regression: against plain computations, and on made-up data whose truth is known"
import math
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from compresscal.statistics.association import binned, correlate, partial, regress

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

def test_regression_is_the_one_with_dummies():
    import statsmodels.api as sm
    x, y, g = table(np.random.default_rng(6))
    z = np.random.default_rng(7).normal(size=len(x))
    ours = regress(y, dict(x=x, z=z), fixed=g)
    plain = sm.OLS(y, np.column_stack([x, z, g[:, None]==np.arange(30)]).astype(float))
    theirs = plain.fit(cov_type='cluster', cov_kwds=dict(groups=g))
    assert [ours['x'].value, ours['z'].value]==pytest.approx(theirs.params[:2], rel=1e-9)
    n, k = 180, 32 # nested intercepts cost no degrees of freedom here, and all of them there
    assert [ours['x'].error, ours['z'].error]==pytest.approx(theirs.bse[:2]*math.sqrt((n-k)/(n-1)*(n-1)/(n-2)), rel=1e-9)
    assert ours['x'].high-ours['x'].low==pytest.approx(2*stats.t.ppf(.975, 29)*ours['x'].error)
    assert ours['x'].p==pytest.approx(2*stats.t.sf(abs(ours['x'].value/ours['x'].error), 29))
    across = np.arange(180)%12 # clusters that lie across the groups
    other, theirs = regress(y, dict(x=x, z=z), fixed=g, cluster=across), plain.fit(cov_type='cluster', cov_kwds=dict(groups=across))
    assert [other['x'].error, other['z'].error]==pytest.approx(theirs.bse[:2], rel=1e-9) and other.clusters==12

def test_regression_without_groups():
    import statsmodels.api as sm
    rng = np.random.default_rng(8)
    x = rng.normal(size=50)
    y = 1+2*x+rng.normal(size=50)*(1+abs(x))
    ours, theirs = regress(y, dict(x=x)), sm.OLS(y, sm.add_constant(x)).fit(cov_type='HC3')
    assert [ours['intercept'].value, ours['x'].value]==pytest.approx(theirs.params) and ours['x'].error==pytest.approx(theirs.bse[1])
    assert ours['x'].standardized==pytest.approx(stats.pearsonr(x, y).statistic) and ours.r2==pytest.approx(theirs.rsquared)
    assert math.isnan(ours['intercept'].vif) and ours['x'].vif==pytest.approx(1)

def test_regression_recovers_a_planted_effect():
    "Hard documents have low overlap and high risk; within documents the effect is the planted one on average, and its interval keeps its promise"
    rng, held, wrong = np.random.default_rng(9), 0, 0
    for _ in range(200):
        g = np.repeat(np.arange(25), 8)
        hard, slope = rng.normal(size=25)[g], (-.3+.3*rng.normal(size=25))[g]
        spread = rng.normal(size=200)
        overlap, risk = spread-hard, 2*hard+slope*spread+rng.normal(size=200)
        found = regress(risk, dict(overlap=overlap), fixed=g)['overlap']
        held, wrong = held+(found.low<=-.3<=found.high), wrong+(regress(risk, dict(overlap=overlap), cluster=g)['overlap'].high<-.5)
    assert held/200>.9 and wrong/200>.95

def test_no_effect_is_found_five_times_in_a_hundred():
    rng, found = np.random.default_rng(10), 0
    for _ in range(300):
        g = np.repeat(np.arange(30), 5)
        x, y = (rng.normal(size=30)[g]+rng.normal(size=150) for _ in range(2)) # groups in both, no effect
        found += regress(y, dict(x=x), cluster=g)['x'].p<.05
    assert .01<found/300<.1

def test_regression_warns_and_refuses():
    rng = np.random.default_rng(11)
    g, x = np.repeat(np.arange(6), 4), rng.normal(size=24)
    y = x+rng.normal(size=24)
    few = regress(y, dict(x=x, near=x+.01*rng.normal(size=24)), fixed=g)
    assert [('VIF' in w, 'only 6 clusters' in w) for w in few.warnings]==[(True, False), (True, False), (False, True)]
    assert any('1 of 7 groups have a single row' in w for w in regress([*y, 1.], dict(x=[*x, 2.]), fixed=[*g, 99]).warnings)
    for match,columns,how in (("'c' must vary, got", dict(x=x, c=[3]*24), {}), ("'c' must vary within", dict(x=x, c=g*2.), dict(fixed=g)),
                              ("'sum' is a linear combination of 'x', 'z'", dict(x=x, z=x**2, sum=x+x**2), {}), ('at least two clusters', dict(x=x), dict(cluster=[1]*24)),
                              ('23 in `x`', dict(x=x[1:]), {}), ('got 24 for 1 columns and 24', dict(x=x), dict(fixed=range(24)))):
        with pytest.raises(ValueError, match=match): regress(y, columns, **how)
    with pytest.raises(ValueError, match="'y' must vary"): regress([1.]*24, dict(x=x))
    with pytest.raises(TypeError, match='`name` must be a column of numbers'): regress(y, dict(name=['a']*24))
    with pytest.raises(ValueError, match='infinite one in row 1'): regress(y, dict(x=[0, math.inf, *x[2:]]))

def test_bins():
    rng = np.random.default_rng(12)
    x, y, g = rng.uniform(size=400), rng.normal(size=400), np.repeat(np.arange(40), 10)
    b = binned(x, y, 4, groups=g)
    frame = b.to_pandas()
    assert frame.n.tolist()==[100]*4 and frame.n.sum()+b.missing+b.outside==400
    assert (frame.low<frame.y).all() and (frame.y<frame.high).all()
    alone = binned(x, y, [0, 1]).rows[0] # each row alone: the ordinary t interval of a mean
    assert (alone['low'], alone['high'])==pytest.approx(stats.ttest_1samp(y, 0).confidence_interval())
    assert list(binned(x, y, 2, kinds=['b', 'a']*200).lines())==['b', 'a']
    one = binned([1, 1.5, 2], [1, 2, 3], [1, 1.9, 2]).rows[1]
    assert one['n']==1 and math.isnan(one['low'])
    with pytest.raises(ValueError, match='edges that rise'): binned([1, 1, 1], [1, 2, 3])
    with pytest.raises(ValueError, match='at least one row'): binned([math.nan], [1])

def test_shown():
    x, y, g = table(np.random.default_rng(13))
    for o in (correlate(x, y, g, n_resamples=50), regress(y, dict(x=x), fixed=g), binned(x, y)):
        lines = o._repr_markdown_().splitlines()
        bars = {l.count('|') for l in lines if l.startswith('|')}
        assert len(bars)==1 and len(repr(o).splitlines())>2 and len(o.to_pandas())

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
