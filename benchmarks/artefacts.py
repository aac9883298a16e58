"""What a saved model takes and how fast it writes: bytes on disk, memory after loading and after the first forward pass, tokens a second.

`python benchmarks/artefacts.py --llamacpp-python PYTHON` saves SmolLM2 (or the embedded model) rounded to 4 and 8 bits in each format, and loads
each in a process of its own: in transformers, and the GGUF files in llama.cpp. One row of tokens, one thread, processor time."""
import argparse, json, os, subprocess, sys, tempfile
from pathlib import Path
import harness # sets the environment

TRANSFORMERS = """
import json, sys, time, psutil, torch
torch.set_num_threads(1)
from transformers import AutoModelForCausalLM
me, path, n = psutil.Process(), sys.argv[1], int(sys.argv[2])
start = me.memory_info().rss
model = AutoModelForCausalLM.from_pretrained(path, dtype='auto').eval()
loaded = me.memory_info().rss
ids = torch.full((1, 8), 20)
with torch.inference_mode():
    model(ids)
    first = me.memory_info().rss
    begun = time.process_time()
    model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=n, max_new_tokens=n, pad_token_id=0)
    seconds = time.process_time()-begun
peak = 1024*int(next(o for o in open('/proc/self/status') if o.startswith('VmHWM')).split()[1])
print(json.dumps(dict(loaded=loaded-start, first=first-start, peak=peak-start, tokens=n/seconds)))
"""
LLAMA_CPP = """
import json, os, sys, time
def resident(): return int(open('/proc/self/statm').read().split()[1])*os.sysconf('SC_PAGE_SIZE')
from llama_cpp import Llama
path, n = sys.argv[1], int(sys.argv[2])
start = resident()
model = Llama(path, n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False, use_mmap=False)
loaded = resident()
model.eval([20]*8)
first, begun = resident(), time.process_time()
for i in range(n): model.eval([20+i])
seconds = time.process_time()-begun
peak = 1024*int(next(o for o in open('/proc/self/status') if o.startswith('VmHWM')).split()[1])
print(json.dumps(dict(loaded=loaded-start, first=first-start, peak=peak-start, tokens=n/seconds)))
"""

def ask(python, script, path, n):
    "What a process of its own says of a saved model"
    env = os.environ|dict(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1')
    found = subprocess.run([python, '-c', script, str(path), str(n)], capture_output=True, text=True, env=env)
    if found.returncode: raise RuntimeError(found.stderr[-1000:])
    return json.loads(found.stdout.splitlines()[-1])

def size(path):
    "Bytes of the weights of a file or folder"
    files = [path] if path.is_file() else [o for o in path.iterdir() if o.suffix=='.safetensors']
    return sum(o.stat().st_size for o in files)

# ---- What is saved

def saved(name, folder):
    "Label -> where it is; each made anew from the dense model"
    import torch
    from compresscal import compress, load_model
    from compresscal.checkpoints.gguf_files import write_gguf
    from compresscal.checkpoints.save import save
    from compresscal.compression.methods import RTN
    def model_of(dtype='float32'): return load_model(*[] if name=='embedded' else [name], dtype=dtype)
    made = {}
    for dtype in ('float32','bfloat16'):
        model,tokenizer = model_of(dtype)
        made[f'dense, {dtype}'] = folder/dtype
        model.save_pretrained(folder/dtype)
    model,tokenizer = model_of()
    made['GGUF F16'] = folder/'f16.gguf'
    write_gguf(model, tokenizer, {}, folder/'f16.gguf', rest='F16', progress=False)
    for bits,kind in ((8,'Q8_0'),(4,'Q4_0')):
        model,tokenizer = model_of()
        report = compress(model, RTN(bits=bits, group_size=32, symmetric=True, scale_dtype='float16'), progress=False)
        made[f'{bits} bits, GGUF {kind}'] = folder/f'{kind}.gguf'
        write_gguf(model, tokenizer, report.quantized, folder/f'{kind}.gguf', rest='Q8_0', progress=False)
        made[f'{bits} bits, compressed-tensors'] = folder/f'ct{bits}'
        save(model, report, folder/f'ct{bits}', 'compressed-tensors', tokenizer)
    return made

# ---- torch's product with weights of 4 bits

def int4_rows(shapes=((576,576),(576,1536),(1536,576)), rows=(1,64), group=32):
    "Seconds of a product in fp32, in bf16, and with weights of 4 bits, the best of many"
    import time, torch
    def best(f, seconds=.3):
        f()
        found,end = float('inf'),time.time()+seconds
        while time.time()<end:
            begun = time.process_time()
            f()
            found = min(found, time.process_time()-begun)
        return 1e6*found
    table = []
    with torch.inference_mode():
        for (k,n) in shapes:
            for m in rows:
                x,w = torch.randn(m, k),torch.randn(n, k)
                codes = torch.randint(16, (n,k), dtype=torch.int32)
                packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
                scales = torch.rand(k//group, n, 2).bfloat16()
                half,small = x.bfloat16(),w.bfloat16()
                table.append({'in': k, 'out': n, 'rows': m, 'fp32, us': best(lambda: torch.nn.functional.linear(x, w)), 'bf16, us': best(lambda: torch.nn.functional.linear(half, small)),
                              '4 bits, us': best(lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(half, packed, group, scales))})
    return table

def main(args=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--model', default='smollm2'); p.add_argument('--tokens', type=int, default=64)
    p.add_argument('--llamacpp-python', help='Python of an environment that has llama-cpp-python')
    p.add_argument('--out', help='folder for artefacts.md and artefacts.json')
    o = p.parse_args(args)
    import torch
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for label,path in saved(o.model, Path(folder)).items():
            runs = {} if path.is_file() else {'transformers': (sys.executable, TRANSFORMERS)}
            if path.is_file() and o.llamacpp_python: runs['llama.cpp'] = o.llamacpp_python,LLAMA_CPP
            for who,(python,script) in runs.items():
                found = ask(python, script, path, o.tokens)
                rows.append({'model': o.model, 'saved as': label, 'read by': who, 'MB on disk': size(path)/1e6, 'MB after loading': found['loaded']/1e6,
                             'MB after the first pass': found['first']/1e6, 'MB at most': found['peak']/1e6, 'tokens a second': found['tokens']})
    products = int4_rows()
    data = dict(machine=harness.describe_machine(), options=vars(o), saved=rows, products=products)
    harness.write(o.out, 'artefacts', {'Saved models': rows, 'Products with weights of 4 bits': products}, data)

if __name__=='__main__': main()
