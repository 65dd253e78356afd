"""Processes: an identity that holds although pids are reused and hosts restart, and the signals that ask to stop."""

import contextlib
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from hfexp.core.errors import Terminated

UNKNOWN = "?"


def has_no_reader(descriptor: int) -> bool:
    """Return True if nobody can read any more what is written to a pipe or socket."""
    pipe = select.poll()
    pipe.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in pipe.poll(0))


def how_it_ended(exitcode: int | None) -> str:
    """Describe an exit code in the convention of `multiprocessing`: a negative one is a signal number."""
    if exitcode is None or exitcode >= 0:
        return f"ended with exit code {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:  # a real-time signal
        name = f"signal {-exitcode}"
    hint = " (by the system when memory ran out, or by a user)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


@dataclass(frozen=True)
class ProcessId:
    """One process, on one boot of one machine."""

    host: str
    pid: int
    started: str
    """`machine/boot/pid namespace/start`; a part that this system can't tell is empty."""

    @classmethod
    def own(cls) -> "ProcessId":
        pid = os.getpid()
        return cls(socket.gethostname(), pid, "/".join((*_machine(), _start_of(pid) or "")))

    def is_gone(self) -> bool:
        """Return True only if it is certain: a process on another host or in another container may still run."""
        own = ProcessId.own()
        here, there = own.started.split("/"), self.started.split("/")
        if self.host != own.host or len(there) != 4 or here[0] != there[0]:
            return False
        if here[1] != there[1]:
            return bool(here[0])  # rebooted since, if it is this machine by its id and not just its name
        return here[2] == there[2] and _start_of(self.pid) not in (there[3], UNKNOWN)

    def may_live_here(self) -> bool:
        """Tell whether it is a process of this boot and pid namespace that is not known to be gone."""
        own = ProcessId.own()
        return (
            self.host == own.host and self.started.split("/")[:3] == own.started.split("/")[:3] and not self.is_gone()
        )

    def is_of_this_boot(self) -> bool:
        """Tell whether it was started since this machine booted."""
        return self.started.split("/")[:2] == list(_machine()[:2])


def _machine() -> tuple[str, str, str]:
    """Return the machine's id, its boot and the pid namespace (each container numbers its own processes)."""
    return (
        _read("/etc/machine-id"),
        _read("/proc/sys/kernel/random/boot_id") or str(_boot_time()),
        os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else "",
    )


def _start_of(pid: int) -> str | None:
    """Return the exact start time of a process; None if it is gone or a zombie, `UNKNOWN` if it can't be read."""
    import psutil

    try:
        if Path("/proc/self/stat").exists():
            # proc(5): the name may hold anything and ends at the last parenthesis; state (3) to starttime (22) follow.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return None if fields[0] in "ZX" else fields[19]
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except (OSError, psutil.Error):
        return UNKNOWN if _may_live(pid) else None


def _may_live(pid: int) -> bool:
    """Tell whether a process exists, even one that this user is not allowed to see (proc(5), `hidepid`)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _boot_time() -> int:
    import psutil

    return int(psutil.boot_time() // 60)  # in minutes: it shifts a little when the clock is set


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


# Signals that ask this process to stop: temporary handlers, and blocks that signals do not interrupt.


Handler = Callable[[int, FrameType | None], None]
URGENT = (signal.SIGTERM, signal.SIGUSR1)
"""Signals by which users and queues ask a process to stop soon."""


@contextlib.contextmanager
def variables(changed: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables while the block runs."""
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def handled(handler: Handler, *more: signal.Signals) -> Iterator[None]:
    """Call `handler` on SIGTERM, SIGUSR1, SIGHUP and `more` in the block; do nothing outside of the main thread.

    A SIGHUP that is ignored stays ignored: under `nohup`, and after `count_once`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hangup = () if _ignores_hangups() else (signal.SIGHUP,)
    before = {number: signal.signal(number, handler) for number in (*more, *URGENT, *hangup)}
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
    """Raise `Terminated` on SIGTERM, SIGUSR1 and SIGHUP in the block, as Ctrl-C raises `KeyboardInterrupt`."""

    def stop(number: int, frame: FrameType | None) -> None:
        count_once(number)
        raise Terminated(number)

    with handled(stop):
        yield


@contextlib.contextmanager
def noted() -> Iterator[list[int]]:
    """Collect the signals to stop, SIGINT among them, that arrive while the block runs, without acting on them."""
    arrived: list[int] = []
    with handled(lambda number, frame: arrived.append(number), signal.SIGINT):
        yield arrived


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C and the signals to stop until the block has ended, also by an error, which they then replace."""
    arrived: list[int] = []
    try:
        with noted() as arrived:
            yield
    finally:
        for number in arrived:
            signal.raise_signal(number)
