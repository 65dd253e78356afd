"""Two hosts that share a database and a tracking server, killed and emptied again and again, end as if undisturbed."""

import contextlib
import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import optuna
import psutil
import pytest
from conftest import SMALL_DIGITS
from mlflow.artifacts import download_artifacts
from programs import Fork, kill, suspend
from servers import MlflowServer, Postgres

from hfexp.experiment.sweep_storage import close_storage, open_storage

POINTS = int(os.environ.get("HFEXP_HOSTS_POINTS", "40"))
KILLS = int(os.environ.get("HFEXP_HOSTS_KILLS", "20"))
LONGEST = 4.0
"""Seconds from the first new job of a host until it is struck at the latest."""
RATES = ",".join(f"{(number + 1) * 1e-4:g}" for number in range(POINTS))


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    cluster = Postgres().start()
    yield cluster
    cluster.stop()


class Host:
    """A directory of its own in which the command is started, struck and started again."""

    def __init__(self, place: Path, words: list[str]) -> None:
        self.place, self.words = place, words
        self.process = self.start()

    def start(self) -> Fork:
        self.before = self.jobs()
        self.process = Fork(self.place, self.words)
        return self.process

    def family(self) -> list[psutil.Process]:
        """The processes of this host: both hosts fork theirs from one server, and each works in its directory."""
        members = []
        for member in self.process.family():
            with contextlib.suppress(psutil.Error):
                if member.cwd() == str(self.place):
                    members.append(member)
        return members

    def jobs(self) -> int:
        return len(list((self.place / "outputs/sweeps/hosts/points").glob("*.json")))

    def is_over(self) -> bool:
        return self.process.exit_code(0) is not None

    def output(self) -> str:
        return (self.place / "output").read_text()

    def wait_for_a_job(self) -> None:
        """Until a job has begun that had not before, or the sweep is over."""
        while self.jobs() <= self.before and not self.is_over():
            time.sleep(0.05)

    def strike(self, how: str) -> None:
        """Kill everything and perhaps empty the directory, or only the sweeper, or only its jobs."""
        sweeper = self.process.itself()
        jobs = [member for member in self.family() if member not in sweeper]
        if how == "jobs":
            kill(jobs)
        elif how == "sweeper":
            kill(sweeper)
            psutil.wait_procs(jobs, timeout=300)
        else:
            kill(suspend(self.family))
        if how == "emptied":
            shutil.rmtree(self.place / "outputs", ignore_errors=True)


@pytest.mark.slow
def test_two_hosts_killed_again_and_again_do_each_point_once(postgres: Postgres, tmp_path: Path) -> None:
    server, storage = MlflowServer(tmp_path, postgres.new_database()).start(), postgres.new_database()
    words = [
        "-m", *SMALL_DIGITS, f"trainer.args.learning_rate={RATES}", "launch.num_threads=1", "search.name=hosts",
        f"search.storage={storage}", "search.retries=99", f"tracking.uri={server.uri}", "tracking.experiment=hosts",
        "tracking.checkpoints=all",
    ]  # fmt: skip
    hosts: list[Host] = []
    try:
        hosts += [Host(tmp_path / name, words) for name in ("here", "there")]
        strike_again_and_again(hosts, random.Random(0))
        finish(hosts)
        check(server.uri, storage)
    finally:
        server.stop()
        for host in hosts:
            kill(suspend(host.family))


def strike_again_and_again(hosts: list[Host], moments: random.Random) -> None:
    """Each time at a random moment after a job of a random host has begun."""
    for _ in range(KILLS):
        host = moments.choice(hosts)
        host.wait_for_a_job()
        time.sleep(moments.uniform(0, LONGEST))
        if not host.is_over():
            host.strike(moments.choice(["all", "emptied", "emptied", "sweeper", "jobs"]))
        for each in hosts:
            if each.is_over():
                each.start()


def finish(hosts: list[Host]) -> None:
    """Wait for the end; points whose jobs were killed are tried again by the next start."""
    for _ in range(5):
        for host in hosts:
            if host.process.exit_code(1800) != 0:
                host.start()
    assert [host.process.exit_code(1800) for host in hosts] == [0, 0], [host.output() for host in hosts]


def check(uri: str, storage: str) -> None:
    """Every trial once, with the value that its only finished run has; one parent with the whole table.

    As on one host, a job that failed before its first checkpoint keeps its record and is tried again in a new run.
    """
    opened = open_storage(storage)
    trials = optuna.load_study(study_name="hosts", storage=opened).get_trials()
    close_storage(opened)
    assert Counter(trial.state.name for trial in trials) == {"COMPLETE": POINTS}
    client: Any = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("hosts")
    runs = client.search_runs([experiment.experiment_id])
    for run in [run for run in runs if run.info.status != "FINISHED"]:
        assert (run.info.status, "SIGKILL" in run.data.tags["hfexp.status_reason"]) == ("FAILED", True)
    finished = [run for run in runs if run.info.status == "FINISHED"]
    (parent,) = (run for run in runs if run.data.tags.get("hfexp.kind") == "sweep")
    children = {int(run.data.tags["hfexp.trial"]): run for run in finished if run is not parent}
    assert len(finished) == 1 + POINTS
    assert sorted(children) == list(range(POINTS))
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    for trial in trials:
        run = children[trial.number]
        assert json.loads(run.data.tags["hfexp.values"]) == trial.values == [run.data.metrics["final_eval_loss"]]
        for name in ("loss", "eval_loss"):
            steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
            assert len(steps) == len(set(steps)), (trial.number, name, steps)
    table = json.loads(Path(download_artifacts(
        run_id=parent.info.run_id, artifact_path="trials.json", tracking_uri=uri)).read_text())  # fmt: skip
    state = table["columns"].index("state")
    assert [row[state] for row in table["data"]] == ["finished"] * POINTS
    assert parent.data.tags["hfexp.trials.finished"] == str(POINTS)
