"""Entities in rows of tags: how tags mark them, where they are, and how many of them are right."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from hfexp.tasks.base import Piece

OUTSIDE = "O"
"""Tag of a word that belongs to no entity."""
IGNORED = -100
"""Label of a token that counts neither in the loss nor in the metrics (`torch.nn.CrossEntropyLoss`)."""
MARKED = re.compile(r"([BIESLU])-(.+)", re.DOTALL)
"""A tag of BIO, BIOES or BILOU: a mark and the type of the entity."""
SAME_MARK = {"L": "E", "U": "S"}
"""Marks of BILOU by the names that BIOES has for them: the last word of an entity, and an entity of one word."""
MARKS = "OBIES"
Span = tuple[int, int, str]
"""First character of an entity, the one behind its last, and its type."""
RIGHT, PREDICTED, TRUE = 0, 1, 2
"""Places of the three counts that precision and recall are made of."""


def split_tags(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the mark (`O`, `B`, `I`, `E` or `S`) and the entity type of each tag.

    If all tags but `O` begin with a mark, they are BIO, BIOES or BILOU. Otherwise they are plain: each is a type of
    its own, and a run of equal tags is one entity.
    """
    found = [MARKED.fullmatch(name) for name in names]
    if all(match or name == OUTSIDE for match, name in zip(found, names, strict=True)):
        return [(SAME_MARK.get(match[1], match[1]), match[2]) if match else (OUTSIDE, "") for match in found]
    return [(OUTSIDE, "") if name == OUTSIDE else ("I", name) for name in names]


class TagScheme:
    """Finds and counts the entities in rows of tag ids.

    Spans are those of seqeval's default mode (H. Nakayama, "seqeval: A Python framework for sequence labeling
    evaluation", 2018), which follows conlleval (E. Tjong Kim Sang and S. Buchholz, "Introduction to the CoNLL-2000
    Shared Task: Chunking"): an entity also begins at an `I` or `E` without a beginning, and where the type changes.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Set up the scheme; `names` are the tags in the order of their ids."""
        tags = [*split_tags(names), (OUTSIDE, "")]  # the last one separates rows
        self.types = sorted({kind for mark, kind in tags if mark != OUTSIDE})
        self.marks = np.array([MARKS.index(mark) for mark, _ in tags])
        self.kinds = np.array([self.types.index(kind) if mark != OUTSIDE else -1 for mark, kind in tags])

    @property
    def dtype(self) -> np.dtype:
        """Return the type of a row's counts: right, predicted and true entities (3,), by the name of their type."""
        return np.dtype([(name, np.int64, (3,)) for name in self.types])

    def spans(self, tags: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find the entities in a row of tag ids (L,).

        Returns:
            Places of their first and last words, and the numbers of their types, each (E,).
        """
        marks, kinds = (np.concatenate([[outside], of[tags], [outside]]) for of, outside in self._with_outside())
        inside = marks != MARKS.index(OUTSIDE)
        begins = np.isin(marks, [MARKS.index(mark) for mark in "BS"])[1:]
        after_end = np.isin(marks, [MARKS.index(mark) for mark in "OES"])[:-1]
        starts = inside[1:] & (begins | after_end | (kinds[1:] != kinds[:-1]))
        first = np.flatnonzero(starts)
        last = np.flatnonzero(inside[1:-1] & (starts[1:] | ~inside[2:]))
        return first, last, self.kinds[tags[first]]

    def places(self, words: Sequence[str], tags: Sequence[int]) -> list[Span]:
        """Return the entities of a row by the places of their characters in the text of the words and spaces."""
        starts = word_places(words)
        spans = zip(*self.spans(np.asarray(tags, dtype=np.int64)), strict=True)
        return [(starts[first][0], starts[last][1], self.types[kind]) for first, last, kind in spans]

    def _with_outside(self) -> list[tuple[np.ndarray, int]]:
        return [(self.marks, int(self.marks[-1])), (self.kinds, int(self.kinds[-1]))]

    def count(self, predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Count the words and entities of each row.

        Args:
            predictions: tag ids (B, T).
            labels: tag ids (B, T), `IGNORED` where nothing counts.

        Returns:
            (B, 2 + 3 K) int64: words, words with the right tag, then right, predicted and true entities of each of the
            K types.
        """
        kept = labels != IGNORED
        words = kept.sum(1)
        size = int(words.sum()) + len(labels)
        row_of = np.repeat(np.arange(len(labels)), words + 1)
        is_word = np.ones(size, bool)
        is_word[np.cumsum(words + 1) - 1] = False
        spans, keys = {}, {}
        for place, tags in ((PREDICTED, predictions), (TRUE, labels)):
            flat = np.full(size, len(self.kinds) - 1)
            flat[is_word] = tags[kept]
            first, last, kinds = self.spans(flat)
            spans[place] = row_of[first] * len(self.types) + kinds
            keys[place] = (first * size + last) * len(self.kinds) + kinds
        spans[RIGHT] = spans[PREDICTED][np.isin(keys[PREDICTED], keys[TRUE])]
        bins = len(labels) * len(self.types)
        counts = np.stack([np.bincount(spans[place], minlength=bins) for place in range(3)], 1)
        correct = ((predictions == labels) & kept).sum(1)
        return np.concatenate([np.stack([words, correct], 1), counts.reshape(len(labels), -1)], 1)

    def by_type(self, counts: np.ndarray) -> np.ndarray:
        """Return the last columns of `count` as a structured array (B,) of `dtype`."""
        rows = np.zeros(len(counts), self.dtype)
        for place, name in enumerate(self.types):
            rows[name] = counts[:, 2 + 3 * place : 5 + 3 * place]
        return rows


def word_places(words: Sequence[str]) -> list[tuple[int, int]]:
    """Return the first character of each word, and the one behind its last, in the text of the words and spaces."""
    places, start = [], 0
    for word in words:
        places.append((start, start + len(word)))
        start += len(word) + 1
    return places


def mark(text: str, true: Iterable[Span], predicted: Iterable[Span]) -> list[Piece]:
    """Cut a text into pieces: plain ones, entities found rightly or wrongly, and true ones that were missed.

    A true entity of which a predicted one covers a part is not marked by itself.
    """
    true, predicted = list(true), list(predicted)
    spans = [(*span, "right" if span in true else "wrong") for span in predicted]
    spans += [
        (*span, "missed") for span in true if not any(start < span[1] and span[0] < end for start, end, _ in predicted)
    ]
    pieces, place = [], 0
    for start, end, kind, verdict in sorted(spans):
        if start >= place:  # pieces can't overlap
            pieces += [Piece(text[place:start]), Piece(text[start:end], kind, verdict)]
            place = end
    return [piece for piece in [*pieces, Piece(text[place:])] if piece.text]
