"""Cache of prepared rows that jobs share: keyed by content, built once, evicted when space is short.

    <directory>/<key>/          an entry: the files that `hfexp.data.arrays` writes, and `used`
    <directory>/.building-<key> an entry that is being built, or whose builder died; renamed when it is complete;
                                its file `needed` holds the number of bytes reserved for it
    <directory>/.locks/         one lock file per key, held while the entry is built, and one for making room

The modification time of `used` is the time of the last use. A process that uses an entry holds a shared `flock(2)` on
this file, and no entry is evicted while a process does.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hfexp.core.console import note
from hfexp.core.errors import ConfigError
from hfexp.data.arrays import META, ArrayReader, ArrayWriter
from hfexp.launch import world

VARIABLE = "HFEXP_CACHE"
"""Environment variable that names the cache directory."""
USED, NEEDED = "used", "needed"
KEY = re.compile("[0-9a-f]{32}")
"""Matches the name of an entry; an unreadable directory with another name does not belong to the cache."""
SPARE = 10**9
"""Bytes that must stay free on the disk when an entry is built."""
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
          "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}  # fmt: skip


class NoRoomError(Exception):
    """The cache can't keep an entry; the message says why."""


@dataclass(frozen=True)
class Entry:
    """A finished entry of the cache, which may be damaged."""

    path: Path
    bytes: int
    rows: int
    about: str
    used: float
    """Time of the last use, in seconds since 1970; 0 for a damaged entry."""


def default_directory() -> Path:
    """Return the directory in `HFEXP_CACHE`, or else `hfexp` in the user's cache directory."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hfexp"


def parse_size(text: str | int) -> int:
    """Parse a size such as `20GB`, `500 MiB` or a plain number into bytes.

    Raises:
        ConfigError: the text is not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(text).strip().lower())
    if match is None or match.group(2) not in _UNITS:
        raise ConfigError(f"transform.cache.max_size={text} is not a size; give one such as 20GB, 500MB or 1TiB")
    return int(float(match.group(1)) * _UNITS[match.group(2)])


def show_size(count: float) -> str:
    """Format a number of bytes for people: `1.2 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


class Cache:
    """The entries below one directory, which may take `max_size` bytes together."""

    def __init__(self, directory: Path, max_size: int) -> None:
        self.directory = directory
        self.max_size = max_size

    def find(self, key: str) -> ArrayReader | None:
        """Open an entry, or return None; the entry counts as in use for as long as the reader lives."""
        path = self.directory / key
        try:
            lease = os.open(path / USED, os.O_RDONLY)
        except OSError:
            return None
        try:
            fcntl.flock(lease, fcntl.LOCK_SH)
            with contextlib.suppress(OSError):  # another user's cache, which we can only read
                os.utime(path / USED)
            if os.fstat(lease).st_ino != (path / USED).stat().st_ino:
                raise FileNotFoundError  # removed and built again in the meantime
            reader = ArrayReader(path)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            os.close(lease)
            if not isinstance(error, FileNotFoundError):
                note(f"the cache entry {path} is damaged ({error}); preparing it again")
            return None
        weakref.finalize(reader, os.close, lease)
        return reader

    def find_or_build(
        self, key: str, needed: int, build: Callable[[ArrayWriter], Mapping[str, Any]]
    ) -> tuple[ArrayReader, bool]:
        """Open an entry, or build it while other processes that want the same entry wait.

        Args:
            needed: approximate number of bytes that the entry will take.
            build: appends all rows and returns more facts for `meta.json` (`about`: one line for people).

        Returns:
            The entry, and True if this call built it.

        Raises:
            NoRoomError: the entry doesn't fit into the cache or on the disk, or the directory is not writable.
        """
        try:
            (self.directory / ".locks").mkdir(parents=True, exist_ok=True)
            with self._lock(key):
                reader = self.find(key)
                if reader is not None:
                    return reader, False
                with FileLock(self._lock_path("room")):  # two builders must not reserve the same free space
                    self._make_room(needed)
                    temporary = self._begin(key, needed)
                self._build(temporary, self.directory / key, build)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoRoomError(f"the disk of {self.directory} is full") from error
            if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
                reader = self.find(key)  # another user's cache, which we can only read
                if reader is not None:
                    return reader, False
                raise NoRoomError(f"{self.directory} can't be written ({error.strerror})") from error
            raise
        reader = self.find(key)
        if reader is None:
            raise NoRoomError(f"{self.directory / key} was removed as soon as it was written")
        return reader, True

    def entries(self) -> list[Entry]:
        """List all entries, least recently used first; damaged entries, which nobody can use, come first."""
        entries = [_entry(path.parent) for path in self.directory.glob(f"*/{META}")]
        return sorted((entry for entry in entries if entry is not None), key=lambda entry: entry.used)

    def remove(self, path: Path) -> bool:
        """Remove an entry unless a process uses it; return True if it is gone."""
        if path.is_dir() and not (path / USED).exists():  # damaged: nobody can lock it
            shutil.rmtree(path, ignore_errors=True)
        # Network file systems grant exclusive locks only on files that are open for writing.
        if not os.access(path / USED, os.W_OK):  # another user's, or already gone
            return not path.exists()
        with contextlib.suppress(FileNotFoundError), (path / USED).open("r+b") as lease:
            try:
                fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            # Rename first: a half-removed entry must not look complete.
            gone = path.with_name(f".removed-{path.name}-{os.getpid()}")
            path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        return True

    def remove_dead(self) -> None:
        """Remove what builders and removers left behind when they died."""
        for path in self.directory.glob(".building-*"):
            lock = FileLock(self._lock_path(path.name.removeprefix(".building-")))
            with contextlib.suppress(Timeout, OSError), lock.acquire(timeout=0):
                shutil.rmtree(path, ignore_errors=True)
        for path in self.directory.glob(".removed-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _lock_path(self, key: str) -> Path:
        return self.directory / ".locks" / f"{key}.lock"

    @contextlib.contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        lock = FileLock(self._lock_path(key))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not world.is_together():  # several processes of one run always wait here
                note("waiting for another process that is preparing the same data")
            lock.acquire(timeout=-1)
        try:
            yield
        finally:
            lock.release()

    def _make_room(self, needed: int) -> None:
        size, limit = show_size(needed), f"transform.cache.max_size ({show_size(self.max_size)})"
        if needed > self.max_size:
            raise NoRoomError(f"its rows would take {size}, more than {limit}")
        self.remove_dead()
        entries = self.entries()
        total = sum(entry.bytes for entry in entries) + self._reserved()
        for entry in entries:
            if total + needed <= self.max_size and self._free() >= needed + SPARE:
                return
            if self.remove(entry.path):
                total -= entry.bytes
        if total + needed > self.max_size:
            raise NoRoomError(f"its rows would take {size}, and running jobs use {show_size(total)} of {limit}")
        if self._free() < needed + SPARE:
            raise NoRoomError(f"its rows would take {size}, and {self.directory} has {show_size(self._free())} left")

    def _free(self) -> int:
        return shutil.disk_usage(self.directory).free

    def _reserved(self) -> int:
        """Sum the bytes that other builders have reserved."""
        total = 0
        for path in self.directory.glob(f".building-*/{NEEDED}"):
            with contextlib.suppress(OSError, ValueError):  # completed or given up in the meantime
                total += int(path.read_text())
        return total

    def _begin(self, key: str, needed: int) -> Path:
        """Create the directory in which an entry is built."""
        temporary = self.directory / f".building-{key}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        (temporary / NEEDED).write_text(str(needed))
        return temporary

    def _build(self, temporary: Path, path: Path, build: Callable[[ArrayWriter], Mapping[str, Any]]) -> None:
        try:
            if path.exists() and not self.remove(path):  # a damaged entry
                raise NoRoomError(f"{path} is damaged, and another job uses it")
            with ArrayWriter(temporary) as writer:
                writer.finish(build(writer))
            (temporary / NEEDED).unlink()
            (temporary / USED).touch()
            temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        directory = os.open(self.directory, os.O_RDONLY)  # to make the rename durable
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _entry(path: Path) -> Entry | None:
    """Read the facts about an entry; return None if it was removed in the meantime or is not an entry."""
    try:
        meta = ArrayReader(path).meta
        return Entry(path, meta["bytes"], meta["rows"], str(meta.get("about", "")), (path / USED).stat().st_mtime)
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        if not KEY.fullmatch(path.name):
            return None
    with contextlib.suppress(OSError):
        return Entry(path, sum(file.stat().st_size for file in path.iterdir()), 0, "damaged", 0.0)
    return None
