"""What each process of a run does: from data and weights to a trained, evaluated, saved and recorded model."""

import json
import logging
import math
import time
from functools import partial
from typing import Any

import numpy as np
import transformers

from hfexp.core import console
from hfexp.core.config import Config, Strategy
from hfexp.core.errors import ConfigError, RunError
from hfexp.core.outside import DamagedRecord
from hfexp.core.training_args import TIMINGS, build_arguments
from hfexp.data import dataset
from hfexp.data.prepare import PreparedCache
from hfexp.experiment.callbacks import DrawSamples, Recorder, ShowProgress, TrackingCallback
from hfexp.experiment.context import Inputs, Outcome, RunContext
from hfexp.experiment.preflight import leaves_parameters_unused, process_splits
from hfexp.experiment.pruning import PruningCallback, pruning_callback
from hfexp.experiment.result import show_model
from hfexp.experiment.sweep_values import values_of_point
from hfexp.launch import world
from hfexp.tasks.base import CLASS, TEXT
from hfexp.tracking.membership import is_best_so_far
from hfexp.tracking.report.classes import ClassReport
from hfexp.tracking.report.facts import ItemScores, Scores, SplitScores, TextScores, WrittenText
from hfexp.tracking.run_directory import RunDirectory
from hfexp.tracking.tracker import Tracker
from hfexp.training import adapters
from hfexp.training.callbacks import StopOnSignal, early_stopping
from hfexp.training.model import build_model, share_statistics
from hfexp.training.recipes import notes, use_recipes
from hfexp.training.reference import keep_reference
from hfexp.training.sharding import sharding_fields
from hfexp.training.trainer import Trainer, metric_function, trainer_class

logger = logging.getLogger(__name__)

SHOWN_TEXTS = 10
"""Best texts, and as many of the worst ones, that the report shows of a split."""


def fit(context: RunContext, inputs: Inputs, tracker: Tracker, stop: StopOnSignal) -> Outcome:
    """Train, evaluate, save and record; of several processes, the first one saves and records.

    Raises:
        Terminated: a signal asked to stop; starting the experiment again continues from the written checkpoint.
    """
    config, directory, is_first = context.config, context.directory, world.rank() == 0
    transformers.set_seed(config.seed, deterministic=config.trainer.deterministic)
    splits = build_splits(config, inputs)
    if is_first:
        console.status("building the model")
    model, summary = build_model(config.model, inputs.task, inputs.id2label, config.security.allowed_targets)
    recorder = Recorder(tracker, config, context.origin, context.environment, inputs, directory)
    if is_first:
        show_model(summary)
        for text in filter(None, [dataset.window_note(splits), *notes(config)]):
            console.note(text)
        recorder.begin(model, summary, splits["train"])
    pruning = pruning_callback(config.point, directory.path, "test" in splits)
    trainer, progress = build_trainer(config, inputs, splits, model, recorder, [*([pruning] if pruning else []), stop])
    try:
        trainer.train(resume_from_checkpoint=str(directory.checkpoint) if directory.checkpoint else None)
    except Exception as error:
        if stop.requested:  # the signal has also ended a data loader worker or another process of the run
            raise stop.ending from error
        raise
    finally:
        progress.close()
    require_finite(trainer)
    pruned_step = pruning.pruned_step if pruning else None
    train_seconds = trainer.seconds_before + progress.train_seconds
    metrics, report = conclude(trainer, inputs, splits, recorder, pruned_step, context.started, train_seconds)
    best_metric, best_step = best_metric_and_step(trainer, metrics)
    return Outcome(
        metrics=metrics,
        metric_name=str(trainer.args.metric_for_best_model).removeprefix("eval_"),
        best_metric=best_metric,
        best_step=best_step,
        report=report,
        train_seconds=train_seconds,
        pruned_step=pruned_step,
        model=None if trainer.is_sharded else trainer.model,
    )


def conclude(
    trainer: Trainer,
    inputs: Inputs,
    splits: dict[str, Any],
    recorder: Recorder,
    pruned_step: int | None,
    started: float,
    train_seconds: float,
) -> tuple[dict[str, float], ClassReport | None]:
    """Evaluate, save and record the model; for a pruned run, record only what it has measured.

    Args:
        started: when this start of the run began, in seconds of `time.monotonic`.

    Returns:
        The final metrics, and in the first process the report on the classes of the last split.
    """
    is_first = world.rank() == 0
    if pruned_step is not None:
        metrics = recorded_best(trainer)
        if is_first:
            recorder.give_up(metrics, trainer.state.best_global_step or pruned_step, pruned_step)
        return metrics, None
    if is_first:
        console.status("evaluating the saved model")
    soup = trainer.try_soup() if trainer.soup else {}
    metrics, scores = evaluate(trainer, inputs, splits)
    weights = trainer.whole_weights()
    metrics |= soup
    if not is_first:
        return metrics, None
    console.status("saving the model")
    save_model(trainer, inputs, recorder.directory, weights)
    note_skipped(splits)
    is_best = is_best_of_sweep(recorder.config, trainer, metrics, train_seconds)
    return metrics, recorder.finish(trainer, metrics, scores, splits, time.monotonic() - started, is_best)


def is_best_of_sweep(config: Config, trainer: Trainer, metrics: dict[str, float], train_seconds: float) -> bool:
    """Tell whether no run of its sweep is better so far than the one that ends; a run without a sweep is the best."""
    if config.point is None:
        return True
    objective, _ = best_metric_and_step(trainer, metrics)
    try:
        return is_best_so_far(config.point, values_of_point(config.point, metrics, objective, train_seconds))
    except (OSError, DamagedRecord, ConfigError):  # reported once the run is recorded, by `summarise`
        return True


def build_splits(config: Config, inputs: Inputs) -> dict[str, Any]:
    """Return each split as a dataset of model inputs."""
    prepared_cache = PreparedCache(config, inputs.task, inputs.processor)
    return process_splits(config, inputs.dataset, inputs.task, inputs.processor, inputs.transforms, prepared_cache)


def build_trainer(
    config: Config,
    inputs: Inputs,
    splits: dict[str, Any],
    model: Any,
    recorder: Recorder,
    stops: list[StopOnSignal | PruningCallback],
) -> tuple[Trainer, ShowProgress]:
    """Build the Trainer with its arguments and callbacks, and the progress display."""
    task, allowed, directory = inputs.task, config.security.allowed_targets, recorder.directory
    args = build_arguments(
        config.trainer.args,
        output_dir=directory.checkpoints,
        seed=config.seed,
        run_name=directory.title,
        metric=task.metric,
        greater_is_better=task.greater_is_better,
        deterministic=config.trainer.deterministic,
        loads_little=splits["train"].reads_columns,
        loss_per_token=task.loss_per_token,
        sharding=sharding_fields(config.launch),
    )
    progress = ShowProgress(task.metric)
    collator = dataset.Collator(task, inputs.processor, inputs.transforms.batch, config.seed, finishes=False)
    copies = args.world_size > 1 and config.launch.strategy is not Strategy.fsdp
    if copies and args.ddp_find_unused_parameters is None and not config.dataset.streaming:
        batch = collator.finish(collator([splits["train"][0]] * 2))
        args.ddp_find_unused_parameters = leaves_parameters_unused(config, inputs, batch)
    if config.trainer.thaw_at is not None:  # until then, processes wait for gradients that do not come
        args.ddp_find_unused_parameters = True
    if args.world_size > 1:
        share_statistics(model, args.device.type != "cpu")
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
            TrackingCallback(recorder),
            *stops,
        ],
    )
    vars(trainer).update(config.trainer.options)
    trainer.add_callback(DrawSamples(recorder, trainer.aside))
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.task, trainer.finish_batch, trainer.loss_function = task, collator.finish, inputs.loss
    if task.needs_reference:
        task.reference = keep_reference(model, trainer.accelerator)
    trainer.config_hash = directory.state.config_hash
    trainer.limits, trainer.on_limit = directory.state.rows_at_once, partial(note_rows_at_once, trainer, recorder)
    trainer.soft_labels, trainer.loss_per_token = inputs.transforms.batch is not None, task.loss_per_token
    use_recipes(trainer, config)
    return trainer, progress


def note_rows_at_once(trainer: Trainer, recorder: Recorder, text: str) -> None:
    """Tell the user that memory ran out, and record the rows at once that the run goes on with."""
    logger.warning(text)
    recorder.directory.state.rows_at_once = [list(limit) for limit in trainer.limits]
    recorder.directory.save_state()
    recorder.tracker.set_tags(
        {
            "hfexp.rows_at_once": str(trainer.rows_at_once),
            "hfexp.eval_rows_at_once": str(trainer.args.per_device_eval_batch_size),
        }
    )


# The end of a training run: check the result, evaluate the final model and save it.


def require_finite(trainer: Trainer) -> None:
    """Fail if training has ended without a usable model.

    Raises:
        RunError: the last loss was not finite, or the metric that selects the best model never was.
    """
    trainer.require_finite_loss()
    best = trainer.state.best_metric
    if best is not None and not math.isfinite(best):
        raise RunError(
            f"{trainer.args.metric_for_best_model} was not a finite number in any evaluation, so it could not "
            "select a model; set trainer.args.metric_for_best_model to another metric, e.g. loss"
        )


def evaluate(trainer: Trainer, inputs: Inputs, splits: dict[str, Any]) -> tuple[dict[str, float], dict[str, Scores]]:
    """Evaluate the final model on the validation split and, once, on the held-out test split.

    Returns:
        Metrics (`best_*`, `final_eval_*`, `test_*`), and by split the predictions of single-label classification, the
        items found, or texts written.
    """
    metrics = recorded_best(trainer) if trainer.args.load_best_model_at_end else {}
    scores: dict[str, Scores] = {}
    for split, prefix in (("validation", "final_eval"), ("test", "test")):
        if split not in splits:
            continue
        output = trainer.predict(splits[split], metric_key_prefix=prefix)
        metrics |= {k: float(v) for k, v in (output.metrics or {}).items()}
        items = inputs.task.found_by_class(output.predictions, output.label_ids)  # pyright: ignore
        if items is not None:
            scores[split] = ItemScores(items)
        elif inputs.id2label and inputs.task.label_kind == CLASS:
            metric_inputs = inputs.task.metric_inputs(output.predictions, output.label_ids)  # pyright: ignore
            probabilities = metric_inputs.get("prediction_scores")
            scores[split] = SplitScores.of(probabilities, metric_inputs["predictions"], metric_inputs["references"])
        elif inputs.task.generates and inputs.task.label_kind == TEXT:
            written = dict(inputs.task.metric_inputs(output.predictions, output.label_ids))  # pyright: ignore
            scores[split] = best_and_worst(inputs, inputs.dataset[split], written)
    _compare_with_best(trainer, metrics)
    return metrics, scores


def best_and_worst(inputs: Inputs, rows: Any, metric_inputs: dict[str, np.ndarray]) -> TextScores:
    """Return the texts of some rows of a split: those that the task's metric scores best, then the worst ones."""
    of_rows = inputs.metrics.of_rows(metric_inputs)
    name = inputs.task.metric if inputs.task.metric in of_rows else next(iter(of_rows))
    order = np.argsort(-of_rows[name], kind="stable").tolist()
    chosen = dict.fromkeys([*order[:SHOWN_TEXTS], *order[-SHOWN_TEXTS:]])
    column = next(column for column in inputs.task.columns if column != inputs.task.label_column)
    sources = {place: str(rows[place][column]) if dataset.num_rows(rows) else "" for place in chosen}
    truth, written = metric_inputs["references"], metric_inputs["predictions"]
    return TextScores(
        name, [WrittenText(float(of_rows[name][p]), sources[p], str(truth[p]), str(written[p])) for p in chosen]
    )


def best_metric_and_step(trainer: Trainer, metrics: dict[str, float]) -> tuple[float | None, int | None]:
    """Return the value of `metric_for_best_model` that the saved model was chosen by, and its step.

    Without `load_best_model_at_end` the run saves the last model, and the value is that of its final evaluation. A run
    that its sweep has pruned saves no model, and the value is the best so far.
    """
    final = metrics.get(f"final_eval_{_metric_name(trainer)}")
    if trainer.args.load_best_model_at_end or final is None:
        return trainer.state.best_metric, trainer.state.best_global_step or None
    return final, trainer.state.global_step


def _metric_name(trainer: Trainer) -> str:
    return str(trainer.args.metric_for_best_model).removeprefix("eval_")


def _compare_with_best(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Tell the user if the saved model is not the one with the best evaluation."""
    name, args, state = _metric_name(trainer), trainer.args, trainer.state
    best, final = metrics.get(f"best_eval_{name}"), metrics.get(f"final_eval_{name}")
    if args.load_best_model_at_end and best is not None and best != final:
        logger.warning("the saved model gives %s=%s, but the best recorded was %s", name, final, best)
    evaluated = {entry["step"] for entry in state.log_history if f"eval_{name}" in entry}
    last_is_saved = not args.load_best_model_at_end and final is not None and state.is_world_process_zero
    if last_is_saved and len(evaluated) > 1 and state.best_metric not in (None, final):
        console.note(
            f"the last model is saved (eval_{name} {final:.4g}); an earlier one had {state.best_metric:.4g}: "
            "trainer.args.load_best_model_at_end=true keeps the best one"
        )


def recorded_best(trainer: Trainer) -> dict[str, float]:
    """Return the metrics, without timings, of the evaluation that gave the best model, as `best_eval_*`."""
    if trainer.soup_metrics:
        return {f"best_{name}": value for name, value in trainer.soup_metrics.items()}
    for entry in trainer.state.log_history:
        if entry.get("step") == trainer.state.best_global_step and "eval_loss" in entry:
            return {f"best_{k}": v for k, v in entry.items() if k.startswith("eval_") and not k.endswith(TIMINGS)}
    return {}


def save_model(
    trainer: Trainer, inputs: Inputs, directory: RunDirectory, weights: dict[str, Any] | None = None
) -> None:
    """Save the final model and its processor in the format of `from_pretrained`.

    Args:
        weights: what `Trainer.whole_weights` returns.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "save_pretrained"):
        adapters.save(model, directory.model, weights)
    else:
        trainer._save(str(directory.model), weights)
    inputs.processor.save_pretrained(directory.model)
    files = inputs.task.companion_files(getattr(model, "config", None), inputs.processor)
    for name, content in files.items():
        (directory.model / name).parent.mkdir(exist_ok=True)
        (directory.model / name).write_text(json.dumps(content, indent=2))


def note_skipped(splits: dict[str, Any]) -> None:
    """Report the samples of streams that `on_bad_sample=skip` left out, which are known only at the end."""
    for split, rows in splits.items():
        if getattr(rows, "num_skipped", 0):
            console.note(f"unreadable {split} samples were skipped {rows.num_skipped} times (over all passes)")
