"""What counting the token ids of a data set costs, beside a loop over its rows and beside the tokenizer alone, and how much memory it takes.

`python benchmarks/usage.py --help` lists the options; README.md says what is measured."""
import argparse, json, random, resource, subprocess, sys, tempfile, time
from collections import Counter
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))

def sentences(most:int=None, seed:int=0):
    "Sentences of installed documentation in random order, none twice"
    from compresscal.text.installed_text import held_out_documents
    from compresscal.text.sentences import split_sentences
    found = list(dict.fromkeys(' '.join(s.split()) for part in held_out_documents()['docs'].values() for o in part for s in split_sentences(o.text)))
    random.Random(seed).shuffle(found)
    return found[:most]

def open_tokenizer(name:str=None):
    from compresscal.models.loading import load_tokenizer
    if name is None: return load_tokenizer()[1]
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    return PreTrainedTokenizerFast(tokenizer_file=name) if name.endswith('.json') else AutoTokenizer.from_pretrained(name)

# ---- Ways of counting

def loop(tokenizer, texts):
    found = Counter()
    for o in texts: found.update(tokenizer(o, verbose=False)['input_ids'])
    return found

def engine(tokenizer, texts, size=4096):
    "What the tokenizer itself takes: its engine on batches, nothing counted"
    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding(), backend.no_truncation()
    for i in range(0, len(texts), size): backend.encode_batch_fast(texts[i:i+size])

def ours(tokenizer, texts, by_words=True):
    from compresscal.vocabulary.counting import IdCounter, count_block, row_blocks
    counter = IdCounter(tokenizer)
    if not by_words: counter.rule = None
    for o in row_blocks(texts): count_block(counter, o)
    return Counter({int(i): int(counter.counts[i]) for i in counter.counts.nonzero()[0]})

def row_loop(dataset):
    found = Counter()
    for o in dataset: found.update(o['input_ids'])
    return found

def timed(work, *args):
    before,start = time.process_time(),time.perf_counter()
    result = work(*args)
    return dict(wall=time.perf_counter()-start, processor=time.process_time()-before),result

def compare(ways:dict, rounds:int)->list[dict]:
    "Run the ways in turns; medians, and ratios to the first. Ways that count must agree"
    from harness import median
    seconds,results = {k: [] for k in ways},{}
    for i in range(rounds):
        for k in (list(ways) if i%2==0 else list(ways)[::-1]):
            found,results[k] = timed(ways[k])
            seconds[k].append(found)
    counts = [o for o in results.values() if o is not None]
    if any(o!=counts[0] for o in counts): raise SystemExit('the ways of counting differ')
    middle = {k: {c: median(o[c] for o in v) for c in ('wall','processor')} for k,v in seconds.items()}
    first = next(iter(middle.values()))
    return [{'way': k, 'wall, s': v['wall'], 'processor, s': v['processor'], 'times faster, wall': first['wall']/v['wall'], 'times less processor': first['processor']/v['processor']} for k,v in middle.items()]

# ---- Memory

def write_rows(folder, rows, seed=0):
    "A dataset on disk of random sentences of random words"
    from datasets import Dataset
    import numpy as np
    g = np.random.default_rng(seed)
    words = np.array([f'w{i:x}' for i in range(50_000)])
    def made():
        for _ in range(rows//1000):
            for o in words[np.minimum(g.zipf(1.3, (1000, 12)), 49_999)]: yield dict(text=' '.join(o))
    with tempfile.TemporaryDirectory() as cache: Dataset.from_generator(made, cache_dir=cache).save_to_disk(folder)

def peak(folder):
    "Peak resident memory of counting a dataset on disk, above what imports and opening take, MB; in this process"
    from datasets import load_from_disk
    from compresscal.vocabulary.usage import used_tokens
    dataset,tokenizer = load_from_disk(folder),open_tokenizer()
    used_tokens(['a'], tokenizer)
    def anonymous(): return next(int(o.split()[1]) for o in Path('/proc/self/status').read_text().splitlines() if o.startswith('RssAnon'))/1024
    before,start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024,time.process_time()
    usage = used_tokens(dataset, tokenizer, progress=False)
    spent,top = time.process_time()-start,resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    few = dataset.select(range(min(len(dataset), 10_000)))
    looped,_ = timed(loop, tokenizer, (o['text'] for o in few))
    return dict(rows=usage.rows, tokens=usage.tokens, processor=spent, **{'times less than a loop over rows': looped['processor']/len(few)*usage.rows/spent}, **{'peak above opening, MB': top-before, 'own memory at the end, MB': anonymous()})

def in_own_process(call, *args):
    code = f'import sys, json; sys.path.insert(0, {str(Path(__file__).parent)!r}); import usage; print(json.dumps(usage.{call}(*{args!r})))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    if done.returncode: raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])

def main(args=None):
    import harness
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--rows', type=int, help='sentences; all there are by default'); p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--files', nargs='*', default=[], help='files whose lines are rows, beside the sentences')
    p.add_argument('--tokenizers', nargs='*', default=[], help='folders or tokenizer.json files beside the embedded tokenizer')
    p.add_argument('--disk', type=int, nargs='*', default=[10_000, 100_000, 1_000_000], help='rows of datasets on disk, for memory'); p.add_argument('--out', help='folder for usage.md and usage.json')
    o,tables = p.parse_args(args),{}
    sources = {'sentences': sentences(o.rows)}|{f'lines of {Path(f).name}': Path(f).read_text(encoding='utf-8').splitlines() for f in o.files}
    from datasets import Dataset
    for name,(what,texts) in ((n,s) for n in [None, *o.tokenizers] for s in sources.items()):
        tokenizer = open_tokenizer(name)
        ids = Dataset.from_dict(dict(input_ids=[list(i) for i in tokenizer(texts, verbose=False, padding=False, truncation=False)['input_ids']]))
        label = 'embedded' if name is None else Path(name).name
        tables[f'{len(texts):,} {what}, {label} tokenizer'] = compare({'loop over rows': lambda: loop(tokenizer, texts), "the tokenizer's engine, counting nothing": lambda: engine(tokenizer, texts),
            'compresscal, by batches': lambda: ours(tokenizer, texts, False), 'compresscal, by words': lambda: ours(tokenizer, texts)}, o.rounds)
        tables[f'{len(texts):,} {what}, tokenized before, {label} tokenizer'] = compare({'loop over the rows of a dataset': lambda: row_loop(ids), 'compresscal': lambda: ours(tokenizer, ids)}, o.rounds)
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for n in o.disk:
            write_rows(f'{folder}/{n}', n)
            rows.append(in_own_process('peak', f'{folder}/{n}'))
        if rows: tables['datasets on disk, 12 words a row'] = rows
    harness.write(o.out, 'usage', tables, dict(machine=harness.describe_machine(), tables=tables))
    return tables

if __name__=='__main__': main()
