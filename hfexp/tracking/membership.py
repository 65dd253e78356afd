"""The tie between a job and its sweep: the job's key `point`, and two files in the sweep's directory.

A job only gets `point=<directory of the sweep>:<trial>:<replicate>`. It reads the rest from `sweep.json` in that
directory, and writes the path of its run directory to `points/<trial>.<replicate>.json` when it opens it. The
`run.json` of the run directory says how the run ended; it is written atomically. So a sweep that was killed at any
moment can tell, when it is started again, which runs have finished and which are to be continued.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hfexp.core.files import write_private
from hfexp.core.outside import DamagedRecord, read_record, why_foreign

DEFINITION = "sweep.json"
POINTS = "points"


@dataclass
class SweepInfo:
    """`sweep.json`: facts about a sweep that each of its jobs needs."""

    name: str
    study: str
    """Name of the study in Optuna's storage."""
    storage: str
    """SQLAlchemy URL; it may hold a password, so only the owner can read the file, and no record contains the URL."""
    parent_run_id: str | None
    """Id of the sweep's own MLflow run; None without one, or while the store could not be reached."""
    metrics: list[str] = field(default_factory=list)
    """Metrics to optimise; empty: the metric that chooses the best model."""
    directions: list[str] = field(default_factory=list)
    pruner: str = "none"
    pruner_args: dict[str, Any] = field(default_factory=dict)


@dataclass
class _PointFile:
    """Content of a file in `points`."""

    run_dir: str


@dataclass(frozen=True)
class TrialKey:
    """The parsed key `point`."""

    directory: Path
    trial: int
    replicate: int

    @classmethod
    def parse(cls, text: str) -> "TrialKey":
        directory, trial, replicate = text.rsplit(":", 2)
        return cls(Path(directory), int(trial), int(replicate))

    def __str__(self) -> str:
        return f"{self.directory}:{self.trial}:{self.replicate}"

    @property
    def file(self) -> Path:
        """Return the file with the path of this point's run directory."""
        return self.directory / POINTS / f"{self.trial}.{self.replicate}.json"


def write_sweep_info(directory: Path, sweep_info: SweepInfo) -> None:
    """Write `sweep.json` atomically, readable by its owner only."""
    write_private(directory / DEFINITION, json.dumps(asdict(sweep_info), indent=1))


def read_sweep_info(directory: Path) -> SweepInfo:
    """Read `sweep.json`.

    Raises:
        FileNotFoundError: it is missing.
        DamagedRecord: it is damaged.
    """
    return read_record(directory / DEFINITION, SweepInfo)


def note_run_directory(point: TrialKey, run_dir: Path) -> None:
    """Write down where the run directory of a point is."""
    write_private(point.file, json.dumps({"run_dir": str(run_dir)}))


def run_directory_of(point: TrialKey) -> Path | None:
    """Return the run directory of a point; None if it has not begun, or if the noted path isn't the user's own run."""
    try:
        run_dir = Path(read_record(point.file, _PointFile).run_dir)
    except (FileNotFoundError, DamagedRecord):
        return None
    output_dir = point.directory.parent.parent
    return None if why_foreign(run_dir, output_dir) else run_dir
