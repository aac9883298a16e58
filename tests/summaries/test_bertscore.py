"BERTScore: the package's numbers are those of a plain computation, on models of several kinds made here."
import sys
import numpy as np
import pytest, torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizer, RobertaConfig, RobertaModel
from compresscal.summaries.bertscore import BERTScore

pytestmark = pytest.mark.usefixtures('one_thread')
bert_score = pytest.importorskip('bert_score')

words = 'the a name of module return class adjust image color balance . x y z'.split()
texts = ['return the name .', 'a class of image', 'x y z', 'return the name of module . '*40, '', 'a']
references = ['return the name of module', 'adjust image color balance .', 'x y z', 'adjust image color balance . '*40, 'a name', ' ']

def save(model, folder):
    with torch.no_grad():
        for p in model.parameters(): p.add_(.05*torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    model.save_pretrained(folder)

@pytest.fixture
def bert(tmp_path):
    vocabulary = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *words]
    (tmp_path/'vocab.txt').write_text('\n'.join(vocabulary))
    BertTokenizer(vocab=str(tmp_path/'vocab.txt')).save_pretrained(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save(BertModel(BertConfig(vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, max_position_embeddings=64)), tmp_path)
    return tmp_path

@pytest.fixture
def roberta(tmp_path, shared):
    import json
    from transformers import RobertaTokenizer
    kept = json.loads((shared/'data'/'tokenizers'/'gpt2_vocab.json').read_text())
    kept = {k: i for i,k in enumerate(['<s>', '<pad>', '</s>', '<unk>', '<mask>', *[o for o in kept if o!='<|endoftext|>']])}
    (tmp_path/'vocab.json').write_text(json.dumps(kept))
    (tmp_path/'merges.txt').write_bytes((shared/'data'/'tokenizers'/'gpt2_merges.txt').read_bytes())
    RobertaTokenizer(str(tmp_path/'vocab.json'), str(tmp_path/'merges.txt')).save_pretrained(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save(RobertaModel(RobertaConfig(vocab_size=len(kept), hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, max_position_embeddings=66, pad_token_id=1)), tmp_path)
    return tmp_path

def plain(folder, a, b, layers, limit, **kwargs):
    "Precision, recall and F of one pair, alone"
    tokenizer,model = AutoTokenizer.from_pretrained(folder),AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    def states(text):
        ids = tokenizer(text.strip(), truncation=True, max_length=limit, **kwargs)['input_ids']
        with torch.no_grad(): x = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layers][0]
        return x/x.norm(dim=-1, keepdim=True), torch.tensor([i not in (tokenizer.cls_token_id, tokenizer.sep_token_id) for i in ids])
    (x, kx), (y, ky) = states(a), states(b)
    near = x@y.T
    p, r = near.max(1).values[kx].mean(), near.max(0).values[ky].mean()
    return [p, r, 2*p*r/(p+r)]

def check(folder, limit, layers, **kwargs):
    scorer = BERTScore(folder, layers, batch_size=2, device='cpu')
    found = scorer.score(texts, references)
    assert found.shape==(6, 3) and np.isnan(found[4:]).all() and not np.isnan(found[:4]).any()
    for i in range(4): np.testing.assert_allclose(found[i], plain(folder, texts[i], references[i], layers or 3, limit, **kwargs), atol=2e-5)
    np.testing.assert_allclose(BERTScore(folder, layers, batch_size=32, device='cpu').score(texts, references), found, atol=1e-5)
    assert scorer.settings()==dict(name='bertscore', model=folder.name, layers=layers or 3)
    np.testing.assert_allclose(found[2], 1, atol=1e-5)

def test_a_bert(bert):
    check(bert, 64, 2)
    check(bert, 64, None)

def test_a_roberta(roberta): check(roberta, 64, 2, add_prefix_space=True)

def test_the_recommended_layer_is_found_by_the_name_of_a_folder(bert, tmp_path):
    target = bert/'bert-base-uncased'
    target.mkdir()
    for o in bert.iterdir():
        if o.is_file(): (target/o.name).write_bytes(o.read_bytes())
    scorer = BERTScore(target, device='cpu')
    scorer.score(['x'], ['x'])
    assert scorer.layers==3 # 9 of 12 are recommended, but this one has no more

def test_nothing_to_score_loads_nothing():
    assert np.isnan(BERTScore('nowhere/at-all').score(['', 'a'], ['b', None])).all() and BERTScore('nowhere/at-all').score([], []).shape==(0, 3)

def test_bad_input(bert):
    for f, kind, message in ((lambda: BERTScore(bert).score(['a'], []), ValueError, 'got 1 and 0'), (lambda: BERTScore(bert).score([None], ['a']), TypeError, '`predictions` must hold texts'),
                             (lambda: BERTScore(bert).score(['a'], [3]), TypeError, '`references` must hold texts, got int'), (lambda: BERTScore(bert, 9).score(['a'], ['a']), ValueError, 'with 9 layers'),
                             (lambda: BERTScore(bert, 0), ValueError, '`layers`'), (lambda: BERTScore(bert, batch_size=True), ValueError, '`batch_size`'),
                             (lambda: BERTScore('nowhere/at-all').score(['a'], ['a']), ValueError, "`model` must be a folder or Hub id.*got 'nowhere/at-all'")):
        with pytest.raises(kind, match=message): f()

def test_without_the_package(monkeypatch, bert):
    monkeypatch.setitem(sys.modules, 'bert_score', None)
    with pytest.raises(ImportError, match=r"pip install 'compresscal\[summaries\]'"): BERTScore(bert).score(['a'], ['a'])
