"""Figures of a run's report: confusion matrices for 2 to 1,000 classes, curves, calibration and samples."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
from datasets import DatasetDict

from hfexp.data.dataset import num_rows
from hfexp.data.sampling import preserved_rng
from hfexp.tasks.base import Task
from hfexp.tracking.report.canvas import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    SPLIT_COLOURS,
    Pictures,
    drawable,
    drawable_labels,
    guarded,
    panel,
    style,
    text_width,
)
from hfexp.tracking.report.classes import ClassReport
from hfexp.tracking.report.facts import ReportFacts, SplitScores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hfexp.data.dataset import ProcessedDataset


MAX_LABELLED = 40
"""Largest number of classes whose names fit beside the matrix."""
MAX_NUMBERS = 20
"""Largest number of classes whose counts fit into the cells of the matrix."""
MAX_BLOCKS = 200
"""Most rows and columns of a heat map: each gets about three pixels, so that a single cell is visible."""


def confusion_matrix(report: ClassReport, split: str) -> "Figure":
    """Plot the share of each true class by predicted class; above 40 classes, plot a heat map of the mistakes."""
    if len(report.labels) <= MAX_LABELLED:
        return _labelled_matrix(report, split)
    return _heat_map(report, split)


def _labelled_matrix(report: ClassReport, split: str) -> "Figure":
    from matplotlib.figure import Figure

    size, labels = len(report.labels), drawable_labels(report.labels)
    cell = 0.4 if size <= MAX_NUMBERS else 0.24
    side = max(2.4, cell * size)
    upright = text_width(labels) < side / size
    left, below = 0.5 + text_width(labels), 0.6 if upright else 0.5 + text_width(labels)
    figure = Figure(figsize=(left + side + 0.95, below + side + 0.45))
    axes = panel(figure, left, below, side, side)
    shares = report.matrix / np.maximum(report.support, 1)[:, None]
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(size), labels, rotation=0 if upright else 90)
    axes.set_yticks(range(size), labels)
    if size <= MAX_NUMBERS:
        for i, j in zip(*np.nonzero(report.matrix), strict=True):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, str(report.matrix[i, j]), ha="center", va="center", color=colour, fontsize=8)
    title = f"Confusion matrix ({split}, {report.matrix.sum():,} samples)"
    _finish(figure, axes, picture, (left + side + 0.15, below, side), title, "share of the true class")
    return figure


def _heat_map(report: ClassReport, split: str) -> "Figure":
    """Plot the mistakes as a heat map of at most 200 x 200 blocks, with confused classes side by side.

    Correct predictions are left out: they would hide the mistakes of their own block, and on the scale all others.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    order = _confused_together(report.matrix)
    width = -(-len(order) // MAX_BLOCKS)
    starts = np.arange(0, len(order), width)
    sums = np.add.reduceat(np.add.reduceat(report.mistakes[order][:, order], starts, 0), starts, 1)
    shares = sums / np.maximum(np.add.reduceat(report.support[order], starts), 1)[:, None]
    figure = Figure(figsize=(7.8, 7.3))
    axes = panel(figure, 0.7, 0.55, 6.0, 6.1)
    edge = len(order) + 0.5
    # On a linear scale, a rare mistake would be invisible beside a frequent one.
    scale = PowerNorm(0.5, 0, shares.max() or 1)
    picture = axes.imshow(
        shares, cmap="Reds", norm=scale, interpolation="nearest", extent=(0.5, edge, edge, 0.5), aspect="auto"
    )
    each = f", {width} per row" if width > 1 else ""
    title = (
        f"Mistakes ({split}): {report.mistakes.sum():,} of {report.matrix.sum():,} samples\n"
        f"{len(order):,} classes{each}, ordered so that confused ones are side by side"
    )
    _finish(figure, axes, picture, (6.85, 0.55, 6.1), title, "mistakes, share of the true class (square-root scale)")
    return figure


def _finish(figure: "Figure", axes: Any, picture: Any, bar: tuple[float, float, float], title: str, unit: str) -> None:
    """Add title, axis labels and colour bar; `bar` is its left, bottom and height in inches."""
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, loc="left")
    axes.spines[:].set_visible(True)
    figure.colorbar(picture, cax=panel(figure, bar[0], bar[1], 0.15, bar[2]), label=unit)


def _confused_together(matrix: np.ndarray) -> np.ndarray:
    """Order the classes (C,) by average-linkage clustering on how often two are predicted for each other."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    shares = matrix / np.maximum(matrix.sum(1), 1)[:, None]
    distance = 1 - (shares + shares.T) / 2
    np.fill_diagonal(distance, 0)
    return leaves_list(linkage(squareform(distance, checks=False), "average"))


def most_confused(report: ClassReport, split: str, count: int = 20) -> "Figure | None":
    """Plot the most frequent pairs of true and predicted class as bars; None if there are no mistakes."""
    from matplotlib.figure import Figure

    pairs = report.most_confused(count)
    if not pairs:
        return None
    labels = drawable_labels(report.labels, 32)
    names = [f"{labels[true]}  \u2192  {labels[predicted]}" for true, predicted, _ in pairs]
    left, height = text_width(names) + 0.2, 0.21 * len(pairs)
    figure = Figure(figsize=(left + 4.6, height + 1.05))
    axes = panel(figure, left, 0.5, 4.2, height)
    totals, counts = report.support[[true for true, _, _ in pairs]], [number for *_, number in pairs]
    axes.barh(range(len(pairs)), totals, color=GREY, alpha=0.25)
    axes.barh(range(len(pairs)), counts, color=RED)
    for row, (number, total) in enumerate(zip(counts, totals, strict=True)):
        axes.text(number, row, f" {number} of {total}", va="center", fontsize=8)
    axes.set_yticks(range(len(pairs)), names)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("samples")
    axes.set_title(
        f"Most confused ({split}): true \u2192 predicted\nred: confused, grey: all of the true class", loc="left"
    )
    return figure


# Plots of learning curves, calibration and class counts.


MAX_POINTS = 400
"""Most points of a drawn curve; longer curves are averaged over equal intervals."""
LARGEST = 1e30
"""Values from this size on are treated as infinite: they can't be placed on an axis."""
MAX_NAMED = 40
"""Largest number of classes whose names fit below a histogram."""
CALIBRATION_BINS = 15

Curve = tuple[np.ndarray, np.ndarray, int]
"""Steps (P,), values (P,), and the number of values left out as not finite."""


def curve(history: list[dict[str, float]], name: str) -> Curve:
    """Return the finite values of one metric by step."""
    points = [(entry.get("step", 0), entry[name]) for entry in history if isinstance(entry.get(name), int | float)]
    table = np.array(points, dtype=float).reshape(-1, 2)
    finite = np.isfinite(table[:, 1]) & (np.abs(table[:, 1]) < LARGEST)
    return table[finite, 0], table[finite, 1], int((~finite).sum())


def learning_curves(facts: ReportFacts) -> "Figure | None":
    """Plot losses, the task's metric, learning rate and gradient norm by step, as far as they were logged."""
    from matplotlib.figure import Figure

    panels = [
        ("loss", [("loss", "training", BLUE), ("eval_loss", "validation", ORANGE)]),
        (facts.metric, [(f"eval_{facts.metric}", "validation", ORANGE)] if facts.metric != "loss" else []),
        ("learning rate", [("learning_rate", "", GREEN)]),
        ("gradient norm", [("grad_norm", "", GREY)]),
    ]
    shown_panels = [
        (title, [(curve(facts.history, name), label, colour) for name, label, colour in lines])
        for title, lines in panels
        if any(name in entry for name, _, _ in lines for entry in facts.history)
    ]
    if not shown_panels:
        return None
    rows, columns = -(-len(shown_panels) // 2), min(2, len(shown_panels))
    figure = Figure(figsize=(0.3 + 5.0 * columns, 0.3 + 2.85 * rows))
    for number, (title, curves) in enumerate(shown_panels):
        row, column = divmod(number, 2)
        axes = panel(figure, 0.75 + 5.0 * column, 0.55 + 2.85 * (rows - 1 - row), 4.1, 2.15)
        _draw_curves(axes, title, curves, facts.best_step if number < 2 else None)
    return figure


def _draw_curves(axes: Any, title: str, curves: list[tuple[Curve, str, str]], best_step: int | None) -> None:
    """Draw one panel: thinned lines, the best step, and in the title how many values were not finite."""
    for (steps, values, _), label, colour in curves:
        steps, values = _thin(steps), _thin(values)
        marker = "o" if len(steps) <= 40 else None
        axes.plot(steps, values, color=colour, label=label or None, marker=marker, markersize=3, linewidth=1.3)
    positive = np.concatenate([values for (_, values, _), _, _ in curves])
    if len(positive) and 0 < positive.min() < positive.max() / 30 and title != "learning rate":
        axes.set_yscale("log")
    lost = sum(count for (_, _, count), _, _ in curves)
    name = drawable(title, 40)
    axes.set_title(f"{name} ({lost} values were not finite)" if lost else name, loc="left")
    if best_step is not None:
        axes.axvline(best_step, color=RED, linestyle=":", linewidth=1.2, label=f"best, step {best_step:,}")
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def _thin(values: np.ndarray) -> np.ndarray:
    """Average a curve over 400 equal intervals; return one of at most 400 points as it is."""
    if len(values) <= MAX_POINTS:
        return values
    edges = np.linspace(0, len(values), MAX_POINTS + 1).astype(int)[:-1]
    return np.add.reduceat(values, edges) / np.diff(np.append(edges, len(values)))


def calibration(scores: SplitScores, num_classes: int, split: str) -> "Figure | None":
    """Plot a reliability diagram: accuracy by the probability of the predicted class, and the samples of each bin.

    A. Niculescu-Mizil, R. Caruana, "Predicting Good Probabilities with Supervised Learning", ICML 2005.
    """
    from matplotlib.figure import Figure

    if scores.confidence is None:
        return None
    shown = scores.labelled(num_classes) & np.isfinite(scores.confidence)
    if not shown.any():
        return None
    counts, confidence, accuracy = reliability(scores, shown)
    error = np.nansum(np.abs(confidence - accuracy) * counts) / counts.sum()
    figure = Figure(figsize=(4.6, 5.2))
    axes = panel(figure, 0.65, 1.85, 3.7, 3.0)
    centres = (np.arange(CALIBRATION_BINS) + 0.5) / CALIBRATION_BINS
    axes.bar(centres, accuracy, 0.9 / CALIBRATION_BINS, color=BLUE, label="accuracy")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfectly calibrated")
    axes.plot(confidence, accuracy, "o", color=ORANGE, markersize=4, label="mean probability, accuracy")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    axes.set_title(f"Calibration ({split}, {counts.sum():,.0f} samples): ECE {error:.3f}", loc="left")
    axes.legend(fontsize=8, loc="upper left")
    below = panel(figure, 0.65, 0.5, 3.7, 1.05)
    below.bar(centres, counts, 0.9 / CALIBRATION_BINS, color=GREY)
    below.set(xlim=(0, 1), xlabel="probability of the predicted class", ylabel="samples")
    below.yaxis.get_major_locator().set_params(integer=True)
    return figure


def reliability(scores: SplitScores, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return samples, mean probability and accuracy of each bin, each (15,); the last two are NaN for empty bins.

    The bins are those of `hfexp.tasks.metrics.ExpectedCalibrationError`.

    Args:
        scores: scores of a task that returns probabilities.
        shown: mask (N,) of the rows that count.
    """
    assert scores.confidence is not None
    confidence = scores.confidence[shown].astype(np.float64)
    correct = (scores.predictions == scores.references)[shown]
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    counts, confidences, hits = (
        np.bincount(bins, weights, CALIBRATION_BINS) for weights in (None, confidence, correct.astype(float))
    )
    with np.errstate(invalid="ignore"):
        return counts, confidences / counts, hits / counts


def class_histogram(data: dict[str, dict[str, Any]]) -> "Figure | None":
    """Plot the samples of each class by split; above 40 classes, plot them by rank."""
    by_split = {split: facts["classes"] for split, facts in data.items() if facts.get("classes")}
    if not by_split:
        return None
    if max(map(len, by_split.values())) > MAX_NAMED:
        return _rank_frequency(by_split)
    return _bars(by_split)


def _bars(by_split: dict[str, dict[str, int]]) -> "Figure":
    """Draw one row of bars for each split."""
    from matplotlib.figure import Figure

    names = list(next(iter(by_split.values())))
    labels = drawable_labels(names)
    width = min(10.0, max(3.6, 0.45 * len(names)))
    upright = text_width(labels) < 0.95 * width / len(names)
    below = 0.35 if upright else 0.25 + text_width(labels)
    figure = Figure(figsize=(width + 0.9, below + 1.55 * len(by_split)))
    for row, (split, counts) in enumerate(reversed(by_split.items())):
        axes = panel(figure, 0.65, below + 1.55 * row, width, 1.15)
        axes.bar(range(len(names)), [counts.get(name, 0) for name in names], color=_colour(split))
        axes.set_title(f"{drawable(split)}: {_spread(list(counts.values()))}", loc="left")
        axes.set_xticks(range(len(names)), labels if row == 0 else [], rotation=0 if upright else 90)
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.yaxis.get_major_locator().set_params(integer=True, nbins=4)
        axes.tick_params(axis="x", length=0)
    return figure


def _rank_frequency(by_split: dict[str, dict[str, int]]) -> "Figure":
    """Draw class counts in descending order, one line for each split."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.9))
    axes = panel(figure, 0.75, 0.55, 6.9, 2.95)
    for split, counts in by_split.items():
        ranked = np.sort([n for n in counts.values() if n > 0])[::-1]
        if len(ranked):
            label = f"{drawable(split)}: {_spread(list(counts.values()))}"
            axes.step(np.arange(1, len(ranked) + 1), ranked, where="mid", color=_colour(split), label=label)
    largest = max(max(counts.values()) for counts in by_split.values())
    if largest >= 10:
        axes.set_yscale("log")
    axes.set_ylim(0.8 if largest >= 10 else 0, largest * 2)
    axes.set(xlabel="classes, the most frequent first", ylabel="samples")
    axes.set_title("Samples of each class", loc="left")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="upper right")
    return figure


def _spread(counts: Sequence[int]) -> str:
    """Describe how the samples are distributed over the classes, e.g. `1,797 samples, 174 to 183 per class`."""
    low, high, empty = min(counts), max(counts), sum(n == 0 for n in counts)
    each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    without = f", {empty} classes without samples" if empty else ""
    return f"{sum(counts):,} samples, {each} per class{without}"


def _colour(split: str) -> str:
    return SPLIT_COLOURS.get(split, GREY)


# Samples as the model gets them: training rows before training, the most confident mistakes after it.


SMALL, LARGE = 128, 224
"""Side of a sample's cell on a sheet in pixels: `SMALL` if no picture is larger than that, else `LARGE`."""
LETTER = 6.3
"""Average width of a letter of a caption, in pixels."""
MAX_PICTURES = 16
MAX_LISTED = 200

Shown = PIL.Image.Image | str
Caption = list[tuple[str, str, str]]
"""Lines below a picture: a text that is cut to fit, an ending that is never cut, and the colour."""


def draw_samples(dataset: "ProcessedDataset", task: Task, processor: Any, drawn: Pictures, count: int = 16) -> None:
    """Write `samples.png` (or `samples.txt`): training rows as the model gets them, augmentation included.

    The rows are evenly spaced over the split and have the keys of the first epoch; the training's random numbers do
    not change. A stream gives its first rows. A task that can't show its inputs gives no file.
    """
    with guarded("samples"), preserved_rng(), style() if drawn.wanted else contextlib.nullcontext():
        size = num_rows(dataset)
        size = len(dataset.first) if size is None else size  # pyright: ignore
        indices = np.unique(np.linspace(0, size - 1, min(count, size)).round().astype(int))
        rows = [dataset[int(index)] for index in indices]
        names = task.id2label(DatasetDict({"train": dataset.rows}))
        shown = [task.picture(row, processor) for row in rows]
        labels = [label_of(row, names) for row in rows]
        texts = [
            f"[{label}] {text}" if label else text
            for text, label in zip(shown, labels, strict=True)
            if isinstance(text, str)
        ]
        drawn.directory.mkdir(parents=True, exist_ok=True)
        if texts:
            (drawn.directory / "samples.txt").write_text(
                "\n\n".join(texts), encoding="utf-8", errors="backslashreplace"
            )
        if any(isinstance(picture, PIL.Image.Image) for picture in shown):
            kind = "without augmentation" if dataset.seed is None else "after augmentation"
            title = f"Training samples {kind}, as the model sees them: {shapes(rows[0])}"
            captions: list[Caption] = [[(label, "", "black")] for label in labels]
            drawn.draw("samples.png", sheet, shown, captions, title)


def label_of(row: dict[str, Any], names: dict[int, str] | None) -> str:
    """Return the label of one row of model inputs as text: a class, several classes, or a number."""
    label = row.get("labels")
    if isinstance(label, int | np.integer) and names is not None:
        return names.get(int(label), "no label")
    if isinstance(label, tuple) and names is not None:
        return ", ".join(names[number] for number, value in enumerate(label) if value) or "none"
    return f"{label:.4g}" if isinstance(label, float) else ""


def shapes(row: dict[str, Any]) -> str:
    """Return names, shapes and dtypes of one row's arrays, e.g. `pixel_values 3 x 8 x 8 uint8`."""
    arrays = {name: value for name, value in row.items() if getattr(value, "ndim", 0)}
    return ", ".join(
        f"{name} {' x '.join(map(str, value.shape))} {str(value.dtype).removeprefix('torch.')}"
        for name, value in arrays.items()
    )


def sheet(shown: Sequence[Shown | None], captions: Sequence[Caption], title: str) -> "Figure | None":
    """Draw pictures in rows with captions below; small pictures are enlarged by a whole factor, large ones reduced."""
    from matplotlib.figure import Figure

    pairs = [(p, c) for p, c in zip(shown, captions, strict=True) if isinstance(p, PIL.Image.Image)]
    if not pairs:
        return None
    side = SMALL if max(max(p.size) for p, _ in pairs) <= SMALL else LARGE
    columns = min(len(pairs), 8 if side == SMALL else 4)
    lines = max(len(c) for _, c in pairs)
    cell_width, cell_height, head = side + 12, side + 8 + 15 * lines, 34
    rows = -(-len(pairs) // columns)
    width = max(columns * cell_width + 12, int(len(title) * LETTER) + 30)
    height = head + rows * cell_height + 6
    # Matplotlib truncates inches times dots per inch: half a pixel more keeps the width and the height whole.
    figure = Figure(figsize=((width + 0.5) / 100, (height + 0.5) / 100), dpi=100)
    figure.text(12 / width, 1 - 20 / height, drawable(title, 160), fontsize=10, va="baseline")
    for number, (picture, caption) in enumerate(pairs):
        row, column = divmod(number, columns)
        pixels = fit(picture, side)
        left, top = 12 + column * cell_width, head + row * cell_height
        figure.figimage(pixels, left + (side - pixels.shape[1]) // 2, height - top - side + (side - len(pixels)) // 2)
        for line, (text, ending, colour) in enumerate(caption):
            place = left / width, 1 - (top + side + 13 + 15 * line) / height
            label = drawable(text, int(side / LETTER) - len(ending)) + ending
            figure.text(*place, label, fontsize=8, color=colour, va="baseline")
    return figure


def fit(picture: PIL.Image.Image, side: int) -> np.ndarray:
    """Return pixels (H, W, 3) uint8, enlarged by a whole factor (nearest neighbour) or reduced to fit `side`."""
    picture = picture.convert("RGB")
    largest = max(picture.size)
    if largest <= side:
        factor = side // largest
        picture = picture.resize((picture.width * factor, picture.height * factor), PIL.Image.Resampling.NEAREST)
    else:
        picture.thumbnail((side, side), PIL.Image.Resampling.LANCZOS)
    return np.asarray(picture)


@dataclass
class Mistakes:
    """The misclassified samples of one split, the most confident first."""

    total: int
    indices: list[int]
    """Indices of at most 200 of them in the split."""
    ranked: bool
    """True if they are sorted by the probability of the predicted class; else they are in the order of the split."""

    @classmethod
    def of(cls, scores: SplitScores, num_classes: int) -> "Mistakes":
        """Build from the scores of a split; samples without a label don't count."""
        wrong = np.flatnonzero(scores.labelled(num_classes) & (scores.predictions != scores.references))
        confidence = scores.confidence
        if confidence is not None:
            wrong = wrong[np.argsort(-np.nan_to_num(confidence[wrong]), kind="stable")]
        return cls(len(wrong), [int(i) for i in wrong[:MAX_LISTED]], confidence is not None)


def mistakes_sheet(
    mistakes: Mistakes, scores: SplitScores, names: dict[int, str], shown: list[Shown | None], split: str
) -> "Figure | None":
    """Draw the first mistakes as pictures: true class in black, predicted class and its probability in red."""
    confidence = scores.confidence
    captions: list[Caption] = []
    for index in mistakes.indices[: len(shown)]:
        predicted = names[int(scores.predictions[index])]
        share = "" if confidence is None else f" ({100 * np.nan_to_num(confidence[index]):.0f} %)"
        captions.append([(names[int(scores.references[index])], "", "black"), (predicted, share, RED)])
    kind = "The most confident mistakes" if mistakes.ranked else "Mistakes"
    return sheet(shown, captions, f"{kind} ({split}, {mistakes.total:,} in all): true class, predicted class in red")
