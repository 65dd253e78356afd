"""Links from a run's record to its checkpoints on disk."""

import math
import time
from pathlib import Path

from hfexp.core.checkpoint import best_step, list_checkpoints
from hfexp.tracking.journal import Journal
from hfexp.tracking.models import CheckpointLinks

SECONDS_BETWEEN = 30.0
"""Least seconds between two updates: each checkpoint may replace another."""


class LinkedCheckpoints:
    """Keeps a run's links up to date with its checkpoint directory, with the metrics measured at each step."""

    def __init__(self, directory: Path, journal: Journal, links: CheckpointLinks) -> None:
        self.directory = directory
        self.journal = journal
        self.links = links
        self._updated_at = -math.inf
        self._measured: dict[int, dict[str, float]] = {}
        """Evaluation metrics by step."""
        self._read_until = 0
        self._last_step = 0

    def update(self, delivered_until: int, last: bool) -> None:
        """Link the checkpoints that are on disk, unless the last update was less than `SECONDS_BETWEEN` ago.

        Args:
            delivered_until: position in the journal up to which everything is delivered.
            last: no other call follows, so the update is made in any case.
        """
        if time.monotonic() - self._updated_at < SECONDS_BETWEEN and not last:
            return
        self._updated_at = time.monotonic()
        self._read_measured(delivered_until)
        steps = {int(path.name.rpartition("-")[2]): path for path in list_checkpoints(self.directory)}
        # The metrics of a newer checkpoint may not be delivered yet: a later call links it.
        known = {step: path for step, path in steps.items() if step <= self._last_step or last}
        self.links.update(known, self._measured, best_step(self.directory))

    def _read_measured(self, delivered_until: int) -> None:
        """Read the evaluations that were delivered since the last call."""
        for entry, after in self.journal.read(self._read_until):
            if after > delivered_until:
                return
            self._read_until = after
            if entry["kind"] == "metrics" and not any(name.startswith("system/") for name in entry["metrics"]):
                self._last_step = max(self._last_step, entry["step"])
                values = {name: value for name, value in entry["metrics"].items() if name.startswith("eval_")}
                if values:
                    self._measured[entry["step"]] = self._measured.get(entry["step"], {}) | values
