"""Memory settings of this process: keep freed memory, and do not collect garbage during imports."""

import contextlib
import gc
import os

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
