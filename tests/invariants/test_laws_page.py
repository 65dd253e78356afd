"""The page of the laws has every task and every law."""

import test_laws
from laws import ENTRIES, LAWS
from laws_page import listed

from hfexp.core.compose import conf_dir

LACKING = {
    "summarization", "translation", "multiple_choice", "question_answering", "embedding", "embedding_similarity",
    "reward", "preference",
}  # fmt: skip
"""Tasks whose rows the page does not have yet; the next `make laws` writes them, and then this fails."""


def test_the_page_lists_the_tasks_and_the_laws_of_the_code() -> None:
    assert set(ENTRIES) == {path.stem for path in (conf_dir() / "task").glob("*.yaml")}
    assert listed() == ([task for task in ENTRIES if task not in LACKING], LAWS)
    assert [test.law for test in vars(test_laws).values() if hasattr(test, "law")] == list(LAWS)
