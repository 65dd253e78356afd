"""Datasets from the source code that every Python has: questions about lines, summaries and endings."""

import pytest

from hfexp.data import sources
from hfexp.data.sources import _questions, _summary, python_endings, python_preferences

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


def test_a_summary_says_what_a_line_does_with_its_names_and_how_many() -> None:
    assert _summary(LINE, TAGS) == "calls two methods, names an argument, calls a function"
    defined = ("def", "get", "(", "self", ",", "key", "=", "f", "(", ")", ")", ":")
    roles = ("O", "B-function", "O", "B-parameter", "O", "B-parameter", "O", "B-call", *["O"] * 4)
    assert _summary(defined, roles) == "defines a function, takes two parameters, calls a function"
    assert _summary(("class", "A", ".", "b"), ("O", "B-class", "O", "B-attribute")) == (
        "defines a class, reads an attribute"
    )
    modules = ("O", "B-module", "O", "B-module", "I-module", "I-module")
    assert _summary(("import", "a", ",", "b", ".", "c"), modules) == "imports two modules"
    assert _summary(("lambda", *"abcdefgh"), ("O", *["B-parameter"] * 8)) == "takes many parameters"
    assert sources._counted(sources.DONE["class"], 2) == "defines two classes"


def test_the_own_ending_of_a_line_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [((f"a{n}", f"b{n}", f"c{n}", f"d{n}", f"e{n}"), ("O",) * 5) for n in range(40)]
    monkeypatch.setattr(sources, "lines_by_split", lambda: {"train": lines, "validation": lines[:9], "test": lines})
    made = python_preferences(most=32)
    assert {split: len(rows) for split, rows in made.items()} == {"train": 32, "validation": 4, "test": 8}
    whole = [" ".join(words) for words, _ in lines]
    for row in made["train"]:
        assert row["prompt"] + row["chosen"] in whole
        assert row["prompt"] + row["rejected"] not in whole
        assert row["rejected"][0] == " "
