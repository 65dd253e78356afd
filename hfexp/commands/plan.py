"""The command `hfexp plan`: list the jobs of a command, refuse those that would fail, and price the others."""

import argparse
import contextlib
import itertools
import math
import os
import statistics
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from hfexp.core import compose, hydra_app
from hfexp.core.compose import spelling
from hfexp.core.config import Config, OnExisting, Pruner, to_config
from hfexp.core.console import cell, duration, note, print_table, say
from hfexp.core.errors import EXIT_WRONG_INPUT, ConfigError, first_line
from hfexp.core.files import sqlite_path
from hfexp.core.identity import config_hash
from hfexp.core.provenance import Origin
from hfexp.core.secrets import mask_override, mask_secrets
from hfexp.experiment.choices import check_choices
from hfexp.launch import world
from hfexp.sweep.request import Composer, Request, find_sweep
from hfexp.tracking.membership import TrialKey, run_directory_of
from hfexp.tracking.run_directory import find_run

SWEEPS = ("-m", "--multirun")
TARGET = "hydra.sweeper._target_=hydra_plugins.hfexp.Planner"
MOST_ROWS = 100
EXAMPLE = "e.g. "
"""Beginning of the name of a job that a search may choose."""
Status = Literal["new", "continues", "finished", "pruned", "failed", "invalid"]
"""State of a planned job, with the word that the user sees; the attempts of a failed one are used up."""
CLOSED: dict[str, Status] = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
"""States of Optuna's closed trials."""


@dataclass(frozen=True)
class PlannedJob:
    """One point of a sweep, or the one run of a command without `-m`."""

    name: str
    overrides: tuple[str, ...]
    """All Hydra overrides of the job."""
    shown: str = ""
    """The overrides that tell the job from the others, without secrets."""
    status: Status = "new"
    remark: str = ""
    config: Config | None = None
    identity: str = ""
    runs: int = 1
    """Number of runs still to be made: at most one, or at most the number of replicates."""
    steps_done: int = 0
    """Steps already done in each of these runs, on average."""
    steps: int = 0
    """Steps of one run, those already done included."""
    seconds: float = 0.0
    """Time of one run; 0 if it is not known."""

    @property
    def config_to_run(self) -> Config | None:
        """Return the config; None if the job is not to be run."""
        return self.config if self.status in ("new", "continues") else None

    def invalid(self, problem: str) -> "PlannedJob":
        """Return a copy of this job marked as one that can't be run."""
        return replace(self, status="invalid", remark=problem, runs=0)


def main(argv: list[str], commands: Collection[str]) -> int:
    """List the jobs of a command, check them, time a few steps of each kind, and print what all of them take.

    Returns:
        The exit code: 0, or 2 if a job can't be run.
    """
    parser = argparse.ArgumentParser(
        prog="hfexp plan",
        allow_abbrev=False,
        usage="hfexp plan [--no-probe] [-m] [KEY=VALUE ...]",
        description="Show what `hfexp [-m] KEY=VALUE ...` would run, what is already done, and the time that the "
        "rest will take. Nothing is started or recorded.",
        epilog="Exit code: 0, or 2 if a job can't be run as configured.",
    )
    parser.add_argument("--no-probe", action="store_true", help="only list the jobs; check no data, measure no steps")
    args, rest = parser.parse_known_args(argv)
    is_sweep = bool({*rest} & {*SWEEPS})
    jobs: list[PlannedJob] = []

    def plan(planner: Any, overrides: list[str]) -> None:
        jobs.extend(_plan(planner, overrides, is_sweep, probes=not args.no_probe))

    with tempfile.TemporaryDirectory(prefix="hfexp-plan-") as directory:  # for the launcher's files
        own = [TARGET, f"hydra.sweep.dir={spelling(directory)}"]
        hydra_app.run([*rest, *([] if is_sweep else SWEEPS[:1]), *own], plan, commands)  # pyright: ignore
    return EXIT_WRONG_INPUT if any(job.status == "invalid" for job in jobs) else 0


def measure(cfg: Any) -> Any:
    """Measure a job: the task function of `hydra_plugins.hfexp.Planner`, whose imports only the job itself needs."""
    from hfexp.commands import plan_measure

    return plan_measure.measure(cfg)


def _plan(planner: Any, overrides: list[str], is_sweep: bool, probes: bool) -> list[PlannedJob]:
    """Print the plan and return its jobs."""
    sweeper = planner.config.hydra.runtime.choices["hydra/sweeper"]
    if sweeper != "hfexp":
        raise ConfigError(f"hydra/sweeper={sweeper} can't be planned; use hydra/sweeper=hfexp")
    composer = Composer(planner.hydra_context, planner.config)
    with _in_slot(planner.launcher):
        request = composer.request(overrides)
        if request.config is None:
            raise ConfigError("hfexp plan works only with hfexp's own configuration")
        jobs = _sweep_jobs(composer, request) if is_sweep else [_single_job(composer, request, overrides)]
        jobs = _checked(jobs) if probes else jobs
    slots = _slots(planner) if is_sweep else 1
    if probes and any(job.config_to_run for job in jobs):
        say("measuring a few steps of each kind of job ...")
        jobs = _timed(planner, jobs, slots)
    _show(request, jobs, slots)
    return jobs


@contextlib.contextmanager
def _in_slot(launcher: Any) -> Iterator[None]:
    """Set the environment that a job has in its slot, so that `auto` resolves as it will in the job."""
    before = dict(os.environ)
    os.environ.update(launcher.slots[0].environment() if hasattr(launcher, "slots") else {})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _slots(planner: Any) -> int:
    """Return the number of jobs that the launcher runs at once."""
    if hasattr(planner.launcher, "slots"):
        return len(planner.launcher.slots)
    n_jobs = planner.config.hydra.launcher.get("n_jobs")
    return n_jobs if isinstance(n_jobs, int) and n_jobs > 0 else 1


# The jobs of a command, and the state in which earlier starts left each of them.


def _single_job(composer: Composer, request: Request, overrides: list[str]) -> PlannedJob:
    """Plan the run of a command without `-m`.

    Raises:
        ConfigError: the command is a sweep or a search.
    """
    if request.space.dimensions or request.points is None:
        swept = ", ".join(request.space.texts) or f"search={request.search.method.value}"
        raise ConfigError(f"{swept}: several values or a search need a sweep: hfexp plan -m ...")
    job = _composed(composer, PlannedJob("0", tuple(overrides)))
    if job.config is None:
        return job
    origin = Origin(compose.choices_of(composer.compose(job.overrides)), overrides, "hfexp plan")
    existing = find_run(job.config, origin)
    if existing is None:
        return job
    path, state = existing
    if job.config.on_existing is OnExisting.error:
        return job.invalid(f"on_existing=error: this experiment exists already ({state.status}) in {path}")
    if state.status == "finished" and not state.closed and job.config.on_existing is OnExisting.resume:
        return replace(job, status="finished", runs=0, remark=f"(only delivers the record of {path.name})")
    again = replace(job, remark=f"runs again; {path.name} is {state.status}")
    if state.status == "finished" or job.config.on_existing is OnExisting.rerun:
        return again
    continued = _continued(job, path)
    return again if state.status == "failed" and not continued.steps_done else continued


def _sweep_jobs(composer: Composer, request: Request) -> list[PlannedJob]:
    """Plan a sweep: all points of a grid; for a search, its closed trials and examples of further points."""
    if request.points is None:
        from hfexp.sweep.direct import make_sampler

        make_sampler(request)  # built only because it raises on wrong arguments
    directory = find_sweep(request.output_dir, request.search.name, request.definition, request.on_existing)
    closed = dict(_closed(request, directory)) if directory else {}
    if request.points is None:
        jobs = [*closed.values(), *(_examples(composer, request) if len(closed) < request.total else [])]
        points = f"{request.total} points, {len(closed)} done, the others chosen as results come in (below: examples)"
    else:
        jobs = _grid_jobs(composer, request, directory, closed)
        counts = Counter(job.status for job in jobs)
        states = ", ".join(f"{counts[status]} {status}" for status in get_args(Status) if counts[status])
        points = f"{len(jobs)} point{'s' if len(jobs) != 1 else ''}: {states}"
    where = f"continues in {os.path.relpath(directory)}" if directory else "new"
    say(f"sweep ({request.search.method.value}), {where}; {points}")
    return jobs


def _grid_jobs(
    composer: Composer, request: Request, directory: Path | None, closed: dict[int, PlannedJob]
) -> list[PlannedJob]:
    jobs: list[PlannedJob] = []
    by_identity: dict[str, str] = {}
    for number, point in enumerate((request.points or [])[: request.total]):
        job = closed.get(number) or _composed(composer, _job(request, str(number), point.overrides))
        twin = by_identity.setdefault(job.identity or job.name, job.name)
        if twin != job.name:
            job = replace(job, remark=f"the same experiment as job {twin}: these overrides do not change it")
        jobs.append(_with_progress(job, request, directory, number) if directory and job.config_to_run else job)
    return jobs


def _examples(composer: Composer, request: Request) -> list[PlannedJob]:
    points = request.space.samples(composer.groups(request.space), limit=8)
    return [_composed(composer, _job(request, f"{EXAMPLE}{n}", point)) for n, point in enumerate(points)]


def _job(request: Request, name: str, point: tuple[str, ...]) -> PlannedJob:
    return PlannedJob(name, request.space.job(point), _as_typed(point), runs=request.search.replicates)


def _as_typed(overrides: tuple[str, ...]) -> str:
    """Format overrides as the user types them, with secrets masked."""
    return " ".join(mask_override(compose.as_typed(override)) for override in overrides)


def _composed(composer: Composer, job: PlannedJob) -> PlannedJob:
    """Return the job with its config and identity, or marked as invalid with the reason."""
    try:
        composed = composer.compose(job.overrides)
        choices = compose.choices_of(composed)
        config = to_config(compose.without_hydra(composed))
        check_choices(config, choices)
        if config.launch.num_machines > 1:
            raise ConfigError(
                f"launch.num_machines={config.launch.num_machines}: a plan is made on one machine; leave it out"
            )
        world.resolve(config.launch, bool(config.trainer.args.get("use_cpu")))
        return replace(job, config=config, identity=config_hash(config))
    except ConfigError as error:
        return job.invalid(str(error))
    except compose.HYDRA_ERRORS as error:
        return job.invalid(compose.explain(error))


def _continued(job: PlannedJob, run_dir: Path) -> PlannedJob:
    """Return the job as one that continues the unfinished run in `run_dir`."""
    from hfexp.core.checkpoint import newest_whole

    checkpoint = newest_whole(run_dir / "checkpoints")
    step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    remark = f"from step {step}" if checkpoint else "from the start"
    return replace(job, status="continues", remark=remark, steps_done=job.steps_done + step)


def _with_progress(job: PlannedJob, request: Request, directory: Path, number: int) -> PlannedJob:
    """Return the job of an open trial, reduced to the replicates that have not finished."""
    from hfexp.sweep.scheduler import finished_before

    replicates = [TrialKey(directory, number, replicate) for replicate in range(request.search.replicates)]
    left = [point for point in replicates if finished_before(point, len(request.metrics)) is None]
    if not left:
        return replace(job, status="finished", runs=0)
    for run_dir in filter(None, map(run_directory_of, left)):
        job = _continued(job, run_dir)
    return replace(job, runs=len(left), steps_done=job.steps_done // len(left))


def _closed(request: Request, directory: Path) -> Iterator[tuple[int, PlannedJob]]:
    """Yield the closed trials of the sweep's study, with their numbers."""
    import optuna

    from hfexp.experiment.sweep_storage import close_storage, open_storage, storage_url
    from hfexp.sweep import study

    url = storage_url(directory, request.search.storage)
    path = sqlite_path(url)
    if path is not None and not path.exists():
        return
    storage = open_storage(url)
    try:
        trials = optuna.load_study(study_name=directory.name, storage=storage).get_trials(deepcopy=False)
    except KeyError:  # the sweep was killed before it created its study
        return
    finally:
        close_storage(storage)
    for trial in trials:
        status = CLOSED.get(trial.state.name)
        if status is not None:
            overrides = tuple(trial.user_attrs.get(study.WORDS, ()))
            values = ", ".join(f"{value:.6g}" for value in trial.values or [])
            remark = {"finished": values, "failed": trial.user_attrs.get(study.ERROR, "")}.get(status, "")
            yield trial.number, PlannedJob(str(trial.number), overrides, _as_typed(overrides), status, remark, runs=0)


# The checks of the jobs, their times, and the printed plan.


def _checked(jobs: Sequence[PlannedJob]) -> list[PlannedJob]:
    """Return the jobs after the checks that a run makes before it loads weights; failed ones are marked invalid."""
    from hfexp.commands.plan_measure import find_problem

    configs = {job.identity: config for job in jobs if (config := job.config_to_run)}
    problems = {identity: find_problem(config) for identity, config in configs.items()}
    results = [problems.get(job.identity) if job.config_to_run else None for job in jobs]
    return [job.invalid(problem) if problem else job for job, problem in zip(jobs, results, strict=True)]


def _timed(planner: Any, jobs: Sequence[PlannedJob], slots: int) -> list[PlannedJob]:
    """Measure a job of each kind, as many at once as the real jobs will be; return all jobs with their times.

    All jobs of a kind are marked invalid if one fails at that.
    """
    from hfexp.commands.plan_measure import cost, cost_key
    from hfexp.launch.job import error_of

    kinds = [cost_key(config) if (config := job.config_to_run) else "" for job in jobs]
    first: dict[str, PlannedJob] = {}
    for job, kind in zip(jobs, kinds, strict=True):
        if kind:
            first.setdefault(kind, job)
    # All slots are filled, as concurrent jobs slow each other down.
    at_once = max(len(first), min(slots, sum(job.runs for job in jobs if job.config_to_run)))
    tried = [*itertools.islice(itertools.cycle(first), at_once)]
    returns = planner.launcher.launch([[*first[kind].overrides] for kind in tried], initial_job_idx=0)
    results = [*zip(tried, returns, strict=True)]
    errors = {kind: error for kind, result in results if (error := error_of(result)) is not None}
    timed = []
    for job, kind in zip(jobs, kinds, strict=True):
        if kind in errors:
            job = job.invalid(first_line(errors[kind]))
        elif kind and job.config:  # the slowest of the measurements of its kind counts
            costs = [cost(job.config, result.return_value, job.steps_done) for own, result in results if own == kind]
            job = replace(job, steps=costs[0][0], seconds=max(seconds for _, seconds in costs))
        timed.append(job)
    return timed


def price(times: Sequence[float], runs: int, slots: int) -> tuple[float, float]:
    """Return the seconds until all runs have ended, and their computing time.

    Args:
        times: seconds of some or all of the runs; the others take the mean of these.
    """
    mean = statistics.fmean(times)
    return max(math.ceil(runs / slots) * mean, *times), runs * mean


def _show(request: Request, jobs: Sequence[PlannedJob], slots: int) -> None:
    """Print the table of the jobs, the price of all runs, and each problem of the invalid jobs once."""
    from rich.table import Table

    priced = [job for job in jobs if job.seconds]
    table = Table("job", "overrides", *(("steps", "time") if priced else ()), "", box=None, padding=(0, 2, 0, 0))
    for job in jobs[:MOST_ROWS]:
        separator = ": " if job.status in ("failed", "invalid") else " "
        status = f"{job.status}{separator}{first_line(Exception(job.remark))}" if job.remark else job.status
        time = duration(job.seconds) + (f" x {job.runs}" if job.runs > 1 else "")
        costs = (str(job.steps), time) if job.seconds else ("", "")
        texts = (job.shown or "(as composed)", *(costs if priced else ()), mask_secrets(status))
        table.add_row(job.name, *map(cell, texts))
    print_table(table)
    if len(jobs) > MOST_ROWS:
        say(f"... {len(jobs) - MOST_ROWS} more of {len(jobs)} jobs")
    if priced:
        say(f"\n{_price_text(request, jobs, slots)}")
    by_problem: dict[str, list[str]] = {}
    for job in jobs:
        if job.status == "invalid":
            by_problem.setdefault(job.remark, []).append(job.name)
    for problem, names in by_problem.items():
        note(f"job{'s' if len(names) > 1 else ''} {', '.join(names)}: {problem}")


def _price_text(request: Request, jobs: Sequence[PlannedJob], slots: int) -> str:
    times = [job.seconds for job in jobs if job.seconds for _ in range(job.runs)]
    runs = len(times)
    if request.points is None:  # the examples stand for all points that are still to be chosen
        done = sum(not job.name.startswith(EXAMPLE) for job in jobs)
        runs = (request.total - done) * request.search.replicates
    seconds, computing = price(times, runs, slots)
    ends_early = any(job.config and job.config.trainer.early_stopping_patience for job in jobs)
    about = "at most" if ends_early or request.search.pruner is not Pruner.none else "about"
    at_once = f", {slots} at once" if slots > 1 else ", one after the other"
    return (
        f"{runs} run{'s' if runs != 1 else ''} to do{at_once if runs > 1 else ''}: {about} {duration(seconds)}; "
        f"{duration(computing)} of computing time"
    )
