"The house rules that can be read from the source: import order, cells and lines, names, metadata, and what a library does not do."
import ast, inspect, json, re, resource, subprocess, sys, tomllib
from collections import defaultdict
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path
import pytest, yaml
from conftest import root, source_files

package, nbs = root/'compresscal', root/'nbs'
sections = yaml.safe_load((nbs/'sidebar.yml').read_text())['website']['sidebar']['contents']
listed = [o for s in sections for o in ([s] if isinstance(s, str) else s['contents'])] # every page, in reading order
folders = list(dict.fromkeys(o.split('/')[0] for o in listed if (package/o.split('/')[0]).is_dir())) # chapters, in the order of imports

def dotted(path): return '.'.join(path.with_suffix('').parts)

notebooks = {f'{f}.{m[2]}': (o, (i, int(m[1]))) for i,f in enumerate(folders) for o in sorted((nbs/f).glob('*.ipynb'))
             if (m := re.fullmatch(r'(\d\d)_(\w+)', o.stem))} # module -> its notebook, and its place
modules = {dotted(o.relative_to(package)): ast.parse(o.read_text(encoding='utf-8')) for o in sorted(package.rglob('*.py')) if not o.stem.startswith('_')}
ini = ConfigParser(delimiters=['='], interpolation=None)
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
toml = tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))

def imports(tree, name='x.y'):
    "Dotted names that the syntax tree of module `name` imports, at any depth"
    here = ['compresscal', *name.split('.')]
    for o in ast.walk(tree):
        if isinstance(o, ast.Import): yield from (a.name for a in o.names)
        elif isinstance(o, ast.ImportFrom):
            base = '.'.join(filter(None, [*(here[:-o.level] if o.level else ()), o.module]))
            yield from (f'{base}.{a.name}' for a in o.names)
        elif isinstance(o, ast.Call) and ast.unparse(o.func).split('.')[-1] in ('import_module', '__import__') and o.args:
            yield str(getattr(o.args[0], 'value', '?')) # a computed name counts as unknown

def own_imports(name, tree):
    "The module of the package, and the name in it, of each import; `None` for the module of what is no module"
    for o in imports(tree, name):
        top, *rest = o.split('.')
        if top!='compresscal' or rest and rest[0].startswith('__'): continue
        module = '.'.join(rest[:2])
        yield (module if module in notebooks else None), '.'.join(rest[2:]), o

def wrong_imports(name, tree):
    "Imports in module `name` of modules that do not come before it"
    place = notebooks[name][1]
    return [o for module,_,o in own_imports(name, tree) if module is None or not notebooks[module][1]<place]

def test_the_sidebar_lists_every_notebook_once():
    found = {o.relative_to(nbs).as_posix() for o in nbs.rglob('*.ipynb') if not any(p[0] in '._' for p in o.relative_to(nbs).parts)}
    assert sorted(listed)==sorted(found)

def test_chapters_follow_the_numbers():
    "A page about the chapter, then its modules"
    of_chapters = [o for o in listed if o.split('/')[0] in folders]
    assert [o for o in of_chapters if o.endswith('/index.ipynb')]==[f'{o}/index.ipynb' for o in folders]
    of_modules = [o for o in of_chapters if not o.endswith('/index.ipynb')]
    assert of_modules==[o.relative_to(nbs).as_posix() for o,_ in sorted(notebooks.values(), key=lambda v: v[1])]

def test_every_module_has_a_notebook(): assert modules.keys()==notebooks.keys()

@pytest.mark.parametrize('name', modules)
def test_imports_go_down(name): assert wrong_imports(name, modules[name])==[]

@pytest.mark.parametrize('source', ['from compresscal.commands.cli import main', 'from ..commands.cli import main', 'from .cli import main',
                                    'def f():\n    import compresscal.commands.cli', 'from compresscal import compress', 'import compresscal',
                                    'from importlib import import_module; import_module("compresscal.commands.cli")'])
def test_a_wrong_import_is_seen(source): assert wrong_imports('core.plots', ast.parse(source))

# ---- what makes code hard to read

def exported(notebook):
    "The export cells of a notebook, by id, without their directives"
    for c in json.loads(notebook.read_text(encoding='utf-8'))['cells']:
        source = ''.join(c['source'])
        if c['cell_type']=='code' and re.search(r'^#\|\s*exports?\b', source, re.M):
            yield c['id'], re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip('\n')

@pytest.mark.parametrize('name', notebooks)
def test_a_cell_fits_a_screen(name):
    "25 lines, each of at most 120 characters"
    cells = list(exported(notebooks[name][0]))
    long = [f'{i}: {n} lines' for i,o in cells if (n := len(o.splitlines()))>25]
    wide = [f'{i}: {len(l)} characters: {l[:60]}' for i,o in cells for l in o.splitlines() if len(l)>120]
    assert (long, wide)==([], [])

@pytest.mark.parametrize('name', modules)
def test_no_private_name_is_imported(name):
    assert [o for _,inside,o in own_imports(name, modules[name]) if any(p.startswith('_') for p in inside.split('.'))]==[]

def unused_imports(tree):
    "Names that a module imports at its top and never uses"
    body = [o for o in tree.body if isinstance(o, (ast.Import, ast.ImportFrom))]
    bound = {(a.asname or a.name).split('.')[0] for o in body for a in o.names if getattr(o, 'module', '')!='__future__'}
    used = {o.id for o in ast.walk(tree) if isinstance(o, ast.Name)}
    quoted = ' '.join(o.value for o in ast.walk(tree) if isinstance(o, ast.Constant) and isinstance(o.value, str))
    return sorted(o for o in bound-used if not re.search(rf'\b{o}\b', quoted))

@pytest.mark.parametrize('name', modules)
def test_no_import_is_unused(name): assert unused_imports(modules[name])==[]

def public(tree):
    "What a module calls public"
    return next((ast.literal_eval(o.value) for o in tree.body if isinstance(o, ast.Assign) and ast.unparse(o.targets[0])=='__all__'), [])

def members(module):
    "What a module makes public, and the methods of its classes"
    for name in getattr(module, '__all__', ()):
        o = getattr(module, name)
        yield o
        for k,v in vars(o).items() if inspect.isclass(o) else ():
            f = getattr(v, '__func__', getattr(v, 'fget', v)) # of class methods and properties
            if not k.startswith('_') and inspect.isfunction(f): yield f

@pytest.mark.parametrize('name', modules)
def test_signatures_can_be_shown(name):
    "The site evaluates annotations, so each must be a name of its module"
    for o in members(import_module(f'compresscal.{name}')):
        try: inspect.signature(o, eval_str=True)
        except (ValueError, TypeError): pass # nothing that is called

def test_a_public_name_means_one_thing():
    places = defaultdict(list)
    for name,tree in modules.items():
        for o in public(tree): places[o].append(name)
    assert {k: v for k,v in places.items() if len(v)>1}=={}

def uses(notebook):
    "Names that are used in the cells of a notebook that are run and not exported"
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    sources = [''.join(c['source']) for c in cells if c['cell_type']=='code']
    return ' '.join(re.sub(r'#.*', '', o) for o in sources if not re.search(r'^#\|\s*(exports?|default_exp|eval:\s*false)\b', o, re.M))

@pytest.mark.parametrize('name', notebooks)
def test_every_public_name_is_shown(name):
    shown = uses(notebooks[name][0])
    assert [o for o in public(modules[name]) if not re.search(rf'\b{o}\b', shown)]==[]

def clever(tree):
    "Lambdas that are given a name, and walruses inside a call, with their lines"
    for o in ast.walk(tree):
        if isinstance(o, ast.Assign) and isinstance(o.value, ast.Lambda) and isinstance(o.targets[0], ast.Name): yield o.lineno, 'a lambda with a name'
        if isinstance(o, ast.Call):
            for a in [*o.args, *(k.value for k in o.keywords)]:
                if isinstance(a, ast.NamedExpr): yield o.lineno, 'a walrus inside a call'

@pytest.mark.parametrize('name', modules)
def test_nothing_is_clever(name): assert list(clever(modules[name]))==[]

@pytest.mark.parametrize('name', modules)
def test_docstrings_are_plain_text(name):
    "A NUL in a docstring, such as one that was meant as an escape, breaks what reads it"
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = [ast.get_docstring(o, clean=False) or '' for o in ast.walk(modules[name]) if isinstance(o, kinds)]
    assert [o for o in docs if any(not c.isprintable() and c!='\n' for c in o)]==[]

# ---- what the package needs and does not do

def test_requirements_are_declared():
    "What the package imports is in the standard library or in settings.ini"
    declared = {re.split(r'[<>=!~\[; ]', o)[0].lower().replace('-', '_') for o in cfg['requirements'].split()}
    used = {o.split('.')[0] for name,tree in modules.items() for o in imports(tree, name)} - set(sys.stdlib_module_names) - {'compresscal', '__future__'}
    used = {dict(sklearn='scikit_learn').get(o, o) for o in used} # imported by another name than it is installed by
    optional = {re.split(r'[<>=!~\[; ]', o)[0].lower().replace('-', '_') for k in cfg if k.endswith('_requirements') and k!='dev_requirements' for o in cfg[k].split()}
    unlisted = {'alignscore', 'minicheck'} # only in their authors' repositories: no index has them, so no extra can name them
    assert used <= declared|optional|unlisted
    assert not used & {'fastcore', 'nbdev', 'IPython', 'pytest'}

def test_constraints_pin_the_requirements():
    normal = lambda o: re.split(r'[<>=!~\[; ]', o)[0].lower().replace('-', '_')
    pinned = {normal(o) for o in (root/'constraints.txt').read_text().splitlines() if '==' in o}
    apart = {'mlflow'} # asks for an older pyarrow than the versions that are tested together
    assert {normal(o) for k in cfg if k.endswith('requirements') for o in cfg[k].split()} <= pinned|apart

switches = {'set_num_threads', 'set_num_interop_threads', 'set_grad_enabled', 'set_default_dtype', 'set_default_device', 'set_flush_denormal',
            'use_deterministic_algorithms', 'manual_seed_all', 'set_seed', 'enable_full_determinism', 'set_float32_matmul_precision'}
global_seeds = {'torch.manual_seed', 'torch.random.manual_seed', 'random.seed', 'np.random.seed', 'numpy.random.seed', 'torch.cuda.manual_seed'}

def breaches(tree):
    "What a library does not do, with line numbers"
    for o in ast.walk(tree):
        if isinstance(o, ast.Assert): yield o.lineno, 'assert'
        if isinstance(o, ast.keyword) and o.arg=='trust_remote_code' and getattr(o.value, 'value', True) is not False: yield o.value.lineno, 'trust_remote_code'
        if isinstance(o, ast.Call):
            name = ast.unparse(o.func)
            if name=='print' or name in global_seeds or name.split('.')[-1] in switches: yield o.lineno, name
            if name=='torch.load' and not any(k.arg=='weights_only' and getattr(k.value, 'value', 0) is True for k in o.keywords): yield o.lineno, name
    yield from ((0, o) for o in imports(tree) if o.split('.')[0] in ('pickle', 'dill', 'cloudpickle', 'joblib', 'marshal', 'shelve'))

@pytest.mark.parametrize('name', modules)
def test_no_side_effects(name):
    allowed = {'commands.cli': 'print', 'experiments.jobs': 'set_num_threads'}.get(name) # printing is what a command is for; a worker has its own number of threads
    found = [o for o in breaches(modules[name]) if o[1].split('.')[-1]!=allowed]
    assert found==[]

@pytest.mark.parametrize('source', ['print(1)', 'assert x', 'import pickle', 'torch.manual_seed(0)', 'torch.set_num_threads(1)', 'f(trust_remote_code=True)', 'torch.load(p)'])
def test_a_breach_is_seen(source): assert list(breaches(ast.parse(source)))

def test_metadata_agree():
    project, urls = toml['project'], toml['project']['urls']
    assert (project['name'], project['description']) == (cfg['lib_name'], cfg['description'])
    assert project['requires-python']=='>='+cfg['min_python']
    assert (urls['Repository'], urls['Documentation']) == (cfg['git_url'], cfg['doc_host']+cfg['doc_baseurl'])
    assert not set(project) & set(project['dynamic'])
    version = re.search(r'^__version__ = "(.+)"', (package/'__init__.py').read_text(), re.M)[1]
    assert re.search(rf'^## {re.escape(version)}\b', (root/'CHANGELOG.md').read_text(), re.M), f'CHANGELOG.md has no heading for {version}'

def test_no_machine_paths():
    "No file names a folder of the machine it was written on"
    here = [re.escape(str(o)) for o in (root, root.parent) if len(o.parts)>1 and str(o) not in ('/tmp', '/home', '/root')]
    pattern = re.compile(r'(?<![\w./-])(?:' + '|'.join([rf'{o}(?![\w-])' for o in here] + [r'/home/\w', r'/Users/\w', r'/root/\w', r'/tmp/\w', r'[A-Z]:\\\\Users']) + ')')
    own = Path(__file__).relative_to(root)
    text = {'.py', '.ipynb', '.md', '.toml', '.ini', '.yml', '.txt', '.json', '.cfg', '.css', '.in', '.sh', ''}
    found = [f'{p}: {m[0]}' for p in source_files() if p.suffix in text and p!=own and (root/p).is_file()
             and (m := pattern.search((root/p).read_text(encoding='utf-8', errors='ignore')))]
    assert found==[]

def python(code):
    "What `python -c code` prints, and the processor time it takes in seconds, which a busy machine hardly changes"
    spent = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    before = spent()
    res = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert not res.returncode, res.stderr
    return res.stdout, spent()-before

def lightest(code): return min(python(code)[1]-python('pass')[1] for _ in range(5))

heavy = {'torch', 'transformers', 'datasets', 'pandas', 'numpy', 'matplotlib'}
loaded = f'import sys; heavy = {sorted(heavy)!r}; loaded = lambda: [o for o in heavy if o in sys.modules]; '

def test_import_is_light():
    assert python(loaded+'import compresscal; print(compresscal.__version__, loaded())')[0].split()[1]=='[]'
    assert lightest('import compresscal') < .1

def test_help_is_light():
    code = loaded + """
from compresscal.commands.cli import main
sys.argv = ['compresscal', '--help']
try: main()
except SystemExit as e: assert not e.code
print('LOADED', loaded())"""
    out = python(code)[0]
    assert 'study' in out and out.splitlines()[-1]=='LOADED []'
    assert lightest(code) < .5

def test_asking_for_a_study_loads_no_tables_and_no_pictures():
    code = loaded+"from compresscal.experiments.study import Study; Study(n_sets=5, comparisons=[('docs', 'code')]); print(loaded())"
    assert not {'pandas', 'matplotlib', 'datasets'} & set(ast.literal_eval(python(code)[0]))

def test_public_names():
    "Each name that the package offers is defined where it says, and is part of that module's public names"
    import compresscal
    for name, module in compresscal._modules.items():
        assert module in modules, f'{module} has no notebook'
        assert name in ast.literal_eval(next(o.value for o in modules[module].body if isinstance(o, ast.Assign) and o.targets[0].id=='__all__')), f'{module} does not define {name}'
    assert set(compresscal.__all__) <= set(dir(compresscal))
    with pytest.raises(AttributeError, match='nothing_such'): compresscal.nothing_such
