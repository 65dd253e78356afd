"""The page of the laws has every task and every law."""

import test_laws
from laws import ENTRIES, LAWS
from laws_page import listed

from hfexp.core.compose import conf_dir


def test_the_page_lists_the_tasks_and_the_laws_of_the_code() -> None:
    assert set(ENTRIES) == {path.stem for path in (conf_dir() / "task").glob("*.yaml")}
    assert listed() == (list(ENTRIES), LAWS)
    assert [test.law for test in vars(test_laws).values() if hasattr(test, "law")] == list(LAWS)
