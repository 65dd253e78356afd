"""What the tasks of language models share: scores over guessed tokens, rows in blocks, options of generation."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from hfexp.core.errors import ConfigError
from hfexp.tasks import column_names
from hfexp.tasks.base import Task

SHOWN_EXAMPLE = 200
"""Characters of a text that are kept as an input example."""


class LanguageModelling(Task):
    """Base of tasks whose model guesses tokens of texts, scored by their perplexity."""

    processor_class: ClassVar[str] = "AutoTokenizer"
    columns: ClassVar[tuple[str, ...]] = ("text",)
    usual_names: ClassVar[Mapping[str, tuple[Any, ...]]] = {"text": column_names.TEXT}
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

    def inference_example(self, row: dict[str, Any]) -> str | None:
        """Return the first `SHOWN_EXAMPLE` characters of the text."""
        return row["text"][:SHOWN_EXAMPLE]

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """Reduce logits to the (B, 3) scores of `hfexp.tasks.causal_lm.scores_in_place`."""
        from hfexp.tasks.causal_lm import scores_in_place

        return scores_in_place(logits[0] if isinstance(logits, tuple) else logits, labels)

    def metric_inputs(self, predictions: Any, references: np.ndarray) -> dict[str, np.ndarray]:
        """Return per row `nll` in nats, the number of scored `tokens`, and the `correct` ones of them."""
        counts = predictions[:, 1:].astype(np.int64)
        return {"nll": predictions[:, 0], "tokens": counts[:, 0], "correct": counts[:, 1]}

    def fake_predictions(self, id2label: dict[int, str] | None) -> tuple[Any, np.ndarray]:
        """Make scores of two rows of ten tokens, half of them predicted right."""
        return np.array([[10.0, 10, 5]] * 2, dtype=np.float32), np.zeros((2, 11), np.int64)


class TextWriting(Task):
    """Base of tasks whose answer is a text that the model generates."""

    answer_types: ClassVar[dict[str, Any]] = {"text": "string"}
    quick_options: ClassVar[dict[str, Any]] = {"max_new_tokens": 8, "do_sample": False}
    generation: dict[str, Any]
    """Fields of `transformers.GenerationConfig` that replace the model's own."""

    def set_generation(self, generation: Mapping[str, Any] | None) -> None:
        """Keep the fields of `transformers.GenerationConfig`; raise ConfigError for wrong ones."""
        self.generation = dict(generation or {})
        self.check_options({})

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise ConfigError unless the options are valid fields of `transformers.GenerationConfig`."""
        from hfexp.tasks.causal_lm import check_generation

        check_generation({**self.generation, **options})

    def serving_options(self) -> dict[str, bool | int | float | str]:
        """Return the task's own scalar settings, over defaults of 256 new tokens and greedy decoding."""
        plain = {name: value for name, value in self.generation.items() if isinstance(value, bool | int | float | str)}
        return {"max_new_tokens": 256, "do_sample": False, **plain}

    def answer(self, output: str, id2label: Mapping[int, str]) -> dict[str, Any]:
        """Return what the model has written as `text`."""
        return {"text": output}
