"""Input data of a run's report."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hfexp.tasks.base import Piece


@dataclass
class SplitScores:
    """Predictions of the final model on one split, in the order of its rows."""

    probabilities: np.ndarray | None
    """Class probabilities (N, C); None if the task does not return any."""
    predictions: np.ndarray
    """Class ids (N,)."""
    references: np.ndarray
    """Class ids (N,); an id outside 0..C-1, such as -1, marks a sample without a label."""

    @property
    def confidence(self) -> np.ndarray | None:
        """Return the probability of the predicted class (N,)."""
        if self.probabilities is None:
            return None
        return np.take_along_axis(self.probabilities, self.predictions[:, None], axis=1)[:, 0]

    def labelled(self, num_classes: int) -> np.ndarray:
        """Return a mask (N,) of the samples that have a label."""
        return (self.references >= 0) & (self.references < num_classes)


@dataclass
class ItemScores:
    """What the final model has found in one split, where a row has any number of items, e.g. entities."""

    counts: dict[str, tuple[int, int, int]]
    """Right, predicted and true items by class."""
    examples: list[list[Piece]] = field(default_factory=list)
    """Texts of some rows in which the items are marked."""


@dataclass
class ReportFacts:
    """Facts about the run itself."""

    name: str
    experiment: str
    status: str
    command: str
    metrics: dict[str, float]
    """Final metrics of the run: `best_*`, `final_eval_*` and `test_*`."""
    history: list[dict[str, float]]
    """The Trainer's `log_history`."""
    params: dict[str, str]
    """The config, flattened to dotted keys."""
    environment: dict[str, str]
    data: dict[str, dict[str, Any]]
    """Facts of each split by its name: `rows`, `digest`, `source` and `classes` (label to count, or None)."""
    model: dict[str, str]
    metric: str
    """Name of the task's main metric without a prefix, e.g. `accuracy`."""
    seconds: float

    @property
    def best_step(self) -> int | None:
        """Return the step whose evaluation gave the `best_*` values; None if no evaluation matches them."""
        best = {name.removeprefix("best_"): value for name, value in self.metrics.items() if name.startswith("best_")}
        for entry in self.history:
            if best and all(entry.get(name) == value for name, value in best.items()):
                return int(entry["step"])
        return None
