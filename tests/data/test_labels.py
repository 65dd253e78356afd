"""Labels and splits: what a label column means, and which rows of which class go where."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from hfexp.commands import cli
from hfexp.core.config import DatasetConfig
from hfexp.core.errors import ConfigError
from hfexp.data.labels import cast_labels
from hfexp.data.splits import load_dataset
from hfexp.tasks.base import Task
from hfexp.tasks.embedding_similarity import EmbeddingSimilarity
from hfexp.tasks.text_classification import MultiLabelTextClassification, TextClassification

ONE, MANY = TextClassification(), MultiLabelTextClassification()


def rows_of(labels: list[Any], feature: Any = None) -> DatasetDict:
    features = Features({"label": feature}) if feature else None
    rows = Dataset.from_dict({"label": labels}, features=features)
    return DatasetDict(train=rows.add_column("text", [f"text {n}" for n in range(len(labels))]))  # pyright: ignore


def truth(labels: list[Any], names: list[str] | None = None, task: Task = MANY, feature: Any = None) -> list[Any]:
    """What a row's label is in the end."""
    cast = cast_labels(rows_of(labels, feature), task, names)["train"]
    return [task.decode(dict(row))["label"] for row in cast]  # pyright: ignore


@pytest.mark.parametrize(
    "labels",
    [
        [[1, 0, 1], [0, 1, 0], [0, 0, 0]],
        [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]],
        [[True, False, True], [False, True, False], [False, False, False]],
        [["1", "0", "1"], ["0", "1", "0"], ["0", "0", "0"]],
    ],
)
def test_ones_and_zeros_are_truth_values_of_the_named_classes(
    labels: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert truth(labels, ["cat", "dog", "cow"]) == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert "reading the 3 ones and zeros of a row as truth values" in capsys.readouterr().err
    for names in (None, ["0", "1"]):
        with pytest.raises(ConfigError, match=r"3 truth values in each row.*dataset\.labels=\[NAME"):
            truth(labels, names)


def test_lists_of_class_ids_are_that() -> None:
    assert truth([[0, 2], [1], [], [0]]) == [[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert truth([[0, 2], [1, 2], [0, 1]]) == [[1, 0, 1], [0, 1, 1], [1, 1, 0]]
    assert truth([[0], [1], [0]]) == [[1, 0], [0, 1], [1, 0]]
    ids = List(ClassLabel(names=["a", "b"]))
    assert truth([[0, 1], [1, 0]], feature=ids) == [[1, 1], [1, 1]]  # the source says what they are


@pytest.mark.parametrize(
    "labels",
    [
        [[1, 0, 1], [0, 2, 0]],
        [[1, 0, 1], [-1, -1, 0]],
        [[0.9, 0.0, 1.0], [0.0, 1.0, 0.0]],
        [[True, False], [True]],
    ],
)
def test_lists_that_are_neither_are_refused(labels: list[Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"row 0: \[.*Truth values must be 0 or 1.*class ids must be distinct integers"
    ):
        truth(labels, None)


def test_truth_values_by_name_are_whole(place: Path) -> None:
    assert truth([{"a": "true", "b": "0"}, {"a": "False", "b": "1"}]) == [[1, 0], [0, 1]]
    assert truth([{"a": 1.0, "b": 0.0}]) == [[1, 0]]
    lines = [{"text": "x", "label": {"a": 1 - n / 10, "b": 0}} for n in range(3)]
    lines += [{"text": "x", "label": None}] * 2
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = {"_target_": "hfexp.data.sources.table", "data_files": "rows.jsonl"}
    with pytest.raises(
        ConfigError, match=r"4 rows .*class 'a' is 0\.9, expected 0, 1.*lines 2, 3, 4, 5 of rows\.jsonl"
    ):
        load_dataset(DatasetConfig(source=source), MANY)


def test_lists_written_as_text_are_refused() -> None:
    separated = MultiLabelTextClassification(separator=",")
    assert truth(["a, b", "", "b"], task=separated) == [[1, 1], [0, 0], [0, 1]]
    for text in ("['a', 'b']", '["a", "b"]'):
        with pytest.raises(ConfigError, match="holds lists written as text, e.g. "):
            truth([text, "[]", ""], task=separated)


def test_a_column_where_each_row_is_a_class_of_its_own_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for labels in (list(map(str, range(400))), list(range(400)), [*range(360), *([0] * 40)]):
        with pytest.raises(ConfigError, match=r"has \d+ classes in 400 rows.*choose another column.*dataset\.labels"):
            cast_labels(rows_of(labels), ONE, None)
    assert cast_labels(rows_of([n % 200 for n in range(400)]), ONE, None)
    assert cast_labels(rows_of(list("abc")), ONE, None)
    assert cast_labels(rows_of(list(range(400))), ONE, list(map(str, range(400))))
    cast_labels(rows_of(["good", "good ", "Good", "bad"] * 9), ONE, None)
    assert "'Good' (9 rows) and 'good' (9 rows) and 'good ' (9 rows)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "values", "read"),
    [("[no, yes]", ["no", "yes"], "no as False"), ("[007, 012]", ["007", "012"], "007 as 7"),
     ("[1e3, 2e3]", ["1e3", "2e3"], "1e3 as 1000.0"), ("['no', 'yes']", ["no", "yes"], None)],
)  # fmt: skip
def test_labels_that_yaml_takes_for_something_else_are_said(
    labels: str, values: list[str], read: str | None, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("conf/experiment").mkdir(parents=True)
    Path("conf/experiment/mine.yaml").write_text(f"# @package _global_\ndataset:\n  labels: {labels}\n")
    Path("rows.csv").write_text("text,label\n" + "".join(f"text,{value}\n" for value in values * 10))
    words = [
        "--config-dir", "conf", "experiment=mine", "task=text_classification", "model=tiny_bert", "dataset=table",
        "dataset.source.data_files=rows.csv", "debug=fast", "tracking=none",
    ]  # fmt: skip
    assert cli.main(words) == (2 if read else 0)
    assert read is None or f"YAML reads {read}: put it in quotes" in capsys.readouterr().err


def split(labels: list[str], monkeypatch: pytest.MonkeyPatch, **settings: Any) -> dict[str, Counter[str]]:
    """How many rows of each class each split has."""
    monkeypatch.setattr("hfexp.data.splits.instantiate", lambda *_: rows_of(labels)["train"])
    found = load_dataset(DatasetConfig(source={"_target_": "x"}, **settings), ONE)
    names = found["train"].features["label"].names
    assert sorted(text for rows in found.values() for text in rows["text"]) == sorted(
        f"text {n}" for n in range(len(labels))
    )
    return {str(name): Counter(names[number] for number in rows["label"]) for name, rows in found.items()}


def test_a_rare_class_changes_nothing_for_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = split([*"ab" * 30, "rare"], monkeypatch, validation_size=12)
    assert found == {"train": {"a": 24, "b": 24, "rare": 1}, "validation": {"a": 6, "b": 6}}
    assert "validation_size: classes with a single row stay in the training split: rare" in capsys.readouterr().err
    many = [*"ab" * 30, *(f"rare{n}" for n in range(8))]
    found = split(many, monkeypatch, validation_size=0.2, test_size=10)
    assert found["test"] == {"a": 5, "b": 5}
    assert abs(found["validation"]["a"] - found["validation"]["b"]) <= 1
    assert sum(name.startswith("rare") for name in found["train"]) == 8


def test_classes_that_no_row_of_training_has_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hfexp.data.splits.instantiate", lambda *_: rows_of([*"ab" * 20, *"cc"])["train"])
    load_dataset(DatasetConfig(source={"_target_": "x"}, max_train_samples=1), ONE)
    assert "the validation split has classes that the training split lacks: " in capsys.readouterr().err
    splits = DatasetDict(train=rows_of([["a"], ["b"]] * 5)["train"], test=rows_of([["c"], ["a"]])["train"])
    monkeypatch.setattr("hfexp.data.splits.instantiate", lambda *_: splits)
    load_dataset(DatasetConfig(source={"_target_": "x"}), MANY)
    assert "the test split has classes that the training split lacks: c\n" in capsys.readouterr().err


def test_too_many_classes_for_a_split_are_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    split(list("abcdef" * 10), monkeypatch, validation_size=3)
    assert "validation_size: 3 rows are too few to cover 6 classes; drawing rows at random" in capsys.readouterr().err


def test_missing_labels_among_numbers_are_missing() -> None:
    missing = Dataset.from_dict({"label": [0.0, 1.0, float("nan")]}, features=Features({"label": Value("float64")}))
    with pytest.raises(ConfigError, match=r"1 row of the train split has no label \(row 2\)"):
        cast_labels(DatasetDict(train=missing), ONE, None)
    with pytest.raises(ConfigError, match="real numbers, expected class names or integers"):
        cast_labels(rows_of([0.0, 1.0, 2.5]), ONE, None)


def test_numbers_that_the_task_can_not_use_are_named_with_their_lines(place: Path) -> None:
    Path("rows.csv").write_text("text,text_pair,label\na,b,0.5\nc,d,5\ne,f,-1\ng,h,2\n")
    source = {"_target_": "hfexp.data.sources.table", "data_files": "rows.csv"}
    with pytest.raises(
        ConfigError,
        match=r"2 rows have no usable label: column 'label' holds 5, .*lines 3, 5 of rows\.csv; train split",
    ):
        load_dataset(DatasetConfig(source=source), EmbeddingSimilarity("CosineSimilarityLoss"))
