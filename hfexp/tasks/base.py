"""What the pipeline asks of a task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hfexp.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import torch
    from datasets import DatasetDict

CLASS, CLASSES, NUMBER = "class", "classes", "number"
"""Kinds of labels."""
PROBLEMS = {
    CLASS: "single_label_classification", CLASSES: "multi_label_classification", NUMBER: "regression",
}  # fmt: skip
"""`problem_type` of a model's configuration, by which its loss is chosen; a checkpoint may come with another one."""


class Task(ABC):
    """What one kind of problem needs from the pipeline: inputs, labels, batches and scores.

    Subclasses are final; options are constructor arguments, and a task never sees the configuration tree.
    """

    model_class: ClassVar[str]
    """Name in `transformers`, e.g. `AutoModelForImageClassification`."""
    processor_class: ClassVar[str]
    """Name in `transformers`, e.g. `AutoImageProcessor`."""
    columns: ClassVar[tuple[str, ...]]
    """Standard names of the columns it reads."""
    label_column: ClassVar[str | None] = None
    """The column that holds what is to be predicted, if any; the other columns are what it is predicted from."""
    label_kind: ClassVar[str] = CLASS
    """What a row has in there: `CLASS`, `CLASSES` (any number of them) or `NUMBER`."""
    label_separator: str | None = None
    """What stands between several classes, where they are one text."""
    metric: ClassVar[str]
    """Chooses the best model unless the user says otherwise."""
    greater_is_better: ClassVar[bool] = True

    loss_per_token: ClassVar[bool] = False
    """The model's loss is a mean over the labelled tokens of a batch, not over its samples."""

    takes_columns: ClassVar[bool] = False
    """`preprocess` and the collator take whole batches too: each field of the rows, stacked to (B, ...)."""

    varying_shapes: ClassVar[bool] = False
    """Rows differ in their shapes, e.g. texts in their lengths, and the collator makes them alike."""

    raw_type: ClassVar[str] = "binary"
    """MLflow's type of a raw input: `binary` or `string`."""

    streams: ClassVar[bool] = False
    """`respond` calls `on_text` of its options with each new piece of a text."""

    quick_options: ClassVar[dict[str, Any]] = {}
    """Options of `respond` with which it takes little time and always says the same."""

    block_size: int | None = None
    """The tokens of all rows are laid end to end and cut into rows of so many; None: rows stay rows."""

    answer_types: ClassVar[dict[str, str]] = {}
    """What `answer` gives: `string`, `strings` (a list of them), `double` or `doubles` by name."""

    def id2label(self, dataset: "DatasetDict") -> dict[int, str] | None:
        """Names of the classes by id, from the label column; None where there are none."""
        if self.label_column is None or self.label_kind == NUMBER:
            return None
        feature = dataset["train"].features[self.label_column]
        return dict(enumerate(feature.names if self.label_kind == CLASS else feature))

    def model_fields(self, id2label: dict[int, str] | None) -> dict[str, Any]:
        """Fields of the model's configuration that follow from the labels: the size of its head, their names."""
        problem = {"problem_type": PROBLEMS[self.label_kind]}
        if id2label is None:
            return {"num_labels": 1, **problem} if self.label_column and self.label_kind == NUMBER else {}
        label2id = {name: number for number, name in id2label.items()}
        return {"id2label": dict(id2label), "label2id": label2id, "num_labels": len(id2label), **problem}

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make a row as stored ready for the transform, e.g. open its image.

        Raises:
            DataError: the sample can't be read; the message names it.
        """
        return row

    def decoder(self, operations: list[Any]) -> tuple[Callable[[dict[str, Any]], dict[str, Any]], int]:
        """What decodes a row that goes through these operations, and how many of the first ones it does as well."""
        return self.decode, 0

    @abstractmethod
    def preprocess(self, row: dict[str, Any], processor: Any) -> dict[str, Any]:
        """One decoded and transformed row to the model's inputs, including `labels`."""

    def picture(self, inputs: dict[str, Any], processor: Any) -> "PIL.Image.Image | str | None":
        """One row of model inputs as a person can look at it: an image, a text, or None when it can't be shown."""
        return None

    def inference_row(self, value: Any) -> dict[str, Any]:
        """One raw input, as somebody asks a trained model about it, to a row as the dataset stores it.

        Raises:
            DataError: it is none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no inference_row: it can't predict on raw inputs")

    def suits(self, processor: Any) -> bool:
        """Whether a pretrained model that came with this processor can be asked as this task asks."""
        return True

    def respond(self, model: Any, batch: dict[str, Any], processor: Any, options: Mapping[str, Any]) -> Sequence[Any]:
        """What a trained model says to a batch of model inputs that are on its device: an output for each row.

        Args:
            options: of this request, e.g. of generation; a task that knows none gets none.
        """
        return self.preprocess_logits(main_output(model(**batch)), None).cpu().numpy()

    def serving_options(self) -> dict[str, bool | int | float | str]:
        """Options of `respond` that a served model takes with a request, and their values without one."""
        return {}

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raises ConfigError for options that `respond` does not know."""
        if options:
            raise ConfigError(f"generation.{next(iter(options))}: {type(self).__name__} generates nothing")

    def with_system(self, system: str, prompt: Any) -> Any:
        """A raw input with what a chat model is told before it."""
        raise ConfigError(f"system=...: {type(self).__name__} is told nothing but its input")

    def answer(self, output: Any, id2label: Mapping[int, str]) -> dict[str, Any]:
        """One output of `respond` as a person wants it, by the names of `answer_types`.

        Args:
            id2label: names of the classes; empty: their numbers.
        """
        raise NotImplementedError(f"{type(self).__name__} has no answer: it can't predict on raw inputs")

    def inference_example(self, row: dict[str, Any]) -> bytes | str | None:
        """A row as a small raw input, to be kept with the model; None if the task can't predict on raw inputs."""
        return None

    @abstractmethod
    def collator(self, processor: Any) -> Callable[..., dict[str, "torch.Tensor"]]:
        """What makes a batch of model inputs from a list of rows.

        If it has a method `finish`, that is called on the batch where the model computes: on the GPU, if there is one.
        """

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """Reduce the model's output on its device before it is gathered for the metrics."""
        return logits

    @abstractmethod
    def metric_inputs(self, predictions: "np.ndarray", references: "np.ndarray") -> Mapping[str, "np.ndarray"]:
        """What metrics can be computed from, by the names of `evaluate`'s features."""

    @abstractmethod
    def fake_predictions(self, id2label: dict[int, str] | None) -> tuple["np.ndarray", "np.ndarray"]:
        """Small made-up predictions and references, with which the metrics are tried before training."""


def main_output(output: Any) -> Any:
    """What `Trainer.prediction_step` hands to `preprocess_logits`: one tensor, or a tuple of several."""
    if hasattr(output, "device"):  # a tensor
        return output
    if isinstance(output, dict):
        output = tuple(value for name, value in output.items() if name != "loss")
    values = tuple(value for value in output if value is not None)
    return values[0] if len(values) == 1 else values
