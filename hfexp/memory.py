"""How this process deals with memory: freed memory stays with it, and garbage is not looked for during imports."""

import contextlib
import gc
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""`M_TRIM_THRESHOLD` and `M_MMAP_THRESHOLD` of mallopt(3), from `malloc.h` of the GNU C library."""
KEPT_BYTES = 2**30
"""Free memory at the end of the heap that stays with the process."""
LARGEST_ON_HEAP = 32 * 2**20
"""Blocks up to this size come from the heap, larger ones from the system; more the library does not allow."""
OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")

_put_off = False


def put_off_collection() -> None:
    """Do not look for garbage until `begin_collection`; for a process that begins with importing libraries.

    Importing leaves none, but makes Python look again and again through the hundreds of thousands of objects of
    PyTorch, Transformers and MLflow: a sixth of the time.
    """
    global _put_off
    _put_off = True
    gc.disable()


def begin_collection() -> None:
    """Look for garbage from here on, if that was put off, but never among what there is by now."""
    global _put_off
    if _put_off:
        _put_off = False
        gc.freeze()
        gc.enable()


def leave_all() -> None:
    """Before the process ends: the system takes back all at once what Python would look through for a second."""
    gc.freeze()


def keep_freed_memory() -> None:
    """Let the C library keep what torch frees on the CPU, for the next step to use.

    By default a step of a small model gives its activations back to the system and gets them again page by page,
    zeroed: for a ViT of 6 layers on 64 px in batches of 16 about 2,500 page faults, a tenth of the step on a virtual
    machine (`python -m benchmarks memory_reuse`). Elsewhere than with the GNU C library, and where the user has set
    its variables, nothing is changed.
    """
    tuned = "malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(name in os.environ for name in OWN_SETTINGS)
    if tuned or not _is_gnu():
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):  # another C library under the same name
        library = ctypes.CDLL(None)
        library.mallopt(TRIM_THRESHOLD, KEPT_BYTES)
        library.mallopt(MMAP_THRESHOLD, LARGEST_ON_HEAP)


def give_back_freed_memory() -> None:
    """Let the C library give all that is free back to the system, which takes a while; others do nothing."""
    if _is_gnu():
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _is_gnu() -> bool:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") is not None
    except (ValueError, OSError, AttributeError):
        return False
