"""Callbacks that break a run at a chosen step; a file in the current directory arms them."""

import os
import signal
from pathlib import Path
from typing import Any

from transformers import TrainerCallback


class Fault(TrainerCallback):
    """At step `at`, if the file `fault` is there: do what it says (`raise`, or the name of a signal)."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != self.at or not Path("fault").exists():
            return
        what = Path("fault").read_text()
        Path("fault").unlink()
        if what == "raise":
            raise RuntimeError("the disk caught fire")
        os.kill(os.getpid(), signal.Signals[what])


def fault_at(step: int) -> list[str]:
    """Overrides that add the callback."""
    return [
        "security.allowed_targets=[faults]",
        f"trainer.callbacks.fault={{_target_: faults.Fault, at: {step}}}",
    ]
