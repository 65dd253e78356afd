"""The search space of a sweep: from overrides and `search.space` to points, each a set of overrides."""

import itertools
import math
import random
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    IntervalSweep,
    Override,
    QuotedString,
    RangeSweep,
    Sweep,
    Transformer,
)

from hfexp.core.compose import RESERVED, spelling
from hfexp.core.errors import ConfigError, did_you_mean, one_of

# One swept key: its values in Hydra's grammar, and how an Optuna sampler chooses one of them.


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

    def override(self, value: Any) -> str:
        """Return the override for a value that Optuna chose."""
        if not self.is_finite:
            return f"{self.element}={value}"
        if value in self.values:
            return f"{self.element}={self.spellings[self.values.index(value)]}"
        # Optuna computes a float of a range as low + n * step, which may differ from the value in its last digits.
        numbers = [float(choice) for choice in self.values]
        nearest = min(range(len(numbers)), key=lambda index: abs(numbers[index] - value))
        return f"{self.element}={self.spellings[nearest]}"

    def takes(self, spelling: str) -> bool:
        """Tell whether `override` can give this spelling of a value."""
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
        raise ConfigError(f"{element.lstrip('+')}={text} has no values")
    by_spelling = dict(zip(spellings, plain, strict=True))
    bounds = _range_bounds(value, list(by_spelling.values())) if isinstance(value, RangeSweep) else None
    return Dimension(**where, spellings=tuple(by_spelling), values=_optuna_values(by_spelling), bounds=bounds)


def unquoted(override: str) -> str:
    """Return the value of an override (`key=value`) for comparisons: unquoted, unescaped, numbers in one spelling."""
    text = override.partition("=")[2]
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return ESCAPED.sub(r"\1", text[1:-1])
    text = ESCAPED.sub(r"\1", text)
    try:
        number = float(text)
    except ValueError:
        return text.lower() if text.lower() in RESERVED else text
    return str(int(number)) if number.is_integer() else repr(number)


def _optuna_values(by_spelling: Mapping[str, Any]) -> tuple[Value, ...]:
    """Return distinct numbers or distinct strings as they are; for any other values return their spellings."""
    values = list(by_spelling.values())
    is_number: Callable[[Any], bool] = lambda v: type(v) in (int, float) and math.isfinite(v)  # noqa: E731
    same_kind = all(map(is_number, values)) or all(isinstance(value, str) for value in values)
    return tuple(values) if same_kind and len(set(values)) == len(values) else tuple(by_spelling)


def _interval_bounds(element: str, value: IntervalSweep) -> Bounds:
    assert value.start is not None
    assert value.end is not None
    key, log = element.lstrip("+"), "log" in value.tags
    integer = isinstance(value.start, int) and isinstance(value.end, int)
    if value.start > value.end:
        raise ConfigError(f"{key}: interval({value.start}, {value.end}) is empty; write the lower end first")
    if log and value.start <= 0:
        raise ConfigError(f"{key}: a log scale must start above 0, got {value.start}")
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
            "tag(log, range(...)) needs integers from 1 on with step 1; use tag(log, interval(...)) instead"
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


MOST_POINTS = 1_000_000
"""Most points of a grid."""
PARTS = ("values", "when")
TARGET = "_target_"
NEVER_SWEPT = ("search", "hydra", "point")


@dataclass(frozen=True)
class Point:
    """One point: the values of its keys, as Optuna knows them, and its overrides."""

    params: dict[str, Any]
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Space:
    """The swept keys of a sweep, and the overrides that all of its points share."""

    layout: tuple[tuple[str, str | None], ...]
    """Keys of the command line in Hydra's order, each with its override if all points share it, else None."""
    dimensions: tuple[Dimension, ...]
    """The swept keys; a key that depends on others comes after them."""
    function: dict[str, Any] | None = field(default=None)
    """`_target_` node of the user's own function, which chooses values too; None without one."""

    @property
    def fixed(self) -> tuple[str, ...]:
        """Return the overrides that all points share."""
        return tuple(override for _, override in self.layout if override is not None)

    @property
    def texts(self) -> dict[str, str]:
        """Return the values as the user wrote them, by key."""
        texts = {dimension.key: _described(dimension) for dimension in self.dimensions}
        return texts | ({"search.space": str(self.function[TARGET])} if self.function else {})

    def job(self, overrides: Sequence[str]) -> tuple[str, ...]:
        """Return all overrides of a job, in the order of Hydra's own sweeper.

        Args:
            overrides: those of its point from the storage, to which others may have written.

        Raises:
            ConfigError: they are not a point of this space.
        """
        self._check_overrides(overrides)
        own = {override.partition("=")[0]: override for override in overrides}
        placed = [override if override is not None else own.pop(key, None) for key, override in self.layout]
        return (*(override for override in placed if override is not None), *own.values())

    def _check_overrides(self, overrides: Sequence[str]) -> None:
        by_element = {dimension.element: dimension for dimension in self.dimensions}
        for override in overrides if self.function is None else ():
            element, _, value = override.partition("=")
            dimension = by_element.get(element)
            if dimension is None or not dimension.takes(value):
                raise ConfigError(f"search.storage holds a trial with {override}, which is not a value of this sweep")

    def grid(self) -> list[Point]:
        """Return every combination once, the last key varying fastest.

        Raises:
            ConfigError: the space isn't finite, or has more than `MOST_POINTS` points, or a user's function.
        """
        for dimension in self.dimensions:
            if not dimension.is_finite:
                raise ConfigError(
                    f"{dimension.key}={dimension.text}: a grid needs a list of values; write "
                    f"{dimension.key}=choice(...) or range(...), or choose a sampler (search=tpe)"
                )
        if self.function:
            raise ConfigError("search.space._target_ needs a sampler: set search=tpe or search=random")
        if math.prod(len(dimension.spellings) for dimension in self.dimensions) > MOST_POINTS:
            raise ConfigError(
                f"the grid has more than {MOST_POINTS:,} points; use search=random search.trials=N to try some of them"
            )
        return list(self._points(0, {}, {}))

    def _points(self, depth: int, params: Mapping[str, Any], chosen: Mapping[str, str]) -> Iterator[Point]:
        if depth == len(self.dimensions):
            yield Point(dict(params), tuple(chosen.values()))
            return
        dimension = self.dimensions[depth]
        if not dimension.exists(chosen):
            yield from self._points(depth + 1, params, chosen)
            return
        for value in dimension.values:
            more = {dimension.key: dimension.override(value)}
            yield from self._points(depth + 1, {**params, dimension.key: value}, {**chosen, **more})

    def suggest(self, trial: Any, call: Callable[[dict[str, Any], Any], Mapping[str, Any]]) -> Point:
        """Let a sampler choose a point.

        Args:
            trial: Optuna's trial.
            call: calls the user's function, given its node and the trial.
        """
        params: dict[str, Any] = {}
        chosen: dict[str, str] = {}
        for dimension in self.dimensions:
            if dimension.exists(chosen):
                value = params[dimension.key] = dimension.suggest(trial)
                chosen[dimension.key] = dimension.override(value)
        if self.function:
            for key, value in call(self.function, trial).items():
                params.setdefault(key.lstrip("+"), value)
                chosen.setdefault(key.lstrip("+"), f"{key}={spelling(value)}")
        return Point(params, tuple(chosen.values()))

    def samples(self, keys: Container[str] = (), limit: int = 1) -> list[tuple[str, ...]]:
        """Return the overrides of a first point, and of one point for each further value of the given keys."""
        first = {d.key: d.override(_first(d)) for d in self.dimensions if not d.when}
        points = [tuple(first.values())]
        for dimension in self.dimensions:
            if dimension.key in keys and not dimension.when:
                overrides = (dimension.override(value) for value in dimension.values[1:])
                points += [tuple({**first, dimension.key: override}.values()) for override in overrides]
        return list(itertools.islice(points, limit))


def read_space(
    overrides: Sequence[str],
    nodes: Mapping[str, Any],
    parser: OverridesParser,
    seed: int,
    opened: Callable[[str], str] = str,
    fixed_value: Callable[[str, Space], Any] = lambda key, space: None,
) -> Space:
    """Build the search space of a command line and of `search.space`; the command line wins.

    Args:
        overrides: those of the command line.
        nodes: `search.space`.
        parser: Hydra's parser of overrides.
        seed: seed of `shuffle(...)`.
        opened: adds to an override the `++` that Hydra needs for keys which the config does not list.
        fixed_value: returns the value that a key which is not swept has in the points of a space, or None.

    Raises:
        ConfigError: a key has no valid values or conditions, is swept twice, or may not be swept.
        HydraException: an override does not parse.
    """
    layout: dict[str, str | None] = {}
    dimensions: dict[str, Dimension] = {}
    for override in parser.parse_overrides(list(overrides)):
        element = override.get_key_element()
        if override.is_sweep_override():
            _refuse_never_swept(override)
            layout[element] = None
            dimensions[element] = dimension_of(override, override.get_value_string(), seed)
        else:
            layout[element] = f"{element}={override.get_value_element_as_str()}"
            dimensions.pop(element, None)
    function = dict(nodes) if TARGET in nodes else None
    given = {element.lstrip("+~") for element in layout}
    configured: list[Dimension] = []
    for key, node in ({} if function else nodes).items():
        is_given = key.lstrip("+") in given
        if is_given and node is None:
            continue
        dimension = _from_node(key, node, parser, seed, opened)
        configured.append(dimension)
        if not is_given:
            dimensions[dimension.element] = dimension
    _refuse_duplicates(dimensions)
    _check_conditions(dimensions, configured)
    where = Space(tuple(layout.items()), tuple(d for d in dimensions.values() if not d.when), function)
    dimensions = _resolve_conditions(dimensions, lambda key: fixed_value(key, where))
    written = [element for element in layout if element in dimensions]  # a key given twice keeps its first place
    ordered = _ordered([dimensions[element] for element in dict.fromkeys([*written, *dimensions])])
    return Space(tuple(layout.items()), ordered, function)


def _from_node(key: str, node: Any, parser: OverridesParser, seed: int, opened: Callable[[str], str]) -> Dimension:
    """Build the dimension of one key of `search.space`."""
    where = f"search.space.{key}"
    values, when = node, {}
    if isinstance(node, dict):
        unknown = sorted(set(node) - set(PARTS))
        if unknown or "values" not in node:
            hint = did_you_mean(unknown[0], PARTS) if unknown else ""
            raise ConfigError(f"{where}: a mapping needs `values` and may have `when`.{hint}")
        values, when = node["values"], node.get("when") or {}
    if not isinstance(when, dict):
        raise ConfigError(f"{where}.when must be a mapping of another key to its values, e.g. {{optimizer: sgd}}")
    if values is None or values == []:
        raise ConfigError(f"{where} has no values")
    text = values if isinstance(values, str) else _listed(values)
    (override,) = parser.parse_overrides([opened(f"{key}={text}")])
    _refuse_never_swept(override)
    conditions = {name: _comparable(allowed) for name, allowed in when.items()}
    return dimension_of(override, str(text), seed, conditions)


def _listed(values: Any) -> str:
    items = values if isinstance(values, list) else [values]
    return ",".join(spelling(item) for item in items)  # in `choice(...)`, Hydra would lose quotes and refuse null


def _comparable(allowed: Any) -> tuple[str, ...]:
    items = allowed if isinstance(allowed, list) else [allowed]
    return tuple(unquoted(f"={spelling(item)}") for item in items)


def _refuse_never_swept(override: Override) -> None:
    head = override.key_or_group.partition(".")[0].partition("/")[0]
    if head in NEVER_SWEPT:
        key = override.key_or_group
        raise ConfigError(f"{key} can't be swept; start one sweep for each value of {key} instead")


def _refuse_duplicates(dimensions: Mapping[str, Dimension]) -> None:
    first: dict[str, Dimension] = {}
    for dimension in dimensions.values():
        other = first.setdefault(dimension.key, dimension)
        if other is not dimension:
            swept = " and ".join(f"{each.element}={each.text}" for each in (other, dimension))
            raise ConfigError(f"{dimension.key} is swept twice, by {swept}: remove one of the two")


def _check_conditions(dimensions: Mapping[str, Dimension], configured: Sequence[Dimension]) -> None:
    """Refuse conditions on values that a key never has: the key that depends on them would never exist.

    Args:
        configured: dimensions of `search.space`, which may have more values than the command line leaves.
    """
    swept = {dimension.key for dimension in dimensions.values()}
    for dimension in dimensions.values():
        for key, allowed in dimension.when.items():
            matching = [other for other in (*dimensions.values(), *configured) if other.key == key]
            values = {unquoted(f"={text}") for other in matching for text in other.spellings}
            wrong = [value for value in allowed if value not in values]
            if key in swept and wrong and all(other.is_finite for other in matching):
                raise ConfigError(
                    f"search.space.{dimension.key}.when: {key} is never {wrong[0]}.{did_you_mean(wrong[0], values)} "
                    f"Its values: {one_of(values)}"
                )


def _resolve_conditions(dimensions: dict[str, Dimension], fixed_value: Callable[[str], Any]) -> dict[str, Dimension]:
    """Resolve conditions on keys that are not swept: drop those that hold, and the dimensions of those that don't."""
    remaining = dict(dimensions)
    while True:
        swept = {dimension.key for dimension in remaining.values()}
        for element, dimension in list(remaining.items()):
            fixed = {key: fixed_value(key) for key in dimension.when if key not in swept}
            texts = {key: unquoted(f"={spelling(value)}") for key, value in fixed.items() if value is not None}
            if any(value not in dimension.when[key] for key, value in texts.items()):
                del remaining[element]  # others may depend on it, hence the outer loop
            else:
                conditions = {key: allowed for key, allowed in dimension.when.items() if key not in texts}
                remaining[element] = replace(dimension, when=conditions)
        if {dimension.key for dimension in remaining.values()} == swept:
            return remaining


def _ordered(dimensions: list[Dimension]) -> tuple[Dimension, ...]:
    """Put each dimension after the keys it depends on, and keep the written order otherwise."""
    keys = [dimension.key for dimension in dimensions]
    for dimension in dimensions:
        for other in dimension.when:
            if other not in keys:
                hint = did_you_mean(other, keys)
                raise ConfigError(
                    f"search.space.{dimension.key}.when names {other}, which is not swept.{hint} Swept: {one_of(keys)}"
                )
    ordered: list[Dimension] = []
    while len(ordered) < len(dimensions):
        done = {dimension.key for dimension in ordered}
        ready = [d for d in dimensions if d.key not in done and done.issuperset(d.when)]
        if not ready:
            rest = one_of(set(keys) - done)
            raise ConfigError(f"search.space: the `when` of these keys depend on each other: {rest}")
        ordered.append(ready[0])
    return tuple(ordered)


def _first(dimension: Dimension) -> Any:
    if dimension.is_finite:
        return dimension.values[0]
    assert dimension.bounds is not None
    return dimension.bounds.low


def _described(dimension: Dimension) -> str:
    conditions = ", ".join(f"{key}={'|'.join(allowed)}" for key, allowed in dimension.when.items())
    return f"{dimension.text} when {conditions}" if conditions else dimension.text
