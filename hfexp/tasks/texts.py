"""Texts, or pairs of them, as inputs of a task; what is said about them is left to its subclasses."""

from collections.abc import Callable
from typing import Any, ClassVar

from hfexp.errors import DataError
from hfexp.tasks.base import Task


class Texts(Task):
    """Columns `text` and `label`; `transform` must tokenise."""

    model_class: ClassVar[str] = "AutoModelForSequenceClassification"
    processor_class: ClassVar[str] = "AutoTokenizer"
    columns: ClassVar[tuple[str, ...]] = ("text", "label")
    label_column: ClassVar[str | None] = "label"
    varying_shapes: ClassVar[bool] = True
    raw_type: ClassVar[str] = "string"

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row whose texts are texts.

        Raises:
            DataError: one is missing, or something else.
        """
        for name in self.columns:
            if name != self.label_column and not isinstance(row[name], str):
                raise DataError(f"column {name!r} holds {row[name]!r:.80}, which is no text")
        return row

    def preprocess(self, row: dict[str, Any], processor: Any) -> dict[str, Any]:
        """`label` becomes `labels`; the tokens stay as they are."""
        return {"labels" if name == "label" else name: value for name, value in row.items()}

    def picture(self, inputs: dict[str, Any], processor: Any) -> str:
        """The tokens as text, special ones included."""
        return processor.decode(inputs["input_ids"])

    def inference_row(self, value: Any) -> dict[str, Any]:
        """A text."""
        return self.decode({"text": value, "label": 0})

    def inference_example(self, row: dict[str, Any]) -> str:
        """The text."""
        return row["text"]

    def collator(self, processor: Any) -> Callable[..., dict[str, Any]]:
        """Pads to the longest row of a batch."""
        from hfexp.text import TextCollator

        return TextCollator(processor)


class TextPairs(Texts):
    """Columns `text`, `text_pair` and `label`, e.g. a premise and a hypothesis."""

    columns: ClassVar[tuple[str, ...]] = ("text", "text_pair", "label")

    def inference_row(self, value: Any) -> dict[str, Any]:
        """A mapping with `text` and `text_pair`."""
        if not isinstance(value, dict) or not {"text", "text_pair"} <= set(value):
            raise DataError("a mapping with the texts `text` and `text_pair` is needed")
        return self.decode({"text": value["text"], "text_pair": value["text_pair"], "label": 0})

    def inference_example(self, row: dict[str, Any]) -> None:
        """None: an MLflow model takes one column."""
