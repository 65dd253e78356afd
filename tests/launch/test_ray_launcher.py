"""The Ray launcher on a cluster of two nodes: jobs whose node dies, and a command that is stopped."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import ray_cluster
from conftest import ROOT, SMALL_DIGITS, TESTS

from hfexp.commands import cli
from hfexp.core.errors import ConfigError
from hfexp.launch.ray_launcher import _require_answer, room

GATE = [*SMALL_DIGITS, "trainer.args.logging_steps=1", "security.allowed_targets=[faults]"]
GATE += ["trainer.callbacks.gate={_target_: faults.Gate, at: 2}"]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the package ray")


def test_how_many_jobs_there_is_room_for() -> None:
    nodes = [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 3.0}, {"CPU": 8.0, "GPU": 1.0, "license": 1.0}]
    assert room(nodes, {"CPU": 1, "GPU": 0}) == 15
    assert room(nodes, {"CPU": 2, "GPU": 0}) == 7
    assert room(nodes, {"CPU": 0.5, "GPU": 0.4}) == 6, "no job gets parts of two devices"
    assert room(nodes, {"CPU": 0.1, "license": 1}) == 1
    assert room(nodes, {"CPU": 16}) == 0


def test_without_the_package(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else find(name, *more))
    assert cli.main([*SMALL_DIGITS, "-m", "seed=1,2", "hydra/launcher=ray"]) == 2
    assert "hydra/launcher=ray needs the package ray (pip install 'hfexp[ray]')" in capsys.readouterr().err
    assert not list(place.iterdir())


@needs_ray
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("num_cpus=0", "num_cpus=0.0 must be more than 0"),
        ("num_gpus=-1", "num_gpus=-1.0 must be a finite number of at least 0"),
        ("n_jobs=0", "n_jobs=0 must be at least 1"),
        ("numcpus=1", "numcpus"),
    ],
)
def test_wrong_settings(word: str, message: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*SMALL_DIGITS, "-m", "seed=1,2", "hydra/launcher=ray", f"hydra.launcher.{word}"]) == 2
    assert message in capsys.readouterr().err
    assert not list(place.iterdir())


class RayCluster:
    """A cluster in a process of its own."""

    def __init__(self, directory: str) -> None:
        program = [sys.executable, str(TESTS / "ray_cluster.py"), directory]
        pipe = subprocess.PIPE
        with open(f"{directory}/log", "w") as log:
            self.process = subprocess.Popen(program, stdin=pipe, stdout=pipe, stderr=log, text=True)
        self.address = self.read()

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill_second_node(self) -> None:
        assert self.process.stdin is not None
        print("kill", file=self.process.stdin, flush=True)
        assert self.read() == "killed"

    def start(self, words: list[str], place: Path) -> subprocess.Popen[str]:
        more = ["-m", "hydra/launcher=ray", f"hydra.launcher.address='{self.address}'"]
        environment = {**os.environ, **ray_cluster.OWN_ADDRESS, "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}"}
        return subprocess.Popen(
            [sys.executable, "-m", "hfexp", *words, *more],
            cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip

    def run(self, words: list[str], place: Path) -> str:
        process = self.start(words, place)
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 0, output
        return output


@pytest.fixture
def cluster() -> Iterator[RayCluster]:
    directory = tempfile.mkdtemp(prefix="ray.")  # the path of a socket must be short
    made = RayCluster(directory)
    try:
        yield made
    finally:
        made.process.communicate(timeout=60)
        shutil.rmtree(directory, ignore_errors=True)


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def runs_of(place: Path) -> tuple[Any, list[Any]]:
    """The sweep's own run, and those of its jobs."""
    client = mlflow.MlflowClient(f"sqlite:///{place / 'outputs' / 'mlflow.db'}")
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    (parent,) = (run for run in found if run.data.tags.get("hfexp.kind") == "sweep")
    return parent, [run for run in found if run is not parent]


def steps_of(place: Path, run: Any) -> list[int]:
    client = mlflow.MlflowClient(f"sqlite:///{place / 'outputs' / 'mlflow.db'}")
    return [entry.step for entry in client.get_metric_history(run.info.run_id, "loss")]


@needs_ray
@pytest.mark.slow
def test_a_node_that_dies_gives_its_point_back(place: Path, cluster: RayCluster) -> None:
    process = cluster.start([*GATE, "seed=1,2,3"], place)
    wait_for(lambda: len(list(place.glob("held-*"))) == 2, process)
    cluster.kill_second_node()
    wait_for(lambda: list(place.glob("outputs/digits/*/checkpoints/checkpoint-2")), process)
    (place / "go").touch()
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    assert output.count("has lost its node or worker: starting it again") == 1
    parent, jobs = runs_of(place)
    assert [run.info.status for run in (parent, *jobs)] == ["FINISHED"] * 4
    assert sorted(run.data.params["seed"] for run in jobs) == ["1", "2", "3"]
    assert [steps_of(place, run) for run in jobs] == [[1, 2, 3, 4, 5, 6]] * 3
    logs = [path.read_text() for path in place.glob("outputs/digits/*/hfexp.log")]
    assert sum("continuing from checkpoint-2" in log for log in logs) == 1


@needs_ray
@pytest.mark.slow
def test_interrupted_its_jobs_write_checkpoints(place: Path, cluster: RayCluster) -> None:
    process = cluster.start([*GATE, "seed=1,2,3"], place)
    wait_for(lambda: len(list(place.glob("held-*"))) == 2, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "stopping 2 jobs" in output
    assert len(list(place.glob("outputs/digits/*/checkpoints/checkpoint-2"))) == 2
    assert {run.info.status for run in runs_of(place)[1]} == {"KILLED"}
    (place / "go").touch()
    output = cluster.run([*GATE, "seed=1,2,3"], place)
    parent, jobs = runs_of(place)
    assert [run.info.status for run in (parent, *jobs)] == ["FINISHED"] * 4
    assert [steps_of(place, run) for run in jobs] == [[1, 2, 3, 4, 5, 6]] * 3


def test_an_address_that_nobody_answers_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        _require_answer(address)
    with pytest.raises(ConfigError, match=rf"hydra.launcher.address={address}: nothing answers there"):
        _require_answer(address)
    for other in (None, "auto", "local"):  # Ray finds these by itself
        _require_answer(other)
