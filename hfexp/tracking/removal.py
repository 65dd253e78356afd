"""Removal of runs from the disk and from the tracking store, and of what finished runs no longer need."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from hfexp.core.errors import ConfigError, RunError, first_line
from hfexp.core.files import bytes_below, sqlite_path
from hfexp.core.outside import why_foreign
from hfexp.core.process import ProcessId
from hfexp.tracking.run_directory import held_run
from hfexp.tracking.runs import RunRecord, home_of, is_sweep, read_runs

REMOVING = ".removing-"
"""Prefix of a directory that is being removed; what a killed removal has left is found by it."""


@dataclass
class Holdings:
    """All that a run occupies."""

    run: RunRecord
    home: Path | None
    """Run directory; None if it is not on this machine."""
    stored: list[Path] = field(default_factory=list)
    """Directories with the artifacts and models that the store keeps on this machine."""
    models: list[str] = field(default_factory=list)
    """Ids of MLflow's logged models."""
    registered: str = ""
    """A version of a registered model that was made from the run; empty if there is none."""

    @property
    def bytes_here(self) -> int:
        return bytes_below(self.home) if self.home else 0

    @property
    def bytes_stored(self) -> int:
        return sum(map(bytes_below, self.stored))


def with_sweeps(uri: str, runs: list[RunRecord], names: set[str]) -> list[RunRecord]:
    """Return the runs, and after them the own runs of the sweeps with these names.

    Raises:
        ConfigError: only a part of a sweep would be removed; its record would lose points.
    """
    known = read_runs(uri)
    sweeps = [run for run in known if is_sweep(run)]
    ids, known_sweeps = {run.run_id for run in runs}, {run.name for run in sweeps}
    removed = {run.name for run in sweeps if run.run_id in ids or run.name in names}
    for run in known:
        sweep = run.tags.get("hfexp.sweep")
        if sweep in known_sweeps and (run.run_id in ids) != (sweep in removed):
            raise ConfigError(f"{run.name} is a job of the sweep {sweep}, which is removed as a whole: sweep={sweep}")
    jobs = [run for run in runs if not is_sweep(run)]
    return [*jobs, *(run for run in sweeps if run.name in removed)]


def find_holdings(client: Any, uri: str, output_dir: Path, run: RunRecord) -> Holdings:
    """Find what a run occupies."""
    versions = client.search_model_versions(f"run_id = '{run.run_id}'")
    models = client.search_logged_models([run.experiment_id], f"source_run_id = '{run.run_id}'")
    places = {model.artifact_location: model.model_id for model in models}
    places[client.get_run(run.run_id).info.artifact_uri] = run.run_id
    stored = [_local_place(location, name, uri, output_dir) for location, name in places.items()]
    return Holdings(
        run,
        home_of(run, output_dir),
        [place for place in stored if place is not None],
        [model.model_id for model in models],
        f"version {versions[0].version} of the registered model {versions[0].name}" if versions else "",
    )


def _local_place(location: str, name: str, uri: str, output_dir: Path) -> Path | None:
    """Return the directory named after a run or model in which the store keeps its files; None if it is elsewhere.

    A store may name any directory, so only one in the output directory or beside the SQLite file is taken. If the
    output directory was moved since, it is found at the same place below it.
    """
    parts = urlsplit(location)
    path = Path(url2pathname(parts.path))
    recorded = next((parent for parent in (path, *path.parents) if parent.name == name), None)
    if parts.scheme not in ("", "file") or recorded is None:
        return None
    database = sqlite_path(uri)
    roots = [output_dir, *([database.parent / "artifacts"] if database else [])]
    places = [recorded]
    if "artifacts" in recorded.parts:
        places.append(output_dir.joinpath(*recorded.parts[recorded.parts.index("artifacts") :]))
    return next((place for place in places if not all(why_foreign(place, root) for root in roots)), None)


def check_removable(holdings: Holdings, force: bool = False) -> None:
    """Check that a run may be removed.

    Args:
        force: it may, although a process may work on it on another machine.

    Raises:
        ConfigError: a version of a registered model was made from it.
        RunError: a process works on it, or may do so on another machine.
    """
    run = holdings.run
    if holdings.registered:
        raise ConfigError(f"{run.name} is {holdings.registered}; delete that version in MLflow first")
    if holdings.home is not None:
        with unused(run.name, holdings.home, force):
            pass
    elif run.status == "RUNNING" and not force:
        raise RunError(
            f"{run.name} is recorded as running on {run.tags.get('hfexp.host', 'another machine')}; "
            "--force removes it nevertheless"
        )


def remove(client: Any, holdings: Holdings, force: bool = False) -> None:
    """Remove a run, first from the disk: if this is interrupted, the store still has the run under its name.

    Args:
        force: also remove a run that may be running on another machine.

    Raises:
        RunError: the run is running, or the store or the disk refuses.
    """
    from mlflow.exceptions import MlflowException

    run = holdings.run
    try:
        if holdings.home is not None:
            _remove_home(run, holdings.home, force)
        for place in holdings.stored:
            shutil.rmtree(place)
        for model in holdings.models:
            client.delete_logged_model(model)
        client.delete_run(run.run_id)
    except MlflowException as error:
        raise RunError(f"{run.name} can't be removed from the store: {first_line(error)}") from error
    except OSError as error:
        raise RunError(f"{run.name} can't be removed: {error.filename}: {error.strerror}") from error


def _remove_home(run: RunRecord, home: Path, force: bool) -> None:
    with unused(run.name, home, force):
        doomed = home.with_name(f"{REMOVING}{home.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        home.rename(doomed)
    shutil.rmtree(doomed)


@contextlib.contextmanager
def unused(name: str, home: Path, force: bool) -> Iterator[None]:
    """Hold the lock of a run directory that no process works in.

    Raises:
        RunError: a process works in it, or may do so on another machine, where this lock is not seen.
    """
    with held_run(home) as state:
        if state is None:
            raise RunError(f"{name} is running; stop it first")
        if state.status == "running" and not (force or ProcessId(state.host, state.pid, state.process).is_gone()):
            raise RunError(f"{name} may still be running on {state.host}; --force removes it nevertheless")
        yield


# What `hfexp clean` frees.


def spent_checkpoints(runs: list[RunRecord], output_dir: Path) -> list[tuple[str, Path]]:
    """Return the checkpoints of finished runs: names of the runs, and directories.

    The final model of a finished run is saved, and nothing resumes from its checkpoints.
    """
    homes = [(run.name, home_of(run, output_dir)) for run in runs if run.status == "FINISHED"]
    return [
        (name, home / "checkpoints")
        for name, home in homes
        if home is not None and (home / "model").is_dir() and (home / "checkpoints").is_dir()
    ]


def remove_checkpoints(name: str, checkpoints: Path) -> None:
    """Remove the checkpoints of a finished run.

    Raises:
        RunError: the run is running again, or a file can't be removed.
    """
    try:
        with unused(name, checkpoints.parent, force=False):
            shutil.rmtree(checkpoints)
    except OSError as error:
        raise RunError(f"{name}: {error.filename} can't be removed: {error.strerror}") from error


def leftovers(output_dir: Path) -> list[Path]:
    """Return what interrupted removals have left."""
    return sorted(path for path in output_dir.glob(f"*/{REMOVING}*") if not why_foreign(path, output_dir))
