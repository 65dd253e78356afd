"""Console output of `hfexp plan`."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hfexp.commands.plan_estimate import JobCost, Total
from hfexp.commands.plan_jobs import PlannedJob, Standing
from hfexp.commands.plan_measurement import Measurement
from hfexp.core.console import cell, note, print_table, say
from hfexp.core.errors import first_line
from hfexp.core.secrets import mask_secrets
from hfexp.data.cache import show_size

MOST_ROWS = 100
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def show_jobs(jobs: Sequence[PlannedJob], shapes: Sequence[str | None], costs: Sequence[JobCost | None]) -> None:
    """Print the table of the jobs.

    Args:
        shapes: the letter of each job's shape; None: the job was not measured.
        costs: the cost of one run of each job; None: unknown.
    """
    from rich.table import Table

    measured = any(cost is not None for cost in costs)
    table = Table(
        "job", "overrides", *(("kind", "steps", "time") if measured else ()), "", box=None, padding=(0, 2, 0, 0)
    )
    for job, shape, cost in list(zip(jobs, shapes, costs, strict=True))[:MOST_ROWS]:
        cells = (shape or "", str(cost.steps), show_seconds(cost.seconds)) if cost else ("", "", "")
        runs = f" x {job.runs}" if job.runs > 1 and cost else ""
        cells = (*cells[:2], cells[2] + runs) if measured else ()
        table.add_row(job.name, cell(job.shown or "(as composed)"), *cells, cell(mask_secrets(_standing(job))))
    print_table(table)
    if len(jobs) > MOST_ROWS:
        say(f"... {len(jobs) - MOST_ROWS} more of {len(jobs)} jobs")


def show_problems(jobs: Sequence[PlannedJob]) -> None:
    """Print each problem of the invalid jobs once, with the jobs that have it."""
    by_problem: dict[str, list[PlannedJob]] = {}
    for job in jobs:
        if job.standing is Standing.invalid:
            by_problem.setdefault(job.remark, []).append(job)
    for problem, found in by_problem.items():
        names = ", ".join(job.name for job in found)
        note(f"job{'s' if len(found) > 1 else ''} {names}: {problem}")


def count(jobs: Sequence[PlannedJob]) -> str:
    """Summarize the jobs by state, as in `12 points: 8 new, 4 finished`."""
    counts = Counter(job.standing for job in jobs)
    parts = ", ".join(f"{counts[standing]} {standing.value}" for standing in Standing if counts[standing])
    return f"{len(jobs)} point{'s' if len(jobs) != 1 else ''}: {parts}"


def show_measured(letter: str, one: Measurement) -> None:
    """Print the measurement of one shape in a line."""
    gpu = f" and {show_size(one.device_bytes)} on the GPU" if one.device_bytes else ""
    besides = one.start + one.end
    say(
        f"  {letter}: {_short(one.step)} a step, {_short(one.evaluation)} an evaluation, {_short(one.checkpoint)} a "
        f"checkpoint of {show_size(one.checkpoint_bytes)}, {_short(besides)} besides; "
        f"{show_size(one.memory_bytes)} of memory{gpu}"
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
        f"{total.runs} run{'s' if total.runs != 1 else ''} to make, {at_once}: {most}{show_seconds(total.seconds)}; "
        f"{show_seconds(total.computing_seconds)} of computing"
    )
    gpu = f", {show_size(total.device_bytes)} of each GPU" if total.device_bytes else ""
    say(f"  memory: up to {show_size(total.memory_bytes)} of {show_size(memory)}{gpu}")
    say(f"  disk:   {show_size(total.disk_bytes)} in {os.path.relpath(place)}, where {show_size(free)} are free")
    if total.memory_bytes > memory:
        note("that is more memory than there is: lower hydra.launcher.n_jobs, or the batches")
    if total.disk_bytes > free:
        note("that is more than is free: lower trainer.args.save_total_limit, or choose another output_dir")


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


def _standing(job: PlannedJob) -> str:
    remark = first_line(Exception(job.remark)) if job.remark else ""
    separator = ": " if job.standing in (Standing.failed, Standing.invalid) else " "
    return f"{job.standing.value}{separator}{remark}" if remark else job.standing.value
