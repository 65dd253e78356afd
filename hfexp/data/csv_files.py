"""CSV files as tables of text: every cell stays as written, and every line must be a row."""

import codecs
import csv
import gzip
import itertools
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc

from hfexp.core.errors import ConfigError
from hfexp.tasks.cells import is_number

GZIP_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)
"""Errors that reading a truncated or damaged gzip file raises."""
ROWS_AT_ONCE = 2000
MAX_LINE = 2**24
"""Characters that a line or a cell may have; reading one takes several times as many bytes."""
CELL = pa.large_string()
MISSING = pa.scalar(None, CELL)


@dataclass(frozen=True)
class Dialect:
    """The format of CSV files: options of `dataset.source`."""

    sep: str = ","
    quotechar: str | None = '"'
    """None: quotes are ordinary characters."""
    escapechar: str | None = None
    encoding: str | None = None
    """None: UTF-8, or UTF-16 if the file begins with its byte order mark."""
    column_names: tuple[str, ...] | None = None
    """Names of the columns in files without a header."""
    skiprows: int = 0
    """Lines to skip before the header."""
    decimal: str = "."
    """Decimal mark of the file; a point replaces it in cells that hold a number and nothing else."""
    multiline: bool = False
    """Accept a quoted cell of several lines even if each of these lines looks like a row."""

    def reader(self, lines: Iterator[str]) -> Any:
        """Return a reader of records from lines.

        Raises:
            ConfigError: `sep`, `quotechar` or `escapechar` is not one character.
        """
        csv.field_size_limit(MAX_LINE)
        quoting = csv.QUOTE_MINIMAL if self.quotechar else csv.QUOTE_NONE
        try:
            return csv.reader(
                lines, delimiter=self.sep, quotechar=self.quotechar or None,
                escapechar=self.escapechar, quoting=quoting, strict=True,
            )  # fmt: skip
        except (TypeError, ValueError) as error:
            raise ConfigError(f"dataset.source (sep, quotechar, escapechar): {error}") from error


class CsvFile:
    """One CSV file; its error messages name the line."""

    def __init__(self, path: str, dialect: Dialect) -> None:
        self.path, self.dialect = path, dialect
        self.name = shown(path)
        self.columns = self._columns()

    def tables(self, columns: list[str]) -> Iterator[pa.Table]:
        """Yield all rows, some at a time; empty cells become missing values.

        Args:
            columns: names of the columns to return, in this order.

        Raises:
            ConfigError: a row does not have as many cells as the header, or quotes swallow lines.
        """
        num_lines = num_records = 0
        try:
            with self._open() as reader:
                self._pass_header(reader)
                start = reader.line_num
                while rows := list(itertools.islice(reader, ROWS_AT_ONCE)):
                    num_records += len(rows)
                    num_lines = reader.line_num - start
                    rows = [row for row in rows if row] if [] in rows else rows
                    if set(map(len, rows)) - {len(self.columns)}:
                        self.check()
                    if rows:
                        yield self._table(rows).select(columns)
        except (csv.Error, UnicodeError):
            self.check()
            raise
        if num_lines != num_records:  # a quoted cell has several lines
            self.check()

    def _table(self, rows: list[list[str]]) -> pa.Table:
        arrays = []
        for cells in zip(*rows, strict=True):
            cells = cells if self.dialect.decimal == "." else list(map(self._with_point, cells))
            array = pa.array(cells, CELL)
            arrays.append(pc.if_else(pc.equal(array, ""), MISSING, array) if "" in cells else array)  # pyright: ignore
        return pa.table(arrays, names=self.columns)

    def rows(self) -> Iterator[dict[str, str | None]]:
        """Yield rows one by one, for streams."""
        for line, cells, _ in self._records():
            self._require_width(line, cells)
            yield {name: self._with_point(cell) or None for name, cell in zip(self.columns, cells, strict=True)}

    def _with_point(self, cell: str) -> str:
        point = cell.replace(self.dialect.decimal, ".")
        return point if is_number(point) else cell

    def lines(self) -> Iterator[int]:
        """Yield the number, from 1, of the line in which each row begins."""
        return (line for line, _, _ in self._records())

    def check(self) -> None:
        """Raise ConfigError for the first line that is not a row, or for quotes that swallow lines."""
        swallowed = []
        for line, cells, raw in self._records():
            self._require_width(line, cells)
            apart = [text.rstrip("\r\n").split(self.dialect.sep) for text in raw]
            if len(raw) > 1 and all(len(part) == len(self.columns) for part in apart):
                swallowed.append((line, apart))
        if swallowed and not self.dialect.multiline:
            self._require_one_cell(swallowed)

    def _require_width(self, line: int, cells: list[str]) -> None:
        count, width = len(cells), len(self.columns)
        if count == width:
            return
        sep = self.dialect.sep
        reason = f"put a cell that contains {sep!r} in quotes" if count > width else "cells are missing"
        other = next((mark for mark in ";\t|" if width == 1 and mark in self.columns[0]), None)
        if other:
            reason = f"if {other!r} separates the columns, set dataset.source.sep={other!r}"
        cells_text = "1 cell" if count == 1 else f"{count} cells"
        raise ConfigError(
            f"dataset.source.data_files: line {line} of {self.name} has {cells_text}, the header has {width} "
            f"({', '.join(self.columns)[:200]}): {reason}"
        )

    def _require_one_cell(self, swallowed: list[tuple[int, list[list[str]]]]) -> None:
        """Refuse a cell of several lines if each of them looks like the rows of the file.

        Each line then has as many cells as there are columns, and in some column the cells of all these lines are what
        other rows have there: the same text, or a number if all rows have numbers.
        """
        width = len(self.columns)
        wanted = [{part[place] for _, apart in swallowed for part in apart} for place in range(width)]
        common: list[set[str]] = [set() for _ in range(width)]
        numeric = [True] * width
        for _, cells, raw in self._records():
            for place, cell in enumerate(cells if len(raw) == 1 else []):
                numeric[place] = numeric[place] and is_number(cell)
                if cell in wanted[place]:
                    common[place].add(cell)
        for place in range(width):
            if numeric[place]:
                common[place] |= {cell for cell in wanted[place] if is_number(cell)}
        for line, apart in swallowed:
            if any(all(part[place] in common[place] for part in apart) for place in range(width)):
                raise ConfigError(
                    f"dataset.source.data_files: the quote that opens in line {line} of {self.name} starts a cell of "
                    f"{len(apart)} lines, each of which looks like a row. Double or remove the quote; or set "
                    "dataset.source.quotechar=null to read quotes as ordinary characters, or "
                    "dataset.source.multiline=true to keep the lines as one cell"
                )

    def _columns(self) -> list[str]:
        first = next(self._records(with_header=True), None)
        if first is None:
            raise ConfigError(f"dataset.source.data_files: {self.name} is empty")
        line, cells, _ = first
        if "\0" in "".join(cells):
            raise ConfigError(
                f"dataset.source.data_files: line {line} of {self.name} contains NUL bytes; if the file is UTF-16, "
                "set dataset.source.encoding=utf-16-le"
            )
        names = [cell or f"Unnamed: {place}" for place, cell in enumerate(self.dialect.column_names or cells)]
        duplicate = next((name for name in names if names.count(name) > 1), None)
        if duplicate:
            raise ConfigError(f"dataset.source.data_files: {self.name} has two columns named {duplicate!r}")
        return names

    def _pass_header(self, reader: Any) -> None:
        while not self.dialect.column_names and not next(reader):
            pass

    def _records(self, with_header: bool = False) -> Iterator[tuple[int, list[str], list[str]]]:
        """Yield the first line number, the cells and the raw lines of each record; skip blank lines."""
        header = not (with_header or self.dialect.column_names)
        raw: list[str] = []
        with self._open(raw) as reader:
            while True:
                raw.clear()
                line = reader.line_num + 1 + self.dialect.skiprows
                try:
                    cells = next(reader, None)
                except csv.Error as error:
                    raise ConfigError(self._unreadable(line, str(error))) from error
                except UnicodeError as error:
                    raise ConfigError(self._undecodable(error)) from error
                if cells is None:
                    return
                if cells and not header:
                    yield line, cells, list(raw)
                header = header and not cells

    def _unreadable(self, line: int, reason: str) -> str:
        if "field limit" in reason:
            return self._too_long(line)
        return (
            f"dataset.source.data_files: unbalanced quotes in the row that begins in line {line} of {self.name} "
            f"({reason}). Double each quote inside a quoted cell, or set dataset.source.quotechar=null to read quotes "
            "as ordinary characters"
        )

    def _too_long(self, line: int) -> str:
        return (
            f"dataset.source.data_files: the row that begins in line {line} of {self.name} has a line or cell of more "
            f"than {MAX_LINE:,} characters; is it a text file with one row per line?"
        )

    def _undecodable(self, error: UnicodeError) -> str:
        """Return a message that names the line which is not in the encoding."""
        encoding, place = self._encoding().removesuffix("-sig"), ""
        with _open_bytes(self.path) as file:
            for line, text in enumerate(file, 1):
                try:
                    text.decode(encoding)
                except UnicodeError as line_error:
                    place, error = f"line {line} of ", line_error
                    break
        return (
            f"dataset.source.data_files: {place}{self.name} can't be read as {encoding}: {error}. "
            "For files of older Windows programs, set dataset.source.encoding=cp1252"
        )

    def _encoding(self) -> str:
        if self.dialect.encoding:
            try:
                return codecs.lookup(self.dialect.encoding).name
            except LookupError as error:
                raise ConfigError(f"dataset.source.encoding={self.dialect.encoding}: {error}") from error
        with _open_bytes(self.path) as file:
            return "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"

    def _lines_of(self, file: IO[str]) -> Iterator[str]:
        """Yield line by line, and refuse a line that would fill the memory."""
        for number in itertools.count(1):
            line = file.readline(MAX_LINE)
            if not line:
                return
            if len(line) == MAX_LINE and line[-1] not in "\r\n":
                raise ConfigError(self._too_long(number))
            yield line

    @contextmanager
    def _open(self, raw: list[str] | None = None) -> Iterator[Any]:
        """Open a reader of records, which appends the lines that it reads to `raw`."""
        opened = gzip.open if _is_gzip(self.path) else open
        try:
            with opened(self.path, "rt", encoding=self._encoding(), newline="") as file:
                lines = itertools.islice(self._lines_of(file), self.dialect.skiprows, None)
                yield self.dialect.reader(lines if raw is None else _kept(lines, raw))
        except GZIP_ERRORS as error:
            raise ConfigError(f"dataset.source.data_files: {self.name} can't be unpacked: {error}") from error


def _kept(lines: Iterator[str], kept: list[str]) -> Iterator[str]:
    for line in lines:
        kept.append(line)
        yield line


def _is_gzip(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _open_bytes(path: str) -> IO[bytes]:
    return gzip.open(path, "rb") if _is_gzip(path) else open(path, "rb")  # pyright: ignore


def shown(path: str) -> str:
    """Return a path relative to the working directory if the file is below it, else unchanged."""
    below = os.path.relpath(path)
    return path if below.startswith("..") else below
