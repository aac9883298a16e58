"Answers: the same tokens in any batch, those of transformers' own generate, and nothing lost to a kill."
import json, os, random, signal, subprocess, sys, time
import pytest, torch
from torch import nn
from transformers import Lfm2Config, MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from compresscal.summaries.answers import Answer, padded_length, write_answers
from compresscal.calibration.generation import Sampling, next_tokens, sequence_uniforms
from compresscal.text.installed_text import held_out_documents
from compresscal.models.loading import load_model
from compresscal.models.blocks import fingerprint
from compresscal.summaries.prompts import fit
from conftest import outside_tests, root
from test_blocks import build, families

pytestmark = pytest.mark.usefixtures('one_thread')

def rows(n=21, low=3, high=40, seed=0):
    rng = random.Random(seed)
    return [[rng.randrange(3, 96) for _ in range(rng.randint(low, high))] for _ in range(n)]

def by_generate(model, ids, max_tokens, ends):
    "The same by transformers, one prompt at a time"
    out = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)).long(), max_new_tokens=max_tokens, do_sample=False, pad_token_id=0, eos_token_id=list(ends) or None)[0,len(ids):].tolist()
    at = next((i for i,o in enumerate(out) if o in ends), None)
    return Answer(tuple(out[:at]), at is not None)

def check(model, prompts, max_tokens=20, tolerated=0):
    "Some answers end and others do not: the ends are what a few answers say on the way"
    before,attends = fingerprint(model),model.config._attn_implementation
    ends = sorted({o.tokens[7] for o in write_answers(model, prompts[:4], 8)})
    found = write_answers(model, prompts, max_tokens, ends)
    assert fingerprint(model)==before and model.config._attn_implementation==attends
    for size in (1, 3, 8, 32): assert write_answers(model, prompts, max_tokens, ends, batch_size=size)==found, size
    assert write_answers(model, prompts[::-1], max_tokens, ends, batch_size=5)==found[::-1]
    drawn = write_answers(model, prompts, max_tokens, ends, sampling=Sampling(t_final=.9), seed=5)
    for size in (1, 8): assert write_answers(model, prompts, max_tokens, ends, sampling=Sampling(t_final=.9), seed=5, batch_size=size)==drawn
    assert drawn!=found and any(o.ended for o in found) and not all(o.ended for o in found+drawn)
    assert sum(by_generate(model, o, max_tokens, ends)!=a for o,a in zip(prompts, found))<=tolerated
    return found

fast = ['llama', 'gpt2', 'gemma2']
@pytest.mark.parametrize('family', [o if o in fast else pytest.param(o, marks=pytest.mark.slow) for o in families])
def test_every_family(family): check(build(family), rows(13 if family in fast else 9))

@pytest.mark.slow
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
def test_lengths_of_several_steps(dtype):
    "Prompts that are padded to 64, 128, 192 and 640"
    config = families['llama'].__class__(**{**families['llama'].to_dict(), 'max_position_embeddings': 1024})
    model,prompts = build(config, dtype),rows(10, 3, 190, 1)+rows(2, 520, 600, 2)
    found = write_answers(model, prompts, 12, range(3, 9))
    for size in (1, 4, 8): assert write_answers(model, prompts, 12, range(3, 9), batch_size=size)==found
    if dtype is torch.float32: assert [by_generate(model, o, 12, range(3, 9)) for o in prompts]==found

def test_a_state_is_read_without_padding():
    model = build(Lfm2Config(vocab_size=96, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
                             layer_types=['conv', 'full_attention'], block_multiple_of=8))
    prompts = rows(6)+[rows(1, 20, 20, 9)[0][:12] for _ in range(3)]
    found = write_answers(model, prompts, 16, range(3, 9))
    for size in (1, 3): assert write_answers(model, prompts, 16, range(3, 9), batch_size=size)==found
    assert [by_generate(model, o, 16, range(3, 9)) for o in prompts]==found

@pytest.fixture(scope='module')
def embedded():
    model,tokenizer = load_model()
    documents = [o.text.rpartition('\n\nSummary:\n')[0].removeprefix('Document:\n') for o in held_out_documents()['summaries']['test']]
    return model,tokenizer,[list(fit('document', tokenizer, o, 460).ids) for o in documents]

@pytest.mark.slow
def test_the_embedded_model(embedded):
    model,tokenizer,prompts = embedded
    check(model, prompts[:20], 24)

@pytest.mark.slow
def test_the_embedded_model_on_200_docstrings_equals_generate(embedded):
    model,tokenizer,prompts = embedded
    ends = [tokenizer.eos_token_id]
    found = write_answers(model, prompts[:200], 40, ends)
    assert sum(by_generate(model, o, 40, ends)!=a for o,a in zip(prompts[:200], found))<=1

@pytest.mark.slow
def test_threads_do_not_matter(embedded):
    model,tokenizer,prompts = embedded
    found = write_answers(model, prompts[:16], 24, [1])
    torch.set_num_threads(2)
    try: assert write_answers(model, prompts[:16], 24, [1])==found
    finally: torch.set_num_threads(1)

# ---- Draws

def test_settings_act_as_they_say():
    "Every token drawn again, from the model's own forward pass and transformers' filters; the prompt counts as held"
    model,length = build('llama'),16
    sampling = Sampling(t_initial=4., t_final=.6, schedule=6, top_k=40, top_p=.95, min_p=.01, repetition_penalty=1.3, greedy=2)
    prompts = rows(5)
    for i,(prompt,found) in enumerate(zip(prompts, write_answers(model, prompts, length, sampling=sampling, seed=7))):
        u,row = sequence_uniforms((7,i), length),torch.tensor([prompt+list(found.tokens)])
        with torch.no_grad(): logits = model(row).logits[0]
        for t,token in enumerate(found.tokens):
            x = RepetitionPenaltyLogitsProcessor(1.3)(row[:,:len(prompt)+t], logits[len(prompt)+t-1:len(prompt)+t].clone())
            x = TemperatureLogitsWarper(.6+3.4*max(0, 1-t/6))(None, x)
            p = MinPLogitsWarper(.01)(None, TopPLogitsWarper(.95)(None, TopKLogitsWarper(40)(None, x))).softmax(-1)
            assert token==(p.argmax() if t<2 else next_tokens(p, u[t:t+1])), (i,t)

def test_ends_can_be_suppressed():
    model = build('llama')
    found = write_answers(model, rows(8), 24, range(3, 40), sampling=Sampling(eos='suppress'))
    assert all(len(o.tokens)==24 and not o.ended and min(o.tokens)>=0 and not set(o.tokens) & set(range(3, 40)) for o in found)

def test_seeds_differ_and_a_seed_repeats():
    model = build('llama')
    a,b,c = (write_answers(model, rows(8), 12, sampling=Sampling(), seed=s) for s in (0, 1, 0))
    assert a==c!=b

# ---- Ends and stops

def test_a_stop_is_found_wherever_it_is():
    model,prompts = build('llama'),rows(21)
    free = write_answers(model, prompts, 24, [5])
    stop = lambda ids: sum(o>60 for o in ids)>=3
    for size in (1, 4, 32):
        for a,b in zip(free, write_answers(model, prompts, 24, [5], stop=stop, batch_size=size)):
            k = next((k for k in range(len(a.tokens)+1) if stop(a.tokens[:k])), None)
            assert b==(a if k is None else Answer(a.tokens[:k], True))

def test_one_token_and_an_end_at_once():
    model,prompts = build('llama'),rows(5)
    found = write_answers(model, prompts, 1)
    assert all(len(o.tokens)==1 and not o.ended for o in found)
    first = found[0].tokens[0]
    assert write_answers(model, prompts, 9, [first])[0]==Answer((), True)

def test_no_prompts(): assert write_answers(build('llama'), [], 5)==[]

# ---- Kept batches

def test_a_folder_keeps_answers_and_tells_runs_apart(tmp_path):
    model,prompts = build('llama'),rows(9)
    found = write_answers(model, prompts, 12, [5], folder=tmp_path, batch_size=2)
    names = sorted(o.name for o in tmp_path.iterdir())
    read = []
    model.register_forward_hook(lambda *a: read.append(1))
    assert write_answers(model, prompts, 12, [5], folder=tmp_path)==found and not read # the batch size is not part of it
    assert write_answers(model, prompts[3:]+rows(2, seed=4), 12, [5], folder=tmp_path)[:6]==found[3:] and read
    for kwargs in (dict(max_tokens=11), dict(ends=[6]), dict(sampling=Sampling()), dict(sampling=Sampling(), seed=2), dict(about=dict(stop='x'))):
        read.clear()
        write_answers(model, **dict(prompts=prompts, max_tokens=12, ends=[5], folder=tmp_path)|kwargs)
        assert read, kwargs
    next(model.parameters()).data[0,0] += 1
    read.clear()
    write_answers(model, prompts, 12, [5], folder=tmp_path)
    assert read and set(names)<={o.name for o in tmp_path.iterdir()}

def test_damaged_files_are_written_again(tmp_path):
    model,prompts = build('llama'),rows(9)
    found = write_answers(model, prompts, 12, [5], folder=tmp_path, batch_size=3)
    a,b,c = sorted(tmp_path.iterdir())[:3]
    a.write_text(a.read_text()[:40])
    o = json.loads(b.read_text())
    next(iter(o['answers'].values()))[0].append(3)
    b.write_text(json.dumps(o))
    c.write_bytes(b'\xff\xfe')
    (tmp_path/'x.answers.json').write_text('[]')
    assert write_answers(model, prompts, 12, [5], folder=tmp_path)==found

@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(tmp_path):
    code = f"""
import sys; sys.path[:0] = {[str(root/'tests'/o) for o in ('', 'summaries', 'models')]}
from test_answers import build, rows
from compresscal.summaries.answers import write_answers
write_answers(build('llama'), rows(400, seed=3), 24, [5], folder={str(tmp_path/'kept')!r}, batch_size=8)"""
    kept = lambda: set((tmp_path/'kept').glob('*.answers.json')) if (tmp_path/'kept').exists() else set()
    for target in (2, 5):
        process = subprocess.Popen([sys.executable, '-c', code], env=outside_tests(root)|dict(OMP_NUM_THREADS='1'), stderr=subprocess.DEVNULL)
        end = time.time()+60
        while len(kept())<target and process.poll() is None and time.time()<end: time.sleep(.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(kept())>=target
    before = {o: o.stat().st_mtime_ns for o in kept()}
    model,prompts = build('llama'),rows(400, seed=3)
    assert write_answers(model, prompts, 24, [5], folder=tmp_path/'kept', batch_size=8)==write_answers(model, prompts, 24, [5])
    assert all(o.stat().st_mtime_ns==t for o,t in before.items()) and len(kept())>len(before)

# ---- What cannot be done

def test_bad_input():
    model = build('llama')
    for args, kwargs, message in (([[[]], 4], {}, 'got none in prompt 0'), ([[[1]], 0], {}, '`max_tokens` must be'), ([[[1]], True], {}, '`max_tokens` must be'), ([[[1]*60], 9], {}, 'context of 64 tokens, got 60 and 9'),
                                  ([[[1, 96]], 4], {}, 'ids of 0 to 95, got 1 to 96 in prompt 0'), ([[[1]], 4, [99]], {}, '`ends` must be ids'), ([[[1]], 4], dict(batch_size=0), '`batch_size` must be')):
        with pytest.raises(ValueError, match=message): write_answers(model, *args, **kwargs)

def test_logits_that_are_no_numbers():
    model = build('llama')
    model.lm_head = nn.Linear(32, 96)
    model.lm_head.weight.data[4] = torch.nan
    with pytest.raises(ValueError, match='must give finite logits.*by token 0'): write_answers(model, rows(3), 4)

def test_training_mode_is_put_back():
    model = build('llama').train()
    flags,state = [m.training for m in model.modules()],torch.get_rng_state()
    write_answers(model, rows(3), 4, sampling=Sampling())
    assert [m.training for m in model.modules()]==flags and torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled()

def test_padded_lengths_grow_slowly():
    found = [padded_length(n) for n in range(1, 3000)]
    assert found==sorted(found) and all(n<=o<=1.25*n+64 and o%64==0 for n,o in enumerate(found, 1)) and len(set(found))<25
