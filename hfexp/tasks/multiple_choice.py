"""Multiple choice: which of several texts goes on with a text, or answers a question about it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from hfexp.core.errors import DataError
from hfexp.tasks.base import ASKED, OWN, main_output, place_of
from hfexp.tasks.entities import IGNORED
from hfexp.tasks.text_classification import Texts


class MultipleChoice(Texts):
    """Choice among the texts in the column `choices`, each put behind `text` by `transform`.

    A text in the column `text_pair`, e.g. a question or the beginning of a sentence, is put before every choice.
    """

    model_class: ClassVar[str] = "AutoModelForMultipleChoice"
    columns: ClassVar[tuple[str, ...]] = ("text", "text_pair", "choices", "label")
    defaults: ClassVar[dict[str, Any]] = {"text_pair": ""}
    usual_names: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "text": ("question", "question_stem", "article", "context", "ctx", "goal", "premise", "sent1"),
        "text_pair": ("sent2",),
        "choices": (
            "options", "endings", ["ending0", "ending1", "ending2", "ending3"], ["choice1", "choice2"],
            ["sol1", "sol2"], ["answer0", "answer1", "answer2", "answer3"], ["option1", "option2"],
            ["A", "B", "C", "D"],
        ),
        "label": ("answerkey", "answer", "correct"),
    }  # fmt: skip
    label_kind: ClassVar[str] = OWN
    no_label: ClassVar[Any] = ASKED
    metric: ClassVar[str] = "accuracy"
    has_own_loss: ClassVar[bool] = True
    reduces_labels: ClassVar[bool] = True
    raw_fields: ClassVar[dict[str, Any]] = {"text": "string", "text_pair": "string", "choices": "strings"}
    answer_types: ClassVar[dict[str, Any]] = {"choice": "string", "score": "double", "scores": "doubles"}

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the text, a second text for each choice, and the number of the right one; DataError if one is bad."""
        choices, start = texts_of(row["choices"]), row["text_pair"] or ""
        for name, value in (("text", row["text"]), ("text_pair", start)):
            if not isinstance(value, str):
                raise DataError(f"column {name!r} holds {value!r:.80}, expected a string")
        pair = {"text": row["text"], "text_pair": [f"{start} {choice}" if start else choice for choice in choices]}
        if row["label"] == ASKED:
            return {**pair, "label": 0, "choices": choices}
        return {**pair, "label": right_of(row)}

    def preprocess(self, row: dict[str, Any], processor: Any) -> dict[str, Any]:
        """Add `labels`: 1 for the right choice, 0 for the others."""
        inputs = {name: value for name, value in row.items() if name != "label"}
        return {**inputs, "labels": [int(place == row["label"]) for place in range(len(row["lengths"]))]}

    def shown_label(self, row: dict[str, Any]) -> str:
        """Return the text of the right choice."""
        return texts_of(row["choices"])[right_of(row)]

    def inference_example(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the texts."""
        return {"text": row["text"], "text_pair": row["text_pair"] or "", "choices": texts_of(row["choices"])}

    def collator(self, processor: Any) -> Callable[..., dict[str, Any]]:
        """Return a collator that pads to the longest text and the most choices of a batch."""
        from hfexp.tasks.text import NestedCollator

        return NestedCollator(processor)

    def loss(self, outputs: Any, batch: dict[str, Any]) -> Any:
        """Return the mean cross entropy of the choices that each row has."""
        import torch

        return torch.nn.functional.cross_entropy(scores_of(outputs, batch["labels"]), batch["labels"].argmax(-1))

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """Reduce logits (B, C) to the numbers of the chosen and of the right choice, (B, 2)."""
        import torch

        return torch.stack([scores_of(logits, labels).argmax(-1), labels.argmax(-1)], 1)

    def respond(self, model: Any, batch: dict[str, Any], processor: Any, options: Mapping[str, Any]) -> Sequence[Any]:
        """Return the answer to each row: the chosen text, its probability, and those of all choices."""
        rows = batch.pop("choices")
        logits = main_output(model(**batch)).float()
        scores = [row[: len(choices)].softmax(-1).tolist() for row, choices in zip(logits, rows, strict=True)]
        return [
            {"choice": choices[int(np.argmax(row))], "score": max(row), "scores": row}
            for choices, row in zip(rows, scores, strict=True)
        ]

    def metric_inputs(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        """Return the numbers of the chosen and of the right choices: `predictions`, `references` (N,)."""
        return {"predictions": predictions[:, 0], "references": predictions[:, 1]}

    def fake_predictions(self, id2label: dict[int, str] | None) -> tuple[np.ndarray, np.ndarray]:
        """Make two choices, one of them right."""
        return np.array([[0, 0], [0, 1]]), np.zeros(2, np.int64)


def scores_of(logits: Any, labels: Any) -> Any:
    """Return the logits (B, C) in float32, minus infinity for choices that a row lacks."""
    logits = logits[0] if isinstance(logits, tuple) else logits
    return logits.float().masked_fill(labels == IGNORED, float("-inf"))


def texts_of(choices: Any) -> list[str]:
    """Return the texts of the choices; some datasets have them as a mapping with their names, e.g. A, B, C.

    Raises:
        DataError: they are not two texts or more.
    """
    texts = choices.get("text") if isinstance(choices, Mapping) else choices
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(text, str) for text in texts):
        raise DataError(f"column 'choices' holds {choices!r:.80}, expected a list of two texts or more")
    return texts


def right_of(row: Mapping[str, Any]) -> int:
    """Return the number of the right choice, which the label names by its text, name (A, B, ...) or number."""
    names = row["choices"].get("label") if isinstance(row["choices"], Mapping) else None
    return place_of(row["label"], texts_of(row["choices"]), names, "label")
