"""Base class of the tasks: all that the pipeline asks of one."""

import contextlib
import json
import math
import re
import string
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from hfexp.core.errors import ConfigError, DataError, did_you_mean
from hfexp.tasks.cells import is_number

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import torch
    from datasets import DatasetDict


TRUTH = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}


CLASS, CLASSES, NUMBER, TAGS, TEXT, OWN = "class", "classes", "number", "tags", "text", "own"
"""Kinds of labels: one class, any number of classes, a number, one class for each item of another column's list, a
text, or a form of the task's own, which its `decode` checks."""
CLASSLESS = (NUMBER, TEXT, OWN)
"""Kinds of labels without names of classes."""
PROBLEMS = {
    CLASS: "single_label_classification", CLASSES: "multi_label_classification", NUMBER: "regression",
}  # fmt: skip
"""`problem_type` in a model's config by kind of label: it selects the loss. A checkpoint may come with another one.

A model that has one loss only, as those for tags have, needs none."""


WINDOWS = "windows"
"""Field of a row that `transform` has cut into windows: the number of tokens of each; they lie end to end."""
ASKED = ()
"""Label of a row to predict on that no dataset holds."""


class Piece(NamedTuple):
    """A part of a text, plain or marked."""

    text: str
    note: str = ""
    """What the part is, e.g. the type of an entity; empty for plain text."""
    verdict: str = ""
    """`right`, `wrong` or `missed`; empty for plain text."""


class Task(ABC):
    """One kind of problem, as the pipeline sees it: its inputs, labels, batches and scores.

    Options are constructor arguments; a task never sees the configuration tree.
    """

    model_class: ClassVar[str]
    """Name of the model's class in `transformers`, e.g. `AutoModelForImageClassification`."""
    processor_class: ClassVar[str]
    """Name of the processor's class in `transformers`, e.g. `AutoImageProcessor`."""
    columns: ClassVar[tuple[str, ...]]
    """Columns that the task reads, by their standard names."""
    defaults: ClassVar[Mapping[str, Any]] = types.MappingProxyType({})
    """Columns that a dataset may lack or leave empty, and the value that the rows of one that lacks them have."""
    usual_names: ClassVar[Mapping[str, tuple[Any, ...]]] = types.MappingProxyType({})
    """Other names that a column often has; one of them is read if the dataset has no column of the standard name.

    In place of a name there can be several columns to make one of, as in `dataset.columns`: a list or a mapping."""
    optional_columns: ClassVar[tuple[str, ...]] = ()
    """Further columns, which the task reads if the dataset has them."""
    inference_columns: ClassVar[tuple[str, ...]] = ()
    """Columns of a table to predict on; empty: those that the task predicts from."""
    label_column: ClassVar[str | None] = None
    """Column to predict, if any; the task predicts it from the other columns."""
    label_kind: ClassVar[str] = CLASS
    """Kind of label in that column: `CLASS`, `CLASSES` (any number of them), `NUMBER`, `TAGS`, `TEXT` or `OWN`."""
    no_label: ClassVar[Any] = 0
    """Label of a row to predict on; `ASKED` where one must be told from all others."""
    tagged_column: ClassVar[str | None] = None
    """Column of lists whose items have a label each, where labels are `TAGS`."""
    label_separator: str | None = None
    """Separator between the classes of a row where the label is a single text."""
    metric: ClassVar[str]
    """Metric that chooses the best model unless the user names another one.

    A task that takes it as an option calls the option `metric`, as a sweep reads it before the task is built.
    """
    greater_is_better: ClassVar[bool] = True

    loss_per_token: ClassVar[bool] = False
    """True if the model's loss is a mean over the labelled tokens of a batch, not over its samples."""

    reduces_labels: ClassVar[bool] = False
    """True if `preprocess_logits` reduces labels of several numbers, (B, T), so that `metric_inputs` gets none."""
    has_own_loss: ClassVar[bool] = False
    """True if `forward` and `loss` compute the loss in place of the model."""
    compares_rows: ClassVar[bool] = False
    """True if a row's loss depends on the other rows, in all processes; rows that only fill up have labels of -100."""
    needs_reference: ClassVar[bool] = False
    """True if `forward` compares the model with `reference`."""
    reference: Any = None
    """The model as it is before the training; one with an adapter is its own reference, without the adapter."""

    takes_columns: ClassVar[bool] = False
    """True if `preprocess` and the collator also take whole batches: each field stacked to (B, ...)."""

    varying_shapes: ClassVar[bool] = False
    """True if rows differ in shape, e.g. texts in length, and the collator brings them to one shape."""

    windowed: ClassVar[bool] = False
    """True if `transform` cuts a row into windows (`WINDOWS`), each an input of the model; `merge` puts them together.

    `preprocess` then gets a window, which has the fields with a value for each token. A row to predict on that
    `transform` does not cut is answered by `respond`.
    """

    generates: bool = False
    """True if evaluated rows are also answered by `generate`, so that metrics can compare what the model writes."""

    draws: ClassVar[bool] = False
    """True if `vary` changes the rows of a dataset at random."""

    raw_type: ClassVar[str] = "binary"
    """MLflow type of a raw input: `binary` or `string`."""
    raw_fields: ClassVar[Mapping[str, Any]] = types.MappingProxyType({})
    """Fields of a raw input that is a mapping, and their types as in `answer_types`; empty: it is a single value."""
    raw_column: ClassVar[str | None] = None
    """Name of the raw inputs in a served model; None: that of the first column that the task predicts from."""

    streams: ClassVar[bool] = False
    """True if `respond` calls its option `on_text` with each new piece of text."""

    quick_options: ClassVar[dict[str, Any]] = {}
    """Options that make `respond` quick and deterministic, for the check of a saved model."""

    block_size: int | None = None
    """Tokens per row when all texts are concatenated and cut into blocks; None: each row stays a row."""

    class_names: Mapping[int, str] = types.MappingProxyType({})
    """Class names by id, once they are known."""

    answer_types: ClassVar[dict[str, Any]] = {}
    """Fields that `answer` returns, and their types: `string`, `strings` (a list), `double`, `doubles`, `long`.

    A list of structures has a dict of their fields and types in place of a name."""

    @property
    def all_columns(self) -> tuple[str, ...]:
        """Return the columns that the task reads, and those that it reads if they are there."""
        return self.columns + self.optional_columns

    def id2label(self, dataset: "DatasetDict") -> dict[int, str] | None:
        """Return the class names by id, from the label column; None for a task without classes."""
        if self.label_column is None or self.label_kind in CLASSLESS:
            return None
        feature = dataset["train"].features[self.label_column]
        feature = feature.feature if self.label_kind == TAGS else feature
        return dict(enumerate(feature if self.label_kind == CLASSES else feature.names))

    def set_classes(self, id2label: Mapping[int, str] | None) -> None:
        """Take note of the class names; it is called once they are known, before a model computes anything."""
        self.class_names = dict(id2label or {})

    def fit_processor(self, processor: Any) -> None:  # noqa: B027 - most tasks have nothing to change
        """Change those settings of a newly loaded tokenizer with which this task can't use it.

        Raises:
            ConfigError: an option of the task does not suit the tokenizer.
        """

    def model_fields(self, id2label: dict[int, str] | None) -> dict[str, Any]:
        """Return the fields of the model's config that depend on the labels: problem type, head size, names."""
        problem = {"problem_type": PROBLEMS[self.label_kind]} if self.label_kind in PROBLEMS else {}
        if id2label is None:
            return {"num_labels": 1, **problem} if self.label_column and self.label_kind == NUMBER else {}
        label2id = {name: number for number, name in id2label.items()}
        return {"id2label": dict(id2label), "label2id": label2id, "num_labels": len(id2label), **problem}

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """Prepare a stored row for the transform, e.g. open its image.

        Raises:
            DataError: the sample can't be read; the message names it.
        """
        return row

    def read_number(self, label: Any) -> float:
        """Return a label as a float (`NUMBER`); raise DataError if it is no number, or one that the task can't use."""
        return to_number(label)

    def check_learnable(self, row: dict[str, Any]) -> None:  # noqa: B027 - most tasks can learn from all they can score
        """Raise DataError for a stored row that can be scored, but not learnt from (`OWN`)."""

    def shown_label(self, row: dict[str, Any]) -> Any:
        """Return the label of a stored row as a person reads it, where labels are of the task's own form (`OWN`)."""
        return row[self.label_column or ""]

    def decoder(self, operations: list[Any]) -> tuple[Callable[[dict[str, Any]], dict[str, Any]], int]:
        """Return the function that decodes rows for these operations, and how many of the first ones it covers."""
        return self.decode, 0

    def vary(self, row: dict[str, Any], processor: Any, draw: "Callable[[int], np.ndarray]") -> dict[str, Any]:
        """Change a transformed row of a dataset at random, before `preprocess`; called if `draws` is true.

        Args:
            draw: returns so many numbers in [0, 1). In training they follow from the seed, the epoch and the row, on
                evaluated splits from the row alone; a second call returns the same ones.
        """
        return row

    @abstractmethod
    def preprocess(self, row: dict[str, Any], processor: Any) -> dict[str, Any]:
        """Turn a decoded and transformed row into model inputs, including `labels`."""

    def picture(self, inputs: dict[str, Any], processor: Any) -> "PIL.Image.Image | str | None":
        """Render a row of model inputs for a person: an image, a text, or None if it can't be shown."""
        return None

    def inference_row(self, value: Any) -> dict[str, Any]:
        """Turn a raw input of a prediction into a row as the dataset stores it.

        Raises:
            DataError: the value is not an input of this task.
        """
        if self.raw_fields and self.label_column:
            return {**self.raw_mapping(value), self.label_column: self.no_label}
        raise NotImplementedError(f"{type(self).__name__} has no inference_row: it can't predict on raw inputs")

    def raw_mapping(self, value: Any) -> dict[str, Any]:
        """Return the fields of a raw input that is a mapping, or the text of one in JSON.

        Raises:
            DataError: it is something else, or lacks a field that has no default.
        """
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = json.loads(value)
        needed = [name for name in self.raw_fields if name not in self.defaults]
        if not isinstance(value, Mapping) or not set(needed) <= set(value):
            raise DataError(f"expected a mapping with {' and '.join(needed)}, got {value!r:.80}")
        return {name: value[name] if name in value else self.defaults[name] for name in self.raw_fields}

    def suits(self, processor: Any) -> bool:
        """Return True if a pretrained model that came with this processor can do this task."""
        return True

    def respond(self, model: Any, batch: dict[str, Any], processor: Any, options: Mapping[str, Any]) -> Sequence[Any]:
        """Run a trained model on a batch of inputs that are on its device; return one output per row.

        Args:
            batch: what the collator has made of the rows, without labels; what is no tensor comes as it is.
            options: options of this request, e.g. for generation; empty for a task that knows none.
        """
        return self.preprocess_logits(main_output(model(**batch)), None).cpu().numpy()

    def serving_options(self) -> dict[str, bool | int | float | str]:
        """Return the options of `respond` that a served model takes with a request, with their defaults."""
        return {}

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise ConfigError for options that `respond` does not know, or that are no whole numbers from 1 on."""
        known = self.serving_options()
        if options and not known:
            raise ConfigError(f"generation.{next(iter(options))}: {type(self).__name__} does not generate text")
        for name, value in options.items():
            if name not in known:
                raise ConfigError(
                    f"generation.{name} is unknown.{did_you_mean(name, known)} Allowed: {', '.join(known)}"
                )
            check_count(name, value)

    def with_system(self, system: str, prompt: Any) -> Any:
        """Put a system prompt before a raw input; ConfigError if the task does not take one."""
        raise ConfigError(f"system=...: {type(self).__name__} does not take a system prompt")

    def answer(self, output: Any, id2label: Mapping[int, str]) -> dict[str, Any]:
        """Convert one output of `respond` to the fields of `answer_types`; a mapping has these fields already.

        Args:
            id2label: class names by id; a class without one is named by its id.
        """
        if isinstance(output, Mapping):
            return dict(output)
        raise NotImplementedError(f"{type(self).__name__} has no answer: it can't predict on raw inputs")

    def found_by_class(
        self, predictions: "np.ndarray", references: "np.ndarray"
    ) -> dict[str, tuple[int, int, int]] | None:
        """Count right, predicted and true items of each class, where a row has any number of them, e.g. entities.

        Returns:
            The counts by class name; None for a task without such items.
        """
        return None

    def marked(self, row: dict[str, Any], output: Any) -> list[Piece]:
        """Return a stored row as text in which the found items and the missed ones are marked."""
        raise NotImplementedError(f"{type(self).__name__} finds no items in a text")

    def inference_example(self, row: dict[str, Any]) -> bytes | str | dict[str, Any] | None:
        """Return a row as a small raw input to save with the model; None if the task can't predict on those."""
        return {name: row[name] for name in self.raw_fields} or None

    @abstractmethod
    def collator(self, processor: Any) -> Callable[..., dict[str, "torch.Tensor"]]:
        """Return the function that collates a list of rows into a batch of model inputs.

        If it has a method `finish`, that is called on the batch on the model's device, e.g. the GPU.
        """

    def unlabelled(self, model: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the inputs from which the model computes the outputs of a labelled batch, but no loss."""
        return {name: value for name, value in batch.items() if name != "labels"}

    def build_loss(self) -> None:  # noqa: B027 - most tasks have nothing to build
        """Build what `loss` needs before the training; raise ConfigError if that can't be."""

    def forward(self, model: Any, batch: dict[str, Any]) -> Any:
        """Run a model on a labelled batch.

        Returns:
            Tensors (B, ...) for `loss` and `preprocess_logits`.
        """
        return main_output(model(**self.unlabelled(model, batch)))

    def companion_files(self, model_config: Any, processor: Any) -> dict[str, Any]:
        """Return files that other libraries need beside the saved model: by path, the content to write as JSON."""
        return {}

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """Reduce the model's output on its device before it is gathered for the metrics.

        If `loss_per_token` or `reduces_labels` is true, it has to reduce the labels (B, T), too, to a row each.
        """
        return logits

    def loss(self, outputs: Any, batch: dict[str, Any]) -> "torch.Tensor":
        """Return the loss of what `forward` has returned, the mean over the rows; called if `has_own_loss` is true."""
        raise NotImplementedError(f"{type(self).__name__} leaves the loss to the model")

    def merge(
        self, row: dict[str, Any], inputs: dict[str, Any], outputs: "np.ndarray", options: Mapping[str, Any]
    ) -> Any:
        """Merge what `preprocess_logits` returns for the windows of a row (W, ...) into one output, as of `respond`.

        `metric_inputs` gets these outputs of all rows, and the stored labels, as arrays of objects. Where labels are
        `TAGS`, it gets none of them: what it needs of a row's tags is for `merge` to keep.

        Args:
            row: the stored row, without label if it is to predict on.
            inputs: the same after `transform`.
            options: those of `respond`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no windows")

    def generate(self, model: Any, batch: dict[str, Any], processor: Any) -> "tuple[torch.Tensor, ...]":
        """Let the model write its answers to a labelled batch on its device; called if `generates` is true.

        Returns:
            What the metrics need of them, whole numbers (B, ...). `metric_inputs` gets a tuple in place of the
            reduced outputs: these and then the tensors returned here, filled up with -100 to one shape.
        """
        raise NotImplementedError(f"{type(self).__name__} has no generate")

    @abstractmethod
    def metric_inputs(self, predictions: Any, references: "np.ndarray") -> Mapping[str, "np.ndarray"]:
        """Return the arrays that metrics are computed from, by the names of `evaluate`'s features.

        Args:
            predictions: what `preprocess_logits` has made of the outputs, or a tuple of it and of what `generate` has
                returned.
        """

    @abstractmethod
    def fake_predictions(self, id2label: dict[int, str] | None) -> tuple["np.ndarray", "np.ndarray"]:
        """Make small dummy predictions and references, on which the metrics are tried before training."""


def main_output(output: Any) -> Any:
    """Return what `Trainer.prediction_step` hands to `preprocess_logits`: a tensor, or a tuple of several."""
    if hasattr(output, "device"):  # a tensor
        return output
    if isinstance(output, dict):
        output = tuple(value for name, value in output.items() if name != "loss")
    values = tuple(value for value in output if value is not None)
    return values[0] if len(values) == 1 else values


# Classification of any input into one class; the scores of all classes are kept.


MOST_FAKE = 200
"""Classes for which `Classification.fake_predictions` makes rows; two rows for each of 10,000 would take 800 MB."""


class Classification(Task):
    """Base of tasks with one class per row, in the column `label`; the scores allow ranking metrics."""

    label_column: ClassVar[str | None] = "label"
    metric: ClassVar[str] = "accuracy"
    answer_types: ClassVar[dict[str, str]] = {"label": "string", "score": "double", "probabilities": "doubles"}

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """Return class probabilities, (B, num_labels) float32; of several heads the first is the main one."""
        logits = logits[0] if isinstance(logits, tuple) else logits
        return logits.float().softmax(-1)

    def answer(self, output: "np.ndarray", id2label: Mapping[int, str]) -> dict[str, Any]:
        """Return the most probable class, its probability, and those of all classes by id."""
        best = int(output.argmax())
        return {
            "label": id2label.get(best, str(best)),
            "score": float(output[best]),
            "probabilities": [float(value) for value in output],
        }

    def metric_inputs(self, predictions: "np.ndarray", references: "np.ndarray") -> dict[str, "np.ndarray"]:
        """Return class ids and scores: `predictions`, `references` (N,), `prediction_scores` (N, num_labels)."""
        return {"predictions": predictions.argmax(-1), "prediction_scores": predictions, "references": references}

    def fake_predictions(self, id2label: dict[int, str] | None) -> tuple["np.ndarray", "np.ndarray"]:
        """Make two uniform predictions for each class; of many classes, for the first `MOST_FAKE`."""
        import numpy as np

        count = len(id2label or {0: "", 1: ""})
        rows = 2 * min(count, MOST_FAKE)
        return np.full((rows, count), 1 / count, dtype=np.float32), np.arange(rows) % min(count, MOST_FAKE)


def to_number(value: Any, column: str = "label") -> float:
    """Convert a value of a column to float: a number, or the text of one as in CSV files.

    Raises:
        DataError: the value is not a number, or not finite.
    """
    number = float(value) if isinstance(value, str) and is_number(value) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        comma = (
            ": write 1.5, or set dataset.source.decimal=',' for a CSV file"
            if isinstance(value, str) and "," in value
            else ""
        )
        raise DataError(f"column {column!r} holds {value!r:.80}, expected a number{comma}")
    return float(number)


def to_text(value: Any) -> str:
    """Return a label that is a text; raise DataError if it is something else, or empty."""
    if not isinstance(value, str):
        raise DataError(f"expected a text, found {value!r:.80}")
    if not value.strip():
        raise DataError("the text is empty")
    return value


def to_truth(value: Any, name: str) -> int:
    """Convert the mark of a class to 0 or 1; it may be 0 or 1, false or true, as a value or a text.

    Args:
        name: name of the class, for messages.

    Raises:
        DataError: the mark is missing, or something else.
    """
    if value is None:
        raise DataError(f"no truth value for the class {name!r}")
    known = TRUTH.get(str(value).lower())
    if known is None:
        raise DataError(f"the truth value of the class {name!r} is {value!r:.80}, expected 0, 1, false or true")
    return known


def check_count(name: str, value: Any) -> None:
    """Raise ConfigError unless an option is a whole number from 1 on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value!r}: expected a whole number from 1 on")


def place_of(value: Any, items: Sequence[str], names: Sequence[str] | None, column: str) -> int:
    """Return the number of the item, from 0, that a cell names: by its text, else its name, else its number.

    Args:
        names: of the items; None: A, B, C, ...
        column: of the cell, for the message.

    Raises:
        DataError: there is no such item.
    """
    for known in (items, names or string.ascii_uppercase[: len(items)]):
        if value in list(known):
            return list(known).index(value)
    number = int(value) if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value.strip()) else value
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(items):
        raise DataError(
            f"column {column!r} holds {value!r:.80}, expected one of the {len(items)} items, its letter or its number "
            f"from 0 to {len(items) - 1}"
        )
    return number
