"""The schedule of a sweep: it gives the launcher its jobs, and turns their outcomes into ends of trials."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfexp.core.compose import as_typed
from hfexp.core.console import note
from hfexp.core.errors import RunError
from hfexp.core.overrides import spelling
from hfexp.core.search_config import Optimise, Pruner, SearchConfig
from hfexp.core.secrets import mask_secrets
from hfexp.launch.jobs import error_of
from hfexp.launch.local import Job
from hfexp.sweep import outcome, owner, study
from hfexp.sweep.ledger import GOOD, Entry, Ledger
from hfexp.sweep.space import Space
from hfexp.sweep.trials import State, Trial, TrialRun
from hfexp.tracking.membership import Point

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
    tells_point: bool
    """True if the application's config has the key `point`."""
    grace_seconds: float = 60.0
    """Most seconds that a job takes to write a checkpoint and end once its launcher is gone."""
    waiting: list[Trial] = field(default_factory=list)
    """Trials of a grid as the table shows them before the study is asked for them."""

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
        self, plan: Plan, ledger: Ledger, changed: Callable[[], None], died: Callable[[Path, str], None]
    ) -> None:
        """Create a schedule without jobs; `begin` queues those that earlier starts have left.

        Args:
            changed: called when a trial has ended, has failed or was taken over.
            died: called with the run directory of a job whose process ended without closing the run, and the reason.
        """
        self.plan, self.ledger, self._changed, self._died = plan, ledger, changed, died
        self.total = plan.total * plan.replicates
        self.errors: dict[str, Exception] = {}
        """Errors of jobs that have failed in this start, by the job's name."""
        self._queue: deque[tuple[Entry, int]] = deque()
        self._jobs: dict[str, tuple[Entry, int]] = {}
        self._twins: dict[int, list[Entry]] = {}
        self._views = {trial.number: trial for trial in plan.waiting}
        self._said_waiting = False

    def begin(self) -> None:
        """Take up trials that earlier starts have left, after waiting for jobs of theirs that still run."""
        taken = self.ledger.load(self.plan.total)
        for entry in self.ledger.entries.values():
            self._show(entry)
        self._wait_for_leftovers(taken)
        for entry in taken:
            self._take_up(entry)

    def next(self) -> Job | None:
        """Return the next job, of a new trial if no known one has any left; None if there is none now."""
        while True:
            if self.ended_early:
                return None
            while self._queue:
                entry, replicate = self._queue.popleft()
                if entry.closed or self._has_failed(entry):
                    continue
                if self.ledger.holds(entry):
                    return self._job(entry, replicate)
                self._settle(entry)
            entry = self._new_trial()
            if entry is not None:
                self._take_up(entry)
            elif self._jobs or not self.ledger.is_unclear():
                return None
            else:
                self._wait_for_others()

    def ended(self, name: str, result: Any) -> None:
        """Store the outcome of a job at once, and close its trial if that was its last job."""
        entry, replicate = self._jobs.pop(name)
        entry = self.ledger.entries[entry.number]  # a new one if the trial was lost and taken back meanwhile
        entry.under_way.discard(replicate)
        run = outcome.outcome(self._point(entry, replicate), result, len(self.plan.directions))
        is_ours = not entry.closed and self.ledger.holds(entry)
        if run.state is State.failed:
            if is_ours:
                self.errors[name] = error_of(result) or RunError(run.error or "")
            if run.run_dir and outcome.is_open(self._point(entry, replicate)):
                self._died(run.run_dir, run.error or "")
        if is_ours:
            self.ledger.keep_run(entry, run)
            self._race(entry)
        self._settle(entry)

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

    def _new_trial(self) -> Entry | None:
        if self.plan.search.storage:  # other sweepers add and abandon trials too
            for entry in self.ledger.load(self.plan.total):
                self._take_up(entry)
            for entry in self.ledger.entries.values():
                self._show(entry)
            if self._queue:
                return self._queue[0][0]
        if len(self.ledger.entries) >= self.plan.total:
            return None
        return self.ledger.ask(self.plan.total)

    def _take_up(self, entry: Entry) -> None:
        """Queue the missing runs of a trial, or close it if none is missing."""
        entry.runs = {replicate: run for replicate, run in entry.runs.items() if run.state in GOOD}
        entry.state = State.running
        queued = {replicate for other, replicate in self._queue if other is entry}
        if queued or entry.under_way:
            return
        earlier = self.ledger.same_as(entry)
        if earlier is not None:
            self._copy(earlier, entry)
            return
        missing = [replicate for replicate in range(self.plan.replicates) if replicate not in entry.runs]
        for replicate in missing:
            run = outcome.finished_before(self._point(entry, replicate), len(self.plan.directions))
            if run is None:
                self._queue.append((entry, replicate))
            else:
                self.ledger.keep_run(entry, run)
        self._race(entry)
        self._settle(entry)

    def _copy(self, earlier: Entry, entry: Entry) -> None:
        """Copy the runs of an earlier trial of the same point, or wait for its end: a point is never run twice."""
        if earlier.state not in GOOD + (State.failed,):
            self._twins.setdefault(earlier.number, []).append(entry)
            self._show(entry)
            return
        for run in earlier.runs.values():
            self.ledger.keep_run(entry, run)
        self._settle(entry)

    def _job(self, entry: Entry, replicate: int) -> Job:
        several = self.plan.replicates > 1
        name = f"{entry.number}.{replicate}" if several else str(entry.number)
        more = (f"seed={self.plan.seed + replicate}",) if several else ()
        shown = " ".join((*map(as_typed, entry.point.words), *more))
        if self.plan.tells_point:
            more += (f"point={spelling(str(self._point(entry, replicate)))}",)
        self._jobs[name] = entry, replicate
        entry.under_way.add(replicate)
        self._show(entry)
        words = [word for word in self.plan.space.job(entry.point.words) if not word.lstrip("+").startswith(SECRET)]
        number = entry.number * self.plan.replicates + replicate
        return Job(number, name, (*words, *more), mask_secrets(shown))

    def _race(self, entry: Entry) -> None:
        """Leave out the remaining replicates of a point if the Wilcoxon pruner judges it hopeless."""
        if self.plan.search.pruner is not Pruner.wilcoxon or self._has_failed(entry) or entry.foreign:
            return
        with study.quiet():
            trial = study.reopen(self.ledger.study, entry.trial_id)
            for run in entry.done():
                assert run.values is not None
                trial.report(run.values[0], run.replicate)
            hopeless = len(entry.done()) < self.plan.replicates and entry.done() and trial.should_prune()
        if hopeless:
            left = [replicate for other, replicate in self._queue if other is entry]
            self._queue = deque(item for item in self._queue if item[0] is not entry)
            for replicate in left:
                self.ledger.keep_run(entry, TrialRun(replicate, State.pruned))

    def _settle(self, entry: Entry) -> None:
        """Close a trial, or store its failure, once none of its jobs is running; then settle its duplicates."""
        if not entry.closed and not entry.foreign and not entry.under_way:
            states = [run.state for run in entry.runs.values()]
            if State.failed in states:
                self._fail(entry)
            elif len(states) == self.plan.replicates and all(state in GOOD for state in states):
                self._finish(entry)
        self._show(entry)
        if entry.foreign:
            self._queue = deque(item for item in self._queue if item[0] is not entry)
        if entry.closed or entry.foreign or self._has_failed(entry):
            for twin in self._twins.pop(entry.number, []):
                self._take_up(twin) if entry.foreign else self._copy(entry, twin)
            self._changed()

    def _finish(self, entry: Entry) -> None:
        if any(run.state is State.pruned for run in entry.runs.values()):
            self.ledger.close(entry, State.pruned)
            return
        self.ledger.close(entry, State.finished, entry.objective(self.plan.directions, self.plan.bound))

    def _fail(self, entry: Entry) -> None:
        error = next(run.error for run in entry.runs.values() if run.state is State.failed)
        several = self.plan.replicates > 1
        which = ", ".join(str(r) for r, run in sorted(entry.runs.items()) if run.state is State.failed)
        self.ledger.keep_failure(entry, f"replicate {which}: {error}" if several else error or "failed")
        if entry.attempts > self.plan.search.retries:
            self.ledger.close(entry, State.failed)

    def _has_failed(self, entry: Entry) -> bool:
        return any(run.state is State.failed for run in entry.runs.values())

    def _show(self, entry: Entry) -> None:
        self._views[entry.number] = entry.view(self.plan.directions, self.plan.bound)

    def _point(self, entry: Entry, replicate: int) -> Point:
        return Point(self.plan.directory, entry.number, replicate)

    def _wait_for_others(self) -> None:
        """Sleep a second before asking again whether the other sweepers live: nothing else is left to do."""
        if not self._said_waiting:
            note(
                "waiting to see whether the other sweepers, whose last sign of life is old, still direct their trials"
            )
        self._said_waiting = True
        time.sleep(owner.INTERVAL / 10)

    def _wait_for_leftovers(self, taken: list[Entry]) -> None:
        """Wait for jobs of a killed start: each outlives its sweeper until it has written a checkpoint."""
        points = [self._point(entry, replicate) for entry in taken for replicate in range(self.plan.replicates)]
        deadline, said = time.monotonic() + self.plan.grace_seconds + PATIENCE, False
        while time.monotonic() < deadline:
            processes = (outcome.process_of(point) for point in points)
            if not any(process is not None and process.may_live_here() for process in processes):
                return
            if not said:
                note("waiting for jobs of the last start, which are writing their checkpoints")
                said = True
            time.sleep(0.1)
