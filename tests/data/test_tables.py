"""Tables from local files: each file, line and cell accounted for, and read as what the task needs."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import write_images

from hfexp import evaluate, predict, train
from hfexp.commands import cli
from hfexp.core.config import DatasetConfig, OnBadSample, SplitsConfig
from hfexp.core.errors import ConfigError
from hfexp.data.sources import hub, image_table, saved_to_disk, source_row, table
from hfexp.data.splits import drop_bad_samples, load_dataset
from hfexp.data.tables import places
from hfexp.tasks.base import Task
from hfexp.tasks.text_classification import TextClassification, TextRegression
from hfexp.tasks.text_generation import TextGeneration

ROWS = [("warm sun", "a"), ("cold snow", "b")] * 10
SMALL = (
    "tracking.pictures=false",
    "model=tiny_bert", "trainer=scratch", "dataset=table", "model.config.hidden_size=32", "tracking=none",
    "model.config.num_attention_heads=2", "model.config.intermediate_size=32", "model.config.num_hidden_layers=1",
    "model.config.max_position_embeddings=40", "trainer.args.num_train_epochs=1", "dataset.test_size=0.2",
)  # fmt: skip


def write(name: str, rows: list[tuple[str, ...]] = ROWS, head: str = "text,label", end: str = "\n") -> str:
    """A CSV file, its cells as they are given."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("".join(line + end for line in [head, *map(",".join, rows)]), newline="")
    return name


def load(data_files: Any, task: Task | None = None, source: dict[str, Any] | None = None, **settings: Any) -> Any:
    """The splits of a table, through the real function."""
    node = {"_target_": "hfexp.data.sources.table", "data_files": data_files, **(source or {})}
    return load_dataset(DatasetConfig(source=node, **settings), task or TextClassification())


def refused(message: str, *args: Any, **settings: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        load(*args, **settings)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (("007", "012", "100"), ["007", "012", "100"]),
        (("1", "01", "+1"), ["+1", "01", "1"]),
        (("2", "10", "9"), ["2", "9", "10"]),
        (("1.0", "10.0", "2.5"), ["1.0", "2.5", "10.0"]),
        (("TRUE", "FALSE"), ["FALSE", "TRUE"]),
        (("null", "NA", "None", "nan", "inf"), ["NA", "None", "inf", "nan", "null"]),
        (("1e3", "1000"), ["1000", "1e3"]),
        (("2024-01-01", "2024-1-1"), ["2024-01-01", "2024-1-1"]),
    ],
)
def test_classes_and_texts_are_as_they_are_written(labels: tuple[str, ...], names: list[str], place: Path) -> None:
    """Texts are of the same kind as the labels; JSON and Parquet give the same as CSV."""
    rows = [(labels[n % len(labels)], labels[n % len(labels)]) for n in range(30)]
    lines = [dict(zip(("text", "label"), row, strict=True)) for row in rows]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    table("rows.jsonl")["train"].to_parquet("rows.parquet")
    for name in (write("rows.csv", rows), "rows.jsonl", "rows.parquet"):
        found = load(name)["train"]
        assert found.features["label"].names == sorted(names, key=names.index), name
        assert all(row["text"] == names[row["label"]] for row in found), name


def test_numbers_are_read_where_numbers_are_needed(place: Path) -> None:
    values = ["1", "-2.5", " 3 ", "4e-1", ".5"]
    write("rows.csv", [("text", value) for value in values] * 4)
    found = load("rows.csv", TextRegression())
    assert sorted({value for rows in found.values() for value in rows["label"]}) == [-2.5, 0.4, 0.5, 1, 3]
    write("more.csv", [("text", "1.5")] * 9 + [("text", "NA"), ("text", "")])
    refused(r"2 rows have no usable label.*'NA', expected a number \(lines 11, 12 of more\.csv", "more.csv",
            TextRegression())  # fmt: skip
    skipping = DatasetConfig(
        source={"_target_": "hfexp.data.sources.table", "data_files": "more.csv"}, on_bad_sample=OnBadSample.skip
    )
    kept, dropped = drop_bad_samples(load_dataset(skipping, TextRegression()), skipping, TextRegression())
    assert (sum(map(len, kept.values())), sum(dropped.values())) == (9, 2)
    assert {TextRegression().decode(dict(row))["label"] for rows in kept.values() for row in rows} == {1.5}  # pyright: ignore
    write("comma.csv", [("text;1,5",)] * 9 + [("a, b;2",)], head="text;label")
    refused(r"'1,5', expected a number: write 1\.5, or set .*decimal", "comma.csv", TextRegression(), {"sep": ";"})
    found = load("comma.csv", TextRegression(), {"sep": ";", "decimal": ","})
    assert {value for rows in found.values() for value in rows["label"]} == {1.5, 2}
    assert {value for rows in found.values() for value in rows["text"]} == {"text", "a, b"}


def test_what_is_missing_is_named_by_line(place: Path) -> None:
    rows = [("some\nlines" if n == 3 else "text", "" if n in (5, 9) else str(n % 3)) for n in range(30)]
    write("rows.csv", [(f'"{text}"', label) for text, label in rows])
    refused(r"2 rows of the train split have no label \(lines 8, 12 of rows\.csv\)", "rows.csv")
    refused(r"1 row has no value in column 'text' \(line 4 of more\.csv", write("more.csv", [*ROWS[:2], ("", "a")]))
    Path("rows.jsonl").write_text('{"text": "a", "label": 1}\n\n{"text": "b", "label": null}\n')
    refused(r"1 row of the train split has no label \(line 3 of rows\.jsonl\)", "rows.jsonl")
    Path("text.jsonl").write_text('{"text": "a"}\n' * 9 + '{"text": null}\n')
    refused(r"no value in column 'text' \(line 10 of text\.jsonl", "text.jsonl", TextGeneration())
    import pandas

    pandas.DataFrame({"text": "a", "label": [0, 1, None] * 3}).to_parquet("rows.parquet")
    refused(r"3 rows .* no label \(rows 3, 6, 9 of rows\.parquet\)", "rows.parquet")
    refused(r"lines 8, 12 of rows\.csv.*dataset\.splits\.test=none", {"train": "more.csv", "test": "rows.csv"})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({9: '"wide screen,a'}, r"unbalanced quotes in the row that begins in line 11 of rows\.csv"),
        ({9: '"wide screen,a', 15: 'panel 17" wide,b'}, r"begins in line 11 .*quotechar=null"),
        ({9: '"wide screen,a', 15: 'panel 17",b'}, r"opens in line 11 of rows\.csv starts a cell of 7 lines"),
        ({9: '"wide" screen,a'}, r"begins in line 11"),
        ({9: "wide, screen,a"}, r"line 11 of rows\.csv has 3 cells, the header has 2 \(text, label\).*quotes"),
        ({9: "wide"}, r"line 11 of rows\.csv has 1 cell, .*cells are missing"),
        (dict.fromkeys(range(20), "wide,a,"), r"line 2 of rows\.csv has 3 cells"),
        ({9: ","}, r"no label \(line 11 of rows\.csv\)"),
    ],
)
def test_lines_that_are_no_rows_are_named(lines: dict[int, str], message: str, place: Path) -> None:
    written = [lines.get(n, ",".join(row)) for n, row in enumerate(ROWS)]
    Path("rows.csv").write_text("\n".join(["text,label", *written]) + "\n")
    refused(message, "rows.csv")
    if '"' in str(lines):
        found = load("rows.csv", source={"quotechar": None})
        assert sum(map(len, found.values())) == len(ROWS)


def test_a_stray_quote_is_seen_beside_text_last_and_beside_numbers(place: Path) -> None:
    rows = [("ab"[n % 2], f"thing {n}") for n in range(20)]
    rows[5], rows[9] = ("b", '"wide'), ("b", '17"')
    refused("line 7 of last.csv starts a cell of 5 lines", write("last.csv", rows, "label,text"))
    rows = [(f"thing {n}", f"{n / 8}") for n in range(20)]
    rows[5], rows[9] = ('"wide', "1.375"), ('17"', "2.625")
    refused("line 7 of numbers.csv starts a cell", write("numbers.csv", rows), TextRegression())
    found = load("numbers.csv", TextRegression(), {"multiline": True})
    assert sum(map(len, found.values())) == 16


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_row_of_a_good_file_is_read(end: str, place: Path) -> None:
    texts = ["Hello, world\nbye", 'two\n\nlines, "and" more', "", 'inch "', "x" * 200_000, "a,a\nb,b", "null"]
    rows = [('"' + text.replace('"', '""') + '"', "ab"[n % 2]) for n, text in enumerate(texts * 3)]
    found = table(write("rows.csv", rows, end=end))["train"]
    assert found["text"][:] == [text or None for text in texts] * 3
    assert table("rows.csv")["train"]["label"][:] == [label for _, label in rows]  # from the cache
    stream = table("rows.csv", streaming=True)["train"]
    assert [row["text"] for row in stream] == found["text"][:]


def test_a_changed_file_is_read_anew(place: Path) -> None:
    assert table(write("rows.csv"))["train"][0]["text"] == "warm sun"
    write("rows.csv", [("later sun", "a"), *ROWS[1:]])
    assert table("rows.csv")["train"][0]["text"] == "later sun"


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("utf-8-sig", {}), ("utf-16", {}), ("cp1252", {"encoding": "cp1252"}),
        ("utf-16-le", {"encoding": "utf-16-le"}),
    ],
)  # fmt: skip
def test_encodings(content: str, options: dict[str, Any], place: Path) -> None:
    text = "text,label\r\n" + "schön,a\r\nkühl,b\r\n" * 5
    Path("rows.csv").write_bytes(text.encode(content))
    assert table("rows.csv", **options)["train"]["text"][:2] == ["schön", "kühl"]
    if options:
        refused(r"rows\.csv.*dataset\.source\.encoding=", "rows.csv")
    Path("rows.csv.gz").write_bytes(gzip.compress(text.encode(content)))
    assert table("rows.csv.gz", **options)["train"]["text"][0] == "schön"


def test_lines_of_a_text_file_are_rows_unless_they_are_empty(place: Path) -> None:
    Path("lines.txt").write_bytes("\ufeffeins\r\n\r\nzw\u00f6lf\r\n  \r\n".encode())
    found = table("lines.txt")["train"]
    assert found["text"][:] == ["eins", "zw\u00f6lf"]
    assert places(found, [source_row(found, 1)]) == "line 3 of lines.txt"
    assert [row["text"] for row in table("lines.txt", streaming=True)["train"]] == found["text"][:]
    Path("empty.txt").write_text("\n \n")
    with pytest.raises(ConfigError, match=r"empty\.txt has no text"):
        table("empty.txt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", "", r"rows\.csv is empty"),
        ("rows.csv", "\n\n", r"rows\.csv is empty"),
        ("rows.csv", "text,label\n", r"rows\.csv has a header but no rows"),
        ("rows.csv", "text,text\na,b\n", "two columns named 'text'"),
        ("rows.csv", "text;label\na;b\n", r"no column 'text'.*dataset\.source\.sep=';'"),
        ("rows.csv", "text;label\na;1,5\n", r"line 2 .*dataset\.source\.sep=';'"),
        ("rows.csv", "good day,a\nbad day,b\n", r"It has: a, good day.*dataset\.source\.column_names=\[NAME"),
        ("rows.csv", b"PK\x03\x04....", r"rows\.csv is a ZIP archive.*unpack it"),
        ("rows.zip", b"PK\x03\x04....", r"rows\.zip is a ZIP archive.*unpack it"),
        ("rows.xls", "text", r"rows\.xls: can't tell the format from the name.*csv, json, parquet, text"),
        ("rows.csv", b"PAR1....", r"rows\.csv is a Parquet file: set dataset\.source\.format=parquet"),
        ("rows.csv", b"text,label\na,b\n\xe9,c\n", r"line 3 of rows\.csv can't be read as utf-8.*cp1252"),
        ("rows.jsonl", "", r"rows\.jsonl is empty"),
        ("rows.json", "[]", r"rows\.json has no rows"),
        ("rows.jsonl", '{"text": "a"}\n\n{"text": ', r"line 3 of rows\.jsonl"),
        ("rows.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', r"line 2 of rows\.jsonl is not UTF-8"),
        ("rows.jsonl", "1\n2\n", r"row 1 of rows\.jsonl is 1, not an object"),
        ("rows.parquet", "", r"rows\.parquet is not a Parquet file"),
        ("rows.parquet", "text", r"rows\.parquet is not a Parquet file"),
        ("rows.txt", b"\xe9t\xe9\n", r"can't be read as text: rows\.txt"),
    ],
)
def test_a_file_that_is_no_table_is_said_in_one_message(
    name: str, content: str | bytes, message: str, place: Path
) -> None:
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    refused(message, name)


def test_errors_of_datasets_are_one_message(place: Path) -> None:
    """Also of a source that hfexp does not read itself."""
    write("bad.csv", [("a", "b"), ("a", "b", "c")])
    node = {"_target_": "datasets.load_dataset", "path": "csv", "data_files": "bad.csv"}
    with pytest.raises(ConfigError, match=r"dataset\.source: csv can't be read: .*Expected 2 fields in line 3, saw 3"):
        load_dataset(DatasetConfig(source=node), TextClassification())
    write("folder/test_bench.csv")
    with pytest.raises(
        ConfigError, match=r"path=folder is a folder: use dataset=table dataset\.source\.data_files=folder"
    ):
        hub("folder")
    table("folder")["train"].save_to_disk("saved")
    next(Path("saved").glob("*.arrow")).write_bytes(b"")
    with pytest.raises(ConfigError, match=r"dataset\.source\.path=saved can't be read: "):
        saved_to_disk("saved")


def test_options_are_checked(place: Path) -> None:
    refused(r"dataset\.source\.quotechr: .*no such option.*Did you mean 'quotechar'.*sep", write("rows.csv"),
            source={"quotechr": None})  # fmt: skip
    refused("sep, quotechar, escapechar", "rows.csv", source={"sep": "||"})
    refused(r"dataset\.source\.encoding=utf-7000: unknown encoding", "rows.csv", source={"encoding": "utf-7000"})
    Path("bare.csv").write_text("a comment\n" + "".join(f"{a}\t{b}\n" for a, b in ROWS))
    options = {"skiprows": 1, "sep": "\\t", "column_names": ["text", "label"]}
    assert sum(map(len, load("bare.csv", source=options).values())) == 20
    Path("slash.csv").write_text("text,label\n" + '"say \\"hi\\", ok",a\n' * 9)
    assert table("slash.csv", escapechar="\\")["train"]["text"][0] == 'say "hi", ok'


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["train.csv", "test.csv"], {"train": 1, "test": 1}),
        (["Training/a.csv", "Training/b.csv", "Testing/c.csv", "VAL/d.csv"], {"train": 2, "test": 1, "validation": 1}),
        (["train-00000-of-00002.csv", "train-00001-of-00002.csv", "dev.csv"], {"train": 2, "validation": 1}),
        (["train_a.csv", "b_test.csv", "evaluations.csv", "devices/x.csv"], {"train": 4}),
        (["2020.csv", "2021.csv", "notes.md", "README.txt", ".hidden.csv"], {"train": 2}),
    ],
)
def test_files_of_a_folder_are_of_the_splits_that_their_names_say(
    files: list[str], splits: dict[str, int], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in files:
        write(f"data/{name}")
    for searched in ("data/**/*.csv", "data"):
        found = table(searched)
        assert {split: len(rows) // len(ROWS) for split, rows in found.items()} == splits
        said = capsys.readouterr().err
        assert all(f"{split}: " in said for split in splits)
    assert ("not read: .hidden.csv, README.txt, notes.md" in said) == ("notes.md" in files)


def test_files_that_no_split_is_known_of_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("data/train.csv", "data/holdout.csv", "two/a.csv", "two/b.jsonl"):
        write(name)
    refused(r"the name of a split \(train\), but not data/holdout\.csv", "data")
    refused(r"two holds tables of several formats \(csv: 1, json: 1\)", "two")
    found = table({"train": "data/train.csv", "test": ["data/holdout.csv"]})
    assert {split: len(rows) for split, rows in found.items()} == {"train": 20, "test": 20}
    assert len(table(["data/train.csv", write("test.csv")])["train"]) == 40
    assert "all its files are for training, test.csv too" in capsys.readouterr().err
    for wrong, message in (("none", "does not exist"), ("data/*.tsv", "does not exist"), ([], "is empty")):
        refused(message, wrong)
    assert len(table(write("odd[1]/rows*.csv"))["train"]) == 20  # a name, not a pattern
    write("real/a.csv")
    Path("linked").mkdir()
    Path("linked/there").symlink_to(place / "real")
    Path("real/back").symlink_to(place / "real")
    assert len(table("linked")["train"]) == 20
    write("linked/.checkpoints/a.csv")
    assert len(table("linked")["train"]) == 20


def test_files_of_one_split_have_the_same_columns(place: Path) -> None:
    write("data/a.csv")
    write("data/b.csv", [(label, text) for text, label in ROWS], "label,text")
    assert set(table("data")["train"]["label"]) == {"a", "b"}
    write("data/c.csv", head="text,class")
    refused(r"data/c\.csv has the columns class, text, but data/a\.csv has label, text", "data")
    write("test.csv", [(text,) for text, _ in ROWS], "text")
    files = {"train": "data/a.csv", "test": "test.csv"}
    refused(r"test split has no column 'label'.*dataset\.splits\.test=none", files)
    assert set(load(files, splits=SplitsConfig(test="none"))) == {"train", "validation"}


def test_paths_of_images_keep_their_zeros(place: Path) -> None:
    root = write_images(place / "photos", count=2)
    for number, path in enumerate(sorted(root.rglob("*.jpg"))):
        path.rename(root / f"00{number}")
    write("photos/rows.csv", [(f"00{n}", f"0{n % 2}") for n in range(4)], "image,label")
    rows = image_table("csv", "photos/rows.csv")["train"]
    assert rows[3]["image"].size[1] == 16
    assert rows["label"][:] == ["00", "01", "00", "01"]


def test_codes_are_classes_from_the_command_to_the_answer(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the real commands, with another column that holds numbers."""
    rows = [(f"0{n:03}", ("007", "012")[n % 2], str(n % 11)) for n in range(60)]
    write("rows.csv", rows, "text,label,price")
    result = train("task=text_classification", *SMALL, "dataset.source.data_files=rows.csv")
    asked = predict(run=result.run_dir, inputs=[Path("rows.csv")])
    assert set(asked["label"]) <= {"007", "012"}
    assert list(asked["input"])[:2] == ["0000", "0001"]
    words = ("dataset=table", "dataset.source.data_files=rows.csv")
    scores = evaluate(*words, run=result.run_dir, by="price", resamples=0, record=False)
    assert list(dict.fromkeys(scores["slice"])) == ["all", *(f"price={n}" for n in range(11))]
    write("codes.csv", [(text, label.lstrip("0")) for text, label, _ in rows])
    with pytest.raises(ConfigError, match="unknown label '7'"):
        evaluate("dataset=table", "dataset.source.data_files=codes.csv", run=result.run_dir, record=False)
    capsys.readouterr()
    Path("rows.csv").write_text("text,label\n")
    assert cli.main(["task=text_classification", *SMALL, "dataset.source.data_files=rows.csv"]) == 2
    assert "rows.csv has a header but no rows" in capsys.readouterr().err
