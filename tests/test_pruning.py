"Pruning against the original implementations, and its properties under ties, dead columns and bad input"
import pytest, torch
from safetensors.torch import load_file
from compresscal.pruning import magnitude_scores, mask_matrix, mask_n_m, mask_rows, parse_sparsity, wanda_scores

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
                 lambda: mask_rows(bad, .5), lambda: mask_matrix(bad, .5), lambda: mask_n_m(bad, 2, 4)):
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
