"Pruning against the original implementations, and its properties under ties, dead columns and bad input"
import pytest, torch
from safetensors import safe_open
from safetensors.torch import load_file
from compresscal.compression.compensation import factorize
from compresscal.compression.pruning import magnitude_scores, mask_matrix, mask_n_m, mask_rows, parse_sparsity, sparsegpt, wanda_scores

LAYERS = ['real_L0_self_attn_q_proj','real_L4_mlp_down_proj','syn_128x256_dead7','syn_128x256_ties','syn_256x256','syn_96x320_ragged']
RULES = {
    'wanda50': lambda w,norms: mask_rows(wanda_scores(w, norms), .5),
    'wanda24': lambda w,norms: mask_n_m(wanda_scores(w, norms), 2, 4),
    'wanda48': lambda w,norms: mask_n_m(wanda_scores(w, norms), 4, 8, ragged=True),
    'magnitude50': lambda w,norms: mask_matrix(magnitude_scores(w), .5),
    'magnitude24': lambda w,norms: mask_n_m(magnitude_scores(w), 2, 4)}

def coarse(rows, columns, levels=5, seed=0):
    "Scores with many ties"
    return torch.randint(0, levels, (rows,columns), generator=torch.Generator().manual_seed(seed)).float()

@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize('layer', LAYERS)
def test_layer_equals_original(shared, layer, rule):
    o = load_file(shared/'oracles'/'layers'/f'{layer}.safetensors')
    got = o['W'].masked_fill(RULES[rule](o['W'], o['scaler_row'].sqrt()), 0)
    if 'ties' in layer: assert (got==0).sum()==(o[rule]==0).sum() # which of two equals goes is not defined
    else: assert torch.equal(got, o[rule])

@pytest.mark.parametrize('layer', LAYERS)
def test_norms_from_inputs_equal_original(shared, layer):
    o = load_file(shared/'oracles'/'layers'/f'{layer}.safetensors')
    got = o['W'].masked_fill(mask_rows(wanda_scores(o['W'], o['X'].double().square().sum(0).sqrt()), .5), 0)
    if 'ties' in layer: assert (got==0).sum()==(o['wanda50']==0).sum()
    else: assert torch.equal(got, o['wanda50']) # the scale of the norms does not matter

SPARSEGPT = dict(sparsegpt50=(.5,128), sparsegpt24=('2:4',128), sparsegpt70_bs64=(.7,64))

@pytest.mark.parametrize('rule', SPARSEGPT)
@pytest.mark.parametrize('own', [False, True])
@pytest.mark.parametrize('layer', LAYERS)
def test_sparsegpt_equals_original(shared, layer, own, rule):
    "With the Hessian of the original, and with our own of the same inputs"
    with safe_open(shared/'oracles'/'layers'/f'{layer}.safetensors', 'pt') as o:
        w,x,hessian,expected = (o.get_tensor(k) for k in ('W','X','H',rule))
        if own: hessian = x.T@x*(2/int(o.metadata()['S']))
    sparsity,block_size = SPARSEGPT[rule]
    new = sparsegpt(w, factorize(hessian), sparsity, block_size=block_size)
    if 'ties' in layer: assert (new==0).sum()==(expected==0).sum()
    else: assert torch.equal(new==0, expected==0) and (new-expected).norm()<=5e-6*expected.norm()

def plain_sparsegpt(weight, upper, sparsity, block_size):
    "The algorithm as it is written down: blocks of columns, a sort, and each column written to all after it"
    w = weight.clone()
    for start in range(0, w.shape[1], block_size):
        block,u,errors = w[:,start:start+block_size],upper[start:start+block_size,start:start+block_size],[]
        gone = torch.zeros_like(block, dtype=torch.bool)
        score = lambda a,b: block[:,a:b].square()/u.diagonal()[a:b].square()
        if not isinstance(sparsity, str): gone = (s := score(0, block_size))<=s.flatten().sort()[0][int(s.numel()*sparsity)]
        for j in range(block.shape[1]):
            if isinstance(sparsity, str):
                n,m = (int(o) for o in sparsity.split(':'))
                if j%m==0: gone[:,j:j+m] = mask_n_m(score(j, j+m), n, m, ragged=True)
            errors.append(block[:,j]*gone[:,j]/u[j,j])
            block[:,j+1:] -= errors[-1][:,None]*u[j,j+1:]
            block[gone[:,j],j] = 0
        w[:,start+block_size:] -= torch.stack(errors, 1)@upper[start:start+block_size,start+block_size:]
    return w

def mixtures(rows, columns, seed=0):
    "Inputs that move together"
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns//3, generator=g)@torch.randn(columns//3, columns, generator=g)+torch.randn(rows, columns, generator=g)

@pytest.mark.parametrize('out,columns', [(64,384), (50,500), (300,200)])
@pytest.mark.parametrize('sparsity,block_size', [(.5,128), (.1,32), (.9,100), ('2:4',128), ('1:8',64), ('7:16',128), ('5:10',60), ('3:4',4)])
def test_sparsegpt_equals_plain_version(out, columns, sparsity, block_size):
    x,w = mixtures(600, columns),torch.randn(out, columns, generator=torch.Generator().manual_seed(1))
    factor = factorize(x.T@x)
    new,old = sparsegpt(w, factor, sparsity, block_size=block_size),plain_sparsegpt(w, factor.upper, sparsity, block_size)
    assert ((new==0)!=(old==0)).float().mean()<=1e-4
    if torch.equal(new==0, old==0): assert (new-old).norm()<=5e-6*old.norm()

@pytest.mark.parametrize('n,m', [(2,4),(1,2),(3,7),(5,100),(1,300)])
@pytest.mark.parametrize('columns', [300,301,302,128,7])
@pytest.mark.parametrize('block_size', [128,1])
def test_sparsegpt_pattern_holds_along_the_row(n, m, columns, block_size):
    x,w = mixtures(100, columns),torch.randn(9, columns, generator=torch.Generator().manual_seed(1))
    gone = sparsegpt(w, factorize(x.T@x), f'{n}:{m}', block_size=block_size)==0
    for group in gone.split(m, dim=1): assert (group.sum(1)==min(n, group.shape[1])).all()

@pytest.mark.parametrize('sparsity', [.001,.25,.5,.99])
@pytest.mark.parametrize('levels', [1,3,10**6])
def test_sparsegpt_exact_fraction_under_ties(levels, sparsity):
    w = coarse(20, 200, levels)+1
    counts = [int((sparsegpt(w, factorize(torch.eye(200)), sparsity, exact=o)==0).sum()) for o in (True, False)]
    assert counts[0]==int(20*128*sparsity)+int(20*72*sparsity)<counts[1]

def test_sparsegpt_dead_columns_go_first():
    x,w = mixtures(300, 200),torch.randn(30, 200)
    x[:,50:80] = 0
    for sparsity in (.2, '2:4'):
        new = sparsegpt(w, factorize(x.T@x), sparsity)
        assert (new[:,50:80]==0).all()
    assert (sparsegpt(w, factorize(x.T@x), .2)==0)[:,:128].sum()==30*30 # they are more than a fifth, and tie

def test_sparsegpt_joint_mode_compensates_rounding():
    x,w = mixtures(600, 300),torch.randn(40, 300, generator=torch.Generator().manual_seed(1))
    def coarser(values, column=None): return (values*2).round()/2
    for order in (None, 'activation'):
        factor,seen = factorize(x.T@x, order=order),[]
        def round(values, column): seen.append(column); return coarser(values)
        joint,after = sparsegpt(w, factor, .5, round=round),coarser(sparsegpt(w, factor, .5))
        assert seen==(list(range(300)) if order is None else factor.order.tolist())
        assert torch.equal(joint, coarser(joint)) and (joint==0).float().mean()>=.5
        assert ((joint-w)@x.T).square().sum()<.8*((after-w)@x.T).square().sum()
    assert (sparsegpt(w, factorize(x.T@x), '2:4', round=lambda values,column: torch.full_like(values, 3))==0).view(-1,4).sum(1).eq(2).all()

def test_sparsegpt_zero_has_no_sign():
    new = sparsegpt(-torch.rand(20, 140), factorize(torch.eye(140)), .5)
    assert not new[new==0].signbit().any()

@pytest.mark.parametrize('block_size', [0, -1, 1.5, True, None])
def test_sparsegpt_bad_block_size(block_size):
    with pytest.raises(ValueError, match='`block_size` must be'): sparsegpt(torch.ones(4,8), factorize(torch.eye(8)), .5, block_size=block_size)

@pytest.mark.parametrize('sparsity', [.01,.1,.29,.5,.7,.99])
@pytest.mark.parametrize('scores', [coarse(16,100), coarse(7,33,levels=1), coarse(5,64,levels=10**6)])
def test_rows_equal_stable_sort(scores, sparsity):
    k = int(scores.shape[1]*sparsity)
    first = scores.sort(dim=1, stable=True)[1][:,:k]
    assert torch.equal(mask_rows(scores, sparsity), torch.zeros_like(scores, dtype=torch.bool).scatter_(1, first, True))

@pytest.mark.parametrize('sparsity', [.01,.5,.99])
@pytest.mark.parametrize('levels', [1,5,10**6])
def test_matrix_equals_sorted_threshold(levels, sparsity):
    scores = coarse(16, 100, levels)
    k,flat = int(scores.numel()*sparsity),scores.flatten().sort()[0]
    assert torch.equal(mask_matrix(scores, sparsity), scores<=flat[k])
    assert mask_matrix(scores, sparsity, exact=True).sum()==k

@pytest.mark.parametrize('n,m', [(1,2),(2,4),(4,8),(1,4),(3,4),(3,5),(7,20),(8,16),(5,100)])
def test_n_m_any_pattern(n, m):
    scores = coarse(8, 100*m, levels=10**6)
    mask = mask_n_m(scores, n, m)
    assert (mask.view(-1,m).sum(1)==n).all()
    for s,k in zip(scores.view(-1,m)[:50], mask.view(-1,m)[:50]): assert s[k].max()<=s[~k].min()
    assert (mask_n_m(coarse(8,100*m), n, m).view(-1,m).sum(1)==n).all() # ties change which, never how many

def test_n_m_of_a_transposed_view():
    "Conv1D weights arrive as views that are not contiguous"
    scores = coarse(64, 8, levels=10**6)
    assert torch.equal(mask_n_m(scores.T, 2, 4), mask_n_m(scores.T.contiguous(), 2, 4))
    assert torch.equal(mask_matrix(scores.T, .5), mask_matrix(scores, .5).T)

def test_dead_columns_go_first():
    w,norms = torch.randn(16, 40),torch.rand(40)+.1
    norms[[3,17,18]] = 0
    assert mask_rows(wanda_scores(w, norms), .1)[:,[3,17,18]].all()
    assert torch.equal(mask_rows(wanda_scores(w, torch.zeros(40)), .5), torch.arange(40).expand(16,40)<20)

def test_half_precision_ranks_like_its_single_precision_values():
    w,norms = torch.randn(32, 64).bfloat16(),torch.rand(64)
    assert torch.equal(wanda_scores(w, norms), wanda_scores(w.float(), norms))

@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_not_finite_is_refused(value):
    w = torch.randn(4, 8); bad = w.clone(); bad[2,3] = value
    for call in (lambda: magnitude_scores(bad), lambda: wanda_scores(bad, torch.ones(8)), lambda: wanda_scores(w, bad[2]),
                 lambda: mask_rows(bad, .5), lambda: mask_matrix(bad, .5), lambda: mask_n_m(bad, 2, 4), lambda: sparsegpt(bad, factorize(torch.eye(8)), .5)):
        with pytest.raises(ValueError, match='must be finite, got 1 NaN or infinite value'): call()

def test_large_but_finite_passes():
    assert mask_rows(magnitude_scores(torch.full((2,8), 3e38)), .5).sum()==8

@pytest.mark.parametrize('sparsity', [0, 1, -.5, 1.5, 50, float('nan'), float('inf'), '0:4', '4:4', '5:4', '2', '', ':', 'half', '2:4:8', '-2:4', '2.0:4'])
def test_bad_sparsity(sparsity):
    with pytest.raises(ValueError, match='`sparsity`.*got'): parse_sparsity(sparsity)

@pytest.mark.parametrize('sparsity', [None, True, (2,4), torch.tensor(.5)])
def test_wrong_type_of_sparsity(sparsity):
    with pytest.raises(TypeError, match='`sparsity`.*got'): parse_sparsity(sparsity)

@pytest.mark.parametrize('mask', [mask_rows, mask_matrix])
def test_fraction_rules_refuse_patterns(mask):
    with pytest.raises(TypeError, match='`mask_n_m`'): mask(torch.ones(4,8), '2:4')

@pytest.mark.parametrize('n,m', [(0,4),(4,4),(5,4),(-1,4)])
def test_n_m_refuses_impossible_patterns(n, m):
    with pytest.raises(ValueError, match=f'n={n}, m={m}'): mask_n_m(torch.ones(4,8), n, m)

def test_n_m_must_divide():
    with pytest.raises(ValueError, match='`m` must divide the number of input features, got 8 for 172'): mask_n_m(torch.ones(4,172), 4, 8)
