"""The order of samples and their random numbers: both follow from (seed, epoch, index) alone.

They do not depend on data loader workers, on the number of processes, or on where a run was resumed.
"""

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from hfexp.core.errors import RunError

AGAIN = 2**20
"""Epochs between the keys of a row that is drawn several times in one epoch; more than any training has."""


class EpochSampler(Sampler[int]):
    """Yields keys `epoch * num_rows + index`: shuffled by (seed, epoch), in row order, or grouped by length.

    `hfexp.training.callbacks.SetEpochCallback` calls `set_epoch` at the start of each epoch.
    """

    def __init__(
        self,
        num_rows: int,
        seed: int,
        shuffle: bool = True,
        lengths: Sequence[int] = (),
        group: int = 1,
        draw: Callable[[torch.Generator], Any] | None = None,
    ) -> None:
        """Set up the order.

        Args:
            lengths: of the rows, to sort some rows at a time, so that a batch has rows of similar length.
            group: rows that one optimizer step takes in all processes.
            draw: draws the rows of an epoch (`Trainer.draw_rows`); if it returns None, the other arguments decide.
        """
        self.num_rows = num_rows
        self.seed = seed
        self.shuffle = shuffle
        self.lengths, self.group = lengths, group
        self.draw = draw
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = torch.arange(self.num_rows)
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        drawn = self.draw(generator) if self.draw else None
        if drawn is not None:
            return iter(self._keys(torch.as_tensor(drawn)))
        if self.lengths:
            order = torch.tensor(get_length_grouped_indices(self.lengths, 1, self._sorted_rows, generator=generator))
        elif self.shuffle:
            order = torch.randperm(self.num_rows, generator=generator)
        return iter((order + self.epoch * self.num_rows).tolist())

    def _keys(self, drawn: torch.Tensor) -> list[int]:
        """Return the keys of drawn rows; a row has another key, and so other random numbers, each time it is drawn."""
        is_whole = not (drawn.is_floating_point() or drawn.is_complex() or drawn.dtype == torch.bool)
        if not is_whole or drawn.shape != (self.num_rows,):
            raise RunError(
                f"draw_rows returned {drawn.dtype} of shape {tuple(drawn.shape)}, expected {self.num_rows} integers"
            )
        if not 0 <= int(drawn.min()) <= int(drawn.max()) < self.num_rows:
            raise RunError(
                f"draw_rows returned indices from {drawn.min()} to {drawn.max()}, expected 0 to {self.num_rows - 1}"
            )
        times, keys = Counter[int](), []
        for index in drawn.tolist():
            keys.append(index + self.num_rows * (self.epoch + AGAIN * times[index]))
            times[index] += 1
        return keys

    @property
    def _sorted_rows(self) -> int:
        """Return how many rows are sorted at a time.

        These are the rows of 50 steps (as upstream) and at least 512, but no more than a quarter of all or one step's.
        """
        return max(min(max(50 * self.group, 512), self.num_rows // 4), self.group)

    def __len__(self) -> int:
        return self.num_rows


def balanced_rows(classes: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw as many rows as there are, equally many of each class; none twice before all of its class were drawn once.

    If the rows can't be divided equally, classes drawn at random get one more.

    Args:
        classes: class ids (N,) int64.

    Returns:
        Indices of rows (N,) int64, in random order.
    """
    places = [torch.nonzero(classes == number).flatten() for number in classes.unique().tolist()]
    counts = torch.full((len(places),), len(classes) // len(places))
    counts[torch.randperm(len(places), generator=generator)[: len(classes) % len(places)]] += 1
    drawn = []
    for own, count in zip(places, counts.tolist(), strict=True):
        rounds = -(-count // len(own))
        order = torch.cat([torch.randperm(len(own), generator=generator) for _ in range(rounds)])
        drawn.append(own[order[:count]])
    return torch.cat(drawn)[torch.randperm(len(classes), generator=generator)]


def mix(*numbers: int) -> int:
    """Derive one well-spread 63-bit seed from several numbers (numpy's `SeedSequence`)."""
    high, low = np.random.SeedSequence([abs(int(n)) for n in numbers]).generate_state(2, np.uint32)
    return (int(high) << 31) ^ int(low)


def uniforms(seed: int, keys: Sequence[int], count: int) -> np.ndarray:
    """Draw numbers in [0, 1), an array (len(keys), count); each row follows from (seed, key) alone.

    This is SplitMix64 as a counter-based generator: G. L. Steele, D. Lea, C. H. Flood, "Fast Splittable Pseudorandom
    Number Generators", OOPSLA 2014; constants from its `mix64variant13`.
    """
    start = np.array([mix(seed, key) for key in keys], dtype=np.uint64)[:, None]
    z = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


@contextlib.contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore the global CPU generators of torch, Python and numpy after the block."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def rng_state() -> tuple[bytes, Any, bytes, int]:
    """Return the states of the global CPU generators, for comparison."""
    numpy_state: Any = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), numpy_state[1].tobytes(), numpy_state[2]


def seed_cpu(seed: int) -> None:
    """Seed the global CPU generators of torch, Python and numpy; devices are left alone."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # numpy takes 32 bits
