"""Embeddings for search: a vector for each text, learnt from texts that belong together."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from hfexp.core.errors import ConfigError
from hfexp.tasks.text_vectors import Vectors


class Embedding(Vectors):
    """Embeddings for search, from the columns `anchor`, `positive` and, if there is one, `negative`."""

    columns: ClassVar[tuple[str, ...]] = ("anchor", "positive")
    optional_columns: ClassVar[tuple[str, ...]] = ("negative",)
    usual_names: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **Vectors.usual_names,
        "anchor": ("query", "question", "sentence1"),
        "positive": ("pos", "passage", "answer", "response", "document", "sentence2"),
        "negative": ("neg", "hard_negative"),
    }  # fmt: skip
    losses: ClassVar[tuple[str, ...]] = ("MultipleNegativesRankingLoss", "TripletLoss")
    metric: ClassVar[str] = "ndcg_at_10"

    def preprocess(self, row: dict[str, Any], processor: Any) -> dict[str, Any]:
        """Add `labels`, numbers by which equal documents are known; a text to predict on has none."""
        from hfexp.tasks.text_groups import split
        from hfexp.tasks.vectors import document_id

        if self.loss_name == "TripletLoss" and len(row["ends"]) == 2:
            raise ConfigError("task.loss=TripletLoss needs a column 'negative': name it with dataset.columns.negative")
        return {**row, "labels": [document_id(text) for text in split(row)[1:]]}

    def metric_inputs(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        """Return the `ranks` (N,) of the positives among the documents of all rows."""
        from hfexp.tasks.vectors import ranks

        return {"ranks": ranks(predictions, references)}

    def fake_predictions(self, id2label: dict[int, str] | None) -> tuple[np.ndarray, np.ndarray]:
        """Make vectors of two rows, each with its positive at the same place."""
        return np.eye(2, dtype=np.float32)[:, None].repeat(2, 1), np.arange(2)[:, None]
