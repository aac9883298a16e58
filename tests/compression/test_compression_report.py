"Reports and stored codes: true output errors, packed files that are opened once, and names that hold anything"
import copy, json
import pytest, torch
from safetensors.torch import save_file
from compresscal.compression import compression_report as reports
from compresscal.calibration.calibration_set import CalibrationSet
from compresscal.compression.methods import RTN
from compresscal.compression.compress import compress
from compresscal.compression.methods import AWQ, GPTQ, Combined, Magnitude, SparseGPT, SpQR, Wanda
from compresscal.compression.grids import choose_grid, round_to_grid
from compresscal.compression.compression_report import CompressionReport, StoredCodes, folder_sizes, output_energy
from test_compress import make, rows
from test_grids import old_tensors, quantized

pytestmark = pytest.mark.usefixtures('one_thread')

# output errors

METHODS = [Magnitude(.5), Wanda(.5), Wanda('2:4'), SparseGPT(.5), RTN(4, 16), GPTQ(4, 16), AWQ(4, 16, scale=False), SpQR(4), Combined(Magnitude(.5), RTN(4, 16)),
           Combined(Wanda(.5), RTN(4, 16)), Combined(Wanda(.5), GPTQ(4, 16))]

def true_errors(dense, model):
    "Of each layer of the first block, from its inputs in the dense model, token by token"
    seen,found = {},{}
    layers = {n: m for n,m in dense.model.layers[0].named_modules() if isinstance(m, torch.nn.Linear)}
    hooks = [m.register_forward_pre_hook(lambda m,args,n=n: seen.update({n: args[0].double()})) for n,m in layers.items()]
    with torch.no_grad(): dense(rows())
    for o in hooks: o.remove()
    for name,layer in layers.items():
        old,new = layer.weight.detach().double(),model.model.layers[0].get_submodule(name).weight.detach().double()
        found[name] = float((seen[name]@(new-old).T).square().sum()/(seen[name]@old.T).square().sum())
    return found

@pytest.mark.parametrize('method', METHODS, ids=lambda o: o.label)
def test_output_errors_are_true_for_every_method(method):
    "The same number for all: what the outputs of a layer lose on the inputs that it had"
    dense = make('llama')
    model = copy.deepcopy(dense)
    report = compress(model, method, rows(), output_errors=True)
    true = true_errors(dense, model)
    for o in report.rows[:7]: assert o['output_error']==pytest.approx(true[o['layer']], rel=1e-3), o['layer']
    assert 'output error' in report._repr_markdown_() and 'Output error: squared change' in report._repr_markdown_()

@pytest.mark.parametrize('method', METHODS, ids=lambda o: o.label)
def test_output_errors_are_true_or_absent(method):
    "Without asking, the number is the true one or there is none, and the table says why"
    dense = make('llama')
    model = copy.deepcopy(dense)
    report = compress(model, method, rows())
    true = true_errors(dense, model)
    known = method.needs in ('moments','magnitudes')
    for o in report.rows[:7]: assert o['output_error']==(pytest.approx(true[o['layer']], rel=1e-3) if known else None), o['layer']
    text = report._repr_markdown_()
    assert known==('| output error |' in text) and known!=('output_errors=True' in text)

@pytest.mark.parametrize('method', METHODS, ids=lambda o: o.label)
def test_measuring_changes_no_weight(method):
    one,other,third = make('llama'),make('llama'),make('llama')
    a,b,c = compress(one, method, rows()),compress(other, method, rows(), output_errors=True),compress(third, method, rows(), output_errors=False)
    for x,y,z in zip(one.parameters(), other.parameters(), third.parameters()): assert torch.equal(x, y) and torch.equal(x, z)
    assert a.calibration==b.calibration and all(o['output_error'] is None for o in c.rows)
    assert [o['damping'] for o in a.rows]==[o['damping'] for o in c.rows]

def test_nobody_reads_nothing_is_computed(monkeypatch):
    "`output_errors=False` sums no second moments that the method does not need, and no energies"
    monkeypatch.setattr(reports, 'output_energy', lambda *o: 1/0)
    for method in (Wanda(.5), GPTQ(4, 16)): compress(make('llama'), method, rows(), output_errors=False)
    with pytest.raises(ZeroDivisionError): compress(make('llama'), GPTQ(4, 16), rows())

def test_bulk_runs_do_not_measure(monkeypatch):
    "A study compresses thousands of times and reads no output error"
    from compresscal.compression import compress as module
    import compresscal.experiments.cells as cells
    seen = []
    monkeypatch.setattr(module, 'compress', lambda *o, **kwargs: seen.append(kwargs))
    worker = object.__new__(cells.CellWorker)
    worker.model = worker.blocks = None
    worker.bench = cells.Bench({}, {}, {})
    worker.compress(type('Job', (), dict(method=Wanda(.5), calibration=None, replicate=0))())
    assert seen[0]['output_errors'] is False

def test_errors_are_those_of_the_weights_that_the_model_holds():
    "In half precision rounding to eight bits moves outputs less than storing them does"
    dense = make('llama').bfloat16()
    model = copy.deepcopy(dense)
    report = compress(model, RTN(8, 16), rows(), output_errors=True)
    name = 'model.layers.0.mlp.down_proj'
    old,new = (m.get_submodule(name).weight.detach().double() for m in (dense,model))
    error = float((new-old).square().sum()/old.square().sum())
    assert next(o for o in report.rows if o['layer']=='mlp.down_proj')['weight_error']==pytest.approx(error, rel=1e-5)

def test_text_for_errors_must_be_given():
    with pytest.raises(TypeError, match='for the output errors of Magnitude 50%, got NoneType'): compress(make('llama'), Magnitude(.5), output_errors=True)
    with pytest.raises(ValueError, match="`output_errors` must be True, False or None, got 'yes'"): compress(make('llama'), Magnitude(.5), rows(), output_errors='yes')
    report = compress(make('llama'), Magnitude(.5), CalibrationSet.from_tokens(rows(), name='tales'), output_errors=True)
    assert report.calibration is None and report.errors_on.startswith('tales ') and 'on tales' not in repr(report)
    assert f'on {report.errors_on}.' in report._repr_markdown_()

# codes

def block(seed, layers=4, bits=4):
    w = torch.randn(layers, 32, 256, generator=torch.Generator().manual_seed(seed))
    return {f'model.layers.{seed}.part{i}': round_to_grid(o, choose_grid(o, bits, 128)) for i,o in enumerate(w)}

@pytest.mark.parametrize('bits', range(2, 9))
def test_codes_on_disk_take_as_many_bits_as_they_have(tmp_path, bits):
    codes = block(0, bits=bits)
    StoredCodes(tmp_path).save(0, codes)
    file, = tmp_path.iterdir()
    header = 8+int.from_bytes(file.read_bytes()[:8], 'little')
    numbers = sum(q.codes.numel() for q in codes.values())
    assert 8*(file.stat().st_size-header-4*(8+8+8+8+8+1))/numbers<=next(iter(codes.values())).bits_per_weight+1e-9
    for name,q in StoredCodes(tmp_path).items(): assert all(torch.equal(getattr(q, o), getattr(codes[name], o)) for o in ('codes','scale','zero','groups'))

def test_a_file_is_opened_once_for_its_names_and_once_for_each_layer(tmp_path, monkeypatch):
    stored = StoredCodes(tmp_path)
    for i in range(3): stored.save(i, block(i))
    opened,original = [],reports.safe_open
    monkeypatch.setattr(reports, 'safe_open', lambda file, *o: opened.append(file) or original(file, *o))
    assert len(stored)==12 and len(list(stored.values()))==12 and 'model.layers.9.part0' not in stored
    assert len(opened)==3+12
    stored.save(1, {'another': block(1)['model.layers.1.part0']})
    assert len(stored)==9 and 'another' in stored and 'model.layers.1.part0' not in stored and len(opened)==3+12+1+1

@pytest.mark.parametrize('second', [False,True])
def test_older_files_can_still_be_read(tmp_path, second):
    q = quantized(True, second)
    save_file({f'model.layers.0.up/{k}': o.contiguous() for k,o in old_tensors(q).items()}, tmp_path/'codes-00000.safetensors')
    assert torch.equal(StoredCodes(tmp_path)['model.layers.0.up'].dequantize(), q.dequantize())

def test_damaged_files_are_named(tmp_path):
    stored = StoredCodes(tmp_path)
    stored.save(0, block(0))
    file, = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(ValueError, match='codes-00000.safetensors must be a whole safetensors file'): list(stored)

def test_failing_to_write_leaves_what_was_there(tmp_path, monkeypatch):
    stored,codes = StoredCodes(tmp_path),block(0)
    stored.save(0, codes)
    import compresscal.models.tensor_files as tensor_files
    monkeypatch.setattr(tensor_files.os, 'fsync', lambda *o: 1/0)
    with pytest.raises(ZeroDivisionError): stored.save(0, block(0, bits=2))
    assert [o.name for o in tmp_path.iterdir()]==['codes-00000.safetensors'] and next(iter(stored.values())).bits==4

def test_sizes_of_a_folder(tmp_path):
    save_file({'a': torch.zeros(1000, 500), 'b': torch.zeros(10, dtype=torch.bfloat16)}, tmp_path/'model.safetensors')
    weights = (tmp_path/'model.safetensors').stat().st_size
    assert folder_sizes(tmp_path)==dict(weights=weights, all=weights) and weights>2_000_000
    StoredCodes(tmp_path).save(0, block(0))
    (tmp_path/'deep').mkdir()
    (tmp_path/'deep'/'other.safetensors').write_bytes(b'12345') # of another model
    codes = (tmp_path/'codes-00000.safetensors').stat().st_size
    assert folder_sizes(str(tmp_path))==dict(weights=weights, codes=codes, all=weights+codes+5)

# names

NASTY = 'a|b<i>\x1b[31m`\nc'

def test_names_are_shown_as_names():
    w,q = torch.ones(2, 8),round_to_grid(torch.ones(2, 8), choose_grid(torch.ones(2, 8)))
    row = reports.describe(w, w*.5, None, q)|dict(block='model.layers.0', layer=f'mlp.{NASTY}', raised=False, seconds=.1)
    report = CompressionReport(type('Odd', (), dict(label=NASTY))(), f'{NASTY} 1a2b', [row], errors_on=NASTY)
    text = report._repr_markdown_()
    assert '\x1b' not in text+repr(report) and '<i>' not in text and '\n' not in repr(report)
    table = [line for line in text.splitlines() if line.startswith('|')]
    assert len(table)==3 and all(line.replace(r'\|', '').count('|')==table[0].count('|') for line in table)
    assert report.table_rows()[1][0]==f'mlp.{NASTY}'
    measured = CompressionReport(report.method, None, [row|dict(output_error=.1)], errors_on=NASTY)._repr_markdown_()
    assert '\x1b' not in measured and '<i>' not in measured
