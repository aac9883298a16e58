"Statistics of layer inputs against hooks, in every family, whatever the batches and the padding"
import pytest, torch
from compresscal.compression.input_statistics import InputStatistics, collect, merge, pad_right
from compresscal.models.blocks import capture, decoder_blocks
from test_blocks import make

def rows(n=6, length=16): return torch.randint(3, 96, (n,length), generator=torch.Generator().manual_seed(1))

@pytest.mark.parametrize('family', ['llama','gpt2','opt','falcon_7b','gemma3'])
def test_equal_to_hooks(family):
    model = make(family)
    block = decoder_blocks(model)[0]
    seen = {}
    hooks = [block.module.get_submodule(o.name).register_forward_pre_hook(lambda m,args,n=o.name: seen.__setitem__(n, args[0].reshape(-1, args[0].shape[-1])))
             for o in block.linears]
    with torch.no_grad(): model(rows())
    for h in hooks: h.remove()
    found = collect(block, [capture(model, o) for o in rows().split(4)], moments=True)
    assert found.keys()==seen.keys()
    for name,x in seen.items():
        torch.testing.assert_close(found[name].norms, (x.double().square().sum(0)/6).sqrt().float(), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found[name].moments, x.T@x, rtol=1e-4, atol=1e-4)
        assert (found[name].tokens,found[name].sequences)==(96,6)

@pytest.mark.parametrize('family', ['gpt2','mixtral','opt','gemma2'])
def test_padding_and_batches_do_not_matter(family):
    model = make(family)
    block = decoder_blocks(model)[0]
    n = torch.tensor([16,5,9,16,1,12])
    mask = torch.arange(16)<n[:,None]
    alone = collect(block, [capture(model, r[None,:k]) for r,k in zip(rows(), n)], moments=True)
    together = collect(block, [capture(model, *pad_right(rows().flip(1), mask.flip(1)))]) # other text, same lengths
    padded = torch.zeros(6, 24, dtype=torch.long); left = torch.zeros(6, 24, dtype=torch.bool)
    for i,k in enumerate(n): padded[i,24-k:],left[i,24-k:] = rows()[i,:k],True
    for size in (6,2):
        other = collect(block, [capture(model, *pad_right(p, m)) for p,m in zip(padded.split(size), left.split(size))], moments=True)
        for name,s in alone.items():
            assert (s.tokens,s.sequences)==(other[name].tokens,other[name].sequences)
            torch.testing.assert_close(other[name].norms, s.norms, rtol=2e-4, atol=1e-6)
            torch.testing.assert_close(other[name].moments, s.moments, rtol=2e-3, atol=1e-4)
    assert any(not torch.allclose(together[k].norms, s.norms, rtol=1e-2) for k,s in alone.items())

def test_bfloat16_inputs_are_summed_in_single_precision():
    x = torch.ones(4096, 3).bfloat16()
    assert InputStatistics(3).add(x).squares.tolist()==[4096.]*3 # bfloat16 alone would stop at 256

def test_many_batches_lose_nothing():
    x = torch.full((100,1), .1)
    s = InputStatistics(1)
    for _ in range(10_000): s.add(x, 1)
    assert s.squares.item()==pytest.approx(10_000*100*float(torch.tensor(.1))**2, rel=1e-6)

def test_merge_is_symmetric_and_copies():
    a,b = (InputStatistics(4, moments=True).add(torch.randn(5, 4), 1) for _ in range(2))
    before = a.squares.clone()
    ab,ba = merge(a, b),merge(b, a)
    assert torch.equal(ab.squares, ba.squares) and torch.equal(ab.moments, ba.moments) and ab.sequences==2
    ab.add(torch.ones(1, 4))
    assert torch.equal(a.squares, before)
    with pytest.raises(ValueError, match='second moments, got 4 and none'): merge(a, InputStatistics(4))

def test_empty_batches_are_nothing():
    s = InputStatistics(4, moments=True).add(torch.empty(0, 4), 2)
    assert s.tokens==0 and s.sequences==2 and s.norms.eq(0).all() and s.moments.eq(0).all()

@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_not_finite_names_the_layer(value):
    x = torch.ones(5, 4); x[2,1] = value
    with pytest.raises(ValueError, match='input of mlp.down_proj has NaN or infinity in 1 of 4 features'): InputStatistics(4, name='mlp.down_proj').add(x)
    model = make('llama')
    with torch.no_grad(): model.model.layers[1].mlp.up_proj.weight.mul_(1e38)
    blocks = decoder_blocks(model)
    batch = capture(model, rows()).step(blocks[0])
    with pytest.raises(ValueError, match='model.layers.1.mlp.down_proj has NaN'): collect(blocks[1], [batch])

def test_wrong_shapes():
    with pytest.raises(ValueError, match='4 features as the input of the layer, got 5'): InputStatistics(4).add(torch.ones(2, 5))
    with pytest.raises(ValueError, match='`mask` must have the shape'): pad_right(torch.ones(2, 5), torch.ones(2, 4))
