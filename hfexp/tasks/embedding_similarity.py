"""Embeddings whose cosine says how alike two texts are, learnt from pairs with a score."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from hfexp.core.errors import DataError
from hfexp.tasks import column_names
from hfexp.tasks.base import NUMBER, to_number
from hfexp.tasks.text_vectors import Vectors


class EmbeddingSimilarity(Vectors):
    """Embeddings whose cosine says how alike texts are, from the columns `text`, `text_pair` and `label`."""

    columns: ClassVar[tuple[str, ...]] = ("text", "text_pair", "label")
    usual_names: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "text": column_names.FIRST, "text_pair": column_names.SECOND, "label": column_names.NUMBER,
    }  # fmt: skip
    label_column: ClassVar[str | None] = "label"
    label_kind: ClassVar[str] = NUMBER
    losses: ClassVar[tuple[str, ...]] = ("CosineSimilarityLoss", "CoSENTLoss", "AnglELoss")
    metric: ClassVar[str] = "spearman"

    def model_fields(self, id2label: dict[int, str] | None) -> dict[str, Any]:
        """Return nothing: the model has no head."""
        return {}

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """Convert the label, if there is one, to a float; DataError if `read_number` can't."""
        row = super().decode(row)
        return {**row, "label": self.read_number(row["label"])} if "label" in row else row

    def read_number(self, label: Any) -> float:
        """Return a label as a float; DataError if it is none, or no cosine where the loss compares it with one."""
        number = to_number(label)
        if self.loss_name == "CosineSimilarityLoss" and not -1 <= number <= 1:
            raise DataError(
                f"column 'label' holds {number:g}, but a cosine is from -1 to 1: divide the labels by the largest "
                "one, or set task.loss=CoSENTLoss, which compares only their order"
            )
        return number

    def preprocess(self, row: dict[str, Any], processor: Any) -> dict[str, Any]:
        """Rename `label` to `labels`."""
        return {"labels" if name == "label" else name: value for name, value in row.items()}

    def metric_inputs(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        """Return the cosine of each pair as `predictions`, and the labels as `references`, (N,)."""
        from hfexp.tasks.vectors import cosine

        return {"predictions": cosine(predictions), "references": references}

    def fake_predictions(self, id2label: dict[int, str] | None) -> tuple[np.ndarray, np.ndarray]:
        """Make the vectors of three pairs, the more alike the higher their label."""
        angles = np.array([0.5, 0.3, 0.1], np.float32)
        pairs = [[[1, 0], [np.cos(angle), np.sin(angle)]] for angle in angles]
        return np.array(pairs, np.float32), np.array([0.1, 0.5, 0.9], np.float32)
