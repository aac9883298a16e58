"Hidden states come back from disk as they went"
import errno,os
import pytest,torch
from compresscal.models import hidden_states
from compresscal.models.blocks import capture,decoder_blocks
from compresscal.models.hidden_states import HiddenStore,spill
from test_blocks import build
from test_new_checkpoint import ids

@pytest.mark.parametrize("dtype", [torch.float32,torch.bfloat16,torch.float16,torch.int64,torch.bool])
@pytest.mark.parametrize("budget", [0,100,10**6])
def test_what_is_stored_comes_back(dtype, budget):
    shapes = [(3,4,5),(1,2,3),(),(0,4),(2,0),(7,)]
    given = [(torch.randn(o, generator=torch.Generator().manual_seed(0))*9).to(dtype) for o in shapes]
    with HiddenStore(budget) as store:
        assert [store.add(o) for o in given]==list(range(6)) and len(store)==6
        for _ in range(2):
            assert all(torch.equal(a, store[i]) and store[i].dtype==dtype for i,a in enumerate(given))
            given = [o.flip(0) if o.ndim else o for o in given]
            for i,o in enumerate(given): store[i] = o
        assert store.in_memory<=budget and (store.on_disk==0)==(budget>=sum(o.nbytes for o in given))
    assert len(store)==0 and store.file is None

def test_slots_change_their_size():
    with HiddenStore(64) as store:
        for o in (torch.zeros(8), torch.ones(8), torch.full((8,), 2.)): store.add(o)
        store[1],store[0] = torch.full((20,), 3.),torch.full((2,20), 4.)
        assert [o[...,0].unique().item() for o in (store[0],store[1],store[2])]==[4,3,2] and store.in_memory<=64
        store[1] = torch.full((4,), 5.)
        assert store[1].tolist()==[5]*4 and store[2].tolist()==[2]*8

def test_transposed_and_taken_tensors():
    t = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    with HiddenStore(0) as store:
        store.add(t.T)
        taken = store[0]
        store[0] = t.T+1
        assert torch.equal(taken, t.T) and torch.equal(store[0], t.T+1)
        taken.zero_()
        assert torch.equal(store[0], t.T+1)

def test_the_file_goes_away(tmp_path):
    with pytest.raises(ZeroDivisionError), HiddenStore(0, tmp_path) as store:
        store.add(torch.zeros(9))
        1/0
    assert not list(tmp_path.iterdir()) and store.file is None

@pytest.mark.parametrize("make", [dict(budget=-1), dict(folder="./no-such-folder")])
def test_refuses_stores(make):
    with pytest.raises(ValueError, match=f"`{next(iter(make))}`"): HiddenStore(**make)

def test_a_full_disk_is_told(tmp_path, monkeypatch):
    class Full:
        def seek(self, at): pass
        def write(self, data): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        def close(self): pass
    monkeypatch.setattr(hidden_states.tempfile, "TemporaryFile", lambda **kwargs: Full())
    with HiddenStore(40, tmp_path) as store:
        store.add(torch.zeros(10))
        with pytest.raises(OSError, match="40 bytes of hidden states do not fit into a temporary file in .*No space left") as e: store.add(torch.zeros(10))
        assert e.value.errno==errno.ENOSPC and str(tmp_path) in str(e.value)

def test_short_writes_and_reads(tmp_path, monkeypatch):
    "The system may take and give less than was asked for"
    import io
    class Slow(io.FileIO):
        def write(self, data): return super().write(data[:7])
        def readinto(self, data): return super().readinto(data[:5])
    monkeypatch.setattr(hidden_states.tempfile, "TemporaryFile", lambda **kwargs: Slow(tmp_path/"file", "w+"))
    with HiddenStore(0) as store:
        given = [torch.arange(30.)+i for i in range(3)]
        for o in given: store.add(o)
        assert all(torch.equal(store[i], o) for i,o in enumerate(given))

@pytest.mark.parametrize("family", ["llama","opt_350m","gpt2"])
def test_spilled_batches_run_as_others(family):
    model = build(family)
    mask = torch.tensor([[0]*3+[1]*5, [1]*8])
    with HiddenStore(0) as store:
        a = [capture(model, o, mask) for o in ids(4).split(2)]
        b = [spill(capture(model, o, mask), store) for o in ids(4).split(2)]
        for block in decoder_blocks(model):
            for x,y in zip(a, b):
                assert torch.equal(x.run(block), y.run(block))
                with pytest.raises(ValueError, match="captured shape"): y.run(block, x.hidden[:1])
                assert torch.equal(x.step(block).hidden, y.step(block).hidden)
        assert all(torch.equal(x.logits(), y.logits()) for x,y in zip(a, b)) and "Spilled" in repr(b[0])
