"Documents to sum up: published formats, the layout of the Hub, addresses, bad files one by one."
import csv, hashlib, io, json, sys, tarfile, urllib.error, zipfile
import pandas as pd
import pytest
from compresscal.summaries import summary_sets
from compresscal.summaries.summary_sets import PUBLISHED_SETS, PublishedSet, SummaryDocument, choose_documents, fetch_summaries, open_summary_set, sheet_rows

def spreadsheet(path, sheets, shared=True):
    "A small workbook, as a spreadsheet program writes it"
    from xml.sax.saxutils import escape
    main, office = 'http://schemas.openxmlformats.org/spreadsheetml/2006/main', 'http://schemas.openxmlformats.org/officeDocument/2006/relationships'
    words = list(dict.fromkeys(str(v) for rows in sheets.values() for row in rows for v in row if v is not None))
    def cell(v, r, c):
        if v is None: return ''
        if not shared: return f'<c r="{"ABCDEF"[c]}{r}" t="inlineStr"><is><t>{escape(str(v))}</t></is></c>'
        return f'<c r="{"ABCDEF"[c]}{r}" t="s"><v>{words.index(str(v))}</v></c>'
    kinds, sheet_kind = 'application/vnd.openxmlformats-officedocument.spreadsheetml', '<Override PartName="/xl/worksheets/sheet{}.xml" ContentType="{}.worksheet+xml"/>'
    with zipfile.ZipFile(path, 'w') as z:
        z.writestr('[Content_Types].xml', '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
                   f'<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/xl/workbook.xml" ContentType="{kinds}.sheet.main+xml"/>'
                   +(f'<Override PartName="/xl/sharedStrings.xml" ContentType="{kinds}.sharedStrings+xml"/>' if shared else '')+''.join(sheet_kind.format(i, kinds) for i in range(1, len(sheets)+1))+'</Types>')
        z.writestr('_rels/.rels', f'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="rId1" Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>')
        z.writestr('xl/workbook.xml', f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets>'+''.join(f'<sheet name="{n}" sheetId="{i}" r:id="rId{i}"/>' for i,n in enumerate(sheets, 1))+'</sheets></workbook>')
        z.writestr('xl/_rels/workbook.xml.rels', '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
                   +''.join(f'<Relationship Id="rId{i}" Type="{office}/worksheet" Target="worksheets/sheet{i}.xml"/>' for i,_ in enumerate(sheets, 1))+'</Relationships>')
        if shared: z.writestr('xl/sharedStrings.xml', f'<sst xmlns="{main}">'+''.join(f'<si><r><t>{escape(o[:3])}</t></r><r><t>{escape(o[3:])}</t></r></si>' for o in words)+'</sst>')
        for i,rows in enumerate(sheets.values(), 1):
            z.writestr(f'xl/worksheets/sheet{i}.xml', f'<worksheet xmlns="{main}"><sheetData>'
                       +''.join(f'<row r="{r}">'+''.join(cell(v, r, c) for c,v in enumerate(row))+'</row>' for r,row in enumerate(rows, 1))+'</sheetData></worksheet>')

# ---- Published formats

def test_real_files(shared):
    legal = open_summary_set(shared/'data'/'sum_legal'/'tldrlegal_v1.json')
    assert len(legal)==PUBLISHED_SETS['legal'].count==85 and all(legal.references)
    assert hashlib.sha256((shared/'data'/'sum_legal'/'tldrlegal_v1.json').read_bytes()).hexdigest()==PUBLISHED_SETS['legal'].sha256
    news = open_summary_set(shared/'data'/'sum_bartscore_human'/'SummEval.json')
    assert len(news)==PUBLISHED_SETS['summeval'].count==100 and news[0].id.startswith('dm-test-')
    assert news[0].meta['references'][0]==news[0].reference and len(news[0].meta['references'])==11
    raw = json.loads((shared/'data'/'sum_bartscore_human'/'SummEval.json').read_text())
    assert news.texts==[o['src'] for o in raw.values()]

def test_the_original_summeval_counts_each_article_once(tmp_path):
    rows = [dict(id=f'dm-test-{a}', decoded=f'by model {m}', text=f'Article {a} of the news.', references=[f'One {a}.', f'Two {a}.'], model_id=f'M{m}') for m in range(3) for a in 'abc']
    (tmp_path/'model_annotations.aligned.paired.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    found = open_summary_set(tmp_path/'model_annotations.aligned.paired.jsonl')
    assert [(o.id, o.reference) for o in found]==[(f'dm-test-{a}', f'One {a}.') for a in 'abc'] and found.manifest['left_out']['copies left out']==6

def test_paired_factcc_claims_are_no_references(tmp_path):
    rows = [dict(id=f'cnn-test-{i//2}', claim=f'claim {i}', label='CORRECT', filepath=f'cnndm/cnn/stories/{i//2}.story', text=f'Story number {i//2}.') for i in range(6)]
    (tmp_path/'data-dev.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    found = open_summary_set(tmp_path/'data-dev.jsonl')
    assert found.texts==['Story number 0.', 'Story number 1.', 'Story number 2.'] and found.references==[None]*3

def unpaired(claims):
    "The archive of FactCC's claims"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w:gz') as tar:
        for part in ('val', 'test'):
            data = '\n'.join(json.dumps(o) for o in claims).encode()
            info = tarfile.TarInfo(f'unpaired_annotated_data/{part}/data-dev.jsonl')
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()

def hub(folder, **parts):
    folder.mkdir(parents=True)
    for name, rows in parts.items(): pd.DataFrame(rows).to_parquet(folder/f'{name}-00000-of-00001.parquet')
    return str(folder)

def test_factcc_by_name_joins_stories_and_claims(tmp_path, monkeypatch):
    claims = [dict(id=f'cnn-test-{o}', claim='c', label='CORRECT', filepath=f'cnndm/cnn/stories/{o}.story') for o in ('b2', 'a1', 'b2', 'zz')]
    folder = hub(tmp_path/'cnn', test=[dict(id='a1', article='First.', highlights='F.'), dict(id='c3', article='Unasked.', highlights='U.')], validation=[dict(id='b2', article='Second.', highlights='S.')],
                 train=[dict(id='zz', article='Never read.', highlights='')])
    monkeypatch.setenv('COMPRESSCAL_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(summary_sets.urllib.request, 'urlopen', lambda *a, **k: io.BytesIO(unpaired(claims)))
    monkeypatch.setitem(PUBLISHED_SETS, 'cnn_dailymail', PublishedSet(folder, 'hub', None))
    monkeypatch.setattr(summary_sets, '_hub_rows', lambda path, config, split, revision, f=summary_sets._hub_rows: f(path, None, split, revision))
    found = open_summary_set('factcc')
    assert [(o.id, o.text, o.reference) for o in found]==[('b2', 'Second.', 'S.'), ('a1', 'First.', 'F.')]
    assert found.manifest['split']=='validation' and len(open_summary_set('factcc', split='test'))==2

@pytest.mark.parametrize('shared_strings', [True, False])
def test_polytope_spreadsheets(tmp_path, shared_strings):
    pytest.importorskip('openpyxl')
    for system in ('BART', 'Summa'):
        rows = [['ID', 'Source', 'Target', 'Score'], ['b1-10', 'one article <of> the news', f'by {system}', 3], ['b2-10', 'another & longer article', f'by {system}', 4], [None, None, 'notes', None]]
        spreadsheet(tmp_path/f'Human_Annotation_Summarization_{system}.xlsm', {'Error Log': [['ID', 'Subtypes']], 'Scores per segment': rows}, shared_strings)
    found = open_summary_set(tmp_path)
    assert found.texts==['one article <of> the news', 'another & longer article'] and found.references==[None, None]
    assert found.manifest['left_out']['copies left out']==2
    with pytest.raises(ValueError, match='no sheet .Scores.; the sheets are Error Log, Scores per segment'): list(sheet_rows(tmp_path/'Human_Annotation_Summarization_BART.xlsm', 'Scores'))

def test_spreadsheets_as_a_library_writes_them(tmp_path):
    openpyxl = pytest.importorskip('openpyxl')
    book = openpyxl.Workbook()
    book.active.title = 'Scores per segment'
    for row in (['ID', 'Source'], ['a', 'A text, "quoted".'], ['b', 'Zwei Zeilen\nÜbermut']): book.active.append(row)
    book.save(tmp_path/'a.xlsx')
    assert list(sheet_rows(tmp_path/'a.xlsx', 'Scores per segment'))==[dict(ID='a', Source='A text, "quoted".'), dict(ID='b', Source='Zwei Zeilen\nÜbermut')]

def test_spreadsheets_without_their_library(tmp_path, monkeypatch):
    spreadsheet(tmp_path/'a.xlsx', {'Scores per segment': [['ID', 'Source'], ['a', 'A text.']]})
    monkeypatch.setitem(sys.modules, 'openpyxl', None)
    with pytest.raises(ImportError, match=r"openpyxl: pip install 'compresscal\[summaries\]'"): open_summary_set(tmp_path/'a.xlsx')

def test_rct_reviews_of_a_single_trial(tmp_path):
    with open(tmp_path/'test-inputs.csv', 'w', newline='') as f: csv.writer(f).writerows([['', 'ReviewID', 'PMID', 'Title', 'Abstract'], [0, 'CD1', 11, 'T', 'An abstract,\nof two lines.'],
        [1, 'CD2', 12, 'T', 'x'], [2, 'CD2', 13, 'T', 'y'], [3, 'CD3', 14, 'T', 'Another abstract.']])
    with open(tmp_path/'test-targets.csv', 'w', newline='') as f: csv.writer(f).writerows([['', 'ReviewID', 'Target'], [0, 'CD1', 'Conclusion.'], [1, 'CD2', 'c'], [2, 'CD3', 'Third.'], [3, 'CD4', 'd']])
    found = open_summary_set(tmp_path)
    assert [(o.id, o.text, o.reference, o.meta['pmid']) for o in found]==[('CD1', 'An abstract,\nof two lines.', 'Conclusion.', '11'), ('CD3', 'Another abstract.', 'Third.', '14')]

def test_the_papers_json_by_name(tmp_path, monkeypatch):
    data = json.dumps({f'CD{i}': dict(review_id=f'CD{i}', pmid=i, title='T', document=f'Abstract {i}.', dataset='rct_summaries', target=f'Target {i}.') for i in range(5)}).encode()
    asked = []
    monkeypatch.setenv('COMPRESSCAL_CACHE', str(tmp_path))
    monkeypatch.setattr(summary_sets.urllib.request, 'urlopen', lambda address, **k: asked.append(address) or io.BytesIO(data))
    found = open_summary_set('rct')
    assert [(o.id, o.reference) for o in found][:2]==[('CD0', 'Target 0.'), ('CD1', 'Target 1.')] and found[0].dataset=='rct'
    assert open_summary_set('rct').manifest==found.manifest and len(asked)==1 # the second time from the cache
    with pytest.raises(ValueError, match='must have sha256 988b3d1330.*got'): open_summary_set('legal') # another file than the published one
    assert not list((tmp_path/'summary_sets'/'legal').glob('*')) if (tmp_path/'summary_sets'/'legal').exists() else True

def test_a_file_in_the_cache_that_was_changed_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(summary_sets.urllib.request, 'urlopen', lambda *a, **k: io.BytesIO(b'data'))
    sha = hashlib.sha256(b'data').hexdigest()
    path = fetch_summaries('https://x/y.json', tmp_path, sha)
    path.write_bytes(b'other')
    with pytest.raises(ValueError, match='remove .*y.json, and it will be fetched again'): fetch_summaries('https://x/y.json', tmp_path, sha)

# ---- The Hub

def test_sets_in_the_layout_of_the_hub(tmp_path, monkeypatch):
    for name, columns in (('cnn_dailymail', ('article', 'highlights')), ('xsum', ('document', 'summary'))):
        folder = hub(tmp_path/name, test=[dict(zip((*columns, 'id'), (f'Text {i} of {name}.', f'Sum {i}.', f'{i:x}'))) for i in range(30)], train=[dict(zip((*columns, 'id'), ('no', 'no', 'no')))])
        monkeypatch.setitem(PUBLISHED_SETS, name, PublishedSet(folder, 'hub', splits=('test', 'validation', 'train')))
        found = open_summary_set(name)
        assert (len(found), found[3].text, found[3].reference, found[3].id)==(30, f'Text 3 of {name}.', 'Sum 3.', '3')
        assert len(open_summary_set(name, split='train'))==1
    with pytest.raises(ValueError, match='`split` of the set .xsum. must be one of test, validation, train'): open_summary_set('xsum', split='dev')

def test_summeval_as_on_the_hub(tmp_path, monkeypatch):
    folder = hub(tmp_path/'s', test=[dict(id=f'dm-test-{i}', text=f'Article {i}.', machine_summaries=['m']*3, human_summaries=[f'First {i}.', 'Second.'], relevance=[1., 2., 3.]) for i in range(4)])
    monkeypatch.setitem(PUBLISHED_SETS, 'summeval', PublishedSet(folder, 'hub'))
    found = open_summary_set('summeval')
    assert found[1].reference=='First 1.' and found[1].meta['references']==['First 1.', 'Second.']

def test_a_script_is_never_run_but_read_from_tables(monkeypatch):
    import datasets, huggingface_hub
    asked = []
    class Api:
        def dataset_info(self, path, revision=None): return type('Info', (), dict(sha=dict({'refs/convert/parquet': 'tables'}).get(revision, 'c0ffee')))
    def load(path, config, split, revision, streaming):
        asked.append(revision)
        if revision=='c0ffee': raise RuntimeError('Dataset scripts are no longer supported, but found xsum.py')
        return [dict(document='A text.', summary='A.', id='1')]
    monkeypatch.setattr(huggingface_hub, 'HfApi', Api)
    monkeypatch.setattr(datasets, 'load_dataset', load)
    found = open_summary_set('EdinburghNLP/xsum')
    assert asked==['c0ffee', 'tables'] and found.manifest['revision']=='tables' and found.name=='xsum'

def test_out_of_reach_is_one_clear_message(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="the set 'EdinburghNLP/xsum' could not be opened on the Hub.*docstrings"): open_summary_set('xsum')
    def no(*a, **k): raise urllib.error.URLError('no route')
    monkeypatch.setenv('COMPRESSCAL_CACHE', str(tmp_path))
    monkeypatch.setattr(summary_sets.urllib.request, 'urlopen', no)
    with pytest.raises(ValueError, match='tldrlegal_v1.json could not be fetched .*no route.*docstrings'): open_summary_set('legal')

# ---- Own files

def test_every_kind_of_file_gives_the_same_documents(tmp_path):
    rows = [dict(id=f'd{i}', document=t, summary=s) for i,(t, s) in enumerate([('one line', 'one'), ('two\nlines, "quoted"', 'two'), ('ünïcode 🙂', 'drei')])]
    pd.DataFrame(rows).to_parquet(tmp_path/'a.parquet')
    pd.DataFrame(rows).to_csv(tmp_path/'a.csv', index=False)
    (tmp_path/'a.json').write_text(json.dumps(rows))
    (tmp_path/'b.json').write_text(json.dumps({o['id']: {k: v for k,v in o.items() if k!='id'} for o in rows}))
    (tmp_path/'a.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    expected = [(o['id'], o['document'], o['summary']) for o in rows]
    for name in ('a.parquet', 'a.csv', 'a.json', 'b.json', 'a.jsonl'): assert [(o.id, o.text, o.reference) for o in open_summary_set(tmp_path/name)]==expected, name

@pytest.mark.parametrize('name,content,message', [
    ('empty.jsonl', b'', 'must hold a document'), ('blank.jsonl', b'{"text": "  "}\n', 'must hold a document'), ('broken.jsonl', b'{"text": "a"}\n\n{"text": \n', r'broken\.jsonl:3: not valid JSON'),
    ('broken.json', b'[{"text": "a"},\n{]', r'broken\.json:2: not valid JSON'), ('number.json', b'3', 'must hold a list or an object of rows, got int'), ('texts.json', b'["a"]', 'must be an object with named fields, got str'),
    ('column.jsonl', b'{"body": "a"}\n', r'column\.jsonl:1: `document` must name the column'), ('kind.jsonl', b'{"text": 3}\n', "column 'text' must hold text, got int"),
    ('reference.jsonl', b'{"text": "a", "summary": [1]}\n', "column 'summary' must hold a text or several"), ('latin.csv', 'text\nZeile fünf\n'.encode('latin-1'), 'is not UTF-8 text'),
    ('broken.parquet', b'PAR1 no', 'not a readable Parquet file'), ('broken.xlsm', b'PK no', 'not a readable spreadsheet'), ('paper.pdf', b'%PDF', 'the kind of file must be one of')])
def test_bad_files(tmp_path, name, content, message):
    (tmp_path/name).write_bytes(content)
    with pytest.raises(ValueError, match=message): open_summary_set(tmp_path/name)

def test_bad_arguments(tmp_path):
    (tmp_path/'a.jsonl').write_text('{"text": "a b c"}\n{"text": "d e f"}')
    for kwargs, message in ((dict(n=0), '`n` must be'), (dict(n=True), '`n` must be'), (dict(n=3), 'at most 2'), (dict(document='body'), "must name a column, got 'body'"), (dict(reference='gist'), "must name a column, got 'gist'")):
        with pytest.raises(ValueError, match=message): open_summary_set(tmp_path/'a.jsonl', **kwargs)
    with pytest.raises(ValueError, match='no such file'): open_summary_set(tmp_path/'b.jsonl')
    with pytest.raises(ValueError, match='must be one of docstrings, factcc'): open_summary_set('nothing such')

# ---- Samples

def test_a_sample_has_no_near_copies_and_does_not_depend_on_n(tmp_path):
    documents = [SummaryDocument(f'{i}', ' '.join(f'word{i*60+j}' for j in range(60)), None, 's') for i in range(30)]
    near = [SummaryDocument(f'{o.id}b', o.text+' more', None, 's') for o in documents]
    found = choose_documents('s', documents+near, {}, n=20, seed=4)
    assert len({o.id.rstrip('b') for o in found})==20
    assert choose_documents('s', documents+near, {}, n=7, seed=4).documents==found.documents[:7]
    assert [o.id for o in choose_documents('s', documents+near, {}, n=7, seed=5)]!=[o.id for o in found[:7]]

def test_prints():
    found = open_summary_set('docstrings', n=20)
    assert 'documents 20' in repr(found) and '| documents | 20 |' in found._repr_markdown_()
    table = found.to_pandas()
    assert len(table)==20 and (table.words>0).all() and table.reference_words.between(1, 30).all()

def test_names_are_shown_as_they_are():
    name = 'a|b<i>\x1b[31m'
    found = choose_documents(name, [SummaryDocument('1', 'A text.', None, name)], dict(left_out={}))
    shown = found._repr_markdown_()
    assert '<i>' not in shown and '\x1b' not in shown and '\x1b' not in repr(found)
    assert {o.replace(r'\|', '').count('|') for o in shown.splitlines()}=={3}

@pytest.mark.parametrize('given', ['split', 'revision'])
def test_a_setting_without_effect_is_refused(tmp_path, given):
    (tmp_path/'a.jsonl').write_text('{"text": "a b c"}\n')
    with pytest.raises(ValueError, match=f'`{given}` must not be given for files'): open_summary_set(tmp_path/'a.jsonl', **{given: 'test'})

@pytest.mark.parametrize('given', ['document', 'reference', 'revision'])
def test_docstrings_have_no_columns(given):
    with pytest.raises(ValueError, match=f"`{given}` must not be given for the set 'docstrings'"): open_summary_set('docstrings', **{given: 'x'})
