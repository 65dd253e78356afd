"""Process pool of the local launcher: its slots, one job per slot at a time, and the display of their progress."""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

from hfexp.core import machine
from hfexp.core.console import build_table, cell, console, note, say
from hfexp.core.errors import ConfigError, Interrupted, RunError, first_line
from hfexp.core.process import how_it_ended, noted, stop_raises
from hfexp.launch import forkserver, job
from hfexp.launch.job import JobSpec, Progress, error_of

# The display of jobs that run side by side: a live table in a terminal, lines elsewhere.


class JobDisplay:
    """Display that reports only failures: jobs that run one at a time print their own output."""

    interval: float | None = None
    """Seconds between two refreshes; None: refresh only on events."""

    def __init__(self, total: int) -> None:
        self.total = total

    def started(self, spec: JobSpec) -> None:
        """Handle the start of a job."""

    def progressed(self, spec: JobSpec, progress: Progress) -> None:
        """Handle a progress report of a job."""

    def ended(self, spec: JobSpec, result: Any, seconds: float) -> None:
        """Handle the end of a job: show it if the job failed."""
        error = error_of(result)
        if error is not None:
            where = f" (log: {os.path.relpath(spec.log)})" if spec.log else ""
            verb = "ended" if isinstance(error, Interrupted) else "failed"
            note(f"job {spec.name} {verb} after {seconds:.1f} s: {first_line(error)}{where}")

    def refresh(self) -> None:
        """Redraw what changes with time."""

    def close(self) -> None:
        """Close the display after the last job."""


class LineDisplay(JobDisplay):
    """Display with a line for each start and each end of a job."""

    def started(self, spec: JobSpec) -> None:
        say(f"job {spec.name} started" + (f": {spec.shown}" if spec.shown else ""))

    def ended(self, spec: JobSpec, result: Any, seconds: float) -> None:
        super().ended(spec, result, seconds)
        if error_of(result) is None:
            value = show_objective(result.return_value)
            say(f"job {spec.name} done in {seconds:.1f} s: {value}  {spec.shown}".rstrip())


class LiveDisplay(LineDisplay):
    """Display with a table of the running jobs at the bottom of the terminal, and lines for ended jobs above it."""

    interval: float = 0.5  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, total: int) -> None:
        from rich.live import Live as RichLive

        super().__init__(total)
        self._rows: dict[str, tuple[JobSpec, float, Progress | None, Progress | None, float]] = {}
        """By name of a job: the job, its start, its first and its last report, and the time of the first report."""
        self._done = 0
        self._shown = 0.0
        self._live = RichLive(auto_refresh=False, transient=True, console=console())
        self._live.start()

    def started(self, spec: JobSpec) -> None:
        self._rows[spec.name] = (spec, time.monotonic(), None, None, 0.0)

    def progressed(self, spec: JobSpec, progress: Progress) -> None:
        _, began, first, _, since = self._rows[spec.name]
        if first is None:
            first, since = progress, time.monotonic()
        self._rows[spec.name] = (spec, began, first, progress, since)

    def ended(self, spec: JobSpec, result: Any, seconds: float) -> None:
        del self._rows[spec.name]
        self._done += 1
        super().ended(spec, result, seconds)

    def refresh(self) -> None:
        if time.monotonic() - self._shown >= self.interval / 2:
            self._shown = time.monotonic()
            self._live.update(self._table(), refresh=True)

    def close(self) -> None:
        self._live.stop()

    def _table(self) -> Any:
        table = build_table(title=f"{self._done} of {self.total} jobs done", title_justify="left")
        for head in ("job", "overrides", "run", "step", "last metric", "time left"):
            widest = 24 if head == "run" else None
            table.add_column(head, no_wrap=head != "overrides", overflow="ellipsis", max_width=widest)
        now = time.monotonic()
        for name, (spec, began, first, last, since) in self._rows.items():
            if first is None or last is None:
                table.add_row(name, cell(spec.shown), "", f"starting, {now - began:.0f} s", "", "")
                continue
            metric = "  ".join(f"{name} {value:.4f}" for name, value in list(last.metrics.items())[-1:])
            done, left = last.step - first.step, last.max_steps - last.step
            to_go = f"{left * (now - since) / done:.0f} s" if done else ""
            step = f"{last.step}/{last.max_steps}"
            table.add_row(name, cell(spec.shown), cell(last.name), step, cell(metric), to_go)
        return table


def display_for(total: int, side_by_side: bool) -> JobDisplay:
    """Return a live table for a terminal, or lines; for jobs that run one at a time, show only failures."""
    if not side_by_side:
        return JobDisplay(total)
    return LiveDisplay(total) if sys.stdout.isatty() else LineDisplay(total)


def show_objective(value: Any) -> str:
    """Format what a job returned in at most 40 characters."""
    return f"{value:.6g}" if isinstance(value, float) else "-" if value is None else str(value)[:40]


# Slots: the division of a machine's devices and CPUs among concurrent jobs.


KEY = "hydra.launcher"


@dataclass(frozen=True)
class Slot:
    """The devices and CPUs that one job may use."""

    devices: tuple[str, ...]
    """Device names as in `CUDA_VISIBLE_DEVICES`."""
    cpus: int

    def environment(self) -> dict[str, str]:
        """Return environment variables that confine a job to its slot; the user's lower OMP_NUM_THREADS is kept."""
        threads = self.cpus
        with contextlib.suppress(ValueError):
            threads = max(1, min(threads, int(os.environ.get("OMP_NUM_THREADS", threads))))
        variables = {machine.CPUS_VARIABLE: str(self.cpus), "OMP_NUM_THREADS": str(threads)}
        if self.devices or machine.visible_devices():
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(self.devices)
        return variables


def slots(
    devices: Sequence[str],
    n_jobs: int | None,
    gpus_per_job: float | None,
    cpus: int,
    cpus_per_job: int | None = None,
) -> list[Slot]:
    """Divide the machine's devices and CPUs into slots.

    Args:
        devices: accelerators of this machine that may be used.
        n_jobs: number of slots; None: as many as the devices allow, or one without devices.
        gpus_per_job: a whole number, or a share of one device (0.5: two jobs on each); None: 1 if there are devices.
        cpus: number of CPUs to divide.
        cpus_per_job: None: an equal share, at least one.

    Raises:
        ConfigError: this machine can't provide these slots.
    """
    per_job = gpus_per_job if gpus_per_job is not None else float(bool(devices))
    _check(devices, n_jobs, per_job, cpus, cpus_per_job)
    parts = _divide(devices, per_job)
    if parts and n_jobs is not None and n_jobs > len(parts):
        raise ConfigError(
            f"{KEY}.n_jobs={n_jobs} does not fit: {_count(devices)} with {KEY}.gpus_per_job={per_job:g} make "
            f"{len(parts)} slots; lower one of the two"
        )
    number = n_jobs or len(parts) or 1
    share = cpus_per_job or max(1, cpus // number)
    return [Slot(parts[index] if parts else (), share) for index in range(number)]


def _divide(devices: Sequence[str], per_job: float) -> list[tuple[str, ...]]:
    """Return the devices of each slot; fractional slots go round-robin over the devices."""
    if per_job == 0:
        return []
    if per_job < 1:
        return [(device,) for _ in range(int(1 / per_job + 1e-9)) for device in devices]
    size = int(per_job)
    return [tuple(devices[start : start + size]) for start in range(0, len(devices) - size + 1, size)]


def _check(
    devices: Sequence[str], n_jobs: int | None, gpus_per_job: float, cpus: int, cpus_per_job: int | None
) -> None:
    if n_jobs is not None and n_jobs < 1:
        raise ConfigError(f"{KEY}.n_jobs={n_jobs} must be at least 1 (null: as many as there are slots)")
    if cpus_per_job is not None and not 1 <= cpus_per_job <= cpus:
        raise ConfigError(f"{KEY}.cpus_per_job={cpus_per_job} must be from 1 to {cpus}, the number of available CPUs")
    if gpus_per_job < 0 or (gpus_per_job > 1 and gpus_per_job != int(gpus_per_job)):
        raise ConfigError(
            f"{KEY}.gpus_per_job={gpus_per_job:g} must be a whole number, or a share of one device such as 0.5 "
            "(0: jobs without a device)"
        )
    if gpus_per_job > len(devices):
        raise ConfigError(
            f"{KEY}.gpus_per_job={gpus_per_job:g} is more than the {_count(devices)} available here "
            "(those in CUDA_VISIBLE_DEVICES, or all)"
        )


def _count(devices: Sequence[str]) -> str:
    return f"{len(devices)} device{'s' if len(devices) != 1 else ''}"


@dataclass
class Running:
    """A job whose process is running or about to start."""

    spec: JobSpec
    slot: Slot
    process: ForkServerProcess
    reader: Connection
    began: float = field(default_factory=time.monotonic)
    result: Any = None

    def receive(self) -> Progress | None:
        """Read the job's next message: return a progress report, or store a result and return None."""
        import cloudpickle

        try:
            message = cloudpickle.loads(self.reader.recv_bytes())
        except (EOFError, OSError):  # the job has closed its end
            self.reader.close()
            return None
        except Exception as error:
            message = job.failure(self.spec.overrides, RunError(f"the job's result can't be read: {error}"))
        if isinstance(message, Progress):
            return message
        self.result = message
        return None

    def kill(self) -> None:
        """Kill the job and everything that it started."""
        if self.process.is_alive():
            self.process.kill()
        self.kill_group()

    def kill_group(self) -> None:
        """Kill the processes that the job started and left running."""
        if self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill what the job left running, wait for its process to end, and release its resources."""
        self.kill_group()
        self.reader.close()
        if self.process.pid is not None:
            self.process.join()
        self.process.close()


class Pool:
    """Runs jobs, each in a slot of its own."""

    def __init__(self, slots: Sequence[Slot], display: JobDisplay, grace: float) -> None:
        self.display = display
        self.grace = grace
        self._free = deque(slots)
        self._running: list[Running] = []
        self._ended: Callable[[JobSpec, Any], None] = lambda spec, result: None

    def run(self, builders: Sequence[Callable[[Slot], JobSpec]]) -> list[Any]:
        """Run all jobs and return Hydra's `JobReturn` of each, in order; a failed job does not stop the others.

        On Ctrl-C, SIGTERM or SIGHUP every job gets SIGTERM and `grace` seconds to exit; then the signal's exception
        is raised.
        """
        waiting, results = deque(builders), {}
        self.serve(
            lambda: waiting.popleft() if waiting else None,
            lambda spec, result: results.update({spec.number: result}),
        )
        return [results[number] for number in sorted(results)]

    def serve(
        self, next_job: Callable[[], Callable[[Slot], JobSpec] | None], ended: Callable[[JobSpec, Any], None]
    ) -> None:
        """Run jobs until there are no more, asking for the next one as soon as a slot is free.

        Args:
            next_job: returns the next job; None if there is none, or none until a running job ends.
            ended: called with each job and Hydra's `JobReturn` of it as soon as the job ends.
        """
        self._ended = ended
        with stop_raises():
            try:
                while True:
                    while self._free and (build := next_job()) is not None:
                        slot = self._free.popleft()
                        self._start(build(slot), slot)
                    if not self._running:
                        break
                    self._wait()
            except BaseException as error:
                # A signal may have interrupted `process.start()`. Its frames then hold the pipe ends of a job that no
                # `Running` can stop; clearing them closes these, and the job exits as an orphan.
                traceback.clear_frames(error.__traceback__)
                self._stop()
                raise
            finally:
                self.display.close()

    def _start(self, spec: JobSpec, slot: Slot) -> None:
        context = forkserver.context()
        reader, writer = context.Pipe(duplex=False)
        with writer:
            process = context.Process(target=job.main, args=(spec, writer), name=f"job {spec.name}")
            # Listed before it starts, so that a signal in between does not lose the job.
            self._running.append(Running(spec, slot, process, reader))
            try:
                with forkserver.hidden_main():
                    process.start()
            except (EOFError, ConnectionError) as error:
                raise RunError(f"{forkserver.SERVER_ENDED} (hydra/launcher=basic runs jobs without it)") from error
        self.display.started(spec)

    def _wait(self) -> None:
        """Wait for messages and ended jobs, up to the display's refresh interval, and handle them."""
        readers = {running.reader: running for running in self._running if not running.reader.closed}
        ends = {running.process.sentinel: running for running in self._running}
        ready = connection.wait([*readers, *ends], self.display.interval)
        for item in ready:
            if isinstance(item, Connection):
                self._receive(readers[item])
        for item in ready:
            if isinstance(item, int):
                self._end(ends[item])
        self.display.refresh()

    def _receive(self, running: Running) -> None:
        progress = running.receive()
        if progress is not None:
            self.display.progressed(running.spec, progress)

    def _end(self, running: Running) -> None:
        running.kill_group()
        while not running.reader.closed and running.reader.poll():
            self._receive(running)
        running.process.join()
        result = running.result
        if result is None and forkserver.has_ended():  # not the job's fault: the next start continues it
            raise RunError(f"{forkserver.SERVER_ENDED}; the same command continues the sweep")
        if result is None:
            result = job.failure(
                running.spec.overrides, RunError(f"the job's process {how_it_ended(running.process.exitcode)}")
            )
        running.close()
        self._running.remove(running)
        self._free.append(running.slot)
        self.display.ended(running.spec, result, time.monotonic() - running.began)
        self._ended(running.spec, result)

    def _stop(self) -> None:
        """Terminate all jobs in start order, and kill them after `grace` seconds or on a further signal."""
        with noted() as signals:
            alive = [running for running in self._running if running.process.is_alive()]
            if alive:
                count = f"{len(alive)} running job{'s' if len(alive) > 1 else ''}"
                note(f"stopping {count} (up to {self.grace:g} s; press Ctrl-C again to kill at once)")
            for running in alive:
                running.process.terminate()
            deadline = time.monotonic() + self.grace
            while alive := [running for running in alive if running.process.is_alive()]:
                # A closing terminal sends several SIGHUPs, and none is urgent: only other signals end the wait.
                if set(signals) - {signal.SIGHUP} or time.monotonic() > deadline:
                    for running in alive:
                        running.kill()
                readers = [running.reader for running in alive if not running.reader.closed]
                for item in connection.wait([*readers, *(running.process.sentinel for running in alive)], 0.1):
                    self._discard(item)
            for running in self._running:
                running.close()
            self._running.clear()

    def _discard(self, item: Any) -> None:
        """Drain what a job still sends, as it would block on a full pipe."""
        if isinstance(item, Connection) and not os.read(item.fileno(), 1 << 16):
            item.close()
