"""Threads beside those of torch: in order, and one at a time."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hfexp import train
from hfexp.core.config import LaunchConfig
from hfexp.data import threads
from hfexp.experiment import run as runs


@pytest.fixture
def two_processors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that may use two, with threads that have yet to be started."""
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "_pools", {})
    monkeypatch.setattr(threads, "_processors", lambda process: 2)
    torch.set_num_threads(2)
    try:
        yield
    finally:
        for pool in threads._pools.values():
            pool.shutdown()
        torch.set_num_threads(before)


@pytest.mark.usefixtures("two_processors")
@pytest.mark.parametrize("with_openmp", [True, False])
def test_torch_computes_with_one_thread_beside_others_and_with_all_elsewhere(
    with_openmp: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_openmp:
        monkeypatch.setattr(threads, "_set_threads_here", lambda: None)

    def computed(number: int) -> int:
        torch.rand(200, 200).exp()
        return torch.get_num_threads()

    assert set(threads.map_in_threads(computed, range(20))) == {1}
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_processors")
@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 17])
def test_a_batch_comes_back_whole_and_in_order(count: int) -> None:
    assert threads.map_batch_in_threads(str, list(range(count))) == [str(number) for number in range(count)]


@pytest.mark.usefixtures("two_processors")
def test_the_first_bad_item_of_a_batch_is_named() -> None:
    def refuse(number: int) -> int:
        if number in (3, 9):
            raise ValueError(f"no {number}")
        return number

    with pytest.raises(ValueError, match="no 3"):
        threads.map_batch_in_threads(refuse, list(range(16)))


ASK_MKL = """
import ctypes, pathlib, torch
from hfexp.data import threads
library = pathlib.Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
mkl = ctypes.CDLL(str(library)) if library.exists() else None  # which other systems name otherwise
if hasattr(mkl, "mkl_serv_get_dynamic"):
    threads._processors = lambda process: 2
    before = mkl.mkl_serv_get_dynamic()
    threads.map_batch_in_threads(torch.exp, list(torch.rand(8, 1000)))
    torch.rand(2000, 200) @ torch.rand(200, 200)
    print(before, mkl.mkl_serv_get_dynamic())
"""


def test_mkl_still_decides_how_many_threads_it_takes() -> None:
    found = subprocess.run([sys.executable, "-c", ASK_MKL], capture_output=True, check=True, text=True).stdout.split()
    if not found:
        pytest.skip("this torch is without MKL")
    assert found == ["1", "1"]


def test_a_run_in_a_notebook_leaves_the_number_of_threads_as_it_was(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(runs, "record", lambda *_: seen.append(torch.get_num_threads()))
    monkeypatch.setattr(runs, "show_result", lambda result: None)
    torch.set_num_threads(2)
    try:
        train("launch.num_threads=1")
        assert (seen, torch.get_num_threads()) == ([1], 2)
        with threads.threads_given_back():
            threads.use_threads(LaunchConfig(num_threads=1, num_processes="2"))
            assert (os.environ["OMP_NUM_THREADS"], torch.get_num_threads()) == ("1", 1)
        assert torch.get_num_threads() == 2
        assert "OMP_NUM_THREADS" not in os.environ
    finally:
        torch.set_num_threads(before)
