"""The same points under each launcher: metrics and weights bit for bit, the same record, the same files."""

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
import ray_cluster
from clusters import cluster, why_not
from conftest import ROOT, SMALL_DIGITS, TESTS

pytestmark = pytest.mark.slow

POINTS = [*SMALL_DIGITS, "launch.num_threads=1", "search.name=same", "-m", "seed=1,2"]
NO_DASHBOARD = ["++hydra.launcher.init.num_cpus=2", "++hydra.launcher.init.include_dashboard=false"]
LAUNCHERS = {
    "basic": [],
    "local": ["hydra.launcher.n_jobs=2", "hydra.launcher.cpus_per_job=1"],
    "joblib": ["hydra.launcher.n_jobs=2"],
    "submitit_local": [],
    "slurm": ["hydra.launcher.cpus_per_task=1"],
    "ray": ["hydra.launcher.address=local", *NO_DASHBOARD],
}
BESIDE = {
    "local": {"sweeps/same/logs/N.log"},
    "ray": {"sweeps/same/logs/N.log"},
    "slurm": {"sweeps/same/logs/N.log"},
    "submitit_local": {f".submitit/N/N_{n}" for n in ("N_log.err", "N_log.out", "N_result.pkl", "submitted.pkl")},
}
"""Files that a launcher adds, with N for numbers."""
TIMES = re.compile(r"^system/|^peak_memory|_runtime$|_per_second$|_seconds$|_time$")
"""Metrics of the machine."""
OWN_TAGS = (
    "hfexp.pid", "hfexp.process", "hfexp.run_dir", "hfexp.run_key", "hfexp.sweep_key", "hfexp.slurm_job",
    "mlflow.user", "mlflow.source.name", "mlflow.log-model.history", "mlflow.loggedModels",
    "mlflow.parentRunId", "hfexp.model_verified",
)  # fmt: skip
"""Tags that differ between two runs of one experiment; a model is verified if its job is the best one at its end."""


@dataclass
class Found:
    """What a sweep has left."""

    runs: dict[str, dict[str, Any]]
    """By name of a run: its record and the hash of its weights."""
    files: set[str]
    """Files below `outputs`, with N for numbers and ID for identifiers."""


def run(name: str, where: Path) -> Found:
    """Run the points with a launcher."""
    own = {"PYTHONPATH": f"{TESTS}{os.pathsep}{ROOT}", "HFEXP_CPUS": "1"}
    words = [*POINTS, f"hydra/launcher={name}", *LAUNCHERS[name]]
    done = subprocess.run(
        [sys.executable, "-m", "hfexp", *words], cwd=where, env={**os.environ, **ray_cluster.OWN_ADDRESS, **own},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = where / "outputs"
    client = mlflow.MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    (parent,) = (run for run in runs if run.data.tags.get("hfexp.kind") == "sweep")
    jobs = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in jobs} == {parent.info.run_id}
    files = {str(path.relative_to(outputs)) for path in outputs.rglob("*") if path.is_file()}
    return Found({run.info.run_name: record(client, run) for run in jobs}, {without_numbers(name) for name in files})


def record(client: Any, run: Any) -> dict[str, Any]:
    """What must be equal."""
    metrics = {
        name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
        if not TIMES.search(name)
    }
    weights = Path(run.data.tags["hfexp.run_dir"]) / "model" / "model.safetensors"
    return {
        "metrics": metrics, "params": dict(run.data.params), "status": run.info.status,
        "tags": {name: value for name, value in run.data.tags.items() if name not in OWN_TAGS},
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }  # fmt: skip


def without_numbers(name: str) -> str:
    return re.sub(r"\d+", "N", re.sub(r"[0-9a-f]{8,}", "ID", name))


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if why_not():
        pytest.skip(f"no SLURM here: {why_not()}")
    with cluster(tmp_path_factory.mktemp("slurm")):
        yield


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """The jobs in the process of the command, one after the other."""
    return run("basic", tmp_path_factory.mktemp("basic"))


@pytest.mark.parametrize("name", [name for name in LAUNCHERS if name != "basic"])
def test_a_launcher_changes_nothing(name: str, reference: Found, place: Path, request: pytest.FixtureRequest) -> None:
    if name == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("needs the package ray")
    if name == "slurm":
        request.getfixturevalue("slurm")
    if name in ("joblib", "submitit_local"):
        pytest.importorskip(f"hydra_plugins.hydra_{name.partition('_')[0]}_launcher")
    found = run(name, place)
    assert len(found.runs) == 2
    for job, expected in reference.runs.items():
        for part, value in expected.items():
            assert found.runs[job][part] == value, (job, part)
    assert found.files - BESIDE.get(name, set()) == reference.files
