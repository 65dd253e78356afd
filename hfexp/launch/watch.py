"""A job notices that its launcher is gone: what a fork server made survives even the launcher's SIGKILL."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import wait

from hfexp.errors import EXIT_TERMINATED


def stop_when_orphaned(grace: float = 30.0) -> None:
    """End this process, started through multiprocessing, when the process that started it is gone.

    It gets SIGTERM (training writes a checkpoint then), and `grace` seconds later it ends in any case, with all that
    it started.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent.sentinel, grace), name="hfexp-watch", daemon=True).start()


def _watch(sentinel: int, grace: float) -> None:
    wait([sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    kill_children(os.getpid())
    os._exit(EXIT_TERMINATED)


def kill_children(pid: int) -> None:
    """SIGKILL for everything that a process has started, and what that has started."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
