"""The schedule of a sweep: its trials, their owners, the jobs for the launcher, and what their outcomes mean."""

import contextlib
import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from hfexp.core.compose import as_typed, spelling
from hfexp.core.config import Optimise, Pruner, SearchConfig
from hfexp.core.console import note
from hfexp.core.errors import Interrupted, RunError, first_line
from hfexp.core.process import ProcessId
from hfexp.core.secrets import mask_secrets
from hfexp.launch.job import error_of
from hfexp.launch.local import SweepJob
from hfexp.sweep import study as storage
from hfexp.sweep.space import Point, Space
from hfexp.sweep.trials import Estimate, State, Trial, TrialRun, estimate
from hfexp.tracking.membership import TrialKey, run_directory_of
from hfexp.tracking.run_directory import read_state

# Owners of trials where several machines share a storage: each sweeper signs that it lives, and judges the others.


INTERVAL = 10.0
"""Seconds between two signs of life."""
MISSED = 3
"""Signs of life that a sweeper may miss before it counts as dead."""
GAP = 1.5
"""Intervals between two own signs above which the storage may have been away, or this process suspended."""
BEAT = "hfexp.beat."
"""Prefix of the study's attributes that hold the time of each sweeper's last sign, in seconds since 1970."""


class Owner:
    """This process as one of the sweepers that share a storage."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._process = ProcessId.own()
        self.text = json.dumps([self._process.host, self._process.pid, self._process.started])
        self._signed = self._in_touch_since = 0.0

    def is_alive(self, text: str) -> bool:
        """Tell whether the sweeper with this text (host, pid, start as JSON) still directs its trials.

        Its signs may be old because the storage was away for all. So it counts as alive until this process has been
        in touch with the storage for long enough to judge, unless it is certain that it is gone.
        """
        return not self._is_gone(text) and (not self._is_overdue(text) or not self._may_judge())

    def is_unclear(self, text: str) -> bool:
        """Tell whether that sweeper counts as alive only until this one has been in touch with the storage longer."""
        return not self._is_gone(text) and self._is_overdue(text) and not self._may_judge()

    def sign(self) -> None:
        self._study.set_user_attr(BEAT + self.text, time.time())
        now = time.time()
        if now - self._signed > GAP * INTERVAL:
            self._in_touch_since = now
        self._signed = now

    def _is_gone(self, text: str) -> bool:
        """Tell whether a sweeper is certainly gone: its process has ended, or it never signed, as every owner does."""
        host, pid, started = json.loads(text)
        return ProcessId(host, pid, started).is_gone() or BEAT + text not in self._study.user_attrs

    def _is_overdue(self, text: str) -> bool:
        return time.time() - self._study.user_attrs[BEAT + text] >= MISSED * INTERVAL

    def _may_judge(self) -> bool:
        now = time.time()
        return now - self._signed <= GAP * INTERVAL and now - self._in_touch_since >= MISSED * INTERVAL

    @contextlib.contextmanager
    def signing(self) -> Iterator[None]:
        """Sign regularly from a thread while the block runs."""
        done = threading.Event()
        self.sign()

        def go_on() -> None:
            while not done.wait(INTERVAL):
                with contextlib.suppress(Exception):  # the storage is away: others may take over this one's trials
                    self.sign()

        thread = threading.Thread(target=go_on, name="hfexp-sweep-owner", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


# Trials of a sweep as its sweeper knows them; the study stores them too, and each start reads them from there.


CLOSED = {TrialState.COMPLETE: State.finished, TrialState.PRUNED: State.pruned, TrialState.FAIL: State.failed}
GOOD = (State.finished, State.pruned)


@dataclass
class TrialEntry:
    """One trial of the study."""

    number: int
    trial_id: int
    point: Point
    state: State = State.running
    runs: dict[int, TrialRun] = field(default_factory=dict)
    attempts: int = 0
    error: str | None = None
    closed: bool = False
    """True once Optuna was told how the trial ended."""
    foreign: bool = False
    """True while the trial belongs to another sweeper that shares the storage."""
    under_way: set[int] = field(default_factory=set)
    """Replicates that are running now."""

    def done(self) -> list[TrialRun]:
        """Return the runs that ended with values."""
        return [run for run in self.runs.values() if run.state in GOOD and run.values is not None]

    def estimates(self) -> list[Estimate]:
        """Estimate each metric over the runs so far; return an empty list without any."""
        columns = zip(*(run.values for run in self.done() if run.values is not None), strict=True)
        return [estimate(column) for column in columns]

    def objective(self, directions: Sequence[str], bound: bool) -> tuple[float, ...]:
        """Return the values that Optuna is told and the trial is ranked by; empty without any run."""
        estimates = self.estimates()
        return tuple(e.objective(d, bound) for e, d in zip(estimates, directions, strict=True)) if estimates else ()

    def view(self, directions: Sequence[str], bound: bool) -> Trial:
        """Return the trial as the tracking store and the table show it."""
        estimates = self.estimates() if self.state in GOOD else []
        deviations = tuple(e.deviation for e in estimates if e.deviation is not None)
        intervals = tuple(e.interval for e in estimates if e.interval is not None)
        return Trial(
            self.number, self.point.params, self.point.overrides, self.state,
            values=tuple(e.mean for e in estimates) or None, deviations=deviations or None,
            intervals=intervals or None, runs=tuple(run for _, run in sorted(self.runs.items())),
            attempts=self.attempts, error=self.error,
            objective=(self.objective(directions, bound) or None) if estimates else None,
        )  # fmt: skip


class TrialStore:
    """All trials of a sweep, by number."""

    def __init__(self, study: Study, choose: Callable[[optuna.Trial], Point], owner: Owner | None) -> None:
        """Create an empty store; `load` reads the trials.

        Args:
            study: the sweep's study.
            choose: chooses the parameters of a trial.
            owner: this sweeper, if others may share the storage; else None.
        """
        self.study, self._choose, self._owner = study, choose, owner
        self.entries: dict[int, TrialEntry] = {}
        self._first: dict[frozenset[str], TrialEntry] = {}
        """First trial of each point, by the set of its overrides."""

    def load(self, total: int) -> list[TrialEntry]:
        """Read trials that earlier starts or other sweepers have left in the study.

        A trial whose parameters were not all chosen when its sweeper was killed gets the rest here, before the study
        is told how other trials have ended since: the sampler must choose what it would have chosen undisturbed.

        Args:
            total: trials from this number on are ignored.

        Returns:
            Trials that this process has now to run or to continue.
        """
        trials = [trial for trial in storage.trials_of(self.study) if trial.number < total]
        changed = [trial for trial in trials if self._has_changed(trial)]
        taken = []
        for trial in changed:
            is_open = not trial.state.is_finished()
            foreign = is_open and not self._is_mine(trial)
            if is_open and not foreign and storage.WORDS not in trial.user_attrs:
                taken.append(self._complete(storage.reopen(self.study, trial._trial_id)))
                continue
            entry, previous = _read(trial), self.entries.get(trial.number)
            self.entries[trial.number], entry.foreign = entry, foreign
            if previous is not None:  # another sweeper had it; jobs that this process started for it may still run
                entry.under_way = previous.under_way
            self.same_as(entry)
            if is_open and not foreign:
                taken.append(entry)
        return sorted(taken, key=lambda entry: entry.number)

    def read(self, total: int) -> list[TrialEntry]:
        """Read the trials up to a number from the study, and change nothing."""
        entries = [_read(trial) for trial in storage.trials_of(self.study) if trial.number < total]
        for entry in entries:
            if not entry.closed and any(run.state is State.failed for run in entry.runs.values()):
                entry.state = State.failed
        return entries

    def ask(self, total: int) -> TrialEntry | None:
        """Ask for a new trial; return None if there are enough, as another sweeper may have been faster."""
        trial = storage.ask(self.study, self._owner.text if self._owner else None)
        # A surplus trial stays open and without overrides: the next start with a higher total completes it.
        return self._complete(trial) if trial.number < total else None

    def same_as(self, entry: TrialEntry) -> TrialEntry | None:
        """Return the first trial of the same point if that is another one; else remember this one as the first."""
        if entry.foreign:
            return None
        first = self._first.setdefault(frozenset(entry.point.overrides), entry)
        return first if first is not entry else None

    def holds(self, entry: TrialEntry) -> bool:
        """Tell whether this process still owns a trial; others take it over after too long without a sign of life."""
        if self._owner is None or entry.foreign or entry.closed:
            return not entry.foreign
        owner = storage.owner_of(self.study, entry.trial_id)
        if owner != self._owner.text:
            entry.foreign, entry.state = True, State.running
            key = frozenset(entry.point.overrides)
            if self._first.get(key) is entry:
                del self._first[key]
            where = f" by the sweeper on {json.loads(owner)[0]}" if owner else ""
            note(f"trial {entry.number} was taken over{where}, as this one gave no sign of life: dropping it here")
        return not entry.foreign

    def is_unclear(self) -> bool:
        """Tell whether a sweeper that still counts as alive may have abandoned open trials."""
        if self._owner is None:
            return False
        others = [entry.trial_id for entry in self.entries.values() if entry.foreign and not entry.closed]
        owners = {storage.owner_of(self.study, trial_id) for trial_id in others}
        return any(self._owner.is_unclear(owner) for owner in owners if owner)

    def keep_run(self, entry: TrialEntry, run: TrialRun) -> None:
        """Store the outcome of a run, unless another sweeper has taken over the trial."""
        if not self.holds(entry):
            return
        entry.runs[run.replicate] = run
        storage.write_run(self.study, entry.trial_id, run)

    def keep_failure(self, entry: TrialEntry, error: str) -> None:
        """Store one more failed attempt, unless another sweeper has taken over the trial."""
        if not self.holds(entry):
            return
        entry.attempts, entry.error, entry.state = entry.attempts + 1, error, State.failed
        storage.set_attribute(self.study, entry.trial_id, storage.ERROR, error)
        storage.set_attribute(self.study, entry.trial_id, storage.ATTEMPTS, entry.attempts)

    def close(self, entry: TrialEntry, state: State, values: Sequence[float] | None = None) -> None:
        """Tell Optuna how a trial ended, unless another sweeper has taken it over."""
        if not self.holds(entry):
            return
        trial_state = {ours: theirs for theirs, ours in CLOSED.items()}[state]
        storage.tell(self.study, entry.number, trial_state, values if state is State.finished else None)
        entry.state, entry.closed = state, True
        if state is not State.failed:
            entry.error = None

    def _has_changed(self, trial: FrozenTrial) -> bool:
        previous = self.entries.get(trial.number)
        if previous is None or not previous.foreign:
            return previous is None
        return trial.state.is_finished() or not self._is_foreign(trial)

    def _is_foreign(self, trial: FrozenTrial) -> bool:
        owner = trial.user_attrs.get(storage.OWNER)
        if self._owner is None or owner == self._owner.text:
            return False
        return owner is None or self._owner.is_alive(owner)

    def _is_mine(self, trial: FrozenTrial) -> bool:
        """Tell whether an open trial is this process's; take it over first if its sweeper is dead."""
        if self._owner is None:
            return True
        return not self._is_foreign(trial) and storage.take_over(self.study, trial, self._owner.text)

    def _complete(self, trial: optuna.Trial) -> TrialEntry:
        with storage.quiet():
            point = self._choose(trial)
        params = {key: value if _is_plain(value) else str(value) for key, value in point.params.items()}
        storage.set_attribute(self.study, trial._trial_id, storage.PARAMS, json.dumps(params))
        storage.set_attribute(self.study, trial._trial_id, storage.WORDS, list(point.overrides))
        entry = self.entries[trial.number] = TrialEntry(trial.number, trial._trial_id, point)
        return entry


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _read(trial: FrozenTrial) -> TrialEntry:
    """Build the entry of a trial from the study."""
    attrs = trial.user_attrs
    point = Point(json.loads(attrs.get(storage.PARAMS, "{}")), tuple(attrs.get(storage.WORDS, ())))
    state = CLOSED.get(trial.state, State.running)
    error = attrs.get(storage.ERROR) if state not in GOOD else None
    return TrialEntry(
        trial.number, trial._trial_id, point, state, storage.runs_of(attrs), attrs.get(storage.ATTEMPTS, 0), error,
        closed=trial.state.is_finished(),
    )  # fmt: skip


# The outcome of a sweep's job, from its return value and from the `run.json` of its run directory.


def outcome(point: TrialKey, result: Any, metrics: int) -> TrialRun:
    """Return the outcome of a job that has ended.

    Args:
        point: the job's point.
        result: Hydra's `JobReturn`.
        metrics: number of values that the job must return.
    """
    error = error_of(result)
    if error is None:
        return _finished(point, result.return_value, metrics)
    state = State.running if isinstance(error, Interrupted) else State.failed
    run_dir, record = _read_run(point)
    common = {"run_dir": run_dir, "run_id": record.get("run_id"), "seconds": record.get("seconds")}
    return TrialRun(point.replicate, state, **common, error=mask_secrets(first_line(error)))


def finished_before(point: TrialKey, metrics: int) -> TrialRun | None:
    """Return the outcome of a job that finished in an earlier start; None if it has to be run or continued."""
    _, record = _read_run(point)
    if record.get("status") != "finished" or (record.get("values") is None and record.get("pruned_step") is None):
        return None
    return _finished(point, None, metrics)


def is_open(point: TrialKey) -> bool:
    """Tell whether the run of a job has neither finished nor failed: its `run.json` says `running` or `killed`."""
    return _read_run(point)[1].get("status") in ("running", "killed")


def process_of(point: TrialKey) -> ProcessId | None:
    """Return the process that works on an unfinished job, or did until it died; None if the run was closed."""
    _, record = _read_run(point)
    if record.get("status") != "running":
        return None
    return ProcessId(record["host"], record["pid"], record["process"])


def _finished(point: TrialKey, returned: Any, metrics: int) -> TrialRun:
    run_dir, record = _read_run(point)
    if record.get("status") != "finished":  # no record (another application), or one of an earlier start
        record = {}
    common = {"run_dir": run_dir, "run_id": record.get("run_id"), "seconds": record.get("seconds")}
    pruned_step, recorded = record.get("pruned_step"), record.get("values")
    result = returned if recorded is None else recorded
    numbers = list(result) if isinstance(result, tuple | list) else [result]
    if pruned_step is not None:
        values = tuple(float(number) for number in numbers if number is not None)
        pruned = values if len(values) == metrics else None
        return TrialRun(point.replicate, State.pruned, **common, values=pruned, pruned_step=pruned_step)
    problem = _problem(numbers, metrics)
    if problem:
        return TrialRun(point.replicate, State.failed, **common, error=problem)
    return TrialRun(point.replicate, State.finished, **common, values=tuple(float(number) for number in numbers))


def _problem(numbers: list[Any], metrics: int) -> str | None:
    """Say why these values can't be compared; return None if they can."""
    if len(numbers) != metrics:
        return f"the job returned {len(numbers)} values, but the sweep optimises {metrics} (search.metrics)"
    for number in numbers:
        if isinstance(number, str) or not hasattr(number, "__float__"):
            return f"the job returned {number!r}, expected a number"
        if math.isnan(float(number)):
            return "the objective is NaN"
    return None


def _read_run(point: TrialKey) -> tuple[Path | None, dict[str, Any]]:
    """Return the run directory of a job and its parsed `run.json`; None and an empty dict if there is none yet."""
    run_dir = run_directory_of(point)
    state = read_state(run_dir) if run_dir else None
    return run_dir, asdict(state) if state else {}


SECRET = "search.storage="  # noqa: S105  the name of a key
"""Prefix of an override that may hold a password; jobs read the storage's URL from `sweep.json` instead."""
PATIENCE = 60.0
"""Seconds beyond their grace period that jobs of a killed start may take to end."""


@dataclass
class Plan:
    """Settings of a schedule."""

    search: SearchConfig
    space: Space
    directory: Path
    total: int
    """Number of trials of the whole sweep."""
    directions: tuple[str, ...]
    seed: int
    """Seed of the first replicate."""
    has_point_key: bool
    """True if the application's config has the key `point`."""
    grace_seconds: float = 60.0
    """Most seconds that a job takes to write a checkpoint and end once its launcher is gone."""
    jobs_survive: bool = False
    """True if jobs go on when their command is killed; the launcher finds them again."""
    waiting: list[Trial] = field(default_factory=list)
    """Trials of a grid as the table shows them before the study is asked for them."""
    shares_record: bool = False
    """True if all hosts of the sweep record at one MLflow server, from which a job can be continued."""

    @property
    def replicates(self) -> int:
        return self.search.replicates

    @property
    def bound(self) -> bool:
        """Return True if the worse end of the interval is optimised, not the mean."""
        return self.search.optimise is Optimise.bound


class Schedule:
    """A source of jobs for a launcher (`hfexp.launch.local.Source`)."""

    def __init__(
        self, plan: Plan, store: TrialStore, changed: Callable[[], None], died: Callable[[Path, str], None]
    ) -> None:
        """Create a schedule without jobs; `begin` queues those that earlier starts have left.

        Args:
            changed: called when a trial has ended, has failed or was taken over.
            died: called with the run directory of a job whose process ended without closing the run, and the reason.
        """
        self.plan, self.store, self._changed, self._died = plan, store, changed, died
        self.total = plan.total * plan.replicates
        self.errors: dict[str, Exception] = {}
        """Errors of jobs that have failed in this start, by the job's name."""
        self._queue: deque[tuple[TrialEntry, int]] = deque()
        self._jobs: dict[str, tuple[TrialEntry, int]] = {}
        self._duplicates: dict[int, list[TrialEntry]] = {}
        self._views = {trial.number: trial for trial in plan.waiting}
        self._noted_waiting = False

    def begin(self) -> None:
        """Take up trials that earlier starts have left, after waiting for jobs of theirs that still run."""
        taken = self.store.load(self.plan.total)
        self._mark(taken)
        for entry in self.store.entries.values():
            self._update_view(entry)
        if not self.plan.jobs_survive:
            self._wait_for_leftovers(taken)
        for entry in taken:
            self._take_up(entry)

    def next(self) -> SweepJob | None:
        """Return the next job, of a new trial if no known one has any left; None if there is none now."""
        while True:
            if self.ended_early:
                return None
            while self._queue:
                entry, replicate = self._queue.popleft()
                if entry.closed or self._has_failed(entry):
                    continue
                if self.store.holds(entry):
                    return self._job(entry, replicate)
                self._close_if_done(entry)
            entry = self._new_trial()
            if entry is not None:
                self._take_up(entry)
            elif self._jobs or not self.store.is_unclear():
                return None
            else:
                self._wait_for_others()

    def ended(self, name: str, result: Any) -> None:
        """Store the outcome of a job at once, and close its trial if that was its last job."""
        entry, replicate = self._jobs.pop(name)
        entry = self.store.entries[entry.number]  # a new one if the trial was lost and taken back meanwhile
        entry.under_way.discard(replicate)
        run = outcome(self._point(entry, replicate), result, len(self.plan.directions))
        is_ours = not entry.closed and self.store.holds(entry)
        if run.state is State.failed:
            if is_ours:
                self.errors[name] = error_of(result) or RunError(run.error or "")
            if run.run_dir and is_open(self._point(entry, replicate)):
                self._died(run.run_dir, run.error or "")
        if is_ours:
            self.store.keep_run(entry, run)
            self._prune_replicates(entry)
        self._close_if_done(entry)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Return all trials by number, as they are now."""
        return tuple(self._views[number] for number in sorted(self._views))

    @property
    def failed(self) -> int:
        return sum(trial.state is State.failed for trial in self._views.values())

    @property
    def ended_early(self) -> bool:
        """Return True if so many trials have failed that no further job is started (`search.max_failures`)."""
        limit = self.plan.search.max_failures
        return limit is not None and self.failed >= limit

    @property
    def stored_trials(self) -> tuple[Trial, ...]:
        """Return all trials as the study has them, those of other sweepers included; any thread may ask."""
        views = {trial.number: trial for trial in self.plan.waiting}
        for entry in self.store.read(self.plan.total):
            views[entry.number] = entry.view(self.plan.directions, self.plan.bound)
        return tuple(views[number] for number in sorted(views))

    def _mark(self, taken: list[TrialEntry]) -> None:
        """Tell the jobs of trials that were taken over to ask the server how far they are."""
        if not self.plan.shares_record:
            return
        for entry in taken:
            for replicate in range(self.plan.replicates):
                marker = self._point(entry, replicate).marker
                marker.parent.mkdir(exist_ok=True)
                marker.touch()

    def _new_trial(self) -> TrialEntry | None:
        if self.plan.search.storage:  # other sweepers add and abandon trials too
            taken = self.store.load(self.plan.total)
            self._mark(taken)
            for entry in taken:
                self._take_up(entry)
            for entry in self.store.entries.values():
                self._update_view(entry)
            if self._queue:
                return self._queue[0][0]
        if len(self.store.entries) >= self.plan.total:
            return None
        return self.store.ask(self.plan.total)

    def _take_up(self, entry: TrialEntry) -> None:
        """Queue the missing runs of a trial, or close it if none is missing."""
        entry.runs = {replicate: run for replicate, run in entry.runs.items() if run.state in GOOD}
        entry.state = State.running
        queued = {replicate for other, replicate in self._queue if other is entry}
        if queued or entry.under_way:
            return
        earlier = self.store.same_as(entry)
        if earlier is not None:
            self._copy(earlier, entry)
            return
        missing = [replicate for replicate in range(self.plan.replicates) if replicate not in entry.runs]
        for replicate in missing:
            run = finished_before(self._point(entry, replicate), len(self.plan.directions))
            if run is None or self.plan.shares_record:  # the job asks the server whether another host went on
                self._queue.append((entry, replicate))
            else:
                self.store.keep_run(entry, run)
        self._prune_replicates(entry)
        self._close_if_done(entry)

    def _copy(self, earlier: TrialEntry, entry: TrialEntry) -> None:
        """Copy the runs of an earlier trial of the same point, or wait for its end: a point is never run twice."""
        if earlier.state not in GOOD + (State.failed,):
            self._duplicates.setdefault(earlier.number, []).append(entry)
            self._update_view(entry)
            return
        for run in earlier.runs.values():
            self.store.keep_run(entry, run)
        self._close_if_done(entry)

    def _job(self, entry: TrialEntry, replicate: int) -> SweepJob:
        several = self.plan.replicates > 1
        name = f"{entry.number}.{replicate}" if several else str(entry.number)
        more = (f"seed={self.plan.seed + replicate}",) if several else ()
        text = " ".join((*map(as_typed, entry.point.overrides), *more))
        if self.plan.has_point_key:
            more += (f"point={spelling(str(self._point(entry, replicate)))}",)
        self._jobs[name] = entry, replicate
        entry.under_way.add(replicate)
        self._update_view(entry)
        overrides = self.plan.space.job(entry.point.overrides)
        public = [override for override in overrides if not override.lstrip("+").startswith(SECRET)]
        number = entry.number * self.plan.replicates + replicate
        return SweepJob(number, name, (*public, *more), mask_secrets(text))

    def _prune_replicates(self, entry: TrialEntry) -> None:
        """Leave out the remaining replicates of a point if the Wilcoxon pruner judges it hopeless."""
        if self.plan.search.pruner is not Pruner.wilcoxon or self._has_failed(entry) or entry.foreign:
            return
        with storage.quiet():
            trial = storage.reopen(self.store.study, entry.trial_id)
            for run in entry.done():
                assert run.values is not None
                trial.report(run.values[0], run.replicate)
            hopeless = len(entry.done()) < self.plan.replicates and entry.done() and trial.should_prune()
        if hopeless:
            replicates = [replicate for other, replicate in self._queue if other is entry]
            self._queue = deque(item for item in self._queue if item[0] is not entry)
            for replicate in replicates:
                self.store.keep_run(entry, TrialRun(replicate, State.pruned))

    def _close_if_done(self, entry: TrialEntry) -> None:
        """Close a trial, or store its failure, once none of its jobs is running; then settle its duplicates."""
        if not entry.closed and not entry.foreign and not entry.under_way:
            states = [run.state for run in entry.runs.values()]
            if State.failed in states:
                self._fail(entry)
            elif len(states) == self.plan.replicates and all(state in GOOD for state in states):
                self._finish(entry)
        self._update_view(entry)
        if entry.foreign:
            self._queue = deque(item for item in self._queue if item[0] is not entry)
        if entry.closed or entry.foreign or self._has_failed(entry):
            for duplicate in self._duplicates.pop(entry.number, []):
                self._take_up(duplicate) if entry.foreign else self._copy(entry, duplicate)
            self._changed()

    def _finish(self, entry: TrialEntry) -> None:
        if any(run.state is State.pruned for run in entry.runs.values()):
            self.store.close(entry, State.pruned)
            return
        self.store.close(entry, State.finished, entry.objective(self.plan.directions, self.plan.bound))

    def _fail(self, entry: TrialEntry) -> None:
        error = next(run.error for run in entry.runs.values() if run.state is State.failed)
        several = self.plan.replicates > 1
        which = ", ".join(str(r) for r, run in sorted(entry.runs.items()) if run.state is State.failed)
        self.store.keep_failure(entry, f"replicate {which}: {error}" if several else error or "failed")
        if entry.attempts > self.plan.search.retries:
            self.store.close(entry, State.failed)

    def _has_failed(self, entry: TrialEntry) -> bool:
        return any(run.state is State.failed for run in entry.runs.values())

    def _update_view(self, entry: TrialEntry) -> None:
        self._views[entry.number] = entry.view(self.plan.directions, self.plan.bound)

    def _point(self, entry: TrialEntry, replicate: int) -> TrialKey:
        return TrialKey(self.plan.directory, entry.number, replicate)

    def _wait_for_others(self) -> None:
        """Sleep a second before asking again whether the other sweepers live: nothing else is left to do."""
        if not self._noted_waiting:
            note("waiting to see whether the other sweepers, whose signs of life are overdue, are still running")
        self._noted_waiting = True
        time.sleep(INTERVAL / 10)

    def _wait_for_leftovers(self, taken: list[TrialEntry]) -> None:
        """Wait for jobs of a killed start: each outlives its sweeper until it has written a checkpoint."""
        points = [self._point(entry, replicate) for entry in taken for replicate in range(self.plan.replicates)]
        deadline, noted = time.monotonic() + self.plan.grace_seconds + PATIENCE, False
        while time.monotonic() < deadline:
            processes = (process_of(point) for point in points)
            if not any(process is not None and process.may_live_here() for process in processes):
                return
            if not noted:
                note("waiting for jobs of the last start to write their checkpoints")
                noted = True
            time.sleep(0.1)
