"""Files: those that data names, read within limits, and those that several processes write, always whole."""

import contextlib
import fcntl
import importlib.metadata
import os
import queue
import stat
import threading
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote

from hfexp.core import __version__
from hfexp.core.errors import DataError

# Atomic file writes: a file is whole or does not exist, whenever its writer is killed.


class WholeFile:
    """A temporary file beside its final path that is moved there once it is whole.

    Temporary files that dead processes have left are removed: no process holds their `flock(2)` any more.
    """

    def __init__(self, path: Path, mode: int = 0o666) -> None:
        """Create and lock the temporary file; raise OSError if that is impossible."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}")
        """Path to write to."""
        self._remove_leftovers()
        self._lock = self._create(mode)

    def close(self, keep: bool) -> None:
        """Move the file to its final path, or remove it."""
        if keep:
            os.fsync(self._lock)
            self.temporary.replace(self.path)
        else:
            self.temporary.unlink(missing_ok=True)
        os.close(self._lock)

    def _create(self, mode: int) -> int:
        while True:
            lock = os.open(self.temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
            with contextlib.suppress(OSError):  # some network file systems have no locks: nothing is removed there
                fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock).st_nlink:
                return lock
            os.close(lock)  # another process removed it, as it was not locked yet

    def _remove_leftovers(self) -> None:
        prefix = f".{self.path.name}."
        for leftover in self.path.parent.iterdir():
            if leftover.name.startswith(prefix) and leftover.name.removeprefix(prefix).isdigit():
                with contextlib.suppress(OSError), leftover.open("rb+") as file:  # another user's, or in use
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    leftover.unlink()


def write_whole(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a text file atomically."""
    file = WholeFile(path, mode)
    done = False
    try:
        file.temporary.write_text(text)
        done = True
    finally:
        file.close(done)


def replace_file(path: Path, content: str | bytes, sync: bool = False, temporary: Path | None = None) -> None:
    """Write a file atomically that only one process writes.

    The temporary file has a fixed name, so that the next write replaces what a killed process has left; it ends in
    `.new`, so that patterns for the file do not match it.

    Args:
        sync: wait until the disk has the content, so that the file survives a crash of the machine.
        temporary: path to write to before the file is moved, on the same file system; None: beside the file.
    """
    temporary = temporary or path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)


def write_private(path: Path, text: str) -> None:
    """Write a file atomically, readable by its owner only."""
    write_whole(path, text, 0o600)


def bytes_below(directory: Path) -> int:
    """Return the bytes of all files below a directory; a file with several links counts once."""
    sizes = {}
    for place, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a run that goes on has removed an old checkpoint
                status = os.lstat(os.path.join(place, name))
                sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())


# Addresses of SQLite files for SQLAlchemy, MLflow and Optuna; no other module builds or parses them.


PREFIX = "sqlite:///"
"""Beginning of an address that goes on with the path as it is."""
DRIVER = "sqlite+pysqlite:///"
"""Same as `PREFIX` to SQLAlchemy. MLflow 3.17 takes what follows `PREFIX` literally, quoting included, and creates
its parent directory (`mlflow.store.db.utils._make_parent_dirs_if_sqlite`)."""
SPECIAL = frozenset("%?{}")
"""Characters that SQLAlchemy or Optuna (`RDBStorage._fill_storage_url_template`) do not take literally."""


def sqlite_address(path: Path, read_only: bool = False) -> str:
    """Return the address of a SQLite file, whatever characters its path holds.

    With special characters in it, or for `read_only`, this is a SQLite URI (https://www.sqlite.org/uri.html).
    """
    if not (read_only or SPECIAL & set(str(path))):
        return f"{PREFIX}{path}"
    quoted = quote(str(path), errors="surrogateescape")
    quoted = quoted.replace("%", "%25") if _is_unquoted() else quoted
    return f"{DRIVER}file:{quoted}?{'mode=ro&' if read_only else ''}uri=true"


def sqlite_path(address: str) -> Path | None:
    """Return the file that an address names; None if the address is not one of SQLite."""
    prefix = next((known for known in (PREFIX, DRIVER) if address.startswith(known)), None)
    if prefix is None:
        return None
    text, _, query = address.removeprefix(prefix).partition("?")
    text = unquote(text) if "%" in text and _is_unquoted() else text
    if "uri=true" in query.split("&"):
        text = unquote(text.removeprefix("file:"), errors="surrogateescape")
    return Path(text)


def _is_unquoted() -> bool:
    """Return whether SQLAlchemy decodes `%3F` in an address to `?`, as it does since 2.1."""
    major, minor, *_ = importlib.metadata.version("sqlalchemy").split(".")
    return (int(major), int(minor)) >= (2, 1)


# Files and addresses that data names: only regular files are opened, and every read of an address has a limit.


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
