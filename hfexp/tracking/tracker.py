"""Trackers: the interface through which a run records params, metrics, tags and files."""

import logging
import re
from pathlib import Path
from typing import Any, Protocol

from hfexp.core.console import note
from hfexp.core.errors import first_line
from hfexp.tracking.delivery import Delivery, Writer
from hfexp.tracking.journal import Journal, mask_tags, now
from hfexp.tracking.recovery import append_closing, close_gone_runs
from hfexp.tracking.run_directory import RunDirectory
from hfexp.tracking.store import flush_wal

logger = logging.getLogger(__name__)

MAX_TAG_LENGTH = 5000
MAX_NAME_LENGTH = 250
_FORBIDDEN = re.compile(r"[^\w.\- /:]")


class Tracker(Protocol):
    """Interface that a run records through; every call returns at once."""

    uri: str | None

    @property
    def run_id(self) -> str | None:
        """Return the id of the run in the store; None if it has none (yet)."""
        ...

    def log_params(self, params: dict[str, Any]) -> None:
        """Record values that hold for the whole run."""
        ...

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Record metrics at a training step; NaN and infinities are recorded as such."""
        ...

    def set_tags(self, tags: dict[str, str]) -> None: ...

    def log_artifacts(self, path: Path, name: str | None = None) -> None:
        """Copy a file or the contents of a directory, inside the run directory, into the record below `name`."""
        ...

    def record(self, kind: str, **content: Any) -> None:
        """Record anything else that `hfexp.tracking.delivery` can deliver."""
        ...


class NullTracker:
    """A tracker that records nothing (`tracking=none`)."""

    uri: str | None = None

    @property
    def run_id(self) -> str | None:
        return None

    def log_params(self, params: dict[str, Any]) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int) -> None: ...

    def set_tags(self, tags: dict[str, str]) -> None: ...

    def log_artifacts(self, path: Path, name: str | None = None) -> None: ...

    def record(self, kind: str, **content: Any) -> None: ...


class MlflowTracker:
    """A tracker that writes to the run's journal, which a thread delivers to one MLflow run.

    It uses the MLflow client only: there is no global active run that another job could write to by mistake.
    """

    def __init__(self, directory: RunDirectory, uri: str, output_dir: Path) -> None:
        self.directory = directory
        self.uri: str | None = uri
        self.journal = Journal(directory.path)
        self.delivery = Delivery(directory.path, self.journal, uri, output_dir)
        self.delivery.save_state()
        self.journal.reserve_space()
        self.writer: Writer | None = None
        self.continue_journal()

    @property
    def run_id(self) -> str | None:
        """Return the id of the run in the store; None until the store has been reached."""
        return self.delivery.state.run_id

    def log_params(self, params: dict[str, Any]) -> None:
        new = {k: str(v) for k, v in valid(params).items() if k not in self._recorded_params}
        if new:
            self.journal.append("params", params=new)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        new = {k: float(v) for k, v in valid(metrics).items() if step > self._recorded_until.get(k, -1)}
        # The Trainer logs the epoch with the loss, and again with the evaluation at the same step.
        new = {k: v for k, v in new.items() if self._last_logged.get(k) != (step, v)}
        self._last_logged |= {k: (step, v) for k, v in new.items()}
        if new:
            self.journal.append("metrics", metrics=new, step=step, time=now())

    def set_tags(self, tags: dict[str, str]) -> None:
        self.journal.append("tags", tags=masked(tags))

    def log_artifacts(self, path: Path, name: str | None = None) -> None:
        self.journal.append("artifacts", path=str(path.relative_to(self.directory.path)), name=name)

    def record(self, kind: str, **content: Any) -> None:
        self.journal.append(kind, **content)

    def finish(self, status: str, reason: str) -> None:
        """Record how the run ended; `flush` delivers it."""
        self.journal.release_space()
        append_closing(self.directory.path, self.journal)
        self.journal.append("end", status=status, reason=masked({"": reason})[""], time=now())

    def continue_journal(self) -> None:
        """Read what is recorded already, since a resumed run repeats the steps after its last checkpoint."""
        self._recorded_params, self._recorded_until = self.journal.recorded()
        self._last_logged: dict[str, tuple[int, float]] = {}

    def begin_journal(self) -> None:
        """Discard the journal of an earlier process that died before it could write `create`."""
        self.journal.discard()
        self.delivery.state.offset, self.delivery.state.deferred = 0, []

    def start_writer(self) -> Writer:
        """Start to deliver in the background."""
        self.writer = Writer(self.delivery, then=self._close_gone_runs)
        self.writer.start()
        return self.writer

    def flush(self) -> None:
        """Deliver everything; note what can't be delivered, which stays in the run directory."""
        writer = self.writer or self.start_writer()
        try:
            complete = writer.close()
        except KeyboardInterrupt:  # the journal has the end of the run: stop waiting
            complete = False
        flush_wal(str(self.uri))
        if not complete:
            problem = first_line(writer.problem) if writer.problem else "some entries were not delivered"
            note(f"the record at {self.uri} is incomplete: {problem}")
            note(f"the rest is kept in {self.directory.path}; `hfexp sync` delivers it")

    def _close_gone_runs(self) -> None:
        for run_id in close_gone_runs(self.delivery.client(), str(self.uri), self.delivery.output_dir):
            logger.info("closed the run %s, whose process is gone", run_id)


def masked(tags: dict[str, str]) -> dict[str, str]:
    """Return the tags without secrets, under valid names and short enough for every store."""
    return {
        key: value[:MAX_TAG_LENGTH] for key, value in mask_tags({k: str(v) for k, v in valid(tags).items()}).items()
    }


def valid(values: dict[str, Any]) -> dict[str, Any]:
    """Make names valid in every store (`mlflow/utils/validation.py`), as one bad name would hold up many others."""
    return {_FORBIDDEN.sub("_", key).replace("//", "/_").strip("/")[:MAX_NAME_LENGTH]: v for key, v in values.items()}
