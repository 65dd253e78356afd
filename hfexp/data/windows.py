"""Windows of a row: parts of a text that is too long for a model, each an input of its own."""

from typing import Any

from hfexp.tasks.base import WINDOWS

Row = dict[str, Any]


def cut(row: Row) -> list[Row]:
    """Return the windows of a row in their order; other fields than those with a value for each token are left out."""
    total, start, windows = sum(row[WINDOWS]), 0, []
    fields = [name for name, values in row.items() if name != WINDOWS and _has(values, total)]
    for length in row[WINDOWS]:
        windows.append({name: row[name][start : start + length] for name in fields})
        start += length
    return windows


def _has(values: Any, total: int) -> bool:
    return isinstance(values, list) and len(values) == total
