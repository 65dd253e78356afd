"""What became of a job: from what it returned, and from the `run.json` of its run directory."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hfexp.errors import Interrupted, first_line
from hfexp.process import ProcessId
from hfexp.run_state import read_state
from hfexp.secrets import mask_secrets
from hfexp.sweep.membership import Point, run_directory_of
from hfexp.sweep.trials import State, TrialRun


def outcome(point: Point, result: Any, metrics: int) -> TrialRun:
    """Of a job that has ended.

    Args:
        point: which job.
        result: Hydra's `JobReturn`.
        metrics: how many numbers it is to give.
    """
    from hfexp.launch.jobs import error_of

    error = error_of(result)
    if error is None:
        return _finished(point, result.return_value, metrics)
    state = State.running if isinstance(error, Interrupted) else State.failed
    run_dir, record = _look(point)
    known = {"run_dir": run_dir, "run_id": record.get("run_id"), "seconds": record.get("seconds")}
    return TrialRun(point.replicate, state, **known, error=mask_secrets(first_line(error)))


def finished_before(point: Point, metrics: int) -> TrialRun | None:
    """Of a job that had finished when its sweep was killed; None: it is to be run, or continued."""
    _, record = _look(point)
    if record.get("status") != "finished" or (record.get("values") is None and record.get("pruned_step") is None):
        return None
    return _finished(point, None, metrics)


def is_open(point: Point) -> bool:
    """Whether the run of a job was not closed by the job itself; `killed`: somebody else found it like that."""
    return _look(point)[1].get("status") in ("running", "killed")


def process_of(point: Point) -> ProcessId | None:
    """The process that works, or has worked, on an unfinished job."""
    _, record = _look(point)
    if record.get("status") != "running":
        return None
    return ProcessId(record["host"], record["pid"], record["process"])


def _finished(point: Point, returned: Any, metrics: int) -> TrialRun:
    run_dir, record = _look(point)
    if record.get("status") != "finished":  # of an application that keeps no such record, or of an earlier start
        record = {}
    known = {"run_dir": run_dir, "run_id": record.get("run_id"), "seconds": record.get("seconds")}
    pruned_step, recorded = record.get("pruned_step"), record.get("values")
    given = returned if recorded is None else recorded
    numbers = list(given) if isinstance(given, tuple | list) else [given]
    if pruned_step is not None:
        values = tuple(float(number) for number in numbers if number is not None)
        pruned = values if len(values) == metrics else None
        return TrialRun(point.replicate, State.pruned, **known, values=pruned, pruned_step=pruned_step)
    problem = _problem(numbers, metrics)
    if problem:
        return TrialRun(point.replicate, State.failed, **known, error=problem)
    return TrialRun(point.replicate, State.finished, **known, values=tuple(float(number) for number in numbers))


def _problem(numbers: list[Any], metrics: int) -> str | None:
    """Why this is nothing to compare."""
    if len(numbers) != metrics:
        return f"the job gave {len(numbers)} values, but {metrics} are to be optimised (search.metrics)"
    for number in numbers:
        if isinstance(number, str) or not hasattr(number, "__float__"):
            return f"the job gave {number!r} instead of a number to compare"
        if math.isnan(float(number)):
            return "the objective is NaN"
    return None


def _look(point: Point) -> tuple[Path | None, dict[str, Any]]:
    """Read the run directory of a job and what its `run.json` says; nothing if there is none yet."""
    run_dir = run_directory_of(point)
    state = read_state(run_dir) if run_dir else None
    return run_dir, asdict(state) if state else {}
