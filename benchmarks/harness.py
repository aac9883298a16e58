"What the benchmarks share: random models, the machine's speed, timing of phases from outside, and llm-compressor as a process of its own"
import json, os, platform, subprocess, sys, tempfile, time
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
import torch
from torch import Tensor

os.environ.setdefault('HF_HUB_OFFLINE', '1')
CLOCKS = dict(wall=time.perf_counter, cpu=time.process_time)

# ---- Models and text

def random_llama(width:int=768, inner:int=2048, blocks:int=4, heads:int=12, kv_heads:int=None, vocabulary:int=1024, length:int=2048, seed:int=0):
    "A Llama with random weights, the same at every call"
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(hidden_size=width, intermediate_size=inner, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv_heads or heads,
                         vocab_size=vocabulary, max_position_embeddings=length, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval().requires_grad_(False)

def read_model(name:str, blocks:int):
    "The first blocks of a model that `load_model` knows"
    from compresscal import load_model
    model,_ = load_model(name, dtype='float32')
    model.model.layers,model.config.num_hidden_layers = model.model.layers[:blocks],blocks
    return model

def random_tokens(sequences:int, length:int, vocabulary:int, seed:int=1)->Tensor:
    "Token ids, `[sequences, length]`"
    return torch.randint(3, vocabulary, (sequences,length), generator=torch.Generator().manual_seed(seed))

def first_block(model)->dict:
    "Copies of the linear weights of the first block"
    return {k: v.clone() for k,v in model.model.layers[0].state_dict().items() if v.ndim==2}

def byte_tokenizer():
    "One token a byte after three special ones, for checkpoints that must have a tokenizer"
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    special = ['<s>', '</s>', '<pad>']
    tokenizer = Tokenizer(models.BPE(vocab={o: i for i,o in enumerate(special+sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
    tokenizer.pre_tokenizer,tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False),decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token='<s>', eos_token='</s>', pad_token='<pad>')

# ---- The machine

def describe_machine()->dict:
    "What a reader needs to compare numbers"
    names = [o.partition(':')[2].strip() for o in Path('/proc/cpuinfo').read_text().splitlines() if o.startswith('model name')] if Path('/proc/cpuinfo').exists() else []
    return dict(processor=names[0] if names else platform.machine(), cores=os.cpu_count(), threads=torch.get_num_threads(), python=platform.python_version(), torch=torch.__version__)

def one_dnn_linear(x, weight): return torch.ops.mkldnn._linear_pointwise(x, weight, None, 'none', [], '')

def gemm_speed(m:int, k:int, n:int, dtype=torch.float32, seconds:float=.4, clock:str='wall')->float:
    "FLOP a second of an `[m, k]` by `[n, k]` product: the best of several, each as `nn.Linear` makes it or by oneDNN"
    a,b,now = torch.randn(m, k).to(dtype),torch.randn(n, k).to(dtype),CLOCKS[clock]
    best,products = float('inf'),[torch.nn.functional.linear]+[one_dnn_linear]*torch.backends.mkldnn.is_available()
    with torch.inference_mode():
        for product in products:
            product(a, b)
            end = time.perf_counter()+seconds/len(products)
            while time.perf_counter()<end:
                start = now()
                product(a, b)
                best = min(best, now()-start)
    return 2*m*k*n/best

def machine_speeds(width:int, inner:int, length:int, seconds:float=.4, clock:str='wall')->dict:
    "GEMM speeds in FLOP/s by precision, for the shapes of a layer; each the best of one sequence, 1,024 and 4,096 tokens at a time"
    rows = sorted({length, 1024, 4096})
    def best(k, n, dtype): return max(gemm_speed(m, k, n, dtype, seconds, clock) for m in rows)
    found = {}
    for name,dtype in (('fp32',torch.float32), ('bf16',torch.bfloat16)):
        found[name] = dict(attention=best(width, width, dtype), up=best(width, inner, dtype), down=best(inner, width, dtype))
    for key,n in (('narrow',width), ('wide',inner)): found['fp32'][key] = max(gemm_speed(n, m, n, torch.float32, seconds, clock) for m in rows)
    return found

def floor(speeds:dict, tokens:int, length:int, width:int, inner:int, kv_width:int=None, forward:str='fp32')->dict:
    """Seconds that a layer cannot do without, were every product as fast as a plain one of its shape:

    forwards: two, each 2 N (2 d^2 + 2 d kv + 3 d f) for the linear layers and 2 N T d for causal attention (half of all pairs);
        the first can stop before the down projection, since only inputs are looked at
    statistics: N n^2 for each of the four inputs, n = d, d, d, f: a symmetric matrix has half as many numbers to compute
    factorize: 2/3 n^3 for each of them: one Cholesky factor and one triangular inverse
    sweep: o n^2 for each [o, n] weight: every column changes those after it"""
    kv,s,g = kv_width or width,speeds[forward],speeds['fp32']
    down = 2*tokens*width*inner/s['down']
    once = 2*tokens*(2*width*width+2*width*kv+length*width)/s['attention']+4*tokens*width*inner/s['up']+down
    inputs = [(width,g['narrow'])]*3+[(inner,g['wide'])]
    weights = [(width,width)]*2+[(kv,width)]*2+[(inner,width)]*2+[(width,inner)]
    return dict(forward=2*once-down,
                statistics=sum(tokens*n**2/speed for n,speed in inputs),
                factorize=sum(2/3*n**3/speed for n,speed in inputs),
                sweep=sum(o*n**2/(g['wide'] if n==inner else g['narrow']) for o,n in weights))

# ---- Where time goes

class Phases:
    "Seconds spent in functions of other modules, each without what is spent in those it calls"
    def __init__(self, clock:str='wall'): self.seconds,self._stack,self.now = {},[],CLOCKS[clock]

    def timed(self, label, f):
        @wraps(f)
        def _f(*args, **kwargs):
            now = self.now()
            if self._stack: self._add(self._stack[-1], now)
            self._stack.append([label,now])
            try: return f(*args, **kwargs)
            finally:
                end = self.now()
                self._add(self._stack.pop(), end)
                if self._stack: self._stack[-1][1] = end
        return _f

    def _add(self, entry, now): self.seconds[entry[0]] = self.seconds.get(entry[0], 0)+now-entry[1]

    @contextmanager
    def watch(self, **names): # label -> names such as `compresscal.models.blocks:Capture.run`; a name that is not there is passed over
        "Time functions wherever their package has bound them, and put them back afterwards"
        undo = []
        def put(owner, name, value): undo.append((owner,name,owner.__dict__[name])); setattr(owner, name, value)
        try:
            for label,places in names.items():
                for place in places.split():
                    module,_,path = place.partition(':')
                    *outer,name = path.split('.')
                    owner = sys.modules.get(module)
                    for o in outer: owner = getattr(owner, o, None)
                    f = getattr(owner, '__dict__', {}).get(name)
                    if not callable(f): continue
                    new,package = self.timed(label, f),module.split('.')[0]
                    if outer: put(owner, name, new)
                    else:
                        for m in [m for k,m in sys.modules.items() if (k==package or k.startswith(package+'.')) and m is not None]:
                            for k in [k for k,v in vars(m).items() if v is f]: put(m, k, new)
            yield self
        finally:
            for owner,name,f in reversed(undo): setattr(owner, name, f)

# ---- llm-compressor

class Peer:
    "llm-compressor under a Python of its own, kept running between the rounds"
    def __init__(self, python:str, threads:int=None):
        env = {k: v for k,v in os.environ.items() if k!='PYTHONPATH'}|dict(HF_HUB_OFFLINE='1')
        command = [python, str(Path(__file__).with_name('llmcompressor_server.py'))]+([str(threads)] if threads else [])
        self.said = None if os.environ.get('BENCHMARK_DEBUG') else tempfile.TemporaryFile('w+') # a pipe that nobody reads would fill up, and halt it
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, text=True, env=env)
        self.versions = self._read()

    def _read(self):
        line = self.process.stdout.readline()
        if not line: raise RuntimeError(f"llm-compressor did not answer: {self._last_words()}")
        answer = json.loads(line)
        if 'error' in answer: raise RuntimeError(f"llm-compressor failed: {answer['error']}")
        return answer

    def _last_words(self):
        if self.said is None: return ''
        self.said.seek(0)
        return self.said.read()[-2000:]

    def run(self, **request)->dict: # `model`, `tokens`, `method`, `settings`, `out`, `clock`: see llmcompressor_server.py
        "`seconds` of a whole run, and `layers`, seconds of each block between two ends"
        self.process.stdin.write(json.dumps({k: str(v) if isinstance(v, Path) else v for k,v in request.items()})+'\n')
        self.process.stdin.flush()
        return self._read()

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=30)
    def __enter__(self): return self
    def __exit__(self, *args): self.close()

# ---- Tables

def median(values)->float: return float(torch.tensor(list(values), dtype=torch.float64).quantile(.5))

def table(rows:list[dict])->str:
    "Rows as a Markdown table; columns in the order in which they first appear"
    columns = list(dict.fromkeys(k for o in rows for k in o))
    def show(v): return '' if v is None else 'yes' if v is True else 'no' if v is False else f'{v:.4g}' if isinstance(v, float) else str(v)
    lines = [columns, ['---' if any(isinstance(o.get(k), str) for o in rows) else '---:' for k in columns], *[[show(o.get(k)) for k in columns] for o in rows]]
    return '\n'.join(f"| {' | '.join(o)} |" for o in lines)

def write(out, name:str, tables:dict, data:dict):
    "Print the tables; with `out`, write them to `out/name.md`, and everything to `out/name.json`"
    text = '\n\n'.join(f"### {title}\n\n{o if isinstance(o, str) else table(o)}" for title,o in tables.items() if o)
    print(text)
    if out is None: return
    Path(out).mkdir(parents=True, exist_ok=True)
    (Path(out)/f'{name}.md').write_text(text+'\n', encoding='utf-8')
    (Path(out)/f'{name}.json').write_text(json.dumps(data, indent=1)+'\n', encoding='utf-8')
