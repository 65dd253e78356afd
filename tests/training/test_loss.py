"""Losses in place of the model's own: functions of the user's, and class weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL_DIGITS, SMALL_GPT

from hfexp import compose, train
from hfexp.core.errors import ConfigError
from hfexp.core.identity import config_hash
from hfexp.tasks.image_classification import ImageClassification
from hfexp.tasks.text_classification import MultiLabelTextClassification, TextRegression
from hfexp.tasks.text_generation import TextGeneration
from hfexp.training.losses import ClassWeights, build_loss

FOCAL = "hfexp.training.losses.Focal"
NAMES = {0: "cat", 1: "dog", 2: "eel", 3: "fox"}
COUNTS = {"cat": 6, "dog": 3, "eel": 1, "fox": 0}


def build(
    class_weights: Any = None, node: Any = (), task: Any = None, counts: Any = COUNTS, smoothing: float = 0
) -> Any:
    return build_loss(dict(node), class_weights, task or ImageClassification(), NAMES, lambda: counts, smoothing, [])


def test_balanced_weights_give_each_class_the_same_share() -> None:
    # Ten rows of three classes: 10 / (3 * 6), 10 / (3 * 3), 10 / (3 * 1); a class without rows counts once.
    assert build("balanced").weights.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3, 1])
    assert build({"eel": 2, "cat": 0.5}).weights.tolist() == [0.5, 1, 2, 1]
    assert build() is None


def test_the_weighted_loss_is_a_mean_over_rows_however_they_are_divided() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(8, 4, generator=generator), torch.tensor([0, 0, 0, 1, 2, 2, 3, 1])
    loss = ClassWeights([0.5, 1, 2, 4])
    of_rows = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    weights = torch.tensor([0.5, 0.5, 0.5, 1, 2, 2, 4, 1])
    assert loss(logits, labels) == pytest.approx(float((weights * of_rows).mean()))
    parts = 3 * loss(logits[:3], labels[:3]) + 5 * loss(logits[3:], labels[3:])
    assert float(parts) == pytest.approx(8 * float(loss(logits, labels)))
    soft = torch.nn.functional.one_hot(labels, 4).float()
    assert float(loss(logits, soft)) == pytest.approx(float(loss(logits, labels)))


def test_the_focal_loss_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(8, 4, generator=generator), torch.tensor([0, 0, 0, 1, 2, 2, 3, 1])
    right = logits.softmax(-1)[torch.arange(8), labels]
    focal = build(node={"_target_": FOCAL, "gamma": 1.5})
    assert float(focal(logits, labels)) == pytest.approx(float(-((1 - right) ** 1.5 * right.log()).mean()))
    soft = torch.nn.functional.one_hot(labels, 4).float()
    assert float(focal(logits, soft)) == pytest.approx(float(focal(logits, labels)))
    weighted = build({"cat": 0.5, "fox": 3}, {"_target_": FOCAL, "gamma": 1.5})
    weights = torch.tensor([0.5, 1, 1, 3])[labels]
    expected = -(weights * (1 - right) ** 1.5 * right.log()).mean()
    assert float(weighted(logits, labels)) == pytest.approx(float(expected))
    assert float(build(node={"_target_": FOCAL, "gamma": 0})(logits, labels)) == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, labels))
    )


def test_the_focal_loss_of_several_classes_per_row_is_that_of_each() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(8, 4, generator=generator), torch.randint(2, (8, 4), generator=generator)
    focal = build(node={"_target_": FOCAL}, task=MultiLabelTextClassification())
    right = torch.where(labels > 0, logits.sigmoid(), 1 - logits.sigmoid())
    assert float(focal(logits, labels)) == pytest.approx(float(-((1 - right) ** 2 * right.log()).mean()))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_focal_loss_of_sure_answers_has_a_gradient(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0, 0, 0], [0.0, 200, 0, 0]], requires_grad=True)
    build(node={"_target_": FOCAL, "gamma": gamma})(logits, torch.tensor([0, 2])).backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_weights": "balance"}, "expected balanced or weights by class"),
        ({"class_weights": {"cow": 2}}, "there is no class 'cow'.* Classes: cat, dog, eel, fox"),
        ({"class_weights": {"cat": -1}}, r"trainer\.class_weights\.cat=-1: expected a number from 0 on"),
        ({"class_weights": {"cat": True}}, "expected a number from 0 on"),
        ({"class_weights": "balanced", "counts": None}, "can't count streamed rows"),
        ({"class_weights": "balanced", "task": MultiLabelTextClassification()}, "tasks with one class per row"),
        ({"class_weights": "balanced", "node": {"_target_": "torch.nn.CrossEntropyLoss"}}, "give one of them"),
        ({"node": {"reduction": "mean"}}, "must have a _target_"),
        ({"node": {"_target_": FOCAL, "gamma": -1}}, "gamma=-1 must be at least 0"),
        ({"node": {"_target_": FOCAL, "label_kind": "tags"}}, "is set by hfexp at run time"),
        ({"node": {"_target_": FOCAL}, "task": TextRegression()}, "it is for tasks with classes"),
        ({"node": {"_target_": FOCAL}, "smoothing": 0.1}, "has no effect on trainer.loss"),
        ({"node": {"_target_": "torch.nn.CrossEntropyLoss", "redaction": 1}}, "unknown key"),
        ({"node": {"_target_": "torch.nn.CrossEntropyLoss"}, "smoothing": 0.1}, "has no effect on trainer.loss"),
        ({"node": {"_target_": "torch.nn.CrossEntropyLoss"}, "task": TextGeneration()}, "loss is over tokens"),
        ({"node": {"_target_": "torch.nn.TripletMarginLoss"}}, r"does not take \(logits, labels\)"),
        ({"node": {"_target_": "os.system"}}, "is not allowed here"),
        ({"node": {"_target_": "torch.nn.CrossEntropyLoss", "weight": [1, 2]}}, "trainer.loss: .* can't be built"),
        ({"node": {"_target_": "torch.nn.functional.cross_entropy", "weight": [1, 2]}}, "fails on logits"),
        (
            {"node": {"_target_": "torch.nn.Bilinear", "in1_features": 4, "in2_features": 4, "out_features": 1}},
            "has parameters, which would not be trained",
        ),
    ],
)
def test_a_wrong_loss_is_one_message(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**settings)


def test_cross_entropy_by_name_trains_as_the_model_does(place: Path) -> None:
    own = train(*SMALL_DIGITS)
    named = train(*SMALL_DIGITS, "trainer.loss._target_=torch.nn.CrossEntropyLoss")
    assert named.metrics["test_loss"] == pytest.approx(own.metrics["test_loss"], abs=1e-6)
    assert named.run_dir != own.run_dir


def test_a_function_of_the_users_own_is_trained_and_evaluated(place: Path) -> None:
    Path("own_loss.py").write_text(
        "import torch\n\n\ndef constant(logits, labels, value=1.0):\n    return logits.sum() * 0 + value\n\n\n"
        "def rows(logits, labels):\n    return logits[:, 0]\n"
    )
    result = train(*SMALL_DIGITS, "trainer.loss={_target_: own_loss.constant, value: 2.5}", "tracking=none")
    assert result.metrics["final_eval_loss"] == result.metrics["test_loss"] == 2.5
    with pytest.raises(ConfigError, match="own_loss.rows returned a tensor of shape .* expected a scalar"):
        train(*SMALL_DIGITS, "trainer.loss._target_=own_loss.rows", "tracking=none")


def test_weights_reach_training_and_identity(place: Path) -> None:
    only = {str(number): float(number == 3) for number in range(10)}
    words = [f"trainer.class_weights.{name}={weight}" for name, weight in only.items()]
    result = train(*SMALL_DIGITS, *words, "trainer.args.learning_rate=0.01", "tracking=none")
    import numpy as np

    answers = result.model(pixel_values=torch.zeros(1, 3, 8, 8)).logits.argmax(-1)
    assert np.array_equal(answers.numpy(), [3]), "only the class with a weight is learnt"
    plain = config_hash(compose(*SMALL_DIGITS))
    assert config_hash(compose(*SMALL_DIGITS, "trainer.class_weights=null", "trainer.loss={}")) == plain
    assert config_hash(compose(*SMALL_DIGITS, "trainer.class_weights=balanced")) != plain


def test_a_language_model_is_refused_before_it_is_built(place: Path) -> None:
    Path("rows.jsonl").write_text('{"text": "a b c d"}\n' * 20)
    words = ("task=text_generation", *SMALL_GPT, "dataset.source.data_files=rows.jsonl", "tracking=none")
    with pytest.raises(ConfigError, match="loss is over tokens"):
        train(*words, "trainer.loss._target_=torch.nn.CrossEntropyLoss")
