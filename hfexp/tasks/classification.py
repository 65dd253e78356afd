"""Classification of any input into one class; the scores of all classes are kept."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from hfexp.tasks.base import Task


class Classification(Task):
    """Base of tasks with one class per row, in the column `label`; the scores allow ranking metrics."""

    label_column: ClassVar[str | None] = "label"
    metric: ClassVar[str] = "accuracy"
    answer_types: ClassVar[dict[str, str]] = {"label": "string", "score": "double", "probabilities": "doubles"}

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """Return class probabilities, (B, num_labels) float32; of several heads the first is the main one."""
        logits = logits[0] if isinstance(logits, tuple) else logits
        return logits.float().softmax(-1)

    def answer(self, output: np.ndarray, id2label: Mapping[int, str]) -> dict[str, Any]:
        """Return the most probable class, its probability, and those of all classes by id."""
        best = int(output.argmax())
        return {
            "label": id2label.get(best, str(best)),
            "score": float(output[best]),
            "probabilities": [float(value) for value in output],
        }

    def metric_inputs(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        """Return class ids and scores: `predictions`, `references` (N,), `prediction_scores` (N, num_labels)."""
        return {"predictions": predictions.argmax(-1), "prediction_scores": predictions, "references": references}

    def fake_predictions(self, id2label: dict[int, str] | None) -> tuple[np.ndarray, np.ndarray]:
        """Make two uniform predictions for each class."""
        count = len(id2label or {0: "", 1: ""})
        return np.full((2 * count, count), 1 / count, dtype=np.float32), np.arange(2 * count) % count
