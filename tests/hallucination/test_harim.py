"HaRiM+ against its definition, one token at a time, whatever the batch"
import math
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from compresscal.hallucination.harim import *
from compresscal.summaries.prompts import fit
from compresscal.hallucination.risk import metric_of, risk_ratio, risks
from compresscal.summaries.scores import Judge
from conftest import root, small_model
from test_conditional import plainly

pytestmark = pytest.mark.usefixtures('one_thread')
SOURCES = ['The council of Bremen met on Monday.', 'It rained 🙂 for days; die Straßen были пусты.', 'word', 'The council of Bremen met on Monday.', 'a b c '*200]
SUMMARIES = ['The council met.', 'Rain.', 'A summary longer than its word', 'Bremen has a council 日本', 'abc '*40]

def defined(model, given, without, target, lambda_=7., form='published'):
    "The score from its definition: p of both for each token, h, and two means"
    a, b = (plainly(model, o, target).softmax(-1)[range(len(target)), list(target)].tolist() for o in (given, without))
    log = sum(map(math.log, a))/len(target)
    if form=='risk': return -sum((1-p)*(1-(p-q)) for p,q in zip(a, b))/len(target)
    if form=='published': return log+lambda_*sum(1-(1-p)*(1-(p-q))/2 for p,q in zip(a, b))/len(target)
    return log-lambda_*sum((1-p)*(1-(p-q)) for p,q in zip(a, b))/len(target)

@pytest.mark.parametrize('kind', ['bart', 't5'])
@pytest.mark.parametrize('form', FORMS)
def test_encoder_decoder_equals_its_definition(kind, form, framed_tokenizer):
    model = small_model(kind, 259)
    ids = lambda text, most: framed_tokenizer(text, truncation=True, max_length=most)['input_ids']
    found = HaRiM((model, framed_tokenizer), form=form, lambda_=5, source_length=250, target_length=40).score(SOURCES, SUMMARIES)
    expected = [defined(model, ids(a, 250), [0, 1], ids(b, 40), 5, form) for a,b in zip(SOURCES, SUMMARIES)]
    assert found.values==pytest.approx(expected, abs=1e-5)
    assert found.parts['tokens']==[len(ids(o, 40)) for o in SUMMARIES] and found.parts['source_cut']==[False]*4+[True]
    assert found.parts['summary_cut']==[False]*4+[True] and len(found.notes)==2

@pytest.mark.parametrize('form', FORMS)
def test_decoder_equals_its_definition(form, tiny_tokenizer):
    model = small_model('llama', 259)
    judge = HaRiMDecoder((model, tiny_tokenizer), prompt='before', form=form, target_length=40)
    found = judge.score(SOURCES, SUMMARIES)
    room, without = 512-40, fit('before', tiny_tokenizer, '', 512).ids
    expected = [defined(model, fit('before', tiny_tokenizer, a, room).ids, without, tiny_tokenizer(b)['input_ids'][:40], 7, form) for a,b in zip(SOURCES, SUMMARIES)]
    assert found.values==pytest.approx(expected, abs=1e-5) and found.parts['source_cut']==[False]*4+[True]

@pytest.mark.parametrize('make', [lambda t, **k: HaRiM((small_model('bart', 259), t), source_length=250, **k), lambda t, **k: HaRiMDecoder((small_model('llama', 259), t), **k)])
def test_neither_batch_nor_order_matters(make, framed_tokenizer):
    whole = make(framed_tokenizer).score(SOURCES, SUMMARIES).values
    alone = [make(framed_tokenizer).score([a], [b]).values[0] for a,b in zip(SOURCES, SUMMARIES)]
    assert whole==pytest.approx(alone, abs=1e-5)
    assert make(framed_tokenizer, tokens_at_once=300).score(SOURCES[::-1], SUMMARIES[::-1]).values[::-1]==pytest.approx(whole, abs=1e-5)

def test_a_source_that_says_nothing():
    "Without attention to the source both readings are one, and the risk of a token is 1-p"
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    model = small_model('bart', 259)
    with torch.no_grad():
        for o in model.model.decoder.layers: o.encoder_attn.out_proj.weight.zero_(), o.encoder_attn.out_proj.bias.zero_()
    words = Tokenizer(models.WordLevel({o: i for i,o in enumerate(['<s>', '</s>', '<pad>', '<unk>', 'a', 'b'])}, unk_token='<unk>'))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token='<s>', eos_token='</s>', pad_token='<pad>', unk_token='<unk>')
    found = HaRiM((model, tokenizer)).score(['a b a', 'b'], ['a b 🙂', 'a b 🙂'])
    p = plainly(model, [4], [4, 5, 3]).softmax(-1)[range(3), [4, 5, 3]]
    assert found.parts['risk']==pytest.approx([float((1-p).mean())]*2, abs=1e-6)

def test_forms_are_one_family():
    for log, risk in np.random.default_rng(0).uniform(-5, 2, (5, 2)):
        assert harim_plus(log, risk, 7)==pytest.approx(7+harim_plus(log, risk, 3.5, 'unhalved'))
    assert harim_plus(-1., 0., 7)==6 and harim_plus(-1., 1., 0)==-1

def test_empty_texts_have_no_score_and_cost_nothing(framed_tokenizer):
    found = HaRiM('no/such-model').score(['', 'a', ' '], ['a', '', ''])
    assert np.isnan(found.values).all() and found.notes==('3 of 3 pairs have an empty source or summary, and no score',)
    assert np.isnan(found.parts['risk']).all() and HaRiM('no/such-model').score([], []).values.shape==(0,)

def test_what_is_refused(framed_tokenizer, tiny_tokenizer):
    bart, llama = small_model('bart', 259), small_model('llama', 259)
    with pytest.raises(ValueError, match='of the kind encoder-decoder, got LlamaForCausalLM'): HaRiM((llama, tiny_tokenizer)).score(['a'], ['b'])
    with pytest.raises(ValueError, match='of the kind decoder, got BartFor'): HaRiMDecoder((bart, framed_tokenizer)).score(['a'], ['b'])
    for k,v in dict(lambda_=math.nan, form='halved', source_length=1.5, target_length=True).items():
        with pytest.raises(ValueError, match=f'`{k}` must be'): HaRiM((bart, framed_tokenizer), **{k: v})
    with pytest.raises(ValueError, match='got 1 summaries of 2 documents'): HaRiM((bart, framed_tokenizer)).score(['a', 'b'], ['a'])
    with torch.no_grad(): bart.final_logits_bias.fill_(torch.nan)
    with pytest.raises(ValueError, match='`model` must give finite logits'): HaRiM((bart, framed_tokenizer)).score(['a'], ['b'])

def test_a_judge_and_its_risk(framed_tokenizer):
    judge = HaRiM((small_model('bart', 259), framed_tokenizer))
    assert isinstance(judge, Judge) and isinstance(HaRiMDecoder(), Judge) and metric_of(HaRiMDecoder()).label=='HaRiM+ (decoder)'
    dense, compressed = judge.score(SOURCES[:4], SUMMARIES[:4]), judge.score(SOURCES[:4], SUMMARIES[1:])
    assert risks(dense)==pytest.approx(-dense.values)
    assert risk_ratio(dense, compressed, variant='difference', n_resamples=99).estimate==pytest.approx((dense.values-compressed.values).mean())
    with pytest.raises(ValueError, match="`variant` must be 'difference'"): risk_ratio(dense, compressed)

def test_the_dense_judge_says_what_perplexity_says():
    "The sentence about the study's 26 pruned models, computed again from what the study has kept"
    folder = root/'nbs'/'studies'
    summaries, perplexities = pd.read_csv(folder/'hallucination_summaries.csv.gz'), pd.read_csv(folder/'hallucination_perplexity.csv')
    kept = summaries[summaries.control.isna() & summaries.flag.isna() & (summaries.study=='sweep')]
    key = ['method', 'set']
    means = kept.groupby(key)['harim:decoder'].mean()
    logs = np.log(perplexities[perplexities.study=='sweep'].set_index(key).value)
    both = pd.concat([means, logs], axis=1, join='inner')
    assert len(both)==26 and round(float(np.corrcoef(both.T)[0, 1]), 3)==-.995
