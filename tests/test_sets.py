"Sets on disk and in other programs: whole or absent, and the same tokens there."
import pytest, torch
from compresscal.sets import CalibrationSet

def test_a_full_disk_leaves_no_half_set(tmp_path, monkeypatch):
    import safetensors.torch
    def full(*_): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(safetensors.torch, 'save_file', full)
    with pytest.raises(OSError, match='No space left'): CalibrationSet.from_tokens(torch.ones(2,3).long()).save(tmp_path/'s')
    assert list(tmp_path.iterdir())==[]

def test_a_changed_token_is_noticed(tmp_path):
    from safetensors.torch import save_file
    CalibrationSet.from_tokens(torch.ones(2,3).long()).save(tmp_path/'s')
    save_file(dict(tokens=torch.zeros(2,3).long()), tmp_path/'s'/'tokens.safetensors')
    with pytest.raises(ValueError, match='the manifest says'): CalibrationSet.load(tmp_path/'s')
