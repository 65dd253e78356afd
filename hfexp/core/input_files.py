"""Files and addresses that data names: only regular files are opened, and every read of an address has a limit."""

import os
import queue
import stat
import threading
from typing import IO, Any

from hfexp.core import __version__
from hfexp.core.errors import DataError

STANDARD_INPUT = "-"


MAX_BYTES = 256 * 2**20
"""Largest encoded image, in bytes, that is read as a whole."""
SECONDS = 60
"""Seconds in which an address must have been read."""
CONNECT_SECONDS, SILENCE_SECONDS = 10, 20
"""Seconds in which a web server must accept the connection, and that may pass between two pieces of its answer."""
LOCAL = ("file://", "local://")


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a local file; a FIFO is refused without waiting for its writer.

    Raises:
        OSError: the file can't be opened, or is a FIFO, a device, a socket or a directory.
        ValueError: `path` is not a valid path.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is not a regular file")
    return os.fdopen(descriptor, "rb")


def is_address(path: str) -> bool:
    """Tell an address from a local path; `file://...` is a path."""
    return "://" in path and not path.startswith(LOCAL)


def local_path(path: str) -> str:
    """Return the path that `file://...` stands for, or the path as it is."""
    return next((path.removeprefix(start) for start in LOCAL if path.startswith(start)), path)


def read_address(address: str) -> bytes:
    """Read the bytes at an address of any kind that fsspec knows.

    Raises:
        DataError: there are more than `MAX_BYTES`, or the read takes more than `SECONDS`.
        Exception: whatever fsspec's file system raises if it can't read the address.
    """
    results: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def read() -> None:
        try:
            results.put(_read(address))
        except Exception as error:  # the waiting thread raises it
            results.put(error)

    # Few of fsspec's file systems limit the time of a whole read. A daemon thread does not delay the exit.
    threading.Thread(target=read, name="address", daemon=True).start()
    try:
        result = results.get(timeout=SECONDS)
    except queue.Empty:
        raise DataError(f"reading {address} took longer than {SECONDS} s") from None
    if isinstance(result, Exception):
        raise result
    return result


def _read(address: str) -> bytes:
    import fsspec

    with fsspec.open(address, "rb", **_access(address)) as file:
        data: bytes = file.read(MAX_BYTES + 1)  # pyright: ignore
    if len(data) > MAX_BYTES:
        raise DataError(f"{address} is larger than {MAX_BYTES / 2**20:.0f} MiB")
    return data


def _access(address: str) -> dict[str, Any]:
    """Return options for a web address: some servers refuse clients without a User-Agent, others never answer."""
    if not address.startswith(("http://", "https://")):
        return {}
    import aiohttp

    limits = aiohttp.ClientTimeout(total=SECONDS, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
    return {"client_kwargs": {"headers": {"User-Agent": f"hfexp/{__version__}"}, "timeout": limits}}
