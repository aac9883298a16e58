"""Choose, measure and write the calibration text that language models are compressed with

Modules:

- `compresscal.calibration.batch_invariance`: Keys and values that are allocated once, and attention that keeps the rows of a batch apart
- `compresscal.calibration.calibration_set`: What a calibration set is, how it is kept, and how other programs open it
- `compresscal.calibration.generation`: Text that a model writes, the same bits whatever the batch
- `compresscal.calibration.made_sets`: Calibration sets that a function of another package makes
- `compresscal.calibration.sampling`: Windows of text drawn into disjoint sets, each with a recipe that makes it again
- `compresscal.calibration.self_text`: Calibration text that nobody wrote
- `compresscal.calibration.sources`: Calibration text by name: read, drawn, written or mixed
- `compresscal.calibration.weighting`: Several texts in one set, each with its share of every statistic
- `compresscal.calibration.windows`: As many windows as a text holds
- `compresscal.checkpoints.account`: What was done to a model, beside the model
- `compresscal.checkpoints.compressed_tensors`: Codes in the files that vLLM and transformers read, as they were chosen, to the last bit
- `compresscal.checkpoints.dense_files`: A checkpoint of plain weights that every program reads, and beside it the codes that they are made of
- `compresscal.checkpoints.file_record`: Which files a checkpoint has, how large each is, and the hash of what it holds
- `compresscal.checkpoints.gguf_blocks`: Codes of the package as the blocks of 32 that llama.cpp reads, bit for bit
- `compresscal.checkpoints.gguf_families`: What llama.cpp calls the tensors and settings of a model, and which models it computes as transformers does
- `compresscal.checkpoints.gguf_files`: A compressed model as one file for llama.cpp, with exactly the weights that were measured
- `compresscal.checkpoints.gguf_folders`: A folder with one GGUF file in it, looked at before and after
- `compresscal.checkpoints.gguf_tokenizers`: A tokenizer as llama.cpp reads it: tokens, merges, and the name of the rule that cuts text into words
- `compresscal.checkpoints.hub`: A compressed model, with its card and its hashes, on the Hub
- `compresscal.checkpoints.imatrix`: What your calibration text says of each input, for llama.cpp's own quantizers
- `compresscal.checkpoints.inspection`: Is a compressed model what it says, and does the same come out again?
- `compresscal.checkpoints.model_card`: A page that says where a compressed model came from, what was done to it, and what that did
- `compresscal.checkpoints.packed_folders`: A model that was compressed on disk, in the formats that others read, and what it will take before it is begun
- `compresscal.checkpoints.packing`: A checkpoint that does not fit in memory, packed from file to file
- `compresscal.checkpoints.save`: One call from a compressed model in memory to a folder that others read, with what was done to it
- `compresscal.checkpoints.saving`: A compressed model becomes a folder that others read, and is read back before that is called done
- `compresscal.choosing.description`: What a calibration set is like, and how it differs from others, before the expensive run
- `compresscal.choosing.disjoint`: Whether a model is judged by documents that it was calibrated on
- `compresscal.choosing.distances`: How far one calibration set is from another, in its words and in what layers see of it
- `compresscal.choosing.leakage`: Whether calibration text holds the text that results are reported on
- `compresscal.choosing.predicted_damage`: Which calibration set will hurt least, before anything is compressed
- `compresscal.choosing.readings`: What one forward pass over a text shows
- `compresscal.choosing.selection`: Choose among calibration text, and write down what was chosen and how
- `compresscal.commands.cli`: All commands as one program, what they print, and how they end
- `compresscal.commands.compare_command`: `compresscal compare`: the same questions, two models
- `compresscal.commands.compressing`: A model compressed into a folder, and measured
- `compresscal.commands.compressing_commands`: `compresscal compress` and `compresscal evaluate`: a model made small, and measured
- `compresscal.commands.console`: How a command speaks: to people, to programs, and into a log
- `compresscal.commands.diagnosing`: Calibration sets side by side, before the expensive run
- `compresscal.commands.diagnosing_command`: `compresscal diagnose`: what sets are like, and what calibrating on them would cost
- `compresscal.commands.docments`: What a function says of its parameters, read without importing it
- `compresscal.commands.drawing`: Calibration sets in a folder: drawn, mixed, or written by the model
- `compresscal.commands.drawing_commands`: `compresscal sample` and `compresscal generate`: calibration sets drawn, or written by the model
- `compresscal.commands.inspecting_commands`: `compresscal inspect` and `compresscal verify`: is a compressed model what it says?
- `compresscal.commands.options`: A function whose signature is the table of its options
- `compresscal.commands.plugins_command`: `compresscal plugins`: what other packages bring
- `compresscal.commands.qualify_command`: `compresscal qualify`: does a judge earn its place?
- `compresscal.commands.reducing`: Models with fewer tokens, from a shell: what it would save, the reduced folder, and the whole one again
- `compresscal.commands.reducing_commands`: `compresscal vocabulary`: only the embedding rows that some text uses, and all of them again
- `compresscal.commands.study_command`: `compresscal study`: many models compressed, and compared
- `compresscal.commands.summarizing`: Summaries in a file, and what separates two files: the commands behind `compresscal summarize` and `compresscal hallucination`
- `compresscal.commands.summarizing_commands`: `compresscal summarize` and `compresscal hallucination`: what models write, and who invents
- `compresscal.commands.terminal`: Tables, messages and bars for a terminal, whatever they are made of
- `compresscal.commands.words`: The words behind a command, as people write them, put in the order that Click reads
- `compresscal.compression.awq`: Scale the loud inputs up before their weights are rounded, and undo it where nothing is rounded
- `compresscal.compression.compensation`: How the weights that are still free make up for what the others lose
- `compresscal.compression.compress`: Walk the blocks of a model in order, each fed by the compressed past
- `compresscal.compression.compression_report`: What compression did to each layer, as a table and as a picture
- `compresscal.compression.estimate`: Time, memory and disk of a run, from a probe of a few seconds
- `compresscal.compression.grids`: Which values a quantized weight may take, and what it costs to store them
- `compresscal.compression.input_statistics`: What a layer sees while the calibration text streams past
- `compresscal.compression.machine`: Two warnings before hours of work: of a number format that this processor is slow in, and of more threads than free cores
- `compresscal.compression.methods`: Seven ways to prune and quantize, each a frozen dataclass of settings on top of pure functions
- `compresscal.compression.names`: What methods are called in a shell, a file and a table
- `compresscal.compression.noise`: Damage that chooses nothing: the control for what is said of pruning and rounding
- `compresscal.compression.pruning`: Which weights may go, given the text the model will see
- `compresscal.compression.quantization`: Which level each weight takes, given the text the model will see
- `compresscal.core.archives`: Thousands of small files in a few, to publish and to go on from
- `compresscal.core.arguments`: What an argument must be, said in one way
- `compresscal.core.checks`: What must hold before a number is believed, and the error when it does not
- `compresscal.core.files`: Files that are whole or absent, that others may read, and that are known by what they hold
- `compresscal.core.marked_text`: A text with some of its parts marked, so that you can judge for yourself
- `compresscal.core.patching`: A class that is opened method by method, each beside the words that explain it
- `compresscal.core.plots`: One style and a few kinds of figures, each with its caption and its description
- `compresscal.core.plugins`: Methods, sources, measures, judges, engines and callbacks of other packages, by name
- `compresscal.core.rows`: The rows of a file, whatever its kind, each as it was written
- `compresscal.core.seeds`: Random numbers that a whole number decides, whatever its size
- `compresscal.core.spelling`: What a word in a command can mean, seen before anything heavy is loaded
- `compresscal.core.tables`: A table keeps its columns, and a name is shown as a name, whatever it holds
- `compresscal.evaluation.branches`: Several continuations of one context in one row, so that the context is read once
- `compresscal.evaluation.fidelity`: How far a compressed model's predictions are from those of the model it was
- `compresscal.evaluation.harness_files`: Task results as the files that `lm_eval` writes
- `compresscal.evaluation.harness_perplexity`: The word perplexity that lm-evaluation-harness reports
- `compresscal.evaluation.paired_answers`: Two models, the same questions: which answers were lost, and which gained
- `compresscal.evaluation.perplexity`: How surprised a model is by text it should know
- `compresscal.evaluation.task_files`: Rows of an evaluation task from a file, in the columns that its prompts name
- `compresscal.evaluation.tasks`: Zero-shot accuracy of the model in memory, asked as everybody asks
- `compresscal.experiments.attempts`: Which cells a run computes: those that are missing, those that failed, and none of a model past saving
- `compresscal.experiments.callbacks`: What is called while a study runs
- `compresscal.experiments.cell_index`: What each cell of a study is called, so that a study can be read where its models are not
- `compresscal.experiments.cells`: One compressed model, what is measured on it, and what decides the result
- `compresscal.experiments.costs`: What a study will cost, from what its parts have cost once
- `compresscal.experiments.declared`: How many tests the comparisons of a study are, before it is run
- `compresscal.experiments.differences`: The same study twice: what differs, and within what noise
- `compresscal.experiments.document_table`: A line for each compressed model and each document, question or summary
- `compresscal.experiments.documents`: What is behind one value: the documents it was measured on, chance, flips, and what another measure sees
- `compresscal.experiments.engines`: Where jobs run: this process, a pool of processes, a cluster of machines
- `compresscal.experiments.figures`: What a study found, to look at
- `compresscal.experiments.findings`: What the rows of a study say: spread, comparisons, noise, and where one measure hides another
- `compresscal.experiments.gpus`: Which worker of a pool sees which GPU
- `compresscal.experiments.inputs`: What a word in a command means: a model, calibration text, held-out text
- `compresscal.experiments.jobs`: Many pieces of work, done by workers that may fail
- `compresscal.experiments.keeping`: The compressed models of a study that you want to have
- `compresscal.experiments.measures`: What is measured on a compressed model, by name
- `compresscal.experiments.mirror`: The same files in a folder and at a distant place
- `compresscal.experiments.notebooks`: A study as a notebook that runs, at any scale
- `compresscal.experiments.planning`: What a study will cost, and what it will be able to tell
- `compresscal.experiments.preparation`: From names to jobs: what a study does before its first job, and the rows it makes in the end
- `compresscal.experiments.progress`: How far a study is, and how long it will still take
- `compresscal.experiments.questions`: Every compressed model beside the dense one, question by question
- `compresscal.experiments.reopening`: A study's folder, read without its models
- `compresscal.experiments.report`: A study on one page, and in files that others can use
- `compresscal.experiments.results`: Rows of a study, kept to the last digit, and the tables made of them
- `compresscal.experiments.set_reliability`: How much of the difference between a study's sets is there to explain
- `compresscal.experiments.sets_and_documents`: Sources and methods compared where both the set and the document could have been others
- `compresscal.experiments.severity`: Does a source matter more, or was more destroyed?
- `compresscal.experiments.shared_text`: Which sources of a study are made of the same documents, although they are compared as if they were not
- `compresscal.experiments.store`: Finished work that survives whatever happens to a process
- `compresscal.experiments.study`: Models times methods times sources times sets, and what they say together
- `compresscal.experiments.trackers`: A study in TensorBoard, Weights & Biases and MLflow
- `compresscal.experiments.trial`: The work of a study, each kind of it once and in part, to know what all of it will cost
- `compresscal.hallucination.conditional`: Log-probabilities of a text given another, with a source and without it
- `compresscal.hallucination.corruptions`: A good summary with one thing made wrong: a name, a number, or a "not"
- `compresscal.hallucination.dependence`: How much of what a model says next it has from the source, and how much it knew before
- `compresscal.hallucination.entailment`: Does one text follow from another? Asked of a model of natural language inference, for many pairs at once and for each only once
- `compresscal.hallucination.hallucination`: Does a compressed model hallucinate more than its dense self, and does it copy more? Reviews of all systems side by side
- `compresscal.hallucination.harim`: HaRiM+: a summary is at risk where a model without the source would have written it as well
- `compresscal.hallucination.judges`: Judges by name, judges made of a function, and judges from other packages
- `compresscal.hallucination.labelled_summaries`: Summaries of which people have said how consistent they are with their documents
- `compresscal.hallucination.qualification`: Does a judge earn its place? What it must tell apart, and what it must not be
- `compresscal.hallucination.reviews`: Copying, closeness to a reference and what judges say, for each summary in one table, and the same for texts that are no answer
- `compresscal.hallucination.risk`: Does a compressed model hallucinate more than its dense self? One number, how sure it is, and when there is none
- `compresscal.hallucination.summac`: SummaC: does each sentence of a summary follow from a sentence of its document?
- `compresscal.models.blocks`: Any causal language model as a row of decoder blocks, the linear layers in them, and what each of them sees
- `compresscal.models.chat`: A chat template is a program that comes with the model; it runs where it can be stopped
- `compresscal.models.disk_blocks`: A model whose blocks stay on disk, and of which one block at a time is in memory
- `compresscal.models.foldings`: Which features of a model can be scaled without changing what it computes, found by trying
- `compresscal.models.gguf_models`: A GGUF file becomes a checkpoint that every part of the package reads
- `compresscal.models.hidden_states`: Hidden states of many batches, on disk where they do not fit in memory
- `compresscal.models.loading`: A causal language model from a folder or the Hub, in memory whole or one block at a time
- `compresscal.models.new_checkpoint`: A new checkpoint of a model that does not fit in memory, written block by block
- `compresscal.models.opening`: Which token opens a document, where the tokenizer's beginning-of-text token opens a turn
- `compresscal.models.packed_checkpoints`: Checkpoints that other tools have quantized, each of their weights made plain when it is read
- `compresscal.models.packed_codes`: Weights out of the 32-bit words in which GPTQ and AWQ checkpoints keep their codes
- `compresscal.models.products`: Products of matrices in single precision, by whichever library is faster
- `compresscal.models.quantized_before`: Whether the weights of a model were quantized before it was read
- `compresscal.models.stored_tensors`: What a checkpoint holds, read from the headers of its files, and any tensor of it read on its own
- `compresscal.models.structure`: Where the decoder blocks of a model are, and which of its weights belong to which
- `compresscal.models.tensor_files`: Read some rows of a tensor on disk; write files of tensors that do not fit in memory, whole or not at all
- `compresscal.models.transformers_calls`: How transformers is called here: quietly, without foreign code, with experts that can be watched
- `compresscal.statistics.comparisons`: Do two methods or sources differ, or only the sets and documents that were drawn?
- `compresscal.statistics.correlation`: Do two measures go together: between groups, within them, and with other things held equal
- `compresscal.statistics.family`: The comparisons that are declared together: can they be decided at all, and the one question that stands for many
- `compresscal.statistics.intervals`: How sure a number is that comes from a few calibration sets and some documents
- `compresscal.statistics.mixed_model`: Sets and documents in one model: how sure a difference is when both could have been others
- `compresscal.statistics.paired_questions`: Do two models answer the same questions differently, or do a few questions turn whatever you do?
- `compresscal.statistics.pooled_tasks`: One answer from several tasks: three of them, because there are three questions
- `compresscal.statistics.power`: How many calibration sets it takes to see a difference, and what a study that saw none could have seen
- `compresscal.statistics.question_power`: What change of the accuracy so many questions can show
- `compresscal.statistics.regression`: How one measure changes with several others, along a line or bin by bin
- `compresscal.statistics.reliability`: How much of a difference between sets there is to explain, and how well anything could explain it
- `compresscal.statistics.spread_ratio`: Does one thing vary more than another, where both were measured on the same units?
- `compresscal.summaries.answers`: What a model writes after a prompt: many prompts at a time, and for each the same tokens as if it were alone
- `compresscal.summaries.bertscore`: How close two texts are token by token, in the eyes of a language model
- `compresscal.summaries.mentions`: Which names, numbers and identifiers of a summary its source does not hold
- `compresscal.summaries.overlap`: How much of a summary is in its source, and where
- `compresscal.summaries.prompts`: What a model is asked when it is to sum up a document, and how a long document is made to fit
- `compresscal.summaries.quality`: How good summaries are by the references that people wrote, with and without those that are no summaries
- `compresscal.summaries.rouge`: How many of its words, pairs of words and sequences a text shares with another, as ROUGE counts them, for texts of any length
- `compresscal.summaries.scores`: One number for each summary, what it was made with, and what a judge is
- `compresscal.summaries.summarize`: A model sums up documents: what it saw, what it wrote, and which of its answers are no summaries
- `compresscal.summaries.summary_sets`: Documents to sum up, with references where there are any: sets by name, your own files, and docstrings that every installation holds
- `compresscal.text.corpora`: Where text comes from: the Hub, your own files, and text that every installation already holds
- `compresscal.text.installed_text`: Text that every installation already holds, split for training and testing, no copy of it twice
- `compresscal.text.sentences`: Where the sentences and words of a text begin and end, by rules that have a name
- `compresscal.text.source_functions`: Text of another package, by name: a function that gives it
- `compresscal.vocabulary.counting`: Token ids of any text, pair of texts or dataset, with each word cut only once where that is safe
- `compresscal.vocabulary.dropped_mass`: What an output head loses with the tokens that are taken from it: probability, and a constant in the loss
- `compresscal.vocabulary.memory`: What a vocabulary costs in training, before and after it is reduced, computed without training
- `compresscal.vocabulary.reduced_checkpoints`: Load a model with the rows that are used, train it, and save the whole, while the whole matrix never enters memory
- `compresscal.vocabulary.reduction`: Keep only the embedding rows that the data uses, fine-tune, and put them back
- `compresscal.vocabulary.token_maps`: Number the tokens that are kept anew, and let tokenizers and data collators use the new numbers
- `compresscal.vocabulary.token_tables`: Everywhere that a model knows how many tokens there are, and speaks of one by its number
- `compresscal.vocabulary.usage`: Which token ids a data set uses, how often, and what a smaller vocabulary would miss"""

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
