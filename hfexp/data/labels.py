"""Label columns: a class, several classes, a number or a list of tags per row, in the same form in every split."""

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, LargeList, List, Value
from omegaconf import OmegaConf

from hfexp.core.console import note
from hfexp.core.errors import ConfigError, DataError, did_you_mean, one_of
from hfexp.data.tables import places
from hfexp.tasks.base import CLASS, CLASSLESS, NUMBER, OWN, TAGS, TEXT, TRUTH, Task, to_number, to_text, to_truth
from hfexp.tasks.cells import in_order
from hfexp.tasks.entities import OUTSIDE

FEW_ROWS = 20
"""Number of labels below which the frequency of classes says nothing."""


def cast_labels(dataset: DatasetDict, task: Task, labels: list[str] | None) -> DatasetDict:
    """Bring the label column into the form that the task reads, the same in every split.

    * A class becomes a `ClassLabel`.
    * Several classes become a mapping of names to truth values; see `cast_classes`.
    * A number that is written as text becomes a float.
    * A list of tags becomes a list of `ClassLabel`; see `cast_tags`.
    * With texts as labels, with labels of the task's own form, or without a label column, the dataset stays as it is.

    Args:
        labels: names of the classes in the order of their ids; None: the dataset's own, or the sorted labels.

    Raises:
        ConfigError: the column holds something else, or a class that `labels` does not name.
    """
    if task.label_column is None or task.label_kind in (TEXT, OWN):
        return dataset
    if task.label_kind == NUMBER:
        return cast_number(dataset, task.label_column)
    if task.label_kind == CLASS:
        return cast_class(dataset, task.label_column, labels)
    if task.label_kind == TAGS:
        return cast_tags(dataset, task.label_column, labels)
    return cast_classes(dataset, task.label_column, labels, task.label_separator)


def require_distinct(labels: Sequence[str]) -> None:
    """Raise ConfigError if `dataset.labels` names a class twice, so that its label would be ambiguous."""
    name, count = Counter(labels).most_common(1)[0] if labels else ("", 0)
    if count > 1:
        raise ConfigError(f"dataset.labels has {name!r} more than once")


def _features(dataset: DatasetDict) -> Features:
    """Return the features of the first split, which is the training split if there is one."""
    return next(iter(dataset.values())).features


def cast_number(dataset: DatasetDict, column: str) -> DatasetDict:
    """Convert texts that are numbers, as in CSV files, to floats; leave a split with other texts to `first_faults`."""
    if isinstance(_features(dataset)[column], ClassLabel):
        raise ConfigError(f"column {column!r} holds class ids, expected numbers")
    result = {}
    for split, rows in dataset.items():
        result[split] = rows
        if _is_text(rows.features[column]):
            values = rows[column][:]
            if not _faults(values, to_number):
                result[split] = _with_column(rows, column, list(map(to_number, values)), Value("float64"))
    return DatasetDict(result)


def first_faults(rows: Dataset, task: Task, learns: bool = False) -> tuple[list[int], DataError] | None:
    """Find the labels that are not of the task's kind: return the positions of all, and the error of the first.

    Where the kind is the task's own, other columns can be at fault too.

    Args:
        learns: the rows are to be learnt from, not only to be scored.
    """
    column = task.label_column or ""
    if task.label_column is None or task.label_kind == CLASS:  # `cast_class` has checked every label
        return None
    if task.label_kind == OWN:
        return _faults(rows.select_columns(list(task.columns)), functools.partial(check_row, task, learns))
    values = rows[column][:]
    if task.label_kind == TAGS:
        return _faults(zip(rows[task.tagged_column or ""][:], values, strict=True), _require_aligned)
    if task.label_kind in (NUMBER, TEXT):
        return _faults(values, to_number if task.label_kind == NUMBER else to_text)
    return _faults(values, _truth_values)


def check_row(task: Task, learns: bool, row: dict[str, Any]) -> None:
    """Raise DataError for a stored row that can't be read or, if it `learns` from it, not be learnt from."""
    task.decode(row)
    if learns:
        task.check_learnable(row)


def _truth_values(label: dict[str, Any] | None) -> list[int]:
    if label is None:
        raise DataError("the label is missing")
    return [to_truth(value, name) for name, value in label.items()]


def _require_aligned(pair: tuple[list[Any], list[Any]]) -> None:
    items, tags = pair
    if isinstance(items, list) and len(items) != len(tags):
        raise DataError(f"{len(tags)} tags for {len(items)} words")


def _faults(values: Iterable[Any], read: Callable[[Any], Any]) -> tuple[list[int], DataError] | None:
    positions, first = [], None
    for number, value in enumerate(values):
        try:
            read(value)
        except DataError as error:
            positions.append(number)
            first = first or error
    return (positions, first) if first else None


def _is_text(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _with_column(rows: Dataset, column: str, values: Sequence[Any], feature: Any) -> Dataset:
    """Replace the values of a column."""
    # An array, because `datasets` (5.2) hashes a list value by value, 5 us each, for the fingerprint of the result.
    array: Any = pa.array(values, Features({column: feature}).arrow_schema.field(column).type)
    return rows.remove_columns(column).add_column(column, array, feature=feature)  # pyright: ignore


def class_column(task: Task) -> str | None:
    """Return the column that holds one class per row, or None if there is none."""
    return task.label_column if task.label_kind == CLASS else None


def classes_of(rows: Dataset, task: Task) -> set[str]:
    """Return the names of the classes that occur in the rows."""
    column = task.label_column or ""
    feature: Any = rows.features[column]
    if task.label_kind == CLASS:
        return {feature.names[number] for number in np.unique(class_ids(rows, column))}
    if task.label_kind in CLASSLESS:
        return set()
    if task.label_kind == TAGS:
        return {feature.feature.names[number] for number in {tag for row in rows[column][:] for tag in row}}
    return {name for row in rows[column][:] for name, value in (row or {}).items() if value}


def label_counts(rows: Dataset, task: Task) -> dict[str, int]:
    """Count how often each class is a label, of a row or of a word, by name; for tasks with classes or tags."""
    column = task.label_column or ""
    feature: Any = rows.features[column]
    if task.label_kind == TAGS:
        ids, names = [tag for row in rows[column][:] for tag in row], feature.feature.names
    else:
        ids, names = class_ids(rows, column), feature.names
    counts = np.bincount(np.asarray(ids, dtype=np.int64), minlength=len(names))
    return dict(zip(names, map(int, counts), strict=True))


def readable(feature: Any, value: Any) -> Any:
    """Return a stored label as a person reads it: the name of a class, a list of names, or another value unchanged.

    Args:
        feature: feature of the column; a mapping for several classes per row, see `cast_classes`.

    Returns:
        None for a class id that marks a missing label.
    """
    if isinstance(feature, ClassLabel):
        return None if value is None or value < 0 else feature.names[value]
    if isinstance(feature, List | LargeList) and isinstance(feature.feature, ClassLabel):
        return [readable(feature.feature, item) for item in value or []]
    return [name for name, has in (value or {}).items() if has] if isinstance(feature, dict) else value


def class_ids(rows: Dataset, column: str) -> np.ndarray:
    """Return the id of each row's class, (N,); `rows[column]` takes ten times as long on a selection of rows."""
    ids = np.asarray(rows.data.column(column))
    return ids if rows._indices is None else ids[np.asarray(rows._indices.column(0))]


def cast_class(dataset: DatasetDict, column: str, wanted: list[str] | None) -> DatasetDict:
    """Make the label column a `ClassLabel`; raise ConfigError for a label that it does not name."""
    feature = _features(dataset)[column]
    if isinstance(feature, ClassLabel):
        names, feature_names = wanted or feature.names, feature.names
        if names == feature_names:
            return _check_label_range(dataset, column, names)
        values = {split: _row_labels(rows, column) for split, rows in dataset.items()}
    elif isinstance(feature, Value):
        values = {split: [None if v != v else v for v in rows[column][:]] for split, rows in dataset.items()}
        for split, labels in values.items():
            _require_labels(dataset[split], labels, split)
        names = wanted or _label_names([label for labels in values.values() for label in labels], column)
        values = {split: list(map(str, labels)) for split, labels in values.items()}
    else:
        raise ConfigError(f"column {column!r} holds {feature}, expected class names or integers")
    ids = {name: index for index, name in enumerate(names)}
    result = {}
    for split, labels in values.items():
        _require_labels(dataset[split], labels, split)
        _require_known(dataset[split], column, split, labels, ids)
        feature = ClassLabel(names=list(names))
        result[split] = _with_column(dataset[split], column, [ids[str(label)] for label in labels], feature)
    return DatasetDict(result)


def _row_labels(rows: Dataset, column: str) -> list[str | None]:
    """Return the names of the labels, by this split's own `ClassLabel`; None for an id without a name."""
    names = rows.features[column].names
    return [names[i] if i is not None and 0 <= i < len(names) else None for i in rows[column][:]]


def _label_names(labels: list[Any], column: str) -> list[str]:
    """Return the names of all labels, sorted (numbers by their value).

    Raises:
        ConfigError: the labels are real numbers, or there are more than half as many classes as rows.
    """
    if any(isinstance(value, float) for value in labels):
        raise ConfigError(f"column {column!r} holds real numbers, expected class names or integers")
    counts = Counter(map(str, labels))
    if len(labels) >= FEW_ROWS and 2 * len(counts) > len(labels):
        raise ConfigError(
            f"column {column!r} has {len(counts)} classes in {len(labels)} rows: if these are not classes (but "
            "row numbers, texts, ...), choose another column; if they are, list all of them in dataset.labels"
        )
    _note_alike(counts, column)
    return in_order(counts)


def _note_alike(counts: Counter[str], column: str) -> None:
    """Note which classes differ only in capitals and spaces, because they are often meant to be one."""
    groups = defaultdict(list)
    for name in sorted(counts):
        groups["".join(name.split()).casefold()].append(f"{name!r} ({_num_rows(counts[name])})")
    alike = [" and ".join(group) for group in groups.values() if len(group) > 1]
    if alike:
        more = f"; ... ({len(alike) - 5} more)" if len(alike) > 5 else ""
        note(f"column {column!r} has classes that differ only in spaces or capitals: {'; '.join(alike[:5])}{more}")


def _require_labels(rows: Dataset, labels: Sequence[Any], split: Any) -> None:
    if None in labels:
        missing = [number for number, label in enumerate(labels) if label is None]
        raise ConfigError(
            f"{_num_rows(len(missing))} of the {split} split {'have' if len(missing) > 1 else 'has'} no label "
            f"({places(rows, missing)}): add the labels or remove these rows{way_out(split)}"
        )


def _num_rows(count: int) -> str:
    return f"{count} row{'s' * (count > 1)}"


def _require_known(
    rows: Dataset, column: str, split: Any, labels: Sequence[Any], ids: Mapping[Any, int], numbers: Sequence[int] = ()
) -> None:
    """Raise ConfigError for the most frequent label that is unknown.

    Args:
        ids: ids of the known labels.
        numbers: the row of each label; empty: there is one in each row.
    """
    unknown = {label: count for label, count in Counter(labels).items() if label not in ids}
    if unknown:
        label = max(unknown, key=lambda name: unknown[name])
        found = [number for number, other in zip(numbers or range(len(labels)), labels, strict=True) if other == label]
        raise _unknown_label(column, split, label, list(map(str, ids)), f" ({places(rows, found)})")


def _unknown_label(column: str, split: Any, label: Any, names: Sequence[str], where: str = "") -> ConfigError:
    return ConfigError(
        f"the {split} split has unknown label {label!r} in column {column!r}{where}."
        f"{_yaml_hint(str(label), names)}{did_you_mean(str(label), names)} Labels are: {one_of(names)}{way_out(split)}"
    )


def _yaml_hint(label: str, names: Iterable[str]) -> str:
    """Return a hint on how to write a label that YAML reads as something else, such as no (False) or 007 (7)."""
    try:
        read: Any = OmegaConf.to_container(OmegaConf.create(f"[{label}]"))
    except yaml.YAMLError:
        return ""
    read = ", ".join(map(str, read))
    return f" YAML reads {label} as {read}: put it in quotes in dataset.labels." if read in names else ""


def way_out(split: Any) -> str:
    """Return a hint on how to leave a split out; test splits of public datasets often have no labels (-1)."""
    return "" if split == "train" else f". dataset.splits.{split}=none leaves the split out"


def _check_label_range(dataset: DatasetDict, column: str, names: list[str]) -> DatasetDict:
    for split, rows in dataset.items():
        labels = rows[column][:]
        _require_labels(rows, labels, split)
        wrong = [number for number, label in enumerate(labels) if not 0 <= label < len(names)]
        if wrong:
            raise _unknown_label(column, split, labels[wrong[0]], names, f" ({places(rows, wrong)})")
        other = rows.features[column]
        if isinstance(other, ClassLabel) and other.names != names:
            raise ConfigError(
                f"the labels of the {split} split ({one_of(other.names)}) differ from those of train ({one_of(names)})"
            )
    return dataset


def cast_classes(
    dataset: DatasetDict, column: str, wanted: list[str] | None, separator: str | None = None
) -> DatasetDict:
    """Convert lists of classes (names, numbers, or `ClassLabel` ids) to mappings of all classes to truth values.

    Lists that have the same length of at least two in all rows, and hold nothing but 0 and 1, are read as truth values
    themselves, of the classes in `wanted`.

    Args:
        separator: text between the classes of a row, if these are a single text.

    Raises:
        ConfigError: the column holds something else, or truth values of classes without names.
    """
    if separator:
        dataset = DatasetDict({split: _split_texts(rows, column, separator) for split, rows in dataset.items()})
    feature = _features(dataset)[column]
    if isinstance(feature, dict):  # the column already holds one truth value per class
        names = wanted or list(feature)
        return DatasetDict({split: _in_order(rows, str(split), column, names) for split, rows in dataset.items()})
    for rows in dataset.values():
        if not isinstance(rows.features[column], List):
            raise ConfigError(
                f"column {column!r} holds {rows.features[column]}, expected a list of classes in each row, or one "
                f"text with task.separator between them{_separator_hint(rows, column)}"
            )
    values = {split: _row_classes(rows, column) for split, rows in dataset.items()}
    if not isinstance(feature.feature, ClassLabel) and _are_truth_values(dataset, values, column):
        return _named_truth(dataset, column, values, wanted)
    own = feature.feature.names if isinstance(feature.feature, ClassLabel) else None
    seen = {split: [name for row in lists for name in row] for split, lists in values.items()}
    names = wanted or own or _label_names([name for classes in seen.values() for name in classes], column)
    ids = {name: index for index, name in enumerate(names)}
    truth: dict[Any, list[list[bool]]] = {}
    for split, lists in values.items():
        numbers = [number for number, row in enumerate(lists) for _ in row]
        _require_known(dataset[split], column, split, [str(name) for name in seen[split]], ids, numbers)
        truth[split] = [[name in set(map(str, row)) for name in names] for row in lists]
    return _with_truth(dataset, column, names, truth)


def _separator_hint(rows: Dataset, column: str) -> str:
    """Return a hint on what seems to separate the classes of a text; empty where nothing does."""
    texts = [text or "" for text in rows[column][:]] if _is_text(rows.features[column]) else []
    counts = Counter(mark for text in texts for mark in ";|,/" if mark in text)
    if not counts:
        return ""
    (mark, _), text = counts.most_common(1)[0], max(texts, key=len)
    return f": set task.separator={mark!r} if that is what separates {text!r:.80}"


def _with_truth(dataset: DatasetDict, column: str, names: list[str], truth: dict[Any, Any]) -> DatasetDict:
    feature: Any = {name: Value("bool") for name in names}
    mapped = {split: [dict(zip(names, row, strict=True)) for row in lists] for split, lists in truth.items()}
    return DatasetDict({split: _with_column(dataset[split], column, mapped[split], feature) for split in mapped})


def _are_truth_values(dataset: DatasetDict, values: dict[Any, list[list[Any]]], column: str) -> bool:
    """Tell whether the lists hold a truth value (0 or 1) for each class, and not class ids.

    Raises:
        ConfigError: a list holds neither: truth values are equally many in each row, and ids are distinct integers.
    """
    lists = [row for rows in values.values() for row in rows]
    lengths = {len(row) for row in lists}
    as_many = len(lengths) == 1 and min(lengths) > 1
    if as_many and all(str(value).lower() in TRUTH for row in lists for value in row):
        return True
    for split, rows in values.items():
        for number, row in enumerate(rows):
            ids = [value for value in row if isinstance(value, int)]
            if any(isinstance(value, bool | float) for value in row) or as_many and len(set(ids)) < len(ids):
                raise ConfigError(
                    f"column {column!r} of the {split} split, {places(dataset[split], [number])}: {row!r:.80}. "
                    "Truth values must be 0 or 1, one per class in every row; class ids must be distinct integers"
                )
    return False


def _named_truth(
    dataset: DatasetDict, column: str, values: dict[Any, list[list[Any]]], wanted: list[str] | None
) -> DatasetDict:
    """Convert lists of truth values to mappings, by names that only the user knows."""
    width = len(next(row for rows in values.values() for row in rows))
    if wanted is None or len(wanted) != width:
        given = "" if wanted is None else f", not {len(wanted)} ({one_of(wanted)})"
        raise ConfigError(
            f"column {column!r} holds {width} truth values in each row, one for each class: set "
            f"dataset.labels=[NAME, ...] to the names of the {width} classes in order{given}"
        )
    note(f"column {column!r}: reading the {width} ones and zeros of a row as truth values of the classes in order")
    truth = {split: [[bool(to_truth(value, "")) for value in row] for row in rows] for split, rows in values.items()}
    return _with_truth(dataset, column, wanted, truth)


def _in_order(rows: Dataset, split: str, column: str, names: list[str]) -> Dataset:
    """Put the classes of the mappings into the order of `names`, which is the order of the model's outputs."""
    feature: Any = rows.features[column]
    unknown = [name for name in feature if name not in names]
    if unknown:
        raise _unknown_label(column, split, unknown[0], names)
    missing = [name for name in names if name not in feature]
    if missing:
        raise ConfigError(f"the {split} split's column {column!r} has no truth value for {one_of(missing)}")
    if list(feature) == names:
        return rows
    truth = [row and {name: row[name] for name in names} for row in rows[column][:]]
    return _with_column(rows, column, truth, {name: feature[name] for name in names})


def _split_texts(rows: Dataset, column: str, separator: str) -> Dataset:
    """Split texts at the separators into lists of class names.

    Raises:
        ConfigError: the texts are lists as Python or JSON write them.
    """
    if not _is_text(rows.features[column]):
        return rows
    texts = [text or "" for text in rows[column][:]]
    if any(texts) and all(text[:1] + text[-1:] in ("[]", "{}", "()", "") for text in texts):
        raise ConfigError(
            f"column {column!r} holds lists written as text, e.g. {max(texts, key=len)!r:.80}; separate the "
            f"names by {separator!r}, or use lists in JSON lines"
        )
    lists = [[name.strip() for name in text.split(separator) if name.strip()] for text in texts]
    return _with_column(rows, column, lists, List(Value("string")))


def _row_classes(rows: Dataset, column: str) -> list[list[Any]]:
    """Return the classes of each row; ids of a `ClassLabel` become names, by this split's own `ClassLabel`."""
    feature = rows.features[column].feature
    lists = [values or [] for values in rows[column][:]]
    if not isinstance(feature, ClassLabel):
        return lists
    return [[feature.names[i] if 0 <= i < len(feature.names) else i for i in values] for values in lists]


# A tag for each item of a list in another column, e.g. for each word of a text.


def cast_tags(dataset: DatasetDict, column: str, wanted: list[str] | None) -> DatasetDict:
    """Make the lists of tags (names, numbers, or `ClassLabel` ids) lists of `ClassLabel`.

    The tags are `wanted`, or the column's own `ClassLabel` names, or those of the training rows: `O`, then sorted.

    Raises:
        ConfigError: the column holds something else, or a tag that is not among them.
    """
    for split, rows in dataset.items():
        feature = rows.features[column]
        if not isinstance(feature, List | LargeList) or not isinstance(feature.feature, ClassLabel | Value):
            raise ConfigError(
                f"column {column!r} of the {split} split holds {feature}, expected a list of tags in each row"
                f"{way_out(split)}"
            )
    values = {split: _row_classes(rows, column) for split, rows in dataset.items()}
    feature = _features(dataset)[column].feature
    own = feature.names if isinstance(feature, ClassLabel) else None
    names = wanted or own or _tag_names(next(iter(values.values())), column)
    ids = {name: index for index, name in enumerate(names)}
    result = {}
    for split, lists in values.items():
        _require_known_tags(dataset[split], lists, ids, column, split)
        tags = [[ids[str(tag)] for tag in row] for row in lists]
        result[split] = _with_column(dataset[split], column, tags, List(ClassLabel(names=list(names))))
    return DatasetDict(result)


def _tag_names(lists: list[list[Any]], column: str) -> list[str]:
    names = _label_names([tag for row in lists for tag in row if tag is not None], column)
    return sorted(names, key=lambda name: name != OUTSIDE)  # a stable sort: the others stay in their order


def _require_known_tags(rows: Dataset, lists: list[list[Any]], ids: dict[str, int], column: str, split: Any) -> None:
    """Raise ConfigError for a tag that is missing or unknown; the message names the rows."""
    unknown = [(number, tag) for number, row in enumerate(lists) for tag in row if tag is None or str(tag) not in ids]
    if not unknown:
        return
    tag = unknown[0][1]
    numbers = list(dict.fromkeys(number for number, other in unknown if other == tag))
    name = str(tag)
    what = "has a missing tag" if tag is None else f"has the unknown tag {name!r}"
    hint = "" if tag is None else f"{_yaml_hint(name, ids)}{did_you_mean(name, ids)} Tags are: {one_of(ids)}"
    raise ConfigError(
        f"the {split} split {what} in column {column!r} ({places(rows, numbers)}).{hint}. Tags are learnt from the "
        f"training rows unless dataset.labels=[NAME, ...] lists them{way_out(split)}"
    )
