"Overlap of summaries with their sources: every number against its plain definition, odd input one by one, long input, and texts shown as they stand."
import math, random, subprocess, sys, time
import numpy as np, pandas as pd, pytest
from conftest import root
from rouge_score.rouge_scorer import RougeScorer
from compresscal.summaries.mentions import unsupported
from compresscal.summaries.overlap import OVERLAP_COLUMNS, _longest, _places, explain_overlap, fragments, overlap
from compresscal.summaries.rouge import ROUGE_KINDS
from compresscal.text.sentences import split_sentences, words

def random_words(g, most, letters='abc'): return [g.choice(letters) for _ in range(g.randint(0, most))]

def stands_in(run, text): return any(text[j:j+len(run)]==run for j in range(len(text)-len(run)+1))

def plain_fragments(source, summary):
    "Longest matching prefix of what is left of the summary, again and again"
    found,i = [],0
    while i<len(summary):
        n = max((n for n in range(len(summary)-i+1) if stands_in(summary[i:i+n], source)), default=0)
        if n: found.append((i, next(j for j in range(len(source)) if source[j:j+n]==summary[i:i+n]), n))
        i += max(n, 1)
    return found

def plain_newsroom(source, summary):
    "The scan of Newsroom's program, which goes on behind each place it compared"
    found,i = [],0
    while i<len(summary):
        best,at,j = 0,0,0
        while j<len(source):
            n = 0
            while i+n<len(summary) and j+n<len(source) and summary[i+n]==source[j+n]: n += 1
            if n>best: best,at = n,j
            j += max(n, 1)
        if best: found.append((i, at, best))
        i += max(best, 1)
    return found

@pytest.mark.parametrize('rule, plain', [('paper', plain_fragments), ('newsroom', plain_newsroom)])
def test_fragments_are_those_of_the_plain_definition(rule, plain):
    g = random.Random(0)
    for _ in range(400):
        a,b = random_words(g, 30, g.choice(['ab', 'abc', 'abcdefgh'])),random_words(g, 20, 'abcd')
        assert [(o.start, o.source, o.length) for o in fragments(a, b, rule)]==plain(a, b)

def test_the_longest_run_is_the_longest():
    g = random.Random(1)
    for _ in range(400):
        a,b = random_words(g, 30, g.choice(['ab', 'abcde'])),random_words(g, 20, 'abcd')
        runs = [j-i for i in range(len(b)) for j in range(i+1, len(b)+1) if stands_in(b[i:j], a)]
        assert _longest(b, _places(a, {*b}))==max(runs, default=0)

def random_text(g, sentences=6):
    vocabulary = 'the cat Ann sat on a mat 3 1,000 read_csv runs Bob and dog two'.split()
    return ' '.join(' '.join(g.choice(vocabulary) for _ in range(g.randint(1, 9))).capitalize()+'.' for _ in range(g.randint(1, sentences)))

def test_every_column_is_its_plain_definition():
    g = random.Random(2)
    sources = [random_text(g, 9) for _ in range(120)]
    summaries = [random_text(g, 3) if i%3 else ' '.join(s.split()[2:g.randint(6, 14)]) or 'a' for i,s in enumerate(sources)]
    table = overlap(sources, summaries).to_pandas()
    scorer = RougeScorer([*ROUGE_KINDS])
    for row,a,b in zip(table.to_dict('records'), sources, summaries):
        s,t = words(a),words(b)
        found = [n for _,_,n in plain_fragments(s, t)]
        expected = dict(words=len(t), source_words=len(s), coverage=sum(found)/len(t), density=sum(n*n for n in found)/len(t), compression=len(s)/len(t))
        for n in (1, 2, 3, 4):
            runs = [t[i:i+n] for i in range(len(t)-n+1)]
            expected[f'novelty{n}'] = sum(not stands_in(r, s) for r in runs)/len(runs) if runs else math.nan
        expected['longest_copy'] = max([j-i for i in range(len(t)) for j in range(i+1, len(t)+1) if stands_in(t[i:j], s)], default=0)
        expected['copied_sentences'] = np.mean([stands_in(words(o), s) for o in split_sentences(b)])
        for k,v in scorer.score('\n'.join(split_sentences(a)), '\n'.join(split_sentences(b))).items():
            shares = dict(zip(('precision', 'recall', 'f'), v))
            nothing = {p for p in shares if k=='rouge2' and (len(t)<2 and p!='recall' or len(s)<2 and p!='precision')} # a share of no pairs
            expected |= {f'{k}_{p}': math.nan if p in nothing else x for p,x in shares.items()}
        missing = {(o.kind, o.values) for o in unsupported(a, b)}
        expected |= {f'unsupported_{k}s': sum(m==k for m,_ in missing) for k in ('name', 'number', 'identifier')}
        assert {k: row[k] for k in expected}==pytest.approx(expected, nan_ok=True)

def test_properties_that_hold_whatever_the_text():
    g = random.Random(3)
    texts = [random_text(g) for _ in range(60)]
    table = overlap(texts, texts[1:]+texts[:1]).to_pandas()
    shares = table[[k for k in OVERLAP_COLUMNS if k.startswith(('rouge', 'novelty', 'coverage', 'copied')) or k=='unsupported']]
    assert ((shares>=0) & (shares<=1) | shares.isna()).all(axis=None)
    assert (table.coverage<=1-table.novelty1+1e-12).all() and (table.coverage>=1-table.novelty1-1e-12).all() # a word that stands in the source lies in a fragment
    assert (table.density<=table.longest_copy*table.coverage+1e-12).all() and (table.longest_copy<=table.words).all()
    for n in (1, 2, 3): assert ((1-table[f'novelty{n+1}'].fillna(1))*(table.words-n)<=(1-table[f'novelty{n}'].fillna(1))*(table.words-n+1)+1e-9).all()
    same = overlap(texts, texts).to_pandas()
    assert (same.filter(regex='rouge1|coverage|copied')==1).all(axis=None) and (same.longest_copy==same.words).all() and (same.filter(like='unsupported').fillna(0)==0).all(axis=None)

def test_the_order_and_company_of_pairs_changes_nothing():
    g = random.Random(4)
    a,b = [random_text(g) for _ in range(20)],[random_text(g, 2) for _ in range(20)]
    table,order = overlap(a, b).to_pandas(),g.sample(range(20), 20)
    pd.testing.assert_frame_equal(overlap([a[i] for i in order], [b[i] for i in order]).to_pandas(), table.loc[order].reset_index(drop=True))
    pd.testing.assert_frame_equal(overlap(a[3:4], b[3:4]).to_pandas(), table.loc[[3]].reset_index(drop=True))

def test_settings_matter_and_are_named():
    a,b = ['The runner runs. He ran by houses.\n'],['Running by a house. He runs.']
    plain,stemmed = overlap(a, b),overlap(a, b, stem=True)
    assert plain.settings==dict(stem=False, splitter='rules', tokenizer='rouge', rule='paper') and stemmed.settings['stem'] is True
    assert stemmed['rouge1_f'][0]>plain['rouge1_f'][0] and stemmed['coverage'][0]==plain['coverage'][0]
    assert overlap(a, b, splitter='lines')['copied_sentences'][0]!=plain['copied_sentences'][0] or overlap(a, b, splitter='lines')['rougeLsum_f'][0]!=plain['rougeLsum_f'][0]
    assert overlap(['a a a b'], ['a a b'])['density'][0]==3 and overlap(['a a a b'], ['a a b'], rule='newsroom')['density'][0]==pytest.approx(5/3)
    assert overlap(a, b, splitter=str.splitlines).settings['splitter'].endswith('splitlines')

# ---- Odd input, one by one

@pytest.mark.parametrize('source, summary', [('', ''), ('', 'A cat.'), ('A cat.', ''), (' \n\t', 'A cat.'), ('A cat.', '...'), ('🙂', 'A cat.'), ('A cat.', '🙂🙂')])
def test_without_words_there_is_no_overlap(source, summary):
    found = overlap([source], [summary])
    assert found.table.iloc[0, 2:].isna().all() and found.table.iloc[0, :2].tolist()==[len(words(summary)), len(words(source))]
    assert 'no words on one side' in found.notes[0] and found.notes[0] in repr(found) and found.notes[0] in found._repr_markdown_()
    assert explain_overlap(summary, source)._repr_html_() and repr(explain_overlap(summary, source))

def test_a_source_of_one_word():
    row = overlap(['Cat'], ['The cat sat.']).to_pandas().iloc[0]
    assert (row.rouge1_precision, row.rouge1_recall, row.coverage, row.longest_copy, row.novelty2)==(pytest.approx(1/3), 1, pytest.approx(1/3), 1, 1) and np.isnan(row.rouge2_recall)

def test_a_summary_longer_than_its_source():
    row = overlap(['The cat sat.'], ['The cat sat. '*50]).to_pandas().iloc[0]
    assert (row.compression, row.coverage, row.rouge1_precision, row.copied_sentences)==(pytest.approx(1/50), 1, pytest.approx(1/50), 1)

def test_mixed_languages_and_emoji():
    source = 'The 猫 sat 🙂 on the мат. कुत्ता भागा. 今天下雨。'
    found = overlap([source]*3, ['🙂 猫 on the мат.', 'कुत्ता भागा.', '今天下雪。'], tokenizer='unicode')
    assert found['coverage'].tolist()==[1, 1, .75] and found['rouge1_precision'].tolist()==[1, 1, .75] and found['copied_sentences'].tolist()==[0, 1, 0]
    assert np.isnan(overlap([source], ['今天下雪。'])['rouge1_f'][0]) and "tokenizer='unicode'" in overlap([source], ['今天下雪。']).notes[0]

def test_control_characters_and_lone_surrogates():
    assert overlap(['a\x00b \ud800 c\u202e'], ['a b c'])['coverage'][0]==1

@pytest.mark.parametrize('arguments, settings, error', [
    (('a', ['a']), {}, TypeError), ((['a'], 'a'), {}, TypeError), ((['a'], [None]), {}, TypeError), (([float('nan')], ['a']), {}, TypeError), ((['a'], ['a', 'b']), {}, ValueError), ((None, ['a']), {}, TypeError),
    ((['a'], ['a']), dict(rule='spacy'), ValueError), ((['a'], ['a']), dict(splitter='spacy'), ValueError), ((['a'], ['a']), dict(tokenizer=''), ValueError)])
def test_wrong_input_is_refused(arguments, settings, error):
    with pytest.raises(error, match='`(sources|summaries|rule|splitter|tokenizer)` must'): overlap(*arguments, **settings)

@pytest.mark.parametrize('call, settings, error, name', [
    ((None, 'a'), {}, TypeError, 'summary'), (('a', float('nan')), {}, TypeError, 'source'), ((['a'], 'a'), {}, TypeError, 'summary'), (('a', b'a'), {}, TypeError, 'source'),
    (('a', 'a'), dict(shortest='3'), ValueError, 'shortest'), (('a', 'a'), dict(shortest=1.5), ValueError, 'shortest'), (('a', 'a'), dict(shortest=0), ValueError, 'shortest'), (('a', 'a'), dict(context=-1), ValueError, 'context'),
    (('a', 'a'), dict(rule='spacy'), ValueError, 'rule'), (('a', 'a'), dict(splitter='spacy'), ValueError, 'splitter')])
def test_what_cannot_be_explained_is_refused(call, settings, error, name):
    with pytest.raises(error, match=f'`{name}` must'): explain_overlap(*call, **settings)

@pytest.mark.parametrize('source, summary, name', [(None, 'a', 'source'), ('a', float('nan'), 'summary'), (3, ['a'], 'source')])
def test_fragments_of_no_text_are_refused(source, summary, name):
    with pytest.raises(TypeError, match=f'`{name}` must be a text or a list of its words'): fragments(source, summary)

def test_nothing_at_all(): assert overlap([], []).table.shape==(0, len(OVERLAP_COLUMNS)) and repr(overlap([], []))

def test_a_source_of_100000_words_takes_seconds():
    g = np.random.default_rng(0)
    text = lambda n: ' '.join(f'w{i}'+'.'*(k%20==19) for k,i in enumerate(np.minimum(g.zipf(1.25, n), 50_000)))
    long,short = text(100_000),text(200)
    for a,b in [(long, short), (short, long), (long[:100_000], text(2000))]:
        start = time.process_time()
        overlap([a], [b])
        assert time.process_time()-start<30, (len(a), len(b)) # 1 s here, and 2 s where both are long

@pytest.mark.parametrize('unit', ['a ', 'a b ', '. ', '🙂', '今', 'a.\n\n', '"A" '])
def test_a_summary_that_repeats_itself_is_not_slow(unit):
    start = time.process_time()
    overlap(['The cat sat on a mat. A b. '*40, unit*700], [unit*700]*2)
    assert time.process_time()-start<20

# ---- Shown

def test_texts_are_shown_as_they_stand():
    g = random.Random(5)
    for _ in range(40):
        a,b = random_text(g)+' <b>&</b> 🙂\n',random_text(g, 2)+' <i>'
        shown = explain_overlap(b, a, shortest=g.randint(1, 4))
        for t,text in zip(shown, (b, a)):
            assert ''.join(p for p,_ in t.parts())==text==t.text
            assert '<b>&' not in t._repr_html_().split('<div')[1] and '<i>' not in t._repr_html_()

def test_marks_are_the_same_words_in_both_texts():
    g = random.Random(6)
    for _ in range(60):
        a,b = random_text(g),random_text(g, 3)
        shown = explain_overlap(b, a, shortest=2)
        inside,outside = ({o.label: words(t.text[o.start:o.end]) for o in t.marks if o.label} for t in shown)
        assert inside==outside and all(len(o)>=2 for o in inside.values())
        assert [t for o in shown[0].marks if o.colour=='red' for t in [b[o.start:o.end]]]==[o.text for o in unsupported(a, b)]

def test_the_source_can_be_cut_to_what_matters():
    source = ' '.join(f'w{i}' for i in range(500))
    shown = explain_overlap('it says w100 w101 w102 there', source, context=3)
    assert repr(shown[1])=='Source\n [...] w97 w98 w99 >>>w100 w101 w102<<<[1] w103 w104 w105 [...] '

def test_torch_is_not_loaded():
    code = 'import sys; from compresscal.summaries.overlap import overlap; overlap(["a b."], ["a b c"]); print([o for o in ("torch", "transformers") if o in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True, check=True).stdout.strip()=='[]'

def test_the_benchmark_runs(tmp_path, monkeypatch, capsys):
    from importlib import util
    spec = util.spec_from_file_location('overlap_benchmark', root/'benchmarks'/'overlap.py') # by its path: the package has a module of that name too
    benchmark = util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    found = benchmark.main(['--pairs', '6', '--theirs', '4', '--long', '300', '--out', str(tmp_path)])
    assert found['difference']<1e-12 and (tmp_path/'overlap.json').exists() and '6 pairs of 500 and 50 words' in capsys.readouterr().out

def test_real_summaries(shared):
    "SummEval: extracts copy, abstracts do not, and ROUGE is rouge-score's"
    import json
    articles = json.loads((shared/'data'/'sum_bartscore_human'/'SummEval.json').read_text())
    chosen = list(articles.values())[:25]
    pairs = [(o['src'], s['sys_summ']) for o in chosen for s in o['sys_summs'].values()]
    found,scorer = overlap(*zip(*pairs), splitter='lines'),RougeScorer(['rouge1', 'rouge2'])
    for i in range(0, len(pairs), 40):
        for k,v in scorer.score(*pairs[i]).items(): assert [found[f'{k}_{p}'][i] for p in ('precision', 'recall', 'f')]==pytest.approx(list(v))
    lead = overlap([o['src'] for o in chosen], [' '.join(split_sentences(o['src'])[:3]) for o in chosen])
    assert np.mean(lead['coverage'])==1 and .8<np.mean(found['coverage'])<1 and np.nanmean(found['unsupported'])<.2
