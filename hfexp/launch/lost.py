"""Find out which process or machine of a joined run is gone, when the others notice that somebody is.

A process that fails says so in the store of the process group before it ends. Who is gone can't: a process that was
killed, or those of a machine that was switched off or cut off.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

from hfexp.core.errors import ConfigError, RunError, Terminated
from hfexp.core.secrets import mask_secrets
from hfexp.launch import world
from hfexp.launch.workers import NEIGHBOUR_GONE, WorkerError, WorkerKilledError

KEY = "hfexp/ended"
SECONDS = 5
"""Seconds for which a process waits to hear how the others have ended."""


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn a failed exchange with the others into an error that names the process or machine that caused it.

    Do nothing in processes that this machine's own command watches.

    Raises:
        WorkerKilledError: a process or machine is gone without a word.
        WorkerError: another process has failed; ConfigError and Terminated keep their type.
    """
    try:
        yield
    except WorkerError:
        raise  # explained already
    except BaseException as error:
        if not world.is_joined():
            raise
        if not _is_consequence(error):
            _tell(error)
            raise
        cause = _ask()
        if cause is None:
            raise
        raise cause from error


def _is_consequence(error: BaseException) -> bool:
    """Tell whether the error may only mean that another process is gone."""
    from torch.distributed import DistError

    unexplained = isinstance(error, RuntimeError) and not isinstance(error, RunError)
    return isinstance(error, DistError) or unexplained and any(text in str(error) for text in NEIGHBOUR_GONE)


def _tell(error: BaseException) -> None:
    """Leave word of the error that ends this process; whoever looks for it may find the store gone."""
    code = error.code if isinstance(error, SystemExit) else None
    content = json.dumps([type(error).__name__, mask_secrets(str(error)), code])
    with contextlib.suppress(RuntimeError, TimeoutError):
        world.within(SECONDS, world.store().set, f"{KEY}/{world.rank()}", content)


def _ask() -> BaseException | None:
    """Return the error that explains the failure of this process, or None if all have failed by each other's ends."""
    try:
        words = world.within(2 * SECONDS, _words)
    except (RuntimeError, TimeoutError):  # the store, which the first machine or process serves, is gone
        first = world.machine_of(0)
        return WorkerKilledError(f"the first machine, {first}, is gone: it was stopped, killed or cut off")
    for rank, word in sorted(words.items()):
        if word is not None:
            return _error(rank, *word)
    silent = [rank for rank in range(world.size()) if rank not in words]
    return WorkerKilledError(_describe(silent)) if silent else None


def _words() -> dict[int, Any]:
    """Return what the processes have said by rank, after as long as it takes to hear of all, or `SECONDS`."""
    store, ranks = world.store(), range(world.size())
    store.set(f"{KEY}/{world.rank()}", json.dumps(None))
    deadline = time.monotonic() + SECONDS
    words: dict[int, Any] = {}
    while len(words) < len(ranks) and time.monotonic() < deadline:
        time.sleep(0.1)
        for rank in ranks:
            if rank not in words and store.check([f"{KEY}/{rank}"]):
                words[rank] = json.loads(store.get(f"{KEY}/{rank}"))
    return words


def _error(rank: int, kind: str, message: str, code: Any) -> BaseException:
    if kind == ConfigError.__name__:
        return ConfigError(message)
    if kind == Terminated.__name__:
        return Terminated.with_code(code)
    return WorkerError(f"process {rank} of {world.size()} on {world.machine_of(rank)}: {kind}: {message}")


def _describe(silent: list[int]) -> str:
    """Say which machines, or which processes of a machine, have ended without a word."""
    gone = dict.fromkeys(world.machine_of(rank) for rank in silent)
    parts = []
    for machine in gone:
        ranks = [rank for rank in range(world.size()) if world.machine_of(rank) == machine]
        lost = [str(rank) for rank in ranks if rank in silent]
        processes = f"process{'es' if len(lost) > 1 else ''} {', '.join(lost)} of {world.size()}"
        parts.append(f"machine {machine}" if len(lost) == len(ranks) else f"{processes} on {machine}")
    verb = "is" if len(parts) == 1 else "are"
    return f"{' and '.join(parts)} {verb} gone without a word: killed, crashed, switched off or cut off"
