"Words that are packed here code by code, from the published layouts, and what is made of them"
import numpy as np
import pytest, torch
from compresscal.models.packed_codes import GPTQ_BITS, awq_weight, dequantize_rows, gptq_weight, unpack_words

AWQ_PLACES = [0, 2, 4, 6, 1, 3, 5, 7] # output at each place of a word

def stream(codes, bits):
    "Words of a row of codes as one whole number, whose lowest bits are the first code"
    number = sum(int(code)<<bits*i for i,code in enumerate(codes))
    n = -(-len(codes)*bits//32)
    return np.array([number>>32*i & 0xFFFFFFFF for i in range(n)], dtype=np.uint32).view(np.int32)

def straddling(codes):
    "Words of 32 codes of three bits, as the reference implementation of GPTQ writes them"
    a, b, c = 0, 0, 0
    for i in range(10): a |= int(codes[i])<<3*i
    a |= (int(codes[10])&3)<<30
    b |= int(codes[10])>>2
    for i in range(10): b |= int(codes[11+i])<<3*i+1
    b |= (int(codes[21])&1)<<31
    c |= int(codes[21])>>1
    for i in range(10): c |= int(codes[22+i])<<3*i+2
    return np.array([a, b, c], dtype=np.uint32).view(np.int32)

def pack_gptq(codes, zeros, scales, bits, less_one=True, groups=None):
    "Parts of a layer from codes `[out, in]`, zeros and scales `[out, groups]`"
    stored = (zeros-1)%2**bits if less_one else zeros
    found = dict(qweight=torch.from_numpy(np.stack([stream(o, bits) for o in codes], 1)),
                 qzeros=torch.from_numpy(np.stack([stream(o, bits) for o in stored.T])), scales=torch.from_numpy(scales.T.copy()).half())
    return found if groups is None else found|dict(g_idx=torch.from_numpy(groups).int())

def pack_awq(codes, zeros, scales):
    def words(columns): # [out, n] -> [n, out/8]
        grouped = columns.T.reshape(columns.shape[1], -1, 8)[:, :, AWQ_PLACES]
        return torch.from_numpy(np.stack([[stream(o, 4)[0] for o in row] for row in grouped]))
    return dict(qweight=words(codes), qzeros=words(zeros), scales=torch.from_numpy(scales.T.copy()).half())

def layer(n_out, width, n_groups, bits, seed=0, least=1):
    "Codes, zeros and scales"
    draw = np.random.default_rng(seed)
    codes, zeros = draw.integers(0, 2**bits, (n_out, width)), draw.integers(least, 2**bits, (n_out, n_groups))
    return codes, zeros, (draw.uniform(.1, 1, (n_out, n_groups))/2**bits).astype(np.float16)

def meaning(codes, zeros, scales, groups):
    "The weights, rounded once"
    return torch.from_numpy(((codes-zeros[:, groups])*scales.astype(np.float64)[:, groups]).astype(np.float16))

@pytest.mark.parametrize('bits', range(1, 9))
def test_words_are_a_stream_of_bits(bits):
    codes = np.random.default_rng(bits).integers(0, 2**bits, (5, 64))
    words = torch.from_numpy(np.stack([stream(o, bits) for o in codes], 1))
    assert torch.equal(unpack_words(words, bits).T, torch.from_numpy(codes).byte())

def test_three_bits_lie_across_words_as_in_the_reference():
    codes = np.random.default_rng(0).integers(0, 8, 32)
    assert np.array_equal(straddling(codes), stream(codes, 3))
    assert unpack_words(torch.from_numpy(straddling(codes)[:, None]), 3).flatten().tolist()==codes.tolist()

@pytest.mark.parametrize('words', [torch.zeros(3, 2), torch.zeros(3, dtype=torch.int32), torch.zeros(4, 2, dtype=torch.int64)])
def test_what_cannot_be_words(words):
    with pytest.raises(ValueError, match='`words` must be int32'): unpack_words(words, 3)

@pytest.mark.parametrize('less_one', [True, False], ids=['gptq', 'gptq_v2'])
@pytest.mark.parametrize('n_groups', [1, 4])
@pytest.mark.parametrize('bits', GPTQ_BITS)
def test_gptq(bits, n_groups, less_one):
    codes, zeros, scales = layer(32, 64, n_groups, bits, least=int(less_one))
    groups = np.arange(64)//(64//n_groups)
    for kept in (None, groups):
        parts = pack_gptq(codes, zeros, scales, bits, less_one, kept)
        assert torch.equal(gptq_weight(parts, bits, less_one), meaning(codes, zeros, scales, groups))

@pytest.mark.parametrize('bits', GPTQ_BITS)
def test_gptq_with_symmetric_codes(bits):
    codes, _, scales = layer(32, 32, 2, bits)
    zeros = np.full((32, 2), 2**(bits-1))
    assert torch.equal(gptq_weight(pack_gptq(codes, zeros, scales, bits), bits), meaning(codes, zeros, scales, np.arange(32)//16))

@pytest.mark.parametrize('bits', GPTQ_BITS)
def test_gptq_in_the_order_of_activations(bits):
    "Groups are not neighbours (`desc_act`)"
    codes, zeros, scales = layer(32, 64, 4, bits)
    groups = np.random.default_rng(1).permutation(np.arange(64)//16)
    assert torch.equal(gptq_weight(pack_gptq(codes, zeros, scales, bits, groups=groups), bits), meaning(codes, zeros, scales, groups))

@pytest.mark.parametrize('bits', [2, 4, 8])
def test_a_zero_that_borrows_from_its_neighbour(bits):
    "gptqmodel takes one from each code of a word by taking a word of ones from it; a zero of 0 then borrows"
    codes, zeros, scales = layer(32, 32, 2, bits, least=0)
    zeros[::3] = 0
    parts = pack_gptq(codes, zeros, scales, bits, less_one=False)
    ones = np.array(sum(1<<bits*i for i in range(32//bits)), dtype=np.uint32)
    parts['qzeros'] = torch.from_numpy((parts['qzeros'].numpy().view(np.uint32)-ones).view(np.int32))
    assert torch.equal(gptq_weight(parts, bits), meaning(codes, zeros, scales, np.arange(32)//16))

def test_gptq_with_outputs_that_do_not_fill_words():
    codes, zeros, scales = layer(20, 32, 2, 3)
    assert torch.equal(gptq_weight(pack_gptq(codes, zeros, scales, 3), 3), meaning(codes, zeros, scales, np.arange(32)//16))

@pytest.mark.parametrize('n_groups', [1, 2, 4])
def test_awq(n_groups):
    codes, zeros, scales = layer(24, 64, n_groups, 4, least=0)
    assert torch.equal(awq_weight(pack_awq(codes, zeros, scales)), meaning(codes, zeros, scales, np.arange(64)//(64//n_groups)))

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_products_are_rounded_once(dtype):
    codes, scales = torch.arange(256).view(2, 128), torch.rand(2, 1).to(dtype)
    exact = (codes-7).double()*scales.double()
    found = dequantize_rows(codes, torch.full((2, 1), 7), scales, torch.zeros(128, dtype=torch.long))
    assert found.dtype==dtype and torch.equal(found, exact.to(dtype))

def test_gptqmodel_packs_the_same():
    "Its own packing, where it is installed"
    torch_linear = pytest.importorskip('gptqmodel.nn_modules.qlinear.torch').TorchLinear
    for bits in GPTQ_BITS:
        codes, zeros, scales = layer(64, 64, 2, bits)
        groups = np.arange(64)//32
        linear = torch.nn.Linear(64, 64, bias=False)
        linear.weight.data = meaning(codes, zeros, scales, groups).float()
        made = torch_linear(bits=bits, group_size=32, sym=False, desc_act=False, in_features=64, out_features=64)
        made.pack_original(linear, torch.from_numpy(scales).float(), torch.from_numpy(zeros).float(), torch.from_numpy(groups).int())
        ours = pack_gptq(codes, zeros, scales, bits, less_one=False, groups=groups)
        assert all(torch.equal(getattr(made, k), ours[k]) for k in ours)
        made.post_init()
        assert torch.equal(gptq_weight(ours, bits, less_one=False), made.eval().dequantize_weight().T)

def test_gptqmodel_packs_awq_the_same():
    pack = pytest.importorskip('gptqmodel.nn_modules.qlinear.gemm_awq')._pack_awq_columns
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
    codes, zeros, scales = layer(24, 64, 2, 4, least=0)
    ours = pack_awq(codes, zeros, scales)
    assert torch.equal(pack(torch.from_numpy(codes.T).int().contiguous(), 4), ours['qweight'])
    assert torch.equal(awq_weight(ours), dequantize_gemm(ours['qweight'], ours['qzeros'], ours['scales'], 4, 32).T)
