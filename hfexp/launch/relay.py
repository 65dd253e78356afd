"""What the first of several training processes has to tell, told by the process that started them.

That process alone writes to the record and to the screen: so there is one writer, whatever happens to the others, and
what they print finds its way also where standard output is no file (a notebook).
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hfexp import screen
from hfexp.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

TOLD = ("log_params", "log_metrics", "set_tags", "log_artifacts", "record")
"""Methods of a `Tracker`."""


SHOWN = ("say", "note", "move_bar", "end_bar")
"""Functions of `hfexp.screen`."""


class Relay:
    """The end of the training process: a `Tracker` whose calls arrive in the starting process, in their order."""

    def __init__(self, sender: Connection, uri: str | None, run_id: str | None) -> None:
        self.uri = uri
        self.run_id = run_id
        self._sender = sender
        self._lock = threading.Lock()

    def tell(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Call `name` over there; nothing, if nobody is there any more (this process is then asked to stop)."""
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
    """Pass on what comes from the training process meanwhile, and at the end whatever is still under way.

    Args:
        receiver: this process's end.
        sender: the other end, which this process holds as well until the training process is gone.
        tracker: what the calls of the `Relay` go to.
        more: further functions that may be called, by name.
    """
    known = {name: getattr(tracker, name) for name in TOLD} | {name: getattr(screen, name) for name in SHOWN} | more
    thread = threading.Thread(target=_pass_on, args=(receiver, known), name="hfexp-relay", daemon=True)
    thread.start()
    try:
        yield
    finally:
        sender.close()  # the last one: what is in the pipe is read, then it ends, also in the middle of a message
        thread.join()
        receiver.close()
        screen.end_bar()  # the process may have ended without a word


def _pass_on(receiver: Connection, known: dict[str, Callable[..., None]]) -> None:
    while True:
        try:
            name, args, kwargs = receiver.recv()
        except (EOFError, OSError):
            return
        try:
            known[name](*args, **kwargs)
        except Exception:  # were nobody to read on, the training process would wait for ever
            logger.exception("%s of a training process could not be passed on", name)
