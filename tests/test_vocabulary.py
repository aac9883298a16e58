"Models with fewer tokens: the same numbers as the whole model on what is kept, and the whole model again, bit for bit."
import copy
import numpy as np
import pytest, torch
from torch import nn
from transformers import (BartConfig, BartForConditionalGeneration, BertConfig, BertForMaskedLM, BertForSequenceClassification, DebertaV2Config, DebertaV2ForMaskedLM,
    DistilBertConfig, DistilBertForMaskedLM, ElectraConfig, ElectraForMaskedLM, GemmaConfig, GemmaForCausalLM, Gemma3TextConfig, Gemma3ForCausalLM, GPT2Config, GPT2ForSequenceClassification,
    GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LogitsProcessor, LogitsProcessorList, M2M100Config, M2M100ForConditionalGeneration, MarianConfig, MarianMTModel,
    OPTConfig, OPTForCausalLM, Qwen2Config, Qwen2ForCausalLM, RobertaConfig, RobertaForMaskedLM, RobertaForSequenceClassification, T5Config, T5ForConditionalGeneration, XLNetConfig, XLNetLMHeadModel)
from compresscal.vocabulary import Reduction, decay_rows, is_reduced, reduce_vocabulary
from compresscal.token_tables import find_vocabulary, tensors_of

V = 97
small = dict(vocab_size=V, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64)
zero = dict(hidden_dropout_prob=0., attention_probs_dropout_prob=0.)
llama = dict(bos_token_id=1, eos_token_id=2, pad_token_id=5, num_key_value_heads=1)
seq2seq = dict(vocab_size=V, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
               max_position_embeddings=64, dropout=0., attention_dropout=0., activation_dropout=0.)
t5 = dict(vocab_size=V, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0., decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
gpt2 = dict(vocab_size=V, n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=90, eos_token_id=90, pad_token_id=90, resid_pdrop=0., embd_pdrop=0., attn_pdrop=0.)
MODELS = dict(
    bert=lambda: BertForMaskedLM(BertConfig(**small, **zero)),
    bert_untied=lambda: BertForMaskedLM(BertConfig(**small, **zero, tie_word_embeddings=False)),
    roberta=lambda: RobertaForMaskedLM(RobertaConfig(**small, **zero, pad_token_id=3, bos_token_id=7, eos_token_id=8)),
    distilbert=lambda: DistilBertForMaskedLM(DistilBertConfig(vocab_size=V, dim=16, hidden_dim=32, n_layers=1, n_heads=2, dropout=0., attention_dropout=0., max_position_embeddings=64)),
    electra=lambda: ElectraForMaskedLM(ElectraConfig(**small, **zero, embedding_size=8)),
    deberta=lambda: DebertaV2ForMaskedLM(DebertaV2Config(**small, **zero)),
    t5=lambda: T5ForConditionalGeneration(T5Config(**t5)),
    t5_untied=lambda: T5ForConditionalGeneration(T5Config(**t5, tie_word_embeddings=False)),
    bart=lambda: BartForConditionalGeneration(BartConfig(**seq2seq, forced_eos_token_id=2)),
    marian=lambda: MarianMTModel(MarianConfig(**seq2seq, pad_token_id=96, decoder_start_token_id=96, eos_token_id=0, forced_eos_token_id=0)),
    m2m=lambda: M2M100ForConditionalGeneration(M2M100Config(**seq2seq)),
    llama_tied=lambda: LlamaForCausalLM(LlamaConfig(**small, **llama, tie_word_embeddings=True)),
    llama=lambda: LlamaForCausalLM(LlamaConfig(**small, **llama)),
    gpt2=lambda: GPT2LMHeadModel(GPT2Config(**gpt2)),
    opt=lambda: OPTForCausalLM(OPTConfig(vocab_size=V, hidden_size=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64, dropout=0., word_embed_proj_dim=16)),
    qwen=lambda: Qwen2ForCausalLM(Qwen2Config(**small, num_key_value_heads=1, tie_word_embeddings=True)),
    gemma=lambda: GemmaForCausalLM(GemmaConfig(**small, num_key_value_heads=1, head_dim=8)),
    gemma3=lambda: Gemma3ForCausalLM(Gemma3TextConfig(**small, num_key_value_heads=1, head_dim=8)),
    xlnet=lambda: XLNetLMHeadModel(XLNetConfig(vocab_size=V, d_model=16, n_layer=1, n_head=2, d_inner=32, dropout=0.)))
CLASSIFIERS = dict(
    bert=lambda: BertForSequenceClassification(BertConfig(**small, **zero)),
    roberta=lambda: RobertaForSequenceClassification(RobertaConfig(**small, **zero, pad_token_id=1)),
    llama=lambda: LlamaForSequenceClassification(LlamaConfig(**small, **llama)),
    gpt2=lambda: GPT2ForSequenceClassification(GPT2Config(**gpt2)))
used = [4, 11, 12, 13, 20, 33, 34, 35, 60, 61, 80, 95]

def make(name, models=MODELS):
    "A random model, the same at every call, its biases not zero"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models[name]().eval()
        for k,t in tensors_of(model).items():
            if t.dtype.is_floating_point and t.numel() and V in t.shape and t.ndim==1 or 'logits_bias' in k: t.data.normal_()
        return model

def rows(model, n=4, length=9, seed=0):
    "Inputs of used tokens"
    ids = torch.tensor(used)[torch.randint(len(used), (n, length), generator=torch.Generator().manual_seed(seed))]
    return dict(input_ids=ids, attention_mask=torch.ones_like(ids))

def logits(model, batch):
    if model.config.is_encoder_decoder and 'decoder_input_ids' not in batch: batch = batch|dict(decoder_input_ids=batch['input_ids'][:, :5])
    with torch.no_grad(): return model(**batch).logits

def encoded(reduction, batch): return {k: reduction.encode(v) if k!='attention_mask' else v for k,v in batch.items()}
def state(model): return {k: t.detach().clone() for k,t in tensors_of(model).items()}
def ties(model):
    groups = {}
    for k,t in tensors_of(model).items(): groups.setdefault(id(t), []).append(k)
    return sorted(map(tuple, groups.values()))
def settings(model): return model.config.to_dict(), model.generation_config.to_dict() if model.can_generate() else None
def attributes(model): return {f'{n}.{k}': v for n,m in model.named_modules() for k,v in vars(m).items() if type(v) is int}

class Restrict(LogitsProcessor):
    def __init__(self, ids): self.ids = ids
    def __call__(self, input_ids, scores): return torch.full_like(scores, -torch.inf).index_copy_(1, self.ids, scores[:, self.ids])

# ---- The same numbers, and the same model again

@pytest.mark.parametrize('name', MODELS)
def test_logits_of_kept_tokens(name, one_thread):
    model, whole = make(name), make(name)
    reduction = reduce_vocabulary(model, used)
    batch = rows(model)
    torch.testing.assert_close(logits(model, encoded(reduction, batch)), logits(whole, batch)[..., reduction.tokens.ids], rtol=1e-5, atol=1e-6)
    assert model.config.get_text_config().vocab_size==len(reduction.tokens)<V and model.get_input_embeddings().num_embeddings==len(reduction.tokens)
    assert not any(V in t.shape for t in tensors_of(model).values())

@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('where', ['memory', 'disk'])
def test_restore_is_bit_identical(name, where, tmp_path):
    model = make(name)
    before, tied, said, numbers, order = state(model), ties(model), settings(model), attributes(model), [k for k,_ in model.named_parameters()]
    reduction = reduce_vocabulary(model, used, full='memory' if where=='memory' else tmp_path/'full.safetensors')
    assert ties(model)==tied and [k for k,_ in model.named_parameters()]==order
    new = {o.names[0]: torch.randn_like(tensors_of(model)[o.names[0]]) for o in reduction.tables}
    for k,t in new.items(): tensors_of(model)[k].data.copy_(t)
    axes = {o.names[0]: o.axis for o in reduction.tables}
    reduction.restore()
    assert ties(model)==tied and settings(model)==said and attributes(model)==numbers and [k for k,_ in model.named_parameters()]==order
    after, kept = state(model), reduction.tokens.ids
    trained = {k: next(t for n,t in new.items() if tensors_of(model)[k] is tensors_of(model)[n]) for k in after if any(tensors_of(model)[k] is tensors_of(model)[n] for n in new)}
    assert trained
    for k,t in after.items():
        expected = before[k].clone()
        if k in trained: expected.index_copy_(next(axes[n] for n in new if tensors_of(model)[k] is tensors_of(model)[n]), kept, trained[k])
        assert torch.equal(t, expected), k
    assert model.get_input_embeddings().weight.requires_grad

@pytest.mark.parametrize('name', ['bert', 't5', 'llama_tied', 'gpt2'])
def test_untrained_restore_changes_nothing(name):
    model = make(name)
    before = state(model)
    reduce_vocabulary(model, used).restore()
    assert all(torch.equal(t, before[k]) for k,t in state(model).items())
    reduce_vocabulary(model, used[:3]).restore() # and once more
    assert all(torch.equal(t, before[k]) for k,t in state(model).items())

@pytest.mark.parametrize('name', ['t5', 'bart', 'marian', 'm2m', 'llama_tied', 'llama', 'gpt2', 'opt', 'gemma', 'qwen'])
@pytest.mark.parametrize('how', [dict(do_sample=False), dict(num_beams=3, do_sample=False)], ids=['greedy', 'beams'])
def test_generate(name, how, one_thread):
    model, whole = make(name), make(name)
    reduction = reduce_vocabulary(model, used)
    batch = rows(model, 2, 5)
    theirs = whole.generate(**batch, max_new_tokens=8, logits_processor=LogitsProcessorList([Restrict(reduction.tokens.ids)]), renormalize_logits=True, **how) # beams add up log probabilities
    ours = model.generate(**encoded(reduction, batch), max_new_tokens=8, **how)
    assert reduction.decode(ours).tolist()==theirs.tolist()

def test_generate_with_lists_of_tokens(one_thread):
    "Suppressed and bad tokens are renumbered, or forgotten where they are not kept"
    model, whole = make('llama_tied'), make('llama_tied')
    for m in (model, whole): m.generation_config.update(suppress_tokens=[11, 50], bad_words_ids=[[12], [20, 33], [51]], sequence_bias={(13,): 3., (52,): 9.})
    reduction, batch = reduce_vocabulary(model, used), rows(model, 3, 5)
    theirs = whole.generate(**batch, max_new_tokens=8, do_sample=False, logits_processor=LogitsProcessorList([Restrict(reduction.tokens.ids)]))
    assert reduction.decode(model.generate(**encoded(reduction, batch), max_new_tokens=8, do_sample=False)).tolist()==theirs.tolist()
    assert not {11, 12} & set(theirs[:, 5:].flatten().tolist())

def test_own_sampling(one_thread):
    "Our own sampler draws by one uniform number a token: the same numbers give the same tokens"
    from compresscal.generation import Sampling, Script, generate
    model, whole = make('llama'), make('llama')
    reduction = reduce_vocabulary(model, used)
    rest = [i for i in range(V) if i not in reduction.tokens]
    theirs = generate(whole, Script([[1]], [2]), 12, range(16), Sampling(), forbidden=torch.tensor(rest), progress=False)
    ours = generate(model, Script([reduction.encode([1])], reduction.encode([2])), 12, range(16), Sampling(), progress=False)
    assert (reduction.decode(ours.tokens)==theirs.tokens).float().mean()>.99 # a draw at the very edge of two tokens may fall either way
