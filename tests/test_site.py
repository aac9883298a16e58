"The documentation site builds without a warning, needs no network, and works in a browser from file://."
import json, os, re, shutil, subprocess, sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
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

@pytest.fixture(scope='module')
def browse(site, tmp_path_factory):
    "Function that opens a page in headless Chromium and returns its HTML after the scripts have run"
    names = [os.environ.get('CHROME', ''), 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome']
    if not (browser := next(filter(None, map(shutil.which, names)), None)): pytest.skip('no Chromium or Chrome on the path, nor in the variable CHROME')
    profile = tmp_path_factory.mktemp('profile')
    def _browse(page):
        return subprocess.run([browser, '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-background-networking', '--host-resolver-rules=MAP * ~NOTFOUND',
                               f'--user-data-dir={profile}', '--virtual-time-budget=10000', '--dump-dom', f'{site.as_uri()}/{page}'],
                              capture_output=True, text=True, timeout=120, check=True).stdout
    return _browse

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
    doc = '---\n\n[source](https://h.io/x.py#L1){target="_blank" style="x"}\n\n### Block\n\n```python\ndef Block(\n    name:__main__.Name, of:NoneType=None\n)->None:\n```\n\n*A block*'
    entry = convert(code('#| echo: false\n#| output: asis\nshow_doc(Block)', **{'text/markdown': doc}))[0]['source']
    assert entry=='[source](https://h.io/x.py#L1){.api-source}\n\n{.api}\n### `Block`\n\n```python\nclass Block(\n    name:Name, of=None\n):\n```\n\n*A block*'

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

def test_navigation_is_in_reading_order(browse):
    html = browse('index.html')
    sidebar = html[html.index('sidebar-tree'):html.index('class="main"')]
    assert [o for tag,o in Links(sidebar).found if tag=='a' and o.endswith('.html')]==reading_order()

def test_signature(browse):
    html = browse('compression/pruning.html')
    assert re.search(r'<h3><code[^>]*><span class="pre">wanda_scores', html)
    assert re.search(r'def wanda_scores\( .*norms:.*\)->', shown(html))

def test_search(browse):
    "The search page lists the page that defines a name"
    html = browse('search.html?q=wanda_scores')
    results = html[html.index('id="search-results"'):]
    assert any(o.startswith('compression/pruning.html') for tag,o in Links(results).found), shown(results)[:500]
    assert not Links(browse('search.html?q=zzyzzyx').partition('id="search-results"')[2].partition('</article>')[0]).found

def test_formulas_are_typeset(site, browse):
    "Every formula becomes a drawing, and none the red text of an unknown command or an unbalanced brace"
    formulas = {o: n for o in pages(site) if (n := len(re.findall(r'class="math[ "]', o.read_text())))}
    assert formulas
    for page, n in formulas.items():
        html = browse(page.relative_to(site))
        assert html.count('<mjx-container')==n, page.name
        assert '<g data-mml-node="merror"' not in html, page.name
