"""Callbacks and mixins of the Trainer: divergence, early stopping, profiling, and stopping on a signal."""

import contextlib
import math
import shutil
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch.profiler import ProfilerActivity, profile, schedule
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfexp.core.errors import RunError, Terminated
from hfexp.core.files import replace_file
from hfexp.core.process import count_once, handled
from hfexp.data.sampling import EpochSampler


class SetEpochCallback(TrainerCallback):
    """Callback that tells the sampler its epoch, which determines the order of the samples.

    The Trainer does so through the data loader, which does not reach the sampler when several processes resume in
    mid-epoch (`accelerate` 1.15, `skip_first_batches` around a `BatchSamplerShard`): they would take the samples of
    another epoch.
    """

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.sampler.set_epoch(int(state.epoch or 0))


class StopOnSignal(TrainerCallback):
    """Callback for SIGTERM, SIGUSR1 and SIGHUP: finish the step, write a checkpoint, and end the run.

    Its exit code is 143, or 129 for SIGHUP. Outside of training the run ends at once, as on a second SIGTERM. At the
    end of an epoch the checkpoint waits for that epoch's evaluation, which a resumed run would not repeat.
    """

    def __init__(self) -> None:
        self.requested = False
        self._signals: list[int] = []
        """Signals received, in their order."""
        self._training = False
        self._handled = contextlib.ExitStack()

    def __enter__(self) -> "StopOnSignal":
        self._handled.enter_context(handled(self._request))
        return self

    def __exit__(self, *exception: object) -> None:
        self._handled.close()

    @property
    def ending(self) -> Terminated:
        """Return the exception that ends the run; its exit code is that of the first signal."""
        return Terminated(self._signals[0]) if self._signals else Terminated()

    @property
    def due(self) -> bool:
        """Return True if the step that ends now is the last one."""
        return self.requested

    def _request(self, number: int, frame: FrameType | None) -> None:
        count_once(number)
        if number in self._signals or not self._training:
            raise Terminated(number)
        self._signals.append(number)
        self.requested = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training = False
        if self.requested:
            raise self.ending

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        last_of_epoch = control.should_training_stop or float(state.epoch or 0).is_integer()
        if self.due and not last_of_epoch:
            control.should_save = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.due:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.due:
            raise self.ending


if TYPE_CHECKING:
    TrainerMixin = transformers.Trainer
else:
    TrainerMixin = object
    """Base of our mixins for the Trainer; for a type checker, it has the Trainer's attributes."""


class Diverged(RunError):
    """Raised when the loss is no longer finite, so that no output of the model is a result."""


class StopWhenDiverged(TrainerMixin):
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
        state = torch.stack([self._not_finite_since, self._last_loss.isnan().long()])
        if self.args.world_size > 1:
            # Every process takes the maximum over all processes, so that all of them raise.
            state = self.accelerator.gather(state[None]).amax(0)  # pyright: ignore
        since, is_nan = state.tolist()
        if since:
            raise self.diverged(f"the loss has been {'NaN' if is_nan else 'infinite'} since step {since}")

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

    def diverged(self, reason: str) -> Diverged:
        """Build the error: `reason` says which loss is not finite; the best metric measured before it is added."""
        best, step = self.state.best_metric, self.state.best_global_step
        known = best is not None and math.isfinite(best)
        before = f"; the best value was {self.args.metric_for_best_model} {best:.4g} at step {step}" if known else ""
        return Diverged(
            f"training diverged: {reason}{before}. Lower trainer.args.learning_rate, raise "
            "trainer.args.warmup_steps, or look for wrong values in the data with debug=overfit"
        )


# A callback that profiles training steps with torch's profiler and writes the trace beside the run's artifacts.


class ProfileCallback(TrainerCallback):
    """Profiles `active` steps after `wait` + `warmup` others.

    It writes `profile/trace.json` (for https://ui.perfetto.dev) and `profile/operators.txt`, the operators by time.
    """

    def __init__(self, wait: int = 2, warmup: int = 2, active: int = 4) -> None:
        self.schedule = schedule(wait=wait, warmup=warmup, active=active, repeat=1)
        self.profiler: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
        directory = Path(str(args.output_dir)).parent / "artifacts" / "profile"
        directory.mkdir(parents=True, exist_ok=True)

        def write(profiler: Any) -> None:
            profiler.export_chrome_trace(str(directory / "trace.json"))
            table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=40)
            (directory / "operators.txt").write_text(table)

        self.profiler = profile(activities=activities, schedule=self.schedule, on_trace_ready=write)
        self.profiler.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.profiler.step()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.profiler.stop()


# Stopping all processes of a run at the same step; a process that goes on alone would hang in the next collective.


STOP_DIR = ".stop"
REQUEST_FILE = "asked"
STEP_FILE = "step"


def forget(run_dir: Path) -> None:
    """Remove the stop files that an earlier start of the run left."""
    shutil.rmtree(run_dir / STOP_DIR, ignore_errors=True)


class StopFiles:
    """Files in the run directory by which the processes of one machine agree on their last step."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / STOP_DIR

    def ask(self) -> None:
        """Ask for the end of the run."""
        with contextlib.suppress(OSError):
            self._folder.mkdir(exist_ok=True)
            (self._folder / REQUEST_FILE).touch()

    def last_step(self, step: int, is_first: bool) -> int | None:
        """Return the last step, which rank 0 chooses at the end of `step` if someone has asked; None: not chosen."""
        if not self._folder.is_dir():
            return None
        agreed = self._folder / STEP_FILE
        if is_first and not agreed.exists():
            replace_file(agreed, str(step + 1))
        return int(agreed.read_text()) if agreed.exists() else None


class StopKeys:
    """Keys in the store of the process group by which processes of several machines agree on their last step.

    Files would not do: on a network file system a file can stay unseen for a minute after another machine has made it.
    Every call returns only after the store has answered.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    def ask(self) -> None:
        """Ask for the end of the run; do nothing if the store is gone, as the run then ends anyway."""
        with contextlib.suppress(RuntimeError):
            self._store.add("hfexp/stop/asked", 1)

    def last_step(self, step: int, is_first: bool) -> int | None:
        """Return the last step, which rank 0 chooses at the end of `step` if someone has asked; None: not chosen."""
        if not is_first:
            return self._store.add("hfexp/stop/step", 0) or None
        return self._store.add("hfexp/stop/step", step + 1) if self._store.check(["hfexp/stop/asked"]) else None


class StopTogether(StopOnSignal):
    """`StopOnSignal` for a run of several processes, any of which may get the signal.

    The process that gets the signal asks for the end. Rank 0, at the end of step s, sees that and says that s+1 is the
    last step. No process can have ended step s+1 by then, because that needs the gradients of rank 0; so every
    process sees the agreed step in time. Looking costs microseconds per step, or over a network a round trip; a
    collective would cost more and would stall an accelerator.
    """

    def __init__(self, agreement: StopFiles | StopKeys, is_first: bool) -> None:
        super().__init__()
        self._agreement = agreement
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
            raise Terminated(number)
        self._signals.append(number)
        self.requested = True
        self._agreement.ask()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._step = state.global_step
        if self._last_step is None:
            self._last_step = self._agreement.last_step(self._step, self._is_first)
            self.requested = self.requested or self._last_step is not None
        super().on_step_end(args, state, control, **kwargs)


def early_stopping(patience: int | None, threshold: float) -> list[TrainerCallback]:
    """Return the callback for `trainer.early_stopping_patience`, if that is set."""
    return [] if patience is None else [transformers.EarlyStoppingCallback(patience, threshold)]
