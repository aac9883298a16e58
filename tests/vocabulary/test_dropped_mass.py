"What a head loses, against the losses of the whole and of the reduced model."
import pytest, torch
from compresscal.vocabulary.dropped_mass import dropped_mass
from compresscal.vocabulary.reduction import plan_reduction, reduce_vocabulary
from test_reduction import CLASSIFIERS, labelled, make, renumbered_batches, rows, used

@pytest.mark.parametrize('name', ['llama_tied', 'llama', 'gpt2', 'gemma', 't5', 'bart', 'bert', 'roberta', 'xlnet'])
def test_losses(name, one_thread):
    "The loss of the whole model, and, before any training, of the reduced one"
    model, whole = make(name), make(name)
    batches = labelled(whole)
    for b in batches: # as many labels in each batch, or means of means differ
        b['labels'] = b['input_ids'].clone()
        b['labels'][:, 3] = -100
    found = dropped_mass(whole, plan_reduction(whole, used).tokens, batches, shift=False if name=='xlnet' else None) # its loss compares a place with itself
    reduction = reduce_vocabulary(model, used)
    with torch.no_grad():
        full = sum(whole(**b).loss.item() for b in batches)/len(batches)
        small = sum(model(**b).loss.item() for b in renumbered_batches(reduction, batches))/len(batches)
    assert found.full_loss==pytest.approx(full, rel=1e-5) and found.reduced_loss==pytest.approx(small, rel=1e-5)
    assert found.unseen==0 and 0<found.mean<found.worst<1 and found.offset==pytest.approx(-torch.log1p(-torch.from_numpy(found.mass)).mean().item(), rel=1e-5)

def test_padding_does_not_count(one_thread):
    model, batch = make('llama'), rows(make('llama'))
    short = {k: v[:, :6] for k,v in batch.items()}
    padded = {k: torch.cat([v, torch.zeros_like(v[:, :4])], 1) for k,v in short.items()}
    a, b = dropped_mass(model, used, short), dropped_mass(model, used, padded)
    assert len(a.mass)==len(b.mass)==20 and a.mass==pytest.approx(b.mass, rel=1e-5)
    parts = dropped_mass(model, used, [{k: v[i:i+1] for k,v in short.items()} for i in range(4)])
    assert parts.mass==pytest.approx(a.mass, rel=1e-5) and parts.full_loss==pytest.approx(a.full_loss, rel=1e-6)

def test_bad_input():
    with pytest.raises(ValueError, match='must have an output head'): dropped_mass(make('bert', CLASSIFIERS), used, rows(make('bert')))
    for name in ('bert', 't5'):
        with pytest.raises(ValueError, match='must hold labels'): dropped_mass(make(name), used, rows(make(name)))
    model = make('llama')
    with pytest.raises(ValueError, match='0..96, one or more, got 4..97'): dropped_mass(model, [4, 97], rows(model))
    with pytest.raises(ValueError, match='one or more, got none'): dropped_mass(model, [], rows(model))
    with pytest.raises(ValueError, match='a label or more'): dropped_mass(model, used, rows(model)|dict(labels=torch.full((4, 9), -100)))
    found = dropped_mass(model, [5], rows(model))
    assert found.unseen==len(found.mass)==32 and found.full_loss!=found.full_loss
