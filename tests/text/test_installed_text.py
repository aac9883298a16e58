"The text of the installation: disjoint splits, no copies, whole files."
import os
import pytest
from compresscal.text import installed_text as installed
from compresscal.core.files import write_atomically
from compresscal.text.installed_text import Document, SeenTexts, collect_installed, held_out_documents, license_documents, sketch, split_of

def test_installed_splits_are_disjoint_after_deduplication():
    held_out,splits = held_out_documents(),('calibration', 'dev', 'test')
    for kind in ('docs', 'code'):
        parts = [{o.id for o in held_out[kind][s]} for s in splits]
        assert len(set.union(*parts))==sum(map(len, parts))>500
        assert all(split_of(o.id)==s for s in splits for o in held_out[kind][s])

def test_near_copies_of_training_text_are_left_out():
    once,seen = collect_installed(('calibration',), packages=('seaborn',))
    again,_ = collect_installed(('calibration',), {k: v.hashes for k,v in seen.items()}, packages=('seaborn',))
    assert once['code']['calibration'] and not again['code']['calibration']

def test_code_does_not_contain_its_docstrings():
    held_out = held_out_documents()
    code = {o.id: o.text for o in held_out['code']['test']}
    both = [(o.text, code[o.id]) for o in held_out['docs']['test'] if o.id in code]
    assert len(both)>100
    contained = sum(max(docs.split('\n\n'), key=len) in text for docs,text in both)
    assert contained/len(both)<.02 # a few docstrings repeat inside string constants

def test_near_duplicates():
    words = [f'w{i}' for i in range(200)]
    near,far = ' '.join(words[:195]+['x']*5),' '.join(words[:60]+[f'v{i}' for i in range(140)])
    seen = SeenTexts()
    assert seen.add(' '.join(words)) and not seen.add(near) and seen.add(far)
    assert len(sketch(''))==1

def test_licences_repeat_nothing():
    parts = [p for o in license_documents() for p in o.text.split('\n\n') if len(p)>300]
    assert len(parts)>50 and len(set(parts))==len(parts)

def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path/'a.txt').write_text('old')
    def full(*_): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'): write_atomically(tmp_path/'a.txt', 'new')
    assert [(o.name, o.read_text()) for o in tmp_path.iterdir()]==[('a.txt', 'old')]

def test_a_broken_cache_is_computed_again(tmp_path, monkeypatch):
    monkeypatch.setenv('COMPRESSCAL_CACHE', str(tmp_path))
    monkeypatch.setattr(installed, 'collect_installed', lambda *_: ({'docs': {'test': [Document('t', 'm')]}}, None))
    for content in (None, '{"docs": {"test": [["t"', '[]'):
        held_out_documents.cache_clear()
        for o in tmp_path.iterdir(): o.write_text(content)
        assert held_out_documents()=={'docs': {'test': [Document('t', 'm')]}}
    held_out_documents.cache_clear()
