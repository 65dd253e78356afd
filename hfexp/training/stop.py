"""Stopping all processes of a run at the same step; a process that goes on alone would hang in the next collective."""

import contextlib
import shutil
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from hfexp.core.errors import Terminated, exit_code
from hfexp.core.signals import count_once
from hfexp.training.trainer import StopOnSignal

FOLDER = ".stop"
ASKED = "asked"
STEP = "step"


def forget(run_dir: Path) -> None:
    """Remove the stop files that an earlier start of the run left."""
    shutil.rmtree(run_dir / FOLDER, ignore_errors=True)


class StopTogether(StopOnSignal):
    """`StopOnSignal` for a run of several processes, any of which may get the signal.

    The process that gets the signal creates a file. Rank 0, at the end of step s, sees it and writes that s+1 is the
    last step. No process can have ended step s+1 by then, because that needs the gradients of rank 0; so every
    process sees the agreed step in time. Checking for a file costs microseconds per step; a collective would cost
    more and would stall an accelerator.
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
        # Unlike in `StopOnSignal`, a second SIGTERM does not end the process at once: the starting process may send
        # it more than once, and kills processes that take too long.
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
