"What a worker of a study keeps at hand, and what it needs"
import pytest
import torch
from small_studies import tokens

from compresscal.experiments.cells import JUDGE, Bench, Job, judges_memory, memory_needed, models_named
from compresscal.compression.compress import compress
from compresscal.evaluation.perplexity import positions_at_once, token_losses
from compresscal.hallucination.judges import parse_judge
from compresscal.experiments.measures import parse_measure
from compresscal.compression.methods import Wanda
from compresscal.models.blocks import decoder_blocks
from compresscal.calibration.calibration_set import CalibrationSet

def test_a_model_is_looked_over_once_for_all_its_jobs(tiny_model, tiny_tokenizer, monkeypatch):
    text, asked = CalibrationSet.from_tokens(tokens(1)), []
    def counted(model): asked.append(model); return decoder_blocks(model)
    for place in ('compresscal.experiments.cells.decoder_blocks', 'compresscal.compression.compress.decoder_blocks'): monkeypatch.setattr(place, counted)
    worker = Bench({'tiny': (tiny_model, tiny_tokenizer)}, {'text': parse_measure('docs')}, {('tiny', 'text'): text})()
    for sparsity in (.3, .5): worker(Job('tiny', Wanda(sparsity), text, measures=('text',)))
    assert len(asked)==1

def test_blocks_that_are_known_change_nothing(tiny_model):
    dense = {k: v.clone() for k,v in tiny_model.state_dict().items()}
    compress(tiny_model, Wanda(.5), tokens(1), progress=False)
    expected = {k: v.clone() for k,v in tiny_model.state_dict().items()}
    tiny_model.load_state_dict(dense)
    compress(tiny_model, Wanda(.5), tokens(1), blocks=decoder_blocks(tiny_model), progress=False)
    assert all(torch.equal(v, expected[k]) for k,v in tiny_model.state_dict().items())

def test_logits_on_a_cpu_stay_in_memory_that_is_used_again():
    class Head:
        def __init__(self, rows, device='cpu'): self.weight, self.device = torch.empty(rows, 1, device='meta'), torch.device(device)
        def get_output_embeddings(self): return self
    assert [positions_at_once(Head(n)) for n in (2**12, 2**17, 2**18, 2**26)]==[1024, 256, 128, 1]
    assert positions_at_once(Head(2**12, 'meta'))==8192 # not on a CPU

def test_losses_are_the_same_in_parts(tiny_model, monkeypatch):
    whole, sizes = token_losses(tiny_model, tokens(2, 3)), []
    from compresscal.evaluation import perplexity as evaluation
    apply_head = evaluation.apply_head
    def noted(model, states, *args): sizes.append(len(states)); return apply_head(model, states, *args)
    monkeypatch.setattr(evaluation, 'apply_head', noted)
    monkeypatch.setattr(evaluation, 'positions_at_once', lambda model: 17)
    torch.testing.assert_close(token_losses(tiny_model, tokens(2, 3)), whole)
    assert sum(sizes)==3*23 and max(sizes)-min(sizes)<2 and max(sizes)<=17

def test_a_worker_needs_memory_for_judges_and_logits(tiny_model, tmp_path):
    jobs = [Job('tiny', Wanda(.5), CalibrationSet.from_tokens(tokens(1)))]
    without = memory_needed(tiny_model, jobs)
    (tmp_path/'judge').mkdir()
    (tmp_path/'judge'/'model.safetensors').write_bytes(bytes(5000))
    (tmp_path/'judge'/'pytorch_model.bin').write_bytes(bytes(7000)) # the same once more, which is not read
    judged = parse_measure(f"summaries:docstrings,judges=harim:model={tmp_path/'judge'}+unsupported+harim:decoder;model={tmp_path/'judge'}")
    assert judges_memory(judged)==10_000 and memory_needed(tiny_model, jobs, measures=[judged])==without+10_000 # each loads its own
    assert judges_memory(parse_measure('summaries:docstrings,judges=harim:model=nobody/nothing'))==JUDGE
    assert judges_memory(parse_measure('docs'))==0
    long = CalibrationSet.from_tokens(tokens(3, 2, 128))
    assert memory_needed(tiny_model, jobs, [long])-without >= 4*3*8*128*259-2**18 # logits three times over

@pytest.mark.parametrize('judge, models', [('summac_zs:model=a/b', ['a/b']), ('harim:decoder,model=embedded', ['embedded']), ('minicheck', ['flan-t5-large']), ('unsupported', [])])
def test_models_of_a_judge(judge, models): assert models_named(parse_judge(judge))==models
