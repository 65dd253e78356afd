"""The command `hfexp plan`: list the jobs of a command and estimate their time, memory and disk before any starts."""

import argparse
import contextlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfexp.commands.plan_measure import (
    JobCost,
    JobStatus,
    Measurement,
    PlannedJob,
    Total,
    add_up,
    cost_key,
    cost_of,
    find_problem,
    plan_run,
    plan_sweep,
    worst,
)
from hfexp.commands.plan_planner import Planner
from hfexp.core import hydra_app
from hfexp.core.config import Pruner
from hfexp.core.console import cell, note, print_table, say
from hfexp.core.errors import EXIT_WRONG_INPUT, ConfigError, first_line
from hfexp.core.secrets import mask_secrets
from hfexp.data.cache import show_size
from hfexp.sweep.request import Composer, Request, find_sweep

# Console output of `hfexp plan`.


MOST_ROWS = 100
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def show_jobs(jobs: Sequence[PlannedJob], letters: Sequence[str | None], costs: Sequence[JobCost | None]) -> None:
    """Print the table of the jobs.

    Args:
        letters: the letter of each job's shape; None: the job was not measured.
        costs: the cost of one run of each job; None: unknown.
    """
    from rich.table import Table

    measured = any(cost is not None for cost in costs)
    table = Table(
        "job", "overrides", *(("kind", "steps", "time") if measured else ()), "", box=None, padding=(0, 2, 0, 0)
    )
    for job, letter, cost in list(zip(jobs, letters, costs, strict=True))[:MOST_ROWS]:
        cells = (letter or "", str(cost.steps), show_seconds(cost.seconds)) if cost else ("", "", "")
        runs = f" x {job.runs}" if job.runs > 1 and cost else ""
        cells = (*cells[:2], cells[2] + runs) if measured else ()
        table.add_row(job.name, cell(job.shown or "(as composed)"), *cells, cell(mask_secrets(_status_text(job))))
    print_table(table)
    if len(jobs) > MOST_ROWS:
        say(f"... {len(jobs) - MOST_ROWS} more of {len(jobs)} jobs")


def show_problems(jobs: Sequence[PlannedJob]) -> None:
    """Print each problem of the invalid jobs once, with the jobs that have it."""
    by_problem: dict[str, list[PlannedJob]] = {}
    for job in jobs:
        if job.status is JobStatus.invalid:
            by_problem.setdefault(job.remark, []).append(job)
    for problem, invalid in by_problem.items():
        names = ", ".join(job.name for job in invalid)
        note(f"job{'s' if len(invalid) > 1 else ''} {names}: {problem}")


def count(jobs: Sequence[PlannedJob]) -> str:
    """Summarize the jobs by state, as in `12 points: 8 new, 4 finished`."""
    counts = Counter(job.status for job in jobs)
    parts = ", ".join(f"{counts[status]} {status.value}" for status in JobStatus if counts[status])
    return f"{len(jobs)} point{'s' if len(jobs) != 1 else ''}: {parts}"


def show_measured(letter: str, m: Measurement) -> None:
    """Print the measurement of one shape in a line."""
    gpu = f" and {show_size(m.device_bytes)} on the GPU" if m.device_bytes else ""
    besides = m.start + m.end
    say(
        f"  {letter}: {_short(m.step)} per step, {_short(m.evaluation)} per evaluation, {_short(m.checkpoint)} "
        f"per checkpoint of {show_size(m.checkpoint_bytes)}, {_short(besides)} for start and end; "
        f"{show_size(m.memory_bytes)} of memory{gpu}"
    )


def show_total(total: Total, slots: int, memory: int, free: int, place: Path, at_most: bool) -> None:
    """Print the total time, memory and disk of all runs next to what is available; warn if it exceeds that.

    Args:
        slots: number of concurrent jobs.
        memory: this machine's memory in bytes.
        free: free bytes on the disk.
        place: the output directory of all runs.
        at_most: jobs may end early, so the time is an upper bound.
    """
    at_once = f"{slots} at once" if slots > 1 else "one after the other"
    most = "at most " if at_most else "about "
    say(
        f"{total.runs} run{'s' if total.runs != 1 else ''} to do, {at_once}: {most}{show_seconds(total.seconds)}; "
        f"{show_seconds(total.computing_seconds)} of computing time"
    )
    gpu = f", {show_size(total.device_bytes)} of each GPU" if total.device_bytes else ""
    say(f"  memory: up to {show_size(total.memory_bytes)} of {show_size(memory)}{gpu}")
    say(f"  disk:   {show_size(total.disk_bytes)} in {os.path.relpath(place)}, of {show_size(free)} free")
    if total.memory_bytes > memory:
        note("the jobs need more memory than this machine has: lower hydra.launcher.n_jobs or the batch size")
    if total.disk_bytes > free:
        note("the runs need more disk than is free: lower trainer.args.save_total_limit or set another output_dir")


def show_seconds(seconds: float) -> str:
    """Format a duration, as in `12 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return _short(seconds) if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def _short(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _status_text(job: PlannedJob) -> str:
    remark = first_line(Exception(job.remark)) if job.remark else ""
    separator = ": " if job.status in (JobStatus.failed, JobStatus.invalid) else " "
    return f"{job.status.value}{separator}{remark}" if remark else job.status.value


# Checks and trial measurements of planned jobs.


@dataclass
class Findings:
    """Results of the measured jobs, by shape (`hfexp.commands.plan_measure.cost_key`)."""

    measured: dict[str, Measurement] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


def checked(jobs: Sequence[PlannedJob]) -> list[PlannedJob]:
    """Return the jobs after the checks that a run makes before it loads weights; failed ones are marked invalid."""
    known: dict[str, str | None] = {}
    results = []
    for job in jobs:
        problem = None
        if job.is_to_run and job.config is not None:
            if job.identity not in known:
                known[job.identity] = find_problem(job.config)
            problem = known[job.identity]
        results.append(job.invalid(problem) if problem else job)
    return results


def probe(planner: Planner, jobs: Sequence[PlannedJob], slots: int, directory: str) -> Findings:
    """Measure one job of each shape, as many at once as the real jobs will be.

    Args:
        slots: number of concurrent jobs.
        directory: takes the launcher's files.
    """
    by_shape: dict[str, PlannedJob] = {}
    for job in jobs:
        if job.is_to_run and job.config is not None:
            by_shape.setdefault(cost_key(job.config), job)
    if not by_shape:
        return Findings()
    shapes = list(by_shape)
    runs = sum(job.runs for job in jobs if job.is_to_run)
    while len(shapes) < min(slots, runs):  # fill all slots, as concurrent jobs slow each other down
        shapes.append(shapes[len(shapes) % len(by_shape)])
    results = planner.measure([[*by_shape[shape].overrides] for shape in shapes], directory)
    return _collect_findings(shapes, results)


def _collect_findings(shapes: Sequence[str], results: Sequence[object]) -> Findings:
    from hfexp.launch.job import error_of

    findings = Findings()
    several: dict[str, list[Measurement]] = {}
    for shape, result in zip(shapes, results, strict=True):
        error = error_of(result)
        if error is not None:
            findings.problems[shape] = first_line(error)
        else:
            several.setdefault(shape, []).append(result.return_value)  # pyright: ignore
    findings.measured = {shape: worst(several[shape]) for shape in several if shape not in findings.problems}
    return findings


SWEEPS = ("-m", "--multirun")
TARGET = "hydra.sweeper._target_=hydra_plugins.hfexp.Planner"


def main(argv: list[str], commands: Collection[str]) -> int:
    """List the jobs of a command, check them, time a few steps of each kind, and print the totals.

    Returns:
        The exit code: 0, or 2 if a job can't be run.
    """
    parser = argparse.ArgumentParser(
        prog="hfexp plan",
        allow_abbrev=False,
        usage="hfexp plan [--no-probe] [-m] [KEY=VALUE ...]",
        description="Show what `hfexp [-m] KEY=VALUE ...` would run, what is already done, and the time, memory and "
        "disk that the rest will take. Nothing is started or recorded.",
        epilog="Exit code: 0, or 2 if a job can't be run as configured.",
    )
    parser.add_argument("--no-probe", action="store_true", help="only list the jobs; check no data, measure no steps")
    args, rest = parser.parse_known_args(argv)
    is_sweep = bool({*rest} & {*SWEEPS})
    invalid: list[PlannedJob] = []

    def plan(planner: Planner, overrides: list[str]) -> None:
        invalid.extend(_plan(planner, overrides, is_sweep, probes=not args.no_probe))

    hydra_app.run([*rest, *([] if is_sweep else SWEEPS[:1]), TARGET], plan, commands)  # pyright: ignore
    return EXIT_WRONG_INPUT if invalid else 0


def _plan(planner: Planner, overrides: list[str], is_sweep: bool, probes: bool) -> list[PlannedJob]:
    """Print the plan and return the jobs that can't be run."""
    composer = Composer(planner.hydra_context, planner.config)
    with _in_slot(planner):
        request, jobs = _jobs(composer, [override for override in overrides if override != TARGET], is_sweep)
        jobs = checked(jobs) if probes else jobs
    slots = _slots(planner) if is_sweep else 1
    if not probes:
        show_jobs(jobs, [None] * len(jobs), [None] * len(jobs))
    else:
        with tempfile.TemporaryDirectory(prefix="hfexp-plan-") as directory:
            if any(job.is_to_run for job in jobs):
                say("measuring a few steps of each kind of job ...")
            findings = probe(planner, jobs, slots, directory)
        jobs = [_with_problem(job, findings) for job in jobs]
        _show_measured(request, jobs, findings, slots, _sharing(planner) if is_sweep else 1)
    show_problems(jobs)
    return [job for job in jobs if job.status is JobStatus.invalid]


def _jobs(composer: Composer, overrides: list[str], is_sweep: bool) -> tuple[Request, list[PlannedJob]]:
    request = composer.request(overrides)
    if request.config is None:
        raise ConfigError("hfexp plan works only with hfexp's own configuration")
    if not is_sweep:
        return request, [plan_run(composer, request, overrides)]
    if request.points is None:
        from hfexp.sweep.direct import make_sampler

        make_sampler(request)  # built only because it raises on wrong arguments
    directory = find_sweep(request.output_dir, request.search.name, request.definition, request.on_existing)
    jobs = plan_sweep(composer, request, directory)
    where = f"continues in {os.path.relpath(directory)}" if directory else "new"
    say(f"sweep ({request.search.method.value}), {where}; {_points(request, jobs)}")
    return request, jobs


def _points(request: Request, jobs: Sequence[PlannedJob]) -> str:
    if request.points is not None:
        return count(jobs)
    done = sum(not job.name.startswith("e.g.") for job in jobs)
    return f"{request.total} points, {done} done, the others chosen as results come in (below: examples)"


def _with_problem(job: PlannedJob, findings: Findings) -> PlannedJob:
    if not job.is_to_run or job.config is None:
        return job
    problem = findings.problems.get(cost_key(job.config))
    return job.invalid(problem) if problem else job


def _show_measured(request: Request, jobs: Sequence[PlannedJob], findings: Findings, slots: int, sharing: int) -> None:
    letters = dict(zip(findings.measured, LETTERS, strict=False))
    shapes = [cost_key(job.config) if job.is_to_run and job.config else None for job in jobs]
    measurements = [findings.measured.get(shape) if shape else None for shape in shapes]
    costs = [
        cost_of(job.config, measurement, job.steps_done) if measurement and job.config else None
        for job, measurement in zip(jobs, measurements, strict=True)
    ]
    show_jobs(jobs, [letters.get(shape, "+") if shape else None for shape in shapes], costs)
    if not findings.measured:
        return
    say()
    for shape, measurement in findings.measured.items():
        show_measured(letters.get(shape, "+"), measurement)
    say()
    place = request.output_dir.absolute()
    total = _total(request, jobs, costs, [measurement for measurement in measurements if measurement], slots, sharing)
    at_most = request.search.pruner is not Pruner.none or any(
        job.config and job.config.trainer.early_stopping_patience for job in jobs
    )
    show_total(total, slots, _memory(), _free(place), place, at_most)


def _total(
    request: Request,
    jobs: Sequence[PlannedJob],
    costs: Sequence[JobCost | None],
    measured: Sequence[Measurement],
    slots: int,
    sharing: int,
) -> Total:
    """Add up the runs; in a search, the examples stand in turn for the points that are still to be chosen."""
    runs = [cost for job, cost in zip(jobs, costs, strict=True) if cost for _ in range(job.runs)]
    if request.points is None and runs:
        done = sum(not job.name.startswith("e.g.") for job in jobs)
        left = (request.total - done) * request.search.replicates
        runs = [runs[index % len(runs)] for index in range(left)]
    return add_up(runs, measured, slots, sharing)


def _slots(planner: Planner) -> int:
    """Return the number of jobs that the launcher runs at once."""
    slots = getattr(planner.launcher, "slots", None)
    if slots is not None:
        return len(slots)
    n_jobs: Any = planner.config.hydra.launcher.get("n_jobs") if planner.config else None
    return n_jobs if isinstance(n_jobs, int) and n_jobs > 0 else 1


def _sharing(planner: Planner) -> int:
    """Return the largest number of concurrent jobs on one device."""
    slots = getattr(planner.launcher, "slots", [])
    return max(Counter(device for slot in slots for device in slot.devices).values(), default=1)


@contextlib.contextmanager
def _in_slot(planner: Planner) -> Iterator[None]:
    """Set the environment that a job has in its slot, so that `auto` resolves as it will in the job."""
    before = dict(os.environ)
    os.environ.update(planner.launcher.slots[0].environment() if hasattr(planner.launcher, "slots") else {})  # pyright: ignore
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _memory() -> int:
    import psutil

    return psutil.virtual_memory().total


def _free(place: Path) -> int:
    """Return the free bytes on the disk where a directory is or will be."""
    return shutil.disk_usage(next(path for path in (place, *place.parents) if path.exists())).free
