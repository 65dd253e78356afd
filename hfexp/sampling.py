"""Which sample comes when, and with which random numbers: both follow from (seed, epoch, index) alone.

So they do not depend on data loader workers, on the number of processes or on where a run was resumed.
"""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """Yields keys `epoch * num_rows + index`, shuffled by (seed, epoch).

    The Trainer calls `set_epoch` at the beginning of each epoch, through Accelerate's data loader.
    """

    def __init__(self, num_rows: int, seed: int, shuffle: bool = True) -> None:
        self.num_rows = num_rows
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = torch.arange(self.num_rows)
        if self.shuffle:
            generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
            order = torch.randperm(self.num_rows, generator=generator)
        return iter((order + self.epoch * self.num_rows).tolist())

    def __len__(self) -> int:
        return self.num_rows


def mix(*numbers: int) -> int:
    """One well-spread 63-bit seed from several numbers (numpy's `SeedSequence`)."""
    high, low = np.random.SeedSequence([abs(int(n)) for n in numbers]).generate_state(2, np.uint32)
    return (int(high) << 31) ^ int(low)


@contextlib.contextmanager
def preserved_rng() -> Iterator[None]:
    """Give the global CPU generators of torch, Python and numpy back as they were found."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def seed_cpu(seed: int) -> None:
    """Seed the global CPU generators of torch, Python and numpy; devices are left alone."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
