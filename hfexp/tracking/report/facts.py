"""Input data of a run's report, and its copy in the run directory from which the report can be drawn later."""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hfexp.core.files import replace_file
from hfexp.core.outside import DamagedRecord, read_bytes, read_record
from hfexp.tasks.base import Piece

FACTS, SCORES = "report.json", "report.npz"
"""Files of a run directory with `Stored`, and with the `SplitScores` of all splits."""


@dataclass
class SplitScores:
    """Predictions of the final model on one split, in the order of its rows."""

    confidence: np.ndarray | None
    """Probability of the predicted class (N,); None if the task does not return any."""
    predictions: np.ndarray
    """Class ids (N,)."""
    references: np.ndarray
    """Class ids (N,); an id outside 0..C-1, such as -1, marks a sample without a label."""

    @classmethod
    def of(cls, probabilities: np.ndarray | None, predictions: np.ndarray, references: np.ndarray) -> "SplitScores":
        """Build from the probabilities of all classes, (N, C) or None."""
        if probabilities is None:
            return cls(None, predictions, references)
        return cls(np.take_along_axis(probabilities, predictions[:, None], axis=1)[:, 0], predictions, references)

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
class WrittenText:
    """What the final model has written for one row, and what it should have written."""

    score: float
    source: str
    target: str
    written: str


@dataclass
class TextScores:
    """Texts that the final model has written for one split: the best ones first, and the worst ones."""

    metric: str
    """Name of the score."""
    examples: list[WrittenText]


Scores = SplitScores | ItemScores | TextScores
"""Results of the final model on one split, by the kind of its answers."""


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


@dataclass
class Stored:
    """Content of `FACTS`."""

    facts: ReportFacts
    items: dict[str, ItemScores]
    texts: dict[str, TextScores] = field(default_factory=dict)


def store(directory: Path, facts: ReportFacts, scores: Mapping[str, Scores]) -> None:
    """Write facts and scores to a run directory, for `read_stored`."""
    items = {split: part for split, part in scores.items() if isinstance(part, ItemScores)}
    texts = {split: part for split, part in scores.items() if isinstance(part, TextScores)}
    rows = {split: vars(part) for split, part in scores.items() if isinstance(part, SplitScores)}
    arrays = {f"{split}/{name}": array for split, part in rows.items() for name, array in part.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in arrays.items() if array is not None})
    replace_file(directory / SCORES, buffer.getvalue())
    replace_file(directory / FACTS, json.dumps(asdict(Stored(facts, items, texts))))


def read_stored(directory: Path) -> tuple[ReportFacts, dict[str, Scores]]:
    """Read what `store` wrote; the splits keep their order.

    Raises:
        FileNotFoundError: the run has not ended, or an older version of hfexp trained it.
        DamagedRecord: a file is damaged.
    """
    stored = read_record(directory / FACTS, Stored)
    content = read_bytes(directory / SCORES)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        rows = {
            split: SplitScores(
                arrays.get(f"{split}/confidence"), arrays[f"{split}/predictions"], arrays[f"{split}/references"]
            )
            for split in dict.fromkeys(name.rpartition("/")[0] for name in arrays)
        }
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise DamagedRecord(f"{directory / SCORES} is damaged: {error}") from error
    return stored.facts, {**rows, **stored.items, **stored.texts}
