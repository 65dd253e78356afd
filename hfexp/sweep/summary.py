"""Console output at the end of a sweep: the table, the best point with its command, and the failures."""

import os
from collections.abc import Mapping, Sequence

from hfexp.core.compose import as_typed
from hfexp.core.console import cell, print_table, say
from hfexp.core.errors import RunError, SweepError
from hfexp.core.secrets import mask_override, mask_secrets
from hfexp.sweep.ranking import best, ranked, ties
from hfexp.sweep.table import command_of, measured
from hfexp.sweep.trials import State, Sweep, Trial

MOST_ROWS = 20


def show(sweep: Sweep) -> None:
    """Print the table, the best point with its command, and the sweep's directory."""
    _show_table(sweep)
    for trial in best(sweep.trials, sweep.directions)[:3]:
        say(f"best: {trial.number}, {measured(sweep, trial)}; to run it again:")
        say(f"  {command_of(sweep, trial)}")
    say(f"sweep: {os.path.relpath(sweep.directory)}")


def failures(sweep: Sweep, errors: Mapping[str, Exception]) -> list[tuple[str, Exception]]:
    """List the names of failed jobs, with their overrides, and their errors.

    Args:
        errors: errors of the jobs that failed in this start, by name (`<trial>` or `<trial>.<replicate>`). For a trial
            without one, the reason that the study has is used.
    """
    found = []
    for trial in sweep.trials:
        is_interrupted = trial.state is State.running and any(run.error for run in trial.runs)
        if trial.state is not State.failed and not is_interrupted:
            continue
        names = [name for name in errors if name.partition(".")[0] == str(trial.number)]
        reason = trial.error or next((run.error for run in trial.runs if run.error), "failed")
        causes = [(name, errors[name]) for name in names] or [(str(trial.number), RunError(reason))]
        found += [(f"job {name} ({words(trial)})", error) for name, error in causes]
    return found


def failure_of(
    sweep: Sweep, errors: Mapping[str, Exception], total: int, retries: int, ended_early: bool
) -> SweepError | None:
    """Build the error that the sweep ends with; None if none of its jobs (`total` in all) failed."""
    found = failures(sweep, errors)
    if not found:
        return None
    more = "; search.max_failures ended the sweep early" if ended_early else ""
    if any(trial.attempts <= retries for trial in sweep.trials if trial.state is State.failed):
        more += "; the same command tries them again, as often as search.retries says"
    return SweepError(found, total, more)


def progress(trials: Sequence[Trial]) -> str:
    """Return e.g. `3 points are finished`, for the message of a sweep that is stopped; pruned ones count."""
    done = sum(trial.state in (State.finished, State.pruned) for trial in trials)
    return f"{done} points are finished"


def words(trial: Trial) -> str:
    """Return the overrides that tell a trial from the others, as typed and without secrets."""
    return " ".join(mask_override(as_typed(word)) for word in trial.overrides)


def _show_table(sweep: Sweep) -> None:
    from rich.table import Table

    order, same = ranked(sweep.trials, sweep.directions), ties(sweep.trials, sweep.directions)
    placed = {trial.number for trial in order}
    others = [trial for trial in sweep.trials if trial.number not in placed]
    rows = [*order, *others]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("job", "overrides", *sweep.metrics, ""):
        table.add_column(cell(head))
    for trial in rows[:MOST_ROWS]:
        shown = _values(trial, len(sweep.metrics))
        table.add_row(str(trial.number), cell(words(trial)), *shown, cell(_remark(trial, same)))
    say()
    print_table(table)
    if len(rows) > MOST_ROWS:
        say(f"... {len(rows) - MOST_ROWS} more of {len(rows)} points")


def _values(trial: Trial, count: int) -> list[str]:
    if trial.values is None:
        return ["-"] * count
    if trial.intervals is None:
        return [f"{value:.6g}" for value in trial.values]
    pairs = zip(trial.values, trial.intervals, strict=True)
    return [f"{value:.6g} ± {(high - low) / 2:.2g}" for value, (low, high) in pairs]


def _remark(trial: Trial, same: set[int]) -> str:
    if trial.state is State.finished:
        return "as good as the best, as far as these seeds tell" if trial.number in same else ""
    if trial.state is State.failed:
        return f"failed: {mask_secrets(trial.error or '')}"
    if trial.state is State.pruned:
        steps = [run.pruned_step for run in trial.runs if run.pruned_step is not None]
        return f"pruned at step {steps[0]}" if steps else "pruned"
    return trial.state.value
