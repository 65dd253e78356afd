"""Signals that ask this process to stop: who handles them meanwhile, and when they must wait."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from hfexp.errors import Terminated, exit_code

Handler = Callable[[int, FrameType | None], None]


@contextlib.contextmanager
def handled(handler: Handler, *more: signal.Signals) -> Iterator[None]:
    """Call a function on SIGTERM and SIGHUP (and `more`) meanwhile; in another than the main thread nothing changes.

    SIGHUP is left alone where it is ignored: under `nohup`, and once `count_once` has ignored it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hangup = () if _ignores_hangups() else (signal.SIGHUP,)
    before = {number: signal.signal(number, handler) for number in (*more, signal.SIGTERM, *hangup)}
    try:
        yield
    finally:
        for number, previous in before.items():
            if number != signal.SIGHUP or not _ignores_hangups():
                signal.signal(number, previous)


def _ignores_hangups() -> bool:
    return signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def count_once(number: int) -> None:
    """Ignore further hangups, if this is one: a terminal that closes sends several, and none is urgent."""
    if number == signal.SIGHUP:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


@contextlib.contextmanager
def stop_raises() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM and SIGHUP meanwhile, as Ctrl-C raises `KeyboardInterrupt`."""

    def stop(number: int, frame: FrameType | None) -> None:
        count_once(number)
        raise Terminated(exit_code(number))

    with handled(stop):
        yield


@contextlib.contextmanager
def noted() -> Iterator[list[int]]:
    """Write down meanwhile which signals come, Ctrl-C among them, and do nothing else."""
    arrived: list[int] = []
    with handled(lambda number, frame: arrived.append(number), signal.SIGINT):
        yield arrived


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP that arrive meanwhile take effect afterwards."""
    with noted() as arrived:
        yield
    for number in arrived:
        signal.raise_signal(number)
