"""Recovery of runs whose process is gone: deliver what they left, and close them with their true status."""

import logging
import os
from pathlib import Path
from typing import Any

from hfexp.core.console import note
from hfexp.core.errors import ConfigError, first_line
from hfexp.core.outside import why_foreign
from hfexp.core.process import ProcessId
from hfexp.core.secrets import MASK, mask_secrets
from hfexp.tracking.delivery import REASON, TURNING_POINTS, Delivery
from hfexp.tracking.journal import Entry, Journal, exists, now, process_in, read_delivered, recorded_run_id
from hfexp.tracking.run_directory import RunState, held_run, read_state, save_state
from hfexp.tracking.store import tracking_uri

logger = logging.getLogger(__name__)

GONE = "its process is gone (it was killed, or the machine stopped)"
DAMAGED = f"{GONE}, and its run.json is damaged or missing"
UNRECORDED = "status taken from its run directory; it was not recorded when the run ended"


def close_gone_runs(client: Any, uri: str, output_dir: Path) -> list[str]:
    """Close the runs of a store that are RUNNING although their process on this machine is gone.

    This is safe beside living runs: a process counts as gone only if its host, pid and start time say so and nobody
    holds the lock of its run directory. If that is ever wrong, the run's own end corrects the status.

    Returns:
        Ids of the runs that were closed.
    """
    closed = []
    own = ProcessId.own()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    # MLflow searches at most 1000 experiments at once. Of unfinished runs, a later call takes those beyond 1000.
    running = client.search_runs(
        experiments[:1000], f"attributes.status = 'RUNNING' and tags.`hfexp.host` = '{own.host}'", max_results=1000
    )
    for run in running:
        try:
            if _close(client, run, uri, output_dir):
                closed.append(run.info.run_id)
        except Exception as error:  # e.g. a directory of another user; go on with the others
            logger.info("could not close the run %s: %s", run.info.run_id, first_line(error))
    return closed


def _close(client: Any, run: Any, uri: str, output_dir: Path) -> bool:
    """Close a run whose process is gone as its directory says, or as KILLED without one; True if it was closed."""
    tags, run_id = run.data.tags, run.info.run_id
    pid = tags.get("hfexp.pid", "")
    process = ProcessId(tags["hfexp.host"], int(pid) if pid.isdigit() else 0, tags.get("hfexp.process", ""))
    if not process.is_gone():
        return False
    run_dir = Path(tags.get("hfexp.run_dir", ""))
    reason = GONE
    if not exists(run_dir):
        if not process.is_of_this_boot():
            return False  # clones of a virtual machine share name and machine id; only the directory would be proof
    elif problem := why_foreign(run_dir, output_dir):
        # A tag may name any directory. The user's next command in another output directory closes the runs there.
        logger.info("the run %s is not closed: %s", run_id, problem)
        return False
    elif read_state(run_dir) is None:
        reason = DAMAGED
    else:
        with held_run(run_dir) as state:
            if state is None:
                return False
            if recorded_run_id(run_dir) == run_id:
                deliver_rest(run_dir, state, uri, output_dir)
                return True
    return _close_as_killed(client, run, reason)


def _close_as_killed(client: Any, run: Any, reason: str) -> bool:
    """Close a run unless another process, perhaps on another host, has continued it since it was read."""
    latest = client.get_run(run.info.run_id)
    if latest.info.status != "RUNNING" or process_in(latest.data.tags) != process_in(run.data.tags):
        return False
    client.set_tag(run.info.run_id, REASON, reason)
    client.set_terminated(run.info.run_id, "KILLED")
    return True


def close_failed(run_dir: Path, output_dir: Path, reason: str) -> None:
    """Mark the run of a dead process FAILED, with the reason that the launcher saw.

    Args:
        output_dir: output directory of the runs, which may hold the MLflow database.
    """
    with held_run(run_dir) as state:
        if state is None or state.status not in ("running", "killed"):  # `killed`: recovered without the reason
            return
        journal = Journal(run_dir)
        recorded = journal.begun()
        if recorded:
            append_closing(run_dir, journal)
            journal.append("end", status="failed", reason=reason, time=now())
        state.status = "failed"
        save_state(run_dir, state)
        if recorded:
            deliver_rest(run_dir, state, recorded_uri(run_dir, output_dir), output_dir)


def close_finished(run_dir: Path, state: RunState, uri: str, output_dir: Path) -> None:
    """Deliver the rest of a finished run, whose lock the caller holds; note and keep what can't be delivered now."""
    try:
        deliver_rest(run_dir, state, uri, output_dir)
    except Exception as error:  # the run has finished: the store must not fail it
        note(f"the record of {run_dir.name} is incomplete: {first_line(error)}; `hfexp sync` delivers the rest")
    state.closed = True
    save_state(run_dir, state)


def deliver_rest(run_dir: Path, state: RunState, uri: str, output_dir: Path) -> Delivery:
    """Deliver all that a run left in its directory, whose lock the caller holds.

    Raises:
        Exception: the store can't be reached.
    """
    journal = Journal(run_dir)
    journal.release_space()
    delivery = Delivery(run_dir, journal, uri, output_dir)
    if not journal.begun():
        return delivery
    end = _add_end(run_dir, journal, state)
    if state.status == "running":
        state.status = end["status"]
        save_state(run_dir, state)
    delivery.deliver()
    delivery.deliver_deferred()
    if delivery.state.run_id != state.run_id:
        state.run_id = delivery.state.run_id
        save_state(run_dir, state)
    return delivery


def _add_end(run_dir: Path, journal: Journal, state: RunState) -> Entry:
    """Return the journal's final `end` entry; if it has none, append one from the state in the directory."""
    timed = [entry for entry, _ in journal.read() if "time" in entry]
    ended = [entry for entry in timed if entry["kind"] in TURNING_POINTS][-1]
    if ended["kind"] == "end":
        return ended
    append_closing(run_dir, journal)
    known = state.status != "running"
    end = {"status": state.status if known else "killed", "reason": UNRECORDED if known else GONE}
    end = {**end, "time": timed[-1]["time"]}
    journal.append("end", **end)
    return end


def append_closing(run_dir: Path, journal: Journal) -> None:
    """Append what a run records at its end, however it ends: its files, and the checkpoints that are left."""
    for name in ("artifacts", "hfexp.log"):
        if (run_dir / name).exists():
            journal.append("artifacts", path=name, name=None)
    if any(entry["kind"] == "checkpoints" for entry, _ in journal.read()):
        journal.append("checkpoints", last=True)


def is_complete(run_dir: Path, state: RunState, uri: str) -> bool:
    """Return True if a run has ended and its store has everything."""
    journal = Journal(run_dir)
    last = [entry["kind"] for entry, _ in journal.read() if entry["kind"] in TURNING_POINTS]
    ended = state.status != "running" and last[-1:] in ([], ["end"])
    return ended and not Delivery(run_dir, journal, uri, run_dir).pending


def recorded_uri(run_dir: Path, output_dir: Path) -> str:
    """Return the URI that a run is recorded at; `MLFLOW_TRACKING_URI` must give its password, which is not kept.

    Raises:
        ConfigError: it does not.
    """
    known = read_delivered(run_dir)
    uri = known.uri if known else tracking_uri(None, str(output_dir))
    if MASK in uri:
        given = os.environ.get("MLFLOW_TRACKING_URI", "")
        if mask_secrets(given) != mask_secrets(uri):  # masked again: an earlier version masked less
            raise ConfigError(f"{uri} is recorded without its secret part; give the whole address with --uri")
        return given
    return uri
