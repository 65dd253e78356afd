"""The tie between a job and its sweep: the job's key `point`, and two files in the sweep's directory.

A job only gets `point=<directory of the sweep>:<trial>:<replicate>`. It reads the rest from `sweep.json` in that
directory, and writes the path of its run directory to `points/<trial>.<replicate>.json` when it opens it. The
`run.json` of the run directory says how the run ended; it is written atomically. So a sweep that was killed at any
moment can tell, when it is started again, which runs have finished and which are to be continued.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hfexp.core.config import Config
from hfexp.core.errors import ConfigError
from hfexp.core.files import write_private
from hfexp.core.outside import DamagedRecord, read_record, why_foreign
from hfexp.core.process import ProcessId
from hfexp.tracking.journal import FOLDER, JOURNAL, PROCESS, Entry, parse_entry, recorded_run_id

DEFINITION = "sweep.json"
BEST = "best.json"
"""File with the values of the best runs so far: one, or with several metrics those that no other run beats in all."""
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
    key: str | None = None
    """Key of the sweep's own MLflow run if several hosts share it (`hfexp.run_key`); None: `directory` has it."""
    experiment: str | None = None
    """MLflow experiment of all runs of a sweep that several hosts share."""


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

    @property
    def marker(self) -> Path:
        """Return the file that exists if this point was taken over from an earlier start or from another host."""
        return self.directory / POINTS / f"{self.trial}.{self.replicate}.taken"


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


def is_best_so_far(point: str, values: Sequence[float]) -> bool:
    """Tell whether no run of the sweep that ended before has better values, and note these if so.

    Two jobs that end at the same moment may both be told that they are the best.
    """
    directory = TrialKey.parse(point).directory
    signs = [-1.0 if direction == "maximize" else 1.0 for direction in read_sweep_info(directory).directions]
    costs = [sign * value for sign, value in zip(signs, values, strict=True)]
    try:
        known = read_record(directory / BEST, list[list[float]])
    except (FileNotFoundError, DamagedRecord):
        known = []
    if any(other != costs and _no_worse(other, costs) for other in known):
        return False
    kept = [other for other in known if not _no_worse(costs, other)]
    write_private(directory / BEST, json.dumps([*kept, costs]))
    return True


def _no_worse(costs: Sequence[float], others: Sequence[float]) -> bool:
    return all(own <= other for own, other in zip(costs, others, strict=True))


# Nesting of a sweep's runs in MLflow, whichever of parent and child is delivered first.
#
# MLflow nests by the tag `mlflow.parentRunId`. While the store is away, no run has an id. Parent and child then share
# the key with which the parent's journal begins, and the one that is delivered last sets the tag.


PARENT = "mlflow.parentRunId"
TRIAL, REPLICATE = "hfexp.trial", "hfexp.replicate"
VALUES, PRUNED = "hfexp.values", "hfexp.pruned"
"""Tags of a sweep's run: the values that the sweep optimises, as JSON, and the step at which it was pruned."""
KEY = "hfexp.run_key"
"""Tag of every run: its own key, which it has before the store gives it an id."""
SWEEP_KEY = "hfexp.sweep_key"
"""Tag of a child: the parent's `hfexp.run_key`."""
KIND, SWEEP = "hfexp.kind", "sweep"
"""Tag of a sweep's own run, and its value."""
RANKING = "hfexp.ranking"
"""Tag of a sweep's own run: the numbers of its finished trials, best first."""
PAGE = 1000
ONLY_BEST = "@best"


def register_of_run(config: Config) -> str | None:
    """Return the name to register a run's model under; None in a sweep with `NAME@best`, which is for its best run."""
    register = config.tracking.register or ""
    name = register.removesuffix(ONLY_BEST)
    return None if not name or (name != register and config.point is not None) else name


def register_of_sweep(config: Config) -> str | None:
    """Return the name to register the best model of a sweep under; None unless `NAME@best` is asked for."""
    register = config.tracking.register or ""
    return register.removesuffix(ONLY_BEST) if register.endswith(ONLY_BEST) else None


def sweep_info_of(point: str) -> SweepInfo:
    """Read what a point must know of its sweep.

    Raises:
        ConfigError: `sweep.json` in the sweep's directory can't be read.
    """
    directory = TrialKey.parse(point).directory
    try:
        return read_sweep_info(directory)
    except (OSError, DamagedRecord) as error:
        raise ConfigError(
            f"point={point}: {directory / DEFINITION} can't be read ({error}); `hfexp -m` sets this key"
        ) from error


def child_tags(point: str | None) -> dict[str, str]:
    """Return the tags that tie a run to its sweep; empty for a run outside a sweep."""
    if point is None:
        return {}
    parsed, sweep_info = TrialKey.parse(point), sweep_info_of(point)
    tags = {"hfexp.sweep": sweep_info.name, TRIAL: str(parsed.trial), REPLICATE: str(parsed.replicate)}
    opened = opening_of(parsed.directory)
    if sweep_info.key or opened:
        tags[SWEEP_KEY] = sweep_info.key or (opened or {})["key"]
    parent = sweep_info.parent_run_id or recorded_run_id(parsed.directory)
    return tags | ({PARENT: parent} if parent else {})


def is_shared(point: str | None) -> bool:
    """Tell whether a run is of a sweep whose record several hosts share."""
    return point is not None and sweep_info_of(point).key is not None


def runs_of_point(client: Any, experiment_id: str | None, tags: Mapping[str, str]) -> list[Any]:
    """Return the MLflow runs of the point that these tags of a run name, the latest start first."""
    names = (SWEEP_KEY, TRIAL, REPLICATE)
    condition = " and ".join(f"tags.`{name}` = '{tags[name]}'" for name in names)
    return list(client.search_runs([experiment_id], condition, order_by=["attributes.start_time DESC"]))


def claim_run(client: Any, run_id: str) -> None:
    """Set the tags of this process on a run of a shared sweep, after which no other host adds to it."""
    from mlflow.entities import RunTag

    own = ProcessId.own()
    values = (own.host, str(own.pid), own.started)
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in zip(PROCESS, values, strict=True)])


def opening_of(directory: Path) -> Entry | None:
    """Read the `create` entry of a journal that another process may be writing; None if it has none."""
    try:
        with (directory / FOLDER / JOURNAL).open("rb") as file:
            entry = parse_entry(file.readline())
    except OSError:
        return None
    return entry if entry and entry["kind"] == "create" else None


def recorded_run(run_dir: Path) -> str:
    """Return the MLflow id of the run in a directory.

    Raises:
        LookupError: the run is not recorded yet.
    """
    run_id = recorded_run_id(run_dir)
    if run_id is None:
        raise LookupError(f"the run of {run_dir} is not recorded yet")
    return run_id


def connect(client: Any, experiment_id: str | None, run_id: str | None, create: Entry) -> None:
    """Tie a run that was just created to its parent; tie a sweep to the children that were delivered before it."""
    join_parent(client, experiment_id, run_id, create)
    if create["tags"].get(KIND) != SWEEP:
        return
    token = None
    while True:
        condition = f"tags.`{SWEEP_KEY}` = '{create['key']}'"
        children = client.search_runs([experiment_id], condition, max_results=PAGE, page_token=token)
        for child in children:
            client.set_tag(child.info.run_id, PARENT, run_id)
        token = children.token
        if not token:
            return


def join_parent(client: Any, experiment_id: str | None, run_id: str | None, create: Entry) -> None:
    """Tag a run with its parent, if the parent's id was not known when the run began."""
    key = create["tags"].get(SWEEP_KEY)
    if key is None or PARENT in create["tags"]:
        return
    parents = client.search_runs([experiment_id], f"tags.`{KEY}` = '{key}'")
    if parents:
        client.set_tag(run_id, PARENT, parents[0].info.run_id)
