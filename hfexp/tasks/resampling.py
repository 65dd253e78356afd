"""Metrics of many bootstrap resamples at once, from how often each resample has drawn each row.

`counts` is always (R, N): the number of times that resample r has drawn row n. A sum over the rows of a resample is a
product with `counts`, so no resample is ever laid out as rows. Columns are contiguous (`order="F"`), because sorting
and grouping the rows moves whole columns.
"""

import numpy as np


def ratio(numerator: np.ndarray, denominator: np.ndarray, otherwise: float = float("nan")) -> np.ndarray:
    """Divide where the denominator is not 0; `otherwise` elsewhere."""
    result = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), otherwise)
    return np.divide(numerator, denominator, out=result, where=denominator != 0)


def mean(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the mean of a value per row (N,) over the rows of each resample: (R,)."""
    return counts @ values.astype(np.float64) / counts.sum(1)


def group_sums(values: np.ndarray, groups: np.ndarray, size: int) -> np.ndarray:
    """Sum (R, N) over the rows of each group.

    Args:
        groups: number of each row's group (N,), from 0 to `size` - 1.

    Returns:
        (R, size); groups without rows have 0.
    """
    sums = np.zeros((len(values), size), order="F")
    order = np.argsort(groups, kind="stable")
    present, starts = np.unique(groups[order], return_index=True)
    if len(present):
        sums[:, present] = np.add.reduceat(values[:, order], starts, axis=1)
    return sums


def class_counts(
    counts: np.ndarray, predictions: np.ndarray, references: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count right, predicted and true rows of each class, each (R, C).

    Args:
        predictions: class ids (N,), or truth values of all classes (N, C).
        references: like `predictions`.
    """
    if references.ndim == 2:
        predicted, true = predictions.astype(bool), references.astype(bool)
        parts = (predicted & true, predicted, true)
        return tuple(counts @ part.astype(np.float64) for part in parts)  # pyright: ignore
    size = int(max(predictions.max(initial=0), references.max(initial=0))) + 1
    right = predictions == references
    return (
        group_sums(counts[:, right], references[right], size),
        group_sums(counts, predictions, size),
        group_sums(counts, references, size),
    )


def area_under_roc(counts: np.ndarray, truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve of each resample (R,); NaN where it has only rows of one kind.

    It is the share of pairs of a true and another row in which the true one has the higher score; equal scores count
    one half (J. A. Hanley and B. J. McNeil, Radiology 143, 1982).
    """
    _, ties = np.unique(scores, return_inverse=True)
    size = int(ties.max(initial=0)) + 1
    positive = group_sums(counts[:, truth], ties[truth], size)
    negative = group_sums(counts, ties, size) - positive
    below = np.cumsum(negative, axis=1) - negative
    pairs = positive.sum(1) * negative.sum(1)
    return ratio((positive * (below + negative / 2)).sum(1), pairs)


def area_of_rare_class(truth: np.ndarray, scores: np.ndarray) -> float:
    """Return the area under the ROC curve of all rows, by looking each other row up among the few true ones.

    The definition is that of `area_under_roc`.
    """
    true, others = np.sort(scores[truth]), scores[~truth]
    higher, equal_or_higher = (len(true) - np.searchsorted(true, others, side) for side in ("right", "left"))
    return float((higher + equal_or_higher).sum() / (2 * len(true) * len(others)))


def average_precision(counts: np.ndarray, truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the average precision of each resample (R,), as `sklearn.metrics.average_precision_score` defines it.

    It is NaN where a resample has only rows of one kind.
    """
    _, ties = np.unique(-scores, return_inverse=True)  # from the highest score to the lowest
    size = int(ties.max(initial=0)) + 1
    positive, drawn = group_sums(counts[:, truth], ties[truth], size), group_sums(counts, ties, size)
    found, all_true = np.cumsum(positive, axis=1), positive.sum(1)
    precision = ratio(found, np.cumsum(drawn, axis=1), 0.0)
    areas = ratio((positive * precision).sum(1), all_true)
    return np.where(all_true < drawn.sum(1), areas, np.nan)


def mean_over_classes(areas: list[np.ndarray], number: int) -> np.ndarray:
    """Return the mean of one value per class and resample, each (R,), over the classes where it is defined: (R,).

    Args:
        number: of resamples, for there may be no class at all.
    """
    values = np.array(areas).reshape(len(areas), number)
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0).sum(0), known.sum(0).astype(np.float64))


def ranks(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the rank of each row among the rows of each resample (R, N); equal values share their mean rank."""
    _, ties = np.unique(values, return_inverse=True)
    drawn = group_sums(counts, ties, int(ties.max(initial=0)) + 1)
    first = np.cumsum(drawn, axis=1) - drawn
    return (first + (drawn + 1) / 2)[:, ties]


def correlation(counts: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation in each resample (R,); NaN where the values of x or y do not differ.

    Args:
        x: values of the rows (N,), or of the rows in each resample (R, N).
        y: like `x`.
    """
    size = counts.sum(1, keepdims=True)
    x, y = (values - (counts * values).sum(1, keepdims=True) / size for values in (x, y))
    squares = (counts * x**2).sum(1) * (counts * y**2).sum(1)
    return np.where(differ(counts, x) & differ(counts, y), ratio((counts * x * y).sum(1), np.sqrt(squares)), np.nan)


def differ(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Tell for each resample whether the values of its rows differ: (R,)."""
    drawn = counts > 0
    return np.where(drawn, values, np.inf).min(1) < np.where(drawn, values, -np.inf).max(1)
