"The commands compress and evaluate: looked at before work, adapted to the text there is, judged by other text, and honest about files."
import io, json, re, shlex
import pytest, torch
from compresscal.commands import compressing
from compresscal.calibration.calibration_set import CalibrationSet
from compresscal.calibration.sampling import sample_sets
from compresscal.commands.cli import main
from compresscal.commands.compressing import compress_model, evaluate, folder_sizes, measure_table
from compresscal.experiments.inputs import find_model

pytestmark = pytest.mark.usefixtures('one_thread')
nasty = 'a|b<i>\x1b[31m'

def notes(path, n=12, words=12, start=0):
    "Short documents that differ"
    rows = [dict(text=' '.join(f'w{i}x{j}' for j in range(words))) for i in range(start, start+n)]
    path.write_text('\n'.join(map(json.dumps, rows)))
    return str(path)

def run(capsys, *line):
    "Exit code, what was found, what was said beside it"
    code = main([str(o) for o in line])
    return code, *capsys.readouterr()

# ---- Before work

@pytest.mark.parametrize('place', ['', 'file.txt/in', 'dir/'])
def test_where_results_go_is_looked_at_first(place, tmp_path, monkeypatch):
    "Not after hours: the model is not even loaded"
    monkeypatch.setattr(compressing, 'find_model', lambda *args, **kwargs: pytest.fail('loaded'))
    (tmp_path/'file.txt').write_text('')
    out = str(tmp_path/place) if place!='dir/' else str(tmp_path/'dir')+'/'
    with pytest.raises((ValueError, OSError)): evaluate(['embedded'], ['docs'], out=out)

def test_a_folder_that_holds_something(tmp_path, monkeypatch):
    monkeypatch.setattr(compressing, 'find_model', lambda *args, **kwargs: pytest.fail('loaded'))
    (tmp_path/'full').mkdir()
    (tmp_path/'full'/'a').write_text('')
    for out,says in (('full', 'new or empty'), ('full/a', 'new or empty'), ('full/a/b', 'no folder')):
        with pytest.raises((ValueError, OSError), match=says): compress_model('embedded', 'rtn:4', tmp_path/out)

@pytest.mark.parametrize('method, given, says', [
    ('rtn:4', dict(calibration='docs'), '`calibration` must not be given for RTN'), ('rtn:4', dict(n_sequences=3), '`n_sequences` must not be given for RTN'),
    ('rtn:4', dict(length=32), '`length` must not be given for RTN'), ('magnitude:0.5', dict(batch_size=3), '`batch_size` must not be given for Magnitude'),
    ('rtn:4', dict(n_evaluation=3), '`n_evaluation` must not be given without'), ('rtn:4', dict(n_evaluation=3, evaluations=['task:arc_easy']), '`n_evaluation` must not be given without'),
    ('wanda:0.5', dict(calibration='self', rule='pack'), "`rule` must not be given for 'self'"), ('wanda:0.5', dict(calibration='random', column='text'), "`column` must not be given for 'random'")])
def test_what_does_nothing_is_refused(method, given, says, tmp_path, monkeypatch):
    monkeypatch.setattr(compressing, 'find_model', lambda *args, **kwargs: pytest.fail('loaded'))
    with pytest.raises(ValueError, match=says): compress_model('embedded', method, tmp_path/'out', **given)

@pytest.mark.parametrize('given', [dict(length=9), dict(n_sequences=9), dict(seed=9), dict(rule='pack'), dict(chat=True), dict(bos=False)])
def test_a_kept_set_is_taken_as_it_is(given, tmp_path, tiny_checkpoint, tiny_tokenizer):
    sample_sets('docs', tiny_tokenizer, 1, 2, 64)[0].save(tmp_path/'kept')
    with pytest.raises(ValueError, match=f'`{next(iter(given))}` must not be given beside a set that is kept'):
        compress_model(str(tiny_checkpoint), 'wanda:0.5', tmp_path/'out', calibration=str(tmp_path/'kept'), **given)

def test_evaluate_refuses_what_does_nothing(tiny_checkpoint):
    for given in (dict(length=32), dict(seed=3), dict(n_evaluation=3)):
        with pytest.raises(ValueError, match='must not be given without'): evaluate([str(tiny_checkpoint)], ['summaries:docstrings,n=1'], **given)

def test_a_file_of_another_kind_is_no_missing_folder(tmp_path, capsys):
    (tmp_path/'model.gguf').write_bytes(b'GGUF')
    code, _, said = run(capsys, 'evaluate', tmp_path/'model.gguf')
    assert code==2 and 'must be a whole GGUF file' in said and 'no such folder' not in said

# ---- As much text as there is

def test_the_first_command_works(tmp_path, tiny_checkpoint, capsys):
    "Few short notes: packed, and said"
    code, text, _ = run(capsys, 'compress', tiny_checkpoint, 'wanda:0.5', '--calibration', notes(tmp_path/'notes.jsonl'), '--out', tmp_path/'out')
    kept = CalibrationSet.load(tmp_path/'out'/'calibration')
    said = f"calibration text notes.jsonl: {len(kept)} windows of {kept.length} tokens by rule 'pack', as it holds too little text for 128 of 128 by rule 'window'"
    assert code==0 and said in ' '.join(text.split()) and len(kept)>=5 and said in (tmp_path/'out'/'compression.md').read_text().replace('\\', '')

def test_what_was_asked_for_gives_the_command_that_works(tmp_path, tiny_checkpoint, capsys):
    line = ['compress', str(tiny_checkpoint), 'wanda:0.5', '--calibration', notes(tmp_path/'my notes.jsonl'), '--sequences', '999', '--length=128', '--out', str(tmp_path/'out')]
    code, _, said = run(capsys, *line)
    found = re.search(r'^compresscal compress .*$', said, re.M)
    assert code==2 and found and not (tmp_path/'out').exists()
    assert main(shlex.split(found[0])[1:])==0 and (tmp_path/'out').exists()

def test_held_out_text_is_as_much_as_there_is(tmp_path, tiny_checkpoint, capsys):
    mine = notes(tmp_path/'notes.jsonl')
    code, text, _ = run(capsys, 'evaluate', tiny_checkpoint, '--evaluate', mine)
    assert code==0 and f'held-out text {mine}:' in text and "by rule 'pack'" in text
    code, _, said = run(capsys, 'evaluate', tiny_checkpoint, '--evaluate', mine, '--evaluation-sequences', '999')
    found = re.search(r'^compresscal evaluate .*$', said, re.M)
    assert code==2 and main(shlex.split(found[0])[1:])==0

def test_a_rule_can_be_given(tmp_path, tiny_checkpoint):
    said = compress_model(str(tiny_checkpoint), 'wanda:0.5', tmp_path/'out', calibration=notes(tmp_path/'notes.jsonl'), n_sequences=2, length=64, rule='pad')
    assert CalibrationSet.load(tmp_path/'out'/'calibration').manifest['sampling']['rule']=='pad' and said.data['calibration']['sequences']==2

def test_text_may_be_weighted(tmp_path, tiny_checkpoint, capsys):
    "The set that is kept has the weights, and the model is made again from it"
    weighted = 'weighted:docs=0.9+code=0.1'
    code, text, _ = run(capsys, 'compress', tiny_checkpoint, 'gptq:4,group_size=16', '--calibration', weighted, '--sequences', 4, '--length', 64, '--out', tmp_path/'out')
    kept = CalibrationSet.load(tmp_path/'out'/'calibration')
    assert code==0 and f'calibration text {weighted}: 4 windows of 64 tokens' in ' '.join(text.split()) and kept.name==weighted
    assert float(kept.weights.min())==pytest.approx(1/9) and weighted in (tmp_path/'out'/'calibration.md').read_text().replace('\\', '')
    assert run(capsys, 'verify', tmp_path/'out')[0]==0
    plain = CalibrationSet.from_tokens(kept.tokens, name='rows')
    plain.save(tmp_path/'plain')
    compress_model(str(tiny_checkpoint), 'gptq:4,group_size=16', tmp_path/'other', calibration=str(tmp_path/'plain'))
    a,b = (find_model(str(tmp_path/o))[2].state_dict() for o in ('out', 'other'))
    assert any(not torch.equal(v, b[k]) for k,v in a.items())

# ---- Judged by other text

@pytest.mark.parametrize('measure', ['{}', 'kl:{}', 'gptq:{}'])
def test_nothing_is_judged_by_what_it_was_calibrated_on(measure, tmp_path, tiny_checkpoint):
    mine, copy = notes(tmp_path/'notes.jsonl', 40), notes(tmp_path/'copy.jsonl', 40)
    for name in (mine, copy):
        with pytest.raises(ValueError, match='must be text that is not calibrated on'):
            compress_model(str(tiny_checkpoint), 'wanda:0.5', tmp_path/'out', calibration=mine, evaluations=[measure.format(name)])
    assert not (tmp_path/'out').exists()

def test_other_text_is_no_copy(tmp_path, tiny_checkpoint):
    mine, other = notes(tmp_path/'notes.jsonl', 40), notes(tmp_path/'other.jsonl', 40, start=100)
    found = compress_model(str(tiny_checkpoint), 'wanda:0.5', tmp_path/'out', calibration=mine, evaluations=[other])
    assert found.data['results']
    with pytest.raises(ValueError, match='must be text that is not calibrated on'): evaluate([str(tmp_path/'out')], [mine])
    assert evaluate([str(tmp_path/'out')], [other]).data['results']
    evaluate([str(tiny_checkpoint)], [mine]) # the dense model was not calibrated

@pytest.mark.slow
def test_installed_text_is_apart(tmp_path):
    "Documentation is calibrated on and measured with, its parts have no document in common"
    compress_model('embedded', 'wanda:0.5', tmp_path/'out', calibration='docs', n_sequences=64, length=128, evaluations=['docs', 'code'], n_evaluation=48)

# ---- What was written

def test_sizes_are_those_of_the_files(tmp_path, tiny_checkpoint, capsys):
    code, text, _ = run(capsys, 'compress', tiny_checkpoint, 'rtn:4,group_size=16', '--format', 'dense', '--out', tmp_path/'out')
    sizes, mb = folder_sizes(tmp_path/'out'), lambda n: f'{n/1e6:,.1f} MB'
    weights = (tmp_path/'out'/'model.safetensors').stat().st_size
    codes = sum(o.stat().st_size for o in (tmp_path/'out').glob('codes-*'))
    assert (sizes['weights'], sizes['codes'])==(weights, codes) and codes
    data = json.loads((tmp_path/'out'/'compression.json').read_text())
    assert data['files']['weights']==weights and data['files']['codes']==codes
    elements = sum(o['outputs']*o['inputs'] for o in data['layers'])
    for shown in (' '.join(text.split()), (tmp_path/'out'/'compression.md').read_text()):
        assert f'dense weights {mb(weights)}' in shown and mb(codes) in shown and f'{8*codes/elements:.2f} bits per weight' in shown
        assert f"the model was {mb(folder_sizes(tiny_checkpoint)['weights'])}" in shown

def test_packed_by_default(tmp_path, tiny_checkpoint, capsys):
    "Scales of the model's type, as said in the record; the same model from the file"
    code, text, _ = run(capsys, 'compress', tiny_checkpoint, 'rtn:4,group_size=16', '--dtype', 'bfloat16', '--out', tmp_path/'out')
    data = json.loads((tmp_path/'out'/'compression.json').read_text())
    assert (code, data['format'], data['method']['scale_dtype'])==(0, 'compressed-tensors', 'bfloat16')
    assert 'codes' not in data['files'] and not list((tmp_path/'out').glob('codes-*'))
    for shown in (' '.join(text.split()), (tmp_path/'out'/'compression.md').read_text()):
        assert 'packed as compressed-tensors' in shown and 'Read back as others read it: 21 tensors equal' in shown
    kept = compress_model(str(tiny_checkpoint), 'rtn:4,group_size=16,scale_dtype=bfloat16', tmp_path/'dense', dtype='bfloat16', save_as='dense')
    a, b = (find_model(str(tmp_path/o))[2].state_dict() for o in ('out', 'dense'))
    assert a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)

@pytest.mark.parametrize('offload', [False, True])
def test_a_file_for_llama_cpp(offload, tmp_path, capsys):
    "Of a model in bfloat16, codes with a lowest level, small embeddings"
    asked = ['embedded', 'rtn:4,group_size=32', '--dtype', 'bfloat16', '--format', 'gguf', '--rest', 'Q8_0', '--out', tmp_path/'out']
    code, text, said = run(capsys, 'compress', *asked, *(['--offload'] if offload else []))
    assert code==0 and 'It is one GGUF file, 5.00 bits per weight' in ' '.join(text.split())
    assert f"In {tmp_path/'out'}: model.gguf (for llama.cpp)" in said and (tmp_path/'out'/'model.gguf').is_file()

@pytest.mark.parametrize('method,given,says', [
    ('rtn:4,group_size=48', dict(save_as='compressed-tensors'), 'group_size=32 would do'),
    ('spqr:4', dict(save_as='compressed-tensors', calibration='docs'), 'the format dense would do'),
    ('gptq:4,group_size=16,static_groups=false', dict(save_as='compressed-tensors', calibration='docs'), 'static_groups=True or act_order=False would do'),
    ('rtn:4,group_size=16,scale_dtype=float16', dict(save_as='compressed-tensors', dtype='bfloat16'), "`scale_dtype` must be 'bfloat16'"),
    ('rtn:4,group_size=48', dict(save_as='compressed-tensors', offload=True), 'group_size=32 would do'),
    ('rtn:4,group_size=16', dict(save_as='gptq'), '`format` must be one of compressed-tensors, gguf, dense'),
    ('wanda:0.5', dict(save_as='compressed-tensors', calibration='docs'), 'pruning chooses none')])
def test_what_a_format_cannot_hold_is_refused_first(tmp_path, tiny_checkpoint, monkeypatch, method, given, says):
    monkeypatch.setattr('compresscal.models.loading._load_whole', lambda *o: pytest.fail('the model was loaded'))
    with pytest.raises(ValueError, match=re.escape(says)): compress_model(str(tiny_checkpoint), method, tmp_path/'out', **given)
    assert not (tmp_path/'out').exists()

def test_a_model_that_does_not_say_its_type(tmp_path, tiny_checkpoint):
    "Scales are of the model's type, which must be known before"
    config = json.loads((tiny_checkpoint/'config.json').read_text())
    del config['dtype']
    (tiny_checkpoint/'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match='`dtype` must be given for compressed-tensors'): compress_model(str(tiny_checkpoint), 'rtn:4,group_size=16', tmp_path/'out', save_as='compressed-tensors')
    said = compress_model(str(tiny_checkpoint), 'rtn:4,group_size=16', tmp_path/'out')
    assert 'does not say in which number format' in said.data['drawn'][-1]

def test_a_difference_ends_the_command(tmp_path, tiny_checkpoint, capsys, monkeypatch):
    from compresscal.checkpoints import dense_files, saving
    def differs(*args): raise dense_files.CheckpointDiffers('a weight is off')
    monkeypatch.setattr(saving, 'check_equal', differs)
    code, text, err = run(capsys, 'compress', tiny_checkpoint, 'rtn:4,group_size=16', '--format', 'compressed-tensors', '--out', tmp_path/'out')
    assert code==1 and 'a weight is off' in err and not (tmp_path/'out').exists()

def test_dense_where_the_best_format_has_no_place(tmp_path, tiny_checkpoint):
    said = compress_model(str(tiny_checkpoint), 'rtn:4,group_size=48', tmp_path/'out')
    assert said.data['format']=='dense' and said.data['files']['codes'] and 'group_size=32 would do' in said.data['drawn'][-1]
    assert 'scale_dtype' not in said.data['method']
    streamed = compress_model(str(tiny_checkpoint), 'rtn:4,group_size=48', tmp_path/'streamed', offload=True)
    assert streamed.data['format']=='dense' and 'group_size=32 would do' in streamed.data['drawn'][-1]

def test_zeros_take_room(tmp_path, tiny_checkpoint):
    said = compress_model(str(tiny_checkpoint), 'magnitude:0.5', tmp_path/'out')
    assert 'zeros are kept like other numbers' in said.text and 'codes' not in said.data['files']

def test_names_are_shown_as_they_are(tmp_path, tiny_checkpoint):
    (tmp_path/'x').mkdir()
    mine = notes(tmp_path/f'{nasty}.jsonl', 40)
    said = compress_model(str(tiny_checkpoint), 'wanda:0.5', tmp_path/'out', calibration=mine)
    page = (tmp_path/'out'/'compression.md').read_text()
    assert '\x1b' not in said.text and '\x1b' not in page and '<i>' not in page
    shown = measure_table({nasty: {nasty: dict(metrics=dict(kl=1.))}})
    assert '\x1b' not in repr(shown)

# ---- While it runs

def test_progress_is_shown(tmp_path, tiny_checkpoint, monkeypatch, capsys):
    monkeypatch.delenv('IN_TEST')
    evaluate([str(tiny_checkpoint)], [f"gptq:{notes(tmp_path/'notes.jsonl', 40)}"])
    assert re.search(r'perplexity.*window', capsys.readouterr().err)
    evaluate([str(tiny_checkpoint)], ['docs'], n_evaluation=2, length=32, progress=False)
    assert not capsys.readouterr().err

def test_the_number_of_windows_bounds_every_protocol(tmp_path, tiny_checkpoint):
    mine = notes(tmp_path/'notes.jsonl', 60)
    whole, few = (evaluate([str(tiny_checkpoint)], [f'gptq:{mine}'], **o).data['results']['tiny'] for o in ({}, dict(n_evaluation=2)))
    assert next(iter(few.values()))['counts']['documents']==2<next(iter(whole.values()))['counts']['documents']

def test_a_measure_without_progress_is_served(tiny_checkpoint):
    from compresscal.experiments.measures import Measure
    class Size(Measure):
        name = 'size'
        def settings(self): return {}
        def measure(self, model, tokenizer, text=None, reference=None): return dict(metrics=dict(size=1.), counts={}, documents={})
    assert evaluate([str(tiny_checkpoint)], [Size()]).data['results']['tiny']['size']['metrics']==dict(size=1.)

def test_a_dry_run_writes_nothing(tmp_path, tiny_checkpoint, capsys):
    mine = notes(tmp_path/'notes.jsonl', 40)
    before = sorted(tmp_path.rglob('*'))
    code, text, _ = run(capsys, 'compress', tiny_checkpoint, 'wanda:0.5', '--calibration', mine, '--out', tmp_path/'out', '--dry-run')
    assert code==0 and 'with loading and saving: about' in text and 'GiB of memory' in text and sorted(tmp_path.rglob('*'))==before

@pytest.mark.parametrize('more', [(), ('--offload',)])
def test_a_dry_run_needs_no_folder(more, tmp_path, tiny_checkpoint, capsys):
    mine = notes(tmp_path/'notes.jsonl', 40)
    code, text, _ = run(capsys, 'compress', tiny_checkpoint, 'wanda:0.5', '--calibration', mine, '--dry-run', *more)
    assert code==0 and 'with loading and saving: about' in text
    code, _, said = run(capsys, 'compress', tiny_checkpoint, 'wanda:0.5', '--calibration', mine, *more)
    assert code==2 and 'required: --out' in said
    with pytest.raises(ValueError, match='`out` must name the new folder'): compress_model(str(tiny_checkpoint), 'wanda:0.5', calibration=mine, offload=bool(more))

def test_a_command_on_disk_reads_each_block_a_few_times(tmp_path, tiny_checkpoint, reads):
    "Once for the fingerprint, twice for all checks, once for the work; what packing reads is in files"
    compress_model(str(tiny_checkpoint), 'gptq:4,group_size=16', tmp_path/'out', notes(tmp_path/'notes.jsonl', 40), offload=True, progress=False)
    assert max(reads.values())<=5 and reads[1]==4
