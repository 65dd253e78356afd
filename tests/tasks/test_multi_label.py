"""Texts with any number of classes: read from tables, trained, scored, recorded and asked again."""

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas
import pytest
import torch
import transformers
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from hfexp import evaluate, predict, train
from hfexp.core.errors import ConfigError, DataError
from hfexp.data.labels import cast_classes
from hfexp.tasks.text_classification import MultiLabelTextClassification

SMALL = (
    "tracking.pictures=false",
    "task=multi_label_text_classification", "model=tiny_bert", "trainer=scratch", "dataset=table",
    "model.config.hidden_size=32", "model.config.num_attention_heads=2", "model.config.intermediate_size=32",
    "model.config.num_hidden_layers=1", "model.config.max_position_embeddings=40", "dataset.test_size=0.2",
    "trainer.args.num_train_epochs=2", "trainer.args.per_device_train_batch_size=16",
)  # fmt: skip
TEXTS = ["sun sun", "snow", "the sun and the snow"]
NAMES = ["cold", "dry", "warm"]
WORDS = {"warm": "sun", "cold": "snow", "dry": "dust"}


@pytest.fixture
def rows(place: Path) -> str:
    """Texts of up to three kinds of words."""
    chosen = [[name for bit, name in enumerate(WORDS) if number >> bit & 1] for number in range(120)]
    lines = [{"text": " ".join(WORDS[c] for c in names) or "nothing", "label": names} for names in chosen]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    table = pandas.DataFrame(lines)
    table["label"] = ["; ".join(names) for names in table["label"]]
    table.to_csv("rows.csv", index=False)
    return "dataset.source.data_files=rows.jsonl"


def test_classes_are_trained_scored_and_asked_as_a_pipeline_does(rows: str, place: Path) -> None:
    result = train(*SMALL, rows)
    assert {"test_f1_micro", "test_exact_match", "test_mean_average_precision", "test_roc_auc"} <= set(result.metrics)
    config = transformers.AutoConfig.from_pretrained(result.run_dir / "model")
    assert (config.problem_type, config.num_labels) == ("multi_label_classification", 3)
    pipeline: Any = transformers.pipeline("text-classification", str(result.run_dir / "model"), top_k=None)
    expected = [
        [next(a["score"] for a in answers if a["label"] == name) for name in NAMES] for answers in pipeline(TEXTS)
    ]
    asked = predict(run=result.run_dir, inputs=TEXTS)
    np.testing.assert_allclose(np.stack(asked["probabilities"].tolist()), expected, atol=1e-5)
    for labels, scores in zip(asked["labels"], expected, strict=True):
        assert set(labels) == {name for name, score in zip(NAMES, scores, strict=True) if score >= 0.5}
    served = mlflow.pyfunc.load_model(str(result.run_dir / "mlflow_model")).predict(pandas.DataFrame({"text": TEXTS}))
    np.testing.assert_allclose(np.stack(served["probabilities"].tolist()), expected, atol=1e-5)
    assert [list(labels) for labels in served["labels"]] == [list(labels) for labels in asked["labels"]]
    table = evaluate(run=result.run_dir, resamples=0, record=False)
    scores = dict(zip(table["metric"], table["value"], strict=True))
    assert scores["f1_micro"] == pytest.approx(result.metrics["test_f1_micro"])
    shown = (result.run_dir / "artifacts" / "samples.txt").read_text()
    assert "[cold, warm] [CLS]sun snow[SEP]" in shown
    assert "[none] [CLS]nothing[SEP]" in shown


def test_the_loss_is_that_of_each_class_by_itself(rows: str, place: Path) -> None:
    result = train(*SMALL, rows, "tracking=none", "trainer.args.num_train_epochs=1", "dataset.validation_size=40")
    model, task = result.model.eval(), MultiLabelTextClassification()
    labels = [task.preprocess({"input_ids": [5, 6, 7], "label": [1, 0, 1]}, None)["labels"]]
    with torch.inference_mode():
        found = model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor(labels))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(found.logits, torch.tensor([[1.0, 0.0, 1.0]]))
    torch.testing.assert_close(found.loss, expected)


def test_a_text_that_lists_its_classes_is_parted(rows: str, place: Path) -> None:
    words = ("tracking=none", "trainer.args.num_train_epochs=1")
    lists = train(*SMALL, rows, *words)
    with pytest.raises(ConfigError, match=r"expected a list of classes in each row, or .* task\.separator"):
        train(*SMALL, "dataset.source.data_files=rows.csv", *words)
    texts = train(*SMALL, "dataset.source.data_files=rows.csv", "task.separator=';'", *words)
    assert texts.metrics["test_loss"] == lists.metrics["test_loss"]


def test_all_forms_of_labels_become_truth_values() -> None:
    words = [["b"], [], ["a", "b"]]
    expected = [{"a": False, "b": True}, {"a": False, "b": False}, {"a": True, "b": True}]

    def cast(labels: list[Any], feature: Any, wanted: list[str] | None = None) -> list[Any]:
        features = Features({"text": Value("string"), "label": feature})
        rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": labels}, features=features)
        return list(cast_classes(DatasetDict({"train": rows}), "label", wanted)["train"]["label"])

    assert cast(words, List(Value("string"))) == expected
    assert cast([[1], [], [0, 1]], List(ClassLabel(names=["a", "b"]))) == expected
    assert cast([[1], None, [0, 1]], List(Value("int64"))) == [
        {"0": row["a"], "1": row["b"]} for row in expected
    ]  # fmt: skip
    assert list(cast(words, List(Value("string")), ["b", "a", "c"])[0]) == ["b", "a", "c"]
    with pytest.raises(ConfigError, match="unknown label 'b'"):
        cast(words, List(Value("string")), ["a"])
    with pytest.raises(ConfigError, match="a list of classes"):
        cast([1, 2, 3], Value("int64"))

    mappings = {name: Value("bool") for name in ("a", "b")}
    assert cast(expected, mappings) == expected
    turned = cast(expected, mappings, ["b", "a"])
    assert turned == expected
    assert [list(row) for row in turned] == [["b", "a"]] * 3  # by their place they are the model's classes
    with pytest.raises(ConfigError, match="unknown label 'b'"):
        cast(expected, mappings, ["a", "c"])
    with pytest.raises(ConfigError, match="no truth value for c"):
        cast(expected, mappings, ["a", "b", "c"])
    with pytest.raises(DataError, match="no truth value for the class 'b'"):
        MultiLabelTextClassification().decode({"text": "x", "label": {"a": True, "b": None}})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task.threshold=1.5"], r"task\.threshold=1\.5 must be between 0 and 1"),
        (["metrics=classification"], "Accuracy is for one class per row, not for several"),
        (["dataset.streaming=true", "trainer.args.max_steps=2", "dataset.test_size=9", "dataset.validation_size=9"],
         "several classes can't be streamed"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_several_classes_is_said(rows: str, words: list[str], said: str, place: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        train(*SMALL, rows, *words)
    assert not (place / "outputs").exists()
