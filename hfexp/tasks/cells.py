"""Values of table cells: numbers, escaped formulas, and names in order."""

import re
from collections.abc import Iterable
from typing import Any

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
