"""Label columns: one class a row, several, or a number; with the same classes in every split."""

from collections import Counter
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from hfexp.errors import ConfigError, did_you_mean, one_of
from hfexp.tasks.base import CLASS, NUMBER, Task


def cast_labels(dataset: DatasetDict, task: Task, labels: list[str] | None) -> DatasetDict:
    """Bring the label column into the form that tasks of its kind read, the same in every split.

    * A class: a `ClassLabel`.
    * Several classes: a mapping of names to truth values; see `cast_classes`.
    * A number, or no label: as it is.

    Args:
        labels: names of the classes in the order of their ids; None: the dataset's own, or sorted.

    Raises:
        ConfigError: the column holds something else, or a class that has no name.
    """
    if task.label_column is None:
        return dataset
    twice = sorted({name for name in labels or [] if (labels or []).count(name) > 1})
    if twice:
        raise ConfigError(f"dataset.labels has {twice[0]!r} more than once")
    if task.label_kind == NUMBER:
        if isinstance(_features(dataset)[task.label_column], ClassLabel):
            raise ConfigError(f"column {task.label_column!r} holds classes, whose numbers mean nothing; give a number")
        return dataset
    if task.label_kind == CLASS:
        return cast_class(dataset, task.label_column, labels)
    return cast_classes(dataset, task.label_column, labels, task.label_separator)


def _features(dataset: DatasetDict) -> Features:
    """Of the training split, the first one where there is one."""
    return next(iter(dataset.values())).features


def class_column(task: Task) -> str | None:
    """The column that holds one class a row, if there is one."""
    return task.label_column if task.label_kind == CLASS else None


def cast_class(dataset: DatasetDict, column: str, wanted: list[str] | None) -> DatasetDict:
    """Make the label column a `ClassLabel`; labels that it does not name are refused."""
    feature = _features(dataset)[column]
    if isinstance(feature, ClassLabel):
        names, feature_names = wanted or feature.names, feature.names
        if names == feature_names:
            return _check_label_range(dataset, column, names)
        values = {split: _label_words(rows, column) for split, rows in dataset.items()}
    elif isinstance(feature, Value):
        values = {split: rows[column][:] for split, rows in dataset.items()}
        names = wanted or _label_names(values, column)
        values = {split: [None if v is None else str(v) for v in column_] for split, column_ in values.items()}
    else:
        raise ConfigError(f"column {column!r} holds {feature}; class names or integers are needed")
    ids = {name: index for index, name in enumerate(names)}
    result = {}
    for split, labels in values.items():
        _require_known(labels, ids, split)
        rows = dataset[split].remove_columns(column)
        features = Features({column: ClassLabel(names=list(names))})
        result[split] = rows.add_column(column, [ids[str(label)] for label in labels], feature=features[column])
    return DatasetDict(result)


def _label_words(rows: Dataset, column: str) -> list[str | None]:
    """Labels as words, by the names of this very split."""
    names = rows.features[column].names
    return [names[i] if i is not None and 0 <= i < len(names) else None for i in rows[column][:]]


def _label_names(values: dict[Any, list], column: str) -> list[str]:
    """Sorted names of all labels; integers sort as numbers."""
    seen = {value for labels in values.values() for value in labels if value is not None}
    if any(isinstance(value, float) for value in seen):
        raise ConfigError(f"column {column!r} holds real numbers; class names or integers are needed")
    return [str(value) for value in sorted(seen)]


def _require_known(labels: list[str | None], ids: dict[str, int], split: Any) -> None:
    unknown = Counter(label for label in labels if label not in ids)
    if unknown:
        label, count = unknown.most_common(1)[0]
        shown = "missing labels" if label is None else f"unknown label {label!r}"
        hint = "" if label is None else did_you_mean(label, ids)
        raise ConfigError(
            f"the {split} split has {shown} ({count} rows).{hint} Labels are: {one_of(ids)}{_way_out(split)}"
        )


def _way_out(split: Any) -> str:
    """Test splits of public datasets often have no labels (-1)."""
    return "" if split == "train" else f". dataset.splits.{split}=none leaves the split out"


def _check_label_range(dataset: DatasetDict, column: str, names: list[str]) -> DatasetDict:
    for split, rows in dataset.items():
        wrong = [label for label in rows[column][:] if label is None or not 0 <= label < len(names)]
        if wrong:
            raise ConfigError(
                f"the {split} split has unknown label {wrong[0]!r} ({len(wrong)} rows). Labels are: {one_of(names)}"
                f"{_way_out(split)}"
            )
        other = rows.features[column]
        if isinstance(other, ClassLabel) and other.names != names:
            raise ConfigError(
                f"the {split} split has other labels ({one_of(other.names)}) than train ({one_of(names)})"
            )
    return dataset


def cast_classes(
    dataset: DatasetDict, column: str, wanted: list[str] | None, separator: str | None = None
) -> DatasetDict:
    """Lists of classes (names, numbers, or a `ClassLabel` each) as mappings of all classes to truth values.

    Args:
        separator: what stands between the classes of a row where they are one text.
    """
    feature = _features(dataset)[column]
    if isinstance(feature, dict):  # one truth value a class from the start
        names = wanted or list(feature)
        return DatasetDict({split: _in_order(rows, str(split), column, names) for split, rows in dataset.items()})
    if isinstance(feature, Value) and separator and feature.dtype in ("string", "large_string"):
        dataset = DatasetDict({split: _parted(rows, column, separator) for split, rows in dataset.items()})
        feature = _features(dataset)[column]
    if not isinstance(feature, List):
        raise ConfigError(
            f"column {column!r} holds {feature}; a list of classes in each row is needed, or one text in which "
            "task.separator stands between them"
        )
    own = feature.feature.names if isinstance(feature.feature, ClassLabel) else None
    values = {split: _words_of_lists(rows, column) for split, rows in dataset.items()}
    seen = {split: [name for row in lists for name in row] for split, lists in values.items()}
    names = wanted or own or _label_names(seen, column)
    ids = {name: index for index, name in enumerate(names)}
    result = {}
    for split, lists in values.items():
        _require_known([str(name) for name in seen[split]], ids, split)
        truth = [{name: name in set(map(str, row)) for name in names} for row in lists]
        features = Features({column: {name: Value("bool") for name in names}})
        rows = dataset[split].remove_columns(column)
        result[split] = rows.add_column(column, truth, feature=features[column])  # pyright: ignore
    return DatasetDict(result)


def _in_order(rows: Dataset, split: str, column: str, names: list[str]) -> Dataset:
    """Mappings with their classes in this order, by which they are the model's."""
    feature: Any = rows.features[column]
    _require_known(list(feature), {name: index for index, name in enumerate(names)}, split)
    missing = [name for name in names if name not in feature]
    if missing:
        raise ConfigError(f"the {split} split's column {column!r} has no truth value for {one_of(missing)}")
    if list(feature) == names:
        return rows
    truth = [row and {name: row[name] for name in names} for row in rows[column][:]]
    features = Features({column: {name: feature[name] for name in names}})
    return rows.remove_columns(column).add_column(column, truth, feature=features[column])  # pyright: ignore


def _parted(rows: Dataset, column: str, separator: str) -> Dataset:
    """Texts as lists of the words between separators."""
    lists = [[word.strip() for word in (text or "").split(separator) if word.strip()] for text in rows[column][:]]
    return rows.remove_columns(column).add_column(column, lists, feature=List(Value("string")))  # pyright: ignore


def _words_of_lists(rows: Dataset, column: str) -> list[list[Any]]:
    """Classes of each row; ids of a `ClassLabel` as words, by the names of this very split."""
    feature = rows.features[column].feature
    lists = [values or [] for values in rows[column][:]]
    if not isinstance(feature, ClassLabel):
        return lists
    return [[feature.names[i] if 0 <= i < len(feature.names) else i for i in values] for values in lists]
