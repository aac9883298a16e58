"""What SummaC costs beside one pair at a time, and beside batches of pairs in their order.

`python benchmarks/summac.py --help` lists the options; README.md says what is measured."""
import argparse, json, platform, time
from pathlib import Path
from statistics import median
import numpy as np, torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AlbertConfig, AlbertForSequenceClassification, BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast
from compresscal.hallucination.entailment import EntailmentModel
from compresscal.text.sentences import split_sentences
from compresscal.hallucination.summac import ConvHead, SummaCConv, SummaCZS

LABELS = {0: 'entailment', 1: 'neutral', 2: 'contradiction'}
SIZES = dict(small=dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024),
             base=dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072),
             tiny=dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)) # for tests

def random_model(kind:str, size:str, vocabulary:int=2_000):
    "A model with random weights, and a tokenizer whose words are w0, w1, ..."
    words = {o: i for i,o in enumerate(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '.', *(f'w{i}' for i in range(vocabulary))])}
    inner = Tokenizer(models.WordLevel(words, unk_token='[UNK]'))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single='[CLS] $A [SEP]', pair='[CLS] $A [SEP] $B:1 [SEP]:1', special_tokens=[('[CLS]', 2), ('[SEP]', 3)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token='[UNK]', pad_token='[PAD]', cls_token='[CLS]', sep_token='[SEP]', model_max_length=512)
    config,model = dict(bert=(BertConfig, BertForSequenceClassification), albert=(AlbertConfig, AlbertForSequenceClassification))[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model(config(vocab_size=len(words), id2label=LABELS, initializer_range=.1, attn_implementation='eager', **SIZES[size])).eval(),tokenizer

def random_documents(n:int, sentences:int, claims:int, repeated:float, seed:int=0):
    "Documents with summaries by two models; a share of the documents' sentences are boilerplate, and the same share of the second model's sentences are the first's"
    g = np.random.default_rng(seed)
    def sentence(least, most): return ' '.join(f'w{i}' for i in g.integers(0, 2_000, g.integers(least, most)))+' .'
    boilerplate = [sentence(10, 40) for _ in range(sentences)]
    sources,summaries = [],[]
    for _ in range(n):
        sources += [' '.join(boilerplate[i] if g.random()<repeated else sentence(10, 40) for i in range(sentences))]*2
        first = [sentence(8, 20) for _ in range(claims)]
        summaries += [' '.join(first), ' '.join(o if g.random()<repeated else sentence(8, 20) for o in first)]
    return sources,summaries

def pairs_of(sources, summaries): return [(d, s) for a,b in zip(sources, summaries) for d in split_sentences(a, cut) for s in split_sentences(b, cut)]

def cut(text): return [o+' .' for o in text.split(' .') if o]

@torch.inference_mode()
def in_order(model, tokenizer, pairs, rows):
    "Entailment of pairs in their order, so many at a time, each batch padded to its longest"
    found = []
    for i in range(0, len(pairs), rows):
        batch = tokenizer(*map(list, zip(*pairs[i:i+rows])), padding=True, truncation='longest_first', max_length=500, return_tensors='pt', return_token_type_ids=True)
        found += model(**batch).logits.softmax(-1)[:, 0].tolist()
    return np.array(found)

def timed(work, clock=time.process_time):
    start = clock()
    result = work()
    return clock()-start,result

def measure(loaded, sources, summaries, rounds):
    "Median seconds of processor time of each way, in alternation, and the greatest difference of a score"
    head = ConvHead(np.linspace(-.1, .1, 23), 0, [[-.5]*3, [.5]*3], [0, 0])
    pairs = pairs_of(sources, summaries)
    def ours(judges):
        scorer = EntailmentModel(loaded, device='cpu')
        found = [o(scorer).score(sources, summaries, progress=False) for o in judges]
        return found[0].values,scorer.asked
    zs,conv = (lambda o: SummaCZS(o, splitter=cut)),(lambda o: SummaCConv(o, splitter=cut, head=head))
    ways = {'one pair at a time': lambda: in_order(*loaded, pairs, 1), 'batches of 20 in their order': lambda: in_order(*loaded, pairs, 20),
            'compresscal, ZS': lambda: ours([zs]), 'compresscal, ZS and Conv': lambda: ours([zs, conv])}
    seconds,results = {k: [] for k in ways},{}
    for _ in range(rounds):
        for k,work in ways.items():
            t,results[k] = timed(work)
            seconds[k].append(t)
    values,asked = results['compresscal, ZS']
    at,plain = 0,[]
    for a,b in zip(sources, summaries):
        n,m = len(split_sentences(a, cut)),len(split_sentences(b, cut))
        plain.append(results['one pair at a time'][at:at+n*m].reshape(n, m).max(0).mean())
        at += n*m
    return dict(pairs=len(pairs), asked=asked, seconds={k: median(v) for k,v in seconds.items()}, difference=float(np.abs(values-plain).max()))

def main(args=None):
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--models', nargs='*', default=['bert-small', 'albert-small'], help='bert or albert, and a size: small, base, tiny')
    p.add_argument('--documents', type=int, default=4, help='each with two summaries')
    p.add_argument('--sentences', type=int, default=25, help='of a document')
    p.add_argument('--claims', type=int, default=4, help='sentences of a summary')
    p.add_argument('--repeated', type=float, nargs='*', default=[0, .5], help='shares of sentences that come again')
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--out', type=Path, help='folder for summac.json')
    o = p.parse_args(args)
    before = torch.get_num_threads()
    torch.set_num_threads(o.threads)
    try: rows = [dict(model=k, repeated=r)|measure(random_model(*k.split('-')), *random_documents(o.documents, o.sentences, o.claims, r), o.rounds) for k in o.models for r in o.repeated]
    finally: torch.set_num_threads(before)
    print(f"Seconds of processor time, medians of {o.rounds} rounds; ratios to one pair at a time in brackets. 'ZS and Conv' is compared with one pair at a time done twice")
    for row in rows:
        s,one = row['seconds'],row['seconds']['one pair at a time']
        print(f"{row['model']}, {row['repeated']:.0%} repeated: {row['pairs']:,} pairs, {row['asked']:,} asked; greatest difference of a score {row['difference']:.1e}")
        for k,v in s.items(): print(f"    {k:<32}{v:9.2f}  ({one*(2 if 'Conv' in k else 1)/v:.2f})")
    if o.out:
        o.out.mkdir(parents=True, exist_ok=True)
        (o.out/'summac.json').write_text(json.dumps(dict(python=platform.python_version(), torch=torch.__version__, threads=o.threads, rows=rows), indent=1))
    if (worst := max(row['difference'] for row in rows))>1e-4: raise SystemExit(f'scores differ by {worst:.1e}')
    return rows

if __name__=='__main__': main()
