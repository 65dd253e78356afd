"""Killed at the worst moment: the same command goes on, in the same MLflow run, to the same numbers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import SMALL_DIGITS, TESTS
from faults import fault_at

from hfexp.commands import api


def start(words: list[str], cwd: Path, start_new_session: bool = False) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-m", "hfexp", *words]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=start_new_session,
    )


def finish(words: list[str], cwd: Path) -> tuple[int, str]:
    process = start(words, cwd)
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


def comparable(metrics: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if k.startswith(("final_", "test_")) and not k.endswith(
        ("runtime", "per_second", "preparation_time"))}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "step", "code", "status", "checkpoint"),
    [
        # In mid-epoch: it writes one.
        pytest.param("SIGTERM", 5, 143, "KILLED", "checkpoint-5", marks=pytest.mark.slow),
        # At the end of an epoch: after its evaluation.
        pytest.param("SIGTERM", 6, 143, "KILLED", "checkpoint-6", marks=pytest.mark.slow),
        ("SIGKILL", 5, -9, "RUNNING", "checkpoint-3"),
        pytest.param("SIGINT", 5, 130, "KILLED", "checkpoint-3", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on(
    name: str, step: int, code: int, status: str, checkpoint: str, place: Path, all_runs: Callable[[], list[Any]]
) -> None:
    words = [*SMALL_DIGITS, "trainer.args.num_train_epochs=3", "trainer.args.logging_steps=1", *fault_at(step)]
    (place / "fault").write_text(name)
    returned, output = finish(words, place)
    assert returned == code, output
    assert "Traceback" not in output
    (killed,) = all_runs()
    assert killed.info.status == status
    result = api.train(*words)
    (run,) = all_runs()
    assert (run.info.run_id, run.info.status) == (killed.info.run_id, "FINISHED")
    assert result.run_id == run.info.run_id
    assert run.data.params.keys() >= {"seed", "model.num_parameters", "trainer.args.learning_rate"}
    log = (result.run_dir / "hfexp.log").read_text()
    assert f"continuing from {checkpoint}" in log

    whole = api.train(*words, "output_dir=whole")
    assert comparable(result.metrics) == comparable(whole.metrics)
    assert comparable(run.data.metrics) == comparable(whole.metrics)
    client = mlflow.MlflowClient(f"sqlite:///{place / 'outputs' / 'mlflow.db'}")
    for metric in ("loss", "eval_loss"):
        steps = [point.step for point in client.get_metric_history(run.info.run_id, metric)]
        assert steps == sorted(set(steps)), "a step was recorded twice"


@pytest.mark.slow
def test_sigterm_to_a_group_with_data_loader_workers(place: Path, all_runs: Callable[[], list[Any]]) -> None:
    words = [*SMALL_DIGITS, "trainer.args.num_train_epochs=500", "trainer.args.dataloader_num_workers=1"]
    process = start(words, place, start_new_session=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "epoch 3/" in line:
            break
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    (run,) = all_runs()
    assert run.info.status == "KILLED"


def test_sigterm_before_training_ends_it_at_once(place: Path) -> None:
    process = start([*SMALL_DIGITS], place)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("hfexp ")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143 or process.returncode == -signal.SIGTERM
    assert not list(place.glob("outputs/digits/*/checkpoints"))


@pytest.mark.slow
def test_killed_at_random_moments_ten_times(place: Path, all_runs: Callable[[], list[Any]]) -> None:
    """Each start is killed with SIGKILL somewhere between its first line and its end; the last one finishes."""
    words = [*SMALL_DIGITS, "trainer.args.num_train_epochs=30", "trainer.args.logging_steps=1"]
    for attempt in range(10):
        process = start(words, place)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(5 + 0.7 * attempt)
        process.kill()
        process.communicate()
    code, output = finish(words, place)
    assert code == 0, output
    finished = [run for run in all_runs() if run.info.status == "FINISHED"]
    assert len(finished) >= 1
    whole = api.train(*words, "output_dir=whole")
    for run in finished:
        assert comparable(run.data.metrics) == comparable(whole.metrics)
    assert not list(place.glob("outputs/digits/*/checkpoints/.incomplete"))
