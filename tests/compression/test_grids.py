"Grids against their definitions and the originals' results, and what is kept of a quantized matrix"
import pytest, torch
from safetensors.torch import load, load_file, save
from compresscal.compression.grids import (RULES, Grid, Quantized, average_bits, awq_levels, check_grid, check_weight, choose, choose_grid, dequantize,
                               gptq_levels, quantize, round_to_grid, second_level, spqr_levels, pack_codes, unpack_codes)

LAYERS = ['real_L0_self_attn_q_proj','real_L4_mlp_down_proj','syn_128x256_dead7','syn_128x256_ties','syn_256x256','syn_96x320_ragged']
NEAREST = {'rtn4_ch_asym': (None,False), 'rtn4_ch_sym': (None,True), 'rtn4_g32_asym': (32,False)}

pytestmark = pytest.mark.usefixtures('one_thread')

def normal(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

@pytest.mark.parametrize('name', NEAREST)
@pytest.mark.parametrize('layer', LAYERS)
def test_nearest_equals_original(shared, layer, name):
    o = load_file(shared/'oracles'/'layers'/f'{layer}.safetensors')
    size,symmetric = NEAREST[name]
    assert torch.equal(round_to_grid(o['W'], choose_grid(o['W'], 4, size, symmetric)).dequantize(), o[name])

@pytest.mark.parametrize('size', [64, 128])
@pytest.mark.parametrize('layer', LAYERS)
def test_awq_rule_is_its_formula(shared, layer, size):
    "min/max of each group, step at least 1e-5/15, zero rounded and clamped"
    w = load_file(shared/'oracles'/'layers'/f'{layer}.safetensors')['W']
    w = w[:,:w.shape[1]//size*size]
    if not w.numel(): pytest.skip(f'the layer is narrower than {size}')
    x = w.reshape(-1, size)
    low,high = x.amin(1, keepdim=True),x.amax(1, keepdim=True)
    scale = (high-low).clamp(min=1e-5)/15
    zero = (-torch.round(low/scale)).clamp(0, 15)
    expected = ((torch.round(x/scale)+zero).clamp(0, 15)-zero)*scale
    assert torch.equal(round_to_grid(w, choose_grid(w, 4, size, rule='awq')).dequantize(), expected.view_as(w))

def test_given_limits_equal_clipped_weights():
    "AWQ chooses the grid of weights that it has clipped to a maximum for each group"
    w = normal(8, 64)
    most = w.view(8, 2, 32).abs().amax(2)*.7
    clipped = w.view(8, 2, 32).clamp(-most[...,None], most[...,None]).view(8, 64)
    a,b = choose_grid(w, 4, 32, rule='awq', limits=(-most,most)),choose_grid(clipped, 4, 32, rule='awq')
    assert torch.equal(a.scale, b.scale) and torch.equal(a.zero, b.zero)
    a,b = round_to_grid(w, a).codes.int(),round_to_grid(clipped, b).codes.int()
    assert torch.equal(a[w==clipped], b[w==clipped]) and (a-b).abs().max()<=1 # a weight that is clipped lies half-way between two codes

@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize('bits', range(2, 9))
@pytest.mark.parametrize('size', [None, 1, 7, 16, 48, 1000])
def test_any_bits_and_groups(rule, bits, size):
    w = normal(12, 50, seed=bits)
    grid = choose_grid(w, bits, size, rule=rule)
    q = round_to_grid(w, grid)
    assert q.scale.shape==(12, -(-50//min(size or 50, 50))) and int(q.codes.max())<2**bits
    assert q.dequantize().isfinite().all() and q.dequantize().dtype==torch.float32
    again = round_to_grid(q.dequantize(), grid) # what is on the grid stays there
    assert torch.equal(again.codes, q.codes) and torch.equal(again.dequantize(), q.dequantize())
    if rule!='spqr' or (size or 50)>1: assert bits<8 or (q.dequantize()-w).abs().max()<w.abs().max()

@pytest.mark.parametrize('symmetric', [False, True])
def test_last_group_is_shorter(symmetric):
    w = normal(4, 172)
    grid = choose_grid(w, 4, 32, symmetric)
    alone = choose_grid(w[:,160:], 4, None, symmetric)
    assert torch.equal(grid.scale[:,5:], alone.scale) and torch.equal(grid.zero[:,5:], alone.zero)
    assert torch.equal(grid.groups[160:], torch.full((12,), 5))

@pytest.mark.parametrize('symmetric', [False, True])
@pytest.mark.parametrize('bits,size', [(2,None),(3,16),(4,128),(8,40)])
def test_search_ends_early_without_a_difference(bits, size, symmetric):
    w = torch.cat([normal(40, 256), normal(10, 256, seed=1)**3, torch.zeros(2, 256)])
    found = choose_grid(w, bits, size, symmetric, mse=True)
    def error(scale, zero, x): return (dequantize(quantize(x, scale[:,None], zero[:,None], bits), scale[:,None], zero[:,None])-x).abs().pow(2.4).sum(1)
    for group in range(found.scale.shape[1]):
        x = w[:,found.groups==group]
        tried = torch.stack([error(*gptq_levels(x.amin(1)*(1-i/100), x.amax(1)*(1-i/100), bits, symmetric), x) for i in range(80)])
        assert torch.allclose(error(found.scale[:,group], found.zero[:,group], x), tried.amin(0), rtol=1e-5)

def test_search_is_never_worse_than_none():
    w = normal(30, 64)**3
    def error(mse): return (round_to_grid(w, choose_grid(w, 3, 64, mse=mse)).dequantize()-w).abs().pow(2.4).sum(1)
    assert (error(True)<=error(False)).all() and error(True).sum()<.9*error(False).sum()

@pytest.mark.parametrize('rule', ['gptq','balanced','awq'])
@pytest.mark.parametrize('symmetric', [False, True])
def test_zero_is_a_level(rule, symmetric):
    w = normal(6, 32)+torch.tensor([-5., -2, 0, 0, 2, 5])[:,None]
    w[:,::3] = 0
    q = round_to_grid(w, choose_grid(w, 4, 8, symmetric, rule=rule))
    assert (q.dequantize()[:,::3]==0).all() and not q.dequantize()[:,::3].signbit().any()

def test_symmetric_row_without_negative_weights():
    "The original clips it near half its maximum; the balanced rule does not"
    w = torch.linspace(0, 1.5, 16)[None]
    assert round_to_grid(w, choose_grid(w, 4, symmetric=True)).dequantize().max()==pytest.approx(.7)
    assert round_to_grid(w, choose_grid(w, 4, symmetric=True, rule='balanced')).dequantize().max()==pytest.approx(1.4)
    mixed = normal(8, 16)
    assert torch.equal(choose_grid(mixed, 4, symmetric=True).scale, choose_grid(mixed, 4, symmetric=True, rule='balanced').scale)

@pytest.mark.parametrize('levels', [gptq_levels, awq_levels, spqr_levels])
@pytest.mark.parametrize('value', [0., 1e-45, 1e-40, 1e-12, -1e-30, 1., -3., 1e30])
def test_constant_rows_stay_finite(levels, value):
    x = torch.full((1,), value)
    scale,zero = levels(x, x)
    assert (scale>0).all() and scale.isfinite().all() and zero.isfinite().all()
    assert dequantize(quantize(x, scale, zero, 4, levels is not spqr_levels), scale, zero).isfinite().all()

@pytest.mark.parametrize('rule', RULES)
def test_extreme_rows_stay_finite(rule):
    w = torch.cat([normal(2, 16)*s for s in (1e-44, 1e-38, 1e-20, 1, 1e20, 1e37)]+[torch.zeros(2, 16), torch.ones(2, 16)])
    for size in (None, 4):
        q = round_to_grid(w, choose_grid(w, 4, size, rule=rule))
        assert q.dequantize().isfinite().all() and (q.scale>0).all()

def test_half_precision_is_computed_in_single():
    w = normal(16, 48)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        q = round_to_grid(w.to(dtype), choose_grid(w.to(dtype), 4, 16))
        assert torch.equal(q.dequantize(), round_to_grid(w.to(dtype).float(), choose_grid(w.to(dtype).float(), 4, 16)).dequantize())

@pytest.mark.parametrize('rows', [1, 2, 15, 16, 17, 33, 47])
@pytest.mark.parametrize('size', [2, 4, 16])
def test_second_level(rows, size):
    values = normal(rows, 3).abs()*.1+.02
    s = second_level(values, 3, size)
    assert s.scale.shape==(-(-rows//size), 3) and int(s.codes.max())<8
    for i in range(0, rows, size):
        part = values[i:i+size]
        step = (part.amax(0)-part.amin(0))/7
        assert ((s.dequantize()[i:i+size]-part).abs()<=step*.5001+1e-6).all()

def test_second_level_is_the_rule_on_rows():
    values = normal(32, 2)
    scale,zero = spqr_levels(values.view(2, 16, 2).amin(1), values.view(2, 16, 2).amax(1), 3)
    expected = dequantize(quantize(values.view(2, 16, 2), scale[:,None], zero[:,None], 3, whole=False), scale[:,None], zero[:,None])
    assert torch.equal(second_level(values).dequantize(), expected.view(32, 2))

def quantized(outliers=True, second=True, scattered=True):
    "One that has everything"
    w = normal(20, 24)
    grid = choose_grid(w, 3, 8, rule='spqr')
    if scattered: grid = Grid(grid.scale, grid.zero, grid.groups[torch.randperm(24, generator=torch.Generator().manual_seed(0))], 3, whole=False)
    scales,zeros = (second_level(grid.scale),second_level(grid.zero)) if second else (None,None)
    if second: grid = Grid(scales.dequantize(), zeros.dequantize(), grid.groups, 3, whole=False)
    q,places = round_to_grid(w, grid),(w.abs()>2).nonzero().T
    return Quantized(q.codes, q.scale, q.zero, q.groups, 3, outliers=(places,w[tuple(places)]) if outliers else None, scale_codes=scales, zero_codes=zeros)

@pytest.mark.parametrize('outliers', [False, True])
@pytest.mark.parametrize('second', [False, True])
@pytest.mark.parametrize('scattered', [False, True])
def test_round_trip(outliers, second, scattered):
    q = quantized(outliers, second, scattered)
    again = Quantized.from_tensors(load(save(q.tensors())))
    assert torch.equal(again.dequantize(), q.dequantize()) and again.bits_per_weight==q.bits_per_weight and repr(again)==repr(q)
    assert (again.bits,again.symmetric)==(q.bits,q.symmetric) and torch.equal(again.codes, q.codes) and torch.equal(again.groups, q.groups)
    assert ('scale' in q.tensors())==(not second)

def test_round_trip_without_a_single_outlier():
    q = quantized()
    q = Quantized(q.codes, q.scale, q.zero, q.groups, 3, outliers=(q.outliers[0][:,:0],q.outliers[1][:0]))
    assert len(Quantized.from_tensors(load(save(q.tensors()))).outliers[1])==0

def stored_bits(q):
    "Bits per weight of the tensors that are stored, but for shapes and settings"
    return 8*sum(o.nbytes for k,o in q.tensors().items() if k.rpartition('.')[2] not in ('shape','bits','size','symmetric','group_size'))/q.codes.numel()

def test_average_bits_counts_everything():
    "As it is stored: scales of 32 bits, outliers of 64 with their places, the group of a column in a byte"
    n = 20*24
    assert average_bits(quantized(False, False, False))==3+60*64/n
    assert average_bits(quantized(False, False, True))==3+60*64/n+24*8/n
    assert average_bits(quantized(False, True, False))==3+2*(60*3+2*3*2*32)/n
    assert average_bits(quantized(True, True, False))==pytest.approx(3+2*(60*3+2*3*2*32)/n+64*len(quantized().outliers[1])/n)
    w = normal(32, 256)
    assert round_to_grid(w, choose_grid(w, 4, 128)).bits_per_weight==4+36/128
    assert round_to_grid(w, choose_grid(w, 4, 128, symmetric=True)).bits_per_weight==4+32/128
    assert average_bits(round_to_grid(w, choose_grid(w, 4, 128)), 16)==4+20/128 # as papers count
    assert average_bits(quantized(True, True, False), 16, 32)==pytest.approx(3+2*(60*3+2*3*2*16)/n+32*len(quantized().outliers[1])/n)

@pytest.mark.parametrize('bits', range(2, 9))
@pytest.mark.parametrize('symmetric', [False, True])
@pytest.mark.parametrize('size', [None, 8, 7])
def test_counted_bits_are_those_that_are_stored(bits, symmetric, size):
    w = normal(16, 64)
    q = round_to_grid(w, choose_grid(w, bits, size, symmetric))
    assert q.bits_per_weight==stored_bits(q)
    again = Quantized.from_tensors(load(save(q.tensors())))
    assert all(torch.equal(getattr(again, o), getattr(q, o)) for o in ('codes','scale','zero','groups')) and again.symmetric==q.symmetric

@pytest.mark.parametrize('scattered', [False, True])
@pytest.mark.parametrize('second', [False, True])
def test_counted_bits_of_two_levels_and_outliers(second, scattered):
    q = quantized(True, second, scattered)
    assert q.bits_per_weight==pytest.approx(stored_bits(q), abs=8*3/q.codes.numel()) # the last byte of a tensor may have bits left

@pytest.mark.parametrize('bits', range(1, 9))
@pytest.mark.parametrize('n', [*range(18), 1000])
def test_packing_loses_nothing(bits, n):
    codes = torch.randint(2**bits, (n,), generator=torch.Generator().manual_seed(n)).byte()
    packed = pack_codes(codes, bits)
    assert packed.dtype==torch.uint8 and len(packed)==-(-n*bits//8) and torch.equal(unpack_codes(packed, bits, (n,)), codes)
    if n: assert sum(int(o)<<8*i for i,o in enumerate(packed))==sum(int(o)<<bits*i for i,o in enumerate(codes)) # as one long number

def test_zeros_that_do_not_fit_a_code_are_kept_as_they_are():
    q = quantized(False, False, False)
    for zero in (q.zero.round()*0-3, q.zero.round()*0+8, q.zero.round()*0+.5):
        odd = Quantized(q.codes, q.scale, zero, q.groups, 3, symmetric=True)
        assert torch.equal(Quantized.from_tensors(odd.tensors()).zero, zero) and odd.bits_per_weight==3+60*64/480

@pytest.mark.parametrize('columns', [[1,1,0,0,2,2], [0,1,1,1,2,2], [1,1,1,2,2,2]])
def test_groups_that_are_not_consecutive_and_equal_are_stored(columns):
    w = normal(4, 6)
    grid = choose_grid(w, 4, 2)
    q = round_to_grid(w, Grid(grid.scale, grid.zero, torch.tensor(columns), 4))
    assert q.tensors()['groups'].dtype==torch.uint8 and torch.equal(Quantized.from_tensors(q.tensors()).groups, q.groups)

def old_tensors(q):
    "As files held them before codes were packed"
    def level(name, o): return {f'{name}.{k}': getattr(o, k) if k in ('codes','scale','zero') else torch.tensor(getattr(o, k)) for k in ('codes','scale','zero','bits','size')}
    found = dict(codes=q.codes, groups=q.groups, bits=torch.tensor(q.bits), symmetric=torch.tensor(q.symmetric))
    found |= dict(scale=q.scale, zero=q.zero) if q.scale_codes is None else level('scale_codes', q.scale_codes)|level('zero_codes', q.zero_codes)
    return found | ({} if q.outliers is None else {'outliers.places': q.outliers[0].int(), 'outliers.values': q.outliers[1]})

@pytest.mark.parametrize('second', [False, True])
def test_older_files_can_still_be_read(second):
    q = quantized(True, second)
    again = Quantized.from_tensors(load(save(old_tensors(q))))
    assert torch.equal(again.dequantize(), q.dequantize()) and torch.equal(again.outliers[0], q.outliers[0])

def test_outliers_are_what_they_were():
    q = quantized()
    assert torch.equal(q.dequantize()[tuple(q.outliers[0])], q.outliers[1])

@pytest.mark.parametrize('change,message', [
    (dict(codes=torch.zeros(20, 24)), '`codes` must be a matrix of torch.uint8'),
    (dict(scale=torch.ones(20, 2)), '`scale` and `zero` must both be'),
    (dict(zero=torch.zeros(20, 3, dtype=torch.float64), scale=torch.ones(20, 3)), '`scale` and `zero`.*float64'),
    (dict(groups=torch.zeros(23, dtype=torch.int64)), '`groups` must have one torch.int64 for each of 24 columns'),
    (dict(groups=torch.zeros(24)), '`groups`.*float32'),
    (dict(bits=9), '`bits` must lie from 2 to 8, got 9'),
    (dict(outliers=(torch.zeros(3, 2, dtype=torch.int64),torch.zeros(3))), '`outliers` must be places')])
def test_parts_that_do_not_fit(change, message):
    q = quantized(False, False)
    with pytest.raises(ValueError, match=message): Quantized(**dict(codes=q.codes, scale=q.scale, zero=q.zero, groups=q.groups, bits=3) | change)

@pytest.mark.parametrize('change,message', [
    (dict(codes=torch.full((20, 24), 8, dtype=torch.uint8)), 'codes of 3 bits, got 8'),
    (dict(groups=torch.full((24,), 3)), 'groups 0 to 2, got 3 to 3'),
    (dict(groups=torch.full((24,), -1)), 'groups 0 to 2, got -1 to -1'),
    ({'codes.packed': torch.zeros(179, dtype=torch.uint8)}, '`packed` must have 180 bytes for 480 codes of 3 bits, got 179'),
    ({'outliers.places': torch.full((len(quantized().outliers[1]),), 480)}, r'outliers within \(20, 24\)')])
def test_damaged_tensors(change, message):
    with pytest.raises(ValueError, match=message): Quantized.from_tensors(quantized().tensors()|change)

@pytest.mark.parametrize('name', ['codes.packed','shape','groups','bits','symmetric','outliers.values','scale_codes.size','zero_codes.scale','scale_codes.codes.packed'])
def test_missing_tensors(name):
    tensors = quantized().tensors()
    del tensors[name]
    with pytest.raises(ValueError, match='`tensors` must hold all parts'): Quantized.from_tensors(tensors)

@pytest.mark.parametrize('bits', [0, 1, 9, 16, -4])
def test_bits_out_of_range(bits):
    with pytest.raises(ValueError, match=f'`bits` must lie from 2 to 8, got {bits}'): choose_grid(normal(2, 4), bits)

@pytest.mark.parametrize('bits,size', [(4.,None),('4',None),(True,None),(None,None),(4,32.),(4,True),(4,'32')])
def test_wrong_types(bits, size):
    with pytest.raises(TypeError, match='must be a whole number'): check_grid(bits, size)

@pytest.mark.parametrize('size', [0, -1])
def test_group_size_out_of_range(size):
    with pytest.raises(ValueError, match=f'`group_size` must be at least 1.*got {size}'): choose_grid(normal(2, 4), 4, size)

@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf'), 3e38])
def test_not_finite_is_refused(value):
    w = normal(4, 8); w[2,3] = value
    for call in (check_weight, choose_grid, lambda o: round_to_grid(o, choose_grid(normal(4, 8)))):
        with pytest.raises(ValueError, match='`weight` must be finite and below 1e38, got 1 of 32'): call(w)

@pytest.mark.parametrize('weight', [torch.ones(4), torch.ones(2, 2, 2), torch.ones(0, 4), torch.ones(4, 0)])
def test_not_a_matrix_is_refused(weight):
    with pytest.raises(ValueError, match='`weight` must be a matrix'): choose_grid(weight)

@pytest.mark.parametrize('weight', [torch.ones(2, 2, dtype=torch.int64), [[1.]], None])
def test_not_floats_is_refused(weight):
    with pytest.raises(TypeError, match='`weight` must be a tensor of floats'): choose_grid(weight)

def test_rules_by_name():
    with pytest.raises(ValueError, match="`rule` must be one of gptq, balanced, awq, spqr, got 'nf4'"): choose_grid(normal(2, 4), rule='nf4')
    with pytest.raises(ValueError, match='`mse` must be False'): choose_grid(normal(2, 4), rule='spqr', mse=True)
    with pytest.raises(ValueError, match='`symmetric` must be False'): choose_grid(normal(2, 4), rule='spqr', symmetric=True)

def test_transposed_weights():
    "Conv1D weights arrive as views that are not contiguous"
    w = normal(24, 20)
    for mse in (False, True):
        a,b = round_to_grid(w.T, choose_grid(w.T, 4, 8, mse=mse)),round_to_grid(w.T.contiguous(), choose_grid(w.T.contiguous(), 4, 8, mse=mse))
        assert torch.equal(a.dequantize(), b.dequantize())
    scale,zero = choose(w, dim=0)
    assert torch.equal(scale, choose(w.T)[0]) and torch.equal(zero, choose(w.T)[1])
