"""Stopping several processes at the same step: each would otherwise wait for the others in the next exchange."""

import contextlib
import shutil
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from hfexp.errors import Terminated, exit_code
from hfexp.signals import count_once
from hfexp.training import StopOnSignal

FOLDER = ".stop"
ASKED = "asked"
STEP = "step"


def forget(run_dir: Path) -> None:
    """Remove what an earlier start of the run has agreed upon."""
    shutil.rmtree(run_dir / FOLDER, ignore_errors=True)


class StopTogether(StopOnSignal):
    """As `StopOnSignal`, for one of several processes, any of which may get the signal.

    Who gets it leaves a file. The first process, having ended step s, then writes that s+1 is the last step. No
    process can have ended s+1 by then, as its gradients need those of the first process; so each sees the file in
    time. Looking for a file costs microseconds a step, an exchange of messages would cost more and make an
    accelerator wait.
    """

    def __init__(self, run_dir: Path, is_first: bool) -> None:
        super().__init__()
        self._folder = run_dir / FOLDER
        self._is_first = is_first
        self._last_step: int | None = None
        self._step = 0

    @property
    def due(self) -> bool:
        return self._last_step is not None and self._step >= self._last_step

    def _request(self, number: int, frame: FrameType | None) -> None:
        # Whoever started the processes may ask more than once, and ends them if they take too long.
        count_once(number)
        if not self._training:
            raise Terminated(exit_code(number))
        self._asked.append(number)
        self.requested = True
        with contextlib.suppress(OSError):
            self._folder.mkdir(exist_ok=True)
            (self._folder / ASKED).touch()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._step = state.global_step
        if self._last_step is None and self._folder.is_dir():
            self._agree()
        super().on_step_end(args, state, control, **kwargs)

    def _agree(self) -> None:
        agreed = self._folder / STEP
        if self._is_first and not agreed.exists():
            written = agreed.with_suffix(".new")
            written.write_text(str(self._step + 1))
            written.rename(agreed)
        if agreed.exists():
            self._last_step = int(agreed.read_text())
            self.requested = True
