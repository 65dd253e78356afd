"""Sweeps of real trainings, killed with everything that belongs to them, end as if undisturbed."""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import mlflow
import optuna
import psutil
import pytest
from conftest import SMALL_DIGITS

TESTS = Path(__file__).parent
ROUNDS = int(os.environ.get("HFEXP_CHAOS", "2"))
"""`make chaos` makes ten."""
POINTS, KILLS = 20, 10
LONGEST = 12.0
"""Seconds after a start of the command until it is killed at the latest, once its first job has begun."""
RATES = ",".join(f"{(number + 1) * 1e-4:g}" for number in range(POINTS))
WORDS = ["-m", *SMALL_DIGITS, f"trainer.args.learning_rate={RATES}", "search.name=chaos", "launch.num_threads=1"]


def start(place: Path) -> subprocess.Popen[str]:
    place.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "hfexp", *WORDS], cwd=place, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"},
    )  # fmt: skip


def kill_all(process: subprocess.Popen[str]) -> None:
    """With all that it has started, so that nothing has time for a checkpoint or a last word."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.suspend()
    with contextlib.suppress(psutil.NoSuchProcess):  # what was started in between
        family += psutil.Process(process.pid).children(recursive=True)
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.communicate(timeout=60)
    psutil.wait_procs(family, timeout=60)


def finish(place: Path) -> str:
    process = start(place)
    output, _ = process.communicate(timeout=3600)
    assert process.returncode == 0, output
    return output


def points_begun(place: Path) -> int:
    return len(list((place / "outputs/sweeps/chaos/points").glob("*.json")))


def trials(place: Path) -> list[Any]:
    storage = f"sqlite:///{place / 'outputs/sweeps/chaos/study.db'}"
    found = optuna.load_study(study_name="chaos", storage=storage).get_trials()
    return [(trial.number, trial.state.name, trial.params, trial.values) for trial in found]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    place = tmp_path_factory.mktemp("whole")
    finish(place)
    return trials(place)


@pytest.mark.slow
@pytest.mark.parametrize("chaos", range(ROUNDS))
def test_killed_again_and_again_all_trials_are_done_once(chaos: int, undisturbed: list[Any], tmp_path: Path) -> None:
    moments = random.Random(chaos)
    for _ in range(KILLS):
        process, before = start(tmp_path), points_begun(tmp_path)
        while process.poll() is None and points_begun(tmp_path) == before:
            time.sleep(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(0, LONGEST))
        if process.poll() is None:
            kill_all(process)
        else:
            process.communicate()
    finish(tmp_path)
    assert len(undisturbed) == POINTS
    assert trials(tmp_path) == undisturbed
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'outputs/mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert {run.info.status for run in runs} == {"FINISHED"}
    (parent,) = (run for run in runs if run.data.tags.get("hfexp.kind") == "sweep")
    children = [run for run in runs if run is not parent]
    assert Counter(run.data.tags["hfexp.trial"] for run in children) == Counter(str(n) for n in range(POINTS))
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
