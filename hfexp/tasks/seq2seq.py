"""Pairs of a text and its target as tokens, texts that a model writes, and texts as arrays."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from hfexp.core.errors import ConfigError, DataError, did_you_mean, one_of
from hfexp.tasks.entities import IGNORED
from hfexp.tasks.text import MULTIPLE, TEXT, max_length_of

TARGET = "target"
"""Column of the text that the model learns to write."""
CODE = "utf-32-le"
"""Encoding in which each character of a text is one int32."""


class EncodePair(torch.nn.Module):
    """Operation for `transform.prepare`: turn a row's `text` into `input_ids`, and its `target` into `labels`."""

    def __init__(
        self,
        processor: Any,
        max_length: int | None = None,
        max_target_length: int | None = None,
        truncation: bool = False,
    ) -> None:
        """Copy the tokenizer, once for texts and once for targets.

        Args:
            processor: a tokenizer.
            max_length: most tokens of a text, special tokens included; None: as many as the model takes.
            max_target_length: the same for a target.
            truncation: cut what is longer; otherwise it is an error.

        Raises:
            ConfigError: a length is out of range, or it is None and the model's limit is unknown.
        """
        super().__init__()
        self.truncation = truncation
        self.limits = {
            TEXT: ("max_length", max_length_of(processor, max_length)),
            TARGET: ("max_target_length", max_length_of(processor, max_target_length)),
        }
        self.tokenizers = {name: copy.deepcopy(processor) for name in self.limits}
        for tokenizer in self.tokenizers.values():
            tokenizer.model_max_length = 10**30  # no warning about long texts, which are refused or cut
        target = self.tokenizers[TARGET]
        if hasattr(target, "_switch_to_target_mode"):
            # Tokenizers of translation models write texts and targets differently. `text_target=...` would switch to
            # and fro in each call, which threads must not do together; so this copy stays in one mode.
            target._switch_to_target_mode()
            target._in_target_context_manager = True
        # The first calls set the truncation of the copies: doing so later, from several threads, would be an error.
        self.forward({TEXT: "a", TARGET: "a"})

    def forward(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the texts by lists of token ids; a row to predict on has no target, and gets no labels."""
        labels = {"labels": self._tokens(row, TARGET)} if TARGET in row else {}
        return {"input_ids": self._tokens(row, TEXT), **labels}

    def _tokens(self, row: Mapping[str, Any], column: str) -> list[int]:
        """Return the tokens of a column; raise DataError if they are too many."""
        name, limit = self.limits[column]
        cut = {"truncation": True, "max_length": limit} if self.truncation else {}
        tokens = list(self.tokenizers[column](row[column], **cut)["input_ids"])
        if len(tokens) > limit:
            raise DataError(
                f"column {column!r} has {len(tokens)} tokens, more than {name}={limit}: shorten the text, or set "
                "transform.prepare.0.truncation=true, which cuts it"
            )
        return tokens


class PairCollator(transformers.DataCollatorForSeq2Seq):
    """The library's collator, without the labels that rows to predict on don't have."""

    def __init__(self, tokenizer: Any) -> None:
        """Set what rows are padded with; lengths are a multiple of 8 on an accelerator."""
        if tokenizer.pad_token_id is None:
            raise ConfigError("the tokenizer has no padding token; set model.processor.pad_token")
        super().__init__(tokenizer, pad_to_multiple_of=MULTIPLE if torch.accelerator.is_available() else None)

    def __call__(self, features: Any, return_tensors: str | None = None) -> dict[str, Any]:
        """Pad rows to (B, S), and their labels to (B, T) with `IGNORED`."""
        batch = super().__call__(features, return_tensors)
        return {name: value for name, value in batch.items() if value is not None}


# Languages of a tokenizer that knows several.


def set_languages(tokenizer: Any, source: str | None, target: str | None) -> None:
    """Set the languages of the texts and of the targets, for tokenizers as those of mBART, M2M-100 and NLLB.

    Raises:
        ConfigError: a language is missing or unknown, or the tokenizer has no languages.
    """
    given, kind = {"task.source_lang": source, "task.target_lang": target}, type(tokenizer).__name__
    if not hasattr(tokenizer, "src_lang"):
        for key, code in given.items():
            if code is not None:
                raise ConfigError(
                    f"{key}={code}: {kind} has no languages; leave it out (some models read them in task.prefix)"
                )
        return
    known = getattr(tokenizer, "lang_code_to_id", None) or tokenizer.get_added_vocab()
    for key, code in given.items():
        if code is None:
            raise ConfigError(f"{key} is missing: {kind} reads and writes several languages: {one_of(known)}")
        if code not in known:
            raise ConfigError(
                f"{key}={code} is unknown to {kind}.{did_you_mean(code, known)} It knows: {one_of(known)}"
            )
    tokenizer.src_lang, tokenizer.tgt_lang = source, target


def language_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the options of `generate` that make a model write in the language of the targets.

    Where targets begin with the token of their language, it is the first token to write (mBART-50, M2M-100, NLLB);
    where they end with it, the decoder starts from it, as labels that are shifted around do (mBART).
    """
    if getattr(tokenizer, "tgt_lang", None) is None:
        return {}
    special = tokenizer(text_target="")["input_ids"]
    (language,) = (token for token in special if token != tokenizer.eos_token_id)
    return {"forced_bos_token_id" if special[0] == language else "decoder_start_token_id": language}


# Texts that a model writes.


def write_texts(model: Any, batch: Mapping[str, Any], tokenizer: Any, settings: Mapping[str, Any]) -> list[str]:
    """Generate a text for each row of a batch, without special tokens.

    Args:
        batch: the model's inputs (B, S) on its device.
        settings: fields of `transformers.GenerationConfig`. `max_new_tokens` is lowered to the model's positions.
    """
    settings = {**language_tokens(tokenizer), **settings}
    positions, new = getattr(model.config, "max_position_embeddings", None), settings.get("max_new_tokens")
    if positions and new:
        settings["max_new_tokens"] = min(new, positions - 1)  # the decoder begins with a token of its own
    if settings.get("stop_strings"):
        settings["tokenizer"] = tokenizer
    tokens = model.generate(**batch, **settings)
    return tokenizer.batch_decode(tokens, skip_special_tokens=True)


def read_labels(labels: torch.Tensor, tokenizer: Any) -> list[str]:
    """Return the texts whose tokens are the labels (B, T)."""
    tokens = labels.masked_fill(labels == IGNORED, tokenizer.pad_token_id)
    return tokenizer.batch_decode(tokens, skip_special_tokens=True)


def to_characters(texts: Sequence[str]) -> torch.Tensor:
    """Return texts as one tensor of their characters, filled up with `IGNORED`: (B, L) int32, L at least 1."""
    rows = [np.frombuffer(text.encode(CODE, "surrogatepass"), np.int32) for text in texts]
    characters = np.full((len(rows), max([1, *map(len, rows)])), IGNORED, np.int32)
    for place, row in enumerate(rows):
        characters[place, : len(row)] = row
    return torch.from_numpy(characters)


def to_texts(characters: np.ndarray) -> np.ndarray:
    """Return the texts that `to_characters` was given, (B,) of `str` objects."""
    texts = np.empty(len(characters), dtype=object)
    texts[:] = [row[row >= 0].astype(np.int32).tobytes().decode(CODE, "surrogatepass") for row in characters]
    return texts
