"""Words and their tags as tokens and labels, and the entities in texts that a model has tagged."""

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from transformers.pipelines.token_classification import AggregationStrategy, TokenClassificationPipeline

from hfexp.core.errors import ConfigError, DataError
from hfexp.tasks.base import main_output
from hfexp.tasks.entities import IGNORED, OUTSIDE, split_tags, word_places
from hfexp.tasks.text import TextCollator, max_length_of

NO_WORD = -1
"""Number of the word of a special token."""
STRIDE = 32
"""Tokens that two windows of a long text share, unless fewer fit."""


class TokenizeWords(torch.nn.Module):
    """Operation for `transform.prepare`: turn a row's `words` into `input_ids` and the number of each token's word.

    A raw `text` to predict on, and words to predict on, become windows with the places of their tokens in the text.
    """

    def __init__(self, processor: Any, max_length: int | None = None, truncation: bool = False) -> None:
        """Copy the tokenizer and set its truncation.

        Args:
            processor: a fast tokenizer.
            max_length: most tokens of a row, special tokens included; None: as many as the model takes.
            truncation: leave out the words behind `max_length`, which are then neither learnt nor scored; otherwise a
                row that has more tokens is an error.

        Raises:
            ConfigError: the tokenizer is a slow one, or `max_length` is out of range or unknown.
        """
        super().__init__()
        if not processor.is_fast:
            raise ConfigError(f"{type(processor).__name__} is a slow tokenizer, which does not tell a token's word")
        self.max_length, self.truncation = max_length_of(processor, max_length), truncation
        # The first calls set the truncation of the copies: doing so later, from several threads, would be an error.
        self.tokenizer, self.windower = copy.deepcopy(processor), copy.deepcopy(processor)
        room = self.max_length - processor.num_special_tokens_to_add()
        self.stride = max(min(STRIDE, room // 2), 0)
        self.names = [name for name in processor.model_input_names if name != "attention_mask"]
        self._tokens(["a"])
        self._windows("a")

    def forward(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Replace `words` by tokens, and `words` or `text` without tags by windows."""
        if "text" in row:
            return {"text": row["text"], **self._windows(row["text"])}
        if not isinstance(row["tags"], list):
            return {"text": " ".join(row["words"]), **self._windows(row["words"])}
        tokens = self._tokens(row["words"])
        word_ids = _word_numbers(tokens, 0)
        read = len({*word_ids} - {NO_WORD})
        if not self.truncation and read < len(row["words"]) and len(word_ids) >= self.max_length:
            raise DataError(
                f"of {len(row['words'])} words only {read} fit into max_length={self.max_length} tokens: split the "
                "row, or set transform.prepare.0.truncation=true, which leaves the others out of training and scores"
            )
        kept = {name: list(tokens[name]) for name in self.names if name in tokens}
        return {**kept, "word_ids": word_ids, "tags": row["tags"]}

    def _tokens(self, words: list[str]) -> Any:
        return self.tokenizer(words, is_split_into_words=True, truncation=True, max_length=self.max_length)

    def _windows(self, given: str | list[str]) -> dict[str, Any]:
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
        return {"input_ids": windows[0]["tokens"], "windows": windows, "starts": starts}


def _word_numbers(tokens: Any, number: int) -> list[int]:
    return [NO_WORD if word is None else word for word in tokens.word_ids(number)]


def align(tags: Sequence[int], word_ids: Sequence[int], names: Mapping[int, str] | None, label_all: bool) -> list[int]:
    """Return the label of each token: its word's tag, or `IGNORED`.

    The first token of a word has its tag. The others have none, or with `label_all` the tag that continues it: `I-X`
    for `B-X` if there is such a tag, as in Transformers' example run_ner.py.
    """
    ids = {name: number for number, name in (names or {}).items()}
    inner = {number: ids.get(f"I-{name[2:]}", number) for name, number in ids.items() if name.startswith("B-")}
    labels, before = [], NO_WORD
    for word in word_ids:
        tag = IGNORED if word == NO_WORD else tags[word]
        if word != NO_WORD and word == before:
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
        if "windows" not in rows[0]:
            return self.pad(rows)
        return {**self.pad([window["inputs"] for row in rows for window in row["windows"]]), "rows": rows}


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
        for window, probabilities in zip(row["windows"], scores, strict=True):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Tokenizer does not support real words")
                tokens = self.gather_pre_entities(
                    row["text"], window["tokens"], probabilities, window["offsets"], window["special"], kind,
                    window.get("word_ids"), row["starts"],
                )  # fmt: skip
            found += [group for group in self.aggregate(tokens, kind) if group["entity_group"] != OUTSIDE]
        groups = self.aggregate_overlapping_entities(found) if len(row["windows"]) > 1 else found
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
    return [merge.entities(row, [next(windows) for _ in row["windows"]], strategy) for row in rows]
