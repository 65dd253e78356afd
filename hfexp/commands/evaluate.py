"""The command `hfexp evaluate`: score a trained model on a dataset or split and record the scores with its run."""

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfexp.commands.predict import ModelSettings, as_args, configures_model, load_model
from hfexp.core.console import note, progress, say
from hfexp.core.errors import ConfigError, did_you_mean, one_of
from hfexp.core.files import write_whole

if TYPE_CHECKING:
    import pandas

    from hfexp.core.config import Config
    from hfexp.inference.evaluation import SliceScores
    from hfexp.inference.load import LoadedModel


# Command-line arguments of `hfexp evaluate`: the model, the data, and the output of the scores.


HELP = """hfexp evaluate: score a trained model on a dataset or split.

  hfexp evaluate run=RUN                                        its test split again, with intervals
  hfexp evaluate run=RUN split=validation by=label              the scores of each class
  hfexp evaluate run=RUN dataset=imagefolder dataset.source.data_dir=new_photos
  hfexp evaluate sweep=NAME dataset=table dataset.source.data_files=more.csv by=source,language
  hfexp evaluate run=OWNER/NAME dataset=hub dataset.source.path=OWNER/DATA split=test

model          run= sweep= output_dir= uri=    as in `hfexp predict`
data           dataset=... dataset.*           default: the run's own dataset
               split=test                      train, validation, test or all (the default for another dataset)
               by=COLUMN,COLUMN                also score the rows of each value
scores         metrics=... resamples=1000      bootstrap samples for the 95 % intervals; 0: no intervals
               batch_size=32 device= seed=0
output         record=true                     record the scores with the run in MLflow; false: only print them
               name=NAME                       name of the record (default: dataset and split)
               output=FILE.json                also write the scores to a file"""


@dataclass
class EvaluationSettings(ModelSettings):
    """Parsed arguments of `hfexp evaluate`, except the Hydra overrides."""

    by: str | None = None
    resamples: int = 1000
    batch_size: int = 32
    seed: int = 0
    record: bool = True
    name: str | None = None


NAMES = tuple(field.name for field in fields(EvaluationSettings))
COMPOSED = ("task", "model", "transform", "dataset", "metrics", "security")


def parse(args: Sequence[str]) -> tuple[EvaluationSettings, list[str]]:
    """Split the arguments into settings and Hydra overrides.

    Raises:
        ConfigError: a key does not exist, or a value has the wrong type or is out of range.
    """
    settings, composed = EvaluationSettings(), []
    for arg in args:
        key, equals, value = arg.partition("=")
        if equals and key.lstrip("+~").partition(".")[0] in COMPOSED:
            composed.append(arg)
            continue
        if not equals or key not in NAMES:
            known = (*NAMES, *COMPOSED)
            raise ConfigError(f"unknown key {key!r}.{did_you_mean(key, known)} Known keys: {one_of(known)}")
        settings.set(key, f"{settings.by},{value}" if key == "by" and settings.by else value)
    if settings.resamples < 0 or settings.batch_size < 1:
        raise ConfigError("resamples must be at least 0 and batch_size at least 1")
    settings.check()
    return settings, composed


FOLDER = "evaluations"


def main(args: Sequence[str]) -> int:
    """Run `hfexp evaluate` and return the exit code."""
    if not args or {"--help", "-h"} & set(args):
        print(HELP)
        return 0
    from hfexp.core.compose import split_config_dir

    args, config_dir = split_config_dir(list(args))
    settings, composed = parse(args)
    evaluate(settings, composed, config_dir, show=True)
    return 0


def evaluate(
    settings: EvaluationSettings, composed: list[str], config_dir: str | Path | None = None, show: bool = False
) -> "list[SliceScores]":
    """Score a model on all rows and on each slice; record the scores if that is requested and possible.

    Args:
        composed: Hydra overrides.
        show: print the scores.

    Raises:
        ConfigError: the model, the dataset or a column does not exist, or rows have no columns to slice by.
    """
    from datasets import concatenate_datasets

    from hfexp.core.secrets import mask_override, mask_secrets
    from hfexp.data.columns import plain_names
    from hfexp.inference.evaluation import as_dicts, compose_data, load_splits, predict_rows, score_slices, show_scores
    from hfexp.tasks.metrics import build_metrics

    loaded = load_model(settings, [override for override in composed if configures_model(override)], config_dir)
    data = compose_data(loaded, composed, settings.split, config_dir)
    columns = [name for name in (settings.by or "").split(",") if name]
    if columns and loaded.predictor.task.block_size is not None:
        raise ConfigError("by=...: texts that are cut into blocks have no columns; set task.block_size=null")
    standard = {own: name for name, own in plain_names(data.config.dataset.columns).items()}  # those that the rows get
    loaded_as = {name: standard.get(name, name) for name in columns}
    rows = concatenate_datasets(list(load_splits(data, loaded, list(loaded_as.values())).values()))
    metrics = build_metrics(data.config.metrics, data.config.security.allowed_targets)
    values = {name: _values(rows, column, name) for name, column in loaded_as.items()}
    input_rows = rows.select_columns([name for name in loaded.predictor.task.all_columns if name in rows.column_names])
    with progress(len(input_rows), "evaluating") as move:
        metric_inputs = predict_rows(loaded.predictor, input_rows, settings.batch_size, move)
    slices = score_slices(metric_inputs, metrics, values, settings.resamples, settings.seed)
    name = settings.name or data.name
    if show:
        say(f"{loaded.name} on {name}, {slices[0].rows:,} rows (with 95 % bootstrap intervals)")
        show_scores(slices, loaded.predictor.task.metric)
    masked = [mask_override(override) for override in composed]
    content = {"name": name, "model": loaded.name, "split": data.split, "words": masked, "slices": as_dicts(slices)}
    if settings.output:
        write_whole(Path(settings.output), mask_secrets(json.dumps(content, indent=1)) + "\n")
    if settings.record and loaded.run_id is not None:
        _record(data.config, loaded, name, rows, slices, content)
    elif settings.record and loaded.directory is not None:
        note(
            f"not recorded: the run of {loaded.name} is not in MLflow, or its tracking store is unknown (set uri=...)"
        )
    return slices


def _values(rows: Any, column: str, name: str) -> list[Any]:
    """Return the values of a column that defines slices, which the user calls `name`; classes as their names.

    Raises:
        ConfigError: the column holds more than one value per row.
    """
    from datasets import ClassLabel, Value

    from hfexp.data.labels import readable

    feature = rows.features[column]
    if not isinstance(feature, ClassLabel | Value):
        raise ConfigError(f"by={name}: the column holds {type(feature).__name__}, expected one value per row")
    return [readable(feature, value) for value in rows[column]]


def _record(
    config: "Config",
    loaded: "LoadedModel",
    name: str,
    rows: Any,
    slices: "Sequence[SliceScores]",
    content: dict[str, Any],
) -> None:
    """Add the metrics, the dataset as an input, and all scores as a JSON artifact to the model's MLflow run."""
    from mlflow import MlflowClient
    from mlflow.entities import Dataset, DatasetInput, InputTag

    from hfexp.core.provenance import file_name
    from hfexp.core.secrets import mask_secrets
    from hfexp.tracking.lineage import evaluated_input

    client, run_id = MlflowClient(loaded.uri), str(loaded.run_id)
    item = evaluated_input(config, loaded.predictor.task, rows)
    run: Any = client.get_run(run_id)
    known = {entry.dataset.name: entry.dataset.digest for entry in run.inputs.dataset_inputs}
    plain = file_name(name)
    if known.get(plain, item["dataset"]["digest"]) != item["dataset"]["digest"]:  # the run has other rows of this name
        plain = f"{plain}-{item['dataset']['digest'][:8]}"
    item["dataset"]["name"] = plain
    scores = {f"{FOLDER}/{plain}/{metric}": score.value for metric, score in slices[0].scores.items()}
    for metric, value in scores.items():
        if math.isfinite(value) and run.data.metrics.get(metric) != value:  # repeating adds no second point
            client.log_metric(run_id, metric, value)
    tags = [InputTag(key, value) for key, value in item["tags"].items()]
    client.log_inputs(run_id, [DatasetInput(Dataset(**item["dataset"]), tags)])
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"{plain}.json"
        path.write_text(mask_secrets(json.dumps(content, indent=1)) + "\n")
        client.log_artifact(run_id, str(path), FOLDER)
    say(f"recorded as {FOLDER}/{plain} in {loaded.name}")


def evaluate_table(*args: str, config_dir: str | Path | None = None, **settings: Any) -> "pandas.DataFrame":
    """Score a trained model, from Python.

    Args:
        args: arguments as on the command line after `hfexp evaluate`.
        config_dir: a directory with your own config options.
        settings: the same arguments by name, e.g. `run=...`, `split=...`, `by=...`.

    Returns:
        A row for each slice and metric: `slice`, `rows`, `metric`, `value`, `low`, `high`.

    Raises:
        ConfigError: the model, the dataset or a column does not exist.
    """
    import pandas

    from hfexp.inference.evaluation import as_dicts

    return pandas.DataFrame(as_dicts(evaluate(*parse([*args, *as_args(settings)]), config_dir)))
