"Intervals of the mixed model hold the true difference; what goes wrong is said"
import numpy as np
import pandas as pd
import pytest
from compresscal.statistics.mixed_model import fit_mixed
from compresscal.statistics.reliability import reliability_of

def table(seed, S, shared, D=25, set_sd=.15, under_one=.3, rest=.3, worse=.5):
    rng, rows = np.random.default_rng(seed), []
    difficulty, common = rng.normal(size=D), set_sd*rng.normal(size=S)
    for l,name in enumerate('ab'):
        odd = under_one*rng.normal(size=D)
        for s in range(S):
            effect = common[s]+set_sd*rng.normal() if shared else set_sd*rng.normal()
            y = worse*l+difficulty+odd+effect+rest*rng.normal(size=D)
            rows += [(y[d], name, s if shared else f'{name}{s}', d) for d in range(D)]
    return pd.DataFrame(rows, columns=['score', 'level', 'set', 'document'])

def fit(t): return fit_mixed(t.score, t.level, t.set, t.document)

@pytest.mark.slow
@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('S', [3, 6])
def test_the_interval_covers(S, shared):
    found = [fit(table(i, S, shared)) for i in range(150)]
    held = np.mean([.5 in o.contrasts['b'].interval for o in found])
    assert held>=.9, held # 1.8 % is the error of 150 runs
    assert np.mean([o.converged for o in found])>.95

def test_rows_in_another_order_give_the_same():
    t = table(0, 3, False)
    mixed_up = t.sample(frac=1, random_state=0)
    first = mixed_up[mixed_up.level=='a'].iloc[:1] # the reference is the level of the first row
    one, other = fit(t), fit(pd.concat([first, mixed_up.drop(first.index)]))
    assert one.contrasts['b'].difference==pytest.approx(other.contrasts['b'].difference, abs=1e-4)
    assert one.contrasts['b'].error==pytest.approx(other.contrasts['b'].error, rel=.02)

def test_missing_documents_are_no_obstacle():
    t = table(1, 4, False).drop(index=[3, 50, 77, 120])
    assert fit(t).converged and abs(fit(t).contrasts['b'].difference-fit(table(1, 4, False)).contrasts['b'].difference)<.05

def test_what_does_not_vary_is_said():
    flat = table(2, 3, True, set_sd=0., under_one=0.)
    found = fit(flat)
    assert found.at_zero and all(o in found.note for o in found.at_zero)

@pytest.mark.parametrize('truth', [.3, .8])
def test_reliability_covers(truth):
    rng, held = np.random.default_rng(0), []
    for _ in range(400):
        own = truth**.5*rng.normal(size=(3, 5))
        values, again = own+(1-truth)**.5*rng.normal(size=(3, 5)), own[:, :1]+(1-truth)**.5*rng.normal(size=(3, 3))
        found = reliability_of(again.tolist(), values.tolist())
        held.append(found.low<=truth<=found.high)
    assert np.mean(held)==pytest.approx(.95, abs=.035)
