"""Tables of rows from local files: the split of each file, and the line of each row."""

import contextlib
import glob
import gzip
import itertools
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from datasets import Dataset, DatasetDict, IterableDataset
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.exceptions import DatasetGenerationError

from hfexp.core.config import split_called
from hfexp.core.console import note
from hfexp.core.errors import ConfigError, DataError, did_you_mean, one_of
from hfexp.data.conll_files import sentences
from hfexp.data.csv_dataset import Csv, features_of, stream
from hfexp.data.csv_files import GZIP_ERRORS, CsvFile, Dialect, shown
from hfexp.data.squad_files import questions

FORMATS = {
    ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet",
    ".txt": "text",
}  # fmt: skip
"""Format by file extension (before `.gz`)."""
SHARD = re.compile(r"-\d+-of-\d+$")
"""End of the name of a shard, one of several files of a split."""
MAX_DEPTH = 500
"""Deepest nesting of lists and objects in JSON; at 100,000 levels, Arrow 25's reader kills the process by SIGSEGV."""
FOREIGN = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook: unpack it or save it as CSV",
    b"\x1f\x8b": "compressed: unpack it",
    b"PAR1": "a Parquet file: set dataset.source.format=parquet",
}
"""First bytes of files that are not text, with the end of the error message for each."""
NAMED_PLACES = 5
"""Rows that a message names at most."""


def read_table(
    files: Mapping[str, list[Path]], format: str | None, streaming: bool, options: dict[str, Any]
) -> DatasetDict:
    """Read tables from local files, each split by itself.

    Args:
        files: the files of each split, as `files_of` finds them.
        format: `csv`, `json`, `parquet` or `text`; None: told by the file names.
        options: options of `Dialect` for CSV; else of the reader in `datasets`.

    Raises:
        ConfigError: a file is empty or not a table.
    """
    formats = sorted(set(FORMATS.values()))
    if format is not None and format not in formats:
        raise ConfigError(f"dataset.source.format={format} is unknown. Formats: {one_of(formats)}")
    splits = {}
    for split, paths in files.items():
        kind = format or _common_format(paths)
        names = [str(path.absolute()) for path in paths]
        if kind == "csv":
            splits[split] = _read_csv(names, split, streaming, options)
        else:
            splits[split] = _read_typed(kind, names, split, streaming, options)
    return DatasetDict(splits)


def files_of(data_files: Any, format: str | None = None) -> dict[str, list[Path]]:
    """Find the files of each split.

    A mapping names the splits. Otherwise a file, or a list of files, is for training. A file found in a folder or by
    a pattern belongs to the split that its whole name, or its folder's, denotes (`hfexp.core.config`). If no name
    denotes a split, all files are for training; if only some do, the others are refused.

    Args:
        data_files: a file, a folder, a pattern, a list of them, or a mapping from split to those.

    Raises:
        ConfigError: a file does not exist, or its split is unknown.
    """
    if isinstance(data_files, Mapping):
        pairs = {str(split): _expand(_listed(value), format, str(split)) for split, value in data_files.items()}
        files = {split: [path for path, _ in paths] for split, paths in pairs.items()}
    else:
        names = _listed(data_files)
        paths = _expand(names, format, "train")
        if all(os.path.isfile(os.path.expanduser(name)) for name in names):
            files = {"train": [path for path, _ in paths]}
            others = [path.name for path, _ in paths if _split_of(path, "") not in (None, "train")]
            if len(paths) > 1 and others:
                note(f"dataset.source.data_files is a list: all its files are for training, {one_of(others)} too")
        else:
            files = _by_name(paths)
            note(f"{data_files}: " + "; ".join(f"{split}: {_names(paths)}" for split, paths in files.items()))
    empty = next((split for split, paths in files.items() if not paths), None)
    if not files or empty:
        raise ConfigError(f"dataset.source.data_files is empty{f' (split {empty})' if empty else ''}")
    return files


def _listed(value: Any) -> list[str]:
    return [str(value)] if isinstance(value, str | Path) else list(map(str, value))


def _names(paths: Sequence[Path]) -> str:
    if len(paths) == 1:
        return shown(str(paths[0]))
    return f"{len(paths)} files"


def _expand(names: list[str], format: str | None, split: str) -> list[tuple[Path, str]]:
    """Return each file with its top folder below the place where the search for it began, or an empty string."""
    pairs: list[tuple[Path, str]] = []
    for name in names:
        path = Path(os.path.expanduser(name))
        if os.path.isfile(path):
            pairs.append((path, ""))
        elif os.path.isdir(path):
            pairs += _below(path, list(_walk(path)), format)
        else:
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
            files = [match for match in matches if match.is_file()]
            if not files and matches:
                raise ConfigError(f"dataset.source.data_files: {name} (split {split}) is not a regular file")
            if not files:
                raise ConfigError(f"dataset.source.data_files: {name} (split {split}) does not exist")
            root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
            pairs += _below(root, files, format)
    return pairs


def _walk(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yield all files below a folder, following links except those to a folder above themselves."""
    above |= {folder.resolve()}
    for path in sorted(folder.iterdir()):
        if path.is_file():
            yield path
        elif path.is_dir() and path.resolve() not in above:
            yield from _walk(path, above)


def _below(root: Path, files: list[Path], format: str | None) -> list[tuple[Path, str]]:
    """Choose the tables among files, and print the names of the others.

    Raises:
        ConfigError: there are no tables, or tables of several formats.
    """
    hidden = [path for path in files if any(part[0] in "._" for part in path.relative_to(root).parts)]
    plain = [path for path in files if path not in set(hidden)]
    by_format = defaultdict(list)
    for path in plain:
        by_format[format or format_of(path) or ""].append(path)
    tables = {kind: paths for kind, paths in by_format.items() if kind}
    if len(tables) > 1:
        tables.pop("text", None)  # text files beside tables describe the tables
    if len(tables) > 1:
        counts = ", ".join(f"{kind}: {len(paths)}" for kind, paths in sorted(tables.items()))
        raise ConfigError(
            f"dataset.source.data_files: {root} holds tables of several formats ({counts}); give one of them, e.g. "
            f"dataset.source.data_files='{root}/*.csv'"
        )
    if not tables:
        raise ConfigError(f"dataset.source.data_files: {root} holds no {one_of(FORMATS)} files")
    (chosen,) = tables.values()
    left_out = [path.name for path in files if path not in set(chosen)]
    if left_out:
        note(f"{root}: not read: {one_of(left_out, 5)}")
    parts = [path.relative_to(root).parts for path in chosen]
    return [(path, part[0] if len(part) > 1 else "") for path, part in zip(chosen, parts, strict=True)]


def _split_of(path: Path, folder: str) -> str | None:
    stem = SHARD.sub("", path.name.partition(".")[0])
    return split_called(stem) or split_called(folder)


def _by_name(paths: list[tuple[Path, str]]) -> dict[str, list[Path]]:
    """Assign files to the splits that their names denote."""
    splits = defaultdict(list)
    for path, folder in paths:
        splits[_split_of(path, folder)].append(path)
    others = splits.pop(None, [])
    if others and splits:
        raise ConfigError(
            f"dataset.source.data_files: some files have the name of a split ({one_of(splits)}), but not "
            f"{one_of((shown(str(path)) for path in others), 5)}: set "
            "dataset.source.data_files={train: FILE, test: FILE}"
        )
    return dict(splits) if splits else {"train": others}


def format_of(path: Path) -> str | None:
    """Return the format by a file's name; None if unknown."""
    return FORMATS.get(_suffix(path))


def _suffix(path: Path) -> str:
    return Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()


def _common_format(paths: list[Path]) -> str:
    formats = {format_of(path): path for path in paths}
    if None in formats:
        require_text(str(formats[None]))
        raise ConfigError(
            f"dataset.source.data_files={formats[None]}: can't tell the format from the name; set "
            f"dataset.source.format to one of {one_of(sorted(set(FORMATS.values())))}"
        )
    if len(formats) > 1:
        raise ConfigError(
            f"dataset.source.data_files: files of one split must have one format, not {one_of(map(str, formats))}"
        )
    return str(next(iter(formats)))


def _read_csv(files: list[str], split: str, streaming: bool, options: dict[str, Any]) -> Any:
    dialect = _dialect(files, options)
    columns = _common_columns(files, dialect)
    if streaming:
        given = {"files": files, "dialect": dialect}
        return IterableDataset.from_generator(stream, features=features_of(columns), gen_kwargs=given)
    times: list[Any] = [(str(Path(file).stat().st_mtime_ns), str(Path(file).stat().st_size)) for file in files]
    # The builder is called directly: `load_dataset` would read brackets in a file name as a pattern.
    builder = Csv(data_files=DataFilesDict({split: DataFilesList(files, times)}), dialect=dialect, columns=columns)
    try:
        builder.download_and_prepare(verification_mode="no_checks")
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from error
        raise
    if not sum(info.num_examples for info in (builder.info.splits or {}).values()):
        raise ConfigError(f"dataset.source.data_files: {shown(files[0])} has a header but no rows ({split} split)")
    rows: Any = builder.as_dataset(split)
    return with_origin(rows, "csv", files, dialect)


def _dialect(files: list[str], options: dict[str, Any]) -> Dialect:
    known = Dialect.__dataclass_fields__
    wrong = next((name for name in options if name not in known), None)
    if wrong:
        raise ConfigError(
            f"dataset.source.{wrong}: no such option for CSV files.{did_you_mean(wrong, known)} "
            f"Options: {one_of(known)}"
        )
    if "column_names" in options:
        options = {**options, "column_names": tuple(map(str, options["column_names"]))}
    if _suffix(Path(files[0])) == ".tsv":
        options = {"sep": "\t", **options}
    if isinstance(options.get("sep"), str):  # a tab as it is typed in a shell
        options = {**options, "sep": options["sep"].replace("\\t", "\t")}
    return Dialect(**options)


def _common_columns(files: list[str], dialect: Dialect) -> tuple[str, ...]:
    """Return the columns of the first file.

    Raises:
        ConfigError: another file has other columns.
    """
    columns: dict[str, list[str]] = {}
    for file in files:
        require_text(file)
        columns[file] = CsvFile(file, dialect).columns
        first = columns[files[0]]
        if sorted(columns[file]) != sorted(first):
            raise ConfigError(
                f"dataset.source.data_files: {shown(file)} has the columns {one_of(columns[file])}, but "
                f"{shown(files[0])} has {one_of(first)}; files of one split must have the same columns"
            )
    return tuple(columns[files[0]])


def require_text(file: str) -> None:
    """Raise ConfigError for an empty file, an archive or a Parquet file."""
    with Path(file).open("rb") as opened:
        start = opened.read(4)
    if not start:
        raise ConfigError(f"dataset.source.data_files: {shown(file)} is empty")
    kind = next((text for magic, text in FOREIGN.items() if start.startswith(magic)), None)
    if kind and not file.endswith(".gz"):
        raise ConfigError(f"dataset.source.data_files: {shown(file)} is {kind}")


def _require_shallow(file: str) -> None:
    """Raise ConfigError if a line of JSON is nested deeper than `MAX_DEPTH`."""
    opened = gzip.open if file.endswith(".gz") else open
    with contextlib.suppress(*GZIP_ERRORS), opened(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if len(line) <= MAX_DEPTH or line.count(b"[") + line.count(b"{") <= MAX_DEPTH:
                continue  # nearly all rows: counting takes longer than reading
            if _depth(line) > MAX_DEPTH:
                raise ConfigError(f"dataset.source.data_files: line {number} of {shown(file)} is nested too deeply")


def _depth(line: bytes) -> int:
    """Return how many lists and objects of a line of JSON are open at most, ignoring brackets inside strings."""
    letters = np.frombuffer(line.replace(rb"\\", b"").replace(rb"\"", b""), np.uint8)
    in_text = np.logical_xor.accumulate(letters == ord('"'))
    brackets = letters[~in_text & np.isin(letters, tuple(b"[]{}"))]
    steps = np.where(np.isin(brackets, tuple(b"[{")), 1, -1)
    return int(steps.cumsum().max(initial=0))


def _read_typed(kind: str, files: list[str], split: str, streaming: bool, options: dict[str, Any]) -> Any:
    """Read JSON, Parquet or text files with a reader of `datasets`."""
    for file in files:
        if kind == "parquet":
            _require_parquet(file)
        else:
            require_text(file)
        if kind == "json" and not streaming:  # a stream must not be read to its end before it begins
            _require_shallow(file)
    names = {split: [glob.escape(file) for file in files]}
    options = {"encoding": "utf-8-sig", **options} if kind == "text" else options
    try:
        rows: Any = datasets.load_dataset(kind, data_files=names, streaming=streaming, **options)
        rows = rows[split]
    except (DatasetGenerationError, ValueError, *GZIP_ERRORS) as error:
        cause = _json_fault(files) if kind == "json" else None
        cause = cause or f"{_shown(files)}: {' '.join(str(error.__cause__ or error).split())}"
        raise ConfigError(f"dataset.source.data_files can't be read as {kind}: {cause}") from error
    if streaming:
        return rows.filter(_has_text) if kind == "text" else rows
    _require_utf8(rows, files, kind)
    if kind == "json":
        rows = _as_written(rows, files)
    return with_origin(_with_text(rows, files) if kind == "text" else rows, kind, files, None)


def _with_text(rows: Dataset, files: list[str]) -> Dataset:
    """Leave out the rows of empty lines; raise ConfigError if there are no others."""
    trimmed: Any = pc.utf8_trim_whitespace(rows.data.column("text"))  # pyright: ignore[reportAttributeAccessIssue]
    has_text = np.asarray(pc.not_equal(trimmed, ""))  # pyright: ignore[reportAttributeAccessIssue]
    if not has_text.any():
        raise ConfigError(f"dataset.source.data_files: {_shown(files)} has no text")
    return rows if has_text.all() else rows.select(np.flatnonzero(has_text))


def _has_text(row: Mapping[str, Any]) -> bool:
    return bool(row["text"].strip())


def _require_utf8(rows: Dataset, files: list[str], kind: str) -> None:
    """Raise ConfigError for texts that are not UTF-8: `datasets` reads them but can't return them."""
    try:
        rows.data.table.validate(full=True)
    except pa.ArrowInvalid as error:
        cause = _json_fault(files) if kind == "json" else None
        cause = cause or f"{_shown(files)}: {error}"
        raise ConfigError(f"dataset.source.data_files can't be read as {kind}: {cause}") from error


def _shown(files: Sequence[str]) -> str:
    return one_of(map(shown, files), 3)


def _require_parquet(file: str) -> None:
    try:
        str(pyarrow.parquet.read_schema(file))  # `str` decodes the column names, which reading alone does not
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"dataset.source.data_files: {shown(file)} is not a Parquet file: {reason}") from error


def _json_fault(files: list[str]) -> str | None:
    """Describe the first line that is not a row; None if only the reader's own message can tell the fault."""
    place = row = None
    try:
        for file in files:
            for place, row in _json_rows(file):
                if not isinstance(row, dict):
                    return f"row {place} of {shown(file)} is {row!r:.80}, not an object with a value for each column"
    except DataError as error:
        return str(error)
    return None if place else f"{_shown(files)} has no rows"


def _json_rows(file: str) -> Iterator[tuple[int, Any]]:
    """Yield the rows of JSON lines with their line numbers, or the items of a JSON list with their positions.

    Raises:
        DataError: a line is not JSON or not UTF-8, or the file can't be unpacked.
    """
    opened = gzip.open if file.endswith(".gz") else open
    with _unpacked(file), opened(file, "rb") as lines:
        for line, text in enumerate(lines, 1):
            text = text.removeprefix(b"\xef\xbb\xbf").strip()
            try:
                if text.startswith(b"["):
                    yield from enumerate(json.loads(text + lines.read()), 1)
                elif text:
                    yield line, json.loads(text)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"line {line + error.lineno - 1} of {shown(file)}: {error.msg} (column {error.colno})"
                ) from error
            except UnicodeDecodeError as error:
                raise DataError(f"line {line} of {shown(file)} is not UTF-8: {error}") from error


@contextlib.contextmanager
def _unpacked(file: str) -> Iterator[None]:
    """Raise DataError for a gzip file that is damaged."""
    try:
        yield
    except GZIP_ERRORS as error:
        raise DataError(f"{shown(file)} can't be unpacked: {error}") from error


def _as_written(rows: Dataset, files: list[str]) -> Dataset:
    """Turn columns of dates, which `datasets` reads as times, and columns that mix texts and numbers into texts."""
    dated = [name for name, feature in rows.features.items() if "timestamp" in str(feature)]
    mixed = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Json)]
    if not dated and not mixed:
        return rows
    order, names = rows.column_names, dated + mixed
    written = (row for file in files for _, row in _json_rows(file))
    cells = [[row.get(name) if isinstance(row, dict) else row for name in names] for row in written]
    for place, name in enumerate(names):
        values = [cell[place] for cell in cells]
        if name in mixed and any(isinstance(value, list | dict) for value in values):
            continue
        if name in mixed:
            values = [value if isinstance(value, str | None) else json.dumps(value) for value in values]
        kind = pa.array(values).type
        feature = datasets.Features.from_arrow_schema(pa.schema([(name, kind)]))[name]
        rows = rows.remove_columns(name).add_column(name, values, feature=feature)  # pyright: ignore
    return rows.select_columns(order)


def with_origin(rows: Dataset, kind: str, files: list[str], dialect: Dialect | None) -> Dataset:
    """Record the files of the rows in `info.download_checksums`, the place that `datasets` has for them."""
    rows.info.download_checksums = {file: {"kind": kind, "dialect": dialect} for file in files}
    return rows


def places(rows: Dataset, numbers: Iterable[int]) -> str:
    """Name rows by the lines of their files if these are known, else by their numbers from 0.

    Args:
        numbers: numbers of rows as they were read (`source_row`), in ascending order.
    """
    numbers = list(numbers)
    origin = {file: facts for file, facts in (rows.info.download_checksums or {}).items() if "kind" in facts}
    more = f", ... ({len(numbers) - NAMED_PLACES} more)" if len(numbers) > NAMED_PLACES else ""
    chosen = numbers[:NAMED_PLACES]
    if not origin:
        return f"row{'s' * (len(chosen) > 1)} {', '.join(map(str, chosen))}{more}"
    named, wanted = [], set(chosen)
    positions = ((file, facts["kind"], line) for file, facts in origin.items() for line in _lines(file, **facts))
    located = [place for number, place in enumerate(itertools.islice(positions, max(chosen) + 1)) if number in wanted]
    for (file, kind), group in itertools.groupby(located, key=lambda place: place[:2]):
        lines = [str(line) for *_, line in group]
        unit = {"parquet": "row", "squad": "question"}.get(kind, "line")
        named.append(f"{unit}{'s' * (len(lines) > 1)} {', '.join(lines)} of {shown(file)}")
    return "; ".join(named) + more


def _lines(file: str, kind: str, dialect: Dialect | None) -> Iterator[int]:
    """Return the line of each row of a file, counted from 1; for Parquet, the row's number."""
    if dialect is not None:
        return CsvFile(file, dialect).lines()
    if kind == "json":
        return (line for line, _ in _json_rows(file))
    if kind == "conll":
        return (line for line, _ in sentences(file))
    if kind == "squad":
        return (number for number, _ in enumerate(questions(file), 1))
    if kind == "parquet":
        return iter(range(1, pyarrow.parquet.read_metadata(file).num_rows + 1))
    return itertools.count(1)


def header_hint(rows: Any) -> str:
    """Return a hint on reading a CSV file without a header or with another separator; empty for other files."""
    origin = (rows.info.download_checksums or {}).items()
    file = next((file for file, facts in origin if facts.get("kind") == "csv"), None)
    if file is None:
        return ""
    (only, *others) = rows.column_names
    sep = next((mark for mark in ";\t|" if mark in only and not others), None)
    if sep:
        return f". If {sep!r} separates the columns of {shown(file)}, set dataset.source.sep={sep!r}"
    return f". If {shown(file)} has no header, set dataset.source.column_names=[NAME, ...]"
