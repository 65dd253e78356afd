"""The machine: its processors and accelerators that this process may use, and the packages installed on it."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import re
from pathlib import Path


def cpus() -> int:
    """Return the number of processors for this process: its affinity, limited by its container (cgroup v2 `cpu.max`).

    `HFEXP_CPUS` lowers the number further; by it, the launcher divides the machine among its jobs.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, round(int(quota) / int(period))))
    with contextlib.suppress(KeyError, ValueError):
        count = max(1, min(count, int(os.environ["HFEXP_CPUS"])))
    return count


def computes_in_bf16() -> bool:
    """Tell whether the CPU has bf16 instructions (AVX-512 BF16 or AMX on x86, BF16 on Arm); True if not on Linux."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return True
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


def visible_devices() -> tuple[str, ...]:
    """Return the accelerators of this process as `CUDA_VISIBLE_DEVICES` names them, without initialising CUDA.

    If that variable is set, its entries are returned, which may be indices or identifiers. Otherwise all devices are
    returned by identifier, because CUDA and the driver number devices differently.
    """
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return _all_devices() if value is None else _listed_devices(value)


def _listed_devices(value: str) -> tuple[str, ...]:
    """Return the entries up to the first that names no device, which is how CUDA reads the variable."""
    devices = []
    for name in value.split(","):
        if not re.fullmatch(r"\d+|(GPU|MIG)-[\w/-]+", name.strip()):
            break
        devices.append(name.strip())
    return tuple(devices)


def _all_devices() -> tuple[str, ...]:
    """Return the identifiers that the driver's library (NVML) knows; of a divided device (MIG), those of its parts."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver
        return ()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return tuple(str(pynvml.nvmlDeviceGetUUID(part)) for handle in handles for part in _parts(handle))
    finally:
        pynvml.nvmlShutdown()


def _parts(handle: object) -> list[object]:
    import pynvml

    try:
        if pynvml.nvmlDeviceGetMigMode(handle)[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
            return [handle]
    except pynvml.NVMLError:  # a device that can't be divided
        return [handle]
    parts = []
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with contextlib.suppress(pynvml.NVMLError):  # there are fewer parts than the maximum
            parts.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
    return parts


def cpu_name() -> str:
    """Return the processor's model name, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


@functools.cache
def installed_packages() -> dict[str, str]:
    """Map the names of the installed packages, sorted without regard to case, to their versions."""
    metadata = (distribution.metadata for distribution in importlib.metadata.distributions())
    versions = {entry["Name"]: entry["Version"] for entry in metadata if entry["Name"]}
    return dict(sorted(versions.items(), key=lambda item: item[0].lower()))
