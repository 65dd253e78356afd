"""What may not depend on how a batch is divided, on the strategy of saving, or on how often a run was started."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import trainings
import transformers
from conftest import SMALL_DIGITS
from faults import fault_at
from safetensors.torch import load_file

import hfexp
from hfexp.commands import cli
from hfexp.core.compose import conf_dir


def assert_alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    assert one["eval_loss"] == pytest.approx(other["eval_loss"], rel=1e-5)
    for name, values in one["weights"].items():
        assert torch.allclose(torch.tensor(values), torch.tensor(other["weights"][name]), atol=1e-5), name


def test_every_shipped_model_is_among_the_architectures() -> None:
    options = {path.stem for path in (conf_dir() / "model").glob("*.yaml")} - {"local"}
    assert options == set(trainings.SHIPPED)
    assert set(trainings.SHIPPED.values()) == {name for name, _ in trainings.CASES}


@pytest.mark.parametrize(("architecture", "kind"), trainings.CASES)
def test_accumulated_batches_are_one_batch(architecture: str, kind: str) -> None:
    # 54 rows: the last step of an epoch has 6, as 4 + 2.
    whole = trainings.train(architecture, kind, 16)
    assert_alike(trainings.train(architecture, kind, 4, gradient_accumulation_steps=4), whole)
    assert len(whole["loss"]) == 8


def test_two_processes_are_one(tmp_path: Path) -> None:
    # 54 rows in batches of 4 x 2: the last one has 4 + 2.
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, trainings.__file__, str(tmp_path / "found.json")]
    processes = [
        subprocess.Popen(command, env={**os.environ, **place, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"
    ]
    assert [process.wait(300) for process in processes] == [0, 0]
    for case, found in zip(trainings.TOGETHER, json.loads((tmp_path / "found.json").read_text()), strict=True):
        architecture, kind, settings = case
        assert_alike(found, trainings.train(architecture, kind, 8, **settings))


STRATEGIES = [
    ("trainer.args.eval_strategy=steps", "trainer.args.eval_steps=2", "trainer.args.save_strategy=steps",
     "trainer.args.save_steps=4"),
    ("trainer.args.eval_strategy=epoch", "trainer.args.save_strategy=epoch", "trainer.args.save_total_limit=1"),
    ("trainer.args.eval_strategy=steps", "trainer.args.eval_steps=2", "trainer.args.save_strategy=best"),
    ("trainer.args.eval_strategy=steps", "trainer.args.eval_steps=2", "trainer.args.save_strategy=epoch",
     "trainer.args.load_best_model_at_end=false"),
    ("trainer.args.eval_strategy=epoch", "trainer.args.save_strategy=no",
     "trainer.args.load_best_model_at_end=false"),
]  # fmt: skip


@pytest.mark.parametrize("strategies", STRATEGIES)
def test_the_best_model_is_the_saved_one(strategies: tuple[str, ...], place: Path) -> None:
    # The highest loss is sought, which is that of the first evaluation: at step 2, or 3 (an epoch).
    result = hfexp.train(
        *SMALL_DIGITS, "tracking=none", "trainer.args.greater_is_better=true", "trainer.args.max_steps=8",
        "transform=eval", *strategies,
    )  # fmt: skip
    final = result.metrics["final_eval_loss"]
    assert result.best_metric == result.objective == pytest.approx(final, abs=1e-6)
    saved = transformers.AutoModelForImageClassification.from_pretrained(result.run_dir / "model")
    assert result.model.state_dict().keys() == saved.state_dict().keys()
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in result.model.state_dict().items())
    if "trainer.args.load_best_model_at_end=false" in strategies:
        assert result.best_step == 8
        assert not [name for name in result.metrics if name.startswith("best_")]
    else:
        checkpoint = result.run_dir / "checkpoints" / f"checkpoint-{result.best_step}"
        kept = load_file(checkpoint / "model.safetensors")
        assert result.best_step in (2, 3)
        assert all(torch.equal(value, saved.state_dict()[name]) for name, value in kept.items())


def test_a_run_is_not_continued_with_other_data(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"line {number}" for number in range(40)]

    def write(labels: list[str], more: int = 0) -> None:
        rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows + rows[:more]))

    words = [
        "tracking=none", "task=text_classification", "model=tiny_bert", "model.config.num_hidden_layers=1",
        "dataset=table", "dataset.source.data_files=rows.jsonl", "trainer.args.num_train_epochs=3",
        "trainer.args.gradient_accumulation_steps=1", "trainer.args.per_device_train_batch_size=8", *fault_at(6),
    ]  # fmt: skip

    def start(break_it: bool) -> str:
        if break_it:
            Path("fault").write_text("error")
        assert cli.main(words) == (1 if break_it else 0)
        return capsys.readouterr().err

    write(["a", "b"] * 20)
    start(break_it=True)
    assert "continuing" in start(break_it=True)
    write(["b", "a"] * 20)
    said = start(break_it=True)
    assert "the data has changed since" in said
    assert "train: changed content" in said
    assert "continuing" not in said
    write(["b", "a"] * 20, more=10)
    said = start(break_it=False)
    assert "train: 32 -> 40 rows" in said
    assert len(list(Path("outputs").glob("*/tiny_bert-*"))) == 3
