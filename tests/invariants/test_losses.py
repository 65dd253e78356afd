"""Which items a loss is the mean of, when a training has diverged, and what a frozen layer keeps."""

from pathlib import Path

import numpy as np
import pytest
import torch
import trainings
from trainings import KINDS, ROWS, make_trainer

from hfexp.commands import api
from hfexp.commands.compare import _wrong_accumulation
from hfexp.core.config import ModelConfig
from hfexp.core.errors import RunError
from hfexp.core.identity import config_hash
from hfexp.data.sampling import EpochSampler
from hfexp.tasks.metrics import Accuracy, MetricSet
from hfexp.tracking.runs import RunRecord
from hfexp.training.callbacks import Diverged
from hfexp.training.losses import ClassWeights, Focal, Loss
from hfexp.training.model import freeze_or_adapt


def test_the_evaluation_loss_is_the_mean_over_tokens(tmp_path: Path) -> None:
    trainer = make_trainer("llama", "tokens", 4, tmp_path)
    total, tokens = 0.0, 0
    for row in trainer.eval_dataset:  # pyright: ignore
        ids = row["input_ids"][None]
        with torch.no_grad():
            logits = trainer.model(ids).logits[0, :-1]  # pyright: ignore
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        tokens += ids.shape[1] - 1
    for size in (1, 4, 16):
        trainer.args.per_device_eval_batch_size = size
        assert trainer.evaluate()["eval_loss"] == pytest.approx(total / tokens, rel=1e-5)


@pytest.mark.parametrize(("architecture", "kind", "loss"), [
    ("llama", "tokens", None), ("bert", "tags", ClassWeights([1, 2, 3])), ("bert", "tags", Focal()),
])  # fmt: skip
def test_a_batch_without_labelled_tokens_does_not_count(
    architecture: str, kind: str, loss: Loss | None, tmp_path: Path
) -> None:
    trainer = make_trainer(architecture, kind, 1, tmp_path, gradient_accumulation_steps=2, max_steps=1)
    trainer.loss_function, trainer.r_drop = loss, 0.0 if loss is None else 1.0
    assert isinstance(trainer.train_dataset, trainings.Rows)
    for row in trainer.train_dataset.made:
        row["labels"] = torch.full_like(row["labels"], -100)
    assert trainer.train().training_loss == 0
    assert all(bool(weight.isfinite().all()) for weight in trainer.model.parameters())  # pyright: ignore


def test_only_training_drops_the_last_batch(tmp_path: Path) -> None:
    trainer = make_trainer("bert", KINDS[0], 16, tmp_path, dataloader_drop_last=True)

    def rows(loader: torch.utils.data.DataLoader) -> int:
        return sum(len(batch["labels"]) for batch in loader)

    assert rows(trainer.get_train_dataloader()) == 48
    assert rows(trainer.get_eval_dataloader()) == rows(trainer.get_test_dataloader(trainer.eval_dataset)) == ROWS  # pyright: ignore


def test_an_evaluation_of_some_rows_is_none(tmp_path: Path) -> None:
    trainer = make_trainer("bert", KINDS[0], 16, tmp_path)
    loader = trainer.get_eval_dataloader
    trainer.get_eval_dataloader = lambda *_: list(loader())[:2]  # pyright: ignore
    trainer.evaluate()  # a loader that has no dataset can't be compared with one

    class Short(list):
        dataset = trainer.eval_dataset

    trainer.get_eval_dataloader = lambda *_: Short(list(loader())[:2])  # pyright: ignore
    with pytest.raises(RunError, match="evaluation has scored 32 of 54 rows"):
        trainer.evaluate()


@pytest.mark.parametrize("accumulated", [1, 3])
def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path, accumulated: int) -> None:
    trainer = make_trainer(
        "bert", KINDS[2], 4, tmp_path, gradient_accumulation_steps=accumulated, logging_steps=100, max_steps=4
    )
    assert isinstance(trainer.train_dataset, trainings.Rows)
    order = [key % ROWS for key in EpochSampler(ROWS, 1)]
    trainer.train_dataset.made[order[4 * accumulated]]["labels"] = torch.tensor(torch.nan)  # of the second step
    trainer.train()
    with pytest.raises(Diverged, match=r"the loss has been NaN since step 2\. Lower trainer\.args\.learning_rate"):
        trainer.require_finite_loss()


def test_one_bad_loss_that_a_gradient_scaler_leaves_out_is_no_divergence(tmp_path: Path) -> None:
    trainer = make_trainer("bert", KINDS[0], 4, tmp_path)
    for step, loss in enumerate((1.0, torch.inf, 1.0)):
        trainer.state.global_step = step
        trainer._follow(torch.tensor(loss))
    trainer.require_finite_loss()
    trainer.state.global_step = 3
    trainer._follow(torch.tensor(torch.inf))
    with pytest.raises(Diverged, match="the loss has been infinite since step 4"):
        trainer.require_finite_loss()


def test_a_model_that_says_nan_is_no_result(tmp_path: Path) -> None:
    trainer = make_trainer("bert", KINDS[0], 16, tmp_path)
    next(iter(trainer.model.parameters())).data.fill_(torch.nan)  # pyright: ignore
    with pytest.raises(Diverged, match="eval_loss is nan"):
        trainer.evaluate()


def test_metrics_refuse_predictions_that_are_not_finite() -> None:
    scores = np.array([[0.5, 0.5], [np.nan, np.nan]], np.float32)
    with pytest.raises(RunError, match=r"for 1 of 2 rows \(first: row 1\)"):
        MetricSet({"accuracy": Accuracy()}).compute(
            {"predictions": scores.argmax(-1), "prediction_scores": scores, "references": np.array([0, 1])}
        )


@pytest.mark.parametrize(("architecture", "pattern"), [("resnet", "resnet"), ("timm_wrapper", "timm_model.(?!fc)")])
def test_frozen_layers_stay_as_they_are(architecture: str, pattern: str, tmp_path: Path) -> None:
    trainer = make_trainer(architecture, KINDS[0], 8, tmp_path, batch_norm=True, max_steps=3)
    freeze_or_adapt(trainer.model, ModelConfig(freeze=[pattern]), [], [])
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}  # pyright: ignore
    trainer.train()
    after = trainer.model.state_dict()  # pyright: ignore
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {name for name in before if "classifier" in name or ".fc." in name}


def test_rows_are_grouped_by_length_alike_for_all_divisions_of_a_batch() -> None:
    lengths = np.random.default_rng(0).integers(1, 400, 1000).tolist()
    order = list(EpochSampler(1000, 42, lengths=lengths, group=8))
    assert sorted(order) == list(range(1000))
    assert order == list(EpochSampler(1000, 42, lengths=lengths, group=4))
    padded = sum(8 * max(lengths[i] for i in order[start : start + 8]) for start in range(0, 1000, 8))
    assert padded < 1.1 * sum(lengths)


def test_identities_follow_the_rules_of_training() -> None:
    def identity(*words: str) -> str:
        return config_hash(api.compose("experiment=digits_vit", *words))

    two = ("launch=ddp", "launch.num_processes=2", "trainer.args.per_device_train_batch_size=16")
    grouped = "trainer.args.train_sampling_strategy=group_by_length"
    assert identity(*two) == identity()
    assert identity(*two, grouped) == identity(grouped)


def test_runs_with_a_loss_that_was_too_large_are_named() -> None:
    def run(name: str, accumulated: str, **tags: str) -> RunRecord:
        params = {"trainer.args.gradient_accumulation_steps": accumulated}
        return RunRecord(name, name, "0", "e", "FINISHED", 0, 1, params, tags={"hfexp.config_hash": "c", **tags})

    new = {"hfexp.loss_weighting": "items"}
    assert _wrong_accumulation([run("plain", "1"), run("new", "4", **new)]) == []
    (note,) = _wrong_accumulation([run("plain", "1"), run("old", "4"), run("new", "4", **new)])
    assert "old accumulated gradients" in note
