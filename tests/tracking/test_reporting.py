"""Pictures, tables and pages of a run: readable for any number of classes and any name, and never fatal."""

import csv
import json
import logging
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from datasets import DatasetDict

from hfexp.commands import api
from hfexp.data.dataset import process
from hfexp.data.sources import digits
from hfexp.data.transforms import build_transforms
from hfexp.tasks.image_classification import ImageClassification
from hfexp.tasks.metrics import ExpectedCalibrationError
from hfexp.tracking.report import canvas, figures, report
from hfexp.tracking.report.canvas import Pictures
from hfexp.tracking.report.classes import ClassReport
from hfexp.tracking.report.facts import ReportFacts, SplitScores
from hfexp.tracking.report.figures import Mistakes, draw_samples, fit
from hfexp.tracking.report.page import Report, Section, Table, Text
from hfexp.tracking.report.report import draw_report

TASK = ImageClassification()
PROCESSOR = transformers.ViTImageProcessor(
    size={"height": 8, "width": 8}, image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.25, 0.2]
)
NASTY = [
    "汉字 猫",
    "😀",
    "$x$ $",
    "a_b_c",
    "<script>alert('&')</script>",
    "",
    "line\nbreak\x00",
    "x" * 300,
    "|`*[a](b)",
]


def splits(transform: str = "jitter", rows: int = 40) -> dict[str, Any]:
    """The digits' first rows as model inputs."""
    names = {i: str(i) for i in range(10)}
    transforms = build_transforms(api.compose(f"transform={transform}").transform, PROCESSOR, names, [])
    data = DatasetDict({split: digits().select(range(rows)) for split in ("train", "validation", "test")})
    return process(data, TASK, PROCESSOR, transforms, 7)


def names_of(size: int) -> dict[int, str]:
    return {i: NASTY[i] if i < len(NASTY) else f"class {i}" for i in range(size)}


def scores_of(size: int, rows: int = 40, seed: int = 0) -> SplitScores:
    """Made-up probabilities, right about half of the time."""
    generator = np.random.default_rng(seed)
    references = generator.integers(0, size, rows)
    logits = generator.normal(size=(rows, size))
    logits[np.arange(rows), np.where(generator.random(rows) < 0.5, references, 0)] += 8
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return SplitScores.of(probabilities.astype(np.float32), probabilities.argmax(1), references)


def facts_of(size: int, **changes: Any) -> ReportFacts:
    entries: list[dict[str, float]] = [
        {"step": 1, "loss": 2.0, "learning_rate": 1e-3, "grad_norm": 1.0},
        {"step": 1, "eval_loss": 2.1, "eval_accuracy": 0.4},
        {"step": 2, "loss": 1.0, "learning_rate": 5e-4, "grad_norm": 2.0},
        {"step": 2, "eval_loss": 1.1, "eval_accuracy": 0.5},
    ]
    classes = {name: number + 1 for number, name in names_of(size).items()}
    values: dict[str, Any] = {
        "name": "run <b>&amp;",
        "experiment": "x",
        "status": "finished",
        "command": "hfexp 'name=</pre><script>' ```",
        "metrics": {"best_eval_loss": 1.1, "best_eval_accuracy": 0.5, "final_eval_accuracy": 0.5, "test_runtime": 1.0},
        "history": entries,
        "params": {"model.path": "a|b\n<img src=http://example.com/x.png>"},
        "environment": {"python": "3.11"},
        "data": {"train": {"rows": 40, "digest": "d", "source": "s", "classes": classes}},
        "model": {"name": "vit"},
        "metric": "accuracy",
        "seconds": 3.0,
    }
    return ReportFacts(**{**values, **changes})


def check_pages(directory: Path) -> tuple[str, str]:
    """The pages are well formed, refer to nothing outside and let no name become markup."""
    page = (directory / "report.html").read_text(encoding="utf-8")
    tree = ElementTree.fromstring(page)
    tags = {element.tag for element in tree.iter()}
    assert not tags & {"script", "link", "iframe", "object", "b"}
    for element in tree.iter():
        assert not any(name.startswith("on") for name in element.attrib)
        for name in ("src", "href"):
            assert element.get(name, "#").startswith(("#", "data:image/png;base64,"))
    style = next(tree.iter("style")).text or ""
    assert "url(" not in style
    assert "@import" not in style
    text = (directory / "report.md").read_text(encoding="utf-8")
    for name in re.findall(r"(?<!\\)!\[[^\]]*\]\(([^)]+)\)", text):
        assert (directory / name).is_file()
    assert "<script" not in text.split("```")[0]
    return page, text


@pytest.mark.parametrize("size", [2, 1000, *(pytest.param(size, marks=pytest.mark.slow) for size in (10, 60))])
def test_any_number_of_classes_and_any_names(tmp_path: Path, caplog: pytest.LogCaptureFixture, size: int) -> None:
    scores = {"validation": scores_of(size), "test": scores_of(size, seed=1)}
    data = splits()
    draw_samples(data["train"], TASK, PROCESSOR, Pictures(tmp_path))
    result = draw_report(facts_of(size), scores, names_of(size), data, TASK, PROCESSOR, Pictures(tmp_path))
    assert not caplog.records
    assert result is not None
    assert result.matrix.sum() == 40
    expected = {"samples.png", "learning_curves.png", "classes.png"}
    for split in scores:
        expected |= {f"{name}_{split}.png" for name in ("confusion_matrix", "calibration", "mistakes")}
        expected |= {f"most_confused_{split}.png"} if size > 40 else set()
    assert {path.name for path in tmp_path.glob("*.png")} == expected
    for name in expected:
        with PIL.Image.open(tmp_path / name) as picture:
            assert max(picture.size) < 1600
    page, text = check_pages(tmp_path)
    assert page.count("<img") == text.count("![") - text.count("!\\[") == len(expected)


def test_tables_hold_what_the_scores_say(tmp_path: Path) -> None:
    references, predictions = np.array([0, 0, 1, 2, -1]), np.array([0, 1, 1, 0, 1])
    scores = SplitScores(None, predictions, references)
    names = {0: "a", 1: "b,\n", 2: "c", 3: "d"}
    result = draw_report(facts_of(2), {"test": scores}, names, {}, TASK, PROCESSOR, Pictures(tmp_path))
    assert result is not None
    assert result.worst(2) == [("c", 0.0, 1), ("a", 0.5, 2)]
    assert result.majority_share == 0.5
    assert result.most_confused(5) == [(0, 1, 1), (2, 0, 1)]

    def read(name: str) -> list[list[str]]:
        with (tmp_path / name).open(newline="", encoding="utf-8") as file:
            return list(csv.reader(file))

    assert read("per_class_test.csv")[1:3] == [["0", "a", "0.5", "0.5", "0.5", "2"],
                                               ["1", "b,\n", "0.5", "1", "0.666667", "1"]]  # fmt: skip
    assert read("per_class_test.csv")[4] == ["3", "d", "", "", "", "0"]
    assert json.loads((tmp_path / "per_class_test.json").read_text())[3]["recall"] is None
    assert read("confusion_matrix_test.csv")[1] == ["a", "1", "1", "0", "0"]
    assert read("mistakes_test.csv")[1:] == [["1", "a", "b,\n", ""], ["3", "c", "a", ""]]
    assert read("predictions_test.csv")[5] == ["4", "", "b,\n", ""]
    assert not list(tmp_path.glob("calibration*"))


def test_a_large_matrix_is_written_as_its_cells(tmp_path: Path) -> None:
    scores = scores_of(300)
    report = ClassReport.of(scores.predictions, scores.references, names_of(300))
    report.save(tmp_path, "test")
    with (tmp_path / "confusion_matrix_test.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["true", "predicted", "count"]
    assert sum(int(row[2]) for row in rows[1:]) == 40


def test_no_mistakes_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = np.arange(40) % 50
    scores = SplitScores(np.ones(40, dtype=np.float32), ids, ids)
    draw_report(facts_of(50), {"validation": scores}, names_of(50), splits(), TASK, PROCESSOR, Pictures(tmp_path))
    assert not caplog.records
    assert not (tmp_path / "mistakes_validation.png").exists()
    assert "validation: no mistakes." in check_pages(tmp_path)[0]


def test_mistakes_are_ordered_by_confidence() -> None:
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]])
    scores = SplitScores.of(probabilities, probabilities.argmax(1), np.array([1, 0, 0, 0]))
    assert Mistakes.of(scores, 2) == Mistakes(3, [0, 3, 1], True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e308])
def test_values_that_are_not_finite_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: float) -> None:
    history = [{"step": n, "loss": bad, "grad_norm": bad if n % 2 else 1.0, "eval_loss": bad} for n in range(900)]
    scores = SplitScores(np.full(40, np.nan), np.zeros(40, int), np.ones(40, int))
    facts = facts_of(2, history=history, metrics={"best_eval_loss": bad, "final_eval_accuracy": bad})
    draw_report(facts, {"validation": scores}, names_of(2), splits(), TASK, PROCESSOR, Pictures(tmp_path))
    assert not caplog.records
    assert (tmp_path / "learning_curves.png").is_file()
    assert figures.curve(history, "grad_norm")[2] == 450
    check_pages(tmp_path)


def test_a_task_without_classes_leaves_parts_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    facts = facts_of(2, data={"train": {"rows": 4, "digest": "", "source": "s", "classes": None}}, history=[])
    assert draw_report(facts, {}, None, {}, TASK, PROCESSOR, Pictures(tmp_path)) is None
    assert not caplog.records
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.md"}
    page, _ = check_pages(tmp_path)
    assert "<h2>Data</h2>" in page
    assert "<h2>Classes</h2>" not in page


def test_a_picture_that_fails_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise ValueError("out of paint")

    monkeypatch.setattr(report.figures, "calibration", broken)
    draw_report(facts_of(2), {"test": scores_of(2)}, names_of(2), splits(), TASK, PROCESSOR, Pictures(tmp_path))
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (logging.WARNING, "calibration_test.png could not be created: ValueError: out of paint")
    ]
    assert "confusion_matrix_test.png" in check_pages(tmp_path)[1]


def test_scores_of_another_length_show_no_wrong_pictures(tmp_path: Path) -> None:
    draw_report(facts_of(2), {"test": scores_of(2, 39)}, names_of(2), splits(), TASK, PROCESSOR, Pictures(tmp_path))
    assert (tmp_path / "mistakes_test.csv").is_file()
    assert not (tmp_path / "mistakes_test.png").exists()


@pytest.mark.parametrize("transform", ["jitter", "eval", "notebook"])
def test_samples_are_what_the_dataset_gives(tmp_path: Path, caplog: pytest.LogCaptureFixture, transform: str) -> None:
    train = splits(transform)["train"]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    draw_samples(train, TASK, PROCESSOR, Pictures(tmp_path), count=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert not caplog.records
    with PIL.Image.open(tmp_path / "samples.png") as picture:
        drawn = np.asarray(picture.convert("RGB"))
    for number, index in enumerate([0, 20, 39]):
        pixels = train[index]["pixel_values"]
        if pixels.dtype != torch.uint8:
            mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (PROCESSOR.image_mean, PROCESSOR.image_std))
            pixels = ((pixels * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        left = 12 + 140 * number
        corners = drawn[34 + 8 : 34 + 128 : 16, left + 8 : left + 128 : 16]
        assert np.abs(corners.astype(int) - pixels.permute(1, 2, 0).numpy()).max() <= 1


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_pictures_of_any_number_of_channels(channels: int) -> None:
    picture = TASK.picture({"pixel_values": torch.full((channels, 5, 4), 9, dtype=torch.uint8)}, PROCESSOR)
    assert picture.size == (4, 5)
    assert picture.convert("RGB").getpixel((0, 0)) == (9, 9, 9)


def test_pictures_are_enlarged_by_whole_factors_or_reduced() -> None:
    assert fit(PIL.Image.new("RGB", (8, 5)), 128).shape == (80, 128, 3)
    assert fit(PIL.Image.new("L", (300, 600)), 224).shape == (224, 112, 3)


def test_texts_stand_where_pictures_would(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Reading(ImageClassification):
        def picture(self, inputs: dict[str, Any], processor: Any) -> Any:
            return "<b>read me</b>"

    data = splits()
    draw_samples(data["train"], Reading(), PROCESSOR, Pictures(tmp_path), count=2)
    draw_report(facts_of(2), {"test": scores_of(2)}, names_of(2), data, Reading(), PROCESSOR, Pictures(tmp_path))
    assert not caplog.records
    assert (tmp_path / "samples.txt").read_text().count("read me") == 2
    assert not (tmp_path / "samples.png").exists()
    assert check_pages(tmp_path)[0].count("&lt;b&gt;read me") > 2


def test_the_bins_are_those_of_the_metric() -> None:
    generator = np.random.default_rng(0)
    probabilities, references = generator.dirichlet(np.ones(5), 200), generator.integers(0, 5, 200)
    scores = SplitScores.of(probabilities, probabilities.argmax(1), references)
    counts, confidence, accuracy = figures.reliability(scores, np.ones(200, bool))
    error = np.nansum(counts * np.abs(confidence - accuracy)) / counts.sum()
    metric = ExpectedCalibrationError(figures.CALIBRATION_BINS)
    expected = metric.compute(prediction_scores=probabilities, references=references)
    assert error == pytest.approx((expected or {})["ece"], abs=1e-6)


def test_names_that_would_look_alike_carry_their_id() -> None:
    assert canvas.drawable_labels(["cat", "\U000200a4", "", "dog"]) == ["cat", "1: \u25a1", "2: ", "dog"]
    assert canvas.drawable_labels(["a" * 40, "a" * 50], 4) == ["0: aaa\u2026", "1: aaa\u2026"]


def test_the_users_matplotlib_settings_are_left_alone() -> None:
    import matplotlib

    with matplotlib.rc_context({"text.usetex": True, "text.color": "white"}):
        with canvas.style():
            assert not matplotlib.rcParams["text.usetex"]
        assert matplotlib.rcParams["text.color"] == "white"


def test_markdown_means_what_it_says() -> None:
    page = Report("a_b", "lead", [Section("s", [Text("__init__ a_b *x* <i> `c`"), Table(["h", ""], [["a|b", "1"]])])])
    text = page.markdown()
    assert r"\_\_init\_\_ a_b \*x\* &lt;i&gt; \`c\`" in text
    assert "| --- | --: |\n| a\\|b | 1 |" in text


def test_a_report_without_pictures(tmp_path: Path) -> None:
    drawn = Pictures(tmp_path, wanted=False)
    draw_report(facts_of(2), {"test": scores_of(2)}, names_of(2), splits(), TASK, PROCESSOR, drawn)
    assert not list(tmp_path.glob("*.png"))
    assert {"report.html", "report.md", "confusion_matrix_test.csv", "mistakes_test.csv"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert "<img" not in (tmp_path / "report.html").read_text()
