"Calibration sets: disjoint, seeded, regenerated in another process, whole or absent on disk."
import json, os, subprocess, sys
import pandas as pd, pytest, torch
from tokenizers import Tokenizer, models, pre_tokenizers, decoders
from transformers import PreTrainedTokenizerFast
from compresscal.calibration.calibration_set import CalibrationSet
from compresscal.calibration.sampling import mix, regenerate, sample_sets, window_rules
from compresscal.text.corpora import Corpus, HubText, hub_texts
from compresscal.text.installed_text import Document
from compresscal.calibration.sources import calibration_sets
from compresscal.calibration.self_text import random_vocabulary

@pytest.fixture(scope='module')
def bytewise():
    "A tokenizer whose tokens are bytes, with BOS and EOS"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={o: i+2 for i,o in enumerate(alphabet)} | {'<s>': 0, '</s>': 1}, merges=[]))
    backend.pre_tokenizer,backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False),decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token='<s>', eos_token='</s>')

def texts(n, words=60): return [' '.join(f'w{i}x{j}' for j in range(words+i%7)) for i in range(n)]

@pytest.mark.parametrize('rule', window_rules)
def test_sets_share_no_document(bytewise, rule):
    sets = sample_sets(texts(60), bytewise, 4, 8, 100, rule=rule)
    used = [{p[0] for parts in o.manifest['documents'] for p in parts} for o in sets]
    assert sum(map(len, used))==len(set.union(*used))
    assert len({o.hash for o in sets})==4

@pytest.mark.parametrize('rule', window_rules)
def test_the_manifest_names_the_text_of_every_window(bytewise, rule):
    source = texts(40)
    for o in sample_sets(source, bytewise, 2, 8, 100, seed=5, rule=rule):
        for row,parts in zip(o.tokens, o.manifest['documents']):
            encoded = [bytewise(source[int(id.split(':')[1])], add_special_tokens=False)['input_ids']+[1]*(rule=='pack') for id,_,_ in parts]
            expected = [0]+[t for ids,(_,a,b) in zip(encoded, parts) for t in ids[a:b]]
            assert row[:len(expected)].tolist()==expected

def test_near_copies_serve_one_set(bytewise):
    originals = texts(20)
    copies = [o.replace('w', 'W', 3)+' end' for o in originals]
    sets = sample_sets(originals+copies, bytewise, 2, 10, 50)
    used = [{int(p[0].split(':')[1])%20 for parts in o.manifest['documents'] for p in parts} for o in sets]
    assert not used[0] & used[1]
    assert sets[0].manifest['reading']['duplicates']>0
    with pytest.raises(ValueError, match='20 documents are that long'): sample_sets(originals+copies, bytewise, 3, 10, 50)

def test_a_document_within_another_serves_no_other_set(bytewise):
    "Quoted in a longer one, or cut from it, whichever is read first"
    pages = [' '.join(f'w{i}x{j}' for j in range(90)) for i in range(30)]
    holders = [f"{' '.join(f'own{i}y{j}' for j in range(200))} {pages[i]} {' '.join(f'end{i}z{j}' for j in range(150))}" for i in range(10)]
    source = pages+holders
    number = lambda id: int(id.split(':')[1])%30
    for seed in range(3):
        sets = sample_sets(source, bytewise, 3, 10, 50, seed)
        used = [number(p[0]) for o in sets for parts in o.manifest['documents'] for p in parts]
        assert len(set(used))==30 and sets[0].manifest['reading']['duplicates']>=5
        assert regenerate(sets[2].manifest, bytewise, source, sets[2].hash)==sets[2]
    with pytest.raises(ValueError, match='30 documents are that long'): sample_sets(source, bytewise, 4, 10, 50)
    assert len(sample_sets(source, bytewise, 4, 10, 50, contained=False))==4

def test_a_manifest_of_before_is_made_again(bytewise):
    old = sample_sets(texts(20), bytewise, 1, 4, 60, contained=False)[0]
    manifest = json.loads(json.dumps(old.manifest))
    for o in (manifest['sampling'], manifest): o.pop('contained', None), o.pop('special', None)
    assert regenerate(manifest, bytewise, texts(20), old.hash)==old

def test_too_little_text_says_how_much_there_is(bytewise):
    with pytest.raises(ValueError, match=r'needs 50 windows of 99 tokens \(4,950 tokens\).*there are [\d,]+ tokens \(3 different documents'):
        sample_sets(texts(3), bytewise, 5, 10, 100, rule='pack')

def test_padding_is_masked_and_bos_heads_every_window(bytewise):
    o, = sample_sets(['short', 'a bit longer'], bytewise, 1, 2, 32, rule='pad')
    assert sorted(o.mask.sum(1).tolist())==[6, 13] and (o.tokens[:,0]==0).all()
    bare, = sample_sets(['short', 'a bit longer'], bytewise, 1, 2, 32, rule='pad', bos=False)
    assert sorted(bare.mask.sum(1).tolist())==[5, 12]

def test_special_tokens_in_a_text_are_text(bytewise):
    o, = sample_sets(['say </s> aloud '*5], bytewise, 1, 1, 40)
    assert 1 not in o.tokens

def test_a_long_document_is_not_read_twice(bytewise):
    read = []
    def shard():
        for i in range(10_000): read.append(i); yield Document(f'text {i} '+'word '*9, f'{i}')
    sample_sets(Corpus('stream', {}, dict(all=shard)), bytewise, 2, 5, 20, near_duplicates=False)
    assert len(read)<=10_000

def test_regenerated_in_another_process(tmp_path, bytewise):
    file = tmp_path/'text.jsonl'
    file.write_text('\n'.join(json.dumps(dict(text=o)) for o in texts(40)))
    for i,source in enumerate([file, 'docs']):
        sample_sets(source, bytewise, 2, 4, 64, seed=9)[1].save(tmp_path/f'set{i}')
    bytewise.save_pretrained(tmp_path/'tokenizer')
    code = ('import sys; from pathlib import Path; from transformers import AutoTokenizer; from compresscal.calibration.sampling import CalibrationSet, regenerate\n'
        'home = Path(sys.argv[1]); t = AutoTokenizer.from_pretrained(home/"tokenizer")\n'
        'for i in range(2): s = CalibrationSet.load(home/f"set{i}"); assert regenerate(s.manifest, t, expected=s.hash)==s')
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True, env=os.environ|dict(PYTHONHASHSEED='7'))
    assert done.returncode==0, done.stderr
    file.write_text('\n'.join(json.dumps(dict(text=o[::-1])) for o in texts(40)))
    saved = CalibrationSet.load(tmp_path/'set0')
    with pytest.raises(ValueError, match='the source has changed'): regenerate(saved.manifest, bytewise, expected=saved.hash)

def test_a_set_of_the_hub_is_regenerated_from_its_manifest(tmp_path, bytewise, monkeypatch):
    for i in range(4): pd.DataFrame(dict(article=texts(80)[20*i:20*i+20])).to_parquet(tmp_path/f'train-{i:05}-of-00004.parquet')
    monkeypatch.setitem(hub_texts, 'pretend', HubText(str(tmp_path), column='article'))
    made = sample_sets('pretend', bytewise, 2, 8, 50, seed=3)[1]
    manifest = json.loads(json.dumps(made.manifest))
    assert manifest['source']['kind']=='hub' and len(manifest['reading']['opened'])==4
    assert regenerate(manifest, bytewise, expected=made.hash)==made

def test_a_tokenizer_that_differs_beside_its_vocabulary_is_refused_by_name(bytewise):
    backend = bytewise.backend_tokenizer
    chatty,other = (PreTrainedTokenizerFast(tokenizer_object=backend, bos_token='<s>', eos_token='</s>', chat_template=f"<s>{o}{{{{ messages[0]['content'] }}}}</s>") for o in ('user:', 'you:'))
    by_turn,plain = (sample_sets(texts(20), chatty, 1, 4, 60, chat=o)[0] for o in (True, False))
    assert regenerate(by_turn.manifest, chatty, texts(20), by_turn.hash)==by_turn and regenerate(plain.manifest, other, texts(20), plain.hash)==plain
    with pytest.raises(ValueError, match='`tokenizer` must be a chat template of hash'): regenerate(by_turn.manifest, other, texts(20))
    ends = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token='<s>', eos_token='<s>')
    with pytest.raises(ValueError, match='with the special tokens .*eos.*got'): regenerate(plain.manifest, ends, texts(20))

def test_mixing_keeps_masks_and_shares(bytewise):
    a, = sample_sets(texts(12), bytewise, 1, 8, 40)
    b, = sample_sets(['short '+o[:9] for o in texts(30)], bytewise, 1, 8, 40, rule='pad')
    mixed = mix({a: .25, b: .75}, n_sequences=8)
    assert int((mixed.mask.all(1)).sum())==2 and len(mixed)==8
    assert mixed.manifest['parts'][1]['manifest']['documents']

@pytest.mark.parametrize('weights', [(1, 3), (.5, .4), (.5, .5+1e-5), (.5, float('nan'))])
def test_weights_that_do_not_sum_to_one_are_refused(bytewise, weights):
    sets = sample_sets(texts(30), bytewise, 2, 8, 40)
    with pytest.raises(ValueError, match='`weights` must'): mix(dict(zip(sets, weights)))

@pytest.mark.parametrize('n', [3, 7, 8, 24])
def test_thirds_are_as_even_as_whole_rows_allow(bytewise, n):
    sets = sample_sets(texts(60), bytewise, 3, 8, 40)
    mixed = mix({o: 1/3 for o in sets}, n)
    taken = [o['sequences'] for o in mixed.manifest['parts']]
    assert len(mixed)==sum(taken)==n and max(taken)-min(taken)<=1

def test_random_vocabulary_is_uniform(bytewise):
    o, = random_vocabulary(bytewise, 1, 200, 256)
    counts = o.tokens[:,1:].flatten().bincount(minlength=258)[2:].float()
    chi = ((counts-counts.mean())**2/counts.mean()).sum()
    assert 150<chi<400 # 255 degrees of freedom
    assert o==calibration_sets('random', bytewise, 1, 200, 256)[0]

def test_text_of_any_suffix_can_be_regenerated(tmp_path, tiny_tokenizer):
    (tmp_path/'a.tex').write_text('\n\n'.join(f'Paragraph {i} of a book, of {i*i} words. '*40 for i in range(30)))
    made = sample_sets(f"text:{tmp_path/'a.tex'}", tiny_tokenizer, 1, 2, 16)[0]
    assert made.manifest['source']['format']=='text' and str(tmp_path) in made.manifest['source']['path']
    assert regenerate(made.manifest, tiny_tokenizer, expected=made.hash)==made
    call = [o for o in made.datasheet(tiny_tokenizer).splitlines() if o.startswith('calibration = ')][0].removeprefix('calibration = ')
    assert eval(call, dict(sample_sets=sample_sets, tokenizer=tiny_tokenizer))==made
    assert "'text:a.tex'" in made.datasheet(tiny_tokenizer, folders=False)
