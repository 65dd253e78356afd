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
EDGES = 8
"""Numbers behind the counts of a window, which say how it begins and ends (`TagScheme.count`)."""


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
            (B, 2 + 3 K + EDGES) int64: words, words with the right tag, then right, predicted and true entities of
            each of the K types, then what `join` needs: predicted and true tag of the first word and of the last
            word; whether the predicted and the true entity at the first word are one, and those at the last word;
            whether all words are one predicted entity, and one true entity.
        """
        kept = labels != IGNORED
        words = kept.sum(1)
        size = int(words.sum()) + len(labels)
        row_of = np.repeat(np.arange(len(labels)), words + 1)
        is_word = np.ones(size, bool)
        is_word[np.cumsum(words + 1) - 1] = False
        ends = np.cumsum(words + 1) - 2  # places of the last words of the rows
        spans, keys, tags_at, reach = {}, {}, {}, {}
        for place, tags in ((PREDICTED, predictions), (TRUE, labels)):
            flat = np.full(size, len(self.kinds) - 1)
            flat[is_word] = tags[kept]
            first, last, kinds = self.spans(flat)
            spans[place] = row_of[first] * len(self.types) + kinds
            keys[place] = (first * size + last) * len(self.kinds) + kinds
            tags_at[place] = flat[ends - words + 1], flat[ends]
            reach[place] = _partners(first, last, ends - words + 1, size), _partners(last, first, ends, size)
        spans[RIGHT] = spans[PREDICTED][np.isin(keys[PREDICTED], keys[TRUE])]
        bins = len(labels) * len(self.types)
        counts = np.stack([np.bincount(spans[place], minlength=bins) for place in range(3)], 1)
        correct = ((predictions == labels) & kept).sum(1)
        edges = [tags_at[place][side] for side in (0, 1) for place in (PREDICTED, TRUE)]
        for side in (0, 1):
            found, true = reach[PREDICTED][side], reach[TRUE][side]
            kinds, true_kinds = (self.kinds[tags_at[place][side]] for place in (PREDICTED, TRUE))
            edges.append((found >= 0) & (found == true) & (kinds == true_kinds))
        edges += [reach[place][0] == ends for place in (PREDICTED, TRUE)]
        return np.concatenate([np.stack([words, correct], 1), counts.reshape(len(labels), -1), np.stack(edges, 1)], 1)

    def join(self, windows: np.ndarray) -> np.ndarray:
        """Return the counts of a row (2 + 3 K) whose words lie in these windows in turn, each word in one.

        The result is that of `count` for the whole row: an entity that a border of two windows divides counts once,
        and is right if all of it is.

        Args:
            windows: what `count` returns for each window, (W, 2 + 3 K + EDGES).
        """
        windows = windows[windows[:, 0] > 0].astype(np.int64)
        total, last, is_one = windows[:, :-EDGES].sum(0), None, False
        for window in windows:
            *tags, starts_as_one, ends_as_one, is_found, is_true = window[-EDGES:].tolist()
            joined = [last is not None and self._goes_on(last[side], tags[side]) for side in (0, 1)]
            for side, place in enumerate((PREDICTED, TRUE)):
                if joined[side]:
                    total[2 + 3 * self.kinds[tags[side]] + place] -= 1
            if any(joined):
                kind = self.kinds[tags[joined.index(True)]]
                total[2 + 3 * kind + RIGHT] += (all(joined) and is_one and starts_as_one) - is_one - starts_as_one
            reaches_back = [joined[0] and is_found, joined[1] and is_true]
            is_one = is_one if all(reaches_back) else bool(ends_as_one) and not any(reaches_back)
            last = tags[2:]
        return total

    def _goes_on(self, before: int, tag: int) -> bool:
        """Tell whether a tag continues the entity of the tag before it."""
        mark, mark_before = MARKS[self.marks[tag]], MARKS[self.marks[before]]
        return mark in "IE" and mark_before in "BI" and bool(self.kinds[before] == self.kinds[tag])

    def by_type(self, counts: np.ndarray) -> np.ndarray:
        """Return the last columns of `count` as a structured array (B,) of `dtype`."""
        rows = np.zeros(len(counts), self.dtype)
        for place, name in enumerate(self.types):
            rows[name] = counts[:, 2 + 3 * place : 5 + 3 * place]
        return rows


def _partners(ends: np.ndarray, others: np.ndarray, wanted: np.ndarray, size: int) -> np.ndarray:
    """Return the other end of the span that has one end at each wanted place; -1 where none has."""
    partner = np.full(size, -1)
    partner[ends] = others
    return partner[wanted]


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
