"""Recorded runs, read from the tracking store; nothing is written.

A SQLite store is read with the standard library, straight from MLflow's tables: reading a thousand runs takes a
fraction of the time of importing MLflow. Other stores, filters and unknown table layouts go through MLflow's client.
"""

import json
import logging
import math
import re
import sqlite3
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar
from urllib.parse import quote

from hfexp.core.errors import ConfigError, RunError, did_you_mean, one_of
from hfexp.core.files import sqlite_address, sqlite_path
from hfexp.core.outside import why_foreign
from hfexp.tracking.run_directory import read_state
from hfexp.tracking.store import find_problem, tracking_uri, why_unreachable

PAGE = 1000
"""Results per page of a search with MLflow's client."""
BUSY_SECONDS = 20
"""Seconds to wait while another process holds SQLite's lock."""
EXAMPLE = "\"metrics.test_accuracy > 0.9 and params.seed = '1'\""

FILTERED = ("metric", "parameter", "tag")
"""Kinds of facts, other than `ATTRIBUTES`, that a filter may ask of a `RunRecord`."""
ATTRIBUTES = {
    "run_id": "run_id", "run_name": "name", "status": "status", "start_time": "start_time", "end_time": "end_time",
}  # fmt: skip
"""Attributes of a run in a filter, and the fields of a `RunRecord` that hold them."""
COMPARATORS = ("=", "!=", "<", "<=", ">", ">=", "IN", "NOT IN", "IS NULL", "IS NOT NULL")
"""Comparators that mean the same in a database and in memory; `LIKE` differs for texts of several lines."""

T = TypeVar("T")


@dataclass
class RunRecord:
    """One run from the store; metrics are the latest values."""

    run_id: str
    name: str
    experiment_id: str
    experiment: str
    status: str
    start_time: int | None
    """Milliseconds since 1970, as in MLflow."""
    end_time: int | None
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    """Datasets: `name`, `digest`, `context`, and `rows` from the recorded profile, or None."""

    @property
    def seconds(self) -> float | None:
        """Return the seconds from start to end; None before the end, or if the clock went back before the start."""
        if self.start_time is None or self.end_time is None or self.end_time < self.start_time:
            return None
        return (self.end_time - self.start_time) / 1000


def read_runs(
    uri: str, experiment: str | None = None, run_ids: Iterable[str] | None = None, where: str | None = None
) -> list[RunRecord]:
    """Read runs of a store, newest first, without deleted runs and those of deleted experiments.

    Args:
        uri: tracking URI from `hfexp.tracking.store.tracking_uri`.
        experiment: name of the only experiment to read.
        run_ids: ids of the only runs to read.
        where: filter as in `MlflowClient.search_runs`.
    """
    chosen = None if run_ids is None else list(dict.fromkeys(run_ids))
    where = (where or "").strip()
    readable = not where or _database_path(uri) is None or _asks_records_only(where)
    runs = _in_database(uri, lambda connection: _sql_runs(connection, experiment, chosen)) if readable else None
    if runs is None:
        return _client_runs(uri, experiment, chosen, where)
    return _matching(runs, where) if where else runs


def _asks_records_only(where: str) -> bool:
    """Tell whether a filter compares only what a `RunRecord` has, in ways that mean the same in memory.

    Raises:
        ConfigError: the filter is not valid.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.utils.search_utils import SearchUtils

    try:
        clauses = SearchUtils.parse_search_filter(where)
    except MlflowException as error:
        raise _invalid_filter(where, error) from error
    return all(
        clause["comparator"].upper() in COMPARATORS
        and (
            clause["type"] in FILTERED
            or (clause["type"] == "attribute" and SearchUtils.translate_key_alias(clause["key"]) in ATTRIBUTES)
        )
        for clause in clauses
    )


def _matching(runs: list[RunRecord], where: str) -> list[RunRecord]:
    """Choose the runs that match a filter, as MLflow reads it.

    MLflow's search in a database builds an object for each param, metric and tag, which takes ten times as long.

    Raises:
        ConfigError: the filter is not valid.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.utils.search_utils import SearchUtils

    infos = (SimpleNamespace(**{name: getattr(run, own) for name, own in ATTRIBUTES.items()}) for run in runs)
    views = [SimpleNamespace(data=run, info=info) for run, info in zip(runs, infos, strict=True)]
    try:
        return [view.data for view in SearchUtils.filter(views, where)]
    except MlflowException as error:
        raise _invalid_filter(where, error) from error


def _invalid_filter(where: str, error: Any) -> ConfigError:
    problem = " ".join(str(error.message).split())
    return ConfigError(f"the filter {where!r} is not valid in MLflow: {problem}; e.g. {EXAMPLE}")


def newest_run(uri: str) -> RunRecord | None:
    """Read the run that was started last, None if there is none; no other run is fetched."""
    runs = _in_database(uri, lambda connection: _sql_runs(connection, limit=1))
    runs = _client_runs(uri, limit=1) if runs is None else runs
    return runs[0] if runs else None


def list_runs(uri: str) -> list[RunRecord]:
    """Read all runs of a store, newest first; from SQLite quickly, without params, metrics, tags and inputs."""
    runs = _in_database(uri, lambda connection: _sql_runs(connection, details=False))
    return read_runs(uri) if runs is None else runs


def deleted_runs(uri: str) -> list[RunRecord]:
    """Read the runs that were deleted in MLflow, which keeps them until `mlflow gc`."""
    from mlflow.entities import ViewType

    return _client_runs(uri, run_view_type=ViewType.DELETED_ONLY)


def metric_history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    """Read all recorded values of a metric as (step, value), ordered by step."""

    def points(connection: sqlite3.Connection) -> list[tuple[int, int, float]]:
        query = "SELECT step, timestamp, value, is_nan FROM metrics WHERE run_uuid = ? AND key = ?"
        return [(step, at, _number(value, nan)) for step, at, value, nan in connection.execute(query, (run_id, key))]

    history = _in_database(uri, points)
    if history is None:
        with _client(uri) as client:
            history = [(m.step, m.timestamp, _number(m.value)) for m in client.get_metric_history(run_id, key)]
    return [(step, value) for step, _, value in sorted(history, key=lambda point: point[:2])]


def _number(value: float, is_nan: bool = False) -> float:
    """Restore a metric as it was logged: databases keep NaN as a flag and infinity as the largest finite number."""
    if is_nan:
        return math.nan
    return math.copysign(math.inf, value) if abs(value) >= sys.float_info.max else value


def _dataset(name: str, digest: str, profile: str | None, context: str | None) -> dict[str, Any]:
    try:
        rows = json.loads(profile or "{}").get("num_rows")
    except (ValueError, AttributeError):  # any text may be recorded as a profile
        rows = None
    return {"name": name, "digest": digest, "context": context, "rows": rows}


def _dataset_order(dataset: dict[str, Any]) -> tuple[str, str, str]:
    return dataset["context"] or "", dataset["name"], dataset["digest"]


def _in_database(uri: str, read: Callable[[sqlite3.Connection], T]) -> T | None:
    """Return what `read` finds in a SQLite store; None for another kind of store, or for an unknown table layout."""
    path = _database_path(uri)
    if path is None:
        return None
    try:
        address = f"file:{quote(str(path.absolute()))}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
            # One transaction, so that all queries see the same state while others write.
            connection.execute("BEGIN")
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not {"runs", "experiments"} <= tables:
                raise ConfigError(f"{path} is not an MLflow store: it has no table of runs")
            return read(connection)
    except sqlite3.DatabaseError as error:
        if str(error).startswith("no such "):  # table or column: another version of MLflow's schema
            return None
        raise RunError(f"the store {path} can't be read: {error}") from error


def _database_path(uri: str) -> Path | None:
    path = sqlite_path(uri)
    if path is None:
        return None
    problem = find_problem(uri)
    if problem:
        raise ConfigError(problem)
    if not path.is_file():
        raise ConfigError(f"there is no store at {path} yet: run `hfexp` first, or give --uri")
    return path


def _sql_runs(
    connection: sqlite3.Connection,
    experiment: str | None = None,
    run_ids: list[str] | None = None,
    limit: int = -1,
    details: bool = True,
) -> list[RunRecord]:
    query = (
        "SELECT r.run_uuid, r.name, r.experiment_id, e.name, r.status, r.start_time, r.end_time"
        " FROM runs r JOIN experiments e ON e.experiment_id = r.experiment_id"
        " WHERE r.lifecycle_stage = 'active' AND e.lifecycle_stage = 'active' AND (e.name = :name OR :name IS NULL)"
        " AND (:ids IS NULL OR r.run_uuid IN (SELECT value FROM json_each(:ids)))"
        " ORDER BY r.start_time DESC, r.run_uuid LIMIT :limit"
    )
    values = {"name": experiment, "ids": None if run_ids is None else json.dumps(run_ids), "limit": limit}
    runs = [RunRecord(r[0], r[1] or "", str(r[2]), *r[3:]) for r in connection.execute(query, values)]
    if details:
        _sql_details(connection, {run.run_id: run for run in runs})
    return runs


def _sql_details(connection: sqlite3.Connection, runs: dict[str, RunRecord]) -> None:
    """Add params, metrics, tags and inputs to the runs."""
    ids = json.dumps(list(runs))

    def rows(columns: str, table: str, end: str = "") -> Iterator[tuple[Any, ...]]:
        chosen = "WHERE run_uuid IN (SELECT value FROM json_each(?))"
        query = f"SELECT run_uuid, {columns} FROM {table} {chosen} {end}"  # noqa: S608
        return connection.execute(query, (ids,))  # the columns and tables are the constants below

    for table in ("params", "tags"):  # a run's texts in one row take a third of the time of a row each
        for run_id, content in rows("json_group_object(key, value)", table, "GROUP BY run_uuid"):
            getattr(runs[run_id], table).update(json.loads(content))
    metrics = {run_id: run.metrics for run_id, run in runs.items()}
    for run_id, key, value, is_nan in rows("key, value, is_nan", "latest_metrics"):  # JSON would round the numbers
        metrics[run_id][key] = _number(value, is_nan)
    datasets = (
        "SELECT i.destination_id, d.name, d.digest, d.dataset_profile, t.value"
        " FROM inputs i JOIN datasets d ON d.dataset_uuid = i.source_id"
        " LEFT JOIN input_tags t ON t.input_uuid = i.input_uuid AND t.name = 'mlflow.data.context'"
        " WHERE i.destination_type = 'RUN' AND i.destination_id IN (SELECT value FROM json_each(?))"
    )
    for run_id, *dataset in connection.execute(datasets, (ids,)):
        runs[run_id].inputs.append(_dataset(*dataset))
    for run in runs.values():
        run.name = run.name or run.tags.get("mlflow.runName", "")
        run.inputs.sort(key=_dataset_order)


@contextmanager
def _client(uri: str) -> Iterator[Any]:
    """Open MLflow's client, a SQLite store read-only; MLflow's errors become a RunError of one line."""
    if path := _database_path(uri):
        uri = sqlite_address(path.absolute(), read_only=True)  # else MLflow would create new tables in an older store
    elif problem := find_problem(uri) or why_unreachable(uri):
        raise ConfigError(problem)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield MlflowClient(uri)
    except (MlflowException, SQLAlchemyError) as error:
        raise RunError(f"the store can't be read: {' '.join(str(error).split())}") from error


def _client_runs(
    uri: str,
    experiment: str | None = None,
    run_ids: list[str] | None = None,
    where: str = "",
    limit: int = 0,
    **settings: Any,
) -> list[RunRecord]:
    from mlflow.exceptions import MlflowException

    _in_database(uri, lambda connection: True)  # MLflow would turn a file that is not a store into one
    chosen = [f"attributes.run_id IN ({', '.join(map(repr, run_ids))})"] if run_ids else []
    condition = " AND ".join([*chosen, where] if where else chosen)
    with _client(uri) as client:
        names = {e.experiment_id: e.name for e in _pages(client.search_experiments)}
        ids = [i for i, name in names.items() if experiment in (None, name)]
        if not ids or run_ids == []:
            return []
        try:
            runs = _pages(client.search_runs, limit, experiment_ids=ids, filter_string=condition, **settings)
        except MlflowException as error:
            if where and error.error_code == "INVALID_PARAMETER_VALUE":
                raise _invalid_filter(where, error) from error
            raise
        return [_record(run, names[run.info.experiment_id]) for run in runs]


def _pages(search: Callable[..., Any], limit: int = 0, **arguments: Any) -> list[Any]:
    """Return the results of a search from all its pages, or only the first `limit`."""
    page = search(**arguments, max_results=limit or PAGE)
    results = list(page)
    while page.token and not limit:
        page = search(**arguments, max_results=PAGE, page_token=page.token)
        results += page
    return results


def _record(run: Any, experiment: str) -> RunRecord:
    info, data = run.info, run.data
    name, times = info.run_name or "", (info.start_time, info.end_time)
    record = RunRecord(info.run_id, name, info.experiment_id, experiment, info.status, *times)
    record.metrics = {key: _number(value) for key, value in data.metrics.items()}
    record.params, record.tags = dict(data.params), dict(data.tags)
    for entry in run.inputs.dataset_inputs if run.inputs else []:
        contexts = [tag.value for tag in entry.tags if tag.key == "mlflow.data.context"]
        dataset = entry.dataset
        record.inputs.append(_dataset(dataset.name, dataset.digest, dataset.profile, *(contexts or [None])))
    record.inputs.sort(key=_dataset_order)
    return record


# Lookup of the runs that a user names: by experiment, run name, run id or sweep.


MIN_PREFIX = 6
SWEEP = "sweep="
LAST, BEST = "last", "best"
"""Names for the newest finished run, and for the best one of its experiment (`best:EXPERIMENT`: of another one)."""


def choose_runs(uri: str, names: list[str], where: str | None) -> tuple[list[RunRecord], list[str]]:
    """Find the runs that the user names: those named one by one, then those of experiments, then those of sweeps.

    Args:
        names: experiments, run names, run ids or their beginnings, `last`, `best`, `best:EXPERIMENT`, `sweep=NAME`; if
            empty, the newest run's experiment. A sweep, also one given by the name or id of its own run, stands for
            the runs of its jobs.
        where: filter as in `read_runs`.

    Returns:
        The runs that pass the filter, and the ids of all runs that were named one by one.
    """
    if not names:
        newest = newest_run(uri)
        if newest is None:
            raise ConfigError(f"no runs are recorded in {uri} yet: run `hfexp` first, or give --uri")
        return read_runs(uri, experiment=newest.experiment, where=where), []
    known = list_runs(uri)
    experiments = {run.experiment for run in known}
    single = [name for name in names if name not in experiments and not name.startswith(SWEEP)]
    named = [_find_run(uri, name, known) for name in single]
    ids = named + [run.run_id for run in known if run.experiment in names]
    by_id = {run.run_id: run for run in read_runs(uri, run_ids=ids, where=where)}
    chosen = [by_id[run_id] for run_id in dict.fromkeys(ids) if run_id in by_id]
    sweeps = {run_id for run_id in named if is_sweep(by_id.get(run_id))}
    sweep_names = [name.removeprefix(SWEEP) for name in names if name.startswith(SWEEP)]
    jobs = _jobs(uri, sweep_names, sweeps, where) if sweep_names or sweeps else []
    runs = {run.run_id: run for run in chosen + jobs if run.run_id not in sweeps}
    return list(runs.values()), [run_id for run_id in named if run_id not in sweeps]


def is_sweep(run: RunRecord | None) -> bool:
    """Return True if a run is a sweep's own run."""
    return run is not None and run.tags.get("hfexp.kind") == "sweep"


def _jobs(uri: str, names: list[str], parents: set[str], where: str | None) -> list[RunRecord]:
    """Read the runs of the jobs of sweeps, which are given by name or by the id of their own run."""
    all_runs = read_runs(uri)
    known = {run.tags["hfexp.sweep"] for run in all_runs if "hfexp.sweep" in run.tags}
    for name in names:
        if name not in known:
            raise _no_such_sweep(name, known)
    ids = [
        run.run_id
        for run in all_runs
        if run.tags.get("hfexp.sweep") in names or run.tags.get("mlflow.parentRunId") in parents
    ]
    return read_runs(uri, run_ids=ids, where=where)


def _no_such_sweep(name: str, known: Collection[str]) -> ConfigError:
    hint = did_you_mean(name, known)
    return ConfigError(f"{SWEEP}{name}: there is no such sweep.{hint} Sweeps: {one_of(known, 20) or 'none'}")


def home_of(run: RunRecord, output_dir: Path) -> Path | None:
    """Return the directory in which a run was trained if it is on this machine and the user's own, else None.

    The tag that names it may come from anyone who can write to the tracking store. If the output directory was moved
    since, the run is found at the same place below it.
    """
    recorded = Path(run.tags.get("hfexp.run_dir", ""))
    for place in (recorded, output_dir / recorded.parent.name / recorded.name):
        if recorded.is_absolute() and not why_foreign(place, output_dir):
            state = read_state(place)
            if state is not None and state.run_id == run.run_id:
                return place.absolute()
    return None


def find_one(uri: str, name: str) -> RunRecord:
    """Find the run that a user names; in place of a sweep's own run, find the best run of the sweep.

    Args:
        name: a run's name or id, the beginning of one, `last`, `best` or `best:EXPERIMENT`.

    Raises:
        ConfigError: no run or several runs match, or the sweep has no best run yet.
    """
    run = find_run(uri, name)
    return _best_of(uri, run) if is_sweep(run) else run


def find_run(uri: str, name: str) -> RunRecord:
    """Find the run that a user names, as `find_one` does; a sweep's own run stands for itself.

    Raises:
        ConfigError: no run or several runs match.
    """
    (run,) = read_runs(uri, run_ids=[_find_run(uri, name, list_runs(uri))])
    return run


def best_run_of_sweep(uri: str, name: str) -> RunRecord:
    """Find the best run of a sweep; among the replicates of the best point, the best one.

    Raises:
        ConfigError: there is no such sweep, or it has no best run yet.
    """
    return _best_of(uri, find_sweep(uri, name))


def find_sweep(uri: str, name: str) -> RunRecord:
    """Find the own run of a sweep, the newest one of this name.

    Raises:
        ConfigError: there is no such sweep.
    """
    sweeps = {run.name: run for run in reversed(read_runs(uri)) if is_sweep(run)}
    if name not in sweeps:
        raise _no_such_sweep(name, sweeps)
    return sweeps[name]


def _best_of(uri: str, parent: RunRecord) -> RunRecord:
    ids = [run_id for run_id in parent.tags.get("hfexp.best_run_id", "").split(", ") if run_id]
    runs = read_runs(uri, run_ids=ids[:1]) if ids else []
    if not runs:
        raise ConfigError(f"the sweep {parent.name} has no best run yet")
    return runs[0]


def _last_run(uri: str, known: list[RunRecord]) -> RunRecord:
    """Return the finished run that was started last; a sweep's own run does not count."""
    for finished in (run for run in known if run.status == "FINISHED"):
        (run,) = read_runs(uri, run_ids=[finished.run_id])
        if not is_sweep(run) and "hfexp.pruned" not in run.tags:  # neither of them has a model
            return run
    raise ConfigError(f"{LAST}: no run has finished yet")


def _best_run(uri: str, experiment: str) -> RunRecord:
    """Return the finished run of an experiment whose saved model is the best by the metric that chose it."""
    runs = [run for run in read_runs(uri, experiment=experiment) if run.status == "FINISHED" and not is_sweep(run)]
    # Those of the newest run of hfexp: earlier ones may have been chosen by another metric.
    tags = next((run.tags for run in runs if "hfexp.metric" in run.tags), {})
    metric = tags.get("hfexp.metric", "")
    scored = [
        run for run in runs if "hfexp.pruned" not in run.tags and not math.isnan(run.metrics.get(metric, math.nan))
    ]
    if not scored:
        raise ConfigError(
            f"{BEST}:{experiment}: no finished run of this experiment has recorded how good its model is"
        )
    better = min if tags.get("hfexp.metric_direction") == "min" else max
    return better(scored, key=lambda run: run.metrics[metric])


def _experiment(name: str, known: list[RunRecord]) -> str:
    """Return the experiment of `best:EXPERIMENT`."""
    experiment, experiments = name.removeprefix(f"{BEST}:"), {run.experiment for run in known}
    if experiment not in experiments:
        hint = did_you_mean(experiment, experiments)
        raise ConfigError(
            f"{name}: there is no such experiment.{hint} Experiments: {one_of(experiments, 20) or 'none'}"
        )
    return experiment


def _candidates(uri: str, name: str, known: list[RunRecord]) -> Iterator[list[str]]:
    """Yield the ids of the runs that a name may mean, the most exact meaning first."""
    yield [run.run_id for run in known if run.run_id == name]
    yield [run.run_id for run in known if run.name == name]
    yield _in_directory(uri, name, known)
    if name == LAST:
        yield [_last_run(uri, known).run_id]
    if name == BEST:
        yield [_best_run(uri, _last_run(uri, known).experiment).run_id]
    if name.startswith(f"{BEST}:"):
        yield [_best_run(uri, _experiment(name, known)).run_id]
    yield [run.run_id for run in known if len(name) >= MIN_PREFIX and run.run_id.startswith(name)]
    yield [run.run_id for run in known if name and run.name.startswith(name)]


def _in_directory(uri: str, name: str, known: list[RunRecord]) -> list[str]:
    """Return the ids of the runs whose directory has a name, which is the run's name with its identity in it."""
    title = re.sub(r"-[0-9a-f]{8}(?=(-\d+)?$)", "", name)
    runs = read_runs(uri, run_ids=[run.run_id for run in known if run.name == title]) if title != name else []
    return [run.run_id for run in runs if Path(run.tags.get("hfexp.run_dir", "")).name == name]


def _find_run(uri: str, name: str, known: list[RunRecord]) -> str:
    """Return the id of the run that the user means."""
    for candidates in _candidates(uri, name, known):
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise ConfigError(f"{name!r} matches {len(candidates)} runs: {one_of(candidates, 10)}")
    experiments, names = {run.experiment for run in known}, {run.name for run in known}
    raise ConfigError(
        f"no experiment, run name or run id (at least its first {MIN_PREFIX} characters) matches {name!r}; "
        f"{LAST} is the newest finished run, {BEST} the best one of its experiment."
        f"{did_you_mean(name, [*experiments, *names])} "
        f"Experiments: {one_of(experiments) or 'none'}; runs: {one_of(names, 10) or 'none'}"
    )


# Overrides that start from a run's model: `model.path=run:NAME`.


RUN_MODEL = re.compile(r"\brun:([^\s,'\"\]\[(){}]+)")


def resolve_models(overrides: Sequence[str]) -> list[str]:
    """Replace `run:NAME` in overrides of `model.path` by the directory of the run's saved model.

    The words `last` and `best` mean another run once this one has finished, so they are resolved here, before the
    command is recorded and before a sweep begins.

    Raises:
        ConfigError: there is no such run, or its model is not on this machine.
    """
    if not any(RUN_MODEL.search(override) for override in overrides):
        return list(overrides)
    from hfexp.core.compose import spelling  # imports Hydra, which takes half a second

    texts = {key: text for key, _, text in (override.lstrip("+").partition("=") for override in overrides)}
    output_dir, uri = texts.get("output_dir", "outputs"), texts.get("tracking.uri")

    def directory(match: re.Match[str]) -> str:
        run = find_one(tracking_uri(uri, output_dir), match[1])
        home = home_of(run, Path(output_dir))
        if home is None or not (home / "model").is_dir():
            raise ConfigError(f"model.path={match[0]}: the model of {run.name} is not in {output_dir} on this machine")
        if not (home / "model" / "config.json").is_file():
            raise ConfigError(
                f"model.path={match[0]}: {run.name} has saved an adapter or a model of your own code, "
                "from which no other run can start"
            )
        near = home.is_relative_to(Path.cwd())
        return spelling(str((home.relative_to(Path.cwd()) if near else home) / "model"))

    return [
        RUN_MODEL.sub(directory, override) if override.lstrip("+").startswith("model.path=") else override
        for override in overrides
    ]
