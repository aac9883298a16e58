"A study that is read without its models, grown, and put together from parts says what its run said"
import os, subprocess, sys
from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import root
from small_studies import computed, counted, sets, tokens

from compresscal.calibration.calibration_set import CalibrationSet
from compresscal.experiments import cells
from compresscal.experiments.results import Results
from compresscal.experiments.study import Study

@pytest.fixture(autouse=True)
def plain_pictures(monkeypatch): monkeypatch.setattr(Results, 'pictures', lambda results: {})

@pytest.fixture
def small(tiny_model, tiny_tokenizer):
    "Two methods, two sources of five sets, one held-out text, null controls and a declared comparison"
    return Study({'tiny': (tiny_model, tiny_tokenizer)}, ['magnitude:0.5', 'wanda:0.5'], {'a': sets(1, 5), 'b': sets(2, 5)}, n_sequences=[2, 4],
                 evaluations={'text': CalibrationSet.from_tokens(tokens(99))}, comparisons=[('a', 'b')])

def same(a, b): return (a.rows, a.family, a.sets, a.failures, a.about, a.quantized)==(b.rows, b.family, b.sets, b.failures, b.about, b.quantized)

def test_all_of_a_finished_study_comes_back(small, tmp_path, monkeypatch):
    run = small.run(tmp_path/'s')
    monkeypatch.setattr(cells, 'load_model', None)
    opened = Results.open(tmp_path/'s')
    assert same(opened, run) and repr(opened)==repr(run) and not opened.unfinished
    assert [len(o) for _,_,o in opened.sets]==[2]*5+[4]*5+[2]*5+[4]*5+[4]
    pd.testing.assert_frame_equal(opened.compare_sources(), run.compare_sources())
    pd.testing.assert_frame_equal(opened.intervals(), run.intervals())
    assert opened.provenance(run.rows[0]['cell'])['host'] and opened.about['settings']['n_sequences']==[2, 4]

def test_a_folder_that_may_only_be_read_is_left_alone(small, tmp_path):
    small.run(tmp_path/'s')
    before = {p: p.stat().st_mtime_ns for p in (tmp_path/'s').rglob('*')}
    Results.open(tmp_path/'s').documents()
    assert {p: p.stat().st_mtime_ns for p in (tmp_path/'s').rglob('*')}==before

def test_a_moved_folder_opens_in_another_process_without_its_models(small, tmp_path):
    small.run(tmp_path/'s')
    (tmp_path/'s').rename(tmp_path/'elsewhere')
    code = ("import sys; from compresscal.experiments.results import Results; o = Results.open(sys.argv[1]); "
            "print(len(o.rows), len(o.sets), o.family, o.documents().shape)")
    said = subprocess.run([sys.executable, '-c', code, tmp_path/'elsewhere'], capture_output=True, text=True, cwd=root, env=os.environ)
    assert said.returncode==0, said.stderr
    run = Results.open(tmp_path/'elsewhere')
    assert said.stdout.strip()==f"{len(run.rows)} 21 (('a', 'b'),) {run.documents().shape}"

def test_a_study_that_was_stopped_says_what_is_missing(small, tmp_path):
    with pytest.raises(InterruptedError): small.run(tmp_path/'s', engine=counted(5))
    opened = Results.open(tmp_path/'s')
    whole = small.run(tmp_path/'s')
    cells_of = {r['cell'] for r in whole.rows}
    assert len({r['cell'] for r in opened.rows})==5 and len(opened.unfinished)==len(cells_of)-5
    assert [r for r in whole.rows if r['cell'] in {o['cell'] for o in opened.rows}]==opened.rows
    assert 'not computed yet' in repr(opened) and 'complete' in [c.name for c in opened.failed_checks()]
    assert len(opened.select(source='b').unfinished)==sum(o['source']=='b' for o in opened.unfinished)

def test_a_study_at_a_distance_opens_as_one_that_is_near(small, tmp_path, monkeypatch):
    monkeypatch.setenv('COMPRESSCAL_CACHE', str(tmp_path/'cache'))
    url = f"file://{tmp_path}/far"
    run = small.run(url)
    opened = Results.open(url)
    assert same(opened, run) and len(opened.documents())==len(run.documents())

def test_a_study_of_an_earlier_version_opens_with_less(small, tmp_path):
    run = small.run(tmp_path/'s')
    (tmp_path/'s'/'index.json').unlink()
    with pytest.warns(UserWarning, match='has no index'): opened = Results.open(tmp_path/'s')
    assert opened.rows==run.rows and opened.family==() and opened.sets==()
    assert len(opened.documents())==len(run.documents()) and opened.about['settings']['seed']==0

def test_documents_beside_the_table_are_those_of_the_records(small, tmp_path):
    run = small.run(tmp_path/'s')
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path/'s'/'documents'/'text.parquet'), run.documents('text'))
    found = run.documents('text')
    mine = found[(found.method=='Wanda 50%') & (found.source=='a') & (found.set==1) & (found.n_sequences==4) & (found.replicate==0)]
    value = torch.tensor(mine.nats.sum()/mine.tokens.sum()).exp().item()
    row, = run.select(method='Wanda 50%', source='a', set=1, n_sequences=4, replicate=0, metric='perplexity').rows
    assert value==pytest.approx(row['value'], rel=1e-6)

def test_a_study_grows_and_computes_only_what_is_new(small, tmp_path):
    "Each dimension grows alone; nothing that is there is computed again"
    start = replace(small, sources={'a': sets(1, 2), 'b': sets(2, 2)}, n_sequences=4, replicates=1, comparisons=(),
                    methods=['magnitude:0.5', 'wanda:0.5', 'sparsegpt:0.5'])
    start.run(tmp_path/'s', engine=(engine := counted()))
    assert computed(engine)==1+1+2*4+2+1+1 # dense, magnitude, two methods on four sets, null controls
    grown = [(replace(start, sources={**start.sources, 'c': sets(3, 2)}), 4), (replace(start, sources={'a': sets(1, 4), 'b': sets(2, 4)}), 8),
             (replace(start, methods=[*start.methods, 'wanda:0.7']), 5), (replace(start, evaluations={**start.evaluations, 'other': CalibrationSet.from_tokens(tokens(98))}), 14)]
    for study,new in grown:
        study.run(tmp_path/'s', engine=(engine := counted()))
        assert computed(engine)==new
    start.run(tmp_path/'s', engine=(engine := counted()))
    assert computed(engine)==0

def test_a_study_of_12_cells_grows_to_30_and_12_are_fetched(small, tmp_path):
    start = replace(small, sources={'a': sets(1, 5), 'b': sets(2, 5)}, n_sequences=4, replicates=0, comparisons=())
    first = start.run(tmp_path/'s')
    grown = replace(start, sources={'a': sets(1, 9), 'b': sets(2, 9), 'c': sets(3, 9)}, methods=[*start.methods, 'magnitude:0.7'])
    second = grown.run(tmp_path/'s', engine=(engine := counted()))
    cells = [{r['cell'] for r in o.rows} for o in (first, second)]
    assert (len(cells[0]), len(cells[1]), computed(engine))==(12, 30, 18) and cells[0]<cells[1]
    assert second.diff(first).counts['same']==len(first.rows)

def test_parts_from_two_machines_are_put_together(small, tmp_path):
    whole = small.run(tmp_path/'whole')
    one = replace(small, sources={'a': small.sources['a']}, comparisons=()).run(tmp_path/'one')
    two = replace(small, sources={'b': small.sources['b']}, comparisons=()).run(tmp_path/'two')
    merged = Results.open(tmp_path/'one').merge(Results.open(tmp_path/'two'))
    shared = {(r['source'], r['replicate']) for r in whole.rows}
    assert merged.diff(whole).counts['beyond noise']==merged.diff(whole).counts['another cell']==0
    assert {(r['source'], r['replicate']) for r in merged.rows} >= shared
    assert len(merged.documents())==len(merged.select(metric='perplexity').rows)*4
    wrong = replace(two, rows=[dict(r, value=r['value']*1.5) for r in two.rows])
    with pytest.raises(ValueError, match='more than the noise'): one.merge(wrong)
    assert one.diff(two).counts['only in a'] and one.diff(wrong).beyond.method.tolist().count('dense')

def test_a_run_elsewhere_is_the_same_within_noise(small, tmp_path):
    "Other threads stand for another machine"
    here = small.run(tmp_path/'here')
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads==1 else 1)
        there = small.run(tmp_path/'there')
    finally: torch.set_num_threads(threads)
    found = here.diff(there)
    assert found.counts['same']+found.counts['within noise']==len(here.rows)
    assert dict((name, (a, b)) for name,a,b in found.environment)['threads']==(threads, 3-threads)
