"Judges by name, of a function and of others' packages: what they are given, and what is refused"
import math, sys
from types import ModuleType
import numpy as np, pandas as pd, pytest, torch
from compresscal.hallucination.dependence import Dependence
from compresscal.hallucination.harim import HaRiM, HaRiMDecoder
from compresscal.hallucination.judges import *
from compresscal.summaries.overlap import overlap
from compresscal.hallucination.risk import METRICS, metric_of
from compresscal.summaries.scores import Judge
from conftest import small_model

SOURCES = ['On Monday the council of Bremen voted for a bridge. It was cold.', 'Seven of nine agreed.', '']
SUMMARIES = ['The council voted. It was in Paris.', 'Seven agreed.', 'Nobody came.']

# Functions

@pytest.mark.parametrize('make', [list, tuple, np.array, torch.tensor, pd.Series, lambda o: (x for x in o)])
def test_any_list_of_numbers_will_do(make):
    found = FunctionJudge('mine', lambda a, b: make([.25, .5])).score(['a', '', 'b'], ['c', 'd', 'e'])
    assert found.values[[0, 2]].tolist()==[.25, .5] and math.isnan(found.values[1]) and found.name=='mine'

def test_the_function_sees_full_pairs_in_order_and_in_portions():
    seen = []
    def f(a, b):
        seen.append((a, b))
        return [None if o=='none' else 1 for o in b]
    found = FunctionJudge('mine', f, batch_size=2).score(['1', '2', ' ', '4'], ['a', 'none', 'c', 'd'])
    assert seen==[(['1', '2'], ['a', 'none']), (['4'], ['d'])] and np.isnan(found.values).tolist()==[False, True, True, False]
    assert found.notes==('1 of 4 pairs have an empty source or summary, and no score',) and FunctionJudge('mine', f).score([], []).values.shape==(0,)

@pytest.mark.parametrize('gives,says', [([1.], 'a score for each of 2 pairs, got 1'), ([1., 2., 3.], 'got 3'), ([1., math.nan], 'got nan for pair 1'), ([1., math.inf], 'got inf for pair 1'),
                                        ([1., 'x'], "got 'x' for pair 1"), (['a', 'b'], "got 'a' for pair 0"), (.5, 'must give a list of numbers, got float'), ('ab', 'got str'),
                                        ({0: 1., 1: 2.}, 'got dict'), (None, 'got NoneType'), ([.5, 1.5], r'lie within \(0, 1\), got 1.5 for summary 1'), ([[1.], [2.]], 'got')])
def test_what_a_function_must_not_give(gives, says):
    with pytest.raises((TypeError, ValueError), match=says): FunctionJudge('mine', lambda a, b: gives, (0, 1)).score(['a', 'b'], ['a', 'b'])

def test_what_no_function_judge_is():
    for wrong in (dict(name=''), dict(name=3), dict(f='f'), dict(batch_size=0), dict(batch_size=True), dict(bounds=(1, 1))):
        with pytest.raises((TypeError, ValueError), match=f'`{[*wrong][0]}`'): FunctionJudge(**dict(name='mine', f=len)|wrong)
    with pytest.raises(ValueError, match='got 1 summaries of 2 documents'): FunctionJudge('mine', lambda a, b: [1]).score(['a', 'b'], ['a'])
    with pytest.raises(ZeroDivisionError): FunctionJudge('mine', lambda a, b: [1/0]).score(['a'], ['b']) # a fault of the function stays its own

# Unsupported

def test_unsupported_is_the_column_of_overlap():
    texts = ['The Bremen council voted on Monday.', 'Bremen pays 15 million, said Ann. Ann said so in 2021.', 'A bridge.', '', 'See os.path.join() or 7 of 9 🙂']
    sources = [SOURCES[0]]*4+[SOURCES[1]]
    found = Unsupported().score(sources, texts)
    assert found.values==pytest.approx(overlap(sources, texts)['unsupported'], nan_ok=True)
    assert [len(o)/n if n else math.nan for o,n in zip(found.parts['missing'], found.parts['mentions'])]==pytest.approx(found.values, nan_ok=True)
    assert found.parts['missing'][1]==['15 million', 'Ann', '2021'] and not found.higher_is_better and found.bounds==(0, 1)
    with pytest.raises(ValueError, match='splitter'): Unsupported('none')

# Packages of others

class Face:
    "Answers by counting words, and remembers how it was made and asked"
    made, asked = [], []
    def __init__(self, **settings): self.made.append(settings)
    def answer(self, sources, texts):
        self.asked.append((sources, texts))
        return [len({*a.split()} & {*b.split()})/len({*b.split()}) for a,b in zip(sources, texts)]

class AlignFace(Face):
    def score(self, contexts, claims): return self.answer(contexts, claims)

class CheckFace(Face):
    def score(self, docs, claims, chunk_size=None):
        assert isinstance(docs, list) and isinstance(claims, list)
        found = self.answer(docs, claims)
        return [o>.5 for o in found], found, None, None

@pytest.fixture
def stand_in(monkeypatch):
    "Put a module with these members where a package would be"
    for kind in (AlignFace, CheckFace): monkeypatch.setattr(kind, 'made', []), monkeypatch.setattr(kind, 'asked', [])
    def put(name, **members):
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return put

@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path/'AlignScore-base.ckpt').write_bytes(b'weights')
    return tmp_path/'AlignScore-base.ckpt'

def test_alignscore_is_asked_as_its_package_wants(stand_in, checkpoint):
    stand_in('alignscore', AlignScore=AlignFace)
    judge = AlignScore(checkpoint, model='roberta-large', mode='bin', batch_size=4, device='cpu')
    found = judge.score(SOURCES, SUMMARIES)
    assert AlignFace.made==[dict(model='roberta-large', batch_size=4, device='cpu', ckpt_path=str(checkpoint), evaluation_mode='bin')]
    assert AlignFace.asked==[(SOURCES[:2], SUMMARIES[:2])] and np.isnan(found.values).tolist()==[False, False, True]
    judge.score(SOURCES, SUMMARIES)
    assert len(AlignFace.made)==1 # once
    assert found.settings['checkpoint']=='AlignScore-base.ckpt' and found.settings['fingerprint']!=''
    checkpoint.write_bytes(b'others')
    assert judge.settings()['fingerprint']!=found.settings['fingerprint']
    AlignFace.made.clear()
    assert np.isnan(AlignScore(checkpoint).score([''], ['a']).values).all() and not AlignFace.made # nothing to ask

def test_minicheck_is_asked_for_each_sentence_once(stand_in):
    stand_in('minicheck'), stand_in('minicheck.minicheck', MiniCheck=CheckFace)
    sources, texts = [SOURCES[0]]*2+SOURCES[1:], [SUMMARIES[0], 'It was in Paris. The council voted.', *SUMMARIES[1:]]
    mean, least = (MiniCheck('roberta-large', aggregate=o, cache_dir='kept').score(sources, texts) for o in ('mean', 'min'))
    assert CheckFace.made==[dict(model_name='roberta-large', cache_dir='kept')]*2
    assert CheckFace.asked[0]==([SOURCES[0]]*2+[SOURCES[1]], ['The council voted.', 'It was in Paris.', 'Seven agreed.'])
    for part,a,b in zip(mean.parts['sentences'], mean.values, least.values):
        assert math.isnan(a) if not part else (a, b)==pytest.approx((np.mean(part), min(part)))
    assert mean.values[0]==mean.values[1] and [len(o) for o in mean.parts['sentences']]==[2, 2, 1, 0] and len(mean.notes)==1

def test_minicheck_chunks_and_wrong_answers(stand_in):
    stand_in('minicheck'), stand_in('minicheck.minicheck', MiniCheck=CheckFace)
    assert MiniCheck(chunk_size=100).score(SOURCES, SUMMARIES).settings['chunk_size']==100
    for answer,says in (([1], 'labels and probabilities'), (([1], [.5, .5, .5], None), 'for each of 1 pairs, got 3'), (([1], [math.nan]), 'got nan'), (([1], [1.5]), 'lie within')):
        stand_in('minicheck.minicheck', MiniCheck=type('Wrong', (CheckFace,), dict(score=lambda self, docs, claims, answer=answer: answer)))
        with pytest.raises(ValueError, match=says): MiniCheck().score(['a b'], ['a b'])

def test_missing_and_mistaken_packages(stand_in, checkpoint, monkeypatch):
    for name in ('alignscore', 'minicheck', 'minicheck.minicheck'): monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match='pip install "minicheck @ git.https://github.com/Liyan06/MiniCheck.git@main"'): MiniCheck().score(['a'], ['b'])
    with pytest.raises(ImportError, match='pip install "alignscore @ git.https://github.com/yuh-zha/AlignScore.git"'): AlignScore(checkpoint).score(['a'], ['b'])
    stand_in('minicheck', Model=object) # the package of this name on PyPI is another
    monkeypatch.delitem(sys.modules, 'minicheck.minicheck')
    with pytest.raises(ImportError, match='not the one on PyPI'): MiniCheck().score(['a'], ['b'])

def test_a_package_that_fails_says_why(stand_in, checkpoint):
    def broken(**settings): raise RuntimeError('Error(s) in loading state_dict\nand more')
    stand_in('alignscore', AlignScore=broken)
    with pytest.raises(ValueError, match=r'AlignScore could not be made with .*: RuntimeError: Error\(s\) in loading state_dict$'): AlignScore(checkpoint).score(['a'], ['b'])
    with pytest.raises(ValueError, match='`checkpoint` must be a file'): AlignScore(checkpoint.parent)

# Names

@pytest.mark.parametrize('text,kind,settings', [('harim', HaRiM, {}), (' HaRiM : form=unhalved , lambda=2.5', HaRiM, dict(form='unhalved', lambda_=2.5)), ('harim:lambda_=3', HaRiM, dict(lambda_=3)),
    ('harim:model=facebook/bart-large-xsum,source_length=512', HaRiM, dict(model='facebook/bart-large-xsum', source_length=512)),
    ('harim:decoder', HaRiMDecoder, {}), ('harim:decoder,model=embedded,prompt=document,chat=false', HaRiMDecoder, dict(prompt='document', chat=False)),
    ('dependence:prompt=before', Dependence, dict(prompt='before')), ('unsupported', Unsupported, {}), ('minicheck:aggregate=min,chunk_size=none', MiniCheck, dict(aggregate='min'))])
def test_names_are_read(text, kind, settings):
    judge = parse_judge(text)
    assert type(judge) is kind and judge.settings()==kind(**settings).settings() and isinstance(judge, Judge)
    assert metric_of(judge).label.partition(' (')[0] in {o.label for o in METRICS.values()}

def test_a_folder_by_name(framed_tokenizer, checkpoint, tmp_path):
    small_model('bart', 259).save_pretrained(tmp_path/'mine')
    framed_tokenizer.save_pretrained(tmp_path/'mine')
    found = parse_judge(f"harim:model={tmp_path/'mine'}").score(SOURCES, SUMMARIES)
    assert found.values==pytest.approx(HaRiM((small_model('bart', 259), framed_tokenizer)).score(SOURCES, SUMMARIES).values, abs=1e-5, nan_ok=True)
    assert found.settings['model']=='mine' and parse_judge(f'alignscore:checkpoint={checkpoint}').checkpoint==checkpoint

@pytest.mark.parametrize('text,says', [('harem', "did you mean 'harim'"), ('harim:encoder', "got 'harim:encoder'"), ('harim:decoder,decoder', 'must be one of'), ('mini-chek', "did you mean 'minicheck'"),
    ('harim:modle=x', "did you mean 'model'"), ('harim:form=x', '`form` must be'), ('harim:lambda=much', '`lambda_` must be a number'), ('alignscore', 'checkpoint'), ('', 'must be one of'),
    ('minicheck:model=tiny', 'must be one of roberta-large'), ('summac', "did you mean 'summac_zs'")])
def test_wrong_names(text, says):
    with pytest.raises(ValueError, match=says): parse_judge(text)

def test_every_name_has_a_metric():
    assert all(metric_of(o).label.partition(' (')[0] in {m.label for m in METRICS.values()} for o in JUDGES)
    for wrong in (3, None, ['harim']):
        with pytest.raises(TypeError, match='must be a name or a judge'): parse_judge(wrong)

def test_summac_by_name():
    summac = pytest.importorskip('compresscal.hallucination.summac')
    assert judge_maker('summac_zs') is summac.SummaCZS and judge_maker('summac_conv') is summac.SummaCConv
    judge = parse_judge('summac_zs')
    assert isinstance(judge, Judge) and metric_of(judge).label=='SummaC-ZS'
    assert parse_judge('summac_zs:use_contradiction=true,shortest=11').settings()==summac.SummaCZS(use_contradiction=True, shortest=11).settings()
    assert parse_judge('summac_zs:original').settings()==summac.SummaCZS.original().settings()
    with pytest.raises(ValueError, match='must give SummaCZS settings that it takes, .*nothing_such'): parse_judge('summac_zs:nothing_such=1')
