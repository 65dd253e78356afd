"""Plots of a confusion matrix, readable for 2 to 1,000 classes."""

from typing import TYPE_CHECKING, Any

import numpy as np

from hfexp.tracking.report.canvas import GREY, RED, drawable_labels, panel, text_width
from hfexp.tracking.report.classes import ClassReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    each = f", {width} to a row" if width > 1 else ""
    title = (
        f"Mistakes ({split}): {report.mistakes.sum():,} of {report.matrix.sum():,} samples\n"
        f"{len(order):,} classes{each}, in an order that puts confused ones side by side"
    )
    _finish(figure, axes, picture, (6.85, 0.55, 6.1), title, "mistakes, share of the true class (uneven scale)")
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
        f"Most confused ({split}): true \u2192 predicted\nred: taken for it, grey: all of the true class", loc="left"
    )
    return figure
