"""CoNLL files as datasets: a row for each sentence, with its words and their tags."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, List, Value

from hfexp.core.errors import ConfigError
from hfexp.data.conll_sentences import Lines, sentences
from hfexp.data.csv_files import shown
from hfexp.data.tables import require_text, with_origin


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


def read_conll(files: Mapping[str, list[Path]], columns: Columns) -> DatasetDict:
    """Read the files of each split.

    Raises:
        ConfigError: a line has other columns than the first one, or no word or tag; or a split has no sentences.
    """
    splits = {}
    for split, paths in files.items():
        names = [str(path.absolute()) for path in paths]
        rows = [pair for name in names for pair in _sentences_of(name, columns)]
        if not rows:
            raise ConfigError(f"dataset.source.data_files: {shown(names[0])} has no sentences ({split} split)")
        features = Features({"words": List(Value("string")), "tags": List(Value("string"))})
        table = {"words": [words for words, _ in rows], "tags": [tags for _, tags in rows]}
        splits[split] = with_origin(Dataset.from_dict(table, features=features), "conll", names, None)
    return DatasetDict(splits)


def _sentences_of(file: str, columns: Columns) -> list[tuple[list[str], list[str]]]:
    require_text(file)
    rows, first = [], None
    for _, lines in sentences(file, columns.comment):
        first = first or (lines[0][0], len(columns.split(lines[0][1])))
        rows.append(_words_and_tags(file, lines, columns, first))
    return rows


def _words_and_tags(file: str, lines: Lines, columns: Columns, first: tuple[int, int]) -> tuple[list[str], list[str]]:
    words, tags = [], []
    for number, text in lines:
        parts = columns.split(text)
        place = f"dataset.source.data_files: line {number} of {shown(file)}"
        if len(parts) != first[1]:
            sep = " set dataset.source.sep if columns are not separated by white space" if columns.sep is None else ""
            raise ConfigError(
                f"{place} has {len(parts)} columns, but line {first[0]} has {first[1]}: {text!r:.80}. Correct it, or"
                f"{sep or ' check dataset.source.sep'}"
            )
        for key, column in (("word_column", columns.word), ("tag_column", columns.tag)):
            if not -len(parts) <= column < len(parts):
                raise ConfigError(f"{place} has {len(parts)} columns: dataset.source.{key}={column} is none of them")
        if columns.word % len(parts) == columns.tag % len(parts):
            raise ConfigError(f"{place}: dataset.source.word_column and tag_column name the same column: {text!r:.80}")
        words.append(parts[columns.word])
        tags.append(parts[columns.tag])
    return words, tags
