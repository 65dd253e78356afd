"""What the tasks share whose models guess tokens of texts: rows in blocks, and scores over the guessed tokens."""

from typing import Any, ClassVar

import numpy as np

from hfexp.core.errors import ConfigError
from hfexp.tasks.base import Task

SHOWN_EXAMPLE = 200
"""Characters of a text that are kept as an input example."""


class LanguageModelling(Task):
    """Base of tasks whose model guesses tokens of texts, scored by their perplexity."""

    processor_class: ClassVar[str] = "AutoTokenizer"
    columns: ClassVar[tuple[str, ...]] = ("text",)
    metric: ClassVar[str] = "perplexity"
    greater_is_better: ClassVar[bool] = False
    loss_per_token: ClassVar[bool] = True
    varying_shapes: ClassVar[bool] = True
    raw_type: ClassVar[str] = "string"

    def __init__(self, block_size: int | None = None) -> None:
        """Set up the task; `block_size`: see `Task`."""
        if block_size is not None and block_size < 2:
            raise ConfigError(f"task.block_size={block_size} must be at least 2")
        self.block_size = block_size

    def picture(self, inputs: dict[str, Any], processor: Any) -> str:
        """Decode the tokens to text, special tokens included."""
        return processor.decode(inputs["input_ids"])

    def metric_inputs(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        """Return per row `nll` in nats, the number of scored `tokens`, and the `correct` ones of them."""
        counts = predictions[:, 1:].astype(np.int64)
        return {"nll": predictions[:, 0], "tokens": counts[:, 0], "correct": counts[:, 1]}

    def fake_predictions(self, id2label: dict[int, str] | None) -> tuple[np.ndarray, np.ndarray]:
        """Make scores of two rows of ten tokens, half of them predicted right."""
        return np.array([[10.0, 10, 5]] * 2, dtype=np.float32), np.zeros((2, 11), np.int64)
