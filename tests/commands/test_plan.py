"""`hfexp plan`: the jobs of a command, what is done of them, and what the rest will take; nothing is started."""

import math
from pathlib import Path
from typing import Any

import pytest
import transformers
from conftest import SMALL_DIGITS

from hfexp.commands.cli import main
from hfexp.commands.plan import price
from hfexp.commands.plan_measure import Measurement, cost, cost_key, times, total_steps
from hfexp.core.compose import compose
from hfexp.core.config import Config, to_config

IN_PROCESS = "hydra/launcher=basic"
MEASURED = Measurement(step=0.5, steps_per_epoch=10, evaluation=2.0, checkpoint=1.0, besides=7.0)


def config_of(*words: str) -> Config:
    return to_config(compose(*SMALL_DIGITS, *words)[0])


def test_a_grid_is_listed_with_what_can_not_be_run(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    words = [*SMALL_DIGITS, "seed=1,2,1", "trainer.args.learning_rate=1e-3,fast"]
    assert main(["plan", "--no-probe", "-m", *words]) == 2
    shown = capsys.readouterr()
    assert "new; 4 points: 2 new, 2 invalid" in shown.out
    assert "jobs 1, 3: trainer.args.learning_rate='fast' (str) must be of type float" in shown.err
    assert list(place.iterdir()) == []


def test_points_that_are_the_same_experiment_are_told(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    assert main(["plan", "--no-probe", "-m", *SMALL_DIGITS, "trainer.args.logging_steps=1,2"]) == 0
    assert "the same experiment as job 0" in capsys.readouterr().out


@pytest.mark.slow
def test_what_a_sweep_has_done_is_not_planned_again(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    words = ["-m", *SMALL_DIGITS, "seed=1,2", "search.name=s", IN_PROCESS]
    assert main([*words, "search.trials=1"]) == 0
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["plan", "--no-probe", *words]) == 0
    shown = capsys.readouterr().out
    assert "continues in outputs/sweeps/s; 2 points: 1 new, 1 finished" in shown
    after = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before.get(path) and "study.db" not in path.name} == set()


@pytest.mark.slow
def test_another_sweep_of_the_name_is_refused_as_when_it_is_started(
    capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    assert main(["-m", *SMALL_DIGITS, "seed=1", "search.name=s", IN_PROCESS]) == 0
    assert main(["plan", "--no-probe", "-m", *SMALL_DIGITS, "seed=2,3", "search.name=s"]) == 2
    assert "search.name=s belongs to another sweep" in capsys.readouterr().err


def test_a_single_run_is_planned_and_measured_without_a_trace(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    assert main(["plan", *SMALL_DIGITS, "dataset.max_validation_samples=300", IN_PROCESS]) == 0
    shown = capsys.readouterr().out
    assert "1 run to do: about" in shown
    (row,) = (line.split() for line in shown.splitlines() if line.startswith("0 "))
    assert row[3] == "6"  # two epochs of three steps
    assert list(place.iterdir()) == []


def test_a_job_that_fails_when_it_is_tried_is_invalid(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    broken = place / "broken.py"
    broken.write_text("class Loud:\n    def __init__(self):\n        raise SystemError('no such luck')\n")
    words = [*SMALL_DIGITS, "++trainer.callbacks.loud._target_=broken.Loud", IN_PROCESS]
    assert main(["plan", *words]) == 2
    assert "no such luck" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["seed=1,2"], "seed: several values or a search need a sweep: hfexp plan -m ..."),
        (["-m", "seed=1", "hydra/sweeper=basic"], "hydra/sweeper=basic can't be planned"),
        (["-m", "search=tpe", "seed=1,2"], "search=tpe needs search.trials"),
        (["-m", "sed=1,2"], "sed"),
    ],
)
def test_what_can_not_be_planned_is_said(
    words: list[str], problem: str, capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    assert main(["plan", "--no-probe", *words]) == 2
    assert problem in capsys.readouterr().err


def test_of_a_search_there_are_examples(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    words = [*SMALL_DIGITS, "search=random", "search.trials=7", "trainer=default,fast", "seed=range(1,9)"]
    assert main(["plan", "--no-probe", "-m", *words]) == 0
    shown = capsys.readouterr().out
    assert "7 points, 0 done, the others chosen as results come in" in shown
    assert "trainer=fast" in shown


def test_shapes_are_those_whose_steps_cost_the_same() -> None:
    base = config_of()
    alike = config_of("seed=3", "trainer.args.learning_rate=0.1", "trainer.args.num_train_epochs=9", "name=other")
    assert cost_key(base) == cost_key(alike)
    for word in (
        "trainer.args.per_device_train_batch_size=4",
        "model.config.num_hidden_layers=2",
        "transform=augment",
        "trainer.args.eval_strategy=steps",
    ):
        assert cost_key(config_of(word)) != cost_key(base), word


def training_arguments(tmp_path: Path, **args: Any) -> transformers.TrainingArguments:
    return transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **args)


@pytest.mark.parametrize(
    "args",
    [
        {"num_train_epochs": 2, "eval_strategy": "epoch", "save_strategy": "epoch"},
        {"num_train_epochs": 2.5, "eval_strategy": "epoch", "save_strategy": "no"},
        {"max_steps": 7, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 4},
        {"num_train_epochs": 3, "eval_strategy": "steps", "eval_steps": 0.25, "save_strategy": "no"},
        {"num_train_epochs": 3, "eval_strategy": "steps", "logging_steps": 4, "save_strategy": "no"},
        {"num_train_epochs": 2, "gradient_accumulation_steps": 3, "eval_strategy": "epoch", "save_strategy": "epoch"},
        {"num_train_epochs": 1, "eval_strategy": "no", "save_strategy": "steps", "save_steps": 2},
    ],
)
def test_steps_evaluations_and_checkpoints_are_counted_as_the_trainer_makes_them(
    args: dict[str, Any], tmp_path: Path
) -> None:
    import torch

    class Counter(transformers.TrainerCallback):
        evaluations = saves = 0

        def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
            self.evaluations += 1

        def on_save(self, *args: Any, **kwargs: Any) -> None:
            self.saves += 1

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
            return {"loss": (self.weight * x).mean(), "logits": self.weight * x}

    rows = [{"x": torch.ones(1), "labels": torch.zeros(1)} for _ in range(20)]
    counter = Counter()
    trainer = transformers.Trainer(
        model=Model(),
        args=training_arguments(tmp_path, per_device_train_batch_size=4, report_to="none", disable_tqdm=True, **args),
        train_dataset=rows,  # pyright: ignore
        eval_dataset=rows[:4],  # pyright: ignore
        callbacks=[counter],
    )
    trainer.train()
    per_epoch = math.ceil(5 / args.get("gradient_accumulation_steps", 1))
    steps = total_steps(args, per_epoch)
    assert steps == trainer.state.max_steps
    assert times(args, "eval", steps, per_epoch) == counter.evaluations
    assert times(args, "save", steps, per_epoch) == counter.saves


def test_costs_are_added_up_over_slots() -> None:
    config = config_of("trainer.args.num_train_epochs=4", "trainer.args.save_total_limit=1")
    assert cost(config, MEASURED) == (40, 7 + 40 * 0.5 + 4 * (2 + 1))
    assert cost(config, MEASURED, steps_done=20) == (40, 7 + 20 * 0.5 + 2 * (2 + 1))
    assert price([39.0] * 3, runs=3, slots=2) == (78.0, 117.0)
    assert price([20.0, 10.0], runs=10, slots=3) == (60.0, 150.0)  # the others cost what these two cost on average
    assert price([39.0, 9.0, 9.0, 9.0], runs=4, slots=4) == (39.0, 66.0)
