"""How long the threads that torch computes with stay awake when they have nothing to do."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hfexp.config import Config

SPINS = "100000"
"""Times that an idle thread of OpenMP looks for work before it sleeps: 2 to 5 ms, by the processor."""
SPINS_WHILE_DECODING = "10000"
"""The same where its processor has something else to do meanwhile."""
INTERVAL = 1.0
"""Seconds after which a run looks again whether the processors are its own now."""


def let_idle_threads_sleep(decoding: bool = True) -> None:
    """Let the threads that torch computes with look for work for a short time only, from when torch is loaded on.

    GNU's OpenMP, which torch's packages for Linux bring, lets them look 300,000 times (libgomp's manual,
    `GOMP_SPINCOUNT`), for some milliseconds after each step: on two processors, one of the two that are to decode the
    next batch. Within a step the next work mostly comes sooner than that, but not always, and waking a thread takes
    long: where nothing is decoded, they look for longer. What the user has set stays, and what was set when torch was
    loaded holds for the process.

    Args:
        decoding: the process decodes images (or other files) while it computes.
    """
    if not _user_decides():
        os.environ["GOMP_SPINCOUNT"] = SPINS_WHILE_DECODING if decoding else SPINS


def let_idle_threads_sleep_in(config: "Config") -> None:
    """`let_idle_threads_sleep` as it suits a training, if torch is not loaded yet."""
    if "torch" not in sys.modules:
        let_idle_threads_sleep(decoding=config.dataset.streaming or not config.transform.cache.enabled)


@contextlib.contextmanager
def processors_shared(use_cpu: bool = False) -> Iterator[None]:
    """In the block, this process computes with torch on the CPU, maybe beside others that do so in such a block.

    A thread that looks for work keeps those of another run from doing theirs, for which that one's other threads then
    look: each of many hundred operations of a step waits until somebody gives up. So only one run at a time, the first
    of its user on these processors, has threads that do so; those of all others sleep at once. When it has ended,
    however that was, another one takes its place. The number of threads, and so every result, stays what it is, and so
    does what the user has set.

    Args:
        use_cpu: even if there is an accelerator; otherwise that computes, and there is nothing to share.
    """
    import torch

    on_cpu = use_cpu or not torch.accelerator.is_available()
    if not (on_cpu and sys.platform.startswith("linux") and torch.get_num_threads() > 1):
        yield
        return
    over = threading.Event()
    with contextlib.ExitStack() as stack:
        if not _first_here(stack) and not _user_decides():
            thread = threading.Thread(target=_crowd, args=(stack, over), name="hfexp-crowd", daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(over.set)
        yield


def _crowd(stack: contextlib.ExitStack, over: threading.Event) -> None:
    """Be more threads than there are processors, until the first place is free or the block has ended.

    That makes libgomp's threads sleep at once (after 100 looks): `gomp_throttled_spin_count_var` in its `env.c`,
    used by `config/linux/wait.h` while a process has more of them. A thread that computes in parallel gets its own
    ones, which end with it (`gomp_free_thread` in `team.c`).
    """
    import torch

    torch.ones(torch.get_num_threads() * 2**16).add_(1)  # long enough to be divided among all threads
    while not over.wait(INTERVAL):
        if _first_here(stack):
            return


def _first_here(stack: contextlib.ExitStack) -> bool:
    """Whether no other run is the first; then this one is, until `stack` is unwound or the process ends."""
    import fcntl

    try:
        lock = os.open(_lock_file(), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:  # nobody can be told
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
    """Whether the environment says otherwise than hfexp how long idle threads stay awake."""
    own = (SPINS, SPINS_WHILE_DECODING)
    return "OMP_WAIT_POLICY" in os.environ or os.environ.get("GOMP_SPINCOUNT", SPINS) not in own


def _lock_file() -> Path:
    """One for each user and set of processors."""
    processors = sum(1 << number for number in os.sched_getaffinity(0))
    directory = os.environ.get("TMPDIR") or "/tmp"  # noqa: S108  opened without following links, and only locked
    return Path(directory) / f"hfexp-{os.getuid()}-{processors:x}.lock"
