"""The result of measuring a shortened job."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """Times in seconds and sizes in bytes, extrapolated to whole splits."""

    step: float
    """Median time of an optimizer step."""
    steps_per_epoch: float
    evaluation: float
    """Time of one evaluation during training."""
    checkpoint: float
    """Time to write a checkpoint."""
    start: float
    """Time from the start of the run to the start of training, with imports done and data prepared."""
    end: float
    """Time after training: final evaluations, saving the model, tracking."""
    checkpoint_bytes: int
    other_bytes: int
    """Size of everything else that the run writes, the final model included."""
    memory_bytes: int
    """Peak memory of all processes of the job."""
    device_bytes: int = 0
    """Peak memory on one accelerator."""

    def __str__(self) -> str:
        return f"{self.step:.3g} s a step"
