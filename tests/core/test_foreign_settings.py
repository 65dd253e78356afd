"""What libraries read from the environment must not change a run that the configuration describes otherwise."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL_DIGITS

from hfexp.commands import api, cli
from hfexp.core import foreign_settings
from hfexp.core.foreign_settings import find_foreign_settings

ONE_EPOCH = (*SMALL_DIGITS, "trainer.args.num_train_epochs=1", "tracking=none")


@pytest.mark.parametrize(
    ("name", "value", "args", "accelerator", "agrees"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", {}, False, False),
        ("ACCELERATE_MIXED_PRECISION", "bf16", {"bf16": True}, False, True),
        ("ACCELERATE_MIXED_PRECISION", "no", {}, True, True),
        ("ACCELERATE_MIXED_PRECISION", "fp8", {}, True, False),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", {}, False, False),
        ("ACCELERATE_DYNAMO_BACKEND", "NO", {}, False, True),
        ("ACCELERATE_DYNAMO_BACKEND", "inductor", {"torch_compile": True}, False, True),
        ("ACCELERATE_DYNAMO_MODE", "default", {}, False, True),
        ("ACCELERATE_DYNAMO_MODE", "max-autotune", {"torch_compile": True}, False, False),
        ("ACCELERATE_USE_CPU", "True", {}, True, False),
        ("ACCELERATE_USE_CPU", "True", {}, False, True),
        ("ACCELERATE_USE_CPU", "False", {}, True, True),
        ("ACCELERATE_USE_FSDP", "true", {}, True, False),
        ("ACCELERATE_USE_DEEPSPEED", "true", {}, False, False),
        ("ACCELERATE_USE_MEGATRON_LM", "false", {}, True, True),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", {}, True, False),
        ("ACCELERATE_TORCH_DEVICE", "cuda:1", {}, True, False),
        ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1", {}, True, False),
        ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1", {"tf32": True}, True, True),
        ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1", {}, False, True),
        ("NVIDIA_TF32_OVERRIDE", "0", {"tf32": True}, True, False),
        ("NVIDIA_TF32_OVERRIDE", "0", {"tf32": False}, True, True),
        ("ONEDNN_DEFAULT_FPMATH_MODE", "BF16", {}, False, False),
        ("ONEDNN_DEFAULT_FPMATH_MODE", "STRICT", {}, False, True),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "7", {}, False, True),
        ("TRANSFORMERS_CACHE", "/x", {}, False, True),
        ("FSDP_VERSION", "2", {}, False, True),
    ],
)
def test_variables_agree_or_are_named(
    name: str, value: str, args: dict[str, Any], accelerator: bool, agrees: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign_settings, "visible_devices", lambda: ("0",) if accelerator else ())
    monkeypatch.setenv(name, value)
    problems = find_foreign_settings(args)
    assert (problems == []) is agrees
    assert all(f"{name}={value}" in problem and "use instead" in problem for problem in problems)


@pytest.mark.parametrize("words", [ONE_EPOCH, ("-m", *ONE_EPOCH, "seed=1,2")], ids=["run", "sweep"])
def test_a_run_under_a_foreign_setting_is_refused_before_anything_is_created(
    words: tuple[str, ...], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert cli.main(list(words)) == 2
    message = capsys.readouterr().err
    assert "ACCELERATE_MIXED_PRECISION=bf16" in message
    assert "trainer.args.bf16=true" in message
    assert list(place.iterdir()) == []


@pytest.mark.slow
def test_variables_that_pass_change_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss() -> float:
        run = api.train(*ONE_EPOCH, "on_existing=rerun")
        return json.loads((run.run_dir / "artifacts" / "results.json").read_text())["final_eval_loss"]

    expected = loss()
    home = place / "home"
    (home / "accelerate").mkdir(parents=True)
    (home / "accelerate" / "default_config.yaml").write_text("mixed_precision: bf16\nuse_cpu: true\n")
    harmless = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "7", "ACCELERATE_MIXED_PRECISION": "no",
                "ACCELERATE_DYNAMO_BACKEND": "NO", "FSDP_VERSION": "2", "HF_HOME": str(home)}  # fmt: skip
    for name, value in harmless.items():
        monkeypatch.setenv(name, value)
    assert loss() == expected


def test_mlflows_run_of_the_environment_stays_as_it_is(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], all_runs: Callable[[], list[Any]]
) -> None:
    api.train(*ONE_EPOCH[:-1])
    (before,) = all_runs()
    monkeypatch.setenv("MLFLOW_RUN_ID", before.info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "99")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert cli.main([*ONE_EPOCH[:-1], "on_existing=rerun"]) == 0
    message = capsys.readouterr().err
    assert f"variables MLFLOW_RUN_ID={before.info.run_id} and MLFLOW_EXPERIMENT_ID=99: each run" in message
    by_id = {run.info.run_id: run for run in all_runs()}
    assert len(by_id) == 2
    assert by_id.pop(before.info.run_id).to_dictionary() == before.to_dictionary()
    assert (place / "outputs" / "mine").is_dir()
