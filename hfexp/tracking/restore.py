"""Restore what an MLflow server knows of a run whose directory is on another host, or was deleted.

A restored run directory looks as if the run had always worked there: a journal whose entries are all delivered, the
newest checkpoint if the server has it (`tracking.checkpoints=all`), and `run.json`. So the run goes on, or answers
with its values, as any other does.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hfexp.core.checkpoint import NAME, find_problem, trainer_state
from hfexp.core.config import Config
from hfexp.core.console import note
from hfexp.core.errors import ConfigError, RunError, first_line
from hfexp.core.files import replace_file
from hfexp.core.identity import config_hash, local_files_fingerprint
from hfexp.core.outside import DamagedRecord, parse
from hfexp.core.process import ProcessId
from hfexp.core.provenance import Origin
from hfexp.core.secrets import mask_secrets
from hfexp.tracking.journal import (
    ADDRESSES,
    FOLDER,
    JOURNAL,
    PROCESS,
    DeliveryState,
    Journal,
    process_in,
    recorded_run_id,
)
from hfexp.tracking.lineage import CONTEXTS
from hfexp.tracking.membership import (
    KEY,
    KIND,
    PARENT,
    PRUNED,
    REPLICATE,
    SWEEP_KEY,
    TRIAL,
    VALUES,
    SweepInfo,
    TrialKey,
    claim_run,
    note_run_directory,
    run_directory_of,
    runs_of_point,
)
from hfexp.tracking.models import KEY_TAG, is_ready, models_of
from hfexp.tracking.run_directory import RunState, new_directory, save_state
from hfexp.tracking.store import open_store, tracking_uri

logger = logging.getLogger(__name__)

PATIENCE = 120.0
"""Seconds for which a server that does not answer is asked again, as for the study's database."""
ORPHAN_SECONDS = 90.0
"""Most seconds that a job whose sweeper was killed takes to write its checkpoint and to record it."""
WEIGHTS = "model"
"""Folder of the files of a checkpoint inside its MLflow model (`hfexp.inference.mlflow_model`)."""
STATUS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}
KEPT = (KIND, SWEEP_KEY, PARENT, TRIAL, REPLICATE, *ADDRESSES)
"""Tags that the first entry of a restored journal has: later deliveries read them there."""


def restore_point(config: Config, origin: Origin, point: TrialKey, sweep_info: SweepInfo) -> None:
    """Restore the run of a point that an earlier start or another host has begun, if the server knows more than we.

    A directory of this host that nobody has overtaken stays as it is.

    Raises:
        RunError: the server does not answer, so that nobody knows how far the point is.
    """
    uri = tracking_uri(config.tracking.uri, config.output_dir)
    client, experiment_id = _patient_store(uri, config, str(sweep_info.experiment))
    tags = {SWEEP_KEY: str(sweep_info.key), TRIAL: str(point.trial), REPLICATE: str(point.replicate)}
    run = next(iter(runs_of_point(client, experiment_id, tags)), None)
    run_dir = run_directory_of(point)
    if run is None or (run_dir is not None and _has_worked_in(run_dir, run)):
        return
    run = _wait_for_orphan(client, run)
    state, checkpoints = _state_of(run, config, point), _checkpoints_of(client, run)
    if state.status == "failed" and not checkpoints:
        return  # as on one host, another attempt is a new run
    if state.status != "finished":
        claim_run(client, run.info.run_id)
    if run_dir is None:
        run_dir = new_directory(config, origin)
    _restore_record(client, run, uri, run_dir, str(sweep_info.experiment))
    step = _fetch_newest(checkpoints, run_dir / "checkpoints", uri) if state.status != "finished" else None
    save_state(run_dir, state)
    note_run_directory(point, run_dir)
    if state.status != "finished":
        where, what = run.data.tags.get(PROCESS[0], "another host"), f"checkpoint-{step}" if step else "no checkpoint"
        note(f"{run.info.run_name} was begun on {where}; the store has {what}")


def restore_sweep(uri: str, output_dir: Path, experiment: str, key: str, directory: Path) -> None:
    """Restore the record of a sweep's own run that another host has written meanwhile, and claim the run.

    Raises:
        Exception: the server can't be reached.
    """
    client, experiment_id = open_store(uri, output_dir, experiment)
    runs = client.search_runs([experiment_id], f"tags.`{KEY}` = '{key}'")
    if not runs:
        return
    run = runs[0]
    if recorded_run_id(directory) == run.info.run_id and _has_worked_in(directory, run):
        return
    claim_run(client, run.info.run_id)
    _restore_record(client, run, uri, directory, experiment)


def _patient_store(uri: str, config: Config, experiment: str) -> tuple[Any, str]:
    began, pause = time.monotonic(), 1.0
    while True:
        try:
            return open_store(uri, Path(config.output_dir), experiment)
        except ConfigError:
            raise
        except Exception as error:
            if time.monotonic() - began > PATIENCE:
                raise RunError(
                    f"the MLflow store at {mask_secrets(uri)} does not answer ({first_line(error)}), so it is unknown "
                    "how far this point was on another host; the same command tries again"
                ) from error
        time.sleep(pause)
        pause = min(2 * pause, 10.0)


def _has_worked_in(directory: Path, run: Any) -> bool:
    """Tell whether the process that has worked on a run last did so in this directory."""
    wanted = process_in(run.data.tags)
    entries = (entry for entry, _ in Journal(directory).read() if entry["kind"] in ("create", "tags"))
    return any(process_in(entry["tags"]) == wanted for entry in entries)


def _wait_for_orphan(client: Any, run: Any) -> Any:
    """Wait for a job of a killed start that still writes its checkpoint on this machine; return the run as it is then.

    On other machines it can't be seen. What it still sends after `claim_run` is left out (`Delivery._is_lost`).
    """
    host, pid, started = process_in(run.data.tags)
    process = ProcessId(host, int(pid) if pid.isdigit() else 0, started)
    deadline = time.monotonic() + ORPHAN_SECONDS
    while process.may_live_here() and time.monotonic() < deadline:
        time.sleep(0.2)
    return client.get_run(run.info.run_id)


def _state_of(run: Any, config: Config, point: TrialKey) -> RunState:
    """Return the state that the run's directory had, as far as its record shows."""
    tags, values = run.data.tags, None
    if VALUES in tags:
        try:
            values = parse(tags[VALUES].encode(), list[float], f"the tag {VALUES} of run {run.info.run_id}")
        except DamagedRecord as error:
            logger.warning("%s: the point is run again", error)
    finished = run.info.status == "FINISHED" and values is not None
    pruned, start, end = tags.get(PRUNED, ""), run.info.start_time, run.info.end_time
    return RunState(
        config_hash=config_hash(config),
        status="failed" if run.info.status == "FAILED" else "finished" if finished else "killed",
        run_id=run.info.run_id,
        first_started=start / 1000,
        seconds=(end - start) / 1000 if end else 0.0,
        point=str(point),
        data=local_files_fingerprint(config.dataset.source),
        splits=_splits(run),
        values=values if finished else None,
        pruned_step=int(pruned) if pruned.isdigit() else None,
    )


def _splits(run: Any) -> dict[str, dict[str, Any]] | None:
    """Return digest and row count of each split from the run's inputs, to compare them with this host's data."""
    splits = {}
    for item in run.inputs.dataset_inputs if run.inputs else []:
        context = {tag.key: tag.value for tag in item.tags}.get("mlflow.data.context")
        if context in CONTEXTS.values():  # not of a later `hfexp evaluate`
            name, profile = item.dataset.name.rpartition("-")[2], _parse_profile(item.dataset.profile)
            splits[name] = {"digest": item.dataset.digest, "rows": profile.get("num_rows")}
    return splits or None


def _parse_profile(text: str | None) -> dict[str, Any]:
    """Parse the profile of a dataset in MLflow; empty if it is missing or damaged."""
    try:
        return parse((text or "{}").encode(), dict[str, Any], "profile")
    except DamagedRecord:
        return {}


def _restore_record(client: Any, run: Any, uri: str, directory: Path, experiment: str) -> None:
    """Write journal and delivery state of a run as if all of its record had been delivered from this directory."""
    tags = {name: run.data.tags[name] for name in KEPT if name in run.data.tags}
    with tempfile.TemporaryDirectory(dir=directory, prefix=".restored-") as place:
        journal = Journal(Path(place))
        journal.append(
            "create", tags=tags, time=run.info.start_time, experiment=experiment, name=run.info.run_name,
            key=run.data.tags[KEY], shared=True,
        )  # fmt: skip
        journal.append("params", params=dict(run.data.params))
        for step, moment, values in _history(client, run):
            journal.append("metrics", metrics=values, step=step, time=moment)
        if run.info.status in STATUS:
            journal.append("end", status=STATUS[run.info.status], reason="", time=run.info.end_time)
        content = journal.path.read_bytes()
    (directory / FOLDER).mkdir(exist_ok=True)
    # If this is killed between the two, the next start finds that the run is another host's, and restores it again.
    DeliveryState(mask_secrets(uri), run.info.run_id, run.info.experiment_id, offset=len(content)).save(directory)
    replace_file(directory / FOLDER / JOURNAL, content, sync=True)


def _history(client: Any, run: Any) -> Iterator[tuple[int, int, dict[str, float]]]:
    """Yield step, time and values of all measurements of a run, in the order of their steps."""
    points: dict[tuple[int, int], dict[str, float]] = {}
    for name in run.data.metrics:
        for point in client.get_metric_history(run.info.run_id, name):
            points.setdefault((point.step, point.timestamp), {})[name] = point.value
    for (step, moment), values in sorted(points.items()):
        yield step, moment, values


def _checkpoints_of(client: Any, run: Any) -> dict[int, Any]:
    """Return the checkpoints of a run that were uploaded completely, as MLflow's models by step."""
    found = {}
    for model in models_of(client, run.info.experiment_id, run.info.run_id):
        match = NAME.fullmatch(model.tags.get(KEY_TAG, ""))
        if match and is_ready(model):
            found[int(match.group(1))] = model
    return found


def _fetch_newest(found: dict[int, Any], directory: Path, uri: str) -> int | None:
    """Download the newest checkpoint that is whole, and the best one so far, which the run needs at its end.

    Args:
        found: uploaded checkpoints by step.

    Returns:
        The step of the former; None if none can be used.
    """
    for step in sorted(found, reverse=True):
        path = _download(found[step], directory, uri)
        best = trainer_state(path).get("best_global_step") if path else None
        if path and (best in (None, 0, step) or (best in found and _download(found[best], directory, uri))):
            return step
        shutil.rmtree(directory / f"checkpoint-{step}", ignore_errors=True)
    return None


def _download(model: Any, directory: Path, uri: str) -> Path | None:
    """Download a checkpoint, unless it is there; return its directory, or None if it is not whole."""
    from mlflow.artifacts import download_artifacts

    target = directory / model.tags[KEY_TAG]
    if target.is_dir() and find_problem(target) is None:
        return target
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".fetched-") as place:
        try:
            fetched = Path(
                download_artifacts(f"{model.artifact_location}/{WEIGHTS}", dst_path=place, tracking_uri=uri)
            )
        except Exception as error:  # e.g. deleted there: an older one will do
            logger.warning("%s can't be downloaded: %s", target.name, first_line(error))
            return None
        shutil.rmtree(target, ignore_errors=True)
        fetched.rename(target)
    problem = find_problem(target)
    if problem is not None:
        logger.warning("%s of the server can't be used: %s", target.name, problem)
        return None
    return target
