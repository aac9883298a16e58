"A package that is installed brings a method, a source, a measure, a judge and an engine, and a study runs with them by name."
import importlib, json, os, shutil, subprocess, sys
import pytest
from compresscal import Study, parse_method
from compresscal.commands.cli import main
from compresscal.core.plugins import PluginError, source_fingerprint
from compresscal.compression.names import spell_method
from compresscal.experiments.engines import engine_from
from compresscal.hallucination.judges import parse_judge
from compresscal.experiments.study import read_study, write_toml

pytestmark = pytest.mark.usefixtures('one_thread')

project = '''
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "cc-five-kinds"
version = "0.1"
[tool.setuptools]
packages = ["five_kinds"]
[project.entry-points."compresscal.methods"]
fading = "five_kinds.things:Fading"
wanda = "five_kinds.things:Fading"
[project.entry-points."compresscal.sources"]
numbers = "five_kinds.things:numbers"
counted = "five_kinds.things:counted"
[project.entry-points."compresscal.measures"]
zeros = "five_kinds.things:Zeros"
[project.entry-points."compresscal.judges"]
brief = "five_kinds.things:brief"
missing = "five_kinds.things:Missing"
[project.entry-points."compresscal.engines"]
here = "five_kinds.things:Here"
odd = "five_kinds.things:NUMBER"
[project.entry-points."compresscal.callbacks"]
notes = "five_kinds.things:Notes"
'''
things = '''
import json
from dataclasses import dataclass
import torch
from compresscal import CalibrationSet, FunctionJudge, Local, Measure, Method
from compresscal.experiments.callbacks import StudyCallback
from .helpers import faded
NUMBER = 3

@dataclass(frozen=True)
class Fading(Method):
    factor: float
    @property
    def label(self): return f"Fading {self.factor:g}"
    def compress_layer(self, weight, statistics): return faded(weight, self.factor)

def numbers(n=200, split="calibration"):
    return [" ".join(f"{split}{i}and{j}" for j in range(40)) for i in range(n)]

def counted(tokenizer, n_sets, n_sequences, length, seed, start=3):
    rows = torch.arange(n_sets*n_sequences*length).reshape(n_sets, n_sequences, length)%len(tokenizer)
    return [CalibrationSet((o+start)%len(tokenizer), dict(name="counted")) for o in rows]

@dataclass(frozen=True)
class Zeros(Measure):
    below: float = 0.
    @property
    def name(self): return f"zeros:{self.below}" if self.below else "zeros"
    def settings(self): return dict(measure="zeros", below=self.below)
    def measure(self, model, tokenizer, text=None, reference=None, progress=False):
        found = sum(int((p.abs()<=self.below).sum()) for p in model.parameters())
        return dict(metrics=dict(zeros=float(found)), counts={}, documents={})

def brief(scale=1.):
    def f(sources, summaries): return [scale*len(o) for o in summaries]
    return FunctionJudge("brief", f, higher_is_better=None, settings=dict(scale=scale))

class Here(Local): "This process"

class Notes(StudyCallback):
    def __init__(self, file="notes.jsonl"): self.file = file
    def on_start(self, start): self.path = start.folder/self.file
    def on_cell(self, event):
        with self.path.open("a") as f: f.write(json.dumps([event.state, event.evaluation])+"\\n")
'''
helpers = 'def faded(weight, factor): return weight*factor\n'

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "A folder into which the package is installed, as pip does it, without a network"
    folder = tmp_path_factory.mktemp('plugin')
    package, target = folder/'project'/'five_kinds', folder/'site'
    package.mkdir(parents=True)
    (folder/'project'/'pyproject.toml').write_text(project)
    for name,text in dict(__init__='', things=things, helpers=helpers).items(): (package/f'{name}.py').write_text(text)
    pip = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--no-build-isolation', '--target', str(target), str(folder/'project')]
    subprocess.run(pip, check=True, capture_output=True)
    return target

@pytest.fixture
def installed(site, monkeypatch):
    monkeypatch.syspath_prepend(str(site))
    yield site
    for name in [o for o in sys.modules if o.startswith('five_kinds')]: del sys.modules[name]

def small(checkpoint, **changes):
    asked = dict(models=[str(checkpoint)], methods=['fading:0.5'], sources=['numbers:n=150', 'counted'], evaluations=['zeros'], n_sets=1, n_sequences=2, length=24, n_evaluation=2, replicates=0)
    return Study(**asked|changes)

def test_listing_imports_nothing(installed, capsys):
    assert main(['plugins'])==1 # one has the name of a built-in
    said = capsys.readouterr().out
    assert 'cc-five-kinds' in said and "'wanda' of cc-five-kinds 0.1" in said and 'five_kinds' not in sys.modules
    assert main(['plugins', '--check', '--json'])==1
    found = {o['name']: o['problem'] for o in json.loads(capsys.readouterr().out)['plugins']}
    assert {k for k,v in found.items() if not v}=={'fading', 'numbers', 'counted', 'zeros', 'brief', 'here', 'notes'}
    assert 'AttributeError' in found['missing'] and 'must be a class of engines' in found['odd'] and 'comes first' in found['wanda']
    assert all('\n' not in o for o in found.values())

def test_all_kinds_by_name(installed, tiny_checkpoint, tmp_path):
    measures = ['zeros', 'numbers', 'summaries:docstrings,n=2,max_tokens=4,prompt={document},judges=brief:scale=2']
    study = small(tiny_checkpoint, evaluations=measures)
    results = study.run(tmp_path/'study', engine='here', callbacks=['notes:file=seen.jsonl'], progress=False)
    rows = {(r['method'], r['evaluation'], r['metric']): r['value'] for r in results.rows}
    assert not results.failures and rows['Fading 0.5', 'zeros', 'zeros']==rows['dense', 'zeros', 'zeros']
    assert {'zeros', 'numbers', measures[2]}=={k[1] for k in rows} # the tiny model writes nothing that a judge could read
    assert parse_judge('brief:scale=2').score(['A text'], ['Text'], progress=False).values.tolist()==[8]
    decided = [json.loads(o.read_text())['decides']['measure'] for o in (tmp_path/'study'/'cells').iterdir()]
    judged, = {json.dumps(o['identity']['plugins']) for o in decided if o['measure']=='summaries'}
    assert json.loads(judged)['brief:scale=2']['place']=='five_kinds.things:brief'
    seen = [json.loads(o) for o in (tmp_path/'study'/'seen.jsonl').read_text().splitlines()]
    assert len(seen)==len([*(tmp_path/'study'/'cells').iterdir()]) and {o for o,_ in seen}=={'finished'}
    again, how = read_study(tmp_path/'study'/'study.toml') # written by its names, and read back
    assert (again.methods, again.sources, again.evaluations)==(study.methods, study.sources, study.evaluations)

def test_the_same_by_place(installed, tiny_checkpoint, tmp_path):
    method = parse_method('five_kinds.things:Fading:0.5')
    assert method==parse_method('fading:factor=0.5') and spell_method(method)=='fading:factor=0.5'
    assert engine_from('five_kinds.things:Here').threads is None
    study = small(tiny_checkpoint, methods=['five_kinds.things:Fading:0.5'], sources=['five_kinds.things:counted:start=5'], evaluations=['five_kinds.things:Zeros', 'kl:five_kinds.things:numbers'])
    assert not study.run(tmp_path/'study', progress=False).failures
    assert 'five_kinds.things:counted:start=5' in write_toml(study)

def test_a_command(installed, tiny_checkpoint, tmp_path, capsys):
    (tmp_path/'study.toml').write_text(f'''models = ["{tiny_checkpoint}"]
methods = ["fading:0.5"]
sources = ["numbers=0.5+counted=0.5"]
evaluations = ["zeros:0.01"]
engine = "here"
n_sets = 1
n_sequences = 2
length = 24
replicates = 0''')
    assert main(['study', str(tmp_path/'study.toml'), '--out', str(tmp_path/'study'), '--track', 'notes', '--quiet'])==0
    assert (tmp_path/'study'/'notes.jsonl').exists() and 'Fading 0.5' in capsys.readouterr().out
    words = ['study', '--model', str(tiny_checkpoint), '--method', 'fadin:0.5']
    assert main(words)==2 and "did you mean 'fading'" in capsys.readouterr().err

def test_workers_find_them(installed, tiny_checkpoint, tmp_path):
    study = small(tiny_checkpoint, sources=['counted'], evaluations=['zeros', 'summaries:docstrings,n=1,max_tokens=2,prompt={document},judges=brief'])
    results = study.run(tmp_path/'study', engine=engine_from('pool', workers=1, threads=1), progress=False)
    assert not results.failures and {r['evaluation'] for r in results.rows}=={*study.evaluations}

@pytest.mark.slow
def test_workers_of_a_cluster_find_them(installed, tiny_checkpoint, tmp_path, monkeypatch):
    pytest.importorskip('ray')
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(installed), os.environ.get('PYTHONPATH', '')]))
    study = small(tiny_checkpoint, sources=['counted'])
    assert not study.run(tmp_path/'study', engine=engine_from('ray', workers=1, threads=1), progress=False).failures

def test_another_version_is_computed_again(site, tiny_checkpoint, tmp_path, monkeypatch):
    "The class is the same, the function beside it is not; then the version alone"
    changed = shutil.copytree(site, tmp_path/'site')
    monkeypatch.syspath_prepend(str(changed))
    def run():
        "As another process would"
        for name in [o for o in sys.modules if o.startswith('five_kinds')]: del sys.modules[name]
        source_fingerprint.cache_clear()
        importlib.invalidate_caches()
        seen = []
        small(tiny_checkpoint, sources=['counted'], evaluations=['docs']).run(tmp_path/'study', callbacks=[seen.append], progress=False)
        return {o.method: o.state for o in seen}
    assert run()=={'dense': 'finished', 'Fading 0.5': 'finished'}
    assert run()=={'dense': 'stored', 'Fading 0.5': 'stored'}
    (changed/'five_kinds'/'helpers.py').write_text('def faded(weight, factor): return weight*factor*1.\n')
    assert run()=={'dense': 'stored', 'Fading 0.5': 'finished'}
    about = next(changed.glob('*.dist-info'))/'METADATA'
    about.write_text(about.read_text().replace('Version: 0.1', 'Version: 0.2'))
    about.parent.rename(changed/about.parent.name.replace('0.1', '0.2'))
    assert run()=={'dense': 'stored', 'Fading 0.5': 'finished'}

def test_what_is_ours_has_no_plugins_in_its_name(tiny_checkpoint, tmp_path):
    "Cells of built-in things are named as they were before there were plug-ins"
    study = small(tiny_checkpoint, methods=['magnitude:0.5'], sources=['docs'], evaluations=['code'])
    study.run(tmp_path/'study', progress=False)
    for path in (tmp_path/'study'/'cells').iterdir(): assert 'plugins' not in path.read_text()

def test_two_of_one_name(installed, tmp_path, monkeypatch):
    other = tmp_path/'other_things-1.0.dist-info'
    other.mkdir()
    (other/'METADATA').write_text('Metadata-Version: 2.1\nName: other-things\nVersion: 1.0\n')
    (other/'entry_points.txt').write_text('[compresscal.methods]\nfading = other_things:Fading\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PluginError, match=r'cc-five-kinds 0.1 \(five_kinds.things:Fading\) and other-things 1.0'): parse_method('fading:0.5')
    method = parse_method('five_kinds.things:Fading:0.5')
    assert spell_method(method)=='five_kinds.things:Fading:factor=0.5'

def test_sources_of_one_place_are_not_for_both(installed, tiny_checkpoint):
    with pytest.raises(ValueError, match='people wrote'): small(tiny_checkpoint, evaluations=['counted'])
    assert small(tiny_checkpoint, evaluations=['numbers:n=150']) # its parts are different texts
