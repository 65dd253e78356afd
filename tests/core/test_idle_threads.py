"""Threads that have nothing to do: asleep soon, and at once beside other programs on the same processors."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hfexp.commands.api import compose
from hfexp.core import machine
from hfexp.core.machine import let_idle_threads_sleep, let_idle_threads_sleep_if_unloaded, processors_shared

BUSY = """
import os, time, torch
from hfexp.core.machine import processors_shared
threads = lambda: len(os.listdir("/proc/self/task"))
torch.set_num_threads(2)
ones = torch.ones(2**20)
ones.add_(1)
before, deadline = threads(), time.monotonic() + 60
with processors_shared(use_cpu=True):
    while threads() < before + 3 and time.monotonic() < deadline:  # the watcher, the crowd, and its OpenMP thread
        ones.add_(1)
    print(threads() - before, torch.get_num_threads())
while threads() > before and time.monotonic() < deadline:  # OpenMP's thread ends after the one that it belongs to
    time.sleep(0.01)
print(threads() - before)
"""
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are told so on Linux only")


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads wherever the tests run, and nothing that the user has set."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(machine, "INTERVAL", 0.01)


class Others:
    """Take processors from this process's second thread, as far as it can see."""

    def __init__(self) -> None:
        self.waited, self.busy = 0.0, False

    def count(self) -> dict[str, float]:
        self.waited += 1.0 if self.busy else 0.0
        return {"1": 0.0, "2": self.waited}


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Others:
    others = Others()
    monkeypatch.setattr(machine, "_waited", others.count)
    return others


def is_crowded() -> bool:
    """Whether this process has more threads than there are processors, to let them sleep at once."""
    return any(thread.name == "hfexp-crowd" for thread in threading.enumerate())


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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
def test_a_single_look_changes_nothing(others: Others, monkeypatch: pytest.MonkeyPatch) -> None:
    crowds: list[str] = []
    monkeypatch.setattr(machine, "_crowd", lambda: crowds.append("came") or (lambda: crowds.append("went")))
    looks = iter([0, 1, 1, 2, 2, 3, 4, 4, 5, 5, 5])  # seconds waited: long in the looks 1, 3, 5 and 6, 8
    ended = threading.Event()

    def look() -> dict[str, float]:
        waited = next(looks, None)
        if waited is None:
            ended.set()
        return {"1": waited if waited is not None else 5}

    monkeypatch.setattr(machine, "_waited", look)
    machine._watch(ended)
    assert crowds == ["came", "went"]  # after 5 and 6; after the two at the end


@linux_only
def test_beside_other_programs_they_sleep_at_once_until_those_have_ended(others: Others) -> None:
    with processors_shared(use_cpu=True):
        time.sleep(0.1)
        assert not is_crowded()
        others.busy = True
        wait_until(is_crowded)
        others.busy = False
        wait_until(lambda: not is_crowded())
        others.busy = True
        wait_until(is_crowded)
    assert not is_crowded()


@linux_only
def test_what_the_user_has_set_stays_beside_other_programs(others: Others, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    others.busy = True
    with processors_shared(use_cpu=True):
        assert {thread.name for thread in threading.enumerate()}.isdisjoint({"hfexp-processors", "hfexp-crowd"})


@linux_only
def test_a_run_that_ends_beside_others_leaves_nothing(others: Others) -> None:
    others.busy = True
    with contextlib.suppress(KeyboardInterrupt), processors_shared(use_cpu=True):
        wait_until(is_crowded)
        raise KeyboardInterrupt
    assert {thread.name for thread in threading.enumerate()}.isdisjoint({"hfexp-processors", "hfexp-crowd"})


def test_where_waiting_is_not_counted_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for task, text in {"1": "100 2500000000 3\n", "2": "", "3": "0\n", "4": "none here\n"}.items():
        (tmp_path / task).mkdir()
        (tmp_path / task / "schedstat").write_text(text)
    (tmp_path / "5").mkdir()  # has ended
    monkeypatch.setattr(machine, "TASKS", tmp_path)
    assert machine._waited() == {"1": 2.5}


@linux_only
def test_busy_programs_are_noticed_and_no_number_of_threads_changes() -> None:
    """The crowd is threads of OpenMP."""
    command = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in os.sched_getaffinity(0)]
    try:
        found = subprocess.run([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, check=True, text=True).stdout
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert found.split() == ["3", "2", "0"]


@pytest.mark.parametrize(
    ("accelerator", "threads", "is_linux"), [(True, 2, True), (False, 1, True), (False, 2, False)]
)
def test_where_there_is_nothing_to_share_nothing_is_watched(
    accelerator: bool, threads: int, is_linux: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    if not is_linux:
        monkeypatch.setattr(machine, "TASKS", tmp_path / "missing")
    with processors_shared():
        assert "hfexp-processors" not in {thread.name for thread in threading.enumerate()}
