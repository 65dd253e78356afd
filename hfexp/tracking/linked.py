"""Which checkpoints of a run are on disk, as its record says it."""

import math
import time
from pathlib import Path

from hfexp.checkpoints import best_step, list_checkpoints
from hfexp.tracking.journal import Journal
from hfexp.tracking.models import CheckpointLinks

SECONDS_BETWEEN = 30.0


class LinkedCheckpoints:
    """Keeps the links of a run up to date with its directory, and each with what was measured at its step."""

    def __init__(self, directory: Path, journal: Journal, links: CheckpointLinks) -> None:
        self.directory = directory
        self.journal = journal
        self.links = links
        self._updated_at = -math.inf
        self._measured: dict[int, dict[str, float]] = {}
        """Results of evaluations, by step."""
        self._read_until = 0
        self._last_step = 0

    def update(self, delivered_until: int, last: bool) -> None:
        """Link what is there: at most every half minute, as each checkpoint may replace another, and at the end.

        Args:
            delivered_until: position in the journal up to which the store knows everything.
            last: no other call follows.
        """
        if time.monotonic() - self._updated_at < SECONDS_BETWEEN and not last:
            return
        self._updated_at = time.monotonic()
        self._read_measured(delivered_until)
        steps = {int(path.name.rpartition("-")[2]): path for path in list_checkpoints(self.directory)}
        # A newer one is on disk already, but what was measured at its step is still on its way: its turn will come.
        known = {step: path for step, path in steps.items() if step <= self._last_step or last}
        self.links.update(known, self._measured, best_step(self.directory))

    def _read_measured(self, delivered_until: int) -> None:
        """Take note of the evaluations that were delivered since the last time."""
        for entry, after in self.journal.read(self._read_until):
            if after > delivered_until:
                return
            self._read_until = after
            if entry["kind"] == "metrics" and not any(name.startswith("system/") for name in entry["metrics"]):
                self._last_step = max(self._last_step, entry["step"])
                values = {name: value for name, value in entry["metrics"].items() if name.startswith("eval_")}
                if values:
                    self._measured[entry["step"]] = self._measured.get(entry["step"], {}) | values
