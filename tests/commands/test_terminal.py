"What a terminal shows: tables, panels and colours, and nothing that names and texts could make it do"
import io, os, re, subprocess, sys

import pytest
from conftest import outside_tests, root

from compresscal.commands.cli import main
from compresscal.commands.console import CommandAnswer, ResultTable, answer_of

NASTY = '[bold]x[/bold] [link=http://x]y[/link] :smile: \x1b[31mred\x07\r\u202e|'
SPELLED = r'[bold]x[/bold] [link=http://x]y[/link] :smile: \x1b[31mred\x07\r\u202e|'

class Terminal(io.StringIO):
    def isatty(self): return True

@pytest.fixture
def terminal(monkeypatch):
    "Runs a command in a terminal; its exit code, and what stands on the two streams"
    for name in ('NO_COLOR', 'FORCE_COLOR'): monkeypatch.delenv(name, raising=False)
    for name,value in dict(TERM='xterm-256color', COLUMNS='200').items(): monkeypatch.setenv(name, value)
    for name in ('TQDM_ASCII', 'TQDM_COLOUR'): monkeypatch.setenv(name, 'kept') # what you set yourself stays
    def run(*line):
        with monkeypatch.context() as m:
            out, err = Terminal(), Terminal()
            m.setattr(sys, 'stdout', out)
            m.setattr(sys, 'stderr', err)
            return main([*line]), out.getvalue(), err.getvalue()
    return run

def answers(monkeypatch, tmp_path, answer):
    "Let `sample` answer so"
    from compresscal.commands import drawing
    monkeypatch.chdir(tmp_path)
    def drawn(**kwargs):
        if isinstance(answer, Exception): raise answer
        return answer
    monkeypatch.setattr(drawing, 'draw_sets', drawn)

def test_nasty_names_are_shown_and_not_obeyed(terminal, monkeypatch, tmp_path):
    rows = [['', NASTY, 'sets'], [NASTY, '1', '2']]
    answers(monkeypatch, tmp_path, answer_of([f'text {NASTY}', ResultTable(rows, f'title {NASTY}')], {}, note=f'note {NASTY}'))
    code, out, err = terminal('sample', 'docs')
    assert code==0 and out.count(SPELLED)==4 and err.count(SPELLED)==1 # a text, a title and two cells; a note
    for said in out, err: assert not {'\x07', '\r', '\u202e'}&{*said} and '\x1b[31m' not in said and '\x1b]8' not in said

def test_nasty_errors(terminal, monkeypatch, tmp_path):
    answers(monkeypatch, tmp_path, OSError(NASTY))
    code, out, err = terminal('sample', 'docs')
    assert code==1 and SPELLED in err and not out and not {'\x07', '\u202e'}&{*err} and '\x1b[31m' not in err

def test_a_table_has_the_width_of_the_terminal(terminal, monkeypatch, tmp_path):
    rows = [['x', *(f'column {i}' for i in range(30))], ['row', *map(str, range(30))]]
    answers(monkeypatch, tmp_path, answer_of([ResultTable(rows)], {}))
    for width in (40, 120):
        monkeypatch.setenv('COLUMNS', str(width))
        plain = re.sub(r'\x1b\[[\d;]*m', '', terminal('sample', 'docs')[1])
        assert width-20<max(map(len, plain.splitlines()))<=width and all(f'column {i}' in plain for i in range(30))

def test_a_text_without_tables_is_shown_whole(terminal, monkeypatch, tmp_path):
    answers(monkeypatch, tmp_path, CommandAnswer('word '*200, {}))
    assert 'word '*200 in terminal('sample', 'docs')[1]

def test_no_color(terminal, monkeypatch, tmp_path):
    answers(monkeypatch, tmp_path, answer_of([ResultTable([['', 'a'], ['x', '1']])], {}))
    colour = re.compile(r'\x1b\[(?:\d+;)*3\d')
    assert colour.search(terminal('sample', 'docs')[1]) and colour.search(terminal('sample', 'dogs')[2])
    monkeypatch.setenv('NO_COLOR', '1')
    assert not colour.search(terminal('sample', 'docs')[1]) and not colour.search(terminal('sample', 'dogs')[2])

def test_json_is_the_same_in_a_terminal(terminal, monkeypatch, tmp_path):
    answers(monkeypatch, tmp_path, answer_of(['text'], dict(name=NASTY)))
    import json
    assert json.loads(terminal('sample', 'docs', '--json')[1])==dict(name=NASTY, code=0)

def test_help_is_in_panels_in_a_terminal_alone(monkeypatch, capsys):
    with pytest.raises(SystemExit): main(['study', '--help'])
    assert not {'╭', '\x1b'}&{*capsys.readouterr().out}
    said = Terminal()
    monkeypatch.setattr(sys, 'stdout', said)
    with pytest.raises(SystemExit): main(['study', '--help'])
    assert '╭' in said.getvalue() and '--evaluation-sequences' in re.sub(r'\x1b\[[\d;]*m', '', said.getvalue())

def completed(line):
    "What a shell offers for the last word of a line"
    words = line.split(' ')
    env = outside_tests(root)|dict(_COMPRESSCAL_COMPLETE='complete_bash', COMP_WORDS=line, COMP_CWORD=str(len(words)-1))
    return subprocess.run([sys.executable, '-c', 'from compresscal.commands.cli import main; main()'], env=env, capture_output=True, text=True).stdout.split()

@pytest.mark.parametrize('line, offers', [('compresscal s', ['study', 'sample', 'summarize']), ('compresscal study --methods sp', ['sparsegpt:', 'spqr:']), ('compresscal sample wiki', ['wikipedia', 'wikitext']),
    ('compresscal generate carl', ['carlini']), ('compresscal study impact', ['impact:cpu', 'impact:full']), ('compresscal vocabulary re', ['report', 'reduce', 'restore']), ('compresscal study --evaluation-', ['--evaluation-sequences'])])
def test_words_are_completed(line, offers): assert completed(line)==offers

def test_a_shell_gets_its_script():
    env = outside_tests(root)|dict(_COMPRESSCAL_COMPLETE='source_bash')
    said = subprocess.run([sys.executable, '-c', 'from compresscal.commands.cli import main; main()'], env=env, capture_output=True, text=True).stdout
    assert 'complete -o default' in said and 'compresscal' in said

def test_bars_look_alike_in_a_terminal(terminal, monkeypatch, tmp_path):
    answers(monkeypatch, tmp_path, CommandAnswer('', {}))
    for name in ('TQDM_ASCII', 'TQDM_COLOUR'): monkeypatch.delenv(name)
    terminal('sample', 'docs')
    look = {k: os.environ.pop(k, None) for k in ('TQDM_ASCII', 'TQDM_COLOUR')}
    assert look==dict(TQDM_ASCII=' ╸━', TQDM_COLOUR='cyan')
