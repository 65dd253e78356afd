"""Callbacks for progress (a bar in a terminal, a line per evaluation elsewhere) and for recording what is logged."""

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfexp.core.console import end_bar, is_terminal, move_bar, say
from hfexp.experiment.recorder import Recorder
from hfexp.launch import job


class TrackingCallback(TrainerCallback):
    """Records what the Trainer logs, at its step, and announces checkpoints to the recorder."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            path = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            self.recorder.checkpoint(path, state.global_step, kwargs["model"])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            self._record(logs, state.global_step)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the checkpoint's logs again; some are missing if the recording process was killed before."""
        if state.is_world_process_zero:
            for entry in state.log_history:
                logs = {name: value for name, value in entry.items() if name != "step"}
                self._record(logs, int(entry["step"]))

    def _record(self, logs: dict[str, float], step: int) -> None:
        # The user's metrics and callbacks may log NumPy numbers or one-element tensors.
        numbers = {name: float(value) for name, value in logs.items() if hasattr(value, "__float__")}
        self.recorder.tracker.log_metrics(numbers, step)


class DrawSamples(TrainerCallback):
    """Draws the training samples when training first pauses: at its first log or the end of its first epoch."""

    def __init__(self, recorder: Recorder, aside: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        """`aside`: makes a context whose time counts in no training rate."""
        self.recorder = recorder
        self.aside = aside

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            with self.aside():
                self.recorder.draw_samples()

    on_epoch_end = on_log


BAR_INTERVAL = 0.1
"""Seconds between two updates of the bar."""


class ShowProgress(TrainerCallback):
    """Shows epoch, loss, validation metric, samples per second and remaining time."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.values: dict[str, float] = {}
        self.started = 0.0
        self.first_step = 0
        self._first_ended: tuple[float, int] | None = None
        """Time and step at the end of the first step, which is the slowest (it may compile); rates count from here."""
        self.train_seconds = 0.0
        self._next = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started, self.first_step, self._first_ended = time.perf_counter(), state.global_step, None
        if args.torch_compile and state.is_world_process_zero:
            say("  the first step compiles the model: up to a minute or two")
        self._move_bar(args, state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._first_ended = self._first_ended or (time.perf_counter(), state.global_step)
        if time.perf_counter() > self._next or state.global_step >= state.max_steps:
            self._move_bar(args, state)
        if state.is_world_process_zero:
            job.report(args.run_name, state.global_step, state.max_steps, self.values)

    def _move_bar(self, args: TrainingArguments, state: TrainerState) -> None:
        if state.is_world_process_zero and is_terminal():
            epoch = f"epoch {min(int(state.epoch or 0) + 1, int(state.num_train_epochs))}/{state.num_train_epochs}"
            epoch = "streaming" if state.num_train_epochs == sys.maxsize else epoch
            move_bar(state.global_step, state.max_steps, epoch, self._text(args, state))
            self._next = time.perf_counter() + BAR_INTERVAL

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        for name in ("loss", f"eval_{self.metric}"):
            if logs and name in logs:
                self.values[name] = logs[name]

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not is_terminal() and state.is_world_process_zero and state.global_step:
            left = (state.max_steps - state.global_step) / max(self._steps_per_second(state), 1e-9)
            epoch = f"epoch {state.epoch or 0:.4g}/{state.num_train_epochs}"
            epoch = "streaming" if state.num_train_epochs == sys.maxsize else epoch  # a stream may have no known end
            say(f"  {epoch}  step {state.global_step}/{state.max_steps}  {self._text(args, state)}  {left:.0f} s left")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the terminal, also after an error."""
        if self.started:
            self.train_seconds = time.perf_counter() - self.started
        end_bar()

    def _steps_per_second(self, state: TrainerState) -> float:
        """Return the mean rate, with the time of evaluation and saving included."""
        first = self._first_ended
        since, step = first if first and state.global_step > first[1] else (self.started, self.first_step)
        return (state.global_step - step) / max(time.perf_counter() - since, 1e-9)

    def _text(self, args: TrainingArguments, state: TrainerState) -> str:
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        rate = batch * self._steps_per_second(state)
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in self.values.items())
        return f"{numbers}  {rate:.0f} samples/s".strip()
