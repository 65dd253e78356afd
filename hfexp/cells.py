"""Cells of tables as values: numbers, truth values, and names in order."""

import math
import re
from collections.abc import Iterable
from typing import Any

from hfexp.errors import DataError

NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
TRUTH = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}


def is_number(text: str) -> bool:
    """Tell whether a text is a finite number, as most programs write them."""
    return NUMBER.fullmatch(text) is not None


def to_number(value: Any) -> float:
    """Read a label that is a number, or a text that is one, as in CSV files.

    Raises:
        DataError: it is not, or not finite.
    """
    number = float(value) if isinstance(value, str) and is_number(value) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        comma = (
            ": write 1.5, or set dataset.source.decimal=',' for a CSV file"
            if isinstance(value, str) and "," in value
            else ""
        )
        raise DataError(f"column 'label' holds {value!r:.80}, which is no number{comma}")
    return float(number)


def to_truth(value: Any, name: str) -> int:
    """Read whether a class is there: 0 or 1, false or true, as value or word.

    Args:
        name: of the class.

    Raises:
        DataError: it is missing, or something between.
    """
    if value is None:
        raise DataError(f"no truth value for the class {name!r}")
    known = TRUTH.get(str(value).lower())
    if known is None:
        raise DataError(f"the truth value of the class {name!r} is {value!r:.80}, not 0, 1, false or true")
    return known


def in_order(names: Iterable[str]) -> list[str]:
    """Sort names; if all of them are numbers, by their value."""
    names = sorted(names)
    return sorted(names, key=float) if all(map(is_number, names)) else names
