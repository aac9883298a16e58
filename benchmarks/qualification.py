"""Which judges earn their place: each is asked on SummEval and SummEdits what `compresscal.hallucination.qualification` asks.

`python benchmarks/qualification.py --data DATA` writes a file for each judge and collection into `nbs/studies/qualifications`;
what is there is not computed again. `--judges` and `--collections` name some of them."""
import argparse
from pathlib import Path
import torch
import harness # sets the environment
from labels import DOMAINS, FOLDERS
from compresscal.hallucination.harim import HaRiMDecoder
from compresscal.hallucination.judges import FunctionJudge, parse_judge
from compresscal.hallucination.labelled_summaries import open_labelled
from compresscal.hallucination.qualification import qualify
from compresscal.summaries.overlap import overlap

FOLDER = Path(__file__).parents[1]/'nbs'/'studies'/'qualifications'
COLLECTIONS = dict(summeval=['SummEval.json'], summedits=[f'summedits_{o}.json' for o in DOMAINS]) # in `FOLDERS`

# ---- Judges: two models in two forms, counted mentions, and what a judge must not be

def reading(model, **settings): return lambda: HaRiMDecoder(model, **settings)
def bigrams(sources, summaries): return overlap(sources, summaries, progress=False).to_pandas().rouge2_precision.tolist()

class LogLikelihood(HaRiMDecoder):
    "Plain log-likelihood, given the document"
    def score(self, sources, summaries, **kwargs):
        found = super().score(sources, summaries, **kwargs)
        return type(found)('log-likelihood', found.parts['log_likelihood'], settings=found.settings, parts=dict(log_likelihood=found.parts['log_likelihood']))

JUDGES = {'harim-smollm2': reading('smollm2'), 'harim-risk-smollm2': reading('smollm2', form='risk'), 'log-likelihood-smollm2': lambda: LogLikelihood('smollm2'),
          'harim-embedded': reading('embedded'), 'harim-risk-embedded': reading('embedded', form='risk'),
          'unsupported': lambda: parse_judge('unsupported'), 'rouge2-precision': lambda: FunctionJudge('rouge2_precision', bigrams, (0., 1.), True)}

class Remembering:
    "A reader that reads no list of texts twice"
    known = {}
    def __init__(self, reader): self.reader = reader
    def settings(self): return self.reader.settings()
    def read(self, sources, summaries, measure, **kwargs):
        key = str(self.settings()), tuple(sources), tuple(summaries), measure
        if key not in self.known: self.known[key] = self.reader.read(sources, summaries, measure, **kwargs)
        return self.known[key]

def judge_of(name):
    judge = JUDGES[name]()
    if hasattr(judge, 'reader'): judge.reader = Remembering(judge.reader)
    return judge

def main(args=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--data', required=True, type=Path, help='folder of the two collections')
    p.add_argument('--judges', default=','.join(JUDGES), help='separated by commas')
    p.add_argument('--collections', default=','.join(COLLECTIONS), help='separated by commas')
    p.add_argument('--documents', type=int, help='of each collection; all by default')
    p.add_argument('--summaries', type=int, default=4, help='of each document')
    p.add_argument('--out', type=Path, default=FOLDER)
    o = p.parse_args(args)
    torch.set_num_threads(1)
    o.out.mkdir(parents=True, exist_ok=True)
    for collection in o.collections.split(','):
        folder = o.data/FOLDERS[collection]
        labelled = open_labelled([folder/name for name in COLLECTIONS[collection]]).take(o.documents, o.summaries)
        for name in o.judges.split(','):
            path = o.out/f'{collection}-{name}.json'
            if path.exists(): continue
            found = qualify(judge_of(name), labelled, None if 'smollm2' in name else judge_of('harim-smollm2'), progress=False)
            found.save(path)
            print(found, flush=True)

if __name__=='__main__': main()
