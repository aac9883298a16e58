"Sources of text: bad files one by one, seeded reading in bounded memory, the layout of Hub sets."
import json
from pathlib import Path
from itertools import islice
import pandas as pd
import pytest
from datasets import Dataset
from compresscal.core.spelling import PLAIN_FILES
from compresscal.text.corpora import HubText, Reading, dataset_revision, file_corpus, found_path, hub_texts, open_corpus, read_file, source_identity
from compresscal.text.installed_text import Document

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
    with pytest.raises(ValueError, match='where there is none'): open_corpus(tmp_path/'absent.txt')
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
            return type('Info', (), dict(sha='c0ffee', card_data=type('Card', (), dict(license='odc-by'))))
    monkeypatch.setattr(huggingface_hub, 'HfApi', Api)
    monkeypatch.setattr(datasets, 'load_dataset', lambda *a, **k: asked.append((a, k)) or Dataset.from_dict(dict(text=['x'])).to_iterable_dataset())
    corpus = open_corpus('c4')
    assert (corpus.manifest['revision'], corpus.manifest['license'])==('c0ffee', 'odc-by') and asked[0]==('allenai/c4', None)
    assert asked[1]==(('allenai/c4', 'en'), dict(split='train', revision='c0ffee', streaming=True))
    open_corpus('c4', revision='v1')
    assert asked[2]==('allenai/c4', 'v1')
    assert open_corpus('owner/set:part').manifest['config']=='part'

def test_shared_texts_read(shared):
    for name in ('text_books/tinyshakespeare.txt', 'text_books/tinybook.jsonl'):
        documents = list(file_corpus(shared/'data'/name).read(0))
        assert len(documents)>80 and all(o.text.strip() for o in documents)

# ---- which text it is

class Api:
    "A Hub whose sets stand at a commit"
    commit = 'c0ffee'
    def dataset_info(self, path, revision=None): return type('Info', (), dict(sha=revision or Api.commit))

def test_the_identity_of_a_source_is_what_decides_its_text(tmp_path, monkeypatch):
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub, 'HfApi', Api)
    first = source_identity('c4')
    assert first==source_identity('c4') and first['revision']=='c0ffee' and source_identity('owner/set:part')['config']=='part'
    monkeypatch.setattr(Api, 'commit', 'decaf')
    assert source_identity('c4')!=first and source_identity('c4', revision='c0ffee')==first
    assert source_identity('docs', split='test')['packages'] and json.loads(json.dumps(source_identity('docs')))==source_identity('docs')
    for name in ('a', 'b'):
        (tmp_path/name).mkdir()
        (tmp_path/name/f'{name}.jsonl').write_text('{"text": "one"}\n')
    assert source_identity(tmp_path/'a')==source_identity(tmp_path/'b'/'b.jsonl') and str(tmp_path) not in json.dumps(source_identity(tmp_path/'a'))
    assert source_identity(tmp_path/'a', column='text')!=source_identity(tmp_path/'a')

def test_without_a_connection_the_local_copy_says_its_commit(monkeypatch, tmp_path):
    import huggingface_hub
    assert dataset_revision('allenai/c4') is None and dataset_revision('allenai/c4', 'v1')=='v1' and dataset_revision(str(tmp_path)) is None
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda path, **k: f'/cache/{path}/snapshots/abc' if k['local_files_only'] and k['repo_type']=='dataset' else 1/0)
    assert dataset_revision('allenai/c4')=='abc'

def test_addresses_hold_from_another_folder(tmp_path, monkeypatch):
    (tmp_path/'my').mkdir()
    (tmp_path/'my'/'notes.txt').write_text('Some notes.')
    monkeypatch.chdir(tmp_path)
    made = json.loads(json.dumps(file_corpus('my/notes.txt').manifest))
    assert (made['path'], found_path(made))==('my/notes.txt', 'my/notes.txt')
    monkeypatch.chdir(tmp_path/'my')
    assert found_path(made)==str(tmp_path/'my'/'notes.txt') and open_corpus(found_path(made)).manifest['files'].values()
    (tmp_path/'my'/'my').mkdir()
    (tmp_path/'my'/'my'/'notes.txt').write_text('Other notes.')
    assert found_path(made)==str(tmp_path/'my'/'notes.txt') # not the other file of that name

def test_text_of_any_suffix_gives_the_same_documents(tmp_path):
    book = 'A chapter of many words.\n\n'*900
    names = [f'book{o}' for o in (*PLAIN_FILES, '.tex', '.json', '.MD', '')]
    for o in names: (tmp_path/o).write_text(book)
    wanted = [o.text for o in read_file(tmp_path/'book.txt')]
    assert len(wanted)==3
    for o in names: assert [d.text for d in open_corpus(f'text:{tmp_path/o}').shards[str(tmp_path/o)]()]==wanted, o
    for o in (*PLAIN_FILES, '.MD'): assert [d.text for d in read_file(tmp_path/f'book{o}')]==wanted, o
    with pytest.raises(ValueError, match='if that is text, say so: .text:'): open_corpus(tmp_path/'book.tex')
    assert len(open_corpus(f'text:{tmp_path}').shards)==len(names)

def test_the_same_text_by_either_spelling_is_one_text(tmp_path):
    for o in ('a.txt', 'a.tex', 'a.json'): (tmp_path/o).write_text('["A text."]')
    plain, said = open_corpus(tmp_path/'a.txt'), open_corpus(f"text:{tmp_path/'a.txt'}")
    assert plain.manifest==said.manifest and 'format' not in plain.manifest
    table, text = tmp_path/'a.json', f"text:{tmp_path/'a.json'}"
    assert source_identity(table)!=source_identity(text) and source_identity(text)['format']=='text'
    assert [o.text for o in open_corpus(text).read()]==['["A text."]']
    assert found_path(open_corpus(text).manifest)==text and found_path(open_corpus(table).manifest)==str(table)

def test_what_describes_tables_is_no_text(tmp_path):
    (tmp_path/'README.md').write_text('About the rows.')
    (tmp_path/'a.txt').write_text('A text.')
    assert [Path(o).name for o in open_corpus(tmp_path).shards]==['README.md', 'a.txt']
    (tmp_path/'rows.jsonl').write_text('{"text": "first"}')
    assert [Path(o).name for o in open_corpus(tmp_path).shards]==['a.txt', 'rows.jsonl']

@pytest.mark.parametrize('name', ['no/such.utf8', './nothing', 'nothing.foo', 'text:no/such', 'text:', 'here/there/nothing'])
def test_what_is_missing_is_said_to_be_missing(name):
    with pytest.raises(ValueError, match='where there is none'): open_corpus(name)

def test_a_word_that_is_nothing_may_have_been_a_path():
    with pytest.raises(ValueError, match='there is no file or folder of this name'): open_corpus('nothing')
