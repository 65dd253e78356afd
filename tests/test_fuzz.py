"""A short round of `make fuzz`."""

import fuzz
import pytest

COUNTS = {"tables": 4, "overrides, composed": 2}
"""Of the slow readers; 25 of the others."""


@pytest.mark.parametrize("name", list(fuzz.READERS))
def test_damaged_inputs_are_read_or_refused(name: str) -> None:
    outcome = fuzz.try_reader(name, COUNTS.get(name, 25), seed=7)
    assert not outcome.wrong
    assert outcome.slowest < fuzz.MAX_SECONDS
