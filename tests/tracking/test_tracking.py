"""The journal, its delivery, and what is recovered of runs whose process is gone."""

import json
import math
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from servers import FIRST_USE

from hfexp.commands import cli
from hfexp.core.process import ProcessId
from hfexp.tracking import delivery as delivery_module
from hfexp.tracking import recovery, store
from hfexp.tracking.delivery import Delivery, Writer
from hfexp.tracking.journal import Journal
from hfexp.tracking.models import LinkedCheckpoints
from hfexp.tracking.run_directory import RunState, save_state

CREATE: dict[str, Any] = {"experiment": "digits", "name": "a-run", "key": "k1", "time": 1_700_000_000_000}


def begin(run_dir: Path, uri: str, tags: dict[str, str] | None = None) -> tuple[Journal, Delivery]:
    journal = Journal(run_dir)
    journal.append("create", tags=tags or {"hfexp.host": "here"}, **CREATE)
    return journal, Delivery(run_dir, journal, uri, run_dir.parent.parent)


def history(uri: str, run_id: str | None, name: str) -> list[tuple[int, float]]:
    return [(p.step, p.value) for p in mlflow.MlflowClient(uri).get_metric_history(str(run_id), name)]


def test_a_torn_line_is_removed_and_the_rest_is_read(run_dir: Path) -> None:
    journal = Journal(run_dir)
    journal.append("params", params={"a": "1"})
    journal.append("metrics", metrics={"loss": 1.0}, step=3, time=1)
    with journal.path.open("ab") as file:
        file.write(b'{"kind": "metr' + b"x" * 70_000)
    again = Journal(run_dir)
    assert [entry["kind"] for entry, _ in again.read()] == ["params", "metrics"]
    assert again.recorded() == ({"a"}, {"loss": 3})
    again.append("tags", tags={})
    assert [entry["kind"] for entry, _ in again.read()] == ["params", "metrics", "tags"]


def test_on_a_full_disk_entries_wait_in_memory_at_their_positions(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(run_dir)
    journal.append("tags", tags={"first": "1"})
    with monkeypatch.context() as full:
        full.setattr(Journal, "_write_waiting", lambda self: (_ for _ in ()).throw(OSError(28, "No space left")))
        journal.append("metrics", metrics={"loss": 2.0}, step=1, time=1)
        journal.append("tags", tags={"third": "3"})
        positions = list(journal.read())
        size = journal.size()
    assert caplog.text.count("No space left") == 1
    journal.append("tags", tags={"fourth": "4"})
    assert list(Journal(run_dir).read())[:3] == positions
    assert size == positions[-1][1]
    assert journal.size() == journal.path.stat().st_size


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_journal_that_no_byte_can_be_written_to(run_dir: Path) -> None:
    (run_dir / "tracking").mkdir()
    (run_dir / "tracking" / "journal.jsonl").symlink_to("/dev/full")
    journal = Journal(run_dir)
    journal.append("tags", tags={"a": "1"})
    assert [entry["kind"] for entry, _ in journal.read()] == ["tags"]


def test_everything_arrives_in_order_and_non_finite_values_as_such(run_dir: Path, uri: str) -> None:
    journal, delivery = begin(run_dir, uri)
    journal.append("params", params={f"p{i}": "x" * 7000 for i in range(250)})
    for step in range(1200):
        journal.append("metrics", metrics={"loss": float(step)}, step=step, time=step)
    journal.append("metrics", metrics={"nan": math.nan, "inf": math.inf}, step=1, time=5)
    (run_dir / "artifacts").mkdir()
    (run_dir / "artifacts" / "a.txt").write_text("A")
    journal.append("artifacts", path="artifacts", name=None)
    journal.append("end", status="finished", reason="", time=CREATE["time"] + 500)
    delivery.deliver()
    assert not delivery.pending
    run = mlflow.MlflowClient(uri).get_run(str(delivery.state.run_id))
    assert (run.info.status, run.info.run_name) == ("FINISHED", "a-run")
    assert (run.info.start_time, run.info.end_time) == (CREATE["time"], CREATE["time"] + 500)
    assert len(run.data.params) == 250
    assert {len(value) for value in run.data.params.values()} == {6000}
    assert history(uri, delivery.state.run_id, "loss") == [(step, float(step)) for step in range(1200)]
    assert math.isnan(run.data.metrics["nan"])
    assert run.data.metrics["inf"] > 1e300
    assert Path(run.info.artifact_uri.removeprefix("file://"), "a.txt").read_text() == "A"


def test_what_is_on_disk_is_looked_at_once_after_all_that_was_measured(
    run_dir: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, delivery = begin(run_dir, uri)
    (run_dir / "a.txt").write_text("A")
    for step in range(1, 4):
        journal.append("metrics", metrics={"eval_loss": float(step)}, step=step, time=step)
        journal.append("artifacts", path="a.txt", name=None)
        journal.append("checkpoints", **({"last": True} if step == 3 else {}))
    calls: list[Any] = []

    class Client(mlflow.MlflowClient):
        def log_batch(self, run_id: str, metrics: Any = (), **kinds: Any) -> Any:
            calls.append(len(metrics))

        def log_artifact(self, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
            calls.append(Path(local_path).name)

    monkeypatch.setattr(mlflow, "MlflowClient", Client)
    monkeypatch.setattr(LinkedCheckpoints, "update", lambda self, until, last: calls.append((until, last)))
    delivery.deliver()
    assert calls == [3, "a.txt", (journal.size(), True)]
    assert not delivery.pending


@pytest.mark.parametrize("keep_state", [True, False], ids=["state kept", "state lost"])
def test_delivering_again_changes_nothing(run_dir: Path, uri: str, keep_state: bool) -> None:
    journal, delivery = begin(run_dir, uri)
    for step in range(5):
        journal.append("metrics", metrics={"loss": step / 3}, step=step, time=step)
    delivery.deliver()
    first = replace(delivery.state)
    if keep_state:  # killed after the store had taken it, before that was noted
        replace(first, offset=0, creating=True, run_id=None).save(run_dir)
    else:
        (run_dir / "tracking" / "delivered.json").unlink()
    again = Delivery(run_dir, Journal(run_dir), uri, run_dir)
    again.deliver()
    assert again.state == first
    assert len(mlflow.MlflowClient(uri).search_runs(["1"])) == 1
    assert history(uri, first.run_id, "loss") == [(step, step / 3) for step in range(5)]


def test_a_run_deleted_from_the_store_is_recorded_anew(run_dir: Path, uri: str) -> None:
    journal, delivery = begin(run_dir, uri)
    journal.append("metrics", metrics={"loss": 1.0}, step=1, time=1)
    delivery.deliver()
    mlflow.MlflowClient(uri).delete_run(str(delivery.state.run_id))
    again = Delivery(run_dir, journal, uri, run_dir)
    again.deliver()
    assert again.state.run_id != delivery.state.run_id
    assert again.state.experiment_id == delivery.state.experiment_id
    assert mlflow.MlflowClient(uri).get_run(str(again.state.run_id)).info.experiment_id == "1"
    assert history(uri, again.state.run_id, "loss") == [(1, 1.0)]


def test_a_refusal_is_said_once_and_does_not_hold_up_the_rest(
    run_dir: Path, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    journal, delivery = begin(run_dir, uri)
    journal.append("params", params={"seed": "1"})
    delivery.deliver()
    for _ in range(2):
        journal.append("params", params={"seed": "2"})
        journal.append("end", status="finished", reason="", time=1)
        delivery.deliver()
    assert not delivery.pending
    assert caplog.text.count("the param 'seed' can't be recorded") == 1
    assert mlflow.MlflowClient(uri).get_run(str(delivery.state.run_id)).info.status == "FINISHED"


def test_a_failed_upload_is_put_off(run_dir: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, delivery = begin(run_dir, uri)
    (run_dir / "a.txt").write_text("A")
    journal.append("artifacts", path="a.txt", name=None)
    journal.append("metrics", metrics={"loss": 1.0}, step=1, time=1)
    with monkeypatch.context() as patched:
        patched.setitem(delivery_module.ACTIONS, "artifacts", lambda *args: (_ for _ in ()).throw(OSError("no")))
        delivery.deliver()
        assert delivery.pending
        assert history(uri, delivery.state.run_id, "loss") == [(1, 1.0)]
        with pytest.raises(OSError, match="no"):
            delivery.deliver_deferred()
    later = Delivery(run_dir, journal, uri, run_dir)
    later.deliver_deferred()
    assert not later.pending
    assert [f.path for f in mlflow.MlflowClient(uri).list_artifacts(str(later.state.run_id))] == ["a.txt"]


def test_the_writer_goes_on_when_the_store_comes_back(
    run_dir: Path, uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hfexp.tracking.delivery.INTERVAL", 0.01)
    away = [True]
    real = Delivery.client

    def client(self: Delivery) -> Any:
        if away[0]:
            raise MlflowException("connection refused")
        return real(self)

    monkeypatch.setattr(Delivery, "client", client)
    journal, delivery = begin(run_dir, uri)
    writer = Writer(delivery, then=lambda: None)
    writer.start()
    journal.append("metrics", metrics={"loss": 1.0}, step=1, time=1)
    while writer.problem is None:
        time.sleep(0.01)
    away[0] = False
    assert writer.close()
    assert writer.problem is None
    assert caplog.text.count("connection refused") == 0  # whoever starts the writer says why the first one failed
    assert history(uri, delivery.state.run_id, "loss") == [(1, 1.0)]


def test_the_end_does_not_wait_for_ever(run_dir: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfexp.tracking.delivery.INTERVAL", 0.01)
    monkeypatch.setattr("hfexp.tracking.delivery.PATIENCE", 0.05)
    monkeypatch.setattr(Delivery, "client", lambda self: (_ for _ in ()).throw(MlflowException("away")))
    _, delivery = begin(run_dir, uri)
    writer = Writer(delivery, then=lambda: None)
    writer.start()
    assert not writer.close()
    assert "away" in str(writer.problem)


def test_a_process_is_gone_only_if_that_is_certain() -> None:
    own = ProcessId.own()
    machine, boot, namespace, start = own.started.split("/")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    unused = ended.pid

    def gone(host: str = own.host, pid: int = own.pid, **changed: str) -> bool:
        parts = {"machine": machine, "boot": boot, "namespace": namespace, "start": start, **changed}
        return ProcessId(host, pid, "/".join(parts.values())).is_gone()

    assert not gone()
    assert gone(pid=unused)
    assert gone(start="1")  # the pid is used again
    assert gone(boot="before") == bool(machine)
    assert not gone(machine="", boot="before")
    assert not gone(host="elsewhere", pid=unused)
    assert not gone(machine="twin", pid=unused)
    assert not gone(namespace="container", pid=unused)
    assert not ProcessId(own.host, unused, "").is_gone()


def left_behind(run_dir: Path, uri: str, **state: Any) -> tuple[Journal, Delivery]:
    """A run whose process was killed."""
    own = ProcessId.own()
    tags = {"hfexp.host": own.host, "hfexp.pid": str(own.pid), "hfexp.run_dir": str(run_dir)}
    tags["hfexp.process"] = own.started.rpartition("/")[0] + "/1"
    journal, delivery = begin(run_dir, uri, tags)
    delivery.deliver()
    journal.append("metrics", metrics={"loss": 2.0}, step=7, time=CREATE["time"] + 90)
    known = {"host": own.host, "pid": own.pid, "process": tags["hfexp.process"], "run_id": delivery.state.run_id}
    save_state(run_dir, RunState("0" * 64, **{**known, **state}))
    return journal, delivery


def test_a_run_whose_process_is_gone_is_closed_with_all_that_it_had_said(run_dir: Path, uri: str) -> None:
    _, delivery = left_behind(run_dir, uri)
    client = mlflow.MlflowClient(uri)
    assert recovery.close_gone_runs(client, uri, run_dir.parent) == [delivery.state.run_id]
    run = client.get_run(str(delivery.state.run_id))
    assert (run.info.status, run.info.end_time) == ("KILLED", CREATE["time"] + 90)
    assert run.data.tags["hfexp.status_reason"] == recovery.GONE
    assert history(uri, delivery.state.run_id, "loss") == [(7, 2.0)]
    assert json.loads((run_dir / "run.json").read_text())["status"] == "killed"
    assert recovery.close_gone_runs(client, uri, run_dir.parent) == []


def test_a_run_that_had_finished_but_not_delivered_that_is_finished(run_dir: Path, uri: str) -> None:
    journal, delivery = left_behind(run_dir, uri, status="finished")
    journal.append("end", status="finished", reason="", time=CREATE["time"] + 99)
    recovery.close_gone_runs(mlflow.MlflowClient(uri), uri, run_dir.parent)
    assert mlflow.MlflowClient(uri).get_run(str(delivery.state.run_id)).info.status == "FINISHED"


def test_a_held_lock_says_that_a_run_lives(run_dir: Path, uri: str) -> None:
    from filelock import FileLock

    _, delivery = left_behind(run_dir, uri)
    (run_dir.parent / ".locks").mkdir()
    with FileLock(run_dir.parent / ".locks" / f"{'0' * 16}.lock"):
        assert recovery.close_gone_runs(mlflow.MlflowClient(uri), uri, run_dir.parent) == []
    assert mlflow.MlflowClient(uri).get_run(str(delivery.state.run_id)).info.status == "RUNNING"


def test_a_run_that_another_process_continues_meanwhile_is_left_alone(
    run_dir: Path, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = str(left_behind(run_dir, uri)[1].state.run_id)
    run_dir.rename(tmp_path / "moved")
    client = mlflow.MlflowClient(uri)
    read_before = [client.get_run(run_id)]
    monkeypatch.setattr(client, "search_runs", lambda *args, **options: read_before)
    client.set_tag(run_id, "hfexp.pid", "1")
    assert recovery.close_gone_runs(client, uri, run_dir.parent) == []
    assert client.get_run(run_id).info.status == "RUNNING"


def test_a_run_without_its_directory_was_killed(run_dir: Path, uri: str, tmp_path: Path) -> None:
    _, delivery = left_behind(run_dir, uri)
    run_dir.rename(tmp_path / "moved")
    recovery.close_gone_runs(mlflow.MlflowClient(uri), uri, run_dir.parent)
    assert mlflow.MlflowClient(uri).get_run(str(delivery.state.run_id)).info.status == "KILLED"


def test_sync_delivers_to_another_store(
    place: Path, template: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = place / "outputs" / "digits" / "a-run"
    run_dir.mkdir(parents=True)
    left_behind(run_dir, f"sqlite:///{place}/outputs/mlflow.db")
    (place / "other.db").write_bytes(template.read_bytes())
    assert cli.main(["sync", "--uri", "sqlite:///other.db"]) == 0
    assert "a-run: killed, delivered to sqlite:///other.db" in capsys.readouterr().out
    (run,) = mlflow.MlflowClient("sqlite:///other.db").search_runs(["1"])
    assert (run.info.status, run.data.metrics["loss"]) == ("KILLED", 2.0)
    assert cli.main(["sync", "nowhere"]) == 2
    assert "nowhere is not the directory of a recorded run" in capsys.readouterr().err


def test_a_password_is_not_kept_and_asked_for(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = place / "outputs" / "digits" / "a-run"
    run_dir.mkdir(parents=True)
    secret = "postgresql://me:hush-hush@127.0.0.1:9/runs"
    _, delivery = begin(run_dir, secret)
    delivery.save_state()
    save_state(run_dir, RunState("0" * 64, status="finished"))
    assert not any("hush" in path.read_text() for path in run_dir.rglob("*.json*"))
    assert cli.main(["sync"]) == 1
    assert (
        "postgresql://***@127.0.0.1:9/runs is recorded without its secret part; give the whole address with --uri"
        in capsys.readouterr().out
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", secret)
    assert cli.main(["sync"]) == 1
    shown = capsys.readouterr()
    assert "a-run: not delivered: " in shown.out
    assert "hush" not in shown.out + shown.err


def test_a_fresh_store_is_in_wal_mode_and_keeps_its_artifacts_beside_it(tmp_path: Path) -> None:
    import sqlite3

    client, experiment_id = store.open_store(f"sqlite:///{tmp_path / 'a' / 'mlflow.db'}", tmp_path / "b", "digits")
    assert client.get_experiment(experiment_id).artifact_location == (tmp_path / "a/artifacts/digits").as_uri()
    with sqlite3.connect(tmp_path / "a" / "mlflow.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


@pytest.mark.slow
def test_twenty_processes_make_a_fresh_store_at_once(place: Path) -> None:
    uri = f"sqlite:///{place / 'mlflow.db'}"
    processes = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", FIRST_USE, uri, str(number)]) for number in range(20)
    ]
    assert [process.wait(300) for process in processes] == [0] * 20
    runs = mlflow.MlflowClient(uri).search_runs(["1"])
    assert sorted(run.data.metrics["loss"] for run in runs) == [float(n) for n in range(20)]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert os.listdir(place) == ["mlflow.db"] or not (place / "mlruns").exists()


def test_the_load_of_this_job_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch  # noqa: F401  (else imported in the thread, which the busy loop below would hold up)

    from hfexp.tracking.tracker import SystemMonitor

    recorded: list[tuple[dict[str, float], int]] = []

    class Recorder:
        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            recorded.append((metrics, step))

    with SystemMonitor(Recorder(), 0.02, time.time() - 100):  # pyright: ignore
        while len(recorded) < 3:
            sum(range(300_000))
            time.sleep(0.001)
    steps = [step for _, step in recorded]
    assert all(100 <= step < 130 for step in steps)
    assert max(metrics["system/process_cpu_percentage"] for metrics, _ in recorded) > 10
    assert recorded[-1][0]["system/process_memory_megabytes"] > 50
    count = len(recorded)
    with SystemMonitor(Recorder(), None, 0.0):  # pyright: ignore
        pass
    assert len(recorded) == count


def test_a_run_that_ends_right_after_a_sample_has_one_value_at_that_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from hfexp.tracking import tracker as system_metrics

    steps: list[int] = []
    tracker = types.SimpleNamespace(log_metrics=lambda metrics, step: steps.append(step))
    ends = iter([False, True])
    monkeypatch.setattr(system_metrics, "time", types.SimpleNamespace(time=lambda: 1100.4, monotonic=lambda: 7.0))
    monitor = system_metrics.SystemMonitor(tracker, 5.0, 1000.0)  # pyright: ignore
    monkeypatch.setattr(monitor, "_stop", types.SimpleNamespace(wait=lambda interval: next(ends), set=lambda: None))
    with monitor:
        pass
    assert steps == [100]


def test_accelerators_that_this_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from hfexp.tracking.tracker import _accelerators

    assert _accelerators(used_by_others=True) == _accelerators(used_by_others=False) == {}
    fakes: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True, "is_initialized": lambda: True, "device_count": lambda: 2,
        "device_memory_used": lambda i: (i + 1) * 2**20, "utilization": lambda i: 50 + i,
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "power_draw", lambda i: 1 / 0 if i else 250_000)
    load = _accelerators(used_by_others=False)
    assert load["system/gpu_0_power_usage_watts"] == 250
    assert load["system/gpu_1_memory_usage_megabytes"] == 2
    assert load["system/gpu_1_utilization_percentage"] == 51
    assert "system/gpu_1_power_usage_watts" not in load
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert _accelerators(used_by_others=False) == {}
    assert _accelerators(used_by_others=True) == load
