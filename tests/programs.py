"""Commands in processes of their own that tests start, watch and kill."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
from conftest import TESTS

from hfexp.commands import cli
from hfexp.launch import forkserver

OUTPUT = "output"


class Program:
    """The command as it is typed, in a session of its own."""

    def __init__(self, place: Path, words: Sequence[str], variables: dict[str, str] | None = None) -> None:
        place.mkdir(exist_ok=True)
        with (place / OUTPUT).open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "hfexp", *words], cwd=place, start_new_session=True,
                stdout=output, stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", **(variables or {})},
            )  # fmt: skip

    def exit_code(self, seconds: float) -> int | None:
        """Once it has ended; None if it goes on for longer than that."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.returncode

    def family(self) -> list[psutil.Process]:
        """All that it has started, and itself."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        return []


class Fork:
    """The same from a process that has done the imports, as have the jobs it starts: a third of the time."""

    def __init__(
        self, place: Path, words: Sequence[str], variables: dict[str, str] | None = None, cgroup: Path | None = None
    ) -> None:
        place.mkdir(exist_ok=True)
        forkserver.start()
        arguments = (place, list(words), {**os.environ, **(variables or {})}, cgroup, list(sys.path))
        self._process = forkserver.context().Process(target=as_typed, args=arguments)
        with forkserver.hidden_main():
            self._process.start()
        self._server = psutil.Process(self._process.pid or 0).parent()

    def exit_code(self, seconds: float) -> int | None:
        """Once it has ended; None if it goes on for longer than that."""
        self._process.join(seconds)
        return self._process.exitcode

    def family(self) -> list[psutil.Process]:
        """Its jobs are children of the server, as it is one itself."""
        return self._server.children(recursive=True) if self._server else []

    def itself(self) -> list[psutil.Process]:
        """The command's own process."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [psutil.Process(self._process.pid or 0)]
        return []


def as_typed(place: Path, words: list[str], variables: dict[str, str], cgroup: Path | None, path: list[str]) -> None:
    """Run the command in a process that was forked for it."""
    os.setsid()
    os.chdir(place)
    os.environ.clear()
    os.environ.update(variables)
    sys.path[:] = path
    if cgroup is not None:
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    output = os.open(OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.argv = ["hfexp", *words]
    sys.exit(cli.main(words))


def suspend(find: Callable[[], list[psutil.Process]]) -> list[psutil.Process]:
    """Stop processes where they are, with what they start meanwhile, so that nothing has time for a last word."""
    stopped: dict[int, psutil.Process] = {}
    for _ in range(2):
        for member in find():
            with contextlib.suppress(psutil.NoSuchProcess):
                member.suspend()
                stopped[member.pid] = member
    return list(stopped.values())


def kill(members: list[psutil.Process]) -> None:
    """SIGKILL, and wait until they are gone."""
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(members, timeout=60)


def kill_all(process: Program | Fork) -> None:
    """With all that it has started, so that nothing has time for a checkpoint or a last word."""
    kill(suspend(process.family))
    assert process.exit_code(60) is not None
