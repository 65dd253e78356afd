"""What is said of a training while it goes on."""

import types
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from hfexp.experiment import callbacks
from hfexp.experiment.callbacks import ShowProgress, TrackingCallback
from hfexp.tracking.journal import Journal
from hfexp.tracking.run_directory import RunDirectory, RunState
from hfexp.tracking.tracker import MlflowTracker


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the clock shows, to be set."""
    seconds = [1000.0]
    monkeypatch.setattr(callbacks, "time", types.SimpleNamespace(perf_counter=lambda: seconds[0]))
    return seconds


def lines(args: Any, clock: list[float], steps: list[float], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What is said of a training from step 100 of 110 on whose steps take so many seconds, evaluated after each."""
    shown, control = ShowProgress("accuracy"), TrainerControl()
    state = TrainerState(global_step=100, max_steps=110, num_train_epochs=2, epoch=1.0)
    shown.on_train_begin(args, state, control)
    for seconds in steps:
        clock[0] += seconds
        state.global_step += 1
        shown.on_step_end(args, state, control)
        shown.on_evaluate(args, state, control)
    shown.close()
    return capsys.readouterr().out.splitlines()


def test_the_first_step_is_in_no_forecast(clock: list[float], tmp_path: Any, capsys: Any) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=4, use_cpu=True)
    first, second, third = lines(args, clock, [60, 2, 4], capsys)
    assert "step 101/110" in first
    assert first.endswith("  540 s left"), "nothing else is known yet"
    assert second.endswith("  2 samples/s  16 s left")
    assert third.endswith("  1 samples/s  21 s left")


def test_the_bar_ends_with_the_last_evaluation(
    clock: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[tuple[Any, ...]] = []
    monkeypatch.setattr(callbacks, "is_terminal", lambda: True)
    monkeypatch.setattr(callbacks, "move_bar", lambda *move: moves.append(move))
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    shown, control = ShowProgress("accuracy"), TrainerControl()
    state = TrainerState(global_step=4, max_steps=4, num_train_epochs=1, epoch=1.0)
    shown.on_step_end(args, state, control)
    shown.on_log(args, state, control, logs={"eval_accuracy": 0.75})
    shown.on_evaluate(args, state, control)
    assert moves[-1][:3] == (4, 4, "epoch 1/1")
    assert moves[-1][3].startswith("eval_accuracy 0.7500")


def test_compiling_is_said_beforehand(clock: list[float], tmp_path: Any, capsys: Any) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), torch_compile_backend="aot_eager", use_cpu=True)
    assert "the first step compiles the model" in lines(args, clock, [], capsys)[0]


def test_what_a_checkpoint_knows_and_the_record_does_not_is_recorded(run_dir: Path, uri: str) -> None:
    directory = RunDirectory(run_dir, RunState("0" * 64), resumed=True, checkpoint=None)
    Journal(run_dir).append("metrics", metrics={"loss": 3.0}, step=1, time=1)
    tracker = MlflowTracker(directory, uri, run_dir.parent)
    history = [{"loss": 3.0, "step": 1}, {"loss": 2.0, "step": 2}, {"eval_loss": 2.5, "step": 2}]
    state = TrainerState(global_step=2, log_history=history, is_world_process_zero=True)
    record = TrackingCallback(types.SimpleNamespace(tracker=tracker))  # pyright: ignore
    args = TrainingArguments(output_dir=str(run_dir), use_cpu=True, report_to="none")
    record.on_train_begin(args, state, TrainerControl())
    state.global_step = 3
    record.on_log(args, state, TrainerControl(), logs={"loss": 1.0})
    recorded = [(entry["step"], entry["metrics"]) for entry, _ in tracker.journal.read()]
    assert recorded == [(1, {"loss": 3.0}), (2, {"loss": 2.0}), (2, {"eval_loss": 2.5}), (3, {"loss": 1.0})]
