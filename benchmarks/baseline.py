"""The original algorithms on a Llama of `nn.Linear` layers, written plainly: what compresscal's speed is measured against.

Kept as the originals are built: sequences one by one, a hook and a Hessian for each linear layer, a loop over columns that writes into `[out, in]` weights,
a sort for the threshold, and two forwards of every block. Nothing is imported from compresscal, so that neither can hide a fault of the other."""
import math, torch
from torch import Tensor, nn

# ---- The walk: sequence by sequence, block by block

class _Caught(Exception): "Ends a forward pass at the first block"

def catch(model, tokens:Tensor)->tuple[Tensor,dict]:
    "What enters the first block, `[sequences, length, width]`, and the other arguments of a block"
    caught,others = [],{}
    def hook(module, args, kwargs):
        caught.append(args[0] if args else kwargs['hidden_states'])
        others.update({k: v for k,v in kwargs.items() if k!='hidden_states'})
        raise _Caught
    with model.model.layers[0].register_forward_pre_hook(hook, with_kwargs=True):
        for row in tokens:
            try: model(row[None], use_cache=False)
            except _Caught: pass
    return torch.cat(caught),others

def run_block(block, x:Tensor, others:dict)->Tensor:
    "Hidden states after a block"
    out = block(x, **others)
    return out[0] if isinstance(out, tuple) else out

def linears(block)->dict: return {name: m for name,m in block.named_modules() if isinstance(m, nn.Linear)}

@torch.no_grad()
def compress(model, tokens:Tensor, statistic, solve):
    "Walk the blocks; `statistic(layer)` gives what `.add(x)` feeds, `solve(weight, statistic)` the new weight"
    x,others = catch(model, tokens)
    out = torch.empty_like(x)
    for block in model.model.layers:
        seen = {name: statistic(layer) for name,layer in linears(block).items()}
        hooks = [layer.register_forward_hook(lambda m, args, out, s=seen[name]: s.add(args[0])) for name,layer in linears(block).items()]
        for j in range(len(x)): out[j] = run_block(block, x[j:j+1], others)[0]
        for o in hooks: o.remove()
        for name,layer in linears(block).items(): layer.weight.data = solve(layer.weight.data, seen[name]).to(layer.weight.dtype)
        for j in range(len(x)): out[j] = run_block(block, x[j:j+1], others)[0]
        x,out = out,x

# ---- What is known of a layer's input

class Hessian:
    "Running mean of 2 x xT over sequences"
    def __init__(self, layer): self.matrix,self.sequences = torch.zeros(layer.in_features, layer.in_features, device=layer.weight.device),0
    def add(self, x:Tensor): # [1, length, in]
        self.matrix *= self.sequences/(self.sequences+1)
        self.sequences += 1
        x = math.sqrt(2/self.sequences)*x.reshape(-1, x.shape[-1]).t().float()
        self.matrix += x.matmul(x.t())

class Squares:
    "Running mean over sequences of the squared norm of each feature"
    def __init__(self, layer): self.vector,self.sequences = torch.zeros(layer.in_features, device=layer.weight.device),0
    def add(self, x:Tensor): # [1, length, in]
        self.vector *= self.sequences/(self.sequences+1)
        self.sequences += 1
        self.vector += x.reshape(-1, x.shape[-1]).t().float().norm(p=2, dim=1)**2/self.sequences

# ---- Pruning

def wanda(weight:Tensor, squares:Tensor, sparsity:float|tuple=.5)->Tensor:
    "Remove from each row what scores least; `(n, m)` removes n of every m"
    scores,mask = weight.abs()*squares.sqrt().reshape(1, -1),torch.zeros_like(weight, dtype=torch.bool)
    if isinstance(sparsity, tuple):
        n,m = sparsity
        for i in range(0, weight.shape[1], m): mask.scatter_(1, i+torch.topk(scores[:,i:i+m].float(), n, dim=1, largest=False)[1], True)
    else: mask.scatter_(1, torch.sort(scores, dim=-1, stable=True)[1][:,:int(weight.shape[1]*sparsity)], True)
    return weight.masked_fill(mask, 0)

def factorize(hessian:Tensor, damping:float=.01)->Tensor:
    "Upper Cholesky factor of the inverse of the damped Hessian"
    h = hessian.clone()
    h.diagonal().add_(damping*h.diagonal().mean())
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)

def _alive(weight, hessian):
    "Copies in which dead inputs have a diagonal of 1 and no weight"
    w,h = weight.float().clone(),hessian.clone()
    dead = h.diagonal()==0
    h[dead,dead],w[:,dead] = 1,0
    return w,h

def sparsegpt_columns(w:Tensor, upper:Tensor, sparsity:float|tuple=.5, block_size:int=128)->Tensor:
    "Prune column by column and let the later columns make it good"
    for i1 in range(0, w.shape[1], block_size):
        i2 = min(i1+block_size, w.shape[1])
        block,u = w[:,i1:i2].clone(),upper[i1:i2,i1:i2]
        kept,errors,mask = torch.zeros_like(block),torch.zeros_like(block),torch.zeros_like(block, dtype=torch.bool)
        if not isinstance(sparsity, tuple):
            scores = block**2/u.diagonal().reshape(1, -1)**2
            mask = scores<=torch.sort(scores.flatten())[0][int(scores.numel()*sparsity)]
        for i in range(i2-i1):
            column,d = block[:,i],u[i,i]
            if isinstance(sparsity, tuple) and i%sparsity[1]==0:
                n,m = sparsity
                scores = block[:,i:i+m]**2/u.diagonal()[i:i+m].reshape(1, -1)**2
                mask.scatter_(1, i+torch.topk(scores, n, dim=1, largest=False)[1], True)
            new = column.clone()
            new[mask[:,i]] = 0
            kept[:,i] = new
            error = (column-new)/d
            block[:,i:] -= error.unsqueeze(1).matmul(u[i,i:].unsqueeze(0))
            errors[:,i] = error
        w[:,i1:i2] = kept
        w[:,i2:] -= errors.matmul(upper[i1:i2,i2:])
    return w

def sparsegpt(weight:Tensor, hessian:Tensor, sparsity:float|tuple=.5, damping:float=.01, block_size:int=128)->Tensor:
    "SparseGPT (Frantar & Alistarh 2023) of one layer"
    w,h = _alive(weight, hessian)
    return sparsegpt_columns(w, factorize(h, damping), sparsity, block_size)

# ---- Quantization

def minmax_grid(w:Tensor, bits:int=4, symmetric:bool=False, mse:bool=False)->tuple[Tensor,Tensor]:
    "Scale and zero of each row, `[out, 1]`: zero is forced into the range; `mse` shrinks the range where that lowers |error|^2.4"
    low,high,top = w.amin(1).clamp(max=0),w.amax(1).clamp(min=0),2**bits-1
    if symmetric:
        high = torch.maximum(low.abs(), high)
        low = torch.where(low<0, -high, low)
    empty = (low==0)&(high==0)
    low,high = low.masked_fill(empty, -1),high.masked_fill(empty, 1)
    def grid(low, high):
        scale = (high-low)/top
        return scale,torch.full_like(scale, (top+1)/2) if symmetric else (-low/scale).round()
    scale,zero = grid(low, high)
    if mse:
        best = torch.full_like(scale, float('inf'))
        for i in range(80):
            s,z = grid((1-i/100)*low, (1-i/100)*high)
            error = (round_to(w, s[:,None], z[:,None], bits)-w).abs().pow(2.4).sum(1)
            better = error<best
            best,scale,zero = torch.where(better, error, best),torch.where(better, s, scale),torch.where(better, z, zero)
    return scale[:,None],zero[:,None]

def round_to(w:Tensor, scale:Tensor, zero:Tensor, bits:int=4)->Tensor:
    "The nearest value of a grid"
    return scale*((w/scale).round().add(zero).clamp(0, 2**bits-1)-zero)

def gptq_columns(w:Tensor, upper:Tensor, bits:int=4, group_size:int|None=128, symmetric:bool=False, mse:bool=False, block_size:int=128, order:Tensor=None,
                 grid:tuple=None, groups:list=None)->Tensor:
    "Round column by column; `grid` holds for whole rows, `groups` for static groups, neither: groups as they come"
    for i1 in range(0, w.shape[1], block_size):
        i2 = min(i1+block_size, w.shape[1])
        block,u = w[:,i1:i2].clone(),upper[i1:i2,i1:i2]
        kept,errors = torch.zeros_like(block),torch.zeros_like(block)
        for i in range(i2-i1):
            column,d = block[:,i],u[i,i]
            if groups: grid = groups[int(i1+i if order is None else order[i1+i])//group_size]
            elif group_size and (i1+i)%group_size==0: grid = minmax_grid(w[:,i1+i:i1+i+group_size], bits, symmetric, mse)
            new = round_to(column.unsqueeze(1), *grid, bits).flatten()
            kept[:,i] = new
            error = (column-new)/d
            block[:,i:] -= error.unsqueeze(1).matmul(u[i,i:].unsqueeze(0))
            errors[:,i] = error
        w[:,i1:i2] = kept
        w[:,i2:] -= errors.matmul(upper[i1:i2,i2:])
    return w

def gptq(weight:Tensor, hessian:Tensor, bits:int=4, group_size:int|None=128, symmetric:bool=False, act_order:bool=False, static_groups:bool=False,
         mse:bool=False, damping:float=.01, block_size:int=128)->Tensor:
    "GPTQ (Frantar et al. 2023) of one layer; `group_size=None` means one grid a row"
    grid,groups,order = None if group_size else minmax_grid(weight.float(), bits, symmetric, mse),None,None
    w,h = _alive(weight, hessian)
    if static_groups and group_size: groups = [minmax_grid(w[:,i:i+group_size], bits, symmetric, mse) for i in range(0, w.shape[1], group_size)]
    if act_order:
        order = torch.argsort(h.diagonal(), descending=True)
        w,h = w[:,order],h[order][:,order]
    w = gptq_columns(w, factorize(h, damping), bits, group_size, symmetric, mse, block_size, order, grid, groups)
    return w if order is None else w[:,torch.argsort(order)]

# ---- AWQ

def awq_round(w:Tensor, bits:int=4, group_size:int|None=128)->Tensor:
    "Nearest value of each group's grid; zero need not lie in the range"
    shape,w = w.shape,w.reshape(-1, group_size or w.shape[1])
    low,high = w.amin(1, keepdim=True),w.amax(1, keepdim=True)
    scale = (high-low).clamp(min=1e-5)/(2**bits-1)
    zero = (-torch.round(low/scale)).clamp(0, 2**bits-1)
    return (((w/scale).round()+zero).clamp(0, 2**bits-1)-zero).mul(scale).reshape(shape)

def awq_scale(module, layers:list, x:Tensor, others:dict, bits:int=4, group_size:int|None=128)->tuple[Tensor,list]:
    "Best of 20 scales of the inputs of `layers`, by forwards of `module`; and the 20 losses"
    dense,loudness,own = run_block(module, x, others),x.abs().reshape(-1, x.shape[-1]).mean(0),[o.weight.data.clone() for o in layers]
    losses,scales = [],[]
    for i in range(20):
        s = loudness.pow(i/20).clamp(min=1e-4)
        s = s/(s.max()*s.min()).sqrt()
        for o,w in zip(layers, own): o.weight.data = awq_round(w*s, bits, group_size)/s
        losses.append(float((dense-run_block(module, x, others)).float().pow(2).mean()))
        scales.append(s)
        for o,w in zip(layers, own): o.weight.data = w
    return scales[min(range(20), key=losses.__getitem__)],losses

def awq_clip(w:Tensor, x:Tensor, bits:int=4, group_size:int|None=128, broadcast:bool=True)->Tensor:
    "Best of 10 largest sizes for each group, `[out, groups, 1]`, on about 512 tokens; `broadcast` forms the products as the original does, not as matrix products"
    group_size = group_size or w.shape[1]
    x = x.reshape(1, -1, w.shape[1]//group_size, group_size)
    x = x[:,::max(1, x.shape[1]//512)]
    def outputs(w): return (x*w).sum(-1) if broadcast else torch.einsum('tng,ong->otn', x[0], w[:,0])
    best,rows = [],256 if w.shape[0]%256==0 else 64
    for part in w.reshape(w.shape[0], 1, -1, group_size).split(rows):
        size = part.abs().amax(-1, keepdim=True)
        dense,least,chosen = outputs(part),torch.full_like(size, float('inf')),size.clone()
        for i in range(10):
            limit = size*(1-i/20)
            error = (outputs(awq_round(part.clamp(-limit, limit), bits, group_size))-dense).pow(2).mean(1).reshape(size.shape)
            better = error<least
            least[better],chosen[better] = error[better],limit[better]
        best.append(chosen)
    return torch.cat(best).squeeze(1)

def clipped(w:Tensor, limit:Tensor)->Tensor:
    "Weights limited in size by group"
    return torch.clamp(w.reshape(*limit.shape[:2], -1), -limit, limit).reshape(w.shape)

def awq_block(block, x:Tensor, others:dict, bits:int=4, group_size:int|None=128, clip:bool=True, broadcast:bool=True)->tuple[Tensor,dict]:
    "Search, fold and clip one block, then round it; returns what the block gave before, and what was chosen"
    inputs,layers,found = {},linears(block),{}
    hooks = [layer.register_forward_hook(lambda m, args, out, name=name: inputs.__setitem__(name, args[0])) for name,layer in layers.items()]
    after = run_block(block, x, others)
    for o in hooks: o.remove()
    attention,mlp = block.self_attn,block.mlp
    searches = [(block.input_layernorm, attention, ['self_attn.q_proj','self_attn.k_proj','self_attn.v_proj'], others),
                (attention.v_proj, attention.o_proj, ['self_attn.o_proj'], {}),
                (block.post_attention_layernorm, mlp, ['mlp.gate_proj','mlp.up_proj'], {}),
                (mlp.up_proj, mlp.down_proj, ['mlp.down_proj'], {})]
    if attention.v_proj.weight.shape!=attention.o_proj.weight.shape: del searches[1] # as the original under grouped queries
    for before,module,names,arguments in searches:
        found[names[0]] = before,names,awq_scale(module, [layers[o] for o in names], inputs[names[0]], arguments, bits, group_size)[0]
    for before,names,s in found.values():
        before.weight.data = before.weight.data/(s if before.weight.ndim==1 else s[:,None])
        for o in names: layers[o].weight.data,inputs[o] = layers[o].weight.data*s,inputs[o]/s
    limits = {}
    for name,layer in layers.items():
        if clip and not name.endswith(('q_proj','k_proj')):
            limits[name] = awq_clip(layer.weight.data, inputs[name], bits, group_size, broadcast)
            layer.weight.data = clipped(layer.weight.data, limits[name])
    for layer in layers.values(): layer.weight.data = awq_round(layer.weight.data, bits, group_size)
    return after,dict(scales={k: s for k,(*_,s) in found.items()}, limits=limits)

@torch.no_grad()
def awq(model, tokens:Tensor, bits:int=4, group_size:int|None=128, clip:bool=True, broadcast:bool=True)->list[dict]:
    "AWQ (Lin et al. 2024) of a model: all sequences in one batch, each block fed by the uncompressed one before it"
    x,others = catch(model, tokens)
    chosen = []
    for block in model.model.layers:
        x,found = awq_block(block, x, others, bits, group_size, clip, broadcast)
        chosen.append(found)
    return chosen

# ---- By name, with the settings of the methods

def run(model, tokens:Tensor, method:str, **settings):
    "Compress `model` by `method`: sparsegpt, gptq, wanda or awq"
    if method=='sparsegpt': return compress(model, tokens, Hessian, lambda w,s: sparsegpt(w, s.matrix, **settings))
    if method=='gptq': return compress(model, tokens, Hessian, lambda w,s: gptq(w, s.matrix, **settings))
    if method=='wanda': return compress(model, tokens, Squares, lambda w,s: wanda(w, s.vector, **settings))
    if method=='awq': return awq(model, tokens, **settings)
    raise ValueError(f"`method` must be sparsegpt, gptq, wanda or awq, got {method!r}")
