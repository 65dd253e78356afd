"""Answers as a person or a program wants them: in a table on the screen, in a file, with the run in MLflow."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfexp.cells import csv_cell
from hfexp.errors import ConfigError, one_of
from hfexp.whole_files import WholeFile

PROBABILITIES = "probabilities"
AT_ONCE = 1000
"""Answers that are written to a file together."""
LONGEST_CELL = 300
SEPARATOR = ", "
"""Of classes in a cell."""


@dataclass
class Answer:
    """What was said to one input."""

    name: str
    """Of the input, as a person calls it."""
    values: dict[str, Any]
    """As `Task.answer` gives them."""


def ranked(values: Mapping[str, Any], id2label: Mapping[int, str], count: int | None) -> list[tuple[str, float]]:
    """The most probable classes with their probabilities; count None: all of them."""
    scores = values[PROBABILITIES]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[:count]
    return [(id2label.get(index, str(index)), scores[index]) for index in order]


def columns_of(answer: Answer, id2label: Mapping[int, str], count: int | None = 1) -> dict[str, Any]:
    """An answer as cells: `input`, the values, more classes as `label_2`, `score_2`, ..., one column a probability."""
    cells: dict[str, Any] = {"input": answer.name}
    cells |= {name: _plain(value) for name, value in answer.values.items() if name != PROBABILITIES}
    if PROBABILITIES in answer.values:
        for place, (label, score) in enumerate(ranked(answer.values, id2label, count)[1:], 2):
            cells |= {f"label_{place}": label, f"score_{place}": score}
        scores = answer.values[PROBABILITIES]
        cells |= {f"probability_{id2label.get(index, str(index))}": score for index, score in enumerate(scores)}
    return cells


def record_of(answer: Answer, id2label: Mapping[int, str], count: int | None = 1) -> dict[str, Any]:
    """An answer as a line of JSON: `probabilities` by the names of the classes."""
    values = dict(answer.values)
    if PROBABILITIES in values:
        names = [id2label.get(index, str(index)) for index in range(len(values[PROBABILITIES]))]
        top = [{"label": label, "score": score} for label, score in ranked(values, id2label, count)]
        values |= {PROBABILITIES: dict(zip(names, values[PROBABILITIES], strict=True))}
        values |= {"top": top} if len(top) > 1 else {}
    return {"input": answer.name, **values}


class AnswerFile:
    """A file of answers, whole or not there: written beside its place, a thousand at a time, and moved when closed."""

    def __init__(self, path: Path, id2label: Mapping[int, str], count: int | None) -> None:
        """Raises ConfigError if nothing can be written there."""
        self.path, self.id2label, self.count = path, id2label, count
        self._waiting: list[Answer] = []
        self._parquet: Any = None
        self._begun = False
        try:
            self._file = WholeFile(path)
        except OSError as error:
            raise ConfigError(f"output={path} can't be written: {error.strerror}") from error

    def add(self, answer: Answer) -> None:
        """One more."""
        self._waiting.append(answer)
        if len(self._waiting) >= AT_ONCE:
            self._write()

    def close(self, keep: bool) -> None:
        """Write what is left and bring the file to its place, or remove it."""
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
            lines = [json.dumps(record_of(one, self.id2label, self.count), ensure_ascii=False) for one in answers]
            with self._file.temporary.open("a", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
        else:
            self._write_table([columns_of(one, self.id2label, self.count) for one in answers])
        self._begun = True

    def _write_table(self, rows: list[dict[str, Any]]) -> None:
        import pandas

        frame = pandas.DataFrame(rows)
        if self.path.suffix == ".csv":
            safe = frame.rename(columns=csv_cell).map(csv_cell)
            safe.to_csv(self._file.temporary, mode="a", header=not self._begun, index=False)
            return
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.Table.from_pandas(frame, preserve_index=False)
        if self._parquet is None:
            self._parquet = pyarrow.parquet.ParquetWriter(self._file.temporary, table.schema)
        self._parquet.write_table(table)


@contextlib.contextmanager
def answer_files(paths: Sequence[Path], id2label: Mapping[int, str], count: int | None) -> Iterator[list[AnswerFile]]:
    """Files that are there when the block ends, and not if it fails."""
    files: list[AnswerFile] = []
    done = False
    try:
        for path in paths:
            files.append(AnswerFile(path, id2label, count))
        yield files
        done = True
    finally:
        for file in files:
            file.close(done)


@dataclass
class Screen:
    """The first answers as a table; a single text as it is."""

    id2label: Mapping[int, str]
    count: int | None
    most: int
    kept: list[Answer] = field(default_factory=list)
    total: int = 0

    def add(self, answer: Answer) -> None:
        """One more; the first ones are kept."""
        self.total += 1
        if len(self.kept) < self.most:
            self.kept.append(answer)

    def show(self) -> None:
        """Print them."""
        from hfexp.screen import say

        if self.total == 1 and list(self.kept[0].values) == ["text"]:
            say(self.kept[0].values["text"])
        elif self.kept:
            _print_table([self._row(answer) for answer in self.kept])
            if self.total > len(self.kept):
                say(f"({len(self.kept)} of {self.total} shown; all of them with output=FILE.csv, more with show=N)")

    def _row(self, answer: Answer) -> dict[str, str]:
        shown = {name: _cell(value) for name, value in answer.values.items() if name != PROBABILITIES}
        if "label" not in shown and (PROBABILITIES not in answer.values or self.count == 1):
            return {"input": answer.name, **shown}
        best = [f"{label}  {score:.4f}" for label, score in ranked(answer.values, self.id2label, self.count)]
        names = ["label  score", *(f"{place}." for place in range(2, len(best) + 1))]
        return {"input": answer.name, **dict(zip(names, best, strict=True))}


@dataclass
class Frame:
    """All answers as rows of a table in Python."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, answer: Answer) -> None:
        """One more."""
        self.rows.append({"input": answer.name, **answer.values})

    def show(self) -> None:
        """Nothing: the table is what the caller gets."""


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(_plain(value))


def _plain(value: Any) -> Any:
    """A list of words as one cell."""
    return SEPARATOR.join(map(str, value)) if isinstance(value, list) else value


def _print_table(rows: Sequence[Mapping[str, str]]) -> None:
    from rich.table import Table

    from hfexp.screen import cell, print_table

    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(cell(name), overflow="fold")
    for row in rows:
        texts = [row.get(name, "") for name in names]
        table.add_row(*(cell(text if len(text) <= LONGEST_CELL else f"{text[:LONGEST_CELL]}...") for text in texts))
    print_table(table)


def check_classes(top_k: int | None, id2label: Mapping[int, str]) -> None:
    """Raises ConfigError if more classes are wanted than there are."""
    if top_k is not None and top_k > 1 and top_k > len(id2label):
        raise ConfigError(f"top_k={top_k}: the model has {len(id2label)} classes: {one_of(id2label.values(), 10)}")
