"""Hydra's launcher for one machine: each job in a warm process of its own, over slots of devices and processors.

Imported by Hydra with every start of the command line: nothing heavy here.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, configure_log, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from hfexp.launch.jobs import Order
    from hfexp.launch.slots import Slot

log = logging.getLogger(__name__)


@dataclass
class LocalLauncherConf:
    """`hydra.launcher` with `hydra/launcher=local`."""

    _target_: str = "hydra_plugins.hfexp.LocalLauncher"
    n_jobs: int | None = None
    """Jobs at once; null: as many as the devices allow, one on a machine without any."""
    gpus_per_job: float | None = None
    """Devices of each job; 0.5: two jobs share one; 0: none; null: 1 if there are any."""
    cpus_per_job: int | None = None
    """Processors of each job (its threads, and what it takes as the number of processors); null: an equal share."""
    grace_seconds: float = 30.0
    """That a job has to write a checkpoint and end when the launcher is stopped, or gone."""


class LocalLauncher(Launcher):
    """Jobs in processes forked from one that has done the imports; a job's crash stays its own."""

    def __init__(
        self, n_jobs: int | None, gpus_per_job: float | None, cpus_per_job: int | None, grace_seconds: float
    ) -> None:
        self.n_jobs, self.gpus_per_job, self.cpus_per_job = n_jobs, gpus_per_job, cpus_per_job
        self.grace_seconds = grace_seconds
        self.logs: Path | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives, and find the slots.

        Raises:
            ConfigError: this machine has no such slots; nothing was created.
        """
        from hfexp import machine
        from hfexp.errors import ConfigError
        from hfexp.launch.slots import slots

        if not 0 <= self.grace_seconds < float("inf"):
            raise ConfigError(f"hydra.launcher.grace_seconds={self.grace_seconds} must be a number of seconds from 0")
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        devices = machine.visible_devices()
        self.slots = slots(devices, self.n_jobs, self.gpus_per_job, machine.cpus(), self.cpus_per_job)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs; what became of each is returned in order, failures included."""
        from hfexp.launch import forkserver
        from hfexp.launch.board import board_for
        from hfexp.launch.pool import Pool

        forkserver.start()
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        sweep_dir = Path(str(self.config.hydra.sweep.dir))
        sweep_dir.mkdir(parents=True, exist_ok=True)
        log.info(f"Launching {len(job_overrides)} jobs over {len(self.slots)} slots")
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            log.info(f"\t#{number} : {' '.join(filter_overrides(overrides))}")
        orders = self._orders(job_overrides, initial_job_idx, self._log_dir(sweep_dir))
        board = board_for(len(job_overrides), side_by_side=len(self.slots) > 1)
        results = Pool(self.slots, board, self.grace_seconds).run(orders)
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return results

    def _log_dir(self, sweep_dir: Path) -> Path | None:
        """Where the output of jobs goes, one file each; None: one job at a time writes where this process does."""
        if len(self.slots) == 1 and _writes_to_the_same():
            return None
        if self.logs is None:
            self.logs = (sweep_dir / "sweeps" / f"{time.strftime('%Y-%m-%d-%H-%M-%S')}-{os.getpid()}").absolute()
            self.logs.mkdir(parents=True, exist_ok=True)  # a second sweep of this process, in the same second
        return self.logs

    def _orders(
        self, job_overrides: Sequence[Sequence[str]], first: int, logs: Path | None
    ) -> "list[Callable[[Slot], Order]]":
        """Each job, to be completed by the slot that it gets."""
        import cloudpickle
        from hydra.core.singleton import Singleton

        from hfexp.launch.jobs import Order, differing_words
        from hfexp.launch.place import Place

        content: Any = (self.hydra_context, self.config, self.task_function, Singleton.get_state())
        payload, place = cloudpickle.dumps(content), Place.here()

        def order(number: int, overrides: Sequence[str], words: str) -> "Callable[[Slot], Order]":
            path = logs / f"{number}.log" if logs else None
            return lambda slot: Order(
                number, tuple(overrides), place, slot.environment(), payload, self.grace_seconds, words, path
            )

        jobs = zip(job_overrides, differing_words(job_overrides), strict=True)
        return [order(number, *job) for number, job in enumerate(jobs, first)]


def _writes_to_the_same() -> bool:
    """Whether what jobs write to their standard streams comes out where this process prints (not so in a notebook)."""
    try:
        return (sys.stdout.fileno(), sys.stderr.fileno()) == (1, 2)
    except (OSError, ValueError, AttributeError):
        return False
