"""Stopping jobs whose launcher has died: a process from a fork server outlives even a SIGKILL of its launcher."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import wait

from hfexp.core.errors import EXIT_TERMINATED


def stop_when_orphaned(grace: float = 30.0) -> None:
    """Stop this multiprocessing child when its parent process dies.

    This process then sends itself SIGTERM (training writes a checkpoint on it). After `grace` seconds it exits in any
    case, and kills all its children.
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
    """Send SIGKILL to all descendants of a process."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
