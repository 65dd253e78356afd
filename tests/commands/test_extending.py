"""The examples of docs/extending.md, written to files and run as the page says."""

import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import assert_equal_weights
from conftest import ROOT
from documents import code_blocks
from safetensors.torch import load_file

import hfexp
from hfexp.commands import cli
from hfexp.core.errors import ConfigError, RunError

SMALL = (
    "model.config.hidden_size=16", "model.config.num_hidden_layers=2", "model.config.num_attention_heads=2",
    "model.config.intermediate_size=16",
)  # fmt: skip
FAST = ("debug=fast", "trainer.args.logging_steps=1", "trainer.args.lr_scheduler_type=constant")
QUIET = ("tracking=none", "tracking.pictures=false")
ALL_ROWS = tuple(f"dataset.max_{split}_samples=null" for split in ("train", "validation", "test"))
EACH_STEP = tuple(
    f"trainer.args.{word}" for word in ("eval_strategy=steps", "eval_steps=1", "save_strategy=steps", "save_steps=1")
)
OWN = """import os

import my_optimizer, my_sampler
from transformers import TrainerCallback


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if str(state.global_step) == os.environ.get("STOP_AFTER"):
            raise KeyboardInterrupt


class Both(my_sampler.Balanced, my_optimizer.SignumTrainer):
    @property
    def twice(self):
        return 2 * self.beta


class Few(my_sampler.Balanced):
    def draw_rows(self, rows, generator):
        return [0, 1, len(rows)]


class Sampled(my_sampler.Balanced):
    def _get_train_sampler(self, train_dataset=None):
        raise AssertionError
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files of the page."""
    home = tmp_path_factory.mktemp("project")
    (home / "parts_of_the_test.py").write_text(OWN)
    (home / "conf" / "model").mkdir(parents=True)
    (home / "conf" / "model" / "bare.yaml").write_text("_target_: my_model.Cnn\nwidth: 8\n")
    for language, code in code_blocks("extending.md"):
        if language in ("python", "yaml"):
            file = home / code.partition("\n")[0].removeprefix("# ")
            assert not file.exists(), "a file is shown once"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(code)
    return home


@pytest.fixture
def project(written: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """That directory as the current one; its modules are forgotten afterwards."""
    monkeypatch.chdir(written)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield written
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(written):
            del sys.modules[name]


class Step:
    """What a step of the training begins with."""

    def __init__(self, trainer: Any, model: Any, inputs: dict[str, Any]) -> None:
        self.trainer = trainer
        self.budget = next((own.used for own in trainer.callback_handler.callbacks if hasattr(own, "used")), 0.0)
        self.labels = inputs["labels"].clone()
        self.pixels = inputs["pixel_values"].clone()
        with torch.no_grad():
            self.logits = model(pixel_values=trainer._prepare_inputs(dict(inputs))["pixel_values"])["logits"].clone()
        self.weights = {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.fixture
def steps(project: Path, monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """The steps of the trainings that follow."""
    taken: list[Step] = []
    original: Callable[..., Any] = hfexp.Trainer.training_step

    def training_step(self: Any, model: Any, inputs: Any, *args: Any) -> Any:
        taken.append(Step(self, model, inputs))
        return original(self, model, inputs, *args)

    monkeypatch.setattr(hfexp.Trainer, "training_step", training_step)
    return taken


def command(part: str) -> list[str]:
    """The words of the one command of the page that names a part, after `hfexp`."""
    commands = [code for language, code in code_blocks("extending.md") if language == "bash" and part in code]
    assert len(commands) == 1
    return shlex.split(commands[0].replace("\\\n", " "))


def run(part: str, *more: str) -> Any:
    """Run that command with more overrides, in this process."""
    words = [*command(part)[1:], *FAST, *more]
    config_dir = words[1] if words[0] == "--config-dir" else None
    return hfexp.train(*words[2 if config_dir else 0 :], config_dir=config_dir)


def history(steps: list[Step], key: str) -> list[float]:
    return [entry[key] for entry in steps[-1].trainer.state.log_history if key in entry]


def test_a_dataset_and_a_sampler(steps: list[Step]) -> None:
    # 600 rows: 120 to test, a fifth of the rest to validate, 384 to train; a tenth of them, drawn by seed 0, are rare.
    rare = int((np.random.default_rng(0).random(600) < 0.1).sum())
    epoch = (*SMALL, *QUIET, *ALL_ROWS, "trainer.args.per_device_train_batch_size=32", "trainer.args.max_steps=12")
    run("my_sampler.Balanced", *epoch)
    trainer = steps[0].trainer
    rows = trainer.train_dataset.rows
    assert rows.features["label"].names == ["across", "down"]
    assert (len(rows), len(trainer.eval_dataset)) == (384, 96)
    in_rows = Counter(rows["label"][:])
    assert in_rows[1] == pytest.approx(rare * 384 / 600, abs=1)
    drawn = Counter(torch.cat([step.labels for step in steps]).tolist())
    assert drawn.total() == 384
    assert drawn[1] == pytest.approx(192, abs=40), "four standard deviations of 384 draws of one half"
    steps.clear()
    words = [word for word in command("my_sampler.Balanced")[3:] if "my_sampler" not in word]
    hfexp.train(*words, *FAST, *epoch, config_dir="conf")
    assert Counter(torch.cat([step.labels for step in steps]).tolist()) == in_rows


def test_a_transform(steps: list[Step]) -> None:
    run("my_transform.Noise", *SMALL, *QUIET)
    noisy = steps[0].pixels
    steps.clear()
    run("my_transform.Noise", *SMALL, *QUIET, "transform.augment=[]")
    plain = steps[0].pixels
    # Pixels are whole numbers from 0 to 255; those at the ends can only change towards the middle.
    noise = (noisy.int() - plain.int())[(plain >= 5) & (plain <= 250)]
    assert noise.numel() > 50
    assert set(noise.tolist()) == set(range(-5, 6))


def test_a_model(project: Path) -> None:
    result = run("model=cnn", *QUIET)
    assert type(result.model).__name__ == "Cnn"
    assert sum(p.numel() for p in result.model.parameters()) == (3 * 9 + 1) * 32 + (32 + 1) * 10
    assert result.metrics["final_eval_loss"] == result.metrics["best_eval_loss"]


def test_a_task(project: Path) -> None:
    result = run("my_task.ImageRegression", *SMALL, "tracking.pictures=false")
    assert result.metric_name == "rmse"
    answers = hfexp.predict(run=result.run_dir.name, split="test")
    assert answers["true"].between(0, 1).all()
    error = float(np.sqrt(((answers["value"] - answers["true"]) ** 2).mean()))
    assert result.metrics["test_rmse"] == pytest.approx(error, rel=1e-4)


def test_a_metric_chooses_the_best_model(steps: list[Step]) -> None:
    result = run("metrics=mine", *SMALL, "tracking.pictures=false", *EACH_STEP, "trainer.args.max_steps=5", "seed=3")
    costs = history(steps, "eval_cost")
    assert len(costs) == 5
    assert min(costs) < max(costs)
    assert (result.best_metric, result.best_step) == (min(costs), costs.index(min(costs)) + 1)
    answers = hfexp.predict(run=result.run_dir.name, split="test")
    away = np.abs(answers["label"].astype(int) - answers["true"].astype(int))
    assert result.metrics["test_cost"] == pytest.approx(away.mean())
    assert result.metrics["test_far"] == pytest.approx((away >= 5).mean())
    assert result.metrics["test_worst_class"] == (away == 0).groupby(answers["true"]).mean().min()


def test_class_weights(steps: list[Step]) -> None:
    run("trainer.class_weights", *SMALL, *QUIET)
    labels, logits = steps[0].labels, steps[0].logits
    of_rows = -logits.log_softmax(-1)[range(len(labels)), labels]
    weights = torch.where(labels == 1, 9.0, 1.0)
    assert history(steps, "loss")[0] == pytest.approx(float((weights * of_rows).mean()), rel=1e-3)


def test_a_loss(steps: list[Step]) -> None:
    run("my_loss.distance", *SMALL, *QUIET)
    shares = steps[0].logits.softmax(-1)
    labels = steps[0].labels.tolist()
    of_rows = [sum(float(shares[row, c]) * (c - label) ** 2 for c in range(10)) for row, label in enumerate(labels)]
    assert history(steps, "loss")[0] == pytest.approx(sum(of_rows) / len(of_rows), rel=1e-3)


def test_a_callback(steps: list[Step], all_runs: Callable[[], list[Any]]) -> None:
    result = run("my_callback.Budget", *SMALL, "tracking.pictures=false", "trainer.callbacks.budget.seconds=0")
    assert len(steps) == 1, "of two; the budget is used up after the first"
    recorded = next(found for found in all_runs() if found.info.run_id == result.run_id)
    assert 0 < recorded.data.metrics["seconds_used"] < 60


def test_an_optimizer(steps: list[Step]) -> None:
    run("my_optimizer.SignumTrainer", *SMALL, *QUIET)
    optimizer = steps[0].trainer.optimizer.optimizer
    assert type(optimizer).__name__ == "Signum"
    assert [(g["beta"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.95, 0.05), (0.95, 0.0)]
    first, second = (step.weights["classifier.bias"] for step in steps[:2])
    assert (second - first).abs().tolist() == pytest.approx([0.001] * 10, rel=1e-3), "each moves by the learning rate"


def test_a_learning_rate_for_each_layer(steps: list[Step]) -> None:
    run("my_rates.LayerRates", *SMALL, *QUIET)
    trainer = steps[0].trainer
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    groups = trainer.optimizer.param_groups
    of_weights = [(names[id(weight)], group) for group in groups for weight in group["params"]]
    assert sorted(name for name, _ in of_weights) == sorted(names.values()), "each weight is in one group"
    expected = {"classifier": 10, "vit.layernorm": 1, "vit.layers.1": 0.5, "vit.layers.0": 0.25, "vit.emb": 0.125}
    for name, group in of_weights:
        share = next(share for beginning, share in expected.items() if name.startswith(beginning))
        assert group["lr"] == pytest.approx(0.001 * share), name
        assert group["weight_decay"] == (0.0 if "bias" in name or "layernorm" in name else 0.05), name
    assert history(steps, "learning_rate")[0] == pytest.approx(0.01)


RESUMED = {
    "my_sampler.Balanced": (
        "dataset.source.rare=0.3",
        "trainer._target_=parts_of_the_test.Both",
        "transform.augment=[{_target_: my_transform.Noise, amount: 9}]",
        "trainer.callbacks.budget={_target_: my_callback.Budget, seconds: 1000}",
    ),
    "my_rates.LayerRates": ("trainer.args.lr_scheduler_type=linear",),
}


TWO_EPOCHS = (
    "trainer.args.max_steps=-1", "trainer.args.num_train_epochs=2", "dataset.max_train_samples=12",
    "trainer.callbacks.stop._target_=parts_of_the_test.Stop",
)  # fmt: skip
"""Six steps, three in each epoch."""


@pytest.mark.parametrize("part", RESUMED)
def test_a_run_resumes_in_mid_epoch_to_the_same_weights(
    part: str, steps: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*SMALL, *QUIET, *EACH_STEP, *RESUMED[part], *TWO_EPOCHS)
    name = part.partition(".")[0]
    whole = run(part, *words, f"output_dir={name}_whole")
    taken = [(*step.labels.tolist(), float(step.pixels.sum())) for step in steps]
    assert len(taken) == 6
    assert len(set(taken)) == 6, "each epoch has rows and noise of its own"
    monkeypatch.setenv("STOP_AFTER", "5")
    with pytest.raises(KeyboardInterrupt):
        run(part, *words, f"output_dir={name}_stopped")
    monkeypatch.delenv("STOP_AFTER")
    (newest,) = Path(f"{name}_stopped").glob("debug/*/checkpoints/checkpoint-4")
    stopped = json.loads((newest / "trainer_state.json").read_text())["stateful_callbacks"]
    steps.clear()
    resumed = run(part, *words, f"output_dir={name}_stopped")
    assert [(*step.labels.tolist(), float(step.pixels.sum())) for step in steps] == taken[4:]
    budgets = [step.budget for step in steps]
    assert resumed.metrics["test_loss"] == whole.metrics["test_loss"]
    last = [result.run_dir / "checkpoints" / "checkpoint-6" for result in (whole, resumed)]
    assert_equal_weights(*(load_file(place / "model.safetensors") for place in last))
    optimizers = [torch.load(place / "optimizer.pt", weights_only=True) for place in last]
    assert repr(optimizers[0]) == repr(optimizers[1])
    if part == "my_sampler.Balanced":
        assert 0 < stopped["Budget"]["attributes"]["used"] == budgets[0], "as in the checkpoint"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.options.betta=0.5", "trainer._target_=my_optimizer.SignumTrainer"],
         "unknown key 'trainer.options.betta'. Did you mean 'beta'? SignumTrainer declares: beta"),
        (["trainer.options.beta=0.5"], "Trainer declares: none"),
        (["trainer._target_=my_sampler.Balanced", "dataset.streaming=true", "dataset.validation_size=20"],
         "Balanced.draw_rows can't draw the rows of a stream"),
        (["trainer._target_=my_sampler.Balanced", "trainer.balanced_sampling=true"],
         "trainer.balanced_sampling and Balanced.draw_rows both choose the rows"),
        (["trainer._target_=parts_of_the_test.Few"],
         "draw_rows returned torch.int64 of shape (3,), expected 32 integers"),
        (["trainer.options.beta=high", "trainer._target_=my_optimizer.SignumTrainer"],
         "trainer.options.beta=high: expected a float"),
        (["trainer.options.twice=3", "trainer._target_=parts_of_the_test.Both"], "Both declares: beta"),
        (["trainer._target_=parts_of_the_test.Sampled"], "override draw_rows(rows, generator) instead"),
        (["task._target_=my_task.ImageRegression", "metrics=regression"], "column 'label' holds"),
        (["metrics=mine",
          "trainer.args.metric_for_best_model=costs"], "metric_for_best_model=costs is not computed"),
        (["model=bare"], "model.processor._target_ is missing"),
        (["transform.prepare.2._target_=my_transform.Noise"], "Noise draws random numbers, but transform.prepare"),
        (["dataset.columns.label=colour"], "colour"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_one_message(project: Path, words: list[str], message: str) -> None:
    base = ("dataset=stripes", "trainer=scratch", *FAST, *QUIET)
    model = () if words[0].startswith("model=") else ("model=vit_digits", *SMALL)
    with pytest.raises((ConfigError, RunError)) as caught:
        hfexp.train(*base, *model, *words, config_dir="conf")
    assert message in str(caught.value)


def test_a_launcher(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    variable, program, *words = command("hydra/launcher=polite")
    assert (variable, program) == ("PYTHONPATH=.", "hfexp")
    words += [*FAST, *QUIET, *SMALL, "output_dir=launched"]
    assert cli.main(words) == 2
    assert "there is no hydra/launcher=polite" in capsys.readouterr().err, "without PYTHONPATH"
    done = subprocess.run(
        # -P: Python does not look for modules in the current directory, as it does not for the command `hfexp`.
        [sys.executable, "-P", "-m", "hfexp", *words],
        env={**os.environ, "PYTHONPATH": f".{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    runs = [json.loads(path.read_text()) for path in Path("launched/debug").glob("*/run.json")]
    assert [run["status"] for run in runs] == ["finished", "finished"]


def test_each_part_of_the_page_is_tried() -> None:
    commands = [code for language, code in code_blocks("extending.md") if language == "bash"]
    tried = ("my_sampler", "my_transform", "model=cnn", "my_task", "metrics=mine", "class_weights", "my_loss",
             "my_callback", "my_optimizer", "my_rates", "polite")  # fmt: skip
    untried = [code for code in commands if not any(part in code for part in tried)]
    assert [code.split()[-2:] for code in untried] == [["dataset=stripes", "dataset.source.rare=0.1"]]
