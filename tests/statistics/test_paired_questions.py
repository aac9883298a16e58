"Questions answered by two models, tasks taken together, and families of comparisons"
import math
import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from compresscal.statistics.comparisons import compare_answers, holm
from compresscal.statistics.family import PlannedTest, check_decidable, sets_needed, sources_matter, undecidable
from compresscal.statistics.paired_questions import compare_questions, mcnemar_p
from compresscal.statistics.pooled_tasks import pool_tasks
from compresscal.statistics.question_power import detectable_change, question_power

@pytest.mark.parametrize('lost', range(0, 12, 3))
@pytest.mark.parametrize('gained', range(0, 12, 2))
def test_p_is_that_of_other_libraries(lost, gained):
    exact, mid = float(mcnemar_p(lost, gained)), float(mcnemar_p(lost, gained, 'mid-p'))
    assert exact==pytest.approx(mcnemar([[5, lost], [gained, 5]], exact=True).pvalue)
    less, flips = min(lost, gained), lost+gained
    by_hand = 2*sum(math.comb(flips, k) for k in range(less))/2**flips+math.comb(flips, less)/2**flips
    assert mid==pytest.approx(min(1, by_hand)) and mid<=exact<=1

@pytest.mark.parametrize('kind, low, high', [('exact', 0, .05), ('mid-p', .03, .0525)])
def test_level_is_exact(kind, low, high):
    "No simulation: the chance of every outcome of 500 questions is known"
    for share in (.05, .1, .3):
        found = question_power(0., 500, share, kind=kind)
        assert low<=found<=high, (share, found)

def test_answers_and_questions_agree():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, (2, 300))
    one, other = compare_questions(a, b), compare_answers(a, b)
    assert (one.lost, one.gained, one.change, one.exact, one.interval)==(other.lost, other.gained, other.change, other.p, other.interval)

def test_pooling_does_not_depend_on_the_order_of_tasks():
    rng = np.random.default_rng(1)
    tasks = {k: rng.integers(0, 2, (2, n)) for k,n in dict(a=300, b=80, c=40).items()}
    one, other = pool_tasks(tasks), pool_tasks(dict(reversed(tasks.items())))
    assert (one.pooled.exact, one.macro, one.any_p)==pytest.approx((other.pooled.exact, other.macro, other.any_p)) and abs(one.macro_p-other.macro_p)<.03

@pytest.mark.slow
def test_macro_interval_covers():
    rng, sizes, change = np.random.default_rng(2), (400, 100), (.04, -.02)
    def drawn():
        for k,(n,d) in enumerate(zip(sizes, change)):
            kind = rng.choice(3, n, p=[.1+d/2, .1-d/2, .8]) # gained, lost, the same
            yield k, (np.where(kind==1, 1, 0), np.where(kind==0, 1, 0))
    held = [np.mean(change) in pool_tasks(dict(drawn()), n_resamples=1).macro_interval for _ in range(300)]
    assert np.mean(held)==pytest.approx(.95, abs=.035)

def test_detectable_is_monotone():
    for kind in ('exact', 'mid-p'):
        found = [detectable_change(n, .1, kind=kind) for n in (200, 400, 1600)]
        assert found[0]>found[1]>found[2]

@pytest.mark.parametrize('sets, times, refused', [(3, 1, True), (4, 1, False), (4, 2, True), (5, 6, False), (5, 7, True)])
def test_families_that_cannot_reject(sets, times, refused):
    family = [PlannedTest('sources', times, sets, False)]
    assert bool(undecidable(family))==refused==(min(holm({i: family[0].least for i in range(times)}).values())>.05)
    if not refused: return check_decidable(family)
    with pytest.raises(ValueError, match=f'it takes {sets_needed(family)} sets'): check_decidable(family)
    check_decidable([PlannedTest('sources', times, sets_needed(family), False)])

def test_sources_matter_keeps_its_level_with_unequal_numbers_of_sets():
    def strata(i):
        rng = np.random.default_rng(i)
        sets = [('a', s) for s in range(3)]+[('b', s) for s in range(6)]
        own = rng.normal(size=9)
        return {k: dict(zip(sets, own+rng.normal(size=9))) for k in range(5)}
    p = np.array([sources_matter(strata(i)).p for i in range(400)])
    assert (p<=.05).mean()<=.05+3*math.sqrt(.05*.95/400) and (p<=.5).mean()==pytest.approx(.5, abs=.09)
