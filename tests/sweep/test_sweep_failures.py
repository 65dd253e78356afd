"""Jobs that fail in every way, in one sweep of trainings: the others finish, and each failure is told."""

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from conftest import ROOT, SMALL_DIGITS, TESTS

HOW = "trainer.callbacks.fault.how"
WAYS = {
    "fine": None,
    "memory": "can't allocate memory",
    "diverging": "training diverged",
    "SIGSEGV": "was killed by SIGSEGV",
    "SIGKILL": "was killed by SIGKILL",
    "invalid": "trainer.args",
    "fine_too": None,
}


@pytest.mark.slow
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_every_kind_of_failure(n_jobs: int, place: Path) -> None:
    words = [
        *SMALL_DIGITS, "security.allowed_targets=[faults]",
        "trainer.callbacks.fault={_target_: faults.Break, at: 2}", f"{HOW}={','.join(WAYS)}",
        f"search.space={{trainer.args.optim: {{values: adamw_wrong, when: {{{HOW}: invalid}}}}}}",
        "search.name=zoo", "search.retries=0", f"hydra.launcher.n_jobs={n_jobs}", "launch.num_threads=1",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "hfexp", "-m", *words], capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "5 of 7 jobs failed" in done.stderr
    rows = {
        way: line for way in WAYS for line in done.stdout.splitlines() if f"{HOW}={way} " in line and line[0].isdigit()
    }
    assert set(rows) == set(WAYS)
    for way, reason in WAYS.items():
        assert ("failed: " in rows[way]) == (reason is not None), rows[way]
        assert (reason or "") in rows[way]
        assert way.startswith("fine") or f"({HOW}={way}" in done.stderr
    client = mlflow.MlflowClient(f"sqlite:///{place / 'outputs/mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    statuses = {run.data.params.get(HOW): run.info.status for run in runs if "hfexp.trial" in run.data.tags}
    endings = {way: "FINISHED" if reason is None else "FAILED" for way, reason in WAYS.items() if way != "invalid"}
    assert statuses == endings
    (parent,) = (run for run in runs if run.data.tags.get("hfexp.kind") == "sweep")
    assert parent.info.status == "FAILED"
    assert parent.data.tags["hfexp.trials.failed"] == "5"
