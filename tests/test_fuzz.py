"""A short round of `make fuzz`."""

import fuzz
import pytest

COUNTS = {"tables": 4, "overrides, composed": 2}
"""The slow ones; of others there are more."""


@pytest.mark.parametrize("name", fuzz.READERS)
def test_damaged_inputs_are_read_or_refused(name: str) -> None:
    outcome = fuzz.try_reader(name, COUNTS.get(name, 25), seed=7)
    assert not outcome.wrong
    assert outcome.slowest < fuzz.MAX_SECONDS
