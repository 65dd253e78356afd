"""The command `hfexp plan`: list the jobs of a command and estimate their time, memory and disk before any starts."""

import argparse
import contextlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from hfexp.commands import plan_show
from hfexp.commands.plan_estimate import JobCost, Total, add_up, cost_of, shape_of
from hfexp.commands.plan_jobs import PlannedJob, Standing, jobs_of_sweep, the_job
from hfexp.commands.plan_measurement import Measurement
from hfexp.commands.plan_planner import Planner
from hfexp.commands.plan_probes import Findings, checked, probe
from hfexp.core import hydra_app
from hfexp.core.console import say
from hfexp.core.errors import EXIT_WRONG_INPUT, ConfigError
from hfexp.core.search_config import Pruner
from hfexp.sweep.definition import find_sweep
from hfexp.sweep.request import Composer, Request

SWEEPS = ("-m", "--multirun")
TARGET = "hydra.sweeper._target_=hydra_plugins.hfexp.Planner"


def main(words: list[str], commands: Collection[str]) -> int:
    """List the jobs of a command, check them, time a few steps of each kind, and print the totals.

    Returns:
        The exit code: 0, or 2 if a job can't be run.
    """
    parser = argparse.ArgumentParser(
        prog="hfexp plan",
        allow_abbrev=False,
        usage="hfexp plan [--no-probe] [-m] [KEY=VALUE ...]",
        description="What `hfexp [-m] KEY=VALUE ...` would run, what of it is done already, and what the rest will "
        "take: time, memory, disk. Nothing is started or recorded.",
        epilog="Exit code: 0, or 2 if some job can't be run as asked.",
    )
    parser.add_argument("--no-probe", action="store_true", help="the list alone: check no data, measure no steps")
    args, rest = parser.parse_known_args(words)
    is_sweep = bool({*rest} & {*SWEEPS})
    invalid: list[PlannedJob] = []

    def plan(planner: Planner, overrides: list[str]) -> None:
        invalid.extend(_plan(planner, overrides, is_sweep, probes=not args.no_probe))

    hydra_app.run([*rest, *([] if is_sweep else SWEEPS[:1]), TARGET], plan, commands)  # pyright: ignore
    return EXIT_WRONG_INPUT if invalid else 0


def _plan(planner: Planner, words: list[str], is_sweep: bool, probes: bool) -> list[PlannedJob]:
    """Print the plan and return the jobs that can't be run."""
    composer = Composer(planner.hydra_context, planner.config)
    with _in_slot(planner):
        request, jobs = _jobs(composer, [word for word in words if word != TARGET], is_sweep)
        jobs = checked(jobs) if probes else jobs
    slots = _slots(planner) if is_sweep else 1
    if not probes:
        plan_show.show_jobs(jobs, [None] * len(jobs), [None] * len(jobs))
    else:
        with tempfile.TemporaryDirectory(prefix="hfexp-plan-") as directory:
            if any(job.is_to_run for job in jobs):
                say("measuring some steps of each kind of job ...")
            findings = probe(planner, jobs, slots, directory)
        jobs = [_with_problem(job, findings) for job in jobs]
        _show_measured(request, jobs, findings, slots, _sharing(planner) if is_sweep else 1)
    plan_show.show_problems(jobs)
    return [job for job in jobs if job.standing is Standing.invalid]


def _jobs(composer: Composer, words: list[str], is_sweep: bool) -> tuple[Request, list[PlannedJob]]:
    request = composer.request(words)
    if request.config is None:
        raise ConfigError("hfexp plan is for the configuration of hfexp")
    if not is_sweep:
        return request, [the_job(composer, request, words)]
    if request.points is None:
        from hfexp.sweep.direct import make_sampler

        make_sampler(request)  # built only because it raises on wrong arguments
    directory = find_sweep(request.output_dir, request.search.name, request.definition, request.on_existing)
    jobs = jobs_of_sweep(composer, request, directory)
    where = f"goes on in {os.path.relpath(directory)}" if directory else "new"
    say(f"sweep ({request.search.method.value}), {where}; {_points(request, jobs)}")
    return request, jobs


def _points(request: Request, jobs: Sequence[PlannedJob]) -> str:
    if request.points is not None:
        return plan_show.count(jobs)
    done = sum(not job.name.startswith("e.g.") for job in jobs)
    return f"{request.total} points, {done} done, the others chosen as results come in (below: examples)"


def _with_problem(job: PlannedJob, findings: Findings) -> PlannedJob:
    if not job.is_to_run or job.config is None:
        return job
    problem = findings.problems.get(shape_of(job.config))
    return job.invalid(problem) if problem else job


def _show_measured(request: Request, jobs: Sequence[PlannedJob], findings: Findings, slots: int, sharing: int) -> None:
    letters = dict(zip(findings.measured, plan_show.LETTERS, strict=False))
    shapes = [shape_of(job.config) if job.is_to_run and job.config else None for job in jobs]
    known = [findings.measured.get(shape) if shape else None for shape in shapes]
    costs = [
        cost_of(job.config, one, job.steps_done) if one and job.config else None
        for job, one in zip(jobs, known, strict=True)
    ]
    plan_show.show_jobs(jobs, [letters.get(shape, "+") if shape else None for shape in shapes], costs)
    if not findings.measured:
        return
    say()
    for shape, one in findings.measured.items():
        plan_show.show_measured(letters.get(shape, "+"), one)
    say()
    place = request.output_dir.absolute()
    total = _total(request, jobs, costs, [one for one in known if one], slots, sharing)
    at_most = request.search.pruner is not Pruner.none or any(
        job.config and job.config.trainer.early_stopping_patience for job in jobs
    )
    plan_show.show_total(total, slots, _memory(), _free(place), place, at_most)


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
    found = getattr(planner.launcher, "slots", None)
    if found is not None:
        return len(found)
    asked: Any = planner.config.hydra.launcher.get("n_jobs") if planner.config else None
    return asked if isinstance(asked, int) and asked > 0 else 1


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
