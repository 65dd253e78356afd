"""The content of a dataset as one word: for the record of a run, and to find what was prepared from it.

MLflow's own digest of a Hugging Face dataset covers the first 10,000 rows and ignores images
(`mlflow/data/digest_utils.py`), so that two datasets can share one. Ours covers every row.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from datasets.formatting import query_table

from hfexp.input_files import open_regular

MAX_BYTES_READ = 2**28
SAMPLED_ROWS = 2000
ROWS_AT_ONCE = 10_000
_known: WeakKeyDictionary[Dataset, tuple[str, bool]] = WeakKeyDictionary()
"""Digests, and whether they are of a sample: computing them takes a while."""


def digest(rows: Dataset) -> str:
    """Hash of a split's content: the same rows give the same digest on every machine (32 hex digits).

    Every value counts. Only images and other binary values beyond 256 MB in total count by their size, and by the
    content of 2,000 rows spread over the split.
    """
    return _digest(rows)[0]


def identity(rows: Dataset) -> str:
    """What tells rows apart on this machine, however large they are.

    The digest; where that is of a sample, also size and time of every file that the rows are read from.
    """
    known, is_sample = _digest(rows)
    if not is_sample:
        return known
    state = hashlib.sha256(known.encode())
    binary = [name for name in rows.column_names if _is_binary(rows, name)]
    chunks = [chunk for name in binary for chunk in rows.data.column(name).chunks]
    files = [file["filename"] for file in rows.cache_files]
    for path in files + [path for chunk in chunks for path in _outside(chunk)]:
        state.update(_stamp(path))
    if not files:  # made by code: only the content itself shows a change
        for chunk in chunks:
            for data in chunk.field("bytes"):
                state.update(data.as_py() or b"")
    return state.hexdigest()[:32]


def _outside(chunk: pa.StructArray) -> list[str]:
    """Paths of files whose content is not in the table."""
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


def _stamp(path: str) -> bytes:
    try:
        found = Path(path).stat()
    except OSError:
        return f"{path};".encode()
    return f"{path} {found.st_size} {found.st_mtime_ns};".encode()


def _plain_parts(rows: Dataset, name: str) -> Iterator[bytes]:
    """All values of a column of numbers, words, or nested ones, undecoded.

    Some at a time: Python's take much memory, and Arrow's `take` makes one piece of a column's texts, of 2 GB at most.
    """
    table = rows.data.select([name])
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = query_table(table, range(start, min(start + ROWS_AT_ONCE, len(rows))), indices=rows._indices)
        yield json.dumps(part.column(0).to_pylist(), default=str).encode()


def _is_binary(rows: Dataset, name: str) -> bool:
    """A column of files (`bytes` and `path`)."""
    kind = rows.data.schema.field(name).type
    return pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}


def _binary_parts(rows: Dataset, name: str) -> tuple[list[bytes], bool]:
    """Sizes and contents of a column of files, and whether the contents are those of a sample."""
    kind = rows.data.schema.field(name).type
    column = rows.data.column(name)
    content, paths = (
        pa.chunked_array([chunk.field(part) for chunk in column.chunks], kind.field(part).type)
        for part in ("bytes", "path")
    )
    embedded = np.asarray(pc.fill_null(pc.binary_length(content), -1))  # pyright: ignore
    # Row by row through the indices: a column of all images, reordered, might not fit into memory.
    order = np.arange(len(column)) if rows._indices is None else np.asarray(rows._indices.column(0))
    sizes = [int(embedded[i]) if embedded[i] >= 0 else _file_size(paths[int(i)].as_py()) for i in order]
    chosen = order
    sampled = sum(sizes) > MAX_BYTES_READ and len(order) > SAMPLED_ROWS
    if sampled:
        chosen = order[np.linspace(0, len(order) - 1, SAMPLED_ROWS, dtype=int)]
    parts = [np.asarray(sizes, dtype=np.int64).tobytes()]
    for index in map(int, chosen):
        data = content[index].as_py() if embedded[index] >= 0 else _file_content(paths[index].as_py())
        parts.append(hashlib.sha256(data).digest())
    return parts, sampled


def _file_size(path: str | None) -> int:
    try:
        return Path(path).stat().st_size if path else -1
    except OSError:
        return -1


def _file_content(path: str | None) -> bytes:
    try:
        with open_regular(path or "") as file:
            return file.read()
    except (OSError, ValueError):  # on another machine, or missing: named when it is read for training
        return (path or "").encode()
