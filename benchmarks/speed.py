"""Seconds of a block, as ratios in one run: compresscal, the plain baseline of the original algorithms, and llm-compressor.

`python benchmarks/speed.py --help` lists the options; README.md says what is measured."""
import argparse, copy, sys, tempfile
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
import torch
from safetensors.torch import load_file, save_file
import baseline, harness

SETTINGS = dict(sparsegpt=dict(sparsity=.5), sparsegpt24=dict(sparsity='2:4'), wanda=dict(sparsity=.5), wanda24=dict(sparsity='2:4'), gptq=dict(bits=4, group_size=128), awq=dict(bits=4, group_size=128))

# Where time goes in compresscal: functions wrapped from outside; what is spent in a function that is called by another counts for the inner one alone
PHASES = dict(forward='compresscal.models.blocks:Capture.run', statistics='compresscal.compression.input_statistics:InputStatistics.add compresscal.compression.input_statistics:_mirror',
              factorize='compresscal.compression.compensation:factorize', sweep='compresscal.compression.compensation:sweep compresscal.compression.pruning:sparsegpt compresscal.compression.quantization:gptq', round='compresscal.compression.quantization:rtn compresscal.compression.grids:Quantized.dequantize',
              search='compresscal.compression.awq:linear_losses compresscal.compression.awq:block_losses', clip='compresscal.compression.awq:clip_search', fold='compresscal.models.foldings:find_foldings',
              mask='compresscal.compression.pruning:mask_rows compresscal.compression.pruning:mask_n_m compresscal.compression.pruning:wanda_scores',
              report='compresscal.compression.compression_report:describe', checks='compresscal.models.blocks:decoder_blocks', capture='compresscal.models.blocks:capture')

# ---- The competitors

def algorithm(method): return method.removesuffix('24')

def with_baseline(model, tokens, method, **settings):
    "The originals' algorithm, as baseline.py has it"
    if settings.get('sparsity')=='2:4': settings['sparsity'] = 2,4
    baseline.run(model, tokens, algorithm(method), **settings)

def with_compresscal(model, tokens, method, forward_dtype=None, **settings):
    "compresscal's method of the same name"
    import compresscal.compression.compress as c, compresscal.compression.methods as m
    method = dict(sparsegpt='SparseGPT', gptq='GPTQ', wanda='Wanda', awq='AWQ')[algorithm(method)]
    extra = {} if forward_dtype is None else dict(forward_dtype=forward_dtype)
    return c.compress(model, getattr(m, method).original(**settings), tokens, progress=False, **extra)

def for_peer(method, settings)->dict:
    "What llm-compressor is asked for"
    if settings.get('sparsity')=='2:4': settings = dict(sparsity=.5, pattern='2:4')
    return dict(method=algorithm(method), settings=settings)

def competitors(method:str, peer:bool)->dict:
    "Name -> (who, settings) of those that run under `method`"
    s = SETTINGS[method]
    if method=='awq': found = dict(original=('baseline', s), plain=('baseline', s|dict(broadcast=False)), block=('ours', s|dict(search='block')), linear=('ours', s|dict(search='linear')),
                                   **({'plain, scale only': ('baseline', s|dict(clip=False)), 'block, scale only': ('ours', s|dict(search='block', clip=False)),
                                       'linear, scale only': ('ours', s|dict(search='linear', clip=False)), 'llm-compressor': ('peer', s)} if peer else {}))
    else: found = {'baseline': ('baseline', s), 'compresscal': ('ours', s), 'compresscal bf16': ('ours', s|dict(forward_dtype='bfloat16')), **({'llm-compressor': ('peer', s)} if peer else {})}
    return found

def measure(method, model, tokens, rounds, folder, peer=None, only=None, clock='wall'):
    "Seconds of a block of every round and competitor, first blocks, and phases of ours; the order turns from round to round"
    own,found = copy.deepcopy(model.state_dict()),competitors(method, peer is not None)
    if only: found = {k: v for k,v in found.items() if k in only}
    seconds,whole,weights,phases,n = {k: [] for k in found},{k: [] for k in found},{},{},model.config.num_hidden_layers
    names,now = list(found),harness.CLOCKS[clock]
    import compresscal.compression.compress # imports and the first forward count for nobody
    with torch.no_grad(): model(tokens[:1])
    for i in range(rounds):
        for name in names[i%len(names):]+names[:i%len(names)]:
            who,settings = found[name]
            if who=='peer':
                answer = peer.run(model=folder/'model', tokens=folder/'tokens.safetensors', out=folder/'first.safetensors', clock=clock, **for_peer(method, settings))
                seconds[name].append(harness.median(answer['layers'] or [answer['seconds']/n]))
                whole[name].append(answer['seconds']/n)
                weights[name] = load_file(folder/'first.safetensors')
                continue
            model.load_state_dict(own)
            watch,start = harness.Phases(clock),now()
            with watch.watch(**PHASES if who=='ours' else {}): (with_compresscal if who=='ours' else with_baseline)(model, tokens, method, **settings)
            seconds[name].append((now()-start)/n)
            whole[name].append(seconds[name][-1])
            weights[name] = {k: v for k,v in harness.first_block(model).items()}
            if who=='ours': phases.setdefault(name, []).append((seconds[name][-1], {k: v/n for k,v in watch.seconds.items()}))
    model.load_state_dict(own)
    if algorithm(method) in ('sparsegpt','gptq') and 'baseline' in found: weights[REVERSED] = reversed_block(model, tokens, method)
    return dict(seconds=seconds, whole=whole, weights=weights, phases={k: sorted(v, key=lambda o: o[0])[(len(v)-1)//2] for k,v in phases.items()}) # of the median round

REVERSED = 'baseline, sequences reversed' # what the order of summation alone changes

def reversed_block(model, tokens, method)->dict:
    "The first block as the baseline compresses it when it reads the sequences from last to first"
    short = copy.copy(model)
    short._modules = dict(model._modules, model=copy.copy(model.model))
    short.model._modules = dict(model.model._modules, layers=copy.deepcopy(model.model.layers[:1]))
    with_baseline(short, tokens.flip(0), method, **SETTINGS[method])
    return harness.first_block(short)

# ---- Are the results equal?

def agreement(mine:dict, theirs:dict)->dict:
    "Over the linear layers of the first block: share of mask flips, and of the layer with most; share of equal weights; relative difference"
    flips,equal,apart,size,counts = [],[],[],[],[]
    for k,b in theirs.items():
        a = mine[k]
        flips.append(int(((a==0)!=(b==0)).sum()))
        equal.append(int(((a-b).abs()<=1e-5*b.abs().max()).sum()))
        apart.append(float((a-b).square().sum()))
        size.append(float(b.square().sum()))
        counts.append(b.numel())
    return dict(flips=sum(flips)/sum(counts), worst=max(n/m for n,m in zip(flips, counts)), equal=sum(equal)/sum(counts), difference=(sum(apart)/sum(size))**.5)

def verdict(method, found)->bool|None:
    "Does an fp32 result hold what the same algorithm must give?"
    if algorithm(method) in ('sparsegpt','wanda'): return found['flips']<=1e-4
    return found['equal']>=.997 if method=='gptq' else None

def compare(method, result)->tuple[list,bool]:
    "Rows of the table, and whether every check holds"
    first,rows,fine = next(iter(result['seconds'])),[],True
    mid = {k: harness.median(v) for k,v in result['seconds'].items()}
    for name,seconds in mid.items():
        row = dict(method=method, competitor=name, **{'seconds a block': seconds, 'least': min(result['seconds'][name]), 'most': max(result['seconds'][name]),
                   f'times {first}': mid[first]/seconds, 'times llm-compressor': mid['llm-compressor']/seconds if 'llm-compressor' in mid else None})
        if name!=first:
            found = agreement(result['weights'][name], result['weights'][first])
            must = verdict(method, found) if name=='compresscal' else None
            row |= found_columns(found)|{'check holds': must}
            fine &= must is not False
        rows.append(row)
    if REVERSED in result['weights']: rows.append(dict(method=method, competitor=REVERSED)|found_columns(agreement(result['weights'][REVERSED], result['weights'][first])))
    return rows,fine

def found_columns(o): return {'mask flips': o['flips'], 'in the worst layer': o['worst'], 'weights equal': o['equal'], 'relative difference': o['difference']}

def phase_rows(method, result, floors)->list[dict]:
    "Phases of ours beside the floor"
    rows = []
    for name,(total,phases) in result['phases'].items():
        least = floors['bf16' if 'bf16' in name else 'fp32']
        known = [k for k in least if algorithm(method) in ('sparsegpt','gptq') or (algorithm(method)=='wanda' and k=='forward')]
        for k in [*known,*(k for k in phases if k not in known)]:
            seconds,bound = phases.get(k, 0.),least[k] if k in known else None
            rows.append(dict(method=method, competitor=name, phase=k, seconds=seconds, floor=bound, **{'times floor': seconds/bound if bound else None}))
        bound = sum(least[k] for k in known) or None
        rows.append(dict(method=method, competitor=name, phase='rest', seconds=total-sum(phases.values())))
        rows.append(dict(method=method, competitor=name, phase='all', seconds=total, floor=bound, **{'times floor': total/bound if bound else None}))
    return rows

# ---- What it costs in quality, on a model that has learnt something

def block_errors(dense, model, tokens)->list[float]:
    "For each block, squared error of what it adds to the hidden states over what the dense one adds, both fed by the dense model"
    errors = []
    with torch.no_grad():
        x,others = baseline.catch(dense, tokens)
        for a,b in zip(dense.model.layers, model.model.layers):
            after,got = (baseline.run_block(o, x, others) for o in (a,b))
            errors.append(float((got-after).square().sum()/(after-x).square().sum()))
            x = after
    return errors

def quality(folder=None, sequences=32, length=256, windows=64, group_size=64)->dict:
    "Perplexity with bf16 forwards, and the error of AWQ's searches on text that they have not seen"
    from compresscal import calibration_sets, load_model, perplexity
    dense,tokenizer = load_model(folder, dtype='float32')
    calibration,held_out = (o.tokens for o in calibration_sets('docs', tokenizer, n_sets=2, n_sequences=sequences, length=length))
    def score(m): return perplexity(m, 'docs', tokenizer, length=length, max_windows=windows, progress=False).value
    def ours(method, **settings):
        with_compresscal(model := copy.deepcopy(dense), calibration, method, **settings)
        return model
    plain = score(dense)
    rows = [dict(method='dense', perplexity=plain)]
    for method,settings in (('sparsegpt',dict(sparsity=.5)), ('gptq',dict(bits=4, group_size=group_size)), ('gptq',dict(bits=3, group_size=group_size))):
        full,half = (score(ours(method, **settings, **o)) for o in ({}, dict(forward_dtype='bfloat16')))
        rows.append(dict(method=' '.join([method,*(f'{k}={v}' for k,v in settings.items())]), perplexity=full, **{'with bf16 forwards': half, 'change': f'{100*(half/full-1):+.2f} %'}))
    settings,searches = dict(bits=4, group_size=group_size),{}
    for name,make in {'rounding alone': lambda: ours('awq', **settings, scale=False, clip=False), 'original': None, 'block': lambda: ours('awq', search='block', **settings), 'linear': lambda: ours('awq', search='linear', **settings)}.items():
        if make: model = make()
        else: baseline.run(model := copy.deepcopy(dense), calibration, 'awq', **settings)
        errors = block_errors(dense, model, held_out)
        searches[name] = dict(search=name, **{'mean block error': sum(errors)/len(errors)}, worst=max(errors), perplexity=score(model))
    return dict(forwards=rows, awq=list(searches.values()))

# ---- The script

def parse(args=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--methods', default='sparsegpt,gptq,wanda,awq', help='separated by commas; sparsegpt24 and wanda24 are of the pattern 2:4')
    p.add_argument('--only', default='', help='competitors to run, separated by semicolons; all by default')
    p.add_argument('--width', type=int, default=768); p.add_argument('--inner', type=int, default=2048); p.add_argument('--heads', type=int, default=12)
    p.add_argument('--kv-heads', type=int); p.add_argument('--blocks', type=int, default=3); p.add_argument('--awq-blocks', type=int, default=2)
    p.add_argument('--sequences', type=int, default=32); p.add_argument('--length', type=int, default=512); p.add_argument('--vocabulary', type=int, default=1024)
    p.add_argument('--rounds', type=int, default=3); p.add_argument('--awq-rounds', type=int, default=1); p.add_argument('--group-size', type=int, default=128)
    p.add_argument('--threads', type=int); p.add_argument('--llmcompressor-python', help='Python of an environment that has llmcompressor'); p.add_argument('--gemm-seconds', type=float, default=.4)
    p.add_argument('--quality', action='store_true', help='perplexity with bf16 forwards and AWQ on held-out text too'); p.add_argument('--model', help='a model that load_model knows, such as smollm2, in place of one of random weights; its first --blocks are measured, and --quality takes it whole')
    p.add_argument('--clock', choices=harness.CLOCKS, default='wall', help='cpu: processor time, which a busy machine changes less; for one thread')
    p.add_argument('--out', help='folder for speed.md and speed.json')
    return p.parse_args(args)

def subject(o, blocks):
    "The model to be measured"
    if o.model: return harness.read_model(o.model, blocks)
    return harness.random_llama(o.width, o.inner, blocks, o.heads, o.kv_heads, o.vocabulary, o.length)

def take_shapes(o):
    "Let the options say what the model's configuration says"
    if not o.model: return
    c = harness.read_model(o.model, 1).config
    o.width,o.inner,o.heads,o.kv_heads,o.vocabulary = c.hidden_size,c.intermediate_size,c.num_attention_heads,c.num_key_value_heads,c.vocab_size

def main(args=None)->bool:
    "Measure, print, and say whether all checks hold"
    o = parse(args)
    if o.threads: torch.set_num_threads(o.threads)
    for k in ('gptq','awq'): SETTINGS[k]['group_size'] = o.group_size
    take_shapes(o)
    data = dict(machine=harness.describe_machine(), options=vars(o))
    speeds = data['gemm'] = harness.machine_speeds(o.width, o.inner, o.length, o.gemm_seconds, o.clock)
    kv_width = o.width//o.heads*(o.kv_heads or o.heads)
    tokens,rows,results,fine = harness.random_tokens(o.sequences, o.length, o.vocabulary),[],{},True
    peer = harness.Peer(o.llmcompressor_python, o.threads) if o.llmcompressor_python else None
    if peer: data['peer'] = peer.versions
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        save_file(dict(tokens=tokens), folder/'tokens.safetensors')
        for method in filter(None, o.methods.split(',')):
            awq = method=='awq'
            model = subject(o, o.awq_blocks if awq else o.blocks)
            if peer: model.save_pretrained(folder/'model')
            result = measure(method, model, tokens, o.awq_rounds if awq else o.rounds, folder, peer, set(filter(None, o.only.split(';'))), o.clock)
            more,held = compare(method, result)
            rows,fine,results[method] = rows+more,fine and held,result
            data[method] = dict(seconds=result['seconds'], whole=result['whole'], phases={k: v for k,(_,v) in result['phases'].items()}, rows=more)
    if peer: peer.close()
    for k,more in harness.machine_speeds(o.width, o.inner, o.length, o.gemm_seconds, o.clock).items(): speeds[k].update({n: max(v, speeds[k][n]) for n,v in more.items()})
    floors = data['floor'] = {k: harness.floor(speeds, o.sequences*o.length, o.length, o.width, o.inner, kv_width, k) for k in speeds}
    phases = [row for method,result in results.items() for row in phase_rows(method, result, floors)]
    tables = {f"Seconds of a block, {o.sequences} x {o.length} tokens, {o.width}/{o.inner}": rows, 'Phases of compresscal': phases,
              'GFLOP/s of the machine': [dict(precision=k, **{n: v/1e9 for n,v in s.items()}) for k,s in speeds.items()]}
    if o.quality:
        data['quality'] = quality(o.model)
        tables |= {'Forwards in bf16': data['quality']['forwards'], 'Searches of AWQ on held-out text': data['quality']['awq']}
    harness.write(o.out, 'speed', tables, data)
    return fine

if __name__=='__main__': sys.exit(0 if main() else 1)
