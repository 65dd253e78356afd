"""What a report is made from."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class SplitScores:
    """What the final model says about one split, in the split's order."""

    probabilities: np.ndarray | None
    """Of every class (N, C); None when the task gives none."""
    predictions: np.ndarray
    """Class ids (N,)."""
    references: np.ndarray
    """Class ids (N,); an id outside 0..C-1, such as -1, is a sample without label."""

    @property
    def confidence(self) -> np.ndarray | None:
        """Probability of the predicted class (N,)."""
        if self.probabilities is None:
            return None
        return np.take_along_axis(self.probabilities, self.predictions[:, None], axis=1)[:, 0]

    def labelled(self, num_classes: int) -> np.ndarray:
        """Which samples have a label (N,)."""
        return (self.references >= 0) & (self.references < num_classes)


@dataclass
class ReportFacts:
    """What is known about the run itself."""

    name: str
    experiment: str
    status: str
    command: str
    metrics: dict[str, float]
    """`best_*`, `final_eval_*` and `test_*`."""
    history: list[dict[str, float]]
    """The Trainer's `log_history`."""
    params: dict[str, str]
    """The configuration, flattened."""
    environment: dict[str, str]
    data: dict[str, dict[str, Any]]
    """By split: `rows`, `digest`, `source` and `classes` (label to count, or None)."""
    model: dict[str, str]
    metric: str
    """What the task is judged by, without prefix, e.g. `accuracy`."""
    seconds: float

    @property
    def best_step(self) -> int | None:
        """The step whose evaluation gave the `best_*` values."""
        best = {name.removeprefix("best_"): value for name, value in self.metrics.items() if name.startswith("best_")}
        for entry in self.history:
            if best and all(entry.get(name) == value for name, value in best.items()):
                return int(entry["step"])
        return None
