"""The command line: light where it must be, and its words, codes and messages."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hfexp
from hfexp.commands import cli
from hfexp.core.config import LaunchConfig
from hfexp.core.errors import RunError
from hfexp.core.hydra_app import hydra_args
from hfexp.launch import world

HEAVY = ("torch", "transformers", "datasets", "mlflow", "evaluate", "accelerate", "numpy")

PROBE = """
import sys
from hfexp.commands.cli import main
try:
    code = main()
except SystemExit as error:
    code = error.code
heavy = [name for name in {heavy} if name in sys.modules]
print("HEAVY", heavy, "CODE", code)
"""


def probe(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own and report what it imported."""
    script = PROBE.format(heavy=HEAVY)
    command = [sys.executable, "-c", script, *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("words", "code", "shown"),
    [
        (["--help"], 0, "Find out more"),
        (["list", "models"], 0, "vit_tiny"),
        (["help", "seed"], 0, "seed  (int)"),
        (["--cfg", "job"], 0, "learning_rate: 0.001"),
        (["trainer.args.learning_rat=1"], 2, "Did you mean 'learning_rate'?"),
        (["modle=vit_base"], 2, "Did you mean 'model'?"),
        (["-m", "model=vit_bas,vit_tiny"], 2, "Did you mean 'vit_base'?"),
        (["version"], 0, f"hfexp {hfexp.__version__}"),
    ],
)
def test_nothing_heavy_is_imported_before_a_run(words: list[str], code: int, shown: str, place: Path) -> None:
    done = probe(*words, cwd=place)
    assert f"HEAVY [] CODE {code}" in done.stdout, done.stdout + done.stderr
    assert shown in done.stdout + done.stderr
    left = [str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()]
    assert left == []


def test_the_first_word_is_a_command_or_an_override(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    assert cli.main(["trian"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err


def test_flags_may_stand_after_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hydra_args(["seed=1", "--cfg", "job", "name=x"], cli.COMMANDS) == [
        "--cfg", "job", "seed=1", "name=x", "experiment=digits_vit",
    ]  # fmt: skip


def test_traceback_only_for_who_asks(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["seed=abc"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert cli.main(["seed=abc"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lr=1e-3"], "trainer.args.learning_rate"),
        (["learning_rate=1e-3"], "trainer.args.learning_rate"),
        (["trainer.learning_rate=1e-3"], "trainer.args.learning_rate"),
        (["optimizer.lr=1e-3"], "trainer.args."),
        (["--learning_rate", "1e-3"], "trainer.args.learning_rate=1e-3"),
        (["--per-device-train-batch-size=8"], "trainer.args.per_device_train_batch_size=8"),
        (["--seed", "3"], "write seed=3"),
        (["--model_name_or_path", "x"], "model.path="),
        (["epochs=3"], "trainer.args.num_train_epochs"),
        (["trainer.max_epochs=3"], "trainer.args.num_train_epochs"),
        (["trainer.args.epochs=3"], "Use num_train_epochs"),
        (["batch_size=8"], "trainer.args.per_device_train_batch_size"),
        (["validation_size=0.3"], "dataset.validation_size"),
        (["seed=1,2"], "hfexp -m seed=1,2"),
        (["hparams_search=mnist"], "search=tpe"),
        (["logger=wandb"], "tracking=mlflow"),
        (["report_to=wandb"], "tracking.also=[NAME]"),
        (["push_to_hub=true"], "hf upload"),
        (["trainer=ddp"], "launch=ddp"),
        (["hydra/sweeper=optuna"], "search=tpe"),
        (["trainer.args.optim=adam"], "Did you mean 'adamw_torch'?"),
        (["--config-dir", "own", "experiment=template"], "search=tpe"),
        (["--config-dir", "own", "experiment=lightning"], "trainer.args.num_train_epochs"),
        (["--config-dir", "own", "experiment=logger"], "tracking=mlflow"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_habits_are_answered_in_one_line(
    words: list[str], said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiments = {
        "template": "hydra: {sweeper: {n_trials: 2, direction: maximize}}",
        "lightning": "trainer: {max_epochs: 3}",
        "logger": "defaults: [{override /logger: wandb}]",
    }
    (place / "own" / "experiment").mkdir(parents=True)
    for name, content in experiments.items():
        (place / "own" / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{content}\n")
    assert cli.main(words) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("hfexp: error: ")
    assert said in message
    assert [path.name for path in place.iterdir()] == ["own"]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "4"}, ["WORLD_SIZE=4", "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not set"]),
        ({"LOCAL_RANK": "0"}, ["LOCAL_RANK=0", "are not set"]),
        ({"WORLD_SIZE": "2", "RANK": "5", "LOCAL_RANK": "0", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, ["RANK=5"]),
        ({"WORLD_SIZE": "two", "RANK": "0"}, ["WORLD_SIZE=two"]),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, ["OMPI_COMM_WORLD_SIZE=4", "launch=ddp"]),
        ({"ACCELERATE_USE_CPU": "False", "MASTER_PORT": "29500"}, ["`accelerate launch` was asked for several"]),
        ({"ACCELERATE_USE_CPU": "False"}, ["unknown key 'sed'"]),
        ({"RANK": "3"}, ["unknown key 'sed'"]),
        ({"WORLD_SIZE": "1", "RANK": "0"}, ["unknown key 'sed'"]),
    ],
)
def test_variables_of_processes_that_are_not_there(
    variables: dict[str, str],
    said: list[str],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["sed=3"]) == 2
    message = capsys.readouterr().err
    for part in said:
        assert part in message


def test_waiting_for_processes_that_do_not_come_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    there = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in there.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(world, "QUIET_SECONDS", 0.5)
    with pytest.raises(RunError, match="they did not join"):
        world.connect(LaunchConfig(timeout=2), use_cpu=True)
    shown = f"process 0 of 2 (RANK, WORLD_SIZE) is waiting for 1 other process at 127.0.0.1:{port}, up to 2 s"
    assert shown in capsys.readouterr().err


def test_ui_without_a_store_says_what_to_do(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ui"]) == 2
    assert "run `hfexp` first" in capsys.readouterr().err
    assert list(place.iterdir()) == []


LOST = """
import signal, sys, time
from hfexp.commands import cli

class Held:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)  # Python handles it here, where nothing can be raised
        sum(range(1000))

signal.signal(signal.SIGINT, signal.default_int_handler)
cli.keep_interrupts()
try:
    Held()
    time.sleep(60)
    print("lost")
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_is_repeated_also_if_it_interrupts_its_own_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a busy machine, where a timer can be over while `start` still waits for its thread."""
    started: list[tuple[Any, ...]] = []

    class Timer:
        def __init__(self, *args: Any) -> None:
            self.args = args

        def start(self) -> None:
            started.append(self.args)
            if len(started) == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(cli.threading, "Timer", Timer)
    cli._repeat_interrupt()
    assert started == [(cli.SOON, os.kill, [os.getpid(), signal.SIGINT])] * 2


def test_ctrl_c_in_a_finalizer_is_not_lost() -> None:
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, timeout=50)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")
    without = LOST.replace("cli.keep_interrupts()", "").replace("sleep(60)", "sleep(0)")
    assert "lost" in subprocess.run([sys.executable, "-c", without], capture_output=True, text=True, timeout=60).stdout
