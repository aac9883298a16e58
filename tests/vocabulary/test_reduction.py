"Models with fewer tokens: the same numbers as the whole model on what is kept, and the whole model again, bit for bit."
import copy
import numpy as np
import pytest, torch
import transformers as T
from torch import nn
from transformers import (BartConfig, BartForConditionalGeneration, BertConfig, BertForMaskedLM, BertForSequenceClassification, DebertaV2Config, DebertaV2ForMaskedLM,
    DistilBertConfig, DistilBertForMaskedLM, ElectraConfig, ElectraForMaskedLM, GemmaConfig, GemmaForCausalLM, Gemma3TextConfig, Gemma3ForCausalLM, GPT2Config, GPT2ForSequenceClassification,
    GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LogitsProcessor, LogitsProcessorList, M2M100Config, M2M100ForConditionalGeneration, MarianConfig, MarianMTModel, MT5Config, MT5ForConditionalGeneration,
    OPTConfig, OPTForCausalLM, Qwen2Config, Qwen2ForCausalLM, RobertaConfig, RobertaForMaskedLM, RobertaForSequenceClassification, T5Config, T5ForConditionalGeneration, XLNetConfig, XLNetLMHeadModel)
from types import SimpleNamespace
from compresscal.vocabulary.token_maps import ReducedCollator, ReducedTokenizer, TokenMap
from compresscal.vocabulary.reduction import decay_rows, is_reduced, reduce_vocabulary
from compresscal.vocabulary.token_tables import find_vocabulary, tensors_of

V = 97
small = dict(vocab_size=V, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64)
zero = dict(hidden_dropout_prob=0., attention_probs_dropout_prob=0.)
llama = dict(bos_token_id=1, eos_token_id=2, pad_token_id=5, num_key_value_heads=1)
seq2seq = dict(vocab_size=V, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
               max_position_embeddings=64, dropout=0., attention_dropout=0., activation_dropout=0.)
t5 = dict(vocab_size=V, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0., decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
gpt2 = dict(vocab_size=V, n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=90, eos_token_id=90, pad_token_id=90, resid_pdrop=0., embd_pdrop=0., attn_pdrop=0.)
def apart(model):
    "As checkpoints of mT5 are loaded: with a second matrix for the head, whatever the class says"
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
    model.all_tied_weights_keys.pop('lm_head.weight')
    return model

MODELS = dict(
    bert=lambda: BertForMaskedLM(BertConfig(**small, **zero)),
    bert_untied=lambda: BertForMaskedLM(BertConfig(**small, **zero, tie_word_embeddings=False)),
    roberta=lambda: RobertaForMaskedLM(RobertaConfig(**small, **zero, pad_token_id=3, bos_token_id=7, eos_token_id=8)),
    distilbert=lambda: DistilBertForMaskedLM(DistilBertConfig(vocab_size=V, dim=16, hidden_dim=32, n_layers=1, n_heads=2, dropout=0., attention_dropout=0., max_position_embeddings=64)),
    electra=lambda: ElectraForMaskedLM(ElectraConfig(**small, **zero, embedding_size=8)),
    deberta=lambda: DebertaV2ForMaskedLM(DebertaV2Config(**small, **zero)),
    t5=lambda: T5ForConditionalGeneration(T5Config(**t5)),
    mt5=lambda: apart(MT5ForConditionalGeneration(MT5Config(**t5, tie_word_embeddings=False))),
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
    from compresscal.calibration.generation import Sampling, Script, generate
    model, whole = make('llama'), make('llama')
    reduction = reduce_vocabulary(model, used)
    rest = [i for i in range(V) if i not in reduction.tokens]
    theirs = generate(whole, Script([[1]], [2]), 12, range(16), Sampling(), forbidden=torch.tensor(rest), progress=False)
    ours = generate(model, Script([reduction.encode([1])], reduction.encode([2])), 12, range(16), Sampling(), progress=False)
    assert (reduction.decode(ours.tokens)==theirs.tokens).float().mean()>.99 # a draw at the very edge of two tokens may fall either way

FAMILIES = dict( # found without a line of code about them
    bloom=lambda: T.BloomForCausalLM(T.BloomConfig(vocab_size=V, hidden_size=16, n_layer=1, n_head=2)),
    mixtral=lambda: T.MixtralForCausalLM(T.MixtralConfig(**small, num_key_value_heads=1, num_local_experts=2)),
    neox=lambda: T.GPTNeoXForCausalLM(T.GPTNeoXConfig(**small)),
    mpnet=lambda: T.MPNetForMaskedLM(T.MPNetConfig(**small, **zero)),
    xlm=lambda: T.XLMWithLMHeadModel(T.XLMConfig(vocab_size=V, emb_dim=16, n_layers=1, n_heads=2)),
    rembert=lambda: T.RemBertForMaskedLM(T.RemBertConfig(**small, input_embedding_size=8, output_embedding_size=12)),
    bert2bert=lambda: T.EncoderDecoderModel(T.EncoderDecoderConfig.from_encoder_decoder_configs(T.BertConfig(**small), T.BertConfig(**small))),
    encoder=lambda: T.T5EncoderModel(T5Config(**t5)),
    llava=lambda: T.LlavaForConditionalGeneration(T.LlavaConfig(text_config=LlamaConfig(**small, **llama), image_token_index=90,
        vision_config=T.CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14))))

@pytest.mark.parametrize('name', FAMILIES)
def test_other_families(name, one_thread):
    model, whole = make(name, FAMILIES), make(name, FAMILIES)
    before, said, batch = state(model), settings(model), rows(model)
    reduction = reduce_vocabulary(model, used)
    assert not any(V in t.shape for t in tensors_of(model).values())
    def out(m, b):
        with torch.no_grad(): return m(**b, **(dict(decoder_input_ids=b['input_ids']) if m.config.is_encoder_decoder and m.can_generate() else {}))[0]
    theirs, ours = out(whole, batch), out(model, encoded(reduction, batch))
    torch.testing.assert_close(ours, theirs if ours.shape==theirs.shape else theirs[..., reduction.tokens.ids], rtol=1e-5, atol=1e-6)
    reduction.restore()
    assert {k for k,v in state(model).items() if not torch.equal(v, before[k])}==set() and settings(model)==said

def test_two_vocabularies_are_refused():
    config = T.Gemma3nTextConfig(**small, num_key_value_heads=1, head_dim=8, vocab_size_per_layer_input=V, hidden_size_per_layer_input=4, layer_types=['full_attention']*2, num_kv_shared_layers=0)
    with pytest.raises(ValueError, match='in one vocabulary, but its configuration has vocab_size_per_layer_input too'): reduce_vocabulary(T.Gemma3nForCausalLM(config), used)

# ---- Training

def steps(model, batches, optimizer, n=3):
    "Losses of so many steps, and gradients of the last"
    losses, params = [], list(model.parameters())
    for i in range(n):
        optimizer.zero_grad()
        loss = model(**batches[i%len(batches)]).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return losses

def labelled(model, n=4):
    "Batches with labels: of classes, or tokens"
    batches = [rows(model, seed=i) for i in range(n)]
    tokens = model.get_output_embeddings() is not None
    return [b|dict(labels=b['input_ids'].masked_fill(b['input_ids']==11, -100) if tokens else torch.arange(len(b['input_ids']))%2) for b in batches]

def renumbered_batches(reduction, batches): return [{k: reduction.encode(v) if k in reduction.collator(None).columns else v for k,v in b.items()} for b in batches]

@pytest.mark.parametrize('name', CLASSIFIERS)
def test_classifier_trains_as_the_whole_model_does(name, one_thread):
    "Under SGD losses, gradients, and the matrix that is put back are equal to the bit"
    model, whole = make(name, CLASSIFIERS), make(name, CLASSIFIERS)
    reduction, batches = reduce_vocabulary(model, used), labelled(whole)
    ours = steps(model, renumbered_batches(reduction, batches), torch.optim.SGD(model.parameters(), lr=.1))
    theirs = steps(whole, batches, torch.optim.SGD(whole.parameters(), lr=.1))
    assert ours==theirs
    assert torch.equal(model.get_input_embeddings().weight.grad, whole.get_input_embeddings().weight.grad[reduction.tokens.ids])
    reduction.restore()
    assert {k for k,v in state(model).items() if not torch.equal(v, tensors_of(whole)[k])}==set()

@pytest.mark.parametrize('name', CLASSIFIERS)
def test_weight_decay(name, one_thread):
    "AdamW's decay of rows that are not kept changes no loss, and can be made up for to the bit"
    model, whole = make(name, CLASSIFIERS), make(name, CLASSIFIERS)
    reduction, batches = reduce_vocabulary(model, used), labelled(whole)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=.01, weight_decay=.1) for m in (model, whole)]
    schedules = [torch.optim.lr_scheduler.LinearLR(o, 1., .1, 5) for o in optimizers]
    for o,s in zip(optimizers, schedules): o.register_step_post_hook(lambda *_, s=s: s.step())
    reduction.watch_decay(optimizers[0])
    ours = steps(model, renumbered_batches(reduction, batches), optimizers[0], 5)
    theirs = steps(whole, batches, optimizers[1], 5)
    assert ours==theirs and len(reduction.factors)==1 and len(next(iter(reduction.factors.values())))==5
    near, table = copy.deepcopy(reduction), whole.get_input_embeddings().weight
    reduction.restore(decay=reduction.factors)
    assert {k for k,v in state(model).items() if not torch.equal(v, tensors_of(whole)[k])}==set()
    near.restore(decay=near.factors, exact=False)
    torch.testing.assert_close(near.model.get_input_embeddings().weight, table, rtol=1e-6, atol=0)
    plain = make(name, CLASSIFIERS).get_input_embeddings().weight
    rest = [i for i in range(V) if i not in reduction.tokens]
    assert not torch.equal(table[rest], plain[rest]) # so that there was something to make up for

class OnlyKept(nn.Module):
    "The whole model with the logits of tokens that are not kept at minus infinity"
    def __init__(self, model, ids):
        super().__init__()
        self.model, self.ids = model, ids
        model.get_output_embeddings().register_forward_hook(self.mask)
    def mask(self, module, args, out): return torch.full_like(out, -1e30).index_copy(-1, self.ids, out[..., self.ids])

@pytest.mark.parametrize('name', ['llama_tied', 'llama', 'gpt2', 't5', 'bert', 'roberta', 'gemma'])
def test_language_model_trains_as_the_masked_one(name, one_thread):
    model, whole = make(name), make(name)
    reduction, batches = reduce_vocabulary(model, used), labelled(whole)
    OnlyKept(whole, reduction.tokens.ids)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=.1) for m in (model, whole)]
    reduction.watch_decay(optimizers[0])
    ours = steps(model, renumbered_batches(reduction, batches), optimizers[0], 4)
    theirs = steps(whole, batches, optimizers[1], 4)
    np.testing.assert_allclose(ours, theirs, rtol=2e-5)
    reduction.restore(decay=reduction.factors)
    for k,v in state(model).items(): torch.testing.assert_close(v, tensors_of(whole)[k].detach(), rtol=1e-3, atol=2e-4) # Adam divides by tiny numbers

@pytest.mark.parametrize('name', ['bert', 'llama_tied', 't5', 'gpt2'])
def test_gradient_checkpointing(name, one_thread):
    model, other = make(name).train(), make(name).train()
    for m in (model, other): reduction = reduce_vocabulary(m, used)
    (getattr(model, 'activation_checkpointing_enable', None) or model.gradient_checkpointing_enable)()
    batch = renumbered_batches(reduction, labelled(make(name)))[0]
    grads = []
    for m in (model, other):
        m(**batch).loss.backward()
        grads.append({k: p.grad for k,p in m.named_parameters() if p.grad is not None})
    for k,g in grads[0].items(): torch.testing.assert_close(g, grads[1][k], rtol=1e-5, atol=1e-7)

def test_compiled(one_thread):
    model = make('llama_tied')
    reduction = reduce_vocabulary(model, used)
    batch = encoded(reduction, rows(model))
    expected = logits(model, batch)
    compiled = torch.compile(model, backend='eager')
    with torch.no_grad(): torch.testing.assert_close(compiled(**batch).logits, expected)
    with pytest.raises((TypeError, ValueError)): reduce_vocabulary(compiled, used)
    compiled(**batch, labels=batch['input_ids']).loss.backward()
    assert model.get_input_embeddings().weight.grad is not None
    reduction.restore()
    assert model.get_input_embeddings().weight.shape[0]==V

def test_trainer(tmp_path, one_thread):
    "Trainer's own loop, with its checkpoints, and training goes on from one of them"
    pytest.importorskip('accelerate')
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments, default_data_collator
    from compresscal.vocabulary.reduced_checkpoints import VocabularyCallback, load_reduced
    data = Dataset.from_list([dict(input_ids=b['input_ids'][i].tolist(), attention_mask=[1]*9, labels=int(b['labels'][i])) for b in labelled(make('bert', CLASSIFIERS)) for i in range(4)])
    args = dict(max_steps=4, save_steps=2, per_device_train_batch_size=4, report_to=[], disable_tqdm=True, use_cpu=True, weight_decay=.1, learning_rate=1e-2, seed=0)
    def run(model, collator, folder, callbacks=(), **kwargs):
        trainer = Trainer(model, TrainingArguments(folder, **args), train_dataset=data, data_collator=collator, callbacks=list(callbacks))
        trainer.train(**kwargs)
        return trainer
    whole, model = make('bert', CLASSIFIERS), make('bert', CLASSIFIERS)
    whole.save_pretrained(tmp_path/'base')
    run(whole, default_data_collator, tmp_path/'whole')
    reduction = reduce_vocabulary(model, used)
    collator = reduction.collator(default_data_collator)
    trainer = run(model, collator, tmp_path/'small', [VocabularyCallback(reduction, decay=True)])
    full = BertForSequenceClassification.from_pretrained(tmp_path/'small'/'checkpoint-4'/'full')
    kept, rest = reduction.tokens.ids, [i for i in range(V) if i not in reduction.tokens]
    for k,v in tensors_of(whole).items():
        ours = tensors_of(full)[k]
        torch.testing.assert_close(*(o[kept] if 'word_embeddings' in k else o for o in (ours, v)), rtol=1e-4, atol=1e-5)
    assert torch.equal(full.bert.embeddings.word_embeddings.weight[rest], make('bert', CLASSIFIERS).bert.embeddings.word_embeddings.weight[rest])
    again, second = load_reduced(tmp_path/'small'/'checkpoint-2', full=tmp_path/'base')
    run(again, collator, tmp_path/'small', resume_from_checkpoint=str(tmp_path/'small'/'checkpoint-2'))
    torch.testing.assert_close(again.bert.embeddings.word_embeddings.weight, model.bert.embeddings.word_embeddings.weight)
    second.restore()
    copied = copy.deepcopy(reduction)
    copied.restore(decay=copied.factors) # the whole of full training, rows included that were never used
    assert len(copied.factors['bert.embeddings.word_embeddings.weight'])==4
    torch.testing.assert_close(copied.model.bert.embeddings.word_embeddings.weight, whole.bert.embeddings.word_embeddings.weight, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(whole.bert.embeddings.word_embeddings.weight[rest], full.bert.embeddings.word_embeddings.weight[rest], rtol=1e-5)
    reduction.restore()
    torch.testing.assert_close(again.bert.embeddings.word_embeddings.weight, model.bert.embeddings.word_embeddings.weight)

def test_trainer_with_the_reduced_tokenizer(tiny_model, tiny_tokenizer, tmp_path, one_thread):
    "It leaves the ids of the configuration alone, and the whole tokenizer is saved with each checkpoint"
    pytest.importorskip('accelerate')
    from datasets import Dataset
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling, LlamaForCausalLM, Trainer, TrainingArguments
    from compresscal.vocabulary.reduced_checkpoints import VocabularyCallback
    texts = ['a cab', 'bad cab', 'a bed', 'dead bee']
    reduction = reduce_vocabulary(tiny_model, {i for t in texts for i in tiny_tokenizer(t).input_ids}, tokenizer=tiny_tokenizer)
    tokenizer = reduction.tokenizer(tiny_tokenizer)
    data = Dataset.from_list([dict(tokenizer(t)) for t in texts])
    args = TrainingArguments(tmp_path, max_steps=2, save_steps=2, report_to=[], disable_tqdm=True, use_cpu=True)
    Trainer(tiny_model, args, train_dataset=data, data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False), processing_class=tokenizer,
            callbacks=[VocabularyCallback(reduction, tokenizer=tokenizer)]).train()
    assert reduction.decode([tiny_model.config.bos_token_id, tiny_model.config.eos_token_id, tiny_model.config.pad_token_id])==[0, 1, 2]
    for folder in (tmp_path/'checkpoint-2', tmp_path/'checkpoint-2'/'full'): assert AutoTokenizer.from_pretrained(folder)('a cab').input_ids==tiny_tokenizer('a cab').input_ids
    whole = LlamaForCausalLM.from_pretrained(tmp_path/'checkpoint-2'/'full')
    assert (whole.config.vocab_size, whole.config.pad_token_id, whole.generation_config.eos_token_id)==(259, 2, 1)
    reduction.restore()
    assert torch.equal(whole.lm_head.weight, tiny_model.lm_head.weight)

# ---- Adapters, pruned and quantized blocks

def lora(model, **kwargs):
    peft = pytest.importorskip('peft')
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return peft.get_peft_model(model, peft.LoraConfig(r=2, init_lora_weights=False, **kwargs))

def test_lora_on_blocks(one_thread):
    "The adapter stays on the model through restoring"
    model, whole = make('llama_tied'), make('llama_tied')
    reduction = reduce_vocabulary(model, used)
    adapted, other = lora(model, target_modules=['q_proj', 'v_proj']), lora(whole, target_modules=['q_proj', 'v_proj'])
    batch = rows(model)
    torch.testing.assert_close(logits(adapted, encoded(reduction, batch)), logits(other, batch)[..., reduction.tokens.ids], rtol=1e-5, atol=1e-6)
    steps(adapted, renumbered_batches(reduction, labelled(make('llama_tied'))), torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2))
    before = logits(adapted, encoded(reduction, batch))
    reduction.restore()
    torch.testing.assert_close(logits(adapted, batch)[..., reduction.tokens.ids], before, rtol=1e-5, atol=1e-6)
    assert torch.equal(model.lm_head.weight, make('llama_tied').lm_head.weight) and model.lm_head.weight is model.model.embed_tokens.weight

@pytest.mark.parametrize('name,how', [('llama', dict(target_modules=['q_proj'], modules_to_save=['embed_tokens', 'lm_head'])), ('llama', dict(target_modules=['q_proj', 'embed_tokens'])),
                                      ('bert', dict(target_modules=['query'], modules_to_save=['word_embeddings'], task='cls')), ('llama_tied', dict(target_modules=['q_proj'], modules_to_save=['embed_tokens'], ensure_weight_tying=True))])
def test_lora_with_trained_embeddings(name, how, one_thread):
    "Adapters of the vocabulary are merged before restoring, and until then the reduction says so and loses nothing"
    how = dict(how)
    models = CLASSIFIERS if how.pop('task', None) else MODELS
    model = make(name, models)
    reduction = reduce_vocabulary(model, used)
    adapted, batch = lora(model, **how), rows(model)
    steps(adapted, renumbered_batches(reduction, labelled(make(name, models))), torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2))
    before = logits(adapted, encoded(reduction, batch))
    with pytest.raises(ValueError, match='merge adapters first'): reduction.restore()
    assert not reduction.restored and torch.equal(logits(adapted, encoded(reduction, batch)), before)
    merged = adapted.merge_and_unload()
    assert merged is model
    reduction.restore()
    after = logits(model, batch)
    torch.testing.assert_close(after[..., reduction.tokens.ids] if models is MODELS else after, before, rtol=1e-4, atol=1e-5)
    plain, rest = make(name, models).get_input_embeddings().weight, [i for i in range(V) if i not in reduction.tokens]
    assert torch.equal(model.get_input_embeddings().weight[rest], plain[rest]) and not torch.equal(model.get_input_embeddings().weight, plain)

def test_compressed_blocks(one_thread):
    "Blocks that have been pruned and quantized before, and blocks that are after"
    from compresscal import RTN, Wanda, compress
    model, whole = make('llama_tied'), make('llama_tied')
    text = torch.tensor(used)[torch.randint(len(used), (8, 16), generator=torch.Generator().manual_seed(0))]
    compress(whole, Wanda(.5), text, progress=False)
    compress(whole, RTN(4, group_size=8), progress=False)
    model.load_state_dict(whole.state_dict())
    reduction, batch = reduce_vocabulary(model, used), rows(model)
    torch.testing.assert_close(logits(model, encoded(reduction, batch)), logits(whole, batch)[..., reduction.tokens.ids], rtol=1e-5, atol=1e-6)
    before = state(make('llama_tied'))
    reduction.restore()
    assert torch.equal(model.lm_head.weight, before['lm_head.weight']) and (model.model.layers[0].mlp.up_proj.weight==0).float().mean()>=.4
    model, whole = make('llama_tied'), make('llama_tied')
    reduction = reduce_vocabulary(model, used)
    compress(model, Wanda(.5), reduction.encode(text), progress=False)
    compress(whole, Wanda(.5), text, progress=False)
    reduction.restore()
    assert {k for k,v in state(model).items() if not torch.equal(v, tensors_of(whole)[k])}==set()

# ---- What is refused, and nothing is lost by it

def unchanged(model, before, said): return all(torch.equal(v, before[k]) for k,v in state(model).items()) and settings(model)==said and not is_reduced(model)

@pytest.mark.parametrize('usage,how,said', [
    ([], {}, 'must hold a token or more, got none'),
    (SimpleNamespace(ids=np.array([], dtype=np.int64), vocab_size=V), {}, 'must hold a token or more, got none'),
    ([3, V], {}, '`usage` must hold ids in 0..96, got 3..97'),
    ([-1], {}, '`usage` must hold ids in 0..96'),
    ([1.5], {}, 'must be token ids in a row, got torch.float32'),
    ([[1, 2]], {}, 'must be token ids in a row'),
    (SimpleNamespace(ids=[1], vocab_size=V+1), {}, 'has a vocabulary of 98 where the model has 97'),
    ([1], dict(keep=[400]), '`keep` must hold ids in 0..96'),
    ([1], dict(unknown='unk'), '`tokenizer` must be given, and have an unknown token'),
    ([1], dict(unknown='skip'), "`unknown` must be 'error' or 'unk'"),
    ([1], dict(output=False), '`output` must be True where input and output are one')])
def test_bad_usage(usage, how, said):
    model = make('llama_tied')
    before, config = state(model), settings(model)
    with pytest.raises(ValueError, match=said): reduce_vocabulary(model, usage, **how)
    assert unchanged(model, before, config)

def test_tokenizer_of_another_model(tiny_tokenizer):
    from compresscal.calibration.sampling import tokenizer_fingerprint
    model = make('llama')
    with pytest.raises(ValueError, match='`tokenizer` must belong to the model, which has 97 embeddings, but its ids go up to 258'): reduce_vocabulary(model, used, tokenizer=tiny_tokenizer)
    big = LlamaForCausalLM(LlamaConfig(**small|dict(vocab_size=300), **llama))
    usage = SimpleNamespace(ids=np.array([5, 9]), vocab_size=259, tokenizer_fingerprint='0'*16)
    with pytest.raises(ValueError, match='must be the one that tokens were counted with, 0000000000000000, got'): reduce_vocabulary(big, usage, tokenizer=tiny_tokenizer)
    usage.tokenizer_fingerprint = tokenizer_fingerprint(tiny_tokenizer)
    reduction = reduce_vocabulary(big, usage, tokenizer=tiny_tokenizer)
    assert isinstance(reduction.tokenizer(tiny_tokenizer), ReducedTokenizer) and {0, 1, 2, 5, 9}<=set(reduction.tokens.ids.tolist())
    other = copy.deepcopy(tiny_tokenizer)
    other.add_tokens(['new'])
    with pytest.raises(ValueError, match='must be the one that tokens were counted with'): reduction.tokenizer(other)
    with pytest.raises(ValueError, match='`tokenizer` must belong to the model'): reduce_vocabulary(model, used).tokenizer(tiny_tokenizer)

def test_twice():
    model = make('bert')
    reduction = reduce_vocabulary(model, used)
    with pytest.raises(ValueError, match='must have its whole vocabulary, but has .* of 97 tokens; restore it first'): reduce_vocabulary(model, used)
    reduction.restore()
    with pytest.raises(ValueError, match='restored already'): reduction.restore()

def test_restoring_another_model():
    model, other = make('llama'), make('llama')
    reduction, another = reduce_vocabulary(model, used), reduce_vocabulary(other, used[:5])
    for wrong in (other, make('llama'), make('bert'), nn.Linear(2, 2)):
        with pytest.raises(ValueError, match='`model` must be the one that was reduced'): reduction.restore(wrong)
    twin = copy.deepcopy(model)
    twin.lm_head.weight.data += 1
    assert reduction.restore(twin) is twin and twin.lm_head.weight.shape[0]==V and model.lm_head.weight.shape[0]<V

def test_resized_meanwhile():
    model = make('llama')
    reduction = reduce_vocabulary(model, used)
    model.resize_token_embeddings(40)
    with pytest.raises(ValueError, match='must have .* numbers at model.embed_tokens.weight, as when it was reduced, got'): reduction.restore()

def test_ties_that_came_apart():
    model = make('t5')
    reduction = reduce_vocabulary(model, used)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    same = copy.deepcopy(reduction)
    same.restore() # equal numbers are tied again
    assert same.model.lm_head.weight is same.model.shared.weight
    model.lm_head.weight.data += 1
    with pytest.raises(ValueError, match='they have been trained apart'): reduction.restore()
    assert not reduction.restored and model.shared.weight.shape[0]==len(reduction.tokens)

def test_a_third_module_shares_the_matrix():
    class Reader(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.weight = weight
    model = make('llama_tied')
    model.reader = Reader(model.lm_head.weight)
    with pytest.raises(ValueError, match='must not share model.embed_tokens.weight with reader.weight'): reduce_vocabulary(model, used)
    model.reader = Reader(nn.Parameter(model.lm_head.weight.data[3:]))
    with pytest.raises(ValueError, match='must not share model.embed_tokens.weight with reader.weight'): reduce_vocabulary(model, used)
    model.reader = None
    model.lm_head.weight = nn.Parameter(model.model.embed_tokens.weight.data)
    with pytest.raises(ValueError, match='must tie lm_head.weight to model.embed_tokens.weight by one parameter'): reduce_vocabulary(model, used)

def test_adapters_come_after():
    model = make('llama')
    adapted = lora(model, target_modules=['q_proj'])
    with pytest.raises(TypeError, match='got PeftModel.*; adapters are to be attached'): reduce_vocabulary(adapted, used)
    with pytest.raises(ValueError, match='must have no adapters yet, but has one at model.layers.0.self_attn.q_proj'): reduce_vocabulary(model, used)

def test_quantized_embeddings():
    model = make('llama')
    model.set_input_embeddings(torch.ao.nn.quantized.Embedding(V, 16))
    with pytest.raises(ValueError, match='must have embeddings that are plain floating-point numbers, got Embedding'): reduce_vocabulary(model, used)
    model = make('llama')
    model.model.embed_tokens.weight = nn.Parameter(model.model.embed_tokens.weight.data.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match='plain floating-point numbers, got Embedding of torch.int8'): reduce_vocabulary(model, used)
    class Linear8bit(nn.Linear): pass
    model = make('llama')
    model.lm_head = Linear8bit(16, V, bias=False)
    before = state(model)
    with pytest.raises(ValueError, match='plain numbers in Linear at lm_head.weight, got Linear8bit'): reduce_vocabulary(model, used)
    assert {k for k,v in state(model).items() if not torch.equal(v, before[k])}==set()

def test_full_is_never_overwritten(tmp_path):
    file = tmp_path/'full.safetensors'
    reduce_vocabulary(make('llama'), used, full=file).restore()
    written, model = file.read_bytes(), make('llama')
    with pytest.raises(ValueError, match="must be 'memory' or a file that is not there yet"): reduce_vocabulary(model, used, full=file)
    assert file.read_bytes()==written and not is_reduced(model)

def test_other_models():
    with pytest.raises(TypeError, match='must be a model of transformers, got Linear'): reduce_vocabulary(nn.Linear(2, 2), used)
    model = make('llama')
    model.config.vocab_size = 90
    with pytest.raises(ValueError, match='as many embeddings as its configuration says, got 97'): reduce_vocabulary(model, used)
    with pytest.raises(ValueError, match='AdamW'): reduce_vocabulary(make('llama'), used).watch_decay(torch.optim.SGD(make('llama').parameters(), lr=1, weight_decay=.1))

# ---- What is kept

def test_a_whole_head_is_left_alone(one_thread):
    "Labels stay those of the tokenizer, training is that of the whole model, and the model refuses to read what it writes"
    model, whole = make('llama'), make('llama')
    reduction, batches = reduce_vocabulary(model, used, output=False), labelled(whole)
    assert model.lm_head.weight.shape[0]==V==model.config.vocab_size and model.model.embed_tokens.num_embeddings==len(reduction.tokens)
    with pytest.raises(ValueError, match='cannot read what it writes'): model.generate(torch.tensor([[1]]))
    ours = steps(model, renumbered_batches(reduction, batches), torch.optim.SGD(model.parameters(), lr=.1))
    assert ours==steps(whole, batches, torch.optim.SGD(whole.parameters(), lr=.1))
    reduction.restore()
    assert {k for k,v in state(model).items() if not torch.equal(v, tensors_of(whole)[k])}==set()
    assert model.generate(torch.tensor([[1]]), max_new_tokens=2).shape[1]>1
    with pytest.raises(ValueError, match='encoder-decoder'): reduce_vocabulary(make('mt5'), used, output=False)

def test_what_the_model_needs_is_kept():
    model = make('llama_tied')
    model.generation_config.eos_token_id, model.generation_config.forced_decoder_ids, model.generation_config.force_words_ids = [2, 50], [[1, 51]], [[52, 53]]
    reduction = reduce_vocabulary(model, [60], keep=[70])
    assert set(reduction.tokens.ids.tolist())=={1, 2, 5, 50, 51, 52, 53, 60, 70}
    assert reduction.decode(model.generation_config.eos_token_id)==[2, 50] and model.generation_config.forced_decoder_ids==[[1, reduction.encode(51)]]
    assert reduction.decode(model.config.pad_token_id)==5==reduction.decode(model.model.embed_tokens.padding_idx)

def test_settings_of_the_meantime():
    "What was set while the model was reduced is renumbered on the way back"
    model = make('llama')
    model.config.pad_token_id = model.generation_config.pad_token_id = None
    reduction = reduce_vocabulary(model, used)
    model.config.pad_token_id = model.generation_config.pad_token_id = reduction.encode(60)
    model.config.eos_token_id = [reduction.encode(2), reduction.encode(61)]
    reduction.restore()
    assert (model.config.pad_token_id, model.generation_config.pad_token_id, model.config.eos_token_id, model.generation_config.eos_token_id)==(60, 60, [2, 61], 2)

def test_padding_stays_where_positions_depend_on_it():
    for name,pad in (('roberta', 3), ('m2m', 1)):
        reduction = reduce_vocabulary(model := make(name), used)
        assert model.config.pad_token_id==pad and reduction.encode(pad)==pad
    reduction = reduce_vocabulary(model := make('marian'), used) # here it does not matter, and moves
    assert model.config.pad_token_id==len(reduction.tokens)-1 and model.model.shared.padding_idx==len(reduction.tokens)-1

def test_settings_of_parameters_are_kept():
    model = make('llama').to(torch.bfloat16)
    model.model.embed_tokens.weight.requires_grad = False
    reduction = reduce_vocabulary(model, used)
    for _ in range(2):
        assert model.model.embed_tokens.weight.dtype==torch.bfloat16 and not model.model.embed_tokens.weight.requires_grad and model.lm_head.weight.requires_grad
        if not reduction.restored: reduction.restore()

def test_no_randomness_is_used():
    model, before = make('llama'), torch.get_rng_state()
    reduce_vocabulary(model, used).restore()
    assert torch.equal(torch.get_rng_state(), before)

def test_token_maps_against_a_plain_loop():
    rng = np.random.default_rng(0)
    ids = np.sort(rng.choice(1000, 100, replace=False))
    tokens, place = TokenMap(ids, 1000, 'unk', int(ids[7])), {int(o): i for i,o in enumerate(ids)}
    x = rng.integers(0, 1000, (20, 30))
    x[rng.random(x.shape)<.1] = -100
    expected = [[-100 if i==-100 else place.get(int(i), 7) for i in row] for row in x]
    assert tokens.encode(x.tolist())==expected==tokens.encode(x).tolist()==tokens.encode(torch.from_numpy(x)).tolist()
    assert min(i for row in expected for i in row if i!=-100)>=0
    known = torch.from_numpy(ids[rng.integers(0, 100, 50)])
    assert torch.equal(tokens.decode(tokens.encode(known)), known)
