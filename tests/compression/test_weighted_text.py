"What weights of sequences do to every method: as if sequences were there more often, whatever the batches, the padding and the method"
import copy
import pytest, torch
from compresscal.calibration.calibration_set import CalibrationSet
from compresscal.calibration.weighting import weighted
from compresscal.checkpoints.imatrix import input_squares
from compresscal.choosing.predicted_damage import predicted_damage
from compresscal.choosing.readings import profile
from compresscal.compression.awq import _squared_change, block_losses, sample_inputs
from compresscal.compression.compress import capture_batches, compress
from compresscal.compression.input_statistics import InputStatistics, collect, merge, pad_right
from compresscal.compression.methods import AWQ, GPTQ, Combined, SparseGPT, SpQR, Wanda
from compresscal.models.blocks import capture, decoder_blocks
from compresscal.models.hidden_states import HiddenStore
from test_blocks import make

pytestmark = pytest.mark.usefixtures('one_thread')

def rows(n=6, length=16, seed=1): return torch.randint(3, 96, (n,length), generator=torch.Generator().manual_seed(seed))

TIMES = [1, 3, 1, 2, 1, 1] # how often each sequence counts

def both(lengths=None):
    "Sequences with weights, and the same with each there as often"
    mask = torch.ones(6, 16).bool() if lengths is None else torch.arange(16)<torch.tensor(lengths)[:,None]
    often = torch.tensor(TIMES).repeat_interleave(torch.tensor(TIMES))
    index = torch.arange(6).repeat_interleave(torch.tensor(TIMES))
    assert len(often)==9
    return CalibrationSet.from_tokens(rows(), mask, TIMES), CalibrationSet.from_tokens(rows()[index], mask[index])

def inputs_of(model, text, batch_size=None, block=0):
    "Statistics of the inputs of a block, with everything that can be summed"
    with HiddenStore() as store:
        batches = capture_batches(model, text, batch_size, store, torch.device('cpu'))
        blocks = decoder_blocks(model)
        for b in blocks[:block]:
            for o in batches: o.step(b)
        return collect(blocks[block], batches, moments=True, magnitudes=True, squares=True)

def close(a, b, tolerance=1e-5): return float((a-b).abs().max())<=tolerance*float(b.abs().max())

@pytest.mark.parametrize('family', ['llama','gpt2','opt','falcon_7b','gemma2','mixtral'])
@pytest.mark.parametrize('lengths', [None, [16, 5, 9, 16, 1, 12]])
@pytest.mark.parametrize('batch_size', [1, 4, 6])
def test_sums_are_those_of_sequences_that_are_there_more_often(family, lengths, batch_size):
    text,often = both(lengths)
    model = make(family)
    found,known = inputs_of(model, text, batch_size, 1),inputs_of(model, often, None, 1)
    for name,s in found.items():
        o = known[name]
        if not o.tokens:
            assert not s.tokens and not s.weight
            continue
        by = int(text.mask.sum() if text.mask is not None else 96)/int(often.mask.sum() if often.mask is not None else 144)
        assert s.weight==pytest.approx(o.tokens*by, rel=1e-5), name
        for what in ('squares', 'moments', 'absolute'): assert close(getattr(s, what)/s.weight, getattr(o, what)/o.tokens), (name, what)

@pytest.mark.parametrize('shares', [(.5, .5), (.9, .1), (1, 99)])
def test_one_walk_is_the_sum_of_walks(shares):
    "The statistics of each set by themselves, by their tokens, with shares; sets of several sizes, one of them padded"
    model = make('llama')
    a = CalibrationSet.from_tokens(rows(5))
    b = CalibrationSet.from_tokens(rows(3, seed=2), torch.arange(16)<torch.tensor([16, 3, 9])[:,None])
    found = inputs_of(model, weighted(dict(zip((a, b), shares))), 2, 1)
    apart = [inputs_of(model, o, None, 1) for o in (a, b)]
    for name,s in found.items():
        for what in ('squares', 'moments', 'absolute'):
            plain = sum(share/sum(shares)*getattr(o[name], what)/o[name].tokens for o,share in zip(apart, shares))
            assert close(getattr(s, what)/s.weight, plain), (name, what)

EXACT = [Wanda(.5), Wanda('2:4'), SparseGPT(.5), SparseGPT('2:4'), SparseGPT(.5, true_sequential=True), GPTQ(4, 16), GPTQ.original(3, 16), SpQR(3), AWQ(3, 16, clip=False),
         AWQ.original(3, 16, clip=False), Combined(SparseGPT('2:4'), GPTQ(4, 16)), Wanda(.5, dense_inputs=True)]

def compressed_three_ways(family, method):
    "With weights, with sequences as often, and without weights: models and reports"
    text,often = both([16, 15, 9, 16, 4, 12])
    models = [make(family) for _ in range(3)]
    reports = [compress(m, method, o) for m,o in zip(models, (text, often, CalibrationSet.from_tokens(text.tokens, text.mask)))]
    return models,reports

@pytest.mark.parametrize('method', EXACT, ids=lambda o: repr(o)[:60])
@pytest.mark.parametrize('family', ['llama', 'mixtral'])
def test_every_method_takes_weights_for_what_they_are(method, family):
    (a,b,plain),(ra,rb,_) = compressed_three_ways(family, method)
    def apart(x, y): return max(float((x.state_dict()[k]-v).norm()/v.norm()) for k,v in y.state_dict().items())
    assert apart(a, b)<1e-5<.05<apart(plain, b)
    for x,y in zip(ra.rows, rb.rows):
        if y['output_error'] is not None: assert x['output_error']==pytest.approx(y['output_error'], rel=1e-3)

@pytest.mark.parametrize('method', [AWQ(3, 16), AWQ(3, 16, clip_tokens=None), AWQ.original(3, 16)], ids=['sample', 'moments', 'block'])
@pytest.mark.parametrize('family', ['llama', 'mixtral'])
def test_awq_clips_by_weights(method, family):
    "The last bit decides the maxima of a few groups in a thousand, as it does where batches are of another size"
    (a,b,plain),(ra,rb,rp) = compressed_three_ways(family, method)
    def differing(x, y):
        pairs = [(p,q) for bx,by in zip(decoder_blocks(x), decoder_blocks(y)) for p,q in zip(bx.linears, by.linears)]
        return float(torch.cat([((p.weight-q.weight).abs()>1e-4*q.weight.abs().max()).flatten() for p,q in pairs]).float().mean())
    assert [o['ratio'] for o in ra.notes]==[o['ratio'] for o in rb.notes]!=[o['ratio'] for o in rp.notes]
    assert differing(a, b)<.01<.5<differing(plain, b)

@pytest.mark.parametrize('method', [Wanda(.6), GPTQ(3, 16), AWQ(3, 16)], ids=lambda o: o.label)
def test_all_of_the_weight_is_the_text_alone(tiny_model, method):
    "To the last bit: a share of 1 beside one of 0, weights that are all the same, and shares in proportion to the tokens"
    a,b = CalibrationSet.from_tokens(rows(6)),CalibrationSet.from_tokens(rows(3, seed=2))
    def weights(text):
        model = copy.deepcopy(tiny_model)
        compress(model, method, text)
        return model.state_dict()
    alone,joined = weights(a),weighted({a: 6, b: 3})
    for text in (weighted({a: 1, b: 0}), CalibrationSet.from_tokens(a.tokens, weights=[.3]*6)):
        assert all(torch.equal(v, alone[k]) for k,v in weights(text).items())
    known = weights(CalibrationSet.from_tokens(joined.tokens))
    assert all(torch.equal(v, known[k]) for k,v in weights(joined).items())
    assert any(not torch.equal(v, known[k]) for k,v in weights(weighted({a: 1, b: 1})).items())

@pytest.mark.parametrize('batch_size', [1, 2, 5, 9, 100])
def test_batch_size_changes_nothing(tiny_model, batch_size):
    other,text = copy.deepcopy(tiny_model),weighted({CalibrationSet.from_tokens(rows(6)): .2, CalibrationSet.from_tokens(rows(3, seed=2)): .8})
    compress(tiny_model, Wanda(.6), text)
    compress(other, Wanda(.6), text, batch_size=batch_size)
    assert all(torch.equal(v, other.state_dict()[k]) for k,v in tiny_model.state_dict().items())

@pytest.mark.parametrize('side', ['left', 'right'])
def test_padding_does_not_count(side):
    "A row of few tokens counts by its tokens, wherever the padding is"
    mask = torch.arange(16)<torch.tensor([16, 5, 9, 16, 1, 12])[:,None]
    text = CalibrationSet.from_tokens(rows(), mask, TIMES)
    if side=='left': text = CalibrationSet.from_tokens(rows().flip(1), mask.flip(1), TIMES)
    known = CalibrationSet.from_tokens(*pad_right(text.tokens, text.mask), TIMES)
    for name,s in inputs_of(make('gpt2'), text, 4).items():
        o = inputs_of(make('gpt2'), known, 1)[name]
        assert s.weight==pytest.approx(int(mask.sum()), rel=1e-6) and s.tokens==int(mask.sum()) and close(s.moments, o.moments)

def test_ones_are_no_weights():
    x = torch.randn(300, 40, generator=torch.Generator().manual_seed(0))
    a,b = (InputStatistics(40, moments=True, magnitudes=True, squares=True).add(x, 1, w) for w in (None, torch.ones(300)))
    for what in ('moments', 'squares', 'absolute', 'weight', 'tokens', 'sequences'): assert (torch.as_tensor(getattr(a, what))==torch.as_tensor(getattr(b, what))).all()

def test_merged_statistics_keep_what_tokens_count():
    x,w = torch.randn(10, 4, generator=torch.Generator().manual_seed(0)),torch.rand(10, generator=torch.Generator().manual_seed(1))
    whole = InputStatistics(4, moments=True).add(x, 2, w)
    joined = merge(InputStatistics(4, moments=True).add(x[:3], 1, w[:3]), InputStatistics(4, moments=True).add(x[3:], 1, w[3:]))
    assert joined.weight==pytest.approx(whole.weight) and joined.tokens==10
    torch.testing.assert_close(joined.moments, whole.moments)

def test_nan_in_a_row_of_any_weight_names_the_layer():
    with pytest.raises(ValueError, match='the input of up has NaN'): InputStatistics(2, name='up').add(torch.tensor([[1., 2.], [3., torch.nan]]), weights=torch.tensor([1., 1e-6]))

# ---- what looks at rows

def batches_of(model, text, size):
    batches = [capture(model, t) for t in text.tokens.split(size)]
    for b,w in zip(batches, text.token_weights.split(size)): b.weights = w
    return batches

@pytest.mark.parametrize('size', [1, 4, 6])
def test_a_sample_stands_for_the_weighted_text(size):
    model,(text,_) = make('llama'),both()
    block,batches = decoder_blocks(model)[0],batches_of(model, text, size)
    found = collect(block, batches, moments=True, magnitudes=True)
    sample_inputs(block, batches, found, 96)
    for s in found.values(): assert close(s.sample.T@s.sample, s.moments)

def test_a_thin_sample_sees_every_text_that_takes_a_turn():
    "Every 32nd token of rows of 4 in which two texts take turns is always one of the first text"
    model = make('llama')
    text = weighted({CalibrationSet.from_tokens(rows(32, 4)): .5, CalibrationSet.from_tokens(rows(32, 4, seed=2)): .5})
    uneven = CalibrationSet.from_tokens(text.tokens, weights=torch.tensor([1., 4.]).repeat(32))
    block,batches = decoder_blocks(model)[0],batches_of(model, uneven, 64)
    found = collect(block, batches)
    sample_inputs(block, batches, found, 8)
    hidden = []
    hook = block.module.self_attn.q_proj.register_forward_pre_hook(lambda m,args: hidden.append(args[0].reshape(-1, args[0].shape[-1])))
    with torch.no_grad(): batches[0].run(block)
    hook.remove()
    sample,weights = found['self_attn.q_proj'].sample,uneven.token_weights.repeat_interleave(4)
    rows_seen = [int((hidden[0]*weights.sqrt()[:,None]-o).abs().sum(1).argmin()) for o in sample]
    assert len(sample)>=8 and {i//4%2 for i in rows_seen}=={0, 1} and len({i%4 for i in rows_seen})>1

@pytest.mark.parametrize('lengths', [None, [16, 5, 9, 16, 1, 12]])
def test_losses_of_a_block_are_those_of_sequences_that_are_there_more_often(lengths):
    model = make('llama')
    def losses(text):
        with HiddenStore() as store:
            batches,block = capture_batches(model, text, 4, store, torch.device('cpu')),decoder_blocks(model)[0]
            tasks = [('self_attn', [block[f'self_attn.{o}_proj'] for o in 'qkv'], candidates), ('', [block['mlp.down_proj']], wide)]
            return block_losses(block, batches, tasks, 3, 16)
    inputs = [decoder_blocks(model)[0][o].weight.shape[1] for o in ('self_attn.q_proj', 'mlp.down_proj')]
    candidates,wide = (torch.rand(3, n, generator=torch.Generator().manual_seed(n))+.5 for n in inputs)
    (text,often),plain = both(lengths),CalibrationSet.from_tokens(both(lengths)[0].tokens, both(lengths)[0].mask)
    for a,b,c in zip(losses(text), losses(often), losses(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=0)
        assert ((a/c-1).abs()>1e-3).all()

def test_outputs_without_a_row_for_each_token_are_refused():
    "Such as those of a single expert"
    text,_ = both()
    batch = capture(make('llama'), text.tokens)
    half = torch.ones(3, 16, 4)
    assert _squared_change(half, half*0, batch, 'mlp')==half.numel() # without weights it does not matter which tokens these are
    batch.weights = text.token_weights
    with pytest.raises(ValueError, match="output of mlp, which has no row for each token; score the layers themselves, `search='linear'`"):
        _squared_change(half, half*0, batch, 'mlp')

# ---- what is not a method

def test_readings_and_predictions_are_weighted():
    model,(text,often) = make('llama'),both()
    a,b = (profile(model, o, moments=True, progress=False) for o in (text, often))
    for name,s in a.statistics.items(): assert close(s.moments/s.weight, b.statistics[name].moments/b.statistics[name].weight), name
    for name,c in a.channels.items(): assert close(c, b.channels[name]), name
    reference = CalibrationSet.from_tokens(rows(4, seed=3))
    plain = CalibrationSet.from_tokens(text.tokens)
    scores = predicted_damage(model, dict(weighted=text, often=often, plain=plain), reference, method=SparseGPT(.5), progress=False).scores
    assert scores['weighted']==pytest.approx(scores['often'], rel=1e-4)!=pytest.approx(scores['plain'], rel=1e-4)

def test_an_importance_matrix_is_weighted():
    model,(text,often) = make('llama'),both()
    a,b = (input_squares(model, o, progress=False) for o in (text, often))
    for name,(squares,weight) in a.items(): assert close(squares/weight, b[name][0]/b[name][1]), name

def test_a_dry_run_of_weighted_text(tiny_model):
    before = copy.deepcopy(tiny_model.state_dict())
    text = weighted({CalibrationSet.from_tokens(rows(6)): .2, CalibrationSet.from_tokens(rows(3, seed=2)): .8})
    assert compress(tiny_model, AWQ(3, 16), text, dry_run=True).seconds>0
    assert all(torch.equal(v, before[k]) for k,v in tiny_model.state_dict().items())
