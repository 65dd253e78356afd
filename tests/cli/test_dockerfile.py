"""The Dockerfile: what it copies is there, and its steps work in a root directory of their own."""

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path, PurePosixPath

import pytest
from conftest import ROOT

from hfexp import __version__

PATH = "/opt/python/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def steps() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile: their names and what follows."""
    lines = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines()
    written = [line for line in lines if line.strip() and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in written)]


def copied() -> list[str]:
    """Return the sources of all COPY instructions."""
    return [source for name, rest in steps() if name == "COPY" for source in rest.split()[:-1]]


def is_ignored(path: str) -> bool:
    """Apply .dockerignore: the last pattern decides that matches the path or a directory above it."""
    places = [str(place) for place in (PurePosixPath(path), *PurePosixPath(path).parents)]
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#") and any(_matches(place, line.removeprefix("!")) for place in places):
            ignored = not line.startswith("!")
    return ignored


def _matches(place: str, pattern: str) -> bool:
    """Compare a path with a pattern, whose `**/` stands for any directories and whose `*` stops at `/`."""
    if pattern.startswith("**/"):
        place, pattern = place.rpartition("/")[2], pattern.removeprefix("**/")
    return place.count("/") == pattern.count("/") and fnmatch.fnmatchcase(place, pattern)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="an unpacked sdist")
def test_every_copied_file_is_of_the_repository_and_reaches_docker() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for source in copied():
        files = [file for file in tracked if file == source or file.startswith(f"{source}/")]
        assert files, f"{source} is not in the repository"
        assert [file for file in files if is_ignored(file)] == []
    others = [
        "outputs/mlflow.db",
        ".venv/bin/python",
        ".git/config",
        "hfexp/core/__pycache__/a.cpython-311.pyc",
        "x.env",
    ]
    assert [path for path in others if not is_ignored(path)] == []


def test_every_package_is_pinned_and_nobody_is_root() -> None:
    installs = [rest for name, rest in steps() if name == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    assert all("-c constraints.txt" in command for command in installs)
    assert [rest for name, rest in steps() if name == "USER"] == ["hfexp"]
    (volumes,) = (json.loads(rest) for name, rest in steps() if name == "VOLUME")
    places = dict(re.findall(r"(HF_HOME|HFEXP_CACHE)=(\S+)", (ROOT / "Dockerfile").read_text()))
    assert len(places) == 2
    assert all(Path(place).parent.as_posix() in volumes for place in places.values())


def script(root: Path, commands: list[list[str]]) -> str:
    """Return a shell script that does the steps in `root`, and then runs the entry point with each list of words."""
    outside = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    variables, user, workdir, entry = {"PATH": PATH, **outside}, "root", "/", [""]
    lines = ["set -eu"]
    for name, rest in steps():
        if name in ("ARG", "ENV"):
            variables |= dict(word.split("=", 1) for word in rest.split())
        elif name == "WORKDIR":
            workdir = rest
            lines.append(f"mkdir -p {root}{rest}")
        elif name == "COPY":
            *sources, target = rest.split()
            places = {source: f"{root}{workdir}/{_place(source, target)}" for source in sources}
            lines += [f"install -d {PurePosixPath(place).parent}" for place in places.values()]
            lines += [f"cp -rT {ROOT}/{source} {place}" for source, place in places.items()]
        elif name == "RUN":
            lines.append(_in_root(root, user, workdir, variables, ["sh", "-c", rest]) + " >&2")
        elif name == "USER":
            user = rest
        elif name == "ENTRYPOINT":
            entry = json.loads(rest)
        else:
            assert name in ("FROM", "VOLUME"), name
    # The first process of its pid namespace, as in a container.
    start = f"unshare --pid --fork --kill-child --mount-proc={root}/proc "
    variables["HOME"] = f"/home/{user}"
    runs = [start + _in_root(root, user, workdir, variables, [*entry, *words]) for words in commands]
    return "\n".join([*lines, *runs])


def _in_root(root: Path, user: str, workdir: str, variables: dict[str, str], command: list[str]) -> str:
    words = [f"{name}={value}" for name, value in variables.items()]
    place = ["sh", "-c", 'cd "$0" && exec "$@"', workdir]
    return shlex.join(["chroot", f"--userspec={user}", str(root), "env", "-i", *words, *place, *command])


def _place(source: str, target: str) -> str:
    """Return where COPY puts a source: in a target that ends in `/` under the source's own name."""
    return target + PurePosixPath(source).name if target.endswith("/") else target


def base(root: Path) -> str:
    """Return a shell script that makes `root` what the base image is: programs, Python with pip, and nothing else.

    The programs are those of this machine, read-only. Python's packages are those that these tests run with, so that
    pip finds the pinned versions installed and only builds hfexp itself; an empty place is first in Python's path.
    """
    python, packages = Path(sys.base_prefix), sysconfig.get_paths()["purelib"]
    read_only = [Path("/usr"), *([] if python.is_relative_to("/usr") else [python])]
    lines = ["set -eu", f"mkdir -p {root}/opt/site-packages {root}/proc {root}/dev {root}/home"]
    lines += [f"cp -a /etc {root}/etc", f"install -d -m 1777 {root}/tmp"]
    for link in map(Path, ("/bin", "/sbin", "/lib", "/lib64")):
        if link.is_symlink():
            lines.append(f"ln -s {os.readlink(link)} {root}{link}")
        elif link.is_dir():
            read_only.append(link)
    mounts = [(str(place), str(place)) for place in read_only] + [(packages, "/opt/site-packages")]
    for source, target in mounts:
        lines.append(f"mkdir -p {root}{target} && mount --bind {source} {root}{target}")
        lines.append(f"mount -o remount,bind,ro {root}{target}")
    lines += [f"mount --rbind /dev {root}/dev", f"chroot {root} {python}/bin/python3 -m venv /opt/python"]
    lines.append(
        f"echo /opt/site-packages >{root}/$(cd {root} && echo opt/python/lib/python3*/site-packages)/packages.pth"
    )
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root's mounts")
def test_its_steps_work_in_a_root_of_their_own(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir(mode=0o755)
    commands = [["--version"], ["debug=fast"]]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{base(root)}\n{script(root, commands)}"],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"hfexp {__version__}\n")
    assert "test accuracy" in done.stdout
    database = root / "work" / "outputs" / "mlflow.db"
    assert database.is_file()
    assert database.stat().st_uid not in (0, os.getuid())
    assert (root / "cache" / "hfexp").is_dir()
    assert list((root / "opt" / "python" / "lib").glob("python3*/site-packages/hfexp/conf/config.yaml"))
