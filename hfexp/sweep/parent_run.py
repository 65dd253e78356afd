"""The sweep's own run in the tracking store, above its jobs' runs, and the summary that ends the command."""

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfexp.core.compose import as_typed
from hfexp.core.config import Config
from hfexp.core.console import build_table, cell, print_table, say
from hfexp.core.errors import RunError, SweepError, first_line
from hfexp.core.files import replace_file
from hfexp.core.provenance import Origin
from hfexp.core.secrets import mask_override, mask_secrets
from hfexp.experiment.sweep_values import validation_name
from hfexp.sweep.report import SweepPage, draw
from hfexp.sweep.table import Curve, Curves, command_of, make_table, measured, states
from hfexp.sweep.trials import State, Sweep, Trial, best, best_runs_first, costs, ranked, ties
from hfexp.tracking.environment import Environment
from hfexp.tracking.membership import KIND, RANKING, SWEEP, register_of_sweep
from hfexp.tracking.names import experiment_name
from hfexp.tracking.recovery import close_failed
from hfexp.tracking.report.canvas import guarded
from hfexp.tracking.run_directory import RunDirectory, open_sweep_directory
from hfexp.tracking.tracker import Opening, Tracker, common_tags, open_record

logger = logging.getLogger(__name__)

DEFINITION, TRIALS, SHEET = "sweep.yaml", "trials.json", "trials.csv"
INTERVAL = 5.0
"""Least seconds between the end of one update of the record and the next."""
LARGEST_SHARE = 0.02
"""Largest share of the time that the updates may take."""
MOST_FOLLOWED = 300
"""Most trials whose learning curves are drawn."""
MOST_RANKED = 500
"""Most trials in the ranking's tag: MLflow's tags have at most 8,000 characters (`mlflow/utils/validation.py`)."""


@contextlib.contextmanager
def open_parent(
    config: Config, origin: Origin, sweep: Sweep, directory: Path, key: str | None = None
) -> Iterator["Parent"]:
    """Open or continue the sweep's own run, and close it with the way in which the sweep ended.

    Args:
        config: a job's config, without the swept overrides.
        directory: the sweep's directory; the journal is kept there until it is delivered, as in a run directory.
        key: key of the run if several hosts share it.

    Raises:
        ConfigError: another process runs the sweep, or MLflow can't be used as asked.
    """
    environment = Environment.gather(origin, computes=False)
    with open_sweep_directory(directory, environment.git.get("sha", "")) as opened:
        tags = common_tags(opened, origin, environment) | {KIND: SWEEP} | config.tracking.tags
        files = {DEFINITION: _definition(sweep)}
        params = _params(config, sweep)
        opening = Opening(experiment_name(config, origin), files, params, tags, key=key, shared=key is not None)
        output_dir = Path(config.output_dir)
        with open_record(config.tracking, output_dir, opened, origin, environment, opening) as tracker:
            parent = Parent(opened, tracker, output_dir, register_of_sweep(config), sweep)
            is_over = False
            try:
                yield parent
                is_over = True
            except SweepError:
                is_over = True
                raise
            finally:
                parent.close(is_over)


@dataclass
class Parent:
    """The sweep's own run, kept up to date by a thread."""

    directory: RunDirectory
    tracker: Tracker
    output_dir: Path
    register: str | None
    """Name under which the best model of the sweep is registered at the end; None: it is not registered."""
    _latest: Sweep
    """The newest state of the sweep."""
    _published: Sweep | None = None
    _wake: threading.Event = field(default_factory=threading.Event)
    _closing: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _curves: dict[str, Curves] = field(default_factory=dict)

    @property
    def run_id(self) -> str | None:
        """Return the run's id in MLflow; None without tracking, and until the store can be reached."""
        return self.tracker.run_id

    def update(self, sweep: Sweep) -> None:
        """Publish this state of the sweep from the thread, unless a later call replaces it; return at once."""
        self._latest = sweep
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_up, name="hfexp-sweep", daemon=True)
            self._thread.start()
        self._wake.set()

    def close_failed(self, run_dir: Path, reason: str) -> None:
        """Mark the run of a job whose process has died as failed."""
        mark_failed(run_dir, self.output_dir, reason)

    def close(self, is_over: bool) -> None:
        """Publish the last state of the sweep, and register its best model.

        Args:
            is_over: the sweep was not interrupted, so that its best trial is final and can be registered.
        """
        self._closing.set()
        self._wake.set()
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(0.2)
        if self._published is not self._latest:
            self._publish()
        sweep = self._latest
        totals = {f"trials_{state}": float(count) for state, count in states(sweep).items()}
        self.tracker.log_metrics({**totals, "hours": sweep.seconds / 3600}, round(sweep.seconds))
        best_trials = best(sweep.trials, sweep.directions)
        is_over = is_over and not any(trial.state is State.running for trial in sweep.trials)  # on other hosts
        if is_over and self.register and best_trials:
            runs = [run for run in best_runs_first(best_trials[0], sweep.directions) if run.values and run.run_dir]
            if runs:  # the directory may be on another host
                content = {"run_dir": str(runs[0].run_dir), "run_id": runs[0].run_id}
                self.tracker.record("register", **content, name=self.register)

    def _keep_up(self) -> None:
        """Publish the newest state after each update, as often as `INTERVAL` and `LARGEST_SHARE` allow."""
        while True:
            self._wake.wait()
            if self._closing.is_set():
                return
            self._wake.clear()
            began = time.monotonic()
            self._publish()
            self._closing.wait(max(INTERVAL, (time.monotonic() - began) / LARGEST_SHARE))

    def _publish(self) -> None:
        """Publish the newest state; an error is only a warning, as the sweep is worth more than its record."""
        self._published = self._latest
        try:
            self._write(self._published)
        except Exception as error:
            logger.warning("could not update the sweep's run in the tracking store: %s", first_line(error))

    def _write(self, sweep: Sweep) -> None:
        finished = [trial for trial in sweep.trials if trial.state is State.finished]
        self.tracker.set_tags(_tags(sweep))
        self.tracker.log_metrics(_best_values(sweep), len(finished))
        table, artifacts = make_table(sweep), self.directory.artifacts
        _write_whole(artifacts / SHEET, table.csv().encode("utf-8", "replace"))
        _write_whole(artifacts / TRIALS, table.json().encode("utf-8", "replace"))
        metric = validation_name(sweep.metrics[0]) or "eval_loss"
        curves = self._read_curves(metric, table.trials[:MOST_FOLLOWED])
        drawings = draw(sweep, curves, metric)
        for name, png in drawings.items():
            _write_whole(artifacts / f"{name}.png", png)
        with guarded("report"):
            _write_pages(artifacts, SweepPage(sweep, table, drawings, len(curves)))
        self.tracker.log_artifacts(artifacts)

    def _read_curves(self, metric: str, trials: Sequence[Trial]) -> dict[int, list[Curve]]:
        """Read the learning curves so far, by trial number."""
        curves = self._curves.setdefault(metric, Curves(metric))
        return {t.number: [curves.of(run.run_dir) for run in t.runs if run.run_dir] for t in trials}


def mark_failed(run_dir: Path, output_dir: Path, reason: str) -> None:
    """Mark the run of a job whose process has died as failed."""
    try:
        close_failed(run_dir, output_dir, reason)
    except Exception as error:  # the store is away: `hfexp sync` or the next run delivers the end
        logger.warning("could not mark %s as failed in the store yet: %s", run_dir.name, first_line(error))


def _definition(sweep: Sweep) -> str:
    """Write the definition of the sweep as YAML, for people."""
    import yaml

    goals = [{"metric": m, "direction": d} for m, d in zip(sweep.metrics, sweep.directions, strict=False)]
    content = {
        "name": sweep.name,
        "method": sweep.method,
        "goals": goals,
        "space": dict(sweep.space),
        "fixed": list(sweep.fixed),
        "command": sweep.command,
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=119)


def _params(config: Config, sweep: Sweep) -> dict[str, Any]:
    """Return the params of the sweep's own run: search settings and search space; its jobs' runs have all others."""
    params = {
        "search.method": sweep.method,
        "search.trials": config.search.trials,
        "search.metrics": ", ".join(sweep.metrics),
        "search.directions": ", ".join(sweep.directions),
    }
    params |= {"search.optimise": "bound"} if sweep.bound else {}
    return params | dict(sweep.space)


def _tags(sweep: Sweep) -> dict[str, str]:
    """Return tags with the best trial, the ranking, and the number of trials in each state."""
    tags = {f"hfexp.trials.{state}": str(count) for state, count in states(sweep).items()}
    tags["mlflow.loggedArtifacts"] = json.dumps([{"path": TRIALS, "type": "table"}])
    for trial in best(sweep.trials, sweep.directions)[:1]:
        run_ids = [run.run_id for run in best_runs_first(trial, sweep.directions) if run.run_id]
        tags |= {
            RANKING: " ".join(str(other.number) for other in ranked(sweep.trials, sweep.directions)[:MOST_RANKED]),
            "hfexp.best_trial": str(trial.number),
            "hfexp.best_run_id": ", ".join(run_ids),
            "hfexp.best_command": command_of(sweep, trial),
            "hfexp.best_values": ", ".join(f"{value:.6g}" for value in trial.values or ()),
        }
    return tags


def _best_values(sweep: Sweep) -> dict[str, float]:
    """Return the best value so far of each metric by itself."""
    values = {}
    for index, metric in enumerate(sweep.metrics):
        order = sorted(ranked(sweep.trials, sweep.directions), key=lambda t: costs(t, sweep.directions)[index])
        values |= {f"best_{metric}": trial.values[index] for trial in order[:1] if trial.values}
    return values


def _write_pages(artifacts: Path, page: SweepPage) -> None:
    _write_whole(artifacts / "report.html", page.html().encode("utf-8", "replace"))
    _write_whole(artifacts / "report.md", page.markdown().encode("utf-8", "replace"))


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically, as it may be read or uploaded meanwhile."""
    replace_file(path, content, temporary=path.parent.parent / f".{path.name}")  # `artifacts` is uploaded as a whole


# Console output at the end of a sweep: the table, the best point with its command, and the failures.


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
    failed = []
    for trial in sweep.trials:
        is_interrupted = trial.state is State.running and any(run.error for run in trial.runs)
        if trial.state is not State.failed and not is_interrupted:
            continue
        names = [name for name in errors if name.partition(".")[0] == str(trial.number)]
        reason = trial.error or next((run.error for run in trial.runs if run.error), "failed")
        causes = [(name, errors[name]) for name in names] or [(str(trial.number), RunError(reason))]
        failed += [(f"job {name} ({overrides_of(trial)})", error) for name, error in causes]
    return failed


def failure_of(
    sweep: Sweep, errors: Mapping[str, Exception], total: int, retries: int, ended_early: bool
) -> SweepError | None:
    """Build the error that the sweep ends with; None if none of its jobs (`total` in all) failed."""
    failed = failures(sweep, errors)
    if not failed:
        return None
    more = "; search.max_failures ended the sweep early" if ended_early else ""
    if any(trial.attempts <= retries for trial in sweep.trials if trial.state is State.failed):
        more += "; the same command retries them (up to search.retries times)"
    return SweepError(failed, total, more)


def progress(trials: Sequence[Trial]) -> str:
    """Return e.g. `3 points are finished`, for the message of a sweep that is stopped; pruned ones count."""
    done = sum(trial.state in (State.finished, State.pruned) for trial in trials)
    return f"{done} points are finished"


def overrides_of(trial: Trial) -> str:
    """Return the overrides that tell a trial from the others, as typed and without secrets."""
    return " ".join(mask_override(as_typed(override)) for override in trial.overrides)


def _show_table(sweep: Sweep) -> None:
    order, tied = ranked(sweep.trials, sweep.directions), ties(sweep.trials, sweep.directions)
    ranked_numbers = {trial.number for trial in order}
    others = [trial for trial in sweep.trials if trial.number not in ranked_numbers]
    rows = [*order, *others]
    table = build_table("job", "overrides", *sweep.metrics, "")
    for trial in rows[:MOST_ROWS]:
        values = _values(trial, len(sweep.metrics))
        table.add_row(str(trial.number), cell(overrides_of(trial)), *values, cell(_remark(trial, tied)))
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


def _remark(trial: Trial, tied: set[int]) -> str:
    if trial.state is State.finished:
        return "as good as the best, as far as these seeds can tell" if trial.number in tied else ""
    if trial.state is State.failed:
        return f"failed: {mask_secrets(trial.error or '')}"
    if trial.state is State.pruned:
        steps = [run.pruned_step for run in trial.runs if run.pruned_step is not None]
        return f"pruned at step {steps[0]}" if steps else "pruned"
    return trial.state.value
