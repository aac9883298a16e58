"Every notebook runs from top to bottom. Each has a process of its own: style, seeds and threads of one are not seen by the next."
import json, os, re, subprocess, sys
import pytest
from conftest import root

notebooks = sorted(o for o in (root/'nbs').rglob('*.ipynb') if not any(p[0] in '._' for p in o.relative_to(root/'nbs').parts))
cells = {o: json.loads(o.read_text(encoding='utf-8'))['cells'] for o in notebooks}
name = lambda o: o.relative_to(root/'nbs').with_suffix('').as_posix()
slow = [o for o in notebooks if any(re.search(r'^#\|\s*slow\b', ''.join(c['source']), re.M) for c in cells[o])]
# Where the slow tests follow, as in `.ci/run`, those run all cells of these
first = [o for o in notebooks if not (os.environ.get('SLOW_TESTS_FOLLOW') and o in slow)]

# Imports take longer than most notebooks. So one process imports what they share, and a copy of it runs each notebook.
server = """
import json, os, signal, sys, traceback
import compresscal.experiments.study, fastcore.test, matplotlib.pyplot, nbdev.showdoc
from nbdev.test import test_nb
for line in sys.stdin:
    notebook, force, out = json.loads(line)
    child = os.fork()
    if not child:
        signal.alarm(1800)
        said = os.open(out, os.O_WRONLY|os.O_CREAT)
        for o in (1, 2): os.dup2(said, o)
        ok = False
        try: ok = test_nb(notebook, skip_flags=['slow', 'gpu'], force_flags=force, basepath=os.getcwd())[0]
        except BaseException: traceback.print_exc()
        sys.stdout.flush(); sys.stderr.flush()
        os._exit(not ok)
    print(os.waitpid(child, 0)[1], flush=True)
"""

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "Let nbdev test a notebook, with the cells flagged `force` or without those flagged slow or gpu"
    # one thread: the number of threads changes the last bits of sums
    env = os.environ | dict(IN_TEST='1', OMP_NUM_THREADS='1', OMP_WAIT_POLICY='passive', PYTHONPATH=str(root))
    with subprocess.Popen([sys.executable, '-c', server], cwd=root, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        def run(notebook, force=()):
            said = tmp_path_factory.mktemp('said')/'said.txt'
            print(json.dumps([str(notebook), list(force), str(said)]), file=process.stdin, flush=True)
            status = process.stdout.readline().strip()
            assert status=='0', f'{notebook} failed with status {status}:\n{said.read_text(errors="replace")[-8000:] if said.exists() else ""}'
        yield run
        process.stdin.close()

@pytest.mark.parametrize('source', ['assert 1==2', 'raise SystemExit(0)', 'import os, signal; os.kill(os.getpid(), signal.SIGKILL)'])
def test_a_failure_is_seen(source, run, tmp_path):
    cell = dict(cell_type='code', id='one', metadata={}, outputs=[], execution_count=None, source=source)
    spec = dict(kernelspec=dict(display_name='python3', language='python', name='python3'))
    (tmp_path/'fails.ipynb').write_text(json.dumps(dict(cells=[cell], metadata=spec, nbformat=4, nbformat_minor=5)))
    with pytest.raises(AssertionError, match='fails.ipynb failed with status'): run(tmp_path/'fails.ipynb')

@pytest.mark.parametrize('notebook', first, ids=name)
def test_notebook(notebook, run): run(notebook)

@pytest.mark.slow
@pytest.mark.parametrize('notebook', slow, ids=name)
def test_notebook_with_slow_cells(notebook, run): run(notebook, ['slow'])

@pytest.mark.parametrize('notebook', notebooks, ids=name)
def test_outputs_are_committed(notebook):
    "The site shows committed outputs: something is shown, and no cell ended in an error or wrote a warning"
    bad = [(c['id'], o.get('ename') or ''.join(o['text'])[:300]) for c in cells[notebook] for o in c.get('outputs', [])
           if o['output_type']=='error' or o.get('name')=='stderr']
    assert not bad, f'outputs that a reader should not see: {bad}'
    code = [c for c in cells[notebook] if c['cell_type']=='code']
    assert not code or any(c['outputs'] for c in code), 'committed without outputs: run it, then nbdev-clean'

@pytest.mark.parametrize('notebook', notebooks, ids=name)
def test_figures_are_committed(notebook):
    "A cell with a caption shows a figure"
    captioned = [c for c in cells[notebook] if re.search(r'^#\|\s*fig-cap:', ''.join(c['source']), re.M)]
    kinds = {c['id']: {k for o in c['outputs'] for k in o.get('data', {})} for c in captioned}
    assert not [k for k,v in kinds.items() if not v & {'image/png', 'image/svg+xml', 'text/html'}]
