"""Lookup of the runs that a user names: by experiment, run name, run id or sweep."""

from collections.abc import Collection
from pathlib import Path

from hfexp.core.errors import ConfigError, did_you_mean, one_of
from hfexp.core.outside import why_foreign
from hfexp.tracking.run_state import read_state
from hfexp.tracking.runs import RunRecord, list_runs, newest_run, read_runs

MIN_PREFIX = 6
SWEEP = "sweep="


def choose_runs(uri: str, words: list[str], where: str | None) -> tuple[list[RunRecord], list[str]]:
    """Find the runs that the user names: those named one by one, then those of experiments, then those of sweeps.

    Args:
        words: experiments, run names, run ids or prefixes of ids, `sweep=NAME`; if empty, the experiment of the newest
            run. A sweep, also one given by the name or id of its own run, stands for the runs of its jobs.
        where: filter as in `read_runs`.

    Returns:
        The runs that pass the filter, and the ids of all runs that were named one by one.
    """
    if not words:
        newest = newest_run(uri)
        if newest is None:
            raise ConfigError(f"no runs are recorded in {uri} yet: run `hfexp` first, or give --uri")
        return read_runs(uri, experiment=newest.experiment, where=where), []
    known = list_runs(uri)
    experiments = {run.experiment for run in known}
    single = [word for word in words if word not in experiments and not word.startswith(SWEEP)]
    named = [_find_run(word, known) for word in single]
    ids = named + [run.run_id for run in known if run.experiment in words]
    by_id = {run.run_id: run for run in read_runs(uri, run_ids=ids, where=where)}
    chosen = [by_id[run_id] for run_id in dict.fromkeys(ids) if run_id in by_id]
    sweeps = {run_id for run_id in named if is_sweep(by_id.get(run_id))}
    names = [word.removeprefix(SWEEP) for word in words if word.startswith(SWEEP)]
    jobs = _jobs(uri, names, sweeps, where) if names or sweeps else []
    runs = {run.run_id: run for run in chosen + jobs if run.run_id not in sweeps}
    return list(runs.values()), [run_id for run_id in named if run_id not in sweeps]


def is_sweep(run: RunRecord | None) -> bool:
    """Return True if a run is a sweep's own run."""
    return run is not None and run.tags.get("hfexp.kind") == "sweep"


def _jobs(uri: str, names: list[str], parents: set[str], where: str | None) -> list[RunRecord]:
    """Read the runs of the jobs of sweeps, which are given by name or by the id of their own run."""
    everything = read_runs(uri)
    known = {run.tags["hfexp.sweep"] for run in everything if "hfexp.sweep" in run.tags}
    for name in names:
        if name not in known:
            raise _no_such_sweep(name, known)
    ids = [
        run.run_id
        for run in everything
        if run.tags.get("hfexp.sweep") in names or run.tags.get("mlflow.parentRunId") in parents
    ]
    return read_runs(uri, run_ids=ids, where=where)


def _no_such_sweep(name: str, known: Collection[str]) -> ConfigError:
    hint = did_you_mean(name, known)
    return ConfigError(f"{SWEEP}{name}: there is no such sweep.{hint} Sweeps: {one_of(known, 20) or 'none'}")


def home_of(run: RunRecord, output_dir: Path) -> Path | None:
    """Return the directory in which a run was trained if it is on this machine and the user's own, else None.

    The tag that names it may come from anyone who can write to the tracking store.
    """
    place = Path(run.tags.get("hfexp.run_dir", ""))
    if not place.is_absolute() or why_foreign(place, output_dir):
        return None
    state = read_state(place)
    return place if state is not None and state.run_id == run.run_id else None


def find_one(uri: str, word: str) -> RunRecord:
    """Find the run with this name, id or prefix of an id; in place of a sweep's own run, the best run of the sweep.

    Raises:
        ConfigError: no run or several runs match, or the sweep has no best run yet.
    """
    (run,) = read_runs(uri, run_ids=[_find_run(word, list_runs(uri))])
    return _best_of(uri, run) if is_sweep(run) else run


def best_run_of_sweep(uri: str, name: str) -> RunRecord:
    """Find the best run of a sweep; among the replicates of the best point, the best one.

    Raises:
        ConfigError: there is no such sweep, or it has no best run yet.
    """
    sweeps = {run.name: run for run in reversed(read_runs(uri)) if is_sweep(run)}  # the newest sweep of each name
    if name not in sweeps:
        raise _no_such_sweep(name, sweeps)
    return _best_of(uri, sweeps[name])


def _best_of(uri: str, parent: RunRecord) -> RunRecord:
    ids = [run_id for run_id in parent.tags.get("hfexp.best_run_id", "").split(", ") if run_id]
    found = read_runs(uri, run_ids=ids[:1]) if ids else []
    if not found:
        raise ConfigError(f"the sweep {parent.name} has no best run yet")
    return found[0]


def _find_run(word: str, known: list[RunRecord]) -> str:
    """Return the id of the run that the user means."""
    for candidates in (
        [run.run_id for run in known if run.run_id == word],
        [run.run_id for run in known if run.name == word],
        [run.run_id for run in known if len(word) >= MIN_PREFIX and run.run_id.startswith(word)],
    ):
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise ConfigError(f"{word!r} means {len(candidates)} runs: {one_of(candidates, 10)}")
    experiments, names = {run.experiment for run in known}, {run.name for run in known}
    raise ConfigError(
        f"{word!r} is no experiment, run name, run id or beginning of one ({MIN_PREFIX} characters or more)."
        f"{did_you_mean(word, [*experiments, *names])} "
        f"Experiments: {one_of(experiments) or 'none'}; runs: {one_of(names, 10) or 'none'}"
    )
