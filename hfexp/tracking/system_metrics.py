"""Monitor of the load on the devices that this job uses, and on no others."""

import contextlib
import threading
import time
import types
from typing import Any

from hfexp.tracking.tracker import Tracker

MB = 2**20


class SystemMonitor:
    """Context manager that records `system/...` metrics at an interval; their step is the run's age in seconds.

    CPU and memory are those of this process and its children (data loader workers); 100 % is one processor. The
    accelerators are those that this process sees (`CUDA_VISIBLE_DEVICES`). MLflow's own monitor
    (`mlflow/system_metrics`) would record the whole machine, with all its accelerators.
    """

    def __init__(self, tracker: Tracker, interval: float | None, started: float, processes: int = 1) -> None:
        """Set up the monitor; a `with` block starts it.

        Args:
            tracker: the tracker that records the metrics.
            interval: seconds between two samples; None for no metrics.
            started: start of the run, in seconds since 1970; 0: now.
            processes: processes of the run. With more than one, the others use the accelerators that this one sees.
        """
        self._tracker = tracker
        self._interval = interval
        # On the monotonic clock, so that steps don't go back when the system's clock is set.
        self._began = time.monotonic() - (max(0.0, time.time() - started) if started else 0.0)
        self._others = processes > 1
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._processes: dict[int, Any] = {}

    def __enter__(self) -> "SystemMonitor":
        if self._interval is not None:
            self._thread = threading.Thread(target=self._run, args=(self._interval,), name="hfexp-load", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: types.TracebackType | None) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()

    def _run(self, interval: float) -> None:
        self.sample()  # the first sample starts the measurement of CPU time
        last = None
        while not self._stop.wait(interval):
            last = self._age()
            self._tracker.log_metrics(self.sample(), last)
        if self._age() != last:  # a second sample for the same second would be a second value at its step
            self._tracker.log_metrics(self.sample(), self._age())

    def _age(self) -> int:
        """Return the age of the run, in seconds."""
        return round(time.monotonic() - self._began)

    def sample(self) -> dict[str, float]:
        """Return the CPU load since the last sample, and the present use of memory and accelerators."""
        cpu, memory = self._process_tree()
        load = {"system/process_cpu_percentage": cpu, "system/process_memory_megabytes": memory / MB}
        return load | _accelerators(self._others)

    def _process_tree(self) -> tuple[float, float]:
        import psutil

        own = psutil.Process()
        processes = {process.pid: process for process in (own, *own.children(recursive=True))}
        # psutil measures CPU time since the last call on the same object, so the objects are kept.
        self._processes = {pid: self._processes.get(pid, process) for pid, process in processes.items()}
        cpu = memory = 0.0
        for process in self._processes.values():
            with contextlib.suppress(psutil.Error):  # the process has just ended
                cpu += process.cpu_percent()
                memory += process.memory_info().rss
        return cpu, memory


def _accelerators(used_by_others: bool) -> dict[str, float]:
    import torch

    load = {}
    if not (torch.cuda.is_available() and (used_by_others or torch.cuda.is_initialized())):
        return load
    for index in range(torch.cuda.device_count()):
        name = f"system/gpu_{index}"
        with contextlib.suppress(Exception):  # the driver may not support it; the run goes on
            load[f"{name}_memory_usage_megabytes"] = torch.cuda.device_memory_used(index) / MB
            load[f"{name}_utilization_percentage"] = float(torch.cuda.utilization(index))
            load[f"{name}_power_usage_watts"] = torch.cuda.power_draw(index) / 1000
    return load
