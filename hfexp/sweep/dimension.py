"""One swept key: its values in Hydra's grammar, and how an Optuna sampler chooses one of them."""

import math
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.types import (
    IntervalSweep,
    Override,
    QuotedString,
    RangeSweep,
    Sweep,
    Transformer,
)

from hfexp.core.errors import ConfigError
from hfexp.core.overrides import RESERVED

ESCAPED = re.compile(r"\\(.)")


Value = bool | int | float | str


@dataclass(frozen=True)
class Bounds:
    """Range of a number that a sampler chooses; both ends are included."""

    low: float
    high: float
    step: float | None = None
    """Distance between two values; None: any float in the range."""
    log: bool = False
    integer: bool = False


@dataclass(frozen=True)
class Dimension:
    """One key of the search space."""

    element: str
    """The key as an override has it, e.g. `++trainer.args.learning_rate`."""
    text: str
    """The values as the user wrote them."""
    spellings: tuple[str, ...] = ()
    """All values in Hydra's spelling, in order; empty for an interval."""
    values: tuple[Value, ...] = ()
    """The same values as Optuna gets them."""
    bounds: Bounds | None = None
    """Range of the values for a sampler; None: the sampler chooses one of `values` by category."""
    when: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Conditions: other keys, each with those of its values under which this key exists."""

    @property
    def key(self) -> str:
        return self.element.lstrip("+")

    @property
    def is_finite(self) -> bool:
        return bool(self.spellings)

    def word(self, value: Any) -> str:
        """Return the override for a value that Optuna chose."""
        if not self.is_finite:
            return f"{self.element}={value}"
        if value in self.values:
            return f"{self.element}={self.spellings[self.values.index(value)]}"
        # Optuna computes a float of a range as low + n * step, which may differ from the value in its last digits.
        numbers = [float(known) for known in self.values]
        nearest = min(range(len(numbers)), key=lambda index: abs(numbers[index] - value))
        return f"{self.element}={self.spellings[nearest]}"

    def takes(self, spelling: str) -> bool:
        """Tell whether `word` can give this spelling of a value."""
        if self.is_finite:
            return spelling in self.spellings
        try:
            return math.isfinite(float(spelling))
        except ValueError:
            return False

    def suggest(self, trial: Any) -> Any:
        """Let the sampler choose a value through an Optuna trial."""
        bounds = self.bounds
        if bounds is None:
            return trial.suggest_categorical(self.key, list(self.values))
        if bounds.integer:
            step = {} if bounds.log else {"step": int(bounds.step or 1)}
            return trial.suggest_int(self.key, int(bounds.low), int(bounds.high), log=bounds.log, **step)
        return trial.suggest_float(self.key, bounds.low, bounds.high, step=bounds.step, log=bounds.log)

    def exists(self, chosen: Mapping[str, str]) -> bool:
        """Tell whether this key exists under the overrides chosen so far (by key)."""
        return all(key in chosen and unquoted(chosen[key]) in allowed for key, allowed in self.when.items())


def dimension_of(
    override: Override, text: str, seed: int, when: Mapping[str, tuple[str, ...]] | None = None
) -> Dimension:
    """Build the dimension of an override that Hydra has parsed.

    Args:
        override: a sweep, or a single value.
        text: the values as the user wrote them.
        seed: seed of `shuffle(...)`.
        when: see `Dimension`.

    Raises:
        ConfigError: the override gives no value, or a range that can't be searched.
    """
    element, value = override.get_key_element(), override.value()
    where = {"element": element, "text": text, "when": dict(when or {})}
    if isinstance(value, IntervalSweep):
        return Dimension(**where, bounds=_interval_bounds(element, value))
    if not isinstance(value, Sweep) and not override.is_sweep_override():
        spellings, plain = [override.get_value_element_as_str()], [value]
    else:
        with _seeded(seed):
            spellings = list(override.sweep_string_iterator())
        with _seeded(seed):
            plain = [_without_quotes(item) for item in override.sweep_iterator(Transformer.identity)]
    if not spellings:
        raise ConfigError(f"{element.lstrip('+')}={text} gives no value")
    known = dict(zip(spellings, plain, strict=True))
    bounds = _range_bounds(value, list(known.values())) if isinstance(value, RangeSweep) else None
    return Dimension(**where, spellings=tuple(known), values=_as_told(known), bounds=bounds)


def unquoted(word: str) -> str:
    """Return the value of an override (`key=value`) for comparisons: unquoted, unescaped, numbers in one spelling."""
    text = word.partition("=")[2]
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return ESCAPED.sub(r"\1", text[1:-1])
    text = ESCAPED.sub(r"\1", text)
    try:
        number = float(text)
    except ValueError:
        return text.lower() if text.lower() in RESERVED else text
    return str(int(number)) if number.is_integer() else repr(number)


def _as_told(known: Mapping[str, Any]) -> tuple[Value, ...]:
    """Return distinct numbers or distinct strings as they are; for any other values return their spellings."""
    values = list(known.values())
    is_number: Callable[[Any], bool] = lambda v: type(v) in (int, float) and math.isfinite(v)  # noqa: E731
    same_kind = all(map(is_number, values)) or all(isinstance(value, str) for value in values)
    return tuple(values) if same_kind and len(set(values)) == len(values) else tuple(known)


def _interval_bounds(element: str, value: IntervalSweep) -> Bounds:
    assert value.start is not None
    assert value.end is not None
    key, log = element.lstrip("+"), "log" in value.tags
    integer = isinstance(value.start, int) and isinstance(value.end, int)
    if value.start > value.end:
        raise ConfigError(f"{key}: interval({value.start}, {value.end}) is empty; the lower end comes first")
    if log and value.start <= 0:
        raise ConfigError(f"{key}: a log scale begins above 0, not at {value.start}")
    return Bounds(value.start, value.end, 1 if integer else None, log, integer)


def _range_bounds(value: RangeSweep, numbers: list[Any]) -> Bounds | None:
    """Return the bounds of the numbers themselves, so that the upper end is excluded as it is in a grid."""
    integer = all(isinstance(number, int) for number in numbers)
    step, log = abs(value.step), "log" in value.tags
    low, high = min(numbers), max(numbers)
    if not integer:  # accumulated floats miss the last multiple of the step, and a sampler would never choose it
        start, by = Decimal(str(value.start)), Decimal(str(value.step))
        low, high = sorted((float(start), float(start + (len(numbers) - 1) * by)))
    if log and (not integer or step != 1 or low <= 0):
        raise ConfigError(
            "tag(log, range(...)) is for whole numbers from 1 on, one by one; use tag(log, interval(...))"
        )
    return Bounds(low, high, step, log, integer)


def _without_quotes(item: Any) -> Any:
    return item.text if isinstance(item, QuotedString) else item


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed Python's own generator, which Hydra shuffles with: every start of a sweep must get the same order."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
