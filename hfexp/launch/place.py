"""The environment, directory and paths of a launcher, restored in processes forked from the server."""

import multiprocessing
import os
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A snapshot of a process's state; a forked process would otherwise have the fork server's, which is older."""

    environment: dict[str, str]
    directory: str
    path: tuple[str, ...]
    argv: tuple[str, ...]
    start_method: str | None
    """Start method of multiprocessing, which data loader workers use; None: the platform's default."""

    @classmethod
    def here(cls) -> "Place":
        method = multiprocessing.get_start_method(allow_none=True)
        return cls(dict(os.environ), os.getcwd(), tuple(sys.path), tuple(sys.argv), method)

    def enter(self) -> None:
        os.environ.clear()
        os.environ.update(self.environment)
        os.chdir(self.directory)
        sys.path[:] = [path or self.directory for path in self.path]
        sys.argv[:] = self.argv
        # Python makes a process that comes from a fork server use fork servers for all its own children.
        multiprocessing.set_start_method(self.start_method, force=True)  # pyright: ignore
