"""Callbacks of the Trainer that note when its steps end; the same in every variant."""

import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

from transformers import TrainerCallback

from benchmarks.in_turns import Turns


class StepTimes(TrainerCallback):
    """When the steps ended (seconds of `time.perf_counter`), and where the second epoch began.

    Time for which the process waited, because others had their turn (`turns`), is not counted. Nor is in `steady` the
    step after that, which no training has that runs alone: it took up to 10 ms longer, in some variants more than in
    others.
    """

    current: ClassVar["StepTimes"]
    """The one that saw the newest training: hfexp makes its own from the configuration."""

    turns: ClassVar[Turns | None] = None
    """Set for the training that counts, in a process that takes turns."""

    def __init__(self) -> None:
        self.waited = 0.0
        self.ends: list[float] = []
        self.after_wait: set[int] = set()
        """Steps before which others had their turn."""
        self.epoch_ends: list[int] = []
        """Number of steps that were done when each epoch ended."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends, self.epoch_ends, self.waited, self.after_wait = [], [], 0.0, set()
        StepTimes.current = self

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_ended()

    def step_ended(self) -> None:
        self.ends.append(time.perf_counter() - self.waited)
        if self.turns is not None and (waited := self.turns.step_ended()):
            self.waited += waited
            self.after_wait.add(len(self.ends))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.epoch_ends.append(len(self.ends))

    @property
    def steady(self) -> float:
        """Seconds per step after the second epoch's first one; mean of those that count."""
        counted = [step for step in range(self.epoch_ends[0] + 1, len(self.ends)) if step not in self.after_wait]
        return statistics.mean(self.ends[step] - self.ends[step - 1] for step in counted)


class SavedStepTimes(StepTimes):
    """`StepTimes` of the first of several processes, which writes what there is to know to a JSON file."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.path.write_text(json.dumps(self.steady))


class FirstStep(TrainerCallback):
    """Prints the time of day when the first optimizer step has ended."""

    PREFIX = "first step ended:"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            print(self.PREFIX, time.time(), flush=True)
            print(self.PREFIX, file=sys.stderr, flush=True)  # between the lines of -X importtime


class TrainingPeak(TrainerCallback):
    """Memory of the process in MB (2^20 bytes) when training has ended."""

    peak: ClassVar[float] = 0.0
    """Most resident memory until then."""
    anonymous: ClassVar[float] = 0.0
    """Resident then, without pages of mapped files, which the system takes back when it needs room."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        TrainingPeak.peak = peak_memory()
        TrainingPeak.anonymous = anonymous_memory()


def peak_memory() -> float:
    """Most resident memory of this process so far, in MB."""
    # getrusage(2): kilobytes, but bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def anonymous_memory() -> float:
    """Resident memory of this process that is not mapped from a file, in MB; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("RssAnon")), 0.0)
