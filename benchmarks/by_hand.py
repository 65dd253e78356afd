"""A training of several processes written by hand with Accelerate, on the digits: what hfexp is held against."""

from typing import Any


def train(batch: int, epochs: int, logging_steps: int) -> float:
    """As Accelerate's documentation shows it; returns seconds per step after the first epoch."""
    import os

    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    from accelerate import Accelerator
    from transformers import get_scheduler

    from benchmarks.steps import StepTimes

    torch.set_num_threads(1)
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    model: Any = digits_model()
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05, fused=True)
    loader: Any = torch.utils.data.DataLoader(digits(), batch_size=batch, shuffle=True)
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

    from hfexp import api

    settings = api.compose("experiment=digits_vit").model.config
    return ViTForImageClassification(ViTConfig(**settings, id2label={i: str(i) for i in range(10)}))


def digits() -> Any:
    """The training images as hfexp's digits are split, ready: (N, 3, 8, 8) and (N,)."""
    import torch

    from hfexp import api
    from hfexp.preflight import prepare

    config = api.compose("experiment=digits_vit", "transform=eval", "metrics=accuracy")
    rows = prepare(config).dataset["train"]
    pixels = torch.stack([torch.tensor(list(image.convert("L").getdata())).view(1, 8, 8) for image in rows["image"]])
    return torch.utils.data.TensorDataset((pixels / 127.5 - 1).repeat(1, 3, 1, 1), torch.tensor(rows["label"]))
