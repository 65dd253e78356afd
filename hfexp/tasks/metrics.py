"""`evaluate.Metric` modules that need no download; each is an option of the `metrics` config group.

They take the inputs that a task provides by name (`predictions`, `prediction_scores`, `references`) and can be used
like any other `evaluate` module, alone or combined.
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import datasets
import evaluate
import numpy as np

from hfexp.core.errors import ConfigError, RunError, one_of
from hfexp.tasks import resampling
from hfexp.tasks.answers import score
from hfexp.tasks.base import CLASS, CLASSES, NUMBER, TEXT
from hfexp.tasks.entities import PREDICTED, RIGHT, TRUE

IDS = datasets.Value("int64")
NUMBERS = datasets.Value("float64")
SCORES = datasets.Sequence(datasets.Value("float32"))
TEXTS = datasets.Value("string")

_KIND_NAMES = {CLASS: "one class per row", CLASSES: "several classes per row", NUMBER: "numbers", TEXT: "texts"}


def _kind(references: np.ndarray) -> str:
    """Return the kind of the labels: class ids, numbers or texts (N,), or truth values of all classes (N, C)."""
    if references.dtype.kind in "OU":
        return TEXT
    return CLASSES if references.ndim == 2 else NUMBER if references.dtype.kind == "f" else CLASS


class _ArrayMetric(evaluate.Metric):
    """Computes from whole arrays: for 10,000 x 1,000 scores, `evaluate`'s way through an Arrow file takes 4.5 s."""

    inputs = {"predictions": IDS, "references": IDS}
    summary = ""
    kinds: tuple[str, ...] = (CLASS,)
    """Kinds of references that the metric is defined for."""

    def __init__(self) -> None:
        super().__init__()

    def _build_data_dir(self) -> str:
        """Create no directory: no Arrow files are written, and the home directory may be read-only."""
        return self._data_dir_root

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(dict(self.inputs))
        return evaluate.MetricInfo(description=self.summary, citation="", features=features)

    def compute(self, **kwargs: Any) -> dict[str, float] | None:
        """Compute the metric from arrays, passed as keyword arguments by the names in `inputs`.

        Raises:
            ConfigError: the references are of a kind for which the metric would be meaningless.
        """
        arrays = {name: np.asarray(kwargs[name]) for name in self.inputs}
        kind = _kind(arrays["references"]) if "references" in arrays else self.kinds[0]
        if kind not in self.kinds:
            ours = " or ".join(_KIND_NAMES[k] for k in self.kinds)
            raise ConfigError(f"metrics: {type(self).__name__} is for {ours}, not for {_KIND_NAMES[kind]}")
        return self._compute(**arrays)

    def _compute(self, **kwargs: Any) -> dict[str, Any]:
        raise NotImplementedError

    def resample(self, counts: np.ndarray, **arrays: np.ndarray) -> dict[str, np.ndarray] | None:
        """Compute the metric for many bootstrap resamples at once; None: it has to be computed for one at a time.

        Args:
            counts: how often each resample has drawn each row (R, N).
            arrays: as for `compute`.

        Returns:
            Values by name, each (R,).
        """
        return None


class _RowMean(_ArrayMetric):
    """A metric that is the mean of a value of each row."""

    def _rows(self, **kwargs: Any) -> dict[str, np.ndarray]:
        """Return the values (N,) by the name of the metric."""
        raise NotImplementedError

    def _compute(self, **kwargs: Any) -> dict[str, float]:
        return {name: float(values.mean()) for name, values in self._rows(**kwargs).items()}

    def resample(self, counts: np.ndarray, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        return {name: resampling.mean(counts, values) for name, values in self._rows(**arrays).items()}


class Accuracy(_RowMean):
    """Share of predictions equal to the reference: `accuracy`."""

    summary = "Share of predictions equal to the reference."

    def _rows(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        return {"accuracy": predictions == references}


ROWS_AT_ONCE = 1000


class TopKAccuracy(_RowMean):
    """Share of samples whose class is among the k highest scores: `top{k}_accuracy`."""

    inputs = {"prediction_scores": SCORES, "references": IDS}
    summary = "Share of samples whose class is among the k highest scores."

    def __init__(self, k: int = 5) -> None:
        if k < 1:
            raise ConfigError(f"metrics: k={k} must be at least 1")
        super().__init__()
        self.k = k

    def _rows(self, prediction_scores: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        k = min(self.k, prediction_scores.shape[-1])
        hits = np.zeros(len(references), dtype=bool)
        for start in range(0, len(references), ROWS_AT_ONCE):  # the indices take twice as much memory as the scores
            part = slice(start, start + ROWS_AT_ONCE)
            top = np.argpartition(-prediction_scores[part], k - 1, axis=-1)[:, :k]
            hits[part] = (top == references[part, None]).any(-1)
        return {f"top{self.k}_accuracy": hits}


class PrecisionRecallF1(_ArrayMetric):
    """Macro or frequency-weighted averages over the classes: `precision_*`, `recall_*`, `f1_*`."""

    kinds = (CLASS, CLASSES)
    summary = "Precision, recall and F1, macro and weighted averages."

    def __init__(self, averages: tuple[str, ...] | list[str] = ("macro", "weighted")) -> None:
        allowed = ("macro", "weighted", "micro")
        for average in averages:
            if average not in allowed:
                raise ConfigError(f"metrics: average {average!r} is unknown; allowed: {one_of(allowed)}")
        super().__init__()
        self.averages = tuple(averages)

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        from sklearn.metrics import precision_recall_fscore_support

        result = {}
        for average in self.averages:
            values = precision_recall_fscore_support(references, predictions, average=average, zero_division=0)  # pyright: ignore
            for name, value in zip(("precision", "recall", "f1"), values[:3], strict=True):
                result[f"{name}_{average}"] = float(value)  # pyright: ignore
        return result

    def resample(self, counts: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        right, predicted, true = resampling.class_counts(counts, predictions, references)
        # As scikit-learn does: of class ids, those count that a resample has; of truth values, all classes.
        counted = np.ones_like(true) if references.ndim == 2 else (predicted + true > 0).astype(np.float64)
        weights = {"macro": counted, "weighted": true}
        result = {}
        for average in self.averages:
            sums = (part.sum(1, keepdims=True) if average == "micro" else part for part in (right, predicted, true))
            hits, answers, truths = sums
            parts = {"precision": (hits, answers), "recall": (hits, truths), "f1": (2 * hits, answers + truths)}
            weight = weights.get(average, np.ones_like(hits))
            for name, (numerator, denominator) in parts.items():
                values = resampling.ratio(numerator, denominator, 0.0)
                result[f"{name}_{average}"] = resampling.ratio((values * weight).sum(1), weight.sum(1), 0.0)
        return result


CLASSES_AT_ONCE = 50


class _MeanOverClasses(_ArrayMetric):
    """An area under a curve of each class against the others, averaged over the classes present."""

    inputs = {"prediction_scores": SCORES, "references": IDS}
    kinds = (CLASS, CLASSES)
    name_of_value = ""

    rare: int | None = None
    """Rows for each row of a class from which on `resampling.area_of_rare_class` computes its area."""

    def _areas_of(self, truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Return the areas (C,) of some classes from the truth (N, C) and the scores (N, C) of all rows."""
        raise NotImplementedError

    def _areas(self, counts: np.ndarray, truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Return the area in each resample (R,)."""
        raise NotImplementedError

    def _compute(self, prediction_scores: np.ndarray, references: np.ndarray) -> dict[str, float]:
        pairs = list(_one_vs_rest(prediction_scores, references))
        areas = np.empty(len(pairs))
        usual = []
        for number, (truth, scores) in enumerate(pairs):
            if self.rare is not None and truth.sum() * self.rare < len(truth):
                areas[number] = resampling.area_of_rare_class(truth, scores)
            else:
                usual.append(number)
        for start in range(0, len(usual), CLASSES_AT_ONCE):  # scikit-learn checks its arguments once per call
            numbers = usual[start : start + CLASSES_AT_ONCE]
            truths, columns = zip(*(pairs[number] for number in numbers), strict=True)
            areas[numbers] = self._areas_of(np.stack(truths, axis=-1), np.stack(columns, axis=-1))
        return {self.name_of_value: float(areas.mean()) if pairs else float("nan")}

    def resample(
        self, counts: np.ndarray, prediction_scores: np.ndarray, references: np.ndarray
    ) -> dict[str, np.ndarray]:
        areas = [self._areas(counts, *pair) for pair in _one_vs_rest(prediction_scores, references)]
        return {self.name_of_value: resampling.mean_over_classes(areas, len(counts))}


class RocAuc(_MeanOverClasses):
    """One-vs-rest area under the ROC curve, averaged over the classes present: `roc_auc`.

    It is NaN when fewer than two classes are present, where it is undefined.
    """

    summary = "Area under the ROC curve, one-vs-rest, macro average over the classes present."
    name_of_value = "roc_auc"
    # For thousands of classes, scikit-learn, which sorts all rows for each class, takes minutes. The value is the same
    # up to rounding.
    rare = 500

    def _areas_of(self, truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
        from sklearn.metrics import roc_auc_score

        return np.asarray(roc_auc_score(truth, scores, average=None))  # pyright: ignore[reportArgumentType]

    def _areas(self, counts: np.ndarray, truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return resampling.area_under_roc(counts, truth, scores)


class MeanAveragePrecision(_MeanOverClasses):
    """Area under the precision-recall curve, averaged over the classes present: `mean_average_precision`.

    A class's area is `sklearn.metrics.average_precision_score`, without interpolation. NaN when no class is present.
    """

    summary = "Mean over the classes present of the average precision."
    name_of_value = "mean_average_precision"

    def _areas_of(self, truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
        from sklearn.metrics import average_precision_score

        return np.asarray(average_precision_score(truth, scores, average=None))  # pyright: ignore[reportArgumentType]

    def _areas(self, counts: np.ndarray, truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return resampling.average_precision(counts, truth, scores)


def _one_vs_rest(scores: np.ndarray, references: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield truth (N,) and scores (N,) of each class that some rows have and others have not."""
    for c in range(scores.shape[-1]):
        truth = references[:, c] > 0 if references.ndim == 2 else references == c
        if 0 < truth.sum() < len(truth):
            yield truth, scores[:, c]


class ExactMatch(_RowMean):
    """Share of rows whose predicted classes, or whose text, are exactly the true ones: `exact_match`."""

    kinds = (CLASSES, TEXT)
    summary = "Share of rows whose set of classes, or whose text, is exactly right."

    def _rows(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        right = predictions == references
        return {"exact_match": right.all(-1) if right.ndim == 2 else right}


class RegressionErrors(_ArrayMetric):
    """`rmse` (root of the mean squared error) and `mae` (mean absolute error), in the unit of the labels."""

    inputs = {"predictions": NUMBERS, "references": NUMBERS}
    kinds = (NUMBER,)
    summary = "Root mean squared error and mean absolute error."

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        errors = predictions.astype(np.float64) - references
        return {"rmse": float(np.sqrt((errors**2).mean())), "mae": float(np.abs(errors).mean())}

    def resample(self, counts: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        errors = predictions.astype(np.float64) - references
        squares = resampling.mean(counts, errors**2)
        return {"rmse": np.sqrt(squares), "mae": resampling.mean(counts, np.abs(errors))}


class R2(_ArrayMetric):
    """Share of the labels' variance that the model explains: `r2`; 0 for a model that always predicts their mean.

    It is NaN when all labels are equal, where it is undefined.
    """

    inputs = {"predictions": NUMBERS, "references": NUMBERS}
    kinds = (NUMBER,)
    summary = "Coefficient of determination."

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        truth = references.astype(np.float64)
        variance = ((truth - truth.mean()) ** 2).sum()
        return {"r2": float(1 - ((truth - predictions) ** 2).sum() / variance) if variance else float("nan")}

    def resample(self, counts: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        truth = references.astype(np.float64)
        away = truth - resampling.mean(counts, truth)[:, None]
        left = resampling.ratio(counts @ (truth - predictions) ** 2, (counts * away**2).sum(1))
        return {"r2": np.where(resampling.differ(counts, truth), 1 - left, np.nan)}


class Correlation(_ArrayMetric):
    """Pearson's (of values) and Spearman's (of ranks) correlation with the labels: `pearson`, `spearman`.

    They are NaN when all predictions or all labels are equal, where they are undefined.
    """

    inputs = {"predictions": NUMBERS, "references": NUMBERS}
    kinds = (NUMBER,)
    summary = "Pearson's and Spearman's correlation."

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        from scipy.stats import pearsonr, spearmanr

        if min(np.ptp(predictions), np.ptp(references)) == 0 or len(references) < 2:
            return {"pearson": float("nan"), "spearman": float("nan")}
        pair = (predictions.astype(np.float64), references.astype(np.float64))
        return {"pearson": float(pearsonr(*pair).statistic), "spearman": float(spearmanr(*pair).statistic)}  # pyright: ignore

    def resample(self, counts: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        values = (predictions.astype(np.float64), references.astype(np.float64))
        ranks = (resampling.ranks(counts, part) for part in values)
        return {
            "pearson": resampling.correlation(counts, *values),
            "spearman": resampling.correlation(counts, *ranks),
        }


class Brier(_RowMean):
    """Mean squared distance between class scores and the one-hot reference, 0 to 2: `brier`.

    G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78, 1950.
    """

    inputs = {"prediction_scores": SCORES, "references": IDS}
    summary = "Brier score of the class probabilities."

    def _rows(self, prediction_scores: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        truth = np.eye(prediction_scores.shape[-1])[references]
        return {"brier": ((prediction_scores - truth) ** 2).sum(-1)}


class ExpectedCalibrationError(_ArrayMetric):
    """Distance between confidence and accuracy, averaged over bins of equal width: `ece`.

    M. P. Naeini, G. Cooper, M. Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI
    2015; 15 bins as in C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """

    inputs = {"prediction_scores": SCORES, "references": IDS}
    summary = "Expected calibration error of the top class."

    def __init__(self, bins: int = 15) -> None:
        super().__init__()
        self.bins = bins

    def _compute(self, prediction_scores: np.ndarray, references: np.ndarray) -> dict[str, float]:
        confidence, correct, bins = self._binned(prediction_scores, references)
        error = sum(abs(confidence[bins == b].sum() - correct[bins == b].sum()) for b in np.unique(bins))
        return {"ece": float(error / len(references))}

    def _binned(self, scores: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return confidence, correctness and bin of each row, each (N,)."""
        confidence = scores.max(-1)
        bins = np.minimum((confidence * self.bins).astype(int), self.bins - 1)
        return confidence, scores.argmax(-1) == references, bins

    def resample(
        self, counts: np.ndarray, prediction_scores: np.ndarray, references: np.ndarray
    ) -> dict[str, np.ndarray]:
        confidence, correct, bins = self._binned(prediction_scores, references)
        gaps = resampling.group_sums(counts * (confidence.astype(np.float64) - correct), bins, self.bins)
        return {"ece": np.abs(gaps).sum(1) / counts.sum(1)}


class ConfusionMatrix(_ArrayMetric):
    """Counts by true class (rows) and predicted class (columns): `confusion_matrix`, an array (C, C)."""

    summary = "Confusion matrix."

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, Any]:
        size = int(max(predictions.max(initial=0), references.max(initial=0))) + 1
        matrix = np.zeros((size, size), dtype=np.int64)
        np.add.at(matrix, (references, predictions), 1)
        return {"confusion_matrix": matrix}

    def resample(self, counts: np.ndarray, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """Compute nothing: it is no single number."""
        return {}


class Perplexity(_ArrayMetric):
    """Exponential of the mean negative log-likelihood per token: `perplexity`; the mean is over tokens, not rows.

    F. Jelinek et al., "Perplexity - a measure of the difficulty of speech recognition tasks", JASA 62, 1977.
    """

    inputs = {"nll": datasets.Value("float32"), "tokens": IDS}
    summary = "Exponential of the mean negative log-likelihood of a token."

    def _compute(self, nll: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
        mean = nll.astype(np.float64).sum() / max(int(tokens.sum()), 1)
        return {"perplexity": float(np.exp(min(mean, np.log(np.finfo(np.float64).max))))}

    def resample(self, counts: np.ndarray, nll: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
        mean = counts @ nll.astype(np.float64) / np.maximum(counts @ tokens, 1)
        return {"perplexity": np.exp(np.minimum(mean, np.log(np.finfo(np.float64).max)))}


class TokenAccuracy(_ArrayMetric):
    """Share of tokens that the model ranked first, given the tokens before them: `token_accuracy`."""

    inputs = {"correct": IDS, "tokens": IDS}
    summary = "Share of tokens that were the most probable ones."

    def _compute(self, correct: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
        return {"token_accuracy": float(correct.sum() / max(int(tokens.sum()), 1))}

    def resample(self, counts: np.ndarray, correct: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
        return {"token_accuracy": counts @ correct / np.maximum(counts @ tokens, 1)}


class Retrieval(_RowMean):
    """Scores of a search with one right document: `recall_at_{k}`, `mrr_at_{n}` and `ndcg_at_{n}`, n the largest k.

    The reciprocal rank and the discounted gain of a document behind the first n are 0. With one right document, NDCG
    (K. Jarvelin and J. Kekalainen, "Cumulated gain-based evaluation of IR techniques", ACM TOIS 20, 2002) is
    1 / log2(1 + rank).
    """

    inputs = {"ranks": IDS}
    summary = "Recall, mean reciprocal rank and NDCG of a search."

    def __init__(self, k: list[int] | tuple[int, ...] = (1, 10)) -> None:
        if not k or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in k):
            raise ConfigError(f"metrics: k={k} must be a list of whole numbers from 1 on")
        super().__init__()
        self.k = sorted(k)

    def _rows(self, ranks: np.ndarray) -> dict[str, np.ndarray]:
        last = self.k[-1]
        found = ranks <= last
        values: dict[str, np.ndarray] = {f"recall_at_{k}": ranks <= k for k in self.k}
        values[f"mrr_at_{last}"] = np.where(found, 1 / ranks, 0.0)
        values[f"ndcg_at_{last}"] = np.where(found, 1 / np.log2(1 + ranks), 0.0)
        return values


class Preferences(_RowMean):
    """Scores of two answers: how often the chosen one has more (`accuracy`), by how much (`margin`), and the means."""

    inputs = {"chosen": NUMBERS, "rejected": NUMBERS}
    summary = "Accuracy and margin of the chosen answers, and mean scores."

    def _rows(self, chosen: np.ndarray, rejected: np.ndarray) -> dict[str, np.ndarray]:
        return {
            "accuracy": chosen > rejected, "margin": chosen - rejected, "chosen_score": chosen,
            "rejected_score": rejected,
        }  # fmt: skip


class EntityF1(_ArrayMetric):
    """Precision, recall and F1 of whole entities: `precision`, `recall`, `f1`, and `f1_TYPE` of each type.

    An entity is right if it has the type, the first and the last word of a true one. `precision`, `recall` and `f1`
    are micro averages, as in the shared task CoNLL-2003 (E. Tjong Kim Sang and F. De Meulder) and in seqeval's default
    mode. A value without a denominator is 0.
    """

    inputs = {"entities": IDS}
    summary = "Precision, recall and F1 of whole entities, micro averages, and F1 of each type."

    def _compute(self, entities: np.ndarray) -> dict[str, float]:
        values = self.resample(np.ones((1, len(entities))), entities)
        return {name: float(value[0]) for name, value in values.items()}

    def resample(self, counts: np.ndarray, entities: np.ndarray) -> dict[str, np.ndarray]:
        of_types = {name: counts @ entities[name] for name in entities.dtype.names or ()}
        total = np.sum(list(of_types.values()), axis=0) if of_types else np.zeros((len(counts), 3))
        result = {
            "precision": resampling.ratio(total[:, RIGHT], total[:, PREDICTED], 0.0),
            "recall": resampling.ratio(total[:, RIGHT], total[:, TRUE], 0.0),
            "f1": _entity_f1(total),
        }
        return result | {f"f1_{name}": _entity_f1(found) for name, found in of_types.items()}


def _entity_f1(found: np.ndarray) -> np.ndarray:
    """Return F1 (R,) from the counts of right, predicted and true entities (R, 3)."""
    return resampling.ratio(2 * found[:, RIGHT], found[:, PREDICTED] + found[:, TRUE], 0.0)


class Squad(_ArrayMetric):
    """Exact match and F1 of the words of answers, as by SQuAD's evaluation, but from 0 to 1.

    Where some rows have no answer, both also for the rows with one (`has_answer_*`) and without (`no_answer_*`).
    """

    inputs = {"answers": datasets.Value("string"), "truths": datasets.Sequence(datasets.Value("string"))}
    summary = "Exact match and F1 of the words of answers, after SQuAD's normalisation."

    def _parts(self, answers: np.ndarray, truths: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return for each metric the values of the rows (N,), and a mask of the rows that count."""
        scores = np.array([score(answer, texts) for answer, texts in zip(answers, truths, strict=True)])
        has_answer = np.array([bool(texts) for texts in truths])
        parts = {"": np.ones(len(answers), bool)}
        if not has_answer.all():
            parts |= {"has_answer_": has_answer, "no_answer_": ~has_answer}
        return {
            f"{prefix}{name}": (scores[:, place], rows)
            for prefix, rows in parts.items()
            for place, name in enumerate(("exact_match", "f1"))
            if rows.any()
        }

    def _compute(self, answers: np.ndarray, truths: np.ndarray) -> dict[str, float]:
        return {name: float(values[rows].mean()) for name, (values, rows) in self._parts(answers, truths).items()}

    def resample(self, counts: np.ndarray, answers: np.ndarray, truths: np.ndarray) -> dict[str, np.ndarray]:
        parts = self._parts(answers, truths)
        return {
            name: resampling.ratio(counts @ (values * rows), counts @ rows.astype(np.float64))
            for name, (values, rows) in parts.items()
        }


# Metrics of texts.


class Rouge(_RowMean):
    """ROUGE of summaries, F1 from 0 to 1: `rouge1`, `rouge2`, `rougeL`, `rougeLsum`, means over the rows.

    C.-Y. Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", ACL 2004, as the package `rouge-score`
    computes it. `rougeLsum` takes the lines of a text for its sentences.
    """

    inputs = {"predictions": TEXTS, "references": TEXTS}
    kinds = (TEXT,)
    summary = "ROUGE-1, -2, -L and -Lsum: F1 of words, pairs of words and longest common subsequences."

    def __init__(self, use_stemmer: bool = False) -> None:
        """Set up the metric.

        Args:
            use_stemmer: compare words without their English endings (Porter's stemmer).
        """
        _require_package("rouge_score")
        from absl import logging
        from rouge_score.rouge_scorer import RougeScorer

        # absl, which rouge-score imports, closes what was `sys.stderr` at its import when logging is set up anew,
        # unless that is the process's own. Where a program had put another file in its place, that is lost.
        logging.get_absl_handler().python_handler.stream = sys.__stderr__

        super().__init__()
        self.scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=use_stemmer)

    def _rows(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        pairs = zip(references, predictions, strict=True)
        found = [self.scorer.score(truth, written) for truth, written in pairs]
        return {name: np.array([row[name].fmeasure for row in found]) for name in self.scorer.rouge_types}


class _SacreBleu(_ArrayMetric):
    """A score of a corpus by the package `sacrebleu`, from 0 to 100; it follows from sums of counts over the rows."""

    inputs = {"predictions": TEXTS, "references": TEXTS}
    kinds = (TEXT,)
    name_of_value = ""

    def __init__(self, **options: Any) -> None:
        """Set up the metric; `options` are those of `sacrebleu`'s class."""
        _require_package("sacrebleu")
        import sacrebleu

        super().__init__()
        try:
            self.metric = getattr(sacrebleu, type(self).__name__.upper())(**options)
        except (TypeError, KeyError, AssertionError) as error:
            raise ConfigError(f"sacrebleu does not take {options}: {error}") from error

    @property
    def signature(self) -> str:
        """Return what a published score must be accompanied by, once the metric has been computed."""
        return str(self.metric.get_signature())

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {self.name_of_value: self.metric.corpus_score(predictions.tolist(), [references.tolist()]).score}

    def resample(self, counts: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        # The methods that sacrebleu's own bootstrap (`sacrebleu.significance`) is made of.
        of_rows = self.metric._extract_corpus_statistics(predictions.tolist(), [references.tolist()])
        sums = counts @ np.array(of_rows, dtype=np.float64)
        return {self.name_of_value: np.array([self.metric._compute_score_from_stats(list(row)).score for row in sums])}


class Bleu(_SacreBleu):
    """BLEU of translations: `bleu`, from 0 to 100.

    K. Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", ACL 2002; M. Post, "A Call
    for Clarity in Reporting BLEU Scores", WMT 2018. Options are those of `sacrebleu.BLEU`, e.g. `tokenize: zh`.
    """

    summary = "BLEU of a corpus: precision of sequences of one to four words, with a penalty for short texts."
    name_of_value = "bleu"


class Chrf(_SacreBleu):
    """The character n-gram F-score of translations: `chrf`, from 0 to 100.

    M. Popovic, "chrF: character n-gram F-score for automatic MT evaluation", WMT 2015. Options are those of
    `sacrebleu.CHRF`; `word_order: 2` makes it chrF++.
    """

    summary = "chrF of a corpus: F2 of sequences of one to six characters."
    name_of_value = "chrf"


def _require_package(name: str) -> None:
    """Raise ConfigError if a package is not installed on which only the metrics of texts depend."""
    if importlib.util.find_spec(name) is None:
        package = name.replace("_", "-")
        raise ConfigError(f"the metrics of texts need the package {package}: pip install 'hfexp[text2text]'")


# A set of metrics, computed together from the arrays that a task provides.


class FunctionMetric:
    """A metric that is a function, or an object with `compute`: it gets the arrays that its parameters name."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        """Set up the metric; a function that returns a number gets its `name`.

        Raises:
            ConfigError: the function has no parameter that could name an array.
        """
        self.name, self.function = name, function
        found = inspect.signature(function).parameters.values()
        named = [p.name for p in found if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if not named:
            raise ConfigError(f"metrics.{name}: the function must name its inputs, e.g. predictions and references")
        self.features = dict.fromkeys(named)

    def compute(self, **arrays: np.ndarray) -> dict[str, Any]:
        """Call the function; a number that it returns gets the name of the metric."""
        value = self.function(**arrays)
        values = dict(value) if isinstance(value, Mapping) else {self.name: value}
        wrong = next((v for v in values.values() if not isinstance(v, int | float | np.number | np.ndarray)), None)
        if wrong is not None or not isinstance(value, Mapping) and np.ndim(value) != 0:
            shown = type(wrong if wrong is not None else value).__name__
            raise ConfigError(f"metrics.{self.name} returned a {shown}; expected a number or numbers by name")
        return values


class MetricSet:
    """Computes several metrics from the arrays that a task provides."""

    def __init__(self, metrics: dict[str, Any]) -> None:
        """`metrics`: `evaluate` modules or `FunctionMetric`s by their name in the config."""
        self.metrics = metrics

    def compute(self, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        """Compute all values by name, arrays (confusion matrix) included.

        Raises:
            ConfigError: a metric needs an input that the task does not provide, or two metrics share a name.
            RunError: an input has values that are not finite, so that every metric would be meaningless.
        """
        for name, values in arrays.items():
            _require_finite(name, np.asarray(values))
        result: dict[str, Any] = {}
        for name, metric in self.metrics.items():
            values = metric.compute(**_inputs(name, metric, arrays)) or {}
            taken = sorted(values.keys() & result.keys())
            if taken:
                raise ConfigError(f"metrics.{name} and another metric both return {taken[0]!r}; remove one of them")
            result |= values
        return result

    def resample(self, arrays: dict[str, np.ndarray], counts: np.ndarray) -> dict[str, np.ndarray]:
        """Compute those metrics that are single numbers for bootstrap resamples.

        Args:
            counts: how often each resample has drawn each row (R, N).

        Returns:
            Values by name, each (R,).
        """
        result: dict[str, np.ndarray] = {}
        for name, metric in self.metrics.items():
            inputs = _inputs(name, metric, arrays)
            at_once = metric.resample(counts, **inputs) if isinstance(metric, _ArrayMetric) else None
            result |= _one_by_one(metric, inputs, counts) if at_once is None else at_once
        return result

    def of_rows(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute those metrics that are single numbers for each row by itself: values by name, each (N,)."""
        size, found = len(next(iter(arrays.values()))), []
        for start in range(0, size, ROWS_AT_ONCE):
            part = {key: array[start : start + ROWS_AT_ONCE] for key, array in arrays.items()}
            found.append(self.resample(part, np.eye(min(ROWS_AT_ONCE, size - start))))
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    def signatures(self) -> dict[str, str]:
        """Return the signatures of metrics that have one, by their name in the config."""
        return {name: metric.signature for name, metric in self.metrics.items() if isinstance(metric, _SacreBleu)}

    def scalars(self, arrays: dict[str, np.ndarray]) -> dict[str, float]:
        """Compute the metrics and return those that are single numbers."""
        values = self.compute(arrays)
        return {name: float(value) for name, value in values.items() if np.ndim(value) == 0}


def _inputs(name: str, metric: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays that a metric asks for; an `evaluate` module may take one of several sets of them."""
    features = metric.features if isinstance(metric.features, list) else [metric.features]
    needed = next((list(f) for f in features if set(f) <= set(arrays)), None)
    if needed is None:
        raise ConfigError(f"metrics.{name} needs {one_of(features[0])}; the task provides {one_of(arrays)}")
    return {key: arrays[key] for key in needed}


def _one_by_one(metric: Any, inputs: dict[str, np.ndarray], counts: np.ndarray) -> dict[str, np.ndarray]:
    """Compute a metric of the user's own, or of `evaluate`, on the rows of each resample."""
    values: dict[str, list[float]] = {}
    for drawn in counts.astype(np.int64):
        found = metric.compute(**{key: np.repeat(array, drawn, axis=0) for key, array in inputs.items()}) or {}
        for name, value in found.items():
            if np.ndim(value) == 0:
                values.setdefault(name, []).append(float(value))
    return {name: np.array(column) for name, column in values.items()}


def _require_finite(name: str, values: np.ndarray) -> None:
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return
    bad = [row for row, value in enumerate(values) if not np.isfinite(value).all()]
    raise RunError(
        f"the model's {name} are not finite for {len(bad)} of {len(values)} rows (first: row {bad[0]}): the model has "
        "diverged, or the row itself has such a value"
    )


def build_metrics(nodes: dict[str, Any], allowed: list[str]) -> MetricSet:
    """Build the modules of the `metrics` section.

    Raises:
        ConfigError: a module does not exist, or can't be fetched.
    """
    from hfexp.core.hub import HubUnreachable, explain_hub_errors
    from hfexp.core.targets import instantiate

    metrics = {}
    for name, node in nodes.items():
        if node is None:
            continue
        if not isinstance(node, dict) or "_target_" not in node:
            raise ConfigError(f"metrics.{name} must be a mapping with a _target_, got {node!r}")
        try:
            with explain_hub_errors("metric", str(node.get("path", name))):
                metrics[name] = instantiate(node, f"metrics.{name}", allowed)
        except (ConfigError, HubUnreachable):
            raise
        except Exception as error:
            raise ConfigError(f"metrics.{name} can't be built: {error.__cause__ or error}") from error
        if not isinstance(metrics[name], evaluate.EvaluationModule):
            function = getattr(metrics[name], "compute", metrics[name])
            if not callable(function):
                raise ConfigError(
                    f"metrics.{name}: {node['_target_']} returned a {type(function).__name__}; expected an "
                    "evaluate.EvaluationModule or an object with `compute`, or set _partial_: true for a function"
                )
            metrics[name] = FunctionMetric(name, function)
    return MetricSet(metrics)
