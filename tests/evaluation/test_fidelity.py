"Divergence, agreement and flips against plain computations, for every family, from states and from two models"
import copy, math
import pytest, torch
import torch.nn.functional as F
from compresscal.calibration.calibration_set import CalibrationSet
from compresscal.calibration.sampling import mix
from compresscal.compression.compress import compress
from compresscal.compression.methods import GPTQ, Wanda
from compresscal.evaluation.perplexity import perplexity
from compresscal.evaluation.fidelity import Reference, divergence, fidelity, has_written_text, head_hash, remember
from test_perplexity import make, rows
from test_blocks import families

pytestmark = pytest.mark.usefixtures('one_thread')

def disturb(model, amount=.05):
    "A copy whose blocks are others; embeddings and head stay"
    from compresscal.models.structure import find_blocks
    model,generator = copy.deepcopy(model),torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in find_blocks(model)[1].parameters(): p += (amount*torch.randn(p.shape, generator=generator)).to(p.dtype)
    return model

@torch.no_grad()
def plain(dense, compressed, windows):
    "Sums for each window, in double precision from whole logits, by `kl_div`"
    found = []
    for w in windows:
        p,q = (m(input_ids=w[None]).logits[0,:-1].double().log_softmax(-1) for m in (dense, compressed))
        a,b,right = p.argmax(-1),q.argmax(-1),w[1:]
        found.append((F.kl_div(q, p, log_target=True, reduction='sum').item(), (a==b).sum().item(), ((a==right)&(b!=right)).sum().item(), ((a!=right)&(b==right)).sum().item()))
    return list(zip(*found))

def agrees(f, expected, rel=1e-4, off=0):
    kl,*counts = expected
    assert f.window_kl==pytest.approx(kl, rel=rel, abs=1e-5)
    for found,e in zip((f.window_agree, f.window_lost, f.window_gained), counts): assert sum(abs(x-y) for x,y in zip(found, e))<=off

QUICK = ('llama_tied','gemma2','opt_350m','gpt2','mixtral') # differ in what stands after the decoder, and in what it returns

@pytest.mark.parametrize('family', [o if o in QUICK else pytest.param(o, marks=pytest.mark.slow) for o in families])
def test_equals_a_plain_computation(family):
    "Tied heads, soft caps, scaled logits, projections after the decoder; itself is zero exactly"
    dense,tokens = make(families[family]),rows()
    other = disturb(dense)
    expected = plain(dense, other, tokens)
    assert sum(expected[0])>.001
    reference = remember(dense, tokens, batch_size=2)
    agrees(fidelity(reference, other), expected)
    agrees(fidelity(dense, other, tokens, batch_size=3), expected)
    itself = fidelity(reference, dense)
    assert (itself.kl,itself.agreement,itself.flips)==(0,1,0)

@pytest.mark.parametrize('method', [Wanda(.5), GPTQ(4, 10, block_size=20)])
@pytest.mark.parametrize('family', ['llama_tied','gemma2','gpt2'])
def test_one_model_compressed_in_place(family, method):
    "What is remembered does not change with the model"
    model,tokens = make(families[family]),rows()
    dense,reference = copy.deepcopy(model),remember(model, tokens)
    compress(model, method, rows(seed=3), progress=False)
    found = fidelity(reference, model)
    agrees(found, plain(dense, model, tokens))
    assert found==fidelity(dense, model, tokens) and found.kl>0

@pytest.mark.parametrize('side', ['left','right'])
def test_padding_is_not_scored(side):
    dense,tokens = make(families['llama']),rows()
    other,n,place = disturb(dense),torch.tensor([24,3,20,11,2]),torch.arange(24)
    mask = place<n[:,None] if side=='right' else place>=24-n[:,None]
    calibration = CalibrationSet.from_tokens(tokens.masked_fill(~mask, 0), mask)
    expected = plain(dense, other, [t[m] for t,m in zip(tokens, mask)])
    agrees(fidelity(remember(dense, calibration), other), expected)
    found = fidelity(dense, other, calibration, batch_size=2)
    agrees(found, expected)
    assert found.window_tokens==tuple((n-1).tolist())

@pytest.mark.parametrize('kw', [dict(), dict(length=12, stride=4), dict(bos=False, length=9), dict(length=16, protocol='gptq')])
def test_windows_are_those_of_perplexity(tiny_model, tiny_tokenizer, kw):
    texts = ["A short one.", "naïve "*12, "some more words to read, and more"]
    other = disturb(tiny_model)
    p,f = perplexity(tiny_model, texts, tiny_tokenizer, **kw),fidelity(remember(tiny_model, texts, tiny_tokenizer, **kw), other)
    assert (f.window_tokens,f.length)==(p.window_tokens,p.length)
    assert f==fidelity(tiny_model, other, texts, tiny_tokenizer, **kw)

def test_batches_change_rounding_only(tiny_model):
    tokens,other = rows(7, 30, 259),disturb(tiny_model)
    one = fidelity(tiny_model, other, tokens, batch_size=1)
    for batch_size in (2,7,50):
        found = fidelity(tiny_model, other, tokens, batch_size=batch_size)
        agrees(found, (one.window_kl, one.window_agree, one.window_lost, one.window_gained), off=1)
        agrees(fidelity(remember(tiny_model, tokens, batch_size=batch_size), other), (found.window_kl, found.window_agree, found.window_lost, found.window_gained))

def test_logits_are_made_in_pieces(tiny_model, monkeypatch):
    "No more than a few positions go through the head at a time, and none more often than needed"
    tokens,other = rows(5, 24, 259),disturb(tiny_model)
    whole,sizes = fidelity(tiny_model, other, tokens),[]
    monkeypatch.setattr('compresscal.evaluation.fidelity.positions_at_once', lambda model: 28)
    reference = remember(tiny_model, tokens)
    hooks = [m.lm_head.register_forward_hook(lambda m,args,out: sizes.append(out.shape[-2])) for m in (tiny_model, other)]
    pieces = fidelity(tiny_model, other, tokens)
    assert max(sizes)==7 and sum(sizes)==2*5*23
    sizes.clear()
    fidelity(reference, other)
    assert max(sizes)==7 and sum(sizes)==2*5*23
    for o in hooks: o.remove()
    agrees(pieces, (whole.window_kl, whole.window_agree, whole.window_lost, whole.window_gained))
    assert remember(tiny_model, tokens).nbytes==5*23*32*4

@pytest.mark.parametrize('dtype', [torch.bfloat16,torch.float16])
def test_half_precision_models(dtype):
    dense,tokens = make(families['llama']).to(dtype),rows()
    other,reference = disturb(dense),remember(dense, tokens)
    assert reference.states[0].dtype==dtype
    found = fidelity(reference, other)
    agrees(found, plain(dense, other, tokens), rel=.05, off=3)
    assert fidelity(reference, dense).kl==0 and found==fidelity(dense, other, tokens)

def test_single_precision_models_beside_half(tiny_model):
    "Two models of different precision; the divergence is that of rounding"
    f = fidelity(tiny_model, copy.deepcopy(tiny_model).bfloat16(), rows(vocabulary=259))
    assert 0<f.kl<1e-3

def test_divergence_of_extremes():
    ruled_out = torch.tensor([[1.,2.,-torch.inf]])
    assert divergence(ruled_out, ruled_out).item()==0
    assert divergence(torch.zeros(1, 3), ruled_out).item()==math.inf
    assert divergence(ruled_out, torch.zeros(1, 3)).item()==pytest.approx(math.log(3)-F.softmax(torch.tensor([1.,2.]), 0).mul(-F.log_softmax(torch.tensor([1.,2.]), 0)).sum().item())
    assert divergence(torch.tensor([[1.,math.nan]]), torch.zeros(1, 2)).isnan().all()
    sure = torch.tensor([[1e4,0.,0.]])
    assert divergence(sure, sure.flip(1)).item()==pytest.approx(1e4)
    with pytest.raises(ValueError, match="the shape of `dense`, .1, 3., got .1, 2."): divergence(sure, sure[:,:2])
    generator = torch.Generator().manual_seed(0)
    p,q = (3*torch.randn(200, 1000, generator=generator) for _ in range(2))
    exact = F.kl_div(q.double().log_softmax(-1), p.double().log_softmax(-1), log_target=True, reduction='none').sum(-1)
    torch.testing.assert_close(divergence(p, q), exact, rtol=1e-6, atol=2e-6)

# heads

@pytest.mark.parametrize('family', ['llama','llama_tied','gpt2','opt'])
def test_another_head_is_refused_with_a_reference_only(family):
    dense,tokens = make(families[family]),rows()
    other = copy.deepcopy(dense)
    with torch.no_grad(): other.get_output_embeddings().weight[3,2] += .5
    with pytest.raises(ValueError, match="must have the head of the dense model.*give both models"): fidelity(remember(dense, tokens), other)
    agrees(fidelity(dense, other, tokens), plain(dense, other, tokens))

def test_head_hash_sees_the_head_only():
    a = make(families['llama'])
    assert head_hash(a)==head_hash(disturb(a)) and head_hash(a)!=head_hash(make(families['mistral'])) # equal weights, another class
    assert len({head_hash(make(families[o])) for o in ('llama','llama_tied','gpt2','opt')})==4

def test_another_vocabulary_is_refused(tiny_model):
    config = copy.deepcopy(tiny_model.config)
    config.vocab_size = 200
    with pytest.raises(ValueError, match="vocabulary of 259, got 200"): fidelity(tiny_model, make(config), rows(vocabulary=200))

# what is said and refused

def test_model_written_text_is_labelled(tiny_model, tiny_tokenizer):
    from compresscal.calibration.self_text import random_vocabulary, self_calibrate
    written = self_calibrate(tiny_model, tiny_tokenizer, 4, 12, progress=False)
    drawn, = random_vocabulary(tiny_tokenizer, 1, 4, 12)
    human = CalibrationSet.from_tokens(rows(4, 12, 259), name='mine')
    mixed = mix({written: .5, human: .5}, 4, 0)
    assert [has_written_text(o.manifest) for o in (written, written[:2], mixed, human, drawn)]==[True,True,True,False,False]
    for source,said in ((written, True), (mixed, True), (human, False)):
        f = fidelity(remember(tiny_model, source), disturb(tiny_model))
        assert f.written==said and ('model-written' in repr(f))==said and ('model-written' in f._repr_markdown_())==said

def test_views(tiny_model):
    f = fidelity(tiny_model, disturb(tiny_model, .3), rows(vocabulary=259))
    t = f.to_pandas()
    assert list(t)==['kl','agree','lost','gained','tokens'] and t.kl.sum()==pytest.approx(f.kl*f.tokens) and len(t)==5
    assert f.flips==pytest.approx(f.lost+f.gained) and 0<f.agreement<1
    assert 'states of width 32' in repr(remember(tiny_model, rows(vocabulary=259)))

def test_refusals(tiny_model, tiny_tokenizer):
    tokens = rows(vocabulary=259)
    reference = remember(tiny_model, tokens)
    for kw in (dict(source=tokens), dict(length=4)):
        with pytest.raises(ValueError, match="must not be given with a Reference"): fidelity(reference, tiny_model, **kw)
    with pytest.raises(ValueError, match="`source` must be given with a dense model"): fidelity(tiny_model, tiny_model)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"): remember(tiny_model, tokens, batch_size=0)
    with pytest.raises(ValueError, match="`tokenizer` must be given"): remember(tiny_model, ["text"])
    with pytest.raises(ValueError, match="nothing to score"): fidelity(tiny_model, tiny_model, [""], tiny_tokenizer)
    broken = copy.deepcopy(tiny_model)
    with torch.no_grad(): broken.model.layers[1].mlp.down_proj.weight[0,0] = float('nan')
    with pytest.raises(ValueError, match="finite logits, got NaN"): fidelity(reference, broken)
    assert isinstance(reference, Reference) and not any(p.grad is not None for p in tiny_model.parameters())

def test_training_mode_is_kept_and_unseen(tiny_model):
    tokens,other = rows(vocabulary=259),disturb(tiny_model)
    expected = fidelity(tiny_model, other, tokens)
    for m in (tiny_model, other):
        for o in m.model.layers: o.self_attn.attention_dropout = .9
        m.train()
    assert fidelity(tiny_model, other, tokens)==expected and tiny_model.training and other.training

def test_states_may_lie_elsewhere(tiny_model):
    tokens,other = rows(vocabulary=259),disturb(tiny_model)
    reference = remember(tiny_model, tokens, device='cpu')
    assert {o.device.type for o in reference.states}=={'cpu'} and fidelity(reference, other)==fidelity(tiny_model, other, tokens)
