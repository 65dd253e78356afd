"""Splits that are too large to keep: their rows can be read only in order, and are not decoded here.

Rows of a `Stream` are as the source stores them (images as bytes or paths), with standard column names and class ids.
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Features, IterableDataset
from datasets.distributed import split_dataset_by_node

from hfexp.core.errors import ConfigError, DataError, did_you_mean, one_of
from hfexp.core.input_files import open_regular
from hfexp.data.sampling import mix

Row = dict[str, Any]

NUM_FIRST = 16
"""Rows from the beginning of a stream that are kept for checks and display."""
READ_AT_ONCE = 64
"""Rows per read of a stream."""
LANES = (24, 12, 8, 6, 4, 3, 2, 1)
"""Numbers of lanes (parts read side by side) that a stream may have: many numbers of workers divide them."""


def num_rows(rows: Any) -> int | None:
    """Return the number of rows; None for a stream."""
    return len(rows) if hasattr(rows, "__len__") else None


def show_rows(rows: Any) -> str:
    """Format the number of rows for display."""
    known = num_rows(rows)
    return "streamed" if known is None else f"{known:,}"


def first_rows(rows: Any, count: int) -> list[Row]:
    """Return at most `count` rows from the beginning."""
    known = num_rows(rows)
    return [rows[index] for index in range(min(count, len(rows.first) if known is None else known))]


def num_lanes(rows: IterableDataset, most: int, world_size: int = 1) -> int:
    """Return the number of lanes that the files can be cut into, with at least one file per lane and process."""
    shards = max(rows.num_shards // world_size, 1)
    return next(count for count in LANES if count <= min(shards, most))


def cut(rows: IterableDataset, lanes: int, lane: int) -> IterableDataset:
    """Return one lane: every `lanes`-th file."""
    return rows if lanes == 1 else rows.shard(lanes, lane, contiguous=False)


def shuffled(rows: IterableDataset, seed: int, buffer: int) -> IterableDataset:
    """Shuffle the order of the files, and their rows within a buffer.

    Only one file at a time fills the buffer: `datasets` reads several in threads, and waits five seconds for those of
    Parquet to end. Reading several lanes mixes the rows of different files.
    """
    return rows.shuffle(seed=seed, buffer_size=max(buffer, 1), max_buffer_input_shards=1)


@dataclass(frozen=True)
class Labels:
    """The label column of a split, and the class ids that its values stand for."""

    column: str
    names: list[str]
    """Class names in the order of their ids."""
    words: list[str] | None
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
        known = self.words is None or (value is not None and 0 <= value < len(self.words))
        word = self.words[value] if self.words is not None and known else str(value)  # pyright: ignore
        if value is None or not known or word not in self.ids:
            hint = "" if value is None else did_you_mean(word, self.names)
            shown = "a row without label" if value is None else f"unknown label {word!r}"
            raise DataError(f"the {split} split has {shown}.{hint} Labels are: {one_of(self.names)}")
        return {**row, self.column: self.ids[word]}


class Stream:
    """The rows of one split. A stream has no length, but its first rows can be indexed."""

    def __init__(self, rows: IterableDataset, split: str, labels: Labels | None, source: Any, max_lanes: int) -> None:
        """Read the first rows; `source` identifies the data in the digest, `max_lanes` is 1 for a limited stream."""
        self.rows = rows
        self.split = split
        self.labels = labels
        self.max_lanes = max_lanes
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

    def num_lanes(self, world_size: int = 1) -> int:
        """Return how many lanes are read side by side; this depends only on the data and the number of processes."""
        return num_lanes(self.rows, self.max_lanes, world_size)

    def lane(self, lane: int, seed: int, epoch: int, buffer: int, rank: int = 0, world_size: int = 1) -> Iterator[Row]:
        """Yield this process's rows of one lane, shuffled by (seed, epoch).

        Args:
            buffer: rows that the shuffle buffers of all lanes hold together.
        """
        lanes = self.num_lanes(world_size)
        rows = shuffled(cut(self.rows, lanes, lane), mix(seed, epoch, lane), buffer // lanes)
        if world_size > 1:
            strategy = "auto" if self.max_lanes > 1 else "examples"
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
    found: dict[str, None] = {}

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
            found |= dict.fromkeys(text for text in strings(value) if "/" in text)
    return sorted(found)


def _named_sizes(files: list[str]) -> list[tuple[str, int]]:
    """Return each file's name and size in bytes; remote files have -1, and the Hub's addresses name the commit."""
    sizes = []
    for name in files:
        path = Path(name)
        sizes.append((path.name, path.stat().st_size) if path.is_file() else (name, -1))
    return sizes
