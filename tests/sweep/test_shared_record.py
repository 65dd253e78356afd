"""A sweep whose hosts share a tracking store: runs go on where their directories are not, and one host writes."""

import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import SMALL_DIGITS
from faults import fault_at
from mlflow.artifacts import download_artifacts
from sweeps import make_sweep, run_point
from toys import RATE, sweep

from hfexp.core.process import ProcessId
from hfexp.sweep import point, scheduler, study
from hfexp.sweep.shared_parent import Lease
from hfexp.tracking.delivery import Delivery
from hfexp.tracking.journal import Journal, now, read_delivered
from hfexp.tracking.membership import TrialKey, run_directory_of
from hfexp.tracking.restore import restore_point
from hfexp.tracking.run_directory import read_state, save_state

EPOCHS = "trainer.args.num_train_epochs=3"


class Hosts:
    """Output directories as those of several hosts, with one store beside them."""

    def __init__(self, place: Path, uri: str) -> None:
        self.place, self.uri = place, uri
        self.client: Any = mlflow.MlflowClient(uri)

    def sweep(self, host: str) -> Path:
        """Make the directory of the sweep on a host, whose first point was taken over."""
        made = make_sweep("shared", key="the-key", experiment="digits")
        directory = self.place / host / "sweeps" / "shared"
        directory.parent.mkdir(parents=True)
        made.rename(directory)
        TrialKey(directory, 0, 0).marker.parent.mkdir()
        TrialKey(directory, 0, 0).marker.touch()
        return directory

    def run(self, host: str, *more: str) -> Any:
        """Run the first point on a host."""
        directory = self.place / host / "sweeps" / "shared"
        directory = directory if directory.exists() else self.sweep(host)
        words = (f"output_dir={self.place / host}", f"tracking.uri={self.uri}", "tracking.checkpoints=all")
        return run_point(*SMALL_DIGITS, EPOCHS, *words, *fault_at(5), f"point={directory}:0:0", *more)

    def interrupt(self, host: str) -> None:
        """Begin the point, as a process on that host, and interrupt it after its first checkpoint."""
        Path("fault").write_text("SIGINT")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ProcessId, "own", classmethod(lambda cls: ProcessId(host, 1, "a/b/c/d")))
            with pytest.raises(KeyboardInterrupt):
                self.run(host)

    def runs(self) -> list[Any]:
        return list(self.client.search_runs([e.experiment_id for e in self.client.search_experiments()]))

    def history(self, run: Any) -> dict[tuple[str, int], float]:
        """What a run has recorded by metric and step, each once, without times and load."""
        names = [name for name in run.data.metrics if name in ("loss", "eval_loss", "eval_accuracy")]
        points = [point for name in names for point in self.client.get_metric_history(run.info.run_id, name)]
        assert max(Counter((point.key, point.step) for point in points).values()) == 1
        return {(point.key, point.step): point.value for point in points}

    def run_dir(self, host: str) -> Path:
        found = run_directory_of(TrialKey(self.place / host / "sweeps" / "shared", 0, 0))
        assert found is not None
        return found


@pytest.fixture
def hosts(place: Path, uri: str) -> Hosts:
    return Hosts(place, uri)


def test_a_run_goes_on_where_its_directory_is_not(hosts: Hosts, capsys: pytest.CaptureFixture[str]) -> None:
    undisturbed = hosts.run("whole")
    (whole,) = hosts.runs()
    hosts.client.delete_run(whole.info.run_id)
    hosts.interrupt("here")
    (begun,) = hosts.runs()
    shutil.rmtree(hosts.place / "here")
    capsys.readouterr()
    assert hosts.run("there") == undisturbed
    assert "the store has checkpoint-3" in capsys.readouterr().err
    (run,) = hosts.runs()
    assert (run.info.run_id, run.info.status) == (begun.info.run_id, "FINISHED")
    assert json.loads(run.data.tags["hfexp.values"]) == [undisturbed]
    assert hosts.history(run) == hosts.history(whole)
    # A third host, or this one without its outputs, answers from the record.
    shutil.rmtree(hosts.place / "there")
    capsys.readouterr()
    assert hosts.run("elsewhere") == undisturbed
    assert "already finished" in capsys.readouterr().out
    assert len(hosts.runs()) == 1


def test_a_point_counts_once_its_record_is_delivered(hosts: Hosts) -> None:
    """Its process was killed after the run had finished, while the end was delivered."""
    value = hosts.run("here")
    (run,) = hosts.runs()
    directory = hosts.run_dir("here")
    state, delivered = read_state(directory), read_delivered(directory)
    assert state is not None
    assert delivered is not None
    journal = Journal(directory).path.read_bytes()
    state.closed, delivered.offset = False, journal.rindex(b"\n", 0, -1) + 1  # before its last line
    save_state(directory, state)
    delivered.save(directory)
    hosts.client.update_run(run.info.run_id, status="RUNNING")
    assert hosts.run("here") == value
    shutil.rmtree(hosts.place / "here")
    assert [found.info.status for found in hosts.runs()] == ["FINISHED"]


def test_a_host_that_was_overtaken_adds_nothing_and_learns_what_was_done(hosts: Hosts) -> None:
    hosts.interrupt("here")
    value = hosts.run("there")
    (run,) = hosts.runs()
    old = hosts.run_dir("here")
    journal = Journal(old)
    journal.append("tags", tags={"late": "true"})
    journal.append("end", status="killed", reason="late", time=0)
    delivery = Delivery(old, journal, hosts.uri, hosts.place / "here")
    delivery.deliver()
    assert not delivery.pending
    (after,) = hosts.runs()
    assert (after.info.status, after.data.tags) == ("FINISHED", run.data.tags)
    assert hosts.run("here") == value
    assert hosts.run_dir("here") == old
    assert len(hosts.runs()) == 1


def test_a_beginning_that_could_not_be_recorded_is_left_out_if_another_host_has_begun(hosts: Hosts) -> None:
    hosts.run("there")
    (run,) = hosts.runs()
    late = Journal(hosts.place / "late")
    tags = {name: run.data.tags[name] for name in ("hfexp.sweep_key", "hfexp.trial", "hfexp.replicate")}
    late.append(
        "create", tags=tags, time=run.info.start_time - 1, experiment="digits", name="late", key="k", shared=True
    )
    late.append("metrics", metrics={"loss": 1.0}, step=1, time=0)
    for _ in range(2):
        delivery = Delivery(hosts.place / "late", late, hosts.uri, hosts.place)
        delivery.deliver()
        assert not delivery.pending
        late.append("end", status="killed", reason="late", time=0)
    assert [found.info.run_id for found in hosts.runs()] == [run.info.run_id]


def test_a_beginning_that_is_recorded_too_late_to_be_continued_is_closed(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run of a host that was killed appears after this host has looked for it, and its process may still live."""
    journal = Journal(hosts.place / "late")
    tags = {"hfexp.sweep_key": "the-key", "hfexp.trial": "0", "hfexp.replicate": "0", "hfexp.process": "its own"}

    def restore_and_record(*args: Any) -> None:
        restore_point(*args)
        journal.append("create", tags=tags, time=now(), experiment="digits", name="late", key="k", shared=True)
        Delivery(hosts.place / "late", journal, hosts.uri, hosts.place).deliver()

    monkeypatch.setattr(point, "restore_point", restore_and_record)
    hosts.run("there")
    journal.append("end", status="killed", reason="late", time=now())
    Delivery(hosts.place / "late", journal, hosts.uri, hosts.place).deliver()
    late, run = sorted(hosts.runs(), key=lambda run: run.info.start_time)
    assert (late.info.run_name, late.info.status, run.info.status) == ("late", "FAILED", "FINISHED")
    assert f"superseded by the run {run.info.run_id}" in late.data.tags["hfexp.status_reason"]


def test_two_hosts_write_one_parent(hosts: Hosts, capsys: pytest.CaptureFixture[str]) -> None:
    storage = f"search.storage=sqlite:///{hosts.place}/study.db"
    words = (f"{RATE}=0.1,0.2,0.3", storage, "search.name=one", f"tracking.uri={hosts.uri}", "tracking=mlflow")
    ran: list[float] = []

    def job(cfg: Any) -> float:
        ran.append(cfg.trainer.args.learning_rate)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return ran[-1]

    assert sweep(job, *words, "output_dir=here") == 130
    (parent,) = hosts.runs()
    assert (parent.info.status, parent.data.tags["hfexp.trials.finished"]) == ("KILLED", "1")
    shutil.rmtree(hosts.place / "here")
    for host in ("there", "here"):
        capsys.readouterr()
        assert sweep(job, *words, f"output_dir={host}") == 0
        output = capsys.readouterr().out
        assert [f" {rate} " in output for rate in (0.1, 0.2, 0.3)] == [True] * 3
    assert ran == [0.1, 0.2, 0.2, 0.3]
    (parent,) = hosts.runs()
    assert (parent.info.status, parent.data.tags["hfexp.trials.finished"]) == ("FINISHED", "3")
    table = json.loads(Path(download_artifacts(
        run_id=parent.info.run_id, artifact_path="trials.json", tracking_uri=hosts.uri)).read_text())  # fmt: skip
    assert len(table["data"]) == 3
    history = hosts.client.get_metric_history(parent.info.run_id, "best_eval_loss")
    assert [point.step for point in history] == sorted({point.step for point in history})


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Any]:
    found = study.open_study(f"sqlite:///{tmp_path / 'study.db'}", "shared", ["minimize"], None, None)
    yield found
    study.close_study(found)


def owner(found: Any, host: str, monkeypatch: pytest.MonkeyPatch) -> scheduler.Owner:
    """A sweeper on another host that has signed once."""
    with monkeypatch.context() as patch:
        patch.setattr(ProcessId, "own", classmethod(lambda cls: ProcessId(host, 1, "a/b/c/d")))
        made = scheduler.Owner(found)
    made.sign()
    return made


def test_one_host_holds_the_lease_until_it_returns_it_or_is_silent(
    shared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1e9]
    monkeypatch.setattr(scheduler.time, "time", lambda: now[0])
    here, there = (owner(shared, host, monkeypatch) for host in ("here", "there"))
    first, second = Lease(shared, here), Lease(shared, there)
    assert [first.take(), second.take(), first.take()] == [True, False, True]
    second.release()  # it is not its own
    assert not second.take()
    first.release()
    assert [second.take(), first.take()] == [True, False]
    for _ in range(4):  # the second one gives no sign of life
        now[0] += scheduler.INTERVAL
        here.sign()
    assert first.take()


def test_of_several_that_propose_one_is_heard(shared: Any) -> None:
    barrier, heard = threading.Barrier(4), []

    def propose(number: int) -> None:
        barrier.wait()
        heard.append(study.agreed(shared, study.KEY, str(number)))

    threads = [threading.Thread(target=propose, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(heard) == 4
    assert len(set(heard)) == 1


@pytest.mark.parametrize("url", ["mlflow", "http://localhost:5000"])
def test_a_tracking_server_is_no_storage(url: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(lambda cfg: 1.0, f"{RATE}=0.1", f"search.storage='{url}'") == 2
    error = capsys.readouterr().err
    assert f"search.storage={url}: an MLflow server can't keep a study" in error
    assert "use a database that all hosts reach" in error
    assert not list(place.iterdir())
