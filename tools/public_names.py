"""The public names of each module, listed after the title of its notebook, from where nbdev takes them into the module's docstring.

`python tools/house.py --write` writes the lists."""
import ast, hashlib, io, json, re, tokenize
from pathlib import Path

root = Path(__file__).resolve().parents[1]
nbs = root/'nbs'

def notebooks(): return sorted(nbs.glob('*/[0-9]*_*.ipynb')) # those of modules

def module(path):
    "The module of a notebook, as `folder.module`"
    return f"{path.parent.name}.{re.sub(r'^[0-9]+_', '', path.stem)}"

def cell_id(path): return hashlib.sha256(module(path).encode()).hexdigest()[:8]

def exported(book):
    "Sources of the cells whose names are public"
    sources = (''.join(o['source']) for o in book['cells'] if o['cell_type']=='code')
    return [o for o in sources if re.search(r'^#\|\s*exports?\b', o, re.M)]

def comments(source):
    "The comment of each line that has one"
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {o.start[0]: o.string.lstrip('# ') for o in tokens if o.type==tokenize.COMMENT}

def targets(node):
    "Names that an assignment makes"
    found = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [o.id for t in found for o in getattr(t, 'elts', [t]) if isinstance(o, ast.Name)]

def option_help(node):
    "The help text of an option of a command"
    found = [o.value for o in ast.walk(node) if isinstance(o, ast.keyword) and o.arg=='help']
    return next((o.value for o in found if isinstance(o, ast.Constant)), '')

def is_method(node): return any(ast.unparse(o).startswith('patch') for o in node.decorator_list)

def names_of(source):
    "Public names of an export cell with what they are: the first line of a docstring, a constant's comment or the help of an option"
    said = comments(source)
    for o in ast.parse(source).body:
        if isinstance(o, (ast.FunctionDef, ast.ClassDef)):
            found = [] if is_method(o) else [(o.name, (ast.get_docstring(o) or '').partition('\n')[0])]
        else: found = [(name, said.get(o.lineno) or option_help(o)) for name in targets(o)]
        yield from ((name, text) for name,text in found if not name.startswith('_'))

def listed(path, book):
    "A line for each public name of a notebook, in the order of definition"
    names = dict(o for source in exported(book) for o in names_of(source))
    missing = [name for name,text in names.items() if not text]
    if missing: raise ValueError(f"{path.parent.name}/{path.name} must say what {', '.join(missing)} is: in a docstring, or in a comment on the line of `=`")
    return [f'- `{name}`: {text}' for name,text in names.items()]

def with_names(path):
    "A notebook with the list of its public names after its title"
    book = json.loads(path.read_text(encoding='utf-8'))
    lines = listed(path, book)
    cell = dict(cell_type='markdown', id=cell_id(path), metadata={}, source='\n'.join(['#| export', *lines]).splitlines(True))
    title, *others = (o for o in book['cells'] if o['id']!=cell['id'])
    return book | dict(cells=[title, *([cell] if lines else []), *others])

def write():
    "Put the names into all notebooks"
    for path in notebooks():
        text = json.dumps(with_names(path), indent=1, sort_keys=True, ensure_ascii=False)+'\n'
        if text!=path.read_text(encoding='utf-8'): path.write_text(text, encoding='utf-8')
