"The frame of the book: chapter pages, glossary, citation, and what CONTRIBUTING says of the house"
import json, re, sys
from collections import Counter
from datetime import date
import pytest, yaml
from conftest import root
from test_layout import cfg, listed, modules, nbs, own_imports, public

sys.path.insert(0, str(root/'tools'))
import house, pages, public_names
from sphinx_pages import slug

def cells_of(notebook): return json.loads((nbs/notebook).read_text(encoding='utf-8'))['cells']
def text_of(cell): return ''.join(cell['source'])

# ---- Who uses whom

def test_edges_are_the_imports():
    "The drawing knows every import, read here in another way, and no other"
    plain = {(name, module) for name,tree in modules.items() for module,_,_ in own_imports(name, tree) if module}
    assert set(house.uses())==plain and len(plain)>500

@pytest.mark.parametrize('folder', house.folders())
def test_a_chapter_page_shows_the_imports(folder):
    "The picture that is committed is the one that the imports give now"
    outputs = [o['data'] for c in cells_of(f'{folder}/index.ipynb') for o in c.get('outputs', []) if 'text/html' in o.get('data', {})]
    drawing = house.chapter(folder)
    assert [''.join(o['text/html']) for o in outputs if 'class="house"' in ''.join(o['text/html'])]==[drawing._repr_html_()], 'run python tools/house.py --write'
    assert all(o in drawing.alt for o in house.modules(folder))

@pytest.mark.parametrize('folder', house.folders())
def test_a_chapter_page_is_short(folder):
    "The title of the navigation, three to five sentences, three examples with a link each"
    cells = cells_of(f'{folder}/index.ipynb')
    assert text_of(cells[0]).startswith(f'# {house.folders()[folder]}\n\n> ')
    assert 3<=len(re.findall(r'[.?!](?=\s|$)', text_of(cells[1])))<=5
    shown = [c for c in cells if c['cell_type']=='code' and c['outputs']]
    assert len(shown)==4 and all(len(text_of(c).splitlines())<=5 for c in shown)
    links = [o for c in cells for o in re.findall(r'\]\(([^)]+)\)', text_of(c)) if c['cell_type']=='markdown']
    assert len(links)>=3 and all((nbs/folder/o).is_file() for o in links)

def test_a_drawing_says_each_line_in_words():
    drawing = house.Drawing(['a', 'b', 'c'], [('b', 'a'), ('c', 'a'), ('c', 'b')], dict.fromkeys('abc', 'x.html'), 'Three')
    assert repr(drawing)=='a\nb  a\nc  a b'
    assert drawing.alt=='Three, from above to below: a, b and c. Lines: b uses a; c uses a and b.'
    assert drawing._repr_html_().count('<path')==2 # c reaches a through b
    with pytest.raises(ValueError, match='`folder` must be one of core, text, .*got .nothing.'): house.chapter('nothing')

@pytest.mark.parametrize('folder', house.folders())
def test_no_line_leaves_the_drawing(folder):
    "The ends of curves and what pulls them out stay inside; a curve goes three quarters of the way there"
    drawing = house.chapter(folder)
    for path in re.findall(r'<path d="M(\d+) [\d.]+C(\d+)', drawing._repr_html_()):
        start, pull = map(int, path)
        assert drawing.right<start<house.width and start+.75*(pull-start)<=house.width

def test_the_house_is_as_contributing_says(): assert f'\n```\n{house.house()!r}\n```\n' in (root/'CONTRIBUTING.md').read_text(encoding='utf-8')

# ---- Public names

@pytest.mark.parametrize('path', public_names.notebooks(), ids=public_names.module)
def test_a_page_lists_its_names(path):
    "Below its title, each with what it is, where nbdev finds them for the docstring of the module"
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    assert cells==public_names.with_names(path)['cells'], 'run python tools/house.py --write, then nbdev-export'
    assert sorted(re.findall(r'^- `(\w+)`: \S', text_of(cells[1]), re.M))==sorted(public(modules[public_names.module(path)]))

def test_names_are_those_of_all(tmp_path):
    "In the order of definition; methods and private names are not among them, and each says what it is"
    exported = """#| export
SIZE = 3 # Rows at once
WAYS = dict( # How, by name
    one=1)
Out = Annotated[str, Option(help='Where to')]
_HIDDEN = '# no comment'
class Row:
    "A row"
@patch
def show(self:Row): "Not listed"
def read(path):
    \"\"\"Read rows

    And more\"\"\"
"""
    book = tmp_path/'core'/'10_rows.ipynb'
    book.parent.mkdir()
    def write(*sources):
        code = [dict(cell_type='code', id=str(i), source=[o]) for i,o in enumerate(sources)]
        book.write_text(json.dumps(dict(cells=[dict(cell_type='markdown', id='t', source=['# rows']), *code])))
    write(exported, 'own = 2', '#| exporti\ninner = 2', '#| exports\ndef last(): "At the end"')
    made = public_names.with_names(book)
    assert text_of(made['cells'][1])=='#| export\n- `SIZE`: Rows at once\n- `WAYS`: How, by name\n- `Out`: Where to\n- `Row`: A row\n- `read`: Read rows\n- `last`: At the end'
    book.write_text(json.dumps(made))
    assert public_names.with_names(book)==made and len(made['cells'])==6
    write("#| export\nCOLOUR = '#666'\nSIZE = 1 # Rows")
    with pytest.raises(ValueError, match='core/10_rows.ipynb must say what COLOUR is'): public_names.with_names(book)

# ---- What pages consist of

def test_pages_are_counted(tmp_path):
    path = tmp_path/'a.ipynb'
    cells = [('markdown', '# a\n\n> one page'), ('markdown', '#| export\n- `f`: No prose'), ('code', '#| export\ndef f():\n    return 1'), ('code', '#| label: fig-a\nplot()')]
    outputs = [dict(output_type='display_data', data={'image/png': ''})]
    path.write_text(json.dumps(dict(cells=[dict(cell_type=k, source=[o], outputs=outputs*o.endswith('plot()')) for k,o in cells])))
    assert pages.page_facts(path)==dict(words=3, exported_lines=2, largest_cell=2, figures=1)

def test_every_page_is_counted():
    rows = pages.rows()
    assert [o['page']+'.ipynb' for o in rows]==listed and all(tuple(o)==pages.columns for o in rows)

# ---- Glossary

def entries():
    "Terms of the glossary, and what is said of each"
    for c in cells_of('glossary.ipynb')[1:]:
        head, _, text = text_of(c).partition('\n\n')
        assert head.startswith('## ') and c['cell_type']=='markdown'
        yield head.removeprefix('## '), text

def test_glossary_is_sorted():
    terms = [k for k,_ in entries()]
    assert terms==sorted(terms, key=str.casefold) and len(terms)==len({o.casefold() for o in terms})>=50

def anchors(notebook):
    "What a link to a notebook may name after the #"
    cells = cells_of(notebook)
    found = {slug(o) for c in cells if c['cell_type']=='markdown' for o in re.findall(r'^#+ (.+)$', text_of(c), re.M)}
    exported = [re.findall(r'^#\|\s*default_exp (\S+)', text_of(c), re.M) for c in cells]
    return found | {o.lower() for m in sum(exported, []) for o in public(modules[m])}

@pytest.mark.parametrize('term, text', list(entries()))
def test_glossary_links_lead_somewhere(term, text):
    "Each term has one or two sentences, three at most, and a page where it is explained"
    links = re.findall(r'\]\(([^)]+)\)', text)
    assert links
    for path,_,anchor in (o.partition('#') for o in links):
        assert path in listed and (not anchor or anchor in anchors(path)), f'{term}: {path}#{anchor}'
    assert 1<=len(re.findall(r'[.](?=\s|$)', text))<=3 and len(text)<420

# ---- Citation

def test_citation_is_valid():
    "Fields of the Citation File Format 1.2.0 with their types, and nothing that is said otherwise elsewhere"
    cited = yaml.safe_load((root/'CITATION.cff').read_text(encoding='utf-8'))
    texts = {'cff-version', 'message', 'type', 'title', 'abstract', 'version', 'license', 'repository-code', 'url', 'date-released'}
    assert {'cff-version', 'message', 'title', 'authors'} <= cited.keys() <= texts|{'authors', 'keywords'}
    assert all(isinstance(v, date if k=='date-released' else str) for k,v in cited.items() if k in texts)
    assert (cited['cff-version'], cited['type']) == ('1.2.0', 'software')
    assert cited['authors']==[dict(name=cfg['author'])] # of nobody by name
    assert (cited['title'], cited['abstract'], cited['license']) == (cfg['lib_name'], cfg['description'], cfg['license'])
    assert (cited['repository-code'], cited['url']) == (cfg['git_url'], cfg['doc_host']+cfg['doc_baseurl'])
    assert Counter(cited['keywords']).most_common(1)[0][1]==1 and set(cited['keywords'])<=set(cfg['keywords'].split())
    version = re.search(r'^__version__ = "(.+)"', (root/'compresscal'/'__init__.py').read_text(encoding='utf-8'), re.M)[1]
    heading = re.search(rf'^## {re.escape(version)}, (.+)$', (root/'CHANGELOG.md').read_text(encoding='utf-8'), re.M)[1]
    assert cited['version']==version
    assert str(cited.get('date-released', 'unreleased'))==heading

def test_security_says_where_to_report():
    "In the repository, and to no address of a person"
    text = (root/'SECURITY.md').read_text(encoding='utf-8')
    assert f"{cfg['git_url']}/security" in text and f"{cfg['git_url']}/issues" in text and '@' not in text
