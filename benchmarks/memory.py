"""Peak resident memory of compressing a checkpoint on disk, by its number of blocks: streamed block by block, and loaded whole.

`python benchmarks/memory.py --help` lists the options; README.md says what is measured."""
import argparse, json, subprocess, sys, tempfile, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))

MB = 2**20

# ---- Under the measured process

def write_checkpoint(folder, width, inner, heads, blocks, vocabulary, length, shard):
    "A random model with a tokenizer, in shards"
    import harness
    harness.random_llama(width, inner, blocks, heads, vocabulary=vocabulary, length=length).save_pretrained(folder, max_shard_size=shard)
    harness.byte_tokenizer().save_pretrained(folder)

def work(folder, out, mode, method, sequences, length, vocabulary, threads=None, settings=None, **options):
    "Compress the checkpoint in `folder`; `mode` is stream, spill (stream with an eighth of the activations in memory), whole, or nothing (imports alone)"
    import torch, harness, compresscal.compression.compress as c, compresscal.compression.methods as m
    from compresscal import load_model
    if threads: torch.set_num_threads(threads)
    tokens = harness.random_tokens(sequences, length, vocabulary)
    torch.randn(256, 256)@torch.randn(256, 256) # whatever a first product sets up belongs to the imports
    before,start,on_disk = status('self'),time.perf_counter(),mode in ('stream','spill')
    if mode!='nothing':
        model,_ = load_model(folder, offload=on_disk)
        if mode=='spill': options['memory'] = tokens.numel()*model.config.hidden_size*4//8
        c.compress(model, getattr(m, method)(**(settings or {})), tokens, progress=False, **(dict(out=out) if on_disk else {}), **options)
    return dict(before=before, after=status('self'), seconds=time.perf_counter()-start)

# ---- Watching it

def status(pid)->dict:
    "Resident memory in bytes, from the kernel: `VmRSS` now, `VmHWM` at most so far, and of what it is now `RssAnon` (own), `RssFile` (mapped files) and `RssShmem`"
    wanted = 'VmRSS','VmHWM','RssAnon','RssFile','RssShmem'
    lines = (o.split(':') for o in Path(f'/proc/{pid}/status').read_text().splitlines())
    return {k: int(v.split()[0])*1024 for k,v in lines if k in wanted}

def watched(request:dict, every:float=.02)->dict:
    "Run `request` in a process of its own and sample its memory; peaks of each kind in bytes"
    p = subprocess.Popen([sys.executable, __file__, '--request', json.dumps(request)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    most = {}
    while p.poll() is None:
        try: now = status(p.pid)
        except (FileNotFoundError,ProcessLookupError): break
        for k,v in now.items(): most[k] = max(most.get(k, 0), v)
        time.sleep(every)
    printed,errors = p.communicate()
    if p.returncode: raise RuntimeError(f"the measured process failed: {errors[-3000:]}")
    if request['do']!='work': return {}
    answer = json.loads(printed.splitlines()[-1])
    most['VmHWM'] = max(most.get('VmHWM', 0), answer['after']['VmHWM']) # the kernel's own count misses no peak
    return most|dict(seconds=answer['seconds'], before=answer['before'])

def row(mode, blocks, size, found, activations)->dict:
    "What the table shows, in MB"
    return dict(mode=mode, blocks=blocks, **{'checkpoint': round(size/MB), 'activations': round(activations/MB), 'imports': round(found['before']['VmRSS']/MB), 'peak': round(found['VmHWM']/MB),
                'above imports': round((found['VmHWM']-found['before']['VmRSS'])/MB), 'own': round(found['RssAnon']/MB), 'mapped files': round(found['RssFile']/MB)}, seconds=found['seconds'])

def spread(rows, mode)->float|None:
    "Largest peak over smallest, less 1"
    peaks = [o['peak'] for o in rows if o['mode']==mode]
    return max(peaks)/min(peaks)-1 if len(peaks)>1 else None

# ---- The script

def parse(args=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--blocks', default='8,16,32', help='separated by commas'); p.add_argument('--modes', default='stream,spill,whole', help='stream, spill, whole, nothing')
    p.add_argument('--method', default='SparseGPT'); p.add_argument('--settings', type=json.loads, default={'sparsity':.5}, help='of the method, as JSON')
    p.add_argument('--width', type=int, default=768); p.add_argument('--inner', type=int, default=2048); p.add_argument('--heads', type=int, default=12)
    p.add_argument('--sequences', type=int, default=32); p.add_argument('--length', type=int, default=512); p.add_argument('--vocabulary', type=int, default=1024)
    p.add_argument('--shard', default='100MB', help='size of a shard of the checkpoint'); p.add_argument('--threads', type=int)
    p.add_argument('--options', type=json.loads, default={}, help='more arguments of compress, as JSON')
    p.add_argument('--within', type=float, default=.1, help='how much the peaks of streaming may differ'); p.add_argument('--out', help='folder for memory.md and memory.json')
    p.add_argument('--scratch', help='folder for checkpoints; a temporary one by default'); p.add_argument('--request', type=json.loads, help=argparse.SUPPRESS)
    return p.parse_args(args)

def main(args=None)->bool:
    "Measure, print, and say whether the peak of streaming stays the same"
    import harness
    o,rows,raw = parse(args),[],[]
    shape = dict(width=o.width, inner=o.inner, heads=o.heads, vocabulary=o.vocabulary, length=o.length)
    with tempfile.TemporaryDirectory(dir=o.scratch) as scratch:
        for blocks in map(int, o.blocks.split(',')):
            folder = Path(scratch)/f'{blocks}'
            watched(dict(do='write_checkpoint', folder=str(folder), blocks=blocks, shard=o.shard, **shape))
            size = sum(f.stat().st_size for f in folder.glob('*.safetensors'))
            for mode in o.modes.split(','):
                found = watched(dict(do='work', folder=str(folder), out=f'{folder}-{mode}', mode=mode, method=o.method, settings=o.settings, sequences=o.sequences, length=o.length,
                                     vocabulary=o.vocabulary, threads=o.threads, **o.options))
                rows.append(row(mode, blocks, size, found, o.sequences*o.length*o.width*4))
                raw.append(dict(mode=mode, blocks=blocks, **found))
            for f in sorted(Path(scratch).rglob('*'), reverse=True): f.unlink() if f.is_file() else f.rmdir()
    apart = {mode: spread(rows, mode) for mode in o.modes.split(',')}
    tables = {f"Peak resident memory in MB, {o.method}, {o.sequences} x {o.length} tokens, {o.width}/{o.inner}": rows,
              'Largest peak over smallest': [dict(mode=k, **{'more by': f'{100*v:.1f} %'}) for k,v in apart.items() if v is not None]}
    harness.write(o.out, 'memory', tables, dict(machine=harness.describe_machine(), options=vars(o), rows=rows, raw=raw, spread=apart))
    return all(apart.get(k) is None or apart[k]<=o.within for k in ('stream','spill'))

if __name__=='__main__':
    if request := parse().request:
        do = request.pop('do')
        print(json.dumps((dict(work=work, write_checkpoint=write_checkpoint)[do])(**request)))
    else: sys.exit(0 if main() else 1)
