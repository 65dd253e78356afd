"""Columns as Arrow stores them, some rows at a time: lists and texts take several times as much as Python objects."""

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features

from hfexp.core.errors import ConfigError

ROWS_AT_ONCE = 1000
IN_MEMORY = 2**24
"""Bytes of columns up to which a column that is made of them stays in memory."""

Make = Callable[[pa.RecordBatch], pa.Array]


def batches(rows: Dataset, *columns: str) -> Iterator[pa.RecordBatch]:
    """Yield the stored values of columns, at most `ROWS_AT_ONCE` rows at a time, in the order of their storage."""
    yield from rows.data.table.select(list(columns)).to_batches(max_chunksize=ROWS_AT_ONCE)


def arrays(rows: Dataset, column: str) -> Iterator[Any]:
    """Yield the stored values of a column, at most `ROWS_AT_ONCE` rows at a time, in the order of their storage."""
    return (batch.column(0) for batch in batches(rows, column))


def of_rows(rows: Dataset, stored: np.ndarray) -> np.ndarray:
    """Return from the values of all stored rows those of `rows` in their order, (N, ...)."""
    return stored if rows._indices is None else stored[np.asarray(rows._indices.column(0))]


def counted(rows: Dataset, column: str) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield the values of `arrays` with the number of times that each is in `rows`, (B,) int64."""
    times, start = np.ones(len(rows.data), np.int64), 0
    if rows._indices is not None:
        times = np.bincount(np.asarray(rows._indices.column(0)), minlength=len(times))
    for values in arrays(rows, column):
        yield values, times[start : start + len(values)]
        start += len(values)


def contiguous(rows: Dataset) -> Dataset:
    """Return the rows stored in their own order, so that `arrays` yields just these."""
    return rows if rows._indices is None else rows.flatten_indices()


def lengths(lists: Any, missing: int = 0) -> np.ndarray:
    """Return the number of items of each list of an array, (N,) int64; `missing` where there is no list."""
    return np.asarray(lists.value_lengths().fill_null(missing), dtype=np.int64)


def list_lengths(rows: Dataset, column: str, missing: int = 0) -> np.ndarray:
    """Return the number of items of each row's list in a column, (N,) int64; `missing` where there is no list."""
    parts = [lengths(lists, missing) for lists in arrays(rows, column)]
    return of_rows(rows, np.concatenate([np.zeros(0, np.int64), *parts]))


def list_numbers(lists: Any) -> np.ndarray:
    """Return for each item of the lists of an array the number of its list, (M,) int64."""
    return np.repeat(np.arange(len(lists)), lengths(lists))


def item_counts(rows: Dataset, column: str) -> Counter[Any]:
    """Count each different item of the lists in a column, in the order in which they first occur; None is one too.

    Args:
        rows: rows that are `contiguous`.
    """
    counts: Counter[Any] = Counter()
    for lists in arrays(rows, column):
        for pair in lists.flatten().value_counts().to_pylist():
            counts[pair["values"]] += pair["counts"]
    return counts


def rows_with(rows: Dataset, column: str, items: Sequence[Any]) -> list[int]:
    """Return the numbers of the rows whose list in a column has one of the items; `rows` are `contiguous`."""
    found, start = [], 0
    for lists in arrays(rows, column):
        values = lists.flatten()
        has = np.asarray(pc.is_in(values, pa.array(items, values.type)))  # pyright: ignore[reportAttributeAccessIssue]
        found += (start + np.unique(list_numbers(lists)[has])).tolist()
        start += len(lists)
    return found


def with_items(lists: Any, items: Any) -> pa.ListArray:
    """Return lists of the same lengths with other items; an empty list in place of a missing one."""
    offsets = np.concatenate([[0], np.cumsum(lengths(lists))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items)


def with_column(
    rows: Dataset, name: str, sources: Sequence[str], make: Make, feature: Any, facts: Sequence[Any] = ()
) -> Dataset:
    """Add a column, or replace the one of that name, by values made of other columns, some rows at a time.

    A large column is written to a temporary file, of which the memory has only the pages that are being read.

    Args:
        make: makes the values of some rows from their `sources`; their type is that of `feature`.
        facts: all that the values depend on besides the sources and `feature`.

    Raises:
        ConfigError: there is no place for the file.
    """
    rows = contiguous(rows)
    schema = Features({name: feature}).arrow_schema
    key = json.dumps([rows._fingerprint, name, list(sources), str(feature), facts], default=str)
    made = (pa.record_batch([make(batch)], schema=schema) for batch in batches(rows, *sources))
    if rows.data.table.select(list(sources)).nbytes <= IN_MEMORY:
        table = pa.Table.from_batches(made, schema)
    else:
        table = _on_disk(made, schema)
    rows = rows.remove_columns(name) if name in rows.column_names else rows
    # The fingerprint is given because `datasets` (5.2) would hash a copy of the whole column.
    fingerprint = hashlib.sha256(key.encode()).hexdigest()[:16]
    return rows.add_column(name, table.column(0), new_fingerprint=fingerprint, feature=feature)  # pyright: ignore


def _on_disk(made: Iterable[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    """Write a table to a file and map it; the file has no name any more, so that the system deletes it in the end."""
    try:
        descriptor, path = tempfile.mkstemp(prefix="hfexp-", suffix=".arrow")
        try:
            with os.fdopen(descriptor, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
                for batch in made:
                    writer.write_batch(batch)
            return pa.ipc.open_stream(pa.memory_map(path)).read_all()
        finally:
            os.unlink(path)
    except OSError as error:
        raise ConfigError(
            f"the column {schema.names[0]!r} can't be written to {tempfile.gettempdir()} ({error}): set the variable "
            "TMPDIR to a directory with room for it"
        ) from error
