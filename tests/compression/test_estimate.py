"What a run will take, said before it: no bit of the model moves, and work that grows with the text is scaled by it"
import copy, warnings
import pytest, torch
from compresscal.compression import compress as compress_module
from compresscal.compression import machine
from compresscal.compression.compress import compress
from compresscal.compression.estimate import BlockCosts, RunEstimate, peak_growth, reckon
from compresscal.compression.methods import AWQ, GPTQ, RTN, Combined, SparseGPT, SpQR, Wanda
from compresscal.models.loading import load_model

pytestmark = pytest.mark.usefixtures('one_thread')
cpu = torch.device('cpu')

def tokens(n, length=64): return torch.randint(3, 500, (n, length), generator=torch.Generator().manual_seed(0))

@pytest.fixture(scope='module')
def model(): return load_model()[0]

def bits(model): return [t.clone().view(torch.int32) for t in model.state_dict().values()]

@pytest.mark.parametrize('method', [RTN(4), Wanda(.5), SparseGPT('2:4', true_sequential=True), GPTQ(3), SpQR(3), AWQ(3), Combined(SparseGPT('2:4'), GPTQ(4))], ids=str)
def test_no_bit_of_the_model_moves(model, method):
    before = bits(model)
    found = compress(model, method, None if method.needs=='nothing' else tokens(40), dry_run=True)
    assert isinstance(found, RunEstimate) and found.seconds>0 and found.cpu_seconds>0 and found.memory>2**26
    assert all(map(torch.equal, before, bits(model)))

def test_a_dry_run_refuses_what_the_run_would(model):
    with pytest.raises(TypeError, match='`calibration` must be'): compress(model, Wanda(.5), dry_run=True)
    with pytest.raises(ValueError, match='`skip` must match'): compress(model, RTN(4), skip='*.downproj', dry_run=True)

def test_hidden_states_beyond_the_budget_are_disk(model):
    text, width = tokens(40), model.config.hidden_size
    assert compress(model, Wanda(.5), text, dry_run=True, memory=0).disk==40*64*width*4
    assert compress(model, Wanda(.5), text, dry_run=True).disk==0
    assert compress(model, AWQ(4), text, dry_run=True, memory=0).disk==2*40*64*width*4 # dense and compressed past

def test_only_what_grows_with_the_text_is_scaled():
    one, two = torch.ones(2), 2*torch.ones(2)
    costs = BlockCosts(one, two, one, 0)
    assert reckon(costs, 3., 2, 10)[0]==3*(1+20)+2*10
    assert reckon(costs, 3., 2, 100)[0]==3*(1+200)+2*100

def test_the_estimate_is_near_the_run(model):
    "Processor time, which other programs change less than wall time; loosely, for small runs are noisy"
    import time
    text, copied = tokens(64, 128), copy.deepcopy(model)
    found = compress(copied, SparseGPT(.5), text, dry_run=True)
    start = time.process_time()
    compress(copied, SparseGPT(.5), text, progress=False)
    assert .5<found.cpu_seconds/(time.process_time()-start)<2

def test_peaks_between_two_states_are_seen():
    import time
    with peak_growth(cpu) as growth:
        big = torch.ones(2**25)
        time.sleep(.05)
        del big
    assert growth[0]>=2**26

def test_offloaded_blocks_are_copied_while_they_are_here(tmp_path, model):
    load_model()[0].save_pretrained(tmp_path/'dense')
    load_model()[1].save_pretrained(tmp_path/'dense')
    on_disk, _ = load_model(tmp_path/'dense', offload=True)
    found = compress(on_disk, GPTQ(3), tokens(8), out=tmp_path/'new', dry_run=True)
    assert found.disk>=sum(t.numel()*4 for t in model.parameters()) and not (tmp_path/'new').exists()
    assert [o.name for o in tmp_path.iterdir()]==['dense']
    compress(on_disk, GPTQ(3), tokens(8), out=tmp_path/'new', progress=False) # the model is still whole

def test_a_dry_run_on_disk_needs_no_folder(tmp_path, model):
    for o in load_model(): o.save_pretrained(tmp_path/'dense')
    on_disk, _ = load_model(tmp_path/'dense', offload=True)
    found, named = (compress(on_disk, Wanda(.5), tokens(8), dry_run=True, **o) for o in ({}, dict(out=tmp_path/'new')))
    assert found.disk==named.disk>=sum(t.numel()*4 for t in model.parameters())

def test_where_the_checkpoint_goes_is_looked_at_before_the_model(tmp_path, model, monkeypatch):
    for o in load_model(): o.save_pretrained(tmp_path/'dense')
    on_disk, _ = load_model(tmp_path/'dense', offload=True)
    def looked(model): raise AssertionError('it took hours')
    monkeypatch.setattr(compress_module, 'decoder_blocks', looked)
    with pytest.raises(ValueError, match='`out` must name a folder'): compress(on_disk, RTN(4))
    for dry in (True, False):
        with pytest.raises(ValueError, match='must not be given otherwise'): compress(model, RTN(4), out=tmp_path/'new', dry_run=dry)
        with pytest.raises(ValueError, match='`out` must be a new or empty folder'): compress(on_disk, RTN(4), out=tmp_path, dry_run=dry)
        with pytest.raises(ValueError, match='`out` must not be the folder of the source'): compress(on_disk, RTN(4), out=tmp_path/'dense', dry_run=dry)

def test_unfinished_work_is_called_as_the_user_calls_it(tmp_path):
    for o in load_model(): o.save_pretrained(tmp_path/'dense')
    on_disk, _ = load_model(tmp_path/'dense', offload=True)
    (tmp_path/'new.partial').mkdir()
    with pytest.raises(ValueError, match='`out` must have no unfinished work beside it'): compress(on_disk, RTN(4), out=tmp_path/'new')

# ---- Warnings

def test_a_slow_number_format_is_named_with_its_number(model, monkeypatch):
    monkeypatch.setattr(machine, 'product_seconds', lambda dtype, *shape: 4. if dtype==torch.bfloat16 else 1.)
    with pytest.warns(UserWarning, match='bfloat16 takes 4.0 times as long as in float32'):
        compress(copy.deepcopy(model), Wanda(.5), tokens(4), forward_dtype='bfloat16', dry_run=True)

def test_a_fast_number_format_is_not(model, monkeypatch):
    monkeypatch.setattr(machine, 'product_seconds', lambda dtype, *shape: 1.)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        compress(copy.deepcopy(model), Wanda(.5), tokens(4), forward_dtype='bfloat16', dry_run=True)

def test_nothing_is_measured_for_a_gpu(monkeypatch):
    monkeypatch.setattr(machine, 'product_seconds', lambda *args: pytest.fail('measured'))
    monkeypatch.setattr(machine, 'idle_cores', lambda: pytest.fail('measured'))
    machine.warn_of_slow_format(torch.bfloat16, torch.float32, 64, 64, torch.device('cuda'))
    machine.warn_of_busy_cores(torch.device('cuda'))

@pytest.mark.parametrize('threads, idle, warned', [(8, 3.2, True), (8, 7.4, False), (8, 8., False), (2, 1., True), (1, 0., False)])
def test_threads_beyond_idle_cores(threads, idle, warned, monkeypatch):
    monkeypatch.setattr(machine.torch, 'get_num_threads', lambda: threads)
    monkeypatch.setattr(machine, 'idle_cores', lambda: idle)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        machine.warn_of_busy_cores(cpu)
    assert bool(found)==warned
    if warned: assert f'{threads} threads' in str(found[0].message) and f'set_num_threads({int(idle)})' in str(found[0].message)

def test_where_blocks_are_given_nobody_looks_again(model, monkeypatch):
    import sys
    monkeypatch.setattr(sys.modules["compresscal.compression.compress"], "warn_of_busy_cores", lambda *args: pytest.fail('looked'))
    from compresscal.models.blocks import decoder_blocks
    compress(model, RTN(4), blocks=decoder_blocks(model), dry_run=True)
