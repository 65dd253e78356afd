"""Text regression: one number for a text, or for a pair of texts."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from hfexp.tasks.base import NUMBER, Task
from hfexp.tasks.cells import to_number
from hfexp.tasks.texts import TextPairs, Texts


class Regression(Task):
    """Base of tasks with a number per row, in the column `label`; the loss is the squared error, without scaling."""

    label_column: ClassVar[str | None] = "label"
    label_kind: ClassVar[str] = NUMBER
    metric: ClassVar[str] = "rmse"
    greater_is_better: ClassVar[bool] = False
    answer_types: ClassVar[dict[str, str]] = {"value": "double"}

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """Convert the label to a float.

        Raises:
            DataError: the label is not a finite number.
        """
        row = super().decode(row)
        return {**row, "label": to_number(row["label"])}

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """Return the predicted numbers, (B,) float32."""
        logits = logits[0] if isinstance(logits, tuple) else logits
        return logits.float().squeeze(-1)

    def answer(self, output: Any, id2label: Mapping[int, str]) -> dict[str, Any]:
        """Return the number as `value`."""
        return {"value": float(output)}

    def metric_inputs(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        """Return `predictions` and `references`, (N,)."""
        return {"predictions": predictions, "references": references}

    def fake_predictions(self, id2label: dict[int, str] | None) -> tuple[np.ndarray, np.ndarray]:
        """Make predictions of three numbers, each off by 0.1."""
        truth = np.arange(3, dtype=np.float32)
        return truth + np.array([0.1, -0.1, 0.1], np.float32), truth


class TextRegression(Regression, Texts):
    """Regression on the columns `text` and `label`; `transform` must tokenise."""


class TextPairRegression(Regression, TextPairs):
    """Regression on the columns `text`, `text_pair` and `label`, e.g. how alike two sentences are."""
