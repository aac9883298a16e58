"Entailment: every probability against one pair at a time, what decides it and what must not, and engines that are broken."
import json, math, random
import numpy as np, pytest, torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (AlbertConfig, AlbertForSequenceClassification, AlbertTokenizer, BertConfig, BertForSequenceClassification, BertModel,
                          PreTrainedTokenizerFast, RobertaConfig, RobertaForSequenceClassification)
from compresscal.hallucination.entailment import TRAINED_LABELS, EntailmentFunction, EntailmentModel, EntailmentScorer, _batches, _room, as_scorer, read_labels

pytestmark = pytest.mark.usefixtures('one_thread')
WORDS = [f'w{i}' for i in range(60)]
MNLI = {0: 'CONTRADICTION', 1: 'NEUTRAL', 2: 'ENTAILMENT'}

def words_tokenizer(limit=96, types=True):
    vocabulary = {o: i for i,o in enumerate(['[PAD]', '[UNK]', '[CLS]', '[SEP]', *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token='[UNK]'))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    second = ':1' if types else ''
    inner.post_processor = processors.TemplateProcessing(single='[CLS] $A [SEP]', pair=f'[CLS] $A [SEP] $B{second} [SEP]{second}', special_tokens=[('[CLS]', 2), ('[SEP]', 3)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token='[UNK]', pad_token='[PAD]', cls_token='[CLS]', sep_token='[SEP]', model_max_length=limit)

def made(kind, config, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(config).eval()

def bert(id2label=MNLI, seed=0, positions=96, **settings):
    config = BertConfig(vocab_size=64, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, max_position_embeddings=positions,
                        initializer_range=.3, id2label=id2label, attn_implementation='eager', **settings)
    return made(BertForSequenceClassification, config, seed),words_tokenizer(positions)

def albert(id2label={0: 'SUPPORTS', 1: 'REFUTES', 2: 'NOT ENOUGH INFO'}):
    pieces = [('<pad>', 0.), ('<unk>', 0.), ('[CLS]', 0.), ('[SEP]', 0.), ('[MASK]', 0.), ('▁', -2.)]+[(f'▁w{i}', -1.) for i in range(60)]+[(o, -3.) for o in 'w0123456789.']
    config = AlbertConfig(vocab_size=len(pieces), embedding_size=16, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
                          max_position_embeddings=96, initializer_range=.3, id2label=id2label, attn_implementation='eager')
    return made(AlbertForSequenceClassification, config),AlbertTokenizer(vocab=pieces)

def roberta():
    config = RobertaConfig(vocab_size=64, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, max_position_embeddings=66, pad_token_id=0,
                           type_vocab_size=1, initializer_range=.3, id2label=MNLI, attn_implementation='eager')
    return made(RobertaForSequenceClassification, config),words_tokenizer(10**9, types=False)

def random_pairs(n, most=30, seed=0):
    g = random.Random(seed)
    def text(): return ' '.join(g.choices(WORDS, k=g.randint(1, most)))
    return [(text(), text()) for _ in range(n)]

@torch.no_grad()
def plain(model, tokenizer, pair, limit, types):
    "Softmax of one pair by itself"
    batch = tokenizer(*pair, truncation='longest_first', max_length=limit, return_tensors='pt', return_token_type_ids=types)
    return model(**batch).logits[0].softmax(-1).tolist()

# ---- Labels

@pytest.mark.parametrize('names, order', [
    (['CONTRADICTION', 'NEUTRAL', 'ENTAILMENT'], (2, 1, 0)), (['entailment', 'neutral', 'contradiction'], (0, 1, 2)), (['SUPPORTS', 'REFUTES', 'NOT ENOUGH INFO'], (0, 2, 1)),
    (['Supports', 'Not_Enough_Info', 'Refutes'], (0, 1, 2)), (['entailment', 'not_entailment'], (0, None, None)), (['not-entailment', 'Entailment'], (1, None, None)),
    (['contradiction', 'entailment'], (1, None, 0))])
def test_labels_are_read(names, order): assert read_labels(names)==order

@pytest.mark.parametrize('names', [['LABEL_0', 'LABEL_1', 'LABEL_2'], ['neutral', 'contradiction'], ['entailment'], [], ['entailment', 'entails'], ['entailment', 'positive'],
                                   ['entailment', 'refutes', 'contradiction']])
def test_labels_that_say_nothing_are_refused(names):
    with pytest.raises(ValueError, match='`labels` must name one output entailment') as e: read_labels(names)
    assert all(repr(o) in str(e.value) for o in names)

def test_the_order_of_outputs_does_not_matter():
    "One model with its outputs and their names in another order"
    pairs = random_pairs(9)
    model,tokenizer = bert()
    one = EntailmentModel((model, tokenizer)).probabilities(pairs)
    other,_ = bert({i: MNLI[o] for i,o in enumerate([2, 0, 1])})
    with torch.no_grad():
        other.classifier.weight.copy_(model.classifier.weight[[2, 0, 1]])
        other.classifier.bias.copy_(model.classifier.bias[[2, 0, 1]])
    assert np.allclose(one, EntailmentModel((other, tokenizer)).probabilities(pairs), atol=1e-6)

def test_a_model_without_names_needs_labels():
    loaded = bert({0: 'LABEL_0', 1: 'LABEL_1', 2: 'LABEL_2'})
    with pytest.raises(ValueError, match="'LABEL_0', 'LABEL_1', 'LABEL_2': say what they are"): EntailmentModel(loaded).probabilities([('w1', 'w2')])
    named = EntailmentModel(bert()).probabilities([('w1', 'w2')])
    assert (EntailmentModel(loaded, labels=('contradiction', 'neutral', 'entailment')).probabilities([('w1', 'w2')])==named).all()
    assert (EntailmentModel(loaded, labels=('entailment', 'neutral', 'contradiction')).probabilities([('w1', 'w2')])==named[:, ::-1]).all()
    with pytest.raises(ValueError, match='must name the 3 outputs of BertForSequenceClassification, got 2 names'): EntailmentModel(loaded, labels=('entailment', 'neutral')).probabilities([('a', 'b')])

def test_labels_of_the_published_models_are_known(monkeypatch):
    "Whatever their configuration says, as long as it does not say otherwise"
    import compresscal.hallucination.entailment as e
    monkeypatch.setattr(e, '_open', lambda *o: bert({0: 'LABEL_0', 1: 'LABEL_1', 2: 'LABEL_2'}))
    assert EntailmentModel()._load()[2]==(0, 2, 1) and EntailmentModel('tals/albert-base-vitaminc-mnli')._load()[2]==(0, 2, 1)
    with pytest.raises(ValueError, match='LABEL_0'): EntailmentModel('some/other')._load()
    monkeypatch.setattr(e, '_open', lambda *o: bert())
    assert EntailmentModel()._load()[2]==(2, 1, 0) and all(read_labels(o)==(0, 2, 1) for o in TRAINED_LABELS.values())

def test_two_labels():
    model,tokenizer = bert({0: 'entailment', 1: 'not_entailment'})
    found = EntailmentModel((model, tokenizer)).probabilities(pairs := random_pairs(5))
    assert np.isnan(found[:, 1:]).all() and np.allclose(found[:, 0], [plain(model, tokenizer, o, 96, True)[0] for o in pairs], atol=1e-6)

# ---- Probabilities

@pytest.mark.parametrize('make, order, types', [(bert, [2, 1, 0], True), (albert, [0, 2, 1], True), (roberta, [2, 1, 0], False)])
def test_probabilities_are_those_of_single_pairs(make, order, types):
    model,tokenizer = make()
    pairs = random_pairs(60)
    found = EntailmentModel((model, tokenizer), max_length=48).probabilities(pairs)
    assert np.allclose(found, [np.array(plain(model, tokenizer, o, 48, types))[order] for o in pairs], atol=2e-6)
    assert np.ptp(found[:, 0])>.2 # else nothing was compared

def test_albert_is_told_which_text_is_which():
    model,tokenizer = albert()
    assert 'token_type_ids' not in tokenizer('w1', 'w2') # the reason for asking
    pair = ('w1 w2 w3', 'w4 w5')
    found = EntailmentModel((model, tokenizer)).probabilities([pair])[0, 0]
    assert abs(found-plain(model, tokenizer, pair, 96, True)[0])<1e-6 and abs(found-plain(model, tokenizer, pair, 96, None)[0])>1e-3

@pytest.mark.parametrize('make', [bert, albert, roberta])
def test_company_changes_no_bit(make):
    loaded,pairs = make(),random_pairs(150, seed=3)
    together = EntailmentModel(loaded).probabilities(pairs)
    assert (np.concatenate([EntailmentModel(loaded).probabilities([o]) for o in pairs[:25]])==together[:25]).all()
    for tokens in (1, 300, 100_000): assert (EntailmentModel(loaded, tokens=tokens).probabilities(pairs[::-1])[::-1]==together).all()

def test_long_pairs_lose_the_end_of_the_longer_text():
    model,tokenizer = bert()
    long,short = ' '.join(WORDS),'w1 w2 w3'
    scorer = EntailmentModel((model, tokenizer), max_length=20)
    assert (scorer.probabilities([(long, short)])==scorer.probabilities([(' '.join(WORDS[:14]), short)])).all()
    assert scorer._ask([(long, short), (short, short)])[:, 3].tolist()==[1, 0]
    assert scorer.probabilities([(short, long)])[0].tolist()!=scorer.probabilities([(long, short)])[0].tolist()

def test_a_pair_is_never_longer_than_the_model():
    for make,room in ((bert, 96), (roberta, 65)): # RoBERTa's first positions stand for padding
        model,tokenizer = make()
        assert _room(model, tokenizer)==room
        found = EntailmentModel((model, tokenizer)).probabilities([(' '.join(WORDS*9), ' '.join(WORDS*2))])
        assert np.isfinite(found).all()
    assert EntailmentModel(bert(positions=37)).probabilities([(' '.join(WORDS), 'w1')]).shape==(1, 3) # no multiple of 8

def test_batches_hold_rows_of_one_length():
    lengths = [random.Random(0).randint(3, 90) for _ in range(500)]
    made = list(_batches(lengths, 512, math.inf))
    assert sorted(i for _,o in made for i in o)==list(range(500))
    assert all(n%8==0 and n-8<lengths[i]<=n for n,o in made for i in o) and all(len(o)<=max(16, 512//n) for n,o in made)
    assert len(made)<90

@pytest.mark.parametrize('pair', [('', 'w1'), ('w1', ''), ('', ''), ('👩🏽‍🚀 w1', 'Ünïcödé 中文 w2'), ('w1\n\tw2', '\x00w3'), ('\ud800', 'w1')])
def test_odd_texts_have_probabilities(pair):
    found = EntailmentFunction(lambda o: [[.2, .3, .5]]*len(o)).probabilities([pair])
    assert found.tolist()==[[.2, .3, .5]]
    assert abs(EntailmentModel(bert()).probabilities([pair]).sum()-1)<1e-6

def test_the_model_is_left_as_it_was():
    model,tokenizer = bert(hidden_dropout_prob=.5)
    evaluated = EntailmentModel((model, tokenizer)).probabilities([('w1', 'w2')])
    model.train()
    assert (EntailmentModel((model, tokenizer)).probabilities([('w1', 'w2')])==evaluated).all() and model.training

# ---- Once

class Counting(EntailmentFunction):
    def __init__(self, **settings):
        self.calls = []
        super().__init__(lambda pairs: self.calls.append(list(pairs)) or [[len(a)/100, len(b)/100, 0] for a,b in pairs], 'lengths', **settings)

def test_each_pair_is_asked_once():
    scorer,pairs = Counting(),random_pairs(40, 5)*3
    random.Random(0).shuffle(pairs)
    expected = [[len(a)/100, len(b)/100, 0] for a,b in pairs]
    for _ in range(2): assert np.allclose(scorer.probabilities(pairs), expected)
    assert len(scorer.calls)==1 and sorted(scorer.calls[0])==sorted(set(pairs)) and scorer.asked==len(set(pairs))
    assert np.allclose(scorer.probabilities([('ab', 'c'), ('a', 'bc')]), [[.02, .01, 0], [.01, .02, 0]]) # no pair stands for another
    scorer.probabilities(pairs[:5]+[('x', 'y')])
    assert scorer.calls[-1]==[('x', 'y')]

@pytest.mark.parametrize('remember', [0, 1, 7])
def test_memory_is_bounded_and_changes_nothing(remember):
    scorer,pairs = Counting(remember=remember),random_pairs(20, 5)
    assert np.allclose(scorer.probabilities(pairs), expected := [[len(a)/100, len(b)/100, 0] for a,b in pairs])
    assert len(scorer._known)==remember and len(scorer.calls)==1
    scorer.probabilities(pairs[-1:]) # the last of all is forgotten last
    assert len(scorer.calls)==(1 if remember else 2)
    assert np.allclose(scorer.probabilities(pairs), expected) and len(scorer._known)==remember

def test_probabilities_are_not_shared_with_the_caller():
    scorer = Counting()
    with pytest.raises(ValueError, match='read-only'): scorer.probabilities([('a', 'b')])[0, 0] = 9

# ---- Faults

@pytest.mark.parametrize('row, said', [([math.nan, .5, .5], 'got entailment nan'), ([math.inf, 0, 0], 'got entailment inf'), ([.5, 1.5, 0], 'got neutral 1.5'), ([-.1, 0, 0], 'got entailment -0.1')])
def test_a_broken_engine_is_named(row, said):
    with pytest.raises(ValueError, match=f"^mine must give probabilities, {said} for premise 'second' and hypothesis 'b'"):
        EntailmentFunction(lambda pairs: [[.5, .25, .25] if a=='first' else row for a,_ in pairs], 'mine').probabilities([('first', 'b'), ('second', 'b')])

def test_a_column_is_absent_as_a_whole_or_not_at_all():
    assert np.isnan(EntailmentFunction(lambda o: [[.5, .5, math.nan]]*len(o)).probabilities([('a', 'b'), ('c', 'd')])[:, 2]).all()
    with pytest.raises(ValueError, match='got contradiction nan'): EntailmentFunction(lambda o: [[.5, .5, math.nan], [.5, .5, 0]]).probabilities([('a', 'b'), ('c', 'd')])

def test_a_broken_model_is_named_and_nothing_is_remembered():
    model,tokenizer = bert()
    scorer = EntailmentModel((model, tokenizer))
    with torch.no_grad(): model.classifier.bias[0] = math.nan
    with pytest.raises(ValueError, match="BertForSequenceClassification must give probabilities, got entailment nan for premise 'w1'"): scorer.probabilities([('w1', 'w2')])
    with torch.no_grad(): model.classifier.bias[0] = 0
    assert np.isfinite(scorer.probabilities([('w1', 'w2')])).all()

@pytest.mark.parametrize('pairs', [['ab'], [('a',)], [('a', 'b', 'c')], [('a', None)], [1]])
def test_pairs_that_are_none(pairs):
    with pytest.raises(TypeError, match='`pairs` must hold pairs of texts'): Counting().probabilities(pairs)

@pytest.mark.parametrize('function, said', [(lambda o: [], 'got shape'), (lambda o: [[.5, .5]], 'got shape'), (lambda o: [[.5, .5, 0]]*5, 'got shape')])
def test_a_function_of_another_shape(function, said):
    with pytest.raises(ValueError, match=said): EntailmentFunction(function).probabilities([('a', 'b')])

@pytest.mark.parametrize('settings, said', [(dict(max_length=0), '`max_length`'), (dict(max_length=True), '`max_length`'), (dict(tokens=0), '`tokens`'), (dict(remember=-1), '`remember`'),
                                            (dict(labels=['a', 'b']), '`labels`')])
def test_settings_that_make_no_sense(settings, said):
    with pytest.raises(ValueError, match=said): EntailmentModel(**settings)

def test_models_that_are_none(tmp_path):
    model,tokenizer = bert()
    for bad in (model, 3, (model,), (tokenizer, model), (model, 'tokenizer')):
        with pytest.raises(TypeError, match='`model` must be a'): EntailmentModel(bad)
    with pytest.raises(TypeError, match='a loaded model and its tokenizer, got BertForSequenceClassification'): as_scorer(model)
    with pytest.raises(TypeError, match='`labels` must be a list'): EntailmentModel(labels='entailment')
    for bad in (tmp_path, tmp_path/'nowhere', 'nobody/nothing'):
        with pytest.raises(ValueError, match='`model` must be a folder or a Hub id of a model of natural language inference') as e: EntailmentModel(bad).probabilities([('a', 'b')])
        assert '\n' not in str(e.value)
    with pytest.raises(ValueError, match="`device` must be one that is here, got 'nowhere'"): EntailmentModel(tmp_path, device='nowhere').probabilities([('a', 'b')])
    with pytest.raises(ValueError, match="`dtype` must be a float type"): EntailmentModel(tmp_path, dtype='int8').probabilities([('a', 'b')])
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match='a token for padding'): EntailmentModel((model, tokenizer)).probabilities([('a', 'b')])

def test_a_model_without_a_classifier_is_refused(tmp_path):
    model,tokenizer = bert()
    tokenizer.save_pretrained(tmp_path)
    made(BertModel, model.config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match='its weights lack classifier'): EntailmentModel(tmp_path).probabilities([('a', 'b')])

def test_a_tokenizer_of_sentencepiece_alone(tmp_path):
    "As the default model has it: a folder with spiece.model and no tokenizer.json"
    sentencepiece = pytest.importorskip('sentencepiece')
    lines = [' '.join(random.Random(i).choices(WORDS, k=12)) for i in range(300)]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_prefix=str(tmp_path/'spiece'), vocab_size=60, hard_vocab_limit=False, pad_id=0, unk_id=1, bos_id=-1,
                                             eos_id=-1, pad_piece='<pad>', control_symbols='[CLS],[SEP]', user_defined_symbols='[MASK]', minloglevel=2)
    model,_ = albert()
    model.save_pretrained(tmp_path)
    tokenizer = EntailmentModel(tmp_path, device='cpu')._load()[1]
    assert not list(tmp_path.glob('tokenizer*')) and tokenizer.convert_ids_to_tokens(tokenizer('w1', 'w2').input_ids)[0]=='[CLS]'
    pairs = random_pairs(8)
    found = EntailmentModel(tmp_path, device='cpu', max_length=48).probabilities(pairs)
    assert np.allclose(found, [np.array(plain(model, tokenizer, o, 48, True))[[0, 2, 1]] for o in pairs], atol=2e-6)

def test_without_sentencepiece_the_message_says_so(tmp_path, monkeypatch):
    import transformers
    model,_ = albert()
    model.save_pretrained(tmp_path)
    def missing(*args, **settings): raise ValueError('`tiktoken` is required to read a `tiktoken` file. Install it with `pip install tiktoken`.')
    monkeypatch.setattr(transformers.AutoTokenizer, 'from_pretrained', missing)
    with pytest.raises(ImportError, match=r"needs the packages sentencepiece and protobuf: pip install 'compresscal\[summaries\]'"): EntailmentModel(tmp_path).probabilities([('a', 'b')])

# ---- Settings

def test_a_folder_gives_what_its_model_gives(tmp_path):
    model,tokenizer = bert()
    for o in ('one', 'two'):
        model.save_pretrained(tmp_path/o)
        tokenizer.save_pretrained(tmp_path/o)
    pairs = random_pairs(10)
    one,two = EntailmentModel(tmp_path/'one', device='cpu'),EntailmentModel(str(tmp_path/'two'), device='cpu')
    settings = one.settings()
    assert one._loaded is None and json.loads(json.dumps(settings))==settings and settings['files']==two.settings()['files'] and settings['model']=='one' and str(tmp_path) not in json.dumps(settings)
    assert (one.probabilities(pairs)==EntailmentModel((model, tokenizer)).probabilities(pairs)).all()
    bert(seed=1)[0].save_pretrained(tmp_path/'two')
    assert EntailmentModel(tmp_path/'two').settings()['files']!=settings['files']

def test_settings_tell_models_apart():
    one,same,other = (EntailmentModel(bert(seed=o)).settings() for o in (0, 0, 1))
    assert one==same!=other and one['dtype']=='float32' and json.loads(json.dumps(one))==one
    assert EntailmentModel('a/b', revision='c').settings()!=EntailmentModel('a/b').settings()!=EntailmentModel('a/b', max_length=128).settings()
    assert EntailmentModel('a/b', tokens=64, device='cpu').settings()==EntailmentModel('a/b').settings()

def test_scorers_are_made_of_what_there_is():
    scorer = Counting()
    assert as_scorer(scorer) is scorer and isinstance(as_scorer(len), EntailmentFunction) and isinstance(as_scorer('a/b'), EntailmentModel) and isinstance(as_scorer(bert()), EntailmentModel)
    assert as_scorer(random_pairs).settings()['model'].endswith('.random_pairs')
    with pytest.raises(TypeError, match='got NoneType'): as_scorer(None)
    with pytest.raises(NotImplementedError): EntailmentScorer().probabilities([('a', 'b')])
