"""Who uses whom in the package: read from its imports, and drawn; and the public names of each module.

    python tools/house.py                # which folder uses which
    python tools/house.py compression    # the modules of one folder
    python tools/house.py --write        # draw both again, in the chapter pages and in CONTRIBUTING.md, and list the names
"""
import ast, json, re, sys
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
import yaml
import public_names

root = Path(__file__).resolve().parents[1]
package, nbs = root/'compresscal', root/'nbs'
row, letter, width = 22, 7.3, 350 # pixels: from line to line, a letter, the whole drawing, which a telephone can show

def reading_order(nbs):
    "Each caption of the navigation with its notebooks, as paths relative to `nbs`"
    contents = yaml.safe_load((nbs/'sidebar.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']
    return {o['section']: [*map(Path, o['contents'])] for o in contents if isinstance(o, dict)}

@cache
def folders():
    "Folders of the package in the order of the navigation, each with the title of its chapter"
    first = {v[0].parts[0]: k for k,v in reading_order(nbs).items()}
    return {k: v for k,v in first.items() if (package/k).is_dir()}

def modules(folder):
    "Modules of a folder in reading order"
    return [re.sub(r'^\d+_', '', o.stem) for o in sorted((nbs/folder).glob('[0-9]*_*.ipynb'))]

def used_by(folder, module):
    "Modules that a module imports, anywhere in it, as `folder.module`"
    tree = ast.parse((package/folder/f'{module}.py').read_text(encoding='utf-8'))
    here = [package.name, folder, module]
    for o in ast.walk(tree):
        if not isinstance(o, ast.ImportFrom): continue
        name = '.'.join([*(here[:-o.level] if o.level else ()), *filter(None, [o.module])])
        for part in [name, *(f'{name}.{a.name}' for a in o.names)]: # `from ..core.plots import style`, and `from ..core import plots`
            top, *rest = part.split('.')
            if top==package.name and len(rest)==2: yield '.'.join(rest)

@cache
def uses():
    "Pairs of user and used module, both as `folder.module`"
    return [(f'{f}.{m}', o) for f in folders() for m in modules(f) for o in dict.fromkeys(used_by(f, m))]

def listed(names): return ' and '.join(filter(None, [', '.join(names[:-1]), *names[-1:]]))

@dataclass(frozen=True)
class Drawing:
    "Names from above to below, and a line from each to those above that it uses"
    names: list    # In reading order: what is used comes before what uses it
    edges: list    # Pairs of user and used
    pages: dict    # Where each name leads
    subject: str   # Of whom this is a picture
    beside: str='' # A sentence below it, HTML

    def used(self, name): return [o for o in self.names if (name, o) in self.edges]

    def reached(self, name):
        "All that a name uses, itself or through others"
        return {p for o in self.used(name) for p in {o}|self.reached(o)}

    def drawn(self, name):
        "What a name uses and would not reach through anything else it uses"
        used = self.used(name)
        return [o for o in used if not any(o in self.reached(p) for p in used)]

    def __repr__(self):
        wide = max(map(len, self.names))
        return '\n'.join(f'{o:{wide}}  {" ".join(self.used(o))}'.rstrip() for o in self.names)

    @property
    def alt(self):
        "The picture in words"
        said = [f'{o} uses {listed(self.used(o))}' for o in self.names if self.used(o)]
        return f'{self.subject}, from above to below: {listed(self.names)}. Lines: {"; ".join(said) or "none"}.'

    @property
    def right(self): return letter*max(map(len, self.names)) # where names end

    def line(self, user, used):
        "From the user up to the used, further out the further away"
        (low, high), x = (self.names.index(o) for o in (user, used)), self.right+8
        out = x+26+(width-x-26)/.75*(low-high)/len(self.names)
        a, b = low*row+row/2-3, high*row+row/2+3
        return f'<path d="M{x:.0f} {a:.0f}C{out:.0f} {a:.0f} {out:.0f} {b:.0f} {x+5:.0f} {b:.0f}m4 -3l-5 3l5 3"/>'

    def _repr_html_(self):
        parts = []
        for i,o in enumerate(self.names):
            text = f'<a href="{escape(self.pages[o])}"><text fill="currentColor" stroke="none" x="{self.right:.0f}" y="{i*row+row/2+4:.0f}">{escape(o)}</text></a>'
            parts.append(f'<g>{text}' + ''.join(self.line(o, p) for p in self.drawn(o)) + '</g>')
        svg = (f'<svg class="house" role="group" aria-label="{escape(self.alt)}" viewBox="0 0 {width} {len(self.names)*row}" width="{width}" '
               'fill="none" stroke="gray" font-family="monospace" font-size="12" text-anchor="end">' + '\n'.join(parts) + '</svg>')
        caption = f'{self.subject} in reading order. Each line leads up to what is used; what is also reached through others has none. {self.beside}'.strip()
        return f'<figure class="house">\n{svg}\n<figcaption><p>{caption}</p></figcaption></figure>'

def links(names):
    "Chapters as links"
    return listed([f'<a href="../{o}/index.html">{o}</a>' for o in names]) or 'no other'

def chapter(
    folder:str, # A folder of the package
)->Drawing:
    "The modules of a folder, which of them use which, and the chapters below and above"
    if folder not in folders(): raise ValueError(f"`folder` must be one of {', '.join(folders())}, got {folder!r}")
    pairs, names = [[o.split('.') for o in pair] for pair in uses()], modules(folder)
    inside = [(a[1], b[1]) for a,b in pairs if a[0]==b[0]==folder]
    below = [o for o in folders() if o!=folder and any((a[0], b[0])==(folder, o) for a,b in pairs)]
    above = [o for o in folders() if o!=folder and any((a[0], b[0])==(o, folder) for a,b in pairs)]
    beside = f'The chapter uses {links(below)}, and is used by {links(above)}.'
    return Drawing(names, inside, {o: f'{o}.html' for o in names}, f'The modules of {folder}', beside)

def house()->Drawing:
    "The folders of the package, and which of them use which"
    pairs = {tuple(o.split('.')[0] for o in pair) for pair in uses()}
    names = list(folders())
    return Drawing(names, sorted(o for o in pairs if o[0]!=o[1]), {o: f'{o}/index.html' for o in names}, 'The folders of compresscal')

def draw_again(folder):
    "Put the picture of a folder, as its imports are now, into its chapter page"
    path, drawing = nbs/folder/'index.ipynb', chapter(folder)
    book = json.loads(path.read_text(encoding='utf-8'))
    cell = next(o for o in book['cells'] if f"chapter('{folder}')" in o['source'])
    cell['outputs'][0]['data'] = {'text/html': drawing._repr_html_().splitlines(True), 'text/plain': repr(drawing).splitlines(True)}
    path.write_text(json.dumps(book, indent=1, sort_keys=True, ensure_ascii=False)+'\n', encoding='utf-8')

def write():
    "Put all pictures and names where they belong"
    public_names.write()
    for o in folders(): draw_again(o)
    path = root/'CONTRIBUTING.md'
    text = re.sub(r'(?<=\n```\n)core\n.*?(?=\n```\n)', lambda m: repr(house()), path.read_text(encoding='utf-8'), flags=re.S)
    path.write_text(text, encoding='utf-8')

if __name__=='__main__':
    if sys.argv[1:]==['--write']: write()
    else: print(repr(chapter(sys.argv[1]) if sys.argv[1:] else house()))
