"""Exponential moving average of the weights (EMA), which is evaluated and saved in place of the trained weights."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from hfexp.core.collective import local, part_of, whole
from hfexp.training.callbacks import TrainerMixin
from hfexp.training.sharding import let_go

FILE = "trained_weights.safetensors"
"""File of a checkpoint with the weights that training goes on with; `model.safetensors` has their averages."""
EXACT = "average:"
"""Prefix in that file of averages that the model's own dtype can't hold."""
WARMUP_POWER = 2 / 3
"""Power of timm's `ModelEmaV3`, whose rule comes from K. Crowson: the decay reaches 0.99 after 1,000 steps."""


class MovingAverage:
    """Moving averages, in float32, of a model's trained weights and of its statistics of batch normalisation."""

    def __init__(self, model: nn.Module, decay: float, warmup: bool, step: int) -> None:
        """Begin with the weights as they are after `step` steps."""
        self.model = model
        self.tensors = averaged_tensors(model)
        self.values = [tensor.detach().to(torch.float32, copy=True) for tensor in self.tensors.values()]
        self.decay, self.warmup, self.step = decay, warmup, step
        self.trained: list[torch.Tensor] = []
        """Trained weights, while the averages are in the model."""

    def decay_at(self, step: int) -> float:
        """Return the share of the average that a step keeps, as timm's `ModelEmaV3.get_decay` does."""
        if step <= 1:
            return 0.0
        return min(self.decay, 1 - step**-WARMUP_POWER) if self.warmup else self.decay

    def update(self, step: int) -> None:
        """Take the weights after a step into the averages, once."""
        if step != self.step:
            average = get_ema_multi_avg_fn(self.decay_at(step))
            tensors = [local(tensor).float() for tensor in self.tensors.values()]
            average([local(value) for value in self.values], tensors, step)
            self.step = step

    @torch.no_grad()
    def put(self, values: Iterable[torch.Tensor]) -> None:
        """Copy values into the model."""
        for tensor, value in zip(self.tensors.values(), values, strict=True):
            tensor.copy_(value)
        let_go(self.model)

    @contextlib.contextmanager
    def in_model(self) -> Iterator[None]:
        """Put the averages into the model for the block."""
        self.trained = [tensor.detach().clone() for tensor in self.tensors.values()]
        self.put(self.values)
        try:
            yield
        finally:
            self.put(self.trained)
            self.trained = []

    def save(self, path: Path, writes: bool = True) -> None:
        """Save what a resumed training needs beside the model, which holds the averages.

        All processes must call this if the model is spread over them; `writes` is true for the one that writes.
        """
        stored = dict(zip(self.tensors, self.trained, strict=True))
        for (name, tensor), value in zip(self.tensors.items(), self.values, strict=True):
            if tensor.dtype != value.dtype:
                stored[EXACT + name] = value
        gathered = {name: whole(value) for name, value in stored.items()}
        if writes:
            safetensors.torch.save_file({name: value.contiguous() for name, value in gathered.items()}, path)

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Continue from what `save` wrote; the model must have been loaded, with the averages."""
        stored = safetensors.torch.load_file(path)
        for (name, tensor), value in zip(self.tensors.items(), self.values, strict=True):
            exact = stored.get(EXACT + name)
            value.copy_(tensor.detach() if exact is None else part_of(exact, value))
        self.put(part_of(stored[name], tensor) for name, tensor in self.tensors.items())


def averaged_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the trained parameters and the saved buffers of real numbers, by name; a shared one once."""
    saved = model.state_dict().keys()
    buffers = {n: b for n, b in model.named_buffers() if n in saved and b.is_floating_point()}
    return {name: p for name, p in model.named_parameters() if p.requires_grad} | buffers


class AveragedWeights(TrainerMixin):
    """Mixin for a Transformers `Trainer` that evaluates and saves the moving average of the weights.

    Training itself goes on with the trained weights, which a checkpoint holds in a file of their own.
    """

    ema_decay: float | None = None
    """Share of the average that a step keeps; None: no average."""
    ema_warmup: bool = True
    """Begin with a smaller share, so that the first weights are soon forgotten."""
    _average: MovingAverage | None = None

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Begin the average of the weights, now that they are where they are trained; then create the schedule.

        The average is read from the checkpoint where the optimizer's state is.
        """
        if self.ema_decay is not None:
            self._average = MovingAverage(self.model, self.ema_decay, self.ema_warmup, self.state.global_step)  # pyright: ignore
        return super().create_scheduler(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self._average is not None:
            self._average.load(Path(checkpoint, FILE))

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> Any:
        if self._average is None:
            return super()._maybe_log_save_evaluate(*args, **kwargs)
        self._average.update(self.state.global_step)
        looks = self.control.should_evaluate or self.control.should_save
        with self._average.in_model() if looks else contextlib.nullcontext():
            return super()._maybe_log_save_evaluate(*args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self._average is not None:
            self._average.save(Path(output_dir, FILE), self.args.should_save)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        if self._average is not None:
            self._average.put(self._average.values)  # the model that is left, unless the best one is loaded
        return super()._finalize_training(*args, **kwargs)
