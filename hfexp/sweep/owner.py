"""Which sweeper a trial belongs to, where several machines share a storage, and whether that one is alive."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator

from optuna.study import Study

from hfexp.process import ProcessId

INTERVAL = 10.0
"""Seconds between two signs of life."""
MISSED = 3
"""Signs of life that a sweeper may miss before it is taken for dead."""
BEAT = "hfexp.beat."


class Owner:
    """This process, among those that share a storage."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._process = ProcessId.own()
        self.text = json.dumps([self._process.host, self._process.pid, self._process.started])

    def is_alive(self, text: str) -> bool:
        """Whether the sweeper with this text still directs: it signs regularly, if it is not gone for certain."""
        host, pid, started = json.loads(text)
        if ProcessId(host, pid, started).is_gone():
            return False
        signed = self._study.user_attrs.get(BEAT + text)
        return signed is not None and time.time() - signed < MISSED * INTERVAL

    def sign(self) -> None:
        self._study.set_user_attr(BEAT + self.text, time.time())

    @contextlib.contextmanager
    def signing(self) -> Iterator[None]:
        """Signs of life meanwhile, from a thread."""
        done = threading.Event()
        self.sign()

        def go_on() -> None:
            while not done.wait(INTERVAL):
                with contextlib.suppress(Exception):  # a storage that is away: others may then take over
                    self.sign()

        thread = threading.Thread(target=go_on, name="hfexp-sweep-owner", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
