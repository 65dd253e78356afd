"""The surroundings that a process has when it is started by hand, for one that is forked from a server."""

import multiprocessing
import os
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """The surroundings of a process; the fork server's are those of an earlier moment."""

    environment: dict[str, str]
    directory: str
    path: tuple[str, ...]
    argv: tuple[str, ...]
    start_method: str | None
    """How multiprocessing starts processes (data loader workers); None: as is usual here."""

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
        # Python would have a process that a fork server made use fork servers for everything.
        multiprocessing.set_start_method(self.start_method, force=True)  # pyright: ignore
