"""Process pool of the local launcher: one job per slot at a time, and no process left behind."""

import contextlib
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

from hfexp.core.console import note
from hfexp.core.errors import RunError
from hfexp.core.process import how_it_ended
from hfexp.core.signals import noted, stop_raises
from hfexp.launch import forkserver, jobs
from hfexp.launch.board import Board
from hfexp.launch.jobs import Order
from hfexp.launch.reports import Progress
from hfexp.launch.slots import Slot

SERVER_ENDED = "the process that jobs are forked from has ended; what it said is above"


@dataclass
class Running:
    """A job whose process is running or about to start."""

    order: Order
    slot: Slot
    process: ForkServerProcess
    reader: Connection
    began: float = field(default_factory=time.monotonic)
    result: Any = None

    def receive(self) -> Progress | None:
        """Read the job's next message: return a progress report, or store a result and return None."""
        import cloudpickle

        try:
            message = cloudpickle.loads(self.reader.recv_bytes())
        except (EOFError, OSError):  # the job has closed its end
            self.reader.close()
            return None
        except Exception as error:
            message = jobs.failure(self.order.overrides, RunError(f"the job's result can't be read: {error}"))
        if isinstance(message, Progress):
            return message
        self.result = message
        return None

    def kill(self) -> None:
        """Kill the job and everything that it started."""
        if self.process.is_alive():
            self.process.kill()
        self.kill_group()

    def kill_group(self) -> None:
        """Kill the processes that the job started and left running."""
        if self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill what the job left running, wait for its process to end, and release its resources."""
        self.kill_group()
        self.reader.close()
        if self.process.pid is not None:
            self.process.join()
        self.process.close()


class Pool:
    """Runs jobs, each in a slot of its own."""

    def __init__(self, slots: Sequence[Slot], board: Board, grace: float) -> None:
        self.board = board
        self.grace = grace
        self._free = deque(slots)
        self._running: list[Running] = []
        self._ended: Callable[[Order, Any], None] = lambda order, result: None

    def run(self, orders: Sequence[Callable[[Slot], Order]]) -> list[Any]:
        """Run all jobs and return Hydra's `JobReturn` of each, in order; a failed job does not stop the others.

        On Ctrl-C, SIGTERM or SIGHUP every job gets SIGTERM and `grace` seconds to exit; then the signal's exception
        is raised.
        """
        waiting, results = deque(orders), {}
        self.serve(
            lambda: waiting.popleft() if waiting else None,
            lambda order, result: results.update({order.number: result}),
        )
        return [results[number] for number in sorted(results)]

    def serve(
        self, next_order: Callable[[], Callable[[Slot], Order] | None], ended: Callable[[Order, Any], None]
    ) -> None:
        """Run jobs until there are no more, asking for the next one as soon as a slot is free.

        Args:
            next_order: returns the next job; None if there is none, or none until a running job ends.
            ended: called with each job and Hydra's `JobReturn` of it as soon as the job ends.
        """
        self._ended = ended
        with stop_raises():
            try:
                while True:
                    while self._free and (order := next_order()) is not None:
                        slot = self._free.popleft()
                        self._start(order(slot), slot)
                    if not self._running:
                        break
                    self._wait()
            except BaseException as error:
                # A signal may have interrupted `process.start()`. Its frames then hold the pipe ends of a job that no
                # `Running` can stop; clearing them closes these, and the job exits as an orphan.
                traceback.clear_frames(error.__traceback__)
                self._stop()
                raise
            finally:
                self.board.close()

    def _start(self, order: Order, slot: Slot) -> None:
        context = forkserver.context()
        reader, writer = context.Pipe(duplex=False)
        with writer:
            process = context.Process(target=jobs.main, args=(order, writer), name=f"job {order.name}")
            # Listed before it starts, so that a signal in between does not lose the job.
            self._running.append(Running(order, slot, process, reader))
            try:
                with forkserver.hidden_main():
                    process.start()
            except (EOFError, ConnectionError) as error:
                raise RunError(f"{SERVER_ENDED} (hydra/launcher=basic runs jobs without it)") from error
        self.board.started(order)

    def _wait(self) -> None:
        """Wait for messages and ended jobs, up to the board's refresh interval, and handle them."""
        readers = {running.reader: running for running in self._running if not running.reader.closed}
        ends = {running.process.sentinel: running for running in self._running}
        ready = connection.wait([*readers, *ends], self.board.interval)
        for found in ready:
            if isinstance(found, Connection):
                self._receive(readers[found])
        for found in ready:
            if isinstance(found, int):
                self._end(ends[found])
        self.board.refresh()

    def _receive(self, running: Running) -> None:
        progress = running.receive()
        if progress is not None:
            self.board.progressed(running.order, progress)

    def _end(self, running: Running) -> None:
        running.kill_group()
        while not running.reader.closed and running.reader.poll():
            self._receive(running)
        running.process.join()
        result = running.result
        if result is None and forkserver.has_ended():  # not the job's fault: the next start continues it
            raise RunError(f"{SERVER_ENDED}; the same command continues")
        if result is None:
            result = jobs.failure(
                running.order.overrides, RunError(f"the job's process {how_it_ended(running.process.exitcode)}")
            )
        running.close()
        self._running.remove(running)
        self._free.append(running.slot)
        self.board.ended(running.order, result, time.monotonic() - running.began)
        self._ended(running.order, result)

    def _stop(self) -> None:
        """Terminate all jobs in start order, and kill them after `grace` seconds or on a further signal."""
        with noted() as signals:
            alive = [running for running in self._running if running.process.is_alive()]
            if alive:
                note(f"stopping, in at most {self.grace:g} s (again: at once); jobs that run: {len(alive)}")
            for running in alive:
                running.process.terminate()
            deadline = time.monotonic() + self.grace
            while alive := [running for running in alive if running.process.is_alive()]:
                # A closing terminal sends several SIGHUPs, and none is urgent: only other signals end the wait.
                if set(signals) - {signal.SIGHUP} or time.monotonic() > deadline:
                    for running in alive:
                        running.kill()
                readers = [running.reader for running in alive if not running.reader.closed]
                for found in connection.wait([*readers, *(running.process.sentinel for running in alive)], 0.1):
                    self._discard(found)
            for running in self._running:
                running.close()
            self._running.clear()

    def _discard(self, found: Any) -> None:
        """Drain what a job still sends, as it would block on a full pipe."""
        if isinstance(found, Connection) and not os.read(found.fileno(), 1 << 16):
            found.close()
