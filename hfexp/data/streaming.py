"""Streams as the Trainer reads them: endless batches for training, rows in order for evaluation.

The content of a training batch depends only on the data, the seed and the number of processes. The stream is cut into
shards (`Stream.num_shards`), each with its own shuffle buffer; in every round, each shard gives one batch. Data loader
workers share the shards or, if they outnumber them, the rounds: so the number of workers does not change the batches.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets.config
import fsspec.asyn
import torch
from datasets import ClassLabel, DatasetDict, Features, IterableDataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import IterableDataset as TorchIterableDataset

from hfexp.core.config import Config, DatasetConfig, OnBadSample
from hfexp.core.console import note
from hfexp.core.errors import ConfigError, DataError, did_you_mean, one_of
from hfexp.core.files import open_regular
from hfexp.data import dataset as processing
from hfexp.data.dataset import ProcessedDataset, num_rows
from hfexp.data.prepare import PreparedCache
from hfexp.data.row_arrays import Row
from hfexp.data.sampling import mix
from hfexp.data.threads import map_batch_in_threads
from hfexp.data.transforms import Transforms
from hfexp.tasks.base import Task
from hfexp.tasks.images import row_of_images

if TYPE_CHECKING:
    import transformers

logger = logging.getLogger(__name__)

# `datasets` sleeps for 5 s each time it has read Parquet files side by side, so that Arrow's threads end before the
# interpreter does (apache/arrow#45214). A run goes on for long after a stream has ended; its epochs should not wait.
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0


# Splits that are too large to keep: their rows can be read only in order, and are not decoded here.
#
# Rows of a `Stream` are as the source stores them (images as bytes or paths), with standard column names and class
# ids.


NUM_FIRST = 16
"""Rows from the beginning of a stream that are kept for checks and display."""
READ_AT_ONCE = 64
"""Rows per read of a stream."""
SHARD_COUNTS = (24, 12, 8, 6, 4, 3, 2, 1)
"""Numbers of shards (parts read side by side) that a stream may have: many numbers of workers divide them."""


def num_shards(rows: IterableDataset, most: int, world_size: int = 1) -> int:
    """Return the number of shards that the files can be cut into, with at least one file per shard and process."""
    available = max(rows.num_shards // world_size, 1)
    return next(count for count in SHARD_COUNTS if count <= min(available, most))


def cut(rows: IterableDataset, shards: int, shard: int) -> IterableDataset:
    """Return one shard: every `shards`-th file."""
    return rows if shards == 1 else rows.shard(shards, shard, contiguous=False)


def shuffled(rows: IterableDataset, seed: int, buffer: int) -> IterableDataset:
    """Shuffle the order of the files, and their rows within a buffer.

    Only one file at a time fills the buffer, as `datasets` would read several in threads. Reading several shards mixes
    the rows of different files.
    """
    return rows.shuffle(seed=seed, buffer_size=max(buffer, 1), max_buffer_input_shards=1)


@dataclass(frozen=True)
class Labels:
    """The label column of a split, and the class ids that its values stand for."""

    column: str
    names: list[str]
    """Class names in the order of their ids."""
    source_names: list[str] | None
    """Class names by the source's own ids; None: the column holds the names themselves."""

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    def apply(self, row: Row, split: str) -> Row:
        """Return the row with its class id in place of the label.

        Raises:
            DataError: the label is missing, or is none of the names.
        """
        value = row[self.column]
        known = self.source_names is None or (value is not None and 0 <= value < len(self.source_names))
        name = self.source_names[value] if self.source_names is not None and known else str(value)  # pyright: ignore
        if value is None or not known or name not in self.ids:
            hint = "" if value is None else did_you_mean(name, self.names)
            shown = "a row without label" if value is None else f"unknown label {name!r}"
            raise DataError(f"the {split} split has {shown}.{hint} Labels are: {one_of(self.names)}")
        return {**row, self.column: self.ids[name]}


class Stream:
    """The rows of one split. A stream has no length, but its first rows can be indexed."""

    def __init__(self, rows: IterableDataset, split: str, labels: Labels | None, source: Any, max_shards: int) -> None:
        """Read the first rows; `source` identifies the data in the digest, `max_shards` is 1 for a limited stream."""
        self.rows = rows
        self.split = split
        self.labels = labels
        self.max_shards = max_shards
        self.info = rows.info
        self.files = _files(rows)
        self.features = Features({**(rows.features or {})})
        if labels is not None:
            self.features[labels.column] = ClassLabel(names=labels.names)
        facts = [str(self.features), source, _named_sizes(self.files)]
        self.digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]
        self.first = list(islice(self, NUM_FIRST))
        if not self.first:
            raise ConfigError(f"the {split} split has no rows left to read")

    @property
    def column_names(self) -> list[str]:
        return list(self.features)

    def __getitem__(self, index: int) -> Row:
        """Return one of the first rows."""
        return self.first[index]

    def __iter__(self) -> Iterator[Row]:
        """Yield all rows in order."""
        return self._read(self.rows)

    def num_shards(self, world_size: int = 1) -> int:
        """Return how many shards are read side by side; this depends only on the data and the number of processes."""
        return num_shards(self.rows, self.max_shards, world_size)

    def shard(
        self, shard: int, seed: int, epoch: int, buffer: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[Row]:
        """Yield this process's rows of one shard, shuffled by (seed, epoch).

        Args:
            buffer: rows that the shuffle buffers of all shards hold together.
        """
        shards = self.num_shards(world_size)
        rows = shuffled(cut(self.rows, shards, shard), mix(seed, epoch, shard), buffer // shards)
        if world_size > 1:
            strategy = "auto" if self.max_shards > 1 else "examples"
            rows = split_dataset_by_node(rows, rank, world_size, strategy=strategy)  # pyright: ignore
        return self._read(rows)

    def _read(self, rows: IterableDataset) -> Iterator[Row]:
        # `iter` instead of iteration by rows, which would divide the rows among data loader workers itself.
        for columns in rows.iter(READ_AT_ONCE):
            for values in zip(*columns.values(), strict=True):
                row = dict(zip(columns, values, strict=True))
                yield self.labels.apply(row, self.split) if self.labels else row


def with_content(row: Row) -> Row:
    """Return the row with its local files read into memory; remote and missing files stay as they are."""
    read = {}
    for name, value in row.items():
        if _is_file(value) and value["bytes"] is None:
            with contextlib.suppress(OSError, TypeError, ValueError), open_regular(value["path"]) as file:
                read[name] = {**value, "bytes": file.read()}
    return {**row, **read}


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"bytes", "path"}


def stored_key(row: Row) -> int:
    """Hash a stored row to 63 bits; an embedded file counts by its content, another file by its path."""
    state = hashlib.blake2b(digest_size=8)
    for name in sorted(row):
        value = row[name]
        if _is_file(value):
            value = (value["path"] or "") if value["bytes"] is None else value["bytes"]
        data = value if isinstance(value, bytes) else json.dumps(value, default=str, sort_keys=True).encode()
        state.update(f"{name} {len(data)} ".encode() + data)
    return int.from_bytes(state.digest(), "big") >> 1


def _files(rows: IterableDataset) -> list[str]:
    """Return the names or addresses of the files that a stream reads, as far as `datasets` exposes them."""
    files: dict[str, None] = {}

    def strings(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, list | tuple):
            for item in value:
                yield from strings(item)

    waiting: list[Any] = [rows._ex_iterable]
    while waiting:
        node = waiting.pop()
        waiting += [node.ex_iterable] if hasattr(node, "ex_iterable") else list(getattr(node, "ex_iterables", []))
        for value in (getattr(node, "kwargs", None) or {}).values():
            files |= dict.fromkeys(text for text in strings(value) if "/" in text)
    return sorted(files)


def _named_sizes(files: list[str]) -> list[tuple[str, int]]:
    """Return each file's name and size in bytes; remote files have -1, and the Hub's addresses name the commit."""
    sizes = []
    for name in files:
        path = Path(name)
        sizes.append((path.name, path.stat().st_size) if path.is_file() else (name, -1))
    return sizes


MAX_WORKERS = 128
"""Most workers that read a training stream; each has its own count of skipped samples."""
Item = tuple[Row, Row | None]
"""A stored row and, if it was decoded to test it, the same row after the deterministic operations."""


class ProcessedStream(TorchIterableDataset):
    """Rows of a `Stream` as model inputs."""

    reads_columns = False

    def __init__(self, processed: ProcessedDataset, skips_bad: bool) -> None:
        self.processed = processed
        self.rows: Stream = processed.rows  # pyright: ignore
        self.steps, self.seed = processed.steps, processed.seed
        self.skips_bad = skips_bad
        # In shared memory with a slot per worker, as each worker counts in its own process.
        self._skipped = torch.zeros(MAX_WORKERS + 1, dtype=torch.int64).share_memory_()

    @property
    def first(self) -> list[Row]:
        """Return the first rows, not decoded."""
        return self.rows.first

    @property
    def num_skipped(self) -> int:
        """Return the number of times that an unreadable sample was skipped."""
        return int(self._skipped.sum())

    def __getitem__(self, index: int) -> Row:
        """Return one of the first rows as model inputs, as in the first epoch."""
        return self.inputs([(self.first[index], None)], 0)[0]

    def inputs(self, items: list[Item], epoch: int) -> list[Row]:
        """Return rows of an epoch as model inputs; random transforms draw from (seed, epoch, content of the row)."""

        @row_of_images
        def decoded(item: Item) -> tuple[int, Row]:
            row, ready = item
            if self.seed is None and not self.processed.task.draws:
                key = 0
            else:
                row = with_content(row)  # read the file once, both for the key and to decode it
                key = mix(epoch, stored_key(row))
            return key, self.processed.fixed(self.processed.decode(row)) if ready is None else ready

        pairs = map_batch_in_threads(decoded, items)
        return self.processed.finished([row for _, row in pairs], [key for key, _ in pairs])

    def items(self, rows: Iterator[Row]) -> Iterator[Item]:
        """Yield rows undecoded; with `on_bad_sample=skip`, decode them and yield only those where that succeeds."""
        if not self.skips_bad:
            yield from ((row, None) for row in rows)
            return
        worker = get_worker_info()
        for row in rows:
            try:
                yield row, self.processed.fixed(self.processed.decode(row))
            except DataError as error:
                logger.warning("skipped: %s", error)
                self._skipped[worker.id + 1 if worker else 0] += 1


class EvaluationStream(ProcessedStream):
    """All rows in order; every data loader worker reads them all, and processes only its own batches."""

    batch_size = 1

    def __iter__(self) -> Iterator[Row]:
        worker = _worker()
        share, part = (worker.num_workers, worker.id) if worker else (1, 0)
        if self.skips_bad:  # only a worker that decodes all rows knows which make a batch
            if part:
                return
            share = 1
        for number, items in enumerate(_batched(self.items(iter(self.rows)), self.batch_size)):
            if number % share == part:
                yield from self.inputs(items, 0)


class TrainingStream(ProcessedStream):
    """Endless batches of model inputs, epoch after epoch."""

    consumed = 0
    """Batches that a resumed training has already used; the stream yields an empty placeholder for each."""
    batches_per_epoch: int | None = None
    """Known after the first epoch, or from a checkpoint."""

    def __init__(self, processed: ProcessedDataset, skips_bad: bool, seed: int, buffer: int) -> None:
        super().__init__(processed, skips_bad)
        self.order_seed = seed
        self.buffer = buffer

    def configure(self, args: "transformers.TrainingArguments", batch_size: int, collate: Any) -> None:
        """Set how the stream is read: batch size, collator, process, and data loader workers."""
        self.batch_size, self.collate, self.drop_last = batch_size, collate, args.dataloader_drop_last
        self.rank, self.world_size = args.process_index, args.world_size
        self.shards = self.rows.num_shards(self.world_size)
        wanted = min(args.dataloader_num_workers, MAX_WORKERS)
        workers = usable_workers(wanted, self.shards, not self.skips_bad)
        if workers < wanted:
            note(f"using {workers} of {wanted} data loader workers: the training stream has {self.shards} shards")
        self.loader: dict[str, Any] = {"num_workers": workers, "pin_memory": args.dataloader_pin_memory}
        if workers:
            self.loader["prefetch_factor"] = args.dataloader_prefetch_factor
            self.loader["multiprocessing_context"] = args.dataloader_multiprocessing_context

    def __iter__(self) -> Iterator[Any]:
        yield from itertools.repeat({}, self.consumed)
        epoch, skipped = (
            divmod(self.consumed, self.batches_per_epoch) if self.batches_per_epoch else (0, self.consumed)
        )
        for number in itertools.count(epoch):
            yield from self._epoch(number, skipped)
            skipped = max(skipped - (self.batches_per_epoch or 0), 0)

    def _epoch(self, epoch: int, skipped: int) -> Iterator[Any]:
        """Yield the batches of one epoch after the first `skipped`."""
        # These rounds give at most `skipped` batches, so their rows need no processing.
        pieces = _Pieces(self, epoch, skipped // self.shards)
        generator = torch.Generator().manual_seed(mix(self.order_seed, epoch))
        rest: list[Row] = []
        count = 0
        for batch, rows in DataLoader(
            pieces, batch_size=None, collate_fn=as_it_is, generator=generator, **self.loader
        ):
            rest += rows
            if rows and len(rest) >= self.batch_size:
                batch, rest = self.collate(rest[: self.batch_size]), rest[self.batch_size :]
            if batch is not None:
                count += 1
                if count > skipped:
                    yield batch
        if rest and not self.drop_last:
            count += 1
            if count > skipped:
                yield self.collate(rest)
        if not count:
            raise DataError(f"the training stream has no batch of {self.batch_size} rows for process {self.rank}")
        self.batches_per_epoch = count


class _Pieces(TorchIterableDataset):
    """One epoch in pieces: a batch, the rows left at the end of a shard, or nothing for a shard that has ended."""

    def __init__(self, stream: TrainingStream, epoch: int, skipped_rounds: int) -> None:
        self.stream = stream
        self.epoch = epoch
        self.skipped_rounds = skipped_rounds

    def __iter__(self) -> Iterator[tuple[Any, list[Row]]]:
        worker = _worker()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        shards = self.stream.shards
        own = range(number % shards, shards, min(workers, shards))
        share, part = max(workers // shards, 1), number // shards
        open_shards = {shard: self._batches(shard) for shard in own}
        for turn in itertools.count():
            pieces = [(shard, next(open_shards[shard], None) if shard in open_shards else None) for shard in own]
            open_shards = {shard: open_shards[shard] for shard, items in pieces if items}
            if not open_shards:
                return
            if turn % share == part:
                yield from (self._piece(items, turn) for _, items in pieces)

    def _batches(self, shard: int) -> Iterator[list[Item]]:
        stream = self.stream
        rows = stream.rows.shard(shard, stream.order_seed, self.epoch, stream.buffer, stream.rank, stream.world_size)
        return _batched(stream.items(rows), stream.batch_size)

    def _piece(self, items: list[Item] | None, turn: int) -> tuple[Any, list[Row]]:
        if not items:
            return None, []
        whole = len(items) == self.stream.batch_size
        if whole and turn < self.skipped_rounds:
            return {}, []
        rows = self.stream.inputs(items, self.epoch)
        return (self.stream.collate(rows), []) if whole else (None, rows)


def usable_workers(wanted: int, shards: int, may_share: bool) -> int:
    """Return the most workers up to `wanted` that divide the shards or, if `may_share`, are a multiple of them."""
    if wanted > shards:
        return wanted // shards * shards if may_share else shards
    return max((count for count in range(1, wanted + 1) if shards % count == 0), default=0)


def _worker() -> Any:
    info = get_worker_info()
    if info is not None:
        fsspec.asyn.reset_lock()  # as `datasets` does: a lock held at the fork would never be released here
    return info


def _batched(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while batch := list(itertools.islice(items, size)):
        yield batch


def as_it_is(piece: Any) -> Any:
    """Return a piece unchanged, as it needs no collating."""
    return piece


def process(
    dataset: DatasetDict,
    task: Task,
    processor: Any,
    transforms: Transforms,
    seed: int,
    config: DatasetConfig,
    prepared_cache: PreparedCache | None = None,
) -> dict[str, Any]:
    """Process the splits of a streamed dataset; the rows of its kept splits are cached, those of streams are not."""
    if task.block_size is not None:
        raise ConfigError("dataset.streaming=true: streamed texts can't be cut into blocks; set task.block_size=null")
    streamed = {split: rows for split, rows in dataset.items() if num_rows(rows) is None}
    kept = DatasetDict({split: rows for split, rows in dataset.items() if split not in streamed})
    splits: dict[str, Any] = dict(processing.process(kept, task, processor, transforms, seed, prepared_cache))
    skips_bad = config.on_bad_sample is OnBadSample.skip
    for split, rows in processing.process(DatasetDict(streamed), task, processor, transforms, seed).items():
        splits[split] = (
            TrainingStream(rows, skips_bad, seed, config.shuffle_buffer)
            if split == "train"
            else EvaluationStream(rows, skips_bad)
        )
    return {str(split): splits[str(split)] for split in dataset}


def check_streaming(config: Config) -> list[str]:
    """Return the problems of a config that streams: missing settings, and settings that a stream can't have."""
    if not config.dataset.streaming:
        return []
    args, problems = config.trainer.args, []
    if (args.get("max_steps") or 0) < 1:
        problems.append(
            "dataset.streaming=true needs trainer.args.max_steps, as the number of rows in a stream is unknown"
        )
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        if args.get(name) == "epoch":
            other = name.replace("strategy", "steps")
            problems.append(
                f"trainer.args.{name}=epoch: the length of an epoch is unknown for a stream; set "
                f"trainer.args.{name}=steps and trainer.args.{other}=NUMBER"
            )
    if config.dataset.shuffle_buffer < 1:
        problems.append(f"dataset.shuffle_buffer={config.dataset.shuffle_buffer} must be at least 1")
    return problems
