"""The recipes for containers: what they copy is there, both have the same steps, and these work in an empty root."""

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
IMAGE, TESTED = (0, 2), (0, 1)
"""Stages of the Dockerfile that make the image, and those that run the tests."""


def stages() -> list[list[tuple[str, str]]]:
    """Return the instructions of each stage of the Dockerfile, their names and what follows; FROM begins a stage."""
    lines = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines()
    written = [line for line in lines if line.strip() and not line.startswith("#")]
    found: list[list[tuple[str, str]]] = [[]]
    for name, _, rest in (line.partition(" ") for line in written):
        if name == "FROM":
            found.append([])
        found[-1].append((name, rest))
    arguments, *rest = found
    return [arguments + rest[0], *rest[1:]]


def steps(numbers: tuple[int, ...]) -> list[tuple[str, str]]:
    """Return the instructions of these stages, one after the other."""
    return [step for number in numbers for step in stages()[number]]


def sections() -> dict[str, list[str]]:
    """Return the lines of each section of the Apptainer recipe; what stands before the first one is called ``."""
    found: dict[str, list[str]] = {"": []}
    for line in (ROOT / "hfexp.def").read_text().splitlines():
        if line.startswith("%"):
            found[line[1:]] = []
        elif line.strip() and not line.strip().startswith("#"):
            found[list(found)[-1]].append(line.strip())
    return found


def copied(numbers: tuple[int, ...]) -> list[str]:
    """Return the sources of all COPY instructions."""
    return [source for name, rest in steps(numbers) if name == "COPY" for source in rest.split()[:-1]]


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
    for source in copied((0, 1, 2)):
        files = [file for file in tracked if file == source or file.startswith(f"{source}/")]
        assert files, f"{source} is not in the repository"
        assert [file for file in files if is_ignored(file)] == []
    others = [
        "outputs/mlflow.db",
        ".venv/bin/python",
        ".git/config",
        "hfexp/core/__pycache__/a.cpython-311.pyc",
        "docs/_build/html/index.html",
        "x.env",
    ]
    assert [path for path in others if not is_ignored(path)] == []


def test_every_package_is_pinned_and_nobody_is_root() -> None:
    installs = [rest for name, rest in steps(IMAGE) if name == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    assert all("-c constraints.txt" in command for command in installs)
    assert [rest for name, rest in steps(IMAGE) if name == "USER"] == ["hfexp"]
    (volumes,) = (json.loads(rest) for name, rest in steps(IMAGE) if name == "VOLUME")
    places = dict(re.findall(r"(HF_HOME|HFEXP_CACHE)=(\S+)", (ROOT / "Dockerfile").read_text()))
    assert len(places) == 2
    assert all(Path(place).parent.as_posix() in volumes for place in places.values())


def test_apptainer_takes_the_same_steps() -> None:
    """An image of Docker is built from other files than its tests; one of Apptainer has both."""
    recipe, both = sections(), steps((0, 1, 2))
    assert recipe[""] == ["Bootstrap: docker", "From: {{ BASE }}"]
    assert recipe["arguments"] == [rest for name, rest in both if name == "ARG"]
    assert recipe["files"] == [f"{source} /src/{source}" for source in copied(TESTED) if source != "docs/howto.md"]
    commands = [rest.replace("$TORCH_INDEX", "{{ TORCH_INDEX }}") for name, rest in steps(TESTED) if name == "RUN"]
    settings, folder, *installs = recipe["post"]
    assert [*installs, *recipe["test"][-2:]] == commands
    (variables,) = (rest.split() for name, rest in steps((0,)) if name == "ENV")
    assert {*settings.split(), *recipe["environment"][0].split()} >= {*variables}
    assert (folder, recipe["test"][-4:-2]) == ("cd /src", ['cp -r /src/. "$place"', 'cd "$place"'])
    (entry,) = (json.loads(rest) for name, rest in both if name == "ENTRYPOINT")
    assert recipe["runscript"] == [f'exec {shlex.join(entry)} "$@"']


def script(root: Path, numbers: tuple[int, ...], commands: list[list[str]], **variables: str) -> str:
    """Return a shell script that does the steps in `root`, and then runs the entry point with each list of words."""
    variables |= {"PATH": PATH, **{name: value for name, value in os.environ.items() if name.startswith("PIP_")}}
    user, workdir, entry = "root", "/", [""]
    lines = ["set -eu"]
    for name, rest in steps(numbers):
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
        elif name == "RUN" and not rest.startswith("apt-get"):  # the programs are those of this machine
            lines.append(_in_root(root, user, workdir, variables, ["sh", "-c", rest]) + " >&2")
        elif name == "USER":
            user = rest
        elif name == "ENTRYPOINT":
            entry = json.loads(rest)
        else:
            assert name in ("FROM", "VOLUME", "RUN"), name
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


needs_mounts = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root's mounts")


def run_in_root(root: Path, numbers: tuple[int, ...], commands: list[list[str]], **variables: str) -> str:
    """Do the steps of these stages in a root of their own, then these commands; return what they print."""
    root.mkdir(mode=0o755)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{base(root)}\n{script(root, numbers, commands, **variables)}"],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@needs_mounts
def test_its_steps_work_in_a_root_of_their_own(tmp_path: Path) -> None:
    root = tmp_path / "root"
    said = run_in_root(root, IMAGE, [["--version"], ["debug=fast"]])
    assert said.startswith(f"hfexp {__version__}\n")
    assert "test accuracy" in said
    database = root / "work" / "outputs" / "mlflow.db"
    assert database.is_file()
    assert database.stat().st_uid not in (0, os.getuid())
    assert (root / "cache" / "hfexp").is_dir()
    assert list((root / "opt" / "python" / "lib").glob("python3*/site-packages/hfexp/conf/config.yaml"))


@pytest.mark.slow
@needs_mounts
def test_its_tests_run_in_a_root_of_their_own(tmp_path: Path) -> None:
    """`make test` with one file of tests; the environment in `.venv` finds its packages by PYTHONPATH."""
    said = run_in_root(
        tmp_path / "root", TESTED, [], PYTHONPATH="/opt/site-packages", PARALLEL="tests/core/test_whole_files.py"
    )
    assert re.search(r"\d+ passed", said)
    assert "failed" not in said
