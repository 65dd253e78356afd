"""The local launcher and the sweeper: slots, isolation, order, signals, and nothing left behind."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from conftest import ROOT, SMALL_DIGITS, TESTS
from faults import hold_at
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)
from hydra.types import HydraContext, RunMode
from hydra.version import VersionBase
from packaging.version import Version

from hfexp.commands import cli
from hfexp.core import compose, machine
from hfexp.core.errors import ConfigError, RunError, SweepError
from hfexp.launch.job import call_warm, differing_overrides, error_of
from hfexp.launch.pool import Slot, slots

own_warning = pytest.mark.filterwarnings("ignore:.*version_base.*", "ignore:.*config_path is not specified.*")
"""Of Hydra about the application that its tests run."""


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our plugins are known, whether they are installed or only on the path; and Hydra's defaults are its tests' own.

    Other tests of this process may have chosen another `version_base`.
    """
    compose.register_schema()
    monkeypatch.setattr(VersionBase.instance(), "version_base", Version("1.1"))


@pytest.fixture
def installed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs find the plugin where the wheel puts it."""
    place = tmp_path_factory.mktemp("site") / "hydra_plugins"
    place.mkdir()
    shutil.copy(ROOT / "hfexp" / "commands" / "hydra_plugin.py", place / "hfexp.py")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(place.parent), str(ROOT), str(TESTS)]))


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """After each test there are the processes and open files that there were, and the fork server."""
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    yield
    deadline = time.monotonic() + 5
    while left := jobs_of_this_process(before):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def jobs_of_this_process(before: set[int]) -> list[psutil.Process]:
    """Processes below this one, but for the server and Python's own helper."""
    found = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    return [p for p in found if not _is_python_s_own(p)]


def _is_python_s_own(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()[:6]
        helps = any("forkserver" in word or "resource_tracker" in word for word in words)
        return helps and process.parent() == psutil.Process()
    except psutil.NoSuchProcess:  # it has ended meanwhile
        return True


@own_warning
@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(("launcher_name", "overrides"), [("local", ["hydra.launcher.n_jobs=2"])])
class TestLauncher(LauncherTestSuite):
    """Hydra's tests of a launcher."""


@own_warning
@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    ("launcher_name", "overrides"), [("local", ["hydra/sweeper=hfexp", "hydra.sweeper.max_batch_size=2"])]
)
class TestSweeperInBatches(BatchedSweeperTestSuite):
    """Hydra's tests of a sweeper."""


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"),
    [
        (
            {
                "defaults": [
                    {"override hydra/launcher": "local"},
                    {"override hydra/sweeper": "hfexp"},
                    {"override hydra/hydra_logging": "hydra_debug"},
                    {"override hydra/job_logging": "disabled"},
                ]
            },
            ["-m"],
        )
    ],
)
class TestIntegration(IntegrationTestSuite):
    """Hydra's tests of a launcher in programs, by the installed plugin."""


def launch(
    task: Callable[[Any], Any], jobs: Sequence[Sequence[str]], tmp_path: Path, *overrides: str
) -> Sequence[JobReturn]:
    """Launch jobs as a sweeper does, and return all that came back."""
    compose.register_schema()
    hydra = Hydra.create_main_hydra_file_or_module(None, "hydra.test_utils.a_module", "configs", "test")
    try:
        words = ["hydra/launcher=local", f"hydra.sweep.dir={tmp_path / 'sweep'}", "hydra.job.chdir=false", *overrides]
        config = hydra.compose_config("compose", words, RunMode.MULTIRUN)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
        launcher = Plugins.instance().instantiate_launcher(context, task, config)
        return launcher.launch([list(job) for job in jobs], initial_job_idx=0)
    finally:
        GlobalHydra.instance().clear()


def values(results: Sequence[JobReturn]) -> list[Any]:
    return [result.return_value for result in results]


def test_each_plugin_is_found_once(plugins: None) -> None:
    found = [clazz for clazz in Plugins.instance().discover(Launcher) if clazz.__module__ == "hydra_plugins.hfexp"]
    assert sorted(clazz.__name__ for clazz in found) == ["LocalLauncher", "RayLauncher", "SlurmLauncher"]


def test_as_many_at_once_as_slots_and_results_in_order(tmp_path: Path) -> None:
    def task(cfg: Any) -> Any:
        began = time.monotonic()
        while cfg.bar == 0 and not (tmp_path / "3").exists() and time.monotonic() < began + 60:
            time.sleep(0.01)
        (tmp_path / str(cfg.bar)).touch()
        return cfg.bar, began, time.monotonic()

    done = values(launch(task, [[f"bar={n}"] for n in range(5)], tmp_path, "hydra.launcher.n_jobs=2"))
    assert [number for number, _, _ in done] == [0, 1, 2, 3, 4]
    assert all(sum(b <= began < e for _, b, e in done) <= 2 for _, began, _ in done)
    assert done[0][2] > done[3][1], "the slot of jobs 1 to 3 was not filled again"


def ending_somehow() -> Callable[[Any], Any]:
    """A function to run as a job that ends as its number says."""

    class Awkward(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}")

    def fail(error: BaseException) -> None:
        raise error

    def task(cfg: Any) -> Any:
        ways: list[Callable[[], Any]] = [
            lambda: os.kill(os.getpid(), signal.SIGKILL),
            lambda: os.kill(os.getpid(), signal.SIGSEGV),
            lambda: os._exit(3),
            lambda: sys.exit(0),
            lambda: fail(ValueError("a wrong value")),
            lambda: fail(Awkward(1, 2)),
            lambda: fail(KeyboardInterrupt()),
            lambda: (n for n in range(3)),
            lambda: "done",
        ]
        return ways[cfg.bar]()

    return task


def test_an_ended_job_is_its_own_failure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    task = ending_somehow()
    results = launch(task, [[f"bar={n}"] for n in range(9)], tmp_path, "hydra.launcher.n_jobs=2")
    assert [result.status for result in results] == [JobStatus.FAILED] * 8 + [JobStatus.COMPLETED]
    errors = [error_of(result) for result in results]
    assert results[8].return_value == "done"
    said = [str(error) for error in errors]
    assert "was killed by SIGKILL" in said[0]
    assert "memory" in said[0]
    assert "was killed by SIGSEGV" in said[1]
    assert "exit code 3" in said[2]
    assert "sys.exit(0)" in said[3]
    assert said[4:7] == ["a wrong value", "Awkward: 1 and 2", "the job was ended by KeyboardInterrupt"]
    assert "can't be sent" in said[7]
    assert [type(error) for error in errors[:6]] == [RunError] * 4 + [ValueError, RunError]
    assert "in task" in errors[4].__notes__[0]
    assert [list(result.overrides) for result in results] == [[f"bar={n}"] for n in range(9)]
    (logs,) = (tmp_path / "sweep" / "sweeps").iterdir()
    assert sorted(path.name for path in logs.iterdir()) == [f"{n}.log" for n in range(9)]
    assert "ValueError: a wrong value" in (logs / "4.log").read_text()
    shown = capfd.readouterr()
    assert "job 8 done in" in shown.out
    assert f"{logs.name}/4.log" in shown.err


def test_a_job_has_the_launchers_surroundings_and_nothing_of_other_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def task(cfg: Any) -> Any:
        import numpy as np
        import torch

        import hfexp

        seen = {
            "changed": os.environ.get("CHANGED"),
            "set": os.environ.get("SET"),
            "gone": os.environ.get("PYTHONSAFEPATH"),
            "attribute": getattr(hfexp, "left_behind", None),
            "cwd": os.getcwd(),
            "argv": list(sys.argv),
            "path": "/somewhere" in sys.path,
            "sigint": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
            "sigterm": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
            "group": os.getpgrp() == os.getpid(),
            "threads": (os.environ["HFEXP_CPUS"], os.environ["OMP_NUM_THREADS"], torch.get_num_threads()),
            "cuda": torch.cuda.is_initialized(),
            "torch_seed": torch.initial_seed(),
            "warm": "hfexp.launch.warm" in sys.modules,
            "start": multiprocessing.get_start_method(),
        }
        seen["random"] = float(np.random.random())
        big = np.ones((700, 700), dtype=np.float32)
        seen["product"] = float((big @ big).sum())
        os.environ["CHANGED"], hfexp.left_behind = "yes", True  # pyright: ignore
        os.chdir("/")
        return seen

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    values(launch(task, [["bar=0"]], tmp_path))  # the server runs from here on
    monkeypatch.setenv("SET", "later")
    monkeypatch.setattr(sys, "argv", ["program", "word"])
    monkeypatch.syspath_prepend("/somewhere")
    first, second = values(launch(task, [["bar=0"], ["bar=1"]], tmp_path, "hydra.launcher.cpus_per_job=1"))
    assert first.pop("random") != second.pop("random")
    assert first == second
    assert first == {
        "changed": None, "set": "later", "gone": None, "attribute": None, "cwd": str(tmp_path),
        "argv": ["program", "word"], "path": True, "sigint": True, "sigterm": True, "group": True,
        "threads": ("1", "1", 1), "cuda": False, "torch_seed": first["torch_seed"], "warm": True,
        "start": multiprocessing.get_context().get_start_method(),
        "product": 700.0**3,
    }  # fmt: skip


def test_what_a_job_leaves_running_ends_with_it(tmp_path: Path) -> None:
    def task(cfg: Any) -> int:
        return subprocess.Popen(["sleep", "600"]).pid

    (pid,) = values(launch(task, [["bar=0"]], tmp_path))
    deadline = time.monotonic() + 5
    while alive([pid]):
        assert time.monotonic() < deadline


def test_a_job_can_start_processes_from_the_same_server(tmp_path: Path) -> None:
    def task(cfg: Any) -> Any:
        from hfexp.launch import forkserver

        forkserver.start()
        context = forkserver.context()
        reader, writer = context.Pipe(duplex=False)
        with reader, writer, forkserver.hidden_main():
            process = context.Process(target=reader.recv)
            process.start()
            parent = psutil.Process(process.pid).ppid()
            writer.send("end")
            process.join()
        return process.exitcode, parent == os.getppid()

    assert values(launch(task, [["bar=0"]], tmp_path)) == [(0, True)]


def test_a_function_in_a_process_of_the_server_ends_or_says_how_it_failed(tmp_path: Path) -> None:
    call_warm(os.mkdir, tmp_path / "made")
    assert (tmp_path / "made").is_dir()
    with pytest.raises(RunError, match="its process ended with exit code 3"):
        call_warm(os._exit, 3)


@pytest.mark.slow
def test_the_end_of_the_server_is_no_failure_of_a_job(tmp_path: Path) -> None:
    def task(cfg: Any) -> None:
        (tmp_path / "pid").write_text(str(os.getpid()))
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)

    with pytest.raises(RunError, match="the same command continues"):
        launch(task, [["bar=0"], ["bar=1"]], tmp_path)
    deadline = time.monotonic() + 5
    while alive([int((tmp_path / "pid").read_text())]):
        assert time.monotonic() < deadline
    assert values(launch(lambda cfg: cfg.bar, [["bar=2"]], tmp_path)) == [2]


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    values(launch(lambda cfg: 1, [["bar=0"]], tmp_path))
    before = psutil.Process().num_fds()
    values(launch(lambda cfg: 1, [["bar=0"], ["bar=1"]], tmp_path, "hydra.launcher.n_jobs=2"))
    assert psutil.Process().num_fds() <= before


@pytest.mark.parametrize(
    ("devices", "n_jobs", "per_job", "cpus", "expected"),
    [
        ([], None, None, 8, [Slot((), 8)]),
        ([], 2, None, 8, [Slot((), 4)] * 2),
        ([], 4, None, 2, [Slot((), 1)] * 4),
        (["0", "1"], None, None, 8, [Slot(("0",), 4), Slot(("1",), 4)]),
        (["0", "1", "2", "3", "4"], None, 2, 9, [Slot(("0", "1"), 4), Slot(("2", "3"), 4)]),
        (["a", "b"], None, 0.5, 8, [Slot(("a",), 2), Slot(("b",), 2), Slot(("a",), 2), Slot(("b",), 2)]),
        (["a", "b"], 3, 0.5, 8, [Slot(("a",), 2), Slot(("b",), 2), Slot(("a",), 2)]),
        (["a"], 2, 0, 8, [Slot((), 4)] * 2),
    ],
)
def test_slots(devices: list[str], n_jobs: int | None, per_job: float | None, cpus: int, expected: list[Slot]) -> None:
    assert slots(devices, n_jobs, per_job, cpus) == expected


def test_processors_can_be_given() -> None:
    assert slots([], 2, None, 8, 3) == [Slot((), 3)] * 2


@pytest.mark.parametrize(
    ("devices", "n_jobs", "per_job", "cpus_per_job", "message"),
    [
        ([], 0, None, None, "hydra.launcher.n_jobs=0 must be at least 1"),
        (["0"], 2, None, None, "hydra.launcher.n_jobs=2 does not fit: 1 device with hydra.launcher.gpus_per_job=1"),
        (["0"], None, 2, None, "hydra.launcher.gpus_per_job=2 is more than the 1 device available"),
        ([], None, 0.5, None, "hydra.launcher.gpus_per_job=0.5 is more than the 0 devices available"),
        (["0"], None, -1, None, "hydra.launcher.gpus_per_job=-1 must be a whole number"),
        (["0", "1"], None, 1.5, None, "hydra.launcher.gpus_per_job=1.5 must be a whole number"),
        ([], None, None, 9, "hydra.launcher.cpus_per_job=9 must be from 1 to 8"),
    ],
)
def test_slots_that_there_are_not(
    devices: list[str], n_jobs: int | None, per_job: float | None, cpus_per_job: int | None, message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        slots(devices, n_jobs, per_job, 8, cpus_per_job)
    assert message in str(raised.value)


def test_wrong_slots_are_wrong_input(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*SMALL_DIGITS, "-m", "seed=1,2", "hydra.launcher.n_jobs=0"]) == 2
    assert "hydra.launcher.n_jobs=0 must be at least 1" in capsys.readouterr().err
    assert list(place.iterdir()) == []


def test_the_environment_of_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "visible_devices", tuple)
    assert Slot((), 3).environment() == {"HFEXP_CPUS": "3", "OMP_NUM_THREADS": "3"}
    assert Slot(("1", "2"), 3).environment()["CUDA_VISIBLE_DEVICES"] == "1,2"
    monkeypatch.setattr(machine, "visible_devices", lambda: ("0",))
    assert Slot((), 3).environment()["CUDA_VISIBLE_DEVICES"] == ""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert Slot((), 3).environment()["OMP_NUM_THREADS"] == "2"


def test_visible_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, expected in {
        "": (), "-1": (), "NoDevFiles": (), "0": ("0",), "2, 0": ("2", "0"), "0,-1,1": ("0",),
        "GPU-8932f937-d72c,MIG-41b3": ("GPU-8932f937-d72c", "MIG-41b3"),
        "MIG-GPU-8932f937/1/0": ("MIG-GPU-8932f937/1/0",),
    }.items():  # fmt: skip
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert machine.visible_devices() == expected


def test_all_devices_by_identifier_and_divided_ones_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoDriver(Exception):
        pass

    def mode(handle: str) -> list[int]:
        if handle == "old":
            raise NoDriver
        return [int(handle == "divided"), 0]

    def part(handle: str, index: int) -> str:
        if index == 1:
            raise NoDriver
        return f"part{index}"

    nvml = SimpleNamespace(
        NVMLError=NoDriver, NVML_DEVICE_MIG_ENABLE=1, nvmlInit=lambda: None, nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 3, nvmlDeviceGetHandleByIndex=["old", "whole", "divided"].__getitem__,
        nvmlDeviceGetMigMode=mode, nvmlDeviceGetMaxMigDeviceCount=lambda handle: 3,
        nvmlDeviceGetMigDeviceHandleByIndex=part, nvmlDeviceGetUUID=lambda handle: f"GPU-{handle}",
    )  # fmt: skip
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert machine.visible_devices() == ("GPU-old", "GPU-whole", "GPU-part0", "GPU-part2")


def test_processors_can_be_lowered_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HFEXP_CPUS", raising=False)
    there_are = machine.cpus()
    for given, expected in {"1": 1, "9999": there_are, "0": 1, "many": there_are}.items():
        monkeypatch.setenv("HFEXP_CPUS", given)
        assert machine.cpus() == expected


def test_jobs_are_told_apart_by_what_differs() -> None:
    jobs = [["a=1", "b=2", "hydra.verbose=true"], ["a=1", "b=3", "hydra.verbose=true"]]
    assert differing_overrides(jobs) == ["b=2", "b=3"]
    assert differing_overrides(jobs[:1]) == ["a=1 b=2"]


def test_a_sweep_says_what_came_out_of_each_job(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL_DIGITS, "tracking=none", "debug=fast", "-m", "seed=1,2"]
    assert cli.main([*words, "dataset.max_train_samples=-3,96", "hydra.launcher.n_jobs=2"]) == 1
    shown = capsys.readouterr()
    assert "job 0 (dataset.max_train_samples=-3 seed=1): " in shown.err or "job 0 (seed=1" in shown.err
    assert "2 of 4 jobs failed" in shown.err
    assert shown.out.count("failed: ") == 2


def test_a_failed_job_does_not_stop_later_batches() -> None:
    from hfexp.launch.job import failure
    from hfexp.sweep.sweeper import show_jobs

    done = JobReturn(status=JobStatus.COMPLETED)
    done.return_value = None
    failures = show_jobs([("a=1", failure([], RunError("no luck"))), ("a=2", done)])
    assert [(job, str(error)) for job, error in failures] == [("job 0 (a=1)", "no luck")]
    assert str(SweepError(failures, 2)) == "1 of 2 jobs failed"


def start(words: Sequence[str], cwd: Path, **options: Any) -> subprocess.Popen[str]:
    """A sweep in a process group of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)])}
    return subprocess.Popen(
        [sys.executable, "-m", "hfexp", *words], cwd=cwd, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True, **options,
    )  # fmt: skip


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def held(place: Path) -> list[int]:
    return [int(text) for path in place.glob("held-*") if (text := path.read_text())]


def alive(pids: Sequence[int]) -> list[int]:
    return [p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]


TWO_AT_ONCE = [*SMALL_DIGITS, "-m", "seed=1,2", "hydra.launcher.n_jobs=2", "trainer.args.dataloader_num_workers=1"]
SWEEP = [*TWO_AT_ONCE, *hold_at(4)]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_all_writes_checkpoints_and_the_same_command_continues(
    number: signal.Signals, code: int, place: Path, all_runs: Callable[[], list[Any]]
) -> None:
    process = start(SWEEP, place)
    wait_until(lambda: len(held(place)) == 2, process)
    below = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, number)  # as a terminal, `timeout` or a batch system does
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert "stopping" in output
    assert "Traceback" not in output
    psutil.wait_procs(below, timeout=5)
    assert alive([p.pid for p in below]) == []
    assert [run.info.status for run in all_runs()] == ["KILLED"] * 3  # the sweep's own among them
    assert len(list(place.glob("outputs/digits/*/checkpoints/checkpoint-4"))) == 2
    process = start(SWEEP, place)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert [run.info.status for run in all_runs()] == ["FINISHED"] * 3
    assert all("continuing from checkpoint-4" in p.read_text() for p in place.glob("outputs/digits/*/hfexp.log"))


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait(place: Path) -> None:
    process = start([*TWO_AT_ONCE, *hold_at(4, stubborn=True)], place)
    wait_until(lambda: len(held(place)) == 2, process)
    pids = held(place)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert alive(pids) == pids
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=10)
    assert process.returncode == 130, output
    assert alive(pids) == []


@pytest.mark.slow
def test_jobs_notice_that_the_launcher_was_killed(place: Path, all_runs: Callable[[], list[Any]]) -> None:
    process = start(SWEEP, place)
    wait_until(lambda: len(held(place)) == 2, process)
    below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    psutil.wait_procs(below, timeout=5)
    assert alive([p.pid for p in below]) == []
    process.communicate(timeout=10)
    assert len(list(place.glob("outputs/digits/*/checkpoints/checkpoint-4"))) == 2
    process = start(SWEEP, place)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert [run.info.status for run in all_runs()] == ["FINISHED"] * 3


@pytest.mark.slow
def test_ctrl_c_while_the_server_imports(place: Path) -> None:
    process = start([*SMALL_DIGITS, "-m", "seed=1,2"], place)
    wait_until(lambda: psutil.Process(process.pid).children(), process)
    below = psutil.Process(process.pid).children(recursive=True)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    psutil.wait_procs(below, timeout=60)  # the server looks for its parent between two imports
    assert alive([p.pid for p in below]) == []
    output, _ = process.communicate(timeout=10)
    assert "Traceback" not in output
    assert not list(place.glob("outputs/digits"))


@pytest.mark.slow
def test_a_script_without_a_main_guard(place: Path) -> None:
    (place / "script.py").write_text(
        "import sys\nfrom hfexp.commands.cli import main\nprint('script runs', flush=True)\n"
        f"sys.exit(main({[*SMALL_DIGITS, 'debug=fast', '-m', 'seed=1,2']!r}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=place, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("script runs") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["basic", "local", "joblib"])
def test_failed_jobs_do_not_stop_the_others(name: str, place: Path) -> None:
    more = [] if name == "basic" else ["hydra.launcher.n_jobs=2"]
    words = [*SMALL_DIGITS, "-m", "seed=1,2", "trainer.args.per_device_train_batch_size=32,512", "debug=fast"]
    done = subprocess.run(
        [sys.executable, "-m", "hfexp", *words, "tracking=none", f"hydra/launcher={name}", *more],
        cwd=place, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "2 of 4 jobs failed" in done.stderr
