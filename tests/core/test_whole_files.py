"""Files appear whole; what killed processes have begun is removed by the next one that writes there."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hfexp.core.files import WholeFile, write_whole

KILLED = """
import os, signal, sys
from pathlib import Path
from hfexp.core.files import WholeFile
WholeFile(Path("out.csv")).temporary.write_text("half")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_has_begun_is_removed_and_what_lives_is_not(place: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED], check=False).returncode == -9
    (left,) = place.iterdir()
    os.rename(left, ".out.csv.1")  # the pid of a process that lives
    Path(".out.csv.old").touch()
    first = WholeFile(Path("out.csv"))
    first.temporary.rename(".out.csv.2")  # as if of another process, which holds it
    second = WholeFile(Path("out.csv"))
    assert {path.name for path in place.iterdir()} == {".out.csv.2", ".out.csv.old", second.temporary.name}
    second.temporary.write_text("whole")
    second.close(keep=True)
    assert Path("out.csv").read_text() == "whole"


def test_a_file_that_could_not_be_finished_leaves_the_old_one(place: Path) -> None:
    write_whole(Path("answers.json"), "old", 0o600)
    assert Path("answers.json").stat().st_mode & 0o777 == 0o600
    with pytest.raises(TypeError):
        write_whole(Path("answers.json"), None)  # pyright: ignore
    assert [path.name for path in place.iterdir()] == ["answers.json"]
    assert Path("answers.json").read_text() == "old"


def test_without_locks_files_are_whole_and_nothing_is_removed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    Path(".answers.json.1").touch()  # perhaps of a process on another machine
    write_whole(Path("answers.json"), "new")
    assert {path.name: path.read_text() for path in place.iterdir()} == {"answers.json": "new", ".answers.json.1": ""}
