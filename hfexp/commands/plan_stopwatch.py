"""A Trainer callback that times a training and ends it after a few steps."""

import json
import math
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

UNTIMED_STEPS = 3
"""First steps that are not timed: they allocate memory and select kernels."""
LEAST_STEPS = 8
MOST_STEPS = 100
SECONDS = 3.0
"""Seconds after which training ends, once it has made `LEAST_STEPS` steps."""


class Stopwatch(TrainerCallback):
    """Ends training after a few steps, an evaluation and a checkpoint if its strategies ask for them; times these."""

    def __init__(self, path: str) -> None:
        """Start without measurements.

        Args:
            path: the JSON file to which the measurements are written.
        """
        self.path = Path(path)
        self.facts: dict[str, Any] = {"evaluations": {}, "checkpoint": 0.0}
        self.steps: list[float] = []
        self._since = self._began = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        epochs = float(args.num_train_epochs)
        loader: Any = kwargs.get("train_dataloader")
        batches = len(loader) if hasattr(loader, "__len__") else None
        # The Trainer counts the last, incomplete accumulation of an epoch as a step too.
        per_epoch = math.ceil(batches / args.gradient_accumulation_steps) if batches else state.max_steps / epochs
        self.facts |= {"steps_per_epoch": per_epoch, "begun": time.time()}

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self.steps:
            self._since = self._began = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._take()
        if self._is_enough(args):
            control.should_training_stop = True
            control.should_evaluate = args.eval_strategy == "steps"
            control.should_save = args.save_strategy in ("steps", "best")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._since = time.monotonic()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._note_evaluation(kwargs.get("metrics") or {})

    def on_predict(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._note_evaluation(kwargs.get("metrics") or {})
        self._write(state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.facts["checkpoint"] = time.monotonic() - self._since
        self._since = time.monotonic()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.facts |= {"ended": time.time()}
        self._write(state)

    def _take(self) -> None:
        now = time.monotonic()
        self.steps.append(now - self._since)
        self._since = now

    def _is_enough(self, args: TrainingArguments) -> bool:
        if args.world_size > 1:  # a fixed count, so that all processes end at the same step
            return len(self.steps) >= LEAST_STEPS
        slow = time.monotonic() - self._began >= SECONDS
        return len(self.steps) >= MOST_STEPS or (slow and len(self.steps) >= LEAST_STEPS)

    def _note_evaluation(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            if name.endswith("_runtime"):
                self.facts["evaluations"][name.removesuffix("_runtime")] = value
        self._since = time.monotonic()

    def _write(self, state: TrainerState) -> None:
        if state.is_world_process_zero and self.steps:
            timed = self.steps[UNTIMED_STEPS:] or self.steps[-1:]
            known = {"step": statistics.median(timed), "memory": peak_memory(), "device_memory": _device_memory()}
            self.path.write_text(json.dumps(self.facts | known))


def peak_memory() -> int:
    """Return the peak resident memory of this process in bytes (macOS reports bytes, Linux KiB)."""
    return (1 if sys.platform == "darwin" else 1024) * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _device_memory() -> int:
    """Return the peak bytes that torch reserved on this process's GPU; 0 without CUDA."""
    return torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
