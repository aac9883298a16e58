"""What overlap of summaries with their sources costs, in all and in parts, beside rouge-score, and how it grows with the length of the source.

`python benchmarks/overlap.py --help` lists the options; README.md says what is measured."""
import argparse, json, platform, time
from pathlib import Path
import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from compresscal.summaries.mentions import unsupported
from compresscal.summaries.overlap import fragments, overlap
from compresscal.summaries.rouge import ROUGE_KINDS, rouge
from compresscal.text.sentences import split_sentences

def random_text(g, words:int)->str:
    "Sentences of 8 to 30 words, drawn as words of a language are: few of them often, most of them seldom"
    drawn,made = [f'w{i}' for i in np.minimum(g.zipf(1.25, words), 50_000)],[]
    while drawn:
        n = int(g.integers(8, 30))
        made,drawn = [*made, ' '.join(drawn[:n]).capitalize()+'.'],drawn[n:]
    return ' '.join(made)

def random_pairs(n:int, source:int=500, summary:int=50, seed:int=0):
    "Sources and summaries; half of each summary is copied from its source, with a name and a number behind it"
    g = np.random.default_rng(seed)
    sources = [random_text(g, source) for _ in range(n)]
    def copied(text):
        words = text.split()
        at = int(g.integers(0, max(1, len(words)-summary//2)))
        return ' '.join(words[at:at+summary//2])+'. '+random_text(g, max(1, summary-summary//2-4))+f' So said Ann on {g.integers(1, 999)} days.'
    return sources,[copied(o) for o in sources]

def timed(work, clock=time.process_time):
    start = clock()
    result = work()
    return clock()-start,result

def parts(sources, summaries):
    "Seconds of processor time of what makes a row"
    made = {'overlap, all of it': lambda: overlap(sources, summaries, progress=False), 'ROUGE of it': lambda: rouge(summaries, sources, progress=False),
            'fragments of it': lambda: [fragments(a, b) for a,b in zip(sources, summaries)], 'names, numbers, identifiers of it': lambda: [unsupported(a, b) for a,b in zip(sources, summaries)]}
    return {k: timed(v)[0] for k,v in made.items()}

def theirs(sources, summaries):
    "Seconds of rouge-score for the same four kinds, and the greatest difference of any number"
    sources = ['\n'.join(split_sentences(o)) for o in sources]
    summaries = ['\n'.join(split_sentences(o)) for o in summaries]
    scorer = RougeScorer([*ROUGE_KINDS])
    seconds,found = timed(lambda: [scorer.score(a, b) for a,b in zip(sources, summaries)])
    ours = rouge(summaries, sources, splitter='lines', progress=False).to_numpy()
    return seconds,float(np.abs(np.nan_to_num(ours)-np.array([[x for k in ROUGE_KINDS for x in o[k]] for o in found])).max())

def main(args=None):
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--pairs', type=int, default=10_000)
    p.add_argument('--source', type=int, default=500, help='words')
    p.add_argument('--summary', type=int, default=50, help='words')
    p.add_argument('--theirs', type=int, default=500, help='pairs that rouge-score sees; its seconds are scaled')
    p.add_argument('--long', type=int, nargs='*', default=[1_000, 10_000, 100_000], help='words of long sources')
    p.add_argument('--out', type=Path, help='folder for overlap.json')
    o = p.parse_args(args)
    sources,summaries = random_pairs(o.pairs, o.source, o.summary)
    ours = parts(sources, summaries)
    n = min(o.theirs, o.pairs)
    seconds,difference = theirs(sources[:n], summaries[:n])
    long = {}
    for w in o.long:
        a,b = random_pairs(1, w, 200)
        long[w] = timed(lambda: overlap(a, b, progress=False))[0]
    found = dict(pairs=o.pairs, source=o.source, summary=o.summary, python=platform.python_version(), seconds=ours, rouge_score=seconds*o.pairs/n, rouge_score_pairs=n, difference=difference, long=long)
    rows = [*ours.items(), (f'rouge-score (from {n:,} pairs)', found['rouge_score']), *((f'one source of {w:,} words', s) for w,s in long.items())]
    print(f'{o.pairs:,} pairs of {o.source} and {o.summary} words, seconds of one core; greatest difference to rouge-score {difference:.2g}')
    print('\n'.join(f'{k:<45}{v:8.2f}' for k,v in rows))
    if o.out:
        o.out.mkdir(parents=True, exist_ok=True)
        (o.out/'overlap.json').write_text(json.dumps(found, indent=1))
    if difference>1e-12: raise SystemExit(f'ROUGE differs from rouge-score by {difference:.2g}')
    return found

if __name__=='__main__': main()
