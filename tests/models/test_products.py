"Products by oneDNN: equal to PyTorch's up to rounding, and the same bits wherever oneDNN does not form them"
import pytest, torch
from torch import nn
from torch.nn.functional import linear
import compresscal.models.products as products
from compresscal.compression.compress import compress
from compresscal.compression.methods import Wanda
from compresscal.models.blocks import decoder_blocks,capture,watch_inputs
from compresscal.models.loading import load_model
from compresscal.models.products import FastProducts,product

def numbers(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

@pytest.mark.parametrize('rows,inner,out', [((1,),1,1), ((7,),33,5), ((2,9),64,192), ((3,1,4),576,100), ((300,),1536,576)])
def test_product_is_that_of_linear(rows, inner, out):
    x,w,bias = numbers(*rows, inner),numbers(out, inner, seed=1),numbers(out, seed=2)
    for b in (None,bias):
        truth = linear(x.double(), w.double(), None if b is None else b.double())
        got = product(x, w, b)
        assert got.shape==truth.shape and got.dtype==torch.float32
        assert (got-truth).abs().max()<=1e-5*max(1, inner**.5)

def test_product_of_views():
    x,w = numbers(40, 64),numbers(40, 96, seed=1)
    assert torch.equal(product(x.T, w.T), product(x.T.contiguous(), w.T.contiguous()))
    assert torch.equal(product(x[:,8:40], x[:,8:40]), product(x[:,8:40].contiguous(), x[:,8:40].contiguous()))
    assert torch.allclose(product(x.T, w.T), x.T@w, atol=1e-4)

def test_elsewhere_the_same_bits():
    x,w = numbers(20, 48),numbers(30, 48, seed=1)
    for kind in (torch.float64,torch.bfloat16,torch.float16): assert torch.equal(product(x.to(kind), w.to(kind)), linear(x.to(kind), w.to(kind)))
    assert torch.equal(product(x[0], w), linear(x[0], w)) and torch.equal(product(x, w[0]), linear(x, w[0]))
    assert product(x[:0], w).shape==(0,30)

def test_gradients_flow():
    x,w = numbers(20, 48),numbers(30, 48, seed=1).requires_grad_()
    product(x, w).sum().backward()
    assert torch.allclose(w.grad, x.sum(0).expand(30, 48), atol=1e-4)
    with torch.no_grad(): assert not product(x, w).requires_grad

def test_layers_of_a_model(monkeypatch):
    layer,x,seen = nn.Linear(48, 30).requires_grad_(False),numbers(20, 48),[]
    def counted(*args): seen.append(args); return product(*args)
    monkeypatch.setattr(products, 'product', counted)
    plain = layer(x)
    assert not seen
    with FastProducts(): fast = layer(x)
    assert len(seen)==1 and torch.allclose(fast, plain, atol=1e-5)
    assert torch.equal(layer(x), plain) and len(seen)==1

def test_inputs_are_watched_within():
    model,_ = load_model()
    tokens,block = torch.arange(5, 37).view(2, 16),decoder_blocks(model)[0]
    batch,found = capture(model, tokens),[]
    for context in (FastProducts, torch.no_grad):
        with context(), watch_inputs(block, lambda names,x,rows: found.append((names, x.clone()))): batch.run(block)
    half = len(found)//2
    assert half==len(block.groups)
    for (a,x),(b,y) in zip(found[:half], found[half:]): assert a==b and torch.allclose(x, y, rtol=1e-3, atol=1e-4)

@pytest.mark.parametrize('dtype,used', [(None,True), ('float32',True), ('bfloat16',False)])
def test_compress_takes_them_in_single_precision(monkeypatch, dtype, used):
    seen = []
    def counted(*args): seen.append(args); return product(*args)
    monkeypatch.setattr(products, 'product', counted)
    model,_ = load_model()
    last = len(decoder_blocks(model))-1
    compress(model, Wanda(.5), torch.arange(5, 37).view(2, 16), skip=[f'model.layers.{i}.*' for i in range(1, last+1)], forward_dtype=dtype, progress=False)
    assert bool(seen)==used
