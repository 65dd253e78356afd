"""Sampling and random numbers that follow from (seed, epoch, index) alone."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard
from torch.utils.data import BatchSampler, DataLoader
from transformers import TrainerControl, TrainerState, TrainingArguments

from hfexp.core.errors import RunError
from hfexp.data.sampling import EpochSampler, balanced_rows, mix, preserved_rng, seed_cpu, uniforms
from hfexp.tasks.images import RandomAffine
from hfexp.training.callbacks import SetEpochCallback


def test_each_epoch_is_a_permutation_of_its_own() -> None:
    sampler = EpochSampler(20, seed=1)
    first = list(sampler)
    torch.manual_seed(5)
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == list(range(20))
    assert sorted(second) == list(range(20, 40))
    assert [key - 20 for key in second] != first
    assert list(EpochSampler(20, seed=2)) != first
    assert list(EpochSampler(3, seed=2, shuffle=False)) == [0, 1, 2]


def test_balanced_rows_are_equally_many_of_each_class() -> None:
    classes = torch.tensor([4] * 30 + [1] * 9 + [7] * 2)  # 41 rows: 14 of two classes, 13 of one
    drawn = balanced_rows(classes, torch.Generator().manual_seed(0))
    assert sorted(classes[drawn].bincount(minlength=8)[[1, 4, 7]].tolist()) == [13, 14, 14]
    times = drawn.bincount(minlength=41)
    assert times[:30].max() == 1, "none twice before all were drawn once"
    assert {*times[30:39].tolist()} <= {1, 2}
    assert {*times[39:].tolist()} <= {6, 7}
    assert torch.equal(drawn, balanced_rows(classes, torch.Generator().manual_seed(0)))
    assert not torch.equal(drawn, balanced_rows(classes, torch.Generator().manual_seed(1)))
    assert classes[drawn].tolist() != sorted(classes[drawn].tolist())


def test_rows_drawn_by_a_function_have_keys_of_their_own() -> None:
    sampler = EpochSampler(4, seed=1, draw=lambda generator: torch.tensor([3, 0, 3, 3]))
    sampler.set_epoch(2)
    keys = list(sampler)
    assert [key % 4 for key in keys] == [3, 0, 3, 3]
    assert keys[:2] == [3 + 2 * 4, 0 + 2 * 4], "as without a function"
    assert len(set(keys)) == 4, "a row that is drawn again has other random numbers"
    first, second = (EpochSampler(40, 1, draw=lambda generator: torch.randperm(40, generator=generator)) for _ in "ab")
    torch.manual_seed(9)
    assert list(first) == list(second)
    second.set_epoch(1)
    assert [key % 40 for key in first] != [key % 40 for key in second]
    assert list(EpochSampler(4, 1, draw=lambda generator: None)) == list(EpochSampler(4, 1))
    with pytest.raises(RunError, match=r"draw_rows returned torch.int64 of shape \(2,\), expected 4 integers"):
        list(EpochSampler(4, 1, draw=lambda generator: [0, 4]))
    with pytest.raises(RunError, match="draw_rows returned indices from 0 to 4, expected 0 to 3"):
        list(EpochSampler(4, 1, draw=lambda generator: [0, 4, 1, 1]))


@pytest.mark.parametrize(
    ("drawn", "shown"),
    [
        (
            torch.ones(4, dtype=torch.bool),
            r"torch.bool of shape \(4,\)",
        ),  # a mask, not rows 0 and 1
        (torch.rand(4), r"torch.float32 of shape \(4,\)"),
        (torch.zeros(4, 1, dtype=torch.int64), r"torch.int64 of shape \(4, 1\)"),
    ],
)
def test_what_are_no_indices_is_refused(drawn: torch.Tensor, shown: str) -> None:
    with pytest.raises(RunError, match=f"draw_rows returned {shown}, expected 4 integers"):
        list(EpochSampler(4, 1, draw=lambda generator: drawn))


def test_the_data_loader_tells_the_sampler_its_epoch() -> None:
    loader = Accelerator(cpu=True).prepare(DataLoader(range(8), sampler=EpochSampler(4, 0), batch_size=2))
    loader.set_epoch(1)
    assert sorted(int(x) for batch in loader for x in batch) == [4, 5, 6, 7]


def test_processes_that_resume_in_mid_epoch_take_the_samples_of_that_epoch() -> None:
    sampler = EpochSampler(8, seed=0)
    second_of_two = BatchSamplerShard(BatchSampler(sampler, 2, drop_last=False), num_processes=2, process_index=1)
    loader: Any = skip_first_batches(DataLoaderShard(range(16), batch_sampler=second_of_two), 1)  # pyright: ignore
    SetEpochCallback(sampler).on_epoch_begin(TrainingArguments(), TrainerState(epoch=1.5), TrainerControl())
    loader.set_epoch(1)
    whole = EpochSampler(8, seed=0)
    whole.set_epoch(1)
    assert [batch.tolist() for batch in loader] == [list(whole)[6:]]


def test_generators_are_given_back_as_found() -> None:
    seed_cpu(3)
    expected = torch.rand(1), random.random(), np.random.rand()
    seed_cpu(3)
    with preserved_rng():
        seed_cpu(9)
        torch.rand(5)
    assert (torch.rand(1), random.random(), np.random.rand()) == expected


def test_uniform_numbers_are_uniform_and_independent_of_their_company() -> None:
    drawn = uniforms(0, range(5000), 4)
    assert drawn.shape == (5000, 4)
    assert (drawn.min() >= 0, drawn.max() < 1) == (True, True)
    assert np.abs(drawn.mean(0) - 0.5).max() < 0.02
    assert np.abs(drawn.var(0) - 1 / 12).max() < 0.005
    assert np.abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 0.05
    assert np.array_equal(uniforms(0, [4, 2], 4), drawn[[4, 2]])
    assert not np.array_equal(uniforms(1, [4], 4), drawn[[4]])
    assert len({mix(0, k) for k in range(1000)}) == 1000


def test_random_affine_shifts_turns_and_scales() -> None:
    images = torch.randint(0, 256, (1, 3, 20, 20), dtype=torch.uint8)
    nothing, left, up = 0.5, 1.0, 1.0

    def move(
        angle: float = nothing, zoom: float = 0.5, x: float = nothing, y: float = nothing, **ranges: Any
    ) -> torch.Tensor:
        return RandomAffine(**ranges)(images, torch.tensor([[angle, zoom, x, y]]))

    assert torch.equal(move(degrees=30, translate=[0.2, 0.2], scale=[0.5, 1.5]), images)
    shifted = move(x=left, translate=[0.1, 0])  # a tenth of 20 pixels
    assert torch.equal(shifted[..., :-2], images[..., 2:])
    assert not shifted[..., -2:].any()
    assert torch.equal(move(y=up, translate=[0, 0.1])[..., :-2, :], images[..., 2:, :])
    assert torch.equal(move(angle=1.0, degrees=90), torch.rot90(images, -1, (-2, -1))) or torch.equal(
        move(angle=1.0, degrees=90), torch.rot90(images, 1, (-2, -1))
    )
    half = move(zoom=0.0, scale=[0.5, 1.0])
    assert not half[..., :4, :].any()
    assert half[..., 5:15, 5:15].any()


def test_random_affine_moves_each_image_by_its_own_draw() -> None:
    images = torch.randint(0, 256, (3, 1, 8, 12), dtype=torch.uint8)
    draws = torch.rand(3, 4)
    move = RandomAffine(degrees=20, translate=[0.2, 0.1], scale=[0.8, 1.2])
    alone = torch.cat([move(images[i : i + 1], draws[i : i + 1]) for i in range(3)])
    assert torch.equal(move(images, draws), alone)
