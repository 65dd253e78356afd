"""Loading of a dataset source into a `DatasetDict` with standard columns, splits, labels and limits."""

import dataclasses
import functools
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset, Value, interleave_datasets
from datasets.exceptions import DatasetsError
from datasets.utils.stratify import stratified_shuffle_split_generate_indices

from hfexp.core.config import DatasetConfig, OnBadSample
from hfexp.core.console import note
from hfexp.core.errors import ConfigError, DataError, did_you_mean, in_row, one_of
from hfexp.core.targets import instantiate, locate, parameters
from hfexp.data.columns import SECTION, rename_columns, require_in_all, say_usual
from hfexp.data.dataset import num_rows
from hfexp.data.labels import (
    cast_labels,
    check_row,
    class_column,
    class_ids,
    classes_of,
    first_faults,
    require_distinct,
    way_out,
)
from hfexp.data.row_arrays import Row
from hfexp.data.sampling import mix
from hfexp.data.sources import name_of, source_row
from hfexp.data.streaming import SHARD_COUNTS, Labels, Stream, cut, num_shards, shuffled, stored_key
from hfexp.data.tables import places
from hfexp.tasks.base import CLASSES, OWN, TAGS, TEXT, Task
from hfexp.tasks.column_names import usual_columns
from hfexp.tasks.images import row_of_images

logger = logging.getLogger(__name__)

READ_AHEAD = 256
"""Rows whose encoded images are in memory at once while hfexp tries to decode them."""

LEFT_OUT = "none"
"""Value of `dataset.splits.*` that leaves the split out."""
STANDARD_SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def load_dataset(
    config: DatasetConfig,
    task: Task,
    allowed_targets: list[str] | None = None,
    keep: tuple[str, ...] | None = (),
    needed: tuple[str, ...] | None = None,
) -> DatasetDict:
    """Load the source and bring it into the form that the task reads.

    Args:
        keep: more columns of the source to keep, under their own names; None: all of them.
        needed: splits that the caller needs; no split is cut from another one if the source has all of these. None:
            the splits that training needs.

    Returns:
        Splits `train`, `validation` and, if there is one, `test`; columns have their standard names.

    Raises:
        ConfigError: the source can't be read, or a column, split or label is not what the config says.
    """
    require_distinct(config.labels or [])
    try:
        source = _load_source(config, allowed_targets)
    except DatasetsError as error:
        cause = " ".join(str(error.__cause__ or error).split())
        raise ConfigError(f"dataset.source: {name_of(config.source)} can't be read: {cause}") from error
    dataset = _select_splits(source, config, needed is None)
    usual: dict[str, Any] = {}
    for rows in dataset.values():
        usual |= usual_columns(rows.column_names, config.columns, task.all_columns, task, SECTION)
    say_usual(usual, SECTION)
    renamed = {split: rename_columns(rows, str(split), config.columns, task, keep) for split, rows in dataset.items()}
    require_in_all(renamed, task.optional_columns)
    dataset = DatasetDict(renamed)
    if config.streaming:
        dataset = _make_stream_splits(dataset, config, task)
    else:
        dataset = cast_labels(dataset, task, config.labels)
        if config.on_bad_sample is OnBadSample.error:
            _require_values(dataset, task)
        if needed is None or not dataset.keys() >= set(needed):
            dataset = _make_splits(dataset, config, task)
        dataset = DatasetDict({split: _undecoded(rows) for split, rows in _limit(dataset, config).items()})
        _note_unseen_classes(dataset, task)
    if config.validate_on_train:
        dataset["validation"] = dataset["train"]
    return dataset


def drop_bad_samples(dataset: DatasetDict, config: DatasetConfig, task: Task) -> tuple[DatasetDict, dict[str, int]]:
    """Drop the samples that can't be read, if `on_bad_sample=skip` asks for it.

    Returns:
        The dataset, and the number of dropped samples by split.
    """
    if config.on_bad_sample is not OnBadSample.skip:
        return dataset, {}
    streams = {split: rows for split, rows in dataset.items() if num_rows(rows) is None}
    kept, dropped = {}, {}
    for split, rows in dataset.items():
        if split in streams:  # its bad samples are skipped when it is read
            continue
        good = []
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(rows), READ_AHEAD):
                part = [dict(row) for row in rows.select(range(start, min(start + READ_AHEAD, len(rows))))]
                numbers = range(start, start + len(part))
                learns = split == "train"
                readable = pool.map(functools.partial(_is_readable, rows, task, learns), numbers, part)
                good += [start + index for index, ok in enumerate(readable) if ok]
        dropped[str(split)] = len(rows) - len(good)
        kept[split] = rows if len(good) == len(rows) else rows.select(good)
        if not good:
            raise DataError(f"no sample of the {split} split can be read")
    return DatasetDict({split: (streams | kept)[split] for split in dataset}), dropped


@row_of_images
def _is_readable(rows: Dataset, task: Task, learns: bool, number: int, row: dict[str, Any]) -> bool:
    try:
        with in_row(lambda: source_row(rows, number)):
            check_row(task, learns, row)
    except DataError as error:
        logger.warning("skipped: %s", error)
        return False
    return True


def _load_source(config: DatasetConfig, allowed_targets: list[str] | None) -> DatasetDict:
    """Call the source function; a single `Dataset` or stream becomes the training split."""
    if not config.source.get("_target_"):
        raise ConfigError(
            "dataset.source._target_ is missing: name a callable that returns a Dataset, e.g. datasets.load_dataset"
        )
    target = str(config.source["_target_"])
    kind, plain, extra = Dataset, _unformatted, {}
    if config.streaming:
        takes = parameters(locate(target, "dataset.source._target_", allowed_targets))
        kind, plain, extra = IterableDataset, _undecoded, {"streaming": True} if "streaming" in takes else {}
    source = instantiate(config.source, "dataset.source", allowed_targets, **extra)
    splits: Any = {"train": source} if isinstance(source, kind) else source
    if isinstance(splits, dict) and splits and all(isinstance(rows, kind) for rows in splits.values()):
        return DatasetDict({split: plain(rows) for split, rows in splits.items()})
    if config.streaming:
        raise ConfigError(
            f"dataset.streaming=true: {target} can't stream. Use hfexp.data.sources.image_folder, image_table or hub, "
            "datasets.load_dataset, or a callable of your own that takes `streaming` and returns an IterableDataset"
        )
    raise ConfigError(
        f"dataset.source: {target} returned {type(source).__name__}, expected a datasets.Dataset or DatasetDict "
        "(set dataset.streaming=true for iterable datasets)"
    )


def _unformatted(rows: Dataset) -> Dataset:
    """Return rows as plain values of all columns, whatever their saved format; keep the user's own transform."""
    return rows if rows.format["type"] == "custom" else rows.with_format(None)


def _select_splits(source: DatasetDict, config: DatasetConfig, needs_train: bool) -> DatasetDict:
    """Take the splits that the config names, or those with a standard name, and leave the others out."""
    selected, taken = {}, {}
    chosen = {split: getattr(config.splits, split) for split in STANDARD_SPLITS}
    for split, names in STANDARD_SPLITS.items():
        wanted = chosen[split]
        if wanted == LEFT_OUT and wanted not in source:
            continue
        if wanted is not None and wanted not in source:
            raise ConfigError(
                f"dataset.splits.{split}={wanted}: no such split.{did_you_mean(wanted, map(str, source))} "
                f"The dataset has: {one_of(source)}"
            )
        # A split that another key names is not taken by its standard name too: a test split must not select the model.
        name = wanted or next((n for n in names if n in source and n not in chosen.values()), None)
        if name in taken:
            raise ConfigError(f"dataset.splits.{taken[name]} and dataset.splits.{split} both name {name!r}")
        if name:
            selected[split], taken[name] = source[name], split
    if needs_train and "train" not in selected or not selected:
        raise ConfigError(f"no training split: set dataset.splits.train to one of: {one_of(source)}")
    return DatasetDict(selected)


def _make_splits(dataset: DatasetDict, config: DatasetConfig, task: Task) -> DatasetDict:
    """Cut the test and validation splits that the source lacks from the training split."""
    if config.validate_on_train:
        return dataset
    for split, size in (("test", config.test_size), ("validation", config.validation_size)):
        if split in dataset or not size:
            continue
        if "train" not in dataset:
            raise ConfigError(f"no {split} split, and no training split to cut it from; splits: {one_of(dataset)}")
        rest, cut = _split(dataset["train"], size, f"dataset.{split}_size", config.split_seed, class_column(task))
        dataset["train"], dataset[split] = rest, cut
    if "validation" not in dataset:
        raise ConfigError("no validation split: set dataset.validation_size above 0 or dataset.splits.validation")
    return dataset


def _split(rows: Dataset, size: float, key: str, seed: int, label_column: str | None) -> tuple[Dataset, Dataset]:
    """Cut off `size` (a share, or a number of rows if 1 or more), stratified by label where possible."""
    count = round(size * len(rows)) if size < 1 else int(size)
    if size <= 0 or (size > 1 and size != int(size)) or not 0 < count < len(rows):
        raise ConfigError(
            f"{key}={size}: can't cut this from {len(rows)} rows, as both parts need at least one row. Give a share "
            "between 0 and 1 or a number of rows, or add rows"
        )
    cut_size = math.ceil(size * len(rows)) if size < 1 else count
    if label_column is None:
        kept, cut = _draw(np.arange(len(rows)), cut_size, seed)
    else:
        kept, cut = _draw_by_class(rows, label_column, count, cut_size, seed, key)
    return rows.select(kept), rows.select(cut)


def _draw(numbers: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw `size` of these numbers as `Dataset.train_test_split` does; return the rest first, then the drawn ones."""
    parts = Dataset.from_dict({"number": numbers}).train_test_split(test_size=size, seed=seed)
    return np.asarray(parts["train"]["number"][:]), np.asarray(parts["test"]["number"][:])


def _draw_by_class(
    rows: Dataset, column: str, size: int, cut_size: int, seed: int, key: str
) -> tuple[np.ndarray, np.ndarray]:
    """Draw row numbers with the classes in proportion; classes with a single row stay in the rest, returned first.

    If each class has two rows or more, the parts are those of `rows.train_test_split(test_size=cut_size, seed=seed,
    stratify_by_column=...)`, which reads the labels row by row (`datasets` 5.2), about half a millisecond each.
    """
    labels = class_ids(rows, column)
    classes, counts = np.unique(labels, return_counts=True)
    single = np.isin(labels, classes[counts == 1])
    others, num_classes = np.flatnonzero(~single), int((counts > 1).sum())
    if cut_size >= len(others):
        note(f"{key}: nearly all classes have a single row; drawing rows at random")
        return _draw(np.arange(len(rows)), cut_size, seed)
    if single.any():
        names = map(rows.features[column].int2str, labels[single].tolist())
        note(f"{key}: classes with a single row stay in the training split: {one_of(names, 5)}")
    if size >= num_classes and len(others) - size >= num_classes:
        draw = np.random.default_rng(seed)
        parts = stratified_shuffle_split_generate_indices(labels[others], len(others) - cut_size, cut_size, rng=draw)
        kept, cut = (others[part] for part in next(parts))
    else:
        few = min(size, len(others) - size)
        note(f"{key}: {few} rows are too few to cover {num_classes} classes; drawing rows at random")
        kept, cut = _draw(others, cut_size, seed)
    return np.concatenate([kept, np.flatnonzero(single)]), cut


def _limit(dataset: DatasetDict, config: DatasetConfig) -> DatasetDict:
    """Keep at most `max_*_samples` of each split, drawn by a seeded shuffle (sources are often sorted by class)."""
    limited = {}
    for split, rows in dataset.items():
        limit = _limit_of(config, split)
        if limit is not None and limit < len(rows):
            rows = rows.shuffle(seed=config.split_seed).select(range(limit))
        limited[split] = rows
    return DatasetDict(limited)


def _limit_of(config: DatasetConfig, split: Any) -> int | None:
    limit = getattr(config, f"max_{split}_samples")
    if limit is not None and limit < 1:
        raise ConfigError(f"dataset.max_{split}_samples={limit} must be at least 1")
    return limit


def _require_values(dataset: DatasetDict, task: Task) -> None:
    """Check that every row has the task's inputs and a label of its kind.

    Raises:
        ConfigError: names the rows that lack one.
    """
    for split, rows in dataset.items():
        for name in task.columns:
            missing = [] if name == task.label_column or name in task.defaults else _missing(rows, name)
            if missing:
                raise ConfigError(_bad_rows(rows, split, missing, f"no value in column {name!r}"))
        faults = first_faults(rows, task, split == "train")
        if faults:
            numbers = [source_row(rows, number) for number in faults[0]]
            name = task.label_column if task.label_kind == TEXT else "label"
            lack = "a fault" if task.label_kind == OWN else f"no usable {name}"
            raise ConfigError(_bad_rows(rows, split, numbers, f"{lack}: {faults[1]}"))


def _missing(rows: Dataset, name: str) -> list[int]:
    """Return the source's row numbers without a value, from the null mask alone: images can be large."""
    column = rows.data.column(name)
    if not column.null_count:
        return []
    missing = np.flatnonzero(np.asarray(column.is_null()))
    chosen = missing if rows._indices is None else np.intersect1d(missing, np.asarray(rows._indices.column(0)))
    return chosen.tolist()


def _bad_rows(rows: Dataset, split: Any, numbers: list[int], lack: str) -> str:
    rows_text = places(rows, sorted(numbers))
    verb = "rows have" if len(numbers) > 1 else "row has"
    return (
        f"{len(numbers)} {verb} {lack} ({rows_text}; {split} split). Correct or remove these rows, or skip them with "
        f"dataset.on_bad_sample=skip{way_out(split)}"
    )


def _note_unseen_classes(dataset: DatasetDict, task: Task) -> None:
    """Tell the user which classes other splits have and training lacks: a model can't learn them."""
    if "train" not in dataset or task.label_column is None:
        return
    known = classes_of(dataset["train"], task)
    for split, rows in dataset.items():
        unseen = classes_of(rows, task) - known
        if unseen:
            note(f"the {split} split has classes that the training split lacks: {one_of(unseen, 5)}")


def _undecoded(rows: Any) -> Any:
    """Keep images as bytes or paths: hfexp decodes them itself, so that an error can name the bad file."""
    if rows.column_names is None:  # a stream whose features are not known before its first row is read
        rows = rows._resolve_features()
    for name, feature in (rows.features or {}).items():
        if isinstance(feature, Image):
            rows = rows.cast_column(name, Image(decode=False))
    return rows


# Splits of a streamed source: a stream each, whose rows are read anew in every epoch, and missing ones drawn from it.


def _make_stream_splits(dataset: DatasetDict, config: DatasetConfig, task: Task) -> DatasetDict:
    """Return a stream per split of the source; draw missing splits from the training stream, to be kept in memory.

    Raises:
        ConfigError: labels have no names, or the size of a missing split is not a number of rows.
    """
    sources: dict[str, Any] = {str(split): rows for split, rows in dataset.items()}
    labels = {split: _stream_labels(rows, config, task) for split, rows in sources.items()}
    if labels["train"] is not None:
        names = labels["train"].names
        labels = {split: dataclasses.replace(own, names=names) if own else None for split, own in labels.items()}
    held: dict[str, Any] = {}
    wanted = {} if config.validate_on_train else _wanted_sizes(sources, config)
    if wanted:
        held, keys = _hold_out(sources["train"], wanted, config, labels["train"])
        sources["train"] = sources["train"].filter(_NotHeldOut(keys))
    identity: list[Any] = [config.source, config.split_seed, wanted]
    splits: dict[str, Any] = {}
    for split, rows in sources.items():
        limit = _limit_of(config, split)
        if limit is not None:
            rows = _interleaved(rows, config.split_seed, config.shuffle_buffer).take(limit)
        facts = [*identity, split, limit]
        splits[split] = Stream(rows, split, labels[split], facts, 1 if limit is not None else max(SHARD_COUNTS))
    for split, kept in held.items():
        splits[split] = kept.select(range(min(_limit_of(config, split) or len(kept), len(kept))))
    return DatasetDict(splits)  # pyright: ignore


class _NotHeldOut:
    """Filter for the rows that stay in the training stream."""

    def __init__(self, left_out: frozenset[int]) -> None:
        self.left_out = left_out

    def __call__(self, row: Row) -> bool:
        return stored_key(row) not in self.left_out


def _stream_labels(rows: IterableDataset, config: DatasetConfig, task: Task) -> Labels | None:
    kind = {CLASSES: "several classes", TAGS: "tags", OWN: "labels of this task"}.get(task.label_kind)
    if kind is not None and task.label_column is not None:
        raise ConfigError(f"dataset.streaming=true: rows with {kind} can't be streamed")
    column = class_column(task)
    if column is None:
        return None
    feature = (rows.features or {})[column]
    if isinstance(feature, ClassLabel):
        return Labels(column, config.labels or feature.names, feature.names)
    if not isinstance(feature, Value):
        raise ConfigError(f"column {column!r} holds {feature}, expected class names or integers")
    if not config.labels:
        raise ConfigError(
            f"column {column!r} has no class names, and dataset.streaming=true does not read all rows to find them: "
            "set dataset.labels=[NAME, ...]"
        )
    return Labels(column, config.labels, None)


def _wanted_sizes(sources: dict[str, Any], config: DatasetConfig) -> dict[str, int]:
    """Return the number of rows of each split that must be drawn from the training stream."""
    wanted = {}
    for split, size in (("test", config.test_size), ("validation", config.validation_size)):
        if split in sources or not size:
            continue
        if size < 1 or size != int(size):
            raise ConfigError(
                f"dataset.{split}_size={size}: the source has no {split} split, and the length of a stream is "
                f"unknown; give a number of rows, e.g. dataset.{split}_size=1000"
            )
        wanted[split] = int(size)
    if "validation" not in sources and "validation" not in wanted:
        raise ConfigError(
            "no validation split: set dataset.validation_size to a number of rows, or dataset.splits.validation"
        )
    return wanted


def _interleaved(rows: IterableDataset, seed: int, buffer: int) -> IterableDataset:
    """Return all rows, shuffled and taken from several shards in turn."""
    shards = num_shards(rows, max(SHARD_COUNTS))
    readers = [shuffled(cut(rows, shards, shard), mix(seed, shard), buffer // shards) for shard in range(shards)]
    return interleave_datasets(readers, stopping_strategy="all_exhausted_without_replacement")


def _hold_out(
    train: IterableDataset, wanted: dict[str, int], config: DatasetConfig, labels: Labels | None
) -> tuple[dict[str, Dataset], frozenset[int]]:
    """Draw the missing splits through a seeded shuffle buffer, equal rows once; return them and their rows' keys."""
    drawn: dict[int, Row] = {}
    total = sum(wanted.values())
    for row in _interleaved(train, config.split_seed, config.shuffle_buffer):
        drawn.setdefault(stored_key(row), row)
        if len(drawn) == total:
            break
    if len(drawn) < total:
        sizes = " and ".join(f"dataset.{split}_size={size}" for split, size in wanted.items())
        raise ConfigError(f"{sizes}: the training stream has only {len(drawn)} different rows")
    features = Features({**(train.features or {})})
    if labels is not None:
        features[labels.column] = ClassLabel(names=labels.names)
    left = iter(drawn.values())
    held = {}
    for split, size in wanted.items():
        rows = [labels.apply(row, split) if labels else row for row in islice(left, size)]
        held[split] = Dataset.from_list(rows, features=features)
    return held, frozenset(drawn)
