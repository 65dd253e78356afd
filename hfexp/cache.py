"""A directory of prepared rows that jobs share: found by content, built once, evicted when space is short.

    <directory>/<key>/          an entry: what `hfexp.arrays` writes, and `used`
    <directory>/.building-<key> an entry that is being built, or whose builder died; renamed when it is whole;
                                `needed` in it is the room that was made for it
    <directory>/.locks/         one lock file per key, held while it is built

The modification time of `used` is the time of the last use; whoever uses the entry holds a shared `flock(2)` on it,
and nothing is evicted while somebody does.
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

from hfexp.arrays import META, ArrayReader, ArrayWriter
from hfexp.errors import ConfigError
from hfexp.launch import world
from hfexp.screen import note

VARIABLE = "HFEXP_CACHE"
"""Environment variable with the directory of the cache."""
USED, NEEDED = "used", "needed"
KEY = re.compile("[0-9a-f]{32}")
"""An entry's name; what is called otherwise and can't be read is somebody else's."""
SPARE = 10**9
"""Bytes of the disk that building an entry leaves free."""
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
          "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}  # fmt: skip


class NoRoomError(Exception):
    """An entry can't be kept; the message says why."""


@dataclass(frozen=True)
class Entry:
    """A whole entry."""

    path: Path
    bytes: int
    rows: int
    about: str
    used: float
    """When it was last used, in seconds since 1970."""


def default_directory() -> Path:
    """`HFEXP_CACHE`, else `hfexp` in the user's cache directory."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hfexp"


def parse_size(text: str | int) -> int:
    """Bytes of `20GB`, `500 MiB` or a plain number.

    Raises:
        ConfigError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(text).strip().lower())
    if found is None or found.group(2) not in _UNITS:
        raise ConfigError(f"transform.cache.max_size={text}: a size is needed, such as 20GB, 500MB or 1TiB")
    return int(float(found.group(1)) * _UNITS[found.group(2)])


def show_size(count: float) -> str:
    """Bytes as a person reads them: `1.2 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


class Cache:
    """Entries below one directory, of at most `max_size` bytes together."""

    def __init__(self, directory: Path, max_size: int) -> None:
        self.directory = directory
        self.max_size = max_size

    def find(self, key: str) -> ArrayReader | None:
        """Open an entry, or None. It counts as used as long as the reader lives."""
        path = self.directory / key
        try:
            lease = os.open(path / USED, os.O_RDONLY)
        except OSError:
            return None
        try:
            fcntl.flock(lease, fcntl.LOCK_SH)
            with contextlib.suppress(OSError):  # somebody else's cache, which we may only read
                os.utime(path / USED)
            if os.fstat(lease).st_ino != (path / USED).stat().st_ino:
                raise FileNotFoundError  # removed meanwhile, and built again
            reader = ArrayReader(path)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            os.close(lease)
            if not isinstance(error, FileNotFoundError):
                note(f"{path} is damaged ({error}) and is prepared again")
            return None
        weakref.finalize(reader, os.close, lease)
        return reader

    def find_or_build(
        self, key: str, needed: int, build: Callable[[ArrayWriter], Mapping[str, Any]]
    ) -> tuple[ArrayReader, bool]:
        """Open an entry, or build it; whoever wants the same one meanwhile waits.

        Args:
            needed: bytes that it will take, about.
            build: appends all rows and returns what is said about them (`about`: one line for people).

        Returns:
            The entry and whether it was built here.

        Raises:
            NoRoomError: it doesn't fit into the cache or on the disk, or the directory can't be written.
        """
        try:
            (self.directory / ".locks").mkdir(parents=True, exist_ok=True)
            with self._lock(key):
                reader = self.find(key)
                if reader is not None:
                    return reader, False
                with FileLock(self._lock_path("room")):
                    self._make_room(needed)
                    temporary = self._begin(key, needed)
                self._build(temporary, self.directory / key, build)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoRoomError(f"the disk of {self.directory} is full") from error
            if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
                reader = self.find(key)  # somebody else's cache, which we may only read
                if reader is not None:
                    return reader, False
                raise NoRoomError(f"{self.directory} can't be written ({error.strerror})") from error
            raise
        reader = self.find(key)
        if reader is None:
            raise NoRoomError(f"{self.directory / key} was removed as soon as it was written")
        return reader, True

    def entries(self) -> list[Entry]:
        """List all entries, the longest unused first; damaged ones, which nobody can use, before the others."""
        found = [_entry(path.parent) for path in self.directory.glob(f"*/{META}")]
        return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.used)

    def remove(self, path: Path) -> bool:
        """Remove an entry, unless somebody uses it."""
        if path.is_dir() and not (path / USED).exists():  # damaged: nobody can hold it
            shutil.rmtree(path, ignore_errors=True)
        # For writing: file systems over a network lend exclusive locks on nothing else.
        if not os.access(path / USED, os.W_OK):  # somebody else's, or gone
            return not path.exists()
        with contextlib.suppress(FileNotFoundError), (path / USED).open("r+b") as lease:
            try:
                fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            # Renamed first: a half-removed entry must not look like one.
            gone = path.with_name(f".removed-{path.name}-{os.getpid()}")
            path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        return True

    def remove_dead(self) -> None:
        """Remove what builders and removers that died have left."""
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
            if not world.is_together():  # whose processes all begin with this
                note("waiting for another process, which prepares the same data")
            lock.acquire(timeout=-1)
        try:
            yield
        finally:
            lock.release()

    def _make_room(self, needed: int) -> None:
        size, limit = show_size(needed), f"transform.cache.max_size ({show_size(self.max_size)})"
        if needed > self.max_size:
            raise NoRoomError(f"they would take {size}, more than {limit}")
        self.remove_dead()
        entries = self.entries()
        total = sum(entry.bytes for entry in entries) + self._reserved()
        for entry in entries:
            if total + needed <= self.max_size and self._free() >= needed + SPARE:
                return
            if self.remove(entry.path):
                total -= entry.bytes
        if total + needed > self.max_size:
            raise NoRoomError(f"they would take {size}, and running jobs use {show_size(total)} of {limit}")
        if self._free() < needed + SPARE:
            raise NoRoomError(f"they would take {size}, and {self.directory} has {show_size(self._free())} left")

    def _free(self) -> int:
        return shutil.disk_usage(self.directory).free

    def _reserved(self) -> int:
        """Bytes for which other builders have made room."""
        total = 0
        for path in self.directory.glob(f".building-*/{NEEDED}"):
            with contextlib.suppress(OSError, ValueError):  # it is whole by now, or given up
                total += int(path.read_text())
        return total

    def _begin(self, key: str, needed: int) -> Path:
        """Make the directory in which an entry is built."""
        temporary = self.directory / f".building-{key}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        (temporary / NEEDED).write_text(str(needed))
        return temporary

    def _build(self, temporary: Path, path: Path, build: Callable[[ArrayWriter], Mapping[str, Any]]) -> None:
        try:
            if path.exists() and not self.remove(path):  # a damaged one
                raise NoRoomError(f"{path} is damaged, and another job uses it")
            with ArrayWriter(temporary) as writer:
                writer.finish(build(writer))
            (temporary / NEEDED).unlink()
            (temporary / USED).touch()
            temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        directory = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _entry(path: Path) -> Entry | None:
    """Read what is known of an entry; None if it was removed meanwhile, or is none."""
    try:
        meta = ArrayReader(path).meta
        return Entry(path, meta["bytes"], meta["rows"], str(meta.get("about", "")), (path / USED).stat().st_mtime)
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        if not KEY.fullmatch(path.name):
            return None
    with contextlib.suppress(OSError):
        return Entry(path, sum(file.stat().st_size for file in path.iterdir()), 0, "damaged", 0.0)
    return None
