"""Divergence check for the Trainer: training fails once its loss is not finite, and the error names the step."""

import math
from typing import TYPE_CHECKING, Any

import torch

from hfexp.core.errors import RunError

if TYPE_CHECKING:
    import transformers

    _Base = transformers.Trainer
else:
    _Base = object


class Diverged(RunError):
    """Raised when the loss is no longer finite, so that no output of the model is a result."""


class StopWhenDiverged(_Base):
    """Mixin for a Transformers `Trainer` that checks the loss before it logs, evaluates or saves.

    A single loss that is not finite may come from a step that the gradient scaler (fp16) then skips, so training has
    diverged only if the last step's loss is not finite. The check's state stays on the device: no step waits for it.
    """

    _last_loss: torch.Tensor | None = None
    _not_finite_since: torch.Tensor | None = None
    """Step since which no step has had a finite loss; 0 if the last step had one."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._follow(loss)
        return loss

    def _follow(self, loss: torch.Tensor) -> None:
        """Note since which step the loss is not finite; a step counts if any one of its accumulated batches does."""
        step, is_finite = self.state.global_step + 1, torch.isfinite(loss)
        since = torch.zeros_like(loss, dtype=torch.int64) if self._not_finite_since is None else self._not_finite_since
        since = torch.where(is_finite | (since > 0), since, step)
        self._not_finite_since = torch.where(is_finite & (since < step), 0, since)
        self._last_loss = loss

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> Any:
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self.require_finite_loss()
        return super()._maybe_log_save_evaluate(*args, **kwargs)

    def require_finite_loss(self) -> None:
        """Raise Diverged if the loss of the last training step was not finite in any one of the processes."""
        if self._not_finite_since is None or self._last_loss is None:
            return
        found = torch.stack([self._not_finite_since, self._last_loss.isnan().long()])
        if self.args.world_size > 1:
            # Every process takes the maximum over all processes, so that all of them raise.
            found = self.accelerator.gather(found[None]).amax(0)  # pyright: ignore
        since, is_nan = found.tolist()
        if since:
            raise self.diverged(f"the loss is {'NaN' if is_nan else 'infinite'} since step {since}")

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Run the Trainer's evaluation loop.

        Raises:
            Diverged: the loss of the evaluation is not finite.
        """
        output = super().evaluation_loop(*args, **kwargs)
        name = f"{kwargs.get('metric_key_prefix', 'eval')}_loss"
        loss = (output.metrics or {}).get(name, 0.0)
        if not math.isfinite(loss):
            raise self.diverged(f"{name} is {loss} after step {self.state.global_step}")
        return output

    def diverged(self, what: str) -> Diverged:
        """Build the error: `what` says which loss is not finite; the best metric measured before it is added."""
        best, step = self.state.best_metric, self.state.best_global_step
        known = best is not None and math.isfinite(best)
        before = f"; the best before was {self.args.metric_for_best_model} {best:.4g} at step {step}" if known else ""
        return Diverged(
            f"training diverged: {what}{before}. Lower trainer.args.learning_rate, raise "
            "trainer.args.warmup_steps, or look for wrong values in the data with debug=overfit"
        )
