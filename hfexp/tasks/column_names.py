"""Columns by the names that they have in people's tables and on the Hub.

The names are those of well-known datasets of the Hub: GLUE, IMDB, CoNLL-2003, SNLI, SWAG, RACE, SQuAD, CIFAR, and of
the examples of TRL and sentence-transformers. A name that can mean several things (`title`, `pos_tags`) is in no list.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hfexp.core.errors import ConfigError

if TYPE_CHECKING:
    from hfexp.tasks.base import Task

Spec = str | list[str] | dict[str, str]
"""A column of a source, or columns to make one of: a list of values, or a mapping of them by name."""

TEXT = ("sentence", "content", "review", "document", "comment", "tweet", "message", "utterance", "body")
"""Names of a column of texts that stand alone."""
FIRST = (
    "sentence1", "sentence_1", "sentence_a", "premise", "question1", "question", "query", "text1", "text_a", "sent1",
)  # fmt: skip
"""Names of the first of two texts."""
SECOND = (
    "sentence2", "sentence_2", "sentence_b", "hypothesis", "question2", "sentence", "passage", "text2", "text_b",
    "sent2",
)  # fmt: skip
"""Names of the second of two texts."""
CLASS = ("labels", "class", "category", "target", "sentiment", "intent", "topic", "emotion")
"""Names of a column of classes."""
NUMBER = (
    "labels", "score", "rating", "stars", "value", "target", "similarity", "similarity_score", "relatedness_score",
)  # fmt: skip
"""Names of a column of numbers to predict."""
IMAGE = ("img", "picture", "photo", "file", "file_name", "filename", "path", "image_path", "file_path", "filepath")
"""Names of a column of images, or of their paths."""
ANSWERS = {
    "chosen": ("chosen_response", "accepted", "preferred"),
    "rejected": ("rejected_response", "dispreferred"),
    "prompt": ("question", "instruction"),
}
"""Names of a preferred answer, of one that is not, and of what both answer."""


def parts_of(spec: Any) -> list[str]:
    """Return the names of the source's columns that a standard column is made of.

    Raises:
        ConfigError: the value is no name, list of names or mapping of names.
    """
    names = list(spec.values()) if isinstance(spec, Mapping) else [spec] if isinstance(spec, str) else spec
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"dataset.columns: expected a name, a list of names or a mapping of them, got {spec!r:.80}")
    return list(names)


def shown(spec: Spec) -> str:
    """Return a column, or the columns to make one of, as a message names them."""
    names = parts_of(spec)
    return f"column{'s' * (len(names) > 1)} {', '.join(map(repr, names))}"


def usual_columns(
    own: Sequence[str], columns: Mapping[str, Spec], names: Iterable[str], task: "Task", section: str
) -> dict[str, Spec]:
    """Find the columns that have usual names, for standard columns that the source lacks and the user does not name.

    Args:
        own: columns of the source.
        columns: what the user names.
        names: standard columns to look for.
        section: where the user can name columns.

    Raises:
        ConfigError: several columns could be one standard column.
    """
    taken = {part for spec in columns.values() for part in parts_of(spec)} | set(task.all_columns)
    free = [name for name in own if name not in taken]
    wanted = [name for name in names if name not in columns and name not in own]
    found = {name: usual_column(free, name, task.usual_names.get(name, ()), f"{section}.{name}") for name in wanted}
    return {name: spec for name, spec in found.items() if spec is not None}


def usual_column(own: Sequence[str], name: str, usual: Sequence[Spec], key: str) -> Spec | None:
    """Return the column that has a usual name; None if there is none.

    Args:
        name: what the column is read as; a column that differs from it in capitals and spaces only is one, too.
        usual: other names, or columns to make one of.
        key: where the user can name another one.

    Raises:
        ConfigError: there are several.
    """
    plain = {name, *(other.lower() for other in usual if isinstance(other, str))}
    found: list[Spec] = [column for column in own if column.strip().lower() in plain]
    found += [spec for spec in usual if not isinstance(spec, str) and set(parts_of(spec)) <= set(own)]
    if len(found) > 1:
        raise ConfigError(f"{' and '.join(map(shown, found))} could each be {name!r}: set {key}=NAME")
    return found[0] if found else None
