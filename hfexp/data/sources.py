"""Functions for `dataset.source._target_`: datasets that hfexp makes or reads itself."""

import ast
import functools
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset, List, Value

from hfexp.core.console import note
from hfexp.core.errors import ConfigError
from hfexp.core.secrets import mask_secrets
from hfexp.data.conll_files import Columns, read_sentences
from hfexp.data.image_folders import hint_at_images, list_images, to_datasets
from hfexp.data.number_words import DIGITS, english, german
from hfexp.data.source_code import functions_by_split, lines_by_split, standard_library
from hfexp.data.squad_files import FEATURES, read_questions
from hfexp.data.tables import files_of, read_table, require_text, with_origin
from hfexp.tasks.column_names import IMAGE, usual_column
from hfexp.tasks.entities import Span, TagScheme

IMAGE_COLUMN = "image"
"""Column of a table that has the paths of images, unless the user names another one."""
T = TypeVar("T")


def name_of(source: Mapping[str, Any]) -> str:
    """Return the display name of a source: its path, folder or files, or else the name of its function."""
    names = [source.get(key) for key in ("path", "data_dir", "data_files")]
    return mask_secrets(str(next(filter(None, names), str(source.get("_target_", "dataset")).rpartition(".")[2])))


def source_row(rows: Dataset, index: int) -> int:
    """Return the number that a row had in the dataset as it was read, before rows were shuffled or selected."""
    return index if rows._indices is None else rows._indices.column(0)[index].as_py()


def digits() -> Dataset:
    """Return scikit-learn's 1,797 handwritten digits as 8x8 greyscale images, with labels `0` to `9`.

    Source: the test part of "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI, 1998,
    as shipped in `sklearn.datasets.load_digits`; its 0..16 grey levels are scaled to 0..255.
    """
    encoded, labels = _encoded_digits()
    features = Features({"image": Image(), "label": ClassLabel(names=[str(number) for number in range(10)])})
    return Dataset.from_dict({"image": encoded, "label": labels}, features=features)


@functools.cache
def _encoded_digits() -> tuple[list[dict[str, Any]], list[int]]:
    """Return the digits as PNG files, and their labels; encoding them takes half a second."""
    import io

    import PIL.Image
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    encoded = []
    for pixels in np.rint(bunch.images * (255 / 16)).astype(np.uint8):
        buffer = io.BytesIO()
        PIL.Image.fromarray(pixels).save(buffer, format="PNG")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    return encoded, bunch.target.tolist()


def image_folder(
    data_dir: str,
    split: str | None = None,
    streaming: bool = False,
    split_folders: Mapping[str, str] | None = None,
) -> Any:
    """Read images from folders named by their class, optionally below `train/`, `validation/` and `test/`.

    Args:
        data_dir: the folder that holds the folders of the classes or splits.
        split: read only these rows, e.g. `train` or `train[:80%]`.
        split_folders: the folder of each split below `data_dir`, if it has another name; {}: all folders are classes.

    Returns:
        A dataset of the split, or of every split by name; iterable datasets if `streaming`.

    Raises:
        ConfigError: there are no images, there are fewer than two classes, or the folders are ambiguous.
    """
    listing = list_images(data_dir, split_folders)
    listing.announce()
    return to_datasets(listing, split, streaming)


def image_table(
    format: str,
    data_files: str | list[str] | Mapping[str, Any],
    image_column: str = IMAGE_COLUMN,
    image_dir: str | None = None,
    streaming: bool = False,
    **kwargs: Any,
) -> DatasetDict:
    """Read a CSV or Parquet table that has the paths of images in one column.

    Args:
        format: `csv` or `parquet`.
        data_files: as for `table`.
        image_column: the column with the paths.
        image_dir: the directory that relative paths start from; null: the directory of the (first) table.
        kwargs: as for `table`.
    """
    files = files_of(data_files, format)
    dataset = _with_image_column(read_table(files, format, streaming, kwargs), image_column)
    first = next(iter(files.values()))[0]
    root = Path(image_dir).expanduser() if image_dir else first.parent
    return DatasetDict({split: _with_images(rows, image_column, root) for split, rows in dataset.items()})


def table(
    data_files: str | list[str] | Mapping[str, Any], format: str | None = None, streaming: bool = False, **kwargs: Any
) -> Any:
    """Read CSV, TSV, JSON (one object per line), Parquet or plain text files, with the columns that they have.

    Args:
        data_files: a file, a folder, a pattern, a list of them, or a mapping from split to those.
        format: `csv`, `json`, `parquet` or `text` (a row for each line that is not empty, in the column `text`); null:
            told by the file names.
        kwargs: `hfexp.data.csv_files.Dialect` options for CSV, e.g. `sep`; else options of the reader in `datasets`.
    """
    return read_table(files_of(data_files, format), format, streaming, kwargs)


def conll(
    data_files: str | list[str] | Mapping[str, Any],
    word_column: int = 0,
    tag_column: int = -1,
    sep: str | None = None,
    comment: str | None = None,
) -> DatasetDict:
    """Read CoNLL files: a word and its tag in each line, and an empty line between sentences.

    Args:
        data_files: as for `table`.
        word_column: number of the column of the words, from 0; negative numbers count from the last column.
        tag_column: number of the column of the tags.
        sep: separator of the columns; null: any white space.
        comment: beginning of lines to skip, e.g. `#` for CoNLL-U; null: none.

    Returns:
        Splits with the columns `words` and `tags`, a row for each sentence.

    Raises:
        ConfigError: a line is not as described; the message names the file and the line.
    """
    columns, splits = Columns(word_column, tag_column, sep, comment), {}
    for split, paths in files_of(data_files, "conll").items():
        names = [str(path.absolute()) for path in paths]
        for name in names:
            require_text(name)
        splits[split] = with_origin(read_sentences(names, columns), "conll", names, None)
    return DatasetDict(splits)


def squad(data_files: str | list[str] | Mapping[str, Any]) -> DatasetDict:
    """Read SQuAD's JSON files, of version 1 or 2: articles, their paragraphs, and questions about each.

    Args:
        data_files: as for `table`.

    Returns:
        Splits with the columns `id`, `title`, `question`, `context` and `answers`, a row for each question.

    Raises:
        ConfigError: a file has another form; the message names the place in it.
    """
    splits = {}
    for split, paths in files_of(data_files, "squad").items():
        names = [str(path.absolute()) for path in paths]
        splits[split] = with_origin(read_questions(names), "squad", names, None)
    return DatasetDict(splits)


def _with_image_column(tables: DatasetDict, column: str) -> DatasetDict:
    """Rename the column that has a usual name for images, unless the user names one or it has the standard name."""
    own = list(dict.fromkeys(name for rows in tables.values() for name in rows.column_names or ()))
    if column != IMAGE_COLUMN or column in own:
        return tables
    found = usual_column(own, column, IMAGE, "dataset.source.image_column")
    if found is None:
        return tables
    note(f"column {found!r} is read as {column!r}; dataset.source.image_column=NAME names another one")
    return DatasetDict({split: rows.rename_column(str(found), column) for split, rows in tables.items()})


def _with_images(table: Dataset | IterableDataset, column: str, root: Path) -> Any:
    """Turn a table's column of paths into images."""
    streamed, rows = isinstance(table, IterableDataset), cast(Any, table)
    rows = rows._resolve_features() if streamed else rows
    if column not in rows.column_names:
        raise ConfigError(f"dataset.source.image_column={column}: the table has only: {', '.join(rows.column_names)}")
    feature = rows.features[column]
    if isinstance(feature, Value) and streamed:
        rows = rows.map(functools.partial(_below, column=column, root=root), features=rows.features)
    elif isinstance(feature, Value):
        paths = [_address(path, root) for path in rows[column][:]]
        rows = rows.remove_columns(column).add_column(column, paths, feature=Value("string"))
    return rows.cast_column(column, Image())


def _below(row: dict[str, Any], column: str, root: Path) -> dict[str, Any]:
    return {**row, column: _address(row[column], root)}


def _address(path: Any, root: Path) -> str | None:
    """Return the address of an image in a table: a URL unchanged, a path below `root`, None for a missing value."""
    if path is None or "://" in str(path):
        return path
    return str(root / str(path))


def saved_to_disk(path: str) -> DatasetDict | Dataset:
    """Load a dataset that `save_to_disk` has written."""
    root = Path(os.path.expanduser(path))
    if not (os.path.isfile(root / "dataset_dict.json") or os.path.isfile(root / "dataset_info.json")):
        hint = hint_at_images(root)
        raise ConfigError(f"dataset.source.path={path}: not a directory written by Dataset.save_to_disk{hint}")
    try:
        return datasets.load_from_disk(str(root))
    except (OSError, ValueError) as error:
        raise ConfigError(f"dataset.source.path={path} can't be read: {error}") from error


def hub(
    path: str,
    name: str | None = None,
    revision: str | None = None,
    split: str | None = None,
    streaming: bool = False,
) -> Any:
    """Load a dataset from the Hugging Face Hub.

    Returns:
        A dataset of the split, or of every split by name; iterable datasets if `streaming`.

    Raises:
        ConfigError: the dataset, configuration or split does not exist or is not accessible; or `path` is a local
            folder without a README.md, whose splits `datasets` would guess from words in the file names.
    """
    from hfexp.core.hub import explain_hub_errors

    hint = hint_at_images(path)
    if hint:
        raise ConfigError(f"dataset.source.path={path}: this is a local folder, not a dataset of the Hub{hint}")
    folder = Path(os.path.expanduser(path))
    if os.path.isdir(folder) and not (folder / "README.md").is_file():
        raise ConfigError(
            f"dataset.source.path={path} is a folder: use dataset=table dataset.source.data_files={path} for tables, "
            f"dataset=imagefolder dataset.source.data_dir={path} for images, dataset=disk for what save_to_disk wrote"
        )
    with explain_hub_errors("dataset", path):
        return datasets.load_dataset(path, name=name, revision=revision, split=split, streaming=streaming)


# A text dataset that comes with every Python: docstrings of the standard library, labelled by their package.


SHORTEST = 40
"""Characters that a docstring needs to be used; texts that agree in as many characters count as the same."""
MASK = "___"
"""Text in place of the label's name."""


def docstrings(num_classes: int = 10, most: int = 400) -> Dataset:
    """Build a dataset of docstrings of modules, classes and functions; the label is their top-level package or module.

    The label's name is replaced by `___` in the text. Of texts that begin with the same 40 characters, only the first
    is kept. The rows depend on the version of Python.

    Args:
        num_classes: how many packages to take; those with the most docstrings are taken.
        most: docstrings to take of each package.
    """
    texts_of: dict[str, list[str]] = {}
    for name, text in _distinct(_texts()):
        texts_of.setdefault(name, []).append(text)
    counts = Counter({name: len(texts) for name, texts in texts_of.items()})
    names = sorted(name for name, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:num_classes])
    rows: dict[str, list[Any]] = {"text": [], "label": []}
    for label, name in enumerate(names):
        chosen = _evenly(texts_of[name], most)
        rows["text"] += [_masked(text, name) for text in chosen]
        rows["label"] += [label] * len(chosen)
    return Dataset.from_dict(rows, features=Features({"text": Value("string"), "label": ClassLabel(names=names)}))


def _texts() -> Iterator[tuple[str, str]]:
    """Yield package and docstring, ordered by the path of the file."""
    for package, _, tree in standard_library():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = " ".join((ast.get_docstring(node) or "").split())
                if len(text) >= SHORTEST:
                    yield package, text


def _distinct(pairs: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    seen = set()
    for name, text in pairs:
        start = text[:SHORTEST].lower()
        if start not in seen:
            seen.add(start)
            yield name, text


def _masked(text: str, name: str) -> str:
    return re.sub(re.escape(name), MASK, text, flags=re.IGNORECASE)


def _evenly(rows: Sequence[T], most: int) -> list[T]:
    """Return at most so many of the rows, at equal distances."""
    step = max(1.0, len(rows) / most)
    return [rows[int(place * step)] for place in range(min(most, len(rows)))]


# Tagged words that come with every Python: lines of the standard library, with the roles of the names in them.


def python_names(most: int = 4000) -> DatasetDict:
    """Build a dataset of lines of code whose names are tagged with their role: function, parameter, attribute, ...

    A row is a logical line as a list of words; texts in quotes are replaced by `""`. Tags are BIO: a module's dotted
    name is one entity. A package is in one split as a whole, so that the test split has names that training has not.
    The rows depend on the version of Python.

    Args:
        most: rows of the training split; the validation split has an eighth and the test split a quarter as many.
    """
    splits = {}
    features = Features({"words": List(Value("string")), "tags": List(Value("string"))})
    for (split, lines), count in zip(lines_by_split().items(), (most, most // 8, most // 4), strict=True):
        chosen = _evenly(lines, count)
        table = {"words": [list(words) for words, _ in chosen], "tags": [list(tags) for _, tags in chosen]}
        splits[split] = Dataset.from_dict(table, features=features)
    return DatasetDict(splits)


# Questions about the same lines: which name has a role. Some have no answer.


QUESTIONS = {
    "attribute": "Which attribute is read?", "call": "Which function is called?", "class": "Which class is defined?",
    "function": "Which function is defined?", "keyword": "Which argument is named?",
    "method": "Which method is called?",
    "module": "Which module is imported?", "parameter": "Which parameter is declared?",
}  # fmt: skip
"""The question that asks for the name of each role, if one name of the line has it."""
FIRST, LAST = "first", "last"
"""Of several names with a role, the questions ask for these two, counted from the left."""
IMPOSSIBLE = 2
"""Of so many lines, one gets a further question, which has no answer."""


def python_questions(most: int = 12000) -> DatasetDict:
    """Build a dataset of questions about lines of code: which name has a certain role, if one has.

    The context is a line as for `python_names`, its words with spaces between them. There is a question for each role
    that one name of the line has; for each that several have, two, which ask for the first and for the last of them;
    and for every other line one for a role that none has. The rows depend on the version of Python.

    Args:
        most: rows of the training split; the validation split has an eighth and the test split a quarter as many.
    """
    splits = {}
    features = Features({"question": Value("string"), "context": Value("string"), "answers": FEATURES["answers"]})
    for (split, lines), count in zip(lines_by_split().items(), (most, most // 8, most // 4), strict=True):
        chosen = _evenly([row for line in lines for row in _questions(*line)], count)
        table = {name: [row[name] for row in chosen] for name in features}
        splits[split] = Dataset.from_dict(table, features=features)
    return DatasetDict(splits)


def _questions(words: tuple[str, ...], tags: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield the questions about a line of tagged words, which follow from the line alone."""
    context = " ".join(words)
    spans: dict[str, list[tuple[int, int]]] = {}
    for start, end, role in _names(words, tags):
        spans.setdefault(role, []).append((start, end))
    for role, places in spans.items():
        which = {"": places[0]} if len(places) == 1 else {FIRST: places[0], LAST: places[-1]}
        for word, (start, end) in which.items():
            answers = {"text": [context[start:end]], "answer_start": [start]}
            yield {"question": _question(role, word), "context": context, "answers": answers}
    draw, absent = zlib.crc32(context.encode()), [role for role in QUESTIONS if role not in spans]
    if draw % IMPOSSIBLE == 0 and absent:
        which, role = divmod(draw // IMPOSSIBLE, len(absent))
        question = _question(absent[role], ("", FIRST, LAST)[which % 3])
        yield {"question": question, "context": context, "answers": {"text": [], "answer_start": []}}


def _names(words: tuple[str, ...], tags: tuple[str, ...]) -> list[Span]:
    """Return the names of a line that have a role, by the places of their characters."""
    known = sorted(set(tags))
    return TagScheme(known).places(words, [known.index(tag) for tag in tags])


def _question(role: str, which: str) -> str:
    """Return e.g. `Which method is called last?`."""
    return QUESTIONS[role].replace("?", f" {which}?" if which else "?")


# What the same lines do, in a sentence.


DONE = {
    "attribute": "reads {} attribute", "call": "calls {} function", "class": "defines {} class",
    "function": "defines {} function", "keyword": "names {} argument", "method": "calls {} method",
    "module": "imports {} module", "parameter": "takes {} parameter",
}  # fmt: skip
"""What a line does with the names of each role."""
NUMBERS = ("", "a", "two", "three", "four", "five", "six", "many")
"""Numbers of names, in words."""


def python_summaries(most: int = 5000) -> DatasetDict:
    """Build a dataset of lines of code and a sentence about each: what it defines, calls, reads, ..., and how many.

    Lines are those of `python_names`, their words with spaces between them. The sentences follow from the names' roles
    by rules, e.g. `defines a function, takes two parameters`. A package is in one split as a whole. The rows depend on
    the version of Python.

    Args:
        most: rows of the training split; the validation split has an eighth and the test split a quarter as many.

    Returns:
        Splits with the columns `text` and `target`.
    """
    splits = {}
    for (split, lines), count in zip(lines_by_split().items(), (most, most // 8, most // 4), strict=True):
        rows = [{"text": " ".join(words), "target": _summary(words, tags)} for words, tags in _evenly(lines, count)]
        splits[split] = Dataset.from_list(rows)
    return DatasetDict(splits)


def _summary(words: tuple[str, ...], tags: tuple[str, ...]) -> str:
    """Return what a line does with its names, in the order in which their roles first occur."""
    counts = Counter(role for _, _, role in _names(words, tags))
    return ", ".join(_counted(DONE[role], count) for role, count in counts.items())


def _counted(done: str, count: int) -> str:
    """Return e.g. `reads an attribute`, `calls two methods`."""
    number = "an" if count == 1 and " {} a" in done else NUMBERS[min(count, len(NUMBERS) - 1)]
    plural = "" if count == 1 else "es" if done.endswith("s") else "s"
    return done.format(number) + plural


# Beginnings of the same lines, each with several endings, one of which is its own.


def python_endings(most: int = 5000, choices: int = 4) -> DatasetDict:
    """Build a dataset of beginnings of lines of code, each with its own ending and those of other lines.

    Lines are those of `python_names`, their words with spaces between them. Beginnings and endings have two words or
    more. A package is in one split as a whole. The rows depend on the version of Python.

    Args:
        most: rows of the training split; the validation split has an eighth and the test split a quarter as many.
        choices: number of endings in a row.

    Returns:
        Splits with the columns `text`, `choices` and `label`, the number of the right choice.
    """
    splits = {}
    for (split, lines), count in zip(lines_by_split().items(), (most, most // 8, most // 4), strict=True):
        halves = [_halves(words) for words, _ in lines]
        numbers = _evenly(range(len(halves)), count)
        splits[split] = Dataset.from_list([_endings(halves, number, choices) for number in numbers])
    return DatasetDict(splits)


def _halves(words: tuple[str, ...]) -> tuple[str, str]:
    """Cut a line of four words or more at a place that follows from the line alone."""
    cut = 2 + zlib.crc32(" ".join(words).encode()) % (len(words) - 3)
    return " ".join(words[:cut]), " ".join(words[cut:])


def _endings(halves: list[tuple[str, str]], number: int, choices: int) -> dict[str, Any]:
    """Return a row for one of the lines; the other endings are those of lines far away, as drawn by its text."""
    text, own = halves[number]
    draw = np.random.default_rng(zlib.crc32(f"{text} {own}".encode()))
    others: dict[str, None] = {}
    while len(others) < choices - 1:
        ending = halves[draw.integers(len(halves))][1]
        others |= {ending: None} if ending != own else {}
    texts, place = list(others), int(draw.integers(choices))
    return {"text": text, "choices": [*texts[:place], own, *texts[place:]], "label": place}


def python_preferences(most: int = 5000) -> DatasetDict:
    """Build a dataset of beginnings of lines of code; the own ending of each is chosen, that of another line rejected.

    Rows are those of `python_endings` with two choices, in the form of preferences.

    Args:
        most: rows of the training split; the validation split has an eighth and the test split a quarter as many.

    Returns:
        Splits with the columns `prompt`, `chosen` and `rejected`.
    """
    splits = {}
    for split, rows in python_endings(most, choices=2).items():
        answers = list(zip(rows["choices"][:], rows["label"][:], strict=True))
        chosen = [f" {choices[label]}" for choices, label in answers]
        rejected = [f" {choices[1 - label]}" for choices, label in answers]
        splits[split] = Dataset.from_dict({"prompt": rows["text"][:], "chosen": chosen, "rejected": rejected})
    return DatasetDict(splits)


# Pairs of texts that follow from rules: numbers in the words of two languages.


def number_words(most: int = 5000, seed: int = 0) -> Dataset:
    """Build a dataset of different whole numbers below a million, in German words with their English translation.

    Args:
        most: number of rows.
        seed: of the numbers. One is drawn below 10, 100, ... or 1,000,000, each as often, until enough are different.
    """
    draw, numbers = np.random.default_rng(seed), dict[int, None]()
    while len(numbers) < most:
        numbers[int(draw.integers(10 ** draw.integers(1, DIGITS + 1)))] = None
    return Dataset.from_dict({"text": [german(n) for n in numbers], "target": [english(n) for n in numbers]})


def python_functions(most: int = 1000) -> DatasetDict:
    """Build a dataset of the public functions of Python's standard library: what one does, and its signature.

    Whole packages are held out: about a tenth for validation, and two tenths for the test.

    Args:
        most: number of training rows; at most a quarter as many for validation, and as many for the test.

    Returns:
        Splits with the columns `anchor` and `positive`.
    """
    splits = {}
    for (split, pairs), count in zip(functions_by_split().items(), (most, most // 4, most), strict=True):
        rows = [{"anchor": text, "positive": signature} for text, signature in _evenly(pairs, count)]
        splits[split] = Dataset.from_list(rows)
    return DatasetDict(splits)
