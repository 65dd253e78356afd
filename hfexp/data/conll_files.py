"""CoNLL files: lines of columns with a word and its tag, and an empty line behind each sentence."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, Features, List, Value

from hfexp.core.errors import ConfigError
from hfexp.data.arrow_columns import ROWS_AT_ONCE
from hfexp.data.csv_files import shown

DOCUMENT = "-DOCSTART-"
"""First column of a line that begins a document (CoNLL-2003)."""
FEATURES = Features({"words": List(Value("string")), "tags": List(Value("string"))})
Lines = list[tuple[int, str]]
"""Lines of a sentence with their numbers in the file, from 1."""


def sentences(file: str, comment: str | None = None) -> Iterator[tuple[int, Lines]]:
    """Yield the sentences of a file, each with the number of its first line.

    Args:
        comment: beginning of lines to skip; None: none.

    Raises:
        ConfigError: the file is not UTF-8.
    """
    found: Lines = []
    try:
        with Path(file).open(encoding="utf-8-sig", newline=None) as lines:
            for number, line in enumerate(lines, 1):
                text = line.rstrip("\n")
                if text.strip() and not text.startswith(DOCUMENT):
                    found += [] if comment and text.startswith(comment) else [(number, text)]
                elif found:
                    yield found[0][0], found
                    found = []
    except UnicodeDecodeError as error:
        raise ConfigError(f"dataset.source.data_files: {shown(file)} is not UTF-8: {error}") from error
    if found:
        yield found[0][0], found


@dataclass(frozen=True)
class Columns:
    """Where words and tags stand in a line."""

    word: int
    tag: int
    sep: str | None = None
    """Separator of the columns; None: any white space."""
    comment: str | None = None
    """Beginning of lines to skip; None: none."""

    def split(self, text: str) -> list[str]:
        """Return the columns of a line."""
        return [part.strip() for part in text.split(self.sep)] if self.sep else text.split()


def read_sentences(files: Sequence[str], columns: Columns) -> Dataset:
    """Read files into rows of `words` and `tags`, one for each sentence.

    Raises:
        ConfigError: a line has other columns than the first one, or no word or tag; or there are no sentences.
    """
    rows = (pair for file in files for pair in _sentences_of(file, columns))
    tables, schema = [], FEATURES.arrow_schema
    while some := list(itertools.islice(rows, ROWS_AT_ONCE)):
        words, tags = zip(*some, strict=True)
        tables.append(pa.table({"words": words, "tags": tags}, schema=schema))
    if not tables:
        raise ConfigError(f"dataset.source.data_files: {shown(files[0])} has no sentences")
    return Dataset(pa.concat_tables(tables))


def _sentences_of(file: str, columns: Columns) -> Iterator[tuple[list[str], list[str]]]:
    first = None
    for _, lines in sentences(file, columns.comment):
        first = first or (lines[0][0], len(columns.split(lines[0][1])))
        yield _words_and_tags(file, lines, columns, first)


def _words_and_tags(file: str, lines: Lines, columns: Columns, first: tuple[int, int]) -> tuple[list[str], list[str]]:
    words, tags = [], []
    for number, text in lines:
        parts = columns.split(text)
        place = f"dataset.source.data_files: line {number} of {shown(file)}"
        if len(parts) != first[1]:
            raise ConfigError(
                f"{place} has {len(parts)} columns, but line {first[0]} has {first[1]}: {text!r:.80}. Correct it, or "
                "set dataset.source.sep to what separates the columns"
            )
        for key, column in (("word_column", columns.word), ("tag_column", columns.tag)):
            if not -len(parts) <= column < len(parts):
                raise ConfigError(f"{place} has {len(parts)} columns: dataset.source.{key}={column} is none of them")
        if columns.word % len(parts) == columns.tag % len(parts):
            raise ConfigError(f"{place}: dataset.source.word_column and tag_column name the same column: {text!r:.80}")
        word, tag = parts[columns.word], parts[columns.tag]
        if not (word and tag):
            raise ConfigError(f"{place} has an empty {'tag' if word else 'word'}: {text!r:.80}")
        words.append(word)
        tags.append(tag)
    return words, tags
