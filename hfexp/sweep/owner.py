"""Owners of trials where several machines share a storage: each sweeper signs that it lives, and judges the others."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator

from optuna.study import Study

from hfexp.core.process import ProcessId

INTERVAL = 10.0
"""Seconds between two signs of life."""
MISSED = 3
"""Signs of life that a sweeper may miss before it counts as dead."""
GAP = 1.5
"""Intervals between two own signs above which the storage may have been away, or this process suspended."""
BEAT = "hfexp.beat."
"""Prefix of the study's attributes that hold the time of each sweeper's last sign, in seconds since 1970."""


class Owner:
    """This process as one of the sweepers that share a storage."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._process = ProcessId.own()
        self.text = json.dumps([self._process.host, self._process.pid, self._process.started])
        self._signed = self._in_touch_since = 0.0

    def is_alive(self, text: str) -> bool:
        """Tell whether the sweeper with this text (host, pid, start as JSON) still directs its trials.

        Its signs may be old because the storage was away for all. So it counts as alive until this process has been
        in touch with the storage for long enough to judge, unless it is certain that it is gone.
        """
        return not self._is_gone(text) and (not self._is_overdue(text) or not self._may_judge())

    def is_unclear(self, text: str) -> bool:
        """Tell whether that sweeper counts as alive only until this one has been in touch with the storage longer."""
        return not self._is_gone(text) and self._is_overdue(text) and not self._may_judge()

    def sign(self) -> None:
        self._study.set_user_attr(BEAT + self.text, time.time())
        now = time.time()
        if now - self._signed > GAP * INTERVAL:
            self._in_touch_since = now
        self._signed = now

    def _is_gone(self, text: str) -> bool:
        """Tell whether a sweeper is certainly gone: its process has ended, or it never signed, as every owner does."""
        host, pid, started = json.loads(text)
        return ProcessId(host, pid, started).is_gone() or BEAT + text not in self._study.user_attrs

    def _is_overdue(self, text: str) -> bool:
        return time.time() - self._study.user_attrs[BEAT + text] >= MISSED * INTERVAL

    def _may_judge(self) -> bool:
        now = time.time()
        return now - self._signed <= GAP * INTERVAL and now - self._in_touch_since >= MISSED * INTERVAL

    @contextlib.contextmanager
    def signing(self) -> Iterator[None]:
        """Sign regularly from a thread while the block runs."""
        done = threading.Event()
        self.sign()

        def go_on() -> None:
            while not done.wait(INTERVAL):
                with contextlib.suppress(Exception):  # the storage is away: others may take over this one's trials
                    self.sign()

        thread = threading.Thread(target=go_on, name="hfexp-sweep-owner", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
