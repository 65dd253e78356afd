"""What was measured of a job."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """A short piece of a job, in seconds and bytes."""

    step: float
    """Of a training step (of the optimiser), the median."""
    steps_per_epoch: float
    evaluation: float
    """Of one evaluation while training."""
    checkpoint: float
    """To write one."""
    start: float
    """From the beginning of the job to its first step, with imports done and data prepared."""
    end: float
    """After the training: final evaluations, the model, its record."""
    checkpoint_bytes: int
    other_bytes: int
    """Of all else that a run leaves on the disk, its model included."""
    memory_bytes: int
    """At the highest, of all processes of the job."""
    device_bytes: int = 0
    """At the highest, on one accelerator."""

    def __str__(self) -> str:
        return f"{self.step:.3g} s a step"
