"""Slots: the parts of a machine that jobs run in side by side."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from hfexp import machine
from hfexp.errors import ConfigError

KEY = "hydra.launcher"


@dataclass(frozen=True)
class Slot:
    """What one job may use."""

    devices: tuple[str, ...]
    """As `CUDA_VISIBLE_DEVICES` names them."""
    cpus: int

    def environment(self) -> dict[str, str]:
        """Environment variables that keep a job to its slot; threads that the user has limited stay so."""
        threads = self.cpus
        with contextlib.suppress(ValueError):
            threads = max(1, min(threads, int(os.environ.get("OMP_NUM_THREADS", threads))))
        variables = {"HFEXP_CPUS": str(self.cpus), "OMP_NUM_THREADS": str(threads)}
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
    """Divide devices and processors.

    Args:
        devices: accelerators of this machine that may be used.
        n_jobs: slots to make; None: as many as the devices allow, without any one.
        gpus_per_job: a whole number, or the share of a device (0.5: two jobs on each); None: 1 if there are any.
        cpus: processors to divide.
        cpus_per_job: None: an equal share, at least one.

    Raises:
        ConfigError: this machine has no such slots.
    """
    wanted = gpus_per_job if gpus_per_job is not None else float(bool(devices))
    _check(devices, n_jobs, wanted, cpus, cpus_per_job)
    parts = _divide(devices, wanted)
    if parts and n_jobs is not None and n_jobs > len(parts):
        raise ConfigError(
            f"{KEY}.n_jobs={n_jobs} does not fit: {_count(devices)} with {KEY}.gpus_per_job={wanted:g} make "
            f"{len(parts)} slots; lower one of the two"
        )
    number = n_jobs or len(parts) or 1
    share = cpus_per_job or max(1, cpus // number)
    return [Slot(parts[index] if parts else (), share) for index in range(number)]


def _divide(devices: Sequence[str], per_job: float) -> list[tuple[str, ...]]:
    """Devices of each slot; slots that share devices are dealt out over all of them before any gets another."""
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
        raise ConfigError(f"{KEY}.cpus_per_job={cpus_per_job} must be from 1 to {cpus}, the processors here")
    if gpus_per_job < 0 or (gpus_per_job > 1 and gpus_per_job != int(gpus_per_job)):
        raise ConfigError(
            f"{KEY}.gpus_per_job={gpus_per_job:g} must be a whole number, or a share of one device such as 0.5; "
            "0: jobs without a device"
        )
    if gpus_per_job > len(devices):
        raise ConfigError(
            f"{KEY}.gpus_per_job={gpus_per_job:g} is more than there are: {_count(devices)} here "
            "(CUDA_VISIBLE_DEVICES, or all)"
        )


def _count(devices: Sequence[str]) -> str:
    return f"{len(devices)} device{'s' if len(devices) != 1 else ''}"
