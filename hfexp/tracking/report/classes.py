"""Per-class metrics of a classifier: scores per class, confusion matrix, majority baseline."""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hfexp.tasks.cells import csv_cell

MAX_SQUARE_CSV = 200
"""Number of classes above which the matrix is written as a long table of its non-zero cells."""


@dataclass
class ClassReport:
    """Confusion matrix of one split, and the scores that follow from it."""

    labels: list[str]
    matrix: np.ndarray
    """Counts (C, C): true class by row, predicted class by column."""

    @classmethod
    def of(cls, predictions: np.ndarray, references: np.ndarray, id2label: dict[int, str]) -> "ClassReport":
        """Build the report from class ids (N,) and (N,); samples without a label (ids outside 0..C-1) are ignored."""
        size = len(id2label)
        known = (references >= 0) & (references < size)
        matrix = np.zeros((size, size), dtype=np.int64)
        np.add.at(matrix, (references[known], predictions[known]), 1)
        return cls([id2label[i] for i in sorted(id2label)], matrix)

    @property
    def support(self) -> np.ndarray:
        """Return the number of samples of each class (C,)."""
        return self.matrix.sum(1)

    @property
    def mistakes(self) -> np.ndarray:
        """Return the confusion matrix (C, C) with a zero diagonal."""
        wrong = self.matrix.copy()
        np.fill_diagonal(wrong, 0)
        return wrong

    @property
    def recall(self) -> np.ndarray:
        """Return the share of each class's samples predicted correctly (C,); NaN for a class without samples."""
        return _divide(np.diag(self.matrix), self.support)

    @property
    def precision(self) -> np.ndarray:
        """Return the share of correct predictions of each class (C,); NaN for a class never predicted."""
        return _divide(np.diag(self.matrix), self.matrix.sum(0))

    @property
    def f1(self) -> np.ndarray:
        """Return the harmonic mean of precision and recall (C,); NaN for a class neither present nor predicted."""
        return _divide(2 * np.diag(self.matrix), self.support + self.matrix.sum(0))

    @property
    def majority_share(self) -> float:
        """Return the accuracy of always predicting the most frequent class of this split; NaN without samples."""
        return float(self.support.max() / self.support.sum()) if self.support.any() else float("nan")

    def worst_ids(self, count: int) -> list[int]:
        """Return the ids of the classes with the lowest recall; classes without samples are left out."""
        recall = self.recall
        order = np.argsort(np.where(np.isnan(recall), np.inf, recall), kind="stable")[:count]
        return [int(i) for i in order if not np.isnan(recall[i])]

    def worst(self, count: int = 3) -> list[tuple[str, float, int]]:
        """Return name, recall and number of samples of the classes with the lowest recall."""
        return [(self.labels[i], float(self.recall[i]), int(self.support[i])) for i in self.worst_ids(count)]

    def best(self) -> tuple[str, float, int] | None:
        """Return name, recall and number of samples of the class with the highest recall; None without samples."""
        if np.isnan(self.recall).all():
            return None
        i = int(np.nanargmax(self.recall))
        return self.labels[i], float(self.recall[i]), int(self.support[i])

    def most_confused(self, count: int) -> list[tuple[int, int, int]]:
        """Return the most frequent confusions as (true id, predicted id, count)."""
        wrong = self.mistakes
        true, predicted = np.nonzero(wrong)
        order = np.argsort(-wrong[true, predicted], kind="stable")[:count]
        return [(int(true[i]), int(predicted[i]), int(wrong[true[i], predicted[i]])) for i in order]

    def save(self, directory: Path, split: str) -> None:
        """Write the matrix and the most frequent confusions as CSV, the scores per class as CSV and JSON."""
        directory.mkdir(parents=True, exist_ok=True)
        self._save_matrix(directory / f"confusion_matrix_{split}.csv")
        support = self.support
        columns = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        scores = [
            {"label": label, **{name: _or_none(v[i]) for name, v in columns.items()}, "samples": int(support[i])}
            for i, label in enumerate(self.labels)
        ]
        (directory / f"per_class_{split}.json").write_text(json.dumps(scores, indent=1))
        write_csv(
            directory / f"per_class_{split}.csv",
            ["id", "label", *columns, "samples"],
            (
                [i, row["label"], *(digits(row[name]) for name in columns), row["samples"]]
                for i, row in enumerate(scores)
            ),
        )
        pairs = ([self.labels[i], self.labels[j], count, support[i]] for i, j, count in self.most_confused(200))
        write_csv(directory / f"most_confused_{split}.csv", ["true", "predicted", "count", "samples"], pairs)

    def _save_matrix(self, path: Path) -> None:
        names = self.labels
        if len(names) <= MAX_SQUARE_CSV:
            rows = ([label, *map(int, row)] for label, row in zip(names, self.matrix, strict=True))
            write_csv(path, ["true \\ predicted", *names], rows)
            return
        cells = zip(*np.nonzero(self.matrix), strict=True)
        rows = ([names[i], names[j], int(self.matrix[i, j])] for i, j in cells)
        write_csv(path, ["true", "predicted", "count"], rows)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as UTF-8 CSV, with cells that spreadsheets would take for formulas escaped."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerows(map(csv_cell, row) for row in (header, *rows))


def digits(value: float | None) -> str:
    """Format a number to six significant digits; None and NaN become an empty string."""
    return "" if value is None or np.isnan(value) else f"{value:.6g}"


def _divide(counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return counts / totals


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
