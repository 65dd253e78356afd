"""Where the time of a training goes: waiting for data, computing, evaluating and saving; and its memory."""

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_pt_utils import find_batch_size

if TYPE_CHECKING:
    import transformers

    _Base = transformers.Trainer
else:
    _Base = object


class Timed(_Base):
    """Mixin for a Transformers `Trainer`: adds rates to what it logs, and totals to what it logs last.

    With each training loss: `samples_per_second` and, for text, `tokens_per_second` (padding included), both of all
    processes together and without the time of evaluations; `data_time_share`, the share of that time in which the
    model waited for data. At the end `train_data_seconds`, `train_compute_seconds`, `train_evaluate_and_save_seconds`,
    `peak_memory_mb` of the process and, per accelerator, `peak_gpu_<i>_memory_mb` of torch's allocator.
    """

    _data_seconds = 0.0
    _aside_seconds = 0.0
    """Logging, evaluating and saving."""
    _is_aside = False
    _samples = 0
    _tokens = 0
    _began: float | None = None
    _mark: tuple[float, float, float, int, int] | None = None
    """Time, data seconds, seconds aside, samples, tokens when the last loss was logged."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        if self._mark is None:
            self._began = start
            self._mark = (start, 0.0, 0.0, 0, 0)
        batches, count = super().get_batch_samples(*args, **kwargs)
        self._data_seconds += time.perf_counter() - start
        for batch in batches:
            self._samples += find_batch_size(batch) or 0
            tokens = batch.get("input_ids") if hasattr(batch, "get") else None
            self._tokens += tokens.numel() if torch.is_tensor(tokens) else 0
        return batches, count

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What is done in the block is no training: its time counts as that of logging, evaluating and saving."""
        if self._is_aside:
            yield
            return
        start, self._is_aside = time.perf_counter(), True
        try:
            yield
        finally:
            self._aside_seconds += time.perf_counter() - start
            self._is_aside = False

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> Any:
        with self.aside():
            return super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._mark is not None:
            logs |= self._rates()
        elif "train_runtime" in logs and self._began is not None:
            logs |= self._totals(self._began)
        super().log(logs, start_time)

    def _rates(self) -> dict[str, float]:
        """Since the loss before this one."""
        now = (time.perf_counter(), self._data_seconds, self._aside_seconds, self._samples, self._tokens)
        assert self._mark is not None
        wall, data, aside, samples, tokens = (b - a for a, b in zip(self._mark, now, strict=True))
        self._mark = now
        busy = max(wall - aside, 1e-9)
        processes = self.args.world_size  # each gets as much as this one
        rates = {"samples_per_second": processes * samples / busy, "data_time_share": min(data / busy, 1.0)}
        return rates | ({"tokens_per_second": processes * tokens / busy} if tokens else {})

    def _totals(self, began: float) -> dict[str, float]:
        total = time.perf_counter() - began
        return {
            "train_data_seconds": self._data_seconds,
            "train_compute_seconds": total - self._data_seconds - self._aside_seconds,
            "train_evaluate_and_save_seconds": self._aside_seconds,
            **peak_memory(),
        }


def peak_memory() -> dict[str, float]:
    """Most memory that this process had at once, in MB (2^20 bytes)."""
    # getrusage(2): kilobytes, but bytes on macOS.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = {"peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            peak[f"peak_gpu_{index}_memory_mb"] = torch.cuda.max_memory_allocated(index) / 2**20
    return peak
