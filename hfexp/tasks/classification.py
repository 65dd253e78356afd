"""Classification of anything: one class out, the scores of all of them kept."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from hfexp.tasks.base import Task


class Classification(Task):
    """Column `label`; ranking metrics can be computed from the scores."""

    label_column: ClassVar[str | None] = "label"
    metric: ClassVar[str] = "accuracy"
    answer_types: ClassVar[dict[str, str]] = {"label": "string", "score": "double", "probabilities": "doubles"}

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """Class scores (B, num_labels) in float32; models with several heads give the main one first."""
        logits = logits[0] if isinstance(logits, tuple) else logits
        return logits.float().softmax(-1)

    def answer(self, output: np.ndarray, id2label: Mapping[int, str]) -> dict[str, Any]:
        """The most probable class, its probability, and those of all, in the order of `id2label`."""
        best = int(output.argmax())
        return {
            "label": id2label.get(best, str(best)),
            "score": float(output[best]),
            "probabilities": [float(value) for value in output],
        }

    def metric_inputs(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        """Class ids and scores: `predictions` (N,), `prediction_scores` (N, num_labels), `references` (N,)."""
        return {"predictions": predictions.argmax(-1), "prediction_scores": predictions, "references": references}

    def fake_predictions(self, id2label: dict[int, str] | None) -> tuple[np.ndarray, np.ndarray]:
        """Two uniform predictions for each class."""
        count = len(id2label or {0: "", 1: ""})
        return np.full((2 * count, count), 1 / count, dtype=np.float32), np.arange(2 * count) % count
