"Notebooks are clean, modules and README are what the notebooks say. Checked on a copy of the working tree."
import subprocess, sys
from conftest import outside_tests

def contents(folder, pattern='*'):
    return {str(o.relative_to(folder)): o.read_bytes() for o in folder.rglob(pattern) if o.is_file() and '__pycache__' not in o.parts}

def run(checkout, *args): subprocess.run([sys.executable, *args], cwd=checkout, env=outside_tests(checkout), check=True)

def differing(before, after): return sorted(o for o in before.keys()|after.keys() if before.get(o)!=after.get(o))

def test_notebooks_are_clean(checkout):
    before = contents(checkout/'nbs', '*.ipynb')
    run(checkout, '-c', 'from nbdev.clean import nbdev_clean; nbdev_clean.__wrapped__()')
    assert differing(before, contents(checkout/'nbs', '*.ipynb'))==[], 'run nbdev-clean'

def test_modules_are_exported(checkout):
    "From nothing but `__init__.py`, so that a module whose notebook is gone is noticed too"
    package = checkout/'compresscal'
    before = contents(package, '*.py')
    for o in before.keys()-{'__init__.py'}: (package/o).unlink()
    run(checkout, '-c', 'from nbdev.doclinks import nbdev_export; nbdev_export.__wrapped__()')
    assert differing(before, contents(package, '*.py'))==[], 'run nbdev-export'

def test_readme_is_the_index(checkout):
    before = contents(checkout)
    run(checkout, 'tools/build_readme.py')
    assert differing(before, contents(checkout))==[], 'run python tools/build_readme.py'
