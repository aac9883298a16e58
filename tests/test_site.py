"The documentation site builds without a warning, needs no network, and works in a browser from file://."
import json, os, re, subprocess, sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote
import pytest, yaml
from conftest import copy_checkout, outside_tests, root

pytestmark = pytest.mark.xdist_group('site') # one process builds it once for all

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "Folder of the site, built with Sphinx from a copy of the working tree; any warning fails"
    checkout = copy_checkout(tmp_path_factory.mktemp('site')/'checkout')
    res = subprocess.run([sys.executable, 'tools/build_site.py', '--renderer', 'sphinx', '--out', str(checkout.parent/'html')],
                         cwd=checkout, env=outside_tests(checkout), capture_output=True, text=True)
    assert not res.returncode, f'{res.stdout[-2000:]}\n{res.stderr[-6000:]}'
    return checkout.parent/'html'

# What is asked of the search, and the page that belongs first: of a chapter, of the glossary, or a tutorial
asked = {'AWQ': 'compression/awq.html', 'self-calibration': 'calibration/self_text.html', 'compress my model': 'tutorials/compress_your_model.html',
         'gguf': 'checkpoints/gguf_files.html', 'vllm': 'glossary.html#vllm', 'wanda_scores': 'compression/pruning.html#wanda-scores',
         'perplexity': 'evaluation/perplexity.html', 'act order': 'glossary.html#act-order', 'zzyzzyx': None}
shown_whole = ['index.html', 'compression/pruning.html']

@pytest.fixture(scope='module')
def seen(site, browser):
    "What a browser sees on every page, on a telephone, in both themes, and on the pages of some searches: one start of Chromium for all"
    names = [o.relative_to(site).as_posix() for o in pages(site)] + [f'search.html?q={quote(o)}' for o in asked]
    given = quote(json.dumps(dict(site=site.as_uri()+'/', pages=names, whole=shown_whole)))
    html, said = browser(f'{(root/"tests"/"look_at_pages.html").as_uri()}#{given}', '--allow-file-access-from-files', seconds=10**5)
    found = json.loads(unescape(re.search(r'<body[^>]*>(\{.*\})', html, re.S)[1]))
    assert list(found)==names and not [o for o in found.values() if 'error' in o]
    return found, said

class Links(HTMLParser):
    "Collects `(tag, address)` of what a page links to or loads"
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        self.found += [(tag, v) for k,v in attrs if k in ('href', 'src') and v]

@pytest.fixture
def convert(tmp_path, monkeypatch):
    "Function that turns the cells of a staged page, in the folder `tutorials`, into those that Sphinx reads"
    monkeypatch.syspath_prepend(root/'tools')
    from sphinx_pages import Page
    def _convert(*cells, documented=None):
        path = tmp_path/'tutorials'/'00_first_steps.ipynb'
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(dict(cells=[c if isinstance(c, dict) else dict(cell_type='markdown', source=[c]) for c in cells])))
        page = Page(path, tmp_path, 'https://host.io/lib')
        page.write(tmp_path/'out', documented or {})
        return json.loads((tmp_path/'out'/'tutorials'/'first_steps.ipynb').read_text())['cells'][1:]
    return _convert

def code(source, **outputs): return dict(cell_type='code', source=[source], outputs=[dict(output_type='display_data', metadata={}, data=outputs)] if outputs else [])

@pytest.mark.parametrize('quarto, myst', [
    ('::: {.callout-note}\nx\n:::', ':::{note}\nx\n:::'),
    ('::: {.callout-tip title="A b"}\nx\n:::', ':::{admonition} A b\n:class: tip\nx\n:::'),
    ('[a](../06_pruning.ipynb#masks)', '[a](<../pruning.ipynb#masks>)'),
    ('[`Block`](https://host.io/lib/models.html#block)', '[`Block`](<../models.ipynb#block>)'),
    ('[`Block.run`](https://host.io/lib/models.html#block.run)', '[`Block.run`](<../models.ipynb#block>)'),
    ('[`other`](https://host.io/lib/models.html#other)', '[`other`](<../models.ipynb>)'),
    ('[`_hidden`](https://host.io/lib/models.html#_hidden)', '`_hidden`'),
    ('[a](https://host.io/else)', '[a](https://host.io/else)'),
    ('```\n::: {.callout-note}\n[a](x.ipynb)\n```', '```\n::: {.callout-note}\n[a](x.ipynb)\n```')])
def test_markdown_is_converted(convert, quarto, myst):
    assert convert(quarto, documented=dict(models={'block'}))[0]['source']==myst

def test_cell_options_are_converted(convert):
    figure = code('#| label: fig-a\n#| fig-cap: "Two lines"\n#| fig-alt: "Lines that cross"\n#| code-fold: true\nplot()', **{'image/png': ''})
    text, plot, hidden = convert('@fig-a shows it', figure, code('#| echo: false\nx', **{'text/plain': '1'}), code('#| include: false\nx'))
    assert text['source']=='[Figure 1](#tutorials-first_steps-fig-a) shows it'
    assert (plot['source'], plot['metadata']['tags']) == ('plot()', ['hide-input'])
    assert plot['metadata']['mystnb']==dict(image=dict(alt='Lines that cross'), figure=dict(caption='Figure 1. Two lines', name='tutorials-first_steps-fig-a'))
    assert hidden['metadata']['tags']==['remove-input']

def test_api_entries_are_converted(convert):
    doc = '---\n\n[source](https://h.io/x.py#L1){target="_blank" style="x"}\n\n### Block\n\n```python\ndef Block(\n    name:__main__.Name, of:NoneType=None, to:To=<lib.models.To object at 0x7f8ede043190>\n)->None:\n```\n\n*A block*'
    entry = convert(code('#| echo: false\n#| output: asis\nshow_doc(Block)', **{'text/markdown': doc}))[0]['source']
    assert entry=='[source](https://h.io/x.py#L1){.api-source}\n\n{.api}\n### `Block`\n\n```python\nclass Block(\n    name:Name, of=None, to:To=To(...)\n):\n```\n\n*A block*'

def test_exported_code_takes_the_place_of_a_signature(convert):
    "Where a cell has the directive `exports`: its code is below the heading, once"
    doc = '---\n\n[source](https://h.io/x.py#L1){target="_blank" style="x"}\n\n### one\n\n```python\ndef one(\n    \n):\n```\n\n*Just one*'
    shown = code('#| echo: false\n#| output: asis\nshow_doc(one)', **{'text/markdown': doc})
    source = '#| code-fold: show\n#| code-summary: "Exported source"\n#| exports: true\ndef one():\n    "Just one"\n    return 1'
    found = convert(shown, code(source), code('one()'))
    assert [o['source'] for o in found]==[
        '[source](https://h.io/x.py#L1){.api-source}\n\n{.api}\n### `one`\n\n```python\ndef one():\n    "Just one"\n    return 1\n```', 'one()']
    assert [o['source'] for o in convert(code(source))]==['def one():\n    "Just one"\n    return 1'] # private: without an entry

def pages(site): return sorted(o for o in site.rglob('*.html') if '_static' not in o.parts)

def reading_order():
    "Page of every notebook, as the navigation should list them"
    contents = yaml.safe_load((root/'nbs'/'sidebar.yml').read_text())['website']['sidebar']['contents']
    found = [Path(p) for o in contents if isinstance(o, dict) for p in o['contents']]
    return [o.with_name(re.sub(r'^\d+\w*?_', '', o.stem)).as_posix() + '.html' for o in found]

def shown(html): return re.sub(r'\s+', ' ', unescape(re.sub(r'<(script|style)\b.*?</\1>|<[^>]+>', '', html, flags=re.S)))

def test_nothing_is_loaded_from_the_network(site):
    for page in pages(site):
        assert not [o for tag,o in Links(page.read_text()).found if tag!='a' and re.match('(https?:)?//', o)], page.name

def test_links_lead_somewhere(site):
    "Relative links point at files of the site, and anchors at something on that page"
    ids = {o: set(re.findall(r'\bid="([^"]+)"', o.read_text())) for o in pages(site)}
    for page in pages(site):
        for tag,o in Links(page.read_text()).found:
            if re.match(r'\w+:|//|#$', o): continue
            path, _, anchor = o.partition('#')
            target = (page.parent/path.split('?')[0]).resolve() if path else page
            assert target.exists(), f'{page.name}: {o}'
            assert not anchor or target not in ids or anchor in ids[target], f'{page.name}: {o}'

def test_navigation_is_in_reading_order(seen):
    html = seen[0]['index.html']['html']
    sidebar = html[html.index('sidebar-tree'):html.index('class="main"')]
    assert [o for tag,o in Links(sidebar).found if tag=='a' and o.endswith('.html')]==reading_order()

def test_navigation_shows_where_you_are(site):
    "The page is marked, its chapter unfolded and no other, and every link leads to the same pages as from the top"
    html = (site/'compression'/'pruning.html').read_text()
    sidebar = html[html.index('sidebar-tree'):html.index('class="main"')]
    assert re.findall(r'<li class="[^"]*current-page[^"]*"><a [^>]*>(.*?)</a>', sidebar)==['pruning']
    assert re.findall(r'<a [^>]*>([^<]*)</a><input checked=""', sidebar)==['Compression']
    assert [o for tag,o in Links(sidebar).found if tag=='a' and o.endswith('.html')]==[f'../{o}' for o in reading_order()]

def test_signature(seen):
    html = seen[0]['compression/pruning.html']['html']
    assert re.search(r'<h3><code[^>]*><span class="pre">wanda_scores', html)
    assert re.search(r'def wanda_scores\( .*norms:.*\)->', shown(html))

def test_names_are_below_the_title(site):
    "Without the directive, and each is a link to its entry"
    html = (site/'statistics'/'family.html').read_text()
    names = html[html.index('<details class="names">'):html.index('</details>', html.index('<details class="names">'))]
    assert '#|' not in names and '<summary>7 public names</summary>' in names and '<a class="reference internal" href="#plannedtest">' in names

def test_search(seen):
    "What belongs first is first"
    first = {k: next((o for o in seen[0][f'search.html?q={quote(k)}']['found']), None) for k in asked}
    assert {k: v and (v if '#' in str(asked[k]) else v.partition('#')[0]) for k,v in first.items()}==asked

def test_formulas_are_typeset(seen):
    "Every formula becomes a drawing, and none the red text of an unknown command or an unbalanced brace"
    found = {k: o for k,o in seen[0].items() if o['formulas']}
    assert found and {k: (o['drawn'], o['red']) for k,o in found.items()}=={k: (o['formulas'], 0) for k,o in found.items()}

def wrong(seen, key): return {k: o[key] for k,o in seen[0].items() if o[key]}

def test_nothing_is_wider_than_a_telephone(seen):
    "At 390 pixels no page is moved sideways, and what is wide scrolls by itself"
    assert {k: o['wide'] for k,o in seen[0].items() if o['wide'][0]>o['wide'][1]}=={}
    assert wrong(seen, 'hidden')=={}

def test_pictures_are_said_in_words(seen): assert wrong(seen, 'silent')=={}

def test_text_stands_out_in_both_themes(seen):
    "A contrast of 4.5, as WCAG asks of text"
    assert wrong(seen, 'faint')=={}

def test_the_console_is_silent(seen): assert seen[1]==[]

def test_pages_follow_one_another(site):
    "From each page to the one before and the one after, in reading order"
    order = ['index.html', *reading_order()]
    for i,page in enumerate(order):
        html = (site/page).read_text()
        links = Links(html[html.index('class="related-pages"'):]).found
        beside = [Path(os.path.normpath(Path(page).parent/o)).as_posix() for tag,o in links if tag=='a' and o.endswith('.html')]
        assert set(beside)=={*order[max(i-1, 0):i], *order[i+1:i+2]}, page

def test_each_page_has_one_title(seen): assert {k: o['titles'] for k,o in seen[0].items() if o['titles']!=1 and not k.startswith('search')}=={}

def test_no_page_is_heavy(site): assert {o.name: o.stat().st_size for o in pages(site) if o.stat().st_size>=2**20}=={}

def test_a_fault_is_seen(browser, tmp_path):
    "Each fault that the tests above look for"
    faults = """<p style="color:#999">faint</p><p style="width:900px">wide</p><img src="data:,"><script>console.error('said')</script>"""
    (tmp_path/'page.html').write_text(f'<body><article>{faults}</article></body>')
    given = quote(json.dumps(dict(site=tmp_path.as_uri()+'/', pages=['page.html'], whole=[])))
    html, said = browser(f'{(root/"tests"/"look_at_pages.html").as_uri()}#{given}', '--allow-file-access-from-files')
    found = json.loads(unescape(re.search(r'<body[^>]*>(\{.*\})', html, re.S)[1]))['page.html']
    assert found['wide'][0]==900+8 and len(found['hidden'])==1 and len(found['silent'])==1 and found['titles']==0 and len(said)==1
    assert [o.partition(':')[0] for o in found['faint']]==['light, 2.8', 'dark, 2.8']

@pytest.mark.parametrize('staged, meant', [
    ('[[`save`](https://h.io/x.html#save)](saving.ipynb)', '[`save`](saving.ipynb)'),
    ('see [how [`save`](https://h.io/x.html#save) works](saving.ipynb).', 'see [how `save` works](saving.ipynb).'),
    ('[`save`](https://h.io/x.html#save), [a](b.ipynb)', '[`save`](https://h.io/x.html#save), [a](b.ipynb)'),
    ('from [0, 1] to [`save`](https://h.io/x.html#save)', 'from [0, 1] to [`save`](https://h.io/x.html#save)')])
def test_a_link_is_no_two_links(staged, meant, monkeypatch):
    monkeypatch.syspath_prepend(root/'tools')
    from build_site import links_once
    assert links_once(staged)==meant

@pytest.mark.parametrize('n, head', [(1, '<details class="names" open>\n<summary>1 public name<'), (6, '<details class="names">\n<summary>6 public names<')])
def test_long_lists_of_names_are_folded(n, head, monkeypatch):
    monkeypatch.syspath_prepend(root/'tools')
    from build_site import folded
    names = '\n'.join(f'- `f{i}`: One of them' for i in range(n))
    assert folded(f'#| export: true\n{names}')==f'{head}/summary>\n\n{names}\n\n</details>'
    assert folded(names)==names

def test_no_page_shows_markdown(site):
    "A link that could not be read as one would be shown as it was written"
    assert [(o.name, m[0]) for o in pages(site) if (m := re.search(r'.{0,40}\]\((&lt;|<[^/]|\w+\.ipynb).{0,20}', re.sub(r'<pre.*?</pre>|<code.*?</code>', '', o.read_text(), flags=re.S)))]==[]

def test_no_page_shows_what_staging_said(site):
    "A cell that holds an import is run once more when the site is built, and what it writes then would be on the page"
    assert [o.name for o in pages(site) if re.search(r'Loading weights:|\b0x[0-9a-f]{9,}', o.read_text())]==[]

def test_llms_txt_lists_every_page(site):
    "With its title and its address on the published site"
    text = (site/'llms.txt').read_text()
    assert re.match(r'# compresscal\n\n> .+\n\n', text)
    base = 'https://compresscal.github.io/compresscal/'
    listed = re.findall(rf'^- \[(.+)\]\({base}(.+)\): \S.*$', text, re.M)
    assert [o for _,o in listed]==['index.html', *reading_order()]
    assert len(re.findall('^- ', text, re.M))==len(listed)
    for title,page in listed: assert title in shown(re.search(r'<h1>(.*?)</h1>', (site/page).read_text(), re.S)[1]).replace('’', "'"), page
