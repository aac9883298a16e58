"The commands on vocabularies: folders in, folders out, and one clear sentence for what cannot be."
import json, shutil
import pytest, torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForMaskedLM
from compresscal.vocabulary.reduced_checkpoints import load_reduced
from compresscal.commands.reducing import reduce_model, report_vocabulary, restore_model
from compresscal.vocabulary.token_tables import tensors_of

@pytest.fixture
def encoder(tiny_tokenizer, tmp_path):
    "A folder that holds a masked language model, its vocabulary larger than the tokenizer's"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForMaskedLM(BertConfig(vocab_size=272, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, pad_token_id=2))
    model.save_pretrained(tmp_path/'encoder')
    tiny_tokenizer.save_pretrained(tmp_path/'encoder')
    return tmp_path/'encoder'

@pytest.fixture
def text(tmp_path):
    (tmp_path/'a.txt').write_text('cab bad\n'*5)
    (tmp_path/'b.jsonl').write_text('\n'.join(json.dumps(dict(text=o)) for o in ('dab', 'fee')))
    return str(tmp_path/'a.txt')

def test_there_and_back(tiny_checkpoint, text, tmp_path):
    "Byte for byte the numbers of the original"
    there = reduce_model(str(tiny_checkpoint), text, tmp_path/'small')
    used = set(AutoTokenizer.from_pretrained(tiny_checkpoint)('cab bad').input_ids)
    _, reduction = load_reduced(tmp_path/'small')
    assert used|{0, 1, 2}<=set(reduction.tokens.ids.tolist()) and len(reduction.tokens)==there.data['tokens']['reduced']<=len(used)+5 # line ends
    back = restore_model(tmp_path/'small', tmp_path/'back')
    first, last = (AutoModelForCausalLM.from_pretrained(o) for o in (tiny_checkpoint, tmp_path/'back'))
    assert {k for k,v in tensors_of(first).items() if not torch.equal(v, tensors_of(last)[k])}==set()
    assert back.data['tokens']==there.data['tokens'] and back.data['parameters']==there.data['parameters'] and first.config.vocab_size==last.config.vocab_size
    assert AutoTokenizer.from_pretrained(tmp_path/'back')('cab').input_ids==AutoTokenizer.from_pretrained(tiny_checkpoint)('cab').input_ids

def test_encoder(encoder, text, tmp_path):
    "Any model, also as a classifier"
    reduce_model(str(encoder), [text, str(tmp_path/'b.jsonl')], tmp_path/'small', labels=3)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path/'small')
    assert model.config.num_labels==3 and model.config.vocab_size<30
    model.bert.embeddings.word_embeddings.weight.data += 1
    model.save_pretrained(tmp_path/'tuned')
    (tmp_path/'moved').mkdir()
    for o in encoder.iterdir(): o.rename(tmp_path/'moved'/o.name)
    restore_model(tmp_path/'tuned', tmp_path/'back', str(tmp_path/'moved'), kept=str(tmp_path/'small'))
    last, first = AutoModelForSequenceClassification.from_pretrained(tmp_path/'back'), AutoModelForMaskedLM.from_pretrained(tmp_path/'moved')
    changed = (last.bert.embeddings.word_embeddings.weight!=first.bert.embeddings.word_embeddings.weight).any(1).nonzero().flatten()
    assert changed.tolist()==load_reduced(tmp_path/'small')[1].tokens.ids.tolist() and last.config.pad_token_id==2

def test_report_says_what_reducing_does(encoder, text, tmp_path):
    said, done = report_vocabulary(str(encoder), text), reduce_model(str(encoder), text, tmp_path/'small')
    assert said.data['kept']==done.data['tokens']['reduced'] and said.data['vocabulary']==272
    whole, less = done.data['parameters'].values()
    assert said.data['model_reduction']==pytest.approx(1-less/whole) and said.data['bytes']['parameters']==dict(full=4*whole, reduced=4*less)
    assert 'optimizer state' in repr(said)

def test_more_is_kept(encoder, text, tmp_path):
    few, more = reduce_model(str(encoder), text, tmp_path/'few'), reduce_model(str(encoder), text, tmp_path/'more', keep=['special', 'digits', 100], dtype='bfloat16')
    assert more.data['tokens']['reduced']==few.data['tokens']['reduced']+11
    assert AutoModelForMaskedLM.from_pretrained(tmp_path/'more', dtype='auto').dtype==torch.bfloat16

@pytest.mark.parametrize('change,said', [
    (dict(name='./nowhere'), 'where there is none'),
    (dict(name='nobody/nothing'), "`name` must be 'embedded', a folder or a Hub id of a model, got 'nobody/nothing'"),
    (dict(sources=[]), '`sources` must name text, got none'),
    (dict(sources='nothing.txt'), 'nothing.txt'),
    (dict(sources=['docs', 'code'], splits='test'), '`splits` must not be given where there are several sources'),
    (dict(labels=0), '`labels` must be a number of classes'),
    (dict(keep=['specials']), 'specials'),
    (dict(unknown='unk'), '`tokenizer` must be given, and have an unknown token'),
    (dict(dtype='int8'), '`dtype` must be a float type')])
def test_bad_input(change, said, tiny_checkpoint, text, tmp_path):
    with pytest.raises(ValueError, match=said): reduce_model(**(dict(name=str(tiny_checkpoint), sources=text, out=tmp_path/'out')|change))
    assert not (tmp_path/'out').exists()

def test_empty_text(tiny_checkpoint, tmp_path):
    (tmp_path/'empty.txt').write_text('')
    with pytest.raises(ValueError): reduce_model(str(tiny_checkpoint), str(tmp_path/'empty.txt'), tmp_path/'out')
    assert not (tmp_path/'out').exists()

def test_tokenizer_of_another_model(tiny_checkpoint, text, tmp_path):
    with pytest.raises(ValueError, match='`tokenizer` must belong to the model|vocabulary'): reduce_model(str(tiny_checkpoint), text, tmp_path/'out', tokenizer='embedded')

def test_restoring_what_is_whole_or_anothers(tiny_checkpoint, encoder, text, tmp_path):
    with pytest.raises(ValueError, match='must be a model that has been reduced'): restore_model(tiny_checkpoint, tmp_path/'out')
    reduce_model(str(tiny_checkpoint), text, tmp_path/'small')
    with pytest.raises(ValueError, match='has been reduced already'): reduce_model(str(tmp_path/'small'), text, tmp_path/'out')
    with pytest.raises(ValueError, match='must hold the whole of'): restore_model(tmp_path/'small', tmp_path/'out', str(encoder))
    shutil.copytree(tiny_checkpoint, tmp_path/'other')
    other = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    other.model.embed_tokens.weight.data += 1
    other.save_pretrained(tmp_path/'other')
    with pytest.raises(ValueError, match='must be the checkpoint that was reduced'): restore_model(tmp_path/'small', tmp_path/'out', str(tmp_path/'other'))
    shutil.rmtree(tiny_checkpoint)
    with pytest.raises(ValueError, match='`full` must have named the whole checkpoint'): restore_model(tmp_path/'small', tmp_path/'out')
    assert not (tmp_path/'out').exists()
