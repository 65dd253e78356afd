"""Threads that decode and resize images side by side: decoders and torch leave Python's lock while they do."""

import ctypes
import functools
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import get_worker_info

from hfexp.config import LaunchConfig
from hfexp.machine import cpus

Given = TypeVar("Given")
Made = TypeVar("Made")
SHARES = 2
"""Parts of a batch for each thread: the thread that is done first has more to do, and few have to be woken."""
_pools: dict[int, ThreadPoolExecutor] = {}
"""By process: threads do not survive a fork."""


def map_in_threads(function: Callable[[Given], Made], items: Iterable[Given]) -> Iterator[Made]:
    """Results in the order of the items, of which only a few are in work at once.

    In a data loader's worker, one of many processes, everything is done in the calling thread.
    """
    workers = _workers()
    if workers == 1:
        yield from map(function, items)
        return
    pool = _pool(workers)
    waiting: deque[Future[Made]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def map_batch_in_threads(function: Callable[[Given], Made], items: Sequence[Given]) -> list[Made]:
    """Results in the order of the items, which threads take by parts: to be woken for each would take longer."""
    size = max(1, -(-len(items) // (SHARES * _workers())))
    parts = (items[start : start + size] for start in range(0, len(items), size))
    return list(itertools.chain.from_iterable(map_in_threads(lambda part: [function(item) for item in part], parts)))


def _workers() -> int:
    return _processors(os.getpid()) if get_worker_info() is None else 1


@functools.cache
def _processors(process: int) -> int:
    """Looked up once: it takes as long as a small image."""
    return cpus()


def _pool(workers: int) -> ThreadPoolExecutor:
    """The threads of this process; torch computes with one thread inside each of them, and with all elsewhere."""
    if os.getpid() not in _pools:
        before = torch.get_num_threads()
        pool = ThreadPoolExecutor(workers, "decode", _compute_alone)
        # torch's own setting counts for the thread that makes it and for those that begin later: let all begin now.
        together = threading.Barrier(workers)
        list(pool.map(lambda _: together.wait(), range(workers)))
        if _set_threads_here() is None:
            torch.set_num_threads(before)
        _pools[os.getpid()] = pool
    return _pools[os.getpid()]


def _compute_alone() -> None:
    """Let torch compute with this thread alone.

    `torch.set_num_threads` is for the whole process: each thread that uses torch from then on, OpenMP's too, tells MKL
    to always take so many (`mkl_set_dynamic(false)` in `aten/src/ATen/ParallelOpenMP.cpp`), also where the threads of
    an operation call it, as in attention. OpenMP gives it only one there, but asking takes time at each of thousands
    of products: 2.7 % of a small ViT's step.
    """
    torch.get_num_threads()  # a thread takes the process's number when it first asks; after that it keeps its own
    (_set_threads_here() or torch.set_num_threads)(1)


@functools.cache
def _set_threads_here() -> Callable[[int], object] | None:
    """OpenMP's `omp_set_num_threads`, which is for the calling thread, from the library that torch computes with."""
    try:
        return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).omp_set_num_threads
    except (OSError, AttributeError):
        return None


def use_threads(launch: LaunchConfig) -> None:
    """Let torch compute with `launch.num_threads` threads in this process, or with its share of the processors.

    Torch by itself counts the processors of the machine, not those that a container may use; and it reads
    `OMP_NUM_THREADS` only when it is imported, which for a job forked from a warm server was before its time.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", launch.num_processes))
    shared = max(1, cpus() // here)
    named = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # a list: of nested regions
    given = int(named) if named.isdigit() else 0
    wanted = launch.num_threads or (given if given and here == 1 else min(shared, given or torch.get_num_threads()))
    if wanted != torch.get_num_threads():
        torch.set_num_threads(wanted)
    if here > 1:
        os.environ["OMP_NUM_THREADS"] = str(wanted)  # Accelerate would choose for itself


def rows_of(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Columns of one length as rows."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
