"Sets whose sequences count differently: shares mean what they say, whatever the sizes, and survive the disk and another process."
import hashlib, json, pickle, subprocess, sys
import pytest, torch
from conftest import outside_tests, root
from compresscal.calibration.calibration_set import CalibrationSet, content_hash
from compresscal.calibration.sampling import mix
from compresscal.calibration.sources import calibration_sets, is_drawn, is_written, places, text_uses
from compresscal.calibration.weighting import weighted
from compresscal.choosing.description import row_origin
from compresscal.choosing.disjoint import document_names
from compresscal.choosing.selection import select_rows
from compresscal.experiments.cell_index import find_set, set_line

def tokens(seed, n, length=12): return torch.randint(3, 200, (n, length), generator=torch.Generator().manual_seed(seed))

def some(seed, n, lengths=None):
    mask = None if lengths is None else torch.arange(12)<torch.tensor(lengths)[:,None]
    return CalibrationSet.from_tokens(tokens(seed, n), mask, name=f'set {seed}')

@pytest.fixture
def parts(): return [some(1, 6), some(2, 3), some(3, 4, [12, 5, 1, 7])]

def real(o): return torch.ones_like(o.tokens).bool() if o.mask is None else o.mask

def share_of(joined, part):
    "What all tokens of a part count, by all tokens"
    each = joined.token_weights*real(joined).sum(1)
    own = {tuple(t[m].tolist()) for t,m in zip(part.tokens, real(part))}
    mine = torch.tensor([tuple(t[m].tolist()) in own for t,m in zip(joined.tokens, real(joined))])
    return float(each[mine].sum()/each.sum())

@pytest.mark.parametrize('shares', [(1, 1, 1), (.9, .05, .05), (1, 100, 10), (.2, .3, .5)])
def test_shares_are_those_of_tokens(parts, shares):
    joined = weighted(dict(zip(parts, shares)))
    assert [share_of(joined, o) for o in parts]==pytest.approx([o/sum(shares) for o in shares], rel=1e-6)
    assert float((joined.token_weights*real(joined).sum(1)).sum())==pytest.approx(int(real(joined).sum()), rel=1e-6) # 1 on average
    assert [o['share'] for o in joined.manifest['parts']]==pytest.approx([o/sum(shares) for o in shares])

@pytest.mark.parametrize('factor', [1e-9, .1, 3, 7.3, 1e9])
def test_only_proportions_matter(parts, factor):
    shares = [.2, .3, .5]
    assert weighted(dict(zip(parts, shares)))==weighted({o: factor*s for o,s in zip(parts, shares)})
    a,b = (CalibrationSet.from_tokens(tokens(1, 5), weights=[k*o for o in (1, 2, 3, 4, 7)]) for k in (1, factor))
    assert a==b and CalibrationSet(a.tokens, {}, weights=a.weights)==a

def test_all_of_the_weight_is_the_set_itself(parts):
    for o in parts:
        alone = weighted({o: 1} | {p: 0 for p in parts if p is not o})
        assert alone==o and alone.weights is None and (alone.mask is None)==(o.mask is None)

def test_shares_in_proportion_to_tokens_are_the_rows_as_they_are(parts):
    "To the last bit what the rows are without weights, and the rows of a mixture by text"
    joined = weighted({o: int(real(o).sum()) for o in parts})
    assert joined.weights is None and joined.hash==content_hash(joined.tokens, joined.mask)
    a,b = parts[:2]
    mixed = mix({a: 2/3, b: 1/3}, 9)
    plain = weighted({a: 2, b: 1})
    order = [mixed.tokens.tolist().index(o) for o in plain.tokens.tolist()]
    assert mixed[order]==plain and sorted(order)==list(range(9))

def test_a_part_of_the_rows_has_the_shares_of_all():
    joined = weighted({some(1, 6): .8, some(2, 6): .2})
    for n in (2, 4, 6, 12): assert share_of(joined[:n] if n<12 else joined, some(1, 6))==pytest.approx(.8, rel=1e-6)
    assert joined[::2].weights is None # rows of one part count alike

def test_chosen_rows_keep_their_weights(parts):
    joined = weighted(dict(zip(parts, (1, 2, 3))))
    chosen = select_rows(joined, [3, 1, 8], 'by hand', {})
    assert torch.equal(chosen.weights, CalibrationSet.from_tokens(joined.tokens[:3], weights=joined.weights[[3, 1, 8]]).weights)

def test_the_hash_knows_the_weights_and_the_old_ones_stay(parts):
    a,b = parts[:2]
    known = {weighted({a: .5, b: .5}).hash, weighted({a: .6, b: .4}).hash, weighted({a: 2, b: 1}).hash}
    assert len(known)==3
    o = parts[2]
    whole = repr((4, 12)).encode()+o.tokens.numpy().astype('<i8').tobytes()+o.mask.numpy().astype('u1').tobytes()
    assert o.hash==hashlib.blake2b(whole, digest_size=8).hexdigest() # as it was before sets had weights

def test_disk_and_processes(parts, tmp_path):
    joined = weighted(dict(zip(parts, (.2, .3, .5))))
    for again in (CalibrationSet.load(joined.save(tmp_path/'s')), pickle.loads(pickle.dumps(joined))):
        assert again==joined and torch.equal(again.weights, joined.weights) and again.manifest==joined.manifest
    code = f"from compresscal import CalibrationSet; print(CalibrationSet.load({str(tmp_path/'s')!r}).hash)"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=outside_tests(root)).stdout.strip()==joined.hash

def test_changed_weights_are_noticed(parts, tmp_path):
    from safetensors.torch import load_file, save_file
    folder = weighted({parts[0]: .5, parts[1]: .5}).save(tmp_path/'s')
    file = folder/'tokens.safetensors'
    kept = load_file(file)
    save_file(kept | dict(weights=kept['weights'].min()/kept['weights']), file)
    with pytest.raises(ValueError, match='its tokens should have hash'): CalibrationSet.load(folder)
    save_file({k: v for k,v in kept.items() if k!='weights'}, file)
    with pytest.raises(ValueError, match='its tokens should have hash'): CalibrationSet.load(folder)

def test_sets_that_were_pickled_before_have_no_weights():
    plain = some(1, 3)
    rebuild,given = plain.__reduce__()
    assert rebuild(*given[:3])==plain

@pytest.mark.parametrize('bad, says', [([1, -1, 1], 'larger than 0, got -1'), ([1, float('nan'), 1], 'got nan'), ([0, 0, 0], 'got 0'), ([1, 1], r'got shape \(2,\)'),
    ([[1, 1, 1]], r'got shape \(1, 3\)'), ([1, float('inf'), 1], 'got inf'), ([1, 1e-8, 1], 'a millionth of the largest')])
def test_bad_weights_are_refused(bad, says):
    with pytest.raises(ValueError, match=f'`weights` must .*{says}'): CalibrationSet.from_tokens(tokens(1, 3), weights=bad)

@pytest.mark.parametrize('bad, says', [((1, -1), 'got -1'), ((1, float('nan')), 'got nan'), ((0, 0), 'above 0'), ((float('inf'), 1), 'got inf'), ((1, 1e-9), 'a millionth')])
def test_bad_shares_are_refused(parts, bad, says):
    with pytest.raises(ValueError, match=says): weighted(dict(zip(parts, bad)))

def test_what_cannot_be_weighted_is_refused(parts):
    with pytest.raises(ValueError, match='of one length'): weighted({parts[0]: 1, CalibrationSet.from_tokens(tokens(1, 3, 8)): 1})
    with pytest.raises(ValueError, match='of one tokenizer'): weighted({CalibrationSet.from_tokens(tokens(i, 3), tokenizer=str(i)): 1 for i in (1, 2)})
    with pytest.raises(ValueError, match='count alike'): mix({weighted({parts[0]: .5, parts[1]: .5}): 1})

def test_a_manifest_leads_to_every_row(tiny_tokenizer):
    joined, = calibration_sets('weighted:docs=0.9+code=0.1', tiny_tokenizer, 1, 6, 32)
    origins = [row_origin(joined.manifest, i) for i in range(6)]
    assert [o['name'] for o,_ in origins]==['docs', 'code']*3 and [i for _,i in origins]==[0, 0, 1, 1, 2, 2]
    part,row = row_origin(joined[[3]].manifest, 0)
    assert (part['name'], row)==('code', 1)
    assert len(set(document_names(joined.manifest)))==6
    line = json.loads(json.dumps(set_line('a', 'b', joined[:4])))
    assert line['of']==joined.hash

def test_a_part_is_found_again_in_a_store(parts, tmp_path):
    joined = weighted({parts[0]: .7, parts[1]: .3})
    places = {joined.hash: joined.save(tmp_path/'s')}
    assert find_set(set_line('a', 'b', joined[:4]), places)==joined[:4]

def test_names(tiny_tokenizer):
    name,mixed = 'weighted:docs=0.75+random=0.25','docs=0.75+random=0.25'
    assert is_drawn(name) and not is_written(name) and is_written('weighted:docs=0.5+self=0.5')
    assert list(text_uses(name))==[('mixture', 'docs')] and places(name, ['docs', mixed, name])=={'mixture:docs': [1, 2]}
    a,b = (calibration_sets(o, tiny_tokenizer, 2, 4, 32, among=['docs', mixed, name]) for o in (name, mixed))
    rows = [{tuple(r) for s in sets for r in s.tokens.tolist()} for sets in (a, b, calibration_sets('docs', tiny_tokenizer, 2, 4, 32), calibration_sets('random', tiny_tokenizer, 2, 4, 32))]
    assert sum(map(len, rows))==len(set().union(*rows))==32 # no row twice
    assert [len(o) for o in a]==[4, 4] and all(o['sequences']==2 for s in a for o in s.manifest['parts'])
