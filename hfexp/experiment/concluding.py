"""The end of a training run: check the result, evaluate the final model and save it."""

import logging
import math
from typing import Any

from hfexp.core import console
from hfexp.core.errors import RunError
from hfexp.experiment.preflight import Inputs
from hfexp.tasks.base import CLASS
from hfexp.tracking.report.facts import SplitScores
from hfexp.tracking.run_directory import RunDirectory
from hfexp.training import adapters
from hfexp.training.trainer import Trainer

logger = logging.getLogger(__name__)


def require_finite(trainer: Trainer) -> None:
    """Fail if training has ended without a usable model.

    Raises:
        RunError: the last loss was not finite, or the metric that selects the best model never was.
    """
    trainer.require_finite_loss()
    best = trainer.state.best_metric
    if best is not None and not math.isfinite(best):
        raise RunError(
            f"{trainer.args.metric_for_best_model} was not a finite number in any evaluation, so no model could be "
            "chosen by it; set trainer.args.metric_for_best_model to another metric, e.g. loss"
        )


def evaluate(
    trainer: Trainer, inputs: Inputs, splits: dict[str, Any]
) -> tuple[dict[str, float], dict[str, SplitScores]]:
    """Evaluate the final model on the validation split and, once, on the held-out test split.

    Returns:
        Metrics (`best_*`, `final_eval_*`, `test_*`), and the predictions of single-label classification by split.
    """
    metrics = recorded_best(trainer) if trainer.args.load_best_model_at_end else {}
    scores = {}
    for split, prefix in (("validation", "final_eval"), ("test", "test")):
        if split not in splits:
            continue
        output = trainer.predict(splits[split], metric_key_prefix=prefix)
        metrics |= {k: float(v) for k, v in (output.metrics or {}).items()}
        if inputs.id2label and inputs.task.label_kind == CLASS:
            offered = inputs.task.metric_inputs(output.predictions, output.label_ids)  # pyright: ignore
            probabilities = offered.get("prediction_scores")
            scores[split] = SplitScores(probabilities, offered["predictions"], offered["references"])
    _compare_with_best(trainer, metrics)
    return metrics, scores


def chosen(trainer: Trainer, metrics: dict[str, float]) -> tuple[float | None, int | None]:
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
    timing = ("_runtime", "_samples_per_second", "_steps_per_second", "_model_preparation_time")
    for entry in trainer.state.log_history:
        if entry.get("step") == trainer.state.best_global_step and "eval_loss" in entry:
            return {f"best_{k}": v for k, v in entry.items() if k.startswith("eval_") and not k.endswith(timing)}
    return {}


def save_model(trainer: Trainer, inputs: Inputs, directory: RunDirectory) -> None:
    """Save the final model and its processor in the format of `from_pretrained`."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "save_pretrained"):
        adapters.save(model, directory.model)
    else:
        trainer.save_model(str(directory.model))
    inputs.processor.save_pretrained(directory.model)


def note_skipped(splits: dict[str, Any]) -> None:
    """Report the samples of streams that `on_bad_sample=skip` left out, which are known only at the end."""
    for split, rows in splits.items():
        if getattr(rows, "num_skipped", 0):
            console.note(f"unreadable {split} samples were skipped {rows.num_skipped} times (in all passes together)")
