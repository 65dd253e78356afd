"""`hfexp show`: the data and the model of a command, before it is trained."""

from pathlib import Path

import PIL.Image
import pytest
from conftest import SMALL_DIGITS, write_images

from hfexp.commands import cli, show


def shown(capsys: pytest.CaptureFixture[str], *args: str) -> list[list[str]]:
    """The words of each line that `hfexp show` prints."""
    assert cli.main(["show", *args]) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_data_are_shown_without_a_model(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(place / "photos", count=20, size=20)
    PIL.Image.new("RGB", (300, 200)).save(place / "photos" / "cat" / "large.png")
    words = ("dataset=imagefolder", "dataset.source.data_dir=photos", "dataset.validation_size=0.2")
    lines = shown(capsys, "data", *words)
    counts = {line[0]: int(line[1]) for line in lines if line[:1] in (["train"], ["validation"]) and len(line) == 2}
    assert sum(counts.values()) == 41
    assert ["image", "images", "of", "20", "x", "20", "to", "300", "x", "200", "pixels"] in lines
    assert ["label", "2", "classes"] in lines
    (cats,) = (line for line in lines if line[:1] == ["'cat'"])
    assert sum(map(int, cats[1:])) == 21
    assert sum(line[2:5] == ["x", "20", "RGB"] for line in lines) >= 9, "ten rows, one of which may be the large one"
    assert not (place / "outputs").exists()


def test_texts_are_shown_with_their_lengths(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"{'word ' * (number + 1)},{number % 2}\n" for number in range(20))
    (place / "rows.csv").write_text(f"text,label\n{rows}")
    words = (
        "task=text_classification",
        "dataset=table",
        "dataset.source.data_files=rows.csv",
        "dataset.validation_size=2",
    )
    lines = shown(capsys, "data", *words)
    (lengths,) = (line for line in lines if line[:2] == ["text", "texts"])
    assert int(lengths[3]) < int(lengths[5]) <= 100
    assert any(line[-2].endswith("...") for line in lines if len(line) > 2), "long texts are cut"


def test_missing_values_do_not_count_among_sizes() -> None:
    assert show._sizes([None, 1.5, 4.0, None]) == "numbers from 1.5 to 4"
    assert show._sizes(["ab", None, "abcd", "abc"]) == "texts of 2 to 4 characters, median 3"


@pytest.mark.parametrize(("count", "expected"), [(0, []), (3, [0, 1, 2]), (7, [0, 2, 4, 6]), (40, [0, 10, 20, 30])])
def test_the_rows_that_are_looked_at_are_spread_over_the_split(count: int, expected: list[int]) -> None:
    class Untouched:
        def decode(self, row: dict[str, int]) -> dict[str, int]:
            return row

    found = show._some([{"n": n} for n in range(count)], Untouched(), 4)  # pyright: ignore
    assert [row["n"] for row in found] == expected


def test_several_classes_of_a_row_are_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"sentence {number},{('a', 'b', 'a b')[number % 3]}\n" for number in range(30))
    (place / "rows.csv").write_text(f"text,label\n{rows}")
    task = ("task=multi_label_text_classification", "task.separator=' '")
    lines = shown(capsys, "data", *task, "dataset=table", "dataset.source.data_files=rows.csv")
    assert ["label", "2", "classes"] in lines
    assert {" ".join(line[3:]) for line in lines if line[1:2] == ["sentence"]} == {"a", "b", "a, b"}


def test_a_picture_shows_images_as_the_model_sees_them(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "data", *SMALL_DIGITS, "--picture", "seen.png")
    assert lines[-1][0] == "seen.png:"
    with PIL.Image.open("seen.png") as picture:
        assert min(picture.size) > 200


def test_the_parts_of_a_model_add_up(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*SMALL_DIGITS, "model.config.num_hidden_layers=3", "model.freeze=[vit.embeddings*]")
    lines = shown(capsys, "model", *words)
    assert lines[0][0] == "ViTForImageClassification:"
    total, trained = int(lines[0][1].replace(",", "")), int(lines[0][3].replace(",", ""))
    parts = {line[0]: [int(count.replace(",", "")) for count in line[-2:]] for line in lines[2:-1]}
    assert list(parts) == ["vit.embeddings", "vit.layers.0-2", "vit.layernorm", "classifier"]
    assert [sum(counts) for counts in zip(*parts.values(), strict=True)] == [total, trained]
    assert parts["vit.embeddings"][1] == 0
    assert lines[3][1:4] == ["3", "x", "ViTLayer"]
    assert lines[-1] == ["first", "row:", "pixel_values", "3", "x", "8", "x", "8", "uint8"]
    assert not (place / "outputs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data", "-m", "seed=1,2"], "hfexp show has no flag -m"),
        (["model", "--picture", "x.png"], "--picture FILE belongs to `hfexp show data`"),
        (["data", "--picture", "x.jpg"], "must end in .png"),
        (["model", "dataset=imagefolder", "dataset.source.data_dir=photos"], "no model is chosen"),
        (["data", "datset=digits"], "datset"),
    ],
)
def test_wrong_words_are_said(words: list[str], said: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", *words]) == 2
    assert said in capsys.readouterr().err
