"""Columns in Arrow: tags and classes of every type and form of storage, and columns made of others on disk."""

import gc
import hashlib
import json
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, LargeList, List, Value, concatenate_datasets
from datasets import load_from_disk as load

from hfexp.core.errors import ConfigError
from hfexp.data import arrow_columns, fingerprint
from hfexp.data.columns import with_made
from hfexp.data.dataset import WindowedDataset
from hfexp.data.labels import cast_labels, classes_of, first_faults, label_counts
from hfexp.data.transforms import Steps
from hfexp.tasks.base import Task
from hfexp.tasks.text_classification import MultiLabelTextClassification
from hfexp.tasks.token_classification import TokenClassification

TEXT = Value("string")
TAGS: Task = TokenClassification()
MANY: Task = MultiLabelTextClassification()


def tagged(tags: Any, feature: Any = None) -> Dataset:
    """Rows of as many words as tags."""
    words = [[f"w{number}" for number in range(len(row or []))] for row in tags]
    return Dataset.from_dict(
        {"words": words, "tags": tags}, Features({"words": List(TEXT), "tags": feature or List(TEXT)})
    )


def classed(labels: Any, feature: Any) -> Dataset:
    return Dataset.from_dict(
        {"text": ["x"] * len(labels), "label": labels}, Features({"text": TEXT, "label": feature})
    )


def cast(rows: Dataset, task: Task = TAGS, names: list[str] | None = None) -> Dataset:
    return cast_labels(DatasetDict(train=rows), task, names)["train"]


@pytest.mark.parametrize(
    ("tags", "feature", "names", "ids"),
    [
        ([["B-X", "O"], [], ["O"]], List(TEXT), ["O", "B-X"], [[1, 0], [], [0]]),
        ([["B-X", "O"], [], ["O"]], LargeList(Value("large_string")), ["O", "B-X"], [[1, 0], [], [0]]),
        ([["B-X", "O"], ["O", "O"]], List(TEXT, length=2), ["O", "B-X"], [[1, 0], [0, 0]]),
        ([["B-X", "O"], None], List(TEXT), ["O", "B-X"], [[1, 0], []]),
        ([[10, 2], [], [2]], List(Value("int16")), ["2", "10"], [[1, 0], [], [0]]),
        ([[True, False], [True]], List(Value("bool")), ["False", "True"], [[1, 0], [1]]),
        ([[1, 0], [], None], List(ClassLabel(names=["b", "a"])), ["b", "a"], [[1, 0], [], []]),
        ([[], []], List(Value("null")), [], [[], []]),
        ([], List(TEXT), [], []),
    ],
)
def test_tags_of_every_type_become_ids(tags: Any, feature: Any, names: list[str], ids: list[Any]) -> None:
    found = cast(tagged(tags, feature))
    assert found.features["tags"] == List(ClassLabel(names=names))
    assert found["tags"][:] == ids
    assert found.column_names == ["words", "tags"]


def in_chunks(rows: Dataset) -> Dataset:
    return concatenate_datasets([rows.select([number]) for number in range(len(rows))])


def on_disk(rows: Dataset) -> Dataset:
    rows.save_to_disk("rows")
    return load("rows")  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("stored", [in_chunks, on_disk])
@pytest.mark.parametrize("in_memory", [0, 2**24])
def test_rows_are_cast_however_they_are_stored(
    stored: Callable[[Dataset], Dataset], in_memory: int, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow_columns, "IN_MEMORY", in_memory)
    monkeypatch.setattr(arrow_columns, "ROWS_AT_ONCE", 2)
    monkeypatch.setattr("tempfile.tempdir", str(place / "tmp"))
    Path("tmp").mkdir()
    rows = stored(tagged([["O"], ["X", "O"], [], ["Y"], ["X", "X"]]))
    files = sorted(Path("rows").glob("*"))
    found = cast(rows)
    assert found["tags"][:] == [[0], [1, 0], [], [2], [1, 1]]
    assert found["words"][:] == rows["words"][:]
    assert (sorted(Path("rows").glob("*")), [*Path("tmp").iterdir()]) == (files, [])  # the data stay as they are
    assert pickle.loads(pickle.dumps(found))["tags"][:] == found["tags"][:]
    picked = cast(rows.select([4, 0, 0, 2]))
    assert picked["tags"][:] == [[1, 1], [0], [0], []]
    other = cast(rows, names=["Y", "X", "O"])
    assert other["tags"][:] == [[2], [1, 2], [], [0], [1, 1]]
    assert len({rows._fingerprint, found._fingerprint, picked._fingerprint, other._fingerprint}) == 4


def test_a_column_that_can_not_be_written_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_columns, "IN_MEMORY", 0)
    monkeypatch.setattr("tempfile.tempdir", str(place / "none"))
    with pytest.raises(ConfigError, match=r"column 'tags' can't be written to .*none \(.*: set the variable TMPDIR"):
        cast(tagged([["O"], ["X"]]))


def test_only_the_selected_rows_count() -> None:
    rows = cast(tagged([["O", "O"], ["X", "Y"], [], ["Y"]]))
    chosen = rows.select([1, 2, 1, 3])
    assert label_counts(chosen, TAGS) == {"O": 0, "X": 2, "Y": 3}
    assert classes_of(chosen, TAGS) == {"X", "Y"}
    assert label_counts(rows.select([]), TAGS) == {"O": 0, "X": 0, "Y": 0}
    several = cast(classed([["a"], ["b", "c"], [], ["b"]], List(TEXT)), MANY)
    assert classes_of(several.select([3, 2, 2]), MANY) == {"b"}
    assert classes_of(several.select([]), MANY) == set()


def test_faults_are_found_at_their_places_among_the_selected_rows() -> None:
    rows = cast(tagged([["O"], ["O", "O"], [], ["O", "O", "O"]]))
    words = pa.array([["a"], ["b"], None, ["c", "d"]])
    rows = rows.remove_columns("words").add_column("words", words)  # pyright: ignore
    faults = first_faults(rows, TAGS)
    assert faults is not None
    assert (faults[0], str(faults[1])) == ([1, 3], "2 tags for 1 words")
    faults = first_faults(rows.select([3, 0, 1]), TAGS)
    assert faults is not None
    assert (faults[0], str(faults[1])) == ([0, 2], "3 tags for 2 words")
    assert first_faults(rows.select([0, 2]), TAGS) is None
    truth = {"a": Value("int8"), "b": TEXT}
    values = [{"a": 1, "b": "true"}, {"a": 2, "b": "0"}, None, {"a": 0, "b": "no"}, {"a": 0, "b": "False"}]
    several = classed(values, truth)
    for chosen, positions, said in (
        (several, [1, 2, 3], "class 'a' is 2"),
        (several.select([4, 3, 2]), [1, 2], "class 'b' is 'no'"),
        (several.select([0, 2]), [1], "the label is missing"),
    ):
        faults = first_faults(chosen, MANY)
        assert faults is not None
        assert faults[0] == positions
        assert said in str(faults[1])
    assert first_faults(several.select([0, 4]), MANY) is None


@pytest.mark.parametrize(
    ("rows", "task", "said"),
    [
        (tagged([["O"], [], ["X", None], [None]]), TAGS, r"has a missing tag in column 'tags' \(rows 2, 3\)"),
        (
            tagged([[0], [1, -1], [1], [-1]], List(ClassLabel(names=["O", "X"]))),
            TAGS,
            r"unknown tag '-1'.* \(rows 1, 3\)",
        ),
        (
            classed([[0], [1, -1], [1], [-1]], List(ClassLabel(names=["a", "b"]))),
            MANY,
            r"unknown label '-1'.*\(rows 1, 3\)",
        ),
        (classed([["a"], ["b", None]], List(TEXT)), MANY, r"unknown label 'None' in column 'label' \(row 1\)"),
        (tagged([[0.5], [1.5]], List(Value("float32"))), TAGS, "holds real numbers, expected class names or integers"),
    ],
)
def test_items_that_are_no_classes_are_named_with_their_rows(rows: Dataset, task: Task, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        cast(rows, task)


@pytest.mark.parametrize("lists", [[["b"], [], ["b", "a"]], [["b"], None, ["a", "b"]]])
@pytest.mark.parametrize("in_memory", [0, 2**24])
def test_lists_of_classes_become_truth_values(
    lists: Any, in_memory: int, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow_columns, "IN_MEMORY", in_memory)
    rows = on_disk(classed(lists, List(TEXT)))
    assert cast(rows, MANY)["label"][:] == [{"a": x, "b": y} for x, y in ((False, True), (False, False), (True, True))]
    assert cast(rows.select([2, 1]), MANY)["label"][:] == [{"a": True, "b": True}, {"a": False, "b": False}]
    turned = cast(cast(rows, MANY), MANY, ["b", "a"])
    assert [list(row.items()) for row in turned["label"][:]][0] == [("b", True), ("a", False)]


@pytest.mark.parametrize("in_memory", [0, 2**24])
def test_columns_are_made_of_others(in_memory: int, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_columns, "IN_MEMORY", in_memory)
    monkeypatch.setattr(arrow_columns, "ROWS_AT_ONCE", 2)
    cells = {"a": ["1", None, "3", None], "b": ["4", "5", None, None], "n": [1, 2, 3, 4]}
    made = with_made(on_disk(Dataset.from_dict(cells)), {"a": ["b", "a"], "both": {"x": "n", "y": "b"}}, {})
    assert made["a"][:] == [["4", "1"], ["5"], ["3"], []]
    assert made["both"][:] == [{"x": n, "y": b} for n, b in zip(cells["n"], cells["b"], strict=True)]
    assert made["input.a"][:] == cells["a"]


def test_the_digest_is_that_of_all_values_as_one_list(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [[f"w{number}", "\u00e9"] for number in range(7)]
    rows = Dataset.from_dict({"words": values})
    state = hashlib.sha256(json.dumps([7, str(rows.features)]).encode() + b"words" + json.dumps(values).encode())
    monkeypatch.setattr(fingerprint, "ROWS_IN_PYTHON", 3)
    assert fingerprint.digest(rows) == state.hexdigest()[:32]
    assert fingerprint.digest(rows.select([6, *range(6)]).select([*range(1, 7), 0])) == state.hexdigest()[:32]


def test_tags_are_cast_without_a_python_object_for_each() -> None:
    names, lists, size = pa.array([f"tag{number}" for number in range(50)]), 4000, 250
    items = names.take(pa.array(np.arange(lists * size) % 50))
    tags = pa.ListArray.from_arrays(pa.array(np.arange(0, lists * size + 1, size), pa.int32()), items)
    rows = Dataset(pa.table({"words": tags, "tags": tags}))
    tracemalloc.start()
    try:
        found = cast(rows)
        assert first_faults(found, TAGS) is None
        assert label_counts(found, TAGS)["tag49"] == lists * size // 50
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 15e6  # a million pointers and texts of 50 bytes take 58 MB; 1,000 rows of ids 2 MB, a few times


class Words(torch.nn.Module):
    """An operation that gives each word a number, in windows of two."""

    def forward(self, row: dict[str, Any]) -> dict[str, Any]:
        count = len(row["words"])
        return {"tokens": list(range(count)), "windows": [min(2, count - start) for start in range(0, count, 2)]}


def test_rows_that_are_not_cached_are_kept_in_files_for_as_long_as_they_are_needed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(place))
    rows = WindowedDataset(tagged([["a", "b", "c"], ["d"], []]), TAGS, None, Steps([Words()]))
    monkeypatch.setattr(rows.task, "preprocess", lambda row, processor: row)
    assert rows[0] == {"tokens": [0, 1]}
    assert not list(place.glob("hfexp-*"))
    assert [*rows] == [{"tokens": [0, 1]}, {"tokens": [2]}, {"tokens": [0]}]
    assert rows.lengths("tokens") == [2, 1, 1]
    assert len(list(place.glob("hfexp-*"))) == 1
    del rows
    gc.collect()
    assert not list(place.glob("hfexp-*"))
