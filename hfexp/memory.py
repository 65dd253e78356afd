"""How this process gives memory back to the system: not at every step, as training takes the same again at once."""

import contextlib
import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""`M_TRIM_THRESHOLD` and `M_MMAP_THRESHOLD` of mallopt(3), from `malloc.h` of the GNU C library."""
KEPT_BYTES = 2**30
"""Free memory at the end of the heap that stays with the process."""
LARGEST_ON_HEAP = 32 * 2**20
"""Blocks up to this size come from the heap, larger ones from the system; more the library does not allow."""
OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")


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
    with contextlib.suppress(OSError, AttributeError):  # another C library under the same name
        library = ctypes.CDLL(None)
        library.mallopt(TRIM_THRESHOLD, KEPT_BYTES)
        library.mallopt(MMAP_THRESHOLD, LARGEST_ON_HEAP)


def _is_gnu() -> bool:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") is not None
    except (ValueError, OSError, AttributeError):
        return False
