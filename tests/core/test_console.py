"""What is shown to people: times in the units that they use."""

import pytest

from hfexp.core import console


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(9.54, "9.5 s"), (59.9, "59.9 s"), (108, "1 min 48 s"), (599.7, "10 min"), (3599, "59 min"), (7500, "2 h 5 min")],
)
def test_times_are_shown_in_units_that_people_use(seconds: float, shown: str) -> None:
    assert console.duration(seconds) == shown
