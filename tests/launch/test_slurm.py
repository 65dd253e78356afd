"""Sweeps and runs on a real SLURM cluster on this machine, with cancelled, timed out and moved jobs."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from clusters import cluster, open_jobs, shown, why_not
from conftest import ROOT, SMALL_DIGITS, TESTS
from faults import hold_at
from programs import OUTPUT, Program, kill
from servers import free_port

from hfexp.commands import cli

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=f"no SLURM here: {why_not()}")]

QUEUE = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=2")
"""Each job fills one of the two nodes."""
PATIENCE = 2400


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with cluster(tmp_path_factory.mktemp("slurm")):
        yield


@pytest.fixture(autouse=True)
def environment(slurm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(ROOT)]))


def wait_for(happened: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, f"{what}: {Path(OUTPUT).read_text()} {shown('squeue', '-t', 'all')}"
        time.sleep(0.2)


def kill_command(program: Program) -> None:
    """Without its jobs."""
    kill([psutil.Process(program._process.pid)])
    assert program.exit_code(60) is not None


def slurm_id(sweep: Path, job: int) -> str:
    return (sweep / ".submitit" / f"{job}.id").read_text()


def children(runs: list[Any]) -> list[Any]:
    return [run for run in runs if "mlflow.parentRunId" in run.data.tags]


def metrics_by_seed(runs: list[Any]) -> dict[str, dict[str, float]]:
    """Metrics of the model, without times and memory, by the run's seed."""
    clock = re.compile(r"seconds|runtime|per_second|system/|peak_memory")
    return {
        run.data.params["seed"]: {k: v for k, v in run.data.metrics.items() if not clock.search(k)} for run in runs
    }


def test_a_sweep_with_a_cancelled_a_timed_out_and_a_moved_job(
    place: Path, all_runs: Callable[[], list[Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """12 points on 2 slots: that of seed 3 is requeued at its time limit, that of seed 5 is asked to stop."""
    words = [*SMALL_DIGITS, *hold_at(3, False, 3, 5)]
    command = ["-m", *words, "seed=range(1,13)", "search.name=s", *QUEUE, "hydra.launcher.timeout_min=6"]
    command += ["hydra.launcher.signal_delay_s=30"]
    sweep = place / "outputs" / "sweeps" / "s"
    program = Program(place, command)
    wait_for(lambda: (place / "held-5").exists(), "the point of seed 5 runs")
    subprocess.run(["scancel", "--signal=TERM", slurm_id(sweep, 4)], check=True)
    subprocess.run(["scontrol", "update", "nodename=n2", "state=drain", "reason=test"], check=True)
    timed_out = slurm_id(sweep, 2)
    code = program.exit_code(PATIENCE)
    output = (place / OUTPUT).read_text()
    assert code == 1, output
    assert "job 4 (seed=5): stopped by SIGTERM; the same command continues it" in output
    assert "1 of 12 jobs failed" in output
    assert f"SLURM job {timed_out}" in output
    subprocess.run(["scontrol", "update", "nodename=n2", "state=resume"], check=True)
    assert Program(place, command).exit_code(PATIENCE) == 0, (place / OUTPUT).read_text()
    runs = all_runs()
    assert [run.info.status for run in runs] == ["FINISHED"] * 13
    assert len(children(runs)) == 12
    resumed = {r.data.params["seed"] for r in children(runs) if r.data.tags.get("hfexp.resumed") == "true"}
    assert resumed >= {"3", "5"}
    on_slurm = metrics_by_seed(children(runs))
    assert sorted(map(int, on_slurm)) == list(range(1, 13))
    assert {path.name for path in (sweep / "logs").iterdir()} == {f"{number}.log" for number in range(12)}
    # The local launcher gives the same numbers to the last bit, with the same number of threads.
    local = tmp_path_factory.mktemp("local")
    seeds = ["seed=3,5,7", "hydra.launcher.cpus_per_job=2"]
    assert Program(local, ["-m", *words[: len(SMALL_DIGITS)], *seeds]).exit_code(PATIENCE) == 0
    os.chdir(local)
    expected = metrics_by_seed(children(all_runs()))
    os.chdir(place)
    assert {seed: on_slurm[seed] for seed in expected} == expected


def test_a_run_of_two_processes_is_requeued_and_continues(
    place: Path, all_runs: Callable[[], list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL_DIGITS, "launch=ddp", "launch.num_processes=2", *hold_at(3)]
    assert cli.main(["submit", *words, "hydra.launcher.cpus_per_task=2"]) == 0
    said = capsys.readouterr().out
    (job,) = re.findall(r"submitted as SLURM job (\d+): vit_digits-digits", said)
    assert f"tail -f outputs/slurm/{job}.log" in said
    (place / OUTPUT).write_text("")
    wait_for(lambda: list(place.glob("held-*")), "the run trains")
    assert cli.main(["status"]) == 0
    assert re.search(rf"{job} +running +vit_digits-digits", capsys.readouterr().out)
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    wait_for(lambda: "COMPLETED" in shown("squeue", "-h", "-t", "all", "-j", job, "-o", "%T"), "the job ends")
    log = (place / "outputs" / "slurm" / f"{job}.log").read_text()
    (run,) = all_runs()
    assert run.info.status == "FINISHED", log
    assert (run.data.params["launch.num_processes"], run.data.tags["hfexp.resumed"]) == ("2", "true")
    assert run.data.tags["hfexp.slurm_job"] == job
    assert "continuing vit" in log
    assert "Traceback" not in log
    assert cli.main(["status"]) == 0
    assert re.search(rf"{job} +finished +vit_digits-digits.* eval_accuracy 0", capsys.readouterr().out)


def test_jobs_outlive_a_killed_command_but_not_ctrl_c(place: Path, all_runs: Callable[[], list[Any]]) -> None:
    command = ["-m", *SMALL_DIGITS, *hold_at(3), "seed=1,2", *QUEUE]
    program = Program(place, command)
    wait_for(lambda: len(list(place.glob("held-*"))) == 2, "both jobs train")
    kill_command(program)
    jobs = open_jobs()
    assert len(jobs) == 2
    second = Program(place, command)
    wait_for(lambda: (place / OUTPUT).read_text().count("was submitted before, as SLURM job") == 2, "they are found")
    os.kill(second._process.pid, signal.SIGINT)
    assert second.exit_code(PATIENCE) == 130, (place / OUTPUT).read_text()
    assert open_jobs() == []
    assert [run.info.status for run in children(all_runs())] == ["KILLED"] * 2
    (place / "go").touch()
    third = Program(place, command)
    wait_for(lambda: (place / OUTPUT).read_text().count("submitted as SLURM job") == 2, "they are submitted again")
    kill_command(third)
    wait_for(lambda: not open_jobs(), "they end by themselves")
    assert [run.info.status for run in children(all_runs())] == ["FINISHED"] * 2
    assert Program(place, command).exit_code(PATIENCE) == 0, (place / OUTPUT).read_text()
    assert [run.info.status for run in all_runs()] == ["FINISHED"] * 3


def test_a_cluster_that_can_not_take_the_jobs_is_refused(
    place: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    sweep, submit = ["-m", *SMALL_DIGITS, "seed=1,2", "hydra/launcher=slurm"], ["submit", *SMALL_DIGITS]
    assert [cli.main([*words, "hydra.launcher.partition=mian"]) for words in (sweep, submit)] == [2, 2]
    assert capsys.readouterr().err.count("no such partition. Did you mean 'main'? It has: main") == 2
    known = Path(os.environ["SLURM_CONF"]).read_text()
    elsewhere = tmp_path_factory.mktemp("dead") / "slurm.conf"
    elsewhere.write_text(re.sub(r"SlurmctldPort=\d+", f"SlurmctldPort={free_port()}", known))
    monkeypatch.setenv("SLURM_CONF", str(elsewhere))
    assert [cli.main(words) for words in (sweep, submit)] == [2, 2]
    assert capsys.readouterr().err.count("does not answer: slurm_load_partitions: Unable to contact") == 2
    assert list(place.iterdir()) == []


def done(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_srun_starts_one_task_for_all_processes(place: Path, all_runs: Callable[[], list[Any]]) -> None:
    hfexp = [sys.executable, "-m", "hfexp", *SMALL_DIGITS, "launch=ddp", "launch.num_processes=2"]
    two = done("srun", "--ntasks=2", *hfexp)
    assert two.returncode == 2, two.stderr
    assert two.stderr.count("error: srun has started 2 tasks (SLURM_STEP_NUM_TASKS)") == 2
    assert list(place.iterdir()) == []
    one = done("srun", "--ntasks=1", "--cpus-per-task=2", *hfexp)
    assert one.returncode == 0, one.stdout + one.stderr
    script = f"--wrap={shlex.join([*hfexp, 'seed=2'])}"
    batch = done("sbatch", "--wait", "--ntasks=2", "--output=batch.log", script)
    assert batch.returncode == 0, batch.stderr + (place / "batch.log").read_text()
    found = [(run.info.status, run.data.params["launch.num_processes"]) for run in all_runs()]
    assert found == [("FINISHED", "2")] * 2
