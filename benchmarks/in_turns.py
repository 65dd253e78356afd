"""Processes that compute in turns of a second or so, while all others stand still.

A machine that is shared gets slower and faster by the minute: what is compared has to run within the same seconds.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from benchmarks.harness import ROOT

VARIABLE = "BENCHMARK_TURNS"
"""For a process that is to take turns: the descriptors that it writes to and reads from, the length of a turn, and how
many processes there are."""


class Turns:
    """In a process: after so many steps it waits to be told to go on."""

    def __init__(self) -> None:
        self._to, self._from, self.steps, self.processes = (int(word) for word in os.environ[VARIABLE].split())
        self._done = 0

    def step_ended(self) -> float:
        """Returns the seconds for which others had their turn."""
        self._done += 1
        if self._done % self.steps:
            return 0.0
        start = time.perf_counter()
        os.write(self._to, b".")
        os.read(self._from, 1)
        return time.perf_counter() - start

    def slow_clock(self) -> str:
        """Make hfexp do as much less often what it does by the clock, which goes on while others have their turn.

        Returns:
            A word for its command line, which does so for what is measured of the machine.
        """
        from hfexp.core.config import TrackingConfig
        from hfexp.tracking import delivery

        delivery.INTERVAL *= self.processes
        delivery.LONGEST_PAUSE *= self.processes
        delivery.LARGEST_SHARE /= self.processes
        interval = TrackingConfig().system_metrics_interval or 0.0
        return f"tracking.system_metrics_interval={interval * self.processes}"


@dataclass
class _Process:
    """One that takes turns."""

    name: str
    process: subprocess.Popen[str]
    errors: IO[bytes]
    told: int
    """Where it says that its turn is over."""
    tells: int
    """Where it is told to go on."""

    def take_turn(self) -> bool:
        """Let it and all that it started go on until it has had its turn; False: it has ended."""
        with contextlib.suppress(BrokenPipeError):  # it has ended with an error
            os.write(self.tells, b".")
        os.killpg(self.process.pid, signal.SIGCONT)
        goes_on = bool(os.read(self.told, 1))
        if goes_on:
            os.killpg(self.process.pid, signal.SIGSTOP)
        return goes_on

    def result(self) -> Any:
        """The last line that it printed, as JSON; raises RuntimeError if it failed."""
        assert self.process.stdout is not None
        out = self.process.stdout.read()
        if self.process.wait():
            self.errors.seek(0)
            raise RuntimeError(f"{self.name} failed:\n{self.errors.read().decode(errors='replace')[-3000:]}")
        return json.loads(out.splitlines()[-1])


def in_turns(commands: Mapping[str, list[str]], steps: int) -> dict[str, Any]:
    """What Python processes print at their end (one line of JSON each); a turn is so many steps of `Turns`.

    Their output before that must be short. What a process does before its first step is its first turn, what it does
    after its last one is its last.
    """
    with contextlib.ExitStack() as stack:
        waiting = [
            stack.enter_context(_started(name, words, steps, len(commands))) for name, words in commands.items()
        ]
        results = {}
        while waiting:
            for one in list(waiting):
                if not one.take_turn():
                    results[one.name] = one.result()
                    waiting.remove(one)
        return {name: results[name] for name in commands}


@contextlib.contextmanager
def _started(name: str, words: list[str], steps: int, processes: int) -> Iterator[_Process]:
    """A process that stands still."""
    told, child_tells = os.pipe()
    child_told, tells = os.pipe()
    variables = {**os.environ, "PYTHONPATH": str(ROOT), VARIABLE: f"{child_tells} {child_told} {steps} {processes}"}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", _WAITING, *words], env=variables, stdout=subprocess.PIPE, stderr=errors, text=True,
            pass_fds=(child_tells, child_told), start_new_session=True,
        )  # fmt: skip
        os.close(child_tells)
        os.close(child_told)
        try:
            yield _Process(name, process, errors, told, tells)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with process:  # waits, and closes its output
                pass
            os.close(told)
            os.close(tells)


_WAITING = f"""
import os, sys
os.read(int(os.environ[{VARIABLE!r}].split()[1]), 1)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Waits for its first turn, then becomes the command."""
