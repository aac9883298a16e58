"The sdist and the wheel build, carry what they should, and install into an empty environment."
import subprocess, sys, tarfile, venv, zipfile
import pytest
from conftest import copy_checkout, outside_tests, root, source_files

pytestmark = pytest.mark.slow

def run(*args, cwd): return subprocess.run(args, cwd=cwd, env=outside_tests(cwd) | dict(PYTHONPATH=''), capture_output=True, text=True)

@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "The sdist, and the wheel made from it"
    folder = tmp_path_factory.mktemp('packages')
    checkout = copy_checkout(folder/'checkout')
    res = run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', str(folder/'dist'), cwd=checkout)
    assert not res.returncode, res.stdout[-2000:]+res.stderr[-4000:]
    return next((folder/'dist').glob('*.tar.gz')), next((folder/'dist').glob('*.whl'))

def test_wheel_holds_the_package(built):
    "Modules and the embedded model, and nothing from outside the package"
    names = {o for o in zipfile.ZipFile(built[1]).namelist() if '.dist-info/' not in o}
    assert names=={o.as_posix() for o in source_files() if o.parts[0]=='compresscal'}

def test_sdist_holds_the_sources(built):
    "What building needs, and the notebooks and tests"
    names = {o.partition('/')[2] for o in tarfile.open(built[0]).getnames()}
    assert {'settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'constraints.txt', 'nbs/index.ipynb', 'tests/conftest.py', 'tools/build_site.py'} <= names
    assert {o.as_posix() for o in source_files() if o.parts[0]=='compresscal'} <= names
    assert not [o for o in names if '__pycache__' in o or o.startswith(('_proc', '_docs', '_sphinx'))]

@pytest.mark.parametrize('kind', [0, 1], ids=['sdist', 'wheel'])
def test_installs_into_an_empty_environment(built, kind, tmp_path):
    venv.create(tmp_path/'env', with_pip=False)
    python = str(tmp_path/'env'/'bin'/'python')
    if kind==0: # building needs setuptools, which an empty environment lacks
        res = run(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', str(tmp_path), str(built[0]), cwd=tmp_path)
        assert not res.returncode, res.stderr[-4000:]
    package = built[1] if kind else next(tmp_path.glob('*.whl'))
    res = run(sys.executable, '-m', 'pip', '--python', python, 'install', '-q', '--no-deps', str(package), cwd=tmp_path)
    assert not res.returncode, res.stderr[-4000:]
    code = ("import sys, compresscal; from pathlib import Path; folder = Path(compresscal.__file__).parent; "
            "print(compresscal.__version__, sys.prefix in str(folder), *sorted(o.name for o in (folder/'embedded').glob('*')))")
    res = run(python, '-c', code, cwd=tmp_path)
    assert not res.returncode, res.stderr
    version, inside, *embedded = res.stdout.split()
    assert inside=='True' and f'-{version}-' in built[1].name
    assert embedded==sorted(o.name for o in (root/'compresscal'/'embedded').glob('*'))
    assert (tmp_path/'env'/'bin'/'compresscal').exists()
