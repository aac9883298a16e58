"The control that chooses nothing, as a method of a study and of a command"
from compresscal.compression.names import parse_method
from compresscal.compression.noise import Noise
from compresscal.experiments.study import Study

def test_it_has_a_name():
    assert parse_method('compresscal.compression.noise:Noise:0.1')==Noise(.1)
    assert parse_method('compresscal.compression.noise:Noise:0.2,seed=3')==Noise(.2, seed=3)

def test_in_a_study(tiny_model, tiny_tokenizer, tmp_path):
    "One model, whatever the sets are, that loses more the more noise there is"
    how = dict(sources=['docs'], n_sets=2, n_sequences=2, length=32, evaluations=['docs'], n_evaluation=2, replicates=0)
    study = Study({'tiny': (tiny_model, tiny_tokenizer)}, [Noise(.1), Noise(1.)], **how)
    values = study.run(tmp_path, progress=False).select(metric='perplexity').to_pandas().groupby('method').value
    assert [*values.nunique()]==[1, 1, 1]
    off = (values.first()-values.first()['dense']).abs()
    assert 0<off['Noise 0.1']<off['Noise 1']
