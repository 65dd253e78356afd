"""What is made of a trained model: its final scores, its files, its record."""

import logging
import math
from typing import Any

from hfexp import adapters, screen
from hfexp.errors import RunError
from hfexp.preflight import Inputs
from hfexp.reporting.facts import SplitScores
from hfexp.run_directory import RunDirectory
from hfexp.tasks.base import CLASS
from hfexp.training import Trainer

logger = logging.getLogger(__name__)


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
        if inputs.id2label and inputs.task.label_kind == CLASS:
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
        adapters.save(model, directory.model)
    else:
        trainer.save_model(str(directory.model))
    inputs.processor.save_pretrained(directory.model)


def note_skipped(splits: dict[str, Any]) -> None:
    """Say what `on_bad_sample=skip` left out of streams, which is known only at the end."""
    for split, rows in splits.items():
        if getattr(rows, "num_skipped", 0):
            screen.note(f"unreadable {split} samples were skipped {rows.num_skipped} times (in all passes together)")
