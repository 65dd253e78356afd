"""SIGHUP is a SIGTERM: a closed terminal leaves a checkpoint and a run that is KILLED; `nohup` is respected."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL_DIGITS, TESTS
from faults import fault_at, hold_at

from hfexp.core.errors import Terminated
from hfexp.core.process import handled, noted, stop_raises, uninterrupted

REASON = "stopped by SIGHUP (hangup: its terminal was closed)"
LONG = [*SMALL_DIGITS, "trainer.args.num_train_epochs=3"]


@pytest.fixture
def hangups() -> Any:
    """SIGHUP as a shell leaves it, whatever these tests were started by."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def run(words: list[str], place: Path) -> tuple[int, str]:
    """A command in a process of its own: exit code and output."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-m", "hfexp", *words], cwd=place, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=240, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.usefixtures("hangups")
def test_a_hangup_counts_once_and_waits_for_the_end_of_a_run() -> None:
    done: list[str] = []

    def close() -> None:
        with stop_raises(), uninterrupted():
            os.kill(os.getpid(), signal.SIGHUP)
            done.append("closed")

    with pytest.raises(Terminated) as stopped:
        close()
    assert done == ["closed"]
    assert (stopped.value.code, stopped.value.reason) == (129, REASON)
    os.kill(os.getpid(), signal.SIGHUP)  # the shell sends another one: this process would end by it
    with noted() as arrived:
        os.kill(os.getpid(), signal.SIGTERM)
    assert arrived == [signal.SIGTERM]


@pytest.mark.usefixtures("hangups")
def test_under_nohup_a_hangup_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    heard: list[int] = []
    with handled(lambda number, frame: heard.append(number)), stop_raises():
        os.kill(os.getpid(), signal.SIGHUP)
    assert heard == []
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.slow
@pytest.mark.usefixtures("hangups")
def test_a_hangup_in_training_writes_a_checkpoint(place: Path, all_runs: Callable[[], list[Any]]) -> None:
    words = [*LONG, *fault_at(5)]
    (place / "fault").write_text("SIGHUP")
    code, output = run(words, place)
    assert code == 129, output
    assert "Traceback" not in output
    (killed,) = all_runs()
    assert (killed.info.status, killed.data.tags["hfexp.status_reason"]) == ("KILLED", REASON)
    assert len(list(place.glob("outputs/digits/*/checkpoints/checkpoint-5"))) == 1
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` starts it
    (place / "fault").write_text("SIGHUP")
    code, output = run([*words, "output_dir=second"], place)
    assert code == 0, output


@pytest.mark.slow
@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize("more", [[], ["launch=ddp", "launch.num_processes=2", "trainer.args.use_cpu=true"]])
def test_a_terminal_that_closes_ends_no_run_badly(
    more: list[str], place: Path, all_runs: Callable[[], list[Any]]
) -> None:
    endless = [*SMALL_DIGITS, "trainer.args.num_train_epochs=3000", *more]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "hfexp", *endless])
    deadline = time.monotonic() + 200
    while not list(place.glob("outputs/digits/*/checkpoints/checkpoint-*")) and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            os.read(terminal, 1 << 16)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 129
    (killed,) = all_runs()
    assert (killed.info.status, killed.data.tags["hfexp.status_reason"]) == ("KILLED", REASON)


@pytest.mark.slow
@pytest.mark.usefixtures("hangups")
def test_a_hangup_of_a_sweep_stops_its_jobs(place: Path, all_runs: Callable[[], list[Any]]) -> None:
    words = ["-m", *LONG, "seed=1,2", "hydra.launcher.n_jobs=2", *hold_at(4)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen([sys.executable, "-m", "hfexp", *words], cwd=place, env=environment)
    deadline = time.monotonic() + 200
    while len(list(place.glob("held-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    for _ in range(2):
        process.send_signal(signal.SIGHUP)
        time.sleep(0.1)
    assert process.wait(60) == 129
    assert [found.info.status for found in all_runs()] == ["KILLED"] * 3  # the sweep's own among them
    assert len(list(place.glob("outputs/digits/*/checkpoints/checkpoint-4"))) == 2


def test_an_error_does_not_swallow_a_delayed_signal() -> None:
    def fail() -> None:
        signal.raise_signal(signal.SIGINT)
        raise ValueError

    with pytest.raises(KeyboardInterrupt), uninterrupted():
        fail()
