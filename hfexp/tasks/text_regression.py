"""Regression on texts: a text, or two, in, one number out."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from hfexp.cells import to_number
from hfexp.tasks.base import NUMBER, Task
from hfexp.tasks.texts import TextPairs, Texts


class Regression(Task):
    """Column `label`: a number in each row. The loss is the squared error, in the unit of the labels."""

    label_column: ClassVar[str | None] = "label"
    label_kind: ClassVar[str] = NUMBER
    metric: ClassVar[str] = "rmse"
    greater_is_better: ClassVar[bool] = False
    answer_types: ClassVar[dict[str, str]] = {"value": "double"}

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row whose label is a real number.

        Raises:
            DataError: it is none.
        """
        row = super().decode(row)
        return {**row, "label": to_number(row["label"])}

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """The number (B,) in float32."""
        logits = logits[0] if isinstance(logits, tuple) else logits
        return logits.float().squeeze(-1)

    def answer(self, output: Any, id2label: Mapping[int, str]) -> dict[str, Any]:
        """The number."""
        return {"value": float(output)}

    def metric_inputs(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        """`predictions` and `references`, (N,)."""
        return {"predictions": predictions, "references": references}

    def fake_predictions(self, id2label: dict[int, str] | None) -> tuple[np.ndarray, np.ndarray]:
        """Three numbers, all of them a little wrong."""
        truth = np.arange(3, dtype=np.float32)
        return truth + np.array([0.1, -0.1, 0.1], np.float32), truth


class TextRegression(Regression, Texts):
    """Columns `text` and `label`; `transform` must tokenise."""


class TextPairRegression(Regression, TextPairs):
    """Columns `text`, `text_pair` and `label`, e.g. two sentences and how alike they are."""
