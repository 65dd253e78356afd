"""Columns of a source under the standard names of a task; a column may be made of several, or be missing."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, List

from hfexp.core.console import note
from hfexp.core.errors import ConfigError, did_you_mean, one_of
from hfexp.data.arrow_columns import with_column
from hfexp.data.labels import way_out
from hfexp.data.tables import header_hint
from hfexp.tasks.base import Task
from hfexp.tasks.column_names import Spec, parts_of, shown, usual_columns

SECTION = "dataset.columns"
"""Where the user names columns."""


def plain_names(columns: Mapping[str, Spec]) -> dict[str, str]:
    """Return the standard columns that are one column of the source each, and its name."""
    return {standard: spec for standard, spec in columns.items() if isinstance(spec, str)}


def make_column(rows: Dataset, name: str, spec: Spec) -> Dataset:
    """Add a column made of several: of mappings, or of lists, in which an empty cell is no item."""
    names = parts_of(spec)
    if isinstance(spec, Mapping):
        feature: Any = {key: rows.features[own] for key, own in spec.items()}
        make = functools.partial(_mappings, list(spec))
    else:
        feature, make = List(rows.features[names[0]]), _lists
    return with_column(rows, name, names, make, feature)


def _mappings(keys: list[str], batch: pa.RecordBatch) -> pa.StructArray:
    return pa.StructArray.from_arrays(batch.columns, keys)


def _lists(batch: pa.RecordBatch) -> pa.ListArray:
    first = batch.column(0)
    items = pa.concat_arrays([column.cast(first.type) for column in batch.columns])
    by_row = np.arange(len(items)).reshape(batch.num_columns, -1).T
    items = items.take(pa.array(by_row.ravel()))
    sizes = np.asarray(items.is_valid()).reshape(by_row.shape).sum(1)
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *sizes]), pa.int32()), items.drop_null())


def with_made(rows: Any, columns: Mapping[str, Spec], defaults: Mapping[str, Any]) -> Any:
    """Add to a table the columns that are parts of others or made of several, and those with a default that it lacks.

    Args:
        columns: for standard columns, the source's own or the parts of one; one with a part that is missing is left
            out. A column of the source that has the name of one that is made becomes `input.NAME`.
        defaults: values of standard columns that `columns` need not name.

    Raises:
        ConfigError: the rows are a stream, in which no column can be made.
    """
    rows = _flattened(rows, columns.values())
    made = {name: spec for name, spec in columns.items() if not isinstance(spec, str)}
    made = {name: spec for name, spec in made.items() if set(parts_of(spec)) <= set(rows.column_names)}
    if made and not isinstance(rows, Dataset):
        raise ConfigError(f"dataset.streaming=true: no column can be made of several: dataset.columns.{min(made)}")
    for name, spec in made.items():
        own = {name: f"input.{name}"} if name in rows.column_names else {}
        rows = make_column(rows, f"made.{name}", spec).rename_columns({**own, f"made.{name}": name})
    missing = [name for name in defaults if name not in columns and name not in rows.column_names]
    for name in missing if isinstance(rows, Dataset) else ():
        rows = rows.add_column(name, pa.array([defaults[name]] * len(rows)))  # pyright: ignore
    return rows


def rename_columns(
    rows: Any, split: str, columns: Mapping[str, Spec], task: Task, keep: tuple[str, ...] | None = ()
) -> Any:
    """Give the task's columns of a split their standard names; drop all others but those in `keep` (None: keep all).

    A column that is kept and has the standard name of another one becomes `input.NAME`.

    Raises:
        ConfigError: a column is missing, or the task reads no column of a name in `columns`.
    """
    columns = {name: spec if isinstance(spec, list | Mapping) else str(spec) for name, spec in columns.items()}
    unknown = sorted(set(columns) - set(task.all_columns))
    known = {name: spec for name, spec in columns.items() if name not in unknown}
    own_columns = rows.column_names
    known |= usual_columns(own_columns, known, task.all_columns, task, SECTION)
    rows = with_made(rows, known, task.defaults)
    problems, own_names = [], {}
    present = [name for name in task.optional_columns if name in known or name in rows.column_names]
    for standard in (*task.columns, *present):
        spec = known.get(standard, standard)
        missing = [name for name in parts_of(spec) if name not in rows.column_names]
        own_names[standard] = spec if isinstance(spec, str) else standard
        if missing:
            problems.append(
                f"the {split} split has no column {missing[0]!r} for the task's {standard!r}."
                f"{did_you_mean(missing[0], own_columns)} It has: {one_of(own_columns) or 'none'}; "
                f"map one with dataset.columns.{standard}=NAME"
            )
    hint = f"{header_hint(rows)}{way_out(split)}" if problems else ""
    if unknown:
        problems.append(f"dataset.columns.{unknown[0]}: the task reads only: {one_of(task.all_columns)}")
    if problems:
        raise ConfigError("; ".join(problems) + hint)
    others = [name for name in (rows.column_names if keep is None else keep) if name not in own_names.values()]
    for name in others:
        if name not in rows.column_names:
            raise ConfigError(
                f"the {split} split has no column {name!r}.{did_you_mean(name, rows.column_names)} "
                f"It has: {one_of(rows.column_names)}"
            )
    rows = rows.select_columns([*own_names.values(), *others] if keep is not None else rows.column_names)
    new_names = {name: f"input.{name}" for name in others if name in own_names}
    new_names |= {own: standard for standard, own in own_names.items() if own != standard}
    return rows.rename_columns(new_names)


def require_in_all(splits: Mapping[Any, Any], names: Iterable[str]) -> None:
    """Raise ConfigError if a column is in one split and not in another."""
    for name in names:
        lacking = [split for split, rows in splits.items() if name not in rows.column_names]
        if lacking and len(lacking) < len(splits):
            having = next(split for split in splits if split not in lacking)
            raise ConfigError(f"the {having} split has a column {name!r}, but the {lacking[0]} split has none")


def say_usual(found: Mapping[str, Spec], section: str) -> None:
    """Tell the user which columns are read because of their usual names."""
    for name, spec in found.items():
        verb = "is" if len(parts_of(spec)) == 1 else "are"
        note(f"{shown(spec)} {verb} read as {name!r}; {section}.{name}=NAME names another one")


def _flattened(rows: Any, specs: Iterable[Spec]) -> Any:
    """Make columns of the parts of columns (`translation.en`) if a name is one of a part."""
    names = [name for spec in specs for name in parts_of(spec)]
    is_part = any("." in name and name not in rows.column_names for name in names)
    return rows.flatten() if is_part and isinstance(rows, Dataset) else rows
