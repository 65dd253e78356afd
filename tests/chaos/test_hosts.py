"""Two hosts that share a database and a tracking server, killed and emptied again and again, end as if undisturbed.

They are network namespaces with names of their own, as in `netns`, or only directories where these are not allowed.
"""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import netns
import optuna
import psutil
import pytest
from conftest import ROOT, SMALL_DIGITS, TESTS
from forks import Forks
from mlflow.artifacts import download_artifacts
from netns import Namespace
from programs import OUTPUT, kill, suspend
from servers import MlflowServer, Postgres

from hfexp.experiment.sweep_storage import close_storage, open_storage
from hfexp.sweep.study import OWNER

POINTS = int(os.environ.get("HFEXP_HOSTS_POINTS", "40"))
KILLS = int(os.environ.get("HFEXP_HOSTS_KILLS", "20"))
LONGEST = 4.0
"""Seconds from the first new job of a host until it is struck at the latest."""
AWAY = 4
"""Of ten strikes, the one after which the host stays away until the other has taken over its points."""
RATES = ",".join(f"{(number + 1) * 1e-4:g}" for number in range(POINTS))


@dataclass
class Network:
    """The servers' address, and what each host is."""

    address: str
    spaces: dict[str, Namespace | None]


@pytest.fixture
def network() -> Iterator[Network]:
    """Two hosts that reach the servers on this one over a link each."""
    if netns.why_not():
        yield Network("127.0.0.1", {"here": None, "there": None})
        return
    here, there = Namespace("here", "10.98.1.2"), Namespace("there", "10.98.2.2")
    with netns.namespaces(here, there):
        netns.join_outside(here, "10.98.1.1")
        netns.join_outside(there, "10.98.2.1")
        yield Network("10.98.1.1", {"here": here, "there": there})


@pytest.fixture
def postgres(network: Network) -> Iterator[Postgres]:
    cluster = Postgres(network.address).start()
    yield cluster
    cluster.stop()


class Host:
    """A directory, and perhaps a namespace, in which the command is started, struck and started again."""

    def __init__(self, place: Path, words: list[str], space: Namespace | None) -> None:
        self.place, self.words = place, words
        place.mkdir()
        (place / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {place.name}\n")
        warm = [sys.executable, str(TESTS / "forks.py"), str(place / "forks")]
        # The commands are forked from a warm process inside: a third of the time.
        self.warm = subprocess.Popen(
            space.within(place / "hosts", *warm) if space else warm,
            cwd=place, env={**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{ROOT}"},
        )  # fmt: skip
        self.forks: Any = Forks(place / "forks").wait(300)
        self.start()

    def start(self) -> None:
        self.before = self.jobs()
        self.command = self.forks.fork(self.place, self.words)

    def end(self) -> None:
        kill(suspend(self.family))
        self.warm.kill()
        self.warm.wait()

    def family(self) -> list[psutil.Process]:
        """The command and its jobs."""
        return processes(self.command.pids())

    def exit_code(self, seconds: float) -> int | None:
        """That of the command, once it has ended; None if it goes on for longer."""
        return self.command.exit_code(seconds)

    def jobs(self) -> int:
        return len(list((self.place / "outputs/sweeps/hosts/points").glob("*.json")))

    def is_over(self) -> bool:
        return self.exit_code(0) is not None

    def output(self) -> str:
        return (self.place / OUTPUT).read_text()

    def wait_for_a_job(self) -> None:
        """Until a job has begun that had not before, or the sweep is over."""
        while self.jobs() <= self.before and not self.is_over():
            time.sleep(0.05)

    def strike(self, how: str) -> None:
        """Kill everything and perhaps empty the directory, or only the sweeper, or only its jobs."""
        sweeper = processes([self.command.pid()])
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


def processes(pids: list[int]) -> list[psutil.Process]:
    """Those that are still there."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return found


@pytest.mark.slow
def test_two_hosts_killed_again_and_again_do_each_point_once(
    network: Network, postgres: Postgres, tmp_path: Path
) -> None:
    server = MlflowServer(tmp_path, postgres.new_database(), network.address).start()
    storage = postgres.new_database()
    words = [
        "-m", *SMALL_DIGITS, f"trainer.args.learning_rate={RATES}", "launch.num_threads=1", "search.name=hosts",
        f"search.storage={storage}", "search.retries=99", f"tracking.uri={server.uri}", "tracking.experiment=hosts",
        "tracking.checkpoints=all",
    ]  # fmt: skip
    hosts: list[Host] = []
    try:
        hosts += [Host(tmp_path / name, words, space) for name, space in network.spaces.items()]
        strike_again_and_again(hosts, random.Random(0), storage)
        finish(hosts)
        check(server.uri, storage)
    finally:
        server.stop()
        for host in hosts:
            host.end()


def strike_again_and_again(hosts: list[Host], moments: random.Random, storage: str) -> None:
    """Each time at a random moment after a job of a random host has begun; some hosts do not come back for a while."""
    for number in range(KILLS):
        host = moments.choice(hosts)
        host.wait_for_a_job()
        time.sleep(moments.uniform(0, LONGEST))
        stays_away = number % 10 == AWAY
        if not host.is_over():
            ways = ["all", "emptied"] if stays_away else ["all", "emptied", "emptied", "sweeper", "jobs"]
            host.strike(moments.choice(ways))
        if stays_away:
            wait_for_takeover(storage, host.command.pid())
        for each in hosts:
            if each.is_over():
                each.start()


def wait_for_takeover(storage: str, pid: int) -> None:
    """Until the other host has taken over the points of a dead sweeper."""
    opened = open_storage(storage)
    study = optuna.load_study(study_name="hosts", storage=opened)
    deadline = time.monotonic() + 300

    def owners() -> list[Any]:
        trials = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        return [json.loads(trial.user_attrs[OWNER]) for trial in trials]

    while any(owner[1] == pid for owner in owners()):
        assert time.monotonic() < deadline, owners()
        time.sleep(0.5)
    close_storage(opened)


def finish(hosts: list[Host]) -> None:
    """Wait for the end; points whose jobs were killed are tried again by the next start."""
    for _ in range(5):
        for host in hosts:
            if host.exit_code(1800) != 0:
                host.start()
    assert [host.exit_code(1800) for host in hosts] == [0, 0], [host.output() for host in hosts]


def check(uri: str, storage: str) -> None:
    """Every trial once, with the value that its only finished run has; one parent with the whole table.

    As on one host, a job that failed before its first checkpoint keeps its record and is tried again in a new run. A
    run that the server had only after another host had looked for it is closed by the one that finishes the point.
    """
    opened = open_storage(storage)
    trials = optuna.load_study(study_name="hosts", storage=opened).get_trials()
    close_storage(opened)
    assert Counter(trial.state.name for trial in trials) == {"COMPLETE": POINTS}
    client: Any = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("hosts")
    runs = client.search_runs([experiment.experiment_id])
    for run in [run for run in runs if run.info.status != "FINISHED"]:
        reason = run.data.tags["hfexp.status_reason"]
        assert run.info.status == "FAILED", reason
        assert "SIGKILL" in reason or "superseded by the run" in reason
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
