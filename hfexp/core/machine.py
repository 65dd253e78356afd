"""This machine: its processors, accelerators and packages, and how this process uses its memory and threads."""

import contextlib
import functools
import gc
import importlib.metadata
import os
import platform
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux mounts the control groups, by which containers and queues limit processes."""
OWN_CGROUPS = Path("/proc/self/cgroup")
"""Lists the control groups of this process: `number:controllers:path`, with number 0 for version 2 (cgroups(7))."""


CPUS_VARIABLE = "HFEXP_CPUS"


def cpus() -> int:
    """Return the number of processors for this process: its affinity, limited by the quota of its control groups.

    `HFEXP_CPUS` lowers the number further; by it, the launcher divides the machine among its jobs.
    """
    count = affinity()
    for quota in _quotas():
        count = min(count, max(1, round(quota)))
    with contextlib.suppress(KeyError, ValueError):
        count = max(1, min(count, int(os.environ[CPUS_VARIABLE])))
    return count


def _quotas() -> Iterator[float]:
    """Yield the processors' worth of time that each control group of this process has, where it is limited."""
    with contextlib.suppress(OSError):
        for line in OWN_CGROUPS.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                mounts, files = (CGROUPS, CGROUPS / "unified"), ("cpu.max",)
            elif "cpu" in controllers.split(","):
                mounts, files = (CGROUPS / controllers, CGROUPS / "cpu"), ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            else:
                continue
            own = Path(path.lstrip("/"))
            # A container may see its own group as the top one, under whatever path the host knows it.
            for place in (mount / group for mount in mounts for group in (own, *own.parents)):
                with contextlib.suppress(OSError, ValueError):  # the text `max` and the number -1 mean no limit
                    quota, period = map(int, " ".join((place / file).read_text() for file in files).split())
                    if quota > 0 and period > 0:
                        yield quota / period


def affinity() -> int:
    """Return the number of processors that this process may run on; all of them where the system has no affinity."""
    get_affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(get_affinity(0)) if get_affinity else os.cpu_count() or 1


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
    versions = {}
    for package in importlib.metadata.distributions():
        # `package.metadata` would parse the whole file, description included, which takes ten times as long.
        text = package.read_text("METADATA") or package.read_text("PKG-INFO") or ""
        name, version = (re.search(rf"^{key}: *(\S+)", text, re.MULTILINE) for key in ("Name", "Version"))
        if name and version:
            versions[name[1]] = version[1]
    return dict(sorted(versions.items(), key=lambda item: item[0].lower()))


# Memory settings of this process: keep freed memory, and do not collect garbage during imports.


TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""`M_TRIM_THRESHOLD` and `M_MMAP_THRESHOLD` of mallopt(3), from `malloc.h` of the GNU C library."""
KEPT_BYTES = 2**30
"""Bytes of free memory at the end of the heap that the process keeps."""
LARGEST_ON_HEAP = 32 * 2**20
"""Bytes of the largest block that is taken from the heap and not from the system; glibc allows no higher threshold."""
OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")

_put_off = False


def put_off_collection() -> None:
    """Disable the garbage collector until `begin_collection`; for a process that starts by importing libraries.

    Imports leave no garbage, but Python would scan the hundreds of thousands of objects of PyTorch, Transformers and
    MLflow again and again, which takes a sixth of the import time.
    """
    global _put_off
    _put_off = True
    gc.disable()


def begin_collection() -> None:
    """Re-enable the garbage collector if it was put off; objects that exist already are frozen and never scanned."""
    global _put_off
    if _put_off:
        _put_off = False
        gc.freeze()
        gc.enable()


def leave_all() -> None:
    """Freeze all objects before the process ends: the system frees them at once, Python would take a second."""
    gc.freeze()


def keep_freed_memory() -> None:
    """Let the C library keep the memory that torch frees on the CPU, so that the next step can use it.

    By default, a step of a small model returns its activations to the system and gets them back page by page, zeroed:
    about 2,500 page faults for a ViT of 6 layers on 64 px in batches of 16, which is a tenth of the step on a virtual
    machine (`python -m benchmarks memory_reuse`). Nothing changes without the GNU C library, or where the user has set
    its variables.
    """
    tuned = "malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(name in os.environ for name in OWN_SETTINGS)
    if tuned or not _is_gnu():
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):  # a C library that reports as glibc but has no mallopt
        library = ctypes.CDLL(None)
        library.mallopt(TRIM_THRESHOLD, KEPT_BYTES)
        library.mallopt(MMAP_THRESHOLD, LARGEST_ON_HEAP)


def give_back_freed_memory() -> None:
    """Return all free memory to the system, which takes a while; do nothing without the GNU C library."""
    if _is_gnu():
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _is_gnu() -> bool:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") is not None
    except (ValueError, OSError, AttributeError):
        return False


# Spinning of torch's idle OpenMP threads: limit how long they look for work before they sleep.


SPINS = "100000"
"""Times that an idle OpenMP thread looks for work before it sleeps: 2 to 5 ms, depending on the processor."""
SPINS_WHILE_DECODING = "10000"
"""The same in a process whose processors also decode data meanwhile."""
INTERVAL = 0.5
"""Seconds between two looks at how long threads of this process wait for a processor."""
LONG = 0.15
"""Share of its time that a thread waits if others want the processors: alone 0.00 to 0.03, beside one 0.20 to 0.50."""
LOOKS = 2
"""Looks of one kind in a row that mean that others have come or gone: one alone may be a checkpoint's threads."""
TASKS = Path("/proc/self/task")
"""Directory of this process's threads; Linux only."""


def let_idle_threads_sleep(decoding: bool = True) -> None:
    """Limit how long torch's idle threads spin; this must be called before torch is loaded.

    GNU's OpenMP, which torch's Linux packages bring, lets an idle thread look for work 300,000 times (libgomp's
    manual, `GOMP_SPINCOUNT`). That takes some milliseconds after each step: on two processors, it occupies one of the
    two that should decode the next batch. Within a step, the next work mostly comes sooner than that, but not always,
    and waking a thread takes long, so threads spin for longer if nothing is decoded. A value that the user has set
    stays. The value at the time when torch is loaded holds for the whole process.

    Args:
        decoding: True if the process decodes images (or other files) while it computes.
    """
    if not _user_decides():
        os.environ["GOMP_SPINCOUNT"] = SPINS_WHILE_DECODING if decoding else SPINS


def let_idle_threads_sleep_if_unloaded(decoding: bool) -> None:
    """Call `let_idle_threads_sleep` if torch is not loaded yet: later, the setting would have no effect."""
    if "torch" not in sys.modules:
        let_idle_threads_sleep(decoding)


@contextlib.contextmanager
def processors_shared(use_cpu: bool = False) -> Iterator[None]:
    """Let idle threads sleep at once, inside such a block, while other programs want the same processors.

    A spinning thread then keeps a processor from the thread that it waits for: each of the many hundred operations of
    a step waits until the system has moved a thread. Beside one busy process on two processors, a step takes ten times
    as long if threads spin, and twice as long, its fair share, if they sleep (`python -m benchmarks side_by_side`).
    Alone, sleeping is slower, most of all on a virtual machine whose host is busy. So a thread watches how long this
    process's threads wait for a processor. The number of threads, and so every result, does not change, and neither
    does what the user has set.

    Args:
        use_cpu: True if the run uses the CPU in any case. Otherwise an accelerator, if there is one, computes, and
            spinning does no harm.
    """
    import torch

    on_cpu = use_cpu or not torch.accelerator.is_available()
    if not (on_cpu and TASKS.is_dir() and torch.get_num_threads() > 1) or _user_decides():
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(ended,), name="hfexp-processors", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(ended: threading.Event) -> None:
    """Crowd the OpenMP threads while threads of this process wait long for a processor, until the block has ended."""
    crowd: Callable[[], None] | None = None
    changed, before, then = 0, _waited(), time.monotonic()
    while not ended.wait(INTERVAL):
        now, at = _waited(), time.monotonic()
        long = any(waited - before.get(task, waited) > LONG * (at - then) for task, waited in now.items())
        before, then = now, at
        changed = changed + 1 if long == (crowd is None) else 0
        if changed >= LOOKS:
            if crowd is None:
                crowd = _crowd()
            else:
                crowd()
                crowd = None
            changed = 0
    if crowd is not None:
        crowd()


def _waited() -> dict[str, float]:
    """Return for how many seconds each thread of this process was ready but had no processor.

    The second number of `schedstat` has them in nanoseconds (Linux's Documentation/scheduler/sched-stats.rst). The
    result is empty where the system does not count them.
    """
    waited = {}
    for task in TASKS.iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):  # the thread has ended, or a sandbox does not count
            waited[task.name] = int((task / "schedstat").read_text().split()[1]) / 1e9
    return waited


def _crowd() -> Callable[[], None]:
    """Let the process have more OpenMP threads than processors until the function that this returns is called.

    libgomp's threads sleep at once (after 100 looks) meanwhile: `gomp_throttled_spin_count_var` in its `env.c`, used
    by `config/linux/wait.h`. A thread that computes in parallel gets OpenMP threads of its own, which end with it
    (`gomp_free_thread` in `team.c`).
    """
    import torch

    done = threading.Event()

    def compute() -> None:
        torch.ones(torch.get_num_threads() * 2**16).add_(1)  # large enough for torch to divide it among all threads
        done.wait()

    thread = threading.Thread(target=compute, name="hfexp-crowd", daemon=True)
    thread.start()

    def leave() -> None:
        done.set()
        thread.join()

    return leave


def _user_decides() -> bool:
    """Tell whether the user's environment, and not hfexp, sets how long idle threads spin."""
    own = (SPINS, SPINS_WHILE_DECODING)
    return "OMP_WAIT_POLICY" in os.environ or os.environ.get("GOMP_SPINCOUNT", SPINS) not in own
