"""Metadata tables (`metadata.csv`, `.jsonl`, `.parquet`) that lie beside images and describe them."""

import csv
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from hfexp.core.errors import ConfigError, one_of

FILE, IMAGE = "file_name", "image"
WHOLE_NUMBER = re.compile(r"0|-?[1-9]\d{0,17}")
"""Integer without leading zeros; 18 digits always fit into 64 bits."""


@dataclass(frozen=True)
class Described:
    """A row of a metadata table, which describes one image."""

    place: str
    """Table and row number, for messages."""
    image: str
    """Absolute path of the image."""
    values: dict[str, Any]
    """Values of the other columns, by name."""


def read_metadata(path: str) -> list[Described]:
    """Read a metadata table; its column `file_name` holds paths relative to the table's folder.

    Raises:
        ConfigError: the table can't be read, or a row does not name a file in or below its folder.
    """
    try:
        rows = _READERS[Path(path).suffix.lower()](path)
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    return [_described(path, number, row) for number, row in enumerate(rows, 1)]


def columns_of(rows: Sequence[Described | None], metadata: Sequence[Described]) -> dict[str, list[Any]]:
    """Return the values of `rows` for every column of `metadata`; None where a row has no value."""
    names = dict.fromkeys(name for row in metadata for name in row.values)
    return {name: [row and row.values.get(name) for row in rows] for name in names}


def _described(path: str, number: int, row: Any) -> Described:
    place, folder = f"{path}, row {number}", os.path.dirname(path)
    if not isinstance(row, dict) or FILE not in row or IMAGE in row:
        has = one_of(row) if isinstance(row, dict) else repr(row)
        raise ConfigError(f"{place}: a column {FILE!r} is needed, and none that is called {IMAGE!r}. It has: {has}")
    image = os.path.normpath(os.path.join(folder, str(row[FILE]).replace("\\", "/")))
    if not row[FILE] or not image.startswith(os.path.join(folder, "")):
        raise ConfigError(f"{place}: {FILE} is {row[FILE]!r}; the path of an image relative to {folder} is needed")
    return Described(place, image, {name: value for name, value in row.items() if name != FILE})


def _read_csv(path: str) -> list[dict[str, Any]]:
    """Read a CSV file; values stay texts, but a column of only whole numbers (none like 007) becomes integers."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        names, rows = next(reader, []), []
        if len(set(names)) < len(names):
            raise ValueError(f"a column is there twice: {', '.join(names)}")
        for values in filter(None, reader):
            if len(values) != len(names):
                raise ValueError(f"line {reader.line_num} has {len(values)} values, the first line {len(names)}")
            rows.append(values)
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    typed = [column if name == FILE else _typed(column) for name, column in zip(names, columns, strict=True)]
    return [dict(zip(names, values, strict=True)) for values in zip(*typed, strict=True)]


def _typed(column: Sequence[str]) -> list[Any]:
    """Convert the texts of a column; an empty text becomes None."""
    is_whole = all(WHOLE_NUMBER.fullmatch(value) for value in set(column) - {""})
    return [None if value == "" else int(value) if is_whole else value for value in column]


def _read_lines(path: str) -> list[Any]:
    """Read one JSON object per line."""
    rows = []
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            try:
                rows += [json.loads(line)] if line.strip() else []
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is not JSON: {error}") from error
    return rows


def _read_parquet(path: str) -> list[Any]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


_READERS = {".csv": _read_csv, ".jsonl": _read_lines, ".parquet": _read_parquet}
