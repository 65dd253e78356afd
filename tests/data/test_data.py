"""Sources, columns, labels, splits and limits."""

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import pytest
from conftest import write_images
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hfexp.core.config import DatasetConfig, OnBadSample, SplitsConfig
from hfexp.core.errors import ConfigError, DataError
from hfexp.data import sources
from hfexp.data.number_words import english, german
from hfexp.data.sources import number_words
from hfexp.data.splits import drop_bad_samples, load_dataset
from hfexp.tasks.image_classification import ImageClassification

TASK = ImageClassification()
ROWS = Features({"image": Value("int64"), "label": Value("string")})


def table(labels: list[Any], label: Any = None) -> Dataset:
    """Rows with a number in place of an image: the data module does not look at it."""
    features = Features({"image": Value("int64"), "label": label or Value("string")})
    return Dataset.from_dict({"image": list(range(len(labels))), "label": labels}, features=features)


def load(source: Any, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> DatasetDict:
    """Load a dataset object through the real function."""
    monkeypatch.setattr(sources, "digits", lambda: source)
    return load_dataset(DatasetConfig(source={"_target_": "hfexp.data.sources.digits"}, **settings), TASK)


@pytest.fixture(autouse=True)
def own_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfexp.data.splits.instantiate", lambda node, key, allowed: sources.digits())


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    digits, bunch = sources.digits(), load_digits()
    assert len(digits) == 1797
    assert digits.features["label"] == ClassLabel(names=[str(n) for n in range(10)])
    assert digits["label"][:] == bunch.target.tolist()
    image = digits[5]["image"]
    assert (image.size, image.mode) == ((8, 8), "L")
    assert abs(image.getpixel((3, 2)) - bunch.images[5][2, 3] * 255 / 16) <= 0.5


def test_missing_splits_are_cut_stratified_and_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table(["a"] * 60 + ["b"] * 30 + ["c"] * 10)
    first = load(rows, monkeypatch, validation_size=0.2, test_size=0.1)
    assert {split: len(part) for split, part in first.items()} == {"train": 72, "test": 10, "validation": 18}
    assert Counter(first["test"]["label"][:]) == {0: 6, 1: 3, 2: 1}
    seen = [index for part in first.values() for index in part["image"][:]]
    assert sorted(seen) == list(range(100))
    assert load(rows, monkeypatch, test_size=0.1)["test"]["image"][:] == first["test"]["image"][:]
    assert load(rows, monkeypatch, test_size=0.1, split_seed=1)["test"]["image"][:] != first["test"]["image"][:]


@pytest.mark.parametrize("size", [0.2, 33])
def test_stratified_splits_are_those_of_datasets(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    rows = table([0] * 61 + [1] * 30 + [2] * 10, ClassLabel(names=["a", "b", "c"]))
    own = load(rows, monkeypatch, validation_size=size, split_seed=5)
    upstream = rows.train_test_split(test_size=size, seed=5, stratify_by_column="label")
    assert own["train"]["image"][:] == upstream["train"]["image"][:]
    assert own["validation"]["image"][:] == upstream["test"]["image"][:]


def test_given_splits_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    source = DatasetDict({"train": table(["a", "b"] * 10), "valid": table(["b", "a"]), "extra": table(["a"])})
    assert len(load(source, monkeypatch)["validation"]) == 2
    other = load(source, monkeypatch, splits=SplitsConfig(validation="extra"))
    assert (len(other["validation"]), "extra" in other) == (1, False)
    with pytest.raises(ConfigError, match="splits.test=tset.*extra, train, valid"):
        load(source, monkeypatch, splits=SplitsConfig(test="tset"))


def test_no_rows_are_in_two_splits_whatever_the_keys_name(monkeypatch: pytest.MonkeyPatch) -> None:
    source = DatasetDict({"train": table(["a", "b"] * 10), "test": table(["b", "a"] * 3)})
    assert "test" not in load(source, monkeypatch, splits=SplitsConfig(validation="test"))
    only = load(DatasetDict({"test": source["test"]}), monkeypatch, splits=SplitsConfig(train="test"), test_size=2)
    assert {split: len(rows) for split, rows in only.items() if split != "validation"}["test"] == 2
    assert sum(map(len, only.values())) == 6
    with pytest.raises(ConfigError, match="splits.train and dataset.splits.validation both name 'train'"):
        load(source, monkeypatch, splits=SplitsConfig(train="train", validation="train"))


def test_limits_come_after_a_seeded_shuffle(monkeypatch: pytest.MonkeyPatch) -> None:
    limited = load(table(["a"] * 50 + ["b"] * 50), monkeypatch, max_train_samples=20)
    assert len(limited["train"]) == 20
    assert set(limited["train"]["label"][:]) == {0, 1}


def test_columns_are_mapped_to_standard_names(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table(["a", "b"] * 10).rename_columns({"image": "scan", "label": "fine"}).add_column("noise", [0] * 20)
    assert set(load(rows, monkeypatch, columns={"image": "scan", "label": "fine"})["train"].column_names) == {
        "image",
        "label",
    }
    with pytest.raises(ConfigError, match="no column 'image'.*fine, noise, scan.*dataset.columns.image=NAME"):
        load(rows, monkeypatch)
    with pytest.raises(ConfigError, match="dataset.columns.labl: the task reads only: image, label"):
        load(table(["a", "b"] * 10), monkeypatch, columns={"labl": "x"})


@pytest.mark.parametrize(
    ("labels", "names"),
    [(["dog", "cat"] * 10, ["cat", "dog"]), ([3, 10] * 10, ["3", "10"]), ([True, False] * 10, ["False", "True"])],
)
def test_labels_become_class_labels(labels: list[Any], names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Value({str: "string", int: "int64", bool: "bool"}[type(labels[0])])
    loaded = load(table(labels, kind), monkeypatch)
    feature = loaded["train"].features["label"]
    assert feature.names == names
    for row in loaded["train"]:
        assert feature.names[row["label"]] == str(labels[row["image"]])  # pyright: ignore
    assert TASK.id2label(loaded) == dict(enumerate(names))


def test_labels_are_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.labels has 'b' more than once"):
        load(table(["a", "b"] * 5), monkeypatch, labels=["a", "b", "b"])
    with pytest.raises(ConfigError, match=r"dataset\.labels has 'b' more than once"):  # a stream's are not cast
        load(table(["a", "b"] * 5), monkeypatch, labels=["a", "b", "b"], streaming=True)


def test_given_label_order_is_kept_and_unknown_labels_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table(["cat", "dog"] * 10)
    loaded = load(rows, monkeypatch, labels=["dog", "cat"])
    assert loaded["train"].features["label"].names == ["dog", "cat"]
    unknown = r"unknown label 'dog' in column 'label' \(rows 1, 3, .*\).*Did you mean 'dogs'.*cat, dogs"
    with pytest.raises(ConfigError, match=unknown):
        load(rows, monkeypatch, labels=["cat", "dogs"])
    reordered = load(table([0, 1] * 10, ClassLabel(names=["cat", "dog"])), monkeypatch, labels=["dog", "cat"])
    # the same names under other ids
    for row in reordered["train"]:
        assert row["label"] == 1 - row["image"] % 2  # pyright: ignore


def test_missing_and_out_of_range_labels_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"1 row of the train split has no label \(row 18\)"):
        load(table([*["a", "b"] * 9, None]), monkeypatch)
    with pytest.raises(ConfigError, match=r"unknown label -1 in column 'label' \(rows 0, 2, "):
        load(table([-1, 1] * 10, ClassLabel(names=["a", "b"])), monkeypatch)
    source = DatasetDict({"train": table(["a", "b"] * 5), "validation": table(["a", "z"])})
    with pytest.raises(ConfigError, match=r"validation split has unknown label 'z' in column 'label' \(row 1\)"):
        load(source, monkeypatch, labels=["a", "b"])


def test_impossible_sizes_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="dataset.validation_size=50"):
        load(table(["a", "b"] * 10), monkeypatch, validation_size=50)
    with pytest.raises(ConfigError, match="set dataset.validation_size above 0"):
        load(table(["a", "b"] * 10), monkeypatch, validation_size=0)
    with pytest.raises(ConfigError, match="max_train_samples=0"):
        load(table(["a", "b"] * 10), monkeypatch, max_train_samples=0)


def test_image_folder(tmp_path: Path) -> None:
    dataset = sources.image_folder(str(write_images(tmp_path / "photos")))
    assert dataset["train"].features["label"].names == ["cat", "dog"]  # pyright: ignore
    write_images(tmp_path / "one", classes=("cat",))
    (tmp_path / "none").mkdir()
    for name, message in (("one", "only one class"), ("none", "no image files"), ("nowhere", "no such directory")):
        with pytest.raises(ConfigError, match=message):
            sources.image_folder(str(tmp_path / name))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_image_table(kind: str, tmp_path: Path) -> None:
    root = write_images(tmp_path / "photos", count=3)
    rows = [{"scan": str(p.relative_to(root)), "label": p.parent.name} for p in sorted(root.rglob("*.jpg"))]
    path = root / f"rows.{kind}"
    if kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["scan", "label"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        Dataset.from_list(rows).to_parquet(path)
    dataset = sources.image_table(kind, str(path), image_column="scan")
    assert dataset["train"][0]["scan"].size == (16, 16)
    with pytest.raises(ConfigError, match="image_column=image: the table has only: scan, label"):
        sources.image_table(kind, str(path))
    with pytest.raises(ConfigError, match="nothing.csv .split test. does not exist"):
        sources.image_table(kind, {"train": str(path), "test": "nothing.csv"})


def test_a_saved_format_hides_no_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table(["a", "b"] * 10)
    loaded = load(rows.with_format("numpy", columns=["label"]), monkeypatch)
    assert sorted(loaded["train"][0]) == ["image", "label"]


def test_a_split_without_labels_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    label = ClassLabel(names=["a", "b"])
    rows = DatasetDict(train=table([0, 1] * 10, label), test=table([-1] * 4, label))
    unknown = r"the test split has unknown label -1 in column 'label' \(rows 0, 1, .*dataset\.splits\.test=none leaves"
    with pytest.raises(ConfigError, match=unknown):
        load(rows, monkeypatch)
    assert sorted(load(rows, monkeypatch, splits=SplitsConfig(test="none"))) == ["train", "validation"]


def test_tables_may_miss_images_and_name_addresses(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("image,label\na.png,1\n,2\nhttps://example.org/b.png,3\n")
    rows = sources.image_table("csv", str(tmp_path / "rows.csv"))["train"]
    stored = rows.cast_column("image", datasets.Image(decode=False))["image"][:]
    assert stored[0]["path"] == str(tmp_path / "a.png")
    assert stored[1] is None
    assert stored[2]["path"] == "https://example.org/b.png"


def test_saved_to_disk(tmp_path: Path) -> None:
    sources.digits().select(range(10)).save_to_disk(tmp_path / "saved")
    assert len(sources.saved_to_disk(str(tmp_path / "saved"))) == 10
    with pytest.raises(ConfigError, match="not a directory written by"):
        sources.saved_to_disk(str(tmp_path))


def test_bad_samples_are_named_or_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_images(tmp_path / "photos", count=10)
    (root / "cat" / "3.jpg").write_bytes((root / "cat" / "3.jpg").read_bytes()[:200])
    PIL.Image.new("L", (16, 16)).save(root / "cat" / "4.jpg")
    PIL.Image.new("RGBA", (16, 16)).save(root / "cat" / "5.png")
    source = sources.image_folder(str(root))
    loaded = load(source, monkeypatch)
    assert isinstance(loaded["train"].features["image"], datasets.Image)
    kept, dropped = drop_bad_samples(loaded, DatasetConfig(on_bad_sample=OnBadSample.skip), TASK)
    assert sum(dropped.values()) == 1
    assert sum(map(len, kept.values())) == sum(map(len, loaded.values())) - 1
    assert "cat/3.jpg can't be read" in caplog.text
    number = next(i for i, row in enumerate(source["train"].cast_column("image", datasets.Image(decode=False)))
                  if "cat/3.jpg" in row["image"]["path"])  # fmt: skip
    assert f"row {number}: " in caplog.text
    bad = next(row for part in loaded.values() for row in part if "cat/3.jpg" in row["image"]["path"])  # pyright: ignore
    with pytest.raises(DataError, match="cat/3.jpg can't be read as an image"):
        TASK.decode(dict(bad))


def test_numbers_have_the_words_of_both_languages() -> None:
    known = {
        0: ("null", "zero"), 1: ("eins", "one"), 17: ("siebzehn", "seventeen"), 21: ("einundzwanzig", "twenty-one"),
        101: ("einhunderteins", "one hundred and one"), 40_000: ("vierzigtausend", "forty thousand"),
        1_031: ("eintausendeinunddreißig", "one thousand and thirty-one"),
        765_432: (
            "siebenhundertfünfundsechzigtausendvierhundertzweiunddreißig",
            "seven hundred and sixty-five thousand four hundred and thirty-two",
        ),
    }  # fmt: skip
    assert {number: (german(number), english(number)) for number in known} == known
    rows = number_words(most=1500)
    assert len(set(rows["text"][:])) == len(set(rows["target"][:])) == 1500
    assert rows[:] == number_words(most=1500)[:]
