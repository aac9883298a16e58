"Sources of text: bad files one by one, disjoint splits, seeded reading in bounded memory, the layout of Hub sets."
import gzip, json, os, subprocess, sys
from itertools import islice
import pandas as pd
import pytest
from datasets import Dataset
from compresscal import corpora
from compresscal.corpora import (Document, HubText, Reading, SeenTexts, collect_installed, file_corpus, held_out_documents, hub_corpus, hub_texts,
    license_documents, open_corpus, read_file, sketch, split_of, write_aside)

@pytest.mark.parametrize('name,content,message', [
    ('empty.txt', b'', 'is empty'), ('blank.txt', b'\n \n', 'is empty'), ('empty.jsonl', b'', 'is empty'), ('empty.json', b'[]', 'is empty'),
    ('binary.txt', b'\x89PNG\r\n\x1a\n\x00', 'is not UTF-8 text'), ('zeros.txt', b'abc\0def', 'holds binary data'),
    ('broken.jsonl', b'{"text": "a"}\n\n{"text": \n', r'broken\.jsonl:3: not valid JSON'), ('broken.json', b'[{"text": "a"},\n{]', r'broken\.json:2: not valid JSON'),
    ('object.json', b'{"a": 1}', 'must hold a JSON list'), ('column.jsonl', b'{"body": "a"}\n', r'column\.jsonl:1: `column` must name the text column, got None; the columns are body'),
    ('number.jsonl', b'{"text": "a"}\n{"text": 3}\n', r'number\.jsonl:2: column .text. must hold text, got int'), ('null.csv', b'a,b\n1,2\n', r'null\.csv:2: `column`'),
    ('broken.parquet', b'PAR1 no', 'not a readable Parquet file'), ('paper.pdf', b'%PDF', 'the kind of file must be one of')])
def test_bad_files(tmp_path, name, content, message):
    (tmp_path/name).write_bytes(content)
    with pytest.raises(ValueError, match=message): list(file_corpus(tmp_path/name).read(0))

def test_bad_paths(tmp_path):
    with pytest.raises(ValueError, match='no such file'): open_corpus(tmp_path/'absent.txt')
    with pytest.raises(ValueError, match='holds no file of kind'): open_corpus(str(tmp_path))

def test_every_kind_of_file_gives_the_same_texts(tmp_path):
    texts = ['one line', 'two\nlines', 'ünïcode, "quoted"']
    pd.DataFrame(dict(text=texts, n=range(3))).to_parquet(tmp_path/'a.parquet')
    pd.DataFrame(dict(text=texts, n=range(3))).to_csv(tmp_path/'a.csv', index=False)
    (tmp_path/'a.json').write_text(json.dumps(texts))
    (tmp_path/'a.jsonl').write_text('\n'.join(json.dumps(dict(text=o)) for o in texts))
    for kind in ('parquet', 'csv', 'json', 'jsonl'): assert [o.text for o in read_file(tmp_path/f'a.{kind}')]==texts, kind
    assert sorted(o.text for o in open_corpus(str(tmp_path/'*.json*')).read(0))==sorted(texts*2)

def test_reading_is_seeded_complete_and_bounded():
    alive = 0
    def shard(name, n=500):
        nonlocal alive
        for i in range(n):
            alive += 1
            yield Document(f'{name} {i}', f'{name}:{i}')
    shards = {f's{k}': (lambda k=k: shard(f's{k}')) for k in range(20)}
    reading = Reading(shards, 3, open_shards=4, buffer=100)
    first = [o.id for o in islice(reading, 50)]
    assert alive<=151 and len(reading.opened)==4 # 50 out, 100 held, one in hand
    assert first==[o.id for o in islice(Reading(shards, 3, open_shards=4, buffer=100), 50)]
    everything = [o.id for o in Reading(shards, 4, open_shards=4, buffer=100)]
    assert len(everything)==len(set(everything))==10_000
    assert len({o.split(':')[0] for o in everything[:200]})>2 # not the first shard alone

def test_a_set_in_the_layout_of_the_hub_is_streamed_by_shard(tmp_path, monkeypatch):
    for i in range(6): pd.DataFrame(dict(article=[f'Document {i}-{j} of some words' for j in range(50)])).to_parquet(tmp_path/f'train-{i:05}-of-00006.parquet')
    monkeypatch.setitem(hub_texts, 'pretend', HubText(str(tmp_path), column='article'))
    corpus = open_corpus('pretend')
    assert len(corpus.shards)==6 and corpus.manifest['column']=='article'
    reading = corpus.read(1, open_shards=2, buffer=10)
    texts = [o.text for o in islice(reading, 20)]
    assert len(reading.opened)==2
    assert texts==[o.text for o in islice(corpus.read(1, open_shards=2, buffer=10), 20)]!=[o.text for o in islice(corpus.read(2, open_shards=2, buffer=10), 20)]

def test_raw_files_of_a_set_that_is_a_script(tmp_path, monkeypatch):
    for name in ('arxiv', 'book'): (tmp_path/f'{name}_sample.jsonl').write_text('\n'.join(json.dumps(dict(text=f'{name} {i}')) for i in range(3)))
    monkeypatch.setitem(hub_texts, 'pretend', HubText(str(tmp_path), data_files='*.jsonl'))
    assert sorted(o.text for o in open_corpus('pretend').read(0))==[f'{n} {i}' for n in ('arxiv', 'book') for i in range(3)]

def test_the_hub_out_of_reach_is_one_clear_message():
    with pytest.raises(ValueError, match="source. 'c4'.*could not be opened on the Hub.*docs, code, licenses"): open_corpus('c4')

def test_the_commit_is_resolved_once_and_written_down(tmp_path, monkeypatch):
    import datasets, huggingface_hub
    asked = []
    class Api:
        def dataset_info(self, path, revision=None):
            asked.append((path, revision))
            return type('Info', (), dict(sha='c0ffee'))
    monkeypatch.setattr(huggingface_hub, 'HfApi', Api)
    monkeypatch.setattr(datasets, 'load_dataset', lambda *a, **k: asked.append((a, k)) or Dataset.from_dict(dict(text=['x'])).to_iterable_dataset())
    corpus = open_corpus('c4')
    assert corpus.manifest['revision']=='c0ffee' and asked[0]==('allenai/c4', None)
    assert asked[1]==(('allenai/c4', 'en'), dict(split='train', revision='c0ffee', streaming=True))
    open_corpus('c4', revision='v1')
    assert asked[2]==('allenai/c4', 'v1')
    assert open_corpus('owner/set:part').manifest['config']=='part'

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
    with pytest.raises(OSError, match='No space left'): write_aside(tmp_path/'a.txt', 'new')
    assert [(o.name, o.read_text()) for o in tmp_path.iterdir()]==[('a.txt', 'old')]

def test_a_broken_cache_is_computed_again(tmp_path, monkeypatch):
    monkeypatch.setenv('COMPRESSCAL_CACHE', str(tmp_path))
    monkeypatch.setattr(corpora, 'collect_installed', lambda *_: ({'docs': {'test': [Document('t', 'm')]}}, None))
    for content in (None, '{"docs": {"test": [["t"', '[]'):
        held_out_documents.cache_clear()
        for o in tmp_path.iterdir(): o.write_text(content)
        assert held_out_documents()=={'docs': {'test': [Document('t', 'm')]}}
    held_out_documents.cache_clear()

def test_shared_texts_read(shared):
    for name in ('text_books/tinyshakespeare.txt', 'text_books/tinybook.jsonl'):
        documents = list(file_corpus(shared/'data'/name).read(0))
        assert len(documents)>80 and all(o.text.strip() for o in documents)
