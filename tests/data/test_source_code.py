"""Datasets from the source code that every Python has: questions about lines."""

from hfexp.data.sources import _questions

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
