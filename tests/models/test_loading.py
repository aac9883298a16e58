"What is loaded is what was asked for, and what cannot be loaded is said in one line"
import json,os,pickle,re,shutil
import pytest,torch
from safetensors.torch import load_file,save_file
from transformers import T5Config
from compresscal.core.files import embedded_folder
from compresscal.models.structure import find_blocks
from compresscal.models.disk_blocks import each_tensor
from compresscal.models.loading import load_model
from compresscal.models.blocks import capture,check_finite,check_replay,context_length,decoder_blocks,fingerprint
from compresscal.calibration.generation import Script,generate
from compresscal.compression.methods import RTN
from compresscal.compression.compress import compress
from test_blocks import build,copied,families,folder # `folder` is a fixture

def test_loads_a_folder(folder):
    model,tokenizer = load_model(folder)
    assert model.dtype==torch.bfloat16 and not model.training and tokenizer("w5 w7").input_ids==[5,7]
    assert load_model(str(folder), dtype="float32", device="cpu")[0].dtype==torch.float32
    assert load_model(folder, dtype=torch.float16)[0].dtype==torch.float16
    assert len(decoder_blocks(model))==3

def test_refuses_folders_without_a_model(folder, tmp_path):
    (tmp_path/"empty").mkdir()
    with pytest.raises(ValueError, match="folder with a config.json"): load_model(tmp_path/"empty")
    for missing in (tmp_path/"nowhere", "./nowhere", "~/nowhere/at/all", "/nowhere", "a/b/c"):
        with pytest.raises(ValueError, match="there is no such folder"): load_model(missing)
    for name,why in (("file","is a file; give the folder it is in"), ("m.gguf","must be a whole GGUF file")):
        (tmp_path/name).write_text("text")
        for wrong in (tmp_path/name, str(tmp_path/name)):
            with pytest.raises(ValueError, match=why): load_model(wrong)
    with pytest.raises(TypeError, match="`name_or_path`.*got a int"): load_model(5)

def test_names_the_nearest_model(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path/"models--HuggingFaceTB--SmolLM2-135M").mkdir()
    for name,nearest in ((f"{folder}x",folder), ("smollm2-135m","HuggingFaceTB/SmolLM2-135M"), ("HuggingFace/SmolLM2-135M","HuggingFaceTB/SmolLM2-135M")):
        with pytest.raises(ValueError, match="there is no such folder") as e: load_model(name)
        assert str(e.value).endswith(f"; did you mean {str(nearest)!r}?") and "\n" not in str(e.value)

@pytest.mark.parametrize("files,why", [(dict(config=b"{broken"),"not a valid JSON"), (dict(config=b'{"model_type": "nosuch"}'),"nosuch"), (dict(model=b"xx"),"header"),
    (dict(model=None),"no file named model.safetensors"), (dict(tokenizer=None, tokenizer_config=None),"tokenizer.json is missing or cannot be read"),
    (dict(tokenizer=b"{"),"tokenizer.json is not a valid JSON file"), (dict(tokenizer=b"{}"),"tokenizer|added_tokens|missing field"), (dict(config=b'{"model_type": "\\u001b[31m"}'),"x1b"),
    (dict(config=b'{"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}'),"custom code|own")], ids=["json","type","weights","no weights","no tokenizer","half a tokenizer","empty tokenizer","escapes","code"])
def test_says_what_is_wrong_with_a_folder(folder, tmp_path, files, why):
    with pytest.raises(ValueError, match=why) as e: load_model(copied(folder, tmp_path, **files))
    assert str(e.value).isprintable() and str(tmp_path) in str(e.value) and e.value.__cause__ is None and e.value.__suppress_context__

class Code:
    "What a pickle can be made to call"
    def __reduce__(self): return os.mkdir,(os.environ["PROBE"],)

@pytest.mark.filterwarnings("ignore:Detected pickle")
def test_a_pickle_is_one_line_and_not_run(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PROBE", str(tmp_path/"run"))
    (copied(folder, tmp_path, model=None)/"pytorch_model.bin").write_bytes(pickle.dumps(Code()))
    with pytest.raises(ValueError, match="its weights are in a pickle") as e: load_model(tmp_path)
    assert str(e.value).isprintable() and not (tmp_path/"run").exists()

def test_refuses_an_encoder(folder, tmp_path):
    config = json.dumps(T5Config(vocab_size=96).to_dict()).encode()
    with pytest.raises(ValueError, match="t5 models have an encoder"): load_model(copied(folder, tmp_path, config=config))

def test_refuses_missing_weights(folder, tmp_path):
    config = json.loads((folder/"config.json").read_text())
    config["num_hidden_layers"],config["layer_types"] = 4,None
    with pytest.raises(ValueError, match="its weights lack model.layers.3"): load_model(copied(folder, tmp_path, config=json.dumps(config).encode()))

def both_ways(folder):
    "What is said of a checkpoint that is loaded whole, and one that stays on disk"
    for offload in (False,True):
        with pytest.raises(ValueError) as e: load_model(folder, offload=offload)
        assert str(e.value).isprintable()
        yield str(e.value)

few = ("llama_tied","gpt2","mixtral") # named as in the model, without its prefix, and converted
@pytest.mark.parametrize("family", [o if o in few else pytest.param(o, marks=pytest.mark.slow) for o in families])
def test_weights_are_those_of_the_configuration(family, folder, tmp_path):
    "Nothing more and nothing less; what families keep beside their weights does not count"
    model = build(family)
    model.save_pretrained(tmp_path)
    for o in folder.glob("tokenizer*"): shutil.copy(o, tmp_path)
    file,blocks = tmp_path/"model.safetensors",find_blocks(model)[0]
    whole = load_file(file)
    def save(tensors): save_file(tensors, file, metadata=dict(format="pt"))
    save(whole|{f"{blocks}.0.self_attn.rotary_emb.inv_freq": torch.ones(4), f"{blocks}.0.attn.bias": torch.ones(1, 1, 4, 4)})
    for offload in (False,True): assert fingerprint(load_model(tmp_path, offload=offload)[0])==fingerprint(model)
    last = max(int(m[1]) for k in whole if (m := re.match(rf"{re.escape(blocks)}[.](\d+)[.]", k)))
    save(whole|{k.replace(f"{blocks}.0.", f"{blocks}.{last+1}."): v.clone() for k,v in whole.items() if k.startswith(f"{blocks}.0.")})
    for said in both_ways(tmp_path): assert f"how many blocks there are, {last+2}, but says {last+1}" in said
    save(whole|{f"{blocks}.1.stranger": torch.ones(2)})
    for said in both_ways(tmp_path): assert f"has no place for: {blocks}.1.stranger" in said
    save(whole|dict(stranger=torch.ones(2)))
    for said in both_ways(tmp_path): assert "has no place for: stranger" in said
    norm = next(k for k in whole if k.startswith(f"{blocks}.1.") and "norm" in k or "ln_" in k)
    save({k: v for k,v in whole.items() if k!=norm})
    for said in both_ways(tmp_path): assert f"its weights lack {norm}" in said
    save(whole|{norm: torch.ones(3)})
    for said in both_ways(tmp_path): assert f"{norm} must have shape" in said and "(3,)" in said

@pytest.mark.parametrize("name", ["../outside.safetensors","{tmp}/outside.safetensors","sub/../../outside.safetensors","..","..\\outside.safetensors","C:outside",5])
def test_an_index_names_files_in_its_own_folder(name, folder, tmp_path):
    source = tmp_path/"model"
    source.mkdir()
    copied(folder, source)
    (source/"sub").mkdir()
    os.replace(source/"model.safetensors", tmp_path/"outside.safetensors")
    name = name.format(tmp=tmp_path) if isinstance(name, str) else name
    (source/"model.safetensors.index.json").write_text(json.dumps(dict(metadata={}, weight_map={k: name for k in load_file(tmp_path/"outside.safetensors")})))
    for said in both_ways(source): assert f"must name files in its own folder, got {name!r}" in said

def test_links_are_followed(folder, tmp_path):
    "The Hub's cache is made of them"
    blobs,source = tmp_path/"blobs",tmp_path/"snapshots"/"0"
    for o in (blobs,source): o.mkdir(parents=True)
    copied(folder, blobs)
    os.replace(blobs/"model.safetensors", blobs/"part")
    (blobs/"model.safetensors.index.json").write_text(json.dumps(dict(metadata={}, weight_map={k: "part.safetensors" for k in load_file(blobs/"part")})))
    for o in blobs.iterdir(): (source/(o.name if o.name!="part" else "part.safetensors")).symlink_to(f"../../blobs/{o.name}")
    assert fingerprint(load_model(source)[0])==fingerprint(load_model(source, offload=True)[0])==fingerprint(load_model(folder)[0])

@pytest.mark.parametrize("use", [fingerprint,check_finite,decoder_blocks,context_length,find_blocks,check_replay,lambda o: capture(o, torch.ones(1, 2).long()),lambda o: dict(each_tensor(o)),
    lambda o: generate(o, Script([[1]]), 4, [0]), lambda o: compress(o, RTN(4))])
def test_a_name_is_no_model(use):
    with pytest.raises(TypeError, match=r"`model` must be a model as load_model returns it, got the text 'gpt2'; call load_model\('gpt2'\) first"): use("gpt2")
    with pytest.raises(TypeError, match="give its first part"): use((build("llama"),None))

@pytest.mark.parametrize("name", ["no-such/model","no-such-model","not a/name"])
def test_refuses_a_hub_id_that_cannot_be_had(name):
    with pytest.raises(ValueError, match=f"got '{name}': ") as e: load_model(name)
    assert str(e.value).count("\n")==0

def test_refuses_types_and_devices():
    with pytest.raises(ValueError, match="`dtype`.*'int8'"): load_model("gpt2", dtype="int8")
    with pytest.raises(ValueError, match="`dtype`"): load_model("gpt2", dtype="bfloat17")
    with pytest.raises(ValueError, match="`device`.*'nowhere'"): load_model("gpt2", device="nowhere")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="`device`.*'cuda'"): load_model("gpt2", device="cuda")

def test_embedded_model():
    if not (embedded_folder()/"config.json").exists():
        with pytest.raises(ValueError, match="no embedded model"): load_model()
        pytest.skip("this checkout has no embedded model")
    model,tokenizer = load_model()
    assert model.dtype==torch.float32 and decoder_blocks(model)
    ids = torch.tensor(tokenizer("Return the sum of the list.").input_ids)[None]
    check_replay(model, ids)

def test_a_revision_is_fetched_as_it_was_asked_for(tiny_checkpoint, monkeypatch):
    asked = []
    def fetch(name, revision=None, **kwargs):
        asked.append((name, revision))
        return str(tiny_checkpoint)
    monkeypatch.setattr('huggingface_hub.snapshot_download', fetch)
    model,_ = load_model('owner/name', revision='v1')
    assert asked==[('owner/name', 'v1')] and model.config.vocab_size
    with pytest.raises(ValueError, match='`revision` must be None for a model that is here'): load_model(tiny_checkpoint, revision='v1')
