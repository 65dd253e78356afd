"""Threads that decode and resize images in parallel: decoders and torch release the GIL while they work."""

import contextlib
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

from hfexp.core.config import LaunchConfig
from hfexp.core.machine import cpus

Given = TypeVar("Given")
Made = TypeVar("Made")
SHARES = 2
"""Parts of a batch per thread: a thread that is done early takes another part, and few wake-ups are needed."""
_pools: dict[int, ThreadPoolExecutor] = {}
"""Thread pools by process id: threads do not survive a fork."""


def map_in_threads(function: Callable[[Given], Made], items: Iterable[Given]) -> Iterator[Made]:
    """Yield results in the order of the items, with only a few items in progress at once.

    A data loader worker, as one of many processes, does everything in the calling thread.
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
    """Return results in the order of the items; threads take several at once, as a wake-up for each costs more."""
    size = max(1, -(-len(items) // (SHARES * _workers())))
    parts = (items[start : start + size] for start in range(0, len(items), size))
    return list(itertools.chain.from_iterable(map_in_threads(lambda part: [function(item) for item in part], parts)))


def _workers() -> int:
    return _processors(os.getpid()) if get_worker_info() is None else 1


@functools.cache
def _processors(process: int) -> int:
    """Return the number of usable processors, cached: looking it up takes as long as processing a small image."""
    return cpus()


def _pool(workers: int) -> ThreadPoolExecutor:
    """Return the thread pool of this process; torch uses one thread inside each pool thread, and all elsewhere."""
    if os.getpid() not in _pools:
        before = torch.get_num_threads()
        pool = ThreadPoolExecutor(workers, "decode", _compute_alone)
        # torch's own setting affects the thread that makes it and threads that start later: start all of them now.
        together = threading.Barrier(workers)
        list(pool.map(lambda _: together.wait(), range(workers)))
        if _set_threads_here() is None:
            torch.set_num_threads(before)
        _pools[os.getpid()] = pool
    return _pools[os.getpid()]


def _compute_alone() -> None:
    """Let torch use only the calling thread for what this thread computes.

    `torch.set_num_threads` affects the whole process: each thread that uses torch from then on, OpenMP's too, tells
    MKL to always use that many threads (`mkl_set_dynamic(false)` in `aten/src/ATen/ParallelOpenMP.cpp`), even where
    the threads of an operation call MKL, as in attention. OpenMP grants only one there, but asking costs time at each
    of thousands of products: 2.7 % of a small ViT's step.
    """
    torch.get_num_threads()  # a thread copies the process's number when it first asks, then keeps its own
    (_set_threads_here() or torch.set_num_threads)(1)


@functools.cache
def _set_threads_here() -> Callable[[int], object] | None:
    """Return OpenMP's `omp_set_num_threads` from torch's own library, or None; it affects only the calling thread."""
    try:
        return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).omp_set_num_threads
    except (OSError, AttributeError):
        return None


@contextlib.contextmanager
def threads_given_back() -> Iterator[None]:
    """Undo at the end of such a block what `use_threads` has set in it."""
    threads, named = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    try:
        yield
    finally:
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        if named is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:
            os.environ["OMP_NUM_THREADS"] = named


def use_threads(launch: LaunchConfig) -> None:
    """Let torch compute with `launch.num_threads` threads in this process, or with its share of the processors.

    Torch by itself counts the processors of the machine, not those that a container may use. It reads
    `OMP_NUM_THREADS` only when it is imported, and the warm server did that before it forked this job.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", launch.num_processes))
    shared = max(1, cpus() // here)
    named = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # may be a list, for nested regions
    given = int(named) if named.isdigit() else 0
    wanted = launch.num_threads or (given if given and here == 1 else min(shared, given or torch.get_num_threads()))
    if wanted != torch.get_num_threads():
        torch.set_num_threads(wanted)
    if here > 1:
        os.environ["OMP_NUM_THREADS"] = str(wanted)  # else Accelerate chooses a number


def rows_of(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Turn columns of equal length into rows."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
