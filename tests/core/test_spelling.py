"Names of text: files, words that say what files are, and what is missing."
import pytest
from compresscal.core.spelling import PLAIN_FILES, bare_path, check_measure_name, check_source_name, is_path, say_format

def test_text_of_any_suffix_has_a_name(tmp_path):
    for o in (*PLAIN_FILES, '.tex'): (tmp_path/f'a{o}').write_text('text')
    for o in PLAIN_FILES: check_source_name(str(tmp_path/f'a{o}'))
    said = f"text:{tmp_path/'a.tex'}"
    for o in (said, f'random:{said}', f'{said}=0.5+docs=0.5'): check_source_name(o)
    for o in (said, f'kl:{said}', f'gptq:{said},length=64'): check_measure_name(o)
    with pytest.raises(ValueError, match='if that is text, say so: .text:'): check_source_name(bare_path(said))

@pytest.mark.parametrize('name', ['no/such.utf8', './nothing', 'nothing.foo', 'text:no/such', 'random:text:nothing',
                                  'docs=0.5+nothing.md=0.5'])
def test_a_missing_file_is_named(name):
    with pytest.raises(ValueError, match='`source` must be a file or folder that exists'): check_source_name(name)

def test_empty_text_is_refused(tmp_path):
    (tmp_path/'a.tex').touch()
    with pytest.raises(ValueError, match='is empty'): check_source_name(f"text:{tmp_path/'a.tex'}")

@pytest.mark.parametrize('name,path', [('allenai/c4', False), ('owner/name-v1.5', False), ('owner/name.v2', False), ('docs', False),
                                       ('kl:docs', False), ('self:t_final=0.5', False), ('paper.tex', True), ('text:docs', True)])
def test_paths_and_addresses(tmp_path, monkeypatch, name, path):
    monkeypatch.chdir(tmp_path)
    assert is_path(name)==path

def test_a_format_is_written_into_names():
    assert say_format('./a.tex=0.5+random:./b.log=0.3+docs=0.2', 'text')=='text:./a.tex=0.5+random:text:./b.log=0.3+docs=0.2'
    assert say_format(say_format('./a.tex', 'text'), 'text')=='text:./a.tex'
    for name in ('docs', 'random', 'self', 'allenai/c4'):
        with pytest.raises(ValueError, match='which names none'): say_format(name, 'text')
