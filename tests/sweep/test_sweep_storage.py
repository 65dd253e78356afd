"""A study that several sweepers share: no trial is taken twice, and a database may go away for a while."""

import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra.core.utils import JobReturn, JobStatus
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DataError, OperationalError
from toys import RATE, sweep

from hfexp.core.config import SearchConfig
from hfexp.core.errors import RunError
from hfexp.experiment import sweep_storage
from hfexp.sweep import scheduler, study
from hfexp.sweep import scheduler as schedules
from hfexp.sweep.scheduler import Plan, Schedule, TrialStore
from hfexp.sweep.space import Dimension, Point, Space


def open_one(path: Path, host: str, monkeypatch: pytest.MonkeyPatch) -> tuple[TrialStore, scheduler.Owner]:
    """The store of a sweeper on some machine."""
    monkeypatch.setattr(scheduler.ProcessId, "own", classmethod(lambda cls: cls(host, 1, "a/b/c/d")))
    found = study.open_study(f"sqlite:///{path}", "shared", ["minimize"], None, None)
    me = scheduler.Owner(found)
    monkeypatch.setattr(scheduler.ProcessId, "own", classmethod(lambda cls: cls("elsewhere", 1, "a/b/c/d")))
    return TrialStore(found, lambda trial: Point({"x": trial.number}, (f"x={trial.number}",)), me), me


def test_a_trial_has_its_owner_from_its_first_moment_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, me = open_one(tmp_path / "study.db", "here", monkeypatch)
    other, _ = open_one(tmp_path / "study.db", "there", monkeypatch)
    me.sign()
    study.ask(mine.study, me.text)  # and no words yet
    assert other.load(10) == []
    assert other.entries[0].foreign
    assert [entry.number for entry in mine.load(10)] == [0]
    for store in (mine, other):
        sweep_storage.close_storage(store.study._storage)


def test_of_several_first_starts_one_makes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    barrier, made, found = threading.Barrier(3), [], []
    write = study._write_file

    def slowly(*given: Any) -> None:
        made.append(given)
        time.sleep(0.1)  # in which the others would begin it too
        write(*given)

    def start() -> None:
        barrier.wait()
        opened = study.open_study(f"sqlite:///{tmp_path / 'study.db'}", "shared", ["minimize"], None, None)
        found.append(study.ask(opened, "[]").number)
        study.close_study(opened)

    monkeypatch.setattr(study, "_write_file", slowly)
    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert sorted(found) == [0, 1, 2]


def test_one_of_several_takes_over_what_a_dead_sweeper_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead, _ = open_one(tmp_path / "study.db", "gone", monkeypatch)  # it never signs
    entry = dead.ask(1)
    assert entry is not None
    pairs = [open_one(tmp_path / "study.db", f"host{number}", monkeypatch) for number in range(4)]
    for _, me in pairs:
        me.sign()  # as a sweeper does before it looks for trials: else it seems dead to the others
    stores = [store for store, _ in pairs]
    barrier, taken = threading.Barrier(len(stores)), []

    def take(store: TrialStore) -> None:
        barrier.wait()
        taken.append(len(store.load(1)))

    threads = [threading.Thread(target=take, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [0, 0, 0, 1]
    # The one that was thought dead goes on, and comes too late.
    (winner,) = [store for store in stores if not store.entries[0].foreign]
    winner.close(winner.entries[0], study.State.finished, [1.0])
    dead.keep_failure(entry, "late")
    dead.close(entry, study.State.failed)
    assert [trial.values for trial in study.trials_of(winner.study)] == [[1.0]]
    for store in (dead, *stores):
        sweep_storage.close_storage(store.study._storage)


def failing(error: Exception, times: int) -> Any:
    """A method that fails at first."""
    left = iter(range(times))

    def method(self: Any) -> str:
        if next(left, None) is not None:
            raise error
        return "done"

    return sweep_storage._patiently(method)


def away() -> Exception:
    error = StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = OperationalError("SELECT", {}, Exception("server at u:secret1@host is gone"))
    return error


def test_a_database_that_is_away_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_storage.time, "sleep", lambda seconds: None)
    kept = sweep_storage.open_storage(f"sqlite:///{tmp_path / 'study.db'}", patient=True)
    assert failing(away(), 9)(kept) == "done"
    wrong = StorageInternalError("too long")
    wrong.__cause__ = DataError("INSERT", {}, Exception("value too long"))
    with pytest.raises(StorageInternalError):
        failing(wrong, 1)(kept)
    kept.away_seconds = -1.0
    with pytest.raises(RunError, match="can no longer be reached"):
        failing(away(), 1)(kept)
    sweep_storage.close_storage(kept)


def test_every_call_of_a_study_is_patient(tmp_path: Path) -> None:
    found = study.open_study(f"sqlite:///{tmp_path / 'study.db'}", "s", ["minimize"], None, None)
    assert isinstance(found._storage._backend, sweep_storage.PatientStorage)  # pyright: ignore
    names = ["_create_new_trial", "_get_trials", "set_trial_user_attr", "set_trial_state_values", "_set_trial_param"]
    for name in names:
        assert hasattr(getattr(sweep_storage.PatientStorage, name), "__wrapped__"), name
        assert getattr(optuna.storages.RDBStorage, name) is getattr(sweep_storage.PatientStorage, name).__wrapped__
    study.close_study(found)


def test_machines_that_share_a_storage_direct_the_same_sweep(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"search.storage=sqlite:///{place}/shared.db", "search.name=mine"]
    assert sweep(lambda cfg: 1.0, f"{RATE}=0.1", *words, "output_dir=here") == 0
    assert sweep(lambda cfg: 1.0, f"{RATE}=0.1,0.2", *words, "output_dir=there") == 2
    error = capsys.readouterr().err
    assert "search.storage already holds another sweep named mine:" in error
    assert sweep(lambda cfg: 1.0, f"{RATE}=0.1", *words, "output_dir=elsewhere", "on_existing=error") == 2
    assert sweep(lambda cfg: 1.0, f"{RATE}=0.1", *words, "output_dir=here", "on_existing=rerun") == 2
    refusals = capsys.readouterr().err
    assert "on_existing=error: search.storage already holds this sweep, mine" in refusals
    assert "choose another search.name instead" in refusals
    assert f'space: {{}} there, {{"{RATE}": "0.1,0.2"}} now' in error


class Clock:
    """The time of all sweepers; they sign when they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1e9
        monkeypatch.setattr(scheduler.time, "time", lambda: self.now)

    def passes(self, seconds: int, *signing: scheduler.Owner) -> None:
        for _ in range(seconds // 10):
            self.now += 10
            for each in signing:
                each.sign()


def test_who_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    mine, me = open_one(tmp_path / "study.db", "here", monkeypatch)
    other, them = open_one(tmp_path / "study.db", "there", monkeypatch)
    assert not them.is_alive(me.text)
    me.sign()
    assert them.is_alive(me.text)
    clock.passes(20, them)
    assert them.is_alive(me.text)
    clock.passes(30, them)
    assert not them.is_alive(me.text)
    assert not them.is_unclear(me.text)
    for store in (mine, other):
        sweep_storage.close_storage(store.study._storage)


@pytest.mark.parametrize("signs_first", [True, False])
def test_nobody_is_thought_dead_who_could_not_sign(
    signs_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    mine, me = open_one(tmp_path / "study.db", "here", monkeypatch)
    other, them = open_one(tmp_path / "study.db", "there", monkeypatch)
    clock.passes(60, me, them)
    mine.ask(9)
    clock.passes(50)  # the database is away, or both machines sleep
    if signs_first:
        them.sign()
    assert other.load(9) == []
    assert other.is_unclear()
    clock.passes(20, them)
    assert other.load(9) == []
    me.sign()
    clock.passes(10, them)
    assert other.load(9) == []
    assert not other.is_unclear()
    clock.passes(30, them)
    assert [entry.number for entry in other.load(9)] == [0]
    for store in (mine, other):
        sweep_storage.close_storage(store.study._storage)


def schedule_of(store: TrialStore, directory: Path, **settings: Any) -> Schedule:
    search = SearchConfig(storage="a database", **settings)
    numbers = tuple(range(20))
    space = Space((("x", None),), (Dimension("x", "range(0,20)", tuple(map(str, numbers)), numbers),))
    plan = Plan(search, space, directory, search.trials or 1, ("minimize",), 1, False)
    return Schedule(plan, store, lambda: None, lambda *died: None)


def result_of(value: float) -> JobReturn:
    result = JobReturn(status=JobStatus.COMPLETED)
    result.return_value = value
    return result


def test_a_trial_that_was_taken_over_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    mine, me = open_one(tmp_path / "study.db", "here", monkeypatch)
    other, them = open_one(tmp_path / "study.db", "there", monkeypatch)
    clock.passes(40, me, them)
    here, there = (schedule_of(store, tmp_path, trials=2, replicates=2) for store in (mine, other))
    here.begin()
    first = here.next()
    assert first is not None
    clock.passes(40, them)  # this one is suspended
    there.begin()
    taken = there.next()
    assert taken is not None
    assert taken.name == first.name == "0.0"
    me.sign()
    here.ended(first.name, result_of(5.0))
    going_on = here.next()
    assert going_on is not None
    assert going_on.name == "1.0"  # not the rest of what it has lost
    assert capsys.readouterr().err.count("trial 0 was taken over by the sweeper on there") == 1
    there.ended("0.0", result_of(1.0))
    rest = there.next()
    assert rest is not None
    there.ended(rest.name, result_of(2.0))
    here.ended(going_on.name, result_of(3.0))
    clock.passes(10, me, them)
    last = here.next()
    assert last is not None
    here.ended(last.name, result_of(3.0))
    assert here.next() is there.next() is None
    for schedule in (here, there):
        assert [trial.values for trial in schedule.trials] == [(1.5,), (3.0,)]
    assert [trial.values for trial in study.trials_of(mine.study)] == [[1.5], [3.0]]
    for store in (mine, other):
        sweep_storage.close_storage(store.study._storage)


def test_a_twin_of_a_trial_that_was_taken_over_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    mine, me = open_one(tmp_path / "study.db", "here", monkeypatch)
    mine._choose = lambda trial: Point({"x": 1}, ("x=1",))
    me.sign()
    schedule = schedule_of(mine, tmp_path, trials=2)
    schedule.begin()
    job = schedule.next()
    assert job is not None
    assert schedule.next() is None  # the same point again
    study.set_attribute(mine.study, mine.entries[0].trial_id, study.OWNER, '["there", 1, "a/b/c/d"]')
    mine.study.set_user_attr(f'{scheduler.BEAT}["there", 1, "a/b/c/d"]', clock.now)
    schedule.ended(job.name, result_of(5.0))
    again = schedule.next()
    assert again is not None
    assert again.name == "1"
    sweep_storage.close_storage(mine.study._storage)


def test_what_may_have_been_left_is_waited_for_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    mine, me = open_one(tmp_path / "study.db", "here", monkeypatch)
    other, them = open_one(tmp_path / "study.db", "there", monkeypatch)
    me.sign()
    mine.ask(1)
    clock.passes(50)
    them.sign()  # its first start
    waited = []
    monkeypatch.setattr(schedules.time, "sleep", lambda seconds: waited.append(seconds) or clock.passes(10, them))
    schedule = schedule_of(other, tmp_path, trials=1)
    schedule.begin()
    job = schedule.next()
    assert job is not None
    assert job.name == "0"
    assert len(waited) == 3
    assert capsys.readouterr().err.count("waiting to see whether the other sweepers") == 1
    for store in (mine, other):
        sweep_storage.close_storage(store.study._storage)
