"""Pruning within the training of a sweep's job: each evaluation is reported, and the pruner may end the training."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfexp.core.config import Pruner
from hfexp.core.errors import ConfigError, first_line
from hfexp.core.files import replace_file
from hfexp.core.secrets import mask_secrets
from hfexp.experiment.sweep_values import BETWEEN_EVALUATIONS, check_names, make_pruner, validation_name
from hfexp.launch import world
from hfexp.tracking.membership import SweepInfo, TrialKey, read_sweep_info

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
            from hfexp.experiment.sweep_storage import close_storage

            close_storage(self._storage)
        self._storage = self._study = None

    def _ask(self, step: int, value: float) -> bool:
        """Do what `optuna.Trial.report` and `should_prune` do; constructing an `optuna.Trial` calls the sampler."""
        if self._study is None:
            import optuna

            from hfexp.experiment.sweep_storage import open_storage

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
