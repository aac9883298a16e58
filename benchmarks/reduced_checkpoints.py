"""Peak resident memory of loading, training and saving a model with a part of its vocabulary, the whole matrix in memory or on disk.

`python benchmarks/reduced_checkpoints.py --help` lists the options; README.md says what is measured."""
import argparse, gc, json, subprocess, sys, tempfile
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))

MB = 2**20
MODES = dict(whole='the whole model', memory='reduced in memory, the whole matrix kept there', file='reduced in memory, the whole matrix put into a file',
             part='only the rows that are used are read, the whole matrix stays in its checkpoint', floor='a model that never had more tokens')

def status(name): return next(int(o.split()[1])*1024 for o in Path('/proc/self/status').read_text().splitlines() if o.startswith(name))

def peak(work):
    "What `work` returns, and the most memory that was resident meanwhile, above what was before, in MB"
    gc.collect()
    from compresscal.models.disk_blocks import release_memory
    release_memory()
    Path('/proc/self/clear_refs').write_text('5')
    before, out = status('VmRSS'), work()
    return out, (status('VmHWM')-before)/MB

# ---- Under the measured process

def write(folder, vocabulary, kept, width, inner, blocks, heads):
    "A checkpoint whose head is tied to its embedding, and one with so many tokens as are kept"
    import harness, torch
    for name,n in (('whole', vocabulary), ('floor', kept)):
        model = harness.random_llama(width, inner, blocks, heads, vocabulary=n, length=256)
        model.config.tie_word_embeddings, model.lm_head.weight = True, model.model.embed_tokens.weight
        model.save_pretrained(Path(folder)/name)

def measure(folder, mode, vocabulary, kept, sequences, length):
    "Peaks of loading, of two steps of AdamW, and of saving the whole, and the loss of each step"
    import torch
    from transformers import AutoModelForCausalLM
    from compresscal.vocabulary.reduced_checkpoints import load_reduced, save_full
    from compresscal.vocabulary.reduction import reduce_vocabulary
    torch.randn(64, 64)@torch.randn(64, 64)
    folder = Path(folder)
    ids = torch.arange(kept)*(vocabulary//kept) # spread over the whole matrix
    text = ids[torch.randint(3, kept, (sequences, length), generator=torch.Generator().manual_seed(0))]
    def load():
        if mode=='part': return load_reduced(folder/'whole', ids)
        model = AutoModelForCausalLM.from_pretrained(folder/('floor' if mode=='floor' else 'whole'))
        return model, reduce_vocabulary(model, ids, full='memory' if mode=='memory' else folder/'full.safetensors') if mode in ('memory', 'file') else None
    (model, reduction), loading = peak(load)
    x = text if mode=='whole' else torch.searchsorted(ids, text) if mode=='floor' else reduction.encode(text)
    def train():
        optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), []
        for _ in range(2):
            optimizer.zero_grad()
            loss = model(x, labels=x).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses
    held = status('VmRSS')
    losses, training = peak(train)
    _, saving = peak(lambda: model.save_pretrained(folder/mode) if reduction is None else save_full(reduction, folder/mode))
    size = sum(o.stat().st_size for o in (folder/mode).glob('*.safetensors'))/MB
    return dict(loading=loading, training=training, saving=saving, losses=losses, saved=size, held=held/MB)

# ---- The script

def ask(do, **how):
    p = subprocess.run([sys.executable, __file__, '--request', json.dumps(dict(do=do, **how))], capture_output=True, text=True)
    if p.returncode: raise RuntimeError(f'the measured process failed: {p.stderr[-3000:]}')
    return json.loads(p.stdout.splitlines()[-1])

def parse(args=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name,n,help in (('vocabulary', 256_000, 'tokens of the whole model'), ('kept', 5_000, 'tokens that are kept'), ('width', 256, 'of the model'), ('inner', 704, 'of its feed-forward layers'),
                        ('blocks', 2, 'of the model'), ('heads', 4, 'of each block'), ('sequences', 2, 'rows of a batch'), ('length', 64, 'tokens of a row')): p.add_argument(f'--{name}', type=int, default=n, help=help)
    p.add_argument('--modes', default=','.join(MODES), help=', '.join(MODES)); p.add_argument('--out', help='folder for reduced_checkpoints.md and .json')
    p.add_argument('--scratch', help='folder for checkpoints; a temporary one by default'); p.add_argument('--request', type=json.loads, help=argparse.SUPPRESS)
    return p.parse_args(args)

def main(args=None)->bool:
    "Measure, print, and say whether reading only the rows that are used needs less than a quarter of the whole matrix beyond the floor"
    import harness
    o, rows, found = parse(args), [], {}
    shape = dict(vocabulary=o.vocabulary, kept=o.kept)
    with tempfile.TemporaryDirectory(dir=o.scratch) as scratch:
        ask('write', folder=scratch, **shape, width=o.width, inner=o.inner, blocks=o.blocks, heads=o.heads)
        for mode in o.modes.split(','):
            found[mode] = ask('measure', folder=scratch, mode=mode, **shape, sequences=o.sequences, length=o.length)
            rows.append({'how': MODES[mode], **{f'{k}, MB': round(found[mode][k]) for k in ('loading', 'training', 'saving')}, 'file written, MB': round(found[mode]['saved'])})
    matrix = o.vocabulary*o.width*4/MB
    title = f"Peak memory above what was held before, {o.kept:,} of {o.vocabulary:,} tokens, width {o.width}, single precision: the whole matrix is {matrix:.0f} MB"
    harness.write(o.out, 'reduced_checkpoints', {title: rows}, dict(machine=harness.describe_machine(), options=vars(o), found=found))
    most = {k: max(v['loading'], v['training'], v['saving']) for k,v in found.items()}
    return 'part' not in most or 'floor' not in most or most['part']-most['floor']<matrix/4

if __name__=='__main__':
    if request := parse().request: print(json.dumps(dict(write=write, measure=measure)[request.pop('do')](**request)))
    else: sys.exit(0 if main() else 1)
