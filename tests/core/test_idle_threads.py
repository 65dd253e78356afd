"""Threads that have nothing to do: asleep soon, and at once in all runs but one on the same processors."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from hfexp.commands.api import compose
from hfexp.core import machine
from hfexp.core.machine import let_idle_threads_sleep, let_idle_threads_sleep_if_unloaded, processors_shared

PIPE = subprocess.PIPE
FIRST = """
import os, torch
from hfexp.core.machine import processors_shared
torch.set_num_threads(2)
with processors_shared(use_cpu=True):
    print("begun", flush=True)
    os.read(0, 1)
"""
TEAM = """
import os, time, torch
from hfexp.core.machine import processors_shared
threads = lambda: len(os.listdir("/proc/self/task"))
torch.set_num_threads(2)
torch.ones(2**20).add_(1)
before, tries = threads(), 3000
with processors_shared(use_cpu=True):
    while threads() < before + 2 and (tries := tries - 1):  # Python's, and the one that it computes with
        time.sleep(0.01)
    print(threads() - before, torch.get_num_threads())
"""
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are told so on Linux only")


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock of its own, and two threads wherever the tests run."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(machine, "INTERVAL", 0.01)
    return tmp_path


def is_crowded() -> bool:
    """Whether this process has more threads than there are processors, to let them sleep at once."""
    return any(thread.name == "hfexp-crowd" for thread in threading.enumerate())


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def another_run() -> Iterator[subprocess.Popen[bytes]]:
    """A process that trains, the first one here."""
    with subprocess.Popen([sys.executable, "-c", FIRST], stdin=PIPE, stdout=PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        yield process
        process.kill()


@pytest.mark.parametrize("own", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "passive"}])
def test_idle_threads_sleep_unless_the_user_says_how_they_wait(
    own: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is taken back, whoever sets it
        monkeypatch.delenv(name)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    let_idle_threads_sleep()
    assert {name: os.environ[name] for name in names if name in os.environ} == (own or {"GOMP_SPINCOUNT": "10000"})


@pytest.mark.parametrize(
    ("words", "spins"),
    [
        ([], "100000"),
        (["transform.cache.enabled=false"], "10000"),
        (["dataset.streaming=true"], "10000"),
    ],
)
def test_they_look_for_longer_where_nothing_is_decoded_meanwhile(
    words: list[str], spins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "10000")  # as the command has set it at its beginning
    config = compose("experiment=digits_vit", *words)
    let_idle_threads_sleep_if_unloaded(config.decodes_while_training)
    assert os.environ["GOMP_SPINCOUNT"] == "10000", "torch is loaded, and has read it"
    monkeypatch.delitem(sys.modules, "torch")
    let_idle_threads_sleep_if_unloaded(config.decodes_while_training)
    assert os.environ["GOMP_SPINCOUNT"] == spins


@linux_only
def test_beside_another_run_they_sleep_at_once_until_that_has_ended() -> None:
    with processors_shared(use_cpu=True):
        assert not is_crowded()
    with another_run() as other, processors_shared(use_cpu=True):
        assert is_crowded()
        other.kill()  # no run can end in a worse way
        wait_until(lambda: not is_crowded())
        with processors_shared(use_cpu=True):  # for this one is the first now
            assert is_crowded()
        assert not is_crowded()


@linux_only
def test_what_the_user_has_set_stays_beside_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    with another_run(), processors_shared(use_cpu=True):
        assert not is_crowded()


@linux_only
def test_a_run_that_ends_beside_another_leaves_nothing() -> None:
    with another_run():
        with pytest.raises(KeyboardInterrupt), processors_shared(use_cpu=True):
            raise KeyboardInterrupt
        assert not is_crowded()


@linux_only
def test_the_crowd_is_threads_of_openmp_and_changes_no_number_of_threads() -> None:
    with another_run():
        found = subprocess.run([sys.executable, "-c", TEAM], stdout=PIPE, check=True, text=True).stdout.split()
    assert found == ["2", "2"]


def test_where_there_is_nothing_to_share_nobody_is_told(own_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with processors_shared():
        assert not list(own_place.iterdir())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with processors_shared(use_cpu=True):
        assert not list(own_place.iterdir())


def test_where_nobody_can_be_told_it_goes_on(own_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(own_place / "missing"))
    with processors_shared(use_cpu=True), processors_shared(use_cpu=True):
        assert not is_crowded()
