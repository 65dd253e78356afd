"""Words and their tags as tokens and labels, and the entities in texts that a model has tagged."""

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers.pipelines.token_classification import AggregationStrategy, TokenClassificationPipeline

from hfexp.core.errors import ConfigError
from hfexp.tasks.base import WINDOWS, main_output
from hfexp.tasks.entities import IGNORED, OUTSIDE, split_tags, word_places
from hfexp.tasks.text import TextCollator, max_length_of

NO_WORD = -1
"""Number of the word of a special token."""
PARTS = "parts"
"""Field of a row to predict on: its windows as rows of the model, with the places of their tokens in the text."""


class TokenizeWords(torch.nn.Module):
    """Operation for `transform.prepare`: turn a row's `words` and `tags` into the tokens of windows and their tags.

    The tokens of the windows lie end to end, and `windows` has their numbers; most rows have one window. A window has
    whole words. `word_ids` has the word of each token, and `tags` its tag: each word has it in the one window that
    shows most of the words around it, and `IGNORED` in others. A `text` or words to predict on become `PARTS`.
    """

    def __init__(
        self, processor: Any, max_length: int | None = None, truncation: bool = False, stride: int = 32
    ) -> None:
        """Copy the tokenizer and set the size of the windows.

        Args:
            processor: a fast tokenizer.
            max_length: most tokens of a window, special tokens included; None: as many as the model takes.
            truncation: leave out the words behind the first window, which are then neither learnt nor scored.
            stride: most tokens that two windows share; at most half a window.

        Raises:
            ConfigError: the tokenizer is a slow one, or `max_length` or `stride` is out of range or unknown.
        """
        super().__init__()
        if not processor.is_fast:
            raise ConfigError(f"{type(processor).__name__} is a slow tokenizer, which does not tell a token's word")
        self.max_length, self.truncation = max_length_of(processor, max_length), truncation
        self.room = self.max_length - processor.num_special_tokens_to_add()
        if self.room < 1 or stride < 0:
            raise ConfigError(f"max_length={self.max_length} and stride={stride} must leave room for a token")
        self.stride = min(stride, self.room // 2)
        # The first calls set the truncation of the copies: doing so later, from several threads, would be an error.
        self.tokenizer, self.windower = copy.deepcopy(processor), copy.deepcopy(processor)
        self.tokenizer.model_max_length = 10**30  # no warning about long rows, which are cut below
        self.names = [name for name in processor.model_input_names if name != "attention_mask"]
        self._labelled(["a"], [0])
        self._parts("a")

    def forward(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Replace `words` and `tags` by the tokens of windows, and `words` or `text` without tags by `PARTS`."""
        if "text" in row:
            return {"text": row["text"], **self._parts(row["text"])}
        if not isinstance(row["tags"], list):
            return {"text": " ".join(row["words"]), **self._parts(row["words"])}
        return self._labelled(row["words"], row["tags"])

    def _labelled(self, words: list[str], tags: list[int]) -> dict[str, Any]:
        tokens = self.tokenizer(words, is_split_into_words=True)
        word_ids = np.array(_word_numbers(tokens, 0))
        inside = np.flatnonzero(word_ids != NO_WORD)
        _, starts, sizes = np.unique(word_ids[inside], return_index=True, return_counts=True)
        first, last = (inside[0], inside[-1] + 1) if len(inside) else (len(word_ids), len(word_ids))
        before, behind = np.arange(first), np.arange(last, len(word_ids))  # special tokens
        inside = inside[np.arange(len(inside)) - np.repeat(starts, sizes) < self.room]  # the beginning of a huge word
        sizes = np.minimum(sizes, self.room)
        windows = cut_words(sizes, self.room, self.stride)[: 1 if self.truncation else None]
        best, places = np.repeat(best_windows(sizes, windows), sizes), np.cumsum([0, *sizes])
        taken, scored = [], []
        for number, (begin, end) in enumerate(windows):
            part = slice(places[begin], places[end])
            taken.append(np.concatenate([before, inside[part], behind]))
            scored.append(np.pad(best[part] == number, (len(before), len(behind))))
        order, tag_of = np.concatenate(taken), np.array([*tags, IGNORED])[word_ids]
        fields = {name: np.array(tokens[name])[order] for name in self.names if name in tokens}
        fields |= {"word_ids": word_ids[order], "tags": np.where(np.concatenate(scored), tag_of[order], IGNORED)}
        return {**{name: v.tolist() for name, v in fields.items()}, WINDOWS: [len(part) for part in taken]}

    def _parts(self, given: str | list[str]) -> dict[str, Any]:
        """Cut a text or words into windows of at most `max_length` tokens, each a row of the model."""
        tokens = self.windower(
            given,
            is_split_into_words=not isinstance(given, str),
            truncation=True,
            max_length=self.max_length,
            stride=self.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        windows = []
        for number, input_ids in enumerate(tokens["input_ids"]):
            window = {name: list(tokens[name][number]) for name in self.names if name in tokens}
            places = {"offsets": tokens["offset_mapping"][number], "special": tokens["special_tokens_mask"][number]}
            words = {} if isinstance(given, str) else {"word_ids": tokens.word_ids(number)}
            windows.append({"inputs": window, "tokens": list(input_ids), **places, **words})
        starts = None if isinstance(given, str) else word_places(given)
        return {"input_ids": windows[0]["tokens"], PARTS: windows, "starts": starts}


def _word_numbers(tokens: Any, number: int) -> list[int]:
    return [NO_WORD if word is None else word for word in tokens.word_ids(number)]


def cut_words(sizes: np.ndarray, room: int, stride: int) -> list[tuple[int, int]]:
    """Cut words into windows: the number of the first word of each, and the one behind its last.

    Args:
        sizes: tokens of each word (N,), at most `room`.
        room: most tokens of a window.
        stride: most tokens that two windows share.
    """
    begins, ends = np.cumsum(sizes) - sizes, np.cumsum(sizes)
    windows = [(0, int(np.searchsorted(ends, room, "right")))]
    while windows[-1][1] < len(sizes):
        behind = windows[-1][1]  # the next window has at least this word
        first = int(np.searchsorted(begins, max(begins[behind] - stride, ends[behind] - room), "left"))
        windows.append((first, int(np.searchsorted(ends, begins[first] + room, "right"))))
    return windows


def best_windows(sizes: np.ndarray, windows: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return for each word (N,) the window that shows most tokens on both sides of it; -1 if it is in none."""
    begins, ends = np.cumsum(sizes) - sizes, np.cumsum(sizes)
    most, best = np.full(len(sizes), -1), np.full(len(sizes), -1)
    for number, (first, last) in enumerate(windows):
        part = slice(first, last)
        context = np.minimum(begins[part] - begins[part][:1], ends[part][-1:] - ends[part])
        best[part] = np.where(context > most[part], number, best[part])
        most[part] = np.maximum(context, most[part])
    return best


def align(tags: Sequence[int], word_ids: Sequence[int], names: Mapping[int, str] | None, label_all: bool) -> list[int]:
    """Return the label of each token: its tag, or `IGNORED`.

    The first token of a word has its tag. The others have none, or with `label_all` the tag that continues it: `I-X`
    for `B-X` if there is such a tag, as in Transformers' example run_ner.py.
    """
    ids = {name: number for number, name in (names or {}).items()}
    inner = {number: ids.get(f"I-{name[2:]}", number) for name, number in ids.items() if name.startswith("B-")}
    labels, before = [], NO_WORD
    for tag, word in zip(tags, word_ids, strict=True):
        if tag != IGNORED and word == before:
            tag = inner.get(tag, tag) if label_all else IGNORED
        labels.append(tag)
        before = word
    return labels


def show_tags(inputs: Mapping[str, Any], names: Mapping[int, str], processor: Any) -> str:
    """Return the text of a row's tokens, with the tag behind each labelled word that has another one than `O`."""
    parts: list[tuple[list[int], int]] = []
    for token, label in zip(inputs["input_ids"], inputs["labels"], strict=True):
        if label != IGNORED or not parts:
            parts.append(([], label))
        parts[-1][0].append(token)
    shown = []
    for tokens, label in parts:
        name = names.get(label, OUTSIDE)
        shown.append(processor.decode(tokens).strip() + (f"/{name}" if name != OUTSIDE else ""))
    return " ".join(shown)


class WordCollator:
    """Collator that pads rows of labelled tokens; or windows of rows to predict on, passed on as `rows`."""

    def __init__(self, tokenizer: Any) -> None:
        filler = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.pad = TextCollator(tokenizer, padding={"labels": IGNORED}, pad_id=filler)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if PARTS not in rows[0]:
            return self.pad(rows)
        return {**self.pad([window["inputs"] for row in rows for window in row[PARTS]]), "rows": rows}


def add_prefix_space(tokenizer: Any) -> None:
    """Let a byte-level tokenizer put a space before each word, without which it would see no borders of words.

    Transformers' example run_ner.py loads such tokenizers with `add_prefix_space=True`.
    """
    from tokenizers import Tokenizer

    if not tokenizer.is_fast:
        return
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    nodes = [node for node in _nodes(state["pre_tokenizer"]) if node.get("add_prefix_space") is False]
    if not nodes:
        return
    for node in nodes:
        node["add_prefix_space"] = True
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_prefix_space = tokenizer.init_kwargs["add_prefix_space"] = True


def _nodes(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    return pre_tokenizer.get("pretokenizers") or [pre_tokenizer]


class Aggregation(TokenClassificationPipeline):
    """The part of Transformers' pipeline that merges tokens into entities, without the part that runs a model."""

    def __init__(self, names: Mapping[int, str], tokenizer: Any) -> None:
        """Set up the tags; marks of BIOES, which the pipeline does not know, are replaced by `B` and `I`."""
        marks = {"S": "B", "E": "I"}
        tags = zip(names, split_tags(list(names.values())), strict=True)
        id2label = {number: f"{marks.get(m, m)}-{kind}" if m != OUTSIDE else OUTSIDE for number, (m, kind) in tags}
        self.model: Any = SimpleNamespace(config=SimpleNamespace(id2label=id2label))
        self.tokenizer = tokenizer

    def entities(self, row: Mapping[str, Any], scores: Sequence[Any], strategy: str) -> list[dict[str, Any]]:
        """Return the entities of one text.

        Args:
            row: the windows of the text and the places of their tokens.
            scores: for each window the probabilities of the tags (T, C).
            strategy: `simple`, `first`, `average` or `max`.
        """
        kind, found = AggregationStrategy[strategy.upper()], []
        for window, probabilities in zip(row[PARTS], scores, strict=True):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Tokenizer does not support real words")
                tokens = self.gather_pre_entities(
                    row["text"], window["tokens"], probabilities, window["offsets"], window["special"], kind,
                    window.get("word_ids"), row["starts"],
                )  # fmt: skip
            found += [group for group in self.aggregate(tokens, kind) if group["entity_group"] != OUTSIDE]
        groups = self.aggregate_overlapping_entities(found) if len(row[PARTS]) > 1 else found
        return [_entity(group, row["text"]) for group in groups]


def _entity(group: Mapping[str, Any], text: str) -> dict[str, Any]:
    start, end = int(group["start"]), int(group["end"])
    return {
        "type": group["entity_group"], "score": float(group["score"]), "start": start, "end": end,
        "text": text[start:end],
    }  # fmt: skip


def find_entities(
    model: Any, batch: dict[str, Any], names: Mapping[int, str], processor: Any, strategy: str
) -> list[list[dict[str, Any]]]:
    """Run a model on the windows of several texts; return the entities of each text."""
    rows, inputs = batch["rows"], {name: value for name, value in batch.items() if name != "rows"}
    logits = main_output(model(**inputs))
    scores = (logits[0] if isinstance(logits, tuple) else logits).float().softmax(-1).cpu().numpy()
    real = batch["attention_mask"].bool().cpu().numpy()
    windows = iter([row[kept] for row, kept in zip(scores, real, strict=True)])
    merge = Aggregation(names, processor)
    return [merge.entities(row, [next(windows) for _ in row[PARTS]], strategy) for row in rows]
