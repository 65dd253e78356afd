"""Odd places: clocks that are set, caches and directories of other users, servers that everybody reaches."""

import errno
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import SMALL_DIGITS
from faults import fault_at

from hfexp.commands import api, cli
from hfexp.commands.cli import name_a_home
from hfexp.commands.ui import main as ui
from hfexp.core.errors import ConfigError
from hfexp.core.locks import SharedLock
from hfexp.data.arrays import ArrayWriter
from hfexp.data.cache import Cache, NoRoomError
from hfexp.experiment.checks import check_semaphores
from hfexp.launch import world
from hfexp.tracking.run_directory import RunState, held_run, read_state, save_state
from hfexp.tracking.runs import read_runs
from hfexp.tracking.store import find_problem, why_not_writable

NOBODY = 65534


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_is_set_changes_no_duration(
    hours: int, place: Path, monkeypatch: pytest.MonkeyPatch, all_runs: Callable[[], list[Any]]
) -> None:
    before = time.time

    def set_clock(_: str) -> None:
        monkeypatch.setattr(time, "time", lambda: before() + 3600 * hours)

    monkeypatch.setattr("faults.set_clock", set_clock, raising=False)

    (place / "fault").write_text("set_clock")
    result = api.train(*SMALL_DIGITS, *fault_at(3))
    assert time.time() - before() == pytest.approx(3600 * hours, abs=5)
    (run,) = all_runs()
    (record,) = read_runs(result.tracking_uri or "", "digits")
    assert (record.seconds is None) == (hours < 0)  # the store has only the time of day
    metrics = run.data.metrics
    state = read_state(result.run_dir)
    assert state is not None
    for seconds in (result.seconds, result.train_seconds, state.seconds, metrics["train_runtime"]):
        assert 0 < seconds < 1800
    assert metrics["train_samples_per_second"] > 0
    parts = [metrics[f"train_{part}_seconds"] for part in ("data", "compute", "evaluate_and_save")]
    assert sum(parts) == pytest.approx(metrics["train_runtime"])


def write_rows(writer: ArrayWriter) -> dict[str, Any]:
    writer.append({"image": np.full((3, 4, 4), 7, np.uint8)})
    return {}


@pytest.fixture
def theirs() -> Iterator[Path]:
    """A directory of root's that everybody may write to, read by another user until the test ends."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)
        os.setresuid(0, 0, 0)


def become_another() -> None:
    os.setresuid(NOBODY, NOBODY, 0)


def test_a_run_of_another_user_is_not_delivered(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = theirs / "outputs" / "digits" / "a-run"
    (run_dir / "tracking").mkdir(parents=True)
    (run_dir / "tracking" / "journal.jsonl").touch()
    save_state(run_dir, RunState("0" * 64))
    with held_run(run_dir):
        pass
    cli.main(["sync", "--output-dir", str(theirs / "outputs")])  # Python may lie where others can't import from it
    capsys.readouterr()
    become_another()
    assert cli.main(["sync", "--output-dir", str(theirs / "outputs")]) == 1
    said = capsys.readouterr()
    assert f"{run_dir}: not delivered: " in said.out
    assert "another user created it" in said.out
    assert "Traceback" not in said.err


def test_a_cache_of_another_user_is_read(theirs: Path) -> None:
    shared = Cache(theirs / "cache", 10**6)
    shared.find_or_build("a", 300, write_rows)
    become_another()
    reader, built = shared.find_or_build("a", 300, write_rows)
    assert not built
    assert reader.read([0])["image"][0].min() == 7
    with pytest.raises(NoRoomError, match="can't be written"):
        shared.find_or_build("b", 300, write_rows)


def test_output_of_another_user_is_refused(theirs: Path) -> None:
    store, lock = theirs / "mlflow.db", theirs / "a.lock"
    store.write_bytes(b"SQLite format 3\0")
    with SharedLock(lock):
        pass
    assert why_not_writable(f"sqlite:///{store}") is None
    become_another()
    assert why_not_writable(f"sqlite:///{theirs / 'own.db'}") is None
    refused = f"tracking.uri: you can't write to {store}; set output_dir, or tracking.uri=sqlite:///FILE"
    assert why_not_writable(f"sqlite:///{store}") == refused
    with pytest.raises(ConfigError, match="another user created it; set output_dir"):
        SharedLock(lock).acquire()


def test_a_directory_that_one_may_not_enter_is_no_traceback(theirs: Path) -> None:
    (theirs / "private").mkdir(mode=0o700)
    become_another()
    for name in ("mlflow.db", "a/mlflow.db"):
        path = theirs / "private" / name
        assert find_problem(f"sqlite:///{path}") == f"tracking.uri: {path} can't be read: Permission denied"


@pytest.mark.parametrize(("host", "is_open"), [("127.0.0.1", False), ("localhost", False), ("::1", False),
                                               ("0.0.0.0", True), ("192.168.1.5", True)])  # fmt: skip
def test_a_server_that_others_reach_is_said(
    host: str, is_open: bool, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "execve", lambda *_: 0)
    monkeypatch.setattr("hfexp.commands.ui._free_port", lambda host, wanted: 5000)
    monkeypatch.setattr("hfexp.commands.ui._print_when_ready", lambda address, text: None)
    assert ui(["--uri", uri, "--host", host]) == 0
    assert ("MLflow has no password" in capsys.readouterr().err) is is_open


def test_a_user_whom_nobody_knows_has_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/mine")
    name_a_home()
    assert Path.home() == Path("/mine")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 54321)  # not in /etc/passwd
    name_a_home()
    assert Path.home() == Path("/")


@pytest.mark.parametrize(
    ("processes", "workers", "key"),
    [(2, 0, "launch.num_processes=2"), (1, 0, None), (1, 3, "trainer.args.dataloader_num_workers=3")],
)
def test_a_full_shared_memory_is_named(
    processes: int, workers: int, key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: Any = SimpleNamespace(
        launch=SimpleNamespace(num_processes=processes),
        trainer=SimpleNamespace(args={"dataloader_num_workers": workers}),
    )
    assert check_semaphores(config) == []

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("_multiprocessing.SemLock", full)
    wanted = f"{key} needs /dev/shm: No space left on device; free some space there (in a container: --shm-size=1g)"
    assert check_semaphores(config) == ([wanted] if key else [])


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&- <&-"])
def test_closed_streams_end_no_command(closed: str, tmp_path: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m hfexp version > /dev/null {closed}"
    assert subprocess.run(["bash", "-c", command], cwd=tmp_path).returncode == 0


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m hfexp --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode in (0, 141)
    assert done.stderr == ""


def test_a_directory_that_is_gone_is_named(tmp_path: Path) -> None:
    place = tmp_path / "gone"
    place.mkdir()
    command = f"rmdir {place}; {shlex.quote(sys.executable)} -m hfexp version"
    done = subprocess.run(["bash", "-c", command], cwd=place, capture_output=True, text=True)
    assert done.returncode == 2
    assert "has been removed" in done.stderr
    assert "Traceback" not in done.stderr


def test_processes_of_one_machine_meet_on_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "eth0")
    monkeypatch.setenv(world.RENDEZVOUS, "")
    world.stay_on_this_machine(tmp_path)
    assert {os.environ[name] for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")} == {"lo"}


def test_a_broken_pipe_that_is_not_the_readers_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lose_the_database(words: list[str]) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setitem(cli.COMMANDS, "version", lose_the_database)
    assert cli.main(["version"]) == 1
    assert "hfexp: error: BrokenPipeError" in capsys.readouterr().err
