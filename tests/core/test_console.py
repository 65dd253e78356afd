"""What is shown to people: times in the units that they use."""

import sys
from typing import Any

import pytest

from hfexp.core import console


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(9.54, "9.5 s"), (59.9, "59.9 s"), (108, "1 min 48 s"), (599.7, "10 min"), (3599, "59 min"), (7500, "2 h 5 min")],
)
def test_times_are_shown_in_units_that_people_use(seconds: float, shown: str) -> None:
    assert console.duration(seconds) == shown


def test_what_takes_its_time_is_shown_until_something_else_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "is_terminal", lambda: True)
    console.status("reading the\ndata")
    console.status("opening the record")
    console.say("done")
    console.status("saving")
    console.note("a note")
    console.status("")
    shown = capsys.readouterr()
    assert shown.out.split(console.ERASE_LINE) == [
        r"  reading the\ndata ...", "  opening the record ...", "done\n  saving ...", "",
    ]  # fmt: skip
    assert shown.err == "hfexp: a note\n"


def test_a_status_is_for_people_at_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console.status("reading the data")
    console.say("done")
    assert capsys.readouterr().out == "done\n"
    sent: list[tuple[Any, ...]] = []
    console.redirect(lambda *call: sent.append(call))
    try:
        console.status("reading the data")
    finally:
        console.redirect(None)
    assert sent == [("status", "reading the data")]


def test_modules_are_imported_with_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "is_terminal", lambda: True)
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    console.load("sys", "colorsys")
    assert "importing colorsys" in capsys.readouterr().out
    assert "colorsys" in sys.modules
