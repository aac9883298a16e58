"What a run does about failures, about models past saving, and which models it keeps"
from dataclasses import dataclass, field, replace

import pytest
import torch
from small_studies import sets, tokens

from compresscal.calibration.calibration_set import CalibrationSet
from compresscal.compression.compress import compress
from compresscal.compression.names import parse_method
from compresscal.experiments.engines import Local
from compresscal.experiments.measures import Measure
from compresscal.experiments.results import Results
from compresscal.experiments.study import Study, read_study, write_toml
from compresscal.models.loading import load_model

asked = [] # Names of measures, as they are taken

@dataclass(frozen=True)
class Fails(Measure):
    "A measure that fails as long as it is told to"
    name: str = 'fails'
    text: str|None = None
    broken: list = field(default_factory=lambda: [True], compare=False)

    def settings(self): return dict(measure='fails')
    def measure(self, model, tokenizer, text, reference=None, progress=False):
        asked.append(self.name)
        if self.broken[0]: raise ArithmeticError('told to')
        return dict(metrics=dict(fine=1.), counts={}, documents={})

@pytest.fixture(autouse=True)
def plain_pictures(monkeypatch):
    monkeypatch.setattr(Results, 'pictures', lambda results: {})
    asked.clear()

@pytest.fixture
def small(tiny_model, tiny_tokenizer):
    return Study({'tiny': (tiny_model, tiny_tokenizer)}, ['wanda:0.5', 'wanda:0.7'], {'a': sets(1, 2)}, replicates=0,
                 evaluations={'fails': Fails(), 'text': CalibrationSet.from_tokens(tokens(99))})

def broken(study): return study.evaluations['fails'].broken

def test_what_failed_is_tried_again_unless_it_is_to_be_left_alone(small, tmp_path):
    with pytest.warns(UserWarning, match='5 of 10 cells failed.*tries them again'): small.run(tmp_path/'s')
    broken(small)[0] = False
    asked.clear()
    with pytest.warns(UserWarning, match='left alone'): results = small.run(tmp_path/'s', retry=False)
    assert not asked and len(results.failures)==5
    results = small.run(tmp_path/'s')
    assert len(asked)==5 and not results.failures and len(results.select(evaluation='fails').rows)==5

def test_a_run_may_stop_at_the_first_failure(small, tmp_path):
    with pytest.warns(UserWarning, match='the run stopped there, 8 cells are left'): results = small.run(tmp_path/'s', fail_fast=True)
    assert len(asked)==1 and len(results.failures)==1 and len(results.unfinished)==8
    assert 'not computed yet' in repr(results) and 'not computed yet' in (tmp_path/'s'/'report.html').read_text()
    assert not [*(tmp_path/'s'/'running').iterdir()]
    broken(small)[0] = False
    assert not small.run(tmp_path/'s').unfinished

def test_nothing_else_is_measured_on_a_model_past_saving(small, tmp_path):
    broken(small)[0] = False
    dense = small.run(tmp_path/'first').select(method='dense', metric='perplexity').rows[0]['value']
    asked.clear()
    study = replace(small, hopeless=dense*1.0001)
    results = study.run(tmp_path/'s')
    lost = results.select(evaluation='text', metric='perplexity').rows
    n_lost = sum(r['value']>dense*1.0001 for r in lost if r['method']!='dense')
    assert n_lost and len(asked)==5-n_lost and {f['kind'] for f in results.failures}=={'hopeless'} and len(results.failures)==n_lost
    assert 'beyond' in repr(results) and 'hopeless' in repr(results)
    asked.clear()
    study.run(tmp_path/'s')
    assert not asked, 'what was left out is not compressed again'
    assert len(replace(small, hopeless=None).run(tmp_path/'s').select(evaluation='fails').rows)==5
    assert len(asked)==n_lost

@pytest.mark.parametrize('keep, labels', [('best', 2), ('worst', 2), ('*50%*', 2), ('tiny, Wanda 50%, a 1*', 1)])
def test_models_that_are_kept_are_those_of_the_cells(small, tmp_path, keep, labels):
    broken(small)[0] = False
    small = replace(small, evaluations={'text': small.evaluations['text']})
    small.run(tmp_path/'s', keep=keep)
    kept = sorted((tmp_path/'s'/'kept').iterdir())
    assert len(kept)==labels and all((o/'README.md').exists() for o in kept)
    if labels>1: return
    model,_ = load_model(kept[0])
    again,_ = small.models['tiny']
    dense = {k: v.clone() for k,v in again.state_dict().items()}
    compress(again, parse_method('wanda:0.5'), small.sources['a'][1], progress=False)
    assert all(torch.equal(v, again.state_dict()[k]) for k,v in model.state_dict().items())
    again.load_state_dict(dense)

def test_a_pattern_of_nothing_is_refused(small, tmp_path):
    broken(small)[0] = False
    with pytest.raises(ValueError, match='such as'): small.run(tmp_path/'s', keep='*nothing*')

def test_layers_left_alone_and_number_formats_are_part_of_a_cell(small, tmp_path):
    small = replace(small, evaluations={'text': small.evaluations['text']}, methods=['wanda:0.5'])
    plain = small.run(tmp_path/'s')
    for change in (dict(skip='down_proj'), dict(forward_dtype='bfloat16'), dict(dense_inputs=True)):
        other = replace(small, **change).run(tmp_path/'s')
        names = [{r['cell'] for r in o.rows if r['method']!='dense'} for o in (plain, other)]
        assert not names[0] & names[1]
    batched = replace(small, batch_size=1).run(tmp_path/'s', engine=Local())
    assert batched.rows==plain.rows
    with pytest.raises(ValueError, match='`skip` must match'): replace(small, skip='nothing').run(tmp_path/'s')
    with pytest.raises(ValueError, match='`dtype` must be that of a model in memory'): replace(small, dtype='bfloat16').run(tmp_path/'s')

def test_a_study_in_another_number_format_is_another(tiny_checkpoint, tmp_path):
    study = Study({'tiny': str(tiny_checkpoint)}, ['magnitude:0.5'], {'a': sets(1, 1)}, replicates=0, evaluations={'text': CalibrationSet.from_tokens(tokens(99))})
    rows = [replace(study, dtype=o).run(tmp_path/'s').rows for o in (None, 'bfloat16')]
    assert not {r['cell'] for r in rows[0]} & {r['cell'] for r in rows[1]}

def test_the_new_fields_go_to_a_file_and_come_back(tmp_path):
    study = Study(sources=['docs'], skip=['down_proj'], hopeless=1e4, batch_size=2, forward_dtype='bfloat16', dtype='float32')
    (tmp_path/'study.toml').write_text(write_toml(study))
    assert read_study(tmp_path/'study.toml')[0]==study
