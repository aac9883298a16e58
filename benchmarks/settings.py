"""What each setting of a method gives on two models and three calibration sets: the evidence behind the defaults.

`python benchmarks/settings.py --calibration c4.txt --held-out wikitext.txt` goes through the grid and appends
a line for each run to `nbs/studies/real_model_settings.jsonl`; what is there is not run again."""
import argparse, copy, itertools, json, time
from pathlib import Path
import torch
import harness # sets the environment
from compresscal import calibration_sets, compress, load_model, perplexity
from compresscal.compression.methods import METHODS
from compresscal.evaluation.fidelity import fidelity, remember

RECORDS = Path(__file__).parents[1]/'nbs'/'studies'/'real_model_settings.jsonl'
SETS,ORDERS = 3,5 # calibration sets, and orders in which the first of them is read

# ---- The grid: GPTQ's published rule is the first of its rows

def on(**choices):
    "All combinations of settings that are on or off, those that are off left out"
    for values in itertools.product((False, True), repeat=len(choices)):
        yield {k: v for name,value in zip(choices, values) if value for k,v in choices[name].items()}

GPTQ = list(on(symmetric=dict(symmetric=True), order=dict(act_order=True, static_groups=True), mse=dict(mse=True)))
ORDER = dict(act_order=True, static_groups=True)
BOTH = ORDER|dict(mse=True)
LINEAR = dict(search='linear') # AWQ's scales scored by the layers alone
DENSE = dict(dense_inputs=True) # statistics from what the dense model gives
GRID = [('gptq', 4, [BOTH, {}, ORDER]), ('rtn', 4, [{}]), ('spqr', 4, [dict(damping=.01), {}]), ('sparsegpt', None, [{}]),
        ('gptq', 4, [BOTH|dict(symmetric=True), dict(symmetric=True)]), ('rtn', 4, [dict(symmetric=True)]),
        ('gptq', 3, [BOTH, {}, ORDER]), ('awq', 4, [LINEAR]), ('wanda', None, [{}]), ('magnitude', None, [{}]),
        ('gptq', 4, GPTQ), ('rtn', 4, [dict(mse=True), dict(mse=True, symmetric=True)]), ('rtn', 3, list(on(mse=dict(mse=True)))),
        ('gptq', 3, [dict(mse=True)]),
        ('sparsegpt', None, [dict(damping=.1), dict(block_size=32), dict(block_size=64), dict(true_sequential=True)]),
        ('awq', 4, [{}, dict(scale=False), LINEAR|dict(clip=False)]),
        ('spqr', 4, [dict(act_order=False), dict(outlier_threshold=None)]), ('spqr', 3, [{}, dict(damping=.01)]),
        ('spqr', 3, [dict(act_order=False), dict(outlier_threshold=None)]),
        ('awq', 3, [LINEAR, {}, LINEAR|dict(clip=False), dict(scale=False)]),
        ('gptq', 4, [dict(damping=.1), dict(refresh=True), dict(true_sequential=True)]),
        ('sparsegpt', None, [DENSE]), ('gptq', 4, [BOTH|DENSE]), ('wanda', None, [DENSE])]
NOISE = [('sparsegpt', None, {}), ('sparsegpt', None, DENSE), ('gptq', 4, BOTH), ('gptq', 4, BOTH|DENSE), ('gptq', 4, {}), ('wanda', None, {})]

def runs(sets):
    "Method, bits, settings, number of the set, seed of the order of its sequences (0: as drawn)"
    for method,bits,rows in GRID:
        for settings in rows:
            for which in sets[:1] if method in ('rtn','magnitude') else sets: # those two read no text
                yield method,bits,settings,which,0
    if 0 not in sets: return
    for order in range(1, ORDERS):
        for method,bits,settings in NOISE: yield method,bits,settings,0,order

def build(method, bits, settings):
    "The method with these settings"
    if bits is None: return METHODS[method].original(sparsity='2:4', **settings)
    own = {} if method=='spqr' else dict(group_size=64) # 128 does not divide a width of 576
    return METHODS[method].original(bits=bits, **own, **settings)

# ---- Models and text

def stream(tokenizer, path, n, length, head):
    "The first `n` windows of a text, `[n, length]`, each with an opening token at its head"
    ids = tokenizer(Path(path).read_text(), add_special_tokens=False, verbose=False)['input_ids']
    rows = torch.tensor(ids[:n*(length-1)]).view(n, length-1)
    return torch.cat([torch.full((n,1), head), rows], 1)

def smollm2(o):
    "Model, calibration sets `[16, 512]` cut in turns from the text, and six windows of 1,024 held-out tokens"
    model,tokenizer = load_model('smollm2')
    head = tokenizer.convert_tokens_to_ids('<|endoftext|>')
    windows = stream(tokenizer, o.calibration, 16*SETS, 512, head)
    return model,[windows[i::SETS] for i in range(SETS)],stream(tokenizer, o.held_out, 6, 1024, head)

def embedded(o):
    "Model, calibration sets `[32, 256]` of docstrings, and 64 held-out windows of 256"
    model,tokenizer = load_model()
    *sets,held_out = calibration_sets('docs', tokenizer, n_sets=SETS+2, n_sequences=32, length=256)
    return model,[s.tokens for s in sets[:SETS]],torch.cat([sets[-1].tokens,held_out.tokens])

MODELS = dict(embedded=embedded, smollm2=smollm2)

# ---- One run

def score(reference, model, held_out)->dict:
    "Perplexity, and divergence from the dense model"
    return dict(perplexity=perplexity(model, held_out, progress=False).value,
                kl=fidelity(reference, model, progress=False).kl)

def shuffled(tokens, order):
    "The sequences in another order"
    return tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(order))] if order else tokens

def one(model, own, reference, held_out, tokens, method)->dict:
    "Compress a dense model and score it"
    model.load_state_dict(own)
    start = time.process_time()
    report = compress(model, method, tokens, progress=False)
    seconds = time.process_time()-start
    errors = [row['output_error'] for row in report.rows if row.get('output_error') is not None]
    return score(reference, model, held_out)|dict(seconds=round(seconds, 1), error=sum(errors)/len(errors) if errors else None)

def key(record): return json.dumps([record[k] for k in ('model','method','bits','settings','set','order')], sort_keys=True)

def main(args=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--models', default='embedded,smollm2', help='separated by commas')
    p.add_argument('--calibration', help='a text file for smollm2, such as C4')
    p.add_argument('--held-out', help='another, such as WikiText-2')
    p.add_argument('--sets', default='0,1,2', help='numbers of the calibration sets, separated by commas')
    p.add_argument('--threads', type=int, default=1)
    o = p.parse_args(args)
    torch.set_num_threads(o.threads)
    done = {key(json.loads(line)) for line in RECORDS.read_text().splitlines()} if RECORDS.exists() else set()
    numbers = [int(i) for i in o.sets.split(',')]
    for name in o.models.split(','):
        model,sets,held_out = MODELS[name](o)
        own,reference = copy.deepcopy(model.state_dict()),remember(model, held_out, progress=False)
        def keep(record):
            with RECORDS.open('a') as f: f.write(json.dumps(record)+'\n')
        start = dict(model=name, method='dense', bits=None, settings={}, set=0, order=0)
        if key(start) not in done: keep(start|score(reference, model, held_out))
        for method,bits,settings,which,order in runs(numbers):
            record = dict(model=name, method=method, bits=bits, settings=settings, set=which, order=order)
            if key(record) in done: continue
            done.add(key(record))
            keep(record|one(model, own, reference, held_out, shuffled(sets[which], order), build(method, bits, settings)))

if __name__=='__main__': main()
