"""The average of the last checkpoints: as by hand, taken if it is better, and the same after an interruption."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import assert_equal_weights
from conftest import SMALL_DIGITS
from faults import fault_at
from safetensors.torch import load_file
from trainings import KINDS, make_trainer
from transformers import AutoModelForImageClassification

from hfexp.commands import api
from hfexp.core.checkpoint import CheckpointError
from hfexp.core.errors import ConfigError, Terminated
from hfexp.experiment.preflight import load_inputs

EVERY: dict[str, Any] = {
    f"{name}_{what}": value for name in ("eval", "save") for what, value in (("strategy", "steps"), ("steps", 3))
}


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def trained(place: Path, architecture: str) -> Any:
    """The Trainer after 12 steps with an evaluation every 3 steps, of which the last 3 are averaged."""
    trainer = make_trainer(
        architecture, KINDS[0], 9, place, batch_norm=True, **EVERY, load_best_model_at_end=True, save_total_limit=2
    )
    trainer.soup = 3
    trainer.train()
    return trainer


@pytest.mark.parametrize("architecture", ["bert", "resnet"])
def test_a_better_average_by_hand_is_the_model(architecture: str, tmp_path: Path) -> None:
    trainer = trained(tmp_path, architecture)
    trainer.state.best_metric = math.inf
    metrics = trainer.try_soup()
    last = [weights(tmp_path / f"checkpoint-{step}") for step in (6, 9, 12)]
    ours = trainer.model.state_dict()
    for name, value in last[-1].items():
        mean = torch.stack([each[name] for each in last]).mean(0) if value.is_floating_point() else value
        torch.testing.assert_close(ours[name], mean, msg=name)
    assert not torch.equal(next(iter(ours.values())), next(iter(last[-1].values())))
    assert metrics["soup_taken"] == 1
    assert trainer.evaluate()["eval_loss"] == metrics["soup_loss"] == trainer.state.best_metric


def test_a_worse_average_leaves_the_best_checkpoint(tmp_path: Path) -> None:
    trainer = trained(tmp_path, "bert")
    step, trainer.state.best_metric = trainer.state.best_global_step, -math.inf
    assert trainer.try_soup()["soup_taken"] == 0
    assert_equal_weights(weights(tmp_path / f"checkpoint-{step}"), trainer.model.state_dict())
    (tmp_path / "checkpoint-9" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"a checkpoint of trainer.soup can't be loaded from .*checkpoint-9"):
        trainer.try_soup()


def test_an_interrupted_run_has_the_same_soup(place: Path) -> None:
    """The checkpoint of step 11, which the signal asks for, has no part in it, nor does it drive out another one."""
    words = [*SMALL_DIGITS, "trainer.soup=3", "trainer.args.num_train_epochs=4", *fault_at(11), "tracking=none"]
    words += ["trainer.args.learning_rate=0.02", "trainer.args.lr_scheduler_type=constant"]
    whole = api.train(*words, "output_dir=whole")
    Path("fault").write_text("SIGTERM")
    with pytest.raises(Terminated):
        api.train(*words)
    resumed = api.train(*words)
    assert_equal_weights(weights(whole.run_dir / "model"), weights(resumed.run_dir / "model"))
    saved = AutoModelForImageClassification.from_pretrained(whole.run_dir / "model")
    assert_equal_weights(saved.state_dict(), whole.model.state_dict())
    for name in ("soup_loss", "soup_taken", "best_eval_loss", "final_eval_loss", "test_loss"):
        assert whole.metrics[name] == resumed.metrics[name], name
    assert whole.metrics["best_eval_loss"] == whole.metrics["final_eval_loss"] == whole.best_metric
    assert whole.metrics["soup_taken"] == (whole.metrics["soup_loss"] == whole.best_metric)
    evaluated = {f"checkpoint-{step}" for step in (3, 6, 9, 12)}
    assert {path.name for path in (whole.run_dir / "checkpoints").iterdir()} == evaluated
    assert {path.name for path in (resumed.run_dir / "checkpoints").iterdir()} == evaluated | {"checkpoint-11"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.soup=1"], "trainer.soup=1 must be at least 2"),
        (["trainer.soup=2", "trainer.args.save_total_limit=1"], "trainer.soup=2 keeps the best checkpoint and others"),
        (["trainer.soup=2", "trainer.args.save_strategy=best"], "set trainer.args.save_strategy and save_steps like"),
    ],
)
def test_a_soup_without_checkpoints_is_refused(words: list[str], message: str, place: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_inputs(api.compose(*SMALL_DIGITS, *words))
