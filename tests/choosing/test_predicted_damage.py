"The predicted damage score: against brute force and simulation, in several families, and rows of the study's table made again"
import copy, math
import pandas as pd, pytest, torch
from compresscal.compression.input_statistics import InputStatistics
from compresscal.calibration.sampling import sample_sets
from compresscal.compression.compress import compress
from compresscal.choosing.predicted_damage import layer_damage, method_damage, predicted_damage, repair_costs, rounding_damage
from compresscal.evaluation.perplexity import perplexity
from compresscal.text.installed_text import held_out_documents
from compresscal.compression.methods import AWQ, GPTQ, RTN, Combined, Magnitude, SparseGPT, SpQR, Wanda, damped_factor
from compresscal.models.loading import load_model
from compresscal.models.blocks import decoder_blocks, fingerprint
from compresscal.compression.compression_report import output_energy
from compresscal.calibration.calibration_set import CalibrationSet
from compresscal.calibration.self_text import random_vocabulary
from conftest import root
from test_blocks import families, make

pytestmark = pytest.mark.usefixtures('one_thread')

def rows(n=6, length=16, seed=1): return torch.randint(3, 96, (n,length), generator=torch.Generator().manual_seed(seed))
def gaussian(n, width=24, seed=0, mixing=None):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=g)
    return InputStatistics(width, moments=True).add(x if mixing is None else x@mixing, 1)

def test_against_hooks_and_plain_products():
    "The choice part, with inputs caught by hooks and masks made by sorting"
    model,candidate,reference = make('llama'),rows(seed=2),rows(seed=3)
    def inputs(tokens):
        seen,linears = {},[(n,m) for n,m in model.named_modules() if isinstance(m, torch.nn.Linear) and 'head' not in n]
        hooks = [m.register_forward_pre_hook(lambda m,args,n=n: seen.__setitem__(n, args[0].flatten(0, -2).double())) for n,m in linears]
        with torch.no_grad(): model(tokens)
        for h in hooks: h.remove()
        return seen,dict(linears)
    (xs,linears),(ys,_),expected = inputs(candidate),inputs(reference),{}
    for n,m in linears.items():
        w = m.weight.detach().double()
        gone = (w.abs()*xs[n].norm(dim=0)).argsort(dim=1, stable=True)[:,:w.shape[1]//2]
        expected[n] = (((w.scatter(1, gone, 0.)-w)@ys[n].T).norm()/(w@ys[n].T).norm()).item()**2
    ranking = predicted_damage(model, dict(a=candidate), reference)
    found = {o['layer']: o['damage'] for o in ranking.rows if o['part']=='choice'}
    assert found==pytest.approx(expected, rel=2e-3)
    assert ranking.scores['a'][0]==pytest.approx(ranking.to_pandas().loc['a',['choice','repair']].sum())

def test_repair_costs_by_simulation():
    "Random errors, each made good by the columns after it as GPTQ does, charged on another text"
    mixing = torch.eye(24)+.4*torch.randn(24, 24, generator=torch.Generator().manual_seed(5))
    few,other = gaussian(30, mixing=mixing),gaussian(2000, seed=1, mixing=torch.randn(24, 24, generator=torch.Generator().manual_seed(6)))
    upper,g,n = damped_factor(few, damping=.01).upper,torch.Generator().manual_seed(7),20_000
    errors,change = torch.randn(n, 24, generator=g),torch.zeros(n, 24)
    for j in range(24): change[:,j:] += errors[:,j:j+1]*upper[j,j:]/upper[j,j]
    assert output_energy(change, other)/n==pytest.approx(repair_costs(few, other).sum().item(), rel=.02)

@pytest.mark.parametrize('bits', [3,4,8])
def test_rounding_damage_is_that_of_gptq(bits):
    mixing = torch.eye(24)+.3*torch.randn(24, 24, generator=torch.Generator().manual_seed(5))
    few,true,w = gaussian(40, mixing=mixing),gaussian(3000, seed=1, mixing=mixing),torch.randn(400, 24, generator=torch.Generator().manual_seed(2))
    assert rounding_damage(w, repair_costs(few, true), true, bits)==pytest.approx(method_damage(GPTQ(bits, None), w, few, true), rel=.1)

def test_no_matter_how_large_or_long():
    a,true,w = gaussian(50),gaussian(60, seed=1),torch.randn(8, 24, generator=torch.Generator().manual_seed(3))
    def both(w, s, t): return [method_damage(Wanda(.5), w, s, t), rounding_damage(w, repair_costs(s, t), t)]
    x = torch.randn(60, 24, generator=torch.Generator().manual_seed(1))
    longer = InputStatistics(24, moments=True).add(10*x.repeat(3, 1), 7)
    assert both(5*w, a, longer)==pytest.approx(both(w, a, true), rel=1e-4)

def test_layer_that_puts_out_nothing():
    quiet = InputStatistics(2, moments=True).add(torch.tensor([[0.,1.]]))
    assert math.isnan(layer_damage(torch.tensor([[1.,0.]]), torch.zeros(1, 2), quiet))
    assert math.isnan(rounding_damage(torch.tensor([[1.,0.]]), repair_costs(quiet, quiet), quiet))

@pytest.mark.parametrize('family', ['llama','gpt2','opt','gemma3','mixtral','falcon_7b'])
def test_families(family):
    model,before = make(family),fingerprint(make(family))
    ranking = predicted_damage(model, dict(a=rows(), b=[rows(4, 12, 5), rows(2, 16, 6)]), rows(seed=9))
    names = [f'{b.name}.{o.name}' for b in decoder_blocks(model) for o in b.linears]
    assert set(ranking.layers().index)<=set(names) and (family=='mixtral' or len(ranking.layers())==len(names))
    assert all(math.isfinite(o['damage']) and o['damage']>0 for o in ranking.rows)
    assert {k: len(v) for k,v in ranking.scores.items()}==dict(a=1, b=2)
    assert fingerprint(model)==before

@pytest.mark.parametrize('family', ['llama','gpt2'])
def test_batches_padding_and_spilling_do_not_matter(family):
    model = make(family)
    tokens,lengths = rows(),torch.tensor([16,5,9,16,3,12])
    mask = torch.arange(16)>=16-lengths[:,None] # padding on the left
    candidate,reference = CalibrationSet.from_tokens(tokens, mask),rows(seed=4)
    def score(**kwargs): return predicted_damage(model, dict(a=candidate), reference, **kwargs).scores['a'][0]
    whole = score()
    assert score(batch_size=1)==pytest.approx(whole, rel=1e-4)
    assert score(batch_size=6, memory=0)==pytest.approx(whole, rel=1e-4)
    assert score(method=SparseGPT(.5), batch_size=1)==pytest.approx(score(method=SparseGPT(.5)), rel=1e-3)
    other = tokens.masked_fill(~mask, 7)
    assert predicted_damage(model, dict(a=CalibrationSet.from_tokens(other, mask)), reference).scores['a'][0]==pytest.approx(whole, rel=1e-6)

def test_bits_repeat_and_names_keep_their_order():
    model = make('llama')
    one,two = (predicted_damage(model, dict(b=rows(seed=2), a=rows(seed=2), c=rows(seed=3)), rows(seed=9)) for _ in range(2))
    assert one.rows==two.rows and one.floor==two.floor
    assert [o for o in one.scores if o in 'ab']==['b','a'] # equal sets stay as they were given

def test_training_mode_and_gradients_stay():
    model = make('llama').train()
    predicted_damage(model, dict(a=rows()), rows(seed=9))
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())

def test_offloaded_model(tiny_checkpoint):
    tokens,reference = rows(),rows(seed=4)
    inside,outside = (predicted_damage(load_model(tiny_checkpoint, offload=o)[0], dict(a=tokens), reference) for o in (False,True))
    assert inside.scores==outside.scores and inside.floor_score==outside.floor_score

@pytest.mark.parametrize('method', [Wanda(.6), Wanda('2:4'), SparseGPT('2:4'), GPTQ(3, None), SpQR(3), Combined(SparseGPT(.5), GPTQ(4, None))], ids=lambda o: o.label)
def test_methods_answer_for_themselves(method):
    model = make('llama')
    ranking = predicted_damage(model, dict(a=rows(64, 16), few=rows(1, 16)), rows(64, 16, 9), method=method)
    assert ranking.method==method.label and list(ranking.scores)==['a','few'] and list(ranking.to_pandas())==['damage','excess','spread','sets']
    block = decoder_blocks(model)[0]
    assert {o['part'] for o in ranking.rows}=={method.label} and f'{block.name}.mlp.down_proj' in ranking.layers().index

def test_settings_by_layer_leave_layers_alone():
    ranking = predicted_damage(make('llama'), dict(a=rows()), rows(seed=9), method=Wanda({'mlp.*': .5}))
    assert all('mlp' in o for o in ranking.layers().index)
    with pytest.raises(ValueError, match='must name layers by patterns that match'): predicted_damage(make('llama'), dict(a=rows()), rows(seed=9), method=Wanda({'none': .5}))

def test_views():
    ranking = predicted_damage(make('llama'), dict(good=[rows(seed=2), rows(seed=3)], few=rows(1)), rows(64, 16, 9))
    table = ranking.to_pandas()
    assert list(table.index)==list(ranking.scores) and ranking.best==table.index[0]
    assert (table.excess==table.damage/ranking.floor_score-1).all() and math.isnan(table.spread['few'])
    assert 'Predicted damage to tokens' in repr(ranking) and '| few |' in ranking._repr_markdown_()
    picture = ranking.plot(kinds=dict(good='text'))
    assert picture.to_bytes()[:4]==b'\x89PNG' and 'few' in picture.alt

@pytest.mark.parametrize('wrong, error, says', [
    (dict(candidates=[rows()]), TypeError, '`candidates` must be sets by name'),
    (dict(candidates={}), ValueError, 'at least one set, got none'),
    (dict(candidates=dict(a=[])), ValueError, "got none for 'a'"),
    (dict(candidates=dict(a=rows().float())), TypeError, '`tokens` must be an int64 tensor'),
    (dict(candidates=dict(a='docs')), TypeError, r"`candidates\['a'\]` must be a CalibrationSet"),
    (dict(reference='docs'), TypeError, '`reference` must be a CalibrationSet'),
    (dict(reference=rows()), ValueError, "no candidate, got the set of 'a'"),
    (dict(candidates=dict(a=rows()+500)), ValueError, '`input_ids` must lie in'),
    (dict(method='wanda'), TypeError, 'must be a Method'),
    (dict(method=Magnitude(.5)), ValueError, 'whatever the text'),
    (dict(method=RTN(4)), ValueError, 'whatever the text'),
    (dict(method=AWQ(4)), ValueError, 'several layers together'),
    (dict(method=Combined(Wanda(.5), AWQ(4))), ValueError, 'several layers together'),
    (dict(batch_size=0), ValueError, '`batch_size` must be a whole number, 1 or more'),
], ids=lambda o: None if not isinstance(o, dict) else '-'.join(f'{k}' for k in o))
def test_errors(wrong, error, says):
    args = dict(candidates=dict(a=rows()), reference=rows(seed=9))|wrong
    with pytest.raises(error, match=says): predicted_damage(make('llama'), **args)

def test_nan_is_named():
    model = make('llama')
    class Broken(Wanda):
        def compress_layer(self, weight, statistics): raise ValueError('no')
    with pytest.raises(ValueError, match='self_attn.q_proj cannot be judged: no'): predicted_damage(model, dict(a=rows()), rows(seed=9), method=Broken(.5))

def study_texts(tokenizer):
    "The texts of the study: references and evaluation texts by kind"
    def draw(kind, split, n, seed): return sample_sets([o.text for o in held_out_documents()[kind][split]], tokenizer, 1, n, 128, seed=seed)[0]
    return {k: draw(k, 'dev', 64, 3) for k in ('docs','code')},{k: draw(k, 'test', 48, 7) for k in ('docs','code')}

@pytest.mark.slow
def test_rows_of_the_study_made_again():
    "Sets, predictions and perplexities of three sources, from nothing"
    table = pd.read_csv(root/'nbs'/'studies'/'predicted_damage.csv').set_index('hash')
    model,tokenizer = load_model()
    references,tests = study_texts(tokenizer)
    if set(table.texts)!={' '.join(o.hash for part in (references,tests) for o in part.values())}: pytest.skip('the installed packages hold other text than those the table was made with')
    docs,code = (sample_sets([o.text for o in held_out_documents()[k]['calibration']], tokenizer, 2, 32, 256, rule='pack') for k in ('docs','code'))
    sets = {'docs': docs[0], 'code': code[1], 'random tokens': random_vocabulary(tokenizer, 2, 32, 256)[0]}
    assert {table.source[o.hash]: o.hash for o in sets.values()}=={k: o.hash for k,o in sets.items()}
    for k,reference in references.items():
        found = predicted_damage(model, sets, reference).to_pandas()
        by_name = predicted_damage(model, sets, reference, method=GPTQ.original(3, None)).to_pandas().damage
        for name,o in sets.items():
            assert found.loc[name,['choice','repair']].tolist()==pytest.approx(table.loc[o.hash,[f'choice {k}',f'repair {k}']].tolist(), rel=2e-3)
            assert by_name[name]==pytest.approx(table.at[o.hash,f'GPTQ by {k}'], rel=1e-2)
    for name,method in {'docs': SparseGPT(.6), 'code': GPTQ.original(3, None), 'random tokens': Wanda(.6)}.items():
        compressed = copy.deepcopy(model)
        compress(compressed, method, sets[name])
        for k,o in tests.items(): assert perplexity(compressed, o).value==pytest.approx(table.at[sets[name].hash,f'{type(method).__name__} {k}'], rel=1e-2)

def test_cuda_gives_the_same():
    if not torch.cuda.is_available(): pytest.skip('no CUDA device')
    model = make('llama')
    here = predicted_damage(model, dict(a=rows()), rows(seed=9)).scores['a'][0]
    assert predicted_damage(model.cuda(), dict(a=rows()), rows(seed=9)).scores['a'][0]==pytest.approx(here, rel=1e-3)

def test_nasty_names_are_shown_as_names():
    nasty = 'a|b<i>\x1b[31m'
    ranking = predicted_damage(make('llama'), {nasty: rows(), 'b': rows(seed=2)}, CalibrationSet.from_tokens(rows(seed=9), name=nasty))
    table = ranking._repr_markdown_()
    assert '\x1b' not in table+repr(ranking) and '<i>' not in table
    assert len({o.count('|')-o.count(r'\|') for o in table.split('\n')[2:]})==1
