"""SQuAD files: JSON of articles, their paragraphs, and questions about each with the places of the answers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from hfexp.core.errors import ConfigError
from hfexp.data.csv_files import shown

FEATURES = Features(
    {
        "id": Value("string"), "title": Value("string"), "question": Value("string"), "context": Value("string"),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int64"))},
    }
)  # fmt: skip
"""Columns of SQuAD on the Hub."""


def questions(file: str) -> Iterator[dict[str, Any]]:
    """Yield the questions of a file as rows with the columns of `FEATURES`; an impossible one has no answers.

    Raises:
        ConfigError: the file is not JSON, or not of this form; the message names the place in it.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"dataset.source.data_files: {shown(file)} is not JSON: {error}") from error
    for place, article in _items(content, "data", "", file):
        title = str(article.get("title", ""))
        for below, paragraph in _items(article, "paragraphs", place, file):
            context = _value(paragraph, "context", str, below, file)
            for where, item in _items(paragraph, "qas", below, file):
                given = [] if item.get("is_impossible") else _items(item, "answers", where, file)
                answers = {
                    "text": [_value(answer, "text", str, at, file) for at, answer in given],
                    "answer_start": [_value(answer, "answer_start", int, at, file) for at, answer in given],
                }
                question = _value(item, "question", str, where, file)
                yield {
                    "id": str(item.get("id", "")), "title": title, "question": question, "context": context,
                    "answers": answers,
                }  # fmt: skip


def _items(node: Any, name: str, place: str, file: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the objects of a list in a file, each with its place, e.g. `data[0].paragraphs[2]`."""
    items = _value(node, name, list, place, file)
    places = [f"{place}{'.' * bool(place)}{name}[{number}]" for number in range(len(items))]
    for at, item in zip(places, items, strict=True):
        if not isinstance(item, dict):
            raise ConfigError(f"dataset.source.data_files: {shown(file)}: {at} is {item!r:.80}, not an object")
    return list(zip(places, items, strict=True))


def _value(node: Any, name: str, kind: type, place: str, file: str) -> Any:
    value = node.get(name) if isinstance(node, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        what = {str: "a text", int: "a whole number", list: "a list"}[kind]
        raise ConfigError(
            f"dataset.source.data_files: {shown(file)}: {place or 'the file'} has no {name!r} that is {what}; "
            "expected SQuAD's form: data, paragraphs, qas"
        )
    return value


def read_questions(files: list[str]) -> Dataset:
    """Read SQuAD files as one dataset, a row for each question.

    Raises:
        ConfigError: a file is not as `questions` expects it, or there are no questions.
    """
    rows = [row for file in files for row in questions(file)]
    if not rows:
        raise ConfigError(f"dataset.source.data_files: {shown(files[0])} has no questions")
    return Dataset.from_dict({name: [row[name] for row in rows] for name in FEATURES}, features=FEATURES)
