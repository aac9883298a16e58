"Every notebook runs from top to bottom. Each has a process of its own: style, seeds and threads of one are not seen by the next."
import json, os, re, subprocess, sys
import pytest
from conftest import root

notebooks = sorted(o for o in (root/'nbs').rglob('*.ipynb') if not any(p[0] in '._' for p in o.relative_to(root/'nbs').parts))
cells = {o: json.loads(o.read_text(encoding='utf-8'))['cells'] for o in notebooks}
name = lambda o: o.relative_to(root/'nbs').with_suffix('').as_posix()
slow = [o for o in notebooks if any(re.search(r'^#\|\s*slow\b', ''.join(c['source']), re.M) for c in cells[o])]

def run(notebook, force=()):
    "Let nbdev test a notebook, with the cells flagged `force` or without those flagged slow or gpu"
    code = ("import sys; from pathlib import Path; from nbdev.test import test_nb; "
            f"ok,_ = test_nb({str(notebook)!r}, skip_flags=['slow', 'gpu'], force_flags={list(force)!r}, basepath={str(root)!r}); sys.exit(not ok)")
    # one thread: the number of threads changes the last bits of sums
    env = os.environ | dict(IN_TEST='1', OMP_NUM_THREADS='1', PYTHONPATH=str(root))
    res = subprocess.run([sys.executable, '-c', code], cwd=root, env=env, capture_output=True, text=True, timeout=1800)
    assert not res.returncode, f'{name(notebook)} failed:\n{res.stdout[-2000:]}\n{res.stderr[-6000:]}'

@pytest.mark.parametrize('notebook', notebooks, ids=name)
def test_notebook(notebook): run(notebook)

@pytest.mark.slow
@pytest.mark.parametrize('notebook', slow, ids=name)
def test_notebook_with_slow_cells(notebook): run(notebook, ['slow'])

@pytest.mark.parametrize('notebook', notebooks, ids=name)
def test_outputs_are_committed(notebook):
    "The site shows committed outputs: something is shown, and no cell ended in an error or wrote a warning"
    bad = [(c['id'], o.get('ename') or ''.join(o['text'])[:300]) for c in cells[notebook] for o in c.get('outputs', [])
           if o['output_type']=='error' or o.get('name')=='stderr']
    assert not bad, f'outputs that a reader should not see: {bad}'
    code = [c for c in cells[notebook] if c['cell_type']=='code']
    assert not code or any(c['outputs'] for c in code), 'committed without outputs: run it, then nbdev-clean'
