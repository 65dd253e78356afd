"""Evaluation of a trained model: the data to score, its predictions on them, and metrics with intervals."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from hfexp.core.compose import compose, recorded_options
from hfexp.core.config import Config, flatten, to_config
from hfexp.core.console import progress, say
from hfexp.core.errors import ConfigError, one_of
from hfexp.core.provenance import file_name
from hfexp.core.targets import targets_in
from hfexp.data.dataset import WindowedDataset, process
from hfexp.data.sources import name_of
from hfexp.data.splits import drop_bad_samples, load_dataset
from hfexp.inference.load import LoadedModel, recorded_file
from hfexp.inference.predictor import Predictor
from hfexp.tasks.cells import in_order
from hfexp.tasks.metrics import MetricSet


def predict_rows(
    predictor: Predictor, rows: Dataset, batch_size: int, move: Callable[[int], None]
) -> dict[str, np.ndarray]:
    """Return the inputs of the metrics, one entry per row, as the Trainer's evaluation computes them.

    Args:
        move: called after each batch with the number of rows done.
    """
    splits = process(DatasetDict({"test": rows}), predictor.task, predictor.processor, predictor.transforms, 0)
    processed, was_training = splits["test"], predictor.model.training
    total = len(processed)
    predictions, references = _Predictions(total), []
    predictor.model.eval()
    try:
        for start in range(0, total, batch_size):
            stop = min(start + batch_size, total)
            scores, labels = predictor.scores(processed.__getitems__(list(range(start, stop))))  # pyright: ignore
            reduced = predictor.task.loss_per_token or predictor.task.reduces_labels
            predictions.add(scores)
            references.append(np.zeros(len(labels)) if reduced else labels.numpy())
            move(len(rows) * stop // total)
    finally:
        predictor.model.train(was_training)
    found = predictions.all(), np.concatenate(references)
    if isinstance(processed, WindowedDataset):
        found = processed.merged(found[0])
    return dict(predictor.task.metric_inputs(*found))


class _Predictions:
    """The predictions of all rows, in one array while those of each batch are one of the first batch's shape.

    An array for each batch would lie between the memory that the model takes and frees, so that the process grows with
    the number of batches: for tokens of 50 classes by 2 MB a batch.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.array: np.ndarray | None = None
        self.others: list[Any] = []

    def add(self, scores: Any) -> None:
        """Add those of the next batch, an array (B, ...) or a tuple of them."""
        if isinstance(scores, np.ndarray) and self.array is None and not self.others:
            self.array = np.empty((self.total, *scores.shape[1:]), scores.dtype)
        if self.others or self.array is None or scores.shape[1:] != self.array.shape[1:]:
            self.others.append(scores)
        else:
            self.array[self.done : self.done + len(scores)] = scores
            self.done += len(scores)

    def all(self) -> Any:
        """Return those of all rows."""
        first = [] if self.array is None else [self.array[: self.done]]
        return joined([*first, *self.others]) if self.others else first[0]


def joined(batches: Sequence[Any]) -> Any:
    """Join the predictions of batches, each an array (B, ...) or a tuple of them; fill up rows as the Trainer does."""
    if isinstance(batches[0], tuple):
        return tuple(map(joined, zip(*batches, strict=True)))
    width = max(batch.shape[1:] for batch in batches)
    if batches[0].ndim != 2 or all(batch.shape[1:] == width for batch in batches):
        return np.concatenate(batches)
    filled = [np.pad(batch, ((0, 0), (0, width[0] - batch.shape[1])), constant_values=-100) for batch in batches]
    return np.concatenate(filled)


# The data of `hfexp evaluate`: the run's own dataset, split as in training, or another dataset as it is.


ALL = "all"
SHIPPED = {"dataset": ("hfexp.data.sources.",), "metrics": ("hfexp.tasks.metrics.",)}
"""Target prefixes that an untrusted record may instantiate, by section."""


@dataclass(frozen=True)
class EvaluationData:
    """The data and metrics with which a model is scored."""

    config: Config
    """Only its sections `dataset`, `metrics` and `security` are used."""
    name: str
    """Default name of the evaluation, from dataset and split."""
    split: str
    is_own: bool
    """True if this is the dataset of the model's own run."""


def compose_data(
    loaded: LoadedModel, overrides: Sequence[str], split: str | None, config_dir: str | Path | None
) -> EvaluationData:
    """Compose the run's recorded dataset and metrics with the overrides of this command.

    Args:
        overrides: Hydra overrides; `dataset=...` replaces the recorded dataset.
        split: None: the test split of the run's own dataset, or all splits of another one.

    Raises:
        ConfigError: no dataset is given or recorded, the overrides don't fit, or an untrusted record names a target.
    """
    is_own = not any(_key(override) == "dataset" for override in overrides)
    sections = _recorded_sections(loaded, is_own, {_key(override) for override in overrides})
    with recorded_options(sections) as chosen:
        cfg, choices = compose(*loaded.overrides, *chosen, *overrides, config_dir=config_dir)
    config = to_config(cfg)
    if loaded.is_mine:
        config.security.allowed_targets += _recorded_targets(loaded)
    elif not loaded.overrides:
        _require_shipped(config, loaded, {_key(override) for override in overrides}, is_own)
    split = split or ("test" if is_own else ALL)
    option = (loaded.dataset if is_own else None) or choices.get("dataset") or "dataset"
    source = "" if is_own else file_name(Path(name_of(config.dataset.source)).stem)
    parts = [option, split] if source in ("", option) else [option, source, split]
    return EvaluationData(config, "-".join(parts), split, is_own)


def _recorded_sections(loaded: LoadedModel, is_own: bool, replaced: set[str]) -> dict[str, dict[str, Any]]:
    """Read the run's recorded metrics, and its dataset if it is scored on that, from the resolved config.

    Raises:
        ConfigError: the run's own dataset is needed and not recorded.
    """
    if loaded.overrides:
        return {}
    recorded = recorded_file(loaded, "config.yaml")
    nodes = {name: recorded.get(name) for name in ("dataset", "metrics")} if isinstance(recorded, dict) else {}
    sections = {name: content for name, content in nodes.items() if isinstance(content, dict)}
    if is_own and "dataset" not in sections:
        raise ConfigError(f"{loaded.name} has no recorded dataset; give dataset=...")
    kept = {"dataset"} if is_own else set()
    kept |= {"metrics"} - replaced
    return {name: content for name, content in sections.items() if name in kept}


def _recorded_targets(loaded: LoadedModel) -> list[str]:
    """Read `security.allowed_targets` of the user's own run."""
    recorded = recorded_file(loaded, "config.yaml")
    security = recorded.get("security") if isinstance(recorded, dict) else None
    allowed = security.get("allowed_targets") if isinstance(security, dict) else None
    return [str(target) for target in allowed] if isinstance(allowed, list) else []


def _require_shipped(config: Config, loaded: LoadedModel, keys: set[str], is_own: bool) -> None:
    """Check that a record which is not known to be the user's instantiates only targets that hfexp ships.

    Args:
        keys: keys of the current overrides; a section that they replace is the user's own and is not checked.

    Raises:
        ConfigError: the record names another target, or a URL for the dataset.
    """
    overridden = {key if is_own else key.partition(".")[0] for key in keys}
    for section, node in (("dataset", config.dataset.source), ("metrics", config.metrics)):
        for target in [] if section in overridden else targets_in(node):
            if not target.startswith(SHIPPED[section]):
                raise ConfigError(
                    f"{loaded.name} is not known to be yours, and its {section} would be built by {target}; if you "
                    f"trust it, set {section}=..."
                )
    for key, value in flatten(config.dataset.source, "dataset.source").items():
        if is_own and "://" in str(value) and key not in keys:
            raise ConfigError(
                f"{loaded.name} is not known to be yours, and its dataset would be fetched from {key}={value}; if you "
                f"trust it, set {key}=..."
            )


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def load_splits(data: EvaluationData, loaded: LoadedModel, keep: Sequence[str] | None) -> dict[str, Dataset]:
    """Load the splits that are named, with labels numbered by the model's classes.

    Args:
        keep: further columns of the source to load; None: all.

    Raises:
        ConfigError: there is no such split, it has classes that the model does not know, or the dataset is streamed.
    """
    config, split, task = data.config, data.split, loaded.predictor.task
    if task.label_column is not None and loaded.predictor.id2label:
        config.dataset.labels = class_names(loaded.predictor.id2label, loaded.name)
    if config.dataset.streaming:
        raise ConfigError("dataset.streaming=true: streams can't be scored; give a split that fits on disk")
    further = None if keep is None else tuple(name for name in keep if name not in task.all_columns)
    needed = None if data.is_own else () if split == ALL else (split,)
    splits = load_dataset(config.dataset, task, config.security.allowed_targets, further, needed)
    dataset, dropped = drop_bad_samples(splits, config.dataset, task)
    if split != ALL and split not in dataset:
        raise ConfigError(f"split={split}: the dataset has no such split; it has {one_of([*dataset, ALL])}")
    skipped = sum(count for name, count in dropped.items() if split in (ALL, name))
    if skipped:
        say(f"  {skipped} unreadable rows skipped")
    return {str(name): rows for name, rows in dataset.items() if split in (ALL, name)}


def class_names(id2label: Mapping[int, str], model: str) -> list[str]:
    """Return the class names in order of their ids; a checkpoint's file may list them as 0, 1, 10, 11, 2, ...

    Raises:
        ConfigError: an id is missing, or two classes share a name, so that a dataset's labels would be ambiguous.
    """
    names = [id2label[number] for number in sorted(id2label)]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise ConfigError(
            f"{model} has several classes of the same name ({one_of(duplicates)}), so labels are ambiguous"
        )
    if sorted(id2label) != list(range(len(names))):
        raise ConfigError(f"{model}: class ids must be 0, 1, 2, ..., but are {one_of(id2label)}")
    return names


# Metrics of a model on all rows and on slices of them, with bootstrap confidence intervals.


CONFIDENCE = 0.95
MOST_SLICES = 50


AT_ONCE = 2**20
"""Rows of resamples that are scored at once: their counts take 8 MiB."""


MetricInputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Score:
    """One metric with its confidence interval."""

    value: float
    low: float
    high: float
    """Ends of the 95 % interval; NaN if fewer than two, or than half, of the resamples gave a finite value."""


@dataclass(frozen=True)
class SliceScores:
    """All metrics on one slice of the rows."""

    name: str
    """`all`, or `column=value`."""
    rows: int
    scores: dict[str, Score]


def score_slices(
    metric_inputs: MetricInputs, metrics: MetricSet, columns: Mapping[str, Sequence[Any]], resamples: int, seed: int
) -> list[SliceScores]:
    """Score all rows, then the rows of each value of each column, in the order of the values.

    Args:
        metric_inputs: inputs of the metrics, one entry per row.
        columns: the columns that define the slices, one value per row.

    Raises:
        ConfigError: a column has more than `MOST_SLICES` values.
    """
    size = len(next(iter(metric_inputs.values())))
    parts: list[tuple[str, np.ndarray]] = [(ALL, np.arange(size))]
    for name, values in columns.items():
        texts = in_order({value for value in values if isinstance(value, str)})
        others = sorted(set(values) - set(texts), key=lambda value: (value is None, str(type(value)), value))
        known = [*texts, *others]
        if len(known) > MOST_SLICES:
            raise ConfigError(f"by={name}: {len(known)} different values; the limit is {MOST_SLICES}")
        for value in known:
            parts.append((f"{name}={value}", np.array([i for i, other in enumerate(values) if other == value])))
    scores = []
    with progress(len(parts), "resampling") as move:
        for name, rows in parts:
            scores.append(SliceScores(name, len(rows), bootstrap(metric_inputs, rows, metrics, resamples, seed)))
            move(len(scores))
    return scores


def bootstrap(
    metric_inputs: MetricInputs, rows: np.ndarray, metrics: MetricSet, resamples: int, seed: int
) -> dict[str, Score]:
    """Compute metrics on some rows, with percentile intervals from the bootstrap.

    Each resample draws as many rows as there are, with replacement (B. Efron, "Bootstrap Methods: Another Look at the
    Jackknife", Annals of Statistics 7, 1979); the interval is that of the percentiles (B. Efron and R. Tibshirani, "An
    Introduction to the Bootstrap", 1993, chapter 13).
    """
    generator, size = np.random.default_rng(seed), len(rows)
    arrays = {name: array[rows] for name, array in metric_inputs.items()}
    values = metrics.scalars(arrays)
    resampled: dict[str, list[np.ndarray]] = {name: [] for name in values}
    at_once = max(1, AT_ONCE // size)
    for first in range(0, resamples, at_once):
        number = min(at_once, resamples - first)
        drawn = generator.integers(0, size, (number, size))
        drawn += size * np.arange(number)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=number * size).reshape(number, size)
        counts = np.asfortranarray(counts, dtype=np.float64)
        for name, column in metrics.resample(arrays, counts).items():
            resampled[name].append(column)
    return {name: Score(value, *_interval(resampled[name])) for name, value in values.items()}


def _interval(columns: list[np.ndarray]) -> tuple[float, float]:
    values = np.concatenate(columns) if columns else np.array([])
    known = values[np.isfinite(values)]
    if len(known) < max(2, len(values) // 2):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def as_dicts(slices: Sequence[SliceScores]) -> list[dict[str, Any]]:
    """Return plain values, one row per slice and metric."""
    return [
        {"slice": part.name, "rows": part.rows, "metric": name, "value": score.value, "low": score.low,
         "high": score.high}
        for part in slices
        for name, score in part.scores.items()
    ]  # fmt: skip


def show_scores(slices: Sequence[SliceScores], metric: str) -> None:
    """Print all metrics on all rows, and one metric on each slice."""
    width = max(map(len, slices[0].scores))
    for name, score in slices[0].scores.items():
        say(f"  {name:{width}}  {_with_interval(score)}")
    metric = metric if metric in slices[0].scores else next(iter(slices[0].scores))
    if len(slices) > 1:
        say(f"{metric} by slice")
        width = max(len(part.name) for part in slices)
        for part in slices[1:]:
            say(f"  {part.name:{width}}  {_with_interval(part.scores[metric])}  {part.rows:,} rows")


def _with_interval(score: Score) -> str:
    if math.isnan(score.low):
        return f"{score.value:.4f}"
    return f"{score.value:.4f}  ({score.low:.4f} to {score.high:.4f})"
