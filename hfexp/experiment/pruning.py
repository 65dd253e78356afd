"""A sweep's job within its sweep: the values it returns, the storage it reports to, and the pruner that may end it."""

import inspect
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import TrialUserAttributeModel
from sqlalchemy import update
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfexp.core.config import Pruner
from hfexp.core.console import note
from hfexp.core.errors import ConfigError, RunError, did_you_mean, first_line, one_of
from hfexp.core.files import replace_file, sqlite_address
from hfexp.core.secrets import mask_secrets
from hfexp.launch import world
from hfexp.tracking.membership import SweepInfo, TrialKey, read_sweep_info

# Optuna's pruners, built in the same way by the sweep and by its jobs.


CLASSES = {
    Pruner.none: "NopPruner",
    Pruner.median: "MedianPruner",
    Pruner.asha: "SuccessiveHalvingPruner",
    Pruner.hyperband: "HyperbandPruner",
    Pruner.wilcoxon: "WilcoxonPruner",
}
BETWEEN_EVALUATIONS = (Pruner.median, Pruner.asha, Pruner.hyperband)
"""Pruners that compare the evaluations of runs; their steps are training steps."""


def make_pruner(name: str, args: dict[str, Any]) -> Any:
    """Build the pruner of `search.pruner` and `search.pruner_args`.

    Raises:
        ConfigError: the pruner does not accept these arguments.
    """
    import optuna

    pruner_class = getattr(optuna.pruners, CLASSES[Pruner(name)])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return pruner_class(**args)
    except (TypeError, ValueError) as error:
        allowed = one_of(inspect.signature(pruner_class).parameters) or "none"
        raise ConfigError(f"search.pruner_args for search.pruner={name}: {error}. Allowed: {allowed}") from error


# Lookup of a sweep's metrics among the metrics of a run.


TRAIN_SECONDS = "train_seconds"


def values_of(names: Sequence[str], metrics: Mapping[str, float], objective: float | None) -> list[float]:
    """Return the values of a run that the sweep optimises.

    Args:
        names: `search.metrics`. With `best_`, `final_` or `test_`, a name means exactly that metric. Any other name is
            a metric of the best model on the validation split, or of the final one if none was chosen.
        metrics: metrics of the run (`hfexp.experiment.result.Result.metrics`), and `train_seconds`.
        objective: the value for a sweep that names no metric.

    Raises:
        ConfigError: the run has no such metric.
    """
    if names:
        return [float(metrics[_find(name, metrics)]) for name in names]
    if objective is None:
        raise ConfigError("this run has no metric that chooses the best model; set search.metrics")
    return [float(objective)]


def check_names(names: Sequence[str], evaluated: Iterable[str], has_test: bool, keeps_best: bool = True) -> None:
    """Check after the first evaluation that the run will have these metrics at its end.

    Args:
        evaluated: names of the metrics of the validation split, with `eval_`.
        has_test: the dataset has a test split.
        keeps_best: the run saves the best model; otherwise the last one, and reports no metrics of the best.

    Raises:
        ConfigError: it will lack one of them.
    """
    bases = [name.removeprefix("eval_") for name in evaluated if name.startswith("eval_")]
    prefixes = ["final_eval_", *(["best_eval_"] if keeps_best else []), *(["test_"] if has_test else [])]
    expected = {prefix + base for prefix in prefixes for base in bases} | {TRAIN_SECONDS}
    for name in names:
        _find(name, expected)


def validation_name(name: str) -> str | None:
    """Return the name of a metric in an evaluation during training; None if it is measured only at the end."""
    if name.startswith("test_") or name == TRAIN_SECONDS:
        return None
    return f"eval_{_base(name)}"


def _base(name: str) -> str:
    return name.removeprefix("best_").removeprefix("final_").removeprefix("eval_")


def _find(name: str, metrics: Iterable[str]) -> str:
    available = set(metrics)
    short = {n.removeprefix("best_eval_").removeprefix("final_eval_") for n in available}
    prefix = name.partition("_")[0]
    if prefix in ("best", "final"):  # no fallback: the run may lack this one
        candidates, allowed = [name, f"{prefix}_eval_{_base(name)}"], available
    elif validation_name(name) is None:
        candidates, allowed = [name], available
    else:
        candidates, allowed = [name, f"best_eval_{_base(name)}", f"final_eval_{_base(name)}"], short
    for candidate in candidates:
        if candidate in available:
            return candidate
    raise ConfigError(
        f"search.metrics: no metric {name!r}.{did_you_mean(name, allowed)} This run has: {one_of(allowed)}"
    )


logger = logging.getLogger(__name__)

DECISION = "pruned.json"
LARGEST_SHARE = 0.02
"""Largest share of the training time that a job spends on a study that it can't reach."""


class PruningCallback(TrainerCallback):
    """Trainer callback that reports each evaluation to the study and stops the training when the pruner says so.

    Rank 0 asks the study and the other ranks follow. A decision is kept in `pruned.json`, for when the run is resumed.
    """

    def __init__(self, point: TrialKey, sweep_info: SweepInfo, run_dir: Path, has_test: bool) -> None:
        self.sweep_info = sweep_info
        self.has_test = has_test
        self._decision = run_dir / DECISION
        self._decided = _read_step(self._decision)
        prunes = Pruner(sweep_info.pruner) in BETWEEN_EVALUATIONS
        # In Optuna a trial has one intermediate value per step, so only the first replicate reports.
        self._client = PrunerClient(point.trial, sweep_info) if prunes and point.replicate == 0 else None
        self._reached = 0
        self._checked = False
        if self._client and self._metric is None:
            name = sweep_info.metrics[0]
            raise ConfigError(f"search.pruner={sweep_info.pruner} needs a metric of the validation split, not {name}")

    @property
    def pruned_step(self) -> int | None:
        """Return the step of the evaluation after which the training was ended early; None if it was not."""
        return self._decided if self._decided is not None and self._reached >= self._decided else None

    @property
    def _metric(self) -> str | None:
        """Return the study's metric, as evaluations name it; empty for the metric that chooses the best model."""
        return validation_name(self.sweep_info.metrics[0]) if self.sweep_info.metrics else ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if world.is_together():
            self._decided = world.share(self._decided)
        self._reached = state.global_step

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        metrics, step = metrics or {}, state.global_step
        if not self._checked:
            check_names(self.sweep_info.metrics, metrics, self.has_test, args.load_best_model_at_end)
            self._checked = True
        self._reached = step
        if self._client is None or not step:
            return
        value = float(metrics[self._metric or _prefixed(str(args.metric_for_best_model))])
        ends_anyway = control.should_training_stop or step >= state.max_steps  # finished, not pruned
        if self._is_hopeless(step, value) and not ends_anyway:
            if world.rank() == 0:
                _write_step(self._decision, step)
            self._decided = step
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._client is not None:
            self._client.close()

    def _is_hopeless(self, step: int, value: float) -> bool:
        """Return rank 0's answer on all ranks; a decision from before an interruption is not asked for again."""
        if self._decided is not None:
            return step >= self._decided
        assert self._client is not None
        answer = self._client.should_prune(step, value) if world.rank() == 0 else False
        return world.share(answer) if world.is_together() else answer


class PrunerClient:
    """Asks the pruner about one trial, through Optuna's storage; while that is away, nothing is pruned."""

    def __init__(self, trial: int, sweep_info: SweepInfo) -> None:
        self.trial = trial
        self.sweep_info = sweep_info
        self.pruner = make_pruner(sweep_info.pruner, sweep_info.pruner_args)
        self._storage: Any = None
        self._study: Any = None
        self._not_before = 0.0
        self._clock: Callable[[], float] = time.monotonic
        self._warned = False

    def should_prune(self, step: int, value: float) -> bool:
        """Report a value of the trial; return True if the pruner would stop it."""
        started = self._clock()
        if started < self._not_before:
            return False
        try:
            return self._ask(step, value)
        except Exception as error:  # a database error of any kind must not end the training
            self.close()
            self._not_before = self._clock() + (self._clock() - started) / LARGEST_SHARE
            if not self._warned:
                reason = mask_secrets(first_line(error))
                logger.warning("can't reach the sweep's study, not pruning until it is back: %s", reason)
            self._warned = True
            return False

    def close(self) -> None:
        """Close the storage; the next report opens it again."""
        if self._storage is not None:
            close_storage(self._storage)
        self._storage = self._study = None

    def _ask(self, step: int, value: float) -> bool:
        """Do what `optuna.Trial.report` and `should_prune` do; constructing an `optuna.Trial` calls the sampler."""
        if self._study is None:
            import optuna

            self._storage = open_storage(self.sweep_info.storage)
            self._study = optuna.load_study(
                study_name=self.sweep_info.study,
                storage=self._storage,
                sampler=optuna.samplers.RandomSampler(),
                pruner=self.pruner,
            )
        storage = self._study._storage
        trial_id = storage.get_trial_id_from_study_id_trial_number(self._study._study_id, self.trial)
        trial = storage.get_trial(trial_id)
        if trial.state.is_finished():  # another sweeper took it over, as ours seemed dead
            return False
        storage.set_trial_intermediate_value(trial_id, step, value)
        return bool(self.pruner.prune(self._study, storage.get_trial(trial_id)))


def pruning_callback(point: str | None, run_dir: Path, has_test: bool) -> PruningCallback | None:
    """Build the callback for a point of a sweep; None for a run outside a sweep."""
    if point is None:
        return None
    parsed = TrialKey.parse(point)
    return PruningCallback(parsed, read_sweep_info(parsed.directory), run_dir, has_test)


def _prefixed(metric: str) -> str:
    return metric if metric.startswith("eval_") else f"eval_{metric}"


def _read_step(path: Path) -> int | None:
    try:
        return int(json.loads(path.read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_step(path: Path, step: int) -> None:
    replace_file(path, json.dumps({"step": step}), sync=True)


# The Optuna storage of a sweep: connections for the sweeper and its jobs, and retries while the database is away.


DATABASE = "study.db"
BUSY_SECONDS = 60
"""Seconds that a process waits for another process's write to SQLite."""
CONNECT_SECONDS = 10
"""Seconds that a PostgreSQL server has to accept a connection."""
AWAY_SECONDS = 120.0
"""Seconds that a sweep retries a database that has gone away."""
LONGEST_PAUSE = 5.0
"""Seconds between two of these retries; the first pauses are shorter."""


def storage_url(directory: Path, storage: str | None) -> str:
    """Return `search.storage`, or the URL of a SQLite file in the sweep's directory."""
    return storage or sqlite_address(directory / DATABASE)


def open_storage(url: str, patient: bool = False) -> RDBStorage:
    """Open Optuna's storage at an SQLAlchemy URL; close it with `close_storage`.

    Args:
        patient: retry for `AWAY_SECONDS` when the database goes away after it was reached.

    Raises:
        ConfigError: the Python driver that SQLAlchemy needs for this database is not installed.
        Exception: the database can't be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    timeouts = {"sqlite": {"timeout": BUSY_SECONDS}, "postgresql": {"connect_timeout": CONNECT_SECONDS}}
    connect_args = timeouts.get(url.partition(":")[0].partition("+")[0], {})
    try:
        storage_class = PatientStorage if patient else RDBStorage
        return storage_class(url, engine_kwargs={"connect_args": connect_args, "pool_pre_ping": True})
    except ImportError as error:
        hint = " (pip install 'hfexp[postgres]')" if "psycopg" in str(error) else ""
        raise ConfigError(f"search.storage={mask_secrets(url)} needs a driver: {first_line(error)}{hint}") from error


def close_storage(storage: Any) -> None:
    """Close all connections of a storage, as `open_storage` returned it or as a study wraps it."""
    backend = getattr(storage, "_backend", storage)
    backend.remove_session()
    backend.engine.dispose()


def is_away(error: BaseException) -> bool:
    """Return True if the database can't be reached or is too busy, which may pass."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    lost = isinstance(cause, DBAPIError) and cause.connection_invalidated
    return lost or isinstance(cause, OperationalError | InterfaceError)


def _patiently(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method so that it is retried while the database is away.

    A write whose answer was lost is repeated. That stores the same value again, or leaves a trial without overrides,
    which `TrialStore.load` finds and completes.
    """

    @wraps(method)
    def call(self: "PatientStorage", *args: Any, **kwargs: Any) -> Any:
        began, pause, noted = time.monotonic(), 0.1, False
        while True:
            try:
                return method(self, *args, **kwargs)
            except (StorageInternalError, DBAPIError) as error:
                if not is_away(error):
                    raise
                reason = mask_secrets(first_line(error.__cause__ or error))
                if time.monotonic() - began > self.away_seconds:
                    raise RunError(f"search.storage: the database can no longer be reached: {reason}") from error
                if not noted and pause > 1:
                    note(f"can't reach search.storage, retrying: {reason}")
                    noted = True
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    return call


class PatientStorage(RDBStorage):
    """An RDBStorage that waits for a database that is away, so that the sweep goes on afterwards."""

    away_seconds = AWAY_SECONDS

    @_patiently
    def claim(self, trial_id: int, name: str, before: str, now: str) -> bool:
        """Set an attribute of a trial if it is still `before`: of several processes that try, one succeeds."""
        column = TrialUserAttributeModel
        same = (column.trial_id == trial_id, column.key == name, column.value_json == json.dumps(before))
        with self.engine.begin() as connection:
            changed = connection.execute(update(column).where(*same).values(value_json=json.dumps(now)))
        return changed.rowcount == 1


for _name in (
    "_create_new_trial", "_get_trials", "_set_trial_param", "get_trial", "set_trial_state_values",
    "set_trial_intermediate_value", "set_trial_user_attr", "set_trial_system_attr", "get_study_directions",
    "get_study_user_attrs", "get_study_system_attrs", "set_study_user_attr", "set_study_system_attr",
    "get_trial_id_from_study_id_trial_number",
):  # fmt: skip
    setattr(PatientStorage, _name, _patiently(getattr(RDBStorage, _name)))
