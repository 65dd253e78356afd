"""Names of classes, files and metrics are text wherever they are shown, and end no command."""

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from hfexp.commands import cli
from hfexp.core import console
from hfexp.inference.model_card import CardFacts, model_card
from hfexp.tracking.report.canvas import Pictures, style
from hfexp.tracking.report.classes import ClassReport
from hfexp.tracking.report.figures import confusion_matrix

NAMES = [
    "[/b]", "</script><script>alert(1)</script>", "[link=http://x]y[/link]", "\x1b]0;OWNED\x07red\x1b[31m", "\x9b31m",
    "\u202egnp.exe", "<img src=x onerror=alert(1)>", "$frac{", "`a|b`", "=HYPERLINK(1)", "{task.total}", "a\nb\tc\rd",
    "\u2066x\u2069", "${oc.env:HOME}", "**bold** _it_ #1",
]  # fmt: skip
HARMFUL = ("\x1b", "\x07", "\x9b", "\r", "\u202e", "\u2066")
SMALL_BERT = [
    "task=text_classification", "model=tiny_bert", "model.config.hidden_size=16", "model.config.num_hidden_layers=1",
    "model.config.num_attention_heads=2", "model.config.intermediate_size=16", "metrics=classification",
    "dataset=table", "dataset.test_size=0.2", "trainer.args.max_steps=2",
]  # fmt: skip


def test_a_run_and_its_answers_show_names_as_they_are(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Path("rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([f"[/i] \x1b[31m <b>text {n}", NAMES[n % len(NAMES)]] for n in range(10 * len(NAMES)))
    assert cli.main([*SMALL_BERT, "dataset.source.data_files=rows.csv", "dataset.source.multiline=true"]) == 0
    (run,) = Path("outputs").glob("*/tiny_bert-*")
    text = "text=[/b] \x1b[31m"
    assert cli.main(["predict", f"run={run}", text, "text=$x$", "output=a.csv", f"top_k={len(NAMES)}"]) == 0
    shown = "".join(capsys.readouterr())
    assert not [mark for mark in HARMFUL if mark in shown]
    assert "[/b]" in shown
    for page in ("artifacts/report.html", "artifacts/report.md", "model/README.md"):
        content = re.sub(r"```.*?\n```", "", (run / page).read_text(), flags=re.DOTALL)
        assert not [tag for tag in ("<script>alert", "<img src=x", *HARMFUL) if tag in content], page
    assert {path.name for path in (run / "artifacts").glob("*.png")} >= {"confusion_matrix_validation.png"}
    for path in (Path("a.csv"), *(run / "artifacts").glob("*.csv")):
        with path.open(newline="") as file:
            assert not [cell for row in csv.reader(file) for cell in row if cell.startswith("=")], path


def test_control_characters_are_shown_escaped() -> None:
    assert console.printable("a\x1b[31m\x9b1m\x07\u202eb\ud800\nc\td\r\n") == (
        "a\\x1b[31m\\x9b1m\\x07\\u202eb\\ud800\nc\td\n"
    )
    assert console.one_line("a\nb\tc") == "a\\nb\\tc"
    family = "👩\u200d👧 e\u0301 क\u094d\u200cष"
    assert console.printable(family) == family, "letters that are joined stay so"


def test_tables_and_lines_know_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(box=None)
    table.add_column(console.cell(NAMES[0]))
    for name in NAMES:
        table.add_row(console.cell(name))
    console.print_table(table)
    console.say("\n".join(NAMES))
    console.note("\n".join(NAMES))
    shown = "".join(capsys.readouterr())
    assert shown.count("[/b]") == 4
    assert not [mark for mark in HARMFUL if mark in shown]


def test_the_bar_knows_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(console, "console", lambda: Console(file=written, force_terminal=True, width=200))
    monkeypatch.setattr(console, "_bar", None)
    console.move_bar(1, 2, "[/b]", "loss[/b] 1.0")
    console.end_bar()
    assert "loss[/b] 1.0" in written.getvalue()


def test_the_last_message_of_a_command_is_text(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "run=x\x1b[31m\u202e", "gone\x1b]0;x\x07.png"]) == 2
    said = capsys.readouterr().err
    assert not [mark for mark in HARMFUL if mark in said]
    assert "gone\\x1b]0;x\\x07.png" in said


def test_nothing_in_a_model_card_is_markup() -> None:
    facts: dict[str, Any] = {
        "architecture": "A", "model_class": "AutoModel", "processor_class": "AutoTokenizer", "pipeline": None,
        "num_parameters": 1, "base_model": None, "hub_dataset": None, "rows": {"train": 1}, "versions": {},
        "metrics": {"test_<img src=x>": 1.0}, "labels": NAMES,
    }  # fmt: skip
    for name in NAMES:
        card = model_card(CardFacts(name=name, dataset=name, command=name, params={"transform": name}, **facts))
        body = card.split("---\n", 2)[2]
        assert "<script" not in body
        assert "<img" not in body
        assert not [mark for mark in HARMFUL if mark in card]
    assert console.code("a b.c") == "`a b.c`"
    assert console.code("a`<b>") == "<code>a\\`&lt;b&gt;</code>"


def test_names_are_no_formulas(tmp_path: Path) -> None:
    import numpy as np

    report = ClassReport(["$frac{", "$x^2$", "a$b", "_x"], np.eye(4, dtype=int))
    with style():
        pictures = Pictures(tmp_path)
        pictures.draw("matrix.png", confusion_matrix, report, "$\\frac{$")
    assert pictures.made.keys() == {"matrix.png"}
