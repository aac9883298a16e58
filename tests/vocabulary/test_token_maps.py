"Tokenizers and collators in the numbers of kept tokens, against the same in the numbers of all."
import copy, pickle
import numpy as np
import pytest, torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, DataCollatorForLanguageModeling, DataCollatorForSeq2Seq, DataCollatorForTokenClassification, DataCollatorWithPadding, PreTrainedTokenizerFast
from compresscal.vocabulary.token_maps import ReducedCollator, ReducedTokenizer, TokenMap

@pytest.fixture
def words():
    "A tokenizer of sixty words, which puts `[CLS]` and `[SEP]` around its text"
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    vocab = {o: i for i,o in enumerate([*(f'w{i}' for i in range(20)), *special, *(f'w{i}' for i in range(20, 60))])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token='[UNK]'))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing('[CLS] $A [SEP]', '[CLS] $A [SEP] $B:1 [SEP]:1', [('[CLS]', vocab['[CLS]']), ('[SEP]', vocab['[SEP]'])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token='[PAD]', unk_token='[UNK]', cls_token='[CLS]', sep_token='[SEP]', mask_token='[MASK]', model_max_length=12)

@pytest.fixture
def small(words): return ReducedTokenizer(words, TokenMap(sorted({*words.all_special_ids, *words('w3 w7 w21 w50 w59').input_ids}), len(words), 'unk', words.unk_token_id))

texts = ['w3 w59 w7', 'w21', 'w50 w50 w3 w7 w21 w59']

def test_calls(words, small):
    for args,kwargs in (((texts,), dict(padding=True)), ((texts,), dict(padding='max_length', return_tensors='np')), ((texts, texts[::-1]), dict(padding=True, truncation=True, return_tensors='pt')),
                        (('w3',), {}), ((texts,), dict(text_target=texts, padding=True))):
        a, b = words(*args, **kwargs), small(*args, **kwargs)
        assert a.keys()==b.keys() and type(a['input_ids']) is type(b['input_ids'])
        for k in a:
            x, y = (np.asarray(o[k]) for o in (a, b))
            assert (x==(np.asarray(small.tokens.decode(y)) if k in ('input_ids', 'labels') else y)).all()
    assert small.decode(small('w3 w7').input_ids)==words.decode(words('w3 w7').input_ids) and small.batch_decode(small(texts).input_ids)==words.batch_decode(words(texts).input_ids)
    assert small.decode(small('w3 w8').input_ids, skip_special_tokens=False)=='[CLS] w3 [UNK] [SEP]'

def test_ids_of_special_tokens(words, small):
    for k in ('pad', 'unk', 'cls', 'sep', 'mask'): assert small.tokens.decode(getattr(small, f'{k}_token_id'))==getattr(words, f'{k}_token_id') and getattr(small, f'{k}_token')==getattr(words, f'{k}_token')
    assert small.bos_token_id is None and small.convert_tokens_to_ids(['w3', '[MASK]'])==[small.tokens.encode(3), small.mask_token_id]
    assert small.get_special_tokens_mask(small('w3 w7').input_ids, already_has_special_tokens=True)==[1, 0, 0, 1]
    small.padding_side = 'left'
    assert words.padding_side=='left' and small(texts[:2], padding=True).input_ids[1][0]==small.pad_token_id
    few = ReducedTokenizer(words, TokenMap([3, 20], len(words)))
    assert few.pad_token_id==1 and few.mask_token_id is None and few.all_special_ids==[1]

def test_masking_draws_kept_tokens(small):
    "A collator that replaces tokens by random ones does so within the reduced vocabulary, and a reduced model takes its batches"
    torch.manual_seed(0)
    collator = DataCollatorForLanguageModeling(small, mlm_probability=.5)
    model = BertForMaskedLM(BertConfig(vocab_size=len(small), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, pad_token_id=small.pad_token_id))
    seen = set()
    for _ in range(50):
        batch = collator([small(t) for t in texts])
        seen |= set(batch['input_ids'].flatten().tolist())
        labels = batch['labels']
        assert batch['input_ids'].max()<len(small) and not set(labels[labels!=-100].tolist())&{small.cls_token_id, small.sep_token_id, small.pad_token_id}
    assert small.mask_token_id in seen and len(seen)==len(small) and model(**batch).loss.isfinite()

def test_collators_in_either_order(words, small):
    "Reduce then collate, or collate then reduce: the same batch"
    rows, less = [dict(words(t), labels=words(t).input_ids) for t in texts], [dict(small(t), labels=small(t).input_ids) for t in texts]
    for make in (DataCollatorForSeq2Seq, DataCollatorForTokenClassification):
        a, b = ReducedCollator(make(words), small.tokens)(copy.deepcopy(rows)), make(small)(copy.deepcopy(less))
        assert a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a) and (a['labels']==-100).any()
    a, b = ReducedCollator(DataCollatorWithPadding(words), small.tokens, 'input_ids')([dict(words(t), labels=i) for i,t in enumerate(texts)]), DataCollatorWithPadding(small)([dict(small(t), labels=i) for i,t in enumerate(texts)])
    assert all(torch.equal(a[k], b[k]) for k in b) and a['labels'].tolist()==[0, 1, 2]

def test_chat(words, small):
    words.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    talk = [dict(role='user', content='w3 w7'), dict(role='assistant', content='w59')]
    assert small.apply_chat_template(talk, tokenize=False)=='w3 w7 w59 '
    got, full = small.apply_chat_template(talk), words.apply_chat_template(talk)
    assert small.tokens.decode(got['input_ids'] if hasattr(got, 'keys') else got)==(full['input_ids'] if hasattr(full, 'keys') else full)

def test_saved_and_sent(words, small, tmp_path):
    "The whole tokenizer is saved, and the wrapper goes to other processes"
    small.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)('w3 w8').input_ids==words('w3 w8').input_ids
    for other in (pickle.loads(pickle.dumps(small)), copy.deepcopy(small)): assert other('w3 w8').input_ids==small('w3 w8').input_ids and len(other)==len(small)
    with pytest.raises(AttributeError): small.nothing_such

def test_datasets(small):
    from datasets import Dataset
    data = Dataset.from_dict(dict(text=texts)).map(lambda o: small(o['text']), batched=True, remove_columns='text')
    assert [o for o in data['input_ids']]==small(texts).input_ids
