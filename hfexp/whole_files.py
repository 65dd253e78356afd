"""Files that are whole or not there, whenever the process that writes them is killed."""

import contextlib
import fcntl
import os
from pathlib import Path


class WholeFile:
    """A file that is written beside its place and moved there once it is whole.

    What processes that died have left beside it is removed: nobody holds its `flock(2)` any more.
    """

    def __init__(self, path: Path, mode: int = 0o666) -> None:
        """Raises OSError if nothing can be written there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}")
        """To be written to."""
        self._remove_left()
        self._lock = self._create(mode)

    def close(self, keep: bool) -> None:
        """Bring the file to its place, or remove it."""
        if keep:
            os.fsync(self._lock)
            self.temporary.replace(self.path)
        else:
            self.temporary.unlink(missing_ok=True)
        os.close(self._lock)

    def _create(self, mode: int) -> int:
        while True:
            lock = os.open(self.temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock).st_nlink:
                return lock
            os.close(lock)  # another process took it for a dead one's before it was locked

    def _remove_left(self) -> None:
        prefix = f".{self.path.name}."
        for left in self.path.parent.iterdir():
            if left.name.startswith(prefix) and left.name.removeprefix(prefix).isdigit():
                with contextlib.suppress(OSError), left.open("rb+") as file:  # somebody else's, or in use
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    left.unlink()


def write_whole(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a text file."""
    file = WholeFile(path, mode)
    done = False
    try:
        file.temporary.write_text(text)
        done = True
    finally:
        file.close(done)
