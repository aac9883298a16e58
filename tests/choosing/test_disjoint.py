"Documents on both sides: by name wherever they lie, by text whatever they are called, in sets of every kind."
import json
import pytest, torch
from compresscal.calibration.sampling import mix, sample_sets
from compresscal.choosing.disjoint import document_names, shared_documents
from compresscal.choosing.selection import at_random
from compresscal.calibration.calibration_set import CalibrationSet

def write(path, texts):
    path.parent.mkdir(exist_ok=True)
    path.write_text(''.join(json.dumps(dict(text=o))+'\n' for o in texts))
    return path

@pytest.fixture
def texts(): return [' '.join(f'word{i}of{k}' for i in range(120)) for k in range(8)]

@pytest.fixture
def own(tmp_path, texts): return write(tmp_path/'a'/'own.jsonl', texts)

def drawn(path, tokenizer, n=8, seed=0, length=32): return sample_sets(path, tokenizer, 1, n, length, seed)[0]

def test_one_document_is_found_whatever_window_was_drawn(own, tiny_tokenizer):
    calibration,evaluation = drawn(own, tiny_tokenizer),drawn(own, tiny_tokenizer, 3, seed=5)
    found = shared_documents(calibration, evaluation)
    assert len(found)==3 and found.evaluation==3 and found.calibration==8 and {o.share for o in found.documents}=={1}
    assert '3 of 3' in repr(found) and set(found.to_pandas().evaluation)=={o.evaluation for o in found.documents}

def test_a_moved_file_is_the_same_file(own, tmp_path, texts, tiny_tokenizer):
    moved = write(tmp_path/'b'/'moved.jsonl', texts)
    assert len(shared_documents(drawn(own, tiny_tokenizer), drawn(moved, tiny_tokenizer, 4)))==4
    assert len(shared_documents(own, moved))==8

def test_a_copy_in_another_file_is_found_by_its_text(own, tmp_path, texts):
    other = write(tmp_path/'b'/'other.jsonl', ['nothing of it', 'Quoted: '+texts[2]+' '+' '.join(f'end{i}' for i in range(400)), texts[3][:500]])
    found = shared_documents(own, other)
    assert [(o.calibration, o.evaluation) for o in found.documents]==[('own.jsonl:3', 'other.jsonl:2'), ('own.jsonl:4', 'other.jsonl:3')]
    assert len(shared_documents(other, own))==2

def test_windows_are_compared_as_text_where_documents_cannot_be_read_again(own, tmp_path, texts, tiny_tokenizer):
    other = write(tmp_path/'b'/'other.jsonl', ['Quoted: '+texts[2], 'nothing of it '*20])
    windows = drawn(own, tiny_tokenizer, length=400)
    assert len(shared_documents(windows, other))==1
    own.unlink()
    assert not shared_documents(windows, other) and len(shared_documents(windows, other, tiny_tokenizer))==1

def test_sets_made_of_sets(own, tmp_path, texts, tiny_tokenizer):
    other = write(tmp_path/'b'/'other.jsonl', [f'{o} other'.upper() for o in 'abcdefgh'*20][:8])
    whole,alien = drawn(own, tiny_tokenizer),drawn(other, tiny_tokenizer, length=6)
    some = at_random(whole, 3)
    left = whole[[i for i in range(8) if i not in some.manifest['rows']]]
    assert len(shared_documents(whole, some))==3 and not shared_documents(left, some)
    both = mix({some: .5, CalibrationSet(whole.tokens, alien.manifest): .5}, 6)
    assert shared_documents(both, whole) and not shared_documents(CalibrationSet.from_tokens(torch.ones(2, 4).long()), whole)
    written = CalibrationSet(whole.tokens, dict(kind='self', text=dict(hash=whole.hash, manifest=whole.manifest)))
    assert len(shared_documents(written, some))==3
    kept = some.save(tmp_path/'kept')
    assert len(shared_documents(kept, own))==3

def test_parts_of_an_installed_source_are_apart(tiny_tokenizer):
    assert not shared_documents('docs', 'docs', most=50) and not shared_documents('docs', 'code', most=50)

def test_it_says_where_it_stopped(own):
    assert 'not all' in repr(shared_documents(own, own, most=3)) and shared_documents(own, own).complete

def test_nasty_names_are_shown_as_names(tmp_path, texts):
    nasty = write(tmp_path/'x'/'a|b<i>\x1b[31m.jsonl', texts[:2])
    found = shared_documents(nasty, nasty)
    assert '\x1b' not in repr(found)+found._repr_markdown_() and '<i>' not in found._repr_markdown_()
    assert all(o.count('|')-o.count(r'\|')==4 for o in found._repr_markdown_().split('\n'))

@pytest.mark.parametrize('wrong', [dict(most=0), dict(n=0), dict(share=0), dict(share=1.5)])
def test_bad_settings_are_refused(own, wrong):
    with pytest.raises(ValueError, match=f'`{next(iter(wrong))}`'): shared_documents(own, own, **wrong)

PAGE = ' '.join(f'w{i}' for i in range(3000))

@pytest.mark.parametrize('rule', ['window', 'pack'])
def test_a_pasted_page_is_found_whichever_windows_were_drawn(rule, tmp_path, tiny_tokenizer):
    "Windows of 32 bytes hold six words: hardly two of them share a run of 13"
    mine = write(tmp_path/'a'/'mine.jsonl', [PAGE])
    theirs = write(tmp_path/'b'/'theirs.jsonl', [' '.join(f'own{i}' for i in range(40))+' '+PAGE])
    other = write(tmp_path/'c'/'other.jsonl', [' '.join(f'other{i}' for i in range(900))])
    def drawn(path, n, seed): return sample_sets(path, tiny_tokenizer, 1, n, 32, seed, rule=rule)[0]
    for seed in range(8):
        found = shared_documents(drawn(mine, 1, seed), drawn(theirs, 1, seed+1))
        assert [(o.calibration, o.evaluation) for o in found.documents]==[('mine.jsonl:1', 'theirs.jsonl:1')]
        assert not shared_documents(drawn(mine, 1, seed), drawn(other, 1, seed+1), tiny_tokenizer)

def test_several_sets_at_once(own, tmp_path, texts, tiny_tokenizer):
    sets = sample_sets(own, tiny_tokenizer, 2, 4, 32)
    other = write(tmp_path/'b'/'other.jsonl', [f'Quoted: {o}' for o in texts])
    whole = shared_documents(sets, other)
    assert len(whole)==8 and whole.calibration==8
    assert [len(shared_documents(o, other)) for o in sets]==[4, 4]

def test_a_file_that_has_changed_is_not_read_again(own, tmp_path, texts, tiny_tokenizer):
    given,other = drawn(own, tiny_tokenizer),write(tmp_path/'b'/'other.jsonl', [f'Quoted: {o}' for o in texts])
    assert len(shared_documents(given, other))==8
    write(own, [f'{o} changed' for o in texts])
    assert not shared_documents(given, other)

def test_what_is_said_by_many_is_nobodys_page(tmp_path, tiny_tokenizer):
    a,b = (write(tmp_path/o/f'{o}.jsonl', ['Thank you very much for it.', f'{o} '*60]) for o in 'ab')
    def drawn(path): return sample_sets(path, tiny_tokenizer, 1, 2, 32, rule='pack')[0]
    assert not shared_documents(drawn(a), drawn(b), tiny_tokenizer)
