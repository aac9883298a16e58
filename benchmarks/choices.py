"""Seconds of processor time of multiple-choice tasks: a question read once for all of its choices, beside once for each.

`python benchmarks/choices.py --data DATA` asks the first questions of two tasks, with and without solved examples before
them, in turns; README.md holds the numbers."""
import argparse, time
from pathlib import Path
import harness # sets the environment
import torch
from compresscal.evaluation import tasks
from compresscal.models.loading import load_model
from harness import median
from real_model import TASKS

ASKED = [('arc_easy', 0), ('arc_easy', 5), ('hellaswag', 0), ('hellaswag', 5)] # task, solved examples
branches = tasks.reads_branches

def asked(model, tokenizer, data, task, fewshot, n, way):
    "Log-likelihoods of all choices, and seconds"
    tasks.reads_branches = branches if way=='once' else lambda model: False
    start = time.process_time()
    file = {task: data/TASKS[task]}
    found = tasks.evaluate_tasks(model, tokenizer, task, files=file, limit=n, n_fewshot=fewshot, batch_size=16, progress=False)[task]
    return torch.tensor([o for some in found.documents['logliks'] for o in some]),time.process_time()-start

def compared(model, tokenizer, data, task, fewshot, n, rounds):
    "One row: median seconds of each way, the least and the most of their ratio, and how far apart scores are"
    turns = [[asked(model, tokenizer, data, task, fewshot, n, o) for o in ('once', 'each')[::1 if i%2 else -1]][::1 if i%2 else -1] for i in range(rounds)]
    once,each = ([o[i][1] for o in turns] for i in (0, 1))
    ratios = sorted(b/a for a,b in zip(once, each))
    apart = max(float((o[0][0]-o[1][0]).abs().max()) for o in turns)
    return dict(task=task, examples=fewshot, once=round(median(once), 2), each=round(median(each), 2), ratio=round(median(ratios), 2),
                least=round(ratios[0], 2), most=round(ratios[-1], 2), apart=f'{apart:.1g}')

def main(args=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--data', type=Path, required=True, help='folder of the files in `real_model.TASKS`')
    p.add_argument('--model', default='smollm2')
    p.add_argument('--dtype', default='float32')
    p.add_argument('--questions', type=int, default=24)
    p.add_argument('--rounds', type=int, default=3)
    o = p.parse_args(args)
    torch.set_num_threads(1)
    model,tokenizer = load_model(o.model, dtype=o.dtype)
    try: rows = [compared(model, tokenizer, o.data, task, k, o.questions, o.rounds) for task,k in ASKED]
    finally: tasks.reads_branches = branches
    print(harness.table(rows))
    return rows

if __name__=='__main__': main()
