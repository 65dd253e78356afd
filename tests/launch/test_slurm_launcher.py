"""What runs in a job of SLURM, by submitit's local executor, and what is refused before a job is submitted."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import submitit
from conftest import ROOT, SMALL_DIGITS, TESTS
from hydra.test_utils.launcher_common_tests import sweep_2_jobs
from hydra.version import VersionBase
from packaging.version import Version
from queued import facts, fail, wait_once

from hfexp.commands import cli
from hfexp.core import compose
from hfexp.core.errors import ConfigError, Interrupted, RunError
from hfexp.launch import slurm
from hfexp.launch.job import ProcessEnv
from hfexp.launch.slurm import SlurmLauncher, require_cluster
from hfexp.launch.slurm_jobs import Task, Watcher, result_of


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(ROOT)]))
    monkeypatch.setattr(submitit.LocalJob, "_results_timeout_s", 1)  # files are on this machine


def local_executor(folder: Path, timeouts: int = 3) -> submitit.LocalExecutor:
    """Runs jobs in processes of this machine, as submitit's executor for SLURM runs them there."""
    executor = submitit.LocalExecutor(folder, timeouts, python=f"{shlex.quote(sys.executable)} -P")
    executor.update_parameters(timeout_min=5)
    return executor


def submit(function: Callable[[], Any], timeouts: int = 3) -> submitit.LocalJob[Any]:
    env = replace(ProcessEnv.capture(variables=False), argv=("hfexp", "seed=1"))
    place = Path.cwd()
    job: Any = local_executor(place / "jobs", timeouts).submit(Task(function, env, f"{place}/%j.log"))
    return job


def stop(place: Path, name: str) -> None:
    """Send a signal to the job that waits."""
    deadline = time.monotonic() + 60
    while not (place / "begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(int((place / "begun").read_text()), signal.Signals[name])


def test_a_job_takes_the_place_of_the_command(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (place / "datasets.py").write_text("raise RuntimeError('not the library')")
    job = submit(facts)
    found = result_of(job)
    assert (found["cwd"], found["argv"], found["cpus"], found["threads"]) == (
        str(place),
        ["hfexp", "seed=1"],
        "1",
        "1",
    )
    assert found["path"] == [path or str(place) for path in sys.path]
    assert "hello" in (place / f"{job.job_id}.log").read_text()


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2"])
def test_a_job_whose_time_is_nearly_over_is_requeued(name: str, place: Path) -> None:
    job = submit(partial(wait_once, str(place)))
    stop(place, name)
    assert result_of(job) == "continued"


@pytest.mark.parametrize(
    ("name", "timeouts", "reason"),
    [
        ("SIGTERM", 3, "stopped by SIGTERM;"),
        ("SIGUSR2", -1, "stopped by SIGUSR1; Job not requeued because: timed-out"),
    ],
)
def test_a_stopped_job_counts_as_interrupted(name: str, timeouts: int, reason: str, place: Path) -> None:
    job = submit(partial(wait_once, str(place)), timeouts)
    stop(place, name)
    with pytest.raises(Interrupted, match=reason):
        result_of(job)


def test_a_job_that_fails_outside_of_the_run_names_its_file(place: Path) -> None:
    job = submit(fail)
    with pytest.raises(RunError, match=rf"SLURM job {job.job_id}: ZeroDivisionError: division by zero \(.*log.err\)"):
        result_of(job)


def test_squeue_tells_the_states_of_jobs() -> None:
    watcher = Watcher()
    watcher._registered = {"7", "8", "9", "10"}
    watcher._info_dict = watcher.read_info(b"7 RUNNING\n8 CONFIGURING\n9 CANCELLED\n99 FAILED\n")
    assert {job: watcher.is_done(job, "cache") for job in watcher._registered} == {
        "7": False, "8": False, "9": True, "10": True,
    }  # fmt: skip


@pytest.fixture
def locally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run in processes of this machine, without a cluster; their files lie in a temporary directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm, "require_cluster", lambda partition: None)
    monkeypatch.setattr(SlurmLauncher, "_executor", lambda self, folder, name: local_executor(folder))


@pytest.mark.usefixtures("locally")
@pytest.mark.filterwarnings("ignore:.*version_base.*", "ignore:.*config_path is not specified.*")
def test_jobs_of_any_application_run_one_after_the_other_if_one_may_be_open(
    hydra_sweep_runner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compose.register_schema()
    monkeypatch.setattr(VersionBase.instance(), "version_base", Version("1.1"))
    one = ["hydra/launcher=slurm", "hydra.launcher.array_parallelism=1"]
    sweep_2_jobs(hydra_sweep_runner, overrides=one, task_function=None, temp_dir=tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "seed=1,2", "hydra/launcher=slurm", "hydra.launcher.nodes=2"], "hydra.launcher.nodes=2 must be 1"),
        (["-m", "seed=1,2", "hydra/launcher=slurm", "hydra.launcher.partion=gpu"], "Did you mean 'partition'?"),
        (["submit", "-m", "seed=1,2"], "hfexp submit sends one run; a sweep submits its jobs itself"),
        (["submit", "hydra/launcher=local"], "hydra/launcher=local runs no jobs of SLURM"),
        (["submit", "hydra.launcher.comment='a\nb'"], "no value may have several lines"),
        (["submit", "launch.time_limit=90"], "launch.time_limit=90 must be a time"),
    ],
)
@pytest.mark.usefixtures("locally")
def test_what_can_not_be_submitted_is_refused_before_anything_is_created(
    words: list[str], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, rest = (words[:1], words[1:]) if words[0] == "submit" else ([], words)
    assert cli.main([*command, *SMALL_DIGITS, *rest]) == 2
    assert message in capsys.readouterr().err
    assert not (place / "outputs").exists()


@pytest.mark.parametrize("words", [["submit", "seed=1"], ["-m", "seed=1,2", "hydra/launcher=slurm"]])
def test_without_a_cluster_nothing_is_created(
    words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = place / "bin"
    commands.mkdir()
    monkeypatch.setenv("PATH", str(commands))
    for missing in ("sbatch, srun, squeue, scancel, sinfo", ""):
        assert cli.main([*words[:1], *SMALL_DIGITS, *words[1:]]) == 2
        error = capsys.readouterr().err
        assert f"no commands of SLURM ({missing})" in error if missing else "does not answer: connect failure" in error
        for name in slurm.COMMANDS:
            (commands / name).write_text("#!/bin/sh\necho connect failure >&2\nexit 1\n")
            (commands / name).chmod(0o755)
    assert not (place / "outputs").exists()


def test_a_partition_must_be_one_of_the_cluster(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(place))
    for name in slurm.COMMANDS:
        (place / name).write_text("#!/bin/sh\necho gpu\necho gpu-long\n")
        (place / name).chmod(0o755)
    require_cluster(None)
    require_cluster("gpu,gpu-long")
    with pytest.raises(ConfigError, match=r"partition=gpus: .* Did you mean 'gpu'\? It has: gpu, gpu-long"):
        require_cluster("gpu,gpus")


def test_a_config_file_starts_no_programs_in_a_job(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "mine/hydra/launcher").mkdir(parents=True)
    option, words = place / "mine/hydra/launcher/cluster.yaml", ["--config-dir", "mine", "hydra/launcher=cluster"]
    for setting in ("setup: [rm x]", "additional_parameters: {export: LD_PRELOAD=x}"):
        option.write_text(f"defaults: [slurm]\npartition: gpu\n{setting}\n")
        assert cli.main([*words, "--cfg", "job"]) == 2
        assert f"a config file sets hydra.launcher.{setting.partition(':')[0]}" in capsys.readouterr().err
    assert cli.main([*words, "--cfg", "job", "hydra.launcher.additional_parameters.export=NONE"]) == 0
