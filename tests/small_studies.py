"What tests of studies share: sets of random tokens, and an engine that counts"
import torch

from compresscal.calibration.calibration_set import CalibrationSet
from compresscal.experiments.engines import Local

def tokens(seed, n=4, length=24): return torch.randint(3, 259, (n, length), generator=torch.Generator().manual_seed(seed))

def sets(seed, n): return [CalibrationSet.from_tokens(tokens(10*seed+i), source=f'source {seed}', set_index=i) for i in range(n)]

def counted(limit=10**9):
    "An engine that notes what it was asked (method, hash of the set, measures), and fails after `limit` jobs"
    class Counted(Local):
        def run(self, setup, groups):
            jobs = dict(pair for g in groups for pair in g)
            for o in super().run(setup, groups):
                if o.state=='started':
                    if len(engine.asked)==limit: raise InterruptedError('stopped here')
                    job = jobs[o.job]
                    engine.asked.append((job.method, job.calibration and job.calibration.hash, *job.measures))
                yield o
    engine = Counted()
    object.__setattr__(engine, 'asked', [])
    return engine

def computed(engine):
    "How many cells a counting engine was asked for"
    return sum(len(measures) for _,_,*measures in engine.asked)
