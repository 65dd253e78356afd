"""Background delivery of a run's journal, so that training never waits for the store."""

import logging
import threading
import time
from collections.abc import Callable

from hfexp.core.errors import first_line
from hfexp.tracking.delivery import Delivery

logger = logging.getLogger(__name__)

INTERVAL = 1.0
"""Seconds between deliveries: small enough to watch a run, large enough to make one batch of many numbers."""
LONGEST_PAUSE = 30.0
"""Seconds between deliveries to a slow store, and between attempts while it can't be reached."""
LARGEST_SHARE = 0.01
"""Share of the training time in which the thread works (more if `LONGEST_PAUSE` demands it); the rest comes after."""
PATIENCE = 10.0
"""Seconds for which a run that has ended retries a store that accepts nothing."""


class Writer:
    """A thread that delivers a run's journal, with retries until the run ends."""

    def __init__(self, delivery: Delivery, then: Callable[[], None]) -> None:
        """Set up the thread; it calls `then` after deliveries that succeed, until one call has succeeded."""
        self._delivery = delivery
        self._then: Callable[[], None] | None = then
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hfexp-record", daemon=True)
        self.tried = threading.Event()
        """Set once the first delivery has succeeded or failed."""
        self.problem: Exception | None = None
        """Error of the last delivery; None if it succeeded."""

    def start(self) -> None:
        self._thread.start()

    def close(self) -> bool:
        """Deliver the rest and end the thread; True if nothing is left."""
        self._closing.set()
        while self._thread.is_alive():
            self._thread.join(0.2)
        return not self._delivery.pending

    def _run(self) -> None:
        self._deliver()
        self.tried.set()
        pause = INTERVAL
        while not self._closing.wait(pause):
            began = time.monotonic()
            succeeded = self._deliver()
            duration = time.monotonic() - began
            pause = min(LONGEST_PAUSE, max(INTERVAL, duration / LARGEST_SHARE if succeeded else 2 * pause))
        started = time.monotonic()
        while not self._deliver():
            if time.monotonic() - started > PATIENCE:
                return
            time.sleep(INTERVAL)
        self._attempt(self._delivery.deliver_deferred)

    def _deliver(self) -> bool:
        if not self._attempt(self._delivery.deliver):
            return False
        if self._then is not None:
            try:
                self._then()
                self._then = None
            except Exception as error:  # retried after the next delivery
                logger.info("could not look after other runs: %s", first_line(error))
        return True

    def _attempt(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except Exception as error:  # on any error training goes on, and the journal keeps the entries
            if self.problem is None and self.tried.is_set() and not self._closing.is_set():
                logger.warning("the record waits, as MLflow does not take it: %s", first_line(error))
            self.problem = error
            return False
        self.problem = None
        return True
