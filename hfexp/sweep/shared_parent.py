"""The sweep's own MLflow run where several hosts share the sweep: one of them writes it at a time, under a lease."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from optuna.study import Study

from hfexp.core.config import Config
from hfexp.core.console import note
from hfexp.core.errors import SweepError, first_line
from hfexp.core.provenance import Origin
from hfexp.sweep.parent_run import Parent, mark_failed, open_parent
from hfexp.sweep.scheduler import GAP, INTERVAL, Owner
from hfexp.sweep.study import KEY, WRITER, agreed, claim
from hfexp.sweep.trials import Sweep
from hfexp.tracking.membership import opening_of
from hfexp.tracking.names import experiment_name
from hfexp.tracking.restore import restore_sweep
from hfexp.tracking.store import tracking_uri, why_unreachable


@dataclass
class Lease:
    """The right to write the sweep's own run, kept in the study; it ends with its holder's signs of life."""

    study: Study
    owner: Owner

    def take(self) -> bool:
        """Take the lease if nobody holds it who lives, or keep it; False if it is another sweeper's."""
        holder = self.study.user_attrs.get(WRITER)
        if holder == self.owner.text:
            return True
        return not (holder and self.owner.is_alive(holder)) and claim(self.study, WRITER, holder, self.owner.text)

    def is_taken(self) -> bool:
        """Tell whether another sweeper holds the lease."""
        return self.study.user_attrs.get(WRITER) not in (None, "", self.owner.text)

    def release(self) -> None:
        claim(self.study, WRITER, self.owner.text, "")


def key_of(study: Study, directory: Path) -> str:
    """Return the key of the sweep's own run, on which all hosts agree."""
    opened = opening_of(directory)  # of a start by an earlier version
    return agreed(study, KEY, opened["key"] if opened else uuid4().hex)


@dataclass
class SharedParent:
    """Stands for the sweep's own run on one of its hosts; writes it whenever this host holds the lease."""

    config: Config
    origin: Origin
    directory: Path
    key: str
    lease: Lease
    view: Callable[[], Sweep]
    """Reads the state of the whole sweep from the study."""
    _parent: Parent | None = None
    _record: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _published: Sweep | None = None
    _wake: threading.Event = field(default_factory=threading.Event)
    _done: threading.Event = field(default_factory=threading.Event)
    _problem: str = ""

    @property
    def experiment(self) -> str:
        """Return the name of the MLflow experiment of all runs of the sweep."""
        return experiment_name(self.config, self.origin)

    @property
    def run_id(self) -> str | None:
        """Return the run's id in MLflow while this host writes it; a job of another host finds the run by its key."""
        return self._parent.run_id if self._parent else None

    def update(self, sweep: Sweep) -> None:
        """Have the thread publish the state of the sweep, if this host writes it; return at once."""
        self._wake.set()

    def close_failed(self, run_dir: Path, reason: str) -> None:
        """Mark the run of a job whose process has died as failed."""
        mark_failed(run_dir, Path(self.config.output_dir), reason)

    @contextlib.contextmanager
    def kept(self) -> Iterator["SharedParent"]:
        """Keep the run up to date while the block runs, and close it as the block ends, if it is this host's then."""
        self._try_to_open()
        thread = threading.Thread(target=self._keep_up, name="hfexp-sweep-lease", daemon=True)
        thread.start()

        def stop_keeping_up() -> None:
            self._done.set()
            self._wake.set()
            thread.join()

        try:
            yield self
        except SweepError as error:
            stop_keeping_up()
            self._close(error)
            raise
        except BaseException as error:
            stop_keeping_up()
            self._leave(error)
            raise
        stop_keeping_up()
        self._close(None)

    def _keep_up(self) -> None:
        """Publish changes, those by other hosts too, and take over the run when its writer has gone."""
        while not self._done.is_set():
            try:
                if self._parent is None:
                    self._try_to_open()
                self._publish()
            except Exception as error:  # the study or the server is away; the sweep goes on
                self._warn_once(f"could not update the sweep's run in the tracking store: {first_line(error)}")
            self._wake.wait(INTERVAL)
            self._wake.clear()

    def _try_to_open(self) -> None:
        uri, output_dir = tracking_uri(self.config.tracking.uri, self.config.output_dir), self.config.output_dir
        problem = why_unreachable(uri)
        if problem is not None:
            self._warn_once(f"{problem}; the sweep's own run is written once it answers")
            return
        if not self.lease.take():
            return
        try:
            restore_sweep(uri, Path(output_dir), self.experiment, self.key, self.directory)
            sweep = self.view()
            opened = open_parent(self.config, self.origin, sweep, self.directory, self.key)
            self._parent = self._record.enter_context(opened)
        except BaseException:
            self.lease.release()
            raise

    def _warn_once(self, text: str) -> None:
        if text != self._problem:
            note(text)
        self._problem = text

    def _publish(self) -> None:
        if self._parent is None:
            return
        if not self.lease.take():  # this host gave no sign of life for so long that another one has taken it
            note("another host writes the sweep's own run, as this one gave no sign of life")
            self._leave(None)
            return
        sweep = self.view()
        if self._published is None or sweep.trials != self._published.trials:
            self._published = sweep
            self._parent.update(sweep)

    def _close(self, error: SweepError | None) -> None:
        """Write the final state, unless another host does, which then sees what this one has stored in the study."""
        while True:
            if self._parent is None:
                self._try_to_open()
            if self._parent is None or not self.lease.take():
                self._leave(error)
                return
            self._published = self.view()
            self._parent.update(self._published)
            self._leave(error)
            if self._is_complete():
                return

    def _is_complete(self) -> bool:
        """Tell whether nothing is left to write for this host, which has just given the lease back.

        A host that ended meanwhile found the lease taken and wrote nothing; one that goes on takes it in `INTERVAL`.
        """
        deadline = time.monotonic() + GAP * INTERVAL
        while time.monotonic() < deadline:
            if self.lease.is_taken() or (self._published and self.view().trials == self._published.trials):
                return True
            time.sleep(0.2)
        return False

    def _leave(self, error: BaseException | None) -> None:
        """Close the record as the sweep has ended here, and give the lease back."""
        record, self._record, self._parent = self._record, contextlib.ExitStack(), None
        try:
            record.__exit__(*((type(error), error, error.__traceback__) if error else (None, None, None)))
        finally:
            self.lease.release()
