"""Callbacks: those of `transformers.Trainer`; what they put into `logs` is recorded in MLflow."""

from typing import Any

from transformers import TrainerCallback


class LogGradients(TrainerCallback):
    """Prints how much the gradients of an epoch varied."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "grad_norm" in logs:
            self.norms.append(float(logs["grad_norm"]))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.norms and state.is_world_process_zero:
            print(f"  gradient norms from {min(self.norms):.2f} to {max(self.norms):.2f}")
