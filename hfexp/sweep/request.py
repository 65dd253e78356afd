"""The request of a sweep: its overrides, read and checked, with their points. Nothing is created here."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hfexp.core.compose import choices_of, opened, without_hydra
from hfexp.core.config import Config, OnExisting, to_config
from hfexp.core.errors import ConfigError, join_problems, one_of
from hfexp.core.foreign_settings import find_foreign_settings
from hfexp.core.overrides import spelling
from hfexp.core.search_config import Method, SearchConfig
from hfexp.core.secrets import without_secrets
from hfexp.experiment.choices import check_choices
from hfexp.sweep.definition import Definition, configuration_hash, data_hash, define
from hfexp.sweep.objective import CHOICE_OF_BEST, check_counts, check_directions, metrics_and_directions
from hfexp.sweep.space import Point, Space, read_space

MOST_CHECKED = 50
"""Most points that are composed as a check before anything starts."""
SOURCE = "dataset.source"
SECTIONS = ("search", "output_dir", "on_existing")


@dataclass(frozen=True)
class Request:
    """A checked sweep that can be begun or continued."""

    search: SearchConfig
    space: Space
    points: list[Point] | None
    """All points of a grid; None for a sampler, which chooses points as results come in."""
    metrics: list[str]
    directions: list[str]
    definition: Definition
    example: dict[str, Any]
    """Composed config of a first point, unresolved."""
    config: Config | None
    """Typed config of a first point; None in another application."""
    seed: int
    """Seed of the first replicate."""
    output_dir: Path
    on_existing: OnExisting

    @property
    def total(self) -> int:
        """Return the number of points of the whole sweep."""
        if self.points is None:
            return self.search.trials or 0
        return min(self.search.trials or len(self.points), len(self.points))


@dataclass(frozen=True)
class Composer:
    """Composes points as Hydra does."""

    context: Any
    config: Any
    """Composed without the swept overrides."""

    def request(self, words: list[str]) -> Request:
        """Build and check the request of these overrides.

        Raises:
            ConfigError: the sweep can't be run as asked.
        """
        search, settings = self._settings()
        check_counts(search)
        check_directions(search)
        parser = OverridesParser.create(config_loader=self.context.config_loader)
        space = read_space(words, search.space, parser, search.seed, opened, _Present(self))
        _refuse_secrets(space)
        points = space.grid() if search.method is Method.grid else None
        composed, config = self.samples(space), self._example_config(space)
        sources = [config.dataset.source, *_sources(composed, space, parser)] if config else []
        # Composing has refused wrong keys and options by now; a value that proves wrong later fails its own job only.
        examples: Any = [OmegaConf.to_container(without_hydra(one), resolve=False) for one in composed]
        seed = _first_seed(search, space, examples[0])
        metrics, directions = metrics_and_directions(search, examples)
        definition = define(
            search, space, metrics, directions, configuration_hash(config, examples), data_hash(sources)
        )
        on_existing = settings.get("on_existing") or OnExisting.resume
        return Request(
            search, space, points, metrics, directions, definition, examples[0], config, seed,
            Path(str(settings.get("output_dir") or ".")), OnExisting(on_existing),
        )  # fmt: skip

    def compose(self, words: tuple[str, ...]) -> Any:
        """Compose a whole config, Hydra's section included."""
        return self.context.config_loader.load_sweep_config(self.config, list(words))

    def samples(self, space: Space) -> list[Any]:
        """Compose a first point, and one point for each further option of a swept group, as whole configs."""
        telling = (*self.groups(space), *CHOICE_OF_BEST)
        return [self.compose(space.job(words)) for words in space.samples(telling, MOST_CHECKED)]

    def groups(self, space: Space) -> tuple[str, ...]:
        """Return the config groups of a first point; `self.config` would lack a swept group that `+` adds."""
        first = self.compose(space.job(space.samples()[0]))
        return tuple(first.hydra.runtime.choices)

    def _settings(self) -> tuple[SearchConfig, dict[str, Any]]:
        found = {name: self.config.get(name) for name in SECTIONS}
        plain: dict[str, Any] = {
            name: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for name, value in found.items()
        }
        search = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SearchConfig), plain["search"] or {}))
        assert isinstance(search, SearchConfig)
        return search, plain

    def _example_config(self, space: Space) -> Config | None:
        first = self.compose(space.job(space.samples()[0]))
        choices, composed = choices_of(first), without_hydra(first)
        if OmegaConf.get_type(composed) is not Config:
            return None
        config = to_config(composed)
        check_choices(config, choices)
        problems = find_foreign_settings(config.trainer.args)
        if problems:
            raise ConfigError(join_problems(problems))
        return config


class _Present:
    """Looks up keys that are not swept, whose values all points must share."""

    def __init__(self, composer: Composer) -> None:
        self._composer = composer
        self._points: list[Any] = []

    def __call__(self, key: str, space: Space) -> Any:
        """Return the value of a key, or the option of a group; None if there is none.

        Raises:
            ConfigError: the points differ in the key, as options of a swept group set it.
        """
        self._points = self._points or self._composer.samples(space)
        found = {spelling(value): value for value in (_value(one, key) for one in self._points)}
        if len(found) > 1:
            raise ConfigError(
                f"search.space: a `when` names {key}, which is not swept, but not the same in all points "
                f"({one_of(found)}), as options of a group differ in it: sweep {key} itself, or give it one value"
            )
        (value,) = found.values()
        return value


def _refuse_secrets(space: Space) -> None:
    """Refuse to sweep over secrets: a sweep stores its values, and a secret does not change a result."""
    for dimension in space.dimensions:
        told = {dimension.key: list(dimension.values)}
        if without_secrets(told) != told:
            raise ConfigError(
                f"{dimension.key}: its values are secrets, and a sweep keeps what is swept; give it one value"
            )


def _value(composed: Any, key: str) -> Any:
    chosen = composed.hydra.runtime.choices.get(key)
    found = OmegaConf.select(composed, key) if chosen is None else chosen
    return OmegaConf.to_container(found) if OmegaConf.is_config(found) else found


def _sources(composed: list[Any], space: Space, parser: OverridesParser) -> list[dict[str, Any]]:
    """Return `dataset.source` of these points, and of the first one with each swept value of a key in it."""
    found, other = [_resolved(one) for one in composed], copy.deepcopy(composed[0])
    for dimension in space.dimensions:
        if f"{dimension.key}.".startswith(f"{SOURCE}."):
            for override in parser.parse_overrides([dimension.word(value) for value in dimension.values]):
                OmegaConf.update(other, dimension.key, override.value(), merge=False, force_add=True)
                found.append(_resolved(other))
    return found


def _resolved(composed: Any) -> dict[str, Any]:
    try:
        source: Any = OmegaConf.to_container(OmegaConf.select(composed, SOURCE), resolve=True)
    except OmegaConfBaseException:  # such a point can't run, so it reads no files
        return {}
    return source


def _first_seed(search: SearchConfig, space: Space, example: dict[str, Any]) -> int:
    """Return the seed of the first replicate, from which the others count up."""
    seed = example.get("seed")
    if search.replicates > 1 and any(dimension.key == "seed" for dimension in space.dimensions):
        raise ConfigError("search.replicates counts on from seed, which is swept itself: leave one of the two out")
    if search.replicates > 1 and not isinstance(seed, int):
        raise ConfigError("search.replicates counts on from the key seed, which is not there")
    return seed if isinstance(seed, int) else 0
