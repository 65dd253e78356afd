"""Datasets whose rows are model inputs, one by one or packed into blocks, and the collator for their batches."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from torch.utils.data import Dataset as TorchDataset

from hfexp.core.errors import LEAVE_OUT, ConfigError, in_row
from hfexp.data.prepare import Prepared, PreparedCache, prepare_for_now
from hfexp.data.row_arrays import Row
from hfexp.data.sampling import mix, preserved_rng, seed_cpu, uniforms
from hfexp.data.sources import source_row
from hfexp.data.threads import map_batch_in_threads, rows_of
from hfexp.data.transforms import Steps, Transforms, apply
from hfexp.data.windows import cut
from hfexp.tasks.base import TAGS, WINDOWS, Task
from hfexp.tasks.images import row_of_images

EVALUATION_SEED = 0
"""Seed of what a task draws for the rows of evaluated splits: equal in all runs, whose metrics are compared."""


class ProcessedDataset(TorchDataset):
    """Rows of a `datasets.Dataset` as model inputs, processed when they are read, a batch at a time.

    It is indexed by keys `epoch * len + index` (see `hfexp.data.sampling`). A random transform draws from a generator
    seeded by (seed, key), so a row looks the same in an epoch whichever process reads it, and whenever. What the task
    itself draws (`Task.vary`) follows from (seed, key) too, or on an evaluated split from the row's index alone.
    """

    def __init__(
        self,
        rows: Dataset,
        task: Task,
        processor: Any,
        steps: Steps,
        seed: int | None = None,
        prepared: Prepared | None = None,
        task_seed: int | None = None,
    ) -> None:
        """Set up the rows.

        Args:
            seed: of the random transform; None for a split without one.
            prepared: the rows after all or some of `steps.fixed`.
            task_seed: of what the task draws; None for an evaluated split, whose rows are the same in every epoch.
        """
        self.rows = rows
        self.task = task
        self.processor = processor
        self.steps = steps
        self.seed, self.task_seed = seed, task_seed
        self.prepared = prepared
        self.decode, done = task.decoder(steps.fixed)
        self.rest = steps.fixed[done:] if prepared is None else prepared.rest
        self.reads_columns = (
            task.takes_columns and not task.draws and prepared is not None and prepared.is_whole and not steps.random
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int) -> Row:
        batch = self.__getitems__([key])
        if isinstance(batch, list):
            return batch[0]
        first = {name: values[0] for name, values in batch.items()}
        return {name: v.item() if torch.is_tensor(v) and not v.ndim else v for name, v in first.items()}

    def __getitems__(self, keys: list[int]) -> list[Row] | Row:
        """Return a batch for `torch.utils.data`: a list of rows, or a dict of fields stacked to (B, ...)."""
        count = len(self.rows)
        indices = [key % count for key in keys]
        if self.reads_columns:
            assert self.prepared is not None
            inputs: Any = self.task.preprocess(self._batched(self.prepared.columns(indices), keys), self.processor)
            return inputs if self.seed is None else {**inputs, "sample_key": keys}
        return self.finished(self.fixed_rows(indices), indices if self.task_seed is None else keys)

    def fixed_rows(self, indices: list[int]) -> list[Row]:
        """Return rows after the deterministic operations."""
        if self.prepared is not None:
            rows = self.prepared.rows(indices)
            return map_batch_in_threads(self.fixed, rows) if self.rest else rows
        stored = list(zip(indices, rows_of(self.rows[indices]), strict=True))
        return map_batch_in_threads(self._fixed_in_row, stored)

    def __iter__(self) -> Iterator[Row]:
        """Yield each row once; every key is valid, so that Python's default iteration would never end."""
        return (self[index] for index in range(len(self)))

    def lengths(self, name: str) -> list[int]:
        """Return the length of an input per row, e.g. `input_ids` in tokens; rows not in the cache are processed."""
        if self.prepared is not None and name in self.prepared.reader.fields:
            return self.prepared.reader.lengths(name)
        return [len(row[name]) for row in self]

    @row_of_images
    def _fixed_in_row(self, numbered: tuple[int, Row]) -> Row:
        """Decode a stored row and apply the deterministic operations."""
        index, row = numbered
        with in_row(lambda: source_row(self.rows, index), LEAVE_OUT):
            return self.fixed(self.decode(row))

    def fixed(self, row: Row) -> Row:
        """Apply the remaining deterministic operations to a row that was decoded or comes from the cache."""
        for operation in self.rest:
            row = apply(operation, row)
        return row

    def finished(self, rows: list[Row], keys: list[int]) -> list[Row]:
        """Turn rows into model inputs after the deterministic operations; random numbers follow from the keys."""
        if self.seed is not None:
            rows = self._random(rows, keys, self.seed)
        if self.task.draws:
            rows = [self._varied(row, key) for row, key in zip(rows, keys, strict=True)]
        inputs = [self.task.preprocess(row, self.processor) for row in rows]
        if self.seed is None:
            return inputs
        return [{**row, "sample_key": key} for row, key in zip(inputs, keys, strict=True)]

    def _varied(self, row: Row, key: int) -> Row:
        """Let the task change a row by numbers that follow from its key."""
        seed = EVALUATION_SEED if self.task_seed is None else self.task_seed
        return self.task.vary(row, self.processor, lambda count: uniforms(seed, [key], count)[0])

    def _random(self, rows: list[Row], keys: list[int], seed: int) -> list[Row]:
        """Apply the random operations to each row, with a generator seeded by its key."""
        if self.steps.random:
            result = []
            with preserved_rng():
                for row, key in zip(rows, keys, strict=True):
                    seed_cpu(mix(seed, key))
                    for operation in self.steps.random:
                        row = apply(operation, row)
                    result.append(row)
            rows = result
        if not self.steps.batched:
            return rows
        images = self._batched({"image": torch.stack([row["image"] for row in rows])}, keys)["image"]
        return [{**row, "image": image} for row, image in zip(rows, images, strict=True)]

    def _batched(self, columns: Row, keys: list[int]) -> Row:
        if self.seed is None:
            return columns
        for operation in self.steps.batched:
            draws = torch.from_numpy(uniforms(self.seed, keys, operation.num_draws))
            columns = {**columns, "image": operation(columns["image"], draws)}
        return columns


class Collator:
    """The task's collator, plus batch operations on training batches, seeded by (seed, first key, batch size).

    With `finishes=False`, the last part (normalisation) is left to `finish`, to be called where the model computes.
    """

    def __init__(
        self,
        task: Task,
        processor: Any,
        batch_augment: Callable[..., Any] | None,
        seed: int,
        finishes: bool = True,
    ) -> None:
        self.collate = task.collator(processor)
        self.finish: Callable[[dict[str, Any]], dict[str, Any]] = getattr(self.collate, "finish", lambda batch: batch)
        self.batch_augment = batch_augment
        self.seed = seed
        self.finishes = finishes

    def __call__(self, rows: list[Row] | Row) -> dict[str, torch.Tensor]:
        if isinstance(rows, dict):
            keys = rows.pop("sample_key", [None])
        else:
            keys = [row.pop("sample_key", None) for row in rows]
        batch = self.collate(rows)
        if self.batch_augment is not None and keys[0] is not None:
            batch = self.finish(batch)
            with preserved_rng():
                seed_cpu(mix(self.seed, keys[0], len(keys)))
                images, labels = self.batch_augment(batch["pixel_values"], batch["labels"])
            return {**batch, "pixel_values": images, "labels": labels}
        return self.finish(batch) if self.finishes else batch


def process(
    dataset: DatasetDict,
    task: Task,
    processor: Any,
    transforms: Transforms,
    seed: int,
    prepared_cache: PreparedCache | None = None,
) -> dict[str, ProcessedDataset]:
    """Turn each split into a dataset of model inputs; only the training split is augmented.

    Args:
        prepared_cache: the cache of what is the same in every epoch; None: rows are processed when they are read.
    """
    kind = WindowedDataset if task.windowed else ProcessedDataset if task.block_size is None else PackedDataset
    splits = {}
    for split, rows in dataset.items():
        steps = transforms.train if split == "train" else transforms.evaluation
        draws = split == "train" and transforms.is_random
        prepared = prepared_cache.get(str(split), rows, steps.fixed) if prepared_cache else None
        task_seed = seed if split == "train" else None
        splits[str(split)] = kind(rows, task, processor, steps, seed if draws else None, prepared, task_seed)
    return splits


# Rows of a split, kept or streamed. Only kept rows have a length.


def num_rows(rows: Any) -> int | None:
    """Return the number of rows; None for a stream."""
    return len(rows) if hasattr(rows, "__len__") else None


def show_rows(rows: Any) -> str:
    """Format the number of rows for display."""
    known = num_rows(rows)
    return "streamed" if known is None else f"{known:,}"


def window_note(splits: Mapping[str, Any]) -> str:
    """Return how many windows each split has if some rows are longer than the model takes; empty if none is."""
    cut_splits = {split: rows for split, rows in splits.items() if isinstance(rows, WindowedDataset)}
    if not any(len(rows) > len(rows.rows) for rows in cut_splits.values()):
        return ""
    counts = (f"{len(rows.rows):,} {split} rows are {len(rows):,} windows" for split, rows in cut_splits.items())
    return f"rows that are longer than the model takes are cut into windows: {', '.join(counts)}"


def first_rows(rows: Any, count: int) -> list[Row]:
    """Return at most `count` rows from the beginning."""
    known = num_rows(rows)
    return [rows[index] for index in range(min(count, len(rows.first) if known is None else known))]


# Texts that are concatenated and cut into rows of equal length, so that no position of a batch is padding.


TOKENS = "input_ids"


class PackedDataset(ProcessedDataset):
    """A split's texts as blocks of `task.block_size` tokens, in their order; an incomplete last block is dropped.

    Fields that have a value for each token are cut likewise. Prepared tokens are read from disk, a block at a time.
    Otherwise, all texts are tokenized once and stay in memory (4 bytes per value).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.block = int(self.task.block_size or 0)
        self.reads_columns = False
        if self.seed is not None:
            raise ConfigError("transform.augment can't be used for texts that are cut into blocks (task.block_size)")

    @functools.cached_property
    def _in_memory(self) -> dict[str, np.ndarray]:
        """Return the tokens of all texts, for a split that is not prepared."""
        return self._of_texts(len(self.rows))

    def _of_texts(self, count: int) -> dict[str, np.ndarray]:
        """Return the tokens of the first `count` texts, and the other fields with a value for each token."""
        size = 256
        parts: dict[str, list[np.ndarray]] = {TOKENS: []}
        for start in range(0, count, size):
            for row in self.fixed_rows(list(range(start, min(start + size, count)))):
                for name, values in row.items():
                    if isinstance(values, list) and len(values) == len(row[TOKENS]):
                        parts.setdefault(name, []).append(np.asarray(values, dtype=np.int32))
        whole = {name: np.concatenate(values) if values else np.zeros(0, np.int32) for name, values in parts.items()}
        return {name: values for name, values in whole.items() if len(values) == len(whole[TOKENS])}

    @functools.cached_property
    def _length(self) -> int:
        total = len(self._in_memory[TOKENS]) if self.prepared is None else self.prepared.reader.total(TOKENS)
        if total < self.block:
            raise ConfigError(
                f"the texts of a split have {total} tokens, fewer than one block (task.block_size={self.block})"
            )
        return total // self.block

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, key: int) -> Row:
        if key == 0 and self.prepared is None and "_in_memory" not in self.__dict__:
            return self._first()
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[int]) -> list[Row]:
        """Return blocks as rows of model inputs."""
        indices = [key % len(self) for key in keys]
        blocks = [self._block(index * self.block) for index in indices]
        return self.finished(blocks, indices if self.task_seed is None else keys)

    def _block(self, start: int) -> Row:
        """Return the tokens of a block from a place on, and the other fields with a value for each of them."""
        if self.prepared is None:
            return {name: values[start : start + self.block].tolist() for name, values in self._in_memory.items()}
        reader = self.prepared.reader
        names = [name for name in reader.fields if reader.total(name) == reader.total(TOKENS)]
        return {name: reader.stretch(name, start, self.block).tolist() for name in names}

    def _first(self) -> Row:
        """Return the first block without tokenizing all texts for it."""
        count, fields = 1, self._of_texts(1)
        while len(fields[TOKENS]) < self.block and count < len(self.rows):
            count = min(2 * count, len(self.rows))
            fields = self._of_texts(count)
        if len(fields[TOKENS]) < self.block:
            return self[1]  # raises the ConfigError of a split that is shorter than one block
        return self.finished([{name: values[: self.block].tolist() for name, values in fields.items()}], [0])[0]

    def lengths(self, name: str) -> list[int]:
        """Return the same length, the block size, for every row."""
        return [self.block] * len(self)


# Texts that are too long for the model, whose rows are cut into windows.


ROWS_AT_ONCE = 256


class WindowedDataset(ProcessedDataset):
    """The windows of a split's rows, each an input of the model, in the order of the rows.

    Prepared rows are read from disk. Otherwise all rows are tokenized once and kept in temporary files.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reads_columns = False

    def _prepare(self) -> Prepared:
        """Return the prepared rows; prepare them now if they are not."""
        if self.prepared is None:
            self.prepared, self.rest = prepare_for_now(self.rows, self.task, self.steps.fixed), []
        return self.prepared

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        """Return the number of the first window of each row, and behind them that of all windows: (N + 1,)."""
        return np.cumsum([0, *(self._prepare().reader.lengths(WINDOWS) if len(self.rows) else [])])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, key: int) -> Row:
        if key == 0 and self.prepared is None:
            return self.finished(cut(self.fixed_rows([0])[0])[:1], [0])[0]  # without tokenizing all rows for it
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[int]) -> list[Row]:
        """Return windows as rows of model inputs."""
        numbers = np.array(keys) % len(self)
        indices = np.searchsorted(self._starts, numbers, side="right") - 1
        rows = self.fixed_rows(indices.tolist())
        places = (numbers - self._starts[indices]).tolist()
        windows = [cut(row)[place] for row, place in zip(rows, places, strict=True)]
        return self.finished(windows, numbers.tolist() if self.task_seed is None else keys)

    def lengths(self, name: str) -> list[int]:
        """Return the number of tokens of each window."""
        reader = self._prepare().reader
        return reader.stretch(WINDOWS, 0, reader.total(WINDOWS)).tolist()

    def merged(self, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Merge the outputs of all windows into those of the rows, and return them with the rows' labels.

        Args:
            outputs: what `Task.preprocess_logits` returns, (W, ...).

        Returns:
            Arrays (N,) of objects: what `Task.merge` returns, and the stored labels, or None where these are tags,
            one for each word.
        """
        count, keeps = len(self.rows), self.task.label_kind != TAGS
        merged, labels = np.empty(count, object), np.empty(count, object)
        for start in range(0, count, ROWS_AT_ONCE):
            indices = list(range(start, min(start + ROWS_AT_ONCE, count)))
            for index, row, inputs in zip(indices, rows_of(self.rows[indices]), self.fixed_rows(indices), strict=True):
                of_row = outputs[self._starts[index] : self._starts[index + 1]]
                merged[index] = self.task.merge(row, inputs, of_row, {})
                labels[index] = row[self.task.label_column or ""] if keeps else None
        return merged, labels
