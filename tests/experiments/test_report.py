"Pages, figures and notebooks of a study: complete in themselves, the same each time, and harmless whatever the study holds"
import itertools, json, math, re, sys, tomllib
from dataclasses import replace
from hashlib import sha256
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from compresscal.experiments.figures import axis_label, contrasts, distributions, heat_maps, pictures, rankings, size_curves, slug, strength_curves
from compresscal.experiments.notebooks import parameters, read_settings, run_notebook, write_notebook
from compresscal.core.plots import Picture
from compresscal.experiments.report import frame_lines, held_out, report, statistics, titled_table, warnings_html, write_results, write_tables
from compresscal.experiments.results import Results
from compresscal.calibration.calibration_set import CalibrationSet

def make_rows(methods=('Wanda 50%', 'SparseGPT 50%'), sources=('docs', 'code', 'random'), n_sets=3, evaluations=('docs', 'task:arc_easy'), models=('embedded',),
              sizes=((32, 256),), plain=('Magnitude 50%',), controls=2):
    "Rows of a study that nobody ran"
    draw, rows = np.random.default_rng(0).normal, []
    def add(model, method, source='none', size=(0, 0), i=0, replicate=0, hurt=0.):
        for e in evaluations:
            metrics = dict(acc=.5-.1*hurt+draw(0, .005)) if 'task' in e else dict(perplexity=16*math.exp(hurt+.1*(source!=e)), bits_per_byte=1.3+hurt)
            cell = sha256(repr((model, method, source, size, i, replicate, e)).encode()).hexdigest()[:32]
            rows.extend(dict(model=model, method=method, source=source, n_sequences=size[0], length=size[1], set=i, replicate=replicate, evaluation=e, metric=k,
                             value=float(v), documents=40, calibration='c', text='t', fingerprint='f', cell=cell) for k,v in metrics.items())
    for model in models:
        add(model, 'dense')
        for p in plain: add(model, p, hurt=.6)
        for k,m in enumerate(methods):
            for s,size,i in itertools.product(sources, sizes, range(n_sets)): add(model, m, s, size, i, hurt=.1+.1*k+.2*(s=='random')+draw(0, .02))
            for r in range(1, controls+1): add(model, m, sources[0], sizes[-1], 0, r, hurt=.1+.1*k)
    return rows

def text(seed, **about): return CalibrationSet.from_tokens(torch.full((2, 8), seed), **about)

@pytest.fixture
def results(): return Results(make_rows(), [('docs, 0', 'first words', text(3, source='docs')), ('docs, held out', 'other words', text(4, source='docs'))])

@pytest.fixture(autouse=True)
def plain_pictures(monkeypatch, request):
    "Drawing takes most of the time: only tests that ask for `drawn` draw"
    def plain(self, format='png'): return f'<svg><g>{escape(self.caption)}</g></svg>'.encode()
    if 'drawn' not in request.fixturenames: monkeypatch.setattr(Picture, 'to_bytes', plain)

@pytest.fixture
def drawn(): "For tests that draw"

class Page(HTMLParser):
    "Notes open tags, names and addresses, and fails where a tag is closed that is not open"
    void = {'meta', 'br', 'link', 'img', 'hr'}
    def __init__(self, page):
        super().__init__()
        self.open, self.ids, self.links, self.tags, self.words = [], [], [], [], []
        self.feed(page)
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [v for k,v in attrs if k=='id']
        self.links += [v for k,v in attrs if k in ('href', 'src', 'xlink:href')]
        if tag not in self.void: self.open.append(tag)
    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.void: self.open.pop()
    def handle_endtag(self, tag):
        assert self.open and self.open[-1]==tag, f'</{tag}> closes {self.open[-3:]}'
        self.open.pop()
    def handle_data(self, data): self.words.append(data)

def read(page):
    found = Page(page)
    assert not found.open
    return found

def labels(ax): return [o.get_text() for o in ax.get_yticklabels()]

# the page

def test_page_is_whole(results):
    page = read(report(results, dict(methods=['wanda:0.5'], device=None), 'compresscal study', dict(python='3.11', versions=dict(torch='2.13'))))
    words = ''.join(page.words)
    for o in ('Summary', 'Statistics', 'first words', 'compresscal study', '2.13', 'wanda:0.5', results.sets[0][2].hash): assert o in words
    assert 'script' not in page.tags and 'device' not in words
    outside = [o for o in page.links if not o.startswith('#')]
    assert outside==['https://aclanthology.org/2024.acl-long.544/'] # a link to read, nothing to load
    assert {o[1:] for o in page.links if o.startswith('#')} <= set(page.ids)

def test_every_figure_has_its_parts(drawn, results):
    "Clips and marks of one figure are not found in another, and names of whole parts are not repeated"
    page = read(report(results))
    parts = [o for o in page.ids if re.match(r'(figure|axes|text|patch|line2d|xtick|ytick)_\d', o)]
    assert page.tags.count('svg')==len(pictures(results))>=3 and not parts

def test_an_interval_below_zero_does_not_stretch_a_logarithmic_axis():
    "Three sets far apart have a t interval that reaches below zero; the axis starts near the smallest value all the same"
    rows = [r | dict(value=r['value']*(1, 30, 2)[r['set']]) if r['method']=='Wanda 50%' and r['source']=='random' else r for r in make_rows(evaluations=('docs',))]
    ax = rankings(rows)['ranking'].figure.axes[0]
    least = min(r['value'] for r in rows if r['metric']=='perplexity')
    assert ax.get_xscale()=='log' and .5*least<ax.get_xlim()[0]<least

def test_curves_stand_beside_their_spread():
    "A method without text has no spread; the others keep theirs"
    rows = make_rows(methods=('Wanda 50%', 'Wanda 70%'), evaluations=('docs',))
    fixed = [r | dict(method=m, source='none', set=0, n_sequences=0, length=0) for m in ('Magnitude 50%', 'Magnitude 70%') for r in rows if r['method']!='dense' and not r['replicate']][::9]
    titles = [ax.get_title(loc='left') for ax in strength_curves([*rows, *fixed])['sparsity-docs'].figure.axes]
    assert titles[:2]==['Wanda', 'Wanda, between sets'] and 'Magnitude' in titles

def test_page_shows_text_and_runs_none(results):
    evil = '<script>alert(1)</script>'
    swap = {'docs': evil, 'Wanda 50%': evil, 'embedded': evil}
    rows = [r|{k: swap.get(r[k], r[k]) for k in ('source', 'model', 'method')} for r in results.rows]
    bad = Results(rows, [(evil, evil, text(3, source=evil))], [dict(model=evil, method=evil, type=evil, message=evil)], family=[(evil, 'code')])
    page = report(bad, {evil: [evil]}, evil, dict(python=evil, versions={evil: evil}))
    assert '<script' not in page and 'script' not in read(page).tags and page.count('&lt;script&gt;')>10

def test_same_page_each_time(drawn, results):
    results = results.select(evaluation='docs')
    assert report(results)==report(Results(make_rows(), results.sets).select(evaluation='docs'))

@pytest.mark.parametrize('damage', ['no dense', 'half', 'one', 'inf', 'nan', 'failures only', 'nothing', 'two models', 'one set', 'no text'])
def test_page_of_a_damaged_study(damage, tmp_path):
    "What is missing is missing, and the rest is shown"
    rows, failed = make_rows(), [dict(model='embedded', method='GPTQ 3-bit', source='docs', set=0, replicate=0, type='MemoryError', message='no room')]
    if damage=='no dense': rows = [r for r in rows if r['method']!='dense']
    if damage=='half': rows = rows[::2]
    if damage=='one': rows = rows[:1]
    if damage in ('inf', 'nan'): rows = [r|dict(value=float(damage)) if r['method']=='Wanda 50%' and r['set']==1 and r['metric']!='acc' else r for r in rows]
    if damage in ('failures only', 'nothing'): rows = []
    if damage=='nothing': failed = []
    if damage=='two models': rows = make_rows(models=('embedded', 'other/model'), controls=0)
    if damage=='one set': rows = make_rows(n_sets=1, controls=0)
    if damage=='no text': rows = make_rows(methods=())
    results = Results(rows, failures=failed, family=[('docs', 'random'), ('Wanda 50%', 'SparseGPT 50%')])
    write_results(tmp_path, results)
    page = (tmp_path/'report.html').read_text()
    assert ('MemoryError' in page)==bool(failed)
    read(page)

def test_warnings_come_first(results):
    calm, failed = results, dict(model='m', method='Wanda 50%', source='docs', set=1, replicate=0, type='MemoryError', message='x'*1000, attempts=2)
    lost = replace(results, failures=[failed])
    page = report(lost)
    assert page.index('1 cell failed')<page.index('id=figures') and 'x'*301 not in page
    assert '<section' not in warnings_html(calm) or calm.failed_checks()
    noisy = Results([r|dict(value=r['value']*(1+.5*r['replicate'])) for r in results.rows])
    assert 'noise' in ''.join(Page(warnings_html(noisy)).words) and '<section class=bad' in warnings_html(noisy)

def test_long_tables_are_folded():
    short, long = (titled_table('t', [('a', 'b'), *[('x', i) for i in range(n)]]) for n in (30, 31))
    assert '<details' not in short and long.startswith('<details') and '31 lines' in long
    for o in (short, long): read(o)
    capped = titled_table('t', [('a',), *[(i,) for i in range(100)]], most=40)
    assert capped.count('<td')==40 and 'the first 40 here' in capped

def test_study_of_four_hundred_rows_stays_readable():
    sources, methods = [f's{i}' for i in range(12)], [f'Wanda {i}%' for i in (10, 30, 50, 70)]
    rows = make_rows(sources=sources, methods=methods, evaluations=('docs', 'code', 'task:x', 'task:y'))
    page = report(Results(rows), figures={})
    assert len(rows)>400 and page.count('<div class=long>')>4 and len(page)<2_000_000
    opened = re.sub(r'<details>.*?</details>', '', page, flags=re.S)
    assert opened.count('<tr>')<150

def test_undeclared_pairs_stay_out_of_a_paper(results):
    titles = lambda r: [t for t,*_ in statistics(r)]
    assert [t for t in titles(results) if 'compared' in t]==['Sources compared, not declared', 'Methods compared, not declared']
    declared = replace(results, family=[('docs', 'random')])
    assert titles(declared)[0]=='Sources compared' and titles(declared)[-1].endswith('not declared')
    assert 'not declared' not in write_tables(declared)['tex']
    assert all(o not in write_tables(declared)['tex'] for o in ('50% ', ' %', 'task:arc_easy'))

def test_tables_keep_words_and_ends_together():
    import pandas as pd
    frame = dict(difference=[1., 2.], low=[.5, math.nan], high=[1.5, math.nan], method=['a', 'b'], p=[.0004, 1.], ok=[True, False])
    lines, words = frame_lines(pd.DataFrame(frame))
    assert words==2 and lines[0]==['method', 'ok', 'difference', 'interval', 'p']
    assert lines[1]==['a', 'yes', '1.000', '0.500 to 1.500', '<0.001'] and lines[2]==['b', 'no', '2.000', '', '1.000']

def test_latex_is_balanced(results):
    tex = write_tables(replace(results, family=[('docs', 'random')]))['tex']
    for o in ('table', 'tabular'): assert tex.count(rf'\begin{{{o}}}')==tex.count(rf'\end{{{o}}}')>2
    for table in re.findall(r'\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}', tex, re.S):
        lines = [l for l in table[1].splitlines() if l.endswith(r'\\')]
        assert lines and {len(re.findall(r'(?<!\\)&', l)) for l in lines}=={len(table[0])-1}

# files

def files(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}

def test_files_of_a_study(drawn, results, tmp_path):
    results = results.select(evaluation='docs')
    written = write_results(tmp_path, results, dict(n_sets=3), 'compresscal study', dict(python='3.11', versions={}))
    found = files(tmp_path)
    assert {str(p.relative_to(tmp_path)) for p in written}==set(found)
    assert {'results.csv', 'tables.md', 'tables.tex', 'figure.png', 'figure.pdf', 'figures/heat.pdf', 'report.html', 'provenance.json'} <= set(found)
    assert found['figure.png'][:4]==b'\x89PNG' and found['figures/heat.pdf'][:4]==b'%PDF' and Results.from_csv(found['results.csv'].decode()).rows==results.rows
    assert json.loads(found['provenance.json'])['settings']==dict(n_sets=3)

def test_unchanged_files_are_left_alone(results, tmp_path):
    write_results(tmp_path, results)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()}
    assert write_results(tmp_path, results)==[] and {p: p.stat().st_mtime_ns for p in before}==before
    assert {p.name for p in write_results(tmp_path, results, command='another')}=={'report.html', 'provenance.json'}
    write_results(tmp_path/'again', results, command='another')
    mine = files(tmp_path/'again')
    assert {k: v for k,v in files(tmp_path).items() if not k.startswith('again')}==mine

def test_figures_of_an_earlier_state_go(results, tmp_path):
    write_results(tmp_path, results)
    (tmp_path/'notes.png').write_bytes(b'mine')
    (tmp_path/'figures'/'notes.txt').write_text('mine')
    write_results(tmp_path, results.select(source=['none', 'docs'], evaluation='docs'))
    assert sorted(p.name for p in (tmp_path/'figures').iterdir())==['notes.txt', 'ranking.pdf', 'ranking.png'] and (tmp_path/'notes.png').exists()

def test_times_stand_beside_results(results, tmp_path):
    key = results.rows[0]['cell']
    (tmp_path/'provenance').mkdir()
    (tmp_path/'provenance'/f'{key}.json').write_text('{"seconds": 12.5}')
    write_results(tmp_path, results)
    found = files(tmp_path)
    assert json.loads(found['provenance.json'])['cells']=={key: dict(seconds=12.5)} and not any(b'12.5,' in found[k] for k in ('results.csv', 'tables.md'))

def test_a_damaged_record_of_times_costs_itself_only(results, tmp_path):
    key, other = list(dict.fromkeys(o['cell'] for o in results.rows))[:2]
    (tmp_path/'provenance').mkdir()
    (tmp_path/'provenance'/f'{key}.json').write_text('{"seconds": 12.')
    (tmp_path/'provenance'/f'{other}.json').write_text('{"seconds": 3.5}')
    write_results(tmp_path, results)
    assert json.loads((tmp_path/'provenance.json').read_text())['cells']=={other: dict(seconds=3.5)} and (tmp_path/'report.html').exists()

def test_names_of_files_stay_inside(results, tmp_path):
    rows = [r|dict(evaluation='../../../escaped/x', model=f'a/b/../../{r["model"]}') for r in make_rows(evaluations=('docs',), models=('one', 'two'))]
    write_results(tmp_path/'study', Results(rows))
    assert sorted(p.name for p in tmp_path.iterdir())==['study'] and all('/' not in k.removeprefix('figures/') for k in files(tmp_path/'study'))
    assert slug('heat', '', '../a b')=='heat-..-a-b'

# figures

def test_null_controls_are_not_drawn():
    with_controls, without = (distributions(make_rows(controls=n, evaluations=('docs',)))['distributions'] for n in (2, 0))
    marks = lambda p: [len(l.get_xdata()) for ax in p.figure.axes for l in ax.lines]
    assert marks(with_controls)==marks(without)

def test_every_set_is_a_mark_of_the_default_study():
    rows = make_rows(methods=('Wanda 50%', 'Wanda 70%'), plain=('Magnitude 50%', 'Magnitude 70%'), evaluations=('docs', 'code'))
    p = distributions(rows)['distributions']
    assert [ax.get_title('left') for ax in p.figure.axes]==['50%, docs', '50%, code', '70%, docs', '70%, code']
    for ax in p.figure.axes:
        assert labels(ax)==['Magnitude', 'Wanda, docs', 'Wanda, code', 'Wanda, random']
        assert [len(l.get_xdata()) for l in ax.lines if l.get_linestyle()=='None']==[1, 3, 3, 3]

@pytest.mark.parametrize('value', [math.inf, math.nan])
def test_broken_models_are_drawn(drawn, value):
    rows = [r|dict(value=value) if r['source']=='random' and r['method']=='Wanda 50%' else r for r in make_rows(evaluations=('docs',))]
    found = pictures(Results(rows))
    assert all(p.to_bytes('svg') for p in found.values())
    assert labels(found['ranking'].figure.axes[0])[-1]=='Wanda 50%, random' and f'mean {value}' in [o.get_text() for o in found['ranking'].figure.axes[0].texts]

def test_intervals_from_three_sets_on():
    bars = lambda n: sum(l.get_linewidth()==1.6 for ax in distributions(make_rows(n_sets=n, controls=0))['distributions'].figure.axes for l in ax.lines)
    assert bars(2)==0 and bars(3)==2*2*3

def test_ranking_knows_what_is_better():
    p = rankings(make_rows(plain=('Magnitude 50%',)))['ranking']
    best, worst = ([labels(ax)[i] for ax in p.figure.axes] for i in (0, -1))
    assert all('SparseGPT' not in o for o in best) and set(worst)=={'Magnitude 50%'} # more hurt means higher perplexity and lower accuracy

def test_wide_rankings_are_logarithmic():
    rows = [r|dict(value=r['value']*(10 if r['source']=='random' else 1)) for r in make_rows(evaluations=('docs',))]
    assert rankings(rows)['ranking'].figure.axes[0].get_xscale()=='log' and rankings(make_rows())['ranking'].figure.axes[0].get_xscale()=='linear'

def test_heat_map_numbers_are_the_means():
    rows = make_rows()
    texts = [o.get_text() for o in heat_maps(rows)['heat'].figure.axes[0].texts]
    summary = Results(rows).summary().query("metric=='perplexity'").sort_values('source', key=lambda s: s=='none', kind='stable')
    assert texts==[f'{v:.3f}' for v in summary.ratio]

def test_largest_size_is_compared(drawn):
    rows = make_rows(sizes=((8, 256), (32, 256)), evaluations=('docs',))
    p, q = (distributions(o)['distributions'] for o in (rows, [r for r in rows if r['n_sequences'] in (0, 32)]))
    assert p.to_bytes('svg')==q.to_bytes('svg')

def test_curves_against_size_and_strength():
    curves = size_curves(make_rows(sizes=((8, 256), (32, 256), (128, 256)), controls=0))
    assert [*curves]==['tokens-docs', 'tokens-task-arc_easy']
    ax = curves['tokens-docs'].figure.axes[0]
    assert [*ax.lines[0].get_xdata()]==[2048, 8192, 32768] and [o.get_text() for o in ax.get_xticklabels()]==['2,048', '8,192', '32,768']
    lengths = size_curves(make_rows(sizes=((8, 128), (8, 256), (32, 128), (32, 256)), evaluations=('docs',), controls=0))['tokens-docs']
    assert 'docs, 128 each' in [o.get_text() for o in lengths.figure.legends[0].get_texts()]
    methods = ('Wanda 30%', 'Wanda 50%', 'Wanda 2:4', 'GPTQ 2-bit g128', 'GPTQ 3-bit g128', 'GPTQ 3-bit')
    swept = strength_curves(make_rows(methods=methods, plain=(), evaluations=('docs',), controls=0))
    assert [*swept]==['sparsity-docs', 'bits-docs']
    assert [*swept['sparsity-docs'].figure.axes[0].lines[0].get_xdata()]==[30, 50]
    assert swept['bits-docs'].figure.axes[0].get_title('left')=='GPTQ g128'
    assert not strength_curves(make_rows(evaluations=('docs',))) and not size_curves(make_rows())

def test_contrasts_pair_the_same_set():
    rows = make_rows(controls=0)
    p = contrasts(rows)['against-task-arc_easy']
    value = {(r['source'], r['set'], r['metric']): r['value'] for r in rows if r['method']=='Wanda 50%'}
    points = p.figure.axes[0].lines[2] # behind the two lines of the dense model
    assert [*zip(points.get_xdata(), points.get_ydata())]==[(value['docs', i, 'perplexity'], value['docs', i, 'acc']) for i in range(3)]

def test_pictures_say_what_they_show(results):
    for k,p in pictures(results).items(): assert p.alt and p.caption.endswith('.') and re.fullmatch(r'[\w.-]+', k)
    assert axis_label('kl:docs', 'kl')=='KL from dense on docs, nats'

# notebooks

def test_notebook_is_one(tmp_path):
    nbformat = pytest.importorskip('nbformat')
    asked = dict(models=['embedded'], methods=['wanda:2:4'], n_sets=5, comparisons=[['docs', 'code']], engine=dict(name='pool', workers=2))
    path = write_notebook(tmp_path/'deep'/'study.ipynb', asked, 'A title')
    nbformat.validate(nbformat.read(path, 4))
    assert parameters(path)==asked|dict(out='compresscal-study', progress=True, engine=dict(engine='pool', workers=2))
    source = '\n'.join(''.join(c['source']) for c in json.loads(path.read_text())['cells'])
    assert 'Study(models=models, methods=methods, n_sets=n_sets, comparisons=comparisons)' in source and '# A title' in source

def test_settings_from_toml_and_files(tmp_path):
    said = 'n_sets = 3\nsources = ["docs"]\n'
    (tmp_path/'study.toml').write_text(said)
    assert read_settings(said)==read_settings(tmp_path/'study.toml')==read_settings(str(tmp_path/'study.toml'))==tomllib.loads(said)

@pytest.mark.parametrize('wrong, says', [({'n sets': 1}, 'names of Python'), (dict(models=dict(mine=object())), 'plain values'),
                                         ('preset = "impact"', 'in full'), ('a = [', 'must be TOML')])
def test_settings_that_cannot_be_written(wrong, says):
    with pytest.raises(ValueError, match=says): read_settings(wrong)

def test_papermill_is_asked_for(tmp_path, monkeypatch):
    path = write_notebook(tmp_path/'study.ipynb', dict(n_sets=2))
    with pytest.raises(ValueError, match="got 'n_stes'"): run_notebook(path, values=dict(n_stes=3))
    monkeypatch.setitem(sys.modules, 'papermill', None)
    with pytest.raises(ImportError, match=r"pip install 'compresscal\[notebook\]'"): run_notebook(path)

@pytest.mark.slow
def test_notebook_of_a_study_runs_at_another_scale(tiny_checkpoint, tmp_path):
    pytest.importorskip('papermill')
    asked = dict(models=[str(tiny_checkpoint)], methods=['magnitude:0.5', 'wanda:0.5'], sources=['docs', 'random'], n_sets=2, n_sequences=2, length=32,
                 evaluations=['docs'], n_evaluation=4, replicates=1, comparisons=[['docs', 'random']], out=str(tmp_path/'study'))
    path = write_notebook(tmp_path/'study.ipynb', asked)
    done = run_notebook(path, tmp_path/'executed.ipynb', dict(n_sets=4))
    rows = Results.from_csv((tmp_path/'study'/'results.csv').read_text()).rows
    assert {r['set'] for r in rows if r['source']=='docs'}=={0, 1, 2, 3}
    outputs = [o for c in json.loads(done.read_text())['cells'] for o in c.get('outputs', ())]
    assert sum('image/png' in o.get('data', {}) for o in outputs)>=2 and not [o for o in outputs if o['output_type']=='error']

NASTY = 'a|b<i>\x1b[31m'

def test_no_name_is_obeyed():
    "Names of models, sources and errors come out as they are, in every way of writing"
    rows = [r|{k: f'{NASTY} {r[k]}' for k in ('model', 'method', 'source') if r[k] not in ('none', 'dense')} for r in make_rows()]
    found = Results(rows, [(NASTY, f'words {NASTY}', text(3, source=NASTY))], [dict(model=NASTY, method='Wanda 50%', source='docs', set=1, replicate=0, type=NASTY, message=NASTY)])
    page = report(found, {NASTY: NASTY}, f'command {NASTY}', dict(versions={NASTY: NASTY}, python=NASTY), figures={})
    read(page)
    made = dict(page=page, **write_tables(found), markdown=found._repr_markdown_(), more=found.to_markdown(), latex=found.to_latex(), plain=repr(found))
    for name,o in made.items(): assert '\x1b' not in o, name
    for o in (page, made['md'], made['markdown'], made['more']): assert '<i>' not in o and '&lt;i&gt;' in o
    for o in (made['md'], made['markdown'], made['more']):
        tables = [[l for l in block.splitlines()] for block in o.split('\n\n') if block.startswith('|')]
        assert tables and all(len({len(re.findall(r'(?<!\\)\|', l)) for l in t})==1 for t in tables)

def test_pages_follow_the_reader():
    "Dark where the reader asks for it, figures on a light ground; nothing wider than a phone outside a box that scrolls"
    page = report(Results(make_rows()), figures={})
    assert 'prefers-color-scheme:dark' in page and 'color-scheme:light dark' in page and 'name="viewport" content="width=device-width,initial-scale=1"' in page
    assert page.count('<table')==page.count('<div class=wide><table') and re.search(r'svg\{[^}]*background:#fff', page) and re.search(r'\.wide\{overflow-x:auto', page)
    colours = re.sub(r':root\{[^}]*\}', '', page[page.index('<style>'):page.index('</style>')])
    assert not re.findall(r'[;{]color:#(?!000)', colours) # words take their colour from the scheme

def test_a_phone_shows_all_of_it(width, results, drawn):
    "No page scrolls sideways; its tables and figures do so alone"
    lost = dict(model='m', method='Wanda 50%', source='docs', set=1, replicate=0, type='MemoryError', message='x'*1000, attempts=2)
    page = report(replace(results, failures=[lost], family=[('docs', 'code')]), {'sources': 'p'*200}, 'c'*300)
    wide, seen = width(page)
    assert wide==seen<=390
    wide, seen = width('<!doctype html><p style="width:500px">wide')
    assert wide>500>seen # what is wider is noticed
