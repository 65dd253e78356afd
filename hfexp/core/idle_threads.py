"""Spinning of torch's idle OpenMP threads: limit how long they look for work before they sleep."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

SPINS = "100000"
"""Times that an idle OpenMP thread looks for work before it sleeps: 2 to 5 ms, depending on the processor."""
SPINS_WHILE_DECODING = "10000"
"""The same in a process whose processors also decode data meanwhile."""
INTERVAL = 1.0
"""Seconds between two attempts of a run to become the first on its processors."""


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
    """Share the processors with other runs that compute on the CPU inside such a block: only one of them may spin.

    A spinning thread keeps the threads of another run from working, and that run's other threads spin while they wait:
    each of the many hundred operations of a step waits until some thread gives up. So only the threads of the user's
    first run on these processors may spin; those of all other runs sleep at once. When the first run has ended, in
    whatever way, another run takes its place. The number of threads, and so every result, does not change, and
    neither does what the user has set.

    Args:
        use_cpu: True if the run uses the CPU in any case. Otherwise an accelerator, if there is one, computes, and the
            processors need not be shared.
    """
    import torch

    on_cpu = use_cpu or not torch.accelerator.is_available()
    if not (on_cpu and sys.platform.startswith("linux") and torch.get_num_threads() > 1):
        yield
        return
    ended = threading.Event()
    with contextlib.ExitStack() as stack:
        if not _become_first(stack) and not _user_decides():
            thread = threading.Thread(target=_oversubscribe, args=(stack, ended), name="hfexp-crowd", daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(ended.set)
        yield


def _oversubscribe(stack: contextlib.ExitStack, ended: threading.Event) -> None:
    """Oversubscribe the OpenMP pool until this run becomes the first or the block has ended.

    libgomp's threads sleep at once (after 100 looks) while a process has more of them than there are processors:
    `gomp_throttled_spin_count_var` in its `env.c`, used by `config/linux/wait.h`. A thread that computes in parallel
    gets OpenMP threads of its own, which end with it (`gomp_free_thread` in `team.c`).
    """
    import torch

    torch.ones(torch.get_num_threads() * 2**16).add_(1)  # large enough for torch to divide it among all threads
    while not ended.wait(INTERVAL):
        if _become_first(stack):
            return


def _become_first(stack: contextlib.ExitStack) -> bool:
    """Try to become the first run, until `stack` is unwound or the process ends; return False if another one is."""
    import fcntl

    try:
        lock = os.open(_lock_file(), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:  # without a lock file, the run behaves as if it were alone
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return False
    except OSError:  # a file system without locks
        os.close(lock)
        return True
    stack.callback(os.close, lock)
    return True


def _user_decides() -> bool:
    """Tell whether the user's environment, and not hfexp, sets how long idle threads spin."""
    own = (SPINS, SPINS_WHILE_DECODING)
    return "OMP_WAIT_POLICY" in os.environ or os.environ.get("GOMP_SPINCOUNT", SPINS) not in own


def _lock_file() -> Path:
    """Return the path of the lock file, which is one per user and set of processors."""
    processors = sum(1 << number for number in os.sched_getaffinity(0))
    directory = os.environ.get("TMPDIR") or "/tmp"  # noqa: S108  opened without following links, and only locked
    return Path(directory) / f"hfexp-{os.getuid()}-{processors:x}.lock"
