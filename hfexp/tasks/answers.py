"""Answers to questions: their places in a context, and their comparison as by SQuAD."""

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hfexp.core.errors import DataError

FIELDS = ("text", "answer_start")
"""Fields of the answers to a question, as SQuAD on the Hub has them."""
ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalized(text: str) -> str:
    """Return an answer in lower case, without punctuation, articles, and spaces but one between words.

    Source: `normalize_answer` of SQuAD's evaluate-v2.0.py (P. Rajpurkar et al., "Know What You Don't Know:
    Unanswerable Questions for SQuAD", ACL 2018), https://rajpurkar.github.io/SQuAD-explorer/
    """
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(ARTICLES.sub(" ", plain).split())


def f1_of(answer: str, truth: str) -> float:
    """Return the F1 of the words that two answers share; if one has no words, 1 if the other has none either."""
    words, true = normalized(answer).split(), normalized(truth).split()
    if not words or not true:
        return float(words == true)
    common = sum((Counter(words) & Counter(true)).values())
    return 2 * common / (len(words) + len(true))


def score(answer: str, truths: Sequence[str]) -> tuple[float, float]:
    """Return exact match (0 or 1) and F1 of an answer, each the best over the truths; no truth is an empty one."""
    known = [truth for truth in truths if normalized(truth)] or [""]
    exact = max(float(normalized(answer) == normalized(truth)) for truth in known)
    return exact, max(f1_of(answer, truth) for truth in known)


def texts_of(answers: Any) -> list[str]:
    """Return the texts of a question's answers: a mapping with `text` and `answer_start`, each a list or one value.

    Raises:
        DataError: they are something else.
    """
    return [text for text, _ in _pairs(answers)]


def places_of(answers: Any, context: str) -> list[tuple[int, int]]:
    """Return the first character of each answer, and the one behind its last.

    Raises:
        DataError: an answer is not in its place, or is no text with a place.
    """
    places = []
    for text, start in _pairs(answers):
        if context[start : start + len(text)] != text:
            raise DataError(
                f"column 'answers': at character {start} the context has {context[start : start + len(text)]!r:.80}, "
                f"not the answer {text!r:.80}"
            )
        places.append((start, start + len(text)))
    return places


def _pairs(answers: Any) -> list[tuple[str, int]]:
    """Return the texts of answers and their first characters; empty texts are no answers."""
    if not isinstance(answers, Mapping) or not set(FIELDS) <= answers.keys():
        raise DataError(f"column 'answers' holds {answers!r:.80}, expected a mapping with 'text' and 'answer_start'")
    texts, starts = (value if isinstance(value, list) else [value] for value in map(answers.get, FIELDS))
    if len(texts) != len(starts):
        raise DataError(f"column 'answers' holds {len(texts)} texts and {len(starts)} places (answer_start)")
    pairs: list[tuple[Any, Any]] = [(text, start) for text, start in zip(texts, starts, strict=True) if text]
    for text, start in pairs:
        if not isinstance(text, str) or not re.fullmatch(r"\d{1,9}", str(start)):
            raise DataError(f"column 'answers' holds {text!r:.80} at {start!r:.20}, expected a text and its character")
    return [(text, int(start)) for text, start in pairs]


def require_one(answers: Any, context: str) -> None:
    """Raise DataError if a question has different answers, of which a model could learn only one."""
    places = set(places_of(answers, context))
    if len(places) > 1:
        shown = " and ".join(repr(text) for text in texts_of(answers)[:2])
        raise DataError(f"column 'answers' holds {len(places)} different answers, {shown:.80}: keep one to learn")


def count_right(answers: np.ndarray, truths: np.ndarray) -> tuple[int, int, int]:
    """Count right answers, which match a true one after normalisation, given ones, and questions that have one."""
    right = sum(bool(answer) and score(answer, true)[0] == 1 for answer, true in zip(answers, truths, strict=True))
    return right, sum(map(bool, answers)), sum(map(bool, truths))


def objects(values: Iterable[Any]) -> np.ndarray:
    """Return an array (N,) of objects, also of lists of one length."""
    values = list(values)
    array = np.empty(len(values), object)
    array[:] = values
    return array
