"Choose, measure and write the calibration text that language models are compressed with"

__version__ = "0.1.0"

from importlib import import_module
from importlib.util import find_spec

# Names are imported when first used: `import compresscal` loads neither torch nor transformers.
_names = dict(
    loading='load_model embedded_folder',
    models='decoder_blocks Block LinearLayer capture',
    installed='Document held_out_documents',
    corpora='Corpus open_corpus',
    sets='CalibrationSet',
    calibration='sample_sets mix',
    synthesis='self_calibrate self_calibration_sets random_vocabulary Recipe',
    sources='calibration_sets',
    activations='InputStatistics',
    grids='Quantized',
    methods='Method Magnitude Wanda SparseGPT RTN GPTQ AWQ SpQR Combined',
    reports='CompressionReport StoredCodes plot_errors',
    compression='compress',
    names='parse_method',
    evaluation='perplexity Perplexity',
    fidelity='Fidelity',
    tasks='evaluate_tasks',
    measures='Measure parse_measure',
    contamination='leakage',
    readings='profile Profile',
    selection='keep_likely drop_duplicates proportional diverse representative cover_outliers',
    damage='predicted_damage DamageRanking',
    summary_sets='open_summary_set',
    summarization='summarize Summaries',
    summac='SummaCZS SummaCConv',
    harim='HaRiM HaRiMDecoder',
    dependence='Dependence',
    judges='parse_judge FunctionJudge',
    reviews='review controls',
    risk='risk_ratio',
    hallucination='Hallucination System',
    usage='used_tokens TokenUsage',
    memory='memory_report',
    vocabulary='reduce_vocabulary',
    reduced_checkpoints='load_reduced save_full save_reduced VocabularyCallback',
    diagnostics='describe_set compare_sets',
    progress='status',
    results='Results',
    engines='Local Pool Ray',
    study='Study preset read_study')
_modules = {name: module for module, names in _names.items() for name in names.split()}
__all__ = sorted(_modules)

def __getattr__(name):
    "Import the module `name`, or the module that defines `name`"
    if name in _modules: value = getattr(import_module(f'{__name__}.{_modules[name]}'), name)
    elif not name.startswith('_') and find_spec(f'{__name__}.{name}'): value = import_module(f'{__name__}.{name}')
    else: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value

def __dir__(): return sorted({*globals(), *__all__})
