"""Runs llm-compressor on request: a line of JSON in, a line of JSON out.

Started by harness.Peer with a Python that has llmcompressor; imports nothing of compresscal. A request names `model` (folder of a checkpoint), `tokens` (safetensors
file with `tokens`, `[sequences, length]`), `method`, its `settings`, perhaps `out`, where the linear weights of the first block go or,
with `whole`, those of all blocks, and `clock`, 'wall' or 'cpu' (processor time)."""
import json, os, sys, time
answers = os.fdopen(os.dup(1), 'w') # what the library prints must not get between the answers
os.dup2(2, 1)
os.environ.setdefault('HF_HUB_OFFLINE', '1')
import torch

def recipe(method, bits=4, group_size=128, symmetric=False, sparsity=.5, pattern=None, act_order=False):
    "Modifiers that do what the settings say"
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    ignore = ['re:.*lm_head']
    weights = dict(num_bits=bits, type='int', symmetric=symmetric, **(dict(strategy='group', group_size=group_size) if group_size else dict(strategy='channel')))
    scheme = dict(config_groups=dict(group_0=dict(targets=['Linear'], weights=weights)), ignore=ignore)
    pruning = dict(sparsity=sparsity, targets=['Linear'], ignore=ignore, **(dict(mask_structure=pattern) if pattern else {}))
    if method=='sparsegpt': return [SparseGPTModifier(**pruning)]
    if method=='wanda': return [WandaPruningModifier(**pruning)]
    if method=='gptq': return [GPTQModifier(actorder='static' if act_order else None, **scheme)]
    if method=='awq': return [AWQModifier(), QuantizationModifier(**scheme)]
    raise ValueError(f"no method {method!r}")

def run(model, tokens, method, settings=None, out=None, clock='wall', whole=False):
    "Compress a checkpoint; seconds of the whole, and of each block from one block's end to the next"
    from llmcompressor import oneshot
    from llmcompressor.core import LifecycleCallbacks
    from llmcompressor.pipelines.cache import IntermediatesCache
    from safetensors.torch import load_file, save_file
    from torch.utils.data import DataLoader
    from transformers import AutoModelForCausalLM
    now = dict(wall=time.perf_counter, cpu=time.process_time)[clock]
    model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokens = load_file(tokens)['tokens']
    data = DataLoader([dict(input_ids=o, attention_mask=torch.ones_like(o)) for o in tokens], batch_size=1)
    own,ends,pin = LifecycleCallbacks.__dict__['sequential_epoch_end'],[],IntermediatesCache.pin_memory
    def ended(cls, *args, **kwargs):
        result = own.__func__(cls, *args, **kwargs)
        ends.append(now())
        return result
    LifecycleCallbacks.sequential_epoch_end = classmethod(ended)
    if not torch.accelerator.is_available(): IntermediatesCache.pin_memory = lambda *args, **kwargs: None # 0.14 pins without asking, which fails on a CPU
    modifiers,start = recipe(method, **(settings or {})),now()
    try: oneshot(model=model, dataset=data, recipe=modifiers, num_calibration_samples=len(tokens), max_seq_length=tokens.shape[1],
                 shuffle_calibration_samples=False, processor=object())
    finally: LifecycleCallbacks.sequential_epoch_end,IntermediatesCache.pin_memory = own,pin
    seconds,blocks = now()-start,model.config.num_hidden_layers
    part = model if whole else model.model.layers[0]
    if out: save_file({k: v.contiguous() for k,v in part.state_dict().items() if k.endswith(('proj.weight','norm.weight'))}, out)
    return dict(seconds=seconds, layers=[b-a for a,b in zip(ends[:blocks], ends[1:blocks])])

def answer(o): print(json.dumps(o), file=answers, flush=True)

if __name__=='__main__':
    if len(sys.argv)>1: torch.set_num_threads(int(sys.argv[1]))
    try:
        import compressed_tensors, llmcompressor, transformers
        from loguru import logger
        logger.remove()
        answer(dict(llmcompressor=llmcompressor.__version__, transformers=transformers.__version__, torch=torch.__version__, threads=torch.get_num_threads()))
    except Exception as e: answer(dict(error=f'{type(e).__name__}: {e}'))
    for line in sys.stdin:
        try: answer(run(**json.loads(line)))
        except Exception as e: answer(dict(error=f'{type(e).__name__}: {e}'))
