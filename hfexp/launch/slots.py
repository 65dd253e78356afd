"""Slots: the division of a machine's devices and CPUs among concurrent jobs."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from hfexp.core import machine
from hfexp.core.errors import ConfigError

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
