"""The fork server that jobs are forked from: it has done the imports already, so jobs do not wait for them.

Each process has one, started at the first use; it ends when the last process that can reach it has ended.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import types
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from typing import Any

from hfexp.core.process import has_no_reader, variables

WARM = "hfexp.launch.warm"
"""Module that the server imports before it forks."""
MODULES_VARIABLE = "HFEXP_WARM_MODULES"
"""Environment variable that passes `modules` on to `WARM`."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that wait while the server starts."""

SERVER_ENDED = "the fork server, which starts the jobs, has exited; see its output above"

modules: tuple[str, ...] = ()
"""Further modules that the server imports. Whoever offers the launcher names them: this package knows no jobs."""


def context() -> ForkServerContext:
    """Return the context that forks from the warm server; a process forked from that server uses the same one."""
    fork_context = multiprocessing.get_context("forkserver")
    if _is_forked():
        _share_server()
    else:
        fork_context.set_forkserver_preload([WARM])
    return fork_context


def start() -> None:
    """Let the server begin its imports without waiting for them; do nothing if it runs already."""
    context()
    with variables(_own_environment()), _blocked_signals():
        forkserver._forkserver.ensure_running()  # pyright: ignore


def is_started() -> bool:
    """Return whether this process has started the server."""
    return forkserver._forkserver._forkserver_pid is not None  # pyright: ignore


def has_ended() -> bool:
    """Return whether the server that this process has used is gone: nobody reads the pipe that keeps it alive."""
    server: Any = forkserver._forkserver  # pyright: ignore
    return server._forkserver_alive_fd is not None and has_no_reader(server._forkserver_alive_fd)


@contextlib.contextmanager
def hidden_main() -> Iterator[None]:
    """Keep processes that start in the block from running the user's script again, as multiprocessing has them do.

    So scripts without `if __name__ == "__main__"` and notebooks work. The function that a process runs must not be
    defined in the script (cloudpickle carries such functions).
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _is_forked() -> bool:
    """Return whether a fork server made this process and passed on how to reach it."""
    server: Any = forkserver._forkserver  # pyright: ignore
    return server._forkserver_pid is None and server._forkserver_alive_fd is not None


def _share_server() -> None:
    """Use the parent's server: Python intends that too, but starts another one, as a child can't wait for its pid."""
    forkserver._forkserver.ensure_running = lambda: None  # pyright: ignore


def _own_environment() -> dict[str, str]:
    """Return variables by which the server looks for modules where this process does, except in the current directory.

    It would otherwise import a user's `datasets.py` in place of the library.
    """
    return {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONSAFEPATH": "1",
        MODULES_VARIABLE: " ".join(modules),
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # the other check initialises CUDA, which does not survive a fork
    }


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Block signals while the server starts: in this process briefly, in the server until it ignores them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
