"""Runs whose process is gone: what they left undelivered is delivered, and they are closed as what they were."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from hfexp.errors import ConfigError
from hfexp.origin import MASK, mask_secrets
from hfexp.process import ProcessId
from hfexp.run_directory import RunState, held_run, save_state
from hfexp.tracking.delivery import STATE, Delivery
from hfexp.tracking.journal import FOLDER, Journal, exists
from hfexp.tracking.store import tracking_uri

logger = logging.getLogger(__name__)

GONE = "its process is gone (killed, or the machine was)"


def close_gone_runs(client: Any, uri: str, output_dir: Path) -> list[str]:
    """Close the runs of a store that are RUNNING although their process on this machine is gone.

    Safe beside living runs: a process is gone only if its host, pid and start say so and nobody holds the lock of
    its run directory. Should that ever be wrong, the run's own end corrects it.

    Returns:
        Ids of the runs that were closed.
    """
    closed = []
    own = ProcessId.own()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    # MLflow takes no more than a thousand at once, and so many unfinished runs are not looked at in one go.
    running = client.search_runs(
        experiments[:1000], f"attributes.status = 'RUNNING' and tags.`hfexp.host` = '{own.host}'", max_results=1000
    )
    for run in running:
        tags = run.data.tags
        pid = tags.get("hfexp.pid", "")
        process = ProcessId(own.host, int(pid) if pid.isdigit() else 0, tags.get("hfexp.process", ""))
        if process.is_gone() and _close(client, run.info.run_id, Path(tags.get("hfexp.run_dir", "")), uri, output_dir):
            closed.append(run.info.run_id)
    return closed


def _close(client: Any, run_id: str, run_dir: Path, uri: str, output_dir: Path) -> bool:
    """Let the run directory say how the run ended; without one, it was killed."""
    if exists(run_dir):
        with held_run(run_dir) as state:
            if state is None:
                return False
            if state.run_id == run_id:
                deliver_rest(run_dir, state, uri, output_dir)
                return True
    client.set_tag(run_id, "hfexp.status_reason", GONE)
    client.set_terminated(run_id, "KILLED")
    return True


def deliver_rest(run_dir: Path, state: RunState, uri: str, output_dir: Path) -> Delivery:
    """Deliver all that a run left in its directory, which the caller holds.

    Raises:
        Exception: the store can't be reached.
    """
    journal = Journal(run_dir)
    journal.release_space()
    if state.status == "running":
        last = [entry for entry, _ in journal.read() if "time" in entry][-1]
        if last["kind"] != "end":
            append_closing(run_dir, journal)
            journal.append("end", status="killed", reason=GONE, time=last["time"])
        state.status = last["status"] if last["kind"] == "end" else "killed"
        save_state(run_dir, state)
    delivery = Delivery(run_dir, journal, uri, output_dir)
    delivery.deliver()
    delivery.deliver_deferred()
    if delivery.state.run_id != state.run_id:
        state.run_id = delivery.state.run_id
        save_state(run_dir, state)
    return delivery


def append_closing(run_dir: Path, journal: Journal) -> None:
    """What is said once more when a run ends, however it ends: its files, and the checkpoints that are left."""
    for name in ("artifacts", "hfexp.log"):
        if (run_dir / name).exists():
            journal.append("artifacts", path=name, name=None)
    if any(entry["kind"] == "checkpoints" for entry, _ in journal.read()):
        journal.append("checkpoints", last=True)


def is_complete(run_dir: Path, state: RunState, uri: str) -> bool:
    """Whether a run has ended and its store has everything."""
    return state.status != "running" and not Delivery(run_dir, Journal(run_dir), uri, run_dir).pending


def recorded_uri(run_dir: Path, output_dir: Path) -> str:
    """Where a run was to be recorded; with a password in it, which is not kept, `MLFLOW_TRACKING_URI` must say it."""
    try:
        uri = str(json.loads((run_dir / FOLDER / STATE).read_text())["uri"])
    except (OSError, ValueError, KeyError):
        uri = tracking_uri(None, str(output_dir))
    if MASK in uri:
        given = os.environ.get("MLFLOW_TRACKING_URI", "")
        if mask_secrets(given) != uri:
            raise ConfigError(f"{uri} needs its password: give the whole address with --uri")
        return given
    return uri
