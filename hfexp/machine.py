"""What this process may use of the machine."""

import contextlib
import os
import re
from pathlib import Path


def cpus() -> int:
    """Processors for this process: its affinity, cut by the quota of its container (cgroup v2 `cpu.max`).

    `HFEXP_CPUS` lowers it: a launcher of several jobs divides the machine so.
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
    """Whether the CPU has instructions for bf16 (AVX-512 BF16 or AMX on x86, BF16 on Arm), where Linux tells."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return True
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


def visible_devices() -> tuple[str, ...]:
    """Names of the accelerators that this process may use, as `CUDA_VISIBLE_DEVICES` takes them; CUDA is not touched.

    Those of that variable if it is set, which may be indices or identifiers; otherwise all, by identifier, as CUDA
    numbers devices otherwise than the driver does.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return _all_devices() if given is None else _listed_devices(given)


def _listed_devices(given: str) -> tuple[str, ...]:
    """Up to the first that names no device, as CUDA reads it."""
    found = []
    for name in given.split(","):
        if not re.fullmatch(r"\d+|(GPU|MIG)-[\w/-]+", name.strip()):
            break
        found.append(name.strip())
    return tuple(found)


def _all_devices() -> tuple[str, ...]:
    """By the driver's library; where devices are divided (MIG), the parts."""
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
        with contextlib.suppress(pynvml.NVMLError):  # fewer are in use
            parts.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
    return parts
