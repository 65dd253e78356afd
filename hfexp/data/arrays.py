"""Rows of arrays on disk: written in order, read a batch at a time in any order.

A directory holds `meta.json` and, for each field, the values of all rows laid end to end (`<field>.bin`). If the rows
of a field differ in shape, `<field>.shapes.npy` (int64, (N, dimensions)) holds the shapes. Files are read with
`pread(2)` and not memory-mapped: a row costs one system call (some microseconds), and the memory of a process doesn't
grow with the pages that it has touched, which a map counts as its own.
"""

import json
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

META = "meta.json"
IN_MEMORY = 16
"""Bytes per row up to which a field whose rows have one shape is kept in memory (labels)."""

Columns = dict[str, "np.ndarray | list[np.ndarray]"]


class ArrayWriter:
    """Appends rows to a directory, which is complete only after `finish`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files: dict[str, BinaryIO] = {}
        self.layouts: dict[str, tuple[str, int]] = {}
        self.shapes: dict[str, list[tuple[int, ...]]] = {}
        self.bytes = 0

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self.files.values():
            file.close()

    def append(self, row: Mapping[str, np.ndarray]) -> None:
        """Append one row; its fields, dtypes and numbers of dimensions must be those of the first row.

        Raises:
            ValueError: they differ.
        """
        if not self.files:
            self._begin(row)
        if row.keys() != self.files.keys():
            raise ValueError(f"a row has the fields {sorted(row)}, expected {sorted(self.files)}")
        for name, value in row.items():
            layout = (value.dtype.str, value.ndim)
            if layout != self.layouts[name]:
                raise ValueError(f"a row has {layout} (dtype, dimensions) in {name!r}, expected {self.layouts[name]}")
            self.files[name].write(np.ascontiguousarray(value).data)
            self.shapes[name].append(value.shape)
            self.bytes += value.nbytes

    def _begin(self, row: Mapping[str, np.ndarray]) -> None:
        for name, value in row.items():
            self.files[name] = (self.directory / f"{name}.bin").open("wb", buffering=2**20)
            self.layouts[name], self.shapes[name] = (value.dtype.str, value.ndim), []

    def finish(self, about: Mapping[str, Any]) -> None:
        """Write the shapes and, as the last file, `meta.json`; flush everything to the disk."""
        fields = {}
        for name, shapes in self.shapes.items():
            uniform = len(set(shapes)) == 1
            fields[name] = {"dtype": self.layouts[name][0], "shape": list(shapes[0]) if uniform else None}
            if not uniform:
                with (self.directory / f"{name}.shapes.npy").open("wb") as file:
                    np.save(file, np.asarray(shapes, dtype=np.int64))
                    file.flush()
                    os.fsync(file.fileno())
            self.files[name].flush()
            os.fsync(self.files[name].fileno())
        rows = len(next(iter(self.shapes.values()), []))
        meta = {"rows": rows, "bytes": self.bytes, "fields": fields, **about}
        with (self.directory / META).open("w") as file:
            json.dump(meta, file, indent=1)
            file.flush()
            os.fsync(file.fileno())


class ArrayReader:
    """Reads rows by index; several threads and processes may use it at once."""

    def __init__(self, directory: Path) -> None:
        """Open a directory; raise OSError, ValueError or KeyError if it is not what `ArrayWriter` writes."""
        self.directory = directory
        self.meta: dict[str, Any] = json.loads((directory / META).read_text())
        self.fields = {
            name: _Field(directory / f"{name}.bin", field["dtype"], field["shape"], self.meta["rows"])
            for name, field in self.meta["fields"].items()
        }

    def __len__(self) -> int:
        return self.meta["rows"]

    def __reduce__(self) -> Any:
        # File descriptors can't be pickled: the other process opens the files again.
        return ArrayReader, (self.directory,)

    def is_uniform(self, name: str) -> bool:
        """Return True if all rows of a field have the same shape."""
        return self.fields[name].shape is not None

    def lengths(self, name: str) -> list[int]:
        """Return the first dimension of each row of a field; a scalar counts as 1."""
        field = self.fields[name]
        if field.shapes is not None:
            return field.shapes[:, 0].tolist()
        return [field.shape[0] if field.shape else 1] * len(self)

    def total(self, name: str) -> int:
        """Return the number of values that a field has in all rows."""
        return self.fields[name].total

    def stretch(self, name: str, start: int, count: int) -> np.ndarray:
        """Return `count` values of a field from position `start` on, with all rows laid end to end."""
        return self.fields[name].stretch(start, count)

    def read(self, indices: Sequence[int] | np.ndarray) -> Columns:
        """Return each field of these rows: one array (B, ...) if all rows have one shape, else a list of B arrays."""
        indices = np.asarray(indices, dtype=np.int64)
        return {name: field.read(indices) for name, field in self.fields.items()}


class _Field:
    """The values of one field."""

    def __init__(self, path: Path, dtype: str, shape: list[int] | None, rows: int) -> None:
        self.dtype = np.dtype(dtype)
        self.shape = None if shape is None else tuple(shape)
        self.values: np.ndarray | None = None
        self.shapes = self.offsets = None
        self.rows = rows
        if self.shape is None:
            self.shapes = np.load(path.with_name(f"{path.stem}.shapes.npy"))
            sizes = self.shapes.prod(1) * self.dtype.itemsize
            self.offsets = np.concatenate([[0], np.cumsum(sizes)])
            expected = int(self.offsets[-1])
        else:
            self.row_bytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
            expected = rows * self.row_bytes
        if path.stat().st_size != expected:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, expected {expected}")
        if self.shape is not None and self.row_bytes <= IN_MEMORY:
            self.values = np.fromfile(path, self.dtype).reshape(rows, *self.shape)
        else:
            self.path, self.descriptor = path, os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, self.descriptor)

    def read(self, indices: np.ndarray) -> "np.ndarray | list[np.ndarray]":
        if self.values is not None:
            return self.values[indices]
        if self.shape is None:
            return [self._read_one(int(index)) for index in indices]
        rows = np.empty((len(indices), *self.shape), self.dtype)
        flat = _bytes_of(rows) if rows.size else memoryview(b"")
        if len(indices) > 1 and (np.diff(indices) == 1).all():
            self._fill(flat, int(indices[0]) * self.row_bytes)
            return rows
        for place, index in enumerate(indices.tolist()):
            self._fill(flat[place * self.row_bytes : (place + 1) * self.row_bytes], index * self.row_bytes)
        return rows

    @property
    def total(self) -> int:
        """Return the number of values in all rows."""
        if self.offsets is not None:
            return int(self.offsets[-1]) // self.dtype.itemsize
        return self.rows * int(np.prod(self.shape or (), dtype=np.int64))

    def stretch(self, start: int, count: int) -> np.ndarray:
        """Return an array (count,) of the values from position `start` on, with all rows laid end to end."""
        if self.values is not None:
            return self.values.reshape(-1)[start : start + count]
        values = np.empty(count, self.dtype)
        if count:
            self._fill(_bytes_of(values), start * self.dtype.itemsize)
        return values

    def _read_one(self, index: int) -> np.ndarray:
        assert self.shapes is not None
        assert self.offsets is not None
        row = np.empty(self.shapes[index], self.dtype)
        if row.size:
            self._fill(_bytes_of(row), int(self.offsets[index]))
        return row

    def _fill(self, target: memoryview, offset: int) -> None:
        """Read until the target is full; one call may return less, on some file systems and beyond 2 GB."""
        while len(target):
            count = os.preadv(self.descriptor, [target], offset)
            if count == 0:
                raise OSError(f"{self.path} was truncated while it was being read")
            target, offset = target[count:], offset + count


def _bytes_of(array: np.ndarray) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))  # pyright: ignore
