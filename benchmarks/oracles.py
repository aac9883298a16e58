"""Every method against the outputs of the original implementations on fixed inputs: a table of case and method.

    python benchmarks/oracles.py FOLDER

FOLDER holds `layers/NAME.safetensors`: a weight `W`, inputs `X` of S sequences (in the metadata), the reference's Hessian `H`, and one result for each algorithm, named by
its settings."""
import argparse, re
from pathlib import Path
import pandas as pd, torch
from safetensors import safe_open
from compresscal.compression.input_statistics import InputStatistics
from compresscal.compression.methods import RTN
from compresscal.compression.methods import GPTQ, Magnitude, SparseGPT, SpQR, Wanda
from compresscal.compression.methods import LayerResult, Method

def read(name:str)->Method|None:
    "The method that mirrors a result, from its name"
    flags = name.split('_')
    bits = int(m[0]) if (m := re.search(r'\d+', flags[0])) else None
    group = next((int(o[1:]) for o in flags[1:] if re.fullmatch(r'g\d+', o)), None)
    if flags[0].startswith(('sparsegpt','wanda','magnitude')):
        kind = dict(sparsegpt=SparseGPT, wanda=Wanda, magnitude=Magnitude)[re.match('[a-z]+', flags[0])[0]]
        more = dict(block_size=int(flags[1][2:])) if len(flags)>1 else {}
        return kind(f'{str(bits)[0]}:{str(bits)[1]}' if bits in (24,48) else bits/100, ragged=True, **more)
    common = dict(symmetric='sym' in flags, mse='mse' in flags)
    if flags[0].startswith('gptq'): return GPTQ(bits, group, act_order='act' in flags, static_groups='static' in flags, block_size=32 if 'bs32' in flags else 128, **common)
    if flags[0].startswith('rtn'): return RTN(bits, group, **common)
    if flags[0].startswith('awqrtn'): return RTN(bits, group, rule='awq')
    if flags[0].startswith('spqr'):
        second = next((int(o[2:]) for o in flags if o.startswith('qg')), None)
        more = dict(second_group_size=second) if second else dict(scale_bits=None, zero_bits=None)
        damping = next((float(o[4:]) for o in flags if o.startswith('damp')), 1.)
        return SpQR(bits, group, act_order='act' in flags, simplified_outliers='simplified' in flags, damping=damping, **more)
    return None # scales and clips of AWQ alone: see tests/test_scaling.py

def compare(file:Path):
    "Rows of the table for one layer"
    with safe_open(file, 'pt') as f: o,sequences = {k: f.get_tensor(k) for k in f.keys()},int(f.metadata()['S'])
    w,x = o['W'],o['X']
    for name,reference in o.items():
        if reference.shape!=w.shape or name=='W' or '.outliers' in name or '.W' in name or (method := read(name)) is None: continue
        statistics = InputStatistics(w.shape[1], moments=method.needs=='moments').add(x, sequences)
        new = LayerResult.of(method.compress_layer(w, statistics)).dense
        error = [float((x@(v-w).T).square().sum()) for v in (new,reference)]
        pruned = not hasattr(method, 'bits')
        yield dict(layer=file.stem, case=name, method=method.label, mask_mismatch=int(((new==0)!=(reference==0)).sum()) if pruned else None,
                   zeros=int((new==0).sum())-int((reference==0).sum()) if pruned else None,
                   weights_equal=float(((new-reference).abs()<=1e-5*reference.abs().max()).float().mean()),
                   relative_difference=float((new-reference).norm()/reference.norm()), error_ratio=error[0]/error[1] if error[1] else 1.)

def table(folder:Path)->pd.DataFrame: return pd.DataFrame([row for file in sorted((folder/'layers').glob('*.safetensors')) for row in compare(file)])

if __name__=='__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path, help='folder of the originals\' outputs')
    parser.add_argument('--all', action='store_true', help='a row for each layer and case, instead of the worst of each case')
    args = parser.parse_args()
    found = table(args.folder)
    if not args.all: # ties are excluded from masks: which of two equals goes is not defined
        found['layer'] = found.layer.where(found.layer.str.contains('ties'), 'others').str.replace('.*ties.*', 'ties', regex=True)
        found = found.assign(error_off=(found.error_ratio-1).abs()).groupby(['case','method','layer'], sort=False).agg(layers=('case','size'), mask_mismatch=('mask_mismatch','max'),
            weights_equal=('weights_equal','min'), relative_difference=('relative_difference','max'), error_off=('error_off','max')).reset_index()
    print(found.to_string(index=False, na_rep='', float_format=lambda v: f'{v:.3g}' if abs(v)<.99 else f'{v:.5f}'))
