"""What is shown to people: times in the units that they use."""

import pytest

from hfexp.core import console
from hfexp.experiment.result import _wrapped


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(9.54, "9.5 s"), (59.9, "59.9 s"), (108, "1 min 48 s"), (599.7, "10 min"), (3599, "59 min"), (7500, "2 h 5 min")],
)
def test_times_are_shown_in_units_that_people_use(seconds: float, shown: str) -> None:
    assert console.duration(seconds) == shown


def test_choices_are_wrapped_between_items(monkeypatch: pytest.MonkeyPatch) -> None:
    items = ["model vit_digits", "transform jitter", "name='two words'", "path=a-b/c-d"]
    assert _wrapped(items) == "  model vit_digits, transform jitter, name='two words', path=a-b/c-d"
    monkeypatch.setattr("hfexp.experiment.result.is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    assert _wrapped(items).splitlines() == [
        "  model vit_digits, transform jitter,", "    name='two words', path=a-b/c-d",
    ]  # fmt: skip
