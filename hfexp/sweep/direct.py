"""One start of a sweep, from its overrides to the table of its results."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfexp.core.compose import as_typed, config_flags, opened
from hfexp.core.config import Optimise
from hfexp.core.console import note, say, silent, status
from hfexp.core.errors import ConfigError, first_line
from hfexp.core.process import stop_raises
from hfexp.core.provenance import Origin, command_line
from hfexp.core.secrets import mask_override
from hfexp.experiment.sweep_values import make_pruner
from hfexp.launch import forkserver
from hfexp.launch.job import call_warm
from hfexp.launch.local import run_in_batches
from hfexp.sweep import parent_run
from hfexp.sweep.request import Composer, Request, SweepDirectory, hold_sweep
from hfexp.sweep.space import Point
from hfexp.sweep.trials import State, Sweep, Trial, best, best_runs_first
from hfexp.tracking.membership import SweepInfo, write_sweep_info
from hfexp.tracking.run_directory import held_run
from hfexp.tracking.store import is_shared, tracking_uri

if TYPE_CHECKING:
    from hfexp.sweep.parent_run import Parent
    from hfexp.sweep.scheduler import Owner, Plan, Schedule
    from hfexp.sweep.shared_parent import SharedParent

LOGS = "logs"
MOST_DRAWN = 3
"""Most of several equally good runs whose reports get pictures; as many as are shown at the end."""


@dataclass
class SweepRunner:
    """Runs a sweep with Hydra's context, config and launcher."""

    context: Any
    config: Any
    """Composed without the swept overrides."""
    launcher: Any
    max_batch_size: int | None

    def sweep(self, overrides: list[str]) -> None:
        """Begin or continue the sweep of these overrides, run it to its end, and show its results.

        Raises:
            ConfigError: it can't be run as asked; wrong overrides are found before anything is created.
            SweepError: some jobs failed.
        """
        request = Composer(self.context, self.config, getattr(self.launcher, "prepare", lambda: None)).request(
            overrides
        )
        sampler, pruner = make_sampler(request)
        with hold_sweep(request.output_dir, request.search.name, request.definition, request.on_existing) as directory:
            _SweepStart(self, request, directory).run(sampler, pruner)


def make_sampler(request: Request) -> tuple[Any, Any]:
    """Build Optuna's sampler and pruner.

    Raises:
        ConfigError: one of them does not accept its arguments.
    """
    from hfexp.sweep.study import GridSampler, sampler_for

    search, points = request.search, request.points
    pruner = make_pruner(search.pruner.value, search.pruner_args)
    if points is not None:
        return GridSampler(lambda number: points[number].params), pruner
    return sampler_for(search.method, search.seed, search.sampler), pruner


@dataclass
class _SweepStart:
    """A sweep whose directory this process has locked."""

    runner: SweepRunner
    request: Request
    directory: SweepDirectory

    def run(self, sampler: Any, pruner: Any) -> None:
        from hfexp.experiment.sweep_storage import storage_url
        from hfexp.sweep.scheduler import Owner, Schedule, TrialStore
        from hfexp.sweep.study import agree, close_study, open_study

        search = self.request.search
        url, plan = storage_url(self.directory.path, search.storage), self._plan()
        study = open_study(url, self.directory.name, self.request.directions, sampler, pruner)
        owner = Owner(study) if search.storage else None
        shared = owner is not None and self._shares_record()
        plan.shares_record = shared
        schedule = Schedule(
            plan, TrialStore(study, self._choose, owner), lambda: changed(), lambda *died: parent.close_failed(*died)
        )

        def changed() -> None:
            self.directory.save_time()
            parent.update(self._view(schedule))

        try:
            if owner:
                agree(study, self.request.definition, self.request.on_existing)
            with (
                owner.signing() if owner else contextlib.nullcontext(),
                self._parent(schedule, owner if shared else None) as parent,
                self._stopping(schedule),
            ):
                write_sweep_info(self.directory.path, self._sweep_info(url, parent))
                self._announce(plan)
                schedule.begin()
                changed()
                self._serve(schedule)
                changed()
                view = self._view(schedule)
                parent_run.show(view)
                self._draw_best(view)
                retries, early = search.retries, schedule.ended_early
                error = parent_run.failure_of(view, schedule.errors, schedule.total, retries, early)
                if error is not None:
                    raise error
        finally:
            close_study(study)

    def _serve(self, schedule: "Schedule") -> None:
        serve = getattr(self.runner.launcher, "serve", None)
        if serve is not None:
            serve(schedule, self.directory.path / LOGS)
            return
        is_grid = self.request.points is not None
        run_in_batches(
            self.runner.launcher, self.runner.config, schedule, self.runner.max_batch_size, together=is_grid
        )

    def _draw_best(self, sweep: Sweep) -> None:
        """Draw the reports of the best runs with pictures, unless each job has drawn its own, or none is to."""
        config = self.request.config
        if config is None or config.tracking.pictures is not None:
            return
        for trial in best(sweep.trials, sweep.directions)[:MOST_DRAWN]:
            run_dir = best_runs_first(trial, sweep.directions)[0].run_dir
            if run_dir is not None and not any((run_dir / "artifacts").glob("*.png")):
                status(f"drawing the report of job {trial.number}")
                _try_to_draw(run_dir, Path(config.output_dir))

    def _plan(self) -> "Plan":
        from hfexp.sweep.scheduler import Plan

        request, waiting = self.request, []
        for number, point in enumerate((request.points or [])[: request.total]):
            waiting.append(Trial(number, point.params, point.overrides, State.waiting))
        return Plan(
            request.search, request.space, self.directory.path, request.total, tuple(request.directions),
            seed=request.seed, has_point_key="point" in request.example, waiting=waiting,
            grace_seconds=float(getattr(self.runner.launcher, "grace_seconds", Plan.grace_seconds)),
            jobs_survive=getattr(self.runner.launcher, "jobs_survive", False),
        )  # fmt: skip

    def _choose(self, trial: Any) -> Point:
        """Choose the parameters of an Optuna trial through the trial itself, which stores them in the study."""
        if self.request.points is None:
            return self.request.space.suggest(trial, self._call)
        point = self.request.points[trial.number]
        for dimension in self.request.space.dimensions:
            if dimension.key in point.params:
                trial.suggest_categorical(dimension.key, list(dimension.values))
        return point

    def _call(self, node: dict[str, Any], trial: Any) -> Any:
        from hfexp.core import targets

        allowed = (self.runner.config.get("security") or {}).get("allowed_targets")
        params = targets.instantiate(node, "search.space", list(allowed or []), trial=trial)
        if not isinstance(params, dict):
            raise ConfigError(f"search.space: {node['_target_']} returned {params!r}, expected a dict of key to value")
        return {opened(f"{key}=").removesuffix("="): value for key, value in params.items()}

    def _sweep_info(self, url: str, parent: Any) -> SweepInfo:
        search, key = self.request.search, getattr(parent, "key", None)
        return SweepInfo(
            self.directory.name, self.directory.name, url, parent.run_id, search.metrics, self.request.directions,
            search.pruner.value, search.pruner_args, key, parent.experiment if key else None,
        )  # fmt: skip

    def _shares_record(self) -> bool:
        """Tell whether the tracking store is one that the hosts of this sweep share."""
        config = self.request.config
        if config is None or config.tracking.backend == "none":
            return False
        return is_shared(tracking_uri(config.tracking.uri, config.output_dir), Path(config.output_dir))

    def _view(self, schedule: "Schedule", trials: Sequence[Trial] | None = None) -> Sweep:
        request = self.request
        return Sweep(
            self.directory.name, self.directory.path, _command(), request.search.method.value, tuple(request.metrics),
            tuple(request.directions), tuple(map(mask_override, request.space.fixed)), request.space.texts,
            self.directory.seconds, bound=request.search.optimise is Optimise.bound,
            flags=tuple(config_flags(sys.argv[1:])), trials=tuple(schedule.trials if trials is None else trials),
        )  # fmt: skip

    def _announce(self, plan: "Plan") -> None:
        prefix = "continuing" if self.directory.continued else "sweep"
        several = f", {plan.replicates} replicates each" if plan.replicates > 1 else ""
        say(f"{prefix} {self.directory.name}: {self.request.search.method.value}, {plan.total} points{several}")

    @contextlib.contextmanager
    def _stopping(self, schedule: "Schedule") -> Iterator[None]:
        """Print how far the sweep is when Ctrl-C, SIGTERM or SIGHUP ends it."""
        try:
            with stop_raises():
                yield
        except (KeyboardInterrupt, SystemExit):
            note(f"stopped: {parent_run.progress(schedule.trials)}; the same command continues the sweep")
            raise

    def _parent(
        self, schedule: "Schedule", owner: "Owner | None"
    ) -> contextlib.AbstractContextManager["Parent | SharedParent | _NoParent"]:
        """Open the sweep's own run in the tracking store; a sweep of another application's jobs has none.

        Args:
            owner: this sweeper, if several hosts share the run; else None.
        """
        config, path = self.request.config, self.directory.path
        if config is None:
            return contextlib.nullcontext(_NoParent())
        origin = _origin(self.runner.config, self.request.space.fixed)
        if owner is None:
            return parent_run.open_parent(config, origin, self._view(schedule), path)
        from hfexp.sweep.shared_parent import Lease, SharedParent, key_of

        study = schedule.store.study
        return SharedParent(
            config, origin, path, key_of(study, path), Lease(study, owner),
            lambda: self._view(schedule, schedule.stored_trials),
        ).kept()  # fmt: skip


def _try_to_draw(run_dir: Path, output_dir: Path) -> None:
    """Draw the report of a run; a failure is only said, as the sweep is worth more than pictures of it."""
    try:
        if forkserver.is_started():
            call_warm(_draw, run_dir, output_dir)
        else:
            _draw(run_dir, output_dir)
    except Exception as error:
        _note_failure(run_dir, error)


def _draw(run_dir: Path, output_dir: Path) -> None:
    from hfexp.experiment.redraw import redraw
    from hfexp.tracking.recovery import recorded_uri

    try:
        # The job has said already what it found out about the data.
        with held_run(run_dir) as state, silent():
            if state is not None:  # None: the run is on another host, or was removed meanwhile
                redraw(run_dir, state, recorded_uri(run_dir, output_dir), output_dir)
    except Exception as error:  # said here, as this may be a process of its own
        _note_failure(run_dir, error)


def _note_failure(run_dir: Path, error: Exception) -> None:
    reason = first_line(error)
    note(f"the report of {run_dir.name} has no pictures: {reason}; `hfexp report {run_dir.name}` draws them")


class _NoParent:
    """Stands in for `Parent` where the jobs are another application's; records nothing."""

    run_id: str | None = None

    def update(self, sweep: Sweep) -> None:
        pass

    def close_failed(self, run_dir: Path, reason: str) -> None:
        pass


def _origin(config: Any, fixed: tuple[str, ...]) -> Origin:
    """Build the origin of a sweep's own run."""
    choices = {k: v for k, v in config.hydra.runtime.choices.items() if "/" not in k}
    sources = tuple(f"{s.schema}://{s.path}" for s in config.hydra.runtime.config_sources if s.path)
    return Origin(choices, list(fixed), _command(), config_sources=sources)


def _command() -> str:
    """Return the command line as it can be typed again."""
    return command_line([as_typed(arg) for arg in sys.argv[1:]])
