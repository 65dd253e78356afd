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
GAP = 1.5
"""Intervals between two signs from which on the storage may have been away, or this process asleep."""
BEAT = "hfexp.beat."


class Owner:
    """This process, among those that share a storage."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._process = ProcessId.own()
        self.text = json.dumps([self._process.host, self._process.pid, self._process.started])
        self._signed = self._in_touch_since = 0.0

    def is_alive(self, text: str) -> bool:
        """Whether the sweeper with this text still directs: it signs regularly, if it is not gone for certain.

        As long as others may have been kept from signing by what kept this one, their signs are not too old.
        """
        return not self._is_gone(text) and (not self._is_overdue(text) or not self._may_judge())

    def is_unclear(self, text: str) -> bool:
        """Whether that sweeper only counts as alive until this one has been in touch with the storage for longer."""
        return not self._is_gone(text) and self._is_overdue(text) and not self._may_judge()

    def sign(self) -> None:
        self._study.set_user_attr(BEAT + self.text, time.time())
        now = time.time()
        if now - self._signed > GAP * INTERVAL:
            self._in_touch_since = now
        self._signed = now

    def _is_gone(self, text: str) -> bool:
        """For certain; whoever has trials has signed before."""
        host, pid, started = json.loads(text)
        return ProcessId(host, pid, started).is_gone() or BEAT + text not in self._study.user_attrs

    def _is_overdue(self, text: str) -> bool:
        return time.time() - self._study.user_attrs[BEAT + text] >= MISSED * INTERVAL

    def _may_judge(self) -> bool:
        now = time.time()
        return now - self._signed <= GAP * INTERVAL and now - self._in_touch_since >= MISSED * INTERVAL

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
