"""One experiment from a typed configuration to a recorded result."""

import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers

from hfexp import processing, quiet, screen, streaming
from hfexp.arguments import build_arguments
from hfexp.config import Config
from hfexp.environment import Environment
from hfexp.errors import RunError, Terminated
from hfexp.model import build_model
from hfexp.origin import Origin
from hfexp.preflight import Inputs, prepare
from hfexp.preparing import Preparation
from hfexp.progress import RecordTraining, ShowProgress
from hfexp.recording import Recorder
from hfexp.reporting.classes import ClassReport
from hfexp.reporting.facts import SplitScores
from hfexp.run_directory import RunDirectory, open_run_directory
from hfexp.streams import show_rows
from hfexp.threads import limit_torch
from hfexp.tracking.run import open_run
from hfexp.tracking.system import SystemMonitor
from hfexp.training import StopOnSignal, Trainer, early_stopping, metric_function, trainer_class

logger = logging.getLogger(__name__)


@dataclass
class Result:
    """What came out of a run."""

    metrics: dict[str, float]
    """`best_*`, `final_eval_*` (the saved model on the validation split) and `test_*`."""
    metric_name: str
    """What the best model was chosen by, without prefix."""
    task_metric: str
    """What the task is usually judged by."""
    best_metric: float | None
    best_step: int | None
    run_dir: Path
    run_id: str | None
    tracking_uri: str | None
    report: ClassReport | None
    seconds: float
    train_seconds: float
    model: Any = field(repr=False)
    processor: Any = field(repr=False)

    @property
    def objective(self) -> float | None:
        """What a sweep optimises: the best value of the metric that chooses the model."""
        if self.best_metric is not None:
            return self.best_metric
        return self.metrics.get(f"final_eval_{self.metric_name}")


def run(config: Config, origin: Origin) -> Result:
    """Run one experiment: everything in the order in which the data flows.

    Raises:
        ConfigError: it can't be run as asked; nothing was created.
        Terminated: SIGTERM arrived; the same experiment continues from the checkpoint that was written.
    """
    started = time.perf_counter()
    quiet.quiet_libraries()
    limit_torch()
    inputs = prepare(config)
    environment = Environment.gather(origin)
    with (
        StopOnSignal() as stop,
        open_run_directory(config, origin, environment.git.get("sha", "")) as directory,
        quiet.log_to(directory.path / "hfexp.log"),
        open_run(config, directory, origin, environment) as tracker,
        SystemMonitor(tracker, config.tracking.system_metrics_interval, directory.state.first_started or time.time()),
    ):
        announce(directory, inputs, environment.git)
        transformers.set_seed(config.seed, deterministic=config.trainer.deterministic)
        splits = build_splits(config, inputs)
        model, summary = build_model(config.model, inputs.task, inputs.id2label, config.security.allowed_targets)
        screen.show_model(summary)
        recorder = Recorder(tracker, config, origin, environment, inputs, directory)
        recorder.begin(model, summary, splits["train"])
        trainer, progress = build_trainer(config, inputs, splits, model, recorder, stop)
        try:
            trainer.train(resume_from_checkpoint=str(directory.checkpoint) if directory.checkpoint else None)
        except Exception as error:
            if stop.requested:  # a data loader worker that got the signal too
                raise Terminated from error
            raise
        finally:
            progress.close()
        require_finite(trainer)
        metrics, scores = evaluate(trainer, inputs, splits)
        save_model(trainer, inputs, directory)
        note_skipped(splits)
        report = recorder.finish(trainer, metrics, scores, splits, time.perf_counter() - started)
        result = Result(
            metrics=metrics,
            metric_name=str(trainer.args.metric_for_best_model).removeprefix("eval_"),
            best_metric=trainer.state.best_metric,
            task_metric=inputs.task.metric,
            best_step=trainer.state.best_global_step or None,
            run_dir=directory.path,
            run_id=None,
            tracking_uri=tracker.uri,
            report=report,
            seconds=time.perf_counter() - started,
            train_seconds=progress.train_seconds,
            model=trainer.model,
            processor=inputs.processor,
        )
    result.run_id = tracker.run_id  # which a server that was away may have given at last
    screen.show_result(result)
    return result


def announce(directory: RunDirectory, inputs: Inputs, git: dict[str, str]) -> None:
    """Where the run is, whether it is continued, and how much data it has."""
    sizes = ", ".join(f"{show_rows(rows)} {split}" for split, rows in inputs.dataset.items())
    classes = f", {len(inputs.id2label)} classes" if inputs.id2label else ""
    screen.say(f"  data: {sizes}{classes}")
    for split, count in inputs.dropped.items():
        if count:
            screen.note(f"{count} unreadable {split} samples skipped (dataset.on_bad_sample=skip)")
    if directory.resumed:
        point = directory.checkpoint.name if directory.checkpoint else "the start, as it has no whole checkpoint"
        screen.note(f"continuing {directory.name} from {point}")
        logger.info("continuing from %s", point)
        before = directory.state.git_sha_before
        if before and git and before != git["sha"]:
            screen.note(f"the code has changed since it was started ({before[:8]} -> {git['sha'][:8]})")


def note_skipped(splits: dict[str, Any]) -> None:
    """Say what `on_bad_sample=skip` left out of streams, which is known only at the end."""
    for split, rows in splits.items():
        if getattr(rows, "num_skipped", 0):
            screen.note(f"unreadable {split} samples were skipped {rows.num_skipped} times (in all passes together)")


def build_splits(config: Config, inputs: Inputs) -> dict[str, Any]:
    """Each split as a dataset of model inputs."""
    task, processor = inputs.task, inputs.processor
    preparation = Preparation(config, task, processor)
    return streaming.process(
        inputs.dataset, task, processor, inputs.transforms, config.seed, config.dataset, preparation
    )


def build_trainer(
    config: Config,
    inputs: Inputs,
    splits: dict[str, Any],
    model: Any,
    recorder: Recorder,
    stop: StopOnSignal,
) -> tuple[Trainer, ShowProgress]:
    """The Trainer with its arguments and callbacks."""
    task, allowed, directory = inputs.task, config.security.allowed_targets, recorder.directory
    args = build_arguments(
        config.trainer.args,
        output_dir=directory.checkpoints,
        seed=config.seed,
        run_name=directory.name,
        metric=task.metric,
        greater_is_better=task.greater_is_better,
        deterministic=config.trainer.deterministic,
        loads_little=splits["train"].reads_columns,
    )
    progress = ShowProgress(task.metric)
    collator = processing.Collator(task, inputs.processor, inputs.transforms.batch, config.seed, finishes=False)
    trainer = trainer_class(config.trainer._target_, allowed)(
        model=model,
        args=args,
        data_collator=collator,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=inputs.processor,
        compute_metrics=metric_function(task, inputs.metrics),
        preprocess_logits_for_metrics=task.preprocess_logits,
        callbacks=[
            *early_stopping(config.trainer.early_stopping_patience, config.trainer.early_stopping_threshold),
            *inputs.callbacks,
            progress,
            RecordTraining(recorder),
            stop,
        ],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.finish_batch = collator.finish
    trainer.config_hash = directory.state.config_hash
    if inputs.transforms.batch is not None:
        trainer.soft_labels, trainer.loss_is_scaled_for_ga = True, False
    return trainer, progress


def require_finite(trainer: Trainer) -> None:
    """A model that was never better than nothing is no result.

    Raises:
        RunError: the metric that chooses the best model was NaN at every evaluation.
    """
    best = trainer.state.best_metric
    if best is not None and not math.isfinite(best):
        raise RunError(
            f"training diverged: {trainer.args.metric_for_best_model} was never a finite number; "
            "lower trainer.args.learning_rate, or look at the data with debug=overfit"
        )


def evaluate(
    trainer: Trainer, inputs: Inputs, splits: dict[str, Any]
) -> tuple[dict[str, float], dict[str, SplitScores]]:
    """The final model on the validation split and, once, on the untouched test split.

    Returns:
        Metrics (`best_*`, `final_eval_*`, `test_*`), and for classes what it says about each sample, by split.
    """
    metrics = recorded_best(trainer)
    scores = {}
    for split, prefix in (("validation", "final_eval"), ("test", "test")):
        if split not in splits:
            continue
        output = trainer.predict(splits[split], metric_key_prefix=prefix)
        metrics |= {k: float(v) for k, v in (output.metrics or {}).items()}
        if inputs.id2label:
            offered = inputs.task.metric_inputs(output.predictions, output.label_ids)  # pyright: ignore
            probabilities = offered.get("prediction_scores")
            scores[split] = SplitScores(probabilities, offered["predictions"], offered["references"])
    name = str(trainer.args.metric_for_best_model).removeprefix("eval_")
    best, final = metrics.get(f"best_eval_{name}"), metrics.get(f"final_eval_{name}")
    if trainer.args.load_best_model_at_end and best is not None and best != final:
        logger.warning("the saved model gives %s=%s, but the best recorded was %s", name, final, best)
    return metrics, scores


def recorded_best(trainer: Trainer) -> dict[str, float]:
    """All scores of the evaluation that gave the best model, as `best_eval_*`."""
    timing = ("_runtime", "_samples_per_second", "_steps_per_second", "_model_preparation_time")
    for entry in trainer.state.log_history:
        if entry.get("step") == trainer.state.best_global_step and "eval_loss" in entry:
            return {f"best_{k}": v for k, v in entry.items() if k.startswith("eval_") and not k.endswith(timing)}
    return {}


def save_model(trainer: Trainer, inputs: Inputs, directory: RunDirectory) -> None:
    """The final model and its processor, as `from_pretrained` reads them."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(directory.model)
    else:
        trainer.save_model(str(directory.model))
    inputs.processor.save_pretrained(directory.model)
