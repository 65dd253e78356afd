"""Delivery of a run's journal to MLflow, beside training: in order, in batches, safe to repeat at any time."""

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hfexp.core.errors import ConfigError, first_line
from hfexp.core.outside import DamagedRecord, inside, why_foreign, why_not_contained
from hfexp.core.secrets import mask_secrets
from hfexp.tracking import membership
from hfexp.tracking.journal import PROCESS, DeliveryState, Entry, Journal, process_in
from hfexp.tracking.models import CheckpointLinks, LinkedCheckpoints, deliver_model, register_final
from hfexp.tracking.notes import NOTE, join_note, split_note
from hfexp.tracking.store import open_store

logger = logging.getLogger(__name__)

REASON = "hfexp.status_reason"
# The next three are limits of MLflow 3.17 (`mlflow/utils/validation.py`).
MAX_PARAM_LENGTH = 6000
PARAMS_PER_BATCH = 100
METRICS_PER_BATCH = 1000
ENTRIES_PER_STEP = 1000
BATCHED = ("params", "tags", "metrics")
TURNING_POINTS = ("create", "resume", "end")
CHECKPOINTS = "checkpoints"
CHECKPOINT_MODELS = "mlflow_models"
"""Directory of the MLflow models made from checkpoints; each is removed once it is delivered."""

REFUSALS = frozenset(
    {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE"}
)
"""MLflow's error codes for final refusals; any other error may be temporary.

Not `BAD_REQUEST`: MLflow 3.17 uses it for every problem with its own database (`store/db/utils.py`).
"""
MAX_WARNINGS = 100
"""Different warnings that a delivery logs at most."""


class Delivery:
    """Delivers the journal of one run to one store."""

    def __init__(self, run_dir: Path, journal: Journal, uri: str, output_dir: Path) -> None:
        self.run_dir = run_dir
        self.journal = journal
        self.uri = uri
        self.output_dir = output_dir
        self.state = DeliveryState.load(run_dir, mask_secrets(uri), journal.size())
        self._client: Any = None
        self._warned: set[str] = set()
        self._run_checked = False
        """True once the store was asked whether the run of an earlier process still exists."""
        self._links: LinkedCheckpoints | None = None
        self._processes: set[tuple[str, ...]] = set()
        """Processes that have worked in this directory, as far as `_is_lost` has read the journal."""
        self._read_until = 0

    @property
    def pending(self) -> bool:
        """Return True while something is left to deliver."""
        return bool(self.state.deferred) or self.state.offset < self.journal.size()

    def deliver(self) -> None:
        """Deliver all entries. A failed upload is deferred; any other failure ends this attempt.

        Raises:
            Exception: the store can't be reached now; the state says what was delivered, and the rest stays.
        """
        if self.state.run_id is not None and not self._run_checked:
            self._forget_missing_run()
        self._run_checked = True
        while self.state.offset < self.journal.size():
            if self._is_lost():
                self._drop_rest()
                return
            self._step()
            self.journal.sync()
            self.save_state()

    def deliver_deferred(self) -> None:
        """Retry the deferred entries, each once.

        Raises:
            Exception: the last error, if any of them failed again.
        """
        problem = None
        if self.state.deferred and self._is_lost():
            self._drop_rest()
        for position in list(self.state.deferred):
            try:
                self._deliver_one(self.journal.entry_at(position))
                self.state.deferred.remove(position)
            except Exception as error:
                problem = error
        self.save_state()
        if problem is not None:
            raise problem

    def client(self) -> Any:
        """Return the MLflow client; the first call opens the store."""
        if self._client is None:
            create = next(self.journal.read())[0]
            self._client, self.state.experiment_id = open_store(self.uri, self.output_dir, create["experiment"])
        return self._client

    def _forget_missing_run(self) -> None:
        """Start over in a new run if the run was deleted from the store meanwhile."""
        from mlflow.exceptions import MlflowException

        try:
            gone = self.client().get_run(self.state.run_id).info.lifecycle_stage == "deleted"
        except MlflowException as error:
            gone = error.error_code == "RESOURCE_DOES_NOT_EXIST"
        if gone:
            logger.warning("the MLflow run %s no longer exists; recording in a new one", self.state.run_id)
            self.state = DeliveryState(self.state.uri, experiment_id=self.state.experiment_id)

    def _is_lost(self) -> bool:
        """Tell whether another host continues this run, so that nothing from here belongs into it any more.

        Only runs of sweeps that several hosts share are asked for. Who continues a run sets the tags of its process
        before anything else. All processes that this directory's journal names have worked here.
        """
        if not next(self.journal.read(), ({}, 0))[0].get("shared"):
            return False
        if self.state.run_id is None:
            return self.state.offset > 0  # even the beginning was left out: see `create`
        for entry, after in self.journal.read(self._read_until):
            self._read_until = after
            if entry["kind"] in ("create", "tags") and PROCESS[-1] in entry["tags"]:
                self._processes.add(process_in(entry["tags"]))
        return process_in(self.client().get_run(self.state.run_id).data.tags) not in self._processes

    def _drop_rest(self) -> None:
        self._warn_once("another host continues this run; what this one has measured since is not recorded")
        self.state.offset, self.state.deferred = self.journal.size(), []
        self.save_state()

    def _step(self) -> None:
        """Deliver the next entry if it creates, resumes or ends the run, or else all entries before the next such one.

        Params, tags and metrics go first, at most `ENTRIES_PER_STEP` in a batch: many calls would take the store many
        times as long. The others follow, each once even if it was repeated, as they refer to what is on disk.
        """
        position = self.state.offset
        end = self.journal.size()  # skips what is left if no entry of it can be parsed
        batch: list[Entry] = []
        others: dict[str, tuple[Entry, int]] = {}
        for entry, after in self.journal.read(position):
            if entry["kind"] in TURNING_POINTS:
                if not batch and not others:
                    self._deliver_one(entry)
                    end = max(after, self.state.offset)  # beyond it if the rest was dropped
                break
            if entry["kind"] in BATCHED:
                batch.append(entry)
            else:
                key = CHECKPOINTS if entry["kind"] == CHECKPOINTS else json.dumps(entry)
                others.pop(key, None)
                others[key] = entry, position
            position = end = after
            if len(batch) == ENTRIES_PER_STEP:
                break
        if batch:
            self._send_batch(batch)
        self.state.offset = end
        for entry, offset in others.values():
            self._deliver_or_defer(entry, offset)

    def _deliver_or_defer(self, entry: Entry, position: int) -> None:
        try:
            self._deliver_one(entry)
        except Exception as error:
            self._warn_once(f"{entry['kind']} could not be recorded yet: {error}")
            self.state.deferred.append(position)

    def _deliver_one(self, entry: Entry) -> None:
        """Apply an entry; a refusal of the store is final, and logged."""
        from mlflow.exceptions import MlflowException

        try:
            ACTIONS[entry["kind"]](self, entry)
        except (MlflowException, FileNotFoundError, DamagedRecord) as error:
            if not _is_refusal(error):
                raise
            if entry["kind"] == "create":
                raise ConfigError(f"MLflow refuses the run: {first_line(error)}") from error
            self._warn_once(f"{entry['kind']} can't be recorded: {error}")

    def _send_batch(self, entries: list[Entry]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        params = {k: v for e in entries if e["kind"] == "params" for k, v in e["params"].items()}
        tags = {k: v for e in entries if e["kind"] == "tags" for k, v in e["tags"].items()}
        metrics = [
            Metric(name, float(value), e["time"], e["step"])
            for e in entries
            if e["kind"] == "metrics"
            for name, value in e["metrics"].items()
        ]
        if NOTE in tags:  # the user may have written a note while the run was going on
            own, _ = split_note(self.client().get_run(self.state.run_id).data.tags.get(NOTE, ""))
            tags[NOTE] = join_note(own, tags[NOTE])
        self._log_batch(params=[Param(k, v[:MAX_PARAM_LENGTH]) for k, v in params.items()], size=PARAMS_PER_BATCH)
        self._log_batch(tags=[RunTag(k, v) for k, v in tags.items()], size=PARAMS_PER_BATCH)
        self._log_batch(metrics=metrics, size=METRICS_PER_BATCH)

    def _log_batch(self, size: int, **batches: list[Any]) -> None:
        for kind, items in batches.items():
            for start in range(0, len(items), size):
                self._log_items(kind, items[start : start + size])

    def _log_items(self, kind: str, items: list[Any]) -> None:
        """Send items in one request; if it is refused, bisect them, so that only the refused ones are lost."""
        from mlflow.exceptions import MlflowException

        try:
            self.client().log_batch(self.state.run_id, **{kind: items})
        except MlflowException as error:
            if not _is_refusal(error):
                raise
            if len(items) == 1:
                self._warn_once(
                    f"the {kind.removesuffix('s')} {items[0].key!r} can't be recorded: {first_line(error)}"
                )
                return
            half = len(items) // 2
            self._log_items(kind, items[:half])
            self._log_items(kind, items[half:])

    def create(self, entry: Entry) -> None:
        """Create the run, or find it: an earlier attempt may have died before it stored the id of the new run."""
        client = self.client()
        if self.state.run_id is None and entry.get("shared") and self._is_superseded(entry):
            self._drop_rest()
            return
        if self.state.creating or (self.state.run_id is None and entry.get("shared")):
            runs = client.search_runs([self.state.experiment_id], f"tags.`{membership.KEY}` = '{entry['key']}'")
            self.state.run_id = runs[0].info.run_id if runs else None
        if self.state.run_id is None:
            self.state.creating = True
            self.save_state()
            tags = {membership.KEY: entry["key"], **entry["tags"]}
            run = client.create_run(self.state.experiment_id, entry["time"], tags, entry["name"])
            self.state.run_id = run.info.run_id
        membership.connect(client, self.state.experiment_id, self.state.run_id, entry)
        self.state.creating = False
        self.save_state()

    def _is_superseded(self, entry: Entry) -> bool:
        """Tell whether another host has begun this point of a sweep since, while this one could not record it."""
        if membership.TRIAL not in entry["tags"]:
            return False
        runs = membership.runs_of_point(self.client(), self.state.experiment_id, entry["tags"])
        return any(
            run.info.start_time > entry["time"] and run.data.tags.get(membership.KEY) != entry["key"] for run in runs
        )

    def resume(self, entry: Entry) -> None:
        self.client().update_run(self.state.run_id, status="RUNNING")
        self._forget_reason()

    def _forget_reason(self) -> None:
        """Remove the reason tag, which a run has if it was interrupted or taken for dead before it went on."""
        if REASON in self.client().get_run(self.state.run_id).data.tags:
            self.client().delete_tag(self.state.run_id, REASON)

    def log_artifacts(self, entry: Entry) -> None:
        path = self._path(entry["path"])
        if path.is_dir():
            self.client().log_artifacts(self.state.run_id, str(path), entry["name"])
        else:
            self.client().log_artifact(self.state.run_id, str(path), entry["name"])

    def _path(self, name: str) -> Path:
        """Return the path of a file or directory to upload from the run directory.

        Raises:
            DamagedRecord: it is outside of the run directory, or a link in it leads out.
        """
        path = inside(self.run_dir, name)
        problem = why_not_contained(path, self.run_dir) if path.exists() else None
        if problem:
            raise DamagedRecord(problem)
        return path

    def log_inputs(self, entry: Entry) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(Dataset(**item["dataset"]), [InputTag(k, v) for k, v in item["tags"].items()])
            for item in entry["inputs"]
        ]
        self.client().log_inputs(self.state.run_id, inputs)

    def log_model(self, entry: Entry) -> None:
        content = {name: entry[name] for name in ("name", "key", "step", "metrics", "register")}
        directory = self._path(entry["directory"])
        deliver_model(
            self.client(),
            run_id=str(self.state.run_id),
            experiment_id=str(self.state.experiment_id),
            directory=directory,
            **content,
        )
        if entry.get("temporary") and directory.parent == self.run_dir / CHECKPOINT_MODELS:
            shutil.rmtree(directory, ignore_errors=True)

    def register_best(self, entry: Entry) -> None:
        """Register the final model of another run; raise an error until that run is recorded."""
        run_id = entry.get("run_id")
        if not run_id:
            run_dir = Path(entry["run_dir"])
            problem = why_foreign(run_dir, self.output_dir)
            if problem:
                raise DamagedRecord(problem)
            run_id = membership.recorded_run(run_dir)
        register_final(self.client(), run_id, entry["name"])

    def link_checkpoints(self, entry: Entry) -> None:
        if self._links is None:
            links = CheckpointLinks(self.client(), str(self.state.run_id), str(self.state.experiment_id))
            self._links = LinkedCheckpoints(self.run_dir / "checkpoints", self.journal, links)
        self._links.update(self.state.offset, last=bool(entry.get("last")))

    def end(self, entry: Entry) -> None:
        if entry["reason"]:
            self.client().set_tag(self.state.run_id, REASON, entry["reason"])
        else:
            self._forget_reason()
        create = next(self.journal.read())[0]
        membership.join_parent(self.client(), self.state.experiment_id, self.state.run_id, create)
        self.client().set_terminated(self.state.run_id, entry["status"].upper(), entry["time"])
        if entry["status"] == "finished" and create.get("shared") and membership.TRIAL in create["tags"]:
            self._close_others(create["tags"])

    def _close_others(self, tags: dict[str, str]) -> None:
        """Close further unfinished runs of a point of a sweep that hosts share: nobody continues them any more.

        A host may be killed after it has asked the store for a run, and the next one look for it before it is there.
        """
        for run in membership.runs_of_point(self.client(), self.state.experiment_id, tags):
            other = run.info.run_id
            if other != self.state.run_id and run.info.status in ("RUNNING", "KILLED"):
                membership.claim_run(self.client(), other)
                reason = f"superseded by the run {self.state.run_id}, which has finished this point of the sweep"
                self.client().set_tag(other, REASON, reason)
                self.client().set_terminated(other, "FAILED")

    def _warn_once(self, message: str) -> None:
        message = mask_secrets(message)
        if message not in self._warned and len(self._warned) < MAX_WARNINGS:
            self._warned.add(message)
            logger.warning("MLflow: %s", message)

    def save_state(self) -> None:
        """Save the delivery state, which also says where the run is to be recorded."""
        try:
            self.state.save(self.run_dir)
        except OSError as error:  # delivering an entry twice does no harm
            self._warn_once(f"{self.run_dir} can't be written: {error.strerror}")


def _is_refusal(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError | DamagedRecord) or getattr(error, "error_code", "") in REFUSALS


ACTIONS = {
    "create": Delivery.create,
    "resume": Delivery.resume,
    "artifacts": Delivery.log_artifacts,
    "inputs": Delivery.log_inputs,
    "model": Delivery.log_model,
    "register": Delivery.register_best,
    CHECKPOINTS: Delivery.link_checkpoints,
    "end": Delivery.end,
}

# Background delivery of a run's journal, so that training never waits for the store.


INTERVAL = 1.0
"""Seconds between deliveries: small enough to watch a run, large enough to make one batch of many numbers."""
LONGEST_PAUSE = 30.0
"""Seconds between deliveries to a slow store, and between attempts while it can't be reached."""
LARGEST_SHARE = 0.01
"""Share of the training time in which the thread works (more if `LONGEST_PAUSE` demands it); the rest comes after."""
PATIENCE = 10.0
"""Seconds for which a run that has ended retries a store that accepts nothing."""


class Writer:
    """A thread that delivers a run's journal, with retries until the run ends."""

    def __init__(self, delivery: Delivery, then: Callable[[], None]) -> None:
        """Set up the thread; it calls `then` after deliveries that succeed, until one call has succeeded."""
        self._delivery = delivery
        self._then: Callable[[], None] | None = then
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hfexp-record", daemon=True)
        self.tried = threading.Event()
        """Set once the first delivery has succeeded or failed."""
        self.problem: Exception | None = None
        """Error of the last delivery; None if it succeeded."""

    def start(self) -> None:
        self._thread.start()

    def close(self) -> bool:
        """Deliver the rest and end the thread; True if nothing is left."""
        self._closing.set()
        while self._thread.is_alive():
            self._thread.join(0.2)
        return not self._delivery.pending

    def _run(self) -> None:
        self._deliver()
        self.tried.set()
        pause = INTERVAL
        while not self._closing.wait(pause):
            began = time.monotonic()
            succeeded = self._deliver()
            duration = time.monotonic() - began
            pause = min(LONGEST_PAUSE, max(INTERVAL, duration / LARGEST_SHARE if succeeded else 2 * pause))
        started = time.monotonic()
        while not self._deliver():
            if time.monotonic() - started > PATIENCE:
                return
            time.sleep(INTERVAL)
        self._attempt(self._delivery.deliver_deferred)

    def _deliver(self) -> bool:
        if not self._attempt(self._delivery.deliver):
            return False
        if self._then is not None:
            try:
                self._then()
                self._then = None
            except Exception as error:  # retried after the next delivery
                logger.info("could not close runs of dead processes: %s", first_line(error))
        return True

    def _attempt(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except Exception as error:  # on any error training goes on, and the journal keeps the entries
            if self.problem is None and self.tried.is_set() and not self._closing.is_set():
                logger.warning("writing to MLflow failed, will retry: %s", first_line(error))
            self.problem = error
            return False
        self.problem = None
        return True
