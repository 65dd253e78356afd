"""A sweep as a run of its own: the parent of its jobs' runs, with the table of all of them."""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfexp.config import Config
from hfexp.environment import Environment
from hfexp.errors import SweepError, first_line
from hfexp.origin import Origin
from hfexp.reporting.canvas import guarded
from hfexp.run_directory import RunDirectory, experiment_name, open_sweep_directory
from hfexp.secrets import mask_secrets
from hfexp.sweep.curves import Curves
from hfexp.sweep.plots import Shown, draw
from hfexp.sweep.ranking import best, best_runs_first, costs, ranked
from hfexp.sweep.report import SweepPage
from hfexp.sweep.table import TrialTable, command_of, make_table, states, swept_keys
from hfexp.sweep.trials import State, Sweep
from hfexp.sweep.values import validation_name
from hfexp.tracking.nesting import KIND, RANKING, SWEEP, register_of_sweep
from hfexp.tracking.recovery import close_failed
from hfexp.tracking.run import Opening, common_tags, open_record
from hfexp.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

DEFINITION, TRIALS, SHEET = "sweep.yaml", "trials.json", "trials.csv"
INTERVAL = 5.0
"""Seconds between two updates of the record, at least."""
LARGEST_SHARE = 0.02
"""Of the time that the updates may take."""
MOST_DRAWN = 300
"""Trials in the pictures."""
FEWEST_FOR_IMPORTANCE = 4
MOST_RANKED = 500
"""Trials in the tag of the ranking: MLflow's tags have at most 8,000 characters (`mlflow/utils/validation.py`)."""


@contextlib.contextmanager
def open_parent(config: Config, origin: Origin, sweep: Sweep, directory: Path) -> Iterator["Parent"]:
    """The run of a sweep in the record: opened or continued, and closed with what happened.

    Args:
        config: of a job of the sweep, without what is swept.
        directory: of the sweep; the record is kept there until it is delivered, as in a run directory.

    Raises:
        ConfigError: the sweep is running now, or MLflow can't be used as asked.
    """
    environment = Environment.gather(origin, computes=False)
    with open_sweep_directory(directory, environment.git.get("sha", "")) as opened:
        tags = common_tags(opened, origin, environment) | {KIND: SWEEP} | config.tracking.tags
        files = {DEFINITION: _definition(sweep)}
        opening = Opening(experiment_name(config, origin), files, _params(config, sweep), tags)
        output_dir = Path(config.output_dir)
        with open_record(config.tracking, output_dir, opened, origin, environment, opening) as tracker:
            parent = Parent(opened, tracker, output_dir, register_of_sweep(config), (sweep, None))
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
    """Keeps the record of a sweep up to date, in a thread of its own."""

    directory: RunDirectory
    tracker: Tracker
    output_dir: Path
    register: str | None
    """Name under which the best model of all is registered at the end."""
    _latest: tuple[Sweep, Any]
    """The sweep and its study."""
    _published: tuple[Sweep, Any] | None = None
    _wake: threading.Event = field(default_factory=threading.Event)
    _closing: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _curves: dict[str, Curves] = field(default_factory=dict)

    @property
    def run_id(self) -> str | None:
        """In MLflow; None as long as the store could not be reached, and without tracking."""
        return self.tracker.run_id

    def update(self, sweep: Sweep, study: Any = None) -> None:
        """Show the sweep as it is now; returns at once, and the last call counts.

        Args:
            study: of Optuna, for how important the parameters are.
        """
        self._latest = (sweep, study)
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_up, name="hfexp-sweep", daemon=True)
            self._thread.start()
        self._wake.set()

    def close_failed(self, run_dir: Path, reason: str) -> None:
        """Close the run of a job whose process has died."""
        try:
            close_failed(run_dir, self.output_dir, reason)
        except Exception as error:  # a store that is away: it is told by `hfexp sync`, or the next run
            logger.warning("the end of %s could not be recorded yet: %s", run_dir.name, first_line(error))

    def close(self, is_over: bool) -> None:
        """Record the sweep as it is at last.

        Args:
            is_over: nothing is left to be run, so that the best trial is the best.
        """
        self._closing.set()
        self._wake.set()
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(0.2)
        if self._published is not self._latest:
            self._publish()
        sweep = self._latest[0]
        totals = {f"trials_{state}": float(count) for state, count in states(sweep).items()}
        self.tracker.log_metrics({**totals, "hours": sweep.seconds / 3600}, round(sweep.seconds))
        found = best(sweep.trials, sweep.directions)
        if is_over and self.register and found:
            run_dirs = [
                run.run_dir for run in best_runs_first(found[0], sweep.directions) if run.values and run.run_dir
            ]
            if run_dirs:
                self.tracker.record("register", run_dir=str(run_dirs[0]), name=self.register)

    def _keep_up(self) -> None:
        """Publish what is newest, as often as that may be done."""
        while True:
            self._wake.wait()
            if self._closing.is_set():
                return
            self._wake.clear()
            began = time.monotonic()
            self._publish()
            self._closing.wait(max(INTERVAL, (time.monotonic() - began) / LARGEST_SHARE))

    def _publish(self) -> None:
        """Write everything anew; the sweep is worth more than its record."""
        sweep, study = self._published = self._latest
        try:
            self._write(sweep, study)
        except Exception as error:
            logger.warning("the record of the sweep could not be brought up to date: %s", first_line(error))

    def _write(self, sweep: Sweep, study: Any) -> None:
        finished = [trial for trial in sweep.trials if trial.state is State.finished]
        self.tracker.set_tags(_tags(sweep))
        self.tracker.log_metrics(_best_values(sweep), len(finished))
        table, artifacts = make_table(sweep), self.directory.artifacts
        _write_whole(artifacts / SHEET, table.csv().encode("utf-8", "replace"))
        _write_whole(artifacts / TRIALS, table.json().encode("utf-8", "replace"))
        shown = self._shown(sweep, table, study)
        drawings = draw(shown)
        for name, drawing in drawings.items():
            _write_whole(artifacts / f"{name}.png", drawing.png)
        with guarded("report"):
            _write_pages(artifacts, SweepPage(sweep, table, drawings, len(shown.trials)))
        self.tracker.log_artifacts(artifacts)

    def _shown(self, sweep: Sweep, table: TrialTable, study: Any) -> Shown:
        trials = table.trials[:MOST_DRAWN]
        metric = validation_name(sweep.metrics[0]) or "eval_loss"
        curves = self._curves.setdefault(metric, Curves(metric))
        by_trial = {t.number: [curves.of(run.run_dir) for run in t.runs if run.run_dir] for t in trials}
        return Shown(sweep, trials, by_trial, metric, _importances(study, sweep))


def _definition(sweep: Sweep) -> str:
    """What the sweep is, for people and for another start."""
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
    """What is swept, and how; everything else is in the runs."""
    asked = {
        "search.method": sweep.method,
        "search.trials": config.search.trials,
        "search.metrics": ", ".join(sweep.metrics),
        "search.directions": ", ".join(sweep.directions),
    }
    asked |= {"search.optimise": "bound"} if sweep.bound else {}
    return asked | dict(sweep.space)


def _tags(sweep: Sweep) -> dict[str, str]:
    """The best trial, and how far the sweep is."""
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
    """The best value of each metric by itself, so far."""
    found = {}
    for index, metric in enumerate(sweep.metrics):
        order = sorted(ranked(sweep.trials, sweep.directions), key=lambda t: costs(t, sweep.directions)[index])
        found |= {f"best_{metric}": trial.values[index] for trial in order[:1] if trial.values}
    return found


def _importances(study: Any, sweep: Sweep) -> dict[str, float]:
    """Share of each parameter in the variance of the first metric; empty if there is too little to tell."""
    if study is None or len(swept_keys(sweep)) < 2:
        return {}
    import optuna

    with guarded("importances"), contextlib.closing(_Session(study)):
        complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        params = set.intersection(*(set(trial.params) for trial in complete)) if complete else set()
        if len(complete) < FEWEST_FOR_IMPORTANCE or len(params) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        target = {"params": sorted(params), "target": lambda trial: trial.values[0]}
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, **target)
        return {mask_secrets(str(name)): float(share) for name, share in found.items()}
    return {}


@dataclass
class _Session:
    """The connection to a study's storage that this thread was given."""

    study: Any

    def close(self) -> None:
        self.study._storage.remove_session()


def _write_pages(artifacts: Path, page: SweepPage) -> None:
    _write_whole(artifacts / "report.html", page.html().encode("utf-8", "replace"))
    _write_whole(artifacts / "report.md", page.markdown().encode("utf-8", "replace"))


def _write_whole(path: Path, content: bytes) -> None:
    """At once, as it may be read or uploaded meanwhile."""
    temporary = path.parent.parent / f".{path.name}"
    temporary.write_bytes(content)
    temporary.replace(path)
