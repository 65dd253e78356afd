"""Rows of several texts, such as a question and its answer: their tokens end to end, and batches (B, K, T) of them."""

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from hfexp.core.errors import ConfigError
from hfexp.tasks.text import TextCollator, max_length_of

TOKENS, ENDS = "input_ids", "ends"
"""Fields of a row: the tokens of its texts end to end, and the place behind the last token of each text."""


class TokenizeEach(torch.nn.Module):
    """Operation for `transform.prepare`: turn each text of a row by itself into tokens, which are laid end to end."""

    def __init__(self, processor: Any, columns: Sequence[str], max_length: int | None = None) -> None:
        """Copy the tokenizer and set its truncation.

        Args:
            processor: a tokenizer.
            columns: columns of texts in the order that they get; a row may lack some of them.
            max_length: tokens to keep of a text, special tokens included; None: as many as the model takes.
        """
        super().__init__()
        if not columns:
            raise ConfigError("TokenizeEach: name the columns of texts")
        self.columns, self.max_length = tuple(columns), max_length_of(processor, max_length)
        # The first call sets the truncation of the copy: doing so later, from several threads, would be an error.
        self.tokenizer = copy.deepcopy(processor)
        self.forward({self.columns[0]: "a"})

    def forward(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the columns of texts by `input_ids` and `ends`."""
        texts = [row[name] for name in self.columns if name in row]
        tokens = self.tokenizer(texts, truncation=True, max_length=self.max_length)[TOKENS]
        return {**{name: value for name, value in row.items() if name not in self.columns}, **join(tokens)}


def join(texts: Sequence[Sequence[int]]) -> dict[str, list[int]]:
    """Lay the tokens of texts end to end."""
    ends, tokens = [], []
    for text in texts:
        tokens += list(text)
        ends.append(len(tokens))
    return {TOKENS: tokens, ENDS: ends}


def split(row: Mapping[str, Any]) -> list[list[int]]:
    """Return the tokens of each text of a row."""
    return [row[TOKENS][start:end] for start, end in pairwise([0, *row[ENDS]])]


class GroupCollator:
    """Collator that pads all texts of a batch on the right, to the longest of them: (B, K, T) int64."""

    def __init__(self, tokenizer: Any) -> None:
        filler = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.pad = TextCollator(tokenizer, pad_id=filler, side="right")

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        texts = self.pad([{TOKENS: text} for row in rows for text in split(row)])
        batch = {name: tensor.view(len(rows), -1, tensor.shape[-1]) for name, tensor in texts.items()}
        others = [name for name in rows[0] if name not in (TOKENS, ENDS)]
        return batch | {name: torch.tensor([row[name] for row in rows]) for name in others}


def show_texts(row: Mapping[str, Any], processor: Any) -> str:
    """Decode the texts of a row, each in a line of its own, special tokens included."""
    return "\n".join(processor.decode(text) for text in split(row))
