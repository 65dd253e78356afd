"""What ties a job to its sweep: two files in the sweep's directory, and the key `point` of the job.

`point=<directory of the sweep>:<trial>:<replicate>` is all that a job is told. `sweep.json` there says the rest, and
`points/<trial>.<replicate>.json` where the job's run directory is, from the moment on in which it is opened. How the
run ended is in the `run.json` of that directory, written whole with its status: so a sweep that is killed at any
moment knows, when it is started again, what was finished and what is to be continued.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hfexp.outside import DamagedRecord, read_record, why_foreign
from hfexp.whole_files import write_whole

DEFINITION = "sweep.json"
POINTS = "points"


@dataclass
class Membership:
    """`sweep.json`: what every job of a sweep needs of it."""

    name: str
    study: str
    """Name in Optuna's storage."""
    storage: str
    """SQLAlchemy URL, which may hold a password: the file is for its owner only, and no part of any record."""
    parent_run_id: str | None
    """MLflow run of the sweep."""
    metrics: list[str] = field(default_factory=list)
    """Empty: the metric that chooses the best model."""
    directions: list[str] = field(default_factory=list)
    pruner: str = "none"
    pruner_args: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Place:
    """A file of `points`."""

    run_dir: str


@dataclass(frozen=True)
class Point:
    """The key `point` in its parts."""

    directory: Path
    trial: int
    replicate: int

    @classmethod
    def parse(cls, text: str) -> "Point":
        directory, trial, replicate = text.rsplit(":", 2)
        return cls(Path(directory), int(trial), int(replicate))

    def __str__(self) -> str:
        return f"{self.directory}:{self.trial}:{self.replicate}"

    @property
    def file(self) -> Path:
        """Says where the run directory of this point is."""
        return self.directory / POINTS / f"{self.trial}.{self.replicate}.json"


def write_membership(directory: Path, membership: Membership) -> None:
    """Write `sweep.json`, whole or not at all, readable by its owner only."""
    write_private(directory / DEFINITION, json.dumps(asdict(membership), indent=1))


def read_membership(directory: Path) -> Membership:
    """Read `sweep.json`.

    Raises:
        FileNotFoundError: it is missing.
        DamagedRecord: it is damaged.
    """
    return read_record(directory / DEFINITION, Membership)


def note_run_directory(point: Point, run_dir: Path) -> None:
    """Write down where the run directory of a point is."""
    write_private(point.file, json.dumps({"run_dir": str(run_dir)}))


def run_directory_of(point: Point) -> Path | None:
    """Give the run directory of a point; None if it has not begun, or if what is noted is not one of the user's."""
    try:
        run_dir = Path(read_record(point.file, _Place).run_dir)
    except (FileNotFoundError, DamagedRecord):
        return None
    output_dir = point.directory.parent.parent
    return None if why_foreign(run_dir, output_dir) else run_dir


def write_private(path: Path, text: str) -> None:
    """Write a file whole or not at all, readable by its owner only."""
    write_whole(path, text, 0o600)
