"""Texts that are concatenated and cut into rows of equal length, so that no position of a batch is padding."""

import functools
from typing import Any

import numpy as np

from hfexp.core.errors import ConfigError
from hfexp.data.dataset import ProcessedDataset
from hfexp.data.row_arrays import Row

TOKENS = "input_ids"


class PackedDataset(ProcessedDataset):
    """A split's texts as blocks of `task.block_size` tokens, in their order; an incomplete last block is dropped.

    Prepared tokens are read from disk, a block at a time. Otherwise, all texts are tokenized once and stay in memory
    (4 bytes per token).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.block = int(self.task.block_size or 0)
        self.reads_columns = False
        if self.seed is not None:
            raise ConfigError("transform.augment: texts that are cut into blocks (task.block_size) take none")

    @functools.cached_property
    def _in_memory(self) -> np.ndarray:
        """Return the tokens of all texts, for a split that is not prepared."""
        return self._of_texts(len(self.rows))

    def _of_texts(self, count: int) -> np.ndarray:
        """Return the tokens of the first `count` texts."""
        size = 256
        parts = [
            np.asarray(row[TOKENS], dtype=np.int32)
            for start in range(0, count, size)
            for row in self._texts(range(start, min(start + size, count)))
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)

    def _texts(self, indices: range) -> list[Any]:
        found = super().__getitems__(list(indices))
        assert isinstance(found, list)
        return found

    @functools.cached_property
    def _length(self) -> int:
        total = len(self._in_memory) if self.prepared is None else self.prepared.reader.total(TOKENS)
        if total < self.block:
            raise ConfigError(
                f"the texts of a split have {total} tokens, less than one block (task.block_size={self.block})"
            )
        return total // self.block

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, key: int) -> Row:
        if key == 0 and self.prepared is None and "_in_memory" not in self.__dict__:
            return self._first()
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[int]) -> list[Row]:
        """Return blocks as rows of model inputs."""
        return [self._row(self._tokens(key % len(self) * self.block)) for key in keys]

    def _tokens(self, start: int) -> np.ndarray:
        if self.prepared is None:
            return self._in_memory[start : start + self.block]
        return self.prepared.reader.stretch(TOKENS, start, self.block)

    def _row(self, tokens: np.ndarray) -> Row:
        return self.task.preprocess({TOKENS: tokens.tolist()}, self.processor)

    def _first(self) -> Row:
        """Return the first block without tokenizing all texts for it."""
        count, tokens = 1, self._of_texts(1)
        while len(tokens) < self.block and count < len(self.rows):
            count = min(2 * count, len(self.rows))
            tokens = self._of_texts(count)
        # `self[1]` raises the ConfigError of a split that is shorter than one block.
        return self._row(tokens[: self.block]) if len(tokens) >= self.block else self[1]

    def lengths(self, name: str) -> list[int]:
        """Return the same length, the block size, for every row."""
        return [self.block] * len(self)
