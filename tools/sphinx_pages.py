"""Turn the pages that nbdev staged for Quarto into a source tree for Sphinx and MyST-NB.

Quarto's cell options, callouts and links become MyST's; nothing is executed."""
import json, os, re, shutil
from pathlib import Path
import yaml

callout_kinds = {'note', 'tip', 'warning', 'caution', 'important'}

def slug(heading):
    "Anchor of a heading as Pandoc makes it, so that the links nbdev writes hold"
    return re.sub(r'\s+', '-', re.sub(r'[^\w\s.-]', '', heading.lower()).strip())

def page_name(notebook):
    "Path of a notebook's page without suffix: nbdev drops the number, `01_models.ipynb` becomes `models`"
    return str(notebook.with_name(re.sub(r'^\d+[a-zA-Z0-9]*_', '', notebook.stem.lower())))

def outside_code(text, change):
    "Apply `change` to what is outside fenced code"
    parts = re.split(r'(^(?:```|~~~).*?^(?:```|~~~)[ \t]*$)', text, flags=re.M|re.S)
    return ''.join(o if i%2 else change(o) for i,o in enumerate(parts))

def cell_options(source):
    "Split a code cell into its leading `#| key: value` options and its code"
    options, lines = {}, source.splitlines(True)
    while lines and (m := re.match(r'#\|\s*([\w-]+)\s*:?\s*(.*)', lines[0])):
        options[m[1]] = m[2].strip().strip('"\'')
        lines.pop(0)
    return options, ''.join(lines)

class Page:
    "One staged notebook on its way to MyST-NB"
    def __init__(self, path, staged, site_url):
        self.notebook, self.site_url = path.relative_to(staged), site_url.rstrip('/')+'/'
        self.name, self.up = page_name(self.notebook), '../'*(len(self.notebook.parts)-1)
        self.label = self.name.replace('/', '-') # tells apart the figures of different pages
        self.raw = json.loads(path.read_text(encoding='utf-8'))['cells']
        self.front, self.figures, self.entries = {}, {}, set() # front matter, number of each figure, names with an API entry
        for c in self.raw:
            if c['cell_type']=='raw' and (src := ''.join(c['source']).strip()).startswith('---'): self.front.update(yaml.safe_load(src.strip('-')) or {})
            self.entries.update(o.lower() for o in re.findall(r'^show_doc\(([\w.]+)', ''.join(c['source']), re.M))
            if c['cell_type']=='code' and (label := cell_options(''.join(c['source']))[0].get('label', '')).startswith('fig-'):
                self.figures[label] = len(self.figures)+1

    def _callout(self, m):
        kind = m[1] if m[1] in callout_kinds else 'note'
        title = re.search(r'title="([^"]*)"', m[2])
        return f':::{{admonition}} {title[1]}\n:class: {kind}\n' if title else f':::{{{kind}}}\n'

    def _link(self, m):
        "Links to other notebooks: by nbdev to the published site, by authors to the file"
        target, _, anchor = m[1].partition('#')
        if target.startswith(self.site_url):
            name = target.removeprefix(self.site_url).removesuffix('.html')
            target = self.up + name # nbdev links every definition; a method that has no entry is found under its class
            anchor = next((o for o in (anchor, anchor.partition('.')[0]) if o in self.documented.get(name, ())), '')
        elif target.endswith('.ipynb') and '://' not in target: target = str(Path(target).parent/page_name(Path(Path(target).name)))
        else: return m[0]
        return f'](<{target}.ipynb{"#"+anchor if anchor else ""}>)'

    def _figure_link(self, m):
        return f'[Figure {self.figures[m[1]]}](#{self.label}-{m[1]})' if m[1] in self.figures else m[0]

    def markdown(self, text):
        "Quarto's Markdown as MyST's"
        def change(s):
            s = re.sub(r'^:{3,}[ ]*\{\.callout-(\w+)([^}]*)\}[ ]*\n', self._callout, s, flags=re.M)
            s = re.sub(r'\[source\]\(([^)]*)\)\{[^}]*\}', r'[source](\1){.api-source}', s)
            s = re.sub(rf'\[(`_[^`]*`)\]\({re.escape(self.site_url)}[^)]*\)', r'\1', s) # private names have no entry
            s = re.sub(r'(?<![\w`])@(fig-[\w-]+)', self._figure_link, s)
            return re.sub(r'\]\(([^)\s]+)\)', self._link, s)
        return outside_code(text, change)

    def api(self, cell, source=''):
        "What `show_doc` printed: a rule, a source link, a heading, the signature, the docstring; `source` has the last two"
        outputs = [''.join(o['data'].get('text/markdown', '')) if 'data' in o else ''.join(o.get('text', '')) for o in cell['outputs']]
        text = self.markdown('\n'.join(outputs).lstrip('-\n'))
        text = re.sub(r'__main__\.|collections\.abc\.|:NoneType(?==None)', '', text) # where staging found the names
        text = re.sub(r'<(?:\w+\.)*(\w+) object at 0x[0-9a-f]+>', r'\1(...)', text) # where in memory it was is another place the next time
        text = re.sub(r'^def ([A-Z]\w*\(.*?\))(?:->None)?:(?=[ ]*(?:#|$))', r'class \1:', text, count=1, flags=re.M|re.S)
        text = re.sub(r'^(#+) (\S+)$', r'{.api}\n\1 `\2`', text, count=1, flags=re.M)
        return f'{text.partition("```python")[0]}```python\n{source}\n```' if source else text

    def code(self, cell, options, source):
        "A code cell with Quarto's options as MyST-NB's tags and metadata"
        tags = [tag for tag,on in {'remove-input': options.get('echo')=='false', 'hide-input': options.get('code-fold')=='true',
                                   'remove-output': options.get('output')=='false'}.items() if on]
        shown = {}
        if 'fig-alt' in options or 'fig-cap' in options: shown['image'] = dict(alt=options.get('fig-alt') or options['fig-cap'])
        if 'fig-cap' in options:
            label, caption = options.get('label'), self.markdown(options['fig-cap'])
            shown['figure'] = dict(caption=f'Figure {self.figures[label]}. {caption}' if label in self.figures else caption)
            if label: shown['figure']['name'] = f'{self.label}-{label}'
        return dict(cell_type='code', execution_count=None, metadata=dict(tags=tags, mystnb=shown), source=source, outputs=cell['outputs'])

    def _exported(self, cell):
        "A cell with the directive `exports`, which follows the entry of what it defines, and its code"
        options, code = cell_options(''.join(cell['source'])) if cell and cell['cell_type']=='code' else ({}, '')
        return (cell, code) if 'exports' in options else (None, '')

    def cells(self):
        "The page's cells, under a heading made of the front matter"
        told = None # the cell whose code was shown with the entry before it
        title, subtitle = self.front.get('title', self.notebook.stem), self.front.get('description')
        yield dict(cell_type='markdown', metadata={}, source=f'# {title}' + (f'\n\n{{.subtitle}}\n{self.markdown(subtitle)}' if subtitle else ''))
        for c,after in zip(self.raw, [*self.raw[1:], None]):
            source = ''.join(c['source'])
            if c['cell_type']=='raw' or source.startswith('<!-- WARNING') or c is told: continue
            if c['cell_type']=='markdown': yield dict(cell_type='markdown', metadata={}, source=self.markdown(source))
            else:
                options, source = cell_options(source)
                if options.get('output')=='asis':
                    told, code = self._exported(after)
                    yield dict(cell_type='markdown', metadata={}, source=self.api(c, code))
                elif options.get('include')!='false': yield self.code(c, options, source)

    def write(self, folder, documented, extra=()):
        "Write the page, with `extra` Markdown cells at its end; `documented` holds the entries of each page"
        self.documented = documented
        cells = [*self.cells(), *(dict(cell_type='markdown', metadata={}, source=o) for o in extra)]
        for i,c in enumerate(cells): c['id'] = f'cell-{i}'
        meta = dict(kernelspec=dict(name='python3', display_name='python3', language='python'), language_info=dict(name='python', pygments_lexer='ipython3'))
        path = folder/f'{self.name}.ipynb'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dict(cells=cells, metadata=meta, nbformat=4, nbformat_minor=5)), encoding='utf-8')

def chapters(order):
    "Captions of the navigation with the pages below each, and the pages below each page that opens a chapter"
    captions, below = {}, {}
    for title,notebooks in order.items():
        first, *rest = notebooks
        if first.stem=='index': # a chapter: the navigation shows its first page, and the others where it is unfolded
            captions.setdefault('Chapters', []).append(first)
            below[first] = rest
        else: captions[title] = notebooks
    return captions, below

def toctree(notebooks, caption=None, folder=''):
    "Navigation to some pages, from a page in `folder`"
    pages = '\n'.join(os.path.relpath(page_name(o), folder or '.') for o in notebooks)
    return '```{toctree}\n:hidden:\n' + (f':caption: {caption}\n' if caption else '') + f'\n{pages}\n```'

def ranked_pages(pages):
    "What the search knows of each page beside its text: the subtitle, and what kind of page it is"
    from compresscal import _modules
    offered = {o.replace('.', '/') for o in _modules.values()} # where the names are that `from compresscal import` knows
    kinds = {o.name: 'offered' if o.name in offered else o.name.partition('/')[0] for o in pages}
    return {o.name: [re.sub(r'[`*]', '', str(o.front.get('description') or '')), kinds[o.name]] for o in pages}

def write_source(staged, out, order, site_url):
    "Write a Sphinx source tree to `out`: a page per staged notebook, the navigation of `order`, what ranks search results, and the other files as they are"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(staged, out, ignore=shutil.ignore_patterns('*.ipynb', '*.yml', '*.qmd', '.*', '_*'))
    captions, below = chapters(order)
    navigation = {k: [toctree(v, folder=k.parent)] for k,v in below.items()}
    navigation[Path('index.ipynb')] = [toctree(v, k) for k,v in captions.items()]
    pages = [Page(staged/o, staged, site_url) for o in [Path('index.ipynb'), *sum(order.values(), [])]]
    for page in pages: page.write(out, {o.name: o.entries for o in pages}, navigation.get(page.notebook, ()))
    ranking = (Path(__file__).parent/'site'/'search.js').read_text(encoding='utf-8')
    (out/'search.js').write_text(f'const PAGES = {json.dumps(ranked_pages(pages))}\n{ranking}', encoding='utf-8')
    return pages
