"Tables that lie beside the studies come from their own settings: some rows of each are computed again"
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
