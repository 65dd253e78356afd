"""Time and memory of a training: seconds of waiting for data, of computing, and of evaluating and saving."""

import contextlib
import json
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_pt_utils import find_batch_size

from hfexp.core.outside import read_record
from hfexp.training.callbacks import TrainerMixin

FILE = "timing.json"
"""File of a checkpoint that holds the `Sums`."""


@dataclass
class Sums:
    """Sums over a training up to a checkpoint, all its starts included: seconds, rows, and losses of steps."""

    seconds: float = 0.0
    data_seconds: float = 0.0
    aside_seconds: float = 0.0
    samples: int = 0
    loss: float = 0.0


class TimingMixin(TrainerMixin):
    """Mixin for a Transformers `Trainer` that adds rates to its training logs, and totals to its last log.

    Each training loss comes with `samples_per_second` and, for text, `tokens_per_second` (padding included), both of
    all processes together and without the time of evaluations; and with `data_time_share`, the share of that time in
    which the model waited for data. The last log has `train_data_seconds`, `train_compute_seconds`,
    `train_evaluate_and_save_seconds`, `peak_memory_mb` of the process and, per accelerator, `peak_gpu_<i>_memory_mb`
    of torch's allocator.

    A resumed training continues the sums in its checkpoint: its last log covers all the steps that count.
    """

    _sums_before: "Sums | None" = None
    """Sums in the checkpoint that this start resumed from; None in a new training."""
    _data_seconds = 0.0
    _aside_seconds = 0.0
    """Seconds spent on logging, evaluating and saving."""
    _aside_since: float | None = None
    _samples = 0
    _tokens = 0
    _started_at: float | None = None
    _last_logged: tuple[float, float, float, int, int] | None = None
    """Time, data seconds, seconds aside, samples and tokens when the last loss was logged."""

    @property
    def seconds_before(self) -> float:
        """Return the seconds of training up to the checkpoint that this start resumed from."""
        return self._sums_before.seconds if self._sums_before else 0.0

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        if self._last_logged is None:
            self._started_at = start
            self._last_logged = (start, 0.0, 0.0, 0, 0)
        batches, count = super().get_batch_samples(*args, **kwargs)
        self._data_seconds += time.perf_counter() - start
        for batch in batches:
            self._samples += find_batch_size(batch) or 0
            tokens = batch.get("input_ids") if hasattr(batch, "get") else None
            self._tokens += tokens.numel() if torch.is_tensor(tokens) else 0
        return batches, count

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Count the time of the block as logging, evaluating and saving, not as training."""
        if self._aside_since is not None:
            yield
            return
        self._aside_since = time.perf_counter()
        try:
            yield
        finally:
            self._aside_seconds += time.perf_counter() - self._aside_since
            self._aside_since = None

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> Any:
        with self.aside():
            return super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._last_logged is not None:
            logs |= self._rates()
        elif "train_runtime" in logs:
            logs |= self._totals(logs)
        super().log(logs, start_time)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            with contextlib.suppress(FileNotFoundError):  # from a version without sums: only this start is known
                self._sums_before = read_record(Path(checkpoint, FILE), Sums)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.args.should_save:
            loss = self._total_loss_scalar + self._tr_loss.item()  # the latter: since the last logged loss
            Path(output_dir, FILE).write_text(json.dumps(asdict(self._sums(loss))))

    def _sums(self, loss: float) -> "Sums":
        """Add the sums of this start to those of the starts before it; `loss` is the sum over this start's steps."""
        before, now = self._sums_before or Sums(), time.perf_counter()
        elapsed = now - self._started_at if self._started_at is not None else 0.0
        aside = self._aside_seconds + (now - self._aside_since if self._aside_since is not None else 0.0)
        return Sums(
            before.seconds + elapsed,
            before.data_seconds + self._data_seconds,
            before.aside_seconds + aside,
            before.samples + self._samples * self.args.world_size,
            before.loss + loss,
        )

    def _rates(self) -> dict[str, float]:
        """Return the rates since the last logged loss."""
        now = (time.perf_counter(), self._data_seconds, self._aside_seconds, self._samples, self._tokens)
        assert self._last_logged is not None
        wall, data, aside, samples, tokens = (b - a for a, b in zip(self._last_logged, now, strict=True))
        self._last_logged = now
        busy = max(wall - aside, 1e-9)
        processes = self.args.world_size  # every process gets as many rows as this one
        rates = {"samples_per_second": processes * samples / busy, "data_time_share": min(data / busy, 1.0)}
        return rates | ({"tokens_per_second": processes * tokens / busy} if tokens else {})

    def _totals(self, logs: dict[str, float]) -> dict[str, float]:
        """Return the totals for the last log: of the whole training, earlier starts included.

        Transformers takes `train_runtime` from the time of day, which may be set during training, unlike this clock.
        """
        sums = self._sums(self._total_loss_scalar)
        parts = {"train_data_seconds": sums.data_seconds, "train_evaluate_and_save_seconds": sums.aside_seconds}
        parts["train_compute_seconds"] = sums.seconds - sums.data_seconds - sums.aside_seconds
        runtime, unknown = max(sums.seconds, 1e-9), 0 if self._sums_before else self._initial_global_step
        steps = self.state.global_step - unknown
        whole = {
            "train_runtime": runtime,
            "train_samples_per_second": sums.samples / runtime,
            "train_steps_per_second": steps / runtime,
            "train_loss": sums.loss / max(steps, 1),
        }
        return {**whole, **parts, **peak_memory()}


def peak_memory() -> dict[str, float]:
    """Return the peak memory of this process and of its CUDA devices, in MB (2^20 bytes)."""
    # getrusage(2) counts kilobytes, but bytes on macOS.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = {"peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            peak[f"peak_gpu_{index}_memory_mb"] = torch.cuda.max_memory_allocated(index) / 2**20
    return peak
