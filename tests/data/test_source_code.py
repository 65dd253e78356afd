"""Datasets from the source code that every Python has: questions about lines, and their endings."""

import pytest

from hfexp.data import sources
from hfexp.data.sources import _questions, python_endings

LINE = ("a", ".", "b", "(", "c", ",", "key", "=", "d", ".", "e", "(", "f", "(", ")", ")", ")")
TAGS = ("O", "O", "B-method", "O", "O", "O", "B-keyword", "O", "O", "O", "B-method", "O", "B-call", *["O"] * 4)


def test_questions_ask_for_the_only_name_or_for_the_first_and_the_last_one() -> None:
    asked = {row["question"]: row for row in _questions(LINE, TAGS) if row["answers"]["text"]}
    assert {question: row["answers"]["text"] for question, row in asked.items()} == {
        "Which method is called first?": ["b"],
        "Which method is called last?": ["e"],
        "Which argument is named?": ["key"],
        "Which function is called?": ["f"],
    }
    for row in asked.values():
        (start,), (text,) = row["answers"]["answer_start"], row["answers"]["text"]
        assert row["context"][start:].startswith(text)


def test_a_question_without_an_answer_asks_for_a_role_that_no_name_has() -> None:
    lines = [((*LINE[:4], str(number), ")"), (*TAGS[:4], "O", "O")) for number in range(200)]
    asked = [row["question"] for line in lines for row in _questions(*line) if not row["answers"]["text"]]
    assert 50 < len(asked) < 150  # every other line has one
    assert not any("method" in question for question in asked)
    assert {question.rstrip("?").split()[-1] for question in asked} >= {"first", "last", "called"}


def test_one_of_several_endings_is_the_lines_own(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [((f"a{n}", f"b{n}", f"c{n}", f"d{n}", f"e{n}"), ("O",) * 5) for n in range(40)]
    monkeypatch.setattr(sources, "lines_by_split", lambda: {"train": lines, "validation": lines[:9], "test": lines})
    made = python_endings(most=32, choices=3)
    assert {split: len(rows) for split, rows in made.items()} == {"train": 32, "validation": 4, "test": 8}
    for row in made["train"]:
        words = [f"{letter}{row['text'][1:].split()[0]}" for letter in "abcde"]
        assert f"{row['text']} {row['choices'][row['label']]}".split() == words
        assert len(set(row["choices"])) == 3
        assert min(len(text.split()) for text in (row["text"], *row["choices"])) == 2
    assert len(set(made["train"]["label"])) == 3
    assert made["train"][:] == python_endings(most=32, choices=3)["train"][:]
