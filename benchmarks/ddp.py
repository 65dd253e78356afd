"""Time per step with two processes: hfexp's `launch=ddp` beside the same loop written by hand with Accelerate.

Both train the digits model on the CPU, one thread per process, batches of 16 per process; the loop by hand has all
images ready in memory. Compared is the time per step after the first epoch, seen by the first process.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import Report, interleave, parser, publish, ratio, scratch, silence, turns

PROCESSES, BATCH, EPOCHS, LOGGING_STEPS = 2, 16, 6, 10
OWN, BY_HAND = "hfexp launch=ddp", "Accelerate by hand"


def run(rounds: int | None = None, quick: bool = False) -> Report:
    """Measure both in turns."""
    report = Report("ddp", (__doc__ or "").splitlines()[0].rstrip("."))
    rounds = 1 if quick else rounds or 5
    epochs = 2 if quick else EPOCHS
    ways = {OWN: lambda: own(epochs), BY_HAND: lambda: by_hand(epochs)}
    with scratch():
        steps = {name: [1e3 * t for t in found] for name, found in interleave(ways, rounds).items()}
    title = f"Time per step, {PROCESSES} processes, {turns(rounds)}"
    report.section(title, "ms", steps, [ratio(steps, OWN, BY_HAND, limit=1.05)])
    return report


def own(epochs: int) -> float:
    """Seconds per step of hfexp."""
    from hfexp import api

    path = Path("steps.json").absolute()
    with silence():
        api.train(
            "experiment=digits_vit", "transform=eval", "metrics=accuracy", "on_existing=rerun", "launch=ddp",
            f"launch.num_processes={PROCESSES}", "launch.num_threads=1", "security.allowed_targets=[benchmarks]",
            f"trainer.args.num_train_epochs={epochs}", f"trainer.args.per_device_train_batch_size={BATCH}",
            "trainer.args.eval_strategy=no", "trainer.args.save_strategy=no", "trainer.args.learning_rate=5e-4",
            "trainer.args.load_best_model_at_end=false", f"trainer.args.logging_steps={LOGGING_STEPS}",
            f"trainer.callbacks.steps={{_target_: benchmarks.steps.SavedStepTimes, path: {path}}}",
        )  # fmt: skip
    return json.loads(path.read_text())


def by_hand(epochs: int) -> float:
    """Seconds per step of the loop below, in processes that are started in the same way."""
    from hfexp.config import LaunchConfig, Strategy
    from hfexp.launch import workers

    launch = LaunchConfig(Strategy.ddp, PROCESSES, num_threads=1)
    with tempfile.TemporaryDirectory(dir=".") as place:
        return workers.start(launch, Path(place).absolute(), train_by_hand, epochs)


def train_by_hand(epochs: int) -> float:
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
    loader: Any = torch.utils.data.DataLoader(digits(), batch_size=BATCH, shuffle=True)
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
            if len(times.ends) % LOGGING_STEPS == 0:
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


def main(argv: list[str] | None = None) -> None:
    """Run as a program."""
    args = parser(__doc__).parse_args(argv)
    publish(run(args.rounds, args.quick), keep=not args.quick)


if __name__ == "__main__":
    main()
