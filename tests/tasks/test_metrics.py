"""The metric modules against scikit-learn and hand-made cases."""

from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
from sklearn import metrics as sk

from hfexp.core.errors import ConfigError
from hfexp.tasks import metrics
from hfexp.tasks.image_classification import ImageClassification as Classes

RNG = np.random.default_rng(0)
SCORES = RNG.dirichlet(np.ones(4), 200).astype(np.float32)
TRUTH = RNG.integers(0, 4, 200)
IDS = SCORES.argmax(-1)


def test_accuracy_and_top_k() -> None:
    assert metrics.Accuracy().compute(predictions=IDS, references=TRUTH) == {"accuracy": sk.accuracy_score(TRUTH, IDS)}
    top = metrics.TopKAccuracy(k=2).compute(prediction_scores=SCORES, references=TRUTH)
    assert top == {"top2_accuracy": pytest.approx(sk.top_k_accuracy_score(TRUTH, SCORES, k=2))}
    assert metrics.TopKAccuracy(k=9).compute(prediction_scores=SCORES, references=TRUTH) == {"top9_accuracy": 1.0}


def test_precision_recall_f1() -> None:
    ours = metrics.PrecisionRecallF1().compute(predictions=IDS, references=TRUTH)
    assert ours is not None
    assert ours["f1_macro"] == pytest.approx(sk.f1_score(TRUTH, IDS, average="macro"))
    assert ours["precision_weighted"] == pytest.approx(sk.precision_score(TRUTH, IDS, average="weighted"))
    with pytest.raises(ConfigError, match="average 'marco' is unknown; allowed: macro, micro, weighted"):
        metrics.PrecisionRecallF1(averages=["marco"])


def test_roc_auc() -> None:
    ours = metrics.RocAuc().compute(prediction_scores=SCORES, references=TRUTH)
    exact = SCORES.astype(np.float64)
    expected = sk.roc_auc_score(TRUTH, exact / exact.sum(1, keepdims=True), multi_class="ovr", average="macro")
    assert ours == {"roc_auc": pytest.approx(expected, abs=1e-6)}
    alone = metrics.RocAuc().compute(prediction_scores=SCORES[:3], references=np.zeros(3, int))
    assert alone is not None
    assert np.isnan(alone["roc_auc"])


@pytest.mark.parametrize("decimals", [8, 2])  # with 2, many scores are equal
def test_the_area_of_a_rare_class_is_that_of_any_other(decimals: int) -> None:
    truth, scores = np.zeros(2_001, bool), RNG.random(2_001).round(decimals).astype(np.float32)
    truth[[5, 900, 1_800]] = True
    assert metrics.RocAuc()._area(truth, scores) == pytest.approx(sk.roc_auc_score(truth, scores), abs=1e-12)


def test_many_classes_need_neither_hours_nor_the_memory_of_all_pairs() -> None:
    predictions, references = Classes().fake_predictions({number: str(number) for number in range(10_000)})
    assert (predictions.shape, references.max()) == ((400, 10_000), 199)
    rows = np.arange(2_500) % 1_000
    scores = np.eye(1_000, dtype=np.float32)[rows]
    scores[1_200] = 0.0
    scores[1_200, :5] = 1.0  # five other classes come first
    top = metrics.TopKAccuracy().compute(prediction_scores=scores, references=rows)
    assert top == {"top5_accuracy": pytest.approx(2_499 / 2_500)}


def test_brier_and_calibration() -> None:
    two = np.array([[0.8, 0.2], [0.4, 0.6]], dtype=np.float32)
    brier = metrics.Brier().compute(prediction_scores=two, references=np.array([0, 0]))
    assert brier == {"brier": pytest.approx((0.04 + 0.04 + 0.36 + 0.36) / 2)}
    # Two bins hold one sample each: |1 - 0.8| and |0 - 0.6|, averaged.
    ece = metrics.ExpectedCalibrationError().compute(prediction_scores=two, references=np.array([0, 0]))
    assert ece == {"ece": pytest.approx((0.2 + 0.6) / 2)}


def test_confusion_matrix() -> None:
    ours = metrics.ConfusionMatrix().compute(predictions=IDS, references=TRUTH)
    assert ours is not None
    assert np.array_equal(ours["confusion_matrix"], sk.confusion_matrix(TRUTH, IDS))


def test_they_are_evaluate_modules_that_combine() -> None:
    module = metrics.Accuracy()
    assert isinstance(module, evaluate.Metric)
    combined = evaluate.combine([module, metrics.PrecisionRecallF1()])
    assert combined.compute(predictions=IDS, references=TRUTH)["accuracy"] == pytest.approx((IDS == TRUTH).mean())


OFFERED = {"predictions": IDS, "references": TRUTH}


def test_a_set_gives_scalars_and_finds_clashes() -> None:
    both = metrics.MetricSet({"a": metrics.Accuracy(), "c": metrics.ConfusionMatrix()})
    assert list(both.scalars(OFFERED)) == ["accuracy"]
    with pytest.raises(ConfigError, match="metrics.b and another metric both return 'accuracy'"):
        metrics.MetricSet({"a": metrics.Accuracy(), "b": metrics.Accuracy()}).compute(OFFERED)
    with pytest.raises(ConfigError, match="metrics.auc needs prediction_scores, references; the task provides"):
        metrics.MetricSet({"auc": metrics.RocAuc()}).compute(OFFERED)


def test_a_metric_of_another_origin_works_through_evaluate_load(tmp_path, monkeypatch) -> None:
    (tmp_path / "always_one").mkdir()
    (tmp_path / "always_one" / "always_one.py").write_text(
        "import datasets\nimport evaluate\n"
        "class One(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        v = datasets.Value('int64')\n"
        "        return evaluate.MetricInfo(description='', citation='',\n"
        "            features=datasets.Features({'predictions': v, 'references': v}))\n"
        "    def _compute(self, predictions, references):\n"
        "        return {'one': 1.0}\n"
    )
    node = {"_target_": "evaluate.load", "path": str(tmp_path / "always_one")}
    built = metrics.build_metrics({"own": node, "left_out": None}, [])
    assert built.scalars(OFFERED) == {"one": 1.0}


OWN = """
import numpy as np


def share(predictions, references, scale=1):
    return scale * (predictions == references).mean()


class Counts:
    def compute(self, references):
        return {"least": int(np.bincount(references).min()), "most": int(np.bincount(references).max())}


def nothing(*arrays):
    return 0.0


def number():
    return 3


def rows(references):
    return references


def text(references):
    return {"a": "b"}
"""


def test_a_function_or_an_object_with_compute_is_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_metrics.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    share = {"_target_": "own_metrics.share", "_partial_": True, "scale": 100}
    built = metrics.build_metrics({"percent": share, "counts": {"_target_": "own_metrics.Counts"}}, [])
    counts = np.bincount(TRUTH)
    assert built.compute({"predictions": IDS, "references": TRUTH, "prediction_scores": SCORES}) == {
        "percent": pytest.approx(100 * sk.accuracy_score(TRUTH, IDS)),
        "least": counts.min(),
        "most": counts.max(),
    }
    with pytest.raises(ConfigError, match="metrics.percent needs predictions, references; the task provides nll"):
        built.compute({"nll": SCORES})
    with pytest.raises(ConfigError, match=r"metrics\.none: the function must name its inputs"):
        metrics.build_metrics({"none": {"_target_": "own_metrics.nothing", "_partial_": True}}, [])
    for name, shown in (("rows", "ndarray"), ("text", "str")):
        wrong = metrics.build_metrics({name: {"_target_": f"own_metrics.{name}", "_partial_": True}}, [])
        with pytest.raises(ConfigError, match=f"metrics.{name} returned a {shown}; expected a number"):
            wrong.compute({"references": TRUTH})
    with pytest.raises(ConfigError, match=r"own_metrics\.number returned a int; .* or set _partial_: true"):
        metrics.build_metrics({"n": {"_target_": "own_metrics.number"}}, [])


def test_several_classes() -> None:
    truth = RNG.integers(0, 2, (200, 4))
    truth[:, 3] = 0  # in no row
    found = (SCORES > 0.3).astype(np.int64)
    given = {"prediction_scores": SCORES, "references": truth}
    assert metrics.ExactMatch().compute(predictions=found, references=truth) == {
        "exact_match": pytest.approx(sk.accuracy_score(truth, found))
    }
    expected = np.mean([sk.average_precision_score(truth[:, c], SCORES[:, c]) for c in range(3)])
    assert metrics.MeanAveragePrecision().compute(**given) == {"mean_average_precision": pytest.approx(expected)}
    expected = np.mean([sk.roc_auc_score(truth[:, c], SCORES[:, c]) for c in range(3)])
    assert metrics.RocAuc().compute(**given) == {"roc_auc": pytest.approx(expected)}
    ours = metrics.PrecisionRecallF1(["micro"]).compute(predictions=found, references=truth)
    assert ours is not None
    assert ours["f1_micro"] == pytest.approx(sk.f1_score(truth, found, average="micro", zero_division=0))


def test_numbers() -> None:
    truth = RNG.normal(size=200)
    said = (truth + RNG.normal(size=200) / 2).astype(np.float32)
    given = {"predictions": said, "references": truth}
    ours = {k: v for m in (metrics.RegressionErrors(), metrics.R2()) for k, v in (m.compute(**given) or {}).items()}
    assert ours == {
        "rmse": pytest.approx(sk.root_mean_squared_error(truth, said)),
        "mae": pytest.approx(sk.mean_absolute_error(truth, said)),
        "r2": pytest.approx(sk.r2_score(truth, said)),
    }
    found = metrics.Correlation().compute(**given)
    assert found is not None
    assert found["pearson"] == pytest.approx(np.corrcoef(truth, said)[0, 1])
    ranks = [np.argsort(np.argsort(values)) for values in (truth, said)]
    assert found["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    constant = {"predictions": np.ones(9, np.float32), "references": np.ones(9)}
    undefined = {**(metrics.Correlation().compute(**constant) or {}), **(metrics.R2().compute(**constant) or {})}
    assert all(np.isnan(value) for value in undefined.values())
    assert len(undefined) == 3


@pytest.mark.parametrize(
    ("metric", "references", "said"),
    [
        (
            metrics.Accuracy(),
            np.ones((3, 2), np.int64),
            "for one class per row, not for several classes",
        ),
        (
            metrics.PrecisionRecallF1(),
            np.ones(3),
            "is for one class per row or several classes per row, not for numbers",
        ),
        (metrics.R2(), np.ones(3, np.int64), "R2 is for numbers, not for one class per row"),
        (
            metrics.ExactMatch(),
            np.ones(3, np.int64),
            "for several classes per row or texts, not for one class",
        ),
    ],
)
def test_a_number_that_would_mean_nothing_is_not_computed(metric: Any, references: np.ndarray, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        metric.compute(predictions=references, references=references)


def resampled_cases() -> dict[str, dict[str, np.ndarray]]:
    """Inputs by name: ordinary ones, classes and scores that occur in few rows or not at all, ties, equal numbers."""
    few = np.array([0] * 30 + [3])
    tied = SCORES[:31].round(1)
    numbers = RNG.normal(size=40).round(1)
    return {
        "classes": {"predictions": IDS, "prediction_scores": SCORES, "references": TRUTH},
        "rare classes": {"predictions": few[::-1].copy(), "prediction_scores": tied, "references": few},
        "one class": {"predictions": np.zeros(5, int), "prediction_scores": SCORES[:5], "references": np.full(5, 0)},
        "several classes": {
            "predictions": SCORES[:50] > 0.3, "prediction_scores": SCORES[:50],
            "references": RNG.random((50, 4)) < [0.5, 0.1, 0.02, 0.0],
        },
        "numbers": {"predictions": numbers + RNG.normal(size=40).round(1), "references": numbers},
        "equal numbers": {"predictions": np.ones(6), "references": np.array([2.0, 2.0, 2.0, 2.0, 2.0, 3.0])},
        "tokens": {
            "nll": RNG.random(20).astype(np.float32) * 30, "tokens": RNG.integers(1, 9, 20),
            "correct": RNG.integers(0, 2, 20),
        },
    }  # fmt: skip


@pytest.mark.parametrize("case", resampled_cases())
def test_resamples_at_once_are_what_each_would_be(case: str) -> None:
    arrays = resampled_cases()[case]
    size = len(next(iter(arrays.values())))
    drawn = RNG.integers(0, size, (40, size))
    drawn[0] = 3  # a resample of one row
    counts = np.stack([np.bincount(rows, minlength=size) for rows in drawn]).astype(np.float64)
    tried = set()
    for kind in OUR_METRICS:
        metric = kind()
        if not set(metric.inputs) <= set(arrays) or kind is metrics.ConfusionMatrix:
            continue
        if "references" in metric.inputs and metrics._kind(arrays["references"]) not in metric.kinds:
            continue
        inputs = {name: arrays[name] for name in metric.inputs}
        at_once = metric.resample(counts, **inputs)
        assert at_once is not None
        for number, rows in enumerate(drawn):
            expected = metric.compute(**{name: array[rows] for name, array in inputs.items()})
            assert expected is not None
            for name, value in expected.items():
                assert at_once[name][number] == pytest.approx(value, abs=1e-6, nan_ok=True), (kind, name, number)
        tried.add(kind)
    assert tried


OUR_METRICS = [
    metrics.Accuracy, metrics.TopKAccuracy, metrics.PrecisionRecallF1, metrics.RocAuc, metrics.MeanAveragePrecision,
    metrics.ExactMatch, metrics.RegressionErrors, metrics.R2, metrics.Correlation, metrics.Brier,
    metrics.ExpectedCalibrationError, metrics.ConfusionMatrix, metrics.Perplexity, metrics.TokenAccuracy,
]  # fmt: skip


def test_metrics_of_ones_own_are_computed_for_one_resample_at_a_time() -> None:
    own = metrics.MetricSet({"first": metrics.FunctionMetric("first", lambda references: references.sum())})
    counts = np.array([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
    assert own.resample({"references": np.array([1, 10, 100])}, counts)["first"].tolist() == [102.0, 30.0]
