"""Values of table cells: numbers, escaped formulas, and names in order."""

import re
import string
from collections.abc import Iterable, Sequence
from typing import Any

from hfexp.core.errors import DataError

NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""First characters of formulas, and white space that spreadsheets skip before one; the last four are full-width."""


def is_number(text: str) -> bool:
    """Return True if a text is a finite number as most programs write it."""
    return NUMBER.fullmatch(text) is not None


def csv_cell(value: Any) -> Any:
    """Put a `'` before a text that a spreadsheet would take for a formula; leave numbers alone.

    Source: OWASP, "CSV Injection", https://owasp.org/www-community/attacks/CSV_Injection.
    """
    if isinstance(value, str) and value.startswith(FORMULA) and not is_number(value):
        return f"'{value}"
    return value


def in_order(names: Iterable[str]) -> list[str]:
    """Sort names; if all of them are numbers, sort by value."""
    names = sorted(names)
    return sorted(names, key=float) if all(map(is_number, names)) else names


def place_of(value: Any, items: Sequence[str], names: Sequence[str] | None, column: str) -> int:
    """Return the number of the item, from 0, that a cell names: by its text, else its name, else its number.

    Args:
        names: of the items; None: A, B, C, ...
        column: of the cell, for the message.

    Raises:
        DataError: there is no such item.
    """
    for known in (items, names or string.ascii_uppercase[: len(items)]):
        if value in list(known):
            return list(known).index(value)
    number = int(value) if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value.strip()) else value
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(items):
        raise DataError(
            f"column {column!r} holds {value!r:.80}, expected one of the {len(items)} items, its letter or its number "
            f"from 0 to {len(items) - 1}"
        )
    return number
