"""Choose, measure and write the calibration text that language models are compressed with"""

__version__ = "0.1.0"

from importlib import import_module
from importlib.util import find_spec

# Names are imported when first used: `import compresscal` loads neither torch nor transformers.
_names = {
    'core.files': 'embedded_folder',
    'text.installed_text': 'Document held_out_documents',
    'text.corpora': 'Corpus open_corpus',
    'models.loading': 'load_model',
    'models.blocks': 'decoder_blocks Block LinearLayer capture',
    'calibration.calibration_set': 'CalibrationSet',
    'calibration.sampling': 'sample_sets mix',
    'calibration.weighting': 'weighted',
    'calibration.self_text': 'self_calibrate self_calibration_sets random_vocabulary Recipe',
    'calibration.sources': 'calibration_sets',
    'compression.input_statistics': 'InputStatistics',
    'compression.grids': 'Quantized',
    'compression.methods': 'Method Magnitude Wanda SparseGPT RTN GPTQ AWQ SpQR Combined',
    'compression.names': 'parse_method',
    'compression.compression_report': 'CompressionReport StoredCodes plot_errors',
    'compression.compress': 'compress',
    'choosing.leakage': 'leakage',
    'choosing.readings': 'profile Profile',
    'choosing.description': 'describe_set compare_sets',
    'choosing.selection': 'keep_likely drop_duplicates proportional diverse representative cover_outliers',
    'choosing.predicted_damage': 'predicted_damage DamageRanking',
    'evaluation.perplexity': 'perplexity Perplexity',
    'evaluation.fidelity': 'Fidelity',
    'evaluation.tasks': 'evaluate_tasks',
    'summaries.summary_sets': 'open_summary_set',
    'summaries.summarize': 'summarize Summaries',
    'hallucination.summac': 'SummaCZS SummaCConv',
    'hallucination.harim': 'HaRiM HaRiMDecoder',
    'hallucination.dependence': 'Dependence',
    'hallucination.judges': 'parse_judge FunctionJudge',
    'hallucination.risk': 'risk_ratio',
    'hallucination.reviews': 'review controls',
    'hallucination.hallucination': 'Hallucination System',
    'vocabulary.usage': 'used_tokens TokenUsage',
    'vocabulary.reduction': 'reduce_vocabulary',
    'vocabulary.memory': 'memory_report',
    'vocabulary.reduced_checkpoints': 'load_reduced save_full save_reduced VocabularyCallback',
    'checkpoints.gguf_files': 'check_gguf write_gguf',
    'checkpoints.imatrix': 'write_imatrix',
    'checkpoints.saving': 'check_format Saved',
    'checkpoints.save': 'save',
    'checkpoints.inspection': 'inspect_checkpoint verify_checkpoint',
    'checkpoints.hub': 'push_to_hub',
    'experiments.measures': 'Measure parse_measure',
    'experiments.results': 'Results',
    'experiments.progress': 'status',
    'experiments.engines': 'Local Pool Ray',
    'experiments.study': 'Study preset read_study'}
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
