"""Callbacks that break a run at a chosen step; a file in the current directory arms them."""

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback


class Fault(TrainerCallback):
    """At step `at`, if the file `fault` is there: do what it says, the name of a signal or of a function here.

    Of several training processes, in the one with this rank.
    """

    def __init__(self, at: int, rank: int = 0) -> None:
        self.at = at
        self.rank = rank

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != self.at or os.environ.get("RANK", "0") != str(self.rank):
            return
        if not Path("fault").exists():
            return
        what, _, argument = Path("fault").read_text().partition(" ")
        Path("fault").unlink()
        if what in globals():
            globals()[what](argument)
        else:
            os.kill(os.getpid(), signal.Signals[what])


class Hold(TrainerCallback):
    """At step `at`: write the file `held-<seed>` into the current directory and wait for SIGTERM, or even longer.

    It also ends when there is a file `go`, and it holds only runs of these seeds, if there are any.
    """

    def __init__(self, at: int, stubborn: bool = False, seeds: list[int] | None = None) -> None:
        self.at, self.stubborn, self.seeds = at, stubborn, seeds

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.at and (not self.seeds or args.seed in self.seeds):
            Path(f"held-{args.seed}").write_text(str(os.getpid()))
            stop: Any = signal.getsignal(signal.SIGTERM)  # a method of StopOnSignal
            while not Path("go").exists() and (self.stubborn or not stop.__self__.requested):
                time.sleep(0.05)


class Gate(TrainerCallback):
    """At step `at`: write the file `held-<seed>` and wait for SIGTERM, or for the file `go`."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.at:
            Path(f"held-{args.seed}").write_text(str(os.getpid()))
            stop: Any = signal.getsignal(signal.SIGTERM)  # a method of StopOnSignal
            while not (stop.__self__.requested or Path("go").exists()):
                time.sleep(0.05)


class SmallMemory(TrainerCallback):
    """From step `at` on, there is room for `rows` rows: at the end of its backward pass, a larger batch fails.

    Of several training processes, in the one with this rank; all of `spare` larger batches fit nevertheless. With
    `evaluating`, larger batches of evaluations fail as well.
    """

    def __init__(self, rows: int, at: int = 0, rank: int = 0, spare: int = 0, evaluating: bool = False) -> None:
        self.rows, self.at, self.rank, self.spare, self.evaluating = rows, at, rank, spare, evaluating
        self.errors = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if os.environ.get("RANK", "0") == str(self.rank):
            self.state = state
            model.register_forward_pre_hook(self._enter, with_kwargs=True)
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            trained[0].register_hook(lambda gradient: self._need(self.state.global_step >= self.at))

    def _enter(self, module: Any, args: Any, kwargs: Any) -> None:
        self.size = len(next(iter(kwargs.values())))
        if not module.training:
            self._need(self.evaluating)

    def _need(self, applies: bool) -> None:
        if not applies or self.size <= self.rows:
            return
        if self.spare:
            self.spare -= 1
            return
        self.errors += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 PiB.")


def error(_: str) -> None:
    raise RuntimeError("the disk caught fire")


def error_in_old_encoding(_: str) -> None:
    raise RuntimeError("b\udce4r.jpg can't be read")


def leave(code: str) -> None:
    sys.exit(int(code))


def interrupt_twice(_: str) -> None:
    """Ctrl-C, and again while the run is being closed."""

    def again() -> None:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=again, daemon=True).start()
    os.kill(os.getpid(), signal.SIGINT)


def fill_disk(_: str) -> None:
    """Leave no byte of the disk that `outputs` is on."""
    with Path("outputs/filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def kill_group(pid: str) -> None:
    """Take away a server, then go on for a moment."""
    os.killpg(int(pid), signal.SIGKILL)
    time.sleep(2)


def fault_at(step: int, rank: int = 0) -> list[str]:
    """Overrides that add the callback."""
    return [
        "security.allowed_targets=[faults]",
        f"trainer.callbacks.fault={{_target_: faults.Fault, at: {step}, rank: {rank}}}",
    ]


def hold_at(step: int, stubborn: bool = False, *seeds: int) -> list[str]:
    """Overrides that add the callback."""
    return [
        "security.allowed_targets=[faults]",
        f"trainer.callbacks.hold={{_target_: faults.Hold, at: {step}, stubborn: {stubborn}, seeds: {list(seeds)}}}",
    ]


class Break(TrainerCallback):
    """At step `at`, break the run as `how` says; `fine` and `invalid` do nothing."""

    def __init__(self, at: int, how: str) -> None:
        self.at, self.how = at, how

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step != self.at:
            return
        if self.how == "memory":
            torch.empty(1 << 50)
        elif self.how == "diverging":
            next(model.parameters()).data.fill_(float("nan"))
        elif self.how.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[self.how])
