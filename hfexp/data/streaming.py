"""Streams as the Trainer reads them: endless batches for training, rows in order for evaluation.

The content of a training batch depends only on the data, the seed and the number of processes. The stream is cut into
lanes (`Stream.num_lanes`), each with its own shuffle buffer; in every round, each lane gives one batch. Data loader
workers share the lanes or, if they outnumber them, the rounds: so the number of workers does not change the batches.
"""

import itertools
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import fsspec.asyn
import torch
from datasets import DatasetDict
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from hfexp.core.config import DatasetConfig, OnBadSample
from hfexp.core.console import note
from hfexp.core.errors import ConfigError, DataError
from hfexp.data import dataset as processing
from hfexp.data.dataset import ProcessedDataset
from hfexp.data.packing import PackedDataset
from hfexp.data.prepare import Preparation
from hfexp.data.sampling import mix
from hfexp.data.streams import Row, Stream, stored_key, with_content
from hfexp.data.threads import map_batch_in_threads
from hfexp.data.transforms import Transforms
from hfexp.tasks.base import Task
from hfexp.tasks.image_memory import row_of_images

if TYPE_CHECKING:
    import transformers

logger = logging.getLogger(__name__)

MAX_WORKERS = 128
"""Most workers that read a training stream; each has its own count of skipped samples."""
Item = tuple[Row, Row | None]
"""A stored row and, if it was decoded to test it, the same row after the deterministic operations."""


class ProcessedStream(IterableDataset):
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
            if self.seed is None:
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

    had = 0
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
        self.lanes = self.rows.num_lanes(self.world_size)
        wanted = min(args.dataloader_num_workers, MAX_WORKERS)
        workers = usable_workers(wanted, self.lanes, not self.skips_bad)
        if workers < wanted:
            note(f"{workers} of {wanted} data loader workers read the training stream, which has {self.lanes} parts")
        self.loader: dict[str, Any] = {"num_workers": workers, "pin_memory": args.dataloader_pin_memory}
        if workers:
            self.loader["prefetch_factor"] = args.dataloader_prefetch_factor
            self.loader["multiprocessing_context"] = args.dataloader_multiprocessing_context

    def __iter__(self) -> Iterator[Any]:
        yield from itertools.repeat({}, self.had)
        epoch, skipped = divmod(self.had, self.batches_per_epoch) if self.batches_per_epoch else (0, self.had)
        for number in itertools.count(epoch):
            yield from self._epoch(number, skipped)
            skipped = max(skipped - (self.batches_per_epoch or 0), 0)

    def _epoch(self, epoch: int, skipped: int) -> Iterator[Any]:
        """Yield the batches of one epoch after the first `skipped`."""
        # These rounds give at most `skipped` batches, so their rows need no processing.
        pieces = _Pieces(self, epoch, skipped // self.lanes)
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
            raise DataError(f"the training stream gives process {self.rank} no batch of {self.batch_size} rows")
        self.batches_per_epoch = count


class _Pieces(IterableDataset):
    """One epoch in pieces: a batch, the rows left at the end of a lane, or nothing for a lane that has ended."""

    def __init__(self, stream: TrainingStream, epoch: int, skipped_rounds: int) -> None:
        self.stream = stream
        self.epoch = epoch
        self.skipped_rounds = skipped_rounds

    def __iter__(self) -> Iterator[tuple[Any, list[Row]]]:
        worker = _worker()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        lanes = self.stream.lanes
        own = range(number % lanes, lanes, min(workers, lanes))
        share, part = max(workers // lanes, 1), number // lanes
        open_lanes = {lane: self._batches(lane) for lane in own}
        for turn in itertools.count():
            pieces = [(lane, next(open_lanes[lane], None) if lane in open_lanes else None) for lane in own]
            open_lanes = {lane: open_lanes[lane] for lane, items in pieces if items}
            if not open_lanes:
                return
            if turn % share == part:
                yield from (self._piece(items, turn) for _, items in pieces)

    def _batches(self, lane: int) -> Iterator[list[Item]]:
        stream = self.stream
        rows = stream.rows.lane(lane, stream.order_seed, self.epoch, stream.buffer, stream.rank, stream.world_size)
        return _batched(stream.items(rows), stream.batch_size)

    def _piece(self, items: list[Item] | None, turn: int) -> tuple[Any, list[Row]]:
        if not items:
            return None, []
        whole = len(items) == self.stream.batch_size
        if whole and turn < self.skipped_rounds:
            return {}, []
        rows = self.stream.inputs(items, self.epoch)
        return (self.stream.collate(rows), []) if whole else (None, rows)


def usable_workers(wanted: int, lanes: int, may_share: bool) -> int:
    """Return the most workers up to `wanted` that divide the lanes or, if `may_share`, are a multiple of them."""
    if wanted > lanes:
        return wanted // lanes * lanes if may_share else lanes
    return max((count for count in range(1, wanted + 1) if lanes % count == 0), default=0)


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
    preparation: Preparation | None = None,
) -> dict[str, Any]:
    """Process the splits as `hfexp.data.dataset.process` does, streamed ones too; nothing is cached for these."""
    streamed = {split: rows for split, rows in dataset.items() if isinstance(rows, Stream)}
    kept = DatasetDict({split: rows for split, rows in dataset.items() if split not in streamed})
    if streamed and task.block_size is not None:
        raise ConfigError("dataset.streaming=true: streamed texts are not cut into blocks; set task.block_size=null")
    kind = ProcessedDataset if task.block_size is None else PackedDataset
    splits: dict[str, Any] = dict(processing.process(kept, task, processor, transforms, seed, preparation, kind))
    skips_bad = config.on_bad_sample is OnBadSample.skip
    for split, rows in processing.process(DatasetDict(streamed), task, processor, transforms, seed).items():
        splits[split] = (
            TrainingStream(rows, skips_bad, seed, config.shuffle_buffer)
            if split == "train"
            else EvaluationStream(rows, skips_bad)
        )
    return {str(split): splits[str(split)] for split in dataset}
