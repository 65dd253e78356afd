"""Sweeps of real trainings, killed with everything that belongs to them, end as if undisturbed."""

import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pytest
from conftest import SMALL_DIGITS
from programs import Fork, Program, kill_all

Start = type[Program] | type[Fork]
ROUNDS = int(os.environ.get("HFEXP_CHAOS", "1"))
"""Of commands that are started from nothing; `make chaos` makes ten."""
FORKED_ROUNDS = 1
POINTS, KILLS = 20, 10
LONGEST = 4.0
"""Seconds from the first new job of a command until it is killed at the latest; a job takes one to two."""
RATES = ",".join(f"{(number + 1) * 1e-4:g}" for number in range(POINTS))
WORDS = ["-m", *SMALL_DIGITS, f"trainer.args.learning_rate={RATES}", "search.name=chaos", "launch.num_threads=1"]


def finish(start: Start, place: Path) -> None:
    code = start(place, WORDS).exit_code(3600)
    assert code == 0, (place / "output").read_text()


def points_begun(place: Path) -> int:
    return len(list((place / "outputs/sweeps/chaos/points").glob("*.json")))


def trials(place: Path) -> list[Any]:
    storage = f"sqlite:///{place / 'outputs/sweeps/chaos/study.db'}"
    found = optuna.load_study(study_name="chaos", storage=storage).get_trials()
    return [(trial.number, trial.state.name, trial.params, trial.values) for trial in found]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    place = tmp_path_factory.mktemp("whole")
    finish(Fork, place)
    return trials(place)


@pytest.mark.slow
@pytest.mark.parametrize("chaos", range(FORKED_ROUNDS))
def test_killed_again_and_again_in_forks(chaos: int, undisturbed: list[Any], tmp_path: Path) -> None:
    kill_again_and_again(Fork, random.Random(f"fork {chaos}"), tmp_path)
    check(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("chaos", range(ROUNDS))
def test_killed_again_and_again_all_trials_are_done_once(chaos: int, undisturbed: list[Any], tmp_path: Path) -> None:
    kill_again_and_again(Program, random.Random(chaos), tmp_path)
    check(tmp_path, undisturbed)


def kill_again_and_again(start: Start, moments: random.Random, place: Path) -> None:
    """And let it finish at last.

    Each time at a random moment after a job has begun that had not before; sooner only if there would be too few jobs
    left for the times to come.
    """
    for kill in range(KILLS):
        before, last = points_begun(place), POINTS - KILLS + 1 + kill
        process = start(place, WORDS)
        while process.exit_code(0.02) is None and points_begun(place) == before:
            pass
        moment = time.monotonic() + moments.uniform(0, LONGEST)
        while process.exit_code(0.02) is None and points_begun(place) < last and time.monotonic() < moment:
            pass
        assert process.exit_code(0) is None, (place / "output").read_text()
        kill_all(process)
    finish(start, place)


def check(place: Path, undisturbed: list[Any]) -> None:
    """Every trial once, with the result that it has undisturbed; one parent run, nothing left unfinished."""
    assert len(undisturbed) == POINTS
    assert trials(place) == undisturbed
    client = mlflow.MlflowClient(f"sqlite:///{place / 'outputs/mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert {run.info.status for run in runs} == {"FINISHED"}
    (parent,) = (run for run in runs if run.data.tags.get("hfexp.kind") == "sweep")
    children = [run for run in runs if run is not parent]
    assert Counter(run.data.tags["hfexp.trial"] for run in children) == Counter(str(n) for n in range(POINTS))
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
