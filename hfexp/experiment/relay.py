"""Forwarding of rank 0's tracking and console calls to the process that started the workers.

Only the starting process writes to the tracker and the console. So there is one writer whatever happens to the
workers, and their output also appears where standard output is not a file (a notebook).
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hfexp.core import console
from hfexp.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

TOLD = ("log_params", "log_metrics", "set_tags", "log_artifacts", "record")
"""Methods of `Tracker` that a worker may call through the relay."""


SHOWN = ("say", "note", "move_bar", "end_bar")
"""Functions of `hfexp.core.console` that a worker may call through the relay."""


class Relay:
    """A `Tracker` for the training process; its calls are executed by the starting process, in order."""

    def __init__(self, sender: Connection, uri: str | None, run_id: str | None) -> None:
        self.uri = uri
        self.run_id = run_id
        self._sender = sender
        self._lock = threading.Lock()

    def tell(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Send a call of `name` to the starting process; drop it if that is gone (this process is then stopped)."""
        with self._lock, contextlib.suppress(OSError):
            self._sender.send((name, args, kwargs))

    def log_params(self, params: dict[str, Any]) -> None:
        self.tell("log_params", {name: str(value) for name, value in params.items()})

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.tell("log_metrics", {name: float(value) for name, value in metrics.items()}, step)

    def set_tags(self, tags: dict[str, str]) -> None:
        self.tell("set_tags", tags)

    def log_artifacts(self, path: Path, name: str | None = None) -> None:
        self.tell("log_artifacts", path, name)

    def record(self, kind: str, **content: Any) -> None:
        self.tell("record", kind, **content)


@contextlib.contextmanager
def relayed(receiver: Connection, sender: Connection, tracker: Tracker, **more: Callable[..., None]) -> Iterator[None]:
    """Execute the calls of the training process inside the block; on exit, drain what is still in the pipe.

    Args:
        receiver: this process's end of the pipe.
        sender: the training process's end, of which this process keeps a copy open until the block ends.
        tracker: executes the tracking calls of the `Relay`.
        more: further functions that the training process may call, by name.
    """
    known = {name: getattr(tracker, name) for name in TOLD} | {name: getattr(console, name) for name in SHOWN} | more
    thread = threading.Thread(target=_pass_on, args=(receiver, known), name="hfexp-relay", daemon=True)
    thread.start()
    try:
        yield
    finally:
        sender.close()  # the last copy: the thread reads what is left, then EOF, even in the middle of a message
        thread.join()
        receiver.close()
        console.end_bar()  # the training process may have died with its progress bar on the screen


def _pass_on(receiver: Connection, known: dict[str, Callable[..., None]]) -> None:
    while True:
        try:
            name, args, kwargs = receiver.recv()
        except (EOFError, OSError):
            return
        try:
            known[name](*args, **kwargs)
        except Exception:  # keep reading: on a full pipe the training process would block forever
            logger.exception("%s of a training process could not be passed on", name)
