"""Useful tokens a second of a model that writes its own calibration text, as ratios in one run: compresscal and transformers' `generate`.

`python benchmarks/generation.py --help` lists the options; README.md says what is measured."""
import argparse, sys, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
import torch
import harness

BOUNDS = {('restart','embedded'): {16: 1.5, 64: 1.5}, ('suppress','embedded'): {16: 1., 64: 1.25}, ('suppress','smollm2'): {64: 1.6, 128: 1.6}} # at least so many times `generate`

# ---- Who writes

def ours(model, special, length, batch, eos, round):
    "Useful tokens that compresscal writes"
    from compresscal.calibration.generation import Sampling, Script, generate
    seeds = [(round,i) for i in range(batch)]
    return int(generate(model, Script([[special['bos']]], [special['eos']]), length, seeds, Sampling(eos=eos), forbidden=torch.tensor([special['bos'],special['pad']]),
                        batch_size=batch, progress=False).drawn.sum())

def theirs(model, special, length, batch, eos, round):
    "Useful tokens that `generate` writes: those up to the end of each document, or all where the end is suppressed"
    never = [special['bos'],special['pad']]+[special['eos']]*(eos=='suppress')
    ends = {} if eos=='suppress' else dict(eos_token_id=special['eos'])
    start = torch.full((batch,1), special['bos'])
    with torch.random.fork_rng():
        torch.manual_seed(round)
        out = model.generate(start, attention_mask=torch.ones_like(start), do_sample=True, top_k=0, max_new_tokens=length-1, pad_token_id=special['pad'], suppress_tokens=never, **ends)[:,1:]
    return int((out!=special['pad']).sum())

WRITERS = {'compresscal': ours, 'generate': theirs}

def measure(model, special, length, batch, eos, rounds, clock):
    "Useful tokens a second of each writer and round, in turns; the order turns from round to round"
    found = {k: [] for k in WRITERS}
    for write in WRITERS.values(): write(model, special, 8, batch, eos, 0) # first calls count for nobody
    for i in range(rounds):
        for name in list(WRITERS)[::1 if i%2 else -1]:
            start = harness.CLOCKS[clock]()
            n = WRITERS[name](model, special, length, batch, eos, i)
            found[name].append(n/(harness.CLOCKS[clock]()-start))
    return found

# ---- What a token cannot do without

def bandwidth(megabytes=256, clock='wall')->float:
    "Bytes a second that can be read: the best of several sums over a large tensor"
    x,best = torch.ones(megabytes<<18),float('inf')
    for _ in range(6):
        start = harness.CLOCKS[clock]()
        x.sum()
        best = min(best, harness.CLOCKS[clock]()-start)
    return x.nbytes/best

def product_seconds(rows, k, n, clock='wall', seconds=.1)->float:
    "Seconds of an `[rows, k]` by `[n, k]` product in fp32: the best of many, by MKL or oneDNN"
    x,w,best = torch.randn(rows, k),torch.randn(n, k),float('inf')
    products = [torch.nn.functional.linear]+[harness.one_dnn_linear]*torch.backends.mkldnn.is_available()
    with torch.inference_mode():
        for product in products:
            product(x, w)
            end = time.perf_counter()+seconds
            while time.perf_counter()<end:
                start = harness.CLOCKS[clock]()
                product(x, w)
                best = min(best, harness.CLOCKS[clock]()-start)
    return best

def floor(model, rows, length, clock='wall', seconds=.1)->dict:
    """Seconds of a step, one token of every row, that nothing can save:

    products: each linear layer's product for so many rows, at the speed of a plain one of its shape
    bandwidth: the weights read once, and of the keys and values what an average token looks back at"""
    shapes,c = {},model.config
    for m in model.modules():
        if isinstance(m, torch.nn.Linear): shapes[m.in_features,m.out_features] = shapes.get((m.in_features,m.out_features), 0)+1
    head = getattr(c, 'head_dim', None) or c.hidden_size//c.num_attention_heads
    numbers = sum(n*k*o for (k,o),n in shapes.items())+c.num_hidden_layers*c.num_key_value_heads*head*rows*length # keys and values, of half of the length
    return dict(products=sum(n*product_seconds(rows, k, o, clock, seconds) for (k,o),n in shapes.items()), bandwidth=4*numbers/bandwidth(clock=clock))

# ---- Tables

def speed_rows(name, model, special, o, floors):
    rows,fine = [],True
    for batch in o.batches:
        for eos in ('restart','suppress') if name=='embedded' else ('suppress',): # a random model never ends, SmolLM2 seldom
            found = measure(model, special, o.length, batch, eos, o.rounds, o.clock)
            mid = {k: harness.median(v) for k,v in found.items()}
            for k,v in found.items():
                ratio = mid[k]/mid['generate']
                row = {'model': name, 'batch': batch, 'at the end': eos, 'writer': k, 'useful tokens a second': mid[k], 'least': min(v), 'most': max(v), 'times generate': ratio}
                if k=='compresscal':
                    if eos=='suppress':
                        least = max(floors[batch].values())
                        row |= {'times floor': batch/mid[k]/least}
                    if (bound := BOUNDS.get((eos,name), {}).get(batch)) and o.check: row['holds'],fine = ratio>=bound,fine and ratio>=bound
                rows.append(row)
    return rows,fine

def alone(model, special, o, name):
    "Batches against one sequence at a time"
    one = harness.median(measure(model, special, o.length, 1, 'suppress', o.rounds, o.clock)['generate'])
    rows = []
    for batch in o.batches:
        many = harness.median(measure(model, special, o.length, batch, 'suppress', o.rounds, o.clock)['compresscal'])
        rows.append({'model': name, 'batch': batch, 'tokens a second': many, 'generate, one at a time': one, 'times': many/one})
    return rows

def floor_rows(name, model, o):
    found = {batch: floor(model, batch, o.length, o.clock, o.gemm_seconds) for batch in o.batches}
    return found,[{'model': name, 'batch': batch, **{f'{k}, ms a step': 1000*v for k,v in f.items()}} for batch,f in found.items()]

def equal_bits(model, special, o)->bool:
    "Whether eight sequences come out the same in a batch of 8 and in the largest"
    from compresscal.calibration.generation import Script, generate
    script,n = Script([[special['bos']]], [special['eos']]),max(o.batches)
    few,many = (generate(model, script, min(o.length, 64), range(k), batch_size=k, progress=False) for k in (8,n))
    return bool(torch.equal(few.tokens, many.tokens[:8]) and torch.equal(few.nats, many.nats[:8])) if n>=8 else True

# ---- The script

def parse(args=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--models', default='embedded,llama', help='separated by commas: embedded; smollm2; llama, of random weights')
    p.add_argument('--batches', default='16,64', type=lambda o: [int(i) for i in o.split(',')]); p.add_argument('--length', type=int, default=512); p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--width', type=int, default=768); p.add_argument('--inner', type=int, default=2048); p.add_argument('--heads', type=int, default=12); p.add_argument('--blocks', type=int, default=12)
    p.add_argument('--vocabulary', type=int, default=16000); p.add_argument('--llama-length', type=int, default=96, help='tokens of a sequence of the random Llama')
    p.add_argument('--clock', choices=harness.CLOCKS, default='wall', help='cpu: processor time, which a busy machine changes less; for one thread'); p.add_argument('--threads', type=int)
    p.add_argument('--gemm-seconds', type=float, default=.1); p.add_argument('--check', action='store_true', help='end with an error where a bound is missed')
    p.add_argument('--out', help='folder for generation.md and generation.json')
    return p.parse_args(args)

def main(args=None)->bool:
    "Measure, print, and say whether all checks hold"
    o = parse(args)
    if o.threads: torch.set_num_threads(o.threads)
    data,speeds,single,floors,fine = dict(machine=harness.describe_machine(), options=vars(o)),[],[],[],True
    for name in o.models.split(','):
        if name=='embedded':
            from compresscal.models.loading import load_model
            model,special = load_model()[0],dict(bos=0, eos=1, pad=2)
        elif name=='smollm2':
            from compresscal import load_model
            model,special = load_model('smollm2')[0],dict(bos=0, eos=0, pad=2) # a document opens and ends with <|endoftext|>
        else: model,special,o.length = harness.random_llama(o.width, o.inner, o.blocks, o.heads, None, o.vocabulary),dict(bos=0, eos=1, pad=2),o.llama_length
        found,rows = floor_rows(name, model, o)
        floors += rows
        rows,held = speed_rows(name, model, special, o, found)
        speeds,single,fine = speeds+rows,single+alone(model, special, o, name),fine and held and equal_bits(model, special, o)
    data |= dict(speeds=speeds, single=single, floors=floors)
    harness.write(o.out, 'generation', {'Useful tokens a second': speeds, 'Against one at a time': single, 'The floor': floors}, data)
    return fine

if __name__=='__main__':
    if not main(): sys.exit('a bound was missed, or bits depend on the batch')
