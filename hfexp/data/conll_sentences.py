"""Sentences of CoNLL files: lines of columns, with an empty line behind each sentence."""

from collections.abc import Iterator
from pathlib import Path

from hfexp.core.errors import ConfigError
from hfexp.data.csv_files import shown

DOCUMENT = "-DOCSTART-"
"""First column of a line that begins a document (CoNLL-2003)."""
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
