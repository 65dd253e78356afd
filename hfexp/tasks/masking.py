"""Masked tokens: texts as tokens, which of them a model has to guess, and its best guesses for the masks of a text."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hfexp.core.errors import ConfigError, DataError
from hfexp.tasks.base import main_output
from hfexp.tasks.entities import IGNORED

MASK = "[MASK]"
"""A mask in the text of a question, whatever the tokenizer calls its own."""
MASKED, REPLACED = 0.8, 0.1
"""Shares of the chosen tokens that become the mask token, and a random one; the others stay as they are."""
STARTS = "word_starts"
"""Field of a row: 1 for each token that begins a word or is special, otherwise 0."""


class EncodeText(torch.nn.Module):
    """Operation for `transform.prepare`: turn a row's `text` into `input_ids` and `word_starts`.

    A row to predict on has a `question` instead, whose masks become the tokenizer's own.
    """

    def __init__(self, processor: Any, max_length: int | None = None) -> None:
        """Copy the tokenizer and set the number of tokens to keep.

        Args:
            processor: a tokenizer with a mask token.
            max_length: tokens to keep of a text, special tokens included; None keeps all of it.

        Raises:
            ConfigError: the tokenizer has no mask token, or `max_length` is out of range.
        """
        super().__init__()
        if processor.mask_token_id is None:
            raise ConfigError("the tokenizer has no mask token; set model.processor.mask_token")
        limit = int(processor.model_max_length)
        if max_length is not None and not 1 <= max_length <= limit:
            raise ConfigError(f"max_length={max_length} must be from 1 to {limit}, the maximum length of the model")
        self.cut = {} if max_length is None else {"truncation": True, "max_length": max_length}
        # The first call sets the truncation of a copy: doing so later, from several threads, would be an error.
        self.tokenizer, self.asker = copy.deepcopy(processor), copy.deepcopy(processor)
        for tokenizer in (self.tokenizer, self.asker):
            tokenizer.model_max_length = 10**30  # no warning about long texts, which are cut later
        self.forward({"text": "a"})
        self.forward({"question": "a"})

    def forward(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the text by token ids; the collator adds the attention mask."""
        if "question" in row:
            text = row["question"].replace(MASK, self.asker.mask_token)
            return {"input_ids": list(self.asker(text)["input_ids"])}
        tokens = self.tokenizer(row["text"], **self.cut)
        if not self.tokenizer.is_fast:
            return {"input_ids": list(tokens["input_ids"])}
        words = tokens.word_ids(0)
        starts = [int(word is None or word != before) for word, before in zip(words, [None, *words], strict=False)]
        return {"input_ids": list(tokens["input_ids"]), STARTS: starts}


class Masking:
    """The tokens of a row that a model has to guess, and what it sees in their places.

    As in J. Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", NAACL
    2019, and in its program `create_pretraining_data.py`, but drawn anew for each epoch as in Y. Liu et al.,
    "RoBERTa: A Robustly Optimized BERT Pretraining Approach", arXiv:1907.11692.
    """

    def __init__(self, tokenizer: Any, probability: float) -> None:
        self.tokenizer, self.probability = tokenizer, probability
        special = np.isin(np.arange(len(tokenizer)), tokenizer.all_special_ids)
        self.is_special, self.ordinary = special, np.flatnonzero(~special)
        inner = [token for token in (tokenizer.mask_token_id, tokenizer.unk_token_id) if token is not None]
        self.is_frame = special & ~np.isin(np.arange(len(tokenizer)), inner)

    def __call__(
        self, tokens: Sequence[int], starts: Sequence[int] | None, draw: Callable[[int], np.ndarray]
    ) -> dict[str, list[int]]:
        """Return `input_ids` with masks, and `labels`: the tokens to guess, elsewhere `IGNORED`.

        Args:
            tokens: (T,); if all are special, none is masked, otherwise at least one is.
            starts: (T,), 1 where a word begins, to mask whole words; None: single tokens.
            draw: returns so many numbers in [0, 1).
        """
        inputs, labels = np.array(tokens), np.full(len(tokens), IGNORED)
        places = np.flatnonzero(~self.is_special[inputs])
        first = np.arange(len(places))
        if starts is not None:
            first = np.unique(np.cumsum(starts)[places], return_index=True)[1]
        draws = draw(1 + len(first) + 2 * len(places))
        # Rounding up or down at random masks the right share of short texts too.
        wanted = max(int(self.probability * len(places) + draws[0]), 1)
        order = np.argsort(draws[1 : 1 + len(first)], kind="stable")
        chosen = places[order[:wanted]] if starts is None else _fill(np.split(places, first[1:]), order, wanted)
        labels[chosen] = inputs[chosen]
        ways, others = draws[1 + len(first) :].reshape(2, -1)[:, : len(chosen)]
        replaced = chosen[(ways >= MASKED) & (ways < MASKED + REPLACED)]
        inputs[chosen[ways < MASKED]] = self.tokenizer.mask_token_id
        picks = others[(ways >= MASKED) & (ways < MASKED + REPLACED)]
        inputs[replaced] = self.ordinary[(picks * len(self.ordinary)).astype(int)]
        return {"input_ids": inputs.tolist(), "labels": labels.tolist()}

    def cut(self, row: dict[str, Any], limit: int) -> dict[str, Any]:
        """Cut a row to so many tokens; the special ones at its end that the tokenizer has added stay there."""
        count = len(row["input_ids"])
        if count <= limit:
            return row
        content = np.flatnonzero(~self.is_frame[row["input_ids"]])
        ends = min(count - 1 - int(content[-1]), limit) if len(content) else 0
        return {name: [*values[: limit - ends], *values[count - ends :]] for name, values in row.items()}

    def asked(self, row: dict[str, Any], limit: int) -> dict[str, Any]:
        """Cut a row to predict on; raise DataError if it has no mask, or one behind the cut."""
        cut = self.cut(row, limit)
        before, after = (tokens["input_ids"].count(self.tokenizer.mask_token_id) for tokens in (row, cut))
        if not before:
            raise DataError(f"the text has no {MASK}: put one in place of each word to fill in")
        if after < before:
            raise DataError(
                f"the text has {len(row['input_ids'])} tokens, and a {MASK} behind the {limit} that the model takes: "
                "shorten what is before it"
            )
        return cut


def _fill(words: list[np.ndarray], order: np.ndarray, wanted: int) -> np.ndarray:
    """Take the places of words in an order until there are so many; a word too long for the rest is left out.

    Returns:
        The places, (M,); those of the first word even if they are too many.
    """
    taken = [np.zeros(0, np.int64)]
    count = 0
    for number in order:
        if not count or count + len(words[number]) <= wanted:
            taken.append(words[number])
            count += len(words[number])
        if count >= wanted:
            break
    return np.concatenate(taken)


def fill_masks(model: Any, batch: Mapping[str, torch.Tensor], tokenizer: Any, top_k: int) -> list[dict[str, Any]]:
    """Return for each row its text with the best fillers, and the `top_k` best `fillers` of each mask by themselves.

    Scores are probabilities of the whole vocabulary, as in Transformers' pipeline `fill-mask`.
    """
    answers = []
    for tokens, logits, kept in zip(
        batch["input_ids"], main_output(model(**batch)), batch["attention_mask"], strict=True
    ):
        places = (tokens == tokenizer.mask_token_id).nonzero()[:, 0]
        scores, best = logits[places].float().softmax(-1).topk(min(top_k, logits.shape[-1]))
        filled = tokens.clone()
        filled[places] = best[:, 0]
        fillers = [
            {"mask": number, "token": tokenizer.decode([token]), "score": score}
            for number, pair in enumerate(zip(best.tolist(), scores.tolist(), strict=True), 1)
            for token, score in zip(*pair, strict=True)
        ]
        text = tokenizer.decode(filled[kept.bool()].tolist(), skip_special_tokens=True)
        answers.append({"text": text, "fillers": fillers})
    return answers
