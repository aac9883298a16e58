"Methods over families, on little text and on much, with widths that do not divide; settings, composition, precision, stress"
import copy, json
from dataclasses import dataclass, fields
import pytest, torch
from compresscal.calibration.calibration_set import CalibrationSet
from compresscal.compression.methods import RTN
from compresscal.compression.compress import compress
from compresscal.compression.quantization import rtn
from compresscal.compression.methods import AWQ, GPTQ, METHODS, Combined, Magnitude, SparseGPT, SpQR, Wanda
from compresscal.models.blocks import decoder_blocks
from compresscal.compression.names import parse_method
from compresscal.compression.compression_report import plot_errors
from test_compress import make, rows, same
from test_blocks import families

pytestmark = pytest.mark.usefixtures('one_thread')

# Inputs of the tiny models are 24, 32, 56 or 64 wide: groups of 10 and blocks of 20 leave something over in all of them
METHODS_TRIED = dict(
    magnitude=Magnitude(.5), wanda=Wanda('2:4'), sparsegpt=SparseGPT(.5, block_size=20), sparsegpt_pattern=SparseGPT('3:5', block_size=20, ragged=True),
    rtn=RTN(4, 10), gptq=GPTQ(4, 10, block_size=20), gptq_all=GPTQ(3, 10, True, True, True, True, block_size=20, true_sequential=True),
    gptq_channel=GPTQ.original(8, None, refresh=True, act_order=True), gptq_original=GPTQ.original(4, 10, block_size=20), spqr=SpQR(4, 10), spqr_simple=SpQR(3, 16, second_group_size=5, act_order=False, simplified_outliers=True),
    awq=AWQ(4, 10), awq_linear=AWQ(3, None, zero_point=False, search='linear', grouped_query=True, clip_tokens=None, dense_inputs=False),
    joint=Combined(SparseGPT(.5), GPTQ(4, 10), joint=True), both=Combined(Wanda('2:4'), GPTQ(4, 10)), awq_pruned=Combined(Wanda('2:4'), AWQ(4, 10)),
    awq_sequential=Combined(SparseGPT(.5, block_size=20, true_sequential=True), AWQ(4, 10)))

def check(family, method, tokens, **kwargs):
    dense = make(family)
    model = copy.deepcopy(dense)
    report = compress(model, method, tokens, **kwargs)
    layers = {f'{b.name}.{o.name}': o for b in decoder_blocks(model) for o in b.linears}
    inside = {o.parameter.data_ptr() for o in layers.values()}
    assert [f"{o['block']}.{o['layer']}" for o in report.rows]!=[] and {f"{o['block']}.{o['layer']}" for o in report.rows}==set(layers)
    for (name,a),b in zip(dense.named_parameters(), model.parameters()):
        assert torch.isfinite(b).all(), name
        if b.data_ptr() not in inside and 'awq' not in method.label.lower(): assert torch.equal(a, b), name
    for name,q in report.quantized.items(): assert torch.equal(q.dequantize().to(layers[name].weight.dtype), layers[name].weight), name
    assert bool(report.quantized)==hasattr(method, 'bits') or isinstance(method, Combined)
    assert torch.isfinite(model(rows()).logits).all() and repr(report) and report._repr_markdown_()
    return report

# Beyond their inputs' statistics methods see little of a family: whether weights lie transposed or are fused, experts that get no tokens, widths that differ from block to block
STRUCTURES = ('llama', 'gpt2', 'falcon_40b', 'qwen3_moe', 'gpt_oss', 'gemma4')
# What a family must provide: nothing, norms, second moments, inputs read layer after layer, features that can be scaled, those of outputs too
KINDS = (('magnitude','rtn'), ('wanda',), ('sparsegpt','sparsegpt_pattern','gptq','gptq_channel','gptq_original','spqr','spqr_simple','joint','both'), ('gptq_all',), ('awq','awq_pruned'), ('awq_linear',), ('awq_sequential',))
PAIRS = [(o, m) for o in STRUCTURES for m in METHODS_TRIED] + [(o, kind[i%len(kind)]) for i,o in enumerate(o for o in families if o not in STRUCTURES) for kind in KINDS]

def test_pairs_cover():
    "Every method meets every structure, and every family a method of every kind"
    assert sorted(o for kind in KINDS for o in kind)==sorted(METHODS_TRIED) and len(set(PAIRS))==len(PAIRS)
    assert {o: {m for f,m in PAIRS if f==o} for o in STRUCTURES}=={o: set(METHODS_TRIED) for o in STRUCTURES}
    for family in families: assert all(any((family,m) in PAIRS for m in kind) for kind in KINDS)

@pytest.mark.slow
@pytest.mark.parametrize('family,method', PAIRS)
def test_methods_over_families(family, method):
    "All methods on families that differ for them; on the others one of each kind, by turns"
    many = check(family, METHODS_TRIED[method], rows(12))
    if method.startswith('gptq') and 'experts' not in str(many.rows): assert all(o['output_error']<.2 for o in many.rows if 'o_proj' not in o['layer'])
    check(family, METHODS_TRIED[method], rows(1, 5)) # fewer tokens than inputs

@pytest.mark.parametrize('method', METHODS_TRIED)
@pytest.mark.parametrize('family', ['llama','gpt2','mixtral'])
def test_every_method(family, method): check(family, METHODS_TRIED[method], rows(1, 5))

def test_every_name_makes_a_method(): assert {type(o).__name__.lower() for o in METHODS_TRIED.values()}-{'combined'}<=set(METHODS)

@pytest.mark.parametrize('method', ['sparsegpt','gptq','spqr','both'])
def test_padding_changes_nothing(method):
    "Rows of different lengths with padding, as if each were read alone"
    n = torch.tensor([16,5,9,16,1,12])
    mask = torch.arange(16)<n[:,None]
    one,other = make('llama'),make('llama')
    compress(one, METHODS_TRIED[method], CalibrationSet.from_tokens(rows(), mask), batch_size=1)
    compress(other, METHODS_TRIED[method], CalibrationSet.from_tokens(rows().masked_fill(~mask, 5), mask), batch_size=6)
    close = [float((a-b).abs().max()<=1e-3*a.abs().max()) for a,b in zip(one.state_dict().values(), other.state_dict().values())]
    assert sum(close)/len(close)>.9 # a code or two may flip where two levels are equally near

@pytest.mark.parametrize('dtype', [torch.bfloat16,torch.float16])
@pytest.mark.parametrize('method', ['sparsegpt','gptq','spqr','joint'])
def test_half_precision_models(method, dtype):
    "Solved in single precision, stored in the model's own"
    model = make('llama').to(dtype)
    report = compress(model, METHODS_TRIED[method], rows(12))
    assert {p.dtype for p in model.parameters()}=={dtype} and all(o['output_error']<1 for o in report.rows)

def test_forward_dtype_changes_numbers_only_a_little():
    plain,fast = make('llama'),make('llama')
    a,b = compress(plain, Wanda(.5), rows()),compress(fast, Wanda(.5), rows(), forward_dtype='bfloat16')
    flipped = torch.cat([(x.weight==0).ne(y.weight==0).flatten() for p,q in zip(decoder_blocks(plain), decoder_blocks(fast)) for x,y in zip(p.linears, q.linears)])
    assert 0<flipped.float().mean()<.05 and {p.dtype for p in fast.parameters()}=={torch.float32} and len(a.rows)==len(b.rows)
    with pytest.raises(ValueError, match="`forward_dtype` must be 'bfloat16', 'float16' or None, got 'int8'"): compress(fast, Wanda(.5), rows(), forward_dtype='int8')

def test_true_sequential_reads_compressed_inputs():
    "Within a block the down projection sees what the pruned layers before it make"
    seen = []
    class Spy(SparseGPT):
        def compress_layer(self, weight, statistics, round=None):
            seen.append((weight.shape, statistics.squares.clone()))
            return super().compress_layer(weight, statistics, round)
    inputs = []
    for true in (False,True):
        model = make('llama')
        compress(model, Spy(.7, true_sequential=true), rows(), skip=('model.layers.1.*','model.layers.2.*'))
        after = copy.deepcopy(model)
        inputs.append(seen[-1][1]); seen.clear()
    out = []
    hook = after.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda m,args: out.append(args[0]))
    with torch.no_grad(): after(rows())
    hook.remove()
    torch.testing.assert_close(inputs[1], out[0].double().square().sum((0,1)), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(inputs[0], inputs[1], rtol=1e-2)

class Watching(AWQ):
    "Notes the inputs that each layer was compressed for"
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        object.__setattr__(self, 'seen', [])
        object.__setattr__(self, 'prepared', [])
    def for_layer(self, name): return self
    def prepare_block(self, block, batches, statistics):
        self.prepared.append((block.name, len(statistics)))
        return super().prepare_block(block, batches, statistics)
    def compress_layer(self, weight, statistics, keep=None):
        self.seen.append(statistics.squares.clone())
        return super().compress_layer(weight, statistics, keep)

def layer_inputs(model, name):
    "Squared input of a layer, summed over tokens, as the model itself gives it"
    found = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda m,args: found.append(args[0]))
    with torch.no_grad(): model(rows())
    hook.remove()
    return found[0].double().square().sum((0,1))

@pytest.mark.parametrize('true_sequential', [False,True])
def test_pruned_awq_reads_each_block_once_more_for_each_input(true_sequential):
    "Every block starts from the dense past, whatever happens within the block before it"
    model,dense,watching = make('llama'),make('llama'),Watching(4, 10, scale=False)
    report = compress(model, Combined(SparseGPT(.5, block_size=20, true_sequential=true_sequential), watching), rows())
    found = dict(zip([f"{o['block']}.{o['layer']}" for o in report.rows], watching.seen, strict=True))
    for i in range(3):
        name = f'model.layers.{i}.self_attn.q_proj'
        torch.testing.assert_close(found[name], layer_inputs(dense, name), rtol=1e-4, atol=1e-6)
        mixed = copy.deepcopy(dense) # of which this block alone is compressed
        if true_sequential: mixed.model.layers[i].load_state_dict(model.model.layers[i].state_dict())
        name = f'model.layers.{i}.mlp.down_proj'
        torch.testing.assert_close(found[name], layer_inputs(mixed, name), rtol=1e-4, atol=1e-6)
    assert watching.prepared==[(f'model.layers.{i}', 7) for i in range(3)]

def test_a_block_is_prepared_once():
    "Scales are folded while the whole block is dense: no code is changed after it was written down"
    model = make('llama')
    report = compress(model, Combined(SparseGPT(.5, block_size=20, true_sequential=True), AWQ(4, 10)), rows())
    for name,q in report.quantized.items(): assert torch.equal(q.dequantize(), model.get_submodule(name).weight), name
    assert len(report.notes)==len(compress(make('llama'), AWQ(4, 10), rows()).notes)

def test_clipping_decides_on_the_same_tokens_on_each_run():
    "`clip_tokens` holds for layers that are read later, too"
    few = []
    class Looking(AWQ):
        def for_layer(self, name): return self
        def compress_layer(self, weight, statistics, keep=None):
            few.append(None if statistics.sample is None else len(statistics.sample))
            return super().compress_layer(weight, statistics, keep)
    report = compress(make('llama'), Combined(SparseGPT(.5, block_size=20, true_sequential=True), Looking(4, 10, clip_tokens=9)), rows())
    queries = [o['layer'].split('.')[-1] in ('q_proj','k_proj') for o in report.rows]
    assert [n for n,q in zip(few, queries) if not q]==[10]*15 # every tenth of 96

def test_both_methods_may_prepare_a_block():
    @dataclass(frozen=True)
    class Noting(Wanda):
        dense_inputs:bool = True
        def prepare_block(self, block, batches, statistics): return [dict(block=block.name, layers=sorted(statistics))]
    dense,model = make('llama'),make('llama')
    report = compress(model, Combined(Noting(.5), RTN(4, 10)), rows())
    assert [o['block'] for o in report.notes]==[f'model.layers.{i}' for i in range(3)] and len(report.notes[0]['layers'])==7
    assert report.method.dense_inputs

def test_raised_damping_is_told_of_each_method():
    "One of two methods had to help itself, the other asks for as much from the start"
    report = compress(make('llama'), Combined(SparseGPT(.5, damping=0), GPTQ(4, 8, damping=1.)), rows(1, 5))
    assert len(report.raised)==21

def test_one_factor_for_layers_that_share_an_input(monkeypatch):
    import compresscal.compression.methods as methods
    calls,original = [],methods.factorize
    monkeypatch.setattr(methods, 'factorize', lambda *a, **k: calls.append(k) or original(*a, **k))
    compress(make('llama'), Combined(SparseGPT(.5), GPTQ.original(4, 10)), rows())
    assert len(calls)==3*4

# inputs from the dense model, and the published rule

@pytest.mark.parametrize('kind', [Wanda, SparseGPT])
def test_dense_inputs_do_not_depend_on_what_earlier_blocks_became(kind):
    "The last block is the same whether those before it were pruned or not"
    def last(sparsity, dense_inputs):
        model = make('llama')
        compress(model, kind(sparsity, dense_inputs=dense_inputs), rows())
        return model.model.layers[2].mlp.down_proj.weight
    alone = {'model.layers.2.*': .5}
    assert torch.equal(last(.5, True), last(alone, True))
    assert not torch.equal(last(.5, False), last(alone, False))

@pytest.mark.parametrize('kind', [GPTQ, SpQR])
def test_dense_inputs_of_quantizers(kind):
    "The first block sees no difference, the last one does"
    models = [make('llama'), make('llama')]
    for model,dense_inputs in zip(models, (False, True)): compress(model, kind(3, 8, dense_inputs=dense_inputs), rows())
    equal = [torch.equal(a.mlp.down_proj.weight, b.mlp.down_proj.weight) for a,b in zip(*(o.model.layers for o in models))]
    assert equal==[True, False, False]

def test_records_made_before_a_setting_came_keep_their_address():
    assert 'dense_inputs' not in Wanda(.5).settings() and 'dense_inputs' not in AWQ().settings()
    assert Wanda(.5, dense_inputs=True).settings()['dense_inputs'] is True
    assert AWQ(dense_inputs=False).settings()['dense_inputs'] is False

def test_the_published_rule():
    plain = GPTQ.original(3, symmetric=True)
    assert (plain.bits,plain.symmetric,plain.act_order,plain.static_groups,plain.mse)==(3,True,False,False,False)
    assert GPTQ.original(act_order=True).act_order and SparseGPT.original('2:4')==SparseGPT('2:4')
    with pytest.raises(TypeError): SparseGPT.original()

def test_a_method_that_is_worse_than_rounding_says_so():
    @dataclass(frozen=True)
    class Careless(GPTQ):
        def compress_layer(self, weight, statistics, keep=None): return rtn(weight, self.bits-1, self.group_size)
    with pytest.warns(UserWarning, match='Careless 4-bit g8 moves the output of 21 of 21 layers, such as model.layers.0'):
        report = compress(make('llama'), Careless(4, 8), rows())
    assert len(report.worse_than_rounding)==21 and '21 are worse than plain rounding' in repr(report)
    found = report.to_pandas()
    assert (found.output_error>found.rounding_error).all()

@pytest.mark.filterwarnings('error')
def test_a_method_that_rounds_is_not_worse_than_rounding():
    report = compress(make('llama'), AWQ(4, 8, scale=False, clip=False), rows())
    assert report.worse_than_rounding==[] and report.to_pandas().rounding_error.notna().all()
    assert all(o['rounding_error'] is None for o in compress(make('llama'), GPTQ(4, 8), rows(), output_errors=False).rows)

# settings

def test_sparsity_by_layer():
    model = make('llama')
    report = compress(model, SparseGPT({'model.layers.0.*': None, 'down_proj': .25, 'self_attn.*': '2:4', '*': .75}), rows())
    found = {(o['block'],o['layer']): o['sparsity'] for o in report.rows}
    assert {k[0] for k in found}=={'model.layers.1','model.layers.2'}
    for (_,layer),s in found.items(): assert s==pytest.approx(dict(mlp=.25 if 'down' in layer else .75, self_attn=.5)[layer.split('.')[0]], abs=.03)
    report = compress(make('llama'), Wanda(lambda name: .1+.2*int(name.split('.')[2])), rows())
    assert [round(o['sparsity'], 1) for o in report.rows if o['layer'].endswith('gate_proj')]==[.1,.3,.5]

def test_patterns_must_match():
    model = make('llama')
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match="`sparsity` must name layers by patterns that match some, got 'dwn_proj'"): compress(model, Wanda({'dwn_proj': .5, '*': .3}), rows())
    with pytest.raises(ValueError, match="down_proj cannot be compressed by Wanda 8:16.*got 56"): compress(model, Wanda({'down_proj': '8:16'}), rows())
    with pytest.raises(ValueError, match='must leave a layer'): compress(model, Wanda(lambda name: None), rows())
    assert same(model, before)

@pytest.mark.parametrize('make_it,error,match', [
    (lambda: GPTQ(1), ValueError, '`bits` must lie from 2 to 8, got 1'), (lambda: RTN(4.), TypeError, '`bits` must be a whole number'), (lambda: GPTQ(4, 0), ValueError, '`group_size`'),
    (lambda: GPTQ(damping=-.1), ValueError, '`damping` must be a fraction of at least 0, got -0.1'), (lambda: SparseGPT(.5, block_size=0), ValueError, '`block_size`'),
    (lambda: SparseGPT({}), ValueError, 'at least one pattern'), (lambda: SparseGPT({'*': 2}), ValueError, r'lie in \(0, 1\), got 2'), (lambda: RTN(rule='best'), ValueError, '`rule` must be one of'),
    (lambda: SpQR(scale_bits=1), ValueError, '`scale_bits`'), (lambda: SpQR(outlier_threshold=-1), ValueError, '`outlier_threshold`'), (lambda: GPTQ(damping=float('nan')), ValueError, '`damping`'),
    (lambda: GPTQ(damping=float('inf')), ValueError, '`damping`'),
    (lambda: SparseGPT(.5, damping='a little'), ValueError, "`damping` must be a fraction of at least 0, got 'a little'"), (lambda: GPTQ(damping=True), ValueError, '`damping`'),
    *((lambda k=k,o=o: k(**{o: 'no'}), ValueError, f"`{o}` of {k.__name__} must be True or False, got 'no'") for k,o in ((RTN,'symmetric'), (GPTQ,'act_order'), (SpQR,'round_dead'), (AWQ,'scale'))),
    (lambda: Wanda('2:4', ragged=1), ValueError, '`ragged` of Wanda'), (lambda: Combined(SparseGPT(.5), RTN(), RTN()), ValueError, '`joint` of Combined must be True or False, got RTN'),
    (lambda: AWQ(clip_tokens=True), ValueError, '`clip_tokens` must be a whole number'),
    (lambda: RTN(rule='spqr', symmetric=True), ValueError, "`symmetric` must be False with rule 'spqr'"), (lambda: GPTQ(rule='spqr', mse=False, symmetric=True), ValueError, '`symmetric` must be False'),
    (lambda: Combined(Wanda(.5), RTN(rule='spqr')), ValueError, "`quantization` must have a rule whose grids hold 0, got 'spqr'"),
    (lambda: Combined(SparseGPT(.5), GPTQ(4, act_order=False), joint=True), ValueError, '`quantization` must only say which grid where `joint` is set, got act_order=False'),
    (lambda: SparseGPT('2:4', exact=True), ValueError, "`exact` must be False for a pattern.*got True with '2:4'"),
    (lambda: GPTQ(refresh=True, static_groups=True), ValueError, '`refresh` must be False where `static_groups` is set'),
    (lambda: SpQR(outlier_threshold=None, simplified_outliers=True), ValueError, '`simplified_outliers` must be False'),
    (lambda: AWQ(scale=False, grouped_query=True), ValueError, '`scale` is False'),
    (lambda: Combined(RTN(), RTN()), TypeError, '`pruning` must be Magnitude or Wanda or SparseGPT, got RTN'), (lambda: Combined(Wanda(.5), SpQR()), TypeError, '`quantization` must be')])
def test_bad_settings(make_it, error, match):
    with pytest.raises(error, match=match): make_it()

def test_settings_of_patterns_and_fractions_may_stand_side_by_side():
    varied = SparseGPT({'down_proj': '2:4', '*': .3}, exact=True, ragged=True)
    assert varied.for_layer('a.down_proj')==SparseGPT('2:4', ragged=True) and varied.for_layer('a.up_proj')==SparseGPT(.3, exact=True, ragged=True)

@pytest.mark.parametrize('text', ['sparsegpt:0.5+gptq:4+rtn:4', 'wanda:0.5+gptq:4+awq:4', 'wanda:0.5+wanda:0.5+gptq:4'])
def test_three_methods_are_refused(text):
    with pytest.raises(ValueError, match='`method` must be one method, or a pruning and a quantizing one joined by +'.replace('+', r'\+')): parse_method(text)

@pytest.mark.parametrize('text,setting,of', [('awq:4,symmetric=true','symmetric','AWQ'), ('awq:4,true_sequential=true','true_sequential','AWQ'), ('wanda:0.5,symmetric=true','symmetric','Wanda'),
    ('spqr:4,symmetric=true','symmetric','SpQR'), ('rtn:4,act_order=true','act_order','RTN'), ('sparsegpt:0.5,refresh=true','refresh','SparseGPT'), ('magnitude:0.5,damping=0.1','damping','Magnitude')])
def test_settings_of_other_methods_are_refused(text, setting, of):
    takes = ', '.join(f.name for f in fields(METHODS[of.lower()]))
    with pytest.raises(ValueError) as e: parse_method(text)
    assert f"`a setting of {of}` must be one of {takes}, got {setting!r}" in str(e.value)

def test_settings_are_json():
    for o in METHODS_TRIED.values():
        if not isinstance(o, Combined): assert json.loads(json.dumps(o.settings()))['name']==type(o).__name__
    assert len({json.dumps(o.settings()) for o in METHODS_TRIED.values()})==len(METHODS_TRIED)

def test_pruned_weights_stay_zero():
    pruned,both = make('llama'),make('llama')
    compress(pruned, Magnitude('2:4'), rows())
    compress(both, Combined(Magnitude('2:4'), GPTQ(4, 8, act_order=True)), rows())
    for p,q in zip(decoder_blocks(pruned), decoder_blocks(both)):
        for x,y in zip(p.linears, q.linears): assert (y.weight[x.weight==0]==0).all()

# stress

def with_inputs(change):
    "A model of which the MLP's inputs are changed by the norm before it"
    model = make('llama')
    with torch.no_grad():
        for o in model.model.layers: change(o.post_attention_layernorm.weight)
    return model

STRESS = dict(dead=lambda w: w[3:9].zero_(), loud=lambda w: w[5].mul_(1e4), quiet=lambda w: w.mul_(1e-6), all_dead=lambda w: w.zero_())

@pytest.mark.parametrize('stress', STRESS)
@pytest.mark.parametrize('method', ['sparsegpt','gptq_channel','spqr','joint'])
@pytest.mark.parametrize('n,length', [(1,2),(6,16)])
def test_stress_gives_numbers(stress, method, n, length):
    model = with_inputs(STRESS[stress])
    report = compress(model, METHODS_TRIED[method], rows(n, length))
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(o['damping']>0 for o in report.rows)
    gate = next(o for o in report.rows if o['layer']=='mlp.gate_proj')
    assert gate['dead_inputs']==dict(dead=6, all_dead=32).get(stress, 0)

@pytest.mark.parametrize('method', [SparseGPT(.5, damping=0), GPTQ(4, 8, damping=0)])
def test_raised_damping_is_reported(method):
    "Five tokens for 56 inputs: without damping there is no factor"
    report = compress(make('llama'), method, rows(1, 5))
    assert report.raised and 'more damping was needed in' in repr(report) and report.to_pandas().damping.max()>0

def test_report_figure():
    report = compress(make('llama'), GPTQ(4, 8), rows())
    picture = plot_errors(report)
    assert 'GPTQ 4-bit g8' in picture.caption and 'mlp.down_proj' in picture.alt
    assert report.bits==pytest.approx(4+36/8, abs=.1) and report.seconds>0
