"""Rows with a chosen and a rejected answer: their tokens and batches, their probabilities, and the losses of DPO."""

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn.functional import cross_entropy, logsigmoid

from hfexp.core.errors import ConfigError, DataError, did_you_mean, one_of
from hfexp.tasks.causal_lm import Encode, LanguageCollator, Messages, check_messages
from hfexp.tasks.text_groups import ENDS, GroupCollator, join

PROMPT, CHOSEN, REJECTED, ANSWER = "prompt", "chosen", "rejected", "answer"
"""Columns; `answer` is a single text to score, which only a prediction has."""
BEGIN = "begin"
"""Field of a row: how many tokens the prompt has, which both answers share."""
Text = str | Messages


def check_answers(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row whose prompt, if it has one, and two answers are texts, or messages of a conversation.

    Raises:
        DataError: one of them is neither, they are of different kinds, or the answers are equal.
    """
    names = [name for name in (PROMPT, CHOSEN, REJECTED) if name in row]
    given = {name: row[name] if isinstance(row[name], str) else _messages(row[name], name) for name in names}
    if len({isinstance(value, str) for value in given.values()}) > 1:
        raise DataError(f"of {', '.join(names)}, some are texts and some are messages: make them all the same")
    if given[CHOSEN] == given[REJECTED]:
        raise DataError("the chosen and the rejected answer are equal: remove the row")
    for name in (CHOSEN, REJECTED):
        if not given[name]:
            raise DataError(f"column {name!r} holds an empty answer")
    return {**row, **given}


def _messages(value: Any, name: str) -> Messages:
    try:
        return check_messages(value)
    except DataError as error:
        raise DataError(f"column {name!r}: {error}, or a text") from error


class EncodeAnswers(Encode):
    """Operation of `transform.prepare`: turn a prompt with each of its answers into `input_ids`, laid end to end.

    A text gets the end-of-text token behind it; messages get the form of the tokenizer's chat template. The answers
    begin where their tokens differ from each other or from those of the prompt, as in TRL's `DPOTrainer`. A row that
    has only a prompt, to predict on, becomes that of `Encode`.
    """

    needs_end = False

    def forward(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the columns of texts by `input_ids`, `ends` and `begin`."""
        answers = [row[name] for name in (CHOSEN, REJECTED, ANSWER) if name in row]
        if not answers:
            return super().forward(row)
        texts = [self._with_prompt(row.get(PROMPT), answer) for answer in answers]
        prompt = row[PROMPT] if PROMPT in row else shared_start(answers[0], answers[-1])
        begin = len(os.path.commonprefix([*texts, *([self._whole_prompt(prompt)] if prompt else [])]))
        if begin >= self.longest and len(texts) > 1:
            raise DataError(
                f"the prompt alone has {begin} tokens, and a row keeps {self.longest}: shorten it, or raise max_length"
            )
        others = {name: value for name, value in row.items() if name not in (PROMPT, CHOSEN, REJECTED, ANSWER)}
        return {**others, **join([tokens[: self.longest] for tokens in texts]), BEGIN: begin}

    def _with_prompt(self, prompt: Text | None, answer: Text) -> list[int]:
        whole: Any = answer if prompt is None else prompt + answer  # pyright: ignore[reportOperatorIssue]
        if not isinstance(whole, str):
            return self._tokens(self._text(whole), special=False)
        end = self.tokenizer.eos_token or ""
        return self._tokens(whole if whole.endswith(end) else whole + end)


def shared_start(chosen: Text, rejected: Text) -> Text:
    """Return the characters or messages with which both answers begin, without a space at their end.

    As `extract_prompt` of TRL, it leaves at least one character or message of each answer.
    """
    length = min(len(chosen), len(rejected))
    place = next((n for n in range(length) if chosen[n] != rejected[n]), length - 1)
    return chosen[: place - (place > 0 and chosen[place - 1] == " ")]


class AnswerCollator:
    """Collator for rows with several answers, (B, K, T), and for prompts to predict on, (B, T)."""

    def __init__(self, tokenizer: Any) -> None:
        self.pad_answers, self.pad_prompts = GroupCollator(tokenizer), LanguageCollator(tokenizer)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return (self.pad_answers if ENDS in rows[0] else self.pad_prompts)(rows)


def answer_scores(model: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    """Return what a model with one output says about each answer, (B, K) float32."""
    ids, mask = (batch[name].flatten(0, 1) for name in ("input_ids", "attention_mask"))
    return model(input_ids=ids, attention_mask=mask)["logits"].float().view(batch["input_ids"].shape[:2])


def log_probabilities(model: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    """Return the log-probability in nats of each answer after its prompt, (B, K) float32, from a causal model."""
    ids, mask = (batch[name].flatten(0, 1) for name in ("input_ids", "attention_mask"))
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False)["logits"]
    sums = []
    for row, tokens, counted in zip(logits, ids, _answer_mask(batch).flatten(0, 1), strict=True):
        kept = counted[1:]  # a token is predicted from those before it; row by row to save memory
        sums.append(-cross_entropy(row[:-1][kept].float(), tokens[1:][kept], reduction="sum"))
    return torch.stack(sums).view(batch["input_ids"].shape[:2])


def answer_lengths(batch: Mapping[str, Any]) -> torch.Tensor:
    """Return the number of tokens of each answer, (B, K) float32."""
    return _answer_mask(batch).sum(-1).float()


def _answer_mask(batch: Mapping[str, Any]) -> torch.Tensor:
    """Return which tokens (B, K, T) belong to an answer."""
    mask = batch["attention_mask"]
    places = torch.arange(mask.shape[-1], device=mask.device)
    return mask.bool() & (places >= batch[BEGIN][:, None, None])


def without_adapter(model: Any) -> contextlib.AbstractContextManager[Any]:
    """Switch off the adapter of a PEFT model in a `with` block; do nothing for another model."""
    return model.disable_adapter() if hasattr(model, "disable_adapter") else contextlib.nullcontext()


Ratios = torch.Tensor
LOSSES: dict[str, Callable[[Ratios, Ratios, float, float], torch.Tensor]] = {
    # R. Rafailov et al., "Direct Preference Optimization", NeurIPS 2023, eq. 7
    "sigmoid": lambda chosen, rejected, beta, noise: -logsigmoid(beta * (chosen - rejected)),
    # Y. Zhao et al., "SLiC-HF", 2023, with the margin of T. Liu et al., "RSO", ICLR 2024
    "hinge": lambda chosen, rejected, beta, noise: torch.relu(1 - beta * (chosen - rejected)),
    # M. G. Azar et al., "A General Theoretical Paradigm to Understand Learning from Human Preferences", 2023, eq. 17
    "ipo": lambda chosen, rejected, beta, noise: (chosen - rejected - 1 / (2 * beta)) ** 2,
    # S. R. Chowdhury et al., "Provably Robust DPO", ICML 2024, eq. 12
    "robust": lambda chosen, rejected, beta, noise: (
        (noise * logsigmoid(-beta * (chosen - rejected)) - (1 - noise) * logsigmoid(beta * (chosen - rejected)))
        / (1 - 2 * noise)
    ),
    # K. D'Oosterlinck et al., "Anchored Preference Optimization", 2024, eqs. 7 and 8
    "apo_zero": lambda chosen, rejected, beta, noise: (
        1 - torch.sigmoid(beta * chosen) + torch.sigmoid(beta * rejected)
    ),
    "apo_down": lambda chosen, rejected, beta, noise: (
        torch.sigmoid(beta * chosen) + 1 - torch.sigmoid(beta * (chosen - rejected))
    ),
}
"""Losses (B,) by TRL's `DPOConfig.loss_type`, from log-ratios to the reference (B,), `beta` and `label_smoothing`.

TRL computes them inside `DPOTrainer._compute_loss`, where they can't be called; tests compare the two."""
PER_TOKEN = ("ipo",)
"""Losses whose log-ratios are means over tokens, as TRL has agreed with the authors of IPO."""


def check_loss(name: str, beta: float, label_smoothing: float) -> None:
    """Raise ConfigError for an unknown loss, or numbers that it can't take."""
    if name not in LOSSES:
        raise ConfigError(f"task.loss={name} is unknown.{did_you_mean(name, LOSSES)} Allowed: {one_of(LOSSES)}")
    if beta <= 0:
        raise ConfigError(f"task.beta={beta} must be more than 0")
    if not 0 <= label_smoothing < 0.5:
        raise ConfigError(f"task.label_smoothing={label_smoothing} must be from 0 to below 0.5")
    if label_smoothing and name != "robust":
        raise ConfigError(f"task.label_smoothing has no effect on task.loss={name}: set task.loss=robust")


def preference_loss(
    name: str, ratios: torch.Tensor, lengths: torch.Tensor, beta: float, label_smoothing: float
) -> torch.Tensor:
    """Return the mean loss over the rows, a scalar.

    Args:
        ratios: log-ratios of the chosen and the rejected answer to the reference (B, 2); `lengths`: their tokens.
    """
    ratios = ratios / lengths.clamp(min=1) if name in PER_TOKEN else ratios
    return LOSSES[name](ratios[:, 0], ratios[:, 1], beta, label_smoothing).mean()
