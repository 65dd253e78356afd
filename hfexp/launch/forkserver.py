"""The process that jobs are forked from: it has done the imports, which a job then does not wait for.

One per process, started with the first use; it ends when the last process that knows it has ended.
"""

import contextlib
import multiprocessing
import os
import select
import signal
import sys
import types
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from typing import Any

WARM = "hfexp.launch.warm"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def context() -> ForkServerContext:
    """Multiprocessing by forking from the warm server; inside a process that was forked from it, from the same one."""
    found = multiprocessing.get_context("forkserver")
    if _is_forked():
        _share_server()
    else:
        found.set_forkserver_preload([WARM])
    return found


def start() -> None:
    """Let the server begin its imports; does not wait for them, and nothing if it runs already."""
    context()
    with _as_in_this_process(), _held_signals():
        forkserver._forkserver.ensure_running()  # pyright: ignore


def has_ended() -> bool:
    """Tell whether the server that this process has used is gone: nobody reads the pipe that keeps it alive."""
    server: Any = forkserver._forkserver  # pyright: ignore
    if server._forkserver_alive_fd is None:
        return False
    pipe = select.poll()
    pipe.register(server._forkserver_alive_fd, 0)
    return bool(pipe.poll(0))


@contextlib.contextmanager
def hidden_main() -> Iterator[None]:
    """Start processes that do not run the user's script again, as multiprocessing otherwise has them do.

    Scripts without `if __name__ == "__main__"` and notebooks work; what the process is to run must not be a function
    of the script (cloudpickle carries those).
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _is_forked() -> bool:
    """Whether a fork server made this process, and has passed on how to reach it."""
    server: Any = forkserver._forkserver  # pyright: ignore
    return server._forkserver_pid is None and server._forkserver_alive_fd is not None


def _share_server() -> None:
    """Python means children to use the server of their parent, but starts another, as they can't wait for its pid."""
    forkserver._forkserver.ensure_running = lambda: None  # pyright: ignore


@contextlib.contextmanager
def _as_in_this_process() -> Iterator[None]:
    """The server looks for modules where this process does, except in the current directory.

    A `datasets.py` of the user's would otherwise be imported there in place of the library.
    """
    changed = {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONSAFEPATH": "1",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asking for CUDA another way initialises it, which a fork can't take
    }
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _held_signals() -> Iterator[None]:
    """Let a signal that comes while the server starts wait: here a moment, there until it has learned to ignore it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
