"""Splits of a streamed source: the counterpart of `hfexp.data` for rows that are read anew in every epoch."""

import dataclasses
from itertools import islice
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset, Value, interleave_datasets

from hfexp.core.config import Config, DatasetConfig
from hfexp.core.errors import ConfigError
from hfexp.core.targets import instantiate, locate, parameters
from hfexp.data.labels import class_column
from hfexp.data.sampling import mix
from hfexp.data.streams import LANES, Labels, Row, Stream, cut, num_lanes, shuffled, stored_key
from hfexp.tasks.base import CLASSES, Task


def check_streaming(config: Config) -> list[str]:
    """Return the problems of a config that streams: missing settings, and settings that a stream can't have."""
    if not config.dataset.streaming:
        return []
    args, problems = config.trainer.args, []
    if (args.get("max_steps") or 0) < 1:
        problems.append(
            "dataset.streaming=true needs trainer.args.max_steps: the number of rows is unknown, and so that of steps"
        )
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        if args.get(name) == "epoch":
            other = name.replace("strategy", "steps")
            problems.append(
                f"trainer.args.{name}=epoch: a stream has no epochs that are known beforehand; set "
                f"trainer.args.{name}=steps and trainer.args.{other}=NUMBER"
            )
    if config.dataset.shuffle_buffer < 1:
        problems.append(f"dataset.shuffle_buffer={config.dataset.shuffle_buffer}; at least 1 is needed")
    return problems


def load_source(config: DatasetConfig, allowed_targets: list[str] | None) -> DatasetDict:
    """Call the source for its streams, with undecoded images; a single stream becomes the training split.

    Raises:
        ConfigError: the source does not stream.
    """
    target = str(config.source["_target_"])
    taken = parameters(locate(target, "dataset.source._target_", allowed_targets))
    extra = {"streaming": True} if "streaming" in taken else {}
    source = instantiate(config.source, "dataset.source", allowed_targets, **extra)
    splits: Any = {"train": source} if isinstance(source, IterableDataset) else source
    if not (isinstance(splits, dict) and splits and all(isinstance(s, IterableDataset) for s in splits.values())):
        raise ConfigError(
            f"dataset.streaming=true: {target} can't stream. hfexp.data.sources.image_folder, image_table and hub can"
            "datasets.load_dataset, and a callable of your own that takes `streaming` and returns an IterableDataset"
        )
    return DatasetDict({name: _undecoded(rows) for name, rows in splits.items()})  # pyright: ignore


def _undecoded(rows: IterableDataset) -> IterableDataset:
    """Keep images as bytes or paths from the start, as later steps would decode and encode them again."""
    rows = rows if rows.column_names is not None else rows._resolve_features()
    for name, feature in (rows.features or {}).items():
        if isinstance(feature, Image):
            rows = rows.cast_column(name, Image(decode=False))
    return rows


def make_splits(dataset: DatasetDict, config: DatasetConfig, task: Task) -> DatasetDict:
    """Return a stream per split of the source; draw missing splits from the training stream, to be kept in memory.

    Raises:
        ConfigError: labels have no names, or the size of a missing split is not a number of rows.
    """
    sources: dict[str, Any] = {str(split): rows for split, rows in dataset.items()}
    labels = {split: _labels(rows, config, task) for split, rows in sources.items()}
    if labels["train"] is not None:
        names = labels["train"].names
        labels = {split: dataclasses.replace(own, names=names) if own else None for split, own in labels.items()}
    held: dict[str, Any] = {}
    wanted = {} if config.validate_on_train else _wanted(sources, config)
    if wanted:
        held, keys = _hold_out(sources["train"], wanted, config, labels["train"])
        sources["train"] = sources["train"].filter(_LeftIn(keys))
    identity: list[Any] = [config.source, config.split_seed, wanted]
    splits: dict[str, Any] = {}
    for split, rows in sources.items():
        limit = _limit(config, split)
        if limit is not None:
            rows = _interleaved(rows, config.split_seed, config.shuffle_buffer).take(limit)
        facts = [*identity, split, limit]
        splits[split] = Stream(rows, split, labels[split], facts, 1 if limit is not None else max(LANES))
    for split, kept in held.items():
        splits[split] = kept.select(range(min(_limit(config, split) or len(kept), len(kept))))
    if config.validate_on_train:
        splits["validation"] = splits["train"]
    return DatasetDict(splits)  # pyright: ignore


class _LeftIn:
    """Filter for the rows that stay in the training stream."""

    def __init__(self, left_out: frozenset[int]) -> None:
        self.left_out = left_out

    def __call__(self, row: Row) -> bool:
        return stored_key(row) not in self.left_out


def _limit(config: DatasetConfig, split: str) -> int | None:
    limit = getattr(config, f"max_{split}_samples")
    if limit is not None and limit < 1:
        raise ConfigError(f"dataset.max_{split}_samples={limit}; at least 1 is needed")
    return limit


def _labels(rows: IterableDataset, config: DatasetConfig, task: Task) -> Labels | None:
    if task.label_kind == CLASSES and task.label_column is not None:
        raise ConfigError("dataset.streaming=true: rows with several classes do not stream")
    column = class_column(task)
    if column is None:
        return None
    feature = (rows.features or {})[column]
    if isinstance(feature, ClassLabel):
        return Labels(column, config.labels or feature.names, feature.names)
    if not isinstance(feature, Value):
        raise ConfigError(f"column {column!r} holds {feature}; class names or integers are needed")
    if not config.labels:
        raise ConfigError(
            f"column {column!r} has no class names, and dataset.streaming=true does not read all rows to find them: "
            "give dataset.labels=[NAME, ...]"
        )
    return Labels(column, config.labels, None)


def _wanted(sources: dict[str, Any], config: DatasetConfig) -> dict[str, int]:
    """Return the number of rows of each split that must be drawn from the training stream."""
    wanted = {}
    for split, size in (("test", config.test_size), ("validation", config.validation_size)):
        if split in sources or not size:
            continue
        if size < 1 or size != int(size):
            raise ConfigError(
                f"dataset.{split}_size={size}: the source has no {split} split, and a share of a stream is unknown; "
                f"give a number of rows, e.g. dataset.{split}_size=1000"
            )
        wanted[split] = int(size)
    if "validation" not in sources and "validation" not in wanted:
        raise ConfigError(
            "no validation split: set dataset.validation_size to a number of rows, or dataset.splits.validation"
        )
    return wanted


def _interleaved(rows: IterableDataset, seed: int, buffer: int) -> IterableDataset:
    """Return all rows, shuffled and taken from several lanes in turn."""
    lanes = num_lanes(rows, max(LANES))
    readers = [shuffled(cut(rows, lanes, lane), mix(seed, lane), buffer // lanes) for lane in range(lanes)]
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
