"""True checkpoints, for every family: best is what is evaluated and saved, and resumed equals uninterrupted."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import FAMILIES, VIT, assert_equal_weights, write_checkpoint
from conftest import SMALL_DIGITS, write_images
from faults import fault_at
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from hfexp.commands import api
from hfexp.core.checkpoint import CheckpointError, find_problem, newest_whole

ALL = [pytest.param(name, marks=() if name == "vit" else pytest.mark.slow) for name in FAMILIES]


RECIPE = (
    "tracking=none",
    "trainer.args.metric_for_best_model=loss",
    "tracking.pictures=false",
    "trainer.args.num_train_epochs=3",
    "trainer.args.learning_rate=0.02",
    "trainer.args.logging_strategy=steps",
    "trainer.args.logging_steps=4",  # between checkpoints, so that a resumed training has begun to sum up losses
)


def overrides(family: str, place: Path) -> list[str]:
    path = place / "pretrained"
    if not path.exists():
        write_checkpoint(family, path)
    words = [w for w in SMALL_DIGITS if not w.startswith("model")]
    return [*words, "model=local", f"model.path={path}", *RECIPE]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return AutoModelForImageClassification.from_pretrained(directory).state_dict()


@pytest.mark.parametrize("family", ALL)
def test_best_is_what_is_evaluated_and_saved(family: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = overrides(family, place)
    result = api.train(*words)
    assert "new weights, not from the checkpoint" in capsys.readouterr().out
    if result.best_step == 9:  # the last step: then the lowest loss was not the last one when the highest is sought
        result = api.train(*words, "trainer.args.greater_is_better=true")
    assert result.best_step is not None
    assert result.best_step < 9, "the best model must not be the last one, or this test proves nothing"
    assert (result.run_dir / "checkpoints" / "checkpoint-9").is_dir()
    for name in ("loss", "accuracy"):
        assert result.metrics[f"final_eval_{name}"] == result.metrics[f"best_eval_{name}"]
    assert_equal_weights(
        result.model.state_dict(), weights(result.run_dir / "checkpoints" / f"checkpoint-{result.best_step}")
    )
    assert_equal_weights(result.model.state_dict(), weights(result.run_dir / "model"))
    assert result.model.config.id2label == {i: str(i) for i in range(10)}
    saved = AutoModelForImageClassification.from_pretrained(result.run_dir / "model").config
    assert (saved.num_labels, saved.label2id) == (10, {str(i): i for i in range(10)})


@pytest.mark.parametrize("family", ALL)
def test_resumed_equals_uninterrupted(family: str, place: Path) -> None:
    assert_resumed_equals_uninterrupted(overrides(family, place), place)


RECIPES = [
    "trainer.ema.decay=0.9", "trainer.layer_decay=0.8", "trainer.lr_factors={classifier: 3}", "trainer.thaw_at=2.5",
    "trainer.balanced_sampling=true", "trainer.r_drop=0.5", "trainer.loss._target_=hfexp.training.losses.Focal",
    "trainer.class_weights=balanced", "+model.config.hidden_dropout_prob=0.1",
]  # fmt: skip


@pytest.mark.parametrize("family", [pytest.param("vit"), pytest.param("resnet", marks=pytest.mark.slow)])
def test_recipes_resume_likewise(family: str, place: Path) -> None:
    own = {"vit": "model.freeze=[vit.embeddings]", "resnet": "model.freeze=[resnet.embedder]"}
    words = [word for word in RECIPES if "dropout" not in word or family == "vit"]
    assert_resumed_equals_uninterrupted([*overrides(family, place), *words, own[family]], place)
    first, second = (
        load_file(run / "checkpoints" / "checkpoint-9" / "trained_weights.safetensors")
        for run in sorted(place.glob("*/digits/*-*"))
    )
    assert_equal_weights(first, second)
    saved = weights(next(place.glob("whole/digits/*-*")) / "checkpoints" / "checkpoint-9")
    assert not torch.equal(first["classifier.1.weight" if family == "resnet" else "classifier.weight"], saved[
        "classifier.1.weight" if family == "resnet" else "classifier.weight"
    ])  # fmt: skip


@pytest.mark.parametrize("load_best", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_average_is_what_is_evaluated_and_saved(load_best: bool, place: Path) -> None:
    words = [*overrides("vit", place), "trainer.ema.decay=0.9"]
    result = api.train(*words, f"trainer.args.load_best_model_at_end={str(load_best).lower()}")
    evaluated = "best_eval" if load_best else "final_eval"
    if load_best:
        assert result.best_step is not None
        assert result.best_step < 9, "the best model must not be the last one, or this test proves nothing"
    step = result.best_step if load_best else 9
    checkpoint = result.run_dir / "checkpoints" / f"checkpoint-{step}"
    assert_equal_weights(result.model.state_dict(), weights(checkpoint))
    assert_equal_weights(result.model.state_dict(), weights(result.run_dir / "model"))
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    (seen,) = [entry["eval_loss"] for entry in history if entry["step"] == step and "eval_loss" in entry]
    assert seen == result.metrics["final_eval_loss"] == result.metrics[f"{evaluated}_loss"]


@pytest.mark.slow
def test_a_compiled_model_resumes_likewise(place: Path) -> None:
    """By a backend of `torch.compile` that needs no C++ compiler."""
    torch._dynamo.reset()  # also what was compiled before, which would not be counted again
    torch._dynamo.utils.counters.clear()
    words = [*overrides("vit", place), "trainer.args.torch_compile_backend=aot_eager"]
    assert_resumed_equals_uninterrupted(words, place)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0


def assert_resumed_equals_uninterrupted(words: list[str], place: Path) -> None:
    words = [*words, *fault_at(5)]  # in the middle of the second epoch
    whole = api.train(*words, "output_dir=whole")
    (place / "fault").write_text("error")
    with pytest.raises(RuntimeError, match="caught fire"):
        api.train(*words)
    resumed = api.train(*words)
    assert resumed.run_dir.name == whole.run_dir.name
    comparable = [k for k in whole.metrics if not k.endswith(("runtime", "per_second", "preparation_time"))]
    assert {k: whole.metrics[k] for k in comparable} == {k: resumed.metrics[k] for k in comparable}
    last = "checkpoints/checkpoint-9"
    logged, again = (logged_losses(result.run_dir / last) for result in (whole, resumed))
    assert [step for step, _ in logged] == [4, 8]
    assert logged == again
    assert_equal_weights(weights(whole.run_dir / last), weights(resumed.run_dir / last))
    first, second = (torch.load(r.run_dir / last / "optimizer.pt", weights_only=True) for r in (whole, resumed))
    for index, state in first["state"].items():
        assert all(torch.equal(state[k], second["state"][index][k]) for k in ("exp_avg", "exp_avg_sq"))


def logged_losses(checkpoint: Path) -> list[tuple[int, float]]:
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("transform", ["jitter", "augment_mix"])
def test_neither_workers_nor_a_resumption_in_mid_epoch_change_the_result(
    transform: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Augmentation and dropout on; three steps an epoch, checkpoints every fourth step."""
    words = [
        *SMALL_DIGITS, *fault_at(5), "tracking=none", f"transform={transform}", "model.config.hidden_dropout_prob=0.1",
        "trainer.args.num_train_epochs=3", "trainer.args.save_strategy=steps", "trainer.args.save_steps=4",
        "trainer.args.eval_strategy=steps", "trainer.args.eval_steps=4",
    ]  # fmt: skip
    two, kept = "trainer.args.dataloader_num_workers=2", "trainer.args.dataloader_persistent_workers=true"
    loaders = {"0": [], "2": [two, kept]}
    whole = api.train(*words, "output_dir=whole")
    for name, loader in loaders.items():
        (place / "fault").write_text("error")
        with pytest.raises(RuntimeError, match="caught fire"):
            api.train(*words, *loader, f"output_dir={name}")
        resumed = api.train(*words, *loader, f"output_dir={name}")
        assert "from checkpoint-4" in capsys.readouterr().err
        assert_equal_weights(weights(whole.run_dir / "model"), weights(resumed.run_dir / "model"))
        assert whole.metrics["test_loss"] == resumed.metrics["test_loss"]


@pytest.mark.slow
def test_convolutions_in_channels_last_are_restored_and_saved(place: Path) -> None:
    words = [*overrides("resnet", place), *fault_at(5), "tracking=none", "model.channels_last=true"]
    whole = api.train(*words, "output_dir=whole")
    kernel = next(p for p in whole.model.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1)
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    (place / "fault").write_text("error")
    with pytest.raises(RuntimeError, match="caught fire"):
        api.train(*words)
    assert_equal_weights(weights(whole.run_dir / "model"), weights(api.train(*words).run_dir / "model"))


def test_upstream_still_loses_weights(place: Path) -> None:
    """If this fails, Transformers has been mended and `hfexp.training.checkpoints` can shrink."""
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**VIT, patch_size=8, num_labels=4))
    rows = [{"pixel_values": torch.randn(3, 16, 16), "labels": i % 4} for i in range(32)]
    args = transformers.TrainingArguments(
        "out", learning_rate=0.3, num_train_epochs=3, eval_strategy="epoch", save_strategy="epoch", use_cpu=True,
        load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True, disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = transformers.Trainer(model, args, train_dataset=rows, eval_dataset=rows)  # pyright: ignore
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] != trainer.state.best_metric


@pytest.fixture(scope="module")
def interrupted_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """A run that died in its third epoch, with the checkpoints of two epochs, and the directory that it ran in."""
    words = [*SMALL_DIGITS, "tracking=none", "trainer.args.num_train_epochs=4", *fault_at(8)]
    home = tmp_path_factory.mktemp("interrupted")
    (home / "fault").write_text("error")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        with pytest.raises(RuntimeError):
            api.train(*words)
    return words, home


@pytest.fixture
def interrupted(interrupted_once: tuple[list[str], Path], place: Path) -> tuple[list[str], Path]:
    """The words of that run, and its checkpoints in a copy of its directory."""
    words, home = interrupted_once
    shutil.copytree(home, place, dirs_exist_ok=True)
    checkpoints = next(place.glob("outputs/digits/*/checkpoints"))
    assert sorted(p.name for p in checkpoints.iterdir()) == ["checkpoint-3", "checkpoint-6"]
    return words, checkpoints


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("truncate model.safetensors", "has .* bytes instead of"),
        ("remove optimizer.pt", "optimizer.pt is missing"),
        ("remove rng_state.pth", "rng_state.pth is missing"),
        ("remove scheduler.pt", "scheduler.pt is missing"),
        ("truncate trainer_state.json", "has .* bytes instead of"),
        ("remove manifest.json", "manifest.json is missing"),
        ("flip optimizer.pt", "was changed after"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(
    damage: str, reason: str, interrupted: tuple[list[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    _, checkpoints = interrupted
    how, name = damage.split()
    path = checkpoints / "checkpoint-6" / name
    if how == "remove":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data if how == "flip" else data[: len(data) // 2])
    assert newest_whole(checkpoints) == checkpoints / "checkpoint-3"
    assert "checkpoint-6 can't be used" in caplog.text
    assert re.search(reason, caplog.text)


def test_resuming_after_damage_says_so_and_ends_the_same(interrupted: tuple[list[str], Path], capsys: Any) -> None:
    words, checkpoints = interrupted
    (checkpoints / "checkpoint-6" / "optimizer.pt").unlink()
    resumed = api.train(*words)
    shown = capsys.readouterr().err
    assert "checkpoint-6 can't be used: optimizer.pt is missing; trying the previous one" in shown
    assert "from checkpoint-3" in shown
    whole = api.train(*words, "output_dir=whole")
    assert resumed.metrics["test_accuracy"] == whole.metrics["test_accuracy"]
    assert resumed.best_metric == whole.best_metric
    assert not (checkpoints / ".incomplete").exists()


def test_a_missing_best_checkpoint_is_an_error(interrupted: tuple[list[str], Path]) -> None:
    words, checkpoints = interrupted
    newest = checkpoints / "checkpoint-6"
    state = json.loads((newest / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] in ("checkpoint-3", "checkpoint-6")
    state["best_global_step"], state["best_model_checkpoint"] = 3, "checkpoint-3"
    (newest / "trainer_state.json").write_text(json.dumps(state))
    from hfexp.core.checkpoint import write_manifest

    (newest / "manifest.json").unlink()
    write_manifest(newest, resumable=True, world_size=1, config_hash="")
    shutil.rmtree(checkpoints / "checkpoint-3")
    with pytest.raises(CheckpointError, match="checkpoint-3, is gone"):
        api.train(*words)


def test_weights_alone_are_not_resumed_from(place: Path) -> None:
    result = api.train(*SMALL_DIGITS, "tracking=none", "trainer.args.save_only_model=true")
    newest = result.run_dir / "checkpoints" / "checkpoint-6"
    assert "weights only" in str(find_problem(newest))
    assert result.metrics["final_eval_loss"] == result.metrics["best_eval_loss"]


def test_the_notebooks_recipe_on_local_stand_ins(place: Path) -> None:
    """`experiment=food101_vit` with a small checkpoint and a folder of images in place of the Hub's."""
    write_images(place / "photos", count=60, size=20)
    write_checkpoint("vit", place / "pretrained")
    data = ["dataset=imagefolder", f"dataset.source.data_dir={place / 'photos'}"]
    words = ["experiment=food101_vit", f"model.path={place / 'pretrained'}", *data]
    result = api.train(*words, "dataset.source.split='train[:100]'", "tracking=none")
    assert set(result.model.config.id2label.values()) == {"cat", "dog"}
    assert result.metrics["final_eval_accuracy"] == result.metrics["best_eval_accuracy"]
    state = json.loads((result.run_dir / "checkpoints" / "checkpoint-6" / "trainer_state.json").read_text())
    assert (state["max_steps"], state["num_train_epochs"], state["train_batch_size"]) == (6, 3, 16)
