"The factor and the sweep against plain versions in double precision, and under every stress that a Hessian can put on them"
import pytest, torch
from safetensors import safe_open
from compresscal.compression.compensation import Factor, factorize, require_finite, sweep
from compresscal.compression.pruning import sparsegpt

def generator(seed=0): return torch.Generator().manual_seed(seed)

def correlated(rows, columns, seed=0, hidden=None):
    "Inputs that are mixtures of fewer causes, with a little noise"
    g = generator(seed)
    causes = torch.randn(rows, hidden or max(columns//3, 1), generator=g)
    return causes@torch.randn(causes.shape[1], columns, generator=g)/causes.shape[1]**.5+.3*torch.randn(rows, columns, generator=g)

def moments(x): return x.T@x*(2/8)

def damp(hessian, damping, damp_first=False):
    "The rules for dead inputs as a formula, in double precision"
    h = hessian.double(); dead = h.diagonal()==0
    mean = (h.diagonal() if damp_first else h.diagonal().masked_fill(dead, 1)).mean()
    new = (h.diagonal().masked_fill(dead, 1)+damping*mean)
    return h-h.diag().diag()+(new.masked_fill(dead, 1) if damp_first else new).diag()

def plain_factor(damped): return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)

def plain_sweep(weight, upper, decide, begin=None, every=128):
    "One column after the other, each writing to all that follow"
    w = weight.double().clone()
    for j in range(w.shape[1]):
        if begin and j%every==0: begin(j, w[:,j:].T)
        new = decide(w[:,j].clone(), j)
        w[:,j+1:] -= ((w[:,j]-new)/upper[j,j]).outer(upper[j,j+1:])
        w[:,j] = new
    return w

def relative(a, b): return float((a.double()-b).norm()/b.norm().clamp_min(1e-30))

@pytest.mark.parametrize('damp_first', [False, True])
@pytest.mark.parametrize('order', [None, 'activation', 'given'])
@pytest.mark.parametrize('width', [1, 2, 5, 64, 255, 257, 600])
def test_factor_equals_double_precision(width, order, damp_first):
    x = correlated(300, width)
    if width>4: x[:,[1,3]] = 0
    if order=='given': order = torch.randperm(width, generator=generator())
    factor = factorize(moments(x), order=order, damp_first=damp_first)
    damped = damp(moments(x), .01, damp_first)
    if factor.order is not None: damped = damped[factor.order][:,factor.order]
    assert relative(factor.upper, plain_factor(damped)) < 5e-5
    assert torch.equal(factor.upper, factor.upper.triu()) and factor.damping==.01
    assert torch.equal(factor.dead, x.square().sum(0)==0)

def test_activation_order_is_descending():
    x = correlated(100, 40)
    x[:,7] = 0
    first,last = (factorize(moments(x)*scale, order='activation').order for scale in (1e-3, 1e3)) # a dead input has a one on the diagonal
    assert (first[0],last[-1])==(7,7)
    loud = moments(x).diagonal()[first[1:]]
    assert (loud.diff()<=0).all() and torch.equal(first[1:], last[:-1])
    assert factorize(moments(x)*1e-3, order='activation', damp_first=True).order[0]!=7

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_hessian_of_another_type(dtype):
    h = moments(correlated(100, 16)).to(dtype)
    assert torch.equal(factorize(h).upper, factorize(h.float()).upper)
    assert factorize(h).upper.dtype==torch.float32

def test_hessian_stays_as_it_is():
    h = moments(correlated(50, 20)); h[3] = h[:,3] = 0
    before = h.clone()
    factorize(h, order='activation'), factorize(h, damp_first=True)
    assert torch.equal(h, before)

STRESS = {
    'few tokens': lambda: correlated(20, 300),
    'one token': lambda: correlated(1, 64),
    'duplicated features': lambda: correlated(500, 50).repeat(1, 4),
    'constant inputs': lambda: torch.cat([torch.ones(200, 30), correlated(200, 100)], 1),
    'all constant': lambda: torch.ones(100, 70),
    'dead inputs': lambda: correlated(200, 150)*(torch.arange(150)%3>0),
    'all dead': lambda: torch.zeros(100, 40),
    'one alive': lambda: correlated(100, 40)*(torch.arange(40)==5),
    'one loud': lambda: correlated(400, 160)*torch.where(torch.arange(160)==70, 1e4, 1),
    'one loud and few tokens': lambda: correlated(30, 160)*torch.where(torch.arange(160)==70, 1e4, 1),
    'far apart': lambda: correlated(400, 160)*torch.logspace(-4, 4, 160),
    'huge': lambda: correlated(100, 130)*1e15,
    'tiny': lambda: correlated(100, 130)*1e-15}

@pytest.mark.parametrize('damping', [0, 1e-8, .01, 1])
@pytest.mark.parametrize('kind', STRESS)
def test_stress_gives_no_nan(kind, damping):
    x = STRESS[kind]()
    w = torch.randn(24, x.shape[1], generator=generator(1))
    for options in (dict(), dict(damp_first=True), dict(order='activation')):
        factor = factorize(moments(x), damping, **options)
        assert damping<=factor.damping<=max(damping, .1)
        if damping>=.01: assert factor.damping==damping
        assert factor.upper.isfinite().all() and (factor.upper.diagonal()>0).all()
        for sparsity in (.5,) + ('2:4',)*(factor.order is None):
            new = sparsegpt(w, factor, sparsity)
            assert new.isfinite().all() and (new==0).float().mean()>=.499
            assert (new[:,factor.dead]==0).all()

@pytest.mark.parametrize('kind', STRESS)
@pytest.mark.parametrize('sparsity', [.3, .5, '2:4'])
def test_compensation_is_not_worse_than_the_mask_alone(kind, sparsity):
    x = STRESS[kind]().double()
    w = torch.randn(24, x.shape[1], generator=generator(1))
    new = sparsegpt(w, factorize(moments(x)), sparsity).double()
    error = lambda o: (x@(o-w).T).square().sum()
    assert error(new) <= 1.001*error(w.double().masked_fill(new==0, 0))

def test_singular_matrix_raises_damping_in_steps():
    h = moments(torch.ones(9, 40))
    assert [factorize(h, o).damping for o in (0, 1e-8, .01)]==[pytest.approx(o) for o in (1e-4, 1e-4, .01)]
    indefinite = torch.eye(20); indefinite[3,4] = indefinite[4,3] = 5
    assert factorize(indefinite).damping==pytest.approx(10)
    with pytest.raises(ValueError, match='`hessian` must be positive semidefinite.*at damping 0.1'): factorize(indefinite, steps=1)

def test_pivots_of_noise_count_as_failure():
    "Single precision can go through with a Cholesky factorization of a singular matrix; what comes out is rounding error"
    x = correlated(3000, 8, hidden=8)
    x = torch.cat([x, x+1e-5*torch.randn(3000, 8, generator=generator())], 1)
    factor = factorize(moments(x), 0)
    assert factor.damping>0
    assert relative(factor.upper, plain_factor(damp(moments(x), factor.damping))) < .05

@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_not_finite_is_refused(value):
    h = torch.eye(4); h[1,2] = value
    with pytest.raises(ValueError, match='`hessian` must be finite, got 1 NaN or infinite value of 16'): factorize(h)
    with pytest.raises(ValueError, match='`some` must be finite'): require_finite(other=torch.ones(3), some=h)

def test_large_but_finite_passes(): require_finite(x=torch.full((9,), 3e38), y=torch.full((9,), 6e4, dtype=torch.float16))

@pytest.mark.parametrize('shape', [(4,), (4,5), (2,4,4)])
def test_hessian_must_be_square(shape):
    with pytest.raises(ValueError, match='`hessian` must be a square matrix'): factorize(torch.ones(shape))

@pytest.mark.parametrize('damping', [-1, float('nan'), float('inf')])
def test_bad_damping(damping):
    with pytest.raises(ValueError, match='`damping` must be a finite number, 0 or more, got'): factorize(torch.eye(4), damping)

@pytest.mark.parametrize('order', ['loudest', torch.arange(3), torch.zeros(4, dtype=torch.int64), torch.arange(4.), torch.arange(4)[None], [0,1,2,3]])
def test_bad_order(order):
    with pytest.raises(ValueError, match="`order` must be None, 'activation' or a permutation of 4 columns"): factorize(torch.eye(4), order=order)

def rounding(values, place): return (values*2).round()/2
def halves(values, place): return values*(place%2)

@pytest.mark.parametrize('decide', [rounding, halves])
@pytest.mark.parametrize('width,block_size,every', [(1,128,None), (31,128,None), (128,128,None), (129,128,None), (300,128,None), (300,128,4), (300,128,16), (300,128,64),
                                                     (300,128,1), (100,1,None), (100,8,2), (300,32,None), (200,1000,None), (200,1000,250), (96,48,48), (200,96,48)])
def test_sweep_equals_plain_loop(width, block_size, every, decide):
    factor = factorize(moments(correlated(300, width)))
    w = torch.randn(9, width, generator=generator(2))
    ours,plain = {},{}
    new = sweep(w, factor, decide, begin=lambda place,o: ours.update({place:o.clone()}), every=every, block_size=block_size)
    old = plain_sweep(w, factor.upper.double(), decide, lambda place,o: plain.update({place:o.clone()}), every or block_size)
    wrong = (new.double()-old).abs()>1e-5*old.abs().max()
    assert wrong.float().mean()<(2e-3 if decide is rounding else 1e-12) # a weight between two levels may go either way
    if decide is rounding: return
    assert ours.keys()==plain.keys()
    for place,columns in ours.items():
        assert len(columns)==(width-place if every in (None, block_size) else min(every, width-place, block_size-place%block_size))
        assert relative(columns, plain[place][:len(columns)]) < 1e-5

def test_sweep_in_another_order():
    "Is the sweep of a layer whose columns stand in that order"
    h,w = moments(correlated(300, 150)),torch.randn(9, 150, generator=generator(2))
    h[40] = h[:,40] = 0
    factor = factorize(h, order='activation')
    o = factor.order
    assert torch.equal(sweep(w, factor, halves)[:,o], sweep(w[:,o], factorize(h[o][:,o]), halves))

def test_layers_of_one_input_can_be_swept_together():
    factor = factorize(moments(correlated(300, 150)))
    a,b = torch.randn(9, 150, generator=generator(2)),torch.randn(30, 150, generator=generator(3))
    assert torch.allclose(sweep(torch.cat([a,b]), factor, halves), torch.cat([sweep(a, factor, halves), sweep(b, factor, halves)]), atol=1e-5)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    factor,w = factorize(moments(correlated(100, 140))),torch.randn(9, 140, generator=generator()).to(dtype)
    new = sweep(w, factor, halves)
    assert new.dtype==torch.float32 and torch.equal(new, sweep(w.float(), factor, halves))

def test_weights_stay_as_they_are_and_may_be_views_or_parameters():
    factor,w = factorize(moments(correlated(100, 140))),torch.randn(140, 9, generator=generator()).T
    before,new = w.clone(),sweep(w, factor, halves)
    assert torch.equal(w, before) and torch.equal(new, sweep(w.contiguous(), factor, halves))
    parameter = torch.nn.Parameter(w.contiguous())
    assert not sweep(parameter, factor, halves).requires_grad and torch.equal(parameter, w)

def test_kept_columns_change_nothing():
    w = torch.randn(9, 140, generator=generator())
    for order in (None, 'activation'): assert torch.equal(sweep(w, factorize(moments(correlated(100, 140)), order=order), lambda values,place: values), w)

def test_price_is_the_damped_error():
    "The sum of e^2/U^2 over the columns is the error of the output under the damped Hessian"
    h,w = moments(correlated(300, 200)),torch.randn(9, 200, generator=generator(2))
    factor = factorize(h)
    price,d = torch.zeros(9),factor.upper.diagonal()
    def decide(values, place):
        price.add_((values-halves(values, place)).div(d[place]).square())
        return halves(values, place)
    change = (sweep(w, factor, decide)-w).double()
    assert relative(price, (change@damp(h, .01)*change).sum(1)) < 1e-3

def test_nothing_is_read_back_from_the_device():
    "Tensors without data refuse to be read, as a sweep on a device must not wait for it"
    n = 300
    factor = Factor(torch.empty(n, n, device='meta'), torch.empty(n, dtype=torch.bool, device='meta'), .01)
    for every in (None, 16): assert sweep(torch.empty(7, n, device='meta'), factor, lambda values,place: values*.5, begin=lambda place,o: None, every=every).shape==(7,n)

def test_factor_of_another_input_is_refused():
    with pytest.raises(ValueError, match='`factor` must have as many columns as `weight`, 5, got 6'): sweep(torch.ones(2,5), factorize(torch.eye(6)), halves)
    for every,block_size in ((3,128), (0,0), (256,128), (1,-1), (-4,128)):
        with pytest.raises(ValueError, match='`every` must divide `block_size`'): sweep(torch.ones(2,6), factorize(torch.eye(6)), halves, every=every, block_size=block_size)

def test_dead_inputs_of_the_original(shared):
    with safe_open(shared/'oracles'/'layers'/'syn_128x256_dead7.safetensors', 'pt') as o: assert factorize(o.get_tensor('H')).dead.sum()==7

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
def test_sweep_on_cuda_equals_cpu():
    h,w = moments(correlated(300, 200)),torch.randn(9, 200, generator=generator(2))
    new = sweep(w.cuda(), factorize(h.cuda()), halves)
    assert new.is_cuda and relative(new.cpu(), sweep(w, factorize(h), halves).double()) < 1e-4
