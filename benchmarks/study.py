"""What a study costs beside the work in it: its cells against the same parts done separately, how that grows with their number, and what a large grid would take.

`python benchmarks/study.py --help` lists the options; README.md says what is measured."""
import argparse, json, statistics, sys, tempfile, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
import harness

METHODS = ('wanda:0.5', 'wanda:2:4', 'sparsegpt:2:4', 'gptq:3')
SOURCES = ('docs', 'code', 'random')

def a_study(n_sets, n_sequences, length, n_evaluation):
    "The embedded model, four methods and three sources: 12 compressed models for each number of a set"
    from compresscal.experiments.study import Study
    return Study(methods=METHODS, sources=SOURCES, n_sets=n_sets, n_sequences=n_sequences, length=length, evaluations=('docs',), n_evaluation=n_evaluation, replicates=0)

def separately(study, fresh):
    "Seconds for each compressed model of a study, made by hand: all sets drawn before; the model loaded for each, or made dense again"
    from compresscal import calibration_sets, compress, load_model, perplexity
    from compresscal.experiments.cells import keep_weights
    start = time.perf_counter()
    model, tokenizer = load_model()
    how = dict(n_sequences=study.n_sequences, length=study.length, seed=study.seed)
    sets = {s: calibration_sets(s, tokenizer, study.n_sets, **how) for s in study.sources}
    text, = calibration_sets('docs', tokenizer, 1, study.n_evaluation, study.length, study.seed, split='test')
    restore, values = keep_weights(model), [perplexity(model, text, tokenizer, progress=False).value]
    for method in study.methods:
        for group in sets.values():
            for s in group:
                if fresh: model, tokenizer = load_model()
                compress(model, method, s, progress=False)
                values.append(perplexity(model, text, tokenizer, progress=False).value)
                if not fresh: restore()
    return time.perf_counter()-start, values

def as_study(study, folder):
    "Seconds of the same as a study, and its perplexities"
    start = time.perf_counter()
    results = study.run(folder, progress=False)
    return time.perf_counter()-start, [r['value'] for r in results.select(metric='perplexity').rows]

def compare(study, rounds):
    "The same compressed models as a study, by hand, and by hand with the model loaded for each, in turns"
    found = {'study': [], 'by hand': [], 'by hand, loaded each time': []}
    for i in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            turns = [('study', lambda: as_study(study, Path(folder)/'s')), ('by hand', lambda: separately(study, False)), ('by hand, loaded each time', lambda: separately(study, True))]
            values = {}
            for name,run in turns[::1 if i%2 else -1]:
                seconds, values[name] = run()
                found[name].append(seconds)
            if len({tuple(sorted(v)) for v in values.values()})>1: raise RuntimeError(f'the numbers differ: {values}')
    return {k: statistics.median(v) for k,v in found.items()}

def growth(sizes, n_sequences, length, n_evaluation):
    "Seconds of studies of small cells: the work by hand, the study, and the study once more when all is finished"
    lines = []
    for cells in sizes:
        study = a_study(cells//(len(METHODS)*len(SOURCES)), n_sequences, length, n_evaluation)
        with tempfile.TemporaryDirectory() as folder:
            hand, _ = separately(study, False)
            first, _ = as_study(study, Path(folder)/'s')
            again, _ = as_study(study, Path(folder)/'s')
            size = sum(p.stat().st_size for p in Path(folder).rglob('*') if p.is_file())
            records = sum(p.stat().st_size for p in Path(folder).glob('s/cells/*'))
        lines.append(dict(cells=cells, hand=hand, study=first, again=again, folder=size, records=records))
    return lines

# ---- On paper

MODELS = {'LLaMA 7B': (6.7e9, 4096, 11008, 32), 'LLaMA 13B': (13e9, 5120, 13824, 40), 'LLaMA 30B': (32.5e9, 6656, 17920, 60), # parameters, width, inner width, blocks
          'OPT 6.7B': (6.7e9, 4096, 16384, 32), 'OPT 13B': (13e9, 5120, 20480, 40), 'OPT 30B': (30e9, 7168, 28672, 48)}
TIMES = {'LLaMA 7B': 2, 'LLaMA 13B': 2, 'LLaMA 30B': 2, 'OPT 6.7B': 1, 'OPT 13B': 1, 'OPT 30B': 1} # Vicuna has LLaMA's shapes
TASKS = dict(arc_easy=(2376, 4, 35), arc_challenge=(1172, 4, 40), boolq=(3270, 2, 150), hellaswag=(10042, 4, 90), lambada_openai=(5153, 1, 90), openbookqa=(500, 4, 20),
             piqa=(1838, 2, 40), rte=(277, 2, 80), xstorycloze_en=(1511, 2, 55), winogrande=(1267, 2, 25)) # documents, choices, tokens of a choice with its context, about

def plan(teraflops, use, bytes_a_document):
    "The 1,800 compressed models of the calibration-impact paper: hours of one GPU, disk, records"
    calibration, perplexity = 128*2048, 340_000
    scored = sum(n*choices*tokens for n,choices,tokens in TASKS.values())
    documents = sum(n for n,_,_ in TASKS.values())
    lines, total = [], dict(compress=0., evaluate=0., hessians=0., weights=0.)
    for name,(parameters, width, inner, blocks) in MODELS.items():
        forwards = 2*2*parameters*calibration # each block twice, two operations a weight and token
        hessians = blocks*calibration*(3*width**2+inner**2) # half of a symmetric product for each of the four inputs of a block
        one = dict(compress=forwards, hessians=hessians, evaluate=2*parameters*(scored+perplexity))
        hours = {k: v/(teraflops*1e12*use)/3600 for k,v in one.items()}
        n = TIMES[name]*200
        lines.append((name, n, 60*(hours['compress']+hours['hessians']), 60*hours['evaluate'], n*sum(hours.values())))
        for k,v in hours.items(): total[k] += n*v
        total['weights'] += TIMES[name]*2*parameters
    print(f'{teraflops} TFLOP/s, of which {use:.0%} are used; {scored/1e6:.1f} million tokens of tasks, {calibration:,} of calibration, {perplexity:,} of perplexity')
    for name,n,compress,evaluate,hours in lines: print(f'{name:10} {n:4} compressed models, each {compress:5.1f} min to compress and {evaluate:5.1f} min to evaluate: {hours:6.0f} GPU hours')
    n = sum(o[1] for o in lines)
    print(f"{n:,} compressed models: {sum(o[4] for o in lines):,.0f} GPU hours ({total['evaluate']/sum(o[4] for o in lines):.0%} of them evaluation); {n*(len(TASKS)+1):,} records, "
          f"{n*documents*bytes_a_document/1e9:.1f} GB at {bytes_a_document} bytes a document; {total['weights']/1e9:.0f} GB of dense weights, no compressed ones")

def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--sets', type=int, default=5, help='sets from each source: 12 compressed models each (default: %(default)s, 60 models)')
    parser.add_argument('--size', type=int, nargs=3, default=[32, 256, 48], help='sequences, tokens in each, and held-out sequences of their cells (default: 32 256 48)')
    parser.add_argument('--rounds', type=int, default=3, help='how often each is timed (default: %(default)s)')
    parser.add_argument('--sizes', type=int, nargs='*', default=[60, 600], help='compressed models of the studies of small cells (default: 60 600)')
    parser.add_argument('--small', type=int, nargs=3, default=[4, 64, 4], help='sequences, tokens in each, and held-out sequences of small cells (default: 4 64 4)')
    parser.add_argument('--plan', type=float, nargs=3, metavar=('TFLOPS', 'USE', 'BYTES'), help='only say what the grid of the calibration-impact paper would take on one such GPU, '
                        'such as: --plan 312 .4 150')
    parser.add_argument('--out', help='folder for study.json')
    args = parser.parse_args(argv)
    if args.plan: return plan(*args.plan)
    found = dict(machine=harness.describe_machine())
    if args.rounds:
        found['whole'] = whole = compare(a_study(args.sets, *args.size), args.rounds)
        n = 12*args.sets
        print(f'{n} compressed models: ' + ', '.join(f'{k} {v:.1f} s ({v/whole["by hand"]:.2f}x)' for k,v in whole.items()))
    found['growth'] = growth(args.sizes, *args.small)
    for o in found['growth']:
        print(f"{o['cells']} small cells: by hand {o['hand']:.1f} s, study {o['study']:.1f} s, beside the work {1e3*(o['study']-o['hand'])/o['cells']:.0f} ms a cell; "
              f"again when finished {o['again']:.1f} s; {o['records']/o['cells']/1e3:.1f} kB a record, {o['folder']/2**20:.1f} MB in all")
    if args.out:
        Path(args.out).mkdir(parents=True, exist_ok=True)
        (Path(args.out)/'study.json').write_text(json.dumps(found, indent=1))

if __name__=='__main__': main()
