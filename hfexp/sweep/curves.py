"""Learning curves of a sweep's runs, read from their journals and checkpoints while they train."""

from dataclasses import dataclass, field
from pathlib import Path

from hfexp.core.checkpoint import list_checkpoints, trainer_state
from hfexp.tracking.journal import FOLDER, JOURNAL, parse_entry

Curve = dict[int, float]
"""Value of the metric by training step."""


@dataclass
class Curves:
    """Curves of one evaluation metric by run directory; a journal is read on from where the last call stopped."""

    metric: str
    _read_until: dict[Path, int] = field(default_factory=dict)
    _known: dict[Path, Curve] = field(default_factory=dict)

    def of(self, run_dir: Path) -> Curve:
        """Return the curve of a run so far; empty if it has no evaluation yet."""
        journal = run_dir / FOLDER / JOURNAL
        try:
            return self._from_journal(journal) if journal.exists() else self._from_checkpoint(run_dir)
        except (OSError, ValueError):  # the run is writing the file, or has removed it
            return self._known.get(journal, {})

    def _from_journal(self, journal: Path) -> Curve:
        curve = self._known.setdefault(journal, {})
        with journal.open("rb") as file:
            file.seek(self._read_until.get(journal, 0))
            for line in file:
                if not line.endswith(b"\n"):  # the run is still writing this line: the next call reads it
                    break
                self._read_until[journal] = self._read_until.get(journal, 0) + len(line)
                if self.metric.encode() in line:
                    entry = parse_entry(line)
                    if entry and entry["kind"] == "metrics" and self.metric in entry["metrics"]:
                        curve[entry["step"]] = float(entry["metrics"][self.metric])
        return curve

    def _from_checkpoint(self, run_dir: Path) -> Curve:
        """Read the evaluations before the newest checkpoint, for a run without a journal (no tracking)."""
        for checkpoint in reversed(list_checkpoints(run_dir / "checkpoints")):
            history = trainer_state(checkpoint).get("log_history", [])
            return {entry["step"]: float(entry[self.metric]) for entry in history if self.metric in entry}
        return {}
