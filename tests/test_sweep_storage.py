"""A study that several sweepers share: no trial is taken twice, and a database may go away for a while."""

import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DataError, OperationalError
from toys import RATE, sweep

from hfexp.errors import RunError
from hfexp.sweep import owner, storage, study
from hfexp.sweep.ledger import Ledger
from hfexp.sweep.space import Point


def open_one(path: Path, host: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Ledger, owner.Owner]:
    """The ledger of a sweeper on some machine."""
    monkeypatch.setattr(owner.ProcessId, "own", classmethod(lambda cls: cls(host, 1, "a/b/c/d")))
    found = study.open_study(f"sqlite:///{path}", "shared", ["minimize"], None, None)
    me = owner.Owner(found)
    return Ledger(found, lambda trial: Point({"x": trial.number}, (f"x={trial.number}",)), me), me


def test_a_trial_has_its_owner_from_its_first_moment_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, me = open_one(tmp_path / "study.db", "here", monkeypatch)
    other, _ = open_one(tmp_path / "study.db", "there", monkeypatch)
    me.sign()
    study.ask(mine.study, me.text)  # and no words yet
    assert other.load(10) == []
    assert other.entries[0].foreign
    assert [entry.number for entry in mine.load(10)] == [0]
    for ledger in (mine, other):
        storage.close_storage(ledger.study._storage)


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
    ledgers = [ledger for ledger, _ in pairs]
    monkeypatch.setattr(owner.ProcessId, "own", classmethod(lambda cls: cls("elsewhere", 1, "a/b/c/d")))
    barrier, taken = threading.Barrier(len(ledgers)), []

    def take(ledger: Ledger) -> None:
        barrier.wait()
        taken.append(len(ledger.load(1)))

    threads = [threading.Thread(target=take, args=(ledger,)) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [0, 0, 0, 1]
    # The one that was thought dead goes on, and comes too late.
    (winner,) = [ledger for ledger in ledgers if not ledger.entries[0].foreign]
    winner.close(winner.entries[0], study.State.finished, [1.0])
    dead.keep_failure(entry, "late")
    dead.close(entry, study.State.failed)
    assert [trial.values for trial in study.trials_of(winner.study)] == [[1.0]]
    for ledger in (dead, *ledgers):
        storage.close_storage(ledger.study._storage)


def failing(error: Exception, times: int) -> Any:
    """A method that fails at first."""
    left = iter(range(times))

    def method(self: Any) -> str:
        if next(left, None) is not None:
            raise error
        return "done"

    return storage._patiently(method)


def away() -> Exception:
    error = StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = OperationalError("SELECT", {}, Exception("server at u:secret1@host is gone"))
    return error


def test_a_database_that_is_away_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    kept = storage.open_storage(f"sqlite:///{tmp_path / 'study.db'}", patient=True)
    assert failing(away(), 9)(kept) == "done"
    wrong = StorageInternalError("too long")
    wrong.__cause__ = DataError("INSERT", {}, Exception("value too long"))
    with pytest.raises(StorageInternalError):
        failing(wrong, 1)(kept)
    kept.away_seconds = -1.0
    with pytest.raises(RunError, match="can't be reached any more"):
        failing(away(), 1)(kept)
    storage.close_storage(kept)


def test_every_call_of_a_study_is_patient(tmp_path: Path) -> None:
    found = study.open_study(f"sqlite:///{tmp_path / 'study.db'}", "s", ["minimize"], None, None)
    assert isinstance(found._storage._backend, storage.PatientStorage)  # pyright: ignore
    names = ["_create_new_trial", "_get_trials", "set_trial_user_attr", "set_trial_state_values", "_set_trial_param"]
    for name in names:
        assert hasattr(getattr(storage.PatientStorage, name), "__wrapped__"), name
        assert getattr(optuna.storages.RDBStorage, name) is getattr(storage.PatientStorage, name).__wrapped__
    study.close_study(found)


def test_machines_that_share_a_storage_direct_the_same_sweep(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"search.storage=sqlite:///{place}/shared.db", "search.name=mine"]
    assert sweep(lambda cfg: 1.0, f"{RATE}=0.1", *words, "output_dir=here") == 0
    assert sweep(lambda cfg: 1.0, f"{RATE}=0.1,0.2", *words, "output_dir=there") == 2
    error = capsys.readouterr().err
    assert "search.storage has another sweep under the name mine:" in error
    assert f'space: {{}} there, {{"{RATE}": "0.1,0.2"}} now' in error


def test_who_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, me = open_one(tmp_path / "study.db", "here", monkeypatch)
    other, them = open_one(tmp_path / "study.db", "there", monkeypatch)
    assert not them.is_alive(me.text)
    me.sign()
    assert them.is_alive(me.text)
    monkeypatch.setattr(owner.time, "time", lambda: 1e12)
    assert not them.is_alive(me.text)
    for ledger in (mine, other):
        storage.close_storage(ledger.study._storage)
