"""Output of predictions: a table on the console, a file, or rows for a DataFrame."""

import contextlib
import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hfexp.core.errors import ConfigError, one_of
from hfexp.core.files import WholeFile
from hfexp.tasks.cells import csv_cell

PROBABILITIES = "probabilities"
ANSWERS_PER_WRITE = 1000
"""Number of answers that are written to a file together."""
LONGEST_CELL = 300
TRUE = "true"
"""Column of the labels that the rows of a split have; the report's tables of predictions name it so too."""
ROW_COLUMNS = ("split", "index", TRUE)
"""Columns that hfexp itself puts beside the rows of a split."""
SEPARATOR = ", "
"""Separator of the items of a list in one cell."""


@dataclass
class Answer:
    """The model's answer to one input."""

    name: str
    """Name of the input, as shown to the user."""
    values: dict[str, Any]
    """Values as returned by `Task.answer`."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Columns of the table that the input came from."""


def ranked(values: Mapping[str, Any], id2label: Mapping[int, str], count: int | None) -> list[tuple[str, float]]:
    """Return the `count` most probable classes with their probabilities; count None: all classes."""
    scores = values[PROBABILITIES]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[:count]
    return [(id2label.get(index, str(index)), scores[index]) for index in order]


def columns_of(answer: Answer, id2label: Mapping[int, str], count: int | None = 1) -> dict[str, Any]:
    """Return an answer as columns: `input`, its table's, its values, `label_2`, `score_2`, ..., and probabilities."""
    cells = {name: value for name, value in answer.values.items() if name != PROBABILITIES}
    if PROBABILITIES in answer.values:
        for place, (label, score) in enumerate(ranked(answer.values, id2label, count)[1:], 2):
            cells |= {f"label_{place}": label, f"score_{place}": score}
        scores = answer.values[PROBABILITIES]
        cells |= {f"probability_{id2label.get(index, str(index))}": score for index, score in enumerate(scores)}
    return {name: _plain(value) for name, value in beside(answer, cells).items()}


def beside(answer: Answer, cells: Mapping[str, Any]) -> dict[str, Any]:
    """Put the name of the input and the columns of its table before what the model has answered.

    A column of the table that has a name of the answer becomes `input.NAME`.
    """
    taken = {"input", *cells}
    columns = {f"input.{name}" if name in taken else name: value for name, value in answer.columns.items()}
    return {"input": answer.name, **columns, **cells}


def record_of(answer: Answer, id2label: Mapping[int, str], count: int | None = 1) -> dict[str, Any]:
    """Return an answer as a JSON object, with `probabilities` keyed by class name."""
    values = dict(answer.values)
    if PROBABILITIES in values:
        names = [id2label.get(index, str(index)) for index in range(len(values[PROBABILITIES]))]
        top = [{"label": label, "score": score} for label, score in ranked(values, id2label, count)]
        values |= {PROBABILITIES: dict(zip(names, values[PROBABILITIES], strict=True))}
        values |= {"top": top} if len(top) > 1 else {}
    return beside(answer, values)


class AnswerFile:
    """A file of answers that appears whole or not at all: written to a temporary file, which is moved when closed."""

    def __init__(
        self,
        path: Path,
        id2label: Mapping[int, str],
        count: int | None,
        keep: Sequence[str] | None = None,
        types: Mapping[str, Any] | None = None,
    ) -> None:
        """Open the temporary file; raise ConfigError if nothing can be written there.

        Args:
            count: number of most probable classes to write; None: all.
            keep: columns of the inputs' tables to write; None: all.
            types: Arrow types of those columns, for a Parquet file.
        """
        self.types = dict(types or {})
        self.path, self.id2label, self.count, self.keep = path, id2label, count, keep
        self._waiting: list[Answer] = []
        self._parquet: Any = None
        self._begun = False
        self._answered: set[str] = set()
        """Columns that hold the answer."""
        try:
            self._file = WholeFile(path)
        except OSError as error:
            raise ConfigError(f"output={path} can't be written: {error.strerror}") from error

    def add(self, answer: Answer) -> None:
        """Add an answer; every `ANSWERS_PER_WRITE` answers are written together."""
        if self.keep is not None:
            answer = replace(answer, columns={k: v for k, v in answer.columns.items() if k in self.keep})
        if not self._answered:
            self._answered = set(columns_of(replace(answer, columns={}), self.id2label, self.count))
        self._waiting.append(answer)
        if len(self._waiting) >= ANSWERS_PER_WRITE:
            self._write()

    def close(self, keep: bool) -> None:
        """Write the remaining answers and move the file into place, or discard it if `keep` is false."""
        if keep:
            self._write()
        if self._parquet is not None:
            self._parquet.close()
        self._file.close(keep)

    def _write(self) -> None:
        answers, self._waiting = self._waiting, []
        if not answers:
            return
        if self.path.suffix == ".jsonl":
            lines = [
                json.dumps(record_of(answer, self.id2label, self.count), ensure_ascii=False, default=str)
                for answer in answers
            ]
            with self._file.temporary.open("a", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
        else:
            self._write_table([columns_of(answer, self.id2label, self.count) for answer in answers])
        self._begun = True

    def _write_table(self, rows: list[dict[str, Any]]) -> None:
        if self.path.suffix == ".csv":
            with self._file.temporary.open("a", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                if not self._begun:
                    writer.writerow(map(csv_cell, rows[0]))
                # pandas would write whole numbers of a column with a missing value as fractions.
                writer.writerows(
                    [csv_cell(None if value != value else _as_text(value)) for value in row.values()] for row in rows
                )
            return
        import pyarrow
        import pyarrow.parquet

        if self._parquet is None:
            inferred = pyarrow.Table.from_pylist([{k: v for k, v in row.items() if not self._type(k)} for row in rows])
            names = {name: self._type(name) or inferred.schema.field(name).type for name in rows[0]}
            schema = pyarrow.schema(list(names.items()))
            self._parquet = pyarrow.parquet.ParquetWriter(self._file.temporary, schema)
        schema = self._parquet.schema
        texts = {field.name for field in schema if field.type == pyarrow.string()}
        plain = [{k: str(v) if k in texts and v is not None else v for k, v in row.items()} for row in rows]
        self._parquet.write_table(pyarrow.Table.from_pylist(plain, schema))

    def _type(self, name: str) -> Any:
        """Return the Arrow type of a column of the inputs' tables; None for a column of the answer."""
        taken = name not in self.types and name.startswith("input.")
        return self.types.get(name.removeprefix("input.") if taken else name) if name not in self._answered else None


@contextlib.contextmanager
def answer_files(
    paths: Mapping[Path, Sequence[str] | None],
    id2label: Mapping[int, str],
    count: int | None,
    types: Mapping[str, Any] | None = None,
) -> Iterator[list[AnswerFile]]:
    """Open answer files that are moved into place when the block ends, and discarded if it fails.

    Args:
        paths: for each file the columns of the inputs' tables to write; None: all.
        types: Arrow types of the columns of the inputs' tables.
    """
    files: list[AnswerFile] = []
    done = False
    try:
        for path, keep in paths.items():
            files.append(AnswerFile(path, id2label, count, keep, types))
        yield files
        done = True
    finally:
        for file in files:
            file.close(done)


@dataclass
class Screen:
    """Console output: the first answers as a table, or a single generated text as it is."""

    id2label: Mapping[int, str]
    count: int | None
    most: int
    kept: list[Answer] = field(default_factory=list)
    total: int = 0

    def add(self, answer: Answer) -> None:
        """Count an answer, and keep it if it is among the first `most`."""
        self.total += 1
        if len(self.kept) < self.most:
            self.kept.append(answer)

    def show(self) -> None:
        """Print the kept answers."""
        from hfexp.core.console import say

        if self.total == 1 and list(self.kept[0].values) == ["text"]:
            say(self.kept[0].values["text"])
        elif self.kept:
            _print_table([self._row(answer) for answer in self.kept])
            if self.total > len(self.kept):
                say(f"({len(self.kept)} of {self.total} shown; show=N prints more, output=FILE.csv writes all)")

    def _row(self, answer: Answer) -> dict[str, str]:
        shown = {"input": answer.name} | ({TRUE: _cell(answer.columns[TRUE])} if TRUE in answer.columns else {})
        values = {name: _cell(value) for name, value in answer.values.items() if name != PROBABILITIES}
        if "label" not in values and (PROBABILITIES not in answer.values or self.count == 1):
            return {**shown, **values}
        best = [f"{label}  {score:.4f}" for label, score in ranked(answer.values, self.id2label, self.count)]
        names = ["label  score", *(f"{place}." for place in range(2, len(best) + 1))]
        return {**shown, **dict(zip(names, best, strict=True))}


@dataclass
class RowCollector:
    """Collects all answers as rows for a DataFrame."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, answer: Answer) -> None:
        """Add an answer as a row."""
        self.rows.append(beside(answer, answer.values))

    def show(self) -> None:
        """Print nothing; the caller returns the rows."""


def _cell(value: Any) -> str:
    if _are_structures(value):
        return "; ".join(" ".join(map(_cell, item.values())) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(_plain(value))


def _are_structures(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _plain(value: Any) -> Any:
    """Join a list into one cell, and write a mapping or a list of them as JSON; return other values as they are.

    A vector (a list of floats) stays a list, which a Parquet file can hold.
    """
    if isinstance(value, dict) or _are_structures(value):
        return json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, list) and value and all(isinstance(item, float) for item in value):
        return value
    return SEPARATOR.join(map(str, value)) if isinstance(value, list) else value


def _as_text(value: Any) -> Any:
    """Write a vector as JSON; return other values as they are."""
    return json.dumps(value) if isinstance(value, list) else value


def _print_table(rows: Sequence[Mapping[str, str]]) -> None:
    from hfexp.core.console import build_table, cell, print_table

    names = list(dict.fromkeys(name for row in rows for name in row))
    table = build_table()
    for name in names:
        table.add_column(cell(name), overflow="fold")
    for row in rows:
        texts = [row.get(name, "") for name in names]
        table.add_row(*(cell(text if len(text) <= LONGEST_CELL else f"{text[:LONGEST_CELL]}...") for text in texts))
    print_table(table)


def check_classes(top_k: int | None, id2label: Mapping[int, str]) -> None:
    """Raise ConfigError if `top_k` asks for more classes than the model has."""
    if top_k is not None and top_k > 1 and top_k > len(id2label):
        raise ConfigError(f"top_k={top_k}: the model has {len(id2label)} classes: {one_of(id2label.values(), 10)}")
