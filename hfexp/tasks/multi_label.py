"""Multi-label text classification: each class applies to a text or not, independently of the others."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from hfexp.core.errors import ConfigError, DataError
from hfexp.tasks.base import CLASSES, Task
from hfexp.tasks.cells import to_truth
from hfexp.tasks.texts import Texts


class MultiLabel(Task):
    """Base of multi-label tasks: the column `label` has a list of classes in each row, which may be empty."""

    label_column: ClassVar[str | None] = "label"
    label_kind: ClassVar[str] = CLASSES
    metric: ClassVar[str] = "f1_micro"
    answer_types: ClassVar[dict[str, str]] = {"labels": "strings", "probabilities": "doubles"}

    def __init__(self, threshold: float = 0.5, separator: str | None = None) -> None:
        """Set up the task.

        Args:
            threshold: lowest probability at which a class is predicted.
            separator: separator between the classes where they are one text; None: they are lists.
        """
        if not 0 < threshold < 1:
            raise ConfigError(f"task.threshold={threshold} must be between 0 and 1")
        self.threshold = threshold
        self.label_separator = separator

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """Convert truth values by class name to a list of ones and zeros."""
        row = super().decode(row)
        label = row["label"]
        if label is None:
            raise DataError("no label")
        if not isinstance(label, dict):
            return row
        return {**row, "label": [to_truth(value, name) for name, value in label.items()]}

    def preprocess(self, row: dict[str, Any], processor: Any) -> dict[str, Any]:
        """Add `labels` as floats, (num_labels,), for the binary cross entropy of each class."""
        inputs = super().preprocess(row, processor)
        return {**inputs, "labels": tuple(map(float, np.atleast_1d(inputs["labels"])))}

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """Return the probability of each class by itself, (B, num_labels) float32."""
        logits = logits[0] if isinstance(logits, tuple) else logits
        return logits.float().sigmoid()

    def answer(self, output: np.ndarray, id2label: Mapping[int, str]) -> dict[str, Any]:
        """Return the classes that reach the threshold, most probable first, and the probabilities of all."""
        found = [int(number) for number in np.argsort(-output) if output[number] >= self.threshold]
        return {
            "labels": [id2label.get(number, str(number)) for number in found],
            "probabilities": [float(value) for value in output],
        }

    def metric_inputs(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        """Return `predictions` and `references` (0 or 1) and `prediction_scores`, all (N, num_labels)."""
        found = (predictions >= self.threshold).astype(np.int64)
        return {"predictions": found, "prediction_scores": predictions, "references": references.astype(np.int64)}

    def fake_predictions(self, id2label: dict[int, str] | None) -> tuple[np.ndarray, np.ndarray]:
        """Make one right prediction for each class, and one row without any class."""
        count = len(id2label or {0: "", 1: ""})
        truth = np.eye(count + 1, count, dtype=np.float32)
        return truth * 0.8 + 0.1, truth


class MultiLabelTextClassification(MultiLabel, Texts):
    """Multi-label classification on the columns `text` and `label`; `transform` must tokenise."""
