"Rows as they are in the file: no type is guessed, no row is lost, errors say where"
import json, random
import pandas as pd
import pytest
from compresscal.core.rows import parse_json, read_rows

letters = ['a', '0', '1', 'NA', 'null', 'nan', 'True', '1e5', ' ', ',', ';', '\t', '"', "'", '\n', '\r\n', 'é', '漢', '🙂', '\u2028', '\x0b', '-', '.5']

def random_rows(g): return [{k: ''.join(g.choices(letters, k=g.randrange(5))) for k in ('id', 'text', '1')} for _ in range(g.randint(1, 9))]

def write(rows, path):
    table = pd.DataFrame(rows)
    if path.suffix=='.csv': table.to_csv(path, index=False)
    elif path.suffix=='.tsv': table.to_csv(path, index=False, sep='\t')
    elif path.suffix=='.parquet': table.to_parquet(path)
    elif path.suffix=='.json': path.write_text(json.dumps(rows, ensure_ascii=False), encoding='utf-8')
    else: path.write_text('\n'.join(json.dumps(o, ensure_ascii=False) for o in rows), encoding='utf-8')
    return path

@pytest.mark.parametrize('kind', ['csv', 'tsv', 'json', 'jsonl', 'CSV'])
def test_what_is_written_is_read(kind, tmp_path):
    g = random.Random(kind)
    for i in range(60):
        rows = random_rows(g)
        assert [o for _,o in read_rows(write(rows, tmp_path/f'{i}.{kind}'.lower()))]==rows

def test_parquet_keeps_its_types(tmp_path):
    rows = [dict(id='001', n=1, share=.5, tags=['a', 'b']), dict(id='NA', n=2, share=None, tags=[])]
    assert [o for _,o in read_rows(write(rows, tmp_path/'a.parquet'))]==rows

def test_rows_are_numbered(tmp_path):
    (tmp_path/'a.jsonl').write_text('{"a": 1}\n\n \n{"a": 2}')
    assert [i for i,_ in read_rows(tmp_path/'a.jsonl')]==[1, 4]
    assert [i for i,_ in read_rows(write([dict(a='x')]*2, tmp_path/'a.csv'))]==[2, 3]

def test_uneven_tables_are_read(tmp_path):
    (tmp_path/'a.csv').write_text('a,b\n1\n\n1,2,3\n')
    assert [o for _,o in read_rows(tmp_path/'a.csv')]==[{'a': '1', 'b': None}, {'a': '1', 'b': '2', None: ['3']}]

def test_rows_come_one_at_a_time(tmp_path):
    (tmp_path/'a.jsonl').write_text('{"a": 1}\n{"a": ')
    rows = read_rows(str(tmp_path/'a.jsonl'))
    assert next(rows)==(1, {'a': 1})
    with pytest.raises(ValueError, match=r'a\.jsonl:2: not valid JSON'): next(rows)

@pytest.mark.parametrize('name, content, message', [('a.json', b'[1,\n2,]', r'a\.json:2: not valid JSON'), ('a.json', b'\xff', r'is not UTF-8 text \(byte 0\)'),
    ('a.jsonl', b'{"a": "\xff"}', r'is not UTF-8 text'), ('a.json', b'"text"', 'JSON list of texts or objects, got str'),
    ('a.csv', b'a\n'+b'x'*200_000, r'a\.csv: cannot be read as \.csv: field larger'), ('a.parquet', b'PAR1', 'not a readable Parquet file'),
    ('a.txt', b'text', r'must be one of \.jsonl \.json \.csv \.tsv \.parquet, got .\.txt')])
def test_bad_files(tmp_path, name, content, message):
    (tmp_path/name).write_bytes(content)
    with pytest.raises(ValueError, match=message): list(read_rows(tmp_path/name))

def test_json_of_any_form(tmp_path):
    (tmp_path/'a.json').write_text('{"a": [1, "001"]}')
    assert parse_json(str(tmp_path/'a.json'))=={'a': [1, '001']}
