"What save writes can be inspected, verified and loaded as its card says; what it was not told is said to be not known"
import json, re
import pytest, torch
from compresscal.calibration.sources import calibration_sets
from compresscal.checkpoints.inspection import inspect_checkpoint, verify_checkpoint
from compresscal.checkpoints.save import save
from compresscal.checkpoints.saving import FORMATS
from compresscal.commands.cli import main
from compresscal.compression.compress import compress
from compresscal.compression.methods import GPTQ, RTN, Wanda
from compresscal.models.blocks import decoder_blocks, fingerprint
from compresscal.models.loading import load_model
from test_compress import rows

pytestmark = pytest.mark.usefixtures('one_thread')

def made(method, out, *, calibration=None, told=True, name='embedded', format=None, dtype=None, rest=None, **how):
    "A model that was compressed and saved; where, and the report"
    model, tokenizer = load_model(dtype=dtype)
    report = compress(model, method, calibration, progress=False, **how)
    known = dict(name=name, calibration=calibration) if told else {}
    return save(model, report, out, format, tokenizer, rest=rest, **known), report

def text(n=4, length=64): return calibration_sets('docs', load_model()[1], 1, n_sequences=n, length=length)[0]

@pytest.mark.parametrize('format', FORMATS)
def test_what_was_saved_is_inspected_and_verified(format, tmp_path):
    saved, _ = made(GPTQ(4, 64, scale_dtype='float16'), tmp_path/'out', calibration=text(), format=format)
    found = inspect_checkpoint(tmp_path/'out')
    assert found.fine and found.about['format']==format==saved.format and saved.folder==tmp_path/'out'
    assert found.about['fingerprint']==fingerprint(load_model()[0]) and not (tmp_path/'out'/'calibration.md').is_symlink()
    assert verify_checkpoint(tmp_path/'out', progress=False).fine
    assert saved.n_bytes==sum(o.stat().st_size for o in (tmp_path/'out').rglob('*') if o.is_file())

@pytest.mark.parametrize('how', [dict(skip='down_proj'), dict(skip=('model.layers.0.*', 'o_proj')), dict(forward_dtype=torch.bfloat16), dict(forward_dtype='bfloat16', batch_size=2), dict(dtype='bfloat16')], ids=str)
def test_what_decides_the_outcome_is_in_the_account(how, tmp_path):
    "Compressed again in another way, a weight would differ"
    made(GPTQ(3, 64, scale_dtype='bfloat16'), tmp_path/'out', calibration=text(), **how)
    again = verify_checkpoint(tmp_path/'out', progress=False)
    assert again.differing==0 and again.fine
    about = json.loads((tmp_path/'out'/'compression.json').read_text())
    skip = how.get('skip', [])
    assert about['skip']==([skip] if isinstance(skip, str) else list(skip)) and about['load']==dict(dtype=how.get('dtype', 'float32'))

def test_token_ids_are_a_set(tmp_path):
    made(Wanda(.5), tmp_path/'out', calibration=rows(4)%500)
    assert verify_checkpoint(tmp_path/'out', progress=False).differing==0

def test_a_method_that_reads_nothing(tmp_path, capsys):
    made(RTN(4, 64), tmp_path/'out')
    assert 'none' in repr(inspect_checkpoint(tmp_path/'out')) and 'not known' not in repr(inspect_checkpoint(tmp_path/'out'))
    assert main(['inspect', str(tmp_path/'out')])==0 and main(['verify', str(tmp_path/'out'), '--quiet'])==0
    assert 'all 2,949,120 weights are the same' in capsys.readouterr().out

def test_what_was_not_told_is_not_known(tmp_path, capsys):
    chosen = text()
    made(Wanda(.5), tmp_path/'out', calibration=chosen, told=False)
    said = repr(inspect_checkpoint(tmp_path/'out'))
    assert re.search('model +not known', said) and f'{chosen.hash}, not kept' in said and 'not known      the name of the model, the calibration set' in said
    card = (tmp_path/'out'/'README.md').read_text()
    assert 'not known: the name of the model, the calibration set' in card and 'compresscal verify FOLDER' not in card and 'base_model' not in card
    assert main(['inspect', str(tmp_path/'out')])==0
    assert main(['verify', str(tmp_path/'out')])==2
    assert 'this is not known: the name of the model, the calibration set' in ' '.join(capsys.readouterr().err.split())

def test_given_blocks_leave_the_fingerprint_open(tmp_path):
    model, tokenizer = load_model()
    report = compress(model, RTN(4, 64), blocks=decoder_blocks(model), progress=False)
    save(model, report, tmp_path/'out', tokenizer=tokenizer, name='embedded')
    with pytest.raises(ValueError, match='not known: the fingerprint of the model$'): verify_checkpoint(tmp_path/'out')

def test_another_model_of_that_name_is_found_out(tmp_path):
    "The name is what you say; the fingerprint is that of the model"
    model, tokenizer = load_model()
    with torch.no_grad(): model.model.norm.weight[0] += 1
    save(model, compress(model, RTN(4, 64), progress=False), tmp_path/'out', tokenizer=tokenizer, name='embedded')
    with pytest.raises(ValueError, match='its weights are others now'): verify_checkpoint(tmp_path/'out')

def test_another_set_is_refused_before_anything_is_written(tmp_path):
    model, tokenizer = load_model()
    report = compress(model, Wanda(.5), text(), progress=False)
    for wrong in (text(2), rows(4)%500):
        with pytest.raises(ValueError, match='must be what `compress` was given'): save(model, report, tmp_path/'out', calibration=wrong)
    with pytest.raises(TypeError, match='`calibration` must be a CalibrationSet'): save(model, report, tmp_path/'out', calibration='docs')
    with pytest.raises(TypeError, match='`name` must be a name'): save(model, report, tmp_path/'out', name=3)
    assert not [*tmp_path.iterdir()]

@pytest.mark.parametrize('format', FORMATS)
def test_the_card_loads_the_model(format, tmp_path):
    "What the card says is done, word for word"
    made(RTN(4, 64, symmetric=True, scale_dtype='float16'), tmp_path/'out', format=format, rest='F32' if format=='gguf' else None)
    code = re.search('```python\n(.*?)```', (tmp_path/'out'/'README.md').read_text(), re.S)[1]
    found = {}
    exec(code.replace('FOLDER', str(tmp_path/'out')), found)
    ids = found['tokenizer']('def f(', return_tensors='pt')
    with torch.no_grad(): assert found['model'](**ids).logits.shape[:2]==ids['input_ids'].shape

def test_pages_for_others_name_no_folder_of_this_machine(tmp_path):
    (tmp_path/'mine.txt').write_text(' '.join(f'word{i}' for i in range(2000)))
    own, = calibration_sets(str(tmp_path/'mine.txt'), load_model()[1], 1, n_sequences=1, length=32)
    made(Wanda(.5), tmp_path/'out', calibration=own)
    pages = [(tmp_path/'out'/o).read_text() for o in ('calibration.md', 'README.md', 'compression.md')]
    assert 'mine' in pages[0] and not [o for o in pages if str(tmp_path) in o]
