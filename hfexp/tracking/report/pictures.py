"""Plots of learning curves, calibration and class counts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hfexp.tracking.report.canvas import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    SPLIT_COLOURS,
    drawable,
    drawable_labels,
    panel,
    text_width,
)
from hfexp.tracking.report.facts import ReportFacts, SplitScores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    found = [
        (title, [(curve(facts.history, name), label, colour) for name, label, colour in lines])
        for title, lines in panels
        if any(name in entry for name, _, _ in lines for entry in facts.history)
    ]
    if not found:
        return None
    rows, columns = -(-len(found) // 2), min(2, len(found))
    figure = Figure(figsize=(0.3 + 5.0 * columns, 0.3 + 2.85 * rows))
    for number, (title, curves) in enumerate(found):
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

    from hfexp.tasks.metrics import ExpectedCalibrationError

    if scores.probabilities is None:
        return None
    shown = scores.labelled(num_classes) & np.isfinite(scores.probabilities).all(1)
    if not shown.any():
        return None
    probabilities, references = scores.probabilities[shown], scores.references[shown]
    metric = ExpectedCalibrationError(CALIBRATION_BINS)
    error = (metric.compute(prediction_scores=probabilities, references=references) or {})["ece"]
    counts, confidence, accuracy = reliability(probabilities, references)
    figure = Figure(figsize=(4.6, 5.2))
    axes = panel(figure, 0.65, 1.85, 3.7, 3.0)
    centres = (np.arange(CALIBRATION_BINS) + 0.5) / CALIBRATION_BINS
    axes.bar(centres, accuracy, 0.9 / CALIBRATION_BINS, color=BLUE, label="accuracy")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfectly calibrated")
    axes.plot(confidence, accuracy, "o", color=ORANGE, markersize=4, label="mean probability, accuracy")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    axes.set_title(f"Calibration ({split}, {len(references):,} samples): ECE {error:.3f}", loc="left")
    axes.legend(fontsize=8, loc="upper left")
    below = panel(figure, 0.65, 0.5, 3.7, 1.05)
    below.bar(centres, counts, 0.9 / CALIBRATION_BINS, color=GREY)
    below.set(xlim=(0, 1), xlabel="probability of the predicted class", ylabel="samples")
    below.yaxis.get_major_locator().set_params(integer=True)
    return figure


def reliability(probabilities: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return samples, mean probability and accuracy of each bin, each (15,); the last two are NaN for empty bins.

    Args:
        probabilities: class probabilities (N, C); the bins are
            those of `hfexp.tasks.metrics.ExpectedCalibrationError`.
        references: class ids (N,).
    """
    confidence = probabilities.max(-1)
    correct = probabilities.argmax(-1) == references
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    counts, confidences, hits = (
        np.bincount(bins, weights, CALIBRATION_BINS) for weights in (None, confidence, correct.astype(float))
    )
    with np.errstate(invalid="ignore"):
        return counts, confidences / counts, hits / counts


def class_histogram(data: dict[str, dict[str, Any]]) -> "Figure | None":
    """Plot the samples of each class by split; above 40 classes, plot them by rank."""
    found = {split: facts["classes"] for split, facts in data.items() if facts.get("classes")}
    if not found:
        return None
    if max(map(len, found.values())) > MAX_NAMED:
        return _rank_frequency(found)
    return _bars(found)


def _bars(found: dict[str, dict[str, int]]) -> "Figure":
    """Draw one row of bars for each split."""
    from matplotlib.figure import Figure

    names = list(next(iter(found.values())))
    labels = drawable_labels(names)
    width = min(10.0, max(3.6, 0.45 * len(names)))
    upright = text_width(labels) < 0.95 * width / len(names)
    below = 0.35 if upright else 0.25 + text_width(labels)
    figure = Figure(figsize=(width + 0.9, below + 1.55 * len(found)))
    for row, (split, counts) in enumerate(reversed(found.items())):
        axes = panel(figure, 0.65, below + 1.55 * row, width, 1.15)
        axes.bar(range(len(names)), [counts.get(name, 0) for name in names], color=_colour(split))
        axes.set_title(f"{drawable(split)}: {_spread(list(counts.values()))}", loc="left")
        axes.set_xticks(range(len(names)), labels if row == 0 else [], rotation=0 if upright else 90)
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.yaxis.get_major_locator().set_params(integer=True, nbins=4)
        axes.tick_params(axis="x", length=0)
    return figure


def _rank_frequency(found: dict[str, dict[str, int]]) -> "Figure":
    """Draw class counts in descending order, one line for each split."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.9))
    axes = panel(figure, 0.75, 0.55, 6.9, 2.95)
    for split, counts in found.items():
        ranked = np.sort([n for n in counts.values() if n > 0])[::-1]
        if len(ranked):
            label = f"{drawable(split)}: {_spread(list(counts.values()))}"
            axes.step(np.arange(1, len(ranked) + 1), ranked, where="mid", color=_colour(split), label=label)
    largest = max(max(counts.values()) for counts in found.values())
    if largest >= 10:
        axes.set_yscale("log")
    axes.set_ylim(0.8 if largest >= 10 else 0, largest * 2)
    axes.set(xlabel="classes, the most frequent first", ylabel="samples")
    axes.set_title("Samples of each class", loc="left")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="upper right")
    return figure


def _spread(counts: Sequence[int]) -> str:
    """Describe how the samples are distributed over the classes, e.g. `1,797 samples, 174 to 183 a class`."""
    low, high, empty = min(counts), max(counts), sum(n == 0 for n in counts)
    each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    without = f", {empty} classes without any" if empty else ""
    return f"{sum(counts):,} samples, {each} a class{without}"


def _colour(split: str) -> str:
    return SPLIT_COLOURS.get(split, GREY)
