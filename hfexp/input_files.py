"""Files and addresses that data names: regular files only, and nothing that is waited for without end."""

import os
import queue
import stat
import threading
from typing import IO, Any

from hfexp import __version__
from hfexp.errors import DataError

MAX_BYTES = 256 * 2**20
"""Bytes of an encoded image that are read at once."""
SECONDS = 60
"""Until an address must have been read."""
CONNECT_SECONDS, SILENCE_SECONDS = 10, 20
"""Until a web server must have answered, and between two pieces of its answer."""
LOCAL = ("file://", "local://")


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a file of this machine, without waiting for who writes into a FIFO.

    Raises:
        OSError: it can't be opened, or is a FIFO, a device, a socket or a directory.
        ValueError: it is no path.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is not a regular file")
    return os.fdopen(descriptor, "rb")


def is_address(path: str) -> bool:
    """Tell an address from a path of this machine; `file://...` is a path."""
    return "://" in path and not path.startswith(LOCAL)


def local_path(path: str) -> str:
    """Give the path that `file://...` means, or the path as it is."""
    return next((path.removeprefix(start) for start in LOCAL if path.startswith(start)), path)


def read_address(address: str) -> bytes:
    """Read what is at an address, as fsspec knows them.

    Raises:
        DataError: it has more than `MAX_BYTES`, or is not there after `SECONDS`.
        Exception: what the file system raises for what can't be read.
    """
    found: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def read() -> None:
        try:
            found.put(_read(address))
        except Exception as error:  # it is raised in the thread that waits
            found.put(error)

    # Few file systems have a limit for all of what they do; a thread that still waits does not hold up the end.
    threading.Thread(target=read, name="address", daemon=True).start()
    try:
        result = found.get(timeout=SECONDS)
    except queue.Empty:
        raise DataError(f"{address} was not read within {SECONDS} s") from None
    if isinstance(result, Exception):
        raise result
    return result


def _read(address: str) -> bytes:
    import fsspec

    with fsspec.open(address, "rb", **_access(address)) as file:
        data: bytes = file.read(MAX_BYTES + 1)  # pyright: ignore
    if len(data) > MAX_BYTES:
        raise DataError(f"{address} has more than {MAX_BYTES / 2**20:.0f} MiB")
    return data


def _access(address: str) -> dict[str, Any]:
    """Give options for a web address: some servers refuse programs without a name, others never answer."""
    if not address.startswith(("http://", "https://")):
        return {}
    import aiohttp

    limits = aiohttp.ClientTimeout(total=SECONDS, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
    return {"client_kwargs": {"headers": {"User-Agent": f"hfexp/{__version__}"}, "timeout": limits}}
