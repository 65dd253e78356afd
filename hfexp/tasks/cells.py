"""Values of table cells: numbers, truth values, escaped formulas, and names in order."""

import math
import re
from collections.abc import Iterable
from typing import Any

from hfexp.core.errors import DataError

NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""First characters of formulas, and white space that spreadsheets skip before one; the last four are full-width."""
TRUTH = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}


def is_number(text: str) -> bool:
    """Return True if a text is a finite number as most programs write it."""
    return NUMBER.fullmatch(text) is not None


def to_number(value: Any) -> float:
    """Convert a label to float: a number, or the text of one as in CSV files.

    Raises:
        DataError: the label is not a number, or not finite.
    """
    number = float(value) if isinstance(value, str) and is_number(value) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        comma = (
            ": write 1.5, or set dataset.source.decimal=',' for a CSV file"
            if isinstance(value, str) and "," in value
            else ""
        )
        raise DataError(f"column 'label' holds {value!r:.80}, expected a number{comma}")
    return float(number)


def to_truth(value: Any, name: str) -> int:
    """Convert the mark of a class to 0 or 1; it may be 0 or 1, false or true, as a value or a text.

    Args:
        name: name of the class, for messages.

    Raises:
        DataError: the mark is missing, or something else.
    """
    if value is None:
        raise DataError(f"no truth value for the class {name!r}")
    known = TRUTH.get(str(value).lower())
    if known is None:
        raise DataError(f"the truth value of the class {name!r} is {value!r:.80}, expected 0, 1, false or true")
    return known


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
