"What a model writes: its own distribution, the same bits in any batch, documents that see nothing of each other, and nothing lost to a kill"
import hashlib, copy, json, os, signal, subprocess, sys, time
from contextlib import contextmanager
import pytest, torch
from torch import nn
from transformers import (Lfm2Config, LlamaConfig, LlamaForCausalLM, MambaConfig, MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper,
                          TopKLogitsWarper, TopPLogitsWarper)
from compresscal.calibration.batch_invariance import RowLayer, row_cache
from compresscal.calibration.generation import Generated, Sampling, Script, generate, next_tokens, sequence_uniforms, spread_rows, token_probabilities
from compresscal.models.loading import load_model
from compresscal.models.blocks import fingerprint
from conftest import outside_tests, root
from test_blocks import build, families

pytestmark = pytest.mark.usefixtures('one_thread')
script = Script([[1]], range(2, 10)) # in the tiny models, of 96 tokens that are all about equally likely, a document then ends after a dozen
same = lambda a,b: all(torch.equal(getattr(a, k), getattr(b, k)) for k in ('tokens','nats','drawn','documents'))

@contextmanager
def threads(n):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try: yield
    finally: torch.set_num_threads(before)

# ---- Every family writes from its own distribution, and a new document sees nothing of the last

def own_surprise(model, wrote):
    "The surprise of each token under the model's own forward pass, every document read alone"
    found = torch.zeros_like(wrote.nats)
    for row,begins,out in zip(wrote.tokens, wrote.documents, found):
        places = begins.nonzero()[:,0].tolist()+[len(row)]
        for a,b in zip(places, places[1:]):
            with torch.no_grad(): p = model(row[None,a:b]).logits[0].float().log_softmax(-1)
            out[a+1:b] = -p[:-1].gather(1, row[a+1:b,None])[:,0]
    return found

def check(model, **kwargs):
    before,attends = fingerprint(model),model.config._attn_implementation
    wrote = generate(model, script, 48, range(8), **kwargs)
    assert wrote.documents.sum(1).min()>1 and not wrote.drawn[:,0].any()
    torch.testing.assert_close(wrote.nats, own_surprise(model, wrote)*wrote.drawn, atol=2e-4, rtol=1e-4)
    ended = torch.isin(wrote.tokens, torch.tensor(script.ends)) & wrote.drawn
    assert torch.equal(ended[:,:-1], wrote.documents[:,1:]) and (wrote.tokens[wrote.documents]==1).all()
    assert fingerprint(model)==before and model.config._attn_implementation==attends
    alone = generate(model, script, 48, [5,2], **kwargs)
    assert torch.equal(alone.tokens, wrote.tokens[[5,2]]) and torch.equal(alone.nats, wrote.nats[[5,2]])
    return wrote

fast = ['llama','gpt2','gemma2','mistral','falcon_rw','mixtral']
@pytest.mark.parametrize('family', [o if o in fast else pytest.param(o, marks=pytest.mark.slow) for o in families])
def test_every_family(family): check(build(family))

@pytest.mark.parametrize('implementation', ['sdpa','eager'])
def test_whatever_the_attention_was(implementation): check(build('llama', attn_implementation=implementation).train().eval())

def test_training_mode_and_gradients_are_put_back():
    model = build('llama', dtype=torch.float32).train()
    model.model.layers[0].eval()
    flags = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    wrote = generate(model, script, 12, range(3))
    assert [m.training for m in model.modules()]==flags and torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled()
    model(wrote.tokens, labels=wrote.tokens).loss.backward() # ordinary tensors, fit for training

def test_gradient_checkpointing_is_no_obstacle():
    model = build('llama').train()
    model.gradient_checkpointing_enable()
    assert same(generate(model, script, 12, range(3)), generate(build('llama'), script, 12, range(3)))

# ---- The draw

def test_first_tokens_follow_the_model():
    model = build('llama')
    wrote = generate(model, Script([[1]]), 2, range(6000))
    with torch.no_grad(): p = model(torch.tensor([[1]])).logits[0,-1].softmax(-1).double()
    counts = wrote.tokens[:,1].bincount(minlength=96).double()
    chi = ((counts-6000*p)**2/(6000*p)).sum()
    assert abs(chi-95)<5*(2*95)**.5

@pytest.mark.parametrize('bent,warpers', [
    (dict(t_final=.7), [TemperatureLogitsWarper(.7)]), (dict(top_k=5), [TopKLogitsWarper(5)]), (dict(top_p=.8), [TopPLogitsWarper(.8)]), (dict(min_p=.05), [MinPLogitsWarper(.05)]),
    (dict(t_final=1.3, top_k=30, top_p=.9, min_p=.02), [TemperatureLogitsWarper(1.3),TopKLogitsWarper(30),TopPLogitsWarper(.9),MinPLogitsWarper(.02)])], ids=lambda o: str(o) if isinstance(o, dict) else '')
def test_filters_equal_transformers(bent, warpers):
    logits = 3*torch.randn(50, 96, generator=torch.Generator().manual_seed(0))
    x = logits
    for w in warpers: x = w(None, x)
    t = bent.pop('t_final', None)
    p = token_probabilities(logits, None if t is None else torch.full((50,), t), **bent)
    torch.testing.assert_close(p, x.softmax(-1), atol=1e-6, rtol=1e-4)

def test_settings_act_as_they_say():
    "Every token drawn again, from the model's own forward pass and transformers' filters"
    model,length = build('llama'),24
    sampling = Sampling(t_initial=4., t_final=.6, schedule=6, top_k=40, top_p=.95, repetition_penalty=1.3, greedy=2, eos='continue')
    wrote = generate(model, Script([[1]], [2]), length, [(7,0),(7,1)], sampling, forbidden=torch.tensor([0,3]))
    for i,row in enumerate(wrote.tokens):
        u = sequence_uniforms((7,i), length)
        with torch.no_grad(): logits = model(row[None]).logits[0]
        for t in range(length-1):
            x = logits[t:t+1].clone()
            x[:,[0,3]] = -torch.inf
            x = RepetitionPenaltyLogitsProcessor(1.3)(row[None,:t+1], x)
            x = TemperatureLogitsWarper(.6+3.4*max(0, 1-t/6))(None, x)
            p = TopPLogitsWarper(.95)(None, TopKLogitsWarper(40)(None, x)).softmax(-1)
            assert row[t+1]==(p.argmax() if t<2 else next_tokens(p, u[t+1:t+2])), (i,t)

def test_greedy_equals_generate():
    model = build('llama')
    wrote = generate(model, Script([[1]]), 40, [0], Sampling(greedy=40))
    assert torch.equal(wrote.tokens, model.generate(torch.tensor([[1]]), do_sample=False, max_new_tokens=39, eos_token_id=None, pad_token_id=0))

def test_nothing_forbidden_is_drawn_even_if_it_is_all_but_certain():
    model = build('llama')
    model.lm_head = nn.Linear(32, 96)
    nn.init.zeros_(model.lm_head.weight)
    with torch.no_grad(): model.lm_head.bias.copy_(torch.zeros(96).index_fill(0, torch.tensor([2,4]), 500.))
    for kwargs in (dict(forbidden=torch.tensor([2,4])), dict(forbidden=torch.tensor([4]), sampling=Sampling(eos='suppress')), dict(forbidden=torch.tensor([4]), sampling=Sampling(t_final=.1, eos='suppress'))):
        wrote = generate(model, Script([[1]], [2]), 40, range(8), **kwargs)
        assert not torch.isin(wrote.tokens, torch.tensor([2,4])).any() and wrote.tokens.unique().numel()>80
        torch.testing.assert_close(wrote.nats[:,1:], torch.full((8,39), 500.6931), atol=1e-3, rtol=0)

def test_a_temperature_for_each_sequence():
    model = build('llama')
    mixed = generate(model, script, 30, range(8), temperatures=[.5,1.]*4)
    for t,part in ((.5,slice(0, None, 2)),(1.,slice(1, None, 2))):
        plain = generate(model, script, 30, range(8), Sampling(t))
        assert torch.equal(plain.tokens[part], mixed.tokens[part]) and torch.equal(plain.nats[part], mixed.nats[part])

def test_draw_stays_within_the_weights():
    u = torch.tensor([0.,.5,1-2**-53]).double()
    for n in (1,3,64,65,1000):
        w = torch.zeros(3, n)
        w[:,n//2] = 1e-30
        assert (next_tokens(w, u)==n//2).all()
    g = torch.Generator().manual_seed(0)
    for n in (63,64,4096,50257):
        w = torch.rand(40, n, generator=g)**20*(torch.rand(40, n, generator=g)<.05)
        w[:,n//3] += 1e-20 # no row without weight
        drawn = next_tokens(w, torch.rand(40, generator=g, dtype=torch.float64))
        assert (w.gather(1, drawn[:,None])>0).all()

def test_seeds_that_agree_in_32_bits_have_streams_of_their_own():
    "Among 200,000 sequences several pairs agree in the 32 bits of a hash that PyTorch's generator keeps"
    kept,pairs = {},[]
    for i in range(200_000):
        bits = int.from_bytes(hashlib.blake2b(repr((0, i)).encode(), digest_size=8).digest(), 'little')>>1 & 0xffffffff
        if bits in kept: pairs.append((kept[bits], i))
        kept[bits] = i
    assert pairs
    for a,b in pairs: assert not torch.equal(sequence_uniforms((0,a), 9), sequence_uniforms((0,b), 9))

def test_seeds_of_any_size():
    assert len({tuple(sequence_uniforms(o, 3).tolist()) for o in (0, 2**32, 2**64, 10**40, (10**40, 1))})==5
    assert torch.equal(sequence_uniforms(torch.tensor(3).item(), 5), sequence_uniforms([3], 9)[:5])

def test_streams_are_apart():
    seeds = [0,1,(0,),(0,0),(0,1),(1,0),(0,0,0),-1,2**70]
    rows = torch.stack([sequence_uniforms(o, 50) for o in seeds])
    assert len(rows.unique(dim=0))==len(seeds)-1 # 0 and (0,) are one seed
    assert torch.equal(sequence_uniforms([0,1], 50), rows[4]) and rows.dtype==torch.float64 and 0<=rows.min() and rows.max()<1

# ---- Scripts

def test_prefixes_open_a_sequence_and_later_documents_do_not_see_them():
    model = build('llama')
    prefixes = [[1],[1,20,21],[30]*17,[40,41]]*2
    wrote = generate(model, script, 48, range(8), prefixes=prefixes)
    for row,drawn,o in zip(wrote.tokens, wrote.drawn, prefixes): assert row[:len(o)].tolist()==o and not drawn[:len(o)].any() and drawn[len(o)]
    torch.testing.assert_close(wrote.nats, own_surprise(model, wrote)*wrote.drawn, atol=2e-4, rtol=1e-4)
    assert same(generate(model, script, 48, range(8)), generate(model, script, 48, range(8), prefixes=[[1]]*8))

def test_one_token_that_begins_and_ends():
    model = build('llama')
    wrote = generate(model, Script([[5]], [5]), 60, range(16), temperatures=[3.]*16)
    assert torch.equal(wrote.tokens==5, wrote.documents) and wrote.documents.sum()>20
    torch.testing.assert_close(wrote.nats[:,:], own_surprise_joined(model, wrote)*wrote.drawn, atol=2e-4, rtol=1e-4)

def own_surprise_joined(model, wrote):
    "The same where the end of a document is the beginning of the next: it was drawn by the one, and is read by the other"
    found = own_surprise(model, wrote)
    for row,begins,out in zip(wrote.tokens, wrote.documents, found):
        places = begins.nonzero()[:,0].tolist()
        for a,b in zip(places, places[1:]):
            with torch.no_grad(): out[b] = -model(row[None,a:b]).logits[0,-1].log_softmax(-1)[row[b]]
    return found

def test_turns():
    model,chat = build('llama'),Script([[1,20,21],[22,23]], range(2, 10))
    wrote = generate(model, chat, 60, range(8))
    torch.testing.assert_close(wrote.nats, own_surprise(model, wrote)*wrote.drawn, atol=2e-4, rtol=1e-4)
    for row,begins,drawn in zip(wrote.tokens.tolist(), wrote.documents.tolist(), wrote.drawn.tolist()):
        turns = [t for t in range(60) if row[t] in chat.ends and drawn[t]]
        for k,t in enumerate(turns):
            after = ((22,23),(1,20,21))[k%2][:59-t]
            assert tuple(row[t+1:t+1+len(after)])==after and not any(drawn[t+1:t+1+len(after)]) and (t==59 or begins[t+1]==bool(k%2))

@pytest.mark.parametrize('eos', ['continue','suppress'])
def test_one_document(eos):
    model = build('llama')
    for o in (script,Script([[1,20],[22]], script.ends)):
        wrote = generate(model, o, 60, range(8), Sampling(eos=eos))
        ends = torch.isin(wrote.tokens, torch.tensor(script.ends)) & wrote.drawn
        assert wrote.documents.sum()==8 and wrote.documents[:,0].all()
        torch.testing.assert_close(wrote.nats, own_surprise(model, wrote)*wrote.drawn, atol=2e-4, rtol=1e-4)
        turns = len(o.segments)-1
        assert (ends.sum(1).max()<=turns) if eos=='suppress' else ends.sum()>20
        assert (wrote.drawn.sum(1)>=60-sum(map(len, o.segments))).all() and (turns==0 or (~wrote.drawn).sum()==24)

# ---- The same bits

def check_bits(model, n, length, batch_sizes=(1,3,5,16), counts=(1,2), **kwargs):
    with threads(1): first = generate(model, script, length, range(n), batch_size=n, **kwargs)
    for count in counts:
        for size in batch_sizes:
            with threads(count): other = generate(model, script, length, range(n), batch_size=size, **kwargs)
            assert same(first, other), (size,count)
    return first

def test_bits():
    check_bits(build('llama'), 16, 24, counts=(1,))
    check_bits(build('llama'), 5, 6, (5,), (2,)) # of such small matrices, a second thread mostly waits

def test_bits_of_bent_draws():
    check_bits(build('llama'), 6, 24, (1,4), (1,), sampling=Sampling(t_initial=5., schedule=5, top_k=50, top_p=.9, min_p=.01, repetition_penalty=1.1, greedy=1), prefixes=[[1]*i for i in range(1, 7)],
               temperatures=[.5,1,1.5]*2, forbidden=torch.tensor([0]))

def test_bits_of_blocks_on_disk():
    "The embedded model's matrices are large enough that another library for products shows in the last bits"
    whole,lean = (generate(load_model(offload=o)[0], Script([[0]]), 24, range(8)) for o in (False,True))
    assert same(whole, lean)

@pytest.mark.slow
def test_bits_of_blocks_on_disk_of_a_real_model():
    "Where a folder with SmolLM2-135M-Instruct is named"
    folder = os.environ.get('COMPRESSCAL_SMOLLM2')
    if not folder: pytest.skip('set COMPRESSCAL_SMOLLM2 to a folder with SmolLM2-135M-Instruct')
    whole,lean = (generate(load_model(folder, offload=o)[0], Script([[1]]), 32, range(8)) for o in (False,True))
    assert same(whole, lean)

@pytest.mark.slow
def test_bits_of_the_embedded_model():
    "51,200 tokens: 128 sequences of 400, many documents, in batches of 128 and of 64; smaller batches and two threads, which wait for each other on a busy machine, write a part"
    model,tokenizer = load_model()
    never,start = torch.tensor([0,2]),Script([[0]], [1,*tokenizer("\n", add_special_tokens=False)["input_ids"]]) # a line is a document
    with threads(1): first = generate(model, start, 400, range(128), batch_size=128, forbidden=never)
    assert first.documents.sum()>500 and first.tokens.numel()>50_000
    for count,size,n,length in ((1,64,128,400),(1,24,48,400),(1,5,5,400),(1,1,1,400),(2,64,64,60),(2,16,16,60),(2,3,3,60)):
        with threads(count): part = generate(model, start, length, range(n), batch_size=size, forbidden=never)
        for k in ('tokens','nats','drawn','documents'): assert torch.equal(getattr(part, k), getattr(first, k)[:n,:length]), (count,size,k) # a shorter text is the beginning of a longer one

@pytest.mark.slow
@pytest.mark.parametrize('family', families)
def test_bits_of_every_family(family):
    model = build(family)
    check_bits(model, 24, 32, (5,16), (1,))
    check_bits(model, 24, 8, (16,), (2,)) # with two threads, such small models mostly wait

@pytest.mark.slow
@pytest.mark.parametrize('dtype', [torch.float32,torch.bfloat16])
@pytest.mark.parametrize('width', [64,128,512,1024])
def test_bits_of_widths(width, dtype):
    config = LlamaConfig(vocab_size=512, hidden_size=width, intermediate_size=width*11//4, num_hidden_layers=2, num_attention_heads=width//32, num_key_value_heads=width//64, max_position_embeddings=128)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval().to(dtype)
    check_bits(model, 16, 16, (5,8), (1,))
    check_bits(model, 16, 8, (8,), (2,))

# ---- What is finished stays

def test_kept_batches_are_found_again(tmp_path, monkeypatch):
    import compresscal.calibration.generation as module
    model,seeds = build('llama'),range(20)
    whole = generate(model, script, 20, seeds)
    runs,own = [],module._run
    monkeypatch.setattr(module, '_run', lambda *a: runs.append(len(a[4])) or own(*a))
    def again(**kwargs):
        runs.clear()
        return generate(model, script, 20, seeds, folder=tmp_path, **kwargs)
    assert same(again(batch_size=8), whole) and runs==[8,8,8] and len(list(tmp_path.iterdir()))==3
    assert same(again(), whole) and runs==[]
    assert same(generate(model, script, 20, [19,0,30], folder=tmp_path), generate(model, script, 20, [19,0,30])) # some known, some new, in another order
    files = sorted(tmp_path.glob('*.safetensors'))
    files[0].write_bytes(files[0].read_bytes()[:-7])              # cut short
    data = bytearray(files[1].read_bytes()); data[-3] ^= 1; files[1].write_bytes(data) # one bit changed
    (tmp_path/'left.part').write_bytes(b'of a writer that died')
    (tmp_path/'other.safetensors').write_bytes(b'')
    assert same(again(batch_size=8), whole) and runs
    assert same(again(sampling=Sampling(.5)), generate(model, script, 20, seeds, Sampling(.5))) # other settings are another run
    other = build('llama', seed=1)
    assert same(generate(other, script, 20, seeds, folder=tmp_path), generate(other, script, 20, seeds))

PROGRAM = '''
import sys, torch
from compresscal.calibration.generation import Script, generate
from compresscal.models.loading import load_model
torch.set_num_threads(1)
generate(load_model()[0], Script([[0]], [1]), 40, range(40), batch_size=8, folder=sys.argv[1], progress=False)
'''

def test_a_kill_loses_at_most_a_batch(tmp_path):
    process = subprocess.Popen([sys.executable,'-c',PROGRAM,str(tmp_path)], env=outside_tests(root))
    for _ in range(6000):
        if list(tmp_path.glob('*.safetensors')) or process.poll() is not None: break
        time.sleep(.01)
    process.kill()
    process.wait()
    def files(): return {o.name: o.stat().st_mtime_ns for o in tmp_path.glob('*.safetensors')}
    kept,(model,_) = files(),load_model()
    assert process.returncode==-signal.SIGKILL and 1<=len(kept)<5
    resumed = generate(model, Script([[0]], [1]), 40, range(40), batch_size=8, folder=tmp_path)
    assert len(files())==5 and kept.items()<=files().items()
    assert same(resumed, generate(model, Script([[0]], [1]), 40, range(40)))

# ---- How many at a time

def test_batches_fit_and_are_even():
    for n in (1,7,8,64,65,100,130,1000):
        for fit in (1,8,20,64,500):
            for most in (None,64):
                size = spread_rows(n, 1000, 2000*fit, most)
                assert 1<=size<=n+7 and size<=max(8, fit)+7 and (most is None or size<=max(64, n) and (n<=64 or size<=64))
                assert size%8==0 or size==n

def test_the_largest_batch_that_fits(monkeypatch):
    import compresscal.calibration.generation as module
    model,sizes,own = build('llama'),[],module._run
    monkeypatch.setattr(module, '_run', lambda *a: sizes.append(len(a[4])) or own(*a))
    generate(model, script, 10, range(100))
    assert sizes==[104]
    with torch.inference_mode(): each = module._measure(model, 1, 10, torch.device('cpu'))[1]
    cache = row_cache(model, 10)
    with torch.no_grad(): model(torch.ones(1, 1).long(), past_key_values=cache)
    assert each>=sum(o.keys.nbytes+o.values.nbytes for o in cache.layers)>0
    monkeypatch.setattr(module, 'free_device_memory', lambda device: 2*48*each)
    sizes.clear()
    generate(model, script, 10, range(100))
    assert sizes==[40,40,24]

# ---- Other kinds of model

def test_a_state_cannot_be_started_anew_for_one_row():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(Lfm2Config(vocab_size=96, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, layer_types=['conv','full_attention'], pad_token_id=0))
    with pytest.raises(ValueError, match=r"`eos` must be continue or suppress for Lfm2ForCausalLM: its blocks keep a state \(conv\)"): generate(model, script, 10, range(2))
    wrote = generate(model, script, 30, range(8), Sampling(eos='continue'))
    torch.testing.assert_close(wrote.nats, own_surprise(model, wrote)*wrote.drawn, atol=2e-4, rtol=1e-4)
    assert same(wrote, generate(model, script, 30, range(8), Sampling(eos='continue'), batch_size=3))

def test_a_model_of_another_kind_of_cache_is_refused():
    model = build(MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, state_size=4))
    bad('`model` must take `past_key_values`, which MambaForCausalLM does not', model=model)

@pytest.mark.parametrize('dtype', [torch.bfloat16,torch.float16])
def test_half_precision(dtype):
    model = build('llama', dtype)
    wrote = generate(model, script, 32, range(8))
    torch.testing.assert_close(wrote.nats, own_surprise(model, wrote)*wrote.drawn, atol=.15, rtol=.02)
    assert same(wrote, generate(model, script, 32, range(8), batch_size=3)) and wrote.nats.dtype==torch.float32

def test_rows_beyond_the_embedding_are_never_drawn():
    model = build('llama')
    model.lm_head = nn.Linear(32, 128)
    nn.init.zeros_(model.lm_head.weight)
    assert generate(model, script, 60, range(16)).tokens.max()<96

def test_a_window_that_hides_the_beginning(): check(build('mistral')) # window of 5, in texts of 48

# ---- Errors

def bad(match, error=ValueError, model=None, length=8, seeds=(0,1), s=script, **kwargs):
    with pytest.raises(error, match=match): generate(model or build('llama'), s, length, seeds, **kwargs)

def test_errors():
    bad('`length` must be a whole number, 2 or more, got 1', length=1)
    bad('`length` must be a whole number, 2 or more, got 8.0', length=8.)
    bad("`length` must fit the model's context of 64 tokens, got 65", length=65)
    bad('`seeds` must have one seed or more, got none', seeds=[])
    bad('`batch_size` must be a whole number, 1 or more, got 0', batch_size=0)
    bad('`batch_size` must be a whole number, 1 or more, got -3', batch_size=-3)
    bad('`prefixes` must be as many as `seeds`, 2, got 1', prefixes=[[1]])
    bad('`prefixes` must be shorter than `length`=8, got one of 8 tokens', prefixes=[[1]*8]*2)
    bad('`prefixes` must hold a token or more each, got an empty one', prefixes=[[1],[]])
    bad('`prefixes` must hold a token or more each, got an empty one', prefixes=[[],[]])
    bad('`temperatures` must be above 0, got 0.0', temperatures=[1,0])
    bad('`temperatures` must be above 0, got nan', temperatures=[1,float('nan')])
    bad('must hold ids of 0 to 95, got 1 to 96', s=Script([[96]], [1]))
    bad('must hold ids of 0 to 95, got -1 to 9', prefixes=[[1,-1]]*2)
    bad('`forbidden` must hold ids of 0 to 95, got 99 to 99', forbidden=torch.tensor([99]))
    bad('`forbidden` must leave a token to be drawn, got all 96', forbidden=torch.arange(96))
    bad('`forbidden` must leave a token to be drawn, got all 96', forbidden=torch.arange(10), s=Script([[1]], range(10, 96)), sampling=Sampling(eos='suppress'))

@pytest.mark.parametrize('settings,match', [
    (dict(t_final=0), '`t_final` must be a number above 0, got 0'), (dict(t_final=-1.), '`t_final`'), (dict(t_final=float('nan')), '`t_final`'), (dict(t_final='hot'), "`t_final`.*got 'hot'"),
    (dict(t_initial=0., schedule=3), '`t_initial`'), (dict(t_initial=3.), '`schedule` must be 1 or more where there is a `t_initial`, got 0'), (dict(schedule=-1), '`schedule`'), (dict(schedule=1.5), '`schedule`'),
    (dict(top_k=0), '`top_k` must be a whole number, 1 or more, got 0'), (dict(top_k=2.), '`top_k`'), (dict(top_p=0.), '`top_p` must be above 0 and at most 1, got 0.0'), (dict(top_p=1.1), '`top_p`'),
    (dict(min_p=-.1), '`min_p`'), (dict(repetition_penalty=0), '`repetition_penalty`'), (dict(greedy=-1), '`greedy` must be a whole number, 0 or more, got -1'), (dict(greedy=True), '`greedy`'),
    (dict(eos='stop'), "`eos` must be restart, continue or suppress, got 'stop'")])
def test_bad_settings(settings, match):
    with pytest.raises(ValueError, match=match): Sampling(**settings)

def test_bad_scripts():
    for segments in ([], [[]], [[1],[]]):
        with pytest.raises(ValueError, match='`segments` must be one or more rows of token ids, none of them empty'): Script(segments, [1])
    with pytest.raises(ValueError, match='must be token ids, 0 or more'): Script([[1]], [-1])

def test_settings_are_json():
    for o in (Sampling(2., 10., 20, 5, .9, .1, 1.2, 3, 'suppress'),Script([[1,2],[3]], [4])): assert json.loads(json.dumps(o.settings()))
    assert Sampling(**json.loads(json.dumps(Sampling(2.).settings())))==Sampling(2.) and Script(**json.loads(json.dumps(script.settings())))==script

def test_nan_is_one_error_and_leaves_nothing(tmp_path):
    for where in (lambda m: m.lm_head.weight, lambda m: m.model.layers[1].mlp.down_proj.weight):
        model = build('llama')
        with torch.no_grad(): where(model)[3] = float('nan')
        bad('`model` must give finite logits, but had NaN or infinity before token 1', model=model, length=48, folder=tmp_path/'kept')
    assert not (tmp_path/'kept').exists() or not list((tmp_path/'kept').iterdir())

def test_results_print():
    wrote = generate(build('llama'), script, 8, range(10))
    assert len(wrote)==10 and repr(wrote).startswith('Generated: 10 sequences of 8 tokens') and repr(wrote).endswith('...')
    assert wrote._repr_markdown_().count('\n')==10 and list(wrote.to_pandas().columns)==['drawn','documents','perplexity'] and wrote.perplexity.shape==(10,)
    assert wrote.perplexity[0].item()==pytest.approx((wrote.nats[0].sum()/wrote.drawn[0].sum()).exp().item(), rel=1e-5)
