"""A training of several processes written by hand with Accelerate, on the digits: what hfexp is held against."""

from typing import Any


def train(rows: int, batch: int, epochs: int, logging_steps: int) -> float:
    """As Accelerate's documentation shows it; returns seconds per step after the first epoch."""
    import os

    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    from accelerate import Accelerator
    from transformers import get_scheduler

    from benchmarks.steps import StepTimes
    from hfexp.core.config import LaunchConfig, Strategy
    from hfexp.launch import world

    torch.set_num_threads(1)
    torch.manual_seed(0)
    world.connect(LaunchConfig(Strategy.ddp, world.size()), True)  # they meet in a file, which Accelerate can't find
    accelerator = Accelerator(cpu=True)
    model: Any = digits_model()
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05, fused=True)
    loader: Any = torch.utils.data.DataLoader(digits(rows), batch_size=batch, shuffle=True)
    steps = epochs * len(loader)
    scheduler: Any = get_scheduler("cosine", optimizer, num_warmup_steps=steps // 10, num_training_steps=steps)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    model.train()
    times = StepTimes()
    for _ in range(epochs):
        for pixel_values, labels in loader:
            loss = model(pixel_values=pixel_values, labels=labels).loss
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            times.on_step_end(None, None, None)
            if len(times.ends) % logging_steps == 0:
                loss.item()
        times.on_epoch_end(None, None, None)
    torch.distributed.destroy_process_group()
    return times.steady


def digits_model() -> Any:
    """As `model=vit_digits` builds it."""
    from transformers import ViTConfig, ViTForImageClassification

    from hfexp.commands import api

    settings = api.compose("experiment=digits_vit").model.config
    return ViTForImageClassification(ViTConfig(**settings, id2label={i: str(i) for i in range(10)}))


def digits(rows: int) -> Any:
    """The first images, ready: (rows, 3, 8, 8) in [-1, 1] and class ids (rows,)."""
    import torch
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    pixels = torch.tensor(found.images[:rows], dtype=torch.float32)[:, None].repeat(1, 3, 1, 1) / 8 - 1
    return torch.utils.data.TensorDataset(pixels, torch.tensor(found.target[:rows]))
