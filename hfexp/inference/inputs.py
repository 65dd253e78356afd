"""Inputs of `hfexp predict`: files, folders, glob patterns, URLs, tables, standard input, or Python values."""

import functools
import glob
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pyarrow
from datasets import ClassLabel, Dataset, Image, LargeList, List, Value

from hfexp.core.console import note
from hfexp.core.errors import ConfigError, DataError, did_you_mean, one_of
from hfexp.core.files import STANDARD_INPUT
from hfexp.data.columns import plain_names, say_usual, with_made
from hfexp.data.image_folders import LeftOut, scan
from hfexp.data.labels import readable
from hfexp.data.sources import table
from hfexp.data.tables import FORMATS
from hfexp.inference.outputs import TRUE
from hfexp.tasks.base import OWN, Task
from hfexp.tasks.column_names import Spec, parts_of, usual_columns

TABLES = tuple(suffix for suffix in FORMATS if suffix != ".txt")
READ_TOGETHER = 100
"""Rows whose images are in memory at once, since their paths are stored beside their bytes."""
LARGEST_CHAT = 10_000_000
"""Maximum size in bytes of a JSON file of chat messages, which is read whole."""


@dataclass(frozen=True)
class Input:
    """One input of the model."""

    name: str
    """Name shown to the user: a path, a URL, or the text itself."""
    row: Callable[[], dict[str, Any]]
    """Builds the row as a dataset stores it; may raise DataError."""
    table: Dataset | None = None
    """Table whose columns are written beside the answer; None: the input comes from no table."""
    index: int = 0
    """Number of the input's row in that table, from 0."""

    def columns(self) -> dict[str, Any]:
        """Read the input's row of its table, with the names of classes in place of their ids."""
        if self.table is None:
            return {}
        row, features = self.table[self.index], self.table.features
        classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        return row | {name: readable(features[name], row[name]) for name in classes}


def read_inputs(sources: Iterable[Any], texts: Iterable[Any], task: Task, columns: Mapping[str, Spec]) -> list[Input]:
    """Return all inputs, in order.

    Args:
        sources: paths, patterns, URLs, `-`; from Python also values that `task.inference_row` takes.
        texts: raw inputs, taken as they are.
        columns: for columns of the task, their names in the tables, or those of several to make one of.

    Raises:
        ConfigError: there are no inputs, a path does not exist, or a table lacks a column.
    """
    unknown = sorted(set(columns) - set(table_columns(task)))
    if unknown:
        raise ConfigError(f"columns.{unknown[0]}: the task reads only: {one_of(table_columns(task))}")
    inputs = [item for source in sources for item in _from_source(source, task, columns)]
    inputs += [_raw(text, task) for text in texts]
    if not inputs:
        expected = "text=... or prompt=..., tables" if takes_texts(task) else "files, folders, patterns or URLs"
        raise ConfigError(f"there are no inputs: give {expected}, or - for standard input")
    return inputs


def takes_texts(task: Task) -> bool:
    """Tell whether the task's raw inputs are texts or messages, and not the contents of binary files."""
    return task.raw_type == "string"


def input_columns(task: Task) -> list[str]:
    """Return the columns that the task predicts from."""
    return [name for name in task.columns if name != task.label_column]


def table_columns(task: Task) -> list[str]:
    """Return the columns of a table to predict on."""
    return list(task.inference_columns) or input_columns(task)


def _raw(value: Any, task: Task) -> Input:
    return Input(value if isinstance(value, str) else f"<{type(value).__name__}>", lambda: task.inference_row(value))


def _from_source(source: Any, task: Task, columns: Mapping[str, Spec]) -> Iterator[Input]:
    """Yield the inputs that an argument stands for; a value that is neither text nor path is itself an input."""
    if not isinstance(source, str | Path):
        yield _raw(source, task)
    elif str(source) == STANDARD_INPUT:
        for line in sys.stdin:
            yield from _from_line(line.rstrip("\r\n"), task, columns)
    elif "://" in str(source):
        yield _file(str(source), task)
    else:
        for path in _paths(Path(os.path.expanduser(source)), task):
            yield from _from_path(path, task, columns)


def _from_line(line: str, task: Task, columns: Mapping[str, Spec]) -> Iterator[Input]:
    if takes_texts(task):
        yield _raw(line, task)
    elif line:
        yield from _from_source(line, task, columns)


def _paths(path: Path, task: Task) -> list[Path]:
    """Return the file, the files below the folder, or the files that match the pattern, sorted by name."""
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        wanted = _files_below(path) if takes_texts(task) else _images_below(path)
        if not wanted:
            raise ConfigError(f"{path} contains no {'files' if takes_texts(task) else 'image files'}")
        return wanted
    paths = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    if not paths:
        kind = "no file matches this pattern" if glob.has_magic(str(path)) else "no such file or folder"
        raise ConfigError(f"{path}: {kind}")
    return paths


def _files_below(path: Path) -> list[Path]:
    files = (file for file in path.rglob("*") if file.is_file())
    return sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts))


def _images_below(path: Path) -> list[Path]:
    """Return the image files below a folder, sorted; note how many other files are skipped."""
    left_out = LeftOut(str(path))
    images = scan(path, left_out).all_images
    if left_out.counts:
        note(f"{path}: left out: {left_out}")
    return sorted(path / os.path.relpath(image, path) for image in images)


def _from_path(path: Path, task: Task, columns: Mapping[str, Spec]) -> Iterator[Input]:
    suffix = path.suffix.lower()
    if takes_texts(task) and suffix == ".json":
        yield _chat(path, task)
    elif suffix in TABLES:
        yield from _from_table(path, task, columns)
    elif takes_texts(task):
        for line in _read_text(path).splitlines():
            yield _raw(line, task)
    else:
        yield _file(str(path), task)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read as UTF-8 text: {error}") from error


def _file(address: str, task: Task) -> Input:
    """Return an input that refers to a file or URL; it is opened only when its row is processed."""
    if takes_texts(task):
        raise ConfigError(f"{address}: texts can only be read from local files; give the text itself with text=...")
    return Input(address, lambda: {input_columns(task)[0]: {"bytes": None, "path": address}})


def _chat(path: Path, task: Task) -> Input:
    """Read a JSON file of chat messages, or of any other value that the task takes, as one input."""
    if path.stat().st_size > LARGEST_CHAT:
        raise ConfigError(f"{path} is too large for a chat (limit: {LARGEST_CHAT:,} bytes); give a table as .jsonl")
    try:
        value = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    return Input(str(path), lambda: task.inference_row(value))


def _from_table(path: Path, task: Task, columns: Mapping[str, Spec]) -> Iterator[Input]:
    """Yield an input per row of a table: the value if the task reads one column, otherwise a mapping."""
    stored, own = table(str(path))["train"], {}
    usual = usual_columns(stored.column_names, columns, table_columns(task), task, "columns")
    say_usual(usual, "columns")
    columns = {**_served(stored.column_names, task), **usual, **columns}
    rows = with_made(stored, columns, task.defaults)
    for standard in table_columns(task):
        spec = columns.get(standard, standard)
        own[standard] = spec if isinstance(spec, str) else standard
        for name in parts_of(spec):
            if name not in rows.column_names:
                raise ConfigError(
                    f"{path} has no column {name!r}.{did_you_mean(name, stored.column_names)} It has: "
                    f"{one_of(stored.column_names)}; name one with columns.{standard}=NAME"
                )
    kept = _without_binary(stored)
    for index, row in enumerate(rows.select_columns(list(own.values()))):
        values = {standard: row[name] for standard, name in own.items()}
        value = values if len(own) > 1 else next(iter(values.values()))
        if takes_texts(task) or not isinstance(value, str):
            item = _raw(value, task)
            item = item if isinstance(value, str) else replace(item, name=f"{path.name}[{index}]")
        else:
            item = _file(value if "://" in value else str(path.parent / value), task)
        yield replace(item, table=kept, index=index)


def _served(own: list[str], task: Task) -> dict[str, Spec]:
    """Return the column that a served model reads in place of the task's only one, if the table lacks that."""
    names = table_columns(task)
    if len(names) > 1 or names[0] in own or task.raw_column not in own:
        return {}
    return {names[0]: task.raw_column}


def _without_binary(rows: Dataset) -> Dataset:
    """Select the columns that a person can read: no images, sounds or other binary data."""
    return rows.select_columns([name for name, feature in rows.features.items() if _is_readable(feature)])


def _is_readable(feature: Any) -> bool:
    if isinstance(feature, dict):
        return all(map(_is_readable, feature.values()))
    if isinstance(feature, List | LargeList):
        return _is_readable(feature.feature)
    return isinstance(feature, ClassLabel) or (isinstance(feature, Value) and "binary" not in feature.dtype)


def column_types(inputs: Iterable[Input]) -> dict[str, pyarrow.DataType]:
    """Return the types in which the columns of the inputs' tables are written; text where tables disagree."""
    types: dict[str, pyarrow.DataType] = {}
    for rows in {id(item.table): item.table for item in inputs if item.table is not None}.values():
        for name, feature in rows.features.items():
            is_plain = isinstance(feature, Value) and feature.dtype != "null"
            kind = feature.pa_type if is_plain else pyarrow.string()
            types[name] = kind if types.setdefault(name, kind) == kind else pyarrow.string()
    return types


def split_inputs(splits: Mapping[str, Dataset], task: Task, columns: Mapping[str, Spec]) -> list[Input]:
    """Return the rows of splits as inputs, with the columns of their source beside them.

    Args:
        splits: rows with the task's standard columns, and any others of their source.
        columns: for columns of the task, their names in the source.
    """
    return [item for split, rows in splits.items() for item in _from_split(split, rows, task, columns)]


def _from_split(split: str, rows: Dataset, task: Task, columns: Mapping[str, Spec]) -> Iterator[Input]:
    sources, label = rows.select_columns(input_columns(task)), task.label_column
    plain = plain_names(columns)
    own_names = plain | {f"input.{name}": name for name in columns}
    table = rows.rename_columns({name: own for name, own in own_names.items() if name in rows.column_names})
    added = {"split": [split] * len(rows), "index": list(range(len(rows)))}
    if label is not None:
        added[TRUE] = _shown_labels(rows, task, label)
        table = table.remove_columns(plain.get(label, label))
    for name, values in added.items():
        table = table.rename_columns({name: f"input.{name}"} if name in table.column_names else {})
        table = table.add_column(name, values)  # pyright: ignore[reportCallIssue]
    table = _without_binary(table)
    for index, name in enumerate(_row_names(split, sources)):
        yield Input(name, functools.partial(sources.__getitem__, index), table, index)


def _shown_labels(rows: Dataset, task: Task, column: str) -> list[Any]:
    """Return the labels of rows as a person reads them."""
    if task.label_kind == OWN:
        return [task.shown_label(row) for row in rows.select_columns(list(task.columns))]  # pyright: ignore
    return [readable(rows.features[column], value) for value in rows[column][:]]


def _row_names(split: str, rows: Dataset) -> Iterator[str]:
    """Name each row of a split by its text or its image's path; else by split and index."""
    first, *others = rows.column_names
    if others or not isinstance(rows.features[first], Value | Image):
        yield from (f"{split}[{index}]" for index in range(len(rows)))
    elif isinstance(rows.features[first], Value):
        yield from map(str, rows[first])
    else:
        start = 0
        for part in rows.with_format("arrow").iter(READ_TOGETHER):
            column = cast(Any, part)[first].combine_chunks()
            for index, path in enumerate(column.field("path").to_pylist(), start):
                yield path or f"{split}[{index}]"
            start += len(column)


def row_of(item: Input) -> dict[str, Any]:
    """Return the row of an input, for `Predictor.outputs`.

    Raises:
        DataError: the input can't be read; the message need not contain its name.
    """
    try:
        return item.row()
    except OSError as error:
        raise DataError(str(error)) from error
