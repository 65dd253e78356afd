"""Tasks that label a text or a pair of texts: with one class, with several, or with a number."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from hfexp.core.errors import ConfigError, DataError
from hfexp.tasks import column_names
from hfexp.tasks.base import CLASSES, NUMBER, Classification, Task, to_number, to_truth

# Bases of tasks on texts or pairs of texts; subclasses define the labels.


class Texts(Task):
    """Base of tasks on the columns `text` and `label`; `transform` must tokenise."""

    model_class: ClassVar[str] = "AutoModelForSequenceClassification"
    processor_class: ClassVar[str] = "AutoTokenizer"
    columns: ClassVar[tuple[str, ...]] = ("text", "label")
    usual_names: ClassVar[Mapping[str, tuple[Any, ...]]] = {"text": column_names.TEXT, "label": column_names.CLASS}
    label_column: ClassVar[str | None] = "label"
    varying_shapes: ClassVar[bool] = True
    raw_type: ClassVar[str] = "string"

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row if its texts are strings.

        Raises:
            DataError: a text is missing, or is not a string.
        """
        for name in self.columns:
            if name != self.label_column and not isinstance(row[name], str):
                raise DataError(f"column {name!r} holds {row[name]!r:.80}, expected a string")
        return row

    def preprocess(self, row: dict[str, Any], processor: Any) -> dict[str, Any]:
        """Rename `label` to `labels`; the tokens stay as they are."""
        return {"labels" if name == "label" else name: value for name, value in row.items()}

    def picture(self, inputs: dict[str, Any], processor: Any) -> str:
        """Decode the tokens to text, special tokens included."""
        return processor.decode(inputs["input_ids"])

    def inference_row(self, value: Any) -> dict[str, Any]:
        """Turn a text, or a mapping of several, into a row."""
        if self.raw_fields:
            return super().inference_row(value)
        return self.decode({"text": value, "label": 0})

    def inference_example(self, row: dict[str, Any]) -> Any:
        """Return the text, or the texts by name."""
        return super().inference_example(row) or row["text"]

    def collator(self, processor: Any) -> Callable[..., dict[str, Any]]:
        """Return a collator that pads to the longest row of a batch."""
        from hfexp.tasks.text import TextCollator

        return TextCollator(processor)


class TextPairs(Texts):
    """Base of tasks on the columns `text`, `text_pair` and `label`, e.g. a premise and a hypothesis."""

    columns: ClassVar[tuple[str, ...]] = ("text", "text_pair", "label")
    usual_names: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "text": column_names.FIRST, "text_pair": column_names.SECOND, "label": column_names.CLASS,
    }  # fmt: skip
    raw_fields: ClassVar[dict[str, Any]] = {"text": "string", "text_pair": "string"}


class TextClassification(Texts, Classification):
    """Classification on the columns `text` and `label`; `transform` must tokenise."""


class TextPairClassification(TextPairs, Classification):
    """Classification on the columns `text`, `text_pair` and `label`, e.g. of a premise and a hypothesis."""


# Multi-label text classification: each class applies to a text or not, independently of the others.


class MultiLabel(Task):
    """Base of multi-label tasks: the column `label` has a list of classes in each row, which may be empty."""

    label_column: ClassVar[str | None] = "label"
    label_kind: ClassVar[str] = CLASSES
    metric: ClassVar[str] = "f1_micro"
    answer_types: ClassVar[dict[str, str]] = {"labels": "strings", "probabilities": "doubles"}

    def __init__(self, threshold: float = 0.5, separator: str | None = None) -> None:
        """Set up the task.

        Args:
            threshold: lowest probability at which a class is predicted.
            separator: separator between the classes where they are one text; None: they are lists.
        """
        if not 0 < threshold < 1:
            raise ConfigError(f"task.threshold={threshold} must be between 0 and 1")
        self.threshold = threshold
        self.label_separator = separator

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """Convert truth values by class name to a list of ones and zeros."""
        row = super().decode(row)
        label = row["label"]
        if label is None:
            raise DataError("the label is missing")
        if not isinstance(label, dict):
            return row
        return {**row, "label": [to_truth(value, name) for name, value in label.items()]}

    def preprocess(self, row: dict[str, Any], processor: Any) -> dict[str, Any]:
        """Add `labels` as floats, (num_labels,), for the binary cross entropy of each class."""
        inputs = super().preprocess(row, processor)
        return {**inputs, "labels": tuple(map(float, np.atleast_1d(inputs["labels"])))}

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """Return the probability of each class by itself, (B, num_labels) float32."""
        logits = logits[0] if isinstance(logits, tuple) else logits
        return logits.float().sigmoid()

    def answer(self, output: np.ndarray, id2label: Mapping[int, str]) -> dict[str, Any]:
        """Return the classes that reach the threshold, most probable first, and the probabilities of all."""
        ids = [int(number) for number in np.argsort(-output) if output[number] >= self.threshold]
        return {
            "labels": [id2label.get(number, str(number)) for number in ids],
            "probabilities": [float(value) for value in output],
        }

    def metric_inputs(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        """Return `predictions` and `references` (0 or 1) and `prediction_scores`, all (N, num_labels)."""
        classes = (predictions >= self.threshold).astype(np.int64)
        return {"predictions": classes, "prediction_scores": predictions, "references": references.astype(np.int64)}

    def fake_predictions(self, id2label: dict[int, str] | None) -> tuple[np.ndarray, np.ndarray]:
        """Make one right prediction for each class, and one row without any class."""
        count = len(id2label or {0: "", 1: ""})
        truth = np.eye(count + 1, count, dtype=np.float32)
        return truth * 0.8 + 0.1, truth


class MultiLabelTextClassification(MultiLabel, Texts):
    """Multi-label classification on the columns `text` and `label`; `transform` must tokenise."""


# Text regression: one number for a text, or for a pair of texts.


class Regression(Task):
    """Base of tasks with a number per row, in the column `label`; the loss is the squared error, without scaling."""

    label_column: ClassVar[str | None] = "label"
    label_kind: ClassVar[str] = NUMBER
    metric: ClassVar[str] = "rmse"
    greater_is_better: ClassVar[bool] = False
    answer_types: ClassVar[dict[str, str]] = {"value": "double"}

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """Convert the label to a float.

        Raises:
            DataError: the label is not a finite number.
        """
        row = super().decode(row)
        return {**row, "label": to_number(row["label"])}

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """Return the predicted numbers, (B,) float32."""
        logits = logits[0] if isinstance(logits, tuple) else logits
        return logits.float().squeeze(-1)

    def answer(self, output: Any, id2label: Mapping[int, str]) -> dict[str, Any]:
        """Return the number as `value`."""
        return {"value": float(output)}

    def metric_inputs(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        """Return `predictions` and `references`, (N,)."""
        return {"predictions": predictions, "references": references}

    def fake_predictions(self, id2label: dict[int, str] | None) -> tuple[np.ndarray, np.ndarray]:
        """Make predictions of three numbers, each off by 0.1."""
        truth = np.arange(3, dtype=np.float32)
        return truth + np.array([0.1, -0.1, 0.1], np.float32), truth


class TextRegression(Regression, Texts):
    """Regression on the columns `text` and `label`; `transform` must tokenise."""

    usual_names: ClassVar[Mapping[str, tuple[Any, ...]]] = {**Texts.usual_names, "label": column_names.NUMBER}


class TextPairRegression(Regression, TextPairs):
    """Regression on the columns `text`, `text_pair` and `label`, e.g. how alike two sentences are."""

    usual_names: ClassVar[Mapping[str, tuple[Any, ...]]] = {**TextPairs.usual_names, "label": column_names.NUMBER}
