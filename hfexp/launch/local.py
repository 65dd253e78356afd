"""Hydra launcher for one machine: it forks each job into its own warm process and assigns it a slot.

Hydra imports this module at every start of the command line, so nothing heavy is imported at the top.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hydra.core.utils import JobReturn, configure_log, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hfexp.core import machine
from hfexp.core.console import note
from hfexp.core.errors import first_line
from hfexp.launch.job import failure

if TYPE_CHECKING:
    from hfexp.launch.job import JobSpec
    from hfexp.launch.pool import Pool, Slot

    Complete = Callable[[int, str, Sequence[str], str, Path | None], Callable[[Slot], JobSpec]]

log = logging.getLogger(__name__)


@dataclass
class LocalLauncherConf:
    """Schema of `hydra.launcher` with `hydra/launcher=local`."""

    _target_: str = "hydra_plugins.hfexp.LocalLauncher"
    n_jobs: int | None = None
    """Maximum number of concurrent jobs; null: as many as the devices allow, or one on a machine without devices."""
    gpus_per_job: float | None = None
    """Devices per job; 0.5: two jobs share a device; 0: no device; null: 1 if the machine has devices."""
    cpus_per_job: int | None = None
    """CPUs per job (its number of threads, and the CPU count that it sees); null: an equal share."""
    grace_seconds: float = 30.0
    """Seconds that a job has to write a checkpoint and exit when the launcher is stopped or has died."""


@dataclass(frozen=True)
class SweepJob:
    """The next job of a sweep, as a `Source` hands it out."""

    number: int
    name: str
    """Identifies the job within the sweep; it also names the job's log file."""
    overrides: tuple[str, ...]
    shown: str
    """The overrides as shown to the user."""


class Source(Protocol):
    """A supplier of jobs that also receives their results (the sweep's schedule)."""

    total: int

    def next(self) -> SweepJob | None:
        """Return the next job; None if there is none, or none until a running job ends."""

    def ended(self, name: str, result: JobReturn) -> None:
        """Take the result of the job `name`."""


class LocalLauncher(Launcher):
    """Runs jobs in processes forked from a server that has done the imports; a crash ends only its own job."""

    def __init__(
        self, n_jobs: int | None, gpus_per_job: float | None, cpus_per_job: int | None, grace_seconds: float
    ) -> None:
        self.n_jobs, self.gpus_per_job, self.cpus_per_job = n_jobs, gpus_per_job, cpus_per_job
        self.grace_seconds = grace_seconds
        self.logs: Path | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store what Hydra passes in, and divide the machine into slots.

        Raises:
            ConfigError: this machine can't provide the requested slots; nothing has been created.
        """
        from hfexp.core import machine
        from hfexp.core.errors import ConfigError
        from hfexp.launch.pool import slots

        if not 0 <= self.grace_seconds < float("inf"):
            raise ConfigError(
                f"hydra.launcher.grace_seconds={self.grace_seconds} must be a finite number of at least 0"
            )
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        devices = machine.visible_devices()
        self.slots = slots(devices, self.n_jobs, self.gpus_per_job, machine.cpus(), self.cpus_per_job)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs and return their results in order, failures included."""
        from hfexp.launch.job import differing_overrides

        sweep_dir = self._begin()
        log.info(f"Launching {len(job_overrides)} jobs over {len(self.slots)} slots")
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            log.info(f"\t#{number} : {' '.join(filter_overrides(overrides))}")
        complete, logs = self._completer(), self._log_dir(sweep_dir)
        jobs = enumerate(zip(job_overrides, differing_overrides(job_overrides), strict=True), initial_job_idx)
        builders = [complete(number, str(number), overrides, shown, logs) for number, (overrides, shown) in jobs]
        results = self._pool(len(builders)).run(builders)
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return results

    def serve(self, source: "Source", logs: Path) -> None:
        """Run jobs until the source has no more, asking for the next one as soon as a slot is free.

        Args:
            source: supplies the jobs, and gets each result as soon as the job ends.
            logs: directory for the output of the jobs, used if they can't write where this process does.
        """
        self._begin()
        complete = self._completer()
        log_dir = logs if self._needs_logs() else None
        if log_dir:
            log_dir.mkdir(parents=True, exist_ok=True)

        def next_job() -> "Callable[[Slot], JobSpec] | None":
            job = source.next()
            return complete(job.number, job.name, job.overrides, job.shown, log_dir) if job else None

        self._pool(source.total).serve(next_job, lambda spec, result: source.ended(spec.name, result))
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)

    def _begin(self) -> Path:
        """Get ready to start jobs, start Hydra's logging, create the sweep's directory and return it."""
        self.prepare()
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        sweep_dir = Path(str(self.config.hydra.sweep.dir))
        sweep_dir.mkdir(parents=True, exist_ok=True)
        return sweep_dir

    def prepare(self) -> None:
        """Start the fork server, whose imports take seconds; a sweeper calls this before its own slow imports."""
        from hfexp.launch import forkserver

        forkserver.start()

    def _pool(self, total: int) -> "Pool":
        from hfexp.launch.pool import Pool, display_for

        return Pool(self.slots, display_for(total, side_by_side=len(self.slots) > 1), self.grace_seconds)

    def _needs_logs(self) -> bool:
        """Tell whether jobs need log files: they do unless they run one at a time and can write where we do."""
        return len(self.slots) > 1 or not _shares_output()

    def _log_dir(self, sweep_dir: Path) -> Path | None:
        """Return the directory for one log file per job; None if the jobs write where this process does."""
        if not self._needs_logs():
            return None
        if self.logs is None:
            self.logs = (sweep_dir / "sweeps" / f"{time.strftime('%Y-%m-%d-%H-%M-%S')}-{os.getpid()}").absolute()
            self.logs.mkdir(parents=True, exist_ok=True)  # exists if this process starts two sweeps in a second
        return self.logs

    def _completer(self) -> "Complete":
        """Return a function that prepares a job, and whose result builds the `JobSpec` once a slot is free."""
        import cloudpickle
        from hydra.core.singleton import Singleton

        from hfexp.launch.job import JobSpec, ProcessEnv

        content: Any = (self.hydra_context, self.config, self.task_function, Singleton.get_state())
        payload, env, grace = cloudpickle.dumps(content), ProcessEnv.capture(), self.grace_seconds

        def complete(
            number: int, name: str, overrides: Sequence[str], shown: str, logs: Path | None
        ) -> "Callable[[Slot], JobSpec]":
            path = logs / f"{name}.log" if logs else None
            common = number, tuple(overrides), env
            return lambda slot: JobSpec(*common, slot.environment(), payload, grace, shown, path, name)

        return complete


def _shares_output() -> bool:
    """Tell whether the standard streams of jobs appear where this process prints (in a notebook they don't)."""
    try:
        return (sys.stdout.fileno(), sys.stderr.fileno()) == (1, 2)
    except (OSError, ValueError, AttributeError):
        return False


# Jobs of a sweep that come one by one, for launchers that take jobs only in batches.


def run_in_batches(launcher: Any, config: Any, source: Source, size: int | None, together: bool) -> None:
    """Run jobs until the source has no more; ask for a batch when the one before has ended.

    Args:
        launcher: a launcher of Hydra.
        config: the config, with the section `hydra`.
        source: where the jobs come from.
        size: jobs per batch; None: what suits the launcher.
        together: no job needs the results of others, so one batch may hold all jobs.
    """
    size = size or _size(config, together)
    for batch in _batches(source, size):
        batch_overrides = [list(job.overrides) for job in batch]
        try:
            results = list(launcher.launch(batch_overrides, initial_job_idx=batch[0].number))
        except Exception as error:  # some launchers raise one job's error and report on no other job
            if len(batch) > 1:
                note(f"the launcher failed a whole batch of {len(batch)} jobs: {first_line(error)}")
            results = [failure(overrides, error) for overrides in batch_overrides]
        for job, result in zip(batch, results, strict=True):
            source.ended(job.name, result)


def _batches(source: Source, size: int | None) -> Iterator[list[SweepJob]]:
    """Yield batches of jobs with consecutive numbers: a launcher is told only the number of the first job."""
    batch: list[SweepJob] = []
    while True:
        while (job := source.next() if size is None or len(batch) < size else None) is not None:
            if batch and job.number != batch[-1].number + 1:
                yield batch
                batch = []
            batch.append(job)
        if not batch:
            return
        yield batch
        batch = []


def _size(config: Any, together: bool) -> int | None:
    """Return the jobs per batch: one for the basic launcher, as many as workers for joblib; None for no limit."""
    section = config.hydra.launcher
    if str(section.get("_target_", "")).endswith("BasicLauncher"):
        return 1
    n_jobs = section.get("n_jobs")
    if n_jobs is not None:
        return int(n_jobs) if int(n_jobs) > 0 else machine.cpus()
    return None if together else 1
