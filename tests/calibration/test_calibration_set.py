"Sets on disk and in other programs: whole or absent, and the same tokens there."
import json, os, subprocess, sys, textwrap
from pathlib import Path
import pytest, torch
from conftest import outside_tests, root
from compresscal.calibration.sampling import mix, regenerate, sample_sets, tokenizer_fingerprint
from compresscal.calibration.calibration_set import CalibrationSet, content_hash
from compresscal.core.tables import escape_markdown

def texts(n, words=60): return [' '.join(f'w{i}x{j}' for j in range(words+i%7)) for i in range(n)]

@pytest.fixture
def padded():
    tokens = torch.arange(3, 27).view(3, 8)
    return CalibrationSet.from_tokens(tokens, torch.arange(8)<torch.tensor([8, 5, 1])[:,None], name='padded')

def test_a_full_disk_leaves_no_half_set(tmp_path, monkeypatch):
    import safetensors.torch
    def full(*_): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(safetensors.torch, 'save_file', full)
    with pytest.raises(OSError, match='No space left'): CalibrationSet.from_tokens(torch.ones(2,3).long()).save(tmp_path/'s')
    assert list(tmp_path.iterdir())==[]

def test_a_set_survives_the_disk(tmp_path, padded):
    back = CalibrationSet.load(padded.save(tmp_path/'deep'/'s'))
    assert back==padded and back.manifest==padded.manifest and (back.mask==padded.mask).all()
    assert (tmp_path/'deep'/'s').stat().st_mode & 0o777 == (tmp_path/'deep').stat().st_mode & 0o777 # others may read it too

def test_a_manifest_of_tuples_and_numbers_for_keys_is_read_back(tmp_path):
    made = CalibrationSet.from_tokens(torch.ones(2,3).long(), shares={2: (1, 2), 10: 'é'})
    assert CalibrationSet.load(made.save(tmp_path/'s')).manifest['shares']=={'2': [1, 2], '10': 'é'}

def test_a_folder_saved_without_a_hash_of_its_manifest_is_read(tmp_path):
    made = CalibrationSet.from_tokens(torch.ones(2,3).long())
    file = made.save(tmp_path/'s')/'manifest.json'
    record = json.loads(file.read_text())
    del record['manifest_hash']
    file.write_text(json.dumps(record))
    assert CalibrationSet.load(tmp_path/'s')==made

def damage_tokens(folder):
    from safetensors.torch import save_file
    save_file(dict(tokens=torch.zeros(2,3).long()), folder/'tokens.safetensors')

def edit(**changes):
    def damage(folder):
        record = json.loads((folder/'manifest.json').read_text())
        (folder/'manifest.json').write_text(json.dumps(record|changes))
    return damage

def other_kind(folder):
    from safetensors.torch import save_file
    save_file(dict(tokens=torch.zeros(2,3)), folder/'tokens.safetensors')

damages = dict(
    tokens=(damage_tokens, 'its tokens should have hash'), manifest=(edit(manifest=dict(kind='tokens', name='other')), 'its manifest should have hash'),
    no_manifest=(lambda o: (o/'manifest.json').unlink(), 'without manifest.json'), no_tokens=(lambda o: (o/'tokens.safetensors').unlink(), 'without tokens.safetensors'),
    cut=(lambda o: os.truncate(o/'tokens.safetensors', 40), 'saved calibration set.*Safetensor'), empty=(lambda o: os.truncate(o/'manifest.json', 0), 'saved calibration set.*JSON'),
    not_json=(lambda o: (o/'manifest.json').write_text('hello'), 'saved calibration set'), a_list=(lambda o: (o/'manifest.json').write_text('[1]'), 'saved calibration set'),
    no_hash=(lambda o: (o/'manifest.json').write_text('{"manifest": {}}'), "saved calibration set.*'hash'"), other_kind=(other_kind, 'saved calibration set.*int64'),
    not_utf8=(lambda o: (o/'manifest.json').write_bytes(b'\xff\xfe'), 'saved calibration set'))

@pytest.mark.parametrize('name', damages)
def test_what_was_damaged_is_said(tmp_path, name):
    damage,message = damages[name]
    folder = CalibrationSet.from_tokens(torch.ones(2,3).long()).save(tmp_path/'s')
    damage(folder)
    with pytest.raises(ValueError, match=f'(?s)`folder`.*{message}') as e: CalibrationSet.load(folder)
    assert str(folder) in str(e.value)

@pytest.mark.parametrize('columns', ['input_ids', [], ['tokens'], ['input_ids', 'text'], None])
def test_unknown_columns_are_refused(padded, columns):
    with pytest.raises(ValueError, match='`columns` must be names among'): padded.to_dataset(columns)

def test_a_mask_goes_along(padded):
    rows = padded.to_dataset(('input_ids', 'attention_mask', 'loss_mask', 'labels'))
    assert [sum(o) for o in rows['attention_mask']]==[sum(o) for o in rows['loss_mask']]==[8, 5, 1]
    assert rows['labels'][1]==[11, 12, 13, 14, 15, -100, -100, -100] and rows['input_ids'][1][-1]==18
    assert [int(o['attention_mask'].sum()) for o in padded.to_list()]==[8, 5, 1]
    assert all(o['input_ids'].shape==o['attention_mask'].shape==(1, 8) for o in padded.to_list())

def test_whoever_writes_into_the_list_leaves_the_set_alone(padded):
    before = padded.mask.clone()
    for o in padded.to_list(): o['input_ids'].zero_(); o['attention_mask'].zero_()
    assert (padded.mask==before).all() and content_hash(padded.tokens, padded.mask)==padded.hash

def read_as_gptqmodel(dataset, shortest=10):
    "What GPTQModel 7.7.0 makes of a dataset by its documented format: rows with `input_ids` and `attention_mask`, short ones left out"
    return [o for o in dataset if len(o['input_ids'])>shortest and all(isinstance(i, int) for i in o['input_ids']) and set(o['attention_mask'])<={0, 1}]

def test_the_format_of_gptqmodel(tiny_tokenizer):
    made, = sample_sets(texts(20), tiny_tokenizer, 1, 8, 40)
    assert [o['input_ids'] for o in read_as_gptqmodel(made.to_dataset())]==made.tokens.tolist()

# ---- text

@pytest.mark.parametrize('rule', ['window', 'pack'])
def test_text_comes_back_byte_by_byte(tiny_tokenizer, tmp_path, rule):
    "One token a byte: only a character cut in two can be lost"
    made, = sample_sets(texts(40), tiny_tokenizer, 1, 8, 100, rule=rule)
    copy = made.to_text(tiny_tokenizer, tmp_path/'t.txt')
    assert (copy.same, copy.in_place, copy.tokens, copy.read)==(1, 1, 800, 800)
    text = (tmp_path/'t.txt').read_bytes()
    back = tiny_tokenizer(text[:-1].decode(), add_special_tokens=False)['input_ids']
    assert torch.tensor([0]+back).view(8, 100).equal(made.tokens)

def test_a_character_cut_in_two_is_lost(tiny_tokenizer, tmp_path):
    made = CalibrationSet.from_tokens(torch.tensor([[0]+tiny_tokenizer('é')['input_ids'][-1:]*1+tiny_tokenizer('ab')['input_ids'][-2:], [0]+tiny_tokenizer('abc')['input_ids'][-3:]]))
    copy = made.to_text(tiny_tokenizer, tmp_path/'t.txt')
    assert copy.same==.5 and copy.in_place<1 and '50.0% of 2 sequences' in repr(copy)

def test_special_tokens_spelt_in_the_text_are_lost(tiny_tokenizer, tmp_path):
    made, = sample_sets(['say </s> aloud '*5], tiny_tokenizer, 1, 1, 40)
    assert 1 not in made.tokens and made.to_text(tiny_tokenizer, tmp_path/'t.txt').same==0

def test_a_newline_at_the_end_is_not_lost(tiny_tokenizer, tmp_path):
    made = CalibrationSet.from_tokens(torch.tensor([[0]+tiny_tokenizer('ab\n', add_special_tokens=False)['input_ids']]))
    made.to_text(tiny_tokenizer, tmp_path/'t.txt')
    assert (tmp_path/'t.txt').read_bytes()==b'ab\n\n' # llama.cpp drops one

def test_padding_is_not_written(tiny_tokenizer, tmp_path):
    made, = sample_sets(['short', 'a bit longer'], tiny_tokenizer, 1, 2, 32, rule='pad')
    copy = made.to_text(tiny_tokenizer, tmp_path/'t.txt')
    assert '<pad>' not in (tmp_path/'t.txt').read_text() and (copy.same, copy.tokens)==(1, 19)

# ---- datasheets

def made_of_every_kind(tokenizer):
    a,b = sample_sets(texts(40), tokenizer, 2, 8, 40)
    docs, = sample_sets('docs', tokenizer, 1, 8, 40)
    drawn = torch.randint(3, 259, (8, 40), generator=torch.Generator().manual_seed(0))
    random = CalibrationSet(drawn, dict(kind='random', name='random', sampling=dict(n_sets=1, seed=0, bos=None, vocabulary=256), tokenizer=tokenizer_fingerprint(tokenizer), set=0))
    chosen = CalibrationSet(a.tokens[:2], dict(kind='selected', name='texts', method='keep_likely', settings=dict(percentile=80), of=a.hash, rows=[0, 1], manifest=a.manifest))
    wrote = CalibrationSet.from_tokens(a.tokens, kind='self', name='self', model=dict(name='/data/me/model', revision=None), sampling=dict(seed=3, t_final=1.0, schedule=[10, 1], prompts=list(range(50))), set=1)
    return dict(sampled=docs, texts=a, random=random, self=wrote, rows=a[2:4], mix=mix({a: .5, random[1:]: .5}), selected=chosen, tokens=CalibrationSet.from_tokens(a.tokens),
                nothing=CalibrationSet(a.tokens, {}), unknown=CalibrationSet(a.tokens, dict(kind='new', name='a|b')))

def test_a_datasheet_of_every_kind(tiny_tokenizer):
    for kind,made in made_of_every_kind(tiny_tokenizer).items():
        page = made.datasheet(tiny_tokenizer)
        lines = page.split('\n')
        assert lines[0]==f'# Calibration set: {escape_markdown(made.name)}' and f'| content hash | {made.hash} |' in page, kind
        assert f'heads {int((made.tokens[:,0]==0).sum())} of {len(made)} sequences' in page and f'| length | {made.length} tokens |' in page, kind
        for title in ('## Where it comes from', '## What is not known', '## Samples'): assert title in lines, kind
        assert page.count('```text')==min(3, len(made)) and '/data/me' not in page and 'None' not in page.split('## Samples')[0].replace('bos=None', ''), kind
        assert page==made.datasheet(tiny_tokenizer) and made.datasheet(), kind

def test_a_datasheet_names_the_parts(tiny_tokenizer):
    made = made_of_every_kind(tiny_tokenizer)
    mixed = made['mix'].datasheet()
    assert '### Part 1: texts' in mixed and '### Part 2: random' in mixed and mixed.count('\n#### Taken from: ')==2 and '| weight | 0.5 |' in mixed
    assert '| method | keep_likely |' in made['selected'].datasheet() and '### Taken from: texts' in made['selected'].datasheet()
    assert 'PSF-2.0: python' in made['sampled'].datasheet() and 'not recorded' in made['texts'].datasheet()

def test_a_datasheet_finds_manifests_wherever_they_stand(tiny_tokenizer):
    inner = dict(kind='sampled', name='inner', source=dict(kind='texts', fingerprint='f', license='cc0-1.0'), sampling=dict(seed=1))
    made = CalibrationSet.from_tokens(torch.ones(2,3).long(), kind='self', name='s', text=dict(hash='abc', manifest=inner), sampling=dict(frequencies=dict(hash='def', manifest=inner)))
    page = made.datasheet()
    assert '### Part 1: inner' in page and '### Part 2: inner' in page and page.count('| licence | cc0-1.0 |')==2 and '| text: hash | abc |' in page

def test_a_datasheet_draws_the_set_again(tiny_tokenizer, tmp_path):
    file = tmp_path/'my text.jsonl'
    file.write_text('\n'.join(json.dumps(dict(text=o)) for o in texts(40)))
    for source,settings in (('docs', {}), (file, dict(rule='pack', bos=False, seed=5)), (texts(40), dict(near_duplicates=False))):
        made = sample_sets(source, tiny_tokenizer, 2, 4, 40, **settings)[1]
        code = made.datasheet().split('```python\n')[1].split('```')[0]
        names = dict(tokenizer=tiny_tokenizer, texts=source)
        exec(code, names)
        assert names['calibration']==made
        assert str(tmp_path) not in made.datasheet(folders=False) # nobody else has this folder

def test_the_printed_call_works_from_another_folder(tiny_tokenizer, tmp_path, monkeypatch):
    for o in ('here/my', 'there'): (tmp_path/o).mkdir(parents=True)
    (tmp_path/'here/my/shakespeare.txt').write_text('\n\n'.join(texts(60)))
    monkeypatch.chdir(tmp_path/'here')
    made, = sample_sets('my/shakespeare.txt', tiny_tokenizer, 1, 1, 40)
    monkeypatch.chdir(tmp_path/'there')
    exec(made.datasheet().split('```python\n')[1].split('```')[0], names:=dict(tokenizer=tiny_tokenizer))
    assert names['calibration']==made and regenerate(made.manifest, tiny_tokenizer, expected=made.hash)==made
    assert "'my/shakespeare.txt'" in made.datasheet() and "sample_sets('my/shakespeare.txt'" in made.datasheet(folders=False)
    (tmp_path/'here').rename(tmp_path/'moved')
    monkeypatch.chdir(tmp_path/'moved')
    assert regenerate(made.manifest, tiny_tokenizer, expected=made.hash)==made # as it was called

@pytest.mark.parametrize('source', ['a text of mine', ['a', 'b'], 3, None, {}, dict(kind='new'), dict(kind='texts', packages='none')])
@pytest.mark.parametrize('kind', ['tokens', 'sampled'])
def test_a_datasheet_of_whatever_a_manifest_holds(tiny_tokenizer, source, kind):
    made = CalibrationSet.from_tokens(torch.ones(2,3).long(), kind=kind, source=source, documents='some of mine', sampling=dict(seed=1))
    page = made.datasheet(tiny_tokenizer)
    assert '| documents | some of mine |' in page and (source!='a text of mine' or '| source | a text of mine |' in page)

def test_nasty_names_are_shown_as_names(tiny_tokenizer, tmp_path):
    nasty = 'a|b<i>\x1b[31m\n# c'
    made = CalibrationSet.from_tokens(torch.tensor([tiny_tokenizer('x\x1b[31m')['input_ids']]), name=nasty, note=nasty, source=nasty, kind=nasty)
    for page in (made.datasheet(tiny_tokenizer), made._repr_markdown_(), repr(made)):
        assert '\x1b' not in page and '\n# c' not in page
    assert '<i>' not in made.datasheet(tiny_tokenizer).split('## Samples')[0]+made._repr_markdown_()
    for line in made._repr_markdown_().split('\n'): assert line.count('|')-line.count(r'\|')==3
    copy = made.to_text(tiny_tokenizer, tmp_path/'a|b<i>\x1b[31m.txt')
    assert '\x1b' not in copy._repr_markdown_()+repr(copy) and '<i>' not in copy._repr_markdown_()

def test_backticks_do_not_end_a_sample(tiny_tokenizer):
    made, = sample_sets(['```` and `'*9], tiny_tokenizer, 1, 1, 40)
    assert '`````text\n' in made.datasheet(tiny_tokenizer)

# ---- real programs

@pytest.fixture
def other_python():
    "Another Python with llm-compressor and AutoRound: COMPRESSCAL_LLMCOMPRESSOR_PYTHON names it, benchmarks/README.md tells how to make it"
    return os.environ.get('COMPRESSCAL_LLMCOMPRESSOR_PYTHON') or pytest.skip('no Python with llm-compressor: name one in COMPRESSCAL_LLMCOMPRESSOR_PYTHON')

def run(python, code, *args):
    head = 'import sys, torch; torch.set_num_threads(1); from transformers import AutoModelForCausalLM, AutoTokenizer; from compresscal.calibration.calibration_set import CalibrationSet\n' \
        'made = CalibrationSet.load(sys.argv[1]); model = AutoModelForCausalLM.from_pretrained(sys.argv[2]); tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])\n' \
        'seen,before = [],{k: v.clone() for k,v in model.state_dict().items()}\n' \
        'model.get_input_embeddings().register_forward_pre_hook(lambda m, x: seen.append(x[0].detach().clone()))\n'
    done = subprocess.run([python, '-c', head+textwrap.dedent(code), *map(str, args)], capture_output=True, text=True, env=outside_tests(root)|dict(HF_HUB_OFFLINE='1'), cwd=args[0].parent)
    assert done.returncode==0 and done.stdout.endswith('fine\n'), done.stdout[-2000:]+done.stderr[-4000:]

@pytest.mark.slow
@pytest.mark.parametrize('rule', ['window', 'pad'])
def test_llm_compressor_sees_the_same_tokens(other_python, tiny_checkpoint, tiny_tokenizer, tmp_path, rule):
    made, = sample_sets([o[:60+i%60] for i,o in enumerate(texts(30))], tiny_tokenizer, 1, 12, 48+32*(rule=='pad'), rule=rule)
    run(other_python, '''
        from llmcompressor import oneshot
        from llmcompressor.modifiers.pruning import SparseGPTModifier
        oneshot(model=model, dataset=made.to_dataset(), num_calibration_samples=len(made), pipeline='basic',
            recipe=SparseGPTModifier(sparsity=.5, targets=['Linear'], ignore=['lm_head']))
        assert sorted(o.tolist() for o in torch.cat(seen))==sorted(made.tokens.tolist())
        w = model.model.layers[0].mlp.up_proj
        assert not torch.equal(before['model.layers.0.mlp.up_proj.weight'], w.weight)
        print('fine')''', made.save(tmp_path/'set'), tiny_checkpoint)

@pytest.mark.slow
@pytest.mark.parametrize('rule', ['window', 'pad'])
def test_autoround_sees_the_same_tokens(other_python, tiny_checkpoint, tiny_tokenizer, tmp_path, rule):
    made, = sample_sets([o[:60+i%60] for i,o in enumerate(texts(30))], tiny_tokenizer, 1, 12, 48+32*(rule=='pad'), rule=rule)
    run(other_python, '''
        from auto_round import AutoRound
        AutoRound(model, tokenizer, scheme='W4A16', group_size=32, dataset=made.to_list(), seqlen=made.length, nsamples=len(made), iters=1, batch_size=4, device_map='cpu').quantize()
        rows = torch.cat(seen).tolist()
        assert all(o in rows for o in made.tokens.tolist()) and all(o in made.tokens.tolist() for o in rows)
        assert CalibrationSet(made.tokens, made.manifest, made.mask)==made # AutoRound wrote into its copies only
        print('fine')''', made.save(tmp_path/'set'), tiny_checkpoint)
