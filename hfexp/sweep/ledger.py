"""Trials of a sweep as its sweeper knows them; the study stores them too, and each start reads them from there."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from hfexp.core.console import note
from hfexp.sweep import study as storage
from hfexp.sweep.owner import Owner
from hfexp.sweep.space import Point
from hfexp.sweep.statistics import Estimate, estimate
from hfexp.sweep.trials import State, Trial, TrialRun

CLOSED = {TrialState.COMPLETE: State.finished, TrialState.PRUNED: State.pruned, TrialState.FAIL: State.failed}
GOOD = (State.finished, State.pruned)


@dataclass
class Entry:
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
        found = self.estimates()
        return tuple(e.told(d, bound) for e, d in zip(found, directions, strict=True)) if found else ()

    def view(self, directions: Sequence[str], bound: bool) -> Trial:
        """Return the trial as the tracking store and the table show it."""
        found = self.estimates() if self.state in GOOD else []
        deviations = tuple(e.deviation for e in found if e.deviation is not None)
        intervals = tuple(e.interval for e in found if e.interval is not None)
        return Trial(
            self.number, self.point.params, self.point.words, self.state,
            values=tuple(e.mean for e in found) or None, deviations=deviations or None, intervals=intervals or None,
            runs=tuple(run for _, run in sorted(self.runs.items())), attempts=self.attempts, error=self.error,
            objective=(self.objective(directions, bound) or None) if found else None,
        )  # fmt: skip


class Ledger:
    """All trials of a sweep, by number."""

    def __init__(self, study: Study, choose: Callable[[optuna.Trial], Point], owner: Owner | None) -> None:
        """Create an empty ledger; `load` reads the trials.

        Args:
            study: the sweep's study.
            choose: chooses the parameters of a trial.
            owner: this sweeper, if others may share the storage; else None.
        """
        self.study, self._choose, self._owner = study, choose, owner
        self.entries: dict[int, Entry] = {}
        self._first: dict[frozenset[str], Entry] = {}
        """First trial of each point, by the set of its overrides."""

    def load(self, total: int) -> list[Entry]:
        """Read trials that earlier starts or other sweepers have left in the study.

        A trial whose parameters were not all chosen when its sweeper was killed gets the rest here, before the study
        is told how other trials have ended since: the sampler must choose what it would have chosen undisturbed.

        Args:
            total: trials from this number on are ignored.

        Returns:
            Trials that this process has now to run or to continue.
        """
        trials = [trial for trial in storage.trials_of(self.study) if trial.number < total]
        news = [trial for trial in trials if self._is_news(trial)]
        taken = []
        for trial in news:
            is_open = not trial.state.is_finished()
            foreign = is_open and not self._is_mine(trial)
            if is_open and not foreign and storage.WORDS not in trial.user_attrs:
                taken.append(self._complete(storage.reopen(self.study, trial._trial_id)))
                continue
            entry, known = _read(trial), self.entries.get(trial.number)
            self.entries[trial.number], entry.foreign = entry, foreign
            if known is not None:  # another sweeper had it; jobs that this process started for it may still run
                entry.under_way = known.under_way
            self.same_as(entry)
            if is_open and not foreign:
                taken.append(entry)
        return sorted(taken, key=lambda entry: entry.number)

    def ask(self, total: int) -> Entry | None:
        """Ask for a new trial; return None if there are enough, as another sweeper may have been faster."""
        trial = storage.ask(self.study, self._owner.text if self._owner else None)
        # A surplus trial stays open and without overrides: the next start with a higher total completes it.
        return self._complete(trial) if trial.number < total else None

    def same_as(self, entry: Entry) -> Entry | None:
        """Return the first trial of the same point if that is another one; else remember this one as the first."""
        if entry.foreign:
            return None
        first = self._first.setdefault(frozenset(entry.point.words), entry)
        return first if first is not entry else None

    def holds(self, entry: Entry) -> bool:
        """Tell whether this process still owns a trial; others take it over after too long without a sign of life."""
        if self._owner is None or entry.foreign or entry.closed:
            return not entry.foreign
        owner = storage.owner_of(self.study, entry.trial_id)
        if owner != self._owner.text:
            entry.foreign, entry.state = True, State.running
            key = frozenset(entry.point.words)
            if self._first.get(key) is entry:
                del self._first[key]
            where = f" by the sweeper on {json.loads(owner)[0]}" if owner else ""
            note(f"trial {entry.number} was taken over{where}, as this one gave no sign of life: it is dropped here")
        return not entry.foreign

    def is_unclear(self) -> bool:
        """Tell whether a sweeper that still counts as alive may have abandoned open trials."""
        if self._owner is None:
            return False
        others = [entry.trial_id for entry in self.entries.values() if entry.foreign and not entry.closed]
        owners = {storage.owner_of(self.study, trial_id) for trial_id in others}
        return any(self._owner.is_unclear(owner) for owner in owners if owner)

    def keep_run(self, entry: Entry, run: TrialRun) -> None:
        """Store the outcome of a run, unless another sweeper has taken over the trial."""
        if not self.holds(entry):
            return
        entry.runs[run.replicate] = run
        storage.write_run(self.study, entry.trial_id, run)

    def keep_failure(self, entry: Entry, error: str) -> None:
        """Store one more failed attempt, unless another sweeper has taken over the trial."""
        if not self.holds(entry):
            return
        entry.attempts, entry.error, entry.state = entry.attempts + 1, error, State.failed
        storage.set_attribute(self.study, entry.trial_id, storage.ERROR, error)
        storage.set_attribute(self.study, entry.trial_id, storage.ATTEMPTS, entry.attempts)

    def close(self, entry: Entry, state: State, values: Sequence[float] | None = None) -> None:
        """Tell Optuna how a trial ended, unless another sweeper has taken it over."""
        if not self.holds(entry):
            return
        told = {ours: theirs for theirs, ours in CLOSED.items()}[state]
        storage.tell(self.study, entry.number, told, values if state is State.finished else None)
        entry.state, entry.closed = state, True
        if state is not State.failed:
            entry.error = None

    def _is_news(self, trial: FrozenTrial) -> bool:
        known = self.entries.get(trial.number)
        if known is None or not known.foreign:
            return known is None
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

    def _complete(self, trial: optuna.Trial) -> Entry:
        with storage.quiet():
            point = self._choose(trial)
        params = {key: value if _is_plain(value) else str(value) for key, value in point.params.items()}
        storage.set_attribute(self.study, trial._trial_id, storage.PARAMS, json.dumps(params))
        storage.set_attribute(self.study, trial._trial_id, storage.WORDS, list(point.words))
        entry = self.entries[trial.number] = Entry(trial.number, trial._trial_id, point)
        return entry


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _read(trial: FrozenTrial) -> Entry:
    """Build the entry of a trial from the study."""
    known = trial.user_attrs
    point = Point(json.loads(known.get(storage.PARAMS, "{}")), tuple(known.get(storage.WORDS, ())))
    state = CLOSED.get(trial.state, State.running)
    error = known.get(storage.ERROR) if state not in GOOD else None
    return Entry(
        trial.number, trial._trial_id, point, state, storage.runs_of(known), known.get(storage.ATTEMPTS, 0), error,
        closed=trial.state.is_finished(),
    )  # fmt: skip
