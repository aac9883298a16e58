"What `vocabulary.py` measures: steps of training, processor time and resident memory, in a process of its own"
import gc, json, os, subprocess, sys, tempfile, time
from pathlib import Path

MB = 2**20

# ---- Memory

def status(name:str)->int:
    "Bytes that the kernel counts for this process: `VmRSS` now, `VmHWM` at the peak"
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(o.split()[1])*1024 for o in lines if o.startswith(name))

def mark_memory()->int:
    "Forget the peak so far; resident memory now, bytes"
    from compresscal.models.disk_blocks import release_memory
    gc.collect()
    release_memory()
    Path('/proc/self/clear_refs').write_text('5')
    return status('VmRSS')

def above(start:int)->float:
    "The peak of resident memory above a start, MB"
    return round((status('VmHWM')-start)/MB, 1)

def one_thread()->int:
    "One thread, with what its first product brings along; resident memory now"
    import torch
    torch.set_num_threads(1)
    torch.randn(64, 64)@torch.randn(64, 64)
    return mark_memory()

# ---- Training

def rate(i:int, steps:int, warm:int)->float:
    "Share of the learning rate in step `i`: it rises for `warm` steps, then falls in a line"
    return min((i+1)/warm, 1-i/steps)

def train(model, batches, loss_of, lr:float, weight_decay:float=.01, skip:int=2, warm:int=1)->dict:
    "AdamW over the batches; losses, and the median seconds of processor time of a step"
    import torch
    from harness import median
    optimizer,losses,seconds = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay),[],[]
    model.train()
    for i,batch in enumerate(batches):
        for g in optimizer.param_groups: g['lr'] = lr*rate(i, len(batches), warm)
        start = time.process_time()
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time()-start)
        losses.append(float(loss.detach()))
    return dict(losses=losses, step=round(median(seconds[skip:] or seconds), 4))

def without(logits, kept):
    "Logits with those of dropped ids at minus infinity"
    import torch
    if kept is None: return logits
    is_kept = torch.zeros(logits.shape[-1], dtype=torch.bool).index_fill(0, kept, True)
    return logits.masked_fill(~is_kept, -torch.inf)

# ---- A process for each run, and a line for each that is finished

def in_own_process(do:str, **request)->dict:
    "The answer of `do` of vocabulary.py, run in a process of its own with one thread"
    script = Path(__file__).with_name('vocabulary.py')
    with tempfile.TemporaryDirectory() as scratch:
        env = os.environ|dict(OMP_NUM_THREADS='1', IN_TEST='1', SCRATCH=scratch)
        command = [sys.executable, str(script), '--request', json.dumps(dict(request, do=do))]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode: raise RuntimeError(f'{do} {request} failed: {done.stderr[-3000:]}')
    return json.loads(done.stdout.splitlines()[-1])

def finished(path:Path)->list[dict]:
    "The runs in a file of JSON lines; a line that was cut off in writing does not count"
    found = []
    for line in path.read_text(encoding='utf-8').splitlines() if path.exists() else []:
        try: found.append(json.loads(line))
        except json.JSONDecodeError: continue
    return found

def add_line(path:Path, row:dict):
    "One more line, below whatever is there"
    cut = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b'\n')
    with path.open('a', encoding='utf-8') as file: file.write('\n'*bool(cut)+json.dumps(row)+'\n')

def run_missing(path:Path, do:str, requests)->list[dict]:
    "Run what the file does not have yet, one after the other; all that was asked for"
    for request in requests:
        if not any(request.items()<=o.items() for o in finished(path)):
            found = in_own_process(do, **request)
            assert not request.keys()&found.keys(), request.keys()&found.keys()
            add_line(path, request|found)
    return [o for o in finished(path) if any(r.items()<=o.items() for r in requests)]
