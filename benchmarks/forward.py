"""Processor seconds of a forward pass of a small model in bf16: PyTorch's attention and attention that is written out, memory that
goes back to the system after each large tensor and memory that is kept.

`python benchmarks/forward.py` runs each of the four in a process of its own, in turns, with one thread. What the C library does
with freed memory is decided by an environment variable, `KEPT` below, and it must be set before a process begins."""
import argparse, json, os, subprocess, sys, time
from pathlib import Path
import harness # sets the environment

KEPT = 'glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4000000000:glibc.malloc.trim_threshold=8000000000'

def inside(attention:str, model:str, rows:int, length:int, times:int)->dict:
    "Median seconds of the log-likelihoods of all tokens, and pages that the system had to bring"
    import resource, torch
    from compresscal.models.loading import load_model
    torch.set_num_threads(1)
    net = load_model(model, dtype='bfloat16')[0]
    net.set_attn_implementation(attention)
    ids = torch.randint(3, net.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    def forward():
        with torch.inference_mode():
            logits = net(input_ids=ids, use_cache=False).logits.float()
            return float(logits.log_softmax(-1).gather(-1, ids[..., None]).mean())
    def once():
        begin = time.process_time()
        forward()
        return time.process_time()-begin
    value, before = forward(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    seconds = harness.median([once() for _ in range(times)])
    return dict(seconds=seconds, pages=(resource.getrusage(resource.RUSAGE_SELF).ru_minflt-before)//times, mean=value)

def run(attention, kept, o):
    env = os.environ|(dict(GLIBC_TUNABLES=KEPT) if kept else {})
    command = [sys.executable, __file__, '--inside', attention, '--model', o.model, '--times', str(o.times)]
    command += ['--rows', str(o.rows), '--length', str(o.length)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    return dict(attention=attention, memory='kept' if kept else 'given back')|json.loads(done.stdout.splitlines()[-1])

def main(args=None)->list[dict]:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--model', default='smollm2')
    p.add_argument('--rows', type=int, default=4)
    p.add_argument('--length', type=int, default=512)
    p.add_argument('--times', type=int, default=5)
    p.add_argument('--inside', help=argparse.SUPPRESS)
    o = p.parse_args(args)
    if o.inside: return print(json.dumps(inside(o.inside, o.model, o.rows, o.length, o.times)))
    rows = [run(attention, kept, o) for attention in ('sdpa', 'eager') for kept in (False, True)]
    for row in rows: row['ratio'] = row['seconds']/rows[0]['seconds']
    print(harness.table(rows))
    return rows

if __name__=='__main__': main()
