"""Threads that decode and resize images side by side: PIL and torch leave Python's lock while they do."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch.utils.data import get_worker_info

from hfexp.machine import cpus

Given = TypeVar("Given")
Made = TypeVar("Made")
_pools: dict[int, ThreadPoolExecutor] = {}
"""By process: threads do not survive a fork."""


def map_in_threads(function: Callable[[Given], Made], items: Iterable[Given]) -> Iterator[Made]:
    """Results in the order of the items, of which only a few are in work at once.

    In a data loader's worker, one of many processes, everything is done in the calling thread.
    """
    workers = cpus() if get_worker_info() is None else 1
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


def _pool(workers: int) -> ThreadPoolExecutor:
    """The threads of this process; torch computes with one thread inside each of them, and with all elsewhere."""
    if os.getpid() not in _pools:
        before = torch.get_num_threads()
        pool = ThreadPoolExecutor(workers, "decode", torch.set_num_threads, (1,))
        # torch's setting counts for the thread that makes it and for those that begin later: let all begin now.
        together = threading.Barrier(workers)
        list(pool.map(lambda _: together.wait(), range(workers)))
        torch.set_num_threads(before)
        _pools[os.getpid()] = pool
    return _pools[os.getpid()]


def limit_torch() -> None:
    """Torch counts the processors of the machine, not those that a container may use; more threads only wait."""
    if cpus() < torch.get_num_threads() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(cpus())


def rows_of(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Columns of one length as rows."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
