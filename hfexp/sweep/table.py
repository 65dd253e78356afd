"""The trials of a sweep as one table, best first: for the report, for spreadsheets and for MLflow's UI."""

import csv
import io
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfexp.core.checkpoint import list_checkpoints, trainer_state
from hfexp.core.compose import as_typed
from hfexp.core.provenance import without_sweep
from hfexp.core.secrets import mask_override, mask_secrets
from hfexp.sweep.trials import State, Sweep, Trial, ranked, ties
from hfexp.tasks.cells import csv_cell
from hfexp.tracking.journal import FOLDER, JOURNAL, parse_entry

LONGEST_CELL = 300
"""Characters of a text in a cell; longer ones are cut."""
_SWEEP_OVERRIDE = re.compile(r"[+~]*(hydra[./@]|on_existing=)")

Cell = str | int | float | None


@dataclass(frozen=True)
class TrialTable:
    """A table with one row for each trial."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    trials: tuple[Trial, ...]
    """The trials in the order of the rows."""
    ties: frozenset[int]
    """Numbers of the trials that their seeds can't tell from the best one (`hfexp.sweep.trials.ties`)."""

    def csv(self) -> str:
        """Write the table as CSV, with a header."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerows([csv_cell(cell) for cell in row] for row in (self.columns, *self.rows))
        return buffer.getvalue()

    def json(self) -> str:
        """Write the table as `mlflow.log_table` does, so that MLflow's UI shows it as one."""
        rows = [[_in_json(cell) for cell in row] for row in self.rows]
        return json.dumps({"columns": self.columns, "data": rows})


def make_table(sweep: Sweep) -> TrialTable:
    """Build the table: finished trials, best first, then the others by number."""
    order = ranked(sweep.trials, sweep.directions)
    same = ties(sweep.trials, sweep.directions)
    placed = {trial.number for trial in order}
    trials = [*order, *(trial for trial in sweep.trials if trial.number not in placed)]
    keys = swept_keys(sweep)
    with_interval = any(trial.intervals for trial in trials)
    measured = [column for metric in sweep.metrics for column in _columns(metric, with_interval)]
    columns = ("rank", "trial", "state", *measured, *keys, "tie", "runs", "seconds", "run_id", "error")
    rows = []
    for index, trial in enumerate(trials):
        rows.append(
            (
                index + 1 if trial.number in placed else None, trial.number, trial.state.value,
                *_measured(trial, len(sweep.metrics), with_interval), *(_plain(trial.params.get(k)) for k in keys),
                "tie" if trial.number in same else None, len(trial.runs), seconds_of(trial),
                ", ".join(run.run_id for run in trial.runs if run.run_id), _plain(error_of(trial)),
            )
        )  # fmt: skip
    return TrialTable(columns, tuple(rows), tuple(trials), frozenset(same))


def swept_keys(sweep: Sweep) -> list[str]:
    """List the swept keys: those of the search space in its order, then those that the user's own function adds."""
    keys = [key for trial in sweep.trials for key in trial.params]
    return list(dict.fromkeys([*(key for key in sweep.space if key in set(keys)), *keys]))


def command_of(sweep: Sweep, trial: Trial) -> str:
    """Return the command that runs this point alone, quoted for a shell and without secrets."""
    overrides = without_sweep([*sweep.fixed, *trial.overrides])
    own = [mask_override(as_typed(text)) for text in overrides if not _SWEEP_OVERRIDE.match(text)]
    return mask_secrets(shlex.join(["hfexp", *sweep.flags, *own]))


def measured(sweep: Sweep, trial: Trial) -> str:
    """Format the metrics of a trial; with `search.optimise=bound` also the bounds that it is ranked by."""
    pairs = [*zip(sweep.metrics, trial.values or (), strict=False)]
    pairs += zip(sweep.objectives, trial.objective or (), strict=False) if sweep.bound else ()
    return ", ".join(f"{name} {value:.6g}" for name, value in pairs)


def states(sweep: Sweep) -> dict[str, int]:
    """Count the trials in each state."""
    counts = Counter(trial.state for trial in sweep.trials)
    return {state.value: counts[state] for state in State}


def seconds_of(trial: Trial) -> float | None:
    """Sum the run time of a trial over all its runs, in seconds; None if no run has one."""
    seconds = [run.seconds for run in trial.runs if run.seconds is not None]
    return round(sum(seconds), 1) if seconds else None


def error_of(trial: Trial) -> str | None:
    """Return why a trial failed, or the step at which it was pruned."""
    steps = [run.pruned_step for run in trial.runs if run.pruned_step is not None]
    if trial.state is State.pruned and steps:
        return f"pruned at step {steps[0]}"
    return trial.error or next((run.error for run in trial.runs if run.error), None)


def _columns(metric: str, with_interval: bool) -> Sequence[str]:
    return (metric, f"{metric} sd", f"{metric} low", f"{metric} high") if with_interval else (metric,)


def _measured(trial: Trial, count: int, with_interval: bool) -> list[float | None]:
    """List the cells of `_columns` for each metric: value, and with replicates its deviation and interval."""
    cells: list[float | None] = []
    for index in range(count):
        cells.append(trial.values[index] if trial.values else None)
        if with_interval:
            cells.append(trial.deviations[index] if trial.deviations else None)
            cells += trial.intervals[index] if trial.intervals else (None, None)
    return cells


def _in_json(cell: Cell) -> Cell:
    """Turn NaN and infinity, which JSON does not have, into text."""
    return str(cell) if isinstance(cell, float) and not math.isfinite(cell) else cell


def _plain(value: Any) -> Cell:
    """Turn a value into a cell, without secrets and of at most `LONGEST_CELL` characters."""
    if value is None or isinstance(value, int | float):
        return value
    text = mask_secrets(value if isinstance(value, str) else json.dumps(value, default=str))
    return text if len(text) <= LONGEST_CELL else f"{text[: LONGEST_CELL - 3]}..."


# Learning curves of a sweep's runs, read from their journals and checkpoints while they train.


Curve = dict[int, float]
"""Value of the metric by training step."""


@dataclass
class Curves:
    """Curves of one evaluation metric by run directory; a journal is read on from where the last call stopped."""

    metric: str
    _read_until: dict[Path, int] = field(default_factory=dict)
    _curves: dict[Path, Curve] = field(default_factory=dict)

    def of(self, run_dir: Path) -> Curve:
        """Return the curve of a run so far; empty if it has no evaluation yet."""
        journal = run_dir / FOLDER / JOURNAL
        try:
            return self._from_journal(journal) if journal.exists() else self._from_checkpoint(run_dir)
        except (OSError, ValueError):  # the run is writing the file, or has removed it
            return self._curves.get(journal, {})

    def _from_journal(self, journal: Path) -> Curve:
        curve = self._curves.setdefault(journal, {})
        with journal.open("rb") as file:
            file.seek(self._read_until.get(journal, 0))
            for line in file:
                if not line.endswith(b"\n"):  # the run is still writing this line: the next call reads it
                    break
                self._read_until[journal] = self._read_until.get(journal, 0) + len(line)
                if self.metric.encode() in line:
                    entry = parse_entry(line)
                    if entry and entry["kind"] == "metrics" and self.metric in entry["metrics"]:
                        curve[entry["step"]] = float(entry["metrics"][self.metric])
        return curve

    def _from_checkpoint(self, run_dir: Path) -> Curve:
        """Read the evaluations before the newest checkpoint, for a run without a journal (no tracking)."""
        for checkpoint in reversed(list_checkpoints(run_dir / "checkpoints")):
            history = trainer_state(checkpoint).get("log_history", [])
            return {entry["step"]: float(entry[self.metric]) for entry in history if self.metric in entry}
        return {}
