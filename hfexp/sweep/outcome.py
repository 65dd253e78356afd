"""The outcome of a sweep's job, from its return value and from the `run.json` of its run directory."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hfexp.core.errors import Interrupted, first_line
from hfexp.core.process import ProcessId
from hfexp.core.secrets import mask_secrets
from hfexp.sweep.trials import State, TrialRun
from hfexp.tracking.membership import Point, run_directory_of
from hfexp.tracking.run_state import read_state


def outcome(point: Point, result: Any, metrics: int) -> TrialRun:
    """Return the outcome of a job that has ended.

    Args:
        point: the job's point.
        result: Hydra's `JobReturn`.
        metrics: number of values that the job must return.
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
    """Return the outcome of a job that finished in an earlier start; None if it has to be run or continued."""
    _, record = _look(point)
    if record.get("status") != "finished" or (record.get("values") is None and record.get("pruned_step") is None):
        return None
    return _finished(point, None, metrics)


def is_open(point: Point) -> bool:
    """Tell whether the run of a job has neither finished nor failed: its `run.json` says `running` or `killed`."""
    return _look(point)[1].get("status") in ("running", "killed")


def process_of(point: Point) -> ProcessId | None:
    """Return the process that works on an unfinished job, or did until it died; None if the run was closed."""
    _, record = _look(point)
    if record.get("status") != "running":
        return None
    return ProcessId(record["host"], record["pid"], record["process"])


def _finished(point: Point, returned: Any, metrics: int) -> TrialRun:
    run_dir, record = _look(point)
    if record.get("status") != "finished":  # no record (another application), or one of an earlier start
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
    """Say why these values can't be compared; return None if they can."""
    if len(numbers) != metrics:
        return f"the job gave {len(numbers)} values, but {metrics} are to be optimised (search.metrics)"
    for number in numbers:
        if isinstance(number, str) or not hasattr(number, "__float__"):
            return f"the job gave {number!r} instead of a number to compare"
        if math.isnan(float(number)):
            return "the objective is NaN"
    return None


def _look(point: Point) -> tuple[Path | None, dict[str, Any]]:
    """Return the run directory of a job and its parsed `run.json`; None and an empty dict if there is none yet."""
    run_dir = run_directory_of(point)
    state = read_state(run_dir) if run_dir else None
    return run_dir, asdict(state) if state else {}
