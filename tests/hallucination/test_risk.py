"The risk of a compressed model against its dense self: plain counting, planted truths, and what is refused"
import math
import numpy as np, pandas as pd
import pytest
from scipy import stats
from compresscal.hallucination.risk import *
from compresscal.summaries.scores import Scores

nan = math.nan
def draw(seed, n, ratio=1., mean=.3, together=.5):
    "Scores of a dense and a compressed model whose mean risks have a known ratio"
    rng = np.random.default_rng(seed)
    luck = rng.normal(size=(1, n))*together**.5+rng.normal(size=(2, n))*(1-together)**.5
    return 1-np.array([stats.beta.ppf(stats.norm.cdf(z), 6*m, 6*(1-m)) for z,m in zip(luck, (mean, mean*ratio))])

def quick(a, b, metric='summac_zs', **kwargs): return risk_ratio(a, b, metric, **dict(n_resamples=299, test=None) | kwargs)

# Plain counting

@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('rule', ['paired', 'keep', 'worst'])
def test_mean_is_plain_counting(seed, rule):
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, 40))
    a[rng.random(40)<.1] = nan
    b[rng.random(40)<.1] = nan
    flags = [['empty' if o else '' for o in rng.random(40)<.2] for _ in range(2)]
    pairs, out, missing = [], 0, 0
    for x,y,f,g in zip(a, b, *flags):
        if rule=='paired' and (f or g): out += 1
        else:
            x, y = (0. if rule=='worst' and flag else v for v,flag in ((x, f), (y, g)))
            if math.isnan(x) or math.isnan(y): missing += 1
            else: pairs.append((1-x, 1-y))
    r = quick(a, b, flags=flags, degenerate=rule)
    d, c = (sum(o)/len(pairs) for o in zip(*pairs))
    assert (r.n, r.left_out, r.missing)==(len(pairs), out, missing) and (r.dense, r.compressed, r.estimate)==pytest.approx((d, c, c/d))
    assert r.degenerate==pytest.approx([np.mean([bool(o) for o in side]) for side in flags])
    assert r.greater==pytest.approx(np.mean([(y>x)+(y==x)/2 for x,y in pairs]))
    t = quick(a, b, flags=flags, degenerate=rule, variant='threshold', threshold=.4)
    assert t.estimate==pytest.approx(np.mean([y>.6 for _,y in pairs])/np.mean([x>.6 for x,_ in pairs]))
    assert quick(a, b, flags=flags, degenerate=rule, variant='difference').estimate==pytest.approx(c-d)

def test_scale_and_direction_of_the_score_do_not_matter():
    a, b = draw(0, 30, 1.4)
    plain = quick(a, b)
    wide = quick(2*a-1, 2*b-1, Metric('m', 'm', (-1, 1)))
    turned = quick(10*(1-a), 10*(1-b), Metric('m', 'm', (0, 10), False))
    for o in (wide, turned): assert o.estimate==pytest.approx(plain.estimate) and [*o.interval]==pytest.approx([*plain.interval])

def test_swapping_turns_the_ratio_over():
    a, b = draw(1, 40, 1.4)
    r, s = risk_ratio(a, b, 'summac_zs'), risk_ratio(b, a, 'summac_zs')
    assert r.estimate*s.estimate==pytest.approx(1) and r.p==pytest.approx(s.p, abs=.01) and r.greater==pytest.approx(1-s.greater)

def test_a_score_at_the_threshold_has_not_failed():
    assert quick([.5, .4, .6, .4], [.5, .4, .4, .4], variant='threshold', threshold=.5).row()['dense']==.5
    m = Metric('m', 'm', (0, 1), False)
    r = quick([.5, .6], [.6, .6], m, variant='threshold', threshold=.5)
    assert (r.dense, r.compressed)==(.5, 1.) and 'above 0.5' in repr(r)

def test_difference_of_an_unbounded_score_is_of_risks():
    "A greater HaRiM+ is better, so a model whose score falls has more risk"
    r = quick([2., 1.], [1.5, .5], 'harim', variant='difference')
    assert r.estimate==.5 and r.greater==1 and r.null==0

# Data sets

def test_pools():
    a, b = (np.r_[x, y] for x,y in zip(draw(0, 60, 1.5), draw(1, 12, .8, .6)))
    of = ['many']*60+['few']*12
    by_documents, by_sets = (quick(a, b, dataset=of, pool=o) for o in ('documents', 'datasets'))
    assert by_documents.estimate==pytest.approx((1-b).mean()/(1-a).mean()) and by_documents.pooled=='documents'
    d, c = (np.mean([(1-o)[:60].mean(), (1-o)[60:].mean()]) for o in (a, b))
    assert (by_sets.dense, by_sets.compressed, by_sets.estimate)==pytest.approx((d, c, c/d))
    for o in (by_documents, by_sets):
        assert [*o.by_dataset]==['many', 'few'] and o.estimate in o.interval
        assert o.by_dataset['few'].estimate==pytest.approx((1-b[60:]).mean()/(1-a[60:]).mean())
    assert by_sets.to_pandas().dataset.tolist()==['many', 'few', 'all datasets']

def test_one_data_set_is_not_pooled():
    a, b = draw(0, 20)
    r = quick(a, b, dataset=['news']*20)
    assert not r.by_dataset and r.pooled=='' and len(r.to_pandas())==1

def test_a_data_set_of_one_document():
    a, b = draw(0, 21)
    r = quick(a, b, dataset=['news']*20+['law'])
    assert r.by_dataset['law'].interval is None and 'one document' in r.by_dataset['law'].reason and r.interval and 'law: one document' in repr(r)

def test_order_of_documents_does_not_matter_but_for_the_draws():
    a, b = draw(0, 60, 1.3)
    of = np.array(['x', 'y']*30)
    order = np.random.default_rng(0).permutation(60)
    one, other = (risk_ratio(a[o], b[o], 'summac_zs', dataset=of[o]) for o in (np.arange(60), order))
    assert one.estimate==pytest.approx(other.estimate) and [*one.interval]==pytest.approx([*other.interval], abs=.02) and one.p==pytest.approx(other.p, abs=.02)

def test_the_same_call_gives_the_same_numbers():
    a, b = draw(3, 50)
    frames = [risk_ratio(a, b, 'summac_zs', seed=s).to_pandas() for s in (1, 1, 2)]
    assert frames[0].equals(frames[1]) and not frames[0].equals(frames[2])

# Known truth

@pytest.mark.parametrize('true', [.7, 1., 1.5])
def test_interval_holds_the_true_ratio(true):
    found = [quick(*draw(i, 60, true)) for i in range(200)]
    assert np.mean([true in r.interval for r in found])==pytest.approx(.95, abs=.05)
    assert np.mean([r.estimate for r in found])==pytest.approx(true, rel=.03)

def test_interval_of_shares_holds_the_true_ratio():
    a, b = draw(99, 400_000, 1.5)
    true = (b<.6).mean()/(a<.6).mean()
    found = [quick(*draw(i, 50, 1.5), variant='threshold', threshold=.6) for i in range(200)]
    assert np.mean([r.interval is not None and true in r.interval for r in found])==pytest.approx(.95, abs=.05)

@pytest.mark.parametrize('pool', ['documents', 'datasets'])
def test_pooled_interval_holds_the_true_ratio(pool):
    "Two data sets of 40 and 15 documents with ratios 1.5 and .8"
    def pair(i): return [np.r_[x, y] for x,y in zip(draw(i, 40, 1.5, .2), draw(i+1000, 15, .8, .6))]
    w = dict(documents=(40, 15), datasets=(1, 1))[pool]
    true = np.average([.3, .48], weights=w)/np.average([.2, .6], weights=w)
    found = [quick(*pair(i), dataset=['a']*40+['b']*15, pool=pool) for i in range(150)]
    assert np.mean([true in r.interval for r in found])==pytest.approx(.95, abs=.06)

def test_an_effect_is_found_and_none_is_not():
    p = {t: [risk_ratio(*draw(i, 60, t), 'summac_zs', n_resamples=199).p for i in range(60)] for t in (1., 1.6)}
    assert np.mean(np.array(p[1.])<.05)<.16 and np.mean(np.array(p[1.6])<.05)>.9

def test_few_at_risk_have_an_interval_all_the_same():
    a, b = np.ones((2, 60))
    a[:3], b[2:8] = .2, .3
    r = quick(a, b)
    assert r.interval.method=="Fieller's interval" and r.estimate in r.interval and r.interval.high>20

# No value

def test_zero_risk_of_the_dense_model_has_no_ratio():
    r = quick([1., 1.], [.5, 1.])
    assert math.isnan(r.estimate) and r.interval is None and 'zero on all 2 documents' in r.reason and r.compressed==.25
    assert quick([1., 1.], [.5, 1.], variant='difference').estimate==.25
    both = quick([1., 1.], [1., 1.])
    assert math.isnan(both.estimate) and both.reason

def test_zero_risk_of_the_compressed_model_has_no_interval():
    r = quick([.5]*12, [1.]*12)
    assert r.estimate==0 and r.interval is None and 'no interval' in r.reason

@pytest.mark.parametrize('a, b, flags, reason', [([], [], None, 'no document has a score'), ([nan], [.5], None, 'no document has a score'),
                                                ([.5], [.5], [['empty'], ['']], 'no document has a usable summary')])
def test_nothing_to_compare(a, b, flags, reason):
    r = quick(a, b, flags=flags)
    assert r.n==0 and math.isnan(r.estimate) and math.isnan(r.p) and reason in r.reason and 'none' in repr(r) and r._repr_markdown_()

def test_flags_of_any_kind():
    "Booleans, reasons, and the missing values that an empty cell of a CSV becomes"
    a, b = draw(0, 4)
    expected = quick(a, b, flags=[['', '', '', 'empty'], ['']*4])
    for dense in ([False, False, False, True], [nan, nan, nan, 'empty'], [None, None, None, 'empty'], pd.Series(['', '', '', 'x'])):
        assert quick(a, b, flags=[dense, ['']*4]).n==expected.n==3

# Bad input

@pytest.mark.parametrize('kwargs, message', [
    (dict(variant='median'), '`variant` must be one of mean, threshold, difference'), (dict(pool='all'), '`pool` must be documents or datasets'),
    (dict(level=95), '`level`'), (dict(variant='threshold', threshold=2), 'within'), (dict(dataset=['a']), 'each of the 3 documents, got 1'),
    (dict(dataset='news'), "got 'news'"), (dict(flags=[['']*3]), '`flags` must be two lists'), (dict(flags=3), '`flags` must be two lists'), (dict(flags=(None, None)), '`flags` must be two lists'), (dict(flags=[['']*3, ['']*2]), 'each of the 3 documents'),
    (dict(test='t'), '`test`')])
def test_wrong_settings(kwargs, message):
    with pytest.raises(ValueError, match=message): risk_ratio(*draw(0, 3), 'summac_zs', **kwargs)

@pytest.mark.parametrize('a, b, metric, message', [
    ([.5], [.5, .5], 'summac_zs', 'got 1 and 2'), ([math.inf], [.5], 'summac_zs', 'got inf'), ([.5], [-1.], 'summac_zs', 'got -1'),
    ([.5], [.5], 'coverage', 'says nothing of risk'), ([.5], [.5], 'summac', "did you mean"), ([[.5]], [[.5]], 'summac_zs', 'one number for each summary'), (None, [.5], 'summac_zs', 'got NoneType'), (.5, .5, 'summac_zs', 'got float'),
    ([math.inf], [.5], 'harim', 'what is finite')])
def test_wrong_scores(a, b, metric, message):
    with pytest.raises(ValueError, match=message): risk_ratio(a, b, metric, variant='difference')

def test_scores_that_are_no_numbers():
    with pytest.raises(TypeError, match="scores of 'summac_zs' must be numbers"): risk_ratio(['high'], [.5], 'summac_zs')

def test_scores_of_different_metrics():
    with pytest.raises(ValueError, match="'a' and 'b'"): risk_ratio(Scores('a', [.5], (0, 1)), Scores('b', [.5], (0, 1)))
    with pytest.raises(ValueError, match='different bounds'): risk_ratio(Scores('a', [.5], (0, 1)), Scores('a', [.5], (-1, 1)))

@pytest.mark.parametrize('variant', ['mean', 'threshold'])
def test_no_ratio_of_a_score_without_bounds(variant):
    with pytest.raises(ValueError, match='no bounds and no zero'): risk_ratio([.5], [.5], 'harim', variant=variant)

def test_a_judge_says_what_its_scores_are():
    class Judge:
        name, bounds, higher_is_better = 'my_judge', (0, 5), False
    r = quick([0., 5.], [5., 5.], Judge())
    assert (r.metric.name, r.dense, r.compressed)==('my_judge', .5, 1.)

def test_tables_read_well():
    r = risk_ratio(*draw(0, 30), 'summac_zs', dataset=['a|b']*15+['c']*15)
    assert len({l.replace(r'\|', '').count('|') for l in r._repr_markdown_().splitlines() if l.startswith('|')})==1 and r'a\|b' in r._repr_markdown_()
    assert r.to_pandas().columns[:4].tolist()==['metric', 'variant', 'dataset', 'n'] and max(map(len, repr(r).splitlines()[1:]))<130

# Several data sets

def test_data_sets_weigh_alike_in_everything():
    "P(more) is the mean over data sets, as the risks are"
    a, b = draw(5, 60, 1.2)
    b[:50] = np.clip(a[:50]-.1, 0, 1) # more risk in all of the large one
    b[50:] = np.clip(a[50:]+.1, 0, 1)
    sets = ['large']*50+['small']*10
    alike, plain = (quick(a, b, dataset=sets, pool=o) for o in ('datasets', 'documents'))
    for r in (alike, plain): assert [o.greater for o in r.by_dataset.values()]==[1., 0.]
    assert (alike.greater, plain.greater)==pytest.approx((.5, 50/60)) and alike.estimate==pytest.approx(alike.compressed/alike.dense)
    assert .5 in alike.comparison.greater_interval and alike.comparison.greater_interval.width>1.5*plain.comparison.greater_interval.width

def test_a_lost_stratum_is_said():
    a, b = draw(6, 40, 1.2)
    lone, both = (quick(a, b, dataset=['one']*n+['other']*(40-n)) for n in (1, 20))
    assert 'as a data set holds a single one' in lone.interval.method and 'as a data set holds a single one' in repr(lone)
    assert both.interval.method=='BCa bootstrap' and [*lone.interval]==[*quick(a, b).interval]
