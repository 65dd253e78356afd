"""What every process of a run does: from data and weights to a trained, evaluated, saved and recorded model."""

import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import transformers

from hfexp import processing, screen, streaming
from hfexp.arguments import build_arguments
from hfexp.config import Config
from hfexp.environment import Environment
from hfexp.errors import RunError, Terminated
from hfexp.launch import world
from hfexp.model import build_model
from hfexp.origin import Origin
from hfexp.preflight import Inputs, leaves_parameters_unused
from hfexp.preparing import Preparation
from hfexp.progress import DrawSamples, RecordTraining, ShowProgress
from hfexp.recording import Recorder
from hfexp.reporting.classes import ClassReport
from hfexp.reporting.facts import SplitScores
from hfexp.run_directory import RunDirectory
from hfexp.tracking.tracker import Tracker
from hfexp.training import StopOnSignal, Trainer, early_stopping, metric_function, trainer_class

logger = logging.getLogger(__name__)


@dataclass
class Job:
    """A run that is open: all that another process needs to take part in it."""

    config: Config
    """Settled (`hfexp.launch.world.settle`)."""
    origin: Origin
    environment: Environment
    directory: RunDirectory
    started: float
    """Seconds since 1970, of this start."""
    uri: str | None
    run_id: str | None
    terminal: bool
    """Whether a person watches."""


@dataclass
class Outcome:
    """What came out of the training, in a form that can be sent to another process."""

    metrics: dict[str, float]
    metric_name: str
    best_metric: float | None
    best_step: int | None
    report: ClassReport | None
    train_seconds: float
    model: Any = None
    """Stays in the process that trained it."""


def work(job: Job, inputs: Inputs, tracker: Tracker, stop: StopOnSignal) -> Outcome:
    """Train, evaluate, save and record; of several processes, the first one saves and records.

    Raises:
        Terminated: SIGTERM arrived; the same experiment continues from the checkpoint that was written.
    """
    config, directory, is_first = job.config, job.directory, world.rank() == 0
    transformers.set_seed(config.seed, deterministic=config.trainer.deterministic)
    splits = build_splits(config, inputs)
    model, summary = build_model(config.model, inputs.task, inputs.id2label, config.security.allowed_targets)
    recorder = Recorder(tracker, config, job.origin, job.environment, inputs, directory)
    if is_first:
        screen.show_model(summary)
        recorder.begin(model, summary, splits["train"])
    trainer, progress = build_trainer(config, inputs, splits, model, recorder, stop)
    try:
        trainer.train(resume_from_checkpoint=str(directory.checkpoint) if directory.checkpoint else None)
    except Exception as error:
        if stop.requested:  # a data loader worker, or another process of the run, that got the signal too
            raise Terminated from error
        raise
    finally:
        progress.close()
    require_finite(trainer)
    metrics, scores = evaluate(trainer, inputs, splits)
    report = None
    if is_first:
        save_model(trainer, inputs, directory)
        note_skipped(splits)
        report = recorder.finish(trainer, metrics, scores, splits, time.time() - job.started)
    return Outcome(
        metrics=metrics,
        metric_name=str(trainer.args.metric_for_best_model).removeprefix("eval_"),
        best_metric=trainer.state.best_metric,
        best_step=trainer.state.best_global_step or None,
        report=report,
        train_seconds=progress.train_seconds,
        model=trainer.model,
    )


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
        loss_per_token=task.loss_per_token,
    )
    progress = ShowProgress(task.metric)
    collator = processing.Collator(task, inputs.processor, inputs.transforms.batch, config.seed, finishes=False)
    if args.world_size > 1 and args.ddp_find_unused_parameters is None and not config.dataset.streaming:
        batch = collator.finish(collator([splits["train"][0]] * 2))
        args.ddp_find_unused_parameters = leaves_parameters_unused(config, inputs, batch)
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
            DrawSamples(recorder),
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


def note_skipped(splits: dict[str, Any]) -> None:
    """Say what `on_bad_sample=skip` left out of streams, which is known only at the end."""
    for split, rows in splits.items():
        if getattr(rows, "num_skipped", 0):
            screen.note(f"unreadable {split} samples were skipped {rows.num_skipped} times (in all passes together)")
