"""What overlap and other published scores have to do with human labels: makes the tables beside nbs/studies/human_labels.ipynb from the data sets' own files.

`python benchmarks/labels.py --data FOLDER` reads the data sets below FOLDER, each in a folder of its own (`FOLDERS`), and writes numbers of ours only, no text of theirs; `--help` lists the options."""
import argparse, json
from pathlib import Path
import numpy as np, pandas as pd
from scipy.stats import rankdata
from tqdm.auto import tqdm
from compresscal.statistics.correlation import correlate, partial
from compresscal.core.files import write_atomically
from compresscal.hallucination.labelled_summaries import summedits_table, summeval_table
from compresscal.statistics.intervals import FEWEST, bootstrap_documents

FOLDERS = dict(xsum='sum_xsum_hallucination', frank='sum_frank', summeval='sum_bartscore_human', summedits='sum_summedits')
DOMAINS = ('news', 'samsum', 'scitldr', 'sales_email') # Of SummEdits
UP, DOWN = 1, -1 # Which way a score is expected to go if a summary is consistent with its source
OVERLAP = dict(rouge1_precision=UP, rouge2_precision=UP, rougeL_precision=UP, rouge1_f=UP, rouge2_f=UP, rougeL_f=UP, novelty1=DOWN, novelty2=DOWN, novelty3=DOWN, novelty4=DOWN,
               coverage=UP, density=UP, longest_copy=UP, copied_sentences=UP, unsupported=DOWN, unsupported_names=DOWN, unsupported_numbers=DOWN)
OTHER = dict(words=DOWN, compression=UP) # What goes with overlap without being it
LABELS = ('consistency', 'relevance', 'coherence', 'fluency') # Of SummEval
OFTEN = 4 # A system of SummEval with a lower mean consistency, from 1 to 5, often fails at it

# ---- Reading

def read_xsum(folder):
    "XSum hallucination annotations (Maynez et al. 2020): a row for each summary, published scores and labels"
    frame = pd.read_csv(Path(folder)/'eval_scores_xsum_summaries.csv')
    frame[['system', 'document']] = frame.pop('system_bbcid').str.rsplit('_', n=1, expand=True).to_numpy()
    return frame.assign(corpus='xsum')

def read_frank(folder):
    "FRANK (Pagnoni et al. 2021): a row for each summary, published scores and the share of sentences without a factual error"
    scores, labels = (pd.DataFrame(json.loads((Path(folder)/o).read_text())) for o in ('baseline_factuality_metrics_outputs.json', 'human_annotations.json'))
    frame = scores.merge(labels[['hash', 'model_name', 'Factuality']], on=['hash', 'model_name'], validate='one_to_one')
    return frame.rename(columns=dict(hash='document', model_name='system', dataset='corpus')).replace(dict(corpus=dict(bbc='xsum'))).drop(columns='split')

def read_summeval(folder): return summeval_table(Path(folder)/'SummEval.json').assign(corpus='summeval')

def read_summedits(folder, domains=DOMAINS): return summedits_table(*(Path(folder)/f'summedits_{d}.json' for d in domains))

def with_overlap(frame, progress=True):
    "The same rows with a column for each overlap metric, and ROUGE against the reference where there is one"
    from compresscal.summaries.overlap import overlap
    found = overlap(frame.source.tolist(), frame.summary.tolist(), progress=progress).to_pandas()
    frame = pd.concat([frame, found[[k for k in (*OVERLAP, *OTHER) if k in found]].set_index(frame.index)], axis=1)
    if 'reference' not in frame: return frame
    against = overlap(frame.reference.tolist(), frame.summary.tolist(), progress=progress).to_pandas()
    return frame.assign(**{f'{k}_reference_f': against[f'{k}_f'].to_numpy() for k in ('rouge1', 'rouge2', 'rougeL')})

# ---- Correlations

def row(data, corpus, metric, label, statistic, how, e):
    return dict(data=data, corpus=corpus, metric=metric, label=label, statistic=statistic, how=how, value=e.value, low=e.low, high=e.high, n=e.n, unit=e.unit, left_out=e.left_out)

def correlations(data, corpus, frame, metric, label, how='spearman', n_resamples=999, words=None):
    "Correlations of a metric with a label: all rows, inside documents, inside systems, between systems, and given the system"
    x, y, again = frame[metric], frame[label], dict(how=how, n_resamples=n_resamples)
    by_document, by_system = correlate(x, y, frame.document, **again), correlate(x, y, frame.system, **again)
    given = {'given system': dict(system=frame.system)} | ({'given system and words': dict(system=frame.system, words=frame[words].rank())} if words and metric!=words else {})
    found = {'pooled': by_document.pooled, 'within documents': by_document.within, 'within systems': by_system.within, 'between systems': by_system.between}
    ranks = 'values' if how=='spearman' else 'residuals'
    found |= {k: partial(x, y, v, ranks=ranks, groups=frame.document, **again) for k,v in given.items()}
    return [row(data, corpus, metric, label, k, how, e) for k,e in found.items()]

def ranked_residuals(data, corpus, frame, metric, label, n_resamples=999):
    "Spearman given the system as FRANK's authors compute it, the residuals ranked: ties of the label come apart by system, so that the system is back in it"
    e = partial(frame[metric], frame[label], dict(system=frame.system), groups=frame.document, n_resamples=n_resamples)
    return row(data, corpus, metric, label, 'given system, residuals ranked', 'spearman', e)

def xsum(folder, n_resamples=999, progress=True):
    "Published scores of XSum summaries against both labels"
    frame = read_xsum(folder)
    return [o for m in tqdm(['R1', 'R2', 'RL', 'BERTScore', 'Entailment'], desc='XSum', disable=not progress) for l in ('Faithful', 'Factual')
            for o in correlations('xsum', 'xsum', frame, m, l, n_resamples=n_resamples)]

def frank(folder, n_resamples=999, progress=True):
    "Published scores of FRANK against its label, both corpora and each alone"
    frame = read_frank(folder)
    metrics = [k for k in frame if k not in ('document', 'system', 'corpus', 'Factuality')]
    parts, out = dict(all=frame) | dict(list(frame.groupby('corpus'))), []
    for m in tqdm(metrics, desc='FRANK', disable=not progress):
        for c,part in parts.items():
            out += [o for how in ('spearman', 'pearson') for o in correlations('frank', c, part, m, 'Factuality', how, n_resamples)]
            out.append(ranked_residuals('frank', c, part, m, 'Factuality', n_resamples))
    return out

def summeval(frame, n_resamples=999, progress=True):
    "Our overlap metrics, and ROUGE against the reference, against the four labels of SummEval; consistency once more without the systems that often fail at it"
    metrics = [k for k in (*OVERLAP, *OTHER, *(f'rouge{o}_reference_f' for o in '12L')) if k in frame]
    mostly, out = frame[frame.groupby('system').consistency.transform('mean')>=OFTEN], []
    for m in tqdm(metrics, desc='SummEval', disable=not progress):
        out += [o for l in LABELS for o in correlations('summeval', 'all systems', frame, m, l, n_resamples=n_resamples, words='words' if l=='consistency' else None)]
        out += correlations('summeval', 'consistent systems', mostly, m, 'consistency', n_resamples=n_resamples, words='words')
    return out

def system_means(frame):
    "Means of each system of SummEval"
    columns = [k for k in frame if k in OVERLAP or k in OTHER or k in LABELS or k.endswith('_reference_f')]
    return frame.groupby('system', sort=True)[columns].mean().reset_index().to_dict('records')

# ---- Telling consistent from inconsistent edits

def auc(consistent, score):
    "How often a consistent summary scores higher than an inconsistent one, ties counting half; nan without both"
    good = np.asarray(consistent)==1
    n, m = good.sum(), (~good).sum()
    return (rankdata(score)[good].sum()-n*(n+1)/2)/(n*m) if n and m else np.nan

def auc_within(score, consistent, document):
    "The same for each document, rows without a score left out"
    frame = pd.DataFrame(dict(score=score, consistent=consistent, document=document))
    known = (o.dropna(subset='score') for _,o in frame.groupby('document', sort=False))
    return np.array([auc(o.consistent, o.score) for o in known])

def best_threshold(score, consistent):
    "The threshold at or above which a summary is called consistent, for the best balanced accuracy"
    tried = np.unique(np.append(score, score.max()+1))
    found, missed = (np.searchsorted(np.sort(score[consistent==k]), tried)/(consistent==k).sum() for k in (0, 1)) # below the threshold, of either kind
    return tried[np.argmax(found-missed)]

def separations(frame, metric, sign, n_resamples=999):
    "AUC inside documents for each domain and kind of edit, and balanced accuracy with a threshold from the domain's own development split"
    out = []
    for domain in ('all', *dict.fromkeys(frame.corpus)):
        own = frame if domain=='all' else frame[frame.corpus==domain]
        for kind in ('all', *sorted({k for kinds in own.edit_types for k in kinds})):
            some = own[(own.label==1) | own.edit_types.map(lambda kinds: kind=='all' or kinds==[kind])] # those of one kind alone
            score = sign*some[metric].to_numpy(dtype=float)
            each = auc_within(score, some.label, some.document)
            told = each[~np.isnan(each)]
            ends = bootstrap_documents(told, n_resamples=n_resamples) if len(told)>=FEWEST and n_resamples else (np.nan, np.nan)
            found = dict(domain=domain, edit=kind, metric=metric, auc=told.mean() if len(told) else np.nan, low=ends[0], high=ends[1], documents=len(told), left_out=len(each)-len(told),
                         consistent=int((some.label==1).sum()), inconsistent=int((some.label==0).sum()))
            if kind=='all':
                known = ~np.isnan(score)
                found['auc_pooled'] = auc(some.label[known], score[known])
                if domain!='all':
                    label, dev = some.label.to_numpy(), known & (some.split=='evaluation').to_numpy()
                    called = score>=best_threshold(score[dev], label[dev])
                    found['balanced_accuracy'] = np.mean([(called==k)[known & ~dev & (label==k)].mean() for k in (0, 1)])
            out.append(found)
    return out

def summedits(frame, n_resamples=999, progress=True):
    "Every overlap metric on SummEdits"
    return [o for m,sign in tqdm([*OVERLAP.items(), ('words', UP)], desc='SummEdits', disable=not progress) if m in frame for o in separations(frame, m, sign, n_resamples)]

# ---- Tables

def write(rows, path):
    "A CSV file of six digits, the same bytes for the same numbers"
    write_atomically(path, pd.DataFrame(rows).to_csv(index=False, float_format='%.6g', lineterminator='\n'))

def parse(args=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', type=Path, required=True, help='folder that holds '+', '.join(FOLDERS.values()))
    parser.add_argument('--out', type=Path, default=Path(__file__).resolve().parents[1]/'nbs'/'studies', help='where the tables go (default: beside the notebook)')
    parser.add_argument('--only', nargs='+', choices=FOLDERS, default=list(FOLDERS), help='data sets to read; tables of the others stay as they are')
    parser.add_argument('--resamples', type=int, default=499, help='draws of each bootstrap')
    return parser.parse_args(args)

def main(args=None):
    o = parse(args)
    o.out.mkdir(parents=True, exist_ok=True)
    table = lambda name: o.out/f'human_labels_{name}.csv'
    for name in o.only:
        folder = o.data/FOLDERS[name]
        if not folder.is_dir(): raise SystemExit(f'--data must hold a folder {FOLDERS[name]}, got {o.data}')
        if name=='xsum': write(xsum(folder, o.resamples), table(name))
        if name=='frank': write(frank(folder, o.resamples), table(name))
        if name=='summeval':
            frame = with_overlap(read_summeval(folder))
            write(summeval(frame, o.resamples), table(name))
            write(system_means(frame), table('systems'))
        if name=='summedits': write(summedits(with_overlap(read_summedits(folder)), o.resamples), table(name))

if __name__=='__main__': main()
