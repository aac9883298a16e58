"GPTQ and SpQR against the original implementations and against plain versions of them, and their properties"
import re
import pytest, torch
from safetensors.torch import load, load_file, save
from compresscal.compression.compensation import factorize
from compresscal.compression.grids import Quantized, choose, choose_grid, dequantize, quantize, round_to_grid, second_level
from compresscal.compression.quantization import column_rounding, gptq, leave_one_out, rtn, spqr

LAYERS = ['real_L0_self_attn_q_proj','real_L4_mlp_down_proj','syn_128x256_dead7','syn_128x256_ties','syn_256x256','syn_96x320_ragged']
GPTQ = ['gptq3_ch_asym_mse','gptq3_g128_asym_act_static','gptq4_ch_asym','gptq4_ch_asym_act','gptq4_ch_asym_bs32','gptq4_ch_sym','gptq4_ch_sym_act','gptq4_g128_asym',
        'gptq4_g128_asym_act','gptq4_g128_sym','gptq4_g128_sym_act','gptq4_g32_asym','gptq4_g32_asym_act','gptq4_g32_asym_bs32','gptq4_g32_sym','gptq4_g32_sym_act']
SPQR = ['spqr3_g16_qg16','spqr4_g16_qg16','spqr3_g16_qg16_simplified_act','spqr4_g16_noqq_damp.01']

pytestmark = pytest.mark.usefixtures('one_thread')

def normal(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

def problem(rows=24, columns=80, tokens=400, seed=0):
    "Weights, and the Hessian of inputs that go together"
    x = normal(tokens, columns, seed=seed)@(normal(columns, columns, seed=seed+1)/columns**.5+torch.eye(columns))
    return normal(rows, columns, seed=seed+2), x.T@x/4

def wrong(new, weight, hessian):
    change = (new-weight).double()
    return float(((change@hessian.double())*change).sum())

def same(new, expected): return float(((new-expected).abs()<=1e-5*expected.abs().max()).float().mean())

# --- the originals -------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def oracle(shared):
    files = {o: load_file(shared/'oracles'/'layers'/f'{o}.safetensors') for o in LAYERS}
    return lambda layer: files[layer]

def like_gptq(o, case):
    bits,group,symmetric,act,static,mse,small = re.fullmatch(r'gptq(\d)_(ch|g\d+)_(asym|sym)(_act)?(_static)?(_mse)?(_bs32)?', case).groups()
    factor = factorize(o['H'], .01, order='activation' if act else None)
    return gptq(o['W'], factor, int(bits), None if group=='ch' else int(group[1:]), symmetric=='sym', bool(static), bool(mse), 32 if small else 128)

def like_spqr(o, case, **kwargs):
    bits,second,damping,simplified,act = re.fullmatch(r'spqr(\d)_g16_(qg16|noqq)(_damp.01)?(_simplified)?(_act)?', case).groups()
    factor = factorize(o['H'], .01 if damping else 1., order='activation' if act else None, damp_first=True)
    level = None if second=='noqq' else 3
    return spqr(o['W'], factor, int(bits), 16, level, level, 16, .2, bool(simplified), **kwargs)

@pytest.mark.parametrize('case', GPTQ)
@pytest.mark.parametrize('layer', LAYERS)
def test_gptq_equals_original(oracle, layer, case):
    o = oracle(layer)
    new = like_gptq(o, case).dequantize()
    assert same(new, o[case])>=.997
    assert abs(wrong(new, o['W'], o['H'])/wrong(o[case], o['W'], o['H'])-1)<=2e-3

def other_last_digits(hessian, seed):
    "The Hessian as another processor's products give it: each entry moved by about one unit in its last digit"
    noise = normal(*hessian.shape, seed=seed)
    return hessian*(1+6e-8*(noise+noise.T)/2)

@pytest.mark.parametrize('case', SPQR)
@pytest.mark.parametrize('layer', LAYERS)
def test_spqr_equals_original(oracle, layer, case):
    "A weight half-way between two levels falls by the Hessian's last digit, and its row goes another way: each row is the original's for one of these digits"
    o = oracle(layer)
    tries = [like_spqr({**o, 'H': h}, case) for h in [o['H'], *(other_last_digits(o['H'], seed) for seed in range(8))]]
    weights = torch.stack([q.dequantize() for q in tries])
    nearest = (weights-o[case]).abs().sum(2).argmin(0)
    new = weights[nearest,torch.arange(len(nearest))]
    assert same(new, o[case])>=.9999
    assert abs(wrong(new, o['W'], o['H'])/wrong(o[case], o['W'], o['H'])-1)<=3e-5
    for q in tries:
        mask = torch.zeros_like(o['W'], dtype=torch.bool)
        mask[tuple(q.outliers[0])] = True
        assert (mask!=o[f'{case}.outliers'].bool()).sum()<=3

def test_every_case_of_the_originals_is_compared(oracle):
    for layer in LAYERS: assert {o for o in oracle(layer) if re.match(r'gptq|spqr(?!.*\.outliers)', o)}=={*GPTQ, *SPQR}

# --- plain versions ------------------------------------------------------------------------------------------------------------

def plain_gptq(weight, factor, bits, size, block_size=128, refresh=False, keep=None):
    "One column after the other, each rewriting all that follow"
    order = torch.arange(weight.shape[1]) if factor.order is None else factor.order
    w,kept,upper = weight.clone(),torch.ones_like(weight, dtype=torch.bool) if keep is None else keep,factor.upper
    w[:,factor.dead] = 0
    w,kept = w.masked_fill(~kept, 0)[:,order],kept[:,order]
    new = torch.empty_like(w)
    for j in range(w.shape[1]):
        if j%block_size==0: old = w.clone()
        if j%size==0: scale,zero = choose((w if refresh else old)[:,j:j+size], bits)
        new[:,j] = dequantize(quantize(w[:,j], scale, zero, bits), scale, zero)*kept[:,j]
        w[:,j:] -= ((w[:,j]-new[:,j])/upper[j,j])[:,None]*upper[j,j:]
    return new[:,order.argsort()]

def plain_spqr(weight, factor, bits=4, size=16, level=3, second=16, threshold=.2, simplified=False):
    "One column after the other, a grid for each weight that is left out"
    order = torch.arange(weight.shape[1]) if factor.order is None else factor.order
    w = weight.masked_fill(factor.dead, 0)[:,order]
    upper,cost = factor.upper,factor.upper.diagonal()
    limit = threshold*(w.var(0)/cost**2).mean()
    def nearest(x, scale, zero): return dequantize(quantize(x, scale, zero, bits, whole=False), scale, zero)
    def error(x, cost):
        scale,zero = choose(x, bits, rule='spqr')
        return ((nearest(x, scale[:,None], zero[:,None])-x)/cost).square().sum(1)
    for j in range(w.shape[1]):
        if j%size==0:
            x,c = w[:,j:j+size],cost[j:j+size]
            if not simplified and x.shape[1]>1:
                others = [[k for k in range(x.shape[1]) if k!=i] for i in range(x.shape[1])]
                usual = torch.stack([error(x, c)-error(x[:,o], c[o])<=limit for o in others], 1).float()
                x = x*usual+(1-usual)*((x*usual).sum(1)/usual.sum(1).clamp(min=1))[:,None]
            scale,zero = choose(x, bits, rule='spqr')
            if level: scale,zero = (second_level(o[:,None], level, second).dequantize()[:,0] for o in (scale,zero))
        new = nearest(w[:,j], scale, zero)
        new = torch.where(((w[:,j]-new)/cost[j])**2>limit, w[:,j], new)
        w[:,j+1:] -= ((w[:,j]-new)/cost[j])[:,None]*upper[j,j+1:]
        w[:,j] = new
    return w[:,order.argsort()]

@pytest.mark.parametrize('order', [None,'activation'])
@pytest.mark.parametrize('refresh', [False, True])
@pytest.mark.parametrize('size,block_size', [(8,32),(16,16),(24,32),(32,16),(40,16),(7,24),(1,8),(80,32),(500,32)])
def test_gptq_equals_plain(order, refresh, size, block_size):
    w,h = problem()
    factor = factorize(h, order=order)
    new = gptq(w, factor, 4, size, block_size=block_size, refresh=refresh).dequantize()
    assert same(new, plain_gptq(w, factor, 4, min(size, 80), block_size, refresh))>.99

def test_gptq_with_a_mask_equals_plain():
    w,h = problem()
    keep = normal(*w.shape, seed=7)>0
    for order in (None,'activation'):
        factor = factorize(h, order=order)
        new = gptq(w, factor, 4, 16, keep=keep).dequantize()
        assert same(new, plain_gptq(w, factor, 4, 16, keep=keep))>.99 and (new[~keep]==0).all()

@pytest.mark.parametrize('order', [None,'activation'])
@pytest.mark.parametrize('rows,columns,size,second', [(32,80,16,16),(33,80,16,16),(7,50,16,4),(20,49,16,16),(24,40,3,8),(16,33,100,16),(2,17,16,2),(20,24,1,16)])
def test_spqr_equals_plain(order, rows, columns, size, second):
    w,h = problem(rows, columns)
    w *= 1+6*(normal(*w.shape, seed=5)>2.2)
    factor = factorize(h, .5, order=order, damp_first=True)
    for kwargs in ({}, dict(simplified_outliers=True)):
        q = spqr(w, factor, 3, size, second_group_size=second, **kwargs)
        assert same(q.dequantize(), plain_spqr(w, factor, 3, min(size, columns), 3, second, simplified=bool(kwargs)))>.98

def test_leave_one_out_by_definition():
    def error(x, cost):
        scale,zero = choose(x, 3, rule='spqr', dim=0)
        return ((dequantize(quantize(x, scale, zero, 3, False), scale, zero)-x)*cost).square().sum(0)
    for columns in (normal(16, 40), normal(16, 40).round(), normal(3, 9), normal(2, 9), torch.zeros(4, 3), torch.ones(16, 2)):
        cost,n = normal(len(columns), 1, seed=3).abs()+.1,len(columns)
        others = [[j for j in range(n) if j!=i] for i in range(n)]
        expected = torch.stack([error(columns, cost)-error(columns[o], cost[o]) for o in others])
        assert torch.allclose(leave_one_out(columns, cost, 3), expected, atol=1e-5)

# --- properties ----------------------------------------------------------------------------------------------------------------

METHODS = {'rtn': lambda w,f,**k: rtn(w, **k), 'gptq': gptq, 'spqr': spqr}

@pytest.mark.parametrize('order', [None,'activation'])
@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('bits', range(2, 9))
def test_codes_in_range_and_levels_kept(method, bits, order):
    w,h = problem()
    q = METHODS[method](w, factorize(h, order=order, damp_first=method=='spqr'), bits=bits, group_size=12)
    assert int(q.codes.max())<2**bits and q.codes.dtype==torch.uint8 and q.dequantize().isfinite().all()
    again = quantize(q.dequantize(), q.scale[:,q.groups], q.zero[:,q.groups], bits, whole=method!='spqr')
    plain = torch.ones_like(w, dtype=torch.bool)
    if q.outliers is not None: plain[tuple(q.outliers[0])] = False
    assert torch.equal(again[plain].byte(), q.codes[plain])
    assert torch.equal(Quantized.from_tensors(load(save(q.tensors()))).dequantize(), q.dequantize())

@pytest.mark.parametrize('static', [False, True])
@pytest.mark.parametrize('size', [None, 24, 80])
def test_groups_of_an_order(static, size):
    "Static groups are made of neighbours, others of columns that follow each other in the order"
    w,h = problem()
    factor = factorize(h, order='activation')
    q = gptq(w, factor, 4, size, static_groups=static)
    neighbours = torch.arange(80)//(size or 80)
    assert torch.equal(q.groups if static or size is None else q.groups[factor.order], neighbours)
    if static: assert torch.equal(q.scale, choose_grid(w, 4, size).scale)
    assert q.bits_per_weight==pytest.approx(4+36*q.scale.shape[1]/80+(8/24 if not static and size==24 else 0))

def test_each_bit_helps():
    w,h = problem(48, 96, 2000)
    for method in METHODS:
        factor = factorize(h, .1, damp_first=method=='spqr')
        errors = [wrong(METHODS[method](w, factor, bits=b).dequantize(), w, h) for b in range(2, 9)]
        assert errors==sorted(errors, reverse=True)
        if method!='rtn': assert errors[2]<wrong(rtn(w, 4).dequantize(), w, h)

def test_refresh_makes_blocks_a_matter_of_speed():
    w,h = problem(32, 160, 1000)
    factor = factorize(h)
    blocks = [gptq(w, factor, 3, 32, block_size=b, refresh=True).dequantize() for b in (32, 64, 128, 1000)]
    assert all(same(o, blocks[0])>.995 for o in blocks)
    assert same(gptq(w, factor, 3, 32, block_size=32).dequantize(), blocks[0])>.995
    assert same(gptq(w, factor, 3, 32, block_size=128).dequantize(), blocks[0])<.8

def test_dead_inputs(oracle):
    o = oracle('syn_128x256_dead7')
    factor,dead = factorize(o['H']),o['H'].diagonal()==0
    assert dead.sum()==7
    for size in (None, 32):
        zeroed,rounded = gptq(o['W'], factor, 4, size),gptq(o['W'], factor, 4, size, round_dead=True)
        assert (zeroed.dequantize()[:,dead]==0).all()
        assert ((rounded.dequantize()-o['W'])[:,dead].abs()<=rounded.scale[:,rounded.groups][:,dead]*.5001).float().mean()>.9
    factor = factorize(o['H'], 1., damp_first=True)
    of_zero,rounded = spqr(o['W'], factor),spqr(o['W'], factor, round_dead=True)
    assert (of_zero.dequantize()[:,dead]).abs().max()<o['W'].abs().mean()
    assert (rounded.dequantize()-o['W'])[:,dead].norm()<.2*(of_zero.dequantize()-o['W'])[:,dead].norm()
    for q in (of_zero,rounded): assert q.dequantize().isfinite().all()

def test_everything_dead():
    w = normal(8, 40)
    for method in ('gptq','spqr'):
        q = METHODS[method](w, factorize(torch.zeros(40, 40), damp_first=method=='spqr'))
        assert q.dequantize().isfinite().all()
        assert method=='spqr' or (q.dequantize()==0).all()

@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(method, dtype):
    w,h = problem()
    factor = factorize(h)
    a,b = METHODS[method](w.to(dtype), factor),METHODS[method](w.to(dtype).float(), factor)
    assert a.dequantize().dtype==torch.float32 and torch.equal(a.dequantize(), b.dequantize())

@pytest.mark.parametrize('method', METHODS)
def test_odd_weights(method):
    "Zero and constant rows, single rows and columns, transposed storage, gradients; the weight stays as it was"
    w,h = problem()
    factor = factorize(h)
    w[:3] = 0; w[3:6] = .25; w[6] = 1e-30
    before = w.clone()
    q = METHODS[method](w, factor)
    assert q.dequantize().isfinite().all() and torch.equal(w, before)
    if method!='spqr': assert (q.dequantize()[:3]==0).all()
    assert torch.equal(METHODS[method](w.T.contiguous().T, factor).dequantize(), q.dequantize())
    assert not METHODS[method](torch.nn.Parameter(w), factor).dequantize().requires_grad
    assert METHODS[method](w[7:8], factor).dequantize().isfinite().all()
    one = factorize(h[:1,:1])
    assert METHODS[method](w[:,:1], one).codes.shape==(24,1)

@pytest.mark.parametrize('case', ['rank','twins','loud'])
def test_hard_hessians(case):
    w,h = problem(16, 64, 20 if case=='rank' else 300)
    if case=='twins': h[:,1] = h[:,0]; h[1] = h[0]
    if case=='loud': h[5] *= 1e4; h[:,5] *= 1e4
    for method in ('gptq','spqr'):
        for order in (None,'activation'):
            q = METHODS[method](w, factorize(h, order=order, damp_first=method=='spqr'), bits=3, group_size=16)
            assert q.dequantize().isfinite().all()
            assert case=='loud' or wrong(q.dequantize(), w, h)<wrong(rtn(w, 3, 16).dequantize(), w, h) # nothing makes good for one input that is all there is

@pytest.mark.parametrize('rule', ['gptq','balanced','awq'])
@pytest.mark.parametrize('symmetric', [False, True])
@pytest.mark.parametrize('size', [None, 16])
def test_pruned_weights_stay_exactly_zero(rule, symmetric, size):
    w,h = problem()
    keep = normal(*w.shape, seed=9)>0
    for q in (rtn(w, 3, size, symmetric, rule=rule, keep=keep), gptq(w, factorize(h), 3, size, symmetric, rule=rule, keep=keep)):
        assert (q.dequantize()[~keep]==0).all() and not q.dequantize()[~keep].signbit().any()
        assert (Quantized.from_tensors(q.tensors()).dequantize()[~keep]==0).all()

def test_outlier_thresholds():
    w,h = problem(48, 96)
    factor = factorize(h, 1., damp_first=True)
    counts = [len(spqr(w, factor, outlier_threshold=t).outliers[1]) for t in (0, .05, .2, 1, 100)]
    assert counts==sorted(counts, reverse=True) and counts[-1]==0 and counts[0]>.9*w.numel()
    none = spqr(w, factor, outlier_threshold=None)
    assert none.outliers is None and spqr(w, factor, outlier_threshold=float('inf')).outliers is None
    assert torch.equal(spqr(w, factor, outlier_threshold=100, simplified_outliers=True).dequantize(), none.dequantize())
    assert torch.allclose(spqr(w, factor, outlier_threshold=0).dequantize(), w, atol=1e-6)

def test_bits_of_spqr_are_its_formula():
    "bits + (scale bits + zero bits)/group + 128/(group * second group) + 64 * share of outliers"
    w,h = problem(64, 160)
    q = spqr(w, factorize(h, 1., damp_first=True), 3)
    assert q.bits_per_weight==pytest.approx(3+6/16+128/256+64*len(q.outliers[1])/w.numel())
    q = spqr(w, factorize(h, 1., damp_first=True), 3, scale_bits=None, zero_bits=None, outlier_threshold=None)
    assert q.bits_per_weight==3+64/16 and q.scale_codes is None and q.zero_codes is None

def test_second_level_is_what_the_sweep_used():
    w,h = problem(40, 96)
    q = spqr(w, factorize(h, 1., order='activation', damp_first=True), 3, second_group_size=16)
    assert torch.equal(q.scale, q.scale_codes.dequantize()) and torch.equal(q.zero, q.zero_codes.dequantize())
    assert q.scale_codes.scale.shape==(3,6) # the last group of rows is shorter

def test_block_size_has_no_part_in_spqr():
    w,h = problem(32, 160, 1000)
    factor = factorize(h, 1., damp_first=True)
    assert same(spqr(w, factor, 3, block_size=16).dequantize(), spqr(w, factor, 3, block_size=128).dequantize())>.99

def test_column_rounding_is_rounding():
    w,_ = problem()
    for size in (None, 16, 7):
        grid = choose_grid(w, 4, size)
        nearest = column_rounding(grid)
        assert torch.equal(torch.stack([nearest(w[:,i], i) for i in range(80)], 1), round_to_grid(w, grid).dequantize())

# --- refusals ------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_not_finite_is_refused(method, value):
    w,h = problem()
    w[3,4] = value
    with pytest.raises(ValueError, match='`weight` must be finite'): METHODS[method](w, factorize(h))

@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('settings,error,message', [
    (dict(bits=1), ValueError, '`bits` must lie from 2 to 8, got 1'), (dict(bits=9), ValueError, '`bits`.*got 9'), (dict(bits=3.5), TypeError, '`bits`.*3.5'),
    (dict(group_size=0), ValueError, '`group_size` must be at least 1'), (dict(group_size='64'), TypeError, '`group_size`')])
def test_bad_settings(method, settings, error, message):
    w,h = problem()
    with pytest.raises(error, match=message): METHODS[method](w, factorize(h), **settings)

@pytest.mark.parametrize('settings,message', [
    (dict(scale_bits=1), '`scale_bits`.*got 1'), (dict(zero_bits=True), '`zero_bits`.*got True'), (dict(second_group_size=1), '`second_group_size`.*got 1'),
    (dict(outlier_threshold=-.1), '`outlier_threshold`.*got -0.1'), (dict(outlier_threshold=float('nan')), '`outlier_threshold`.*nan'), (dict(outlier_threshold='2'), '`outlier_threshold`')])
def test_bad_settings_of_spqr(settings, message):
    w,h = problem()
    with pytest.raises(ValueError, match=message): spqr(w, factorize(h), **settings)

def test_factor_of_another_layer():
    w,h = problem()
    for method in ('gptq','spqr'):
        with pytest.raises(ValueError, match='`factor` must have as many columns as `weight`, 70, got 80'): METHODS[method](w[:,:70], factorize(h))

def test_masks_that_do_not_fit():
    w,h = problem()
    for call in (lambda **k: rtn(w, **k), lambda **k: gptq(w, factorize(h), **k)):
        with pytest.raises(ValueError, match=r'`keep` must be a bool tensor of shape \(24, 80\), got torch.float32'): call(keep=torch.ones(24, 80))
        with pytest.raises(ValueError, match=r'of shape \(80,\)'): call(keep=torch.ones(80, dtype=torch.bool))
        with pytest.raises(ValueError, match="`keep` must be None with rule 'spqr'"): call(keep=torch.ones(24, 80, dtype=torch.bool), rule='spqr')
