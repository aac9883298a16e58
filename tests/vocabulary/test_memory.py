"Memory accounting against sizes that are added up by hand and against real training steps"
import pytest, torch, transformers
from torch import nn
from transformers import AutoConfig
from compresscal.vocabulary.memory import Optimizer, Precision, compare_models, empty_model, held_memory, memory_report, optimizers, precisions, published_models
from compresscal.vocabulary.reduction import reduce_vocabulary

pytestmark = pytest.mark.usefixtures('one_thread')

V,D = 120,16
TINY = {'BERT classifier': ('BertForSequenceClassification', dict(model_type='bert', vocab_size=V, hidden_size=D, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=32), V*D, 0),
        'BERT language model': ('BertForMaskedLM', dict(model_type='bert', vocab_size=V, hidden_size=D, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=32), V*D+V, V),
        'tied Llama': ('LlamaForCausalLM', dict(model_type='llama', vocab_size=V, hidden_size=D, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, tie_word_embeddings=True), V*D, V),
        'untied Llama': ('LlamaForCausalLM', dict(model_type='llama', vocab_size=V, hidden_size=D, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, tie_word_embeddings=False), 2*V*D, V),
        'GPT-2': ('GPT2LMHeadModel', dict(model_type='gpt2', vocab_size=V, n_embd=D, n_layer=1, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0), V*D, V),
        'T5': ('T5ForConditionalGeneration', dict(model_type='t5', vocab_size=V, d_model=D, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0), V*D, V)}

def made(kind):
    name,config,_,_ = TINY[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, name)(AutoConfig.for_model(**config))

@pytest.mark.parametrize('kind', TINY)
def test_what_belongs_to_the_vocabulary(kind):
    name,config,numbers,logits = TINY[kind]
    report = memory_report(config, 30, batch=2, length=5, model_class=name)
    assert (report.vocab_size, report.kept, report.embeddings, report.removed)==(V, 30, numbers, numbers*90//V)
    assert report.parameters==made(kind).num_parameters() and report.model_reduction==report.removed/report.parameters and report.embedding_reduction==.75
    if logits: assert report.table.loc['logits and their gradient'].tolist()==[2*2*5*V*4, 2*2*5*30*4]
    else: assert 'logits and their gradient' not in report.table.index

STEPS = dict(sgd=lambda p: torch.optim.SGD(p, .1), momentum=lambda p: torch.optim.SGD(p, .1, momentum=.9), adam=lambda p: torch.optim.Adam(p), adamw=lambda p: torch.optim.AdamW(p))

def step(model, optimizer):
    ids = torch.tensor([[1, 2, 3, 4]])
    model(input_ids=ids, labels=torch.tensor([1]) if 'Sequence' in type(model).__name__ else ids).loss.backward()
    o = STEPS[optimizer](model.parameters())
    o.step()
    return held_memory(model, o)

@pytest.mark.parametrize('kind', TINY)
@pytest.mark.parametrize('optimizer', STEPS)
@pytest.mark.parametrize('precision,dtype', [('fp32', torch.float32), ('bf16', torch.bfloat16)])
def test_bytes_are_those_of_a_step(kind, optimizer, precision, dtype):
    model = made(kind).to(dtype)
    said = memory_report(model, range(5, 40), optimizer=optimizer, precision=precision)
    assert step(model, optimizer)==said.table.full.to_dict()
    model.zero_grad(set_to_none=True)
    reduction = reduce_vocabulary(model, range(5, 40))
    assert said.kept==len(reduction.tokens) and said.removed==reduction.saved
    assert step(model, optimizer)==said.table.reduced.to_dict()

def test_logits_are_those_of_a_batch():
    "A forward pass makes as many logits as the report says, and backward as many gradients"
    model = made('tied Llama')
    out = model(input_ids=torch.ones(3, 7, dtype=torch.int64)).logits
    out.retain_grad()
    out.sum().backward()
    assert memory_report(model, .5, batch=3, length=7).table.full['logits and their gradient']==out.nbytes+out.grad.nbytes

def test_frozen_numbers_have_no_gradient():
    model = made('untied Llama')
    for name,p in model.named_parameters(): p.requires_grad_('norm' in name)
    assert step(model, 'adamw')==memory_report(model, .5).table.full.to_dict()

def test_an_output_that_stays_whole():
    whole = memory_report(made('untied Llama'), 30, batch=1, length=4, output=False)
    assert whole.removed==90*D and whole.table.loc['logits and their gradient'].nunique()==1
    with pytest.raises(ValueError, match='`output` must be True where input and output are one'): memory_report(made('tied Llama'), 30, output=False)

def test_eight_bit_states_by_hand():
    "Two bytes for each number, two scales for each block; small tensors stay in fp32"
    assert Optimizer(bits=8, block=100, smallest=50, counts_steps=False).size(250, 4)==2*(250+3*4)
    assert optimizers['adamw_8bit'].size(4095, 2)==2*4*4095 and optimizers['adamw_8bit'].size(4096, 2)==2*(4096+16*4)

def test_master_weights_and_own_settings():
    numbers = made('GPT-2').num_parameters()
    said = memory_report(made('GPT-2'), 1., optimizer=Optimizer(2, counts_steps=False), precision='master').table
    assert said.full.to_dict()=={'parameters': 2*numbers, 'gradients': 2*numbers, 'optimizer state': 12*numbers} and (said.full==said.reduced).all()
    assert memory_report(made('GPT-2'), 1., precision=Precision(1, 2, 3, 4), optimizer='sgd').table.full.tolist()==[numbers, 2*numbers, 0]

@pytest.mark.parametrize('model,count', [('BERT base, uncased', 109_482_240), ('RoBERTa base', 124_645_632), ('XLM-R base', 278_043_648), ('DeBERTa-v3 base', 183_831_552), ('GPT-2', 124_439_808),
    ('Gemma 2B', 2_506_172_416), ('Llama 2 7B', 6_738_415_616), ('Llama 3 8B', 8_030_261_248), ('Qwen2.5 7B', 7_615_616_512)])
def test_published_counts(model, count): assert empty_model(published_models[model]).num_parameters()==count

@pytest.mark.parametrize('model,away,smaller', [('XLM-R base', .9625, 66.47), ('RoBERTa base', .8608, 26.66), ('BERT base, cased', .1094, 2.25)])
def test_published_reductions(model, away, smaller):
    assert 100*memory_report(published_models[model], 1-away, model_class='AutoModelForSequenceClassification').model_reduction==pytest.approx(smaller, abs=.01)

def test_many_models_need_no_weights():
    table = compare_models((.5, .1), {k: v[1]|dict(architectures=[v[0]]) for k,v in TINY.items()})
    assert list(table.model)==list(TINY) and (table['10% kept']>table['50% kept']).all() and (table.embeddings>=table['10% kept']).all()

def test_views():
    report = memory_report(made('GPT-2'), 30, batch=1, length=8)
    assert report.to_pandas().loc['total', 'saved']==report.saved and '30 of 120 rows kept' in repr(report) and report._repr_markdown_().count('|')>20

BAD = {'an unknown optimizer': (dict(optimizer='adagrad'), ValueError, '`optimizer` must be one of sgd'), 'an unknown precision': (dict(precision='fp8'), ValueError, '`precision` must be one of fp32'),
       'no batch': (dict(batch=0), ValueError, '`batch` must be a whole number'), 'no length': (dict(length=2.5), ValueError, '`length` must be a whole number'),
       'more rows than there are': (dict(usage=V+1), ValueError, '1 to 120 rows, got 121'), 'no rows': (dict(usage=0), ValueError, 'got 0'), 'a share above one': (dict(usage=1.2), ValueError, 'at most 1, got 1.2'),
       'ids beyond the vocabulary': (dict(usage=[V]), ValueError, r'0\.\.119'), 'no ids': (dict(usage=[]), ValueError, 'got none'),
       'no model': (dict(model=3), TypeError, '`config` must be a configuration'), 'no kind of model': (dict(model=dict(vocab_size=3)), ValueError, 'must name its `model_type`')}

@pytest.mark.parametrize('case', BAD)
def test_bad_input(case):
    change,kind,message = BAD[case]
    with pytest.raises(kind, match=message): memory_report(**dict(model=made('GPT-2'), usage=.5)|change)

def test_a_reduced_model_is_refused():
    model = made('GPT-2')
    reduce_vocabulary(model, range(30))
    with pytest.raises(ValueError, match='must have its whole vocabulary'): memory_report(model, .5)
