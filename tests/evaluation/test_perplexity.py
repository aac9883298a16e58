"Perplexity against plain computations, for every family, and its refusal of bad input"
import math
import pytest, torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from compresscal.calibration.calibration_set import CalibrationSet
from compresscal.text.corpora import Document, open_corpus
from compresscal.evaluation.perplexity import cut_windows, perplexity, text_rows, token_losses
from test_blocks import families

def make(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, experts_implementation='eager').eval()

def rows(n=5, length=24, vocabulary=96, seed=0): return torch.randint(3, vocabulary, (n,length), generator=torch.Generator().manual_seed(seed))

@torch.no_grad()
def plain(model, window, scored):
    "Nats of the last `scored` tokens of one window, the long way"
    logp = model(input_ids=window[None]).logits[0].double().log_softmax(-1)
    return -logp[:-1].gather(1, window[1:,None])[-scored:].sum().item()

@pytest.mark.parametrize('family', families)
def test_losses_equal_the_models_own(family):
    "Soft caps, scaled logits, projections after the decoder: all of the head is used"
    model,tokens = make(families[family]),rows()
    losses = token_losses(model, tokens)
    for t,l in zip(tokens, losses): assert l.sum().item()==pytest.approx(plain(model, t, len(t)-1), rel=1e-5)

@pytest.mark.parametrize('family', ['llama','gemma2','opt','gpt2','falcon_rw','mixtral','neox'])
@pytest.mark.parametrize('side', ['left','right'])
def test_padding_changes_nothing(family, side):
    model,tokens = make(families[family]),rows()
    n = torch.tensor([24,3,20,11,2])
    place = torch.arange(24)
    mask = place<n[:,None] if side=='right' else place>=24-n[:,None]
    padded = tokens.masked_fill(~mask, 0)
    losses = token_losses(model, padded, mask)
    assert (losses[~mask]==0).all()
    for p,m,l in zip(padded, mask, losses): assert l.sum().item()==pytest.approx(plain(model, p[m], int(m.sum())-1), rel=2e-5)
    p = perplexity(model, CalibrationSet.from_tokens(padded, mask))
    assert p.window_tokens==tuple((n-1).tolist())
    assert p.nats==pytest.approx(losses.sum().item(), rel=1e-5)

def test_head_in_pieces(tiny_model, monkeypatch):
    "The number of positions that go through the head at a time is not seen"
    tokens = rows(vocabulary=259)
    whole = token_losses(tiny_model, tokens)
    head = tiny_model.get_output_embeddings()
    sizes = []
    hook = head.register_forward_hook(lambda m,args,out: sizes.append(out.shape[-2]))
    class Large: shape = (2**23,)
    monkeypatch.setattr(tiny_model, 'get_output_embeddings', lambda: type('Head', (), dict(weight=Large)))
    pieces = token_losses(tiny_model, tokens)
    hook.remove()
    assert max(sizes)==4 and sum(sizes)==5*23
    torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-5)
    assert 'forward' not in vars(tiny_model.get_decoder())

@pytest.mark.parametrize('stride', [None,1,4,11])
@pytest.mark.parametrize('bos', [False,True])
@pytest.mark.parametrize('batch_size', [1,3,64])
def test_windows_equal_a_plain_loop(tiny_model, tiny_tokenizer, stride, bos, batch_size):
    texts = ["A short one.", "naïve "*12, "", "x"]
    nats,count,size = 0.,0,0
    for text in texts:
        ids = torch.tensor(tiny_tokenizer(text, add_special_tokens=False).input_ids, dtype=torch.long)
        room,done = 12-bos,0 if bos else 1
        for start in range(0, len(ids), stride or room):
            window = ids[start:start+room]
            fresh = min(start+len(window)-done, len(window)-(not bos))
            if fresh>0:
                nats += plain(tiny_model, torch.cat([torch.tensor([0]*bos, dtype=torch.long), window]), fresh)
                count += fresh
                size += fresh # one token a byte
            done = start+len(window)
            if done>=len(ids): break
    p = perplexity(tiny_model, texts, tiny_tokenizer, length=12, stride=stride, bos=bos, batch_size=batch_size)
    assert (p.tokens,p.length,p.stride,p.bos)==(count,12,stride,bos)
    assert p.nats==pytest.approx(nats, rel=1e-6)
    assert p.value==pytest.approx(math.exp(nats/count), rel=1e-6)
    assert abs(p.bytes-size)<=sum('ï' in t for t in texts)*len(p.window_nats) # a character may be cut between two windows
    if bos: assert p.bytes==sum(len(t.encode()) for t in texts)
    assert p.bits_per_byte==pytest.approx(p.nats/math.log(2)/p.bytes)

def test_windows_keep_their_order(tiny_model, tiny_tokenizer):
    texts = ["a"*n for n in (3,40,7,1,25)]
    p = perplexity(tiny_model, texts, tiny_tokenizer, batch_size=2)
    assert p.window_tokens==p.window_bytes==(3,40,7,1,25)
    for text,nats in zip(texts, p.window_nats): assert perplexity(tiny_model, [text], tiny_tokenizer).nats==pytest.approx(nats, rel=1e-5)
    assert list(p.to_pandas().tokens)==[3,40,7,1,25]

def test_documents_files_and_max_windows(tiny_model, tiny_tokenizer, tmp_path):
    text = "a text with a name"
    expected = perplexity(tiny_model, [text], tiny_tokenizer)
    (tmp_path/'one.txt').write_text(text)
    for source in ([Document(text, 'one')], tmp_path/'one.txt', str(tmp_path/'one.txt'), open_corpus([text])):
        assert perplexity(tiny_model, source, tiny_tokenizer)==expected
    endless = (f"text {i}" for i in iter(int, 1))
    assert perplexity(tiny_model, endless, tiny_tokenizer, max_windows=3).window_tokens==(6,6,6)

def test_one_bos_is_enough(tiny_model, tiny_tokenizer):
    tokens = rows(2, 10, 259)
    headed = torch.cat([torch.zeros(2, 1, dtype=torch.long), tokens], 1)
    a,b,c = perplexity(tiny_model, headed, tiny_tokenizer), perplexity(tiny_model, tokens, tiny_tokenizer, bos=True), perplexity(tiny_model, headed, tiny_tokenizer, bos=True)
    assert a.window_nats==pytest.approx(b.window_nats) and b.window_nats==pytest.approx(c.window_nats)
    assert a.tokens==b.tokens==c.tokens==20 and a.bytes==b.bytes==c.bytes
    assert perplexity(tiny_model, tokens, bos=True).nats==pytest.approx(b.nats) # the model's own BOS, where no tokenizer is given

def test_a_long_row_is_a_text(tiny_model):
    stream = rows(1, 500, 259)[0]
    p = perplexity(tiny_model, stream)
    assert (p.length,p.tokens)==(128,500-4)
    assert perplexity(tiny_model, stream, stride=64).tokens==499
    assert perplexity(tiny_model, stream[None], length=100).window_nats==pytest.approx(perplexity(tiny_model, stream.view(5,100)).window_nats)

def test_training_mode_is_kept_and_unseen(tiny_model):
    tokens = rows(vocabulary=259)
    expected = perplexity(tiny_model, tokens).nats
    tiny_model.config.attention_dropout = .9
    for o in tiny_model.model.layers: o.self_attn.attention_dropout = .9
    tiny_model.train()
    assert perplexity(tiny_model, tokens).nats==expected
    assert tiny_model.training and not any(p.grad is not None for p in tiny_model.parameters())

def test_bfloat16_model_has_single_precision_losses(tiny_model):
    tokens = rows(vocabulary=259)
    exact = perplexity(tiny_model, tokens).value
    losses = token_losses(tiny_model.bfloat16(), tokens)
    assert losses.dtype==torch.float32 and len(losses.unique())>100
    assert perplexity(tiny_model, tokens).value==pytest.approx(exact, rel=.02)

def test_bytes_of_a_tokenizer_with_longer_tokens(shared):
    from compresscal.models.loading import load_model
    model,tokenizer = load_model(shared/'data'/'model_stories260K'/'transformers')
    text = "Once upon a time there was a naïve dog — he said “hi” to everyone. " * 3
    p = perplexity(model, [text], tokenizer, length=32, stride=16)
    assert p.bytes==len(text.encode())
    ids = torch.tensor([tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids])
    assert abs(perplexity(model, ids, tokenizer).bytes-p.bytes)<=3*p.tokens/32

@pytest.mark.parametrize('name,expected', [('eval_self',4.0403),('eval_hand',3.5666)])
def test_dense_perplexity_of_the_shared_model(shared, name, expected):
    from compresscal.models.loading import load_model
    model,_ = load_model(shared/'data'/'model_stories260K'/'transformers')
    tokens = load_file(shared/'oracles'/'tokens_stories260K.safetensors')[name]
    assert perplexity(model, tokens).value==pytest.approx(expected, rel=1e-3)

@pytest.mark.parametrize('kw,message', [
    (dict(length=129), "context of 128 tokens, got 129"), (dict(length=1), "`length` must be at least 2, got 1"),
    (dict(length=12, stride=12), "at most 11"), (dict(stride=0), "`stride`.*got 0"), (dict(tokenizer=None), "`tokenizer` must be given"),
    (dict(batch_size=0), "`batch_size` must be at least 1, got 0"), (dict(max_windows=0), "`max_windows` must be at least 1, got 0")])
def test_bad_settings(tiny_model, tiny_tokenizer, kw, message):
    with pytest.raises(ValueError, match=message): perplexity(tiny_model, ["some text"], **(dict(tokenizer=tiny_tokenizer)|kw))

def test_bad_sources(tiny_model, tiny_tokenizer):
    ones = torch.ones(2, 8, dtype=torch.long)
    for source in ([], [""], ones[:,:1], ones[:0], ones[:,:0]):
        with pytest.raises(ValueError, match="nothing to score"): perplexity(tiny_model, source, tiny_tokenizer, bos=False)
    with pytest.raises(ValueError, match="below 259, the model's vocabulary, got 259"): perplexity(tiny_model, ones*259)
    with pytest.raises(ValueError, match="not be negative"): perplexity(tiny_model, -ones)
    with pytest.raises(ValueError, match="whole numbers"): perplexity(tiny_model, ones.float())
    with pytest.raises(ValueError, match="context of 128 tokens, got 200"): perplexity(tiny_model, torch.ones(2, 200, dtype=torch.long))
    with pytest.raises(ValueError, match="did you mean 'docs'"): perplexity(tiny_model, 'doc', tiny_tokenizer)
    with pytest.raises(TypeError, match="got int"): perplexity(tiny_model, [1,2,3], tiny_tokenizer)
    tiny_tokenizer.bos_token = None
    try:
        with pytest.raises(ValueError, match="no BOS token"): perplexity(tiny_model, ["text"], tiny_tokenizer, bos=True)
        assert not perplexity(tiny_model, ["text"], tiny_tokenizer).bos
    finally: tiny_tokenizer.bos_token = '<s>'

def test_a_broken_model_is_refused(tiny_model):
    with torch.no_grad(): tiny_model.model.layers[1].mlp.down_proj.weight[0,0] = float('nan')
    with pytest.raises(ValueError, match="got NaN for window 0"): perplexity(tiny_model, rows(vocabulary=259))

def test_hopeless_models_have_large_but_finite_perplexity(tiny_model):
    with torch.no_grad(): tiny_model.lm_head.weight *= 1e6
    assert 1e100<perplexity(tiny_model, rows(vocabulary=259)).value<float('inf')

def test_cut_windows_covers_each_token_once():
    for n in range(40):
        for length in (2,3,8):
            for bos in (None,7):
                for stride in (None,*range(1, length-(bos is not None)+1)):
                    windows = cut_windows(torch.arange(100, 100+n), length, stride, bos)
                    seen = [i for w,begin,stop in windows for i in range(begin, stop)]
                    assert seen==sorted(set(seen)) and all(len(w)<=length for w,_,_ in windows)
                    if bos is not None: assert seen==list(range(n))
                    elif stride and stride<length: assert seen==list(range(1, n))
                    for w,begin,stop in windows: assert w[-(stop-begin):].tolist()==list(range(100+begin, 100+stop))

# words

def test_words_are_those_between_white_space(tiny_model, tiny_tokenizer):
    "From texts and from tokens, however they are cut; a word counts where it begins"
    texts = ["  two words", "one", "\n\t ", "tabs\tand\nlines  and\u00a0spaces ", "naïve " * 30]
    for kw in ({}, dict(length=7), dict(length=12, stride=3)):
        p = perplexity(tiny_model, texts, tiny_tokenizer, bos=True, **kw)
        assert p.words==sum(len(o.split()) for o in texts) and len(p.window_words)==len(p.window_nats)
        assert p.word_perplexity==pytest.approx(math.exp(min(p.nats/p.words, 709)))
    ids = torch.tensor(tiny_tokenizer(texts[3], add_special_tokens=False).input_ids)
    assert perplexity(tiny_model, ids, tiny_tokenizer, bos=True, length=9).words==len(texts[3].split())
    assert perplexity(tiny_model, ids).words is None is perplexity(tiny_model, ids).word_perplexity
    assert perplexity(tiny_model, ["   "], tiny_tokenizer).word_perplexity is None # tokens, but no words

# GPTQ's protocol

def plain_gptq(model, ids, length):
    "Mean of the mean losses of all full windows, in the manner of GPTQ's own evaluation"
    with torch.no_grad(): losses = [model(input_ids=w[None], labels=w[None]).loss.double() for w in ids.split(length) if len(w)==length]
    return torch.stack(losses).mean().exp().item(),len(losses)

@pytest.mark.parametrize('special', [False,True])
def test_gptq_protocol_equals_a_plain_loop(tiny_model, tiny_tokenizer, special):
    "Special tokens stand where the tokenizer puts them: at the head of the stream, or nowhere"
    from copy import deepcopy
    from tokenizers.processors import TemplateProcessing
    tokenizer = deepcopy(tiny_tokenizer)
    if special: tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single='<s> $A', special_tokens=[('<s>', 0)])
    rows = [f"Row {i} has so many words." * (i%4) for i in range(60)]
    ids = tokenizer("\n\n".join(rows), return_tensors='pt').input_ids[0]
    assert (ids[0]==0)==special
    for length in (None,40):
        expected,n = plain_gptq(tiny_model, ids, length or 128)
        p = perplexity(tiny_model, rows, tokenizer, protocol='gptq', length=length)
        assert p.value==pytest.approx(expected, rel=1e-6) and p.window_tokens==((length or 128)-1,)*n
        assert (p.length,p.stride,p.bos,p.protocol)==(length or 128,None,False,'gptq') and 'gptq' in repr(p)
        assert perplexity(tiny_model, ids, protocol='gptq', length=length).window_nats==p.window_nats
    assert perplexity(tiny_model, rows, tokenizer, protocol='gptq', max_windows=2).window_tokens==(127,)*2

def test_gptq_protocol_on_wikitext(shared, tmp_path):
    "Lines of the file are rows: blank ones empty, others with their line break"
    from compresscal.models.loading import load_model
    model,tokenizer = load_model(shared/'data'/'model_stories260K'/'transformers')
    lines = (shared/'data'/'text_wikitext2'/'wiki.valid.txt').read_text(encoding='utf-8').split('\n')[:60]
    (tmp_path/'wiki.valid.txt').write_text('\n'.join(lines)+'\n', encoding='utf-8')
    rows = text_rows(tmp_path/'wiki.valid.txt')
    assert rows==[o+'\n' if o.strip() else '' for o in lines] and rows[:2]==['',' = Homarus gammarus = \n']
    ids = tokenizer("\n\n".join(rows), return_tensors='pt').input_ids[0]
    expected,n = plain_gptq(model, ids, 512)
    p = perplexity(model, tmp_path/'wiki.valid.txt', tokenizer, protocol='gptq')
    assert p.value==pytest.approx(expected, rel=1e-5) and (p.length,len(p.window_nats))==(512,n) and n>10

def test_rows_of_other_sources(tmp_path, monkeypatch):
    from compresscal.evaluation.perplexity import text_rows
    (tmp_path/'rows.jsonl').write_text('{"text": "one"}\n{"text": "two"}\n')
    assert sorted(text_rows(tmp_path/'rows.jsonl'))==['one','two'] and text_rows([Document('a','1'),'','b'])==['a','','b']
    assert len(text_rows('docs'))>5
    asked = []
    monkeypatch.setattr('datasets.load_dataset', lambda *args, **kwargs: asked.append((args, kwargs)) or dict(text=['', ' = A = \n']))
    assert text_rows('wikitext')==['', ' = A = \n'] and asked==[(('Salesforce/wikitext', 'wikitext-2-raw-v1'), dict(split='test'))]
    def offline(*args, **kwargs): raise ConnectionError("no network")
    monkeypatch.setattr('datasets.load_dataset', offline)
    with pytest.raises(ValueError, match="could not be opened on the Hub .ConnectionError.; give its text as a file"): text_rows('wikitext')

@pytest.mark.parametrize('kw,message', [(dict(stride=4), "`stride` must be None"), (dict(bos=True), "`bos` must be None"), (dict(tokenizer=None), "`tokenizer` must be given"),
    (dict(length=129), "context of 128"), (dict(protocol='awq'), "`protocol` must be 'gptq' or None, got 'awq'"), (dict(length=100), "at least one full window of 100 tokens"),
    (dict(source=torch.ones(2, 8).long()), "rows that are cut already"), (dict(source=CalibrationSet.from_tokens(torch.ones(2, 8).long())), "rows that are cut already")])
def test_gptq_protocol_refuses(tiny_model, tiny_tokenizer, kw, message):
    with pytest.raises(ValueError, match=message): perplexity(tiny_model, **(dict(source=["a text"], tokenizer=tiny_tokenizer, protocol='gptq')|kw))

def test_a_bound_reads_no_more_than_it_takes(tiny_model, tiny_tokenizer, monkeypatch):
    "A source that never ends, and the same windows as of all of a short one"
    from itertools import count
    from compresscal.text.corpora import Corpus
    import compresscal.evaluation.perplexity as module
    def endless():
        for i in count(): yield Document(f'Row {i} has so many words. '*(i%4), f'{i}')
    source = Corpus('web', {}, dict(all=endless))
    p = perplexity(tiny_model, source, tiny_tokenizer, protocol='gptq', length=40, max_windows=3)
    assert p.window_tokens==(39,)*3 and p.window_nats==perplexity(tiny_model, source, tiny_tokenizer, protocol='gptq', length=40, max_windows=9).window_nats[:3]
    rows = [f'Row {i} has so many words.'*(i%4) for i in range(60)]
    whole,bounded = (perplexity(tiny_model, rows, tiny_tokenizer, protocol='gptq', length=40, max_windows=o) for o in (None, 4))
    assert bounded.window_nats==whole.window_nats[:4] and bounded.window_bytes==whole.window_bytes[:4]

def test_a_protocol_shows_that_it_is_at_work(tiny_model, tiny_tokenizer, monkeypatch):
    import compresscal.evaluation.perplexity as module
    bars = []
    monkeypatch.delenv('IN_TEST', raising=False)
    real = module.tqdm
    monkeypatch.setattr(module, 'tqdm', lambda *a, **k: bars.append((k['desc'], k['disable'])) or real(*a, **k|dict(disable=True)))
    for progress in (True, False): perplexity(tiny_model, ['Some words. '*20], tiny_tokenizer, protocol='gptq', length=40, progress=progress)
    assert bars==[('reading', False), ('perplexity', False), ('reading', True), ('perplexity', True)]

def test_rows_of_plain_text_do_not_depend_on_its_suffix(tmp_path):
    for o in ('a.txt', 'a.utf8', 'a.tex'): (tmp_path/o).write_text('one\n\ntwo\n')
    rows = text_rows(tmp_path/'a.txt')
    assert rows==['one\n', '', 'two\n']==text_rows(tmp_path/'a.utf8')==text_rows(f"text:{tmp_path/'a.tex'}")
