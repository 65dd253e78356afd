"""One start of a sweep, from the words of the command line to its table."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from hfexp.compose import as_typed, config_flags, opened, without_hydra
from hfexp.config import Config, OnExisting, to_config
from hfexp.errors import ConfigError
from hfexp.launch.batches import run_in_batches
from hfexp.launch.pool import sigterm_raises
from hfexp.origin import Origin, command_line, mask_secrets
from hfexp.screen import note, say
from hfexp.sweep import summary
from hfexp.sweep.definition import Definition, SweepDirectory, configuration_hash, data_hash, define, hold_sweep
from hfexp.sweep.membership import Membership, write_membership
from hfexp.sweep.objective import CHOICE_OF_BEST, check_counts, check_directions, metrics_and_directions
from hfexp.sweep.pruners import make_pruner
from hfexp.sweep.settings import Method, SearchConfig
from hfexp.sweep.space import Point, Space, read_space
from hfexp.sweep.trials import State, Sweep, Trial

if TYPE_CHECKING:
    from hfexp.sweep.parent import Parent
    from hfexp.sweep.schedule import Plan, Schedule

MOST_CHECKED = 50
"""Points that are composed before anything starts."""
LOGS = "logs"
SECTIONS = ("search", "security", "seed", "output_dir", "on_existing")


@dataclass
class Direction:
    """What directs a sweep: Hydra's part in it, and the settings."""

    context: Any
    config: Any
    """Composed without what is swept."""
    launcher: Any
    max_batch_size: int | None

    def sweep(self, words: list[str]) -> None:
        """Begin or continue the sweep of these words, run it to its end, and show what came out.

        Raises:
            ConfigError: it can't be run as asked; nothing was created.
            SweepError: some jobs failed.
        """
        search, settings = self._settings()
        check_counts(search)
        check_directions(search)
        parser = OverridesParser.create(config_loader=self.context.config_loader)
        space = read_space(words, search.space, parser, search.seed, opened, self._present)
        points = space.grid() if search.method is Method.grid else None
        examples, config = self._check(space), self.example_config(space)
        example = examples[0]
        seed = _first_seed(search, space, example)
        metrics, directions = metrics_and_directions(search, examples)
        sampler, pruner = self._sampler(search, points)
        definition = define(
            search, space, metrics, directions, configuration_hash(config, examples), data_hash(config, examples)
        )
        output_dir, on_existing = Path(str(settings.get("output_dir") or ".")), settings.get("on_existing")
        existing = on_existing if isinstance(on_existing, OnExisting) else OnExisting(on_existing or "resume")
        with hold_sweep(output_dir, search.name, definition, existing) as directory:
            started = _Started(
                self, search, space, points, metrics, directions, definition, directory, example, config, seed
            )
            started.run(sampler, pruner)

    def example_config(self, space: Space) -> Config | None:
        """The typed configuration of a first point; None in another application."""
        composed = without_hydra(self._compose(space.job(space.samples()[0])))
        return to_config(composed) if OmegaConf.get_type(composed) is Config else None

    def _settings(self) -> tuple[SearchConfig, dict[str, Any]]:
        found = {name: self.config.get(name) for name in SECTIONS}
        plain: dict[str, Any] = {
            name: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for name, value in found.items()
        }
        search = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SearchConfig), plain["search"] or {}))
        assert isinstance(search, SearchConfig)
        return search, plain

    def _check(self, space: Space) -> list[dict[str, Any]]:
        """Compose a first point, and points with each option of a group; return them as plain containers.

        A wrong key or option ends the sweep before it begins; a value that turns out to be wrong is its job's failure.
        """
        telling = (*self.config.hydra.runtime.choices, *CHOICE_OF_BEST)
        composed = [self._compose(space.job(words)) for words in space.samples(telling, MOST_CHECKED)]
        found: Any = [OmegaConf.to_container(without_hydra(one), resolve=False) for one in composed]
        return found

    def _present(self, key: str) -> Any:
        """The value of a key, or the option of a group, that is not swept; None if there is none."""
        chosen = self.config.hydra.runtime.choices.get(key)
        return OmegaConf.select(self.config, key) if chosen is None else chosen

    def _compose(self, words: tuple[str, ...]) -> Any:
        return self.context.config_loader.load_sweep_config(self.config, list(words))

    def _sampler(self, search: SearchConfig, points: list[Point] | None) -> tuple[Any, Any]:
        from hfexp.sweep.samplers import Given, sampler_for

        pruner = make_pruner(search.pruner.value, search.pruner_args)
        if points is not None:
            return Given(lambda number: points[number].params), pruner
        return sampler_for(search.method, search.seed, search.sampler), pruner


@dataclass
class _Started:
    """A sweep whose directory is held."""

    by: Direction
    search: SearchConfig
    space: Space
    points: list[Point] | None
    metrics: list[str]
    directions: list[str]
    definition: Definition
    directory: SweepDirectory
    example: dict[str, Any]
    config: Config | None
    """Of a first point; None in another application."""
    seed: int
    """Of the first replicate."""

    def run(self, sampler: Any, pruner: Any) -> None:
        from hfexp.sweep.ledger import Ledger
        from hfexp.sweep.owner import Owner
        from hfexp.sweep.schedule import Schedule
        from hfexp.sweep.storage import storage_url
        from hfexp.sweep.study import agree, close_study, open_study

        url, plan = storage_url(self.directory.path, self.search.storage), self._plan()
        study = open_study(url, self.directory.name, self.directions, sampler, pruner)
        owner = Owner(study) if self.search.storage else None
        schedule = Schedule(
            plan, Ledger(study, self._choose, owner), lambda: changed(), lambda *died: parent.close_failed(*died)
        )

        def changed() -> None:
            self.directory.note_time()
            parent.update(self._view(schedule), study)

        try:
            if owner:
                agree(study, self.definition)
            with (
                owner.signing() if owner else contextlib.nullcontext(),
                self._parent(self._view(schedule)) as parent,
                self._stopping(schedule),
            ):
                write_membership(self.directory.path, self._membership(url, parent.run_id))
                self._announce(plan)
                schedule.begin()
                changed()
                self._serve(schedule)
                changed()
                view = self._view(schedule)
                summary.show(view)
                retries, early = self.search.retries, schedule.ended_early
                error = summary.failure_of(view, schedule.errors, schedule.total, retries, early)
                if error is not None:
                    raise error
        finally:
            close_study(study)

    def _serve(self, schedule: "Schedule") -> None:
        serve = getattr(self.by.launcher, "serve", None)
        if serve is not None:
            serve(schedule, self.directory.path / LOGS)
            return
        is_grid = self.points is not None
        run_in_batches(self.by.launcher, self.by.config, schedule, self.by.max_batch_size, together=is_grid)

    def _plan(self) -> "Plan":
        from hfexp.sweep.schedule import Plan

        total = self.search.trials or 0
        waiting: list[Trial] = []
        if self.points is not None:
            total = min(self.search.trials or len(self.points), len(self.points))
            numbered = enumerate(self.points[:total])
            waiting = [Trial(number, point.params, point.words, State.waiting) for number, point in numbered]
        return Plan(
            self.search, self.space, self.directory.path, total, tuple(self.directions), seed=self.seed,
            tells_point="point" in self.example, waiting=waiting,
            grace_seconds=float(getattr(self.by.launcher, "grace_seconds", Plan.grace_seconds)),
        )  # fmt: skip

    def _choose(self, trial: Any) -> Point:
        """The parameters of a trial, asked for through it."""
        if self.points is None:
            return self.space.suggest(trial, self._call)
        point = self.points[trial.number]
        for dimension in self.space.dimensions:
            if dimension.key in point.params:
                trial.suggest_categorical(dimension.key, list(dimension.values))
        return point

    def _call(self, node: dict[str, Any], trial: Any) -> Any:
        from hfexp import targets

        allowed = (self.by.config.get("security") or {}).get("allowed_targets")
        found = targets.instantiate(node, "search.space", list(allowed or []), trial=trial)
        if not isinstance(found, dict):
            raise ConfigError(f"search.space: {node['_target_']} returned {found!r} instead of a dict of key to value")
        return {opened(f"{key}=").removesuffix("="): value for key, value in found.items()}

    def _membership(self, url: str, parent_run_id: str | None) -> Membership:
        search = self.search
        return Membership(
            self.directory.name, self.directory.name, url, parent_run_id, search.metrics, self.directions,
            search.pruner.value, search.pruner_args,
        )  # fmt: skip

    def _view(self, schedule: "Schedule") -> Sweep:
        fixed = tuple(map(mask_secrets, self.space.fixed))
        return Sweep(
            self.directory.name, self.directory.path, _command(), self.search.method.value, tuple(self.metrics),
            tuple(self.directions), fixed, self.space.texts, self.directory.seconds,
            flags=tuple(config_flags(sys.argv[1:])), trials=schedule.trials,
        )  # fmt: skip

    def _announce(self, plan: "Plan") -> None:
        what = "continuing" if self.directory.continued else "sweep"
        several = f", {plan.replicates} replicates each" if plan.replicates > 1 else ""
        say(f"{what} {self.directory.name}: {self.search.method.value}, {plan.total} points{several}")

    @contextlib.contextmanager
    def _stopping(self, schedule: "Schedule") -> Iterator[None]:
        """Ctrl-C and SIGTERM end the sweep with a word about how far it is."""
        try:
            with sigterm_raises():
                yield
        except (KeyboardInterrupt, SystemExit):
            note(f"stopped: {summary.progress(schedule.trials)}; the same command continues the sweep")
            raise

    def _parent(self, sweep: Sweep) -> contextlib.AbstractContextManager["Parent | _NoParent"]:
        """The record of the whole sweep; another application's jobs have none to stand above."""
        if self.config is None:
            return contextlib.nullcontext(_NoParent())
        from hfexp.sweep.parent import open_parent

        return open_parent(self.config, _origin(self.by.config, self.space.fixed), sweep, self.directory.path)


class _NoParent:
    """Records nothing."""

    run_id: str | None = None

    def update(self, sweep: Sweep, study: Any) -> None:
        pass

    def close_failed(self, run_dir: Path, reason: str) -> None:
        pass


def _first_seed(search: SearchConfig, space: Space, example: dict[str, Any]) -> int:
    """The seed that replicates count on from."""
    seed = example.get("seed")
    if search.replicates > 1 and any(dimension.key == "seed" for dimension in space.dimensions):
        raise ConfigError("search.replicates counts on from seed, which is swept itself: leave one of the two out")
    if search.replicates > 1 and not isinstance(seed, int):
        raise ConfigError("search.replicates counts on from the key seed, which is not there")
    return seed if isinstance(seed, int) else 0


def _origin(config: Any, fixed: tuple[str, ...]) -> Origin:
    """Where the sweep comes from."""
    choices = {k: v for k, v in config.hydra.runtime.choices.items() if "/" not in k}
    sources = tuple(f"{s.schema}://{s.path}" for s in config.hydra.runtime.config_sources if s.path)
    return Origin(choices, list(fixed), _command(), config_sources=sources)


def _command() -> str:
    """The command as it can be typed again."""
    return command_line([as_typed(word) for word in sys.argv[1:]])
