"""Other systems, played on this one: what macOS lacks is hidden, and on Windows one line says what to do."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

MACOS = """
import io, os, platform, select, signal, socket, sys
import multiprocessing

# The libraries are those of Linux: only what hfexp itself asks for is hidden.
import datasets, matplotlib.pyplot, mlflow, psutil, torch, transformers

ABSENT = {
    os: "sched_getaffinity sched_setaffinity memfd_create eventfd pidfd_open copy_file_range splice getrandom pipe2 "
        "posix_fadvise posix_fallocate fdatasync getresuid setns unshare getxattr setxattr O_TMPFILE O_PATH O_DIRECT",
    signal: "sigtimedwait sigwaitinfo SIGPWR SIGSTKFLT SIGRTMIN SIGRTMAX SIGPOLL",
    select: "epoll",
    socket: "SO_PEERCRED AF_NETLINK",
}
for module, names in ABSENT.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)

def hidden(function, error=FileNotFoundError):
    def call(path, *args, **kwargs):
        if str(path).startswith(("/proc", "/sys", "/dev/shm", "/etc/machine-id")) and asks():
            asked.append(str(path))
            raise error(2, "No such file or directory", str(path))
        return function(path, *args, **kwargs)
    return call

def asks():
    frame = sys._getframe(2)
    while frame.f_globals.get("__name__") in ("pathlib", "genericpath", "pathlib._local", "pathlib._abc"):
        frame = frame.f_back
    return frame.f_globals.get("__name__", "").startswith("hfexp.")

def confstr(name):
    raise ValueError("unrecognized configuration name")

asked = []
io.open = hidden(io.open)
for name in ("stat", "readlink", "listdir", "scandir"):
    setattr(os, name, hidden(getattr(os, name)))
os.confstr = confstr

sys.platform = "darwin"
platform.system = lambda: "Darwin"

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn", force=True)  # as on macOS
    import importlib, pkgutil
    import hfexp
    from hfexp.commands.cli import main

    own = {"hfexp.launch.warm"}  # changes the process that imports it
    names = [module.name for module in pkgutil.walk_packages(hfexp.__path__, "hfexp.")]
    for name in names:
        if name not in own and ".project" not in name and name != "hfexp.__main__":
            importlib.import_module(name)
    from hfexp.core import machine
    from hfexp.core.process import ProcessId

    assert machine.affinity() == os.cpu_count() and machine.cpu_name() and machine.computes_in_bf16()
    machine.keep_freed_memory()
    machine.give_back_freed_memory()
    assert ProcessId.own().may_live_here()
    code = main(sys.argv[1:])
    print("ASKED", sorted(set(asked)))
    sys.exit(code)
"""

WINDOWS = """
import os, select, signal, sys
for module, names in {{os: "fork geteuid setpgid killpg", signal: "SIGHUP SIGKILL SIGPIPE", select: "poll"}}.items():
    for name in names.split():
        delattr(module, name)
sys.modules["fcntl"] = sys.modules["resource"] = None
sys.platform = "win32"
{}
"""


def play(system: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    script = cwd / "system.py"
    script.write_text(system)
    command = [sys.executable, str(script), *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_a_run_needs_nothing_that_macos_lacks(place: Path) -> None:
    done = play(MACOS, "debug=fast", "trainer.args.dataloader_num_workers=1", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test accuracy" in done.stdout
    assert "/proc/cpuinfo" in done.stdout.rpartition("ASKED")[2]


@pytest.mark.slow
def test_macos_has_every_function_that_is_called() -> None:
    words = ["-m", "pyright", "--pythonpath", sys.executable, "--pythonplatform", "Darwin"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "use", ["from hfexp.commands.cli import program; sys.exit(program())", "from hfexp import train"]
)
def test_windows_is_told_to_use_wsl(use: str, place: Path) -> None:
    done = play(WINDOWS.format(use), cwd=place)
    assert "use WSL" in done.stderr.splitlines()[-1]
    if "program" in use:
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
