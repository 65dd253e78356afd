"""Masked language modelling: guess the masked tokens of texts, as a model like BERT is pretrained."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from hfexp.core.errors import ConfigError, DataError
from hfexp.tasks.base import check_count
from hfexp.tasks.language_model import SHOWN_EXAMPLE, LanguageModelling

FILLER = {"mask": "long", "token": "string", "score": "double"}
"""Fields of a filler in an answer; `mask` counts the masks of the text from 1."""


class FillMask(LanguageModelling):
    """Masked language modelling on the column `text`, which `transform` encodes (`hfexp.tasks.masking.EncodeText`)."""

    model_class: ClassVar[str] = "AutoModelForMaskedLM"
    draws: ClassVar[bool] = True
    answer_types: ClassVar[dict[str, Any]] = {"text": "string", "fillers": FILLER}
    quick_options: ClassVar[dict[str, Any]] = {"top_k": 1}

    def __init__(
        self, block_size: int | None = None, mlm_probability: float = 0.15, whole_words: bool = False, top_k: int = 5
    ) -> None:
        """Set up the task.

        Args:
            block_size: tokens per row when all texts are concatenated and cut; None: each text is a row.
            mlm_probability: share of the tokens that are masked.
            whole_words: mask all tokens of a word together.
            top_k: fillers of each mask in an answer.
        """
        super().__init__(block_size)
        if not 0 < mlm_probability < 1:
            raise ConfigError(f"task.mlm_probability={mlm_probability} must be between 0 and 1")
        self.mlm_probability, self.whole_words, self.top_k = mlm_probability, whole_words, top_k
        check_count("task.top_k", top_k)
        self._masking: Any = None

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row if its text is a string, and not empty unless it is cut into blocks; DataError otherwise."""
        if "question" in row:
            return row
        if not isinstance(row["text"], str):
            raise DataError(f"column 'text' holds {row['text']!r:.80}, expected a string")
        if self.block_size is None and not row["text"].strip():
            raise DataError("column 'text' holds an empty text, in which there is nothing to mask")
        return row

    def vary(self, row: dict[str, Any], processor: Any, draw: Callable[[int], np.ndarray]) -> dict[str, Any]:
        """Mask tokens, and add `labels`; a text that is a row of its own is cut to what the model takes.

        Raises:
            ConfigError: whole words are to be masked, and the tokenizer does not tell where they begin.
        """
        from hfexp.tasks.masking import STARTS

        if self.whole_words and STARTS not in row:
            raise ConfigError(
                f"task.whole_words=true: {type(processor).__name__} is a slow tokenizer, which does not tell a "
                "token's word; set task.whole_words=false"
            )
        masking = self._masking_with(processor)
        row = row if self.block_size is not None else masking.cut(row, processor.model_max_length)
        return masking(row["input_ids"], row[STARTS] if self.whole_words else None, draw)

    def _masking_with(self, processor: Any) -> Any:
        from hfexp.tasks.masking import Masking

        if self._masking is None or self._masking.tokenizer is not processor:
            self._masking = Masking(processor, self.mlm_probability)
        return self._masking

    def preprocess(self, row: dict[str, Any], processor: Any) -> dict[str, Any]:
        """Return a masked row as it is; check a row to predict on, and cut it to what the model takes."""
        return row if "labels" in row else self._masking_with(processor).asked(row, processor.model_max_length)

    def inference_row(self, value: Any) -> dict[str, Any]:
        """Turn a text with masks into a row."""
        if not isinstance(value, str):
            raise DataError(f"expected a text, got {value!r:.80}")
        return {"question": value}

    def inference_example(self, row: dict[str, Any]) -> str:
        """Return the first `SHOWN_EXAMPLE` characters of the text with a mask in place of the first word."""
        from hfexp.tasks.masking import MASK

        return " ".join([MASK, *row["text"][:SHOWN_EXAMPLE].split()[1:]])

    def collator(self, processor: Any) -> Callable[..., dict[str, Any]]:
        """Return a collator that pads to the longest row of a batch."""
        from hfexp.tasks.entities import IGNORED
        from hfexp.tasks.text import TextCollator

        return TextCollator(processor, padding={"labels": IGNORED})

    def serving_options(self) -> dict[str, bool | int | float | str]:
        """Return the number of fillers."""
        return {"top_k": self.top_k}

    def respond(self, model: Any, batch: dict[str, Any], processor: Any, options: Mapping[str, Any]) -> Sequence[Any]:
        """Return the most probable fillers of each mask, which equal those of Transformers' pipeline for one mask."""
        from hfexp.tasks.masking import fill_masks

        return fill_masks(model, batch, processor, options.get("top_k", self.top_k))

    def answer(self, output: dict[str, Any], id2label: Mapping[int, str]) -> dict[str, Any]:
        """Return the text with the best filler in each mask, and the fillers, each with the fields of `FILLER`."""
        return output
