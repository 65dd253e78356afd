"""Preference training: a language model learns to prefer chosen answers to rejected ones, without a reward model."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from hfexp.core.errors import ConfigError
from hfexp.tasks import column_names
from hfexp.tasks.text_generation import TextGeneration


class Preference(TextGeneration):
    """Direct preference optimization on the columns `chosen` and `rejected`, and `prompt` if there is one.

    R. Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", NeurIPS 2023.
    Losses and scores are those of TRL's `DPOTrainer`.
    """

    columns: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    optional_columns: ClassVar[tuple[str, ...]] = ("prompt",)
    usual_names: ClassVar[Mapping[str, tuple[Any, ...]]] = column_names.ANSWERS
    inference_columns: ClassVar[tuple[str, ...]] = ("prompt",)
    raw_column: ClassVar[str | None] = "prompt"
    metric: ClassVar[str] = "accuracy"
    greater_is_better: ClassVar[bool] = True
    loss_per_token: ClassVar[bool] = False
    has_own_loss: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True

    def __init__(
        self,
        loss: str = "sigmoid",
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        generation: Mapping[str, Any] | None = None,
    ) -> None:
        """Set up the task.

        Args:
            loss: one of `hfexp.tasks.preferences.LOSSES`.
            beta: how strongly the model is held to what it was before the training.
            label_smoothing: for `robust`: share of the rows whose answers are in the wrong order.
            generation: fields of `transformers.GenerationConfig` that replace the model's own.
        """
        from hfexp.tasks.preferences import check_loss

        super().__init__(None, generation)
        check_loss(loss, beta, label_smoothing)
        self.loss_name, self.beta, self.label_smoothing = loss, beta, label_smoothing

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row if its answers are texts or messages, and not equal, or if it is a prompt; else DataError."""
        from hfexp.tasks.preferences import check_answers

        return check_answers(row) if "chosen" in row else row

    def preprocess(self, row: dict[str, Any], processor: Any) -> dict[str, Any]:
        """Add `labels`, which say nothing: the chosen answer comes first; a prompt gets none."""
        return {"input_ids": row["input_ids"]} if "prompt" in row else {**row, "labels": 0}

    def picture(self, inputs: dict[str, Any], processor: Any) -> str:
        """Decode the chosen and the rejected text, special tokens included."""
        from hfexp.tasks.text_groups import show_texts

        return show_texts(inputs, processor)

    def inference_example(self, row: dict[str, Any]) -> str | None:
        """Return the prompt if it is a text; None otherwise."""
        return row["prompt"] if isinstance(row.get("prompt"), str) else None

    def collator(self, processor: Any) -> Callable[..., dict[str, Any]]:
        """Return a collator that pads to the longest text of a batch."""
        from hfexp.tasks.preferences import AnswerCollator

        return AnswerCollator(processor)

    def forward(self, model: Any, batch: dict[str, Any]) -> Any:
        """Return the log-probability of both answers, that of the reference, and their lengths, (B, 2, 3) float32."""
        import torch

        from hfexp.tasks.preferences import answer_lengths, log_probabilities, without_adapter

        if self.reference is None:
            raise ConfigError(
                "this task's scores compare a model with what it was before the training, which is not saved with it; "
                "see those that its run has recorded"
            )
        own = log_probabilities(model, batch)
        with torch.no_grad(), without_adapter(self.reference):
            before = log_probabilities(self.reference, batch)
        return torch.stack([own, before, answer_lengths(batch)], -1)

    def loss(self, outputs: Any, batch: dict[str, Any]) -> Any:
        """Return the loss of `forward`'s outputs, a mean over the rows."""
        from hfexp.tasks.preferences import preference_loss

        own, before, lengths = outputs.unbind(-1)
        return preference_loss(self.loss_name, own - before, lengths, self.beta, self.label_smoothing)

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """Return the implicit rewards of both answers, (B, 2) float32: `beta` times the log-ratio to the reference."""
        return self.beta * (logits[..., 0] - logits[..., 1])

    def metric_inputs(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        """Return the implicit rewards of the `chosen` and of the `rejected` answers, (N,)."""
        return {"chosen": predictions[:, 0], "rejected": predictions[:, 1]}

    def fake_predictions(self, id2label: dict[int, str] | None) -> tuple[np.ndarray, np.ndarray]:
        """Make the implicit rewards of two rows."""
        return np.array([[1, 0], [0, 1]], np.float32), np.zeros(2, np.int64)
