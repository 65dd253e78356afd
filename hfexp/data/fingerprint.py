"""Content hashes of datasets, for the record of a run and as keys of the prepared cache.

MLflow's own digest of a Hugging Face dataset covers the first 10,000 rows and ignores images
(`mlflow/data/digest_utils.py`), so two different datasets can share one. This digest covers every row.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from hfexp.core.files import open_regular

MAX_BYTES_READ = 2**28
"""Bytes of a binary column up to which the content of all its values is hashed."""
SAMPLED_ROWS = 2000
"""Rows of a larger binary column whose content is hashed."""
ROWS_AT_ONCE = 10_000
"""Rows whose values are one list in JSON."""
ROWS_IN_PYTHON = 500
"""Rows whose values are Python objects at once."""
BLOCK_BYTES = 2**26
_known: WeakKeyDictionary[Dataset, tuple[str, bool]] = WeakKeyDictionary()
"""Digest of each dataset, and whether it covers only a sample of the content; kept because computing it is slow."""


def digest(rows: Dataset) -> str:
    """Hash a split's content: the same rows give the same digest (32 hex digits) on every machine.

    Every value counts. If a column of images or other binary values has more than 256 MB, the hash covers the size of
    every value, but the content of only 2,000 rows spread over the split.
    """
    return _digest(rows)[0]


def identity(rows: Dataset) -> str:
    """Return a key that tells rows apart on this machine, however large they are.

    The key is the digest. If the digest covers only a sample, the key also covers the size and the modification time
    of every file that the rows are read from.
    """
    known, is_sample = _digest(rows)
    if not is_sample:
        return known
    state = hashlib.sha256(known.encode())
    binary = [name for name in rows.column_names if _is_binary(rows, name)]
    chunks = [chunk for name in binary for chunk in rows.data.column(name).chunks]
    files = [file["filename"] for file in rows.cache_files]
    for path in files + [path for chunk in chunks for path in _outside(chunk)]:
        state.update(_size_and_mtime(path))
    if not files:  # the rows were built in memory: only their content can show a change
        for chunk in chunks:
            for data in chunk.field("bytes"):
                state.update(data.as_py() or b"")
    return state.hexdigest()[:32]


def _outside(chunk: pa.StructArray) -> list[str]:
    """List the paths of files whose content is not embedded in the table."""
    embedded, paths = chunk.field("bytes").is_valid().to_pylist(), chunk.field("path").to_pylist()
    return [path for path, inside in zip(paths, embedded, strict=True) if path and not inside]


def _digest(rows: Dataset) -> tuple[str, bool]:
    if rows not in _known:
        state = hashlib.sha256(json.dumps([len(rows), str(rows.features)]).encode())
        is_sample = False
        for name in rows.column_names:
            state.update(name.encode())
            if _is_binary(rows, name):
                parts, sampled = _binary_parts(rows, name)
                is_sample = is_sample or sampled
            else:
                parts = _plain_parts(rows, name)
            for part in parts:
                state.update(part)
        _known[rows] = state.hexdigest()[:32], is_sample
    return _known[rows]


def _size_and_mtime(path: str) -> bytes:
    try:
        status = os.stat(path)
    except OSError:
        return f"{path};".encode()
    return f"{path} {status.st_size} {status.st_mtime_ns};".encode()


def _plain_parts(rows: Dataset, name: str) -> Iterator[bytes]:
    """Yield all values of a column that holds no files (numbers, texts, nested values), undecoded, as JSON."""
    column = rows.data.column(name)
    for block in [column] if rows._indices is None else _in_order(column, np.asarray(rows._indices.column(0))):
        for start in range(0, len(block), ROWS_AT_ONCE):
            yield from _as_json(block.slice(start, ROWS_AT_ONCE))


def _as_json(values: pa.ChunkedArray) -> Iterator[bytes]:
    """Yield the parts of a list of values in JSON, of a few rows each, because Python objects take much memory."""
    for start in range(0, len(values), ROWS_IN_PYTHON):
        text = json.dumps(values.slice(start, ROWS_IN_PYTHON).to_pylist(), default=str)
        yield f"{', ' if start else '['}{text[1:-1]}".encode()
    yield b"]"


def _in_order(column: pa.ChunkedArray, order: np.ndarray) -> Iterator[pa.ChunkedArray]:
    """Yield the values of a column in another order, in blocks of about `BLOCK_BYTES` whose rows come in 10,000s.

    A column of texts has a chunk for every 1,000 rows, and looking up a single row searches all of them, or copies the
    column. So a block is read in the order of the chunks and put into its own order afterwards.
    """
    chunks = [chunk for chunk in column.chunks if len(chunk)]
    starts = np.cumsum([0, *map(len, chunks)])
    row_bytes = max(column.nbytes // max(len(column), 1), 1)
    size = max(BLOCK_BYTES // row_bytes // ROWS_AT_ONCE, 1) * ROWS_AT_ONCE
    for start in range(0, len(order), size):
        wanted = order[start : start + size].astype(np.int64)
        places = np.argsort(wanted, kind="stable")
        bounds = np.searchsorted(wanted[places], starts)
        read = [
            chunk.take(pa.array(wanted[places[first:last]] - begin))
            for chunk, begin, first, last in zip(chunks, starts[:-1], bounds[:-1], bounds[1:], strict=True)
            if first < last
        ]
        back = np.empty(len(wanted), dtype=np.int64)
        back[places] = np.arange(len(wanted))
        yield pa.chunked_array([pa.concat_arrays(read).take(pa.array(back))])


def _is_binary(rows: Dataset, name: str) -> bool:
    """Tell whether a column holds files (a struct of `bytes` and `path`)."""
    kind = rows.data.schema.field(name).type
    return pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}


def _binary_parts(rows: Dataset, name: str) -> tuple[list[bytes], bool]:
    """Return the sizes and content hashes of a column of files, and whether the hashes cover only a sample."""
    kind = rows.data.schema.field(name).type
    column = rows.data.column(name)
    content, paths = (
        pa.chunked_array([chunk.field(part) for chunk in column.chunks], kind.field(part).type)
        for part in ("bytes", "path")
    )
    embedded = np.asarray(pc.fill_null(pc.binary_length(content), -1))  # pyright: ignore
    # Follow the indices row by row: a reordered copy of a column of images might not fit into memory.
    order = np.arange(len(column)) if rows._indices is None else np.asarray(rows._indices.column(0))
    sizes = embedded.astype(np.int64)[order]
    outside = np.flatnonzero(sizes < 0)
    for start in range(0, len(outside), ROWS_AT_ONCE):
        part = outside[start : start + ROWS_AT_ONCE]
        sizes[part] = [_file_size(path) for path in paths.take(pa.array(order[part])).to_pylist()]
    chosen = order
    sampled = int(sizes.sum()) > MAX_BYTES_READ and len(order) > SAMPLED_ROWS
    if sampled:
        chosen = order[np.linspace(0, len(order) - 1, SAMPLED_ROWS, dtype=int)]
    parts = [sizes.tobytes()]
    for index in map(int, chosen):
        data = content[index].as_py() if embedded[index] >= 0 else _file_content(paths[index].as_py())
        parts.append(hashlib.sha256(data).digest())
    return parts, sampled


def _file_size(path: str | None) -> int:
    try:
        return os.stat(path).st_size if path else -1
    except OSError:
        return -1


def _file_content(path: str | None) -> bytes:
    try:
        with open_regular(path or "") as file:
            return file.read()
    except (OSError, ValueError):  # missing, or on another machine: training reports it when it reads the row
        return (path or "").encode()
