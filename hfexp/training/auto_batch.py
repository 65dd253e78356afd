"""Smaller parts of a batch after an out-of-memory error: the whole batch, and so the experiment, stays what it is.

Transformers' `auto_find_batch_size` starts the training anew with a smaller batch, and so trains something else. Here
the rows of a batch pass through the model in parts whose gradients are summed, as in gradient accumulation.
"""

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate.utils import recursively_apply
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers.trainer_pt_utils import find_batch_size

from hfexp.core.errors import EvaluationOutOfMemory, OutOfMemory, RunError
from hfexp.training.weighting import WeightedLosses

logger = logging.getLogger(__name__)

KEY = "trainer.auto_batch"
NO_ROOM = (
    "there is no memory for a single row: choose a smaller model or shorter rows, or try "
    "trainer.args.activation_checkpointing=true, trainer.args.bf16=true or model.peft"
)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return True if an error says that a device, or the CPU's allocator, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


@dataclass
class _Step:
    """What is needed to do an optimizer step again from its beginning."""

    loss: torch.Tensor
    """The Trainer's sum of losses before the step."""
    states: tuple[Any, ...]
    """States of the random number generators before the step: torch's, Python's, numpy's and the GPU's, if any."""
    batches: list[tuple[Any, Any]] = field(default_factory=list)
    """Batches that the step has taken so far, each with its number of items."""


class AutoBatch(WeightedLosses):
    """Mixin for a Transformers `Trainer` that halves the rows at once when memory runs out.

    An optimizer step that fails is done again from the same weights and random numbers, with all its batches in
    smaller parts. So a training is the same as one that had such parts from that step on.

    One of several processes can't do so, because the others wait for its gradients. It raises `OutOfMemory`, and all
    have to be started again.
    """

    auto_batch: bool = False
    limits: Sequence[Sequence[int]] = ()
    """Pairs of a step and a number: from that step on, the model takes at most so many rows at once."""
    on_limit: Callable[[str], None] = staticmethod(logger.warning)
    """Called with a line for the user when the rows at once have been halved."""
    _step: _Step | None = None

    @property
    def rows_at_once(self) -> int:
        """Return the most rows that the model takes at once in the current step."""
        limits = [rows for step, rows in self.limits if step <= self.state.global_step]
        return min([self.args.per_device_train_batch_size, *limits])

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        self._step = None
        return super().get_batch_samples(*args, **kwargs)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Run the Trainer's step on the parts of a batch.

        Raises:
            RunError: there is no memory for a single row, or `trainer.auto_batch` is off.
            OutOfMemory: one of several processes has no memory for a part.
        """
        if not self.auto_batch:
            return self._train_whole(model, inputs)
        if self._step is None:
            self._step = _Step(self._tr_loss.clone(), _generator_states(self.args.device))
        self._step.batches.append((inputs, self._items.popleft()))
        batches = self._step.batches[-1:]
        while True:
            try:
                return self._train_in_parts(model, batches)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(max(find_batch_size(batch) or 1 for batch, _ in batches), error)
            # Outside of the `except`, whose error holds the tensors of the attempt.
            clear_device_cache(garbage_collection=True)
            model.zero_grad()
            self._tr_loss = self._step.loss.clone()
            _set_generator_states(self._step.states, self.args.device)
            batches = self._step.batches

    def _train_whole(self, model: Any, inputs: Any) -> torch.Tensor:
        try:
            return super().training_step(model, inputs)
        except RuntimeError as error:
            if is_out_of_memory(error):
                self._refuse(find_batch_size(inputs) or 1, error, OutOfMemory, "per_device_train_batch_size", "")
            raise

    def _train_in_parts(self, model: Any, batches: list[tuple[Any, Any]]) -> torch.Tensor:
        """Add the gradients of batches; return the loss of the last part and add those of the others to the sum."""
        parts = [part for batch, items in batches for part in self._parts(batch, items)]
        for batch, items in parts[:-1]:
            self._items.appendleft(items)
            with self.accelerator.no_sync(model=model):  # the Trainer lets processes exchange gradients at the end
                loss = super().training_step(model, batch)
            self._tr_loss += loss.nan_to_num(0, 0, 0) if self.args.logging_nan_inf_filter else loss
        batch, items = parts[-1]
        self._items.appendleft(items)
        return super().training_step(model, batch)

    def _parts(self, batch: Any, items: Any) -> list[tuple[Any, Any]]:
        """Cut a batch into parts of at most `rows_at_once` rows, each with its number of items."""
        size, limit = find_batch_size(batch) or 0, self.rows_at_once
        if size <= limit:
            return [(batch, items)]
        parts = []
        for start in range(0, size, limit):
            part: Any = recursively_apply(lambda tensor, start=start: tensor[start : start + limit], batch)
            parts.append((part, self._num_tokens(part) if self.loss_per_token else find_batch_size(part)))
        return parts

    def _halve(self, size: int, error: Exception) -> None:
        """Halve the rows at once after an error with batches of up to `size` rows."""
        tried = min(self.rows_at_once, size)
        self._refuse(tried, error, OutOfMemory, "per_device_train_batch_size", "")
        asked, rows = self.args.per_device_train_batch_size, tried // 2
        self.limits = [*self.limits, [self.state.global_step, rows]]
        self.on_limit(f"out of memory with {tried} rows at once: going on with {-(-asked // rows)} x {rows}")

    def _refuse(self, tried: int, error: Exception, kind: type[OutOfMemory], key: str, where: str) -> None:
        """Raise an error if smaller parts are not wanted, not possible, or not up to this process."""
        if tried == 1:
            raise RunError(f"out of memory{where}: {NO_ROOM}") from error
        said = f"out of memory{where} with {tried} rows at once"
        if not self.auto_batch:
            raise RunError(f"{said}; set {KEY}=true, or lower trainer.args.{key}") from error
        if self.args.world_size > 1:
            raise kind(f"process {self.args.process_index}: {said}; lower trainer.args.{key}") from error

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Run the Trainer's evaluation; halve the batch if memory runs out."""
        return self._with_room(super().evaluate, *args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Run the Trainer's predictions; halve the batch if memory runs out."""
        return self._with_room(super().predict, *args, **kwargs)

    def _with_room(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        state = self.accelerator.gradient_state
        loaders = list(state.dataloader_references)
        while True:
            try:
                return run(*args, **kwargs)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._halve_evaluation(error)
            state.dataloader_references = loaders  # Accelerate (1.15) keeps a loader that was not read to its end
            vars(self).pop("_eval_dataloaders", None)  # kept with persistent workers
            clear_device_cache(garbage_collection=True)

    def _halve_evaluation(self, error: Exception) -> None:
        tried = self.args.per_device_eval_batch_size
        self._refuse(tried, error, EvaluationOutOfMemory, "per_device_eval_batch_size", " in an evaluation")
        self.args.per_device_eval_batch_size = tried // 2
        self.on_limit(f"out of memory in an evaluation with {tried} rows at once: going on with {tried // 2}")


def _generator_states(device: torch.device) -> tuple[Any, ...]:
    own = (torch.cuda.get_rng_state(device),) if device.type == "cuda" else ()
    return torch.get_rng_state(), random.getstate(), np.random.get_state(), *own


def _set_generator_states(states: tuple[Any, ...], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[3], device)
