"A summary read twice: against one token at a time, whatever the batch, and what is refused"
import numpy as np, pytest, torch
from transformers import BertConfig, BertForMaskedLM, BertModel
from compresscal.calibration.sampling import model_identity
from compresscal.hallucination.conditional import *
from compresscal.hallucination.conditional import _batches
from compresscal.summaries.prompts import around
from conftest import small_model

pytestmark = pytest.mark.usefixtures('one_thread')
KINDS = ('bart', 't5', 'llama')

@torch.no_grad()
def plainly(model, context, target):
    "Logits of each token of the target, a forward pass of one row for each, double precision"
    found = []
    for t in range(len(target)):
        if model.config.is_encoder_decoder:
            before = [model.config.decoder_start_token_id, *target[:t]]
            found.append(model(input_ids=torch.tensor([context]), decoder_input_ids=torch.tensor([before]), use_cache=False).logits[0,-1])
        else: found.append(model(input_ids=torch.tensor([[*context, *target[:t]]]), use_cache=False).logits[0,-1])
    return torch.stack(found).double()

def plain_log_p(model, context, target): return plainly(model, context, target).log_softmax(-1)[range(len(target)), list(target)].numpy()

def rows(seed, n, most):
    g = np.random.default_rng(seed)
    return [tuple(map(int, g.integers(3, 60, g.integers(1, most)))) for _ in range(n)]

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('tokens_at_once', [1, 40, 8192])
def test_log_probabilities_are_those_of_one_token_at_a_time(kind, tokens_at_once):
    model, contexts, targets = small_model(kind, 60).double(), rows(0, 12, 30), rows(1, 12, 12)
    found = token_log_probabilities(model, contexts, targets, tokens_at_once=tokens_at_once)
    for c,t,o in zip(contexts, targets, found): assert o==pytest.approx(plain_log_p(model, c, t), abs=1e-5) and o.dtype==np.float64

@pytest.mark.parametrize('kind', KINDS)
def test_order_does_not_matter(kind):
    model, contexts, targets, order = small_model(kind, 60), rows(0, 12, 30), rows(1, 12, 12), np.random.default_rng(3).permutation(12)
    first = token_log_probabilities(model, contexts, targets)
    second = token_log_probabilities(model, [contexts[i] for i in order], [targets[i] for i in order], tokens_at_once=50)
    for i,o in zip(order, second): assert o==pytest.approx(first[i], abs=1e-5)

def test_several_lists_of_contexts_and_small_steps_of_the_head(monkeypatch):
    model, contexts, targets = small_model('bart', 60), rows(0, 6, 20), rows(1, 6, 12)
    monkeypatch.setattr('compresscal.hallucination.conditional.positions_at_once', lambda model: 12) # 2 at a time
    found = read_given(model, [contexts, contexts[::-1], [(0, 1)]*6], targets, lambda a, b, c, t: torch.stack([log_probabilities(o, t) for o in (a, b, c)]))
    for i,o in enumerate(found):
        for row,c in zip(o, (contexts[i], contexts[5-i], (0, 1))): assert row==pytest.approx(plain_log_p(model, c, targets[i]), abs=1e-5)

def test_each_source_is_encoded_once():
    model, targets = small_model('bart', 60), rows(1, 12, 12)
    contexts, seen, encoder = [rows(0, 4, 30)[i%4] for i in range(12)], [], model.get_encoder()
    handle = encoder.register_forward_pre_hook(lambda module, args, kwargs: seen.append(len(kwargs['input_ids'])), with_kwargs=True)
    read_given(model, [contexts, [(0, 1)]*12], targets, lambda a, b, t: log_probabilities(a, t)[None], tokens_at_once=60)
    handle.remove()
    assert sum(seen)==5

def test_batches_hold_no_more_than_they_may():
    contexts, targets = rows(0, 40, 30), rows(1, 40, 12)
    found = [*_batches([contexts], targets, 100)]
    assert sorted(i for o in found for i in o)==[*range(40)] and len(found)<40
    assert all(len(o)*max(len(contexts[i])+len(targets[i]) for i in o)<=100 for o in found)

def test_the_model_is_left_as_it_was():
    model = small_model('bart', 60).train()
    before = {k: v.clone() for k,v in model.state_dict().items()}
    a, b = (token_log_probabilities(model, [(3, 4)], [(5, 6)])[0] for _ in range(2)) # no dropout
    assert model.training and (a==b).all() and all((before[k]==v).all() for k,v in model.state_dict().items()) and 'forward' not in vars(model.get_decoder())
    assert all(o.grad is None for o in model.parameters())

@pytest.mark.parametrize('kind', KINDS)
def test_nan_is_refused(kind):
    model = small_model(kind, 60)
    with torch.no_grad(): model.get_input_embeddings().weight[7] = torch.nan
    with pytest.raises(ValueError, match='`model` must give finite logits, got nan for text'): token_log_probabilities(model, [(3, 4), (7, 4)], [(5, 6), (5, 6)])

def test_what_cannot_judge(framed_tokenizer, tmp_path):
    tiny = BertConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    with pytest.raises(TypeError, match='`model` must predict tokens'): load_conditional((BertModel(tiny), framed_tokenizer))
    with pytest.raises(ValueError, match='must be causal'): load_conditional((BertForMaskedLM(tiny), framed_tokenizer))
    with pytest.raises(TypeError, match='`model` must predict tokens'): load_conditional((torch.nn.Linear(2, 2), framed_tokenizer))
    BertModel(tiny).save_pretrained(tmp_path/'bert')
    framed_tokenizer.save_pretrained(tmp_path/'bert')
    with pytest.raises(ValueError, match='`model` must'): load_conditional(tmp_path/'bert')
    (tmp_path/'empty').mkdir()
    with pytest.raises(ValueError, match='config.json'): load_conditional(tmp_path/'empty')
    with pytest.raises(ValueError, match='`device`'): load_conditional('embedded', 'nonsense')

def test_other_encoder_decoders_and_one_that_cannot_be_run_in_parts():
    from transformers import (BartForConditionalGeneration, BlenderbotConfig, BlenderbotForConditionalGeneration, LEDConfig, LEDForConditionalGeneration, MBartConfig,
                              MBartForConditionalGeneration, ProphetNetConfig, ProphetNetForConditionalGeneration)
    sizes = dict(vocab_size=60, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
                 decoder_ffn_dim=64, init_std=.3, bos_token_id=0, eos_token_id=1, pad_token_id=2, decoder_start_token_id=1)
    led = dict(max_encoder_position_embeddings=64, max_decoder_position_embeddings=64, attention_window=8)
    contexts, targets = rows(0, 6, 30), rows(1, 6, 12)
    for model in (BlenderbotForConditionalGeneration(BlenderbotConfig(**sizes)), LEDForConditionalGeneration(LEDConfig(**sizes, **led)), MBartForConditionalGeneration(MBartConfig(**sizes))):
        net, _ = load_conditional((model.eval(), None))
        for c,t,o in zip(contexts, targets, token_log_probabilities(net, contexts, targets)):
            with torch.no_grad(): whole = net(input_ids=torch.tensor([c]), labels=torch.tensor([t])).logits[0].double().log_softmax(-1)[range(len(t)), list(t)]
            assert o==pytest.approx(whole.numpy(), abs=1e-5), type(net)
    odd = ProphetNetConfig(vocab_size=60, hidden_size=32, encoder_ffn_dim=64, decoder_ffn_dim=64, num_encoder_layers=1, num_decoder_layers=1, num_encoder_attention_heads=4,
                           num_decoder_attention_heads=4, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=2, decoder_start_token_id=1)
    with pytest.raises(ValueError, match='whose parts can be run apart'): load_conditional((ProphetNetForConditionalGeneration(odd), None))
    class Scaled(BartForConditionalGeneration):
        def forward(self, input_ids=None, **kwargs):
            out = super().forward(input_ids=input_ids, **kwargs)
            out.logits = out.logits*(1 if input_ids is None else 2)
            return out
    with pytest.raises(ValueError, match='Scaled give other logits'): load_conditional((Scaled(small_model('bart', 60).config), None))

@pytest.mark.parametrize('kind', KINDS)
def test_a_folder_is_the_model_it_holds(kind, framed_tokenizer, tmp_path):
    model = small_model(kind, len(framed_tokenizer))
    model.save_pretrained(tmp_path/'mine')
    framed_tokenizer.save_pretrained(tmp_path/'mine')
    net, tokenizer = load_conditional(tmp_path/'mine', 'cpu')
    assert type(net) is type(model) and tokenizer('ab')['input_ids']==framed_tokenizer('ab')['input_ids'] and model_identity(tmp_path/'mine')['model']=='mine'
    assert token_log_probabilities(net, [(3, 4)], [(5, 6)])[0]==pytest.approx(token_log_probabilities(model, [(3, 4)], [(5, 6)])[0], abs=1e-6)

# Sources and summaries

def test_the_empty_source_is_what_the_tokenizer_makes_of_nothing(tiny_tokenizer, framed_tokenizer):
    from tokenizers.processors import TemplateProcessing
    bart, t5 = small_model('bart', 259), small_model('t5', 259)
    assert SourceReader((bart, framed_tokenizer)).pair('ab', 'c').without==(0, 1)
    assert tiny_tokenizer('')['input_ids']==[] and SourceReader((bart, tiny_tokenizer)).pair('ab', 'c').without==(0, 1)
    framed_tokenizer._tokenizer.post_processor = TemplateProcessing(single='$A </s>', special_tokens=[('</s>', 1)])
    pair = SourceReader((t5, framed_tokenizer)).pair('ab', 'c')
    assert pair.without==(1,) and pair.target[-1]==1 and pair.own==(True, False)

def test_tokens_of_a_pair(framed_tokenizer):
    pair = SourceReader((small_model('bart', 259), framed_tokenizer)).pair('A b', 'x </s> 🙂')
    assert pair.given==tuple(framed_tokenizer('A b')['input_ids']) and pair.target.count(1)==1 # text is no end
    assert framed_tokenizer.decode(pair.target[1:-1])=='x </s> 🙂' and pair.own==(False, *[True]*(len(pair.target)-2), False)
    assert ''.join(dict.fromkeys('x </s> 🙂'[a:b] for a,b in pair.spans[-5:-1]))=='🙂'

def test_a_long_document_is_cut_and_the_prompt_is_not(tiny_tokenizer):
    reader = SourceReader((small_model('llama', 259), tiny_tokenizer), target_length=32)
    before, after, _ = around('after', tiny_tokenizer)
    long, short = (tiny_tokenizer.decode(reader.pair(o, 'x').given) for o in ('word '*500, 'word'))
    assert all(o.startswith(before+'word') and o.endswith(after) for o in (long, short))
    pair = reader.pair('word '*500, 'x'*50)
    assert pair.source_cut and pair.summary_cut and len(pair.target)==32 and len(pair.given)<=512-32 and not reader.pair('word', 'x').source_cut
    assert len(SourceReader((small_model('llama', 259), tiny_tokenizer), source_length=300).pair('word '*500, 'x').given)<=300
    with pytest.raises(ValueError, match='`room` must hold the prompt'): SourceReader((small_model('llama', 259), tiny_tokenizer), source_length=50).pair('a', 'b')
    with pytest.raises(ValueError, match="`target_length` must be less than the model's context of 512"):
        SourceReader((small_model('llama', 259), tiny_tokenizer), target_length=512).pair('a', 'b')

def test_a_chat_template_is_used_once(tiny_tokenizer):
    import copy
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "<s>{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    model = small_model('llama', 259)
    pair = SourceReader((model, tokenizer), prompt='before').pair('A source.', 'x')
    for ids in (pair.given, pair.without): assert ids.count(0)==1 and tokenizer.decode(ids).endswith('[assistant]')
    assert 'A source.' in tokenizer.decode(pair.given) and 'A source.' not in tokenizer.decode(pair.without)
    plain = SourceReader((model, tokenizer), prompt='before', chat=False).pair('A source.', 'x')
    assert '[assistant]' not in tokenizer.decode(plain.given)

@pytest.mark.parametrize('kind', ['bart', 'llama'])
def test_odd_texts(kind, framed_tokenizer):
    reader = SourceReader((small_model(kind, 259), framed_tokenizer), source_length=200, target_length=16)
    texts = [('', 'a'), ('a', ''), (' \n', 'a'), ('word', 'word'), ('a', 'a summary that is longer than its source'), ('🙂 日本語 ελ', '🙂🙂 mixed язык')]
    found = reader.read([a for a,_ in texts], [b for _,b in texts], lambda a, b, t: log_probabilities(a, t)[None])
    assert [o is None for o in found.values]==[True]*3+[False]*3 and found.parts()['summary_cut']==[False]*4+[True]*2
    assert [o.split(',')[0] for o in found.notes]==['2 of 6 summaries were cut at 16 tokens', '3 of 6 pairs have an empty source or summary']
    nothing = reader.read([], [], lambda a, b, t: log_probabilities(a, t)[None])
    assert nothing.values==[] and nothing.notes==()
    for wrong in ((['a', 'b'], ['a']), ('ab', ['a']), (['a'], [None])):
        with pytest.raises((ValueError, TypeError), match='`s(ources|ummaries)` must'): reader.read(*wrong, lambda a, b, t: None)

def test_settings_need_no_model():
    assert SourceReader('no/such', prompt='before').settings()['prompt']['name']=='before'
    with pytest.raises(ValueError, match="did you mean 'before'"): SourceReader('no/such', prompt='befor')

def test_identity_changes_with_what_decides(framed_tokenizer, tiny_tokenizer, tmp_path):
    found = [model_identity((small_model('bart', n), t)) for n,t in ((259, framed_tokenizer), (260, framed_tokenizer), (259, tiny_tokenizer))]
    assert len({*map(str, found)})==3 and found[0]==model_identity((small_model('bart', 259), framed_tokenizer))
    small_model('bart', 259).save_pretrained(tmp_path/'mine')
    before = model_identity(tmp_path/'mine')
    assert before==model_identity(str(tmp_path/'mine')) and 'mine'==before['model']
    (tmp_path/'mine'/'config.json').write_text('{}')
    assert model_identity(tmp_path/'mine')!=before
