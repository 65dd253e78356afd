"""The time limit of a run: it stops itself with a checkpoint, before a queue would end it without one."""

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

from hfexp.core import console
from hfexp.core.errors import ConfigError, Terminated

KEY = "launch.time_limit"
_UNITS = re.compile(
    r"(?=.)(?:(?P<days>\d{1,6})d)?(?:(?P<hours>\d{1,6})h)?(?:(?P<minutes>\d{1,6})m)?(?:(?P<seconds>\d{1,6})s)?"
)
_SLURM = re.compile(r"(?:(?P<days>\d{1,6})-)?(?P<hours>\d{1,6}):(?P<minutes>\d\d):(?P<seconds>\d\d)")
"""SLURM's form with hours, minutes and seconds; its shorter ones are ambiguous (`90` are minutes there)."""


def seconds_of(text: str | None) -> float | None:
    """Return the seconds of a time such as `11h50m` or `1-02:00:00`; None for None.

    Raises:
        ConfigError: it is written otherwise, or is no time at all; or this thread gets no signals.
    """
    if text is None:
        return None
    match = _UNITS.fullmatch(text) or _SLURM.fullmatch(text)
    parts = match.groupdict(default="0") if match else {}
    seconds = timedelta(**{unit: int(number) for unit, number in parts.items()}).total_seconds()
    if not seconds:
        raise ConfigError(
            f"{KEY}={text} must be a time such as 11h50m, 90m, 1d12h or 30s, or as SLURM writes it: 11:50:00 or "
            "1-12:00:00 (days-hours:minutes:seconds)"
        )
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError(f"{KEY} works only in the main thread of a program, which gets its signals")
    return seconds


@contextlib.contextmanager
def limited(text: str | None, began: float) -> Iterator[None]:
    """Stop the run in the block, as SIGUSR1 does, once the time has passed; say so, and give it as the reason.

    Args:
        text: `launch.time_limit`.
        began: time of the monotonic clock from which it counts.
    """
    seconds = seconds_of(text)
    if seconds is None:
        yield
        return
    reached = threading.Event()

    def stop() -> None:
        reached.set()
        os.kill(os.getpid(), signal.SIGUSR1)

    left = began + seconds - time.monotonic()
    timer = threading.Timer(min(max(left, 0.0), threading.TIMEOUT_MAX), stop)
    timer.daemon = True
    try:
        timer.start()
        yield
    except Terminated as error:
        if not reached.is_set():
            raise
        console.note(f"{KEY}={text} has passed; the same command continues the run")
        raise Terminated(reason=f"stopped by {KEY}={text}") from error
    finally:
        timer.cancel()
        timer.join()  # it may be sending the signal, which the block's handler must still take
