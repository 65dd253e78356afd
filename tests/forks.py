"""Commands as forks of one warm process, in the namespaces that this program was started in.

    python forks.py SOCKET

It serves the tests, which may be in other namespaces, at a Unix socket; see `Forks`.
"""

import sys
import time
from multiprocessing.managers import BaseManager
from pathlib import Path

from programs import Fork

AUTHKEY = b"hfexp"


class RemoteFork(Fork):
    """A fork that answers by ids of processes, which can be sent."""

    def pids(self) -> list[int]:
        """It and all that it has started."""
        return [process.pid for process in self.family()]

    def pid(self) -> int:
        return self._process.pid or 0


class Forks(BaseManager):
    """Starts commands: `fork(place, words)` has the methods of `RemoteFork`."""

    def __init__(self, socket: Path) -> None:
        super().__init__(str(socket), AUTHKEY)

    def wait(self, seconds: float) -> "Forks":
        """Connect once the program serves."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.connect()
                return self
            except OSError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)


Forks.register("fork", RemoteFork)

if __name__ == "__main__":
    Forks(Path(sys.argv[1])).get_server().serve_forever()
