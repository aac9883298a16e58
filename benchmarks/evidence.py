"""The studies of `nbs/studies` on a pretrained model, each a folder that goes on where it was stopped.

`python benchmarks/evidence.py calibration --data DATA --out WORK` reads the files that `TEXTS` and `TASKS` name below DATA
and keeps the study in WORK/calibration."""
import argparse, json, re
from functools import cache
from pathlib import Path
import torch
import harness # sets the environment
from real_model import TASKS, articles
from compresscal import Pool, Study, calibration_sets, load_model, summarize
from compresscal.compression.noise import Noise
from compresscal.calibration.generation import Sampling
from compresscal.core.files import write_changed

MODEL = 'smollm2'

# ---- Text: documents of each kind, as JSON lines that sources and measures name

def pieces(text, size=2000)->list[str]:
    "Blocks between blank lines, joined to documents of at least so many characters"
    found = ['']
    for block in re.split(r'\n\s*\n', text):
        if len(found[-1])>=size: found.append('')
        found[-1] += block.strip('\n')+'\n\n'
    return [o for o in found if o.strip()]

def lines(text): return [o for o in text.splitlines() if len(o)>100]
def encyclopedia(text): return [o.strip() for o in re.findall(r'<doc [^>]*>(.*?)</doc>', text, re.S) if len(o)>500]
def books(text): return [json.loads(o)['text'] for o in text.splitlines()]
def articles_of(text): return [dict(id=k, document=o['src'], reference=o['ref_summ']) for k,o in json.loads(text).items()]
def contracts_of(text): return [dict(id=k, document=o['original_text'], reference=o['reference_summary']) for k,o in json.loads(text).items()]
def news(text): return [o['document'] for o in articles_of(text)]

TEXTS = dict(c4=('text_exllamav2_cal/c4.utf8', lines), wiki=('text_exllamav2_cal/wiki.utf8', encyclopedia),
             news=('sum_bartscore_human/SummEval.json', news), code=('text_exllamav2_cal/code.utf8', pieces),
             technical=('text_exllamav2_cal/technical.utf8', pieces),
             wikitext=('text_wikitext2/wiki.valid.txt', articles), books=('text_books/tinybook.jsonl', books))

def write_rows(out, name, rows)->Path:
    "A file of JSON lines"
    file = out/'texts'/f'{name}.jsonl'
    file.parent.mkdir(parents=True, exist_ok=True)
    write_changed(file, ''.join(json.dumps(o)+'\n' for o in rows))
    return file

def write_texts(data, out)->dict[str, Path]:
    "A file of documents for each kind of text"
    return {name: write_rows(out, name, [dict(text=o) for o in split((data/path).read_text())]) for name,(path,split) in TEXTS.items()}

# ---- Impact of calibration data, and self-calibration: one grid, for two pages

HARD = ['wanda:2:4', 'sparsegpt:2:4', 'gptq:3,group_size=64', 'awq:3,group_size=64'] # where damage is large
MILD = ['gptq:4,group_size=64', 'awq:4,group_size=64']
QUESTIONS = dict(arc_easy=200, hellaswag=200, lambada_openai=200, winogrande=200)
KINDS = ['c4', 'wiki', 'news', 'code', 'technical', 'docs', 'random']                  # for the first page
WRITTEN = ['c4+wiki', 'unigrams', 'self', 'self:decay', 'self:chat']                   # for the second, beside some of these
SETS,N_SEQUENCES,LENGTH = 5,16,512

def places(texts, names)->dict:
    "For `calibration_sets`: what each name of a source stands for"
    c4,wiki,code = texts['c4'],texts['wiki'],texts['code']
    made = {'c4+wiki': f'{c4}=0.5+{wiki}=0.5', 'unigrams': f'random:{wiki}', 'self:decay': 'self:carlini', 'self:chat': 'self:start=dialogue'}
    little = f'{c4}=0.875+{code}=0.125'
    made |= {'c4+code': f'{c4}=0.5+{code}=0.5', 'little code': little, 'little code, weighted': f'weighted:{little}'}
    return {o: made.get(o, str(texts.get(o, o))) for o in names}

def drawn_sets(names, texts, out, among=KINDS+WRITTEN, size=(N_SEQUENCES, LENGTH))->dict:
    "Sets of each source: documents packed one after the other, none of them in two sources of `among`"
    model,tokenizer = load_model(MODEL)
    every = places(texts, among)
    how = dict(n_sets=SETS, n_sequences=size[0], length=size[1], among=[*every.values()], model=model, batch_size=N_SEQUENCES, folder=out/'written')
    return {o: calibration_sets(every[o], tokenizer, **how, rule='pack') for o in names} # the rule is for text that is read

@cache
def subject(attention):
    "The model, with PyTorch's attention, `sdpa`, or written out, `eager`, which in bf16 on a processor is faster: `forward.py`"
    model,tokenizer = load_model(MODEL, dtype='bfloat16')
    model.set_attn_implementation(attention)
    return model,tokenizer

# Which attention a set is read with decides a hundredth of Wanda's mask at 2:4, and five percent of the perplexity. So one study has one.
def grid(methods, sets, n, measured, replicates=0, size=(N_SEQUENCES, LENGTH), attention='eager', **how)->Study:
    "The first `n` sets of each source, all of one size"
    return Study({MODEL: subject(attention)}, methods, {k: v[:n] for k,v in sets.items()}, n, *size, evaluations=measured,
                 n_evaluation=8, replicates=replicates, dtype='bfloat16', **how)

def measures(data, texts)->dict:
    "Three perplexities, divergence on one of their texts, and tasks"
    found = dict(wikitext=str(texts['wikitext']), books=str(texts['books']), docs='docs')|{'kl:wikitext': f"kl:{texts['wikitext']}"}
    return found|{k: f'task:{k},limit={n},file={data/TASKS[k]}' for k,n in QUESTIONS.items()}

# Declared before the run. Natural sources are those of KINDS without `random`, 30 sets.
#
# First page. (1) Does the source matter? One exact test that deals the sets to the natural sources, the same deal in all methods,
# for divergence on WikiText; its least p is far below .001. (2) Does pruning depend more on the text than rounding, for the
# damage it does? The ratio of spreads of the logarithm of the divergence over the 30 sets, Wanda and SparseGPT each against GPTQ
# and AWQ at 3 bits, four tests; with 29 degrees of freedom a ratio of 1.7 is found four times in five, of 1.4 if the two go
# together with .8. (3) Do tasks see it? The test of (1) for LAMBADA, and for the mean of the multiple-choice tasks. Holm's
# method corrects the seven together.
#
# Second page. Against C4, the mixture, and random tokens, the model's own text, by each of the four methods of HARD, on WikiText:
# twelve exact tests of five sets against five, which cannot be decided together (the least p is .008). So one test is
# declared for each pair: over the methods and sets together, deals of sets, three tests. All else is shown with intervals
# and detectable differences: with five sets each, two standard deviations between sets.

def calibration(data, out):
    "A grid that grows: from few sets of each source to all, and the noise at the end"
    texts = write_texts(data, out)
    sets = drawn_sets(KINDS+WRITTEN, texts, out)
    measured = measures(data, texts)
    def study(names, methods, n, replicates=0):
        return grid(methods, {k: sets[k] for k in names}, n, measured, replicates=replicates, batch_size=16)
    for n in (1, 2, 3): yield study(KINDS, HARD, n)
    for n in (1, 2, 3): yield study(KINDS+WRITTEN, HARD, n)
    for n in (1, 3): yield study(KINDS, HARD+MILD, n)
    for n in (4, SETS): yield study(KINDS+WRITTEN, HARD, n)
    for n in (4, SETS): yield study(KINDS, HARD+MILD, n)
    yield study(KINDS, HARD+MILD, SETS, 4)
    yield study(KINDS+WRITTEN, HARD+MILD, SETS, 4) # the second page's sources at 4 bits, where damage is least, come last

# ---- How large a set: many short windows, or few long ones

SIZES = [(rows, length) for rows in (4, 16, 64) for length in (128, 512)]
PRUNED_OR_ROUNDED = ['wanda:2:4', 'sparsegpt:2:4', 'gptq:3,group_size=64']

def sizes(data, out):
    "A study for each size, of the same source"
    texts = write_texts(data, out)
    drawn = {size: drawn_sets(['c4'], texts, out, ['c4'], size) for size in SIZES}
    for n in (2, SETS):
        for size,sets in drawn.items():
            yield '{}x{}'.format(*size), grid(PRUNED_OR_ROUNDED, sets, n, on_wikitext(texts), size=size)

# ---- Text that answers questions

ANSWERS,ANSWER = 400,'{document}' # how many are written, and what the model is asked: the question

def question_rows(data, name): return [json.loads(o) for o in (data/TASKS[name]).read_text().splitlines()]

def written_answers(data, out)->Path:
    "Questions of a task that no measure asks, each with the answer of the dense model, drawn at temperature 1"
    file = out/'texts'/'answers.jsonl'
    if file.exists(): return file
    model,tokenizer = load_model(MODEL)
    questions = [o['question'] for o in question_rows(data, 'arc_easy')[-ANSWERS:]] # the measure asks the first ones
    found = summarize(model, tokenizer, questions, prompt=ANSWER, max_tokens=200, sampling=Sampling(), folder=out/'written'/'answers')
    return write_rows(out, 'answers', [dict(text=f'{q}\n{a}') for q,a in zip(questions, found.texts)])

def answers(data, out):
    "What the model's own answers to questions do to its greedy answers, beside web text and its own other text"
    texts = write_texts(data, out)|dict(answers=written_answers(data, out))
    asked = [dict(id=o['id'], document=o['question'], reference=o['choices'][o['label']]) for o in question_rows(data, 'openbookqa')[:60]]
    file = write_rows(out, 'asked', asked)
    names = ['c4', 'self', 'self:chat', 'answers']
    sets = drawn_sets(names, texts, out, names)
    measured = on_wikitext(texts)|dict(greedy=f'summaries:{file},prompt={ANSWER},max_tokens=150')
    measured |= {k: f'task:{k},limit={QUESTIONS[k]},file={data/TASKS[k]}' for k in ('arc_easy', 'lambada_openai')}
    for n in (1, 3, SETS): yield grid(PRUNED_OR_ROUNDED, sets, n, measured, batch_size=16)

# ---- Two new questions: how much the set moves methods at few bits, and mixing statistics instead of text

FEW_BITS = [f'{m}:{b}' + ',group_size=64'*(m!='spqr') for b in (3, 2) for m in ('gptq', 'awq', 'spqr')]

def on_wikitext(texts)->dict:
    "What is measured without questions"
    return {'wikitext': str(texts['wikitext']), 'kl:wikitext': f"kl:{texts['wikitext']}"}

# Declared before the run, of the divergence: (1) is the spread between sets more than what the order of their rows does, for each of
# the six; (2) the ratio of the spreads of AWQ and of SpQR to GPTQ's at each number of bits, four intervals at .9875; (3) C4 against
# WikiText's like, six exact tests. Ten sets find a ratio of 3, four times in five. So after a look at 71 of 85 models two more
# sources were added, of which (2) alone is asked: with twenty sets, five of each, a ratio near 2 is found. They were computed with
# another attention, and a last part shows what that does to AWQ, for which the order of the rows does nothing.
def few_bits(data, out):
    "Sets of two sources, and the first of them again as a null control; two more sources; and another attention as another control"
    texts = write_texts(data, out)
    sets = drawn_sets(['c4', 'wiki', 'news', 'technical'], texts, out)
    def part(names, methods, n=SETS, **how): return grid(methods, {k: sets[k] for k in names}, n, on_wikitext(texts), **how)
    for n in (2, 3, SETS): yield 'order', part(['c4', 'wiki'], FEW_BITS, n, replicates=n-1, attention='sdpa')
    yield 'more', part(['news', 'technical'], FEW_BITS)
    yield 'attention', part(['c4'], [o for o in FEW_BITS if 'awq' in o])

# By halves `mix` and `weighted` are the same. With an eighth of code a mixture has two rows of it, and a weighted set eight that count as two.
MIXED = ['c4', 'code', 'c4+code', 'little code', 'little code, weighted']

def mixing(data, out):
    "Two kinds of text, half of each, and an eighth of one: in rows, and in the statistics"
    texts = write_texts(data, out)
    sets = drawn_sets(MIXED, texts, out, MIXED)
    measured = on_wikitext(texts)|{'code': 'code', 'kl:code': 'kl:code'}
    for n in (2, 3, SETS): yield grid(PRUNED_OR_ROUNDED, sets, n, measured, attention='sdpa')

# ---- Hallucination in pruned summarizers

PROMPTS = ['after', 'before', 'question'] # of the paper
PRUNED = ['wanda:2:4', 'sparsegpt:2:4', 'wanda:0.5', 'sparsegpt:0.5', 'magnitude:0.5', 'gptq:4,group_size=64']
SWEPT = [f'{m}:{s/10}' for s in range(1, 7) for m in ('wanda', 'sparsegpt')]
NOISE = [Noise(o) for o in (.08, .1, .12, .14, .16, .18, .2)] # perplexities from near the dense model's to beyond those of 2:4

SUMMARIZED = dict(articles=('sum_bartscore_human/SummEval.json', articles_of), contracts=('sum_legal/tldrlegal_v1.json', contracts_of))

def summaries(files, prompts)->dict:
    "A measure for each set of documents and each prompt; of the first prompt with what the summaries owe to their documents"
    owed = {PROMPTS[0]: ',dependence=another'}
    return {f'{name}, {o}': f'summaries:{file},prompt={o},max_tokens=100{owed.get(o, "")}' for name,file in files.items() for o in prompts}

def hallucination(data, out):
    "One prompt and one set first, then noise, the sweep, more sets, and the other prompts"
    texts = write_texts(data, out)
    sets = drawn_sets(['c4'], texts, out)
    wikitext = dict(wikitext=str(texts['wikitext']))
    files = {name: write_rows(out, name, read((data/path).read_text())) for name,(path,read) in SUMMARIZED.items()}
    def study(methods, n, prompts, files=files):
        return grid(methods, sets, n, wikitext|summaries(files, prompts))
    yield 'prompts', study(PRUNED+NOISE, 1, PROMPTS[:1])
    yield 'sweep', study(SWEPT, 1, PROMPTS[:1], dict(articles=files['articles']))
    for n,prompts in ((3, 1), (1, 3), (3, 3)): yield 'prompts', study(PRUNED+NOISE, n, PROMPTS[:prompts])

# ---- The command

STUDIES = dict(calibration=calibration, sizes=sizes, answers=answers, few_bits=few_bits, mixing=mixing, hallucination=hallucination)

def main(args=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('studies', nargs='+', choices=[*STUDIES], help='what to run, one after the other')
    p.add_argument('--data', required=True, type=Path, help='folder of the files in TEXTS and TASKS')
    p.add_argument('--out', required=True, type=Path, help='folder of the studies, each named as here')
    p.add_argument('--workers', type=int, default=1)
    o = p.parse_args(args)
    torch.set_num_threads(1)
    for name in o.studies:
        for step in STUDIES[name](o.data, o.out):
            part,study = step if isinstance(step, tuple) else ('', step)
            study.run(o.out/name/part, Pool(workers=o.workers, threads=1) if o.workers>1 else 'local')

if __name__=='__main__': main()
