"""Answers as spans of a context: windows of tokens, the loss of their first and last token, and the best spans."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from hfexp.core.errors import ConfigError, DataError
from hfexp.tasks.base import WINDOWS
from hfexp.tasks.entities import IGNORED
from hfexp.tasks.text import TextCollator, max_length_of

FIRST, LAST, CONTEXT = 1, 2, 4
"""Marks of a token, as bits: the answer's first and last token, any token of the context. Padding has `IGNORED`."""
NONE = (0, 0)
"""Place of the answer to a question that has none."""


class TokenizeQuestion(torch.nn.Module):
    """Operation for `transform.prepare`: turn `question`, `context` and `answer` into the tokens of windows.

    Each window has the question and a part of the context. The tokens of the windows lie end to end, and `windows` has
    their numbers. `marks` has those of each token, `starts` and `ends` the characters of the context (0 elsewhere).
    """

    def __init__(self, processor: Any, max_length: int | None = None, stride: int = 128) -> None:
        """Copy the tokenizer and set the size of the windows.

        Args:
            processor: a fast tokenizer.
            max_length: most tokens of a window, special tokens included; None: as many as the model takes.
            stride: tokens of the context that two windows share, but at most a third of `max_length`.

        Raises:
            ConfigError: the tokenizer is a slow one, or `max_length` or `stride` is out of range.
        """
        super().__init__()
        if not processor.is_fast:
            raise ConfigError(f"{type(processor).__name__} is a slow tokenizer, which does not tell a token's place")
        if stride < 0:
            raise ConfigError(f"stride={stride} must be at least 0")
        self.max_length = max_length_of(processor, max_length)
        self.stride = min(stride, self.max_length // 3)
        self.tokenizer = copy.deepcopy(processor)
        self.tokenizer.model_max_length = 10**30  # no warning about long contexts, which are cut below
        self.tokenizer("a", "a")  # it resets the truncation: doing so later, from several threads, would be an error
        self.names = [name for name in processor.model_input_names if name != "attention_mask"]

    def forward(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the texts and the answer's place by tokens and marks.

        Raises:
            DataError: the question leaves no room for the context.
        """
        tokens = self.tokenizer(row["question"], row["context"], return_offsets_mapping=True)
        inside = [place for place, part in enumerate(tokens.sequence_ids(0)) if part == 1]
        if not inside:
            raise DataError("column 'context' holds no text of which the tokenizer makes a token")
        first, last, size = inside[0], inside[-1] + 1, len(tokens["input_ids"])
        room = self.max_length - (size - len(inside))
        if room <= self.stride:
            raise DataError(
                f"column 'question' holds {first} tokens, which leaves {max(room, 0)} of max_length={self.max_length} "
                f"for the context, but windows that share {self.stride} tokens need more: shorten the question, or "
                "set transform.prepare.0.max_length or stride"
            )
        places = np.array(tokens["offset_mapping"])
        parts = []
        for start in range(first, max(last - self.stride, first + 1), room - self.stride):
            taken = np.r_[0:first, start : min(start + room, last), last:size]
            is_context = (taken >= first) & (taken < last)
            parts.append((taken, is_context, _marks(places[taken], is_context, row["answer"])))
        order = np.concatenate([taken for taken, _, _ in parts])
        is_context = np.concatenate([inner for _, inner, _ in parts])
        fields = {name: np.array(tokens[name])[order] for name in self.names if name in tokens}
        fields |= {"starts": places[order, 0] * is_context, "ends": places[order, 1] * is_context}
        fields["marks"] = np.concatenate([marks for _, _, marks in parts])
        return {**{n: v.tolist() for n, v in fields.items()}, WINDOWS: [len(taken) for taken, _, _ in parts]}


def _marks(places: np.ndarray, is_context: np.ndarray, answer: tuple[int, int]) -> np.ndarray:
    """Return the marks of a window's tokens (T,); if the answer is not whole in it, its place is the first token.

    Source: `prepare_train_features` of Transformers' example run_qa.py.

    Args:
        places: first character of each token, and the one behind its last (T, 2).
        answer: the same of the answer; `NONE` if there is none.
    """
    marks = is_context * CONTEXT
    inside = np.flatnonzero(is_context)
    start, end = answer
    if end > start and places[inside[0], 0] <= start and places[inside[-1], 1] >= end:
        marks[inside[np.argmax(places[inside, 1] > start)]] |= FIRST
        marks[inside[np.flatnonzero(places[inside, 0] < end)[-1]]] |= LAST
    else:
        marks[0] |= FIRST | LAST
    return marks


class SpanCollator(TextCollator):
    """Collator that pads windows at their end, so that the first token of each is the special one for no answer."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, padding={"labels": IGNORED}, side="right")


def span_loss(logits: tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """Compute the mean of the cross entropies of the answers' first and last tokens, without padding.

    Args:
        logits: scores of each token as the first and as the last one, (B, T) each.
        labels: marks (B, T).
    """
    losses = []
    for scores, bit in zip(logits[:2], (FIRST, LAST), strict=True):
        true = ((labels & bit) > 0) & (labels != IGNORED)
        scores = scores.float().masked_fill(labels == IGNORED, float("-inf"))
        losses.append(torch.nn.functional.cross_entropy(scores, true.int().argmax(-1)))
    return (losses[0] + losses[1]) / 2


def best_spans(logits: tuple[torch.Tensor, ...], labels: torch.Tensor, count: int, longest: int) -> torch.Tensor:
    """Return the best spans of each window, exactly: all pairs of a first and a last token are compared.

    Args:
        logits: scores of each token as the first and as the last one, (B, T) each.
        labels: marks (B, T); a span lies within the context.
        longest: most tokens of a span.

    Returns:
        (B, 1 + 3 count) float32: the score of no answer, which is that of the first token, then score, first and last
        token of each span, the best first. Where there are fewer, scores are minus infinity.
    """
    start, end = (scores.float() for scores in logits[:2])
    outside = labels < CONTEXT
    longest = min(longest, start.shape[1])
    lasts = torch.nn.functional.pad(end.masked_fill(outside, float("-inf")), (0, longest - 1), value=float("-inf"))
    scores = start.masked_fill(outside, float("-inf"))[:, :, None] + lasts.unfold(1, longest, 1)
    best, place = scores.flatten(1).topk(min(count, scores[0].numel()))
    first = place // longest
    spans = torch.stack([best, first, first + place % longest], -1)
    spans = torch.nn.functional.pad(spans, (0, 0, 0, count - spans.shape[1]))
    spans[:, best.shape[1] :, 0] = float("-inf")
    return torch.cat([(start[:, 0] + end[:, 0])[:, None], spans.flatten(1)], 1)


def merge_spans(
    inputs: Mapping[str, Any], context: str, outputs: np.ndarray, count: int, threshold: float | None
) -> list[dict[str, Any]]:
    """Return the best answers to a question over all windows of its context, the best first.

    As `postprocess_qa_predictions` of Transformers' example utils_qa.py: the probability of an answer is a softmax
    over the best ones, and there is no answer if its score (the lowest of all windows) is higher than that of the
    best span by more than the threshold. Unlike there, spaces around an answer are left out, and a span that two
    windows share counts once.

    Args:
        inputs: `windows`, and `starts` and `ends` of their tokens.
        outputs: what `best_spans` returns for each window (W, 1 + 3 N).
        count: answers that the softmax covers.
        threshold: None: every question has an answer.
    """
    found: dict[tuple[int, int], float] = {}
    first = 0
    for length, spans in zip(inputs[WINDOWS], outputs[:, 1:].reshape(len(outputs), -1, 3), strict=True):
        for score, start, end in spans[np.isfinite(spans[:, 0])]:
            place = _stripped(context, inputs["starts"][first + int(start)], inputs["ends"][first + int(end)])
            if place[0] < place[1]:
                found[place] = max(float(score), found.get(place, -np.inf))
        first += length
    ranked = sorted(found.items(), key=lambda item: -item[1])[:count]
    null = float(outputs[:, 0].min())
    if threshold is not None or not ranked:
        is_best = not ranked or null - ranked[0][1] > (threshold or 0.0)
        ranked = [(NONE, null), *ranked] if is_best else [*ranked, (NONE, null)]
    scores = np.array([score for _, score in ranked])
    shares = np.exp(scores - scores.max())
    return [
        {"text": context[start:end], "score": float(share), "start": start, "end": end}
        for ((start, end), _), share in zip(ranked, shares / shares.sum(), strict=True)
    ]


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """Leave out the spaces at both ends of a span."""
    span = text[start:end]
    return start + len(span) - len(span.lstrip()), end - len(span) + len(span.rstrip())
