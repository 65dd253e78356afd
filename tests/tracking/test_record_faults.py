"""What goes wrong between a run and its record, and must cost neither the run nor what it had said."""

import contextlib
import errno
import logging
import os
import socket
import threading
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import SMALL_DIGITS
from faults import fault_at
from filelock import FileLock
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from test_tracking import CREATE, begin, history, left_behind

from hfexp.commands import api, cli
from hfexp.core import console, process
from hfexp.core.errors import ConfigError
from hfexp.core.identity import config_hash
from hfexp.core.process import ProcessId
from hfexp.core.provenance import Origin
from hfexp.core.secrets import mask_secrets
from hfexp.tracking import recovery, run_directory, store
from hfexp.tracking.delivery import Delivery, Writer
from hfexp.tracking.journal import Journal, read_delivered
from hfexp.tracking.run_directory import RunState, read_state, save_state
from hfexp.tracking.tracker import valid


def test_a_refused_name_takes_no_other_with_it(
    run_dir: Path,
    uri: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    journal, delivery = begin(run_dir, uri)
    journal.append("params", params={"seed": "1", "bad(name)": "2", "task": "3"})
    journal.append("metrics", metrics={"loss": 1.0, "recall@5": 0.5, "eval_accuracy": 0.9}, step=1, time=1)
    delivery.deliver()
    run = mlflow.MlflowClient(uri).get_run(str(delivery.state.run_id))
    assert run.data.params == {"seed": "1", "task": "3"}
    assert run.data.metrics == {"loss": 1.0, "eval_accuracy": 0.9}
    assert "the metric 'recall@5' can't be recorded" in caplog.text


def test_names_are_made_valid() -> None:
    from mlflow.utils.validation import _validate_metric_name

    for name in ("recall@5", "f1_a,b", "50%", "x(y)", "/lead", "a//b", "ä ö", "x" * 300, "a/b.c-d: e"):
        (made,) = valid({name: 1})
        _validate_metric_name(made)
    assert valid({"eval/f1.macro-x: y": 1}) == {"eval/f1.macro-x: y": 1}


def test_trouble_of_the_database_is_no_refusal(
    run_dir: Path,
    uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    journal, delivery = begin(run_dir, uri)
    delivery.deliver()
    journal.append("metrics", metrics={"loss": 1.0}, step=1, time=1)
    busy = MlflowException("QueuePool limit of size 5 reached", error_code=BAD_REQUEST)
    assert busy.error_code == "BAD_REQUEST"
    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, "log_batch", lambda *args, **kwargs: (_ for _ in ()).throw(busy))
        with pytest.raises(MlflowException, match="QueuePool"):
            delivery.deliver()
    assert delivery.pending
    delivery.deliver()
    assert history(uri, delivery.state.run_id, "loss") == [(1, 1.0)]


def test_text_in_an_old_encoding_is_recorded(run_dir: Path, uri: str) -> None:
    journal, delivery = begin(run_dir, uri)
    journal.append("tags", tags={"file": "b\udce4r.jpg", "zero": "a\0b"})
    journal.append("end", status="failed", reason="b\udce4r.jpg", time=1)
    delivery.deliver()
    run = mlflow.MlflowClient(uri).get_run(str(delivery.state.run_id))
    assert run.info.status == "FAILED"
    assert (run.data.tags["file"], run.data.tags["zero"]) == ("b?r.jpg", "ab")


def test_an_error_in_an_old_encoding_is_recorded_as_failed(place: Path, all_runs: Any) -> None:
    (place / "fault").write_text("error_in_old_encoding")
    with pytest.raises(RuntimeError, match="b.r"):
        api.train(*SMALL_DIGITS, *fault_at(2))
    (run,) = all_runs()
    assert run.info.status == "FAILED"
    assert "b?r.jpg" in run.data.tags["hfexp.status_reason"]


def test_after_a_power_cut_more_is_noted_than_there_is(run_dir: Path, uri: str) -> None:
    journal, delivery = begin(run_dir, uri)
    journal.append("metrics", metrics={"loss": 1.0}, step=1, time=1)
    delivery.deliver()
    delivery.state.deferred = [10_000]
    delivery.state.offset += 300
    delivery.save_state()
    again = Delivery(run_dir, Journal(run_dir), uri, run_dir)
    assert not again.pending
    with journal.path.open("ab") as file:
        file.write(b'\0\0\0\0\n{"half": \n')
    journal = Journal(run_dir)
    again = Delivery(run_dir, journal, uri, run_dir)
    journal.append("metrics", metrics={"loss": 2.0}, step=2, time=2)
    again.deliver()
    assert history(uri, delivery.state.run_id, "loss") == [(1, 1.0), (2, 2.0)]


@pytest.mark.slow
@pytest.mark.parametrize("left", [b"", b'{"kind": "tags", "tags": {}}\n'])
def test_a_journal_without_its_beginning_begins_anew(left: bytes, place: Path, all_runs: Any) -> None:
    identity = config_hash(api.compose(*SMALL_DIGITS))
    run_dir = place / "outputs" / "digits" / f"vit_digits-digits-s42-{identity[:8]}"
    (run_dir / "tracking").mkdir(parents=True)
    (run_dir / "tracking" / "journal.jsonl").write_bytes(left)
    save_state(run_dir, RunState(identity, status="killed"))
    result = api.train(*SMALL_DIGITS)
    assert result.run_dir == run_dir
    (run,) = all_runs()
    assert (run.info.status, run.info.run_id) == ("FINISHED", result.run_id)


def test_a_run_that_was_killed_while_its_end_was_delivered_is_completed(place: Path, all_runs: Any) -> None:
    first = api.train(*SMALL_DIGITS)
    client = mlflow.MlflowClient(str(first.tracking_uri))
    client.update_run(str(first.run_id), status="RUNNING")
    state, delivered = read_state(first.run_dir), read_delivered(first.run_dir)
    assert state is not None
    assert delivered is not None
    state.closed = False
    save_state(first.run_dir, state)
    *_, (_, delivered.offset), (last, _) = Journal(first.run_dir).read()
    assert last["kind"] == "end"
    delivered.save(first.run_dir)
    again = api.train(*SMALL_DIGITS)
    assert (again.run_dir, again.run_id, again.metrics) == (first.run_dir, first.run_id, first.metrics)
    assert again.model.config.id2label == first.model.config.id2label
    assert [run.info.status for run in all_runs()] == ["FINISHED"]
    state = read_state(first.run_dir)
    assert state is not None
    assert state.closed


def test_a_run_of_another_user_is_passed_over(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    first = api.train(*SMALL_DIGITS, "tracking=none")
    os.chown(first.run_dir, 65534, 65534)
    second = api.train(*SMALL_DIGITS, "tracking=none")
    assert second.run_dir.name == f"{first.run_dir.name}-2"
    assert capsys.readouterr().err.count("belongs to another user") == 1


@pytest.mark.slow
def test_an_experiment_whose_rest_is_being_delivered_waits(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = api.train(*SMALL_DIGITS, "tracking=none")
    own, identity = ProcessId.own(), config_hash(api.compose(*SMALL_DIGITS))
    gone = own.started.rpartition("/")[0] + "/1"
    save_state(first.run_dir, RunState(identity, "killed", None, own.host, own.pid, gone))
    held, waits = threading.Event(), threading.Event()
    monkeypatch.setattr(run_directory, "note", lambda text: waits.set() if "waiting for another" in text else None)

    def deliver() -> None:
        with FileLock(first.run_dir.parent / ".locks" / f"{identity[:16]}.lock"):
            held.set()
            waits.wait(60)

    thread = threading.Thread(target=deliver)
    thread.start()
    held.wait()
    assert api.train(*SMALL_DIGITS, "tracking=none").run_dir == first.run_dir
    assert waits.is_set()
    thread.join()


@pytest.mark.parametrize(("status", "expected"), [("finished", "FINISHED"), ("failed", "FAILED")])
def test_a_run_continued_without_tracking_ends_as_its_directory_says(
    status: str,
    expected: str,
    run_dir: Path,
    uri: str,
) -> None:
    _, delivery = left_behind(run_dir, uri, status=status, run_id=None)
    client = mlflow.MlflowClient(uri)
    assert recovery.close_gone_runs(client, uri, run_dir.parent) == [delivery.state.run_id]
    assert client.get_run(str(delivery.state.run_id)).info.status == expected
    assert history(uri, delivery.state.run_id, "loss") == [(7, 2.0)]


def test_one_broken_directory_does_not_stop_the_closing_of_others(
    tmp_path: Path,
    uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = []
    for name in ("a", "b", "c"):
        path = tmp_path / "digits" / name
        path.mkdir(parents=True)
        monkeypatch.setitem(CREATE, "key", name)
        runs.append(left_behind(path, uri)[1].state.run_id)
    real = recovery.deliver_rest

    def deliver_rest(run_dir: Path, *args: Any) -> Any:
        if run_dir.name == "b":
            raise PermissionError("somebody else's")
        return real(run_dir, *args)

    monkeypatch.setattr(recovery, "deliver_rest", deliver_rest)
    client = mlflow.MlflowClient(uri)
    assert sorted(recovery.close_gone_runs(client, uri, tmp_path)) == sorted([runs[0], runs[2]])


def test_no_error_of_the_file_system_comes_out_of_the_journal(
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    journal = Journal(run_dir)
    journal.append("tags", tags={"a": "1"})

    def no_more_files(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", no_more_files)
        patched.setattr(Path, "unlink", no_more_files)
        journal.append("tags", tags={"b": "2"})
        journal.release_space()
    journal.append("tags", tags={"c": "3"})
    assert [list(entry["tags"]) for entry, _ in Journal(run_dir).read()] == [["a"], ["b"], ["c"]]


def test_half_a_line_on_a_full_disk_moves_no_position(run_dir: Path) -> None:
    journal = Journal(run_dir)
    journal.append("tags", tags={"a": "1"})
    real = journal._write_waiting

    def half() -> None:
        with journal.path.open("ab") as file:
            file.write(journal._waiting[0][:9])
        raise OSError(errno.ENOSPC, "No space left on device")

    journal._write_waiting = half
    journal.append("tags", tags={"b": "2"})
    positions = list(journal.read())
    assert [list(entry["tags"]) for entry, _ in positions] == [["a"], ["b"]]
    assert journal.size() == positions[-1][1]
    journal._write_waiting = real
    journal.append("tags", tags={"c": "3"})
    assert list(Journal(run_dir).read())[:2] == positions
    assert journal.size() == journal.path.stat().st_size


def test_a_full_disk_under_the_error_stream_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w", buffering=1) as full, monkeypatch.context() as patched:
        with pytest.raises(OSError, match="No space left"):
            print("this is what would happen", file=full, flush=True)
        patched.setattr("sys.stderr", full)
        console.note("nobody reads this")
        with contextlib.suppress(OSError):
            full.close()


@pytest.mark.slow
def test_a_refused_run_is_an_error_of_its_start(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise MlflowException("no such name", error_code=INVALID_PARAMETER_VALUE)

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", refuse)
    with pytest.raises(ConfigError, match="MLflow refuses the run: no such name"):
        api.train(*SMALL_DIGITS)


def test_artifacts_stay_below_the_output_directory(tmp_path: Path) -> None:
    for name in ("/team/x", "../x"):
        client, experiment = store.open_store(f"sqlite:///{tmp_path}/mlflow.db", tmp_path, name)
        location = client.get_experiment(experiment).artifact_location
        assert location.startswith((tmp_path / "artifacts").as_uri() + "/")
        assert ".." not in location


def test_a_store_that_is_locked_at_the_start_is_waited_for(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], all_runs: Any
) -> None:
    real, failures = Delivery.client, [2]

    def client(self: Delivery) -> Any:
        if failures[0]:
            failures[0] -= 1
            raise MlflowException("database is locked", error_code=TEMPORARILY_UNAVAILABLE)
        return real(self)

    monkeypatch.setattr(Delivery, "client", client)
    result = api.train(*SMALL_DIGITS)
    assert "is not accepting writes (database is locked); the record is kept" in capsys.readouterr().err
    (run,) = all_runs()
    assert (run.info.status, run.info.run_id) == ("FINISHED", result.run_id)


@pytest.mark.slow
def test_a_server_that_never_answers_is_not_waited_for(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hfexp.tracking.tracker.SERVER_PATIENCE", 0.5)
    monkeypatch.setattr("hfexp.tracking.delivery.PATIENCE", 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        result = api.train(*SMALL_DIGITS, f"tracking.uri=http://127.0.0.1:{silent.getsockname()[1]}")
    shown = capsys.readouterr().err
    assert "does not answer; the record is kept" in shown
    assert "`hfexp sync` delivers it" in shown
    assert result.run_id is None
    assert result.metrics["test_loss"] > 0


def test_ctrl_c_cuts_short_only_the_waiting(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    close = Writer.close

    def interrupted(self: Writer) -> bool:
        close(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(Writer, "close", interrupted)
    assert cli.main([*SMALL_DIGITS]) == 0
    shown = capsys.readouterr()
    assert "test accuracy" in shown.out
    assert "`hfexp sync` delivers it" in shown.err


def test_secrets_are_masked_wherever_they_may_come_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    secrets = [
        "http://me:p@ss/w0rd@host:5000/x", "postgresql://me:hush@host/db", "https://github_pat_0123456789abcdefghijKL@x",
        "glpat-0123456789abcdef0123", "postgresql://host/db?user=me&password=hush", "wasbs://c@a?sv=1&sig=abcDEF%3D",
    ]  # fmt: skip
    for secret in secrets:
        masked = mask_secrets(f"see {secret} there")
        assert "***" in masked
        assert not any(part in masked for part in ("ss/w0rd", "hush", "0123456789", "abcDEF"))
    for plain in ("http://127.0.0.1:5000/#/models/a@best", "models:/pets@best", "me@host.org: hello"):
        assert mask_secrets(plain) == plain
    assert "hush" not in Origin({}, [], "hfexp.train('tracking.uri=postgresql://me:hush@host/db')").command
    console.note(secrets[1])
    assert "hush" not in capsys.readouterr().err
    with console.log_to(tmp_path / "hfexp.log"):
        logging.getLogger("hfexp.x").warning("no answer from %s", secrets[1])
    assert "hush" not in (tmp_path / "hfexp.log").read_text()


def test_a_process_that_must_not_be_looked_at_may_live(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ProcessId.own()
    hidden = ProcessId(own.host, 2**22 + 5, own.started)
    assert hidden.is_gone()

    def not_allowed(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(process.os, "kill", not_allowed)
    assert not hidden.is_gone()


def test_runs_of_other_hosts_are_left_alone_by_sync(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = place / "outputs" / "digits" / "a-run"
    run_dir.mkdir(parents=True)
    left_behind(run_dir, f"sqlite:///{place}/outputs/mlflow.db", host="elsewhere")
    assert cli.main(["sync"]) == 0
    assert "skipped, as it may still be running on elsewhere" in capsys.readouterr().out
    assert cli.main(["sync", "--force"]) == 0
    assert "a-run: killed, delivered to" in capsys.readouterr().out


def test_reading_takes_up_where_it_was(run_dir: Path) -> None:
    from hfexp.tracking.models import LinkedCheckpoints

    class Links:
        seen: dict[int, dict[str, float]]

        def update(self, known: Any, measured: dict[int, dict[str, float]], best: Any) -> None:
            self.seen = measured

    journal, links = Journal(run_dir), Links()
    linked = LinkedCheckpoints(run_dir / "checkpoints", journal, links)  # pyright: ignore
    journal.append("metrics", metrics={"loss": 1.0}, step=1, time=1)
    journal.append("metrics", metrics={"eval_loss": 2.0}, step=2, time=1)
    linked.update(journal.size(), last=True)
    assert links.seen == {2: {"eval_loss": 2.0}}
    before = journal.size()
    journal.append("metrics", metrics={"eval_loss": 3.0}, step=4, time=1)
    linked.update(before, last=True)
    assert links.seen == {2: {"eval_loss": 2.0}}
    linked.update(journal.size(), last=True)
    assert set(links.seen) == {2, 4}
