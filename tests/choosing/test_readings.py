"One pass over a set against separate passes, in many families, whatever the batches and the padding"
import math
import pytest, torch
from compresscal.compression.input_statistics import collect
from compresscal.calibration.calibration_set import CalibrationSet
from compresscal.evaluation.perplexity import perplexity, token_losses
from compresscal.models.loading import load_model
from compresscal.models.blocks import capture, decoder_blocks, fingerprint
from compresscal.choosing.readings import outlier_channels, profile, sequence_maxima
from test_input_statistics import make, rows
from test_blocks import each_family, own_states

pytestmark = pytest.mark.usefixtures('one_thread')

def ragged():
    "Six rows of different lengths, padded on the left, and the same without padding"
    n = [16,5,9,16,2,12]
    tokens,mask = torch.zeros(6, 20, dtype=torch.long),torch.zeros(6, 20, dtype=torch.bool)
    for i,k in enumerate(n): tokens[i,20-k:],mask[i,20-k:] = rows()[i,:k],True
    return CalibrationSet.from_tokens(tokens, mask),[r[None,:k] for r,k in zip(rows(), n)]

def check(family):
    model = make(family)
    before,blocks = fingerprint(model),decoder_blocks(model)
    found = profile(model, rows(), moments=True, batch_size=4)
    assert fingerprint(model)==before and not any(m._forward_hooks or 'forward' in m.__dict__ for m in model.modules())
    states,out = own_states(model, rows(), None)
    logits = out.logits[:,:-1].float()
    torch.testing.assert_close(found.losses[:,1:], torch.nn.functional.cross_entropy(logits.mT, rows()[:,1:], reduction='none'), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.entropies[:,1:], torch.distributions.Categorical(logits=logits).entropy(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.pooled, states[-1].mean(1), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(profile(model, rows(), pool=0, layers=blocks[0].linears[0].name).pooled, states[0].mean(1), rtol=1e-3, atol=1e-4)
    assert found.perplexity==pytest.approx(perplexity(model, CalibrationSet.from_tokens(rows())).value, rel=1e-4)
    batch = capture(model, rows())
    for block in blocks:
        for name,s in collect(block, [batch], moments=True, magnitudes=True).items():
            ours = found.statistics[f'{block.name}.{name}']
            assert (ours.tokens,ours.sequences)==(s.tokens,s.sequences)
            torch.testing.assert_close(ours.norms, s.norms, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(ours.absolute, s.absolute, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(ours.moments, s.moments, rtol=1e-2, atol=1e-3)
        batch.step(block)
    assert found.statistics.keys()==found.sequence_peaks.keys()=={f'{b.name}.{o.name}' for b in blocks for o in b.linears}

@pytest.mark.parametrize('family', ['llama','gemma2','gpt2','opt_350m','mixtral','gemma4'])
def test_one_pass_equals_several(family): check(family)

@pytest.mark.slow
@each_family
def test_one_pass_equals_several_in_every_family(family): check(family)

@pytest.mark.parametrize('family', ['llama','gpt2','mixtral'])
def test_padding_and_batches_do_not_matter(family):
    model,(padded,alone) = make(family),ragged()
    parts = [profile(model, o, moments=True) for o in alone]
    for size in (None,1,4):
        found = profile(model, padded, moments=True, batch_size=size)
        assert found.losses[~padded.mask].isnan().all() and (~found.losses.isnan()).sum()==padded.mask.sum()-6
        torch.testing.assert_close(found.losses[padded.mask], torch.cat([o.losses[0] for o in parts]), rtol=1e-3, atol=1e-4, equal_nan=True)
        torch.testing.assert_close(found.entropies[padded.mask], torch.cat([o.entropies[0] for o in parts]), rtol=1e-3, atol=1e-4, equal_nan=True)
        torch.testing.assert_close(found.pooled, torch.cat([o.pooled for o in parts]), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.sequence_perplexity, torch.cat([o.sequence_perplexity for o in parts]), rtol=1e-3, atol=1e-4)
        for k,s in found.statistics.items():
            assert (s.tokens,s.sequences)==(sum(o.statistics[k].tokens for o in parts),6)
            torch.testing.assert_close(s.squares, sum(o.statistics[k].squares for o in parts), rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(found.sequence_peaks[k], torch.cat([o.sequence_peaks[k] for o in parts]), rtol=1e-3, atol=1e-4)

def test_peaks_are_those_of_the_inputs():
    model,seen = make('llama'),{}
    block = decoder_blocks(model)[1]
    hooks = [block.module.get_submodule(o.name).register_forward_pre_hook(lambda m,args,n=o.name: seen.__setitem__(n, args[0])) for o in block.linears]
    with torch.no_grad(): model(rows())
    for h in hooks: h.remove()
    found = profile(model, rows(), batch_size=2)
    for name,x in seen.items():
        torch.testing.assert_close(found.sequence_peaks[f'{block.name}.{name}'], x.abs().amax(1), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.peaks[f'{block.name}.{name}'], x.abs().amax((0,1)), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.channels[f'{block.name}.{name}'], x.double().square().mean((0,1)).sqrt(), rtol=1e-4, atol=1e-6)
    peaks = found.peaks
    assert peaks[f'{block.name}.self_attn.q_proj'] is peaks[f'{block.name}.self_attn.k_proj']

def test_same_bits_twice():
    model = make('llama')
    a,b = profile(model, rows(), moments=True),profile(model, rows(), moments=True)
    assert torch.equal(a.losses.nan_to_num(), b.losses.nan_to_num()) and torch.equal(a.pooled, b.pooled)
    assert all(torch.equal(s.moments, b.statistics[k].moments) for k,s in a.statistics.items())

def test_embedded_model():
    model,_ = load_model()
    tokens = torch.randint(3, 4096, (6,40), generator=torch.Generator().manual_seed(0))
    found = profile(model, tokens)
    torch.testing.assert_close(found.losses[:,1:], token_losses(model, tokens)[:,1:], rtol=1e-4, atol=1e-4)
    assert found.sequence_perplexity.shape==(6,) and found.pooled.shape==(6,256)
    assert found.perplexity==pytest.approx(math.exp(found.sequence_perplexity.log().mean()))

def test_entropy_is_the_loss_of_what_the_model_writes():
    "Drawn from the model at temperature 1, the loss of a token is on average the entropy of its distribution"
    model,g = make('llama'),torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.lm_head.parameters(): p.mul_(30) # far from uniform
        tokens = torch.randint(3, 96, (400,1), generator=g)
        for _ in range(8): tokens = torch.cat([tokens, model(tokens).logits[:,-1].softmax(-1).multinomial(1, generator=g)], 1)
    found = profile(model, tokens, batch_size=100)
    error = (found.losses-found.entropies)[:,1:].mean(1).std()/20
    assert found.entropy<3.5 and abs(math.log(found.perplexity)-found.entropy)<4*error

def test_positions_count_from_the_first_token():
    model,(padded,alone) = make('llama'),ragged()
    table = profile(model, padded).by_position(100)
    assert table.position.tolist()==list(range(1, 16)) and table.tokens.tolist()==[6,*[5]*3,*[4]*4,*[3]*3,*[2]*4]
    assert table.loss.iloc[0]==pytest.approx(float(torch.stack([profile(model, o).losses[0,1] for o in alone]).mean()), rel=1e-4)
    with pytest.raises(ValueError, match='two tokens or more'): profile(model, rows()[:,:1]).by_position()
    with pytest.raises(ValueError, match='`bins` must be a whole number'): profile(model, padded).by_position(0)

def test_half_precision_and_blocks_on_disk(tiny_model, tiny_checkpoint):
    tokens = torch.randint(3, 259, (5,30), generator=torch.Generator().manual_seed(0))
    memory,(disk,_) = profile(tiny_model, tokens, batch_size=2),load_model(tiny_checkpoint, offload=True)
    found = profile(disk, tokens, batch_size=2)
    assert torch.equal(found.losses.nan_to_num(), memory.losses.nan_to_num()) and torch.equal(found.pooled, memory.pooled)
    assert all(torch.equal(s.squares, memory.statistics[k].squares) for k,s in found.statistics.items())
    half = profile(tiny_model.bfloat16(), tokens)
    torch.testing.assert_close(half.losses, memory.losses, rtol=2e-2, atol=2e-2, equal_nan=True)
    assert half.losses.dtype==half.pooled.dtype==torch.float32

def test_bad_input(tiny_model):
    tokens = torch.randint(3, 259, (2,10), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="`layers` must match names of layers such as .*, got 'x_proj'"):
        profile(tiny_model, tokens, layers=['q_proj','x_proj'])
    with pytest.raises(ValueError, match='`pool` must be the number of one of 2 blocks, -2 to 1, got 2'): profile(tiny_model, tokens, pool=2)
    with pytest.raises(ValueError, match='`batch_size` must be a whole number, 1 or more, got -1'): profile(tiny_model, tokens, batch_size=-1)
    with pytest.raises(TypeError, match='`calibration` must be a CalibrationSet'): profile(tiny_model, 'docs')
    with pytest.raises(ValueError, match="context of 128 tokens, got 200"): profile(tiny_model, torch.ones(1, 200, dtype=torch.long))
    with pytest.raises(ValueError, match='`input_ids` must lie in'): profile(tiny_model, tokens+250)
    with pytest.raises(ValueError, match='`share` must be above 0'): outlier_channels(torch.ones(3), 0)
    with torch.no_grad(): tiny_model.model.norm.weight[0] = 3e38
    with pytest.raises(ValueError, match='`model` must give finite losses, got NaN'): profile(tiny_model, tokens)

def test_small_parts():
    assert sequence_maxima(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), 2).tolist()==[[0]*3]*2
    p = profile(make('llama'), rows(), peaks=False, layers='down_proj')
    assert p.sequence_peaks=={}==p.peaks and len(p.statistics)==3 and 'perplexity' in repr(p) and p._repr_markdown_().startswith('| set |')

def test_nasty_names_are_shown_as_names(tiny_model):
    read = profile(tiny_model, CalibrationSet.from_tokens(torch.ones(2, 8).long(), name='a|b<i>\x1b[31m'))
    table = read._repr_markdown_()
    assert '\x1b' not in table+repr(read) and '<i>' not in table and len({o.count('|')-o.count(r'\|') for o in table.split('\n')})==1
