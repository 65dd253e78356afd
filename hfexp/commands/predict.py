"""The command `hfexp predict` and `hfexp.predict`: run a trained model on inputs."""

import glob
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from hfexp.core.console import end_bar, is_terminal, note, printable, progress, say
from hfexp.core.errors import EXIT_FAILED, ConfigError, DataError, did_you_mean, one_of
from hfexp.core.files import STANDARD_INPUT
from hfexp.core.outside import load as load_yaml

if TYPE_CHECKING:
    import pandas

    from hfexp.inference.inputs import Input
    from hfexp.inference.load import LoadedModel
    from hfexp.inference.outputs import Answer, AnswerFile, RowCollector, Screen


# Command-line arguments of `hfexp predict`: the inputs, the model, and the output of the answers.
#
# They bypass Hydra's grammar, which would need texts to be quoted twice: the model gets exactly the typed text.
# Overrides that choose a model (`task=`, `model=`, `transform=`, `security=`) are passed on to Hydra.


COMPOSED = ("task", "model", "transform", "security")
"""Config sections that define a model which no run of ours has trained."""
TEXTS = ("text", "prompt")
"""Two keys for the same thing: a text as input."""
FORMATS = (".csv", ".jsonl", ".parquet")
ALL = "all"
SPLITS = ("train", "validation", "test", ALL)


@dataclass
class ModelSettings:
    """Parsed arguments that `hfexp predict` and `hfexp evaluate` share: the model, and where the output goes."""

    run: str | None = None
    """Id or name of a run, a directory, or the id of a model on the Hub (OWNER/NAME)."""
    sweep: str | None = None
    """Name of a sweep whose best run is used, in place of `run`."""
    device: str | None = None
    """Torch device; null: the accelerator if there is one."""
    output_dir: str = "outputs"
    """Directory that contains the runs."""
    uri: str | None = None
    """Tracking URI of the runs, if it is not the store in `output_dir`."""
    output: str | None = None
    """File to write the output to."""
    split: str | None = None
    """Split of the run's own dataset, or of the one that the overrides name."""

    def set(self, key: str, text: str) -> None:
        """Set a field to what is typed after `key=`; a list gets one more item.

        Raises:
            ConfigError: the field takes a number or a flag, and the text is none.
        """
        hint = get_type_hints(type(self))[key]
        kinds = get_args(hint) or (hint,)
        kind = next((kind for kind in (bool, int) if kind in kinds), str)
        value = text if kind is str else _parse_value(text, key)
        if value is None or type(value) not in kinds:
            raise ConfigError(f"{key}={text}: expected {'true or false' if kind is bool else 'a whole number'}")
        if isinstance(getattr(self, key), list):
            getattr(self, key).append(value)
        else:
            setattr(self, key, value)

    def check(self) -> None:
        """Raise ConfigError for two models, or an output that is no file: a FIFO would block, a device be replaced."""
        if self.run and self.sweep:
            raise ConfigError("run and sweep both name a model: give one of them")
        if self.split is not None and self.split not in SPLITS:
            raise ConfigError(f"split={self.split}: expected one of {one_of(SPLITS)}")
        if self.output is not None and os.path.exists(self.output) and not os.path.isfile(self.output):
            raise ConfigError(f"output={self.output} exists and is not a regular file; give another name")


@dataclass
class PredictSettings(ModelSettings):
    """Parsed arguments of `hfexp predict`; `output` is a .csv, .jsonl or .parquet file for all answers."""

    inputs: list[str] = field(default_factory=list)
    """Files, folders, patterns, URLs (http, s3, ...), or `-` for one input per line of standard input."""
    text: list[str] = field(default_factory=list)
    """Texts that are themselves inputs."""
    system: str | None = None
    """System prompt for a chat model."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Names that the task's columns have in the input tables, or lists or mappings of names to make one of."""
    top_k: int | str = 1
    """Number of most probable classes to show, or `all`."""
    batch_size: int = 32
    """Rows per batch."""
    generation: dict[str, Any] = field(default_factory=dict)
    """Fields of `transformers.GenerationConfig` to set."""
    show: int = 20
    """Maximum number of answers to print."""
    stream: bool | None = None
    """Print a text while it is generated; null: only in a terminal and for one prompt."""
    record: bool = False
    """Log the answers as an artifact of the run in MLflow."""
    data: list[str] = field(default_factory=list)
    """Hydra overrides of the dataset."""
    composed: list[str] = field(default_factory=list)
    """Hydra overrides of the model."""

    def check(self) -> None:
        """Raise ConfigError for settings that are out of range or contradict each other."""
        super().check()
        if self.output is not None and Path(self.output).suffix not in FORMATS:
            raise ConfigError(f"output={self.output}: the file name must end in {one_of(FORMATS)}")
        if self.top_k != ALL and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise ConfigError(f"top_k={self.top_k}: expected a whole number from 1 on, or {ALL}")
        others = [*self.inputs, *self.text]
        if self.reads_dataset and others:
            raise ConfigError(f"split= and dataset= already name the inputs; leave out {others[0]!r:.80}")
        for name in ("batch_size", "show"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")

    @property
    def reads_dataset(self) -> bool:
        """Return True if the inputs are the rows of a dataset."""
        return self.split is not None or bool(self.data)


NAMES = tuple(f.name for f in fields(PredictSettings) if f.name not in ("composed", "data"))
KEYS = (*NAMES, "prompt")
SECTIONS = ("columns", "generation")


def parse(args: Sequence[str]) -> PredictSettings:
    """Parse arguments of the form `key=value`; arguments without a key are inputs.

    Raises:
        ConfigError: a key does not exist, or a value has the wrong type or is out of range.
    """
    settings, known = PredictSettings(), (*KEYS, *COMPOSED, "dataset")
    for arg in args:
        key, equals, value = arg.partition("=")
        head, _, rest = key.lstrip("+").partition(".")
        if head in COMPOSED and equals:
            settings.composed.append(arg)
        elif head == "dataset" and equals:
            settings.data.append(arg)
        elif key in KEYS and equals and key not in SECTIONS:
            settings.set("text" if key in TEXTS else key, value)
        elif head in SECTIONS and rest and equals:
            getattr(settings, head)[rest] = _column(value, key) if head == "columns" else _parse_value(value, key)
        elif equals and not os.path.exists(arg) and "://" not in key and key.replace("_", "").isalnum():
            raise ConfigError(f"unknown key {key!r}.{did_you_mean(key, known)} Known keys: {one_of(known)}")
        else:
            settings.inputs.append(arg)
    settings.check()
    return settings


def as_args(settings: Mapping[str, Any]) -> list[str]:
    """Convert keyword arguments to command-line arguments: one per item of a list, one per key of a mapping."""
    args = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            # JSON is valid YAML; a column's name is not parsed.
            is_name = name == "columns"
            args += [
                f"{name}.{key}={item if is_name and isinstance(item, str) else json.dumps(item)}"
                for key, item in value.items()
            ]
        else:
            items = value if isinstance(value, list | tuple) else [] if value is None else [value]
            args += [f"{name}={str(item).lower() if isinstance(item, bool) else item}" for item in items]
    return args


def configures_model(arg: str) -> bool:
    """Tell whether an argument configures a model that no run has trained."""
    return arg.lstrip("+~").partition("=")[0].partition(".")[0] in COMPOSED


def check_paths(inputs: Sequence[str]) -> None:
    """Check input paths before a model is loaded, to catch typing errors early.

    Raises:
        ConfigError: a path does not exist, or is a FIFO, a device or a socket.
    """
    for name in inputs:
        if name == STANDARD_INPUT or "://" in name:
            continue
        path = os.path.expanduser(name)
        if not (os.path.exists(path) or glob.glob(path, recursive=True)):
            kind = "no file matches this pattern" if glob.has_magic(name) else "no such file or folder"
            raise ConfigError(f"{name}: {kind}; give a text with text=... or prompt=...")
        if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
            raise ConfigError(f"{name} is neither a regular file nor a folder")


def _column(value: str, key: str) -> Any:
    """Return a column's name, or a list or mapping of names, which begin with a bracket."""
    return _parse_value(value, key) if value.startswith(("[", "{")) else value


def _parse_value(value: str, key: str) -> Any:
    return load_yaml(value, f"{key}={value}")


HELP = """hfexp predict: predict with a trained model.

  hfexp predict run=RUN photos/ more/*.jpg            a run's id or name, or a directory
  hfexp predict sweep=NAME photos/                    the best run of a sweep
  hfexp predict run=google/vit-base-patch16-224 cat.jpg https://example.org/dog.jpg
  hfexp predict run=RUN rows.csv columns.text=review output=answers.csv
  hfexp predict run=RUN split=test output=answers.csv     its own test split, beside the true labels
  hfexp predict run=RUN text="It's great" text="Not at all"
  hfexp predict model=gemma_3_1b system="You are brief." prompt="What is a pipeline?"
  cat lines.txt | hfexp predict run=RUN -

model
  run=       a run's name or id (or its beginning), last, best, best:EXPERIMENT, a directory, or OWNER/NAME (Hub)
  sweep=     the best run of this sweep
  task= model= transform= security=    as in training, for a model that was not trained by a run
  output_dir=outputs  uri=             where the runs are
inputs
  files, folders, patterns, URLs, - (standard input, one per line), tables (.csv .tsv .jsonl .parquet)
  text= or prompt=    a text; may be given several times
  system=             system prompt of a chat model; for a conversation, give a .json file of messages
  columns.NAME=       name of the task's column NAME in the tables, or [A,B,...] to make a list of several
  split=              train, validation, test or all: rows of the run's own dataset, or of another with dataset=...
options
  batch_size=32  device=  top_k=1 (or all)  generation.max_new_tokens=, ...do_sample=, ... (GenerationConfig)
  stream=true         print a text while it is generated (default: for one prompt in a terminal)
output
  output=FILE         write all answers to a .csv, .jsonl or .parquet file, with the probability of every class and
                      all columns of the input's table
  show=20             number of answers to print
  record=true         record the answers with the run in MLflow

Exit code: 0; 1 if inputs could not be read (they are listed, the others are answered); 2 wrong input."""


def main(args: Sequence[str]) -> int:
    """Run `hfexp predict` and return the exit code."""
    if not args or {"--help", "-h"} & set(args):
        print(HELP)
        return 0
    from hfexp.core.compose import split_config_dir

    args, config_dir = split_config_dir(list(args))
    settings = parse(args)
    check_paths(settings.inputs)
    loaded = load(settings, config_dir)
    inputs = read(settings, loaded, config_dir=config_dir)
    sink = _console_sink(settings, loaded, len(inputs))
    return EXIT_FAILED if _predict_to_sinks(settings, loaded, inputs, sink, skip_unreadable=True) else 0


def load(settings: PredictSettings, config_dir: str | Path | None = None) -> "LoadedModel":
    """Load the model that the settings name, with the options of this request."""
    loaded = load_model(settings, settings.composed, config_dir)
    set_options(loaded, settings)
    return loaded


def load_model(settings: ModelSettings, overrides: list[str], config_dir: str | Path | None) -> "LoadedModel":
    """Load the model that the settings name; Hydra's overrides describe one that no run has trained."""
    from hfexp.core import console
    from hfexp.core.compose import importable_cwd

    console.load("torch", "torchvision", "datasets", "transformers")
    from hfexp.inference import load as models

    console.quiet_libraries()
    importable_cwd()
    return models.load(
        settings.run,
        settings.sweep,
        overrides,
        output_dir=settings.output_dir,
        uri=settings.uri,
        device=settings.device,
        config_dir=config_dir,
    )


def set_options(loaded: "LoadedModel", settings: PredictSettings) -> None:
    """Apply the options of this request to a loaded model.

    Raises:
        ConfigError: an option does not fit the model, or `record` is set and MLflow has no run of the model.
    """
    from hfexp.inference.outputs import check_classes

    predictor = loaded.predictor
    predictor.task.check_options(settings.generation)
    check_classes(None if settings.top_k == ALL else int(settings.top_k), predictor.id2label or {})
    if settings.record and loaded.run_id is None:
        raise ConfigError("record=true needs a run that is recorded in MLflow; give run=RUN or sweep=NAME")
    predictor.batch_size, predictor.options = settings.batch_size, dict(settings.generation)


def read(
    settings: PredictSettings,
    loaded: "LoadedModel",
    values: Sequence[Any] = (),
    config_dir: str | Path | None = None,
) -> "list[Input]":
    """Read all inputs: the rows of a split, or the inputs of the settings and those passed from Python.

    Args:
        values: inputs from Python; for a task on texts, a `str` is a text and a `Path` a file.

    Raises:
        ConfigError: an input does not exist, `system` is given without a prompt, or the rows of a split are no inputs.
    """
    from hfexp.inference.inputs import read_inputs, takes_texts

    task = loaded.predictor.task
    if settings.reads_dataset:
        for name, given in (("inputs", values), ("columns", settings.columns), ("system", settings.system)):
            if given:
                raise ConfigError(f"split= and dataset= already name the inputs; leave out {name}")
        return _read_split(settings, loaded, config_dir)
    is_text = takes_texts(task)
    texts = [*settings.text, *(value for value in values if is_text and isinstance(value, str))]
    others = [value for value in values if not (is_text and isinstance(value, str))]
    if settings.system is not None and not texts:
        raise ConfigError("system=... applies only to text=... or prompt=...; in a file, put it into the conversation")
    if settings.system is not None:
        texts = [task.with_system(settings.system, text) for text in texts]
    _know_columns(loaded)
    return read_inputs([*settings.inputs, *others], texts, task, settings.columns)


def _know_columns(loaded: "LoadedModel") -> None:
    """Let tables to predict on have the names of columns that the data of the model's run had."""
    from hfexp.inference.load import recorded_file

    recorded = None if loaded.overrides else recorded_file(loaded, "config.yaml")
    dataset = recorded.get("dataset") if isinstance(recorded, dict) else None
    columns = dataset.get("columns") if isinstance(dataset, dict) else None
    task: Any = loaded.predictor.task
    for name, own in columns.items() if isinstance(columns, dict) else ():
        if own not in (name, *task.usual_names.get(name, ())):
            task.usual_names = {**task.usual_names, name: (*task.usual_names.get(name, ()), own)}


def _read_split(settings: PredictSettings, loaded: "LoadedModel", config_dir: str | Path | None) -> "list[Input]":
    from hfexp.inference.evaluation import compose_data, load_splits
    from hfexp.inference.inputs import split_inputs

    task = loaded.predictor.task
    if task.label_column is None:
        raise ConfigError(
            "split= and dataset=: the rows of this task hold the answers too; give text=... or a file of prompts"
        )
    data = compose_data(loaded, settings.data, settings.split, config_dir)
    return split_inputs(load_splits(data, loaded, keep=None), task, data.config.dataset.columns)


def answers_of(loaded: "LoadedModel", inputs: "Sequence[Input]") -> "Iterator[tuple[Input, Answer | DataError]]":
    """Yield each input with its answer, or with the error that tells why there is none."""
    from hfexp.inference.inputs import row_of
    from hfexp.inference.outputs import Answer

    predictor = loaded.predictor
    names: Mapping[int, str] = predictor.id2label or {}
    tables = {id(item.table): item.table for item in inputs if item.table is not None}
    columns = dict.fromkeys(name for table in tables.values() for name in table.column_names)
    for item, output in zip(inputs, predictor.outputs(row_of, inputs), strict=True):
        if isinstance(output, DataError):
            yield item, output
        else:
            yield item, Answer(item.name, predictor.task.answer(output, names), columns | item.columns())


def _console_sink(settings: PredictSettings, loaded: "LoadedModel", count: int) -> "Screen | RowCollector":
    """Return the console sink: a table, or a silent collector if the text is streamed while it is generated."""
    from hfexp.inference.outputs import RowCollector, Screen

    if _stream(settings, loaded, count, default=is_terminal()):
        return RowCollector()
    return Screen(loaded.predictor.id2label or {}, _num_classes(settings), settings.show)


def _num_classes(settings: PredictSettings) -> int | None:
    return None if settings.top_k == ALL else int(settings.top_k)


def _predict_to_sinks(
    settings: PredictSettings,
    loaded: "LoadedModel",
    inputs: "list[Input]",
    sink: "Screen | RowCollector",
    skip_unreadable: bool,
) -> int:
    """Predict all inputs into the sink, the output file and MLflow; return the number of unreadable inputs.

    Raises:
        DataError: an input could not be read, and `skip_unreadable` is false.
    """
    from hfexp.inference.inputs import column_types
    from hfexp.inference.outputs import ROW_COLUMNS, answer_files

    with tempfile.TemporaryDirectory(prefix="hfexp-answers-") as place:
        recorded = Path(place) / "predictions.csv"
        paths: dict[Path, Sequence[str] | None] = {Path(settings.output): None} if settings.output else {}
        if settings.record:  # a shared store gets what the model says, not the user's whole table
            paths[recorded] = ROW_COLUMNS if settings.reads_dataset else ()
        types = column_types(inputs)
        with answer_files(paths, loaded.predictor.id2label or {}, _num_classes(settings), types) as files:
            skipped = _predict_all(loaded, inputs, [sink, *files], skip_unreadable)
        sink.show()
        if settings.record:
            _record(loaded, recorded)
    if settings.output:
        say(f"{len(inputs) - skipped} answers written to {settings.output}")
    if skipped:
        note(f"{skipped} of {len(inputs)} input{'s' * (len(inputs) > 1)} could not be read")
    return skipped


def _predict_all(
    loaded: "LoadedModel",
    inputs: "list[Input]",
    sinks: "Sequence[Screen | RowCollector | AnswerFile]",
    skip_unreadable: bool,
) -> int:
    """Pass each answer to all sinks; return the number of inputs that could not be read."""
    skipped, shows_bar = 0, len(inputs) > loaded.predictor.batch_size
    with progress(len(inputs), "predicting") as move:
        for number, (item, answer) in enumerate(answers_of(loaded, inputs), 1):
            if isinstance(answer, DataError):
                if not skip_unreadable:
                    raise answer
                skipped += 1
                end_bar()
                note(_why_skipped(item.name, answer))
                continue
            for sink in sinks:
                sink.add(answer)
            if shows_bar:
                move(number)
    return skipped


def _why_skipped(name: str, error: DataError) -> str:
    shown = name if len(name) < 80 else f"{name[:80]}..."
    return f"skipped: {error}" if name in str(error) else f"skipped {shown!r}: {error}"


def _stream(settings: PredictSettings, loaded: "LoadedModel", count: int, default: bool) -> bool:
    """Turn on streaming to the console if it is requested, or the default, and possible; tell whether it is on.

    Raises:
        ConfigError: `stream=true`, but there is not exactly one prompt, or the model does not generate text.
    """
    task = loaded.predictor.task
    if settings.stream and not (task.streams and count == 1):
        raise ConfigError("stream=true needs one prompt and a model that generates text")
    streams = task.streams and count == 1 and (default if settings.stream is None else settings.stream)
    if streams:
        loaded.predictor.options["on_text"] = _write_now
    return streams


def _write_now(text: str) -> None:
    sys.stdout.write(printable(text))
    sys.stdout.flush()


def _record(loaded: "LoadedModel", path: Path) -> None:
    """Log the answers as an artifact of the run, named by the current time in UTC."""
    import datetime

    from mlflow import MlflowClient

    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S-%f")
    dated = path.rename(path.with_name(f"{now}.csv"))
    MlflowClient(loaded.uri).log_artifact(str(loaded.run_id), str(dated), "predictions")
    say(f"recorded as predictions/{dated.name} in {loaded.name}")


def predict(
    *args: str, inputs: Any = (), config_dir: str | Path | None = None, skip_unreadable: bool = False, **settings: Any
) -> "pandas.DataFrame":
    """Run a trained model on inputs, from Python.

    Args:
        args: arguments as on the command line after `hfexp predict`.
        inputs: one input or a list: paths, URLs, texts, images (PIL, uint8 arrays, bytes), chat messages.
        config_dir: a directory with your own config options.
        skip_unreadable: skip inputs that can't be read, with a note on the console, instead of raising DataError.
        settings: the same arguments by name, e.g. `run=...`, `sweep=...`, `batch_size=64`, `text=[...]`,
            `generation={"max_new_tokens": 50}`.

    Returns:
        A row per input: `input` and the columns of the task, e.g. `label`, `score`, `probabilities`.

    Raises:
        ConfigError: the model or an input does not exist.
        DataError: an input can't be read, and `skip_unreadable` is false.
    """
    parsed = parse([*args, *as_args(settings)])
    return predict_with(load(parsed, config_dir), parsed, inputs, skip_unreadable, config_dir)


def predict_again(
    loaded: "LoadedModel", args: Sequence[str], inputs: Any, skip_unreadable: bool, settings: Mapping[str, Any]
) -> "pandas.DataFrame":
    """Run `predict` with a model that is already loaded.

    Raises:
        ConfigError: a setting would need another model, device or tracking store than the loaded one.
    """
    parsed, defaults = parse([*args, *as_args(settings)]), PredictSettings()
    for name in ("run", "sweep", "composed", "device", "output_dir", "uri"):
        if getattr(parsed, name) != getattr(defaults, name):
            key = parsed.composed[0].partition("=")[0] if name == "composed" else name
            raise ConfigError(f"{key}=...: {loaded.name} is already loaded; to use another model, call hfexp.predict")
    set_options(loaded, parsed)
    return predict_with(loaded, parsed, inputs, skip_unreadable)


def predict_with(
    loaded: "LoadedModel",
    settings: PredictSettings,
    inputs: Any,
    skip_unreadable: bool,
    config_dir: str | Path | None = None,
) -> "pandas.DataFrame":
    """Return a loaded model's answers to the inputs; write and record them if the settings ask for it."""
    import pandas

    from hfexp.inference.outputs import RowCollector

    all_inputs, collector = read(settings, loaded, _values(inputs), config_dir), RowCollector()
    _stream(settings, loaded, len(all_inputs), default=False)
    _predict_to_sinks(settings, loaded, all_inputs, collector, skip_unreadable)
    columns = None if collector.rows else ["input", *loaded.predictor.task.answer_types]
    return pandas.DataFrame(collector.rows, columns=columns)


def _values(inputs: Any) -> list[Any]:
    """Return the inputs as a list; the messages of one conversation are one input."""
    several = isinstance(inputs, Sequence) and not isinstance(inputs, str | bytes)
    if isinstance(inputs, list) and inputs and all(isinstance(item, Mapping) and "role" in item for item in inputs):
        several = False
    return list(inputs) if several else [inputs]
