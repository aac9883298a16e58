"""Documents summed up a second, as ratios in one run: compresscal and transformers' `generate` at the same batch size.

`python benchmarks/summarization.py --help` lists the options; README.md says what is measured."""
import argparse, random, sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
import torch
import harness

# ---- Who writes

def until(ids, ends):
    "What comes before the first end"
    return tuple(ids[:next((i for i,o in enumerate(ids) if o in ends), len(ids))])

def ours(model, prompts, o, ends, batch):
    "Answers by compresscal"
    from compresscal.summaries.answers import write_answers
    return [a.tokens for a in write_answers(model, prompts, o.tokens, ends, batch_size=batch, progress=False)]

def theirs(model, prompts, o, ends, batch, by_length=False):
    "Answers by `generate`, padded on the left, in the given order or sorted by length"
    order,found = sorted(range(len(prompts)), key=lambda i: len(prompts[i])) if by_length else range(len(prompts)),{}
    for a in range(0, len(prompts), batch):
        part = list(order[a:a+batch])
        wide = max(len(prompts[i]) for i in part)
        ids = torch.tensor([[2]*(wide-len(prompts[i]))+prompts[i] for i in part])
        mask = torch.tensor([[0]*(wide-len(prompts[i]))+[1]*len(prompts[i]) for i in part])
        out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=o.tokens, pad_token_id=2, eos_token_id=ends or None)[:,wide:].tolist()
        found |= {i: until(row, ends) for i,row in zip(part, out)}
    return [found[i] for i in range(len(prompts))]

WRITERS = {'generate': theirs, 'generate, sorted': lambda *a: theirs(*a, by_length=True), 'compresscal': ours}

def measure(model, prompts, o, ends, batch):
    "Seconds of each writer and round, in turns, the order turning from round to round; and the answers of the last round"
    found,answers = {k: [] for k in WRITERS},{}
    for write in WRITERS.values(): write(model, prompts[:batch], argparse.Namespace(tokens=4), ends, batch) # first calls count for nobody
    for i in range(o.rounds):
        for name in list(WRITERS)[::1 if i%2 else -1]:
            start = harness.CLOCKS[o.clock]()
            answers[name] = WRITERS[name](model, prompts, o, ends, batch)
            found[name].append(harness.CLOCKS[o.clock]()-start)
    return found,answers

# ---- Who is asked

def docstring_prompts(n):
    "The embedded model and prompts of docstrings"
    from compresscal.models.loading import load_model
    from compresscal.summaries.prompts import fit
    from compresscal.summaries.summary_sets import open_summary_set
    model,tokenizer = load_model()
    return model,[list(fit('document', tokenizer, d.text, 440).ids) for d in open_summary_set('docstrings', n=n)],[tokenizer.eos_token_id]

def random_prompts(o):
    "A Llama of random weights, which never ends, and prompts of random tokens"
    rng = random.Random(0)
    model = harness.random_llama(o.width, o.inner, o.blocks, o.heads, None, o.vocabulary)
    return model,[[rng.randrange(3, o.vocabulary) for _ in range(rng.randint(o.shortest, o.longest))] for _ in range(o.llama_documents)],[]

def chat_prompts(o):
    "SmolLM2 and pieces of a text, about as long as a news article, in its chat template"
    from compresscal.models.loading import load_model
    from compresscal.summaries.prompts import fit
    model,tokenizer = load_model('smollm2')
    ids = tokenizer(Path(o.text).read_text(), add_special_tokens=False, verbose=False)['input_ids']
    pieces = [tokenizer.decode(ids[i*o.piece:(i+1)*o.piece]) for i in range(o.chat_documents)]
    return model,[list(fit('after', tokenizer, piece, 2000).ids) for piece in pieces],[tokenizer.eos_token_id]

def prompts_of(name, o):
    "Model, prompts, and ids that end an answer"
    if name=='embedded': return docstring_prompts(o.documents)
    return chat_prompts(o) if name=='smollm2' else random_prompts(o)

# ---- The script

def rows_of(name, model, prompts, ends, o):
    rows,fine = [],True
    alone = theirs(model, prompts, o, ends, 1)
    for batch in o.batches:
        seconds,answers = measure(model, prompts, o, ends, batch)
        mid = {k: harness.median(v) for k,v in seconds.items()}
        for k,v in seconds.items():
            row = {'model': name, 'documents': len(prompts), 'batch': batch, 'writer': k, 'documents a second': len(prompts)/mid[k], 'least': len(prompts)/max(v), 'most': len(prompts)/min(v),
                   'times generate': mid['generate']/mid[k], 'times generate, sorted': mid['generate, sorted']/mid[k], 'answers unlike batch 1': sum(a!=b for a,b in zip(answers[k], alone))}
            rows.append(row)
        fine &= ours(model, prompts, o, ends, max(1, batch//2-1))==answers['compresscal'] # another batch size, the same answers
        if o.check: fine &= mid['compresscal']<=mid['generate']
    return rows,fine

def parse(args=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--models', default='embedded,llama', help='separated by commas: embedded; smollm2, with --text; llama, of random weights')
    p.add_argument('--batches', default='8,32', type=lambda o: [int(i) for i in o.split(',')]); p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--documents', type=int, default=128); p.add_argument('--tokens', type=int, default=40, help='most tokens of a summary')
    p.add_argument('--width', type=int, default=512); p.add_argument('--inner', type=int, default=1408); p.add_argument('--heads', type=int, default=8); p.add_argument('--blocks', type=int, default=8)
    p.add_argument('--vocabulary', type=int, default=16000); p.add_argument('--llama-documents', type=int, default=32)
    p.add_argument('--text', help='a text file for smollm2'); p.add_argument('--chat-documents', type=int, default=16); p.add_argument('--piece', type=int, default=700, help='tokens of a document of it')
    p.add_argument('--shortest', type=int, default=60); p.add_argument('--longest', type=int, default=400)
    p.add_argument('--clock', choices=harness.CLOCKS, default='wall', help='cpu: processor time, which a busy machine changes less; for one thread'); p.add_argument('--threads', type=int)
    p.add_argument('--check', action='store_true', help='end with an error where `generate` is faster'); p.add_argument('--out', help='folder for summarization.md and summarization.json')
    return p.parse_args(args)

def main(args=None)->bool:
    "Measure, print, and say whether all checks hold"
    o = parse(args)
    if o.threads: torch.set_num_threads(o.threads)
    data,found,fine = dict(machine=harness.describe_machine(), options=vars(o)),[],True
    for name in o.models.split(','):
        rows,held = rows_of(name, *prompts_of(name, o), o)
        found,fine = found+rows,fine and held
    harness.write(o.out, 'summarization', {'Documents a second': found}, data|dict(speeds=found))
    return fine

if __name__=='__main__':
    if not main(): sys.exit('answers depend on the batch, or a bound was missed')
