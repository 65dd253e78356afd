"""Signals that ask this process to stop: temporary handlers, and blocks that signals do not interrupt."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from hfexp.core.errors import Terminated, exit_code

Handler = Callable[[int, FrameType | None], None]


@contextlib.contextmanager
def handled(handler: Handler, *more: signal.Signals) -> Iterator[None]:
    """Call `handler` on SIGTERM, SIGHUP and `more` while the block runs; do nothing outside of the main thread.

    A SIGHUP that is ignored stays ignored: under `nohup`, and after `count_once`.
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
    """Ignore further SIGHUPs if this is one: a closing terminal sends several, and none of them is urgent."""
    if number == signal.SIGHUP:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


@contextlib.contextmanager
def stop_raises() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM and SIGHUP while the block runs, as Ctrl-C raises `KeyboardInterrupt`."""

    def stop(number: int, frame: FrameType | None) -> None:
        count_once(number)
        raise Terminated(exit_code(number))

    with handled(stop):
        yield


@contextlib.contextmanager
def noted() -> Iterator[list[int]]:
    """Collect the SIGINTs, SIGTERMs and SIGHUPs that arrive while the block runs, without acting on them."""
    arrived: list[int] = []
    with handled(lambda number, frame: arrived.append(number), signal.SIGINT):
        yield arrived


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C, SIGTERM and SIGHUP until the block has ended, also by an error, which they then replace."""
    arrived: list[int] = []
    try:
        with noted() as arrived:
            yield
    finally:
        for number in arrived:
            signal.raise_signal(number)
