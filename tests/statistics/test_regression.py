"Regression and bins: against plain computations, and on made-up data whose truth is known"
import math
import numpy as np
import pytest
from scipy import stats
from compresscal.statistics.regression import binned, regress
from test_correlation import table

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
    for o in (regress(y, dict(x=x), fixed=g), binned(x, y)):
        lines = o._repr_markdown_().splitlines()
        bars = {l.count('|') for l in lines if l.startswith('|')}
        assert len(bars)==1 and len(repr(o).splitlines())>2 and len(o.to_pandas())
