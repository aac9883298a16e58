"The commands that write and compare summaries: files are whole or absent, mistakes are told before work, what was finished is kept."
import json, re
from types import SimpleNamespace
import numpy as np
import pandas as pd
import pytest
from dataclasses import replace
from compresscal.summaries import answers
from compresscal.commands import summarizing
from compresscal.commands.cli import main
from compresscal.summaries.summarize import load_summaries
from compresscal.hallucination.hallucination import DENSE, Hallucination, System, summary_pictures, summary_tables
from compresscal.hallucination.reviews import Review
from compresscal.hallucination.qualification import JUDGE_RULES, JudgeCheck, Qualification
from compresscal.hallucination.risk import Metric
from compresscal.commands.summarizing import _page, _write, compare_summaries, write_summaries

pytestmark = pytest.mark.usefixtures('one_thread')

@pytest.fixture
def documents(tmp_path):
    rows = [dict(id=f'd{i}', document=f'The {w} stands on hill number {i}. It is old.', reference=f'An old {w}.') for i,w in enumerate('house tower tree stone barn mill gate wall'.split())]
    (tmp_path/'documents.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    return str(tmp_path/'documents.jsonl')

HOW = dict(max_tokens=8, prompt='document', progress=False)

def test_written_compared_and_kept(tiny_checkpoint, documents, tmp_path, capsys):
    a, b = (str(tmp_path/f'{o}.jsonl') for o in 'ab')
    first = write_summaries(str(tiny_checkpoint), a, documents, **HOW)
    assert first.data['summaries']==8 and first.data['file']==a and not list(tmp_path.glob('.*'))
    write_summaries(str(tiny_checkpoint), b, documents, temperature=1., seed=3, **HOW)
    assert load_summaries(b).settings['sampling'] and load_summaries(a).settings['sampling'] is None and load_summaries(a).texts!=load_summaries(b).texts
    judge = f'harim:decoder,model={tiny_checkpoint},prompt=document,target_length=32'
    assert main(['hallucination', a, f'Wanda 50%={b}', f'Wanda 50%={a}', '--judges', judge, '--out', str(tmp_path/'found'), '--json', '--quiet'])==0
    said = json.loads(capsys.readouterr().out)
    row = next(o for o in said['risk'] if o['metric']=='harim:decoder' and o['method']=='Wanda 50%')
    assert row['sets']==2 and said['systems'][0]['method']=='dense'
    assert 'summaries.csv' in {o.name for o in (tmp_path/'found').iterdir()} and not list(tmp_path.glob('.found*'))

def test_an_interrupted_command_goes_on(tiny_checkpoint, documents, tmp_path, monkeypatch):
    "Batches that were finished are not written again, and the file is the same"
    whole = tmp_path/'whole.jsonl'
    write_summaries(str(tiny_checkpoint), whole, documents, batch_size=8, **HOW)
    write, calls = answers._write, []
    def failing(*args):
        calls.append(len(args[1]))
        if len(calls)==2: raise KeyboardInterrupt
        return write(*args)
    monkeypatch.setattr(answers, '_write', failing)
    with pytest.raises(KeyboardInterrupt): write_summaries(str(tiny_checkpoint), tmp_path/'parts.jsonl', documents, batch_size=4, **HOW)
    assert not (tmp_path/'parts.jsonl').exists() and (tmp_path/'.parts.jsonl.answers').is_dir()
    write_summaries(str(tiny_checkpoint), tmp_path/'parts.jsonl', documents, batch_size=4, **HOW)
    assert calls==[4, 4, 4] and load_summaries(tmp_path/'parts.jsonl').texts==load_summaries(whole).texts and not (tmp_path/'.parts.jsonl.answers').exists()

@pytest.mark.parametrize('changes,says', [(dict(documents='docstring'), "did you mean 'docstrings'"), (dict(prompt='afer'), "did you mean 'after'"), (dict(temperature=-1.), 't_final'),
                                          (dict(name='embeded'), "did you mean 'embedded'"), (dict(n=99), 'at most'), (dict(max_tokens=10**6), '`max_tokens`')])
def test_mistakes_leave_nothing(tiny_checkpoint, documents, tmp_path, changes, says):
    with pytest.raises(ValueError, match=says): write_summaries(**dict(dict(name=str(tiny_checkpoint), out=tmp_path/'x.jsonl', documents=documents, **HOW), **changes))
    assert not [o for o in tmp_path.iterdir() if 'x.jsonl' in o.name]

def test_files_are_looked_at_first(tiny_checkpoint, documents, tmp_path):
    a = tmp_path/'a.jsonl'
    write_summaries(str(tiny_checkpoint), a, documents, **HOW)
    write_summaries(str(tiny_checkpoint), tmp_path/'few.jsonl', documents, n=3, **HOW)
    (tmp_path/'broken.jsonl').write_text(a.read_text()[:-20])
    for files,says in (([a], 'got 1'), ([a, tmp_path/'few.jsonl'], 'same documents'), ([a, tmp_path/'broken.jsonl'], 'whole file'), ([a, tmp_path/'none.jsonl'], 'No such file')):
        with pytest.raises(ValueError, match=says): compare_summaries(list(map(str, files)), out=tmp_path/'found', progress=False)
    with pytest.raises(ValueError, match="did you mean 'harim'"): compare_summaries([str(a), str(a)], ['harimm'], progress=False)
    assert not (tmp_path/'found').exists() and not list(tmp_path.glob('.found*'))

def test_exit_codes(documents, tmp_path, capsys):
    assert main(['summarize', 'embedded', '--documents', 'nothing-such', '--out', str(tmp_path/'x.jsonl')])==2
    assert 'docstrings' in capsys.readouterr().err
    assert main(['hallucination', str(tmp_path/'none.jsonl'), str(tmp_path/'none.jsonl')])==2
    assert main(['summarise', 'embedded'])==2 and "did you mean 'summarize'" in capsys.readouterr().err

# ---- Before work

@pytest.mark.parametrize('place', ['', 'file.txt', 'file.txt/in.jsonl'])
def test_a_file_that_cannot_be_written_is_seen_first(place, tmp_path, monkeypatch):
    monkeypatch.setattr(summarizing, 'open_summary_set', lambda *args, **kwargs: pytest.fail('read'))
    (tmp_path/'file.txt').write_text('')
    with pytest.raises((ValueError, OSError)): write_summaries('embedded', tmp_path/place)

def test_a_page_that_cannot_be_written_is_seen_first(tmp_path, monkeypatch):
    monkeypatch.setattr(summarizing, 'load_summaries', lambda path: pytest.fail('read'))
    (tmp_path/'full').mkdir()
    (tmp_path/'full'/'a').write_text('')
    for out,says in (('full', 'new or empty'), ('full/a', 'new or empty'), ('full/a/b', 'no folder')):
        with pytest.raises((ValueError, OSError), match=says): compare_summaries(['a', 'b'], out=tmp_path/out)

@pytest.mark.parametrize('given, says', [(dict(worst=-1), '`worst` must be a whole number, 0 or more, got -1'), (dict(worst=1.5), '`worst` must be'), (dict(worst=True), '`worst` must be'),
                                         (dict(splitter='nonsense'), "`splitter` must be one of 'rules'")])
def test_what_cannot_be_is_refused(given, says, tmp_path, monkeypatch):
    monkeypatch.setattr(summarizing, 'load_summaries', lambda path: pytest.fail('read'))
    with pytest.raises(ValueError, match=says): compare_summaries(['a', 'b'], out=tmp_path/'out', **given)

def test_what_does_nothing_is_refused(tiny_checkpoint, documents, tmp_path):
    with pytest.raises(ValueError, match='`worst` must not be given without a page'): compare_summaries(['a', 'b'], worst=2)
    (tmp_path/'bare.jsonl').write_text('{"id": "1", "document": "The old house stands."}\n')
    write_summaries(str(tiny_checkpoint), tmp_path/'a.jsonl', str(tmp_path/'bare.jsonl'), **HOW)
    with pytest.raises(ValueError, match='`bertscore` must not be given for summaries without references'):
        compare_summaries([str(tmp_path/'a.jsonl')]*2, bertscore='embedded', progress=False)

@pytest.mark.parametrize('given', [dict(max_tokens=0), dict(batch_size=0)])
def test_numbers_are_looked_at_before_the_model(given, documents, tmp_path, monkeypatch):
    monkeypatch.setattr(summarizing, 'find_model', lambda *args, **kwargs: pytest.fail('loaded'))
    with pytest.raises(ValueError, match=f'`{next(iter(given))}`'): write_summaries('embedded', tmp_path/'x.jsonl', documents, **given)

# ---- Which file it is

def test_files_of_other_documents_are_named(tiny_checkpoint, documents, tmp_path):
    write_summaries(str(tiny_checkpoint), tmp_path/'a.jsonl', documents, **HOW)
    write_summaries(str(tiny_checkpoint), tmp_path/'few.jsonl', documents, n=3, **HOW)
    with pytest.raises(ValueError) as e: compare_summaries([str(tmp_path/'a.jsonl'), f"pruned={tmp_path/'few.jsonl'}"], progress=False)
    assert all(o in str(e.value) for o in ('few.jsonl', "3 documents of the set 'documents'", '8 documents', '3 of them are the same'))

def test_summaries_that_were_made_otherwise_are_mentioned(tiny_checkpoint, documents, tmp_path):
    write_summaries(str(tiny_checkpoint), tmp_path/'a.jsonl', documents, **HOW)
    write_summaries(str(tiny_checkpoint), tmp_path/'b.jsonl', documents, **HOW|dict(max_tokens=4))
    said = compare_summaries([str(tmp_path/'a.jsonl'), str(tmp_path/'b.jsonl')], progress=False)
    assert "b.jsonl was written with another max_tokens than the dense model's: 4, not 8" in said.note and said.data['notes']
    assert 'by the dense model itself' in said.note

def test_what_a_model_writes_reaches_the_terminal_as_text(tiny_checkpoint, documents, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(summarizing, 'summarize', lambda *args, **kwargs: some())
    code = main(['summarize', str(tiny_checkpoint), '--documents', documents, '--out', str(tmp_path/'x.jsonl')])
    assert code==0 and '\x1b' not in capsys.readouterr().out

def some():
    import numpy as np
    from compresscal.summaries.summarize import Summaries
    from compresscal.summaries.summary_sets import SummaryDocument
    flag, text = np.ones(1, dtype=bool), 'One\x1b[2J text.'
    return Summaries((SummaryDocument('a\x1b[31m', text, None, 'own', {}),), (text,), (text,), ~flag, np.ones(1, dtype=int), flag, ('',), dict(max_tokens=8))

# ---- The page

NASTY = 'a|b<i>\x1b[31m'

def compared(n=12, name='Magnitude 50%', source=None, text=None):
    "Two reviews of made-up documents, and the summaries that the page shows"
    source = source or ' '.join(f'word{i}' for i in range(1000))+' the last word.'
    def made(seed):
        rng = np.random.default_rng(seed)
        columns = {k: rng.random(n) for k in ('coverage', 'density', 'rouge2_precision', 'unsupported', 'rouge1_reference_f', 'good')}
        about = dict(dataset='set', id=[f'd{i}' for i in range(n)], flag='', words=8., source_words=1003.)
        return Review(pd.DataFrame(about|columns), dict(good=Metric('good', name, (0, 1))), dict(judges=dict(good={})), (), (text or 'Nothing like it',)*n)
    passed = Qualification('good', {}, tuple(JudgeCheck(k, .5, max(o.above, -.1)+.01, min(o.below, .95)-.01, n) for k,o in JUDGE_RULES.items()), dict(collection='a test'))
    study = Hallucination({DENSE: made(0), System(name): made(1)}, qualifications=[passed])
    written = SimpleNamespace(documents=[SimpleNamespace(id=f'd{i} {name}') for i in range(n)], texts=[text or 'Nothing like it']*n, sources=[source]*n)
    return study, {k: [written] for k in study.reviews}

@pytest.mark.parametrize('text', ['Nothing like it', 'It says word10 word11 word12 word13'])
def test_a_document_can_be_read_whole(text):
    "Whatever a summary copies, and if it copies nothing"
    study, found = compared(text=text)
    page = _page(study, [], {}, found, 1)
    assert page.count('the last word.')==2 and page.count('word700 word701')==2
    assert ('[…]' in page or ' […] ' in page)==('word10' in text) and page.count('<details>')==2*('word10' in text)
    assert 'Nothing of it stands in the document' in page or 'word10' in text

def test_one_model_is_one(): assert '12 documents, 1 compressed model<' in _page(*(lambda study, found: (study, [], {}, found, 1))(*compared()))

def test_a_page_of_names_that_are_not_obeyed(tmp_path):
    study, found = compared(name=NASTY, text=f'It is {NASTY} word10 word11 word12')
    _write(tmp_path/'found', study, summary_tables(study), found, 1)
    page, tables = ((tmp_path/'found'/o).read_text() for o in ('hallucination.html', 'tables.md'))
    assert '\x1b' not in page+tables and '<i>' not in page+tables and '&lt;i&gt;' in page and '&lt;i&gt;' in tables
    assert 'name="viewport" content="width=device-width,initial-scale=1"' in page and 'prefers-color-scheme:dark' in page

def test_a_phone_shows_the_page(width):
    study, found = compared(text='It says word10 word11 word12 word13 Berlin', source='x'*400+' word10 word11 word12 word13. '*200)
    wide, seen = width(_page(study, summary_tables(study), summary_pictures(study), found, 1))
    assert wide==seen<=390

def test_two_models_are_no_curve():
    study = compared()[0]
    found = summary_pictures(study)
    assert 'Bar below' in found['summaries'].caption and any(k.startswith('overlap') for k in found)
    nobody = replace(study, qualifications=[])
    assert not nobody.associations and nobody.risk.p.isna().all() and study.risk.p.notna().any()
    few = compared(n=3)[0]
    assert not few.associations and not any(k.startswith('overlap') for k in summary_pictures(few)) and len(summary_tables(few))==3
    assert all('between systems' not in set(o.table.statistic) for o in study.associations.values())

def test_a_judge_who_is_not_qualified_is_pale():
    study, found = compared()
    page = _page(replace(study, qualifications=[]), summary_tables(replace(study, qualifications=[])), {}, found, 1)
    assert 'class=pale' in page and page.count('(not qualified)')>4 and 'nobody has asked' in page
    own = re.findall(r'>([^<>]*) \(not qualified\)<', _page(study, summary_tables(study), {}, found, 1))
    assert own and all('unsupported' in o for o in own) # nobody has asked this one
