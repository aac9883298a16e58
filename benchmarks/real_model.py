"""What a pretrained model scores: WikiText-2 by two protocols, and seven zero-shot tasks, dense and compressed.

`python benchmarks/real_model.py --data FOLDER --calibration c4.txt` reads the files that `FILES` names below FOLDER and
appends a line for each score to `nbs/studies/real_model_scores.jsonl`; what is there is not computed again."""
import argparse, json, time
from pathlib import Path
import torch
import harness # sets the environment
from settings import stream
from compresscal import compress, load_model, perplexity
from compresscal.compression.names import parse_method
from compresscal.evaluation.harness_perplexity import harness_word_perplexity
from compresscal.evaluation.tasks import evaluate_tasks

RECORDS = Path(__file__).parents[1]/'nbs'/'studies'/'real_model_scores.jsonl'
TASKS = dict(arc_easy='eval_arc/ARC-Easy.jsonl', hellaswag='eval_hellaswag/hellaswag_first2000.jsonl',
             openbookqa='eval_openbookqa/openbookqa.jsonl', winogrande='eval_winogrande/winogrande.jsonl',
             copa='eval_copa/copa-dev.xml', lambada_openai='eval_lambada/lambada_test.jsonl', boolq='eval_boolq/boolq_dev.jsonl')
WIKITEXT = 'text_wikitext2/wiki.valid.txt'

def articles(text)->list[str]:
    "WikiText's articles, each from its title on"
    found = []
    for line in text.splitlines(keepends=True):
        parts = line.split()
        title = len(parts)>2 and parts[0]==parts[-1]=='=' and '=' not in parts[1:-1]
        if title or not found: found.append('')
        found[-1] += line
    return [o for o in found if o.strip()]

def by_gptq(model, tokenizer, o)->dict:
    "Rows joined by blank lines, full windows of 2,048 tokens, nothing at their heads"
    rows = (Path(o.data)/WIKITEXT).read_text().splitlines(keepends=True)
    found = perplexity(model, rows, tokenizer, length=2048, protocol='gptq', batch_size=1, max_windows=o.windows)
    return dict(value=found.value, windows=len(found.window_nats), tokens=found.tokens)

def by_harness(model, tokenizer, o)->dict:
    "Word perplexity of lm-evaluation-harness, over its detokenized articles; words are those of the file"
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer
    pages = articles((Path(o.data)/WIKITEXT).read_text())[:o.articles]
    plain = [wikitext_detokenizer(dict(page=page)) for page in pages]
    found = harness_word_perplexity(model, plain, tokenizer, originals=pages, length=2048, batch_size=1)
    return dict(value=found.word_perplexity, articles=len(pages), bits_per_byte=found.bits_per_byte)

def task(name):
    "A function that scores a model on the first questions of a task"
    def scored(model, tokenizer, o):
        found = evaluate_tasks(model, tokenizer, [name], files={name: Path(o.data)/TASKS[name]}, limit=o.limit)[name]
        return dict(metrics=found.metrics, errors={k: found.error(k) for k in found.metrics}, counts=found.counts)
    return scored

SCORES = dict(gptq=by_gptq, harness=by_harness)|{name: task(name) for name in TASKS}

def model_of(method, o):
    "The model, compressed by a method on 16 windows of 512 tokens, or dense"
    model,tokenizer = load_model('smollm2')
    if method=='dense': return model,tokenizer
    head = tokenizer.convert_tokens_to_ids('<|endoftext|>')
    compress(model, parse_method(method), stream(tokenizer, o.calibration, 48, 512, head)[::3])
    return model,tokenizer

def main(args=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--data', required=True, help='folder of the files in TASKS and of WikiText-2')
    p.add_argument('--calibration', required=True, help='a text file to compress with, such as C4')
    p.add_argument('--methods', default='dense;wanda:2:4;sparsegpt:2:4;gptq:4,group_size=64;gptq:3,group_size=64', help='separated by semicolons')
    p.add_argument('--scores', default=','.join(SCORES), help='separated by commas')
    p.add_argument('--limit', type=int, default=300, help='questions of each task')
    p.add_argument('--windows', type=int, help='windows of GPTQ\'s protocol; all by default')
    p.add_argument('--articles', type=int, help='articles of the harness\'s; all by default')
    o = p.parse_args(args)
    torch.set_num_threads(1)
    lines = RECORDS.read_text().splitlines() if RECORDS.exists() else []
    done = {(r['method'],r['score']) for r in map(json.loads, lines)}
    for method in o.methods.split(';'):
        todo = [name for name in o.scores.split(',') if (method,name) not in done]
        if not todo: continue
        model,tokenizer = model_of(method, o)
        for name in todo:
            start = time.process_time()
            found = SCORES[name](model, tokenizer, o)
            record = dict(model='smollm2', method=method, score=name, **found, seconds=round(time.process_time()-start, 1))
            with RECORDS.open('a') as f: f.write(json.dumps(record)+'\n')

if __name__=='__main__': main()
