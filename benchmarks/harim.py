"""What HaRiM+ costs in batches, beside one pair at a time with two plain forward passes, and what it saves that a source is encoded once.

`python benchmarks/harim.py --help` lists the options; README.md says what is measured."""
import argparse, json, platform, statistics
from pathlib import Path
import numpy as np, torch
from tokenizers.processors import TemplateProcessing
from transformers import BartConfig, BartForConditionalGeneration
from compresscal.hallucination.harim import HaRiM
from compresscal.models.loading import load_model
from overlap import random_pairs, timed

def random_bart(width:int, blocks:int):
    "A BART with random weights, and the embedded model's tokenizer with an end behind each text"
    tokenizer = load_model()[1]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single='<s> $A </s>', special_tokens=[('<s>', tokenizer.bos_token_id), ('</s>', tokenizer.eos_token_id)])
    sizes = dict(d_model=width, encoder_layers=blocks, decoder_layers=blocks, encoder_ffn_dim=4*width, decoder_ffn_dim=4*width,
                 encoder_attention_heads=max(1, width//64), decoder_attention_heads=max(1, width//64))
    ids = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id or 0, decoder_start_token_id=tokenizer.eos_token_id)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BartForConditionalGeneration(BartConfig(vocab_size=len(tokenizer), max_position_embeddings=1024, init_std=.1, **sizes, **ids)).eval(),tokenizer

@torch.no_grad()
def one_by_one(model, tokenizer, sources, summaries):
    "The published score of each pair alone: two passes through the whole model"
    found = []
    for a,b in zip(sources, summaries):
        labels = tokenizer(b, truncation=True, max_length=110, return_tensors='pt')['input_ids']
        ids = [tokenizer(o, truncation=True, max_length=1024, return_tensors='pt')['input_ids'] for o in (a, '')]
        with_source,without = (model(input_ids=o, labels=labels).logits[0].log_softmax(-1).gather(-1, labels[0,:,None])[:,0].double() for o in ids)
        p,q = with_source.exp(),without.exp()
        found.append(float((with_source+7*(1-(1-p)*(1-(p-q))/2)).mean()))
    return np.array(found)

def main(args=None):
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--pairs', type=int, default=48)
    p.add_argument('--source', type=int, default=100, help='words')
    p.add_argument('--summary', type=int, default=25, help='words')
    p.add_argument('--shared', type=int, default=4, help='summaries of each source in the second setting')
    p.add_argument('--width', type=int, default=256)
    p.add_argument('--blocks', type=int, default=4, help='of the encoder, and of the decoder')
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--out', type=Path, help='folder for harim.json')
    o = p.parse_args(args)
    model,tokenizer = random_bart(o.width, o.blocks)
    judge = HaRiM((model, tokenizer))
    sources,summaries = random_pairs(o.pairs, o.source, o.summary)
    settings = {'one summary of each source': sources, f'{o.shared} summaries of each source': [sources[i-i%o.shared] for i in range(o.pairs)]}
    found = dict(pairs=o.pairs, source=o.source, summary=o.summary, width=o.width, blocks=o.blocks, python=platform.python_version(), torch=torch.__version__, settings={})
    print(f'{o.pairs:,} pairs of {o.source} and {o.summary} words, BART of width {o.width} with {o.blocks} blocks on each side; pairs a second of processor time')
    for name,texts in settings.items():
        seconds = dict(alone=[], batched=[])
        for _ in range(o.rounds):
            t,plain = timed(lambda: one_by_one(model, tokenizer, texts, summaries))
            seconds['alone'].append(t)
            t,ours = timed(lambda: judge.score(texts, summaries, progress=False).values)
            seconds['batched'].append(t)
        speed = {k: o.pairs/statistics.median(v) for k,v in seconds.items()}
        difference = float(np.abs(plain-ours).max())
        found['settings'][name] = dict(seconds=seconds, pairs_a_second=speed, ratio=speed['batched']/speed['alone'], difference=difference)
        print(f"{name:<32}one by one {speed['alone']:7.2f}   batched {speed['batched']:7.2f}   ratio {speed['batched']/speed['alone']:5.2f}   greatest difference {difference:.1e}")
        if difference>1e-4: raise SystemExit(f'scores differ by {difference:.1e}')
    if o.out:
        o.out.mkdir(parents=True, exist_ok=True)
        (o.out/'harim.json').write_text(json.dumps(found, indent=1))
    return found

if __name__=='__main__': main()
