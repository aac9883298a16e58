"Selections against plain versions of themselves; copies at scale; what is written down; bad input"
import itertools, json, math
from collections import Counter
from types import SimpleNamespace
import numpy as np
import pytest, torch
from compresscal.calibration.calibration_set import CalibrationSet
from compresscal.calibration.sampling import mix, sample_sets
from compresscal.choosing.readings import profile
from compresscal.choosing.selection import (at_random, cover_outliers, diverse, drop_duplicates, keep_likely, outlier_reach, proportional, representative, select_rows,
    sequence_runs)

def make(n=40, length=24, kinds=60, seed=0, mask=False):
    "A set of random tokens, rare ones rarer"
    g = torch.Generator().manual_seed(seed)
    tokens = (torch.rand(n, length, generator=g)**3*kinds).long()
    lengths = torch.randint(8, length+1, (n,), generator=g)
    return CalibrationSet.from_tokens(tokens, torch.arange(length)<lengths[:,None] if mask else None)

def readings(calibration, seed=0):
    "A profile with made-up content"
    g,n = torch.Generator().manual_seed(seed),len(calibration)
    a,b = torch.rand(n, 50, generator=g)**4,torch.rand(n, 30, generator=g)**4
    return SimpleNamespace(hash=calibration.hash, sequence_perplexity=torch.rand(n, generator=g), pooled=torch.randn(n, 6, generator=g),
        sequence_peaks=dict(q=a, k=a, up=b))

def each(calibration, n=6):
    "Every selection, by name"
    p = readings(calibration)
    return dict(at_random=at_random(calibration, n), keep_likely=keep_likely(calibration, p, (10,60)), drop_duplicates=drop_duplicates(calibration),
        proportional=proportional(calibration, ['ab'[i%3==0] for i in range(len(calibration))], n_sequences=n), diverse=diverse(calibration, n),
        representative=representative(calibration, p, n), cover_outliers=cover_outliers(calibration, p, n))

@pytest.mark.parametrize('mask', [False,True])
def test_every_selection_is_rows_of_the_set(mask, tmp_path):
    "Manifest and tokens agree, survive the disk, and come out the same again"
    pool = make(mask=mask)
    again = each(make(mask=mask))
    for name,o in each(pool).items():
        m = o.manifest
        assert (m['kind'],m['method'],m['of'])==('selected',name,pool.hash) and m['manifest']==pool.manifest
        assert len(set(m['rows']))==len(m['rows'])==len(o) and o==pool[m['rows']]
        assert o==again[name] and json.loads(json.dumps(m))==m==again[name].manifest
        loaded = CalibrationSet.load(o.save(tmp_path/name))
        assert loaded==o and loaded.manifest==m

def test_selections_chain():
    "The manifest holds the whole way back"
    pool = make()
    o = diverse(drop_duplicates(keep_likely(pool, readings(pool))), 4)
    methods,rows,m = [],torch.arange(4),o.manifest
    while m['kind']=='selected':
        methods.append(m['method'])
        rows,m = torch.tensor(m['rows'])[rows],m['manifest']
    assert methods==['diverse','drop_duplicates','keep_likely'] and m==pool.manifest and o==pool[rows]

def test_a_selection_mixes_like_any_set():
    a,b = diverse(make(), 10),at_random(make(seed=1), 10)
    assert len(mix({a: .5, b: .5}, 10))==10

# perplexity

@pytest.mark.parametrize('percentile', [1,20,50,80,99.5,100])
def test_likely_by_rank(percentile):
    pool = make(100)
    p = readings(pool).sequence_perplexity
    kept = keep_likely(pool, p.numpy(), percentile).manifest['rows']
    assert len(kept)==round(percentile) or percentile==99.5
    assert kept==sorted(kept) and (len(kept)==100 or p[kept].max()<=min(p[i] for i in range(100) if i not in kept))

def test_percentiles_that_meet_share_nothing():
    pool,p = make(37),readings(make(37))
    parts = [keep_likely(pool, p, o).manifest['rows'] for o in ((0,33),(33,66),(66,100))]
    assert sorted(itertools.chain(*parts))==list(range(37))

def test_equal_perplexities_go_by_row(): assert keep_likely(make(10), [1.]*10, 30).manifest['rows']==[0,1,2]

# copies

def jaccard(a, b): return len(set(a)&set(b))/len(set(a)|set(b))

@pytest.mark.parametrize('share,copy', [(.9,True),(.75,True),(.5,False),(.2,False)])
def test_near_copies_at_scale(share, copy):
    "300 windows and 100 that share a part with one of them: what is left out follows the similarity of runs"
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(5000, (300,128), generator=g)
    near = torch.randint(5000, (100,128), generator=g)
    near[:,:round(128*share)] = tokens[:100,-round(128*share):]
    both = CalibrationSet.from_tokens(torch.cat([tokens, near]))
    found = drop_duplicates(both)
    assert found.manifest['copies']==([[300+i,i] for i in range(100)] if copy else [])
    assert len(found)==(300 if copy else 400)

def test_copies_equal_all_pairs():
    "Planted pairs of every similarity: of those the index may miss a few right at the threshold, and nothing else"
    g = torch.Generator().manual_seed(1)
    tokens = torch.randint(5000, (200,64), generator=g)
    near = tokens.clone()
    for i in range(200): near[i,torch.randperm(64, generator=g)[:i//10]] = 5001
    both = CalibrationSet.from_tokens(torch.cat([tokens, near]))
    runs = [o.tolist() for o in sequence_runs(both, 5)]
    similarity = [jaccard(runs[i], runs[200+i]) for i in range(200)]
    found = {i-200 for i,_ in drop_duplicates(both).manifest['copies']}
    assert all(similarity[i]>=.5 for i in found)
    assert all(i in found for i in range(200) if similarity[i]>=.6) and sum(s>=.5 for s in similarity)-len(found)<=4

def test_padding_makes_no_copies():
    "Short texts with much padding differ by their text; what stands in the padding does not matter"
    tokens = torch.zeros(3, 50, dtype=torch.long)
    tokens[0,:6],tokens[1,:6],tokens[2,:6] = torch.arange(1, 7),torch.arange(11, 17),torch.arange(1, 7)
    tokens[2,6:] = 9
    padded = CalibrationSet.from_tokens(tokens, (torch.arange(50)<6).expand(3, -1))
    for near in (False,True): assert drop_duplicates(padded, near=near).manifest['copies']==[[2,0]]

def test_others_count_as_seen():
    a,b = make(30, seed=1),make(30, seed=2)
    both = CalibrationSet.from_tokens(torch.cat([a.tokens[:5], b.tokens]))
    for near in (False,True):
        found = drop_duplicates(both, others=[a, make(4, seed=3)], near=near)
        assert found==b and found.manifest['settings']['others']==[a.hash, make(4, seed=3).hash]

def test_copies_of_copies_name_the_first():
    pool = make(5)
    assert drop_duplicates(CalibrationSet.from_tokens(pool.tokens[[0,1,0,2,0,1]])).manifest['copies']==[[2,0],[4,0],[5,1]]

# labels

@pytest.mark.parametrize('n', [1,2,7,10,40])
def test_shares_by_largest_remainders(n):
    pool,labels = make(120),['abc'[i%3] for i in range(120)]
    counts = Counter(proportional(pool, labels, dict(a=.5, b=.3, c=.2), n).manifest['labels'])
    assert sum(counts.values())==n and all(abs(counts[k]-n*s)<1 for k,s in dict(a=.5, b=.3, c=.2).items())

@pytest.mark.parametrize('shares', [dict(a=.5, b=.3, c=.2), dict(a=1/3, b=1/3, c=1/3), dict(b=1.), None])
def test_as_many_as_the_shares_allow(shares):
    labels = ['a']*7+['b']*50+['c']*23
    found = proportional(make(80), labels, shares)
    have,counts = Counter(labels),Counter(found.manifest['labels'])
    assert all(counts[k]<=have[k] for k in counts) and any(counts[k]>=have[k]-1 for k in (shares or have))

def test_power_moves_from_proportional_to_equal():
    labels = ['a']*10+['b']*90
    share = [Counter(proportional(make(100), labels, n_sequences=20, power=p).manifest['labels'])['a']/20 for p in (1,.7,.3,0)]
    assert share==sorted(share) and (share[0],share[-1])==(.1,.5)

def test_seeds_draw_others():
    labels = ['ab'[i%2] for i in range(40)]
    assert len({proportional(make(), labels, n_sequences=10, seed=i) for i in range(5)})==5

# greedy choices

def plain_greedy(value, n, wanted):
    "Each time the row with which the value is highest, every row tried"
    chosen = []
    while len(chosen)<wanted: chosen.append(max((i for i in range(n) if i not in chosen), key=lambda i: (round(value([*chosen,i]), 9), -i)))
    return chosen

@pytest.mark.parametrize('run', [1,2])
@pytest.mark.parametrize('mask', [False,True])
def test_diverse_equals_plain_greedy(run, mask):
    pool = make(25, mask=mask)
    rows = [t[m].tolist() for t,m in zip(pool.tokens, torch.ones_like(pool.tokens).bool() if pool.mask is None else pool.mask)]
    parts = [[tuple(r[j:j+run]) for j in range(len(r)-run+1)] for r in rows]
    def value(chosen): return sum(math.log1p(c) for c in Counter(itertools.chain(*(parts[i] for i in chosen))).values())
    assert diverse(pool, 12, run=run).manifest['rows']==plain_greedy(value, 25, 12)

def test_coverage_equals_plain_greedy():
    pool = make(25)
    p = readings(pool)
    reach = outlier_reach(pool, p, .1)
    assert reach.shape==(25,5+3) and reach.max(0).tolist()==[1]*8 # q and k share an input
    assert cover_outliers(pool, p, 12, share=.1).manifest['rows']==plain_greedy(lambda rows: float(reach[rows].max(0).sum()), 25, 12)

def test_greedy_is_near_the_best():
    "Better than 1-1/e of the best of all choices"
    pool = make(12)
    reach = outlier_reach(pool, readings(pool), 1.)
    best = max(reach[list(o)].max(0).mean() for o in itertools.combinations(range(12), 4))
    assert cover_outliers(pool, readings(pool), 4, share=1.).manifest['coverage']>=(1-1/math.e)*best

def test_silent_channels_do_not_count():
    pool = make(3)
    assert outlier_reach(pool, dict(up=torch.tensor([[0.,0,1],[0,0,2],[0,0,1]])), 1.).tolist()==[[.5],[1],[.5]]

def test_equal_sequences_go_by_row():
    pool = CalibrationSet.from_tokens(torch.ones(5, 8).long())
    assert diverse(pool, 3).manifest['rows']==cover_outliers(pool, dict(up=torch.ones(5, 4)), 3).manifest['rows']==[0,1,2]

def test_diverse_by_words(tiny_tokenizer):
    "Letters of one spelling or another are the same word"
    texts = ['one two three', 'ONE  TWO\nTHREE', 'four five']
    pool, = sample_sets(texts, tiny_tokenizer, n_sets=1, n_sequences=3, length=20, rule='pad', near_duplicates=False)
    at = {tiny_tokenizer.decode(t[m], skip_special_tokens=True): i for i,(t,m) in enumerate(zip(pool.tokens, pool.mask))}
    rows = diverse(pool, 3, tokenizer=tiny_tokenizer).manifest['rows']
    assert rows[1]==at['four five'] and set(rows)=={0,1,2}

# clusters

def test_clusters_that_are_apart():
    "One of each of five clouds, and the point nearest to its mean"
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 8, generator=g)*20
    x = (centres[:,None]+torch.randn(5, 8, 8, generator=g)).reshape(40, 8)
    for seed in range(3):
        found = representative(make(), x, 5, seed=seed)
        assert sorted(i//8 for i in found.manifest['rows'])==[0,1,2,3,4] and found.manifest['clusters']==[8]*5
    nearest = [int((x[8*k:8*k+8]-x[8*k:8*k+8].mean(0)).norm(dim=1).argmin())+8*k for k in range(5)]
    assert representative(make(), x, 5, standardize=False).manifest['rows']==nearest

def test_a_loud_dimension_does_not_decide_alone():
    g = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(40, 1, generator=g)*1e6, torch.tensor([[-1.],[1]]).repeat(20, 1).repeat(1, 9)*5], 1)
    assert {i%2 for i in representative(make(), x, 2).manifest['rows']}=={0,1}
    assert representative(make(), torch.cat([x, torch.ones(40, 1)], 1), 2)==representative(make(), x, 2) # what never changes says nothing

def test_all_sequences_can_be_chosen():
    pool = make(9)
    assert sorted(representative(pool, readings(pool), 9).manifest['rows'])==list(range(9))

# from a real profile

def test_profile_of_a_model(tiny_model, tiny_tokenizer):
    "Every choice from one reading; a profile of other text is refused"
    pool, = sample_sets("docs", tiny_tokenizer, n_sets=1, n_sequences=12, length=32)
    p = profile(tiny_model, pool, progress=False)
    for o in (keep_likely(pool, p, 50), representative(pool, p, 6), cover_outliers(pool, p, 6)): assert len(o)==6 and o==pool[o.manifest['rows']]
    bare = profile(tiny_model, pool, peaks=False, progress=False)
    with pytest.raises(ValueError, match='`peaks` must hold those of at least one layer'): cover_outliers(pool, bare, 2)
    for choose in (lambda o: keep_likely(o, p), lambda o: representative(o, p, 2), lambda o: cover_outliers(o, p, 2)):
        with pytest.raises(ValueError, match=f'must be the profile of the set {pool[:6].hash}, got that of {pool.hash}'): choose(pool[:6])

# bad input

pool = make(10)
@pytest.mark.parametrize('call,match', [
    (lambda: at_random(pool, 0), '`n_sequences` must be a whole number, 1 or more, got 0'),
    (lambda: at_random(pool, 2.5), '`n_sequences` must be a whole number, 1 or more, got 2.5'),
    (lambda: diverse(pool, 11), '`n_sequences` must be at most the 10 of the set, got 11'),
    (lambda: diverse(pool, 3, run=0), '`run` must be a whole number, 1 or more, got 0'),
    (lambda: cover_outliers(pool, readings(pool), -1), '`n_sequences` must be a whole number'),
    (lambda: cover_outliers(pool, dict(up=torch.full((10,4), math.inf)), 2), r"`peaks\['up'\]` must hold finite numbers, got inf for sequence 0"),
    (lambda: representative(pool, torch.zeros(10, 3), 2), 'at most the 1 sequences that differ, got 2'),
    (lambda: representative(pool, torch.zeros(10), 2), r'`activations` must have shape \[10, width\], got \[10\]'),
    (lambda: keep_likely(pool, [1.]*9), r'`perplexities` must have shape \[10\], got \[9\]'),
    (lambda: keep_likely(pool, [math.nan]*10), '`perplexities` must hold finite numbers, got nan for sequence 0'),
    (lambda: keep_likely(pool, [1.]*10, 101), r'`percentile` must lie in \(0, 100\], or be two that rise, got 101'),
    (lambda: keep_likely(pool, [1.]*10, (50,50)), r'or be two that rise, got \(50, 50\)'),
    (lambda: keep_likely(pool, [1.]*10, 4), '`keep_likely` must leave at least one of 10 sequences, got none'),
    (lambda: drop_duplicates(pool, threshold=1.1), r'`threshold` must lie in \(0, 1\], got 1.1'),
    (lambda: drop_duplicates(pool, permutations=0), '`permutations` must be a whole number'),
    (lambda: drop_duplicates(pool, others=[pool]), '`drop_duplicates` must leave at least one of 10 sequences, got none'),
    (lambda: proportional(pool, ['a']*9), '`labels` must name each of 10 sequences, got 9'),
    (lambda: proportional(pool, ['a']*10, dict(a=.5)), '`shares` must sum to 1'),
    (lambda: proportional(pool, ['a']*10, {}), '`shares` must be positive, got'),
    (lambda: proportional(pool, ['a']*10, dict(a=1.5, b=-.5)), "labels that occur"),
    (lambda: proportional(pool, ['a','b']*5, dict(a=1.5, b=-.5)), '`shares` must be positive, got'),
    (lambda: proportional(pool, ['a','b']*5, dict(a=1.), 6), "asks for 6 sequences with label 'a', of which there are 5"),
    (lambda: select_rows(pool, [], 'nothing', {}), '`nothing` must leave at least one')])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match): call()
