"Summaries in a file and on a screen: damage is named, settings are complete, names and texts are shown as they are."
import gzip, json
import numpy as np
import pytest
from compresscal.summaries.summarize import Summaries, load_summaries, summarize
from compresscal.summaries.summary_sets import SummaryDocument

nasty = 'a|b<i>\x1b[31m'

def some(settings=None, text='It is old.'):
    "Three summaries, made by hand"
    documents = tuple(SummaryDocument(f'{nasty}{i}', f'The house number {i}.', None, 'own', {}) for i in range(3))
    flags = np.ones(3, dtype=bool)
    return Summaries(documents, (text,)*3, tuple(o.text for o in documents), ~flags, np.arange(3), flags, ('',)*3, settings or dict(max_tokens=8))

@pytest.fixture
def kept(tmp_path):
    some().save(tmp_path/'a.jsonl')
    return tmp_path/'a.jsonl'

def changed(path, change):
    lines = path.read_bytes().split(b'\n')
    change(lines)
    path.write_bytes(b'\n'.join(lines))

def swap(lines): lines[1], lines[2] = lines[2], lines[1]
def set_format(path, name): path.write_bytes(path.read_bytes().replace(b'compresscal summaries 1', name))

DAMAGE = { # What is done to a file -> what is said of it
    'zipped': (lambda p: p.write_bytes(gzip.compress(p.read_bytes())), 'is compressed with gzip'),
    'binary': (lambda p: p.write_bytes(bytes(range(256))), 'is not JSON Lines'),
    'empty': (lambda p: p.write_bytes(b''), 'is empty'),
    'within a line': (lambda p: p.write_bytes(p.read_bytes()[:-20]), 'ends within line 4'),
    'within the first': (lambda p: p.write_bytes(p.read_bytes()[:30]), 'ends within line 1'),
    'after a line': (lambda p: changed(p, lambda o: o.pop(3)), 'has 2 summaries where its first line says 3'),
    'edited': (lambda p: p.write_bytes(p.read_bytes().replace(b'number 1', b'number 7')), 'line 3 was changed'),
    'no JSON': (lambda p: changed(p, lambda o: o.__setitem__(2, o[2][:-2])), 'line 3 was changed: it is no JSON'),
    'settings': (lambda p: p.write_bytes(p.read_bytes().replace(b'"max_tokens": 8', b'"max_tokens": 9')), 'line 1 was changed'),
    'order': (lambda p: changed(p, swap), 'order'),
    'other rows': (lambda p: p.write_text('{"id": 1, "text": "A."}\n'), r'holds other rows, with id, text'),
    'a list': (lambda p: p.write_text('[1, 2]\n'), 'is not JSON Lines of objects'),
    'older': (lambda p: set_format(p, b'compresscal summaries 0'), "format 'compresscal summaries 0'"),
    'other format': (lambda p: set_format(p, b'something else 1'), "format 'something else 1'")}

@pytest.mark.parametrize('name', DAMAGE)
def test_damage_is_named(kept, name):
    damage, says = DAMAGE[name]
    damage(kept)
    with pytest.raises(ValueError, match=says): load_summaries(kept)

def test_files_without_a_hash_of_each_line_are_read(kept):
    "As versions before have written them"
    head, *rows = [json.loads(o) for o in kept.read_text().splitlines()]
    for o in (head, *rows): o.pop('hash', None)
    import hashlib
    body = ''.join(json.dumps(o)+'\n' for o in rows)
    kept.write_text(json.dumps(head|dict(digest=hashlib.blake2b(body.encode(), digest_size=16).hexdigest()))+'\n'+body)
    assert load_summaries(kept).texts==some().texts
    kept.write_text(kept.read_text().replace('number 1', 'number 7'))
    with pytest.raises(ValueError, match='a line was changed'): load_summaries(kept)

def test_names_and_texts_are_shown_as_they_are():
    found = some(text='One </td>|two\x1b[2J')
    shown = found._repr_markdown_()
    assert '\x1b' not in shown and '<i>' not in shown and '</td>' not in shown
    assert {o.replace(r'\|', '').count('|') for o in shown.splitlines() if o.startswith('|')}=={4}
    assert '\x1b' not in repr(found) and '<i>' in repr(found)

def test_settings_say_all_that_decides(tiny_model, tiny_tokenizer):
    import copy
    tokenizer = copy.deepcopy(tiny_tokenizer)
    plain = summarize(tiny_model, tokenizer, ['One.'], prompt='document', max_tokens=2, progress=False).settings
    assert plain['chat_template'] is None and plain['tokenizer'] and plain['generation'] and plain['dtype']=='float32'
    tokenizer.chat_template = '{% for m in messages %}{{m.content}}{% endfor %}'
    a = summarize(tiny_model, tokenizer, ['One.'], prompt='document', max_tokens=2, progress=False).settings
    tokenizer.chat_template += '!'
    b = summarize(tiny_model, tokenizer, ['One.'], prompt='document', max_tokens=2, progress=False).settings
    assert a['chat_template'] and b['chat_template'] not in (None, a['chat_template'])
    tiny_model.generation_config.eos_token_id = 5
    assert summarize(tiny_model, tokenizer, ['One.'], prompt='document', max_tokens=2, progress=False).settings['generation']!=b['generation']
    json.dumps(b)
