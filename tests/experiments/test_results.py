"Tables say what plain counting over the rows says, whatever is missing"
import itertools, json, math, random, warnings
import numpy as np
import pandas as pd
import pytest
from compresscal.experiments import documents
from compresscal.experiments import findings
from compresscal.experiments.findings import *
from compresscal.experiments.results import RESULT_COLUMNS, Results, latex_table, plain_table, tables
from compresscal.core.tables import markdown_table
from compresscal.statistics.comparisons import compare_answers, compare_paired, compare_unpaired, holm
from compresscal.statistics.intervals import crossed_interval, standard_error, summarize_values

def row(method, source, set, value, evaluation='docs', metric='perplexity', replicate=0, size=(32, 256), model='toy', documents=40):
    size = (0, 0) if source=='none' else size
    return dict(model=model, method=method, source=source, n_sequences=size[0], length=size[1], set=set, replicate=replicate, evaluation=evaluation, metric=metric, value=value,
                documents=documents, calibration='', text='', fingerprint='', cell=f'{model} {method} {source} {set} {replicate} {evaluation}')

def study(seed=0, methods=('Wanda 50%', 'SparseGPT 2:4'), sources=('docs', 'code', 'self'), S=4, D=40, Q=150, sizes=((32, 256),), models=('toy',)):
    "Rows and records of a made-up study: two texts, a task, a divergence, a method without text, replicates"
    rng, rows, records = np.random.default_rng(seed), [], {}
    tokens = rng.integers(50, 300, D)
    def add(model, method, source, set, shift, acc, replicate=0, size=(32, 256)):
        for e in ('docs', 'code'):
            nats = tokens*(base[model, e]+shift)
            parts = dict(nats=nats, tokens=tokens, bytes=4*tokens)
            metrics = dict(perplexity=math.exp(nats.sum()/tokens.sum()), bits_per_byte=nats.sum()/tokens.sum()/4/math.log(2))
            put(model, method, source, set, e, metrics, parts, replicate, size, {})
        put(model, method, source, set, 'kl:docs', dict(kl=abs(shift).mean(), agreement=1-abs(shift).mean()), dict(kl=[abs(shift).mean()*2]*D, agree=[2-2*abs(shift).mean()]*D, tokens=[2]*D), replicate, size, {})
        put(model, method, source, set, 'task:quiz', dict(acc=acc.mean()), dict(acc=acc, id=[f'q{i}' for i in range(Q)]), replicate, size, dict(chance=.25))
    def put(model, method, source, set, e, metrics, parts, replicate, size, counts):
        parts = {k: [o if isinstance(o, str) else float(o) for o in v] for k,v in parts.items()}
        n = len(next(iter(parts.values())))
        for k,v in metrics.items(): rows.append(row(method, source, set, float(v), e, k, replicate, size, model, n))
        records[rows[-1]['cell']] = dict(metrics={k: float(v) for k,v in metrics.items()}, counts=dict(documents=n)|counts, documents=parts)
    base = {(m, e): rng.normal(3, .3, D) for m in models for e in ('docs', 'code')}
    answers = (rng.random(Q)<.6).astype(float)
    for model in models:
        add(model, 'dense', 'none', 0, np.zeros(D), answers)
        add(model, 'Magnitude 50%', 'none', 0, np.full(D, .3), 1-answers)
        for i in (0, 1): add(model, 'Magnitude 50%', sources[0], i, np.full(D, .3), 1-answers, replicate=1)
        for (i,m),(j,s),size,k in itertools.product(enumerate(methods), enumerate(sources), sizes, range(S)):
            made = .1+.05*i+.03*j+.01*rng.normal()+.01*rng.normal(size=D), np.where(rng.random(Q)<.1, 1-answers, answers)
            add(model, m, s, k, *made, size=size)
            if not k and not j: add(model, m, s, k, made[0]*(1+1e-5), made[1], replicate=1, size=size)
    return rows, records

rows, records = study()
made = Results(rows, records=records.get, family=[('docs', 'code'), ('Wanda 50%', 'SparseGPT 2:4')])
calls = ['summary', 'curve', 'spread', 'compare_methods', 'compare_sources', 'ranges', 'noise', 'checks', 'failed_checks', 'accuracy', 'hidden', 'rank_agreement', 'intervals', 'to_pandas',
         'source_effect', 'reliabilities', 'severity', 'matched_damage',
         'to_csv', 'to_markdown', 'to_latex', '__repr__', '_repr_markdown_']

@pytest.mark.parametrize('value', [1/3, 1e-300, 12345678.123456789, math.inf, -0., 5e-324, 2/3*1e17])
def test_numbers_survive(value):
    again = Results.from_csv(Results([row('Wanda 50%', 'docs', 0, value)]).to_csv()).rows
    assert again==[row('Wanda 50%', 'docs', 0, value)] and math.copysign(1, again[0]['value'])==math.copysign(1, value)

def test_rows_survive():
    odd = row('Wanda(a="x, y")', 'a "quoted", path\nof two lines', 0, math.nan)
    again = Results.from_csv(Results([*rows, odd]).to_csv())
    assert again.rows[:-1]==rows and again.rows[-1]|dict(value=0)==odd|dict(value=0) and math.isnan(again.rows[-1]['value'])
    assert list(again.rows[0])==list(RESULT_COLUMNS) and [type(v) for v in again.rows[0].values()]==[type(v) for v in rows[0].values()]
    assert again.to_csv()==Results([*rows, odd]).to_csv()

def test_summary_is_that_of_pandas():
    plain = pd.DataFrame([r for r in rows if not r['replicate']]).groupby(['method', 'source', 'evaluation', 'metric']).value.agg(['mean', 'std', 'min', 'max', 'count'])
    for r in made.summary().itertuples():
        p, dense = plain.loc[r.method, r.source, r.evaluation, r.metric], plain.loc['dense', 'none', r.evaluation, r.metric]['mean']
        assert [r.mean, r.low, r.high, r.sets, r.dense]==pytest.approx([p['mean'], p['min'], p['max'], p['count'], dense], rel=1e-12)
        if r.source!='none': assert [r.sd, (r.interval_high-r.interval_low)/2]==pytest.approx([p['std'], 3.182446305284263*p['std']/2], rel=1e-9)
        else: assert r.sd==0 and math.isnan(r.interval_low)
        assert math.isnan(r.ratio) if r.metric in ('acc', 'kl', 'agreement') else r.ratio==pytest.approx(r.mean/dense)

def test_replicates_take_no_part():
    alone = Results([r for r in rows if not r['replicate']], records=records.get, family=made.family)
    for f in ('summary', 'compare_methods', 'compare_sources', 'ranges', 'accuracy', 'hidden', 'intervals'): pd.testing.assert_frame_equal(getattr(alone, f)(), getattr(made, f)())

@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('seed', range(12))
def test_tables_stand_whatever_is_missing(seed):
    "Rows and records are taken away at random, or a whole kind of them; values stop being finite"
    rng = random.Random(seed)
    gone = [lambda r: rng.random()<.5, lambda r: r['method']=='dense', lambda r: r['source']=='docs', lambda r: r['evaluation']=='docs', lambda r: r['metric']=='acc', lambda r: r['set']>0,
            lambda r: rng.random()<.97, lambda r: r['method']!='dense', lambda r: r['source']!='none', lambda r: r['replicate']==0, lambda r: True, lambda r: False][seed]
    some = [r|dict(value=math.inf) if rng.random()<.05 and r['metric']=='perplexity' else r for r in rows if not gone(r)]
    found = Results(some, (), [dict(model='toy', method='Wanda 50%', type='ValueError', message='no')], lambda k: records[k] if rng.random()<.8 else None, made.family)
    for f in calls: getattr(found, f)()
    assert all(len(l)<=80 for l in repr(found).splitlines())
    for f in calls: getattr(Results(some), f)()

def test_tables_of_questions_and_documents_stand():
    "With records, without some of them, and without any"
    few = Results([r for r in rows if r['method'] in ('dense', 'Wanda 50%')], records=lambda k: None if 'code' in str(k) else records[k])
    for name in ('questions', 'questions_of_sets', 'questions_together'):
        assert len(getattr(few, name)())<=len(getattr(Results(few.rows, records=records.get), name)())
        assert not len(getattr(Results(few.rows), name)())

def test_comparisons_are_those_of_the_values():
    v = {(g.method, g.source): [*s.values()] for g,s in made.values().items() if (g.evaluation, g.metric)==('docs', 'perplexity')}
    m, s = (f[(f.evaluation=='docs') & (f.metric=='perplexity')] for f in (made.compare_methods(), made.compare_sources()))
    for r in m[m.source!='all sources'].itertuples():
        a, b = (v.get((o, r.source)) or v[o, 'none']*4 for o in (r.a, r.b))
        c = compare_paired(a, b)
        assert [r.difference, r.low, r.high, r.greater]==pytest.approx([c.difference, *c.interval, c.greater])
    for r in m[m.source=='all sources'].itertuples():
        a, b = ([x for source in ('docs', 'code', 'self') for x in v.get((o, source)) or v[o, 'none']*4] for o in (r.a, r.b))
        assert r.sets_a==12 and r.difference==pytest.approx(np.mean(a)-np.mean(b))
        if r.declared: assert r.p==compare_paired(a, b).p
    for r in s.itertuples():
        c = compare_unpaired(v[r.method, r.a], v[r.method, r.b])
        assert [r.difference, r.low, r.high, r.greater, r.greater_low, r.greater_high]==pytest.approx([c.difference, *c.interval, c.greater, *c.greater_interval])
        assert r.p==c.p if r.declared else math.isnan(r.p)

def test_family_is_one():
    "Declared pairs, each once in each setting, in the first metric of each evaluation; adjusted together"
    m, s = made.compare_methods(), made.compare_sources()
    both = pd.concat([m[m.declared], s[s.declared]])
    assert len(m[m.declared])==4 and len(s[s.declared])==4*2 # evaluations; times methods
    assert set(zip(both.evaluation, both.metric))=={('docs', 'perplexity'), ('code', 'perplexity'), ('kl:docs', 'kl'), ('task:quiz', 'acc')}
    assert both.p_holm.tolist()==pytest.approx([*holm(dict(enumerate(both.p))).values()])
    assert m[~m.declared].p.isna().all() and s[~s.declared].p_holm.isna().all()

@pytest.mark.parametrize('wanted', [dict(evaluation='docs'), dict(method=['Wanda 50%', 'dense']), dict(evaluation='docs', metric='perplexity'), dict(replicate=0), dict(source=['docs', 'code', 'none'])])
def test_a_selection_keeps_the_declared_family(wanted):
    "What is selected is adjusted among all that was declared; what was not declared gets no p"
    part, key = made.select(**wanted), [*findings.Group._fields, 'a', 'b']
    for name in ('compare_methods', 'compare_sources'):
        some, whole = (getattr(o, name)() for o in (part, made))
        same = [k for k in key if k in some]
        known = {tuple(r[k] for k in same): r for r in whole[whole.declared].to_dict('records')}
        found = {tuple(r[k] for k in same): r for r in some[some.declared].to_dict('records')}
        assert found.keys()<=known.keys() and (found or name=='compare_methods')
        assert all(r['p_holm']==known[k]['p_holm'] for k,r in found.items() if r['p']==known[k]['p'])
        assert all(r['p_holm']>=r['p'] or math.isnan(r['p']) and math.isnan(r['p_holm']) for r in found.values())
    assert part.select(model='toy').whole is made.rows and len(part.family)==2

def test_another_metric_was_not_declared():
    found = made.select(metric='bits_per_byte')
    assert not found.compare_sources().declared.any() and found.compare_sources().p.isna().all() and made.select(source='docs').compare_methods().p.isna().all()

@pytest.mark.parametrize('family', [[('docs', 'code'), ('code', 'docs')], [('docs', 'code')]*2, [('docs', 'docs')], [('docs', 'code', 'self')], ['docs']])
def test_a_family_holds_each_pair_once(family):
    for f in (lambda: Results(rows, family=family), lambda: findings.compare_sources(rows, family), lambda: findings.compare_methods(rows, family)):
        with pytest.raises(ValueError, match='`family` must'): f()

def test_comparisons_that_failed_still_count():
    lost = Results([r for r in rows if not (r['source']=='code' and r['method']=='Wanda 50%')], family=made.family)
    s, whole = lost.compare_sources(), made.compare_sources()
    assert s.declared.sum()==whole.declared.sum() and s[s.declared].p.isna().sum()==4
    both = pd.concat([s[s.declared], (m := lost.compare_methods())[m.declared]])
    counted = holm(dict(enumerate(both.p.fillna(1))))
    assert len(both)==12 and [counted[i] if p==p else None for i,p in enumerate(both.p)]==[h if h==h else None for h in both.p_holm]

@pytest.mark.parametrize('family', [[('docs', 'nothing such')], [('no', 'such')], [('dense', 'Wanda 50%')], [('Magnitude 50%', 'Wanda 50%')], [('code', 'docs')]])
def test_odd_families(family):
    found = Results(rows, family=family)
    m, s = found.compare_methods(), found.compare_sources()
    if 'dense' in family[0] or 'Magnitude 50%' in family[0]: assert m.declared.sum()==4 and m[m.declared].p.notna().all()
    if family==[('code', 'docs')]: assert (s[s.declared].a=='code').all() and len(s)==len(made.compare_sources())

def test_sizes_are_not_mixed():
    found = Results(study(sizes=((8, 128), (32, 256)))[0])
    assert set(found.curve().tokens)=={1024, 8192} and found.curve().tokens.is_monotonic_increasing
    assert len(found.compare_sources())==2*len(made.compare_sources()) and (found.compare_sources().sets_a==4).all()
    assert '8x128' in repr(found) and '8x128' not in repr(made)
    assert {c.name: c.ok for c in found.checks()}['equal tokens'] is True

def test_checks_see_what_is_wrong():
    ok = lambda rows, failures=(): {c.name: c.ok for c in findings.checks(rows, failures)}
    assert ok(rows)=={'dense model': True, 'methods without text': True, 'noise': True, 'equal tokens': True, 'complete': True}
    turned = [r|dict(value=r['value']*1.01) if r['method']=='Magnitude 50%' and r['replicate'] and r['set']==1 and r['metric']=='perplexity' else r for r in rows]
    assert ok(turned)['methods without text'] is False
    assert ok([r|dict(value=r['value']*1.05) if r['replicate'] and r['method']=='Wanda 50%' else r for r in rows])['noise'] is False
    assert ok([r for r in rows if not (r['method']=='dense' and r['evaluation']=='code')])['dense model'] is False
    assert ok([r for r in rows if not (r['method']=='dense' and r['evaluation']=='kl:docs')])['dense model'] is True # a divergence needs none
    assert ok([r for r in rows if not (r['source']=='self' and r['set']==2 and r['method']=='Wanda 50%')])['complete'] is False
    assert ok(rows, [dict(model='toy')])['complete'] is False
    assert ok([r|dict(n_sequences=16) if r['source']=='self' else r for r in rows])['equal tokens'] is False
    assert [c.name for c in Results(turned).failed_checks()]==['methods without text'] and 'Magnitude 50%' in Results(turned).failed_checks()[0].sentence

def moved(by, metric='perplexity', among=rows):
    "The rows, but the last replicate of the method without text is another number"
    return [r|dict(value=by(r['value'])) if r['method']=='Magnitude 50%' and r['replicate'] and r['set']==1 and r['metric']==metric else r for r in among]

@pytest.mark.parametrize('by, ok', [(lambda v: math.nextafter(v, 0), True), (lambda v: v*(1+1e-6), True), (lambda v: v*1.005, False), (lambda v: math.inf, False), (lambda v: math.nan, False)])
def test_a_study_resumed_elsewhere_is_no_failed_check(by, ok):
    "Another machine adds up in another order; a method that looks at text moves by far more"
    found = {c.name: c for c in findings.checks(moved(by))}['methods without text']
    assert found.ok is ok and ('rounding' in found.sentence)==ok and ' allowed)' in found.sentence

def test_null_controls_measure_what_is_allowed():
    alone = [r for r in moved(lambda v: v*(1+1e-4)) if not (r['replicate'] and r['method']!='Magnitude 50%')]
    ok = lambda some: {c.name: c.ok for c in findings.checks(some)}['methods without text']
    assert ok(alone) is False # nothing but rounding is known
    loud = [r|dict(value=r['value']*1.001) if r['replicate'] and r['method']!='Magnitude 50%' else r for r in moved(lambda v: v*(1+1e-4))]
    assert ok(loud) is True
    quiet = [r|dict(value=r['value']/1.001) if r['method']=='Wanda 50%' and r['replicate'] else r for r in loud]
    assert ok(quiet) is False # the quietest decides
    answer = moved(lambda v: v+1/150, 'acc')
    assert ok(answer) is True and ok(moved(lambda v: v+2/150, 'acc')) is False # one question of 150

def test_noise_is_pooled():
    n = made.noise()
    w = n[(n.method=='Wanda 50%') & (n.evaluation=='docs') & (n.metric=='perplexity')].iloc[0]
    v = {g.source: [*s.values()] for g,s in made.values().items() if (g.method, g.evaluation, g.metric)==('Wanda 50%', 'docs', 'perplexity')}
    twice = [r['value'] for r in rows if (r['method'], r['source'], r['set'], r['evaluation'], r['metric'])==('Wanda 50%', 'docs', 0, 'docs', 'perplexity')]
    assert w.noise==pytest.approx(np.std(twice, ddof=1)) and w.spread==pytest.approx(np.sqrt(np.mean([np.var(o, ddof=1) for o in v.values()])))

def test_ranges_beside_chance():
    r = made.ranges()
    one = r[(r.method=='SparseGPT 2:4') & (r.evaluation=='docs') & (r.metric=='perplexity')].iloc[0]
    means = {g.source: np.mean([*s.values()]) for g,s in made.values().items() if (g.method, g.evaluation, g.metric)==('SparseGPT 2:4', 'docs', 'perplexity')}
    assert one.range==pytest.approx(max(means.values())-min(means.values())) and (one.best, one.worst)==(min(means, key=means.get), max(means, key=means.get))
    quiz = r[r.metric=='acc'].iloc[0]
    accuracy = {g.source: np.mean([*s.values()]) for g,s in made.values().items() if (g.method, g.metric)==(quiz.method, 'acc')}
    assert accuracy[quiz.best]==max(accuracy.values()) and 0<one.p<=1 and one.expected<one.range

def test_scores_of_records_give_the_values():
    for r in rows:
        s = documents.document_scores(records[r['cell']], r['metric'])
        assert s.value==pytest.approx(r['value'], rel=1e-9)

def test_intervals_are_those_of_the_scores():
    absolute, relative = made.intervals(), made.intervals(against_dense=True)
    one = lambda f, m: f[(f.method=='Wanda 50%') & (f.source=='docs') & (f.evaluation==m[0]) & (f.metric==m[1])].iloc[0]
    cells = [records[f'toy Wanda 50% docs {i} 0 docs']['documents'] for i in range(4)]
    dense, tokens = records['toy dense none 0 0 docs']['documents'], cells[0]['tokens']
    a, r = one(absolute, ('docs', 'perplexity')), one(relative, ('docs', 'perplexity'))
    assert [a.both_low, a.both_high]==pytest.approx([*crossed_interval([c['nats'] for c in cells], tokens, statistic='perplexity')])
    assert [a.sets_low, a.sets_high]==pytest.approx([*summarize_values([math.exp(sum(c['nats'])/sum(tokens)) for c in cells]).interval])
    assert r.value==pytest.approx(np.mean([math.exp(sum(c['nats'])/sum(tokens)) for c in cells])/math.exp(sum(dense['nats'])/sum(tokens)))
    assert r.documents_high-r.documents_low<(a.documents_high-a.documents_low)/a.value
    q = one(relative, ('task:quiz', 'acc'))
    f = [compare_answers(records['toy dense none 0 0 task:quiz']['documents']['acc'], records[f'toy Wanda 50% docs {i} 0 task:quiz']['documents']['acc']) for i in range(4)]
    assert q.value==pytest.approx(np.mean([o.change for o in f]))

def test_other_documents_are_not_compared():
    "Records of other questions, or of other lengths, are left out rather than lined up by position"
    other = {k: v if 'dense' in k else v|dict(documents=v['documents']|dict(id=[f'x{i}' for i in range(150)])) for k,v in records.items()}
    found = Results(rows, records=other.get)
    assert found.accuracy().flips.isna().all() and not len(found.intervals(against_dense=True).query('evaluation=="task:quiz"')) and len(found.intervals().query('evaluation=="task:quiz"'))

def test_accuracy_by_hand():
    a = made.accuracy().set_index(['method', 'source'])
    before = records['toy dense none 0 0 task:quiz']['documents']['acc']
    f = [compare_answers(before, records[f'toy SparseGPT 2:4 self {i} 0 task:quiz']['documents']['acc']) for i in range(4)]
    r = a.loc['SparseGPT 2:4', 'self']
    assert [r.lost, r.gained, r.flips]==pytest.approx([np.mean([o.lost for o in f])/150, np.mean([o.gained for o in f])/150, np.mean([o.share for o in f])])
    assert r.test_error==pytest.approx(np.mean([standard_error(records[f'toy SparseGPT 2:4 self {i} 0 task:quiz']['documents']['acc']) for i in range(4)]))
    assert a.loc['Magnitude 50%', 'none'].flips==1 and r.chance==.25 and r.interpret and r.mark==''

@pytest.mark.parametrize('dense, counts, mark', [(.6, dict(chance=.5), ''), (.53, dict(chance=.5), 'at chance'), (.3, dict(chance=.5), 'at chance'), (.65, dict(chance=.5, majority=.62), 'at majority'), (.6, {}, '')])
def test_guessing_is_marked(dense, counts, mark):
    task = [row('dense', 'none', 0, dense, 'task:t', 'acc', documents=400), row('Wanda 50%', 'docs', 0, .5, 'task:t', 'acc', documents=400)]
    a = Results(task, records=lambda k: dict(metrics={}, counts=counts, documents={})).accuracy().iloc[0]
    assert a['mark']==mark and (a.interpret is None if not counts else bool(a.interpret)==(mark==''))

def hiding(q, t):
    "Two sources whose perplexities and accuracies differ by so many standard deviations"
    z = [-1, 0, 1]
    return [row('Wanda 50%', s, i, 10+z[i]+q*(s=='b'), 'docs') for s in 'ab' for i in range(3)]+[row('Wanda 50%', s, i, .5+.01*z[i]+.01*t*(s=='b'), 'task:t', 'acc') for s in 'ab' for i in range(3)]

@pytest.mark.parametrize('q, t, hides, opposite', [(9, 0, 'task:t', False), (0, 9, 'docs', False), (9, -9, '', False), (9, 9, '', True), (0, 0, '', False)])
def test_what_hides_what(q, t, hides, opposite):
    h = Results(hiding(q, t)).hidden()
    assert len(h)==1 and h.hides[0]==hides and h.opposite[0]==opposite and (h.a[0], h.b[0], h.within[0])==('a', 'b', 'Wanda 50%')

def test_words_fit():
    long = [r|dict(model='/models/of/a/group/with/a/long/name/model-7b-instruct-v2', source='~/corpora/'+'x'*90+r['source'], method=r['method']+' with many settings'*3) for r in rows]
    text = repr(Results(long, failures=[dict(model='m'*50, method='n'*50, type='OutOfMemoryError', message='x'*500)]))
    assert max(map(len, text.splitlines()))<=80

def test_markdown_and_latex_have_all_lines():
    n = sum(len(l) for _,l in tables(made, True))
    assert made.to_markdown().count('\n|')==n+len(tables(made, True)) and made.to_latex().count(r' \\')==n
    assert all(len(l)==len(lines[0]) for _,lines in tables(made, True) for l in lines)
    assert made.to_latex().count('%')==made.to_latex().count(r'\%') and '50\\% & docs' in made.to_latex()
    assert len(tables(made))==4 and len(tables(made, True))==7

def test_lines_of_words():
    lines = [['a', 'n'], ['x_{1} & 5 %', '1']]
    assert latex_table(lines, 'a~b', 1).splitlines()[2:6]==[r'\caption{a\textasciitilde{}b}', r'\begin{tabular}{lr}', r'\toprule', r'a & n \\']
    assert r'x\_\{1\} \& 5 \% & 1 \\' in latex_table(lines) and markdown_table(lines, 1).splitlines()[1]=='| --- | ---: |'
    assert max(map(len, plain_table([['method', 'source', 'n'], ['m'*50, 's'*50, '1']], 60).splitlines()))==60

def test_pictures():
    assert made.picture().caption and len(made.pictures())>2 and Results([]).picture() is None

def test_select():
    chosen = made.select(evaluation='docs', metric=['perplexity'])
    assert {(r['evaluation'], r['metric']) for r in chosen.rows}=={('docs', 'perplexity')} and chosen.family==made.family
    assert made.metrics('docs')==['perplexity', 'bits_per_byte'] and made.metrics('nothing')==[]
    with pytest.raises(ValueError, match='got colour'): made.select(colour=1)

def test_two_models_have_their_own_tables():
    two = Results(study(models=('small', 'large'))[0])
    assert [t.split(':')[0] for t,_ in tables(two)]==['small']*4+['large']*4 and len(two.rank_agreement())==2*3

def test_records_of_measures(tiny_model, tiny_tokenizer):
    "What measures write is what documents read"
    import torch
    from compresscal.experiments.measures import parse_measure
    down, up = ('perplexity', 'bits_per_byte', 'word_perplexity', 'byte_perplexity', 'kl', 'flips', 'lost', 'unsupported', 'degenerate'), ('acc', 'acc_norm', 'agreement', 'exact_match', 'f1', 'summac_zs', 'coverage')
    assert all(map(lower_is_better, down)) and not any(map(lower_is_better, up))
    from compresscal.calibration.calibration_set import CalibrationSet
    text = CalibrationSet.from_tokens(torch.randint(3, 259, (6, 24), generator=torch.Generator().manual_seed(0)))
    reference = (kl := parse_measure('kl:docs')).reference(tiny_model, tiny_tokenizer, text)
    found = [parse_measure('docs').measure(tiny_model, tiny_tokenizer, text, None)]
    with torch.no_grad(): tiny_model.model.layers[0].mlp.up_proj.weight.mul_(.5)
    found.append(kl.measure(tiny_model, tiny_tokenizer, text, reference))
    for record in found:
        record = json.loads(json.dumps(record))
        for metric,value in record['metrics'].items():
            assert documents.document_scores(record, metric).value==pytest.approx(value, rel=1e-9), metric
