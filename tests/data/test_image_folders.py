"""Folders of images as people have them: what is a split, what a class, and that every file is accounted for."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from conftest import SMALL_MODEL, write_images
from datasets import Image

from hfexp.commands import api
from hfexp.core.errors import ConfigError
from hfexp.data import sources
from hfexp.data.image_folders import list_images, to_datasets
from hfexp.inference.inputs import read_inputs
from hfexp.tasks.image_classification import ImageClassification


def write(root: Path, *files: str) -> Path:
    """Files below a folder: `cat/3` for three images of a class, `cat/a.JPG` for one file, `cat/` for a folder."""
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        elif path.name.isdigit():
            for number in range(int(path.name)):
                PIL.Image.new("RGB", (4, 4), (number, 0, 0)).save(path.with_name(f"{number}.png"))
        else:
            path.write_bytes(b"content")
    return root


def found(root: Path, **options: Any) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """Images of each class by split, and the files left out by reason; the datasets hold as many."""
    listing = list_images(str(root), **options)
    datasets = to_datasets(listing)
    assert {name: len(rows) for name, rows in datasets.items()} == {
        name: len(columns["image"]) for name, columns in listing.splits.items()
    }
    counts = {name: dict(Counter(map(str, columns["label"]))) for name, columns in listing.splits.items()}
    return counts, listing.left_out.counts


OUTSIDE = "images outside of the class folders"
LAYOUTS = [
    # files, images of each class by split, files left out
    (["bus/3", "car/2", "train/4"], {"train": {"bus": 3, "car": 2, "train": 4}}, {}),
    (["test/2", "train/3"], {"train": {"test": 2, "train": 3}}, {}),
    (["control/2", "test/3"], {"train": {"control": 2, "test": 3}}, {}),
    (["a/train_01.png", "a/3", "b/test.png", "b/2"], {"train": {"a": 4, "b": 3}}, {}),
    (["Training/cat/3", "Training/dog/2", "TESTING/cat/1", "TESTING/dog/2"],
     {"train": {"cat": 3, "dog": 2}, "test": {"cat": 1, "dog": 2}}, {}),
    (["train_set/cat/3", "train_set/dog/2", "Test Set/cat/1", "val-images/dog/1"],
     {"train": {"cat": 3, "dog": 2}, "validation": {"dog": 1}, "test": {"cat": 1}}, {}),
    (["train/images/cat/3", "train/images/dog/2", "dev/images/cat/1"],
     {"train": {"cat": 3, "dog": 2}, "validation": {"cat": 1}}, {}),
    (["train/images/cat/3", "train/images/dog/2", "test/cat/2"],
     {"train": {"cat": 3, "dog": 2}, "test": {"cat": 2}}, {}),
    (["train/a/a/cat/3", "train/a/a/dog/2"], {"train": {"cat": 3, "dog": 2}}, {}),
    (["train/train/cat/3", "train/train/dog/2", "test/test/4"], {"train": {"cat": 3, "dog": 2}}, {OUTSIDE: 4}),
    (["train/cat/3", "train/dog/2", "test/4"], {"train": {"cat": 3, "dog": 2}}, {OUTSIDE: 4}),
    (["test/cat/3", "test/dog/2"], {"test": {"cat": 3, "dog": 2}}, {}),
    (["photos/cat/3", "photos/dog/2", "1"], {"train": {"cat": 3, "dog": 2}}, {OUTSIDE: 1}),
    (["data/train/cat/3", "data/train/dog/2", "data/test/dog/2", "README.md"],
     {"train": {"cat": 3, "dog": 2}, "test": {"dog": 2}}, {".md files (Pillow does not read them)": 1}),
    (["cat/indoor/2", "cat/outdoor/3", "dog/indoor/1", "dog/2"], {"train": {"cat": 5, "dog": 3}}, {}),
    (["__background__/2", ".other/3", "[x] *?/2", "Ä öü/1", "a=b/1", "a/1"],
     {"train": {"__background__": 2, ".other": 3, "[x] *?": 2, "Ä öü": 1, "a=b": 1, "a": 1}}, {}),
    (["cat/1", "dog/1", "cat/A.JPG", "cat/b.Jpeg", "dog/c.heic.png", "dog/C.TIFF", "dog/d.avif", "cat/e.mpo"],
     {"train": {"cat": 4, "dog": 4}}, {}),
    (["cat/2", "dog/2", "dog/.DS_Store", "cat/._0.png", "cat/a.HEIC", "dog/b.heic", "photos.zip", "cat/Thumbs.db",
      "cat/x", "__MACOSX/cat/._0.png", "dog/.ipynb_checkpoints/0-checkpoint.png", "bird/a.HEIC", "fish/"],
     {"train": {"cat": 2, "dog": 2}},
     {"hidden files": 2, ".heic files (Pillow does not read them)": 3, "archives (unpack them)": 1,
      ".db files (Pillow does not read them)": 1, "files without an extension": 1, "files in system folders": 2}),
]  # fmt: skip


@pytest.mark.parametrize(("files", "splits", "left_out"), LAYOUTS)
def test_splits_classes_and_what_is_left_out(files: list[str], splits: Any, left_out: Any, tmp_path: Path) -> None:
    root = write(tmp_path / "photos [train] a=b ü", *files)
    assert found(root) == (splits, left_out)
    total = sum(len(names) for _, _, names in os.walk(root))
    assert total == sum(sum(classes.values()) for classes in splits.values()) + sum(left_out.values())


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    store = write(tmp_path / "store", "c1/3", "c2/2")
    root = write(tmp_path / "photos", "cat/1")
    (root / "dog").symlink_to(store / "c1")
    (root / "cat" / "linked.png").symlink_to(store / "c2" / "0.png")
    for name, target in (
        ("up", root),
        ("itself", root / "cat" / "itself"),
        ("home", tmp_path),
        ("gone.png", "nothing"),
    ):
        (root / "cat" / name).symlink_to(target)
    (root / os.fsdecode(b"b\xe4r")).mkdir()
    counts, left_out = found(root)
    assert counts == {"train": {"cat": 2, "dog": 3}}
    assert left_out == {"links to a parent folder": 2, "broken links": 2, "names that are not UTF-8": 1}


def test_composed_and_decomposed_letters_are_one_class(tmp_path: Path) -> None:
    root = write(tmp_path, "train/\u00c4/2", "train/b/1", "test/A\u0308/3")
    assert found(root)[0] == {"train": {"\u00c4": 2, "b": 1}, "test": {"\u00c4": 3}}


REFUSED = [
    # files, what the message says
    (["train/cat/1", "train/dog/1", "holdout/cat/1"], "holdout, train may be splits or classes.*split_folders="),
    (["seg_train/x/a/1", "seg_train/x/b/1", "seg_test/x/a/1"], "'seg_test' has the name of a split.*split_folders="),
    (["trainImages/a/1", "extra/a/1"], "extra, trainImages may be splits or classes"),
    (["train/a/1", "train/b/1", "eval/a/1", "test/a/1"], "eval and test both mean test.*split_folders="),
    (["cat/train/1", "cat/test/1", "dog/train/1", "dog/test/1"], "test, train must be above the classes"),
    (["a.png", "b.png"], "its images have no classes.*metadata.csv"),
    (["cat/1", "dog/a.heic"], r"only one class \(cat\).*left out: .heic files .*: 1 \(dog/a.heic\)"),
    (
        ["photos.zip"],
        r"no image files found below it; left out: archives \(unpack them\): 1 \(photos.zip\)",
    ),
    (["cat/", "dog/"], "no image files found below it$"),
]


@pytest.mark.parametrize(("files", "message"), REFUSED)
def test_what_can_not_be_told_is_refused(files: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        list_images(str(write(tmp_path, *files)))


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    write(tmp_path, "photos.zip", "cat.png")
    with pytest.raises(ConfigError, match=r"photos\.zip: this is an archive; unpack it"):
        list_images(str(tmp_path / "photos.zip"))
    with pytest.raises(ConfigError, match=r"cat\.png: this is a file, expected a folder of images"):
        list_images(str(tmp_path / "cat.png"))


def test_folders_of_splits_can_be_named(tmp_path: Path) -> None:
    root = write(tmp_path, "train/cat/2", "train/dog/1", "holdout/cat/3", "extra/cat/4")
    counts, left_out = found(root, split_folders={"train": "train", "test": "holdout"})
    assert counts == {"train": {"cat": 2, "dog": 1}, "test": {"cat": 3}}
    assert left_out == {"images outside of dataset.source.split_folders": 4}
    assert found(root, split_folders={})[0] == {"train": {"train": 3, "holdout": 3, "extra": 4}}
    nested = write(tmp_path / "nested", "seg_train/seg_train/a/2", "seg_train/seg_train/b/1", "seg_test/seg_test/a/1")
    named = {"train": "seg_train", "test": "seg_test/seg_test"}
    assert found(nested, split_folders=named)[0] == {"train": {"a": 2, "b": 1}, "test": {"a": 1}}
    with pytest.raises(ConfigError, match=r"split_folders\.test=hold_out: no such folder"):
        list_images(str(root), {"train": "train", "test": "hold_out"})


METADATA = [
    # files, metadata by its place, images of each class by split (or columns), files left out
    (["0.png", "1.png", "2.png"], {"metadata.csv": "file_name,label\n2.png,007\n0.png,012\n"},
     {"train": {"007": 1, "012": 1}}, {"images not listed in metadata": 1}),
    (["cat/2", "dog/1"], {"metadata.csv": "file_name,camera\ncat/0.png,phone\n"}, {"train": {"cat": 2, "dog": 1}}, {}),
    (["cat/1", "dog/1"], {"cat/metadata.jsonl": '{"file_name": "0.png", "camera": 3}\n'},
     {"train": {"cat": 1, "dog": 1}}, {}),
    (["batch1/2", "batch2/1"],
     {"metadata.csv": "file_name,label\nbatch1/0.png,cat\nbatch1/1.png,dog\nbatch2/0.png,cat\n"},
     {"train": {"cat": 2, "dog": 1}}, {}),
    (["train/2", "test/1"],
     {"train/metadata.csv": "file_name,label\n0.png,cat\n1.png,dog\n",
      "test/metadata.csv": "file_name,label\n0.png,dog\n"},
     {"train": {"cat": 1, "dog": 1}, "test": {"dog": 1}}, {}),
    (["train/2", "test/1"],
     {"metadata.csv": "file_name,label\ntrain/0.png,cat\ntrain/1.png,dog\ntest/0.png,dog\n"},
     {"train": {"cat": 1, "dog": 1}, "test": {"dog": 1}}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("files", "tables", "splits", "left_out"), METADATA)
def test_metadata_beside_images(files: list[str], tables: Any, splits: Any, left_out: Any, tmp_path: Path) -> None:
    root = write(tmp_path, *files)
    for name, text in tables.items():
        (root / name).write_text(text)
    assert found(root) == (splits, left_out)


def test_what_metadata_says_becomes_columns_of_the_right_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write(tmp_path, "cat/2", "dog/1")
    (root / "metadata.csv").write_text("file_name,camera,year\ndog\\0.png,null,2020\ncat/1.png,phone,\na.png,,\n")
    rows = sources.image_folder(str(root))["train"].cast_column("image", Image(decode=False))
    names = [os.path.relpath(image["path"], root) for image in rows["image"]]
    assert names == ["cat/0.png", "cat/1.png", "dog/0.png"]
    assert rows["camera"][:] == [None, "phone", "null"]
    assert rows["year"][:] == [None, None, 2020]
    assert rows["label"][:] == [0, 0, 1]
    said = capsys.readouterr().err
    assert f"metadata rows that match no image of a class: 1 ({root}/metadata.csv, row 3)" in said


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.csv", "file_name,label\ncat/0.png,dog\ndog/0.png,dog\n", "row 1: label is 'dog', but .*'cat'"),
        ("metadata.csv", "file;label\ncat/0.png;dog\n", "row 1: the table needs a column 'file_name'.*file;label"),
        ("metadata.csv", "file_name,label\ncat/0.png,a,b\n", "line 2 has 3 values, the first line has 2"),
        ("metadata.csv", "file_name,label\n../../cat/0.png,a\n", "row 1: file_name is '../../cat/0.png'"),
        ("metadata.csv", 'file_name,label\ncat/0.png,"a\ndog/0.png,b\n', "metadata.csv can't be read"),
        ("metadata.jsonl", '{"file_name": "cat/0.png", "label": "a"}\n{"file_name"\n', "line 2 is not JSON"),
        (
            "metadata.jsonl",
            '{"file_name": "cat/0.png", "x": 1}\n{"file_name": "dog/0.png", "x": "b"}\n',
            "mixes types of values",
        ),
    ],
)
def test_metadata_that_does_not_fit_is_named(name: str, text: str, message: str, tmp_path: Path) -> None:
    root = write(tmp_path, "cat/1", "dog/1")
    (root / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        to_datasets(list_images(str(root)))


def test_rows_of_a_split_and_of_a_stream(tmp_path: Path) -> None:
    root = str(write(tmp_path, "train/cat/4", "train/dog/4", "test/cat/2", "test/dog/2"))
    whole = {name: rows["label"][:] for name, rows in sources.image_folder(root).items()}
    assert sources.image_folder(root, split="train[:75%]+test")["label"][:] == [*whole["train"][:6], *whole["test"]]
    assert len(sources.image_folder(root, split="all")) == 12
    with pytest.raises(ConfigError, match="split=validation: .*test, train"):
        sources.image_folder(root, split="validation")
    streams = sources.image_folder(root, streaming=True)
    assert {name: [row["label"] for row in rows] for name, rows in streams.items()} == whole
    assert sorted(row["label"] for row in streams["train"].shuffle(seed=1, buffer_size=3)) == whole["train"]


def test_a_folder_of_images_is_not_taken_for_a_dataset(tmp_path: Path) -> None:
    photos = write_images(tmp_path / "photos", count=2)
    for source in (sources.hub, sources.saved_to_disk):
        with pytest.raises(ConfigError, match=f"it holds images: use dataset=imagefolder .*data_dir={photos}"):
            source(str(photos))


def test_predictions_are_of_the_same_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = write(tmp_path / "store", "2")
    root = write(tmp_path / "photos", "cat/1", ".other/1", "cat/a.HEIC", "cat/.DS_Store")
    (root / "linked").symlink_to(store)
    names = [os.path.relpath(one.name, root) for one in read_inputs([root], [], ImageClassification(), {})]
    assert names == [".other/0.png", "cat/0.png", "linked/0.png", "linked/1.png"]
    assert "left out: hidden files: 1 (cat/.DS_Store); .heic files (Pillow" in capsys.readouterr().err


def test_a_run_says_what_it_found(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(place / "photos", classes=("bus", "car", "train"), count=6)
    write(place / "photos", "car/new.HEIC", "truck/")
    training = ("trainer=scratch", "trainer.args.num_train_epochs=1", "trainer.args.per_device_train_batch_size=4")
    api.train("dataset=imagefolder", "dataset.source.data_dir=photos", *SMALL_MODEL, *training, "tracking=none")
    out, err = capsys.readouterr()
    assert "  photos: train 18 (bus 6, car 6, train 6)\n" in out
    assert "photos: left out: .heic files (Pillow does not read them): 1 (car/new.HEIC)\n" in err
    assert "photos: folders without images: truck\n" in err
