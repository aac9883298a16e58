"Overlap against human labels: the functions that make the study's tables against plain computations, and rows of the tables computed again from the data sets"
import json, math, re, sys
import numpy as np, pandas as pd, pytest
from scipy import stats
from sklearn.linear_model import LinearRegression
from conftest import root
from compresscal.summaries.overlap import OVERLAP_COLUMNS

sys.path.insert(0, str(root/'benchmarks'))
import labels

def rows(n=12, systems=4, seed=0):
    "Labels with many ties, as human ones have, and a score that goes with system and label"
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(dict(document=np.repeat([f'd{i}' for i in range(n)], systems), system=[f's{i}' for i in range(systems)]*n))
    number = frame.system.str[1:].astype(int)
    frame['label'] = np.minimum(5, 3+number+rng.integers(-1, 2, len(frame))).astype(float)
    return frame.assign(score=frame.label/4+number+rng.normal(size=len(frame)), words=rng.integers(20, 90, len(frame)))

# ---- Correlations

def test_correlations_against_plain():
    frame = rows()
    found = {o['statistic']: o for o in labels.correlations('data', 'all', frame, 'score', 'label', n_resamples=0, words='words')}
    assert list(found)==['pooled', 'within documents', 'within systems', 'between systems', 'given system', 'given system and words']
    rho = lambda a, b: stats.spearmanr(a, b).statistic
    inside = lambda by: [rho(o.score, o.label) for _,o in frame.groupby(by) if o.label.nunique()>1 and o.score.nunique()>1]
    assert found['pooled']['value']==pytest.approx(rho(frame.score, frame.label))
    for k,by in (('within documents', 'document'), ('within systems', 'system')): assert found[k]['value']==pytest.approx(np.mean(inside(by))) and found[k]['n']==len(inside(by))
    means = frame.groupby('system')[['score', 'label']].mean()
    assert found['between systems']['value']==pytest.approx(rho(means.score, means.label))
    assert all(math.isnan(o['low']) for o in found.values())

def residuals(v, z): return (v-LinearRegression().fit(z, v).predict(z)).round(9)

def test_given_system_ranks_first():
    frame = rows(seed=1)
    dummies = pd.get_dummies(frame.system).to_numpy(dtype=float)
    found = {o['statistic']: o['value'] for o in labels.correlations('data', 'all', frame, 'score', 'label', n_resamples=0, words='words')}
    of = lambda z: stats.pearsonr(*(residuals(frame[k].rank(), z) for k in ('score', 'label'))).statistic
    assert found['given system']==pytest.approx(of(dummies))
    assert found['given system and words']==pytest.approx(of(np.c_[dummies, frame.words.rank()]))

def test_ranked_residuals_are_franks():
    "Least squares on one column for each system, then Spearman's correlation of what is left"
    frame = rows(seed=2)
    dummies = pd.get_dummies(frame.system).to_numpy(dtype=float)
    want = stats.spearmanr(*(residuals(frame[k], dummies) for k in ('score', 'label'))).statistic
    found = labels.ranked_residuals('data', 'all', frame, 'score', 'label', n_resamples=0)
    assert found['value']==pytest.approx(want, abs=1e-9) and found['statistic']=='given system, residuals ranked'

def test_ranked_residuals_let_the_system_back_in():
    "A score that knows the system and nothing else: ranks of residuals go with it where a label has ties, ranks taken first do not"
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(dict(system=np.repeat(['a', 'b'], 2000), document=np.arange(4000)%20))
    often = frame.system=='b'
    frame['label'] = (rng.random(4000)<np.where(often, .3, .05)).astype(float) # mostly 0, more seldom in b
    frame['score'] = np.where(often, rng.random(4000)<.02, rng.random(4000)<.1).astype(float)
    given = {o['statistic']: o['value'] for o in labels.correlations('data', 'all', frame, 'score', 'label', n_resamples=0)}
    assert abs(given['within systems'])<.05 and abs(given['given system'])<.05
    assert abs(labels.ranked_residuals('data', 'all', frame, 'score', 'label', n_resamples=0)['value'])>.2

def test_intervals_are_drawn_by_document():
    frame = rows(40, seed=4)
    one, two = (labels.correlations('data', 'all', frame, 'score', 'label', n_resamples=99) for _ in range(2))
    assert one==two # the same draws
    for o in one:
        if o['statistic'] not in ('within systems', 'between systems'): assert o['low']<=o['value']<=o['high'], o
        else: assert math.isnan(o['low']) # four systems are too few

# ---- Telling consistent edits from others

def plain_auc(good, bad): return np.mean([(a>b)+.5*(a==b) for a in good for b in bad])

def test_auc_within():
    score, label, document = [3., 1, 2, 2, 5, 5, 1, math.nan, 4], [1, 0, 1, 0, 1, 0, 0, 1, 1], list('aaaabbbbc')
    found = labels.auc_within(score+[math.nan]*2, label+[0, 1], document+['d']*2)
    assert found[:2]==pytest.approx([plain_auc([3, 2], [1, 2]), plain_auc([5], [5, 1])]) and len(found)==4 and np.isnan(found[2:]).all()

def test_auc_is_sklearns():
    from sklearn.metrics import roc_auc_score
    rng = np.random.default_rng(0)
    score, label = rng.integers(0, 6, 50), rng.integers(0, 2, 50)
    assert labels.auc(label, score)==pytest.approx(roc_auc_score(label, score), abs=1e-12) and math.isnan(labels.auc(label[:0], score[:0]))

def test_best_threshold():
    assert labels.best_threshold(np.array([1., 2, 3, 4]), np.array([0, 0, 1, 1]))==3
    score, label = np.array([1., 2, 3, 4]), np.array([1, 1, 0, 0]) # a score that goes the other way: nothing beats chance
    assert labels.best_threshold(score, label) in (1, 5)
    rng = np.random.default_rng(0)
    score, label = rng.integers(0, 9, 60).astype(float), rng.integers(0, 2, 60)
    accuracy = lambda t: ((score>=t)[label==1].mean()+(score<t)[label==0].mean())/2
    assert accuracy(labels.best_threshold(score, label))==pytest.approx(max(accuracy(t) for t in range(11)))

def test_separations():
    n = 12
    one = dict(label=[1, 1, 0, 0], edit_types=[[], [], ['swap'], ['swap', 'insert']], m=[.9, .7, .8, .1], split=['evaluation']*4)
    frame = pd.concat([pd.DataFrame(one).assign(document=f'd{i}', corpus='news', split='evaluation' if i%2 else 'test') for i in range(n)], ignore_index=True)
    found = {(o['domain'], o['edit']): o for o in labels.separations(frame, 'm', labels.UP, n_resamples=99)}
    assert set(found)=={(d, e) for d in ('all', 'news') for e in ('all', 'swap', 'insert')}
    every, swap, insert = (found['all', e] for e in ('all', 'swap', 'insert'))
    assert every['auc']==pytest.approx(.75) and every['documents']==n and (every['low'], every['high'])==pytest.approx((.75, .75))
    assert swap['auc']==.5 and swap['inconsistent']==n # an edit of two kinds belongs to neither
    assert math.isnan(insert['auc']) and (insert['documents'], insert['left_out'], insert['inconsistent'])==(0, n, 0)
    assert found['news', 'all']['balanced_accuracy']==.75 and 'balanced_accuracy' not in every
    down, = (o for o in labels.separations(frame, 'm', labels.DOWN, n_resamples=0) if (o['domain'], o['edit'])==('all', 'all'))
    assert down['auc']==pytest.approx(.25) and math.isnan(down['low'])

# ---- Reading and writing

def test_every_column_has_a_direction():
    left = {k for k in OVERLAP_COLUMNS if k.endswith('_recall') or k.startswith('rougeLsum')} | {'source_words', 'unsupported_identifiers'} # depend on length most, or say nothing here
    assert {*labels.OVERLAP, *labels.OTHER}|left=={*OVERLAP_COLUMNS} and {*labels.OVERLAP.values()}=={labels.UP, labels.DOWN}

def test_whole_run(tmp_path, capsys):
    "Made-up files of the four formats; the same bytes when run again"
    for folder in labels.FOLDERS.values(): (tmp_path/folder).mkdir()
    write = lambda folder, name, o: (tmp_path/labels.FOLDERS[folder]/name).write_text(o if isinstance(o, str) else json.dumps(o))
    frame = rows()
    write('xsum', 'eval_scores_xsum_summaries.csv', pd.DataFrame(dict(system_bbcid=frame.system+'_'+frame.document, **{k: frame.score for k in ('R1', 'R2', 'RL', 'BERTScore', 'Entailment')},
                                                                      Faithful=frame.label, Factual=frame.label)).to_csv(index=False))
    each = [dict(hash=o.document, model_name=o.system, dataset='bbc' if o.system in ('s0', 's1') else 'cnndm', split='test') for o in frame.itertuples()]
    write('frank', 'baseline_factuality_metrics_outputs.json', [dict(o, Bleu=s) for o,s in zip(each, frame.score)])
    write('frank', 'human_annotations.json', [dict(o, Factuality=s) for o,s in zip(each, frame.label)])
    texts = ['The first port opened in May.', 'A port opened in 1923.', 'Nobody sailed in May of that year.', 'The port was closed.']
    summed = {o.system: dict(sys_summ=texts[int(o.system[1])], scores={k: o.label for k in labels.LABELS}) for o in frame.itertuples()}
    write('summeval', 'SummEval.json', {d: dict(src='The first port opened in May. It had two ships.', ref_summ='A port opened.', sys_summs=summed) for d in frame.document.unique()})
    edits = [dict(doc=f'{t} Number {i}.', summary=s, label=int(s==t), edit_types=[] if s==t else ['swap'], split='test' if i%2 else 'evaluation') for i in range(2) for t in texts for s in texts]
    for d in labels.DOMAINS: write('summedits', f'summedits_{d}.json', edits)
    run = lambda out, *args: labels.main(['--data', str(tmp_path), '--out', str(tmp_path/out), '--resamples', '0', *args])
    run('one'), run('two', '--only', 'frank', 'summedits')
    made = [{p.name: p.read_bytes() for p in (tmp_path/name).iterdir()} for name in ('one', 'two')]
    assert made[0]==made[0] | made[1] and {*made[0]}=={f'human_labels_{k}.csv' for k in ('xsum', 'frank', 'summeval', 'systems', 'summedits')} and len(made[1])==2
    frank = pd.read_csv(tmp_path/'one'/'human_labels_frank.csv')
    assert set(frank.corpus)=={'all', 'cnndm', 'xsum'}
    assert texts[0] not in b''.join(made[0].values()).decode() # numbers only
    with pytest.raises(SystemExit, match='sum_frank'): labels.main(['--data', str(tmp_path/'one'), '--only', 'frank'])

# ---- The tables of the study

def table(name): return pd.read_csv(root/'nbs'/'studies'/f'human_labels_{name}.csv')

def same(found, kept, keys):
    "Rows of a table that were computed again, but for their intervals"
    kept = kept.set_index(keys)
    for o in found:
        k = kept.loc[tuple(o[i] for i in keys)]
        for name in [i for i in ('value', 'auc', 'auc_pooled', 'balanced_accuracy') if i in o]: assert o[name]==pytest.approx(k[name], rel=1e-5, abs=1e-6, nan_ok=True), o
        for name in [i for i in ('n', 'left_out', 'documents', 'consistent', 'inconsistent') if i in o]: assert o[name]==k[name], o

KEYS = ['corpus', 'metric', 'label', 'statistic', 'how']

def test_xsum_rows(shared):
    frame = labels.read_xsum(shared/'data'/labels.FOLDERS['xsum'])
    same([o for m in ('R1', 'Entailment') for l in ('Faithful', 'Factual') for o in labels.correlations('xsum', 'xsum', frame, m, l, n_resamples=0)], table('xsum'), KEYS)

def test_frank_rows(shared):
    frame = labels.read_frank(shared/'data'/labels.FOLDERS['frank'])
    for c,part in (('all', frame), ('xsum', frame[frame.corpus=='xsum'])):
        found = [o for m in ('Rouge 2', 'FactCC', 'Dep Entail') for how in ('pearson', 'spearman') for o in labels.correlations('frank', c, part, m, 'Factuality', how, 0)]
        same(found+[labels.ranked_residuals('frank', c, part, 'FactCC', 'Factuality', 0)], table('frank'), KEYS)

def test_what_the_study_says_of_the_data(shared):
    "Facts that its tables do not hold"
    frank = labels.read_frank(shared/'data'/labels.FOLDERS['frank'])
    right = frank.groupby('corpus').Factuality
    assert right.mean().round(2).to_dict()==dict(cnndm=.78, xsum=.08) and round((frank.Factuality[frank.corpus=='xsum']==0).mean(), 2)==.92
    assert frank.groupby('corpus').document.nunique().to_dict()==dict(cnndm=250, xsum=249) and frank.groupby('corpus').system.nunique().to_dict()==dict(cnndm=5, xsum=4)
    xsum = labels.read_xsum(shared/'data'/labels.FOLDERS['xsum'])
    assert (xsum.document.nunique(), xsum.system.nunique())==(498, 4)
    summeval = labels.read_summeval(shared/'data'/labels.FOLDERS['summeval'])
    inner = lambda text: len(re.findall(r'[a-z,] [A-Z][a-z]', text)) # capitals within sentences
    capitals = summeval.summary.map(inner).groupby(summeval.system).mean()
    assert {*capitals[capitals>1].index}=={'M20', 'M22'} and capitals.drop(['M20', 'M22']).max()<.1 and summeval.source.map(inner).mean()>20
    edits = labels.read_summedits(shared/'data'/labels.FOLDERS['summedits'])
    assert edits.document.nunique()==85 and (edits.groupby('document').original_summary.nunique()==1).all() and 25<edits.groupby('document').size().mean()<35
    assert (edits.label[edits.summary==edits.original_summary]==1).all()

def test_summeval_rows(shared):
    frame = labels.read_summeval(shared/'data'/labels.FOLDERS['summeval'])
    frame = labels.with_overlap(frame, progress=False)
    found = [o for m in ('coverage', 'rouge2_precision', 'rouge1_reference_f') for o in labels.correlations('summeval', 'all systems', frame, m, 'consistency', n_resamples=0, words='words')]
    same(found, table('summeval'), KEYS)
    kept = table('systems').set_index('system')
    for o in labels.system_means(frame): assert o['coverage']==pytest.approx(kept.coverage[o['system']], rel=1e-5) and o['consistency']==pytest.approx(kept.consistency[o['system']], rel=1e-5)

def test_summedits_rows(shared):
    frame = labels.read_summedits(shared/'data'/labels.FOLDERS['summedits'], ['samsum'])
    frame = labels.with_overlap(frame, progress=False)
    found = [o for m in ('coverage', 'unsupported') for o in labels.separations(frame, m, labels.OVERLAP[m], 0) if o['domain']=='samsum']
    same(found, table('summedits'), ['domain', 'edit', 'metric'])
