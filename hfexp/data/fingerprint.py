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
from datasets.formatting import query_table

from hfexp.core.files import open_regular

MAX_BYTES_READ = 2**28
"""Bytes of a binary column up to which the content of all its values is hashed."""
SAMPLED_ROWS = 2000
"""Rows of a larger binary column whose content is hashed."""
ROWS_AT_ONCE = 10_000
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
    """Yield all values of a column that holds no files (numbers, texts, nested values), undecoded, as JSON.

    Rows are converted 10,000 at a time: Python objects take much memory, and Arrow's `take` puts the texts of a column
    into a single array, which can hold 2 GB at most.
    """
    table = rows.data.select([name])
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = query_table(table, range(start, min(start + ROWS_AT_ONCE, len(rows))), indices=rows._indices)
        yield json.dumps(part.column(0).to_pylist(), default=str).encode()


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
