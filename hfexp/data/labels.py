"""Label columns: a class, several classes, a number or a list of tags per row, in the same form in every split."""

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, LargeList, List, Value
from omegaconf import OmegaConf

from hfexp.core.console import note
from hfexp.core.errors import ConfigError, DataError, did_you_mean, one_of
from hfexp.data.arrow_columns import (
    ROWS_AT_ONCE,
    arrays,
    contiguous,
    counted,
    item_counts,
    lengths,
    list_lengths,
    list_numbers,
    of_rows,
    rows_with,
    with_column,
    with_items,
)
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
    if task.label_kind == TAGS:
        return _misaligned(rows, task.tagged_column or "", column)
    if task.label_kind in (NUMBER, TEXT):
        return _faults(_read(rows, column), task.read_number if task.label_kind == NUMBER else to_text)
    return _wrong_truth(rows, column)


def check_row(task: Task, learns: bool, row: dict[str, Any]) -> None:
    """Raise DataError for a stored row that can't be read or, if it `learns` from it, not be learnt from."""
    task.decode(row)
    if learns:
        task.check_learnable(row)


def _read(rows: Dataset, column: str) -> Iterator[Any]:
    """Yield the values of a column, of which only some are in memory at once."""
    values = rows[column]
    for start in range(0, len(rows), ROWS_AT_ONCE):
        yield from values[start : start + ROWS_AT_ONCE]


def _wrong_truth(rows: Dataset, column: str) -> tuple[list[int], DataError] | None:
    wrong = [_has_wrong_truth(values) for values in arrays(rows, column)]
    positions = np.flatnonzero(of_rows(rows, np.concatenate([np.zeros(0, bool), *wrong]))).tolist()
    if not positions:
        return None
    first = _faults([rows[positions[0]][column]], _truth_values)
    assert first is not None
    return positions, first[1]


def _has_wrong_truth(values: pa.StructArray) -> np.ndarray:
    """Tell for each mapping of classes to truth values whether it is missing, or a value is none, (N,) bool."""
    wrong = np.array(values.is_null())
    for of_class in values.flatten():
        others = [value for value in of_class.unique().to_pylist() if str(value).lower() not in TRUTH]
        if others:
            wrong |= np.asarray(pc.is_in(of_class, pa.array(others, of_class.type)))  # pyright: ignore
    return wrong


def _truth_values(label: dict[str, Any] | None) -> list[int]:
    if label is None:
        raise DataError("the label is missing")
    return [to_truth(value, name) for name, value in label.items()]


def _misaligned(rows: Dataset, items: str, tags: str) -> tuple[list[int], DataError] | None:
    """Find the rows with another number of tags than of items; an item column that holds no lists is let through."""
    if not isinstance(rows.features[items], List | LargeList):
        return None
    sizes, wanted = list_lengths(rows, items, missing=-1), list_lengths(rows, tags)
    wrong = np.flatnonzero((sizes != wanted) & (sizes >= 0))
    if not len(wrong):
        return None
    return wrong.tolist(), DataError(f"{wanted[wrong[0]]} tags for {sizes[wrong[0]]} words")


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
        return {name for name, count in label_counts(rows, task).items() if count}
    found: set[str] = set()
    for values, times in counted(rows, column):
        columns = values.filter(pa.array(times > 0)).flatten()
        found |= {name for name, truth in zip(feature, columns, strict=True) if any(truth.unique().to_pylist())}
    return found


def label_counts(rows: Dataset, task: Task) -> dict[str, int]:
    """Count how often each class is a label, of a row or of a word, by name; for tasks with classes or tags."""
    column = task.label_column or ""
    feature: Any = rows.features[column]
    if task.label_kind == TAGS:
        names, counts = feature.feature.names, np.zeros(len(feature.feature.names))
        for lists, times in counted(rows, column):
            weights = np.repeat(times, lengths(lists))
            counts += np.bincount(np.asarray(lists.flatten()), weights, minlength=len(names))
    else:
        names = feature.names
        counts = np.bincount(class_ids(rows, column).astype(np.int64), minlength=len(names))
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
    return of_rows(rows, np.asarray(rows.data.column(column)))


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
        names = wanted or _label_names([pair for v in values.values() for pair in Counter(v).items()], column)
        values = {split: list(map(str, labels)) for split, labels in values.items()}
    else:
        raise ConfigError(f"column {column!r} holds {feature}, expected class names or integers")
    ids = {name: index for index, name in enumerate(names)}
    result = {}
    for split, labels in values.items():
        _require_labels(dataset[split], labels, split)
        _require_known(dataset[split], column, split, Counter(labels), ids, functools.partial(_numbers_of, labels))
        feature = ClassLabel(names=list(names))
        result[split] = _with_column(dataset[split], column, [ids[str(label)] for label in labels], feature)
    return DatasetDict(result)


def _row_labels(rows: Dataset, column: str) -> list[str | None]:
    """Return the names of the labels, by this split's own `ClassLabel`; None for an id without a name."""
    names = rows.features[column].names
    return [names[i] if i is not None and 0 <= i < len(names) else None for i in rows[column][:]]


def _label_names(labels: Sequence[tuple[Any, int]], column: str) -> list[str]:
    """Return the names of all labels, sorted (numbers by their value).

    Args:
        labels: different labels, and how many there are of each.

    Raises:
        ConfigError: the labels are real numbers, or there are more than half as many classes as rows.
    """
    if any(isinstance(value, float) for value, _ in labels):
        raise ConfigError(f"column {column!r} holds real numbers, expected class names or integers")
    counts: Counter[str] = Counter()
    for value, count in labels:
        counts[str(value)] += count
    if counts.total() >= FEW_ROWS and 2 * len(counts) > counts.total():
        raise ConfigError(
            f"column {column!r} has {len(counts)} classes in {counts.total()} rows: if these are not classes (but "
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
    rows: Dataset,
    column: str,
    split: Any,
    counts: Mapping[Any, int],
    ids: Mapping[Any, int],
    find: Callable[[Any], Sequence[int]],
) -> None:
    """Raise ConfigError for the most frequent label that is unknown.

    Args:
        counts: how many there are of each label.
        ids: ids of the known labels.
        find: returns the numbers of the rows with a label.
    """
    unknown = [label for label in counts if label not in ids]
    if unknown:
        label = max(unknown, key=lambda name: counts[name])
        raise _unknown_label(column, split, label, list(map(str, ids)), f" ({places(rows, find(label))})")


def _numbers_of(labels: Sequence[Any], label: Any) -> list[int]:
    return [number for number, other in enumerate(labels) if other == label]


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
    dataset = DatasetDict({split: contiguous(rows) for split, rows in dataset.items()})
    counts = {split: item_counts(rows, column) for split, rows in dataset.items()}
    if not isinstance(feature.feature, ClassLabel) and _are_truth_values(dataset, counts, column):
        return _named_truth(dataset, counts, column, wanted)
    own = feature.feature.names if isinstance(feature.feature, ClassLabel) else None
    shown = {split: {item: _shown(dataset[split], column, item) for item in counts[split]} for split in counts}
    seen = [(shown[split][item], counts[split][item]) for split in counts for item in counts[split]]
    names = wanted or own or _label_names([pair for pair in seen if pair[0] is not None], column)
    ids = {name: index for index, name in enumerate(names)}
    result = {}
    for split, rows in dataset.items():
        known = {item: str(name) for item, name in shown[split].items()}
        found = {name: counts[split][item] for item, name in known.items()}
        _require_known(rows, column, split, found, ids, functools.partial(_rows_named, rows, column, known))
        make = functools.partial(_truth_of_ids, {item: ids[name] for item, name in known.items()}, list(names))
        result[split] = _with_truth(rows, column, list(names), make)
    return DatasetDict(result)


def _shown(rows: Dataset, column: str, item: Any) -> Any:
    """Return an item of a column of lists; for an id of a `ClassLabel` its name, if it has one."""
    feature: Any = rows.features[column].feature
    if isinstance(feature, ClassLabel) and item is not None and 0 <= item < len(feature.names):
        return feature.names[item]
    return item


def _rows_named(rows: Dataset, column: str, names: Mapping[Any, str], name: str) -> list[int]:
    """Return the numbers of the rows with an item of this name in their list."""
    return rows_with(rows, column, [item for item, other in names.items() if other == name])


def _separator_hint(rows: Dataset, column: str) -> str:
    """Return a hint on what seems to separate the classes of a text; empty where nothing does."""
    if not _is_text(rows.features[column]):
        return ""
    counts = Counter(mark for text in _texts(rows, column) for mark in ";|,/" if mark in text)
    if not counts:
        return ""
    (mark, _), text = counts.most_common(1)[0], max(_texts(rows, column), key=len)
    return f": set task.separator={mark!r} if that is what separates {text!r:.80}"


def _with_truth(rows: Dataset, column: str, names: list[str], make: Any) -> Dataset:
    """Replace lists by mappings of all classes to truth values; `make` is a partial of the function that does it."""
    feature = {name: Value("bool") for name in names}
    return with_column(rows, column, [column], make, feature, [make.func.__name__])


def _truth_of_ids(ids: Mapping[Any, int], names: list[str], batch: pa.RecordBatch) -> pa.StructArray:
    """Make mappings of all classes to truth values of lists of classes."""
    lists: Any = batch.column(0)
    has = np.zeros((len(lists), len(names)), bool)
    has[list_numbers(lists), _looked_up(lists.flatten(), ids)] = True
    return _mappings(has, names)


def _mappings(has: np.ndarray, names: list[str]) -> pa.StructArray:
    """Make mappings of class names to the columns of an array of truth values, (N, C)."""
    kind = pa.struct([(name, pa.bool_()) for name in names])
    columns = [pa.array(np.ascontiguousarray(of_class)) for of_class in has.T]
    return pa.StructArray.from_buffers(kind, len(has), [None], children=columns)


def _looked_up(items: Any, numbers: Mapping[Any, int]) -> np.ndarray:
    """Return the number of each item of an array, (N,) int64."""
    places = pc.index_in(items, pa.array(list(numbers), items.type))  # pyright: ignore[reportAttributeAccessIssue]
    return np.array(list(numbers.values()), np.int64)[np.asarray(places, dtype=np.int64)]


def _are_truth_values(dataset: DatasetDict, counts: Mapping[Any, Counter[Any]], column: str) -> bool:
    """Tell whether the lists hold a truth value (0 or 1) for each class, and not class ids.

    Args:
        counts: the items of each split.

    Raises:
        ConfigError: a list holds neither: truth values are equally many in each row, and ids are distinct integers.
    """
    sizes = {int(size) for rows in dataset.values() for size in np.unique(list_lengths(rows, column))}
    as_many = len(sizes) == 1 and min(sizes) > 1
    if as_many and all(str(item).lower() in TRUTH for items in counts.values() for item in items):
        return True
    for split, rows in dataset.items():
        number = _first_neither(rows, column, as_many)
        if number is not None:
            raise ConfigError(
                f"column {column!r} of the {split} split, {places(rows, [number])}: {rows[number][column]!r:.80}. "
                "Truth values must be 0 or 1, one per class in every row; class ids must be distinct integers"
            )
    return False


def _first_neither(rows: Dataset, column: str, as_many: bool) -> int | None:
    """Return the number of the first row with a truth value or real number or, if all are `as_many`, an id twice."""
    start = 0
    for lists in arrays(rows, column):
        items, numbers = lists.flatten(), list_numbers(lists)
        wrong = numbers[:0]
        if pa.types.is_boolean(items.type) or pa.types.is_floating(items.type):
            wrong = numbers[np.asarray(items.is_valid())]
        elif pa.types.is_integer(items.type) and as_many:
            pairs = np.stack([numbers, np.asarray(items.dictionary_encode().indices.fill_null(-1))], 1)
            pairs, times = np.unique(pairs[pairs[:, 1] >= 0], axis=0, return_counts=True)
            wrong = pairs[times > 1, 0]
        if len(wrong):
            return start + int(wrong.min())
        start += len(lists)
    return None


def _named_truth(
    dataset: DatasetDict, counts: Mapping[Any, Counter[Any]], column: str, wanted: list[str] | None
) -> DatasetDict:
    """Convert lists of truth values to mappings, by names that only the user knows."""
    width = len(next(rows[0][column] for rows in dataset.values() if len(rows)))
    if wanted is None or len(wanted) != width:
        given = "" if wanted is None else f", not {len(wanted)} ({one_of(wanted)})"
        raise ConfigError(
            f"column {column!r} holds {width} truth values in each row, one for each class: set "
            f"dataset.labels=[NAME, ...] to the names of the {width} classes in order{given}"
        )
    note(f"column {column!r}: reading the {width} ones and zeros of a row as truth values of the classes in order")
    result = {}
    for split, rows in dataset.items():
        truth = {item: to_truth(item, "") for item in counts[split]}
        result[split] = _with_truth(rows, column, wanted, functools.partial(_truth_of_marks, truth, wanted))
    return DatasetDict(result)


def _truth_of_marks(truth: Mapping[Any, int], names: list[str], batch: pa.RecordBatch) -> pa.StructArray:
    """Make mappings of all classes to truth values of lists with the mark of each class."""
    items: Any = batch.column(0)
    has = _looked_up(items.flatten(), truth).reshape(len(items), len(names))
    return _mappings(has.astype(bool), names)


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

    def make(batch: pa.RecordBatch) -> pa.StructArray:
        values: Any = batch.column(0)
        fields = [values.type.field(name) for name in names]
        return pa.StructArray.from_arrays([values.field(n) for n in names], fields=fields, mask=values.is_null())

    return with_column(rows, column, [column], make, {name: feature[name] for name in names})


def _split_texts(rows: Dataset, column: str, separator: str) -> Dataset:
    """Split texts at the separators into lists of class names.

    Raises:
        ConfigError: the texts are lists as Python or JSON write them.
    """
    if not _is_text(rows.features[column]):
        return rows
    longest = max(_texts(rows, column), key=len, default="")
    if longest and all(text[:1] + text[-1:] in ("[]", "{}", "()", "") for text in _texts(rows, column)):
        raise ConfigError(
            f"column {column!r} holds lists written as text, e.g. {longest!r:.80}; separate the "
            f"names by {separator!r}, or use lists in JSON lines"
        )

    def make(batch: pa.RecordBatch) -> pa.Array:
        texts = [text or "" for text in batch.column(0).to_pylist()]
        lists = [[name.strip() for name in text.split(separator) if name.strip()] for text in texts]
        return pa.array(lists, pa.list_(pa.string()))

    return with_column(rows, column, [column], make, List(Value("string")), [separator])


def _texts(rows: Dataset, column: str) -> Iterator[str]:
    return (text or "" for text in _read(rows, column))


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
    dataset = DatasetDict({split: contiguous(rows) for split, rows in dataset.items()})
    counts = {split: item_counts(rows, column) for split, rows in dataset.items()}
    feature = _features(dataset)[column].feature
    own = feature.names if isinstance(feature, ClassLabel) else None
    names = wanted or own or _tag_names(next(iter(counts.values())), column)
    ids = {name: index for index, name in enumerate(names)}
    result = {}
    for split, rows in dataset.items():
        shown = {item: _shown(rows, column, item) for item in counts[split]}
        _require_known_tags(rows, shown, ids, column, split)
        make = functools.partial(_tag_ids, {item: ids[str(tag)] for item, tag in shown.items()})
        result[split] = _with_tags(rows, column, List(ClassLabel(names=list(names))), make)
    return DatasetDict(result)


def _with_tags(rows: Dataset, column: str, feature: Any, make: Callable[[pa.RecordBatch], pa.Array]) -> Dataset:
    """Replace the tags of the rows by their ids, unless they are these already."""
    if rows.features[column] == feature and not rows.data.column(column).null_count:
        return rows.select_columns([*(name for name in rows.column_names if name != column), column])
    return with_column(rows, column, [column], make, feature)


def _tag_ids(ids: Mapping[Any, int], batch: pa.RecordBatch) -> pa.ListArray:
    """Make lists of ids of lists of tags."""
    lists: Any = batch.column(0)
    return with_items(lists, pa.array(_looked_up(lists.flatten(), ids)))


def _tag_names(counts: Mapping[Any, int], column: str) -> list[str]:
    names = _label_names([(tag, count) for tag, count in counts.items() if tag is not None], column)
    return sorted(names, key=lambda name: name != OUTSIDE)  # a stable sort: the others stay in their order


def _require_known_tags(
    rows: Dataset, shown: Mapping[Any, Any], ids: Mapping[str, int], column: str, split: Any
) -> None:
    """Raise ConfigError for a tag that is missing or unknown; the message names the rows.

    Args:
        shown: the items of the column, in their order, and the tags that they are.
    """
    unknown = [item for item, tag in shown.items() if tag is None or str(tag) not in ids]
    if not unknown:
        return
    tag = shown[unknown[0]]
    name = str(tag)
    what = "has a missing tag" if tag is None else f"has the unknown tag {name!r}"
    hint = "" if tag is None else f"{_yaml_hint(name, ids)}{did_you_mean(name, ids)} Tags are: {one_of(ids)}"
    where = places(rows, rows_with(rows, column, unknown[:1]))
    raise ConfigError(
        f"the {split} split {what} in column {column!r} ({where}).{hint}. Tags are learnt from the "
        f"training rows unless dataset.labels=[NAME, ...] lists them{way_out(split)}"
    )
