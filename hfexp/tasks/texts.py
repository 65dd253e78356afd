"""Bases of tasks on texts or pairs of texts; subclasses define the labels."""

from collections.abc import Callable
from typing import Any, ClassVar

from hfexp.core.errors import DataError
from hfexp.tasks.base import Task


class Texts(Task):
    """Base of tasks on the columns `text` and `label`; `transform` must tokenise."""

    model_class: ClassVar[str] = "AutoModelForSequenceClassification"
    processor_class: ClassVar[str] = "AutoTokenizer"
    columns: ClassVar[tuple[str, ...]] = ("text", "label")
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
                raise DataError(f"column {name!r} holds {row[name]!r:.80}, which is no text")
        return row

    def preprocess(self, row: dict[str, Any], processor: Any) -> dict[str, Any]:
        """Rename `label` to `labels`; the tokens stay as they are."""
        return {"labels" if name == "label" else name: value for name, value in row.items()}

    def picture(self, inputs: dict[str, Any], processor: Any) -> str:
        """Decode the tokens to text, special tokens included."""
        return processor.decode(inputs["input_ids"])

    def inference_row(self, value: Any) -> dict[str, Any]:
        """Turn a text into a row."""
        return self.decode({"text": value, "label": 0})

    def inference_example(self, row: dict[str, Any]) -> str:
        """Return the text."""
        return row["text"]

    def collator(self, processor: Any) -> Callable[..., dict[str, Any]]:
        """Return a collator that pads to the longest row of a batch."""
        from hfexp.tasks.text import TextCollator

        return TextCollator(processor)


class TextPairs(Texts):
    """Base of tasks on the columns `text`, `text_pair` and `label`, e.g. a premise and a hypothesis."""

    columns: ClassVar[tuple[str, ...]] = ("text", "text_pair", "label")

    def inference_row(self, value: Any) -> dict[str, Any]:
        """Turn a mapping with `text` and `text_pair` into a row."""
        if not isinstance(value, dict) or not {"text", "text_pair"} <= set(value):
            raise DataError("a mapping with the texts `text` and `text_pair` is needed")
        return self.decode({"text": value["text"], "text_pair": value["text_pair"], "label": 0})

    def inference_example(self, row: dict[str, Any]) -> None:
        """Return None: the MLflow model takes one input column, and a pair has two."""
