"""`evaluate.Metric` modules that need no download; each is a node of the `metrics` configuration group.

They take what a task offers by name (`predictions`, `prediction_scores`, `references`) and can be used as any
other `evaluate` module, alone or combined.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

from hfexp.errors import ConfigError, one_of

IDS = datasets.Value("int64")
SCORES = datasets.Sequence(datasets.Value("float32"))


class _ArrayMetric(evaluate.Metric):
    """Computes from whole arrays: `evaluate`'s own way through an Arrow file takes 4.5 s for 10,000 x 1,000 scores."""

    inputs = {"predictions": IDS, "references": IDS}
    summary = ""

    def __init__(self) -> None:
        super().__init__()

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(dict(self.inputs))
        return evaluate.MetricInfo(description=self.summary, citation="", features=features)

    def compute(self, **kwargs: Any) -> dict[str, float] | None:
        """Compute from arrays; keyword arguments by the names in `features`."""
        return self._compute(**{name: np.asarray(kwargs[name]) for name in self.inputs})

    def _compute(self, **kwargs: Any) -> dict[str, Any]:
        raise NotImplementedError


class Accuracy(_ArrayMetric):
    """Share of predictions equal to the reference: `accuracy`."""

    summary = "Share of predictions equal to the reference."

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"accuracy": float((predictions == references).mean())}


class TopKAccuracy(_ArrayMetric):
    """Share of samples whose class is among the k highest scores: `top{k}_accuracy`."""

    inputs = {"prediction_scores": SCORES, "references": IDS}
    summary = "Share of samples whose class is among the k highest scores."

    def __init__(self, k: int = 5) -> None:
        if k < 1:
            raise ConfigError(f"metrics: k={k}; at least 1 is needed")
        super().__init__()
        self.k = k

    def _compute(self, prediction_scores: np.ndarray, references: np.ndarray) -> dict[str, float]:
        k = min(self.k, prediction_scores.shape[-1])
        top = np.argpartition(-prediction_scores, k - 1, axis=-1)[:, :k]
        return {f"top{self.k}_accuracy": float((top == references[:, None]).any(-1).mean())}


class PrecisionRecallF1(_ArrayMetric):
    """`precision_*`, `recall_*` and `f1_*`, averaged over classes (macro) or weighted by their frequency."""

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


class RocAuc(_ArrayMetric):
    """Area under the ROC curve, one class against the rest, averaged over the classes present: `roc_auc`.

    NaN when fewer than two classes are present, where it is not defined.
    """

    inputs = {"prediction_scores": SCORES, "references": IDS}
    summary = "Area under the ROC curve, one-vs-rest, macro average over the classes present."

    def _compute(self, prediction_scores: np.ndarray, references: np.ndarray) -> dict[str, float]:
        from sklearn.metrics import roc_auc_score

        classes = [c for c in np.unique(references) if 0 < (references == c).sum() < len(references)]
        if not classes:
            return {"roc_auc": float("nan")}
        areas = [roc_auc_score(references == c, prediction_scores[:, c]) for c in classes]
        return {"roc_auc": float(np.mean(areas))}


class Brier(_ArrayMetric):
    """Mean squared distance between class scores and the one-hot reference, 0 to 2: `brier`.

    G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78, 1950.
    """

    inputs = {"prediction_scores": SCORES, "references": IDS}
    summary = "Brier score of the class probabilities."

    def _compute(self, prediction_scores: np.ndarray, references: np.ndarray) -> dict[str, float]:
        truth = np.eye(prediction_scores.shape[-1])[references]
        return {"brier": float(((prediction_scores - truth) ** 2).sum(-1).mean())}


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
        confidence = prediction_scores.max(-1)
        correct = prediction_scores.argmax(-1) == references
        bins = np.minimum((confidence * self.bins).astype(int), self.bins - 1)
        error = sum(abs(confidence[bins == b].sum() - correct[bins == b].sum()) for b in np.unique(bins))
        return {"ece": float(error / len(references))}


class ConfusionMatrix(_ArrayMetric):
    """Counts by true class (rows) and predicted class (columns): `confusion_matrix`, an array (C, C)."""

    summary = "Confusion matrix."

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, Any]:
        size = int(max(predictions.max(initial=0), references.max(initial=0))) + 1
        matrix = np.zeros((size, size), dtype=np.int64)
        np.add.at(matrix, (references, predictions), 1)
        return {"confusion_matrix": matrix}


class Perplexity(_ArrayMetric):
    """Exponential of the mean negative log-likelihood of a token: `perplexity`; over all tokens, not over rows.

    F. Jelinek et al., "Perplexity - a measure of the difficulty of speech recognition tasks", JASA 62, 1977.
    """

    inputs = {"nll": datasets.Value("float32"), "tokens": IDS}
    summary = "Exponential of the mean negative log-likelihood of a token."

    def _compute(self, nll: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
        mean = nll.astype(np.float64).sum() / max(int(tokens.sum()), 1)
        return {"perplexity": float(np.exp(min(mean, np.log(np.finfo(np.float64).max))))}


class TokenAccuracy(_ArrayMetric):
    """Share of tokens that were the most probable ones, given those before them: `token_accuracy`."""

    inputs = {"correct": IDS, "tokens": IDS}
    summary = "Share of tokens that were the most probable ones."

    def _compute(self, correct: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
        return {"token_accuracy": float(correct.sum() / max(int(tokens.sum()), 1))}


class MetricSet:
    """Several metrics at once, from what a task offers."""

    def __init__(self, metrics: dict[str, Any]) -> None:
        """`metrics`: name in the configuration to `evaluate` module."""
        self.metrics = metrics

    def compute(self, offered: dict[str, np.ndarray]) -> dict[str, Any]:
        """All values by name; arrays (confusion matrix) are left in.

        Raises:
            ConfigError: a metric needs something that the task does not offer, or two metrics share a name.
        """
        result: dict[str, Any] = {}
        for name, metric in self.metrics.items():
            features = metric.features if isinstance(metric.features, list) else [metric.features]
            needed = next((list(f) for f in features if set(f) <= set(offered)), None)
            if needed is None:
                raise ConfigError(f"metrics.{name} needs {one_of(features[0])}; the task offers {one_of(offered)}")
            values = metric.compute(**{key: offered[key] for key in needed}) or {}
            taken = sorted(values.keys() & result.keys())
            if taken:
                raise ConfigError(
                    f"metrics.{name} gives {taken[0]!r}, which another metric gives too; remove one of them"
                )
            result |= values
        return result

    def scalars(self, offered: dict[str, np.ndarray]) -> dict[str, float]:
        """The values that are single numbers."""
        values = self.compute(offered)
        return {name: float(value) for name, value in values.items() if np.ndim(value) == 0}


def build_metrics(nodes: dict[str, Any], allowed: list[str]) -> MetricSet:
    """Build the modules of the `metrics` section.

    Raises:
        ConfigError: one does not exist, or can't be fetched.
    """
    from hfexp.hub import HubUnreachable, explain_hub_errors
    from hfexp.targets import instantiate

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
            raise ConfigError(f"metrics.{name}: {node['_target_']} is not an evaluate.EvaluationModule")
    return MetricSet(metrics)
