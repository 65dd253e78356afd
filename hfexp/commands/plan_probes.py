"""Checks and trial measurements of planned jobs."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hfexp.commands.plan_estimate import shape_of, worst
from hfexp.commands.plan_jobs import PlannedJob
from hfexp.commands.plan_measure import find_problem
from hfexp.commands.plan_measurement import Measurement
from hfexp.commands.plan_planner import Planner
from hfexp.core.errors import first_line


@dataclass
class Findings:
    """Results of the measured jobs, by shape (`hfexp.commands.plan_estimate.shape_of`)."""

    measured: dict[str, Measurement] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


def checked(jobs: Sequence[PlannedJob]) -> list[PlannedJob]:
    """Return the jobs after the checks that a run makes before it loads weights; failed ones are marked invalid."""
    known: dict[str, str | None] = {}
    found = []
    for job in jobs:
        problem = None
        if job.is_to_run and job.config is not None:
            if job.identity not in known:
                known[job.identity] = find_problem(job.config)
            problem = known[job.identity]
        found.append(job.invalid(problem) if problem else job)
    return found


def probe(planner: Planner, jobs: Sequence[PlannedJob], slots: int, directory: str) -> Findings:
    """Measure one job of each shape, as many at once as the real jobs will be.

    Args:
        slots: number of concurrent jobs.
        directory: takes the launcher's files.
    """
    by_shape: dict[str, PlannedJob] = {}
    for job in jobs:
        if job.is_to_run and job.config is not None:
            by_shape.setdefault(shape_of(job.config), job)
    if not by_shape:
        return Findings()
    shapes = list(by_shape)
    runs = sum(job.runs for job in jobs if job.is_to_run)
    while len(shapes) < min(slots, runs):  # fill all slots, as concurrent jobs slow each other down
        shapes.append(shapes[len(shapes) % len(by_shape)])
    results = planner.measure([[*by_shape[shape].words] for shape in shapes], directory)
    return _sorted_out(shapes, results)


def _sorted_out(shapes: Sequence[str], results: Sequence[object]) -> Findings:
    from hfexp.launch.jobs import error_of

    findings = Findings()
    several: dict[str, list[Measurement]] = {}
    for shape, result in zip(shapes, results, strict=True):
        error = error_of(result)
        if error is not None:
            findings.problems[shape] = first_line(error)
        else:
            several.setdefault(shape, []).append(result.return_value)  # pyright: ignore
    findings.measured = {shape: worst(found) for shape, found in several.items() if shape not in findings.problems}
    return findings
