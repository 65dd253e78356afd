"""Question answering: find the answer to a question as a span of a text."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from hfexp.core.errors import DataError
from hfexp.tasks.answers import count_right, objects, places_of, require_one, texts_of
from hfexp.tasks.base import ASKED, OWN, Piece, check_count
from hfexp.tasks.entities import mark
from hfexp.tasks.text_classification import Texts

ANSWER = {"text": "string", "score": "double", "start": "long", "end": "long"}
"""Fields of an answer; `start` and `end` count characters of the context. Where there is none, `text` is empty."""


class QuestionAnswering(Texts):
    """Extraction of answers from the column `context`, cut into windows by `transform`.

    The column `answers` is a mapping of `text` and `answer_start` (in characters), lists that may be empty, or values.
    """

    model_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    columns: ClassVar[tuple[str, ...]] = ("question", "context", "answers")
    usual_names: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "question": ("query",),
        "context": ("passage", "paragraph"),
        "answers": ({"text": "answer", "answer_start": "answer_start"}, {"text": "answer", "answer_start": "start"}),
    }  # fmt: skip
    label_column: ClassVar[str | None] = "answers"
    label_kind: ClassVar[str] = OWN
    no_label: ClassVar[Any] = ASKED
    metric: ClassVar[str] = "f1"
    windowed: ClassVar[bool] = True
    has_own_loss: ClassVar[bool] = True
    reduces_labels: ClassVar[bool] = True
    raw_fields: ClassVar[dict[str, Any]] = {"question": "string", "context": "string"}
    answer_types: ClassVar[dict[str, Any]] = {**ANSWER, "candidates": ANSWER}

    def __init__(
        self, null_threshold: float | None = None, max_answer_length: int = 30, n_best: int = 20, top_k: int = 3
    ) -> None:
        """Set up the task.

        Args:
            null_threshold: no answer if that scores higher than the best span by more than this; None: always one.
            max_answer_length: most tokens of an answer.
            n_best: answers over whose scores probabilities are a softmax.
            top_k: candidates that come with an answer.
        """
        for name, value in (("max_answer_length", max_answer_length), ("n_best", n_best), ("top_k", top_k)):
            check_count(f"task.{name}", value)
        self.null_threshold, self.n_best, self.top_k = null_threshold, n_best, top_k
        self.max_length = max_answer_length

    def model_fields(self, id2label: dict[int, str] | None) -> dict[str, Any]:
        """Return the size of the head: a score of each token as the first one, and one as the last."""
        return {"num_labels": 2}

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the texts and the place of the first answer; DataError if one is not as it should be."""
        for name in ("question", "context"):
            if not isinstance(row[name], str) or not row[name].strip():
                raise DataError(f"column {name!r} holds {row[name]!r:.80}, expected a text that is not empty")
        places = [] if row["answers"] == ASKED else places_of(row["answers"], row["context"])
        return {"question": row["question"], "context": row["context"], "answer": places[0] if places else (0, 0)}

    def check_learnable(self, row: dict[str, Any]) -> None:
        """Raise DataError if a row has different answers, of which the model could learn only one."""
        require_one(row["answers"], row["context"])

    def shown_label(self, row: dict[str, Any]) -> list[str]:
        """Return the texts of the answers, each once."""
        return list(dict.fromkeys(texts_of(row["answers"])))

    def preprocess(self, row: dict[str, Any], processor: Any) -> dict[str, Any]:
        """Rename the marks of a window's tokens to `labels`, and leave out their places."""
        return {{"marks": "labels"}.get(n, n): value for n, value in row.items() if n not in ("starts", "ends")}

    def collator(self, processor: Any) -> Callable[..., dict[str, Any]]:
        """Return a collator that pads to the longest window of a batch."""
        from hfexp.tasks.spans import SpanCollator

        return SpanCollator(processor)

    def serving_options(self) -> dict[str, bool | int | float | str]:
        """Return the number of candidates."""
        return {"top_k": self.top_k}

    def loss(self, outputs: Any, batch: dict[str, Any]) -> Any:
        """Return the mean loss of the answers' first and last tokens."""
        from hfexp.tasks.spans import span_loss

        return span_loss(outputs, batch["labels"])

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """Reduce the logits of windows to their best spans (B, 1 + 3 n_best), see `hfexp.tasks.spans.best_spans`."""
        from hfexp.tasks.spans import best_spans

        return best_spans(logits, labels, self.n_best, self.max_length)

    def merge(self, row: dict[str, Any], inputs: dict[str, Any], outputs: np.ndarray, options: Any) -> dict[str, Any]:
        """Return the best answer of all windows, with the best candidates."""
        from hfexp.tasks.spans import merge_spans

        found = merge_spans(inputs, row["context"], outputs, self.n_best, self.null_threshold)
        return {**found[0], "candidates": found[: options.get("top_k", self.top_k)]}

    def metric_inputs(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        """Return the texts of the `answers` (N,), and lists of those of the true ones, `truths` (N,)."""
        return {"answers": objects(out["text"] for out in predictions), "truths": objects(map(texts_of, references))}

    def found_by_class(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, tuple[int, int, int]]:
        """Count right, found and true answers; a right one matches exactly after normalisation."""
        return {"answer": count_right(**self.metric_inputs(predictions, references))}

    def marked(self, row: dict[str, Any], output: dict[str, Any]) -> list[Piece]:
        """Mark the answer in the context, and the true ones if it misses them."""
        found = [(output["start"], output["end"], "answer")] if output["text"] else []
        true = {(start, end, "answer") for start, end in places_of(row["answers"], row["context"])}
        return [Piece(f"{row['question']} "), *mark(row["context"], true, found)]

    def fake_predictions(self, id2label: dict[int, str] | None) -> tuple[np.ndarray, np.ndarray]:
        """Make a right answer, and a question without one."""
        truths = [{"text": ["a"], "answer_start": [0]}, {"text": [], "answer_start": []}]
        return np.array([{"text": "a"}, {"text": ""}], object), np.array(truths, object)
