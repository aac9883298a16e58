"The harness's word perplexity against the harness itself, on the same texts"
import math
import pytest
from compresscal.evaluation.harness_perplexity import harness_word_perplexity, rolling_windows
from compresscal.evaluation.perplexity import perplexity

def test_rolling_windows_score_each_token_once():
    lm_eval = pytest.importorskip('lm_eval.utils')
    for n in range(1, 30):
        for length in (1,2,7,30):
            found,ids = list(rolling_windows(list(range(n)), 99, length)),list(range(n))
            assert [t for _,targets,k in found for t in targets[-k:]]==ids
            theirs = [lm_eval.make_disjoint_window(o) for o in lm_eval.get_rolling_token_windows(ids, 99, length, 1)]
            assert [(inputs[:len(inputs)-k+1],targets[-k:]) for inputs,targets,k in found]==[tuple(o) for o in theirs]

@pytest.mark.parametrize('name', ['model_stories260K','embedded'])
def test_word_perplexity_equals_the_harness(shared, name):
    "Two articles of WikiText, as the harness's task reads and counts them, with its own model class"
    pytest.importorskip('lm_eval')
    pytest.importorskip('accelerate') # which that class needs
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer
    from compresscal.text.corpora import join_articles
    from compresscal.models.loading import load_model
    model,tokenizer = load_model(None if name=='embedded' else shared/'data'/name/'transformers')
    pages = [o[:6000] for o in list(join_articles((shared/'data'/'text_wikitext2'/'wiki.valid.txt').read_text(encoding='utf-8').splitlines(keepends=True)))[1:3]]
    read = [wikitext_detokenizer(dict(page=o)) for o in pages]
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    logliks = harness.loglikelihood_rolling([Instance('loglikelihood_rolling', dict(page=o), (o,), 0) for o in read], disable_tqdm=True)
    found = harness_word_perplexity(model, read, tokenizer, originals=pages, length=harness.max_length, batch_size=3)
    assert found.document_nats==pytest.approx([-o for o in logliks], rel=1e-6)
    theirs = [process_results(dict(page=o), (l,)) for o,l in zip(pages, logliks)]
    total = lambda k: [sum(o) for o in zip(*(t[k] for t in theirs))]
    for metric in ('word_perplexity','byte_perplexity'): assert getattr(found, metric)==pytest.approx(math.exp(-total(metric)[0]/total(metric)[1]), rel=1e-5)
    assert found.bits_per_byte==pytest.approx(-total('bits_per_byte')[0]/total('bits_per_byte')[1]/math.log(2), rel=1e-6)
    assert abs(found.word_perplexity/perplexity(model, read, tokenizer).word_perplexity-1)>.01 # another quantity

def test_word_perplexity_equals_the_harness_task(shared, tmp_path):
    "The task `wikitext` on a file, all that it reports"
    pytest.importorskip('lm_eval')
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer
    from compresscal.models.loading import load_model
    from compresscal.evaluation.task_files import read_task_rows
    from compresscal.evaluation.tasks import evaluate_tasks
    model,tokenizer = load_model(shared/'data'/'model_stories260K'/'transformers')
    lines = (shared/'data'/'text_wikitext2'/'wiki.valid.txt').read_text(encoding='utf-8').split('\n')[:50]
    (tmp_path/'wiki.txt').write_text('\n'.join(lines), encoding='utf-8')
    pages = [o['page'] for o in read_task_rows(tmp_path/'wiki.txt')]
    theirs = evaluate_tasks(model, tokenizer, 'wikitext', files={'wikitext': tmp_path/'wiki.txt'}, progress=False)['wikitext'].metrics
    ours = harness_word_perplexity(model, [wikitext_detokenizer(dict(page=o)) for o in pages], tokenizer, originals=pages)
    assert len(pages)>1 and set(theirs)=={'word_perplexity','byte_perplexity','bits_per_byte'}
    for k,v in theirs.items(): assert getattr(ours, k)==pytest.approx(v, rel=1e-5)

def test_harness_word_perplexity_refuses(tiny_model, tiny_tokenizer):
    with pytest.raises(ValueError, match="got 0 and 0"): harness_word_perplexity(tiny_model, [], tiny_tokenizer)
    with pytest.raises(TypeError, match="a list of texts"): harness_word_perplexity(tiny_model, "one text", tiny_tokenizer)
    with pytest.raises(ValueError, match="`length` in 1..128, got 8 and 129"): harness_word_perplexity(tiny_model, ["text"], tiny_tokenizer, length=129)
    assert harness_word_perplexity(tiny_model, ["", "some"], tiny_tokenizer).document_nats[0]==0 # an empty document has no tokens
