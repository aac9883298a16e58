"Whole models against the original implementations, every family, padding, and bad input"
import copy
import pytest, torch
from dataclasses import dataclass
from safetensors.torch import load_file
from compresscal.calibration.calibration_set import CalibrationSet
from compresscal.compression.methods import RTN, Method
from compresscal.compression.compress import compress
from compresscal.compression.methods import AWQ, GPTQ, METHODS, Combined, Magnitude, SparseGPT, SpQR, Wanda
from compresscal.evaluation.perplexity import perplexity
from compresscal.models.loading import load_model
from compresscal.models.blocks import decoder_blocks
from compresscal.compression.pruning import mask_n_m, mask_rows, wanda_scores
from test_blocks import families, make

pytestmark = pytest.mark.usefixtures('one_thread')

def rows(n=6, length=16, vocabulary=96): return torch.randint(3, vocabulary, (n,length), generator=torch.Generator().manual_seed(1))

def same(a, b): return all(torch.equal(x, y) for x,y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))

def oracle_run(shared, name, method, model='model_stories260K/transformers', sequences=64, **kwargs):
    "A whole model compressed, with its perplexities beside those of the original's: the model, the report, and the original's tensors"
    model,_ = load_model(shared/'data'/model)
    tokens = load_file(shared/'oracles'/'tokens_stories260K.safetensors')
    report = compress(model, method, tokens['calib'][:sequences], **kwargs)
    return model,report,load_file(shared/'oracles'/'whole_model'/f'{name}.safetensors'),[perplexity(model, tokens[o]).value for o in ('eval_self','eval_hand')]

@pytest.mark.parametrize('name,method,batch_size,on_self,on_hand', [
    ('magnitude50',Magnitude(.5),None,42.334,35.272), ('wanda24',Wanda('2:4'),1,64.289,53.516), ('wanda24',Wanda('2:4'),None,64.289,53.516)])
def test_whole_model_equals_original(shared, name, method, batch_size, on_self, on_hand):
    model,_,original,found = oracle_run(shared, name, method, batch_size=batch_size)
    weights = [k for k in original if k.endswith('.weight')]
    assert len(weights)==35
    for k in weights: assert torch.equal(model.state_dict()[k], original[k]), k
    assert found==pytest.approx([on_self,on_hand], rel=1e-3)

def test_sparsegpt_whole_model(shared):
    "Masks may flip where the order of summation decides: at most one weight in ten thousand"
    model,_,original,found = oracle_run(shared, 'sparsegpt50', SparseGPT(.5))
    got = model.state_dict()
    flipped,total = sum(int(((got[k]==0)!=(o==0)).sum()) for k,o in original.items()),sum(o.numel() for o in original.values())
    assert flipped<=1e-4*total, flipped
    assert found==pytest.approx([17.685,15.538], rel=1e-3)

def near(got, original):
    "Share of weights that are equal up to the last bits"
    return float(((got-original).abs()<=1e-5*original.abs().max()).float().mean())

@pytest.mark.parametrize('name,method,on_self,on_hand', [('gptq4_ch_asym',GPTQ.original(4, None),4.3987,3.6765), ('gptq4_g32_asym',GPTQ.original(4, 32),4.2973,3.7632)])
def test_gptq_whole_model(shared, name, method, on_self, on_hand):
    model,report,original,found = oracle_run(shared, name, method)
    got = model.state_dict()
    assert len(original)==35
    for k,o in original.items(): assert near(got[k], o)>=.997, k
    assert found==pytest.approx([on_self,on_hand], rel=1e-3)
    for k,q in report.quantized.items(): assert torch.equal(q.dequantize(), got[f'{k}.weight']), k

def test_spqr_whole_model(shared):
    """Every block equals the original's if the blocks before it do. Left to itself the walk leaves the original's path at one code: in the
    down projection of block 1 a zero lies 2.500004 steps up its grid, half-way between two codes to six digits, and all that follows differs."""
    folder,tokens = shared/'data'/'model_stories260K'/'transformers',load_file(shared/'oracles'/'tokens_stories260K.safetensors')
    original,method = load_file(shared/'oracles'/'whole_model'/'spqr3_g16.safetensors'),SpQR.original(3, second_group_size=4, act_order=False)
    for i in range(5):
        model,_ = load_model(folder)
        model.load_state_dict({k: o for k,o in original.items() if k.endswith('.weight') and int(k.split('.')[2])<i}, strict=False)
        report = compress(model, method, tokens['calib'], skip=[f'model.layers.{j}.*' for j in range(5) if j!=i])
        got = model.state_dict()
        for k,q in report.quantized.items():
            assert near(got[f'{k}.weight'], original[f'{k}.weight'])>=.99, k
            assert near(got[f'{k}.weight'], original[f'{k}.weight'])>=.995 or k=='model.layers.1.mlp.down_proj', k
            mask = torch.zeros_like(original[f'{k}.outlier_mask'], dtype=torch.bool)
            mask[tuple(q.outliers[0])] = True
            assert torch.equal(mask, original[f'{k}.outlier_mask'].bool()), k
    model,report,_,found = oracle_run(shared, 'spqr3_g16', method)
    assert found==pytest.approx([4.8615,4.0230], rel=2e-3) # the original's own rounding decides the last tenth of a percent
    for k,q in report.quantized.items(): assert torch.equal(q.dequantize(), model.state_dict()[f'{k}.weight']), k

def test_awq_whole_model(shared):
    """Scales to the last bits, and all but a few in a thousand of the clipped maxima: where a group is clipped to the same size on both sides,
    its zero lies half-way between two codes, and the last bits of a scale decide."""
    model,report,original,found = oracle_run(shared, 'ffn256_awq4_g64', AWQ.original(4, 64), 'model_stories260K_ffn256', 32)
    got = model.state_dict()
    for k,o in original.items():
        if k.endswith('layernorm.weight'): assert torch.allclose(got[k], o, rtol=1e-5, atol=0), k
    shares = [near(got[k], o) for k,o in original.items() if k.endswith('proj.weight')]
    assert len(shares)==35 and min(shares)>.97 and sum(shares)/35>.997
    assert found==pytest.approx([4.418,3.78], rel=2e-3) # the last bits of scales and moments decide a tenth of a percent
    for k,q in report.quantized.items(): assert torch.equal(q.dequantize(), got[f'{k}.weight']), k

def straightforward_wanda(model, tokens, sparsity):
    "Wanda for nn.Linear models written the plain way: hooks on the model itself, one more whole forward for each block"
    blocks = decoder_blocks(model)
    for block in blocks:
        squares = {}
        linears = {n: m for n,m in block.module.named_modules() if isinstance(m, torch.nn.Linear)}
        hooks = [m.register_forward_pre_hook(lambda m,args,n=n: squares.__setitem__(n, args[0].reshape(-1, args[0].shape[-1]).double().square().sum(0)))
                 for n,m in linears.items()]
        with torch.no_grad(): model(tokens)
        for h in hooks: h.remove()
        for n,m in linears.items():
            scores = wanda_scores(m.weight.detach(), squares[n].sqrt())
            m.weight.data.masked_fill_(mask_n_m(scores, 2, 4) if sparsity=='2:4' else mask_rows(scores, sparsity), 0)

@pytest.mark.parametrize('family', ['llama','llama_tied','gemma2','gemma3','phi','phi3','opt','opt_350m','neox','falcon_7b','falcon_rw','qwen2'])
def test_walk_equals_whole_forwards(family):
    plain,model = make(family),make(family)
    straightforward_wanda(plain, rows(), .5)
    compress(model, Wanda(.5), rows(), batch_size=6)
    for (k,a),b in zip(plain.state_dict().items(), model.state_dict().values()): assert torch.equal(a==0, b==0), k

@pytest.mark.parametrize('method,family', [*((Wanda('2:4'), o) for o in families), (Magnitude('2:4'), 'gpt2'), (Magnitude(.5), 'qwen3_moe')])
def test_every_family(family, method):
    dense,model = make(family),make(family)
    report = compress(model, method, rows())
    assert report.sparsity==pytest.approx(.5, abs=1e-3) and not report.unseen
    inside = {p.data_ptr() for b in decoder_blocks(model) for p in [o.parameter for o in b.linears]}
    for (name,a),b in zip(dense.named_parameters(), model.parameters()):
        if b.data_ptr() in inside: assert (a!=b).float().mean()==pytest.approx(.5, abs=.01), name
        else: assert torch.equal(a, b), name
    assert torch.isfinite(model(rows()).logits).all()

def test_conv1d_groups_run_along_the_inputs():
    model = make('gpt2')
    compress(model, Wanda('2:4'), rows())
    stored = model.transformer.h[0].mlp.c_fc.weight # [in, out]
    assert ((stored.T.reshape(-1,4)==0).sum(1)==2).all()

@pytest.mark.parametrize('family', ['llama','gpt2','gemma2','falcon_rw','mixtral'])
@pytest.mark.parametrize('side', ['left','right','both'])
def test_padding_changes_nothing(family, side):
    "Rows of different lengths, with padding: as if each were read alone"
    n = torch.tensor([16,5,9,16,1,12])
    start = dict(left=20-n, right=n*0, both=(20-n)//2)[side][:,None]
    place = torch.arange(20)
    mask = (place>=start)&(place<start+n[:,None])
    padded = torch.full((6,20), 2)
    padded[mask] = rows()[torch.arange(16)<n[:,None]]
    a,b = make(family),make(family)
    compress(a, Wanda(.5), CalibrationSet.from_tokens(padded, mask), batch_size=4)
    ra = compress(b, Wanda(.5), CalibrationSet.from_tokens(rows(), torch.arange(16)<n[:,None]), batch_size=1)
    for (k,x),y in zip(a.state_dict().items(), b.state_dict().values()): assert torch.equal(x==0, y==0), k
    assert {o['tokens'] for o in ra.rows if 'experts' not in o['layer']}=={int(n.sum())}

@pytest.mark.parametrize('batch_size', [1,2,5,6,100])
def test_batch_size_changes_nothing(tiny_model, batch_size):
    other = copy.deepcopy(tiny_model)
    compress(tiny_model, Wanda(.6), rows())
    compress(other, Wanda(.6), rows(), batch_size=batch_size)
    assert same(tiny_model, other)

@pytest.mark.parametrize('family', ['llama','mixtral','gpt2'])
def test_bfloat16_stays(family):
    model = make(family).bfloat16()
    report = compress(model, Wanda('2:4'), rows())
    assert {p.dtype for p in model.parameters()}=={torch.bfloat16} and report.sparsity==.5

def test_data_free_methods_do_not_run_the_text(tiny_model):
    class Untouchable:
        def __getattr__(self, name): raise AssertionError(name)
    assert compress(tiny_model, Magnitude(.5), Untouchable()).calibration is None

def test_experts_without_tokens_fall_back_to_magnitude_and_are_named():
    model = make('mixtral')
    with torch.no_grad():
        for o in model.model.layers: o.mlp.gate.weight.zero_() # all scores equal: topk takes the same experts for every token
    dense = copy.deepcopy(model)
    report = compress(model, Wanda(.5), rows())
    assert report.unseen and '.experts.' in report.unseen[0] and repr(report).endswith(f'no token reached {len(report.unseen)} of them')
    name = report.unseen[0].removeprefix('model.layers.0.')
    new,old = (next(b[name].weight for b in decoder_blocks(m)[:1]) for m in (model,dense))
    assert torch.equal(new==0, mask_rows(old.abs(), .5))

def test_skip(tiny_model):
    dense = copy.deepcopy(tiny_model)
    report = compress(tiny_model, Wanda(.5), rows(), skip=('model.layers.1.*','*.down_proj'))
    assert {(o['block'],o['layer'].split('.')[1]) for o in report.rows}=={('model.layers.0',f'{k}_proj') for k in ('q','k','v','o','gate','up')}
    for (k,a),b in zip(dense.state_dict().items(), tiny_model.state_dict().values()):
        assert torch.equal(a, b)==('layers.1' in k or '_proj' not in k or 'down_proj' in k), k

def test_later_blocks_see_the_compressed_past(tiny_model):
    "Compressing both blocks at once differs from compressing each with the other dense"
    other,tokens = copy.deepcopy(tiny_model),rows(32, 16, 259)
    compress(tiny_model, Wanda(.9), tokens)
    compress(other, Wanda(.9), tokens, skip='model.layers.0.*')
    assert not torch.equal(tiny_model.model.layers[1].mlp.down_proj.weight==0, other.model.layers[1].mlp.down_proj.weight==0)

def test_training_flags_and_gradients_stay(tiny_model):
    tiny_model.train(); tiny_model.model.layers[0].eval()
    compress(tiny_model, Wanda(.5), rows())
    assert tiny_model.training and not tiny_model.model.layers[0].training and all(p.requires_grad and p.grad is None for p in tiny_model.parameters())

@dataclass(frozen=True)
class Double(Method):
    "Takes second moments and gives each layer back unchanged but for its sign"
    needs = 'moments'
    def compress_layer(self, weight, statistics):
        assert torch.allclose(statistics.moments.diagonal().double(), statistics.squares, rtol=1e-4)
        return -weight.float()

def test_own_methods_with_second_moments(tiny_model):
    report = compress(tiny_model, Double(), rows())
    assert all(o['output_error']==pytest.approx(4, rel=1e-5) and o['weight_error']==pytest.approx(4, rel=1e-5) for o in report.rows)

def test_output_error_from_second_moments_is_exact(tiny_model):
    @dataclass(frozen=True)
    class Half(Method):
        needs = 'moments'
        def compress_layer(self, weight, statistics): return weight.masked_fill(torch.arange(weight.shape[1])%2==0, 0)
    layer,seen = tiny_model.model.layers[0].mlp.down_proj,[]
    hook = layer.register_forward_pre_hook(lambda m,args: seen.append(args[0]))
    with torch.no_grad(): tiny_model(rows())
    hook.remove()
    old = layer.weight.detach().clone()
    report = compress(tiny_model, Half(), rows())
    exact = ((seen[0]@(old-layer.weight).T).square().sum()/(seen[0]@old.T).square().sum()).item()
    assert next(o for o in report.rows if o['layer']=='mlp.down_proj')['output_error']==pytest.approx(exact, rel=1e-4)

def test_other_errors_name_the_layer_too(tiny_model):
    @dataclass(frozen=True)
    class Singular(Method):
        def compress_layer(self, weight, statistics): return torch.linalg.cholesky(-weight[:32,:32].abs())
    with pytest.raises(torch.linalg.LinAlgError) as e: compress(tiny_model, Singular())
    assert 'model.layers.0.self_attn.q_proj under Singular' in e.value.__notes__[0]

def test_report(tiny_model):
    report = compress(tiny_model, Wanda('2:4'), CalibrationSet.from_tokens(rows(), name='stories'), output_errors=True)
    d = report.to_pandas()
    assert len(d)==14 and list(d)[:5]==['block','layer','outputs','inputs','sparsity'] and d.sparsity.eq(.5).all() and d.tokens.eq(96).all()
    assert d.weight_error.between(0, .5).all() and d.output_error.between(0, .5).all()
    text = report._repr_markdown_()
    assert text.count('\n| ')==9 and 'mlp.down_proj | 32 × 64 | 2 | 50.0%' in text
    assert repr(report)==f"Wanda 2:4 on stories {CalibrationSet.from_tokens(rows()).hash}: 14 layers in 2 blocks, 50.0% of their weights are zero"

def test_methods_by_name(): assert METHODS['wanda'](.5)==Wanda(.5)!=Wanda(.6) and METHODS['magnitude']('4:8').label=='Magnitude 4:8'

@pytest.mark.parametrize('method', [Magnitude,Wanda])
@pytest.mark.parametrize('sparsity', [0, 1, 50, -.1, float('nan'), '4:2', 'half', ''])
def test_bad_sparsity(method, sparsity):
    with pytest.raises(ValueError, match='`sparsity`.*got'): method(sparsity)

def refused(model, error, match, *args, **kwargs):
    "`compress` raises, and no weight has changed"
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=match): compress(model, *args, **kwargs)
    for k,v in model.state_dict().items(): torch.testing.assert_close(v, before[k], rtol=0, atol=0, equal_nan=True)

def test_bad_arguments_change_nothing(tiny_model):
    ones = torch.ones(2, 8, dtype=torch.long)
    refused(tiny_model, ValueError, 'model.layers.0.self_attn.q_proj cannot be compressed by Wanda 2:5.*got 32', Wanda('2:5'), ones)
    refused(tiny_model, TypeError, '`calibration` must be .* for Wanda 50%, got NoneType', Wanda(.5))
    refused(tiny_model, ValueError, 'not be empty', Wanda(.5), ones[:0])
    refused(tiny_model, ValueError, 'not be empty', Wanda(.5), ones[:,:0])
    refused(tiny_model, ValueError, 'context of 128 tokens, got 129', Wanda(.5), torch.ones(2, 129, dtype=torch.long))
    refused(tiny_model, ValueError, '0..258, got 1..259', Wanda(.5), torch.cat([ones, ones*259]))
    refused(tiny_model, ValueError, '`batch_size` must be a whole number, 1 or more, got -1', Wanda(.5), ones, batch_size=-1)
    refused(tiny_model, ValueError, "`skip` must match names of layers such as .*got 'nothing'", Wanda(.5), ones, skip='nothing')
    refused(tiny_model, ValueError, 'must leave a layer', Wanda(.5), ones, skip='*')
    refused(tiny_model, TypeError, 'a CalibrationSet or token ids', Wanda(.5), 'docs')
    refused(tiny_model, TypeError, '`tokens` must be an int64 tensor', Wanda(.5), ones.float())
    refused(tiny_model, TypeError, "`method` must be a Method such as Wanda", 'wanda', ones)
    refused(tiny_model, TypeError, "`method` must be a Method such as Wanda", Wanda, ones)

def test_only_a_later_layer_does_not_divide():
    "The MLP's down projection alone has 56 inputs: known before the first weight changes"
    refused(make('llama'), ValueError, 'model.layers.0.mlp.down_proj cannot be compressed by Wanda 8:16.*got 56', Wanda('8:16'), rows())
    report = compress(make('llama'), Wanda('8:16', ragged=True), rows())
    assert next(o for o in report.rows if o['layer']=='mlp.down_proj')['sparsity']==pytest.approx((3*8+8)/56)

def test_nan_in_weights_names_the_layer(tiny_model):
    with torch.no_grad(): tiny_model.model.layers[1].mlp.up_proj.weight[0,0] = float('nan')
    for method in (Magnitude(.5), Wanda(.5)): refused(tiny_model, ValueError, 'model.layers.1.mlp.up_proj', method, rows())

def test_nan_in_activations_names_the_layer(tiny_model):
    "Weights are finite, the product overflows: only running the text shows it"
    with torch.no_grad(): tiny_model.model.layers[1].mlp.up_proj.weight.mul_(1e38)
    with pytest.raises(ValueError, match='the input of model.layers.1.mlp.down_proj has NaN or infinity in') as e: compress(tiny_model, Wanda(.5), rows())
    assert '1 of 2 blocks are compressed, the last is model.layers.0' in e.value.__notes__[0]

# blocks on disk, hidden states on disk

@pytest.fixture
def checkpoint(tmp_path, tiny_tokenizer):
    "A folder with a small model in shards"
    model = make('llama')
    model.save_pretrained(tmp_path/'dense', max_shard_size='40KB')
    tiny_tokenizer.save_pretrained(tmp_path/'dense')
    return tmp_path/'dense'

@pytest.mark.parametrize('method', [Wanda('2:4'), GPTQ(4, 8), Magnitude(.5), SpQR(4, 8), AWQ(4, 8)])
def test_from_shards_to_shards(checkpoint, tmp_path, method):
    whole,_ = load_model(checkpoint)
    expected = compress(whole, method, rows())
    model,_ = load_model(checkpoint, offload=True)
    report = compress(model, method, rows(), out=tmp_path/'new')
    found,_ = load_model(tmp_path/'new')
    assert same(whole, found)
    drop = lambda rows: [{k: v for k,v in o.items() if k!='seconds'} for o in rows]
    assert drop(report.rows)==drop(expected.rows) and dict(report.quantized).keys()==expected.quantized.keys()
    for k,q in report.quantized.items(): assert torch.equal(q.dequantize(), expected.quantized[k].dequantize())

@pytest.mark.parametrize('method', [GPTQ(4, 8), AWQ(4, 8)])
def test_interrupted_between_shards(checkpoint, tmp_path, monkeypatch, method):
    "Stopped in the last block, the same call goes on there, with the past that the method is to see"
    import compresscal.compression.compress as compression
    whole,_ = load_model(checkpoint)
    expected = compress(whole, method, rows())
    before = {o.name: o.read_bytes() for o in checkpoint.iterdir()}
    model,_ = load_model(checkpoint, offload=True)
    original,visited = compression._compress_block,[]
    def stopping(block, *args):
        visited.append(block.index)
        if len(visited)==3: raise RuntimeError('power cut')
        return original(block, *args)
    monkeypatch.setattr(compression, '_compress_block', stopping)
    with pytest.raises(RuntimeError, match='power cut') as e: compress(model, method, rows(), out=tmp_path/'new')
    assert '2 of 3 blocks are done' in ''.join(e.value.__notes__) and not (tmp_path/'new').exists()
    report = compress(model, method, rows(), out=tmp_path/'new')
    assert visited==[0,1,2,2] and len(report.rows)==len(expected.rows) and len(report.quantized)==len(expected.quantized)
    assert same(load_model(tmp_path/'new')[0], whole) and {o.name: o.read_bytes() for o in checkpoint.iterdir()}==before

def test_out_belongs_to_models_on_disk(checkpoint, tmp_path):
    with pytest.raises(ValueError, match='`out` must name a folder .* got None for a model on disk'): compress(load_model(checkpoint, offload=True)[0], Wanda(.5), rows())
    with pytest.raises(ValueError, match='`out` .* for a model in memory'): compress(load_model(checkpoint)[0], Wanda(.5), rows(), out=tmp_path/'new')
    assert not (tmp_path/'new').exists()

@pytest.mark.parametrize('memory', [0,3000])
def test_hidden_states_on_disk_change_nothing(memory):
    a,b = make('llama'),make('llama')
    compress(a, SparseGPT(.5), rows())
    compress(b, SparseGPT(.5), rows(), memory=memory, batch_size=2)
    compress(c:=make('llama'), SparseGPT(.5), rows(), batch_size=2)
    assert same(b, c) and not same(a, make('llama'))
