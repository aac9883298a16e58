"""How far compresscal and llm-compressor are apart on a pretrained model, beside what the order of the sequences alone does.

`python benchmarks/agreement.py --calibration c4.txt --held-out wikitext.txt --llmcompressor-python PYTHON` compresses SmolLM2 with both,
the same sequences in several orders, and appends a line for each to `nbs/studies/real_model_agreement.jsonl`; what is there is not run again."""
import argparse, copy, json, tempfile
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
import harness # sets the environment
from settings import one, score, shuffled, smollm2
from compresscal.compression.methods import METHODS
from compresscal.evaluation.fidelity import remember

RECORDS = Path(__file__).parents[1]/'nbs'/'studies'/'real_model_agreement.jsonl'
ORDERS = 5
METHODS_OF_BOTH = { # our settings, and those of llm-compressor's modifiers
    'SparseGPT 2:4': (('sparsegpt', dict(sparsity='2:4')), dict(pattern='2:4')),
    'Wanda 2:4': (('wanda', dict(sparsity='2:4')), dict(pattern='2:4')),
    'GPTQ 4 bits, groups of 64': (('gptq', dict(bits=4, group_size=64)), dict(bits=4, group_size=64)),
    'GPTQ 4 bits, groups of 64, act order': (('gptq', dict(bits=4, group_size=64, act_order=True, static_groups=True)),
                                             dict(bits=4, group_size=64, act_order=True))} # AWQ is missing: what llm-compressor leaves in memory has its scales folded in and is not rounded yet

def ours(model, own, reference, held_out, tokens, name):
    "What compresscal's published rule gives"
    method,settings = METHODS_OF_BOTH[name][0]
    return one(model, own, reference, held_out, tokens, METHODS[method].original(**settings))

def theirs(peer, model, own, reference, held_out, tokens, name, folder):
    "What llm-compressor gives"
    (method,_),settings = METHODS_OF_BOTH[name]
    save_file(dict(tokens=tokens.contiguous()), folder/'tokens.safetensors')
    found = peer.run(model=folder/'model', tokens=folder/'tokens.safetensors', method=method, settings=settings,
                     out=folder/'weights.safetensors', clock='cpu', whole=True)
    model.load_state_dict(own|load_file(folder/'weights.safetensors'))
    return score(reference, model, held_out)|dict(seconds=round(found['seconds'], 1))

def main(args=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--calibration', required=True, help='a text file, such as C4')
    p.add_argument('--held-out', required=True, help='another, such as WikiText-2')
    p.add_argument('--llmcompressor-python', required=True, help='Python of an environment that has llmcompressor')
    p.add_argument('--orders', type=int, default=ORDERS)
    o = p.parse_args(args)
    torch.set_num_threads(1)
    lines = RECORDS.read_text().splitlines() if RECORDS.exists() else []
    done = {(r['who'],r['method'],r['order']) for r in map(json.loads, lines)}
    model,sets,held_out = smollm2(o)
    own,reference = copy.deepcopy(model.state_dict()),remember(model, held_out, progress=False)
    peer = harness.Peer(o.llmcompressor_python, 1)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        model.save_pretrained(folder/'model')
        for order in range(o.orders):
            tokens = shuffled(sets[0], order)
            for name in METHODS_OF_BOTH:
                for who in ('llm-compressor','compresscal'):
                    if (who,name,order) in done: continue
                    if who=='compresscal': found = ours(model, own, reference, held_out, tokens, name)
                    else: found = theirs(peer, model, own, reference, held_out, tokens, name, folder)
                    with RECORDS.open('a') as f: f.write(json.dumps(dict(who=who, method=name, order=order, **found))+'\n')

if __name__=='__main__': main()
