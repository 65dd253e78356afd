"""Reward modelling: a number for an answer, learnt from pairs of a chosen and a rejected one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from hfexp.core.errors import DataError
from hfexp.tasks import column_names
from hfexp.tasks.base import NUMBER, PROBLEMS, Task, to_number


class Reward(Task):
    """Rewards from the columns `chosen` and `rejected`, and `prompt` and `margin` if there are such columns.

    The loss is that of R. A. Bradley and M. E. Terry, "Rank analysis of incomplete block designs", Biometrika 39,
    1952, as in TRL's `RewardTrainer.compute_loss`; with a margin as in H. Touvron et al., "Llama 2", 2023, eq. 2.
    """

    model_class: ClassVar[str] = "AutoModelForSequenceClassification"
    processor_class: ClassVar[str] = "AutoTokenizer"
    columns: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    optional_columns: ClassVar[tuple[str, ...]] = ("prompt", "margin")
    usual_names: ClassVar[Mapping[str, tuple[Any, ...]]] = column_names.ANSWERS
    inference_columns: ClassVar[tuple[str, ...]] = ("text",)
    metric: ClassVar[str] = "accuracy"
    varying_shapes: ClassVar[bool] = True
    has_own_loss: ClassVar[bool] = True
    raw_type: ClassVar[str] = "string"
    raw_column: ClassVar[str | None] = "text"
    answer_types: ClassVar[dict[str, str]] = {"score": "double"}

    def __init__(self, center_rewards_coefficient: float = 0.0) -> None:
        """Set up the task.

        Args:
            center_rewards_coefficient: weight of the squared sum of both rewards in the loss, which keeps their mean
                near 0 (J. Eisenstein et al., "Helping or Herding?", 2023, eq. 2).
        """
        self.center_rewards_coefficient = center_rewards_coefficient

    def model_fields(self, id2label: dict[int, str] | None) -> dict[str, Any]:
        """Return the fields of a head with one output."""
        return {"num_labels": 1, "problem_type": PROBLEMS[NUMBER]}

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row if its answers are texts or messages, and not equal; DataError otherwise."""
        from hfexp.tasks.preferences import ANSWER, check_answers

        if ANSWER in row:
            return row
        margin = {"margin": to_number(row["margin"], "margin")} if "margin" in row else {}
        return {**check_answers(row), **margin}

    def preprocess(self, row: dict[str, Any], processor: Any) -> dict[str, Any]:
        """Add `labels`, which say nothing: the chosen answer comes first."""
        return {**row, "labels": 0}

    def picture(self, inputs: dict[str, Any], processor: Any) -> str:
        """Decode the chosen and the rejected text, special tokens included."""
        from hfexp.tasks.text_groups import show_texts

        return show_texts(inputs, processor)

    def suits(self, processor: Any) -> bool:
        """Return False: a checkpoint does not tell a reward from another number, so `task=reward` must be named."""
        return False

    def inference_row(self, value: Any) -> dict[str, Any]:
        """Turn a text, or the messages of a conversation, into a row."""
        from hfexp.tasks.causal_lm import check_messages

        if value is None or value == "":
            raise DataError("the text is missing")
        return {"answer": value if isinstance(value, str) else check_messages(value)}

    def inference_example(self, row: dict[str, Any]) -> str | None:
        """Return the chosen text; None if it is a conversation."""
        return row["chosen"] if isinstance(row["chosen"], str) else None

    def collator(self, processor: Any) -> Callable[..., dict[str, Any]]:
        """Return a collator that pads to the longest text of a batch."""
        from hfexp.tasks.text_groups import GroupCollator

        return GroupCollator(processor)

    def forward(self, model: Any, batch: dict[str, Any]) -> Any:
        """Return the rewards of the chosen and the rejected answer, (B, 2) float32."""
        from hfexp.tasks.preferences import answer_scores

        return answer_scores(model, batch)

    def loss(self, outputs: Any, batch: dict[str, Any]) -> Any:
        """Return the negative log-likelihood of the choices, a mean over the rows."""
        from torch.nn.functional import logsigmoid

        chosen, rejected = outputs.unbind(1)
        loss = -logsigmoid(chosen - rejected - batch.get("margin", 0.0)).mean()
        return loss + self.center_rewards_coefficient * ((chosen + rejected) ** 2).mean()

    def respond(self, model: Any, batch: dict[str, Any], processor: Any, options: Mapping[str, Any]) -> Sequence[Any]:
        """Return the reward of each row's first text, (B,)."""
        return self.forward(model, batch)[:, 0].cpu().numpy()

    def answer(self, output: Any, id2label: Mapping[int, str]) -> dict[str, Any]:
        """Return the reward as `score`."""
        return {"score": float(output)}

    def metric_inputs(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        """Return the rewards of the `chosen` and of the `rejected` answers, (N,)."""
        return {"chosen": predictions[:, 0], "rejected": predictions[:, 1]}

    def fake_predictions(self, id2label: dict[int, str] | None) -> tuple[np.ndarray, np.ndarray]:
        """Make the rewards of two rows."""
        return np.array([[1, 0], [0, 1]], np.float32), np.zeros(2, np.int64)
