"Blocks on disk come and go, nothing that was changed is lost unseen, and a bad checkpoint is refused"
import copy,json
import pytest,torch
from safetensors.torch import load_file,save_file
from transformers import LlamaForCausalLM,T5Config
from compresscal.models import disk_blocks
from compresscal.models.structure import find_blocks
from compresscal.checkpoints.packed_folders import planned_bytes
from compresscal.models.disk_blocks import each_tensor,is_offloaded,release_memory
from compresscal.models.loading import load_model
from compresscal.models.blocks import capture,check_finite,check_replay,count_weights,decoder_blocks,watch_inputs
from compresscal.models.new_checkpoint import ShardWriter
from compresscal.compression.methods import Magnitude,RTN
from compresscal.compression.compress import compress
from test_blocks import build,families,folder # `folder` is a fixture, as is `checkpoint`
from test_new_checkpoint import checkpoint,equal,held,ids,streamed

@pytest.mark.parametrize("family", ["gemma4","neox","gpt_oss"])
def test_offloaded_models_run_and_are_checked(family, checkpoint):
    source = checkpoint(family)
    whole,lean = load_model(source)[0],load_model(source, offload=True)[0]
    assert is_offloaded(lean) and not is_offloaded(whole) and not lean.training and lean.num_parameters()==whole.num_parameters()
    with torch.no_grad(): assert torch.equal(lean(ids()).logits, whole(ids()).logits)
    check_replay(lean)
    check_finite(lean)
    assert [(k, t.shape, t.dtype) for k,t in each_tensor(lean)]==[(k, t.shape, t.dtype) for k,t in each_tensor(whole)]
    blocks,a,b = decoder_blocks(lean),capture(lean, ids()),capture(whole, ids())
    assert [[repr(o) for o in x.linears] for x in blocks]==[[repr(o) for o in x.linears] for x in decoder_blocks(whole)]
    assert [x.groups for x in blocks]==[x.groups for x in decoder_blocks(whole)]
    for x,y in zip(blocks, decoder_blocks(whole)):
        seen = [{},{}]
        for o,block,found in ((a,x,seen[0]), (b,y,seen[1])):
            with watch_inputs(block, lambda names,x,rows: found.update({names: x})): o.step(block) # not resident by itself
        assert seen[0] and equal(*seen)
    assert torch.equal(a.hidden, b.hidden) and torch.equal(a.logits(), b.logits())
    assert all(held(o.module)<1e3 for o in blocks)

def test_parameters_stay_the_same_objects(checkpoint):
    model,_ = load_model(checkpoint("llama"), offload=True)
    block = decoder_blocks(model)[1]
    up,parameters = block["mlp.up_proj"],list(model.parameters())
    assert up.weight.isnan().all() and held(block.module)<1e3
    with block.resident(), block.resident():
        inside = up.weight.clone()
        assert up.parameter is block.module.mlp.up_proj.weight and inside.isfinite().all()
    assert up.weight.isnan().all() and held(block.module)<1e3 and all(a is b for a,b in zip(parameters, model.parameters()))
    with block.resident(): assert torch.equal(up.weight, inside)
    for write in (lambda: up.weight.mul_(2), lambda: up.weight.copy_(inside)):
        with pytest.raises(RuntimeError): write()

@pytest.mark.parametrize("family", ["llama","gpt_oss"])
def test_blocks_are_read_twice_for_all_checks_and_once_for_the_work(family, checkpoint, tmp_path, reads):
    model,_ = load_model(checkpoint(family), offload=True)
    last = model.config.num_hidden_layers-1
    decoder_blocks(model)
    assert [reads[i] for i in range(last+1)]==[3]+[2]*last # of the first one it is asked beside what it returns
    reads.clear()
    compress(model, RTN(4, 8), out=tmp_path/"out", progress=False)
    assert [reads[i] for i in range(last+1)]==[3]*(last+1)
    reads.clear()
    compress(model, RTN(4, 8), dry_run=True, progress=False)
    assert sum(reads.values())==2*(last+1)+1 # and one block is tried

@pytest.mark.parametrize("family", ["llama","gpt_oss"])
def test_counting_weights_reads_no_block(family, checkpoint, reads):
    model,_ = load_model(checkpoint(family), offload=True)
    n = count_weights(model)
    assert not reads and n==sum(o.weight.numel() for b in decoder_blocks(model) for o in b.linears)
    reads.clear()
    planned_bytes(model, RTN(4, 8))
    assert not reads

def test_blocks_are_read_once_for_many_batches(checkpoint, tmp_path, reads):
    model,_ = load_model(checkpoint("llama"), offload=True)
    decoder_blocks(model)
    reads.clear()
    blocks = [capture(model, o) for o in ids().split(1)] and find_blocks(model)[1]
    assert not reads
    with ShardWriter(model, tmp_path/"out") as writer:
        for i,o in enumerate(blocks):
            with o.on_disk: writer.write(i)
    assert reads=={0:1,1:1,2:1}

def test_changes_that_would_be_lost_are_refused(checkpoint, tmp_path):
    model,_ = load_model(checkpoint("phi"), offload=True)
    block = decoder_blocks(model)[2]
    with pytest.raises(ValueError, match="model.layers.2 is on disk"):
        with block.resident(): block.linears[0].weight[0,0] = 1
    with pytest.raises(KeyError): # the error of the walk is the one that is seen
        with block.resident():
            block.linears[0].weight[0,0] = 1
            raise KeyError
    with block.resident(): # moved to a device and back
        for p in block.module.parameters(): p.data = p.data.clone()
    assert held(block.module)<1e3
    with pytest.raises(ValueError, match="`out`"): compress(model, Magnitude(.5), progress=False)
    with ShardWriter(model, tmp_path/"out") as writer, block.resident():
        block.linears[0].weight[0,0] = 1
        writer.write(block)
    with block.resident(): assert block.linears[0].weight[0,0]==1

def test_what_needs_all_weights_at_once_is_refused(checkpoint, tmp_path):
    model,_ = load_model(checkpoint("llama"), offload=True)
    with pytest.raises(ValueError, match="ShardWriter"): model.save_pretrained(tmp_path/"copy")
    with pytest.raises(TypeError, match="cannot be copied"): copy.deepcopy(model)
    assert not (tmp_path/"copy").exists()

def test_blocks_that_share_weights_are_refused():
    config = copy.deepcopy(families["llama"])
    with pytest.raises(ValueError, match="its blocks share weights such as model.layers.2.mlp.up_proj.weight"):
        with pytest.MonkeyPatch.context() as patch:
            own = type(build("llama")).__init__
            def init(self, config):
                own(self, config)
                self.model.layers[2].mlp.up_proj.weight = self.model.layers[0].mlp.up_proj.weight
            patch.setattr(LlamaForCausalLM, "__init__", init)
            disk_blocks._Frame(config, torch.float32)

def test_values_that_are_not_finite_are_named(checkpoint):
    model = build("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3,4] = torch.nan
    lean,_ = load_model(checkpoint(model), offload=True)
    with pytest.raises(ValueError, match="model.layers.1.mlp.up_proj.weight holds 1"): decoder_blocks(lean)

def test_inference_mode(checkpoint, tmp_path):
    source = checkpoint("llama")
    with torch.inference_mode():
        model,_ = load_model(source, offload=True)
        logits = model(ids()).logits
    assert not any(t.is_inference() for t in model.state_dict().values())
    with torch.no_grad(): assert torch.equal(load_model(source)[0](ids()).logits, logits)
    streamed(source, tmp_path/"out")

# bad checkpoints

def change(folder, drop=(), **tensors):
    "Drop or replace tensors of a checkpoint in one file"
    file = folder/"model.safetensors"
    save_file({k: t for k,t in (load_file(file)|{k.replace("__", "."): t for k,t in tensors.items()}).items() if k not in drop}, file, metadata=dict(format="pt"))

@pytest.mark.parametrize("family,breakage,why", [
    ("llama", lambda o: change(o, ["model.layers.2.mlp.up_proj.weight"]), "lack model.layers.2.mlp.up_proj.weight"),
    ("llama", lambda o: change(o, ["model.norm.weight"]), "lack model.norm.weight"),
    ("mixtral", lambda o: change(o, ["model.layers.1.self_attn.q_proj.weight"]), "lack model.layers.1.self_attn.q_proj.weight"),
    ("mixtral", lambda o: change(o, ["model.layers.1.block_sparse_moe.experts.2.w1.weight"]), "cannot make model.layers.1 of the weights"),
    ("llama", lambda o: change(o, model__layers__1__mlp__up_proj__weight=torch.zeros(3, 3)), r"model.layers.1.mlp.up_proj.weight must have shape \(56, 32\), but the weights hold \(3, 3\)"),
    ("llama", lambda o: change(o, model__norm__weight=torch.zeros(3)), r"model.norm.weight must have shape \(32,\)"),
    ("llama", lambda o: (o/"model.safetensors").unlink(), "there is no model.safetensors"),
    ("llama", lambda o: (o/"model.safetensors").write_bytes((o/"model.safetensors").read_bytes()[:-8]), "model.safetensors is cut short"),
    ("llama", lambda o: (o/"model.safetensors").write_bytes(b"\xff"*64), "ends within its header"),
    ("llama", lambda o: (o/"model.safetensors").write_bytes((9).to_bytes(8, "little")+b"[1, 2, 3]"), "is no safetensors file"),
    ("llama", lambda o: (o/"config.json").write_text("{broken"), "not a valid JSON"),
    ("llama", lambda o: (o/"config.json").write_text(json.dumps(T5Config(vocab_size=96).to_dict())), "t5 models have an encoder"),
    ("llama", lambda o: [f.unlink() for f in o.glob("tokenizer*")], "tokenizer")])
def test_says_what_is_wrong_with_a_checkpoint(family, breakage, why, checkpoint):
    source = checkpoint(family)
    breakage(source)
    with pytest.raises(ValueError, match=why) as e: load_model(source, offload=True)
    assert str(source) in str(e.value) and "\n" not in str(e.value)

def test_says_which_shard_is_missing(checkpoint):
    source = checkpoint("llama", max_shard_size="20KB")
    sorted(source.glob("*.safetensors"))[1].unlink()
    with pytest.raises(ValueError, match="there is no model-00002-of"): load_model(source, offload=True)
    (source/"model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="weight_map"): load_model(source, offload=True)

def test_refuses_packed_numbers(checkpoint):
    source = checkpoint("llama")
    save_file({"x": torch.zeros(4, dtype=torch.float8_e8m0fnu)}, source/"model.safetensors")
    with pytest.raises(ValueError, match="F8_E8M0"): load_model(source, offload=True)

def test_a_file_that_is_cut_short_later(checkpoint):
    source = checkpoint("llama")
    model,_ = load_model(source, offload=True)
    with open(source/"model.safetensors", "r+b") as f: f.truncate(20_000)
    with pytest.raises(ValueError, match="ends within a tensor"): check_finite(model)

def test_release_memory_anywhere(monkeypatch):
    release_memory()
    def other(name): raise TypeError
    monkeypatch.setattr(disk_blocks.ctypes, "CDLL", other)
    release_memory()
