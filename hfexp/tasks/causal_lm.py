"""Texts for causal language models: tokens with their labels, batches, generation settings and scores."""

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hfexp.core.errors import ConfigError, DataError, did_you_mean
from hfexp.tasks.text import TextCollator

IGNORED = -100
"""Label of a token that the loss ignores (`ignore_index` of `torch.nn.CrossEntropyLoss`)."""
ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
"""Names of roles in ShareGPT's form of conversations, where they differ."""
Messages = list[dict[str, Any]]


class Encode(torch.nn.Module):
    """Operation of `transform.prepare` that turns a row into `input_ids`, and `labels` if not all tokens count.

    A row has one of these columns: `text` (the model learns all of it, and that it ends), `messages` (a conversation
    in the form of the tokenizer's chat template; the model learns what the assistant says), or `prompt` (a text to
    continue, or messages to answer; the model learns nothing).
    """

    needs_end = True
    """True if the tokenizer must have an end-of-text token."""

    def __init__(self, processor: Any, max_length: int | None = None) -> None:
        """Copy the tokenizer and set the number of tokens to keep.

        Args:
            processor: a tokenizer.
            max_length: tokens to keep of a row; None keeps all of a text, and as many of messages as the model takes.
        """
        super().__init__()
        if self.needs_end and processor.eos_token_id is None:
            raise ConfigError("the tokenizer has no end-of-text token; set model.processor.eos_token")
        limit = int(processor.model_max_length)
        if max_length is not None and not 1 <= max_length <= limit:
            raise ConfigError(f"max_length={max_length} must be from 1 to {limit}, the maximum length of the model")
        self.max_length = max_length
        self.longest = max_length or limit
        self.tokenizer = copy.deepcopy(processor)
        self.tokenizer.model_max_length = 10**30  # no warning about long texts, which are cut into blocks later
        self.offset_tokenizer = _offset_tokenizer(self.tokenizer) if processor.chat_template else None

    def forward(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the columns of texts by lists of token ids."""
        if "prompt" in row:
            return {"input_ids": self._prompt(row["prompt"]), "prompt": True}
        if "messages" in row:
            return self._conversation(row["messages"])
        tokens = self._tokens(row["text"])
        if not tokens or tokens[-1] != self.tokenizer.eos_token_id:
            tokens.append(self.tokenizer.eos_token_id)
        return {"input_ids": tokens[: self.max_length]}

    def _tokens(self, text: str, special: bool = True) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])

    def _prompt(self, prompt: str | Messages) -> list[int]:
        """Return the tokens of a prompt; of one that is too long, the last tokens that fit."""
        return self._whole_prompt(prompt)[-self.longest :]

    def _whole_prompt(self, prompt: str | Messages) -> list[int]:
        if isinstance(prompt, str):
            return self._tokens(prompt)
        return self._tokens(self._text(prompt, add_generation_prompt=True), special=False)

    def _text(self, messages: Messages, **options: Any) -> str:
        if not self.tokenizer.chat_template:
            raise ConfigError(
                "the tokenizer has no chat template: choose a chat model, or set model.processor.chat_template"
            )
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except Exception as error:  # a template raises its own errors, e.g. for roles that do not alternate
            raise DataError(f"the chat template rejects the messages: {error}") from error

    def _conversation(self, messages: Messages) -> dict[str, Any]:
        """Tokenize a conversation; labels are the tokens of the assistant's turns, each with its end mark."""
        whole = self._text(messages)
        spans = [
            self._span(messages, place, whole) for place, turn in enumerate(messages) if turn["role"] == "assistant"
        ]
        if self.offset_tokenizer is None:
            raise ConfigError(
                f"{type(self.tokenizer).__name__} is a slow tokenizer, which returns no token offsets: "
                "conversations need a fast one"
            )
        encoded = self.offset_tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        tokens = list(encoded["input_ids"])[: self.longest]
        places = encoded["offset_mapping"][: self.longest]
        labels = [
            token if any(_touches(place, span) for span in spans) else IGNORED
            for token, place in zip(tokens, places, strict=True)
        ]
        if all(label == IGNORED for label in labels):
            raise DataError(
                f"a conversation of {len(encoded['input_ids'])} tokens has none of the assistant's among the first "
                f"{self.longest}: raise max_length, or remove the conversation"
            )
        return {"input_ids": tokens, "labels": labels}

    def _span(self, messages: Messages, place: int, whole: str) -> tuple[int, int]:
        """Locate a turn of the assistant in the text: from after the generation prompt to the end of its end mark."""
        before = self._text(messages[:place], add_generation_prompt=True)
        after = self._text(messages[: place + 1])
        if not (whole.startswith(before) and whole.startswith(after)):
            return self._rewritten_span(messages, place, whole, after)
        return len(before), len(after)

    def _rewritten_span(self, messages: Messages, place: int, whole: str, after: str) -> tuple[int, int]:
        """Locate a turn that the template rewrites once others follow it (Qwen3's template drops the thoughts).

        The turn's content is replaced by a marker: the text around the marker shows where the rest of the turn is.
        """
        content = messages[place]["content"]
        marker = "\ue000reply\ue000"
        marked = self._text([*messages[:place], {**messages[place], "content": marker}, *messages[place + 1 :]])
        before, separator, behind = marked.partition(marker)
        fits = whole.startswith(before) and whole.endswith(behind) and len(before) + len(behind) <= len(whole)
        if not (separator and fits and isinstance(content, str)):
            raise DataError(
                f"the chat template renders message {place + 1} differently when others follow it, so the assistant's "
                "tokens can't be located; make each reply a row of its own, with the messages before it"
            )
        stop = len(whole) - len(behind)
        reply = whole[len(before) : stop]
        mark = after[after.rindex(reply) + len(reply) :] if reply and reply in after else ""
        return len(before), stop + len(os.path.commonprefix([mark, behind]))


def _offset_tokenizer(tokenizer: Any) -> Any:
    """Copy the tokenizer so that its offsets cover whole tokens; return None for a slow one, which has no offsets.

    Post-processors add special tokens, which a chat template writes itself. They may also trim spaces from offsets, so
    that a token of nothing but spaces (an indentation) would cover nothing.
    """
    if not tokenizer.is_fast:
        return None
    from tokenizers.processors import TemplateProcessing

    located = copy.deepcopy(tokenizer)
    located.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    return located


def _touches(place: tuple[int, int], span: tuple[int, int]) -> bool:
    """Tell whether a token covers any of a span's characters; an empty token belongs to what follows it.

    A token across the edge of a span (a space of the prompt with the first word of the reply) belongs to both sides.
    """
    (begin, end), (start, stop) = place, span
    return start < end and begin < stop if begin < end else start <= begin < stop


class LanguageCollator:
    """Collator that pads rows with labels on the right, and prompts on the left, as generation starts at their end."""

    def __init__(self, tokenizer: Any) -> None:
        filler = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.pad_labelled = TextCollator(tokenizer, padding={"labels": IGNORED}, pad_id=filler, side="right")
        self.pad_prompts = TextCollator(tokenizer, pad_id=filler, side="left")

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return (self.pad_labelled if "labels" in rows[0] else self.pad_prompts)(rows)


def check_messages(value: Any) -> Messages:
    """Return the messages of a conversation, each a mapping with `role` and `content`, without parts that are None.

    Messages in ShareGPT's form, `from` and `value`, get these names.

    Raises:
        DataError: the value is not a list of such messages.
    """
    messages = value.get("messages") if isinstance(value, Mapping) else value
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise DataError(f"expected a list of messages, got {messages!r:.80}")
    messages = [_with_role(message) for message in messages]
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise DataError(f"expected a message with `role` and `content`, got {message!r:.80}")
        if message["role"] not in ROLES:
            raise DataError(f"a message has the unknown role {message['role']!r}. Roles: {', '.join(ROLES)}")
    return [{name: part for name, part in message.items() if part is not None} for message in messages]


def _with_role(message: Any) -> Any:
    if not isinstance(message, Mapping) or not {"from", "value"} <= message.keys() or "role" in message:
        return message
    return {"role": SHAREGPT_ROLES.get(message["from"], message["from"]), "content": message["value"]}


def check_generation(options: Mapping[str, Any]) -> None:
    """Raise ConfigError unless these are fields of `transformers.GenerationConfig` with values that it takes."""
    import transformers

    known = transformers.GenerationConfig().to_dict()
    for name in options:
        if name not in known:
            raise ConfigError(
                f"unknown key 'generation.{name}'.{did_you_mean(name, known)} (transformers.GenerationConfig)"
            )
    try:
        config = transformers.GenerationConfig(**options)
        config.validate(strict=True)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"generation: {' '.join(str(error).split())}") from error
    if (config.num_return_sequences or 1) > 1:
        raise ConfigError("generation.num_return_sequences must be 1; repeat the prompt for more replies")
    if config.return_dict_in_generate:
        raise ConfigError("generation.return_dict_in_generate is not supported: replies are plain texts")


def token_scores(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Score each row: negative log-likelihood in nats, tokens that count, tokens predicted right; (B, 3) float32.

    Args:
        logits: (B, T, V); `labels`: (B, T), IGNORED where nothing counts. Token t is predicted from those before it.
    """
    return scores_in_place(logits[:, :-1], labels[:, 1:])


def scores_in_place(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Score each row as `token_scores` does, where the logits of a token stand at its own place."""
    scores = []
    for row, truth in zip(logits, labels, strict=True):  # row by row to save memory: V can be 262,144
        counted = truth != IGNORED
        row, truth = row[counted].float(), truth[counted]
        loss = torch.nn.functional.cross_entropy(row, truth, reduction="sum") if len(truth) else row.new_zeros(())
        right = (row.argmax(-1) == truth).sum()
        scores.append(torch.stack([loss, loss.new_tensor(len(truth)), right.to(loss.dtype)]))
    return torch.stack(scores)
