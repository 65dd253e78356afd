"""Files that several processes, and perhaps several users, work on: a lock, and atomic writes."""

import contextlib
import fcntl
import os
from pathlib import Path

from filelock import FileLock

from hfexp.core.errors import ConfigError


class SharedLock(FileLock):
    """A file lock whose error says what to do if the lock file belongs to another user.

    Raises:
        ConfigError: raised by `acquire` and `with` if this user may not write the lock file.
    """

    def _acquire(self) -> None:
        try:
            super()._acquire()
        except PermissionError as error:
            raise ConfigError(
                f"{self.lock_file} can't be written: another user created it; set output_dir "
                "to a directory of your own"
            ) from error


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
