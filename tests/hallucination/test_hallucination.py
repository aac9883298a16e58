"Systems side by side: tables against plain computations, families, sets, sweeps, what a study kept."
import math, re
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from compresscal.hallucination.hallucination import (DENSE, Hallucination, System, associate, kept_reviews, plot_association, plot_risk, plot_sweep, risk_table, summary_pictures,
                                       summary_tables, over_sparsity, system_means)
from compresscal.hallucination.reviews import Review, review_record
from compresscal.hallucination.risk import Metric, risk_ratio
from compresscal.statistics.comparisons import holm

JUDGES = dict(good=Metric('good', 'good', (0, 1)), free=Metric('free', 'free'))

def made(seed, shift=0., n=40, bad=(), datasets=1):
    "A review of `n` documents, its scores drawn, with `bad` documents degenerate"
    rng, base = np.random.default_rng(seed), np.random.default_rng(99)
    hard = base.uniform(.2, .8, n)
    cover = np.clip(hard+rng.normal(0, .15, n), 0, 1)
    table = pd.DataFrame(dict(dataset=[f's{i*datasets//n}' for i in range(n)], id=[f'd{i}' for i in range(n)], flag=['repeated' if i in bad else '' for i in range(n)],
        words=rng.integers(5, 20, n).astype(float), source_words=100., coverage=cover, density=cover*3, rouge2_precision=cover**2, unsupported=np.where(rng.random(n)<.5, np.nan, 1-cover),
        rouge1_reference_f=cover/2, good=np.clip(cover-shift+rng.normal(0, .05, n), 0, 1), free=cover*2-shift))
    return Review(table, JUDGES, dict(seed=seed), (), tuple(f'text {i}' for i in range(n)))

def study(more={}): return Hallucination({DENSE: made(0), System('Wanda 50%', 'docs'): [made(1, .1), made(2, .12, bad=(3,)), made(3, .08)], System('Magnitude 50%'): made(4, .3, bad=range(5)),
                                         System('Wanda 2:4', 'docs'): made(5, .2), **more}, dict(lead=made(6, -.2), other=made(7, .5)))

def test_means_are_plain_means():
    o = study()
    found = system_means(o, ['good', 'unsupported']).set_index(['method', 'source'])
    parts = o.reviews[System('Wanda 50%', 'docs')]
    assert found.loc[('Wanda 50%', 'docs'), 'good']==pytest.approx(np.mean([r['good'][~r.degenerate].mean() for r in parts]))
    assert found.loc[('Wanda 50%', 'docs'), 'degenerate']==pytest.approx(1/120) and found.loc[('Magnitude 50%', 'none'), 'degenerate']==.125
    assert found.loc[('Wanda 50%', 'docs'), 'sets']==3 and list(found.control[-2:])==['lead', 'other']
    assert found.loc[('dense', 'none'), 'unsupported']==pytest.approx(np.nanmean(o.dense['unsupported']))

def test_one_set_is_the_risk_of_its_documents():
    o = study()
    found = risk_table(o, n_resamples=499, unqualified=True)
    for m in ('good', 'free'):
        row = found[(found.metric==m) & (found.method=='Magnitude 50%')].iloc[0]
        r = o.reviews[System('Magnitude 50%')][0]
        plain = risk_ratio(o.dense[m], r[m], JUDGES[m], variant='mean' if m=='good' else 'difference', flags=(o.dense.table.flag, r.table.flag), n_resamples=499)
        assert [row.risk, row.low, row.high, row.p, row.n, row.covers]==[plain.estimate, *plain.interval, plain.p, 35, 'documents (set fixed)']
    assert set(found[found.metric=='good'].variant)=={'mean'} and set(found[found.metric=='free'].variant)=={'difference'}

def test_several_sets_are_the_unit():
    o = study()
    row = risk_table(o, ['good'], n_resamples=99, unqualified=True).set_index('method').loc['Wanda 50%']
    each = [risk_ratio(o.dense['good'], r['good'], JUDGES['good'], flags=(o.dense.table.flag, r.table.flag), test=None).estimate for r in o.reviews[System('Wanda 50%', 'docs')]]
    logs = np.log(each)
    half = stats.t.ppf(.975, 2)*logs.std(ddof=1)/3**.5
    assert [row.risk, row.low, row.high, row.p]==pytest.approx([*np.exp([logs.mean(), logs.mean()-half, logs.mean()+half]), stats.ttest_1samp(logs, 0).pvalue])
    assert list(row['values'])==pytest.approx(each) and row.covers.startswith('sets')

def test_a_set_without_risk_has_no_logarithm():
    perfect = made(1)
    perfect.table['good'] = 1.
    row = risk_table(Hallucination({DENSE: made(0), System('a'): [perfect, made(2)]}), ['good'], n_resamples=99).iloc[0]
    assert math.isnan(row.low) and 'no risk at all' in row.reason and row.risk==pytest.approx(row['values'][1]/2)

def test_the_family_is_what_pools_compressed_models():
    found = risk_table(study(), n_resamples=99, unqualified=True)
    family = (found.control=='') & (found.dataset=='') & found.p.notna()
    assert found.p_holm[~family].isna().all() and family.sum()==9
    expected = holm(found.p[family].to_dict())
    assert found.p_holm[family].to_dict()==pytest.approx(expected)

def test_a_comparison_without_p_still_counts():
    "A model whose risk cannot be compared was to be compared all the same"
    lost = made(8)
    lost.table['good'] = np.nan
    found = risk_table(Hallucination({DENSE: made(0), System('a'): made(1, .1), System('b'): made(2, .02), System('lost'): lost}), ['good'], n_resamples=99, unqualified=True)
    p = found.set_index('method').p
    assert found.p.isna().tolist()==[False, False, True] and found.p_holm.isna().tolist()==[False, False, True]
    assert found.set_index('method').p_holm[p.idxmin()]==pytest.approx(3*p.min())

def test_data_sets_apart_and_together():
    o = Hallucination({DENSE: made(0, datasets=2), System('a'): made(1, .2, datasets=2)})
    found = risk_table(o, ['good'], n_resamples=99, unqualified=True)
    assert list(found.dataset)==['', 's0', 's1'] and list(found.n)==[40, 20, 20] and found.p_holm.notna().tolist()==[True, False, False]
    assert found.compressed[0]==pytest.approx(found.compressed[1:].mean())
    assert set(system_means(o, ['good'], datasets=True).dataset)=={'', 's0', 's1'} and set(system_means(o, ['good']).dataset)=={''}
    thirds = risk_table(o, ['good'], pool='datasets', n_resamples=99)
    assert thirds.risk[0]==pytest.approx(thirds.compressed[0]/thirds.dense[0])

@pytest.mark.parametrize('rule', ['paired', 'keep', 'worst'])
def test_degenerate_answers_follow_the_rule(rule):
    o = study()
    found = risk_table(o, degenerate=rule, n_resamples=99)
    row = lambda m: found[(found.metric==m) & (found.method=='Magnitude 50%')].iloc[0]
    assert row('good').n==(35 if rule=='paired' else 40) and row('free').n==(35 if rule=='paired' else 40) # without bounds there is no worst
    r = 1-o.reviews[System('Magnitude 50%')][0]['good']
    bad = np.arange(40)<5
    assert row('good').compressed==pytest.approx(dict(paired=r[~bad].mean(), keep=r.mean(), worst=np.where(bad, 1, r).mean())[rule])

def test_thresholds_count_failures():
    o = study()
    found = risk_table(o, ['good'], thresholds=dict(good=.5), n_resamples=99).set_index('method').loc['Wanda 2:4']
    assert found.variant=='threshold' and found.dense==pytest.approx((o.dense['good']<.5).mean())

def test_sweep_starts_at_the_dense_model():
    found = over_sparsity(study({System('Wanda 70%', 'docs'): made(8, .4)}), ['good'])
    assert {k: list(v.sparsity) for k,v in found.groupby('family')}=={'Magnitude': [0, .5], 'Wanda, docs': [0, .5, .7]} # 2:4 is no point of the curve
    assert set(found[found.sparsity==0].good)=={study().dense['good'].mean()}

def test_association_is_within_documents():
    "Risk falls with overlap by construction; the regression with fixed documents is that of demeaned columns"
    o = study()
    found = associate(o, 'good', 'coverage', n_resamples=0)
    rows = pd.concat([r.table.assign(k=f'{k.name}{i}') for k,v in o.reviews.items() for i,r in enumerate(v)])
    some = rows[rows.flag=='']
    inside = [stats.spearmanr(1-g.good, g.coverage).statistic for _,g in some.groupby('id')]
    value = lambda s, kind: found.table[(found.table.statistic==s) & (found.table.summaries==kind)].value.iloc[0]
    assert value('within documents', 'summaries')==pytest.approx(np.mean(inside))
    demeaned = lambda v, by: v-v.groupby(by).transform('mean')
    x = np.stack([demeaned(some.coverage, some.id), demeaned(np.log(some.words), some.id)], 1)
    beta = np.linalg.lstsq(x, demeaned(1-some.good, some.id), rcond=None)[0]
    assert [value('overlap, document fixed', 'summaries'), value('words, document fixed', 'summaries')]==pytest.approx(list(beta))
    assert value('overlap, document fixed', 'all')!=value('overlap, document fixed', 'summaries') and found.regressions['all'].clusters==40
    assert {k for o in found.bins.values() for k in o.lines()}=={'dense', 'compressed'}

def test_nothing_varies():
    flat = made(0)
    flat.table['good'] = .5
    with pytest.raises(ValueError, match='must vary'): associate(Hallucination({DENSE: flat}), 'good')
    assert [t for t,_,_ in summary_tables(Hallucination({DENSE: flat, System('a'): flat}))][:2]==['Summaries', 'Risk of hallucination']

def test_what_a_study_kept_is_found():
    o = study()
    cells = {(k, i): f'{k.name} {i}' for k,v in o.reviews.items() for i in range(len(v))}
    records = {name: review_record(o.reviews[k][i])|(dict(controls={n: review_record(c) for n,c in o.controls.items()}) if k==DENSE else {}) for (k,i),name in cells.items()}
    row = lambda k, i, **more: dict(dict(model='m', evaluation='e', metric='degenerate', method=k.method, source=k.source, n_sequences=8*(k.source!='none'), length=16, set=i, replicate=0,
                                         cell=cells[k, i]), **more)
    rows = [row(k, i) for k,i in reversed(cells)]
    again = kept_reviews(rows+[row(DENSE, 0, evaluation='other', cell='x'), row(DENSE, 0, replicate=1, cell='y')], records.get, 'm', 'e')
    assert {k: len(v) for k,v in again.reviews.items()}=={k: len(v) for k,v in o.reviews.items()} and list(again.controls)==['lead', 'other']
    pd.testing.assert_frame_equal(again.reviews[System('Wanda 50%', 'docs')][1].table, o.reviews[System('Wanda 50%', 'docs')][1].table, check_dtype=False)
    two = kept_reviews(rows+[row(System('Wanda 50%', 'docs'), 0, n_sequences=32, cell='big')], {**records, 'big': records['Wanda 50%, docs 0']}.get, 'm', 'e')
    assert {'docs 8x16', 'docs 32x16'}<={k.source for k in two.reviews}
    assert kept_reviews([r for r in rows if r['method']!='dense'], records.get, 'm', 'e') is None

def test_pictures_have_words():
    o = study()
    for p in summary_pictures(o).values(): assert p.alt and p.caption and p.to_bytes()[:4]==b'\x89PNG'
    with pytest.raises(ValueError, match='got none'): plot_risk(o.risk.assign(risk=math.nan))
    with pytest.raises(ValueError, match='got none'): plot_sweep(over_sparsity(Hallucination({DENSE: made(0)})))
    assert 'control: lead' in [t.get_text() for t in plot_risk(o.risk).figure.axes[0].get_yticklabels()]
    assert plot_association(associate(o, 'free', n_resamples=0)).alt

@pytest.mark.parametrize('given,kind,says', [({}, ValueError, 'got none'), (dict(a=made(1)), ValueError, 'got a'), ({DENSE: [made(0), made(1)]}, ValueError, "one review of the system 'dense'"),
    (dict(dense=made(0), a=made(1, n=39)), ValueError, "others for 'a'"), (dict(dense=made(0), a=3), TypeError, 'got int')])
def test_wrong_reviews(given, kind, says):
    with pytest.raises(kind, match=says): Hallucination(given)

@pytest.mark.parametrize('how,says', [(dict(metrics=['truth']), "got 'truth'"), (dict(metrics=['coverage']), 'better and a worse end'), (dict(degenerate='drop'), "got 'drop'"),
    (dict(level=2), '`level`'), (dict(pool='sets'), "got 'sets'"), (dict(metrics=['free'], thresholds=dict(free=.5)), 'no bounds')])
def test_wrong_questions(how, says):
    with pytest.raises(ValueError, match=says): risk_table(study(), n_resamples=99, **how)

NASTY = 'a|b<i>\x1b[31m'

def nasty_things():
    "Everything of this kind that shows a name, with one that does harm"
    from compresscal.statistics.correlation import correlate
    from compresscal.statistics.regression import binned, regress
    from compresscal.summaries.overlap import Overlap, overlap
    from compresscal.summaries.quality import quality
    from compresscal.summaries.scores import Scores
    rng = np.random.default_rng(0)
    x, y = rng.random(40), rng.random(40)
    metric = Metric(NASTY, NASTY, (0, 1))
    o = Review(made(0).table.rename(columns=dict(good=NASTY)), {NASTY: metric}, {}, (NASTY,), ())
    other = Review(made(1).table.rename(columns=dict(good=NASTY)), {NASTY: metric}, {}, (NASTY,), ())
    study = Hallucination({DENSE: o, System(NASTY): other})
    copied = overlap(['a b c'], ['a b'], progress=False)
    return dict(review=o, hallucination=study, association=associate(study, NASTY, n_resamples=0), risk=risk_ratio(x, y, metric, dataset=[NASTY]*20+['b']*20, n_resamples=99),
                scores=Scores(NASTY, x, (0, 1), settings={NASTY: NASTY}, notes=(NASTY,)), regression=regress(y, {NASTY: x}), binned=binned(x, y, 2, kinds=[NASTY]*40),
                overlap=Overlap(copied.table, copied.settings, (NASTY,)))

@pytest.mark.parametrize('name, o', nasty_things().items())
def test_no_name_is_obeyed(name, o):
    shown, plain = o._repr_markdown_(), repr(o)
    assert '\x1b' not in shown+plain and '<i>' not in shown and '&lt;i&gt;' in shown
    assert r'a\|b' in shown
    for block in shown.split('\n\n'):
        if block.startswith('|'): assert len({len(re.findall(r'(?<!\\)\|', l)) for l in block.splitlines()})==1
