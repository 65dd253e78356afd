"""Learning curves of the runs of a sweep, read from what they leave on disk while they train."""

from dataclasses import dataclass, field
from pathlib import Path

from hfexp.checkpoints import list_checkpoints, trainer_state
from hfexp.tracking.journal import FOLDER, JOURNAL, parse_entry

Curve = dict[int, float]
"""Value by step."""


@dataclass
class Curves:
    """What one metric of the evaluations was, by run directory; each file is read on from where it was read before."""

    metric: str
    _read_until: dict[Path, int] = field(default_factory=dict)
    _known: dict[Path, Curve] = field(default_factory=dict)

    def of(self, run_dir: Path) -> Curve:
        """The curve of a run, as far as it has come; empty if nothing is known of it."""
        journal = run_dir / FOLDER / JOURNAL
        try:
            return self._from_journal(journal) if journal.exists() else self._from_checkpoint(run_dir)
        except (OSError, ValueError):  # it is being written, or was removed
            return self._known.get(journal, {})

    def _from_journal(self, journal: Path) -> Curve:
        curve = self._known.setdefault(journal, {})
        with journal.open("rb") as file:
            file.seek(self._read_until.get(journal, 0))
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read_until[journal] = self._read_until.get(journal, 0) + len(line)
                if self.metric.encode() in line:
                    entry = parse_entry(line)
                    if entry and entry["kind"] == "metrics" and self.metric in entry["metrics"]:
                        curve[entry["step"]] = float(entry["metrics"][self.metric])
        return curve

    def _from_checkpoint(self, run_dir: Path) -> Curve:
        """Without a record, the newest checkpoint knows what was measured before it."""
        for checkpoint in reversed(list_checkpoints(run_dir / "checkpoints")):
            history = trainer_state(checkpoint).get("log_history", [])
            return {entry["step"]: float(entry[self.metric]) for entry in history if self.metric in entry}
        return {}
