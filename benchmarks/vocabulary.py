"""Fine-tuning and writing with a whole and with a reduced vocabulary: quality, processor time, and peak memory.

`python benchmarks/vocabulary.py --help` lists the options; README.md says what is measured, and the study of
vocabulary memory shows the records. Each run is a process of its own with one thread, and becomes a line of a file
when it is finished: called again, the command runs what is missing."""
import argparse, hashlib, json, os, sys, time
from functools import partial
from itertools import product
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault('HF_HUB_OFFLINE', '1')
from vocabulary_classifiers import MODELS, TASKS, classifier, count, encoder_folder, rows_of, shared
from vocabulary_steps import above, mark_memory, one_thread, run_missing, train, without

# ---- A language model on the documentation of a package

def documentation(package:str)->tuple[list[str], list[str]]:
    "Docstrings of a package: to train on, and held out"
    from compresscal.text.installed_text import held_out_documents
    docs = held_out_documents()['docs']
    def of(*parts): return [o.text for part in parts for o in docs[part] if o.id.partition('.')[0]==package]
    return of('calibration'),of('dev', 'test')

def windows(texts, tokenizer, length:int):
    "Token ids of texts, one after the other, `[windows, length]`"
    import torch
    ids = torch.tensor([i for o in texts for i in tokenizer(o, verbose=False)['input_ids']])
    return ids[:len(ids)//length*length].view(-1, length)

def drawn(rows, n:int, seed:int):
    "So many rows in random order, all of them before one comes again"
    import torch
    times = -(-n//len(rows))
    order = [torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed+i)) for i in range(times)]
    return rows[torch.cat(order)[:n]]

def next_loss(model, ids, kept=None):
    "Cross-entropy of next tokens; with `kept`, logits of the other ids are minus infinity"
    from torch.nn.functional import cross_entropy
    logits = without(model(input_ids=ids).logits[:, :-1].float(), kept)
    return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

def held_loss(model, rows, kept=None)->float:
    import torch
    model.eval()
    with torch.inference_mode(): return float(torch.stack([next_loss(model, o, kept) for o in rows.split(8)]).mean())

def material(package:str, tokenizer, length:int):
    "Ids that the training text uses, windows to train on and held out, and what is worth recording of them"
    import torch
    from compresscal.vocabulary.usage import used_tokens
    texts,other = documentation(package)
    usage,others = (used_tokens(o, tokenizer, progress=False) for o in (texts, other))
    rows,held = (windows(o, tokenizer, length) for o in (texts, other))
    held = held[torch.isin(held, torch.from_numpy(usage.ids)).all(1)][:32] # every arm can read and write these
    facts = dict(ids=len(usage), windows=len(rows), held_windows=len(held), unseen=usage.unseen(others).rate)
    return usage,rows,held,facts

def language(package:str, arm:str, seed:int, steps:int, length:int, batch:int, lr:float)->dict:
    "Fine-tune the embedded model on the docstrings of a package; `arm` is full, reduced, or restricted"
    import torch
    from compresscal.models.loading import load_model
    torch.set_num_threads(1)
    model,tokenizer = load_model()
    usage,rows,held,facts = material(package, tokenizer, length)
    start,reduction,batches = mark_memory(),None,drawn(rows, steps*batch, seed).split(batch)
    if arm=='reduced':
        from compresscal.vocabulary.reduction import reduce_vocabulary
        reduction = reduce_vocabulary(model, usage, tokenizer=tokenizer)
        batches,held = [reduction.encode(o) for o in batches],reduction.encode(held)
    kept = torch.from_numpy(usage.ids)
    found = adapted(model, batches, held, kept if arm=='restricted' else None, lr)|dict(peak=above(start))
    if arm=='full': found['held_restricted'] = held_loss(model, held, kept)
    if reduction is not None: found |= restored_losses(reduction, held, kept)
    return facts|found

def adapted(model, batches, held, kept, lr:float)->dict:
    "Losses of training, and on held-out windows before and after"
    before = held_loss(model, held, kept)
    found = train(model, batches, lambda m, b: next_loss(m, b, kept), lr)
    losses = [float(f'{o:.6g}') for o in found['losses']]
    return dict(before=before, held=held_loss(model, held, kept), step=found['step'], losses=losses)

def restored_losses(reduction, held, kept)->dict:
    "Held-out loss of a model that is whole again, and without the dropped logits"
    model,held = reduction.restore(),reduction.decode(held)
    return dict(restored_full=held_loss(model, held), restored_restricted=held_loss(model, held, kept))

# ---- What a step costs

def eighth(config:dict)->dict:
    "A configuration with every width an eighth, so that each part has the same share of the parameters"
    sizes = ('vocab_size', 'hidden_size', 'intermediate_size', 'head_dim')
    return config|{k: config[k]//8 for k in sizes}

def random_gemma(config:dict):
    import torch
    from transformers import AutoConfig, GemmaForCausalLM
    torch.manual_seed(0)
    return GemmaForCausalLM(AutoConfig.for_model(**config))

def gemma():
    "Gemma 2B with every width an eighth: 20.9 % of it are embeddings"
    from compresscal.vocabulary.memory import published_models
    made = random_gemma(eighth(published_models['Gemma 2B']))
    assert round(embedding_share(made), 3)==.209, embedding_share(made)
    return made

def large(vocabulary:int=256_000):
    "Gemma's vocabulary in a model an eighth as wide, of 6 blocks: 86 % of it are embeddings"
    from compresscal.vocabulary.memory import published_models
    config = eighth(published_models['Gemma 2B'])
    return random_gemma(config|dict(vocab_size=vocabulary, num_hidden_layers=6))

def pretrained(name:str):
    from compresscal.models.loading import load_model
    return load_model(name, dtype='float32')[0]

def sentence_encoder():
    from transformers import AutoModelForSequenceClassification
    return AutoModelForSequenceClassification.from_pretrained(encoder_folder(), num_labels=2)

SHAPES = dict(encoder=sentence_encoder, embedded=partial(pretrained, 'embedded'),
              smollm2=partial(pretrained, 'smollm2'), gemma=gemma, large=large)
SHARES = (1., .5, .2, .05) # of the vocabulary

def parameters(model)->int: return sum(p.numel() for p in model.parameters())
def embedding_share(model)->float: return model.get_input_embeddings().weight.numel()/parameters(model)

def some_ids(size:int, kept:float):
    "Ids to keep, drawn by chance, in order"
    import torch
    n = max(64, round(size*kept))
    return torch.randperm(size, generator=torch.Generator().manual_seed(0))[:n].sort().values

def random_batches(size:int, batch:int, length:int, steps:int):
    import torch
    g = torch.Generator().manual_seed(1)
    return [torch.randint(size, (batch, length), generator=g) for _ in range(steps)]

def class_loss(model, ids): return model(input_ids=ids, labels=ids[:, 0]%2).loss

def cost(model:str, kept:float, batch:int, length:int, steps:int, turn:int=0, vocabulary:int|None=None)->dict:
    "Seconds and memory of a step of AdamW; `kept` is the share of the vocabulary"
    from compresscal.vocabulary.reduction import reduce_vocabulary
    start = one_thread()
    made = large(vocabulary) if vocabulary else SHAPES[model]()
    size,file = made.config.vocab_size,Path(os.environ['SCRATCH'])/'full.safetensors'
    whole = dict(full_ids=size, full_parameters=parameters(made), share=round(embedding_share(made), 4))
    if kept<1: reduce_vocabulary(made, some_ids(size, kept), full=file)
    mark_memory()
    batches = random_batches(made.config.vocab_size, batch, length, steps)
    found = train(made, batches, class_loss if model=='encoder' else next_loss, 1e-5, skip=1)
    sizes = dict(ids=made.config.vocab_size, parameters=parameters(made))
    return whole|sizes|dict(step=found['step'], peak=above(start))

# ---- A summarizer that only writes

def texts_of(documents):
    "News articles, as evidence.py reads them"
    from evidence import SUMMARIZED
    path,read = SUMMARIZED['articles']
    return [o['document'] for o in read((shared()/'data'/path).read_text())][:documents]

def prompts_of(texts, tokenizer)->dict:
    "What a model reads of the texts, as rows of ids"
    from compresscal.summaries.prompts import fit
    return dict(all=[dict(input_ids=list(fit('after', tokenizer, o, 8000).ids)) for o in texts])

def writer(arm:str, usage):
    "The language model, whole or reduced, and its tokenizer"
    import torch
    from compresscal.models.loading import load_model, load_tokenizer, model_source
    from compresscal.vocabulary.reduced_checkpoints import load_reduced
    if arm=='full': return load_model('smollm2', dtype='float32')
    tokenizer = load_tokenizer('smollm2')[1]
    model,reduction = load_reduced(model_source('smollm2'), usage, tokenizer=tokenizer, dtype=torch.float32)
    return model,reduction.tokenizer(tokenizer)

def timed_summaries(model, tokenizer, texts, tokens:int):
    "Summaries of at most so many tokens, and seconds of processor time"
    from compresscal.summaries.summarize import summarize
    begin = time.process_time()
    found = summarize(model, tokenizer, texts, max_tokens=tokens, batch_size=len(texts), progress=False)
    return found,round(time.process_time()-begin, 3)

def summarizer(arm:str, documents:int, tokens:int, known:int|None=None, turn:int=0)->dict:
    "Sum up the first documents, with the vocabulary of the first `known`, the prompt, and single bytes"
    from compresscal.models.loading import load_tokenizer
    texts,tokenizer = texts_of(known),load_tokenizer('smollm2')[1]
    usage = count(prompts_of(texts, tokenizer), tokenizer, 'all', ('special', 'bytes'))
    start = one_thread()
    model,tokenizer = writer(arm, usage)
    reading = timed_summaries(model, tokenizer, texts[:documents], 1)[1] # and one token of each
    found,seconds = timed_summaries(model, tokenizer, texts[:documents], tokens)
    marks = [hashlib.blake2b(o.encode(), digest_size=8).hexdigest() for o in found.texts]
    facts = dict(ids=len(usage), vocabulary=usage.vocab_size, parameters=parameters(model))
    measured = dict(written=int(found.n_tokens.sum()), reading=reading, seconds=seconds, peak=above(start))
    return facts|measured|dict(summaries=marks)

# ---- How much a task uses

TOKENIZERS = {'MiniLM (BERT)': 'minilm', 'GPT-2': 'gpt2', 'NeoX': 'neox'}

def tokenizer_of(name:str):
    from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast
    folder = shared()/'data'/'tokenizers'
    if name=='minilm': return AutoTokenizer.from_pretrained(encoder_folder())
    if name=='gpt2': return GPT2Tokenizer(vocab=str(folder/'gpt2_vocab.json'), merges=str(folder/'gpt2_merges.txt'))
    return PreTrainedTokenizerFast(tokenizer_file=str(folder/'neox20b_tokenizer.json'))

def run_unseen(o)->list[dict]:
    "What three tokenizers use of the tasks, and what is then unseen"
    import pandas as pd
    from compresscal.vocabulary.usage import unseen_rates, usage_growth
    tables,growths = [],[]
    for name,known in TOKENIZERS.items():
        tokenizer = tokenizer_of(known)
        for task in ('cola', 'sst2', 'rte'):
            data,columns = rows_of(task),TASKS[task].columns
            names = dict(task=task, tokenizer=name)
            tables.append(unseen_rates(data, tokenizer, columns=columns, progress=False).assign(**names))
            growths.append(usage_growth(data['train'], tokenizer, columns).assign(**names))
    how = dict(index=False, float_format='%.6g', lineterminator='\n')
    for what,found in dict(unseen=tables, growth=growths).items():
        pd.concat(found).to_csv(o.out/f'vocabulary_{what}.csv', **how)
    return pd.concat(tables).to_dict('records')

# ---- The command

SIZES = dict( # Rows that are read in training, and learning rate
    encoder=dict(sst2=(8192, 5e-5), cola=(12_800, 5e-5), rte=(5760, 5e-5)),
    smollm2=dict(sst2=(4096, 1e-4), cola=(5120, 2e-4), rte=(2816, 1e-4)))

def given(**settings)->dict:
    "Settings that are not left to their defaults"
    return {k: v for k,v in settings.items() if v is not None}

def arms_of(model:str, seed:int)->list[str]:
    "A restricted arm is for a model with an output head, and the first seed"
    return ['full', 'reduced', *['restricted']*(model=='smollm2' and seed==0)]

def run_classifier(o)->list[dict]:
    "Seed by seed, so that the first results cover everything"
    requests = []
    for seed,model,task in product(range(o.seeds), o.models or MODELS, o.tasks):
        rows,lr = SIZES[model][task]
        how = given(rows=o.rows or rows, batch=o.batch or 16, lr=o.lr or lr, validation=o.validation)
        requests += [dict(model=model, task=task, arm=arm, seed=seed, **how) for arm in arms_of(model, seed)]
    return run_missing(o.out/'vocabulary_runs.jsonl', 'classifier', requests)

def run_exact(o)->list[dict]:
    "A few steps in fp32, with the loss of each: bf16 rounds away whether two arms are the same"
    how = dict(rows=o.rows or 192, batch=o.batch or 16, validation=o.validation or 64, precision='fp32', every=1)
    requests = []
    for model,task in product(o.models or ['smollm2'], o.tasks):
        lr = o.lr or SIZES[model][task][1]
        requests += [dict(how, model=model, task=task, arm=arm, seed=0, lr=lr) for arm in arms_of(model, 0)]
    return run_missing(o.out/'vocabulary_exact.jsonl', 'classifier', requests)

def run_language(o)->list[dict]:
    how = dict(package=o.package, steps=o.steps or 60, length=64, batch=o.batch or 8, lr=o.lr or 1e-4)
    arms = product(range(o.seeds), ('full', 'reduced', 'restricted'))
    requests = [dict(how, arm=arm, seed=seed) for seed,arm in arms]
    return run_missing(o.out/'vocabulary_language.jsonl', 'language', requests)

def in_turns(rounds:int, models, arms):
    "Every model and arm once a round, the arms of every second round in reverse"
    for i in range(rounds):
        for model in models: yield from ((i, model, arm) for arm in (arms if i%2==0 else arms[::-1]))

def run_cost(o)->list[dict]:
    requests = []
    for i,model,kept in in_turns(o.rounds, o.models or SHAPES, o.shares):
        vocabulary = o.vocabulary if model=='large' else None
        how = given(batch=16 if model=='encoder' else 4, length=64, steps=o.steps or 8, vocabulary=vocabulary)
        requests.append(dict(model=model, kept=kept, turn=i, **how))
    return run_missing(o.out/'vocabulary_costs.jsonl', 'cost', requests)

def run_summarizer(o)->list[dict]:
    how = given(documents=o.documents, tokens=o.tokens, known=o.known)
    requests = [dict(how, arm=arm, turn=i) for i,_,arm in in_turns(o.rounds, ['smollm2'], ('full', 'reduced'))]
    return run_missing(o.out/'vocabulary_summaries.jsonl', 'summarizer', requests)

RUNS = dict(classifier=run_classifier, exact=run_exact, language=run_language, cost=run_cost,
            summarizer=run_summarizer, unseen=run_unseen)

def parse(args=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('what', nargs='?', choices=RUNS)
    p.add_argument('--out', type=Path, default=Path('.'), help='folder for the records')
    p.add_argument('--models', nargs='*', help='encoder and smollm2; for cost embedded, gemma and large, too')
    p.add_argument('--tasks', nargs='*', default=[*TASKS])
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--rows', type=int, help='rows read in training; as in SIZES if not given')
    p.add_argument('--validation', type=int, help='held-out rows; all if not given')
    p.add_argument('--lr', type=float)
    p.add_argument('--batch', type=int)
    p.add_argument('--steps', type=int, help='60 for language, 8 for cost')
    p.add_argument('--rounds', type=int, default=5, help='runs of each cost, and of each summarizer')
    p.add_argument('--shares', type=float, nargs='*', default=SHARES, help='of the vocabulary, for cost')
    p.add_argument('--vocabulary', type=int, help='of the large model')
    p.add_argument('--documents', type=int, default=8, help='to be summed up')
    p.add_argument('--known', type=int, help='documents whose vocabulary a summarizer keeps; all if not given')
    p.add_argument('--tokens', type=int, default=64, help='most of a summary')
    p.add_argument('--package', default='networkx', help='whose docstrings the embedded model is trained on')
    p.add_argument('--request', type=json.loads, help=argparse.SUPPRESS)
    return p.parse_args(args)

NAMES = ('model', 'task', 'arm', 'split', 'tokenizer')

def main(args=None)->list[dict]:
    import harness
    o = parse(args)
    o.out.mkdir(parents=True, exist_ok=True)
    rows = RUNS[o.what](o)
    shown = [{k: v for k,v in row.items() if isinstance(v, (int, float)) or k in NAMES} for row in rows]
    print(harness.table(shown))
    return rows

INSIDE = dict(classifier=classifier, language=language, cost=cost, summarizer=summarizer)

if __name__=='__main__':
    request = parse().request
    if request: print(json.dumps(INSIDE[request.pop('do')](**request)))
    else: main()
