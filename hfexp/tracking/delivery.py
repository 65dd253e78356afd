"""From a run's journal to the MLflow store: in order, in batches, and safe to repeat after any interruption."""

import contextlib
import json
import logging
import math
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hfexp.checkpoints import best_step, list_checkpoints
from hfexp.origin import mask_secrets
from hfexp.tracking.journal import FOLDER, Entry, Journal
from hfexp.tracking.models import CheckpointLinks, deliver_model
from hfexp.tracking.store import open_store

logger = logging.getLogger(__name__)

STATE = "delivered.json"
MAX_PARAM_LENGTH = 6000
PARAMS_PER_BATCH = 100
METRICS_PER_BATCH = 1000
ENTRIES_PER_STEP = 1000
SECONDS_BETWEEN_LINKS = 30.0
BATCHED = ("params", "tags", "metrics")

REFUSALS = frozenset(
    {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST", "INVALID_STATE"}
)
"""Error codes of MLflow with which a store says no for good; other errors pass, or may pass."""


@dataclass
class DeliveryState:
    """How far a journal has been delivered (`delivered.json`)."""

    uri: str
    """Tracking URI, passwords masked."""
    run_id: str | None = None
    experiment_id: str | None = None
    offset: int = 0
    """Everything before this position of the journal was delivered, or is in `deferred`."""
    deferred: list[int] = field(default_factory=list)
    """Positions of uploads that failed and will be tried again."""
    creating: bool = False
    """A run was being created, so that it may exist without being known here."""


class Delivery:
    """Delivers one journal to one store."""

    def __init__(self, run_dir: Path, journal: Journal, uri: str, output_dir: Path) -> None:
        self.run_dir = run_dir
        self.journal = journal
        self.uri = uri
        self.output_dir = output_dir
        self.path = run_dir / FOLDER / STATE
        self.state = self._load_state()
        self._client: Any = None
        self._refused: set[str] = set()
        self._links: CheckpointLinks | None = None
        self._linked_at = -math.inf

    @property
    def pending(self) -> bool:
        """Whether something is left to deliver."""
        return bool(self.state.deferred) or self.state.offset < self.journal.size()

    def deliver(self) -> None:
        """Deliver what there is. An upload that fails is put off; anything else that fails ends this attempt.

        Raises:
            Exception: the store can't be reached now; what was delivered is noted, the rest stays.
        """
        while self.state.offset < self.journal.size():
            self._step()
            self.save_state()

    def deliver_deferred(self) -> None:
        """Try the failed uploads again; the first failure ends the attempt."""
        while self.state.deferred:
            self._deliver_one(self.journal.entry_at(self.state.deferred[0]))
            self.state.deferred.pop(0)
            self.save_state()

    def client(self) -> Any:
        """The store's client; opened when it is first needed."""
        if self._client is None:
            create = next(self.journal.read())[0]
            self._client, self.state.experiment_id = open_store(self.uri, self.output_dir, create["experiment"])
        return self._client

    def forget_missing_run(self) -> None:
        """Deliver everything anew if the run was deleted from the store meanwhile."""
        from mlflow.exceptions import MlflowException

        if self.state.run_id is None:
            return
        try:
            gone = self.client().get_run(self.state.run_id).info.lifecycle_stage == "deleted"
        except MlflowException as error:
            gone = error.error_code == "RESOURCE_DOES_NOT_EXIST"
        if gone:
            logger.warning("the MLflow run %s is gone; recording in a new one", self.state.run_id)
            self.state = DeliveryState(self.state.uri, experiment_id=self.state.experiment_id)

    def _step(self) -> None:
        """Deliver the next entries of one sort: many small ones as a batch, or a single one."""
        start = end = self.state.offset
        batch: list[Entry] = []
        for entry, after in self.journal.read(start):
            if entry["kind"] not in BATCHED:
                if not batch:
                    self._deliver_or_defer(entry, start)
                    end = after
                break
            batch.append(entry)
            end = after
            if len(batch) == ENTRIES_PER_STEP:
                break
        if batch:
            self._send_batch(batch)
        self.state.offset = end

    def _deliver_or_defer(self, entry: Entry, position: int) -> None:
        if entry["kind"] in ("create", "resume", "end"):
            self._deliver_one(entry)
            return
        try:
            self._deliver_one(entry)
        except Exception as error:
            self._say_once(f"{entry['kind']} could not be recorded yet: {error}")
            self.state.deferred.append(position)

    def _deliver_one(self, entry: Entry) -> None:
        """Do what an entry says; a store's refusal is said and final."""
        from mlflow.exceptions import MlflowException

        try:
            ACTIONS[entry["kind"]](self, entry)
        except (MlflowException, FileNotFoundError) as error:
            if not _is_refusal(error):
                raise
            self._say_once(f"{entry['kind']} can't be recorded: {error}")

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
        self._log_batch(params=[Param(k, v[:MAX_PARAM_LENGTH]) for k, v in params.items()], size=PARAMS_PER_BATCH)
        self._log_batch(tags=[RunTag(k, v) for k, v in tags.items()], size=PARAMS_PER_BATCH)
        self._log_batch(metrics=metrics, size=METRICS_PER_BATCH)

    def _log_batch(self, size: int, **kinds: list[Any]) -> None:
        from mlflow.exceptions import MlflowException

        for kind, items in kinds.items():
            for start in range(0, len(items), size):
                try:
                    self.client().log_batch(self.state.run_id, **{kind: items[start : start + size]})
                except MlflowException as error:
                    if not _is_refusal(error):
                        raise
                    self._say_once(f"{kind} can't be recorded: {error}")

    def create(self, entry: Entry) -> None:
        """Create the run, or find it: an earlier attempt may have ended between its creation and its being noted."""
        client = self.client()
        tag = "hfexp.run_key"
        if self.state.creating:
            found = client.search_runs([self.state.experiment_id], f"tags.`{tag}` = '{entry['key']}'")
            self.state.run_id = found[0].info.run_id if found else None
        if self.state.run_id is None:
            self.state.creating = True
            self.save_state()
            tags = {tag: entry["key"], **entry["tags"]}
            run = client.create_run(self.state.experiment_id, entry["time"], tags, entry["name"])
            self.state.run_id = run.info.run_id
        self.state.creating = False
        self.save_state()

    def resume(self, entry: Entry) -> None:
        self.client().update_run(self.state.run_id, status="RUNNING")
        for name in ("hfexp.status_reason", "hfexp.marked_by"):
            if name in self.client().get_run(self.state.run_id).data.tags:
                self.client().delete_tag(self.state.run_id, name)

    def log_artifacts(self, entry: Entry) -> None:
        path = self.run_dir / entry["path"]
        if path.is_dir():
            self.client().log_artifacts(self.state.run_id, str(path), entry["name"])
        else:
            self.client().log_artifact(self.state.run_id, str(path), entry["name"])

    def log_inputs(self, entry: Entry) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(Dataset(**item["dataset"]), [InputTag(k, v) for k, v in item["tags"].items()])
            for item in entry["inputs"]
        ]
        self.client().log_inputs(self.state.run_id, inputs)

    def log_model(self, entry: Entry) -> None:
        content = {name: entry[name] for name in ("name", "key", "step", "metrics", "register")}
        deliver_model(
            self.client(),
            run_id=str(self.state.run_id),
            experiment_id=str(self.state.experiment_id),
            directory=self.run_dir / entry["directory"],
            **content,
        )

    def link_checkpoints(self, entry: Entry) -> None:
        """Say which checkpoints are on disk now: at most every half minute, as each may replace another."""
        if time.monotonic() - self._linked_at < SECONDS_BETWEEN_LINKS and not entry.get("last"):
            return
        self._linked_at = time.monotonic()
        directory = self.run_dir / "checkpoints"
        measured, said = self._measured()
        steps = {int(path.name.rpartition("-")[2]): path for path in list_checkpoints(directory)}
        # A newer one is on disk already, but what was measured at its step is still on its way: its turn will come.
        on_disk = {step: path for step, path in steps.items() if step <= said or entry.get("last")}
        if self._links is None:
            self._links = CheckpointLinks(self.client(), str(self.state.run_id), str(self.state.experiment_id))
        self._links.update(on_disk, measured, best_step(directory))

    def _measured(self) -> tuple[dict[int, dict[str, float]], int]:
        """Results of the evaluations delivered so far, by step, and the last step of which anything was said."""
        measured: dict[int, dict[str, float]] = {}
        last = 0
        for entry, after in self.journal.read():
            if after > self.state.offset:
                break
            if entry["kind"] == "metrics" and not any(name.startswith("system/") for name in entry["metrics"]):
                last = max(last, entry["step"])
                values = {name: value for name, value in entry["metrics"].items() if name.startswith("eval_")}
                measured[entry["step"]] = measured.get(entry["step"], {}) | values
        return measured, last

    def end(self, entry: Entry) -> None:
        if entry["reason"]:
            self.client().set_tag(self.state.run_id, "hfexp.status_reason", entry["reason"])
        self.client().set_terminated(self.state.run_id, entry["status"].upper(), entry["time"])

    def _say_once(self, message: str) -> None:
        message = mask_secrets(message)
        if message not in self._refused:
            self._refused.add(message)
            logger.warning("MLflow: %s", message)

    def _load_state(self) -> DeliveryState:
        uri = mask_secrets(self.uri)
        with contextlib.suppress(OSError, ValueError, TypeError):
            state = DeliveryState(**json.loads(self.path.read_text()))
            if state.uri == uri:
                return state
        return DeliveryState(uri, creating=self.journal.size() > 0)

    def save_state(self) -> None:
        """Note how far it is, which also says where a run is to be recorded."""
        temporary = self.path.with_name(f".{STATE}")
        try:
            temporary.write_text(json.dumps(asdict(self.state)))
            os.replace(temporary, self.path)
        except OSError as error:  # to deliver a thing twice does no harm
            self._say_once(f"{self.path} can't be written: {error.strerror}")


def _is_refusal(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError) or getattr(error, "error_code", "") in REFUSALS


ACTIONS = {
    "create": Delivery.create,
    "resume": Delivery.resume,
    "artifacts": Delivery.log_artifacts,
    "inputs": Delivery.log_inputs,
    "model": Delivery.log_model,
    "checkpoints": Delivery.link_checkpoints,
    "end": Delivery.end,
}
