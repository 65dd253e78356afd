"""Out of memory: the same batch in smaller parts, from the same state, to the same numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL_DIGITS
from faults import SmallMemory, fault_at
from safetensors.torch import load_file
from trainings import KINDS, build, make_trainer

from hfexp.commands import api
from hfexp.core.errors import ConfigError, RunError, Terminated
from hfexp.core.identity import config_hash
from hfexp.experiment.preflight import load_inputs
from hfexp.tasks.image_classification import ImageClassification
from hfexp.training.auto_batch import is_out_of_memory
from hfexp.training.recipes import check_model
from hfexp.training.trainer import Trainer

TWO_PROCESSES = ("launch=ddp", "launch.num_processes=2", "launch.num_threads=1")


def small_memory(rows: int, **more: Any) -> list[str]:
    """Overrides that add the callback."""
    options = ", ".join(f"{name}: {value}" for name, value in more.items())
    return [
        "trainer.auto_batch=true",
        "security.allowed_targets=[faults]",
        f"trainer.callbacks.memory={{_target_: faults.SmallMemory, rows: {rows}, {options}}}",
    ]


def trained(trainer: Trainer, memory: SmallMemory | None = None) -> tuple[Any, dict[str, torch.Tensor]]:
    """Train with dropout; return what was logged, but for times, and the weights."""
    for module in trainer.model.modules():  # pyright: ignore
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    if memory is not None:
        trainer.add_callback(memory)
    torch.manual_seed(0)
    trainer.train()
    kept = ("loss", "grad_norm", "step")
    logged = [{key: entry[key] for key in kept} for entry in trainer.state.log_history if "grad_norm" in entry]
    return logged, trainer.model.state_dict()  # pyright: ignore


def assert_equal(first: tuple[Any, dict[str, torch.Tensor]], second: tuple[Any, dict[str, torch.Tensor]]) -> None:
    assert first[0] == second[0]
    assert all(torch.equal(value, second[1][name]) for name, value in first[1].items())


def test_it_is_the_training_that_had_the_smaller_batches_from_the_start(tmp_path: Path) -> None:
    halved = make_trainer("vit", KINDS[0], 8, tmp_path, logging_steps=3)
    halved.auto_batch = True
    small = make_trainer("vit", KINDS[0], 4, tmp_path, gradient_accumulation_steps=2, logging_steps=3)
    assert_equal(trained(halved, memory := SmallMemory(4)), trained(small))
    assert (memory.errors, halved.limits) == (1, [[0, 4]])
    assert (halved.args.per_device_train_batch_size, halved.args.gradient_accumulation_steps) == (8, 1)


@pytest.mark.parametrize(
    ("architecture", "kind", "spare"),
    [("bert", KINDS[1], 0), ("llama", "tokens", 1), pytest.param("t5", "targets", 1, marks=pytest.mark.slow)],
)
def test_a_step_is_done_again_from_the_same_state(architecture: str, kind: str, spare: int, tmp_path: Path) -> None:
    def of(limits: list[list[int]]) -> Trainer:
        trainer = make_trainer(architecture, kind, 8, tmp_path, gradient_accumulation_steps=2)
        trainer.auto_batch, trainer.limits = True, limits
        return trainer

    failed = of([])
    assert_equal(trained(failed, memory := SmallMemory(3, at=2, spare=spare)), trained(of([[2, 2]])))
    assert (memory.errors, failed.limits) == (2, [[2, 4], [2, 2]])
    whole = trained(of([]))[1]
    differing = [name for name, value in trained(of([[2, 2]]))[1].items() if not torch.equal(value, whole[name])]
    assert differing, "without rounding, this test proves nothing"


def test_an_evaluation_goes_on_with_half_the_rows(tmp_path: Path) -> None:
    trainer = make_trainer("bert", KINDS[0], 16, tmp_path, eval_strategy="epoch")
    trainer.auto_batch, seen = True, []
    trainer.on_limit = seen.append
    trainer.add_callback(memory := SmallMemory(5, at=100, evaluating=True))
    trainer.train()
    assert seen == [
        "out of memory in an evaluation with 16 rows at once: going on with 8",
        "out of memory in an evaluation with 8 rows at once: going on with 4",
    ]
    assert (memory.errors, trainer.args.per_device_train_batch_size) == (2, 16)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    plain = make_trainer("bert", KINDS[0], 16, tmp_path, eval_strategy="epoch")
    plain.train()
    expected = [entry["eval_loss"] for entry in plain.state.log_history if "eval_loss" in entry]
    assert losses == pytest.approx(expected, rel=1e-5)
    assert trainer.predict(trainer.eval_dataset).metrics["test_loss"] == losses[-1]  # pyright: ignore


def test_errors_that_half_a_batch_does_not_help(tmp_path: Path) -> None:
    for auto_batch, rows, message in (
        (True, 0, "out of memory: there is no memory for a single row"),
        (False, 4, "out of memory with 8 rows at once; set trainer.auto_batch=true, or lower"),
    ):
        trainer = make_trainer("vit", KINDS[0], 8, tmp_path)
        trainer.auto_batch = auto_batch
        trainer.add_callback(SmallMemory(rows))
        with pytest.raises(RunError, match=message):
            trainer.train()


def test_what_out_of_memory_means() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))


def test_models_whose_rows_depend_on_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = api.compose(*SMALL_DIGITS, "trainer.auto_batch=true")
    with pytest.raises(ConfigError, match="the model's batch normalisation looks at all rows of a batch"):
        check_model(config, build("resnet", KINDS[0], batch_norm=True))
    check_model(config, build("resnet", KINDS[0], batch_norm=False))  # as frozen layers are
    monkeypatch.setattr(ImageClassification, "compares_rows", True)
    with pytest.raises(ConfigError, match="trainer.auto_batch=true: ImageClassification compares the rows of a batch"):
        load_inputs(config)


def test_it_is_said_and_recorded_and_the_experiment_stays_the_same(
    place: Path, all_runs: Callable[[], list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL_DIGITS, "trainer.args.save_strategy=epoch"]
    assert config_hash(api.compose(*words, "trainer.auto_batch=true")) == config_hash(api.compose(*words))
    result = api.train(*words, *small_memory(20, at=2))
    assert "out of memory with 32 rows at once: going on with 2 x 16" in capsys.readouterr().err
    (run,) = all_runs()
    assert run.data.params["trainer.args.per_device_train_batch_size"] == "32"
    assert (run.data.tags["hfexp.rows_at_once"], run.data.tags["hfexp.eval_rows_at_once"]) == ("16", "128")
    assert json.loads((result.run_dir / "run.json").read_text())["rows_at_once"] == [[2, 16]]


def test_a_run_that_ran_out_of_memory_continues_to_the_same_numbers(place: Path) -> None:
    words = [*SMALL_DIGITS, "tracking=none", *small_memory(20, at=2), fault_at(4)[1]]
    whole = api.train(*words, "output_dir=whole")
    (place / "fault").write_text("SIGTERM")
    with pytest.raises(Terminated):
        api.train(*words)
    resumed = api.train(*words)
    assert "continuing from checkpoint-4" in (resumed.run_dir / "hfexp.log").read_text()
    first, second = (load_file(run.run_dir / "model" / "model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.slow
@pytest.mark.parametrize("evaluating", [False, True])
def test_several_processes_start_again_from_the_checkpoint(
    evaluating: bool, place: Path, all_runs: Callable[[], list[Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    sizes = ("trainer.args.per_device_train_batch_size=16", "trainer.args.per_device_eval_batch_size=32")
    words = [*SMALL_DIGITS, *TWO_PROCESSES, *sizes]
    plain = api.train(*words, "output_dir=plain")
    at = 100 if evaluating else 4  # in the second of two epochs
    rows, rank = (16, 0) if evaluating else (12, 1)
    result = api.train(*words, *small_memory(rows, at=at, rank=rank, evaluating=str(evaluating).lower()))
    said = capfd.readouterr().err
    if evaluating:
        assert "process 0: out of memory in an evaluation with 32 rows at once" in said
        assert "All processes go on from the start with 16" in said
    else:
        assert "process 1: out of memory with 16 rows at once" in said
        assert "All processes go on from checkpoint-3 with 2 x 8" in said
    (run,) = (run for run in all_runs() if run.info.run_id == result.run_id)
    assert run.info.status == "FINISHED"
    tag = "hfexp.eval_rows_at_once" if evaluating else "hfexp.rows_at_once"
    assert run.data.tags[tag] == ("16" if evaluating else "8")
    first, second = (load_file(run.run_dir / "model" / "model.safetensors") for run in (plain, result))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-3, atol=1e-4)
