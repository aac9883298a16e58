"Every job ends once, whatever happens to it, to its worker or to us; nothing is left running"
import multiprocessing, os, random, signal, subprocess, sys, time
from collections import Counter
from functools import partial

import psutil
import pytest
from conftest import outside_tests, root

from compresscal import engines as module
from compresscal.engines import Failure, Local, Outcome, Pool, Ray, engine_from
from compresscal.jobs import conduct

setup = partial(partial, eval) # a job is an expression
die = "__import__('os').kill(__import__('os').getpid(), 9)"

def ends(outcomes): return {o.job: o for o in outcomes if o.state!='started'}
def numbers(n, size): return [[((g, i), f'{g}*100+{i}') for i in range(size)] for g in range(n)]

def small_pool(**kwargs): return Pool(workers=2, threads=1, **kwargs)

def test_the_same_from_each_engine():
    groups = [*numbers(3, 4), [('bad', '1/0'), ('after', '1')]]
    here, there = (list(e.run(setup, groups)) for e in (Local(), small_pool()))
    told = lambda os: {o.job: (o.state, o.value, o.error and (o.error.type, o.error.message, o.error.kind)) for o in os if o.state!='started'}
    assert told(here)==told(there) and told(here)['bad'][2]==('ZeroDivisionError', 'division by zero', 'error')
    for outcomes in (here, there): assert set(Counter((o.job, o.state=='started') for o in outcomes).values())=={1}

@pytest.mark.parametrize('job', ["__import__('torch').zeros(2**50)", 'bytearray(2**50)'])
def test_memory_is_told_from_other_errors(job): assert ends(Local().run(setup, [[(1, job)]]))[1].error.kind=='memory'
