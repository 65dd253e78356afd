"""The recipes of the Trainer, each against a loop or a formula written by hand; and what they refuse."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import trainings
from checkpoints import assert_equal_weights
from conftest import SMALL_DIGITS, SMALL_GPT
from safetensors.torch import load_file
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn import functional
from trainings import KINDS, ROWS, make_trainer

from hfexp.commands import api
from hfexp.core.config import ModelConfig
from hfexp.core.errors import ConfigError
from hfexp.core.identity import config_hash
from hfexp.data.sampling import EpochSampler
from hfexp.experiment.preflight import load_inputs
from hfexp.training.averaging import MovingAverage
from hfexp.training.model import freeze_or_adapt, frozen_parameters
from hfexp.training.rates import layer_numbers, rate_factors

SIZE, RATE = 9, 0.05
"""Rows of a batch, which divide an epoch into 6 steps; and the learning rate of `make_trainer`."""


def batches(trainer: Any, epochs: int = 2) -> Iterator[dict[str, torch.Tensor]]:
    sampler = EpochSampler(ROWS, seed=1)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        order = list(sampler)
        for start in range(0, ROWS, SIZE):
            yield trainings.collate(trainer.train_dataset.__getitems__(order[start : start + SIZE]))


def descend(model: nn.Module, batch: dict[str, torch.Tensor], rates: dict[str, float]) -> None:
    """Take one step of gradient descent."""
    model.train()
    loss: Any = model(**batch).loss
    loss.backward()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                parameter -= rates.get(name, 0.0) * parameter.grad
                parameter.grad = None


def assert_close(first: nn.Module, second: nn.Module) -> None:
    other = second.state_dict()
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-6, msg=name)


# Moving averages.


@pytest.mark.parametrize("warmup", [True, False])
def test_averages_are_those_of_timm(warmup: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ours, theirs = MovingAverage(model, 0.9, warmup, 0), ModelEmaV3(model, 0.9, use_warmup=warmup)
    assert [ours.decay_at(n) for n in range(1, 60)] == pytest.approx([theirs.get_decay(n) for n in range(1, 60)])
    for step in range(1, 6):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        model(torch.randn(5, 3))
        ours.update(step)
        theirs.update(model, step)
    for name, value in zip(ours.tensors, ours.values, strict=True):
        torch.testing.assert_close(value, theirs.module.state_dict()[name])
    assert set(ours.tensors) == set(model.state_dict()) - {"1.num_batches_tracked"}


@pytest.mark.parametrize("architecture", ["bert", "resnet"])
def test_the_model_that_is_left_is_the_average_of_a_loop_by_hand(architecture: str, tmp_path: Path) -> None:
    trainer = make_trainer(architecture, KINDS[0], SIZE, tmp_path, batch_norm=True)
    trainer.ema_decay = 0.7
    model = trainings.build(architecture, KINDS[0], batch_norm=True)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    for step, batch in enumerate(batches(trainer), 1):
        descend(model, batch, {name: RATE for name, _ in model.named_parameters()})
        keeps = 0 if step == 1 else min(0.7, 1 - step ** (-2 / 3))
        for name, value in model.state_dict().items():
            real = value.is_floating_point()
            average[name] = keeps * average[name] + (1 - keeps) * value if real else value.clone()
    trainer.train()
    model.load_state_dict(average)
    assert_close(model, trainer.model)  # pyright: ignore


def test_training_goes_on_with_the_trained_weights_after_an_evaluation(tmp_path: Path) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 4}
    trainer, plain = (make_trainer("bert", KINDS[0], SIZE, tmp_path, **settings) for _ in "ab")
    trainer.ema_decay = 0.9
    for each in (trainer, plain):
        each.train()
    losses, others = (
        [[entry[name] for entry in each.state.log_history if name in entry] for name in ("loss", "eval_loss")]
        for each in (trainer, plain)
    )
    assert losses[0] == others[0]
    assert losses[1][0] == others[1][0], "the first step's weights are their average"
    assert all(a != b for a, b in zip(losses[1][1:], others[1][1:], strict=True))
    assert trainer.evaluate()["eval_loss"] == losses[1][-1]


def test_averages_of_half_precision_are_kept_exactly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 4, dtype=torch.bfloat16)
    average = MovingAverage(model, 0.9, False, 0)
    for step in (1, 2, 3):
        nn.init.normal_(model.weight)
        average.update(step)
    trained = model.weight.detach().clone()
    with average.in_model():
        average.save(tmp_path / "file")
        other = nn.Linear(3, 4, dtype=torch.bfloat16)
        other.load_state_dict(model.state_dict())
    again = MovingAverage(other, 0.9, False, 3)
    again.load(tmp_path / "file")
    assert torch.equal(model.weight, trained)
    assert torch.equal(other.weight, trained)
    assert all(map(torch.equal, average.values, again.values))


# Learning rates, and freezing for a time.


def test_layers_are_numbered_from_the_embeddings_to_the_head() -> None:
    for architecture, kind in trainings.CASES:
        model = trainings.build(architecture, kind, batch_norm=False)
        if getattr(model.config, "is_encoder_decoder", False):
            with pytest.raises(ConfigError, match="has no single list of layers"):
                layer_numbers(model)
            continue
        numbers = layer_numbers(model)
        assert sorted(set(numbers.values())) == list(range(max(numbers.values()) + 1)), architecture
        assert next(iter(numbers.values())) == 0, architecture
    numbers = layer_numbers(trainings.build("bert", KINDS[0], batch_norm=False))
    assert {name.split(".")[1] if name[0] == "b" else name: number for name, number in numbers.items()} == {
        "embeddings": 0, "encoder": 1, "pooler": 2, "classifier.weight": 2, "classifier.bias": 2,
    }  # fmt: skip


def test_rates_by_layer_and_by_name_are_those_of_a_loop_by_hand(tmp_path: Path) -> None:
    trainer = make_trainer("bert", KINDS[0], SIZE, tmp_path)
    trainer.layer_decay, trainer.lr_factors = 0.5, {"classifier": 4, ".*bias": 0.5}
    model = trainings.build("bert", KINDS[0], batch_norm=False)
    of_part = {"embeddings": 0.25, "encoder": 0.5, "pooler": 1, "weight": 4, "bias": 4}
    rates = {
        name: RATE * of_part[name.split(".")[1]] * (0.5 if name.endswith("bias") else 1)
        for name, _ in model.named_parameters()
    }
    for batch in batches(trainer):
        descend(model, batch, rates)
    trainer.train()
    assert_close(model, trainer.model)  # pyright: ignore


def test_rates_that_can_not_be_told_are_refused() -> None:
    bert = trainings.build("bert", KINDS[0], batch_norm=False)
    with pytest.raises(ConfigError, match=r"trainer.lr_factors: 'bert\(' is not a regular expression"):
        rate_factors(bert, {"bert(": 2.0}, None)
    with pytest.raises(ConfigError, match="Linear has no single list of layers; set trainer.lr_factors instead"):
        rate_factors(nn.Linear(2, 2), {}, 0.5)


def test_groups_keep_their_weight_decay(tmp_path: Path) -> None:
    trainer = make_trainer("bert", KINDS[0], SIZE, tmp_path, weight_decay=0.1, optim="adamw_torch")
    trainer.lr_factors = {"classifier": 4}
    trainer.create_optimizer_and_scheduler(10)
    optimizer: Any = trainer.optimizer
    names = {id(p): name for name, p in trainer.model.named_parameters()}  # pyright: ignore
    groups = optimizer.param_groups
    found = {(round(g["lr"] / RATE), g["weight_decay"]): {names[id(p)] for p in g["params"]} for g in groups}
    assert found[4, 0.1] == {"classifier.weight"}
    assert found[4, 0.0] == {"classifier.bias"}
    assert found[1, 0.1] | found[1, 0.0] == set(names.values()) - found[4, 0.1] - found[4, 0.0]
    assert all("norm" in name.lower() or name.endswith("bias") for name in found[1, 0.0])
    assert groups[0]["lr"] == RATE, "which the Trainer logs"


@pytest.mark.parametrize("architecture", ["bert", "resnet"])
def test_thawed_parameters_are_trained_as_in_a_loop_by_hand(architecture: str, tmp_path: Path) -> None:
    trainer = make_trainer(architecture, KINDS[0], SIZE, tmp_path, batch_norm=True)
    model = trainings.build(architecture, KINDS[0], batch_norm=True)
    for each in (trainer.model, model):
        freeze_or_adapt(each, ModelConfig(freeze=[architecture]), [], [])
    trainer.thaw_at, trainer.frozen = 1.5, frozen_parameters(trainer.model, [architecture])
    for step, batch in enumerate(batches(trainer)):
        if step == 9:
            model.requires_grad_(True)
        descend(model, batch, {name: RATE for name, _ in model.named_parameters()})
    trainer.train()
    assert_close(model, trainer.model)  # pyright: ignore


# R-Drop and NEFTune.


@pytest.mark.parametrize(("architecture", "kind"), [("bert", KINDS[0]), ("bert", "tags"), ("llama", "tokens")])
def test_r_drop_adds_the_divergence_of_two_passes(architecture: str, kind: str, tmp_path: Path) -> None:
    trainer = make_trainer(architecture, kind, SIZE, tmp_path)
    trainer.r_drop, model = 3.0, trainer.model
    assert isinstance(model, nn.Module)
    for module in model.modules():  # dropout, of which the models of `trainings` have none
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(lambda _, __, output: functional.dropout(output, 0.5, model.training))
    batch = next(batches(trainer))
    twice = {name: torch.cat([value, value]) for name, value in batch.items()}
    model.train()
    torch.manual_seed(4)
    loss = trainer.compute_loss(model, dict(batch))
    torch.manual_seed(4)
    logits, truth = model(**twice).logits.log_softmax(-1), batch["labels"]
    if kind == "tokens":
        logits, truth = logits[:, :-1], truth[:, 1:]
    first, second = (part[truth != -100] for part in logits.chunk(2))
    truth = truth[truth != -100]
    assert not torch.allclose(first, second)
    divergence = nn.KLDivLoss(reduction="batchmean", log_target=True)
    both = divergence(first, second) + divergence(second, first)
    entropy = (functional.nll_loss(first, truth) + functional.nll_loss(second, truth)) / 2
    torch.testing.assert_close(loss, entropy + 3.0 * both / 2)
    model.eval()
    torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), model(**batch).loss)


def test_neftune_adds_noise_in_training_alone(tmp_path: Path) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}
    noisy = make_trainer("llama", "tokens", SIZE, tmp_path, **settings, neftune_noise_alpha=5.0)
    plain = make_trainer("llama", "tokens", SIZE, tmp_path, **settings)
    before = noisy.evaluate()["eval_loss"]
    assert before == plain.evaluate()["eval_loss"]
    for trainer in (noisy, plain):
        trainer.train()
    losses = [[entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (noisy, plain)]
    assert losses[0][0] != losses[1][0]
    seen = [entry["eval_loss"] for entry in noisy.state.log_history if "eval_loss" in entry]
    assert noisy.evaluate()["eval_loss"] == seen[-1]
    embeddings: Any = noisy.model.get_input_embeddings()  # pyright: ignore
    assert not embeddings._forward_hooks
    noisy.save_model(str(tmp_path / "saved"))
    assert set(load_file(tmp_path / "saved" / "model.safetensors")) <= set(noisy.model.state_dict())  # pyright: ignore


def test_the_noise_of_embeddings_is_the_same_after_an_interruption(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"neftune_noise_alpha": 5.0, "save_strategy": "steps", "save_steps": 4}
    whole, resumed = (make_trainer("llama", "tokens", SIZE, tmp_path, **settings) for _ in "ab")
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert_equal_weights(whole.model.state_dict(), resumed.model.state_dict())  # pyright: ignore


# Through the command.

SEQUENTIAL = "trainer.args.train_sampling_strategy=sequential"

TOGETHER = [
    "trainer.ema.decay=0.9", "trainer.layer_decay=0.8", "trainer.lr_factors={classifier: 3}", "trainer.thaw_at=1.5",
    "model.freeze=[vit.embeddings]", "trainer.balanced_sampling=true", "trainer.r_drop=0.5",
    "trainer.loss._target_=hfexp.training.losses.Focal", "trainer.class_weights=balanced",
]  # fmt: skip


def test_keys_without_a_value_leave_the_identity_of_older_runs() -> None:
    plain = config_hash(api.compose(*SMALL_DIGITS))
    null = ["layer_decay", "thaw_at", "r_drop", "ema.decay"]
    assert config_hash(api.compose(*SMALL_DIGITS, *(f"trainer.{key}=null" for key in null))) == plain
    for words in ([word] for word in TOGETHER if word.startswith("trainer") and "class_weights" not in word):
        assert config_hash(api.compose(*SMALL_DIGITS, *words)) != plain, words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["trainer.lr_factors={clasifier: 10}"],
            "trainer.lr_factors: 'clasifier' matches no parameter; they are named",
        ),
        (["trainer.lr_factors={classifier: -1}"], r"trainer.lr_factors.classifier=-1.0: expected a number above 0"),
        (["trainer.layer_decay=1.5"], "trainer.layer_decay=1.5 must be above 0 and at most 1"),
        (["trainer.ema.decay=1"], "trainer.ema.decay=1.0 must be between 0 and 1"),
        (["trainer.thaw_at=1"], "trainer.thaw_at=1: nothing is frozen; set model.freeze"),
        (["trainer.thaw_at=2", "model.freeze=[vit]"], "must be above 0 and below trainer.args.num_train_epochs=2"),
        (["trainer.r_drop=-1"], "trainer.r_drop=-1.0 must be at least 0"),
        (["trainer.balanced_sampling=true", SEQUENTIAL], "both choose the rows: remove one of them"),
    ],
)
def test_a_wrong_recipe_is_one_message(words: list[str], message: str, place: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_inputs(api.compose(*SMALL_DIGITS, *words))


def test_language_models_have_no_classes_to_balance(place: Path) -> None:
    Path("rows.jsonl").write_text('{"text": "a b c d"}\n' * 20)
    words = ("task=text_generation", *SMALL_GPT, "dataset.source.data_files=rows.jsonl")
    with pytest.raises(ConfigError, match="balanced_sampling is for tasks with one class per row"):
        load_inputs(api.compose(*words, "trainer.balanced_sampling=true"))


def test_two_recipes_for_the_same_thing_are_noted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    api.train(*SMALL_DIGITS, "trainer.r_drop=1", "trainer.args.label_smoothing_factor=0.1", "tracking=none")
    assert "trainer.r_drop=1 and label_smoothing_factor=0.1 are both in effect" in capsys.readouterr().err
