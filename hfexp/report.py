"""What is known at the end of a run: per-class scores, the confusion matrix, the baseline."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAX_LABELLED_CLASSES = 40


@dataclass
class ClassReport:
    """How well each class is recognised on one split."""

    labels: list[str]
    matrix: np.ndarray
    """Counts (C, C): true class by row, predicted class by column."""

    @classmethod
    def of(cls, predictions: np.ndarray, references: np.ndarray, id2label: dict[int, str]) -> "ClassReport":
        """From class ids (N,) and (N,)."""
        matrix = np.zeros((len(id2label), len(id2label)), dtype=np.int64)
        np.add.at(matrix, (references, predictions), 1)
        return cls([id2label[i] for i in sorted(id2label)], matrix)

    @property
    def support(self) -> np.ndarray:
        """Samples of each class (C,)."""
        return self.matrix.sum(1)

    @property
    def recall(self) -> np.ndarray:
        """Share of each class that was recognised (C,); NaN for a class without samples."""
        with np.errstate(invalid="ignore"):
            return np.diag(self.matrix) / self.support

    @property
    def majority_share(self) -> float:
        """Accuracy of always answering the most frequent class of this split."""
        return float(self.support.max() / self.support.sum())

    def worst(self, count: int = 3) -> list[tuple[str, float, int]]:
        """The classes least recognised: name, recall, samples."""
        recall = np.where(np.isnan(self.recall), np.inf, self.recall)
        order = [i for i in np.argsort(recall, kind="stable")[:count] if self.support[i]]
        return [(self.labels[i], float(self.recall[i]), int(self.support[i])) for i in order]

    def save(self, directory: Path, split: str) -> None:
        """Write the matrix as CSV and picture, and the scores per class as JSON."""
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / f"confusion_matrix_{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["true \\ predicted", *self.labels])
            writer.writerows([label, *map(int, row)] for label, row in zip(self.labels, self.matrix, strict=True))
        scores = [
            {"label": label, "recall": None if np.isnan(r) else float(r), "samples": int(n)}
            for label, r, n in zip(self.labels, self.recall, self.support, strict=True)
        ]
        (directory / f"per_class_{split}.json").write_text(json.dumps(scores, indent=1))
        self._plot(directory / f"confusion_matrix_{split}.png", split)

    def _plot(self, path: Path, split: str) -> None:
        from matplotlib.figure import Figure

        size = len(self.labels)
        figure = Figure(figsize=(min(12, 3 + 0.35 * size), min(11, 2.5 + 0.33 * size)), layout="constrained")
        axes = figure.add_subplot()
        shares = self.matrix / np.maximum(self.support, 1)[:, None]
        picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        figure.colorbar(picture, ax=axes, label="share of the true class")
        axes.set(xlabel="predicted", ylabel="true", title=f"Confusion matrix ({split}, {self.matrix.sum()} samples)")
        if size <= MAX_LABELLED_CLASSES:
            axes.set_xticks(range(size), self.labels, rotation=90 if max(map(len, self.labels)) > 3 else 0)
            axes.set_yticks(range(size), self.labels)
        if size <= MAX_LABELLED_CLASSES // 2:
            for i, j in zip(*np.nonzero(self.matrix), strict=True):
                colour = "white" if shares[i, j] > 0.5 else "black"
                axes.text(j, i, str(self.matrix[i, j]), ha="center", va="center", color=colour, fontsize=8)
        figure.savefig(path, dpi=110)
