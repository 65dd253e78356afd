"""`trainer.args` against the installed TrainingArguments."""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

from hfexp.commands import api
from hfexp.core.errors import ConfigError
from hfexp.core.training_args import (
    OWNED,
    RANGES,
    REFUSED,
    RENAMED,
    SHORT,
    build_arguments,
    check_args,
    loader_defaults,
    training_argument_types,
)
from hfexp.experiment import checks


def test_the_fields_read_from_source_are_the_real_ones() -> None:
    real = {field.name for field in dataclasses.fields(transformers.TrainingArguments) if field.init}
    assert set(training_argument_types()) == real
    assert {*OWNED, *REFUSED, *RANGES, *SHORT.values()} <= real
    assert not {*RENAMED, *SHORT} & real
    assert not OWNED.keys() & REFUSED.keys()


def test_all_wrong_arguments_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check_args({"warmup_ratio": 0.1, "learning_rat": 1, "bf16": "yes", "seed": 1, "max_steps": 5})
    text = str(caught.value)
    assert text.startswith("4 problems:")
    for part in ("warmup_steps", "Did you mean 'learning_rate'", "bf16='yes' (str) must be of type bool", "use seed"):
        assert part in text


@pytest.mark.parametrize(
    ("name", "value"),
    [("warmup_steps", 0.1), ("num_train_epochs", 3), ("eval_steps", None), ("lr_scheduler_kwargs", {"a": 1}),
     ("optim_target_modules", ["x"]), ("optim_target_modules", "x"), ("load_best_model_at_end", True), ("debug", "")],
)  # fmt: skip
def test_right_values_pass(name: str, value: object) -> None:
    assert check_args({name: value}) == {name: value}


def test_values_reach_training_arguments_untouched(tmp_path: Path) -> None:
    config = api.compose("experiment=food101_vit", "trainer.args.lr_scheduler_kwargs={num_cycles: 2}")
    args = build_arguments(
        config.trainer.args, output_dir=tmp_path, seed=7, run_name="r", metric="accuracy", greater_is_better=True,
        deterministic=False,
    )  # fmt: skip
    assert (args.learning_rate, args.warmup_steps, args.seed, args.run_name) == (5e-5, 0.1, 7, "r")
    assert args.lr_scheduler_kwargs == {"num_cycles": 2}
    assert type(args.lr_scheduler_kwargs) is dict
    assert (args.metric_for_best_model, args.greater_is_better) == ("accuracy", True)
    assert (args.report_to, args.remove_unused_columns, args.n_gpu <= 1) == ([], False, True)


@pytest.mark.parametrize(
    ("per_token", "given", "expected"),
    [(False, {}, False), (True, {}, True), (False, {"average_tokens_across_devices": True}, True)],
)
def test_only_a_loss_per_token_is_counted_over_all_processes(
    tmp_path: Path, per_token: bool, given: dict[str, bool], expected: bool
) -> None:
    args = build_arguments(
        given, output_dir=tmp_path, seed=7, run_name="r", metric="accuracy", greater_is_better=True,
        deterministic=False, loss_per_token=per_token,
    )  # fmt: skip
    assert args.average_tokens_across_devices is expected


@pytest.mark.parametrize(("processors", "processes", "workers"), [(1, 1, None), (8, 1, 7), (64, 4, 8), (8, 8, None)])
def test_data_loader_workers_leave_room_for_the_training(processors: int, processes: int, workers: int | None) -> None:
    assert loader_defaults(processors, processes).get("dataloader_num_workers") == workers


def test_bf16_on_a_cpu_without_it_is_said_to_be_slow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, expected in (("fpu avx2", True), ("fpu avx512_bf16", False)):
        monkeypatch.setattr(checks.Path, "read_text", lambda self, flags=flags: flags)
        assert checks.check_precision({"bf16": True, "use_cpu": True}) == []
        assert ("no bf16 instructions" in capsys.readouterr().err) is expected


def test_compiling_for_a_cpu_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    for args in ({"torch_compile": True}, {"torch_compile_mode": "default"}, {"torch_compile_backend": "inductor"}):
        [problem] = checks.check_compiler({**args, "use_cpu": True})
        assert "no-such-compiler -O3 was not found" in problem
        assert "CXX" in problem
    assert checks.check_compiler({}) == []
    assert checks.check_compiler({"torch_compile_backend": "aot_eager", "use_cpu": True}) == []
    monkeypatch.setenv("CXX", f"'{sys.executable}' -E")
    assert checks.check_compiler({"torch_compile": True, "use_cpu": True}) == []


def given(**args: object) -> Any:
    return build_arguments(
        args, output_dir=Path("x"), seed=7, run_name="r", metric="accuracy", greater_is_better=True,
        deterministic=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("per_device_train_batch_size", [0, -4], [1]), ("per_device_eval_batch_size", [0], [1]),
        ("gradient_accumulation_steps", [0], [1]), ("num_train_epochs", [0, -1, math.inf], [0.5]),
        ("max_steps", [0, -2], [-1, 1]), ("learning_rate", [-1e-3, math.inf, math.nan], [0.0, 1e30]),
        ("adam_beta2", [1.0, 1.5], [0.0, 0.999]), ("save_total_limit", [0], [None, 1]),
        ("warmup_steps", [-1], [0, 0.1]), ("save_steps", [0], [0.1, 5]), ("dataloader_num_workers", [-1], [0]),
    ],
)  # fmt: skip
def test_numbers_that_make_no_sense(name: str, wrong: list[float], right: list[float]) -> None:
    for value in wrong:
        with pytest.raises(ConfigError, match=f"trainer.args.{name}=.* must be "):
            check_args({name: value})
    for value in right:
        assert check_args({name: value}) == {name: value}


def test_what_asks_for_nothing_passes() -> None:
    args = {"fsdp": "", "deepspeed": None, "push_to_hub": False, "include_for_metrics": []}
    assert check_args(args) == args


@pytest.mark.parametrize(
    ("every", "saved"),
    [(0.1, 0.3), (0.02, 0.1), (0.1, 0.7), (2, 4), (2.0, 4), (0.1, 0.25), (0.1, 4), (2, 0.5), (3, 4)],
)
def test_multiples_are_those_of_training_arguments(every: float, saved: float) -> None:
    args = {"eval_strategy": "steps", "save_strategy": "steps", "load_best_model_at_end": True, "eval_steps": every,
            "save_steps": saved}  # fmt: skip
    try:
        given(**args)
        accepted = True
    except ConfigError:
        accepted = False
    assert accepted is ((every, saved) in [(0.1, 0.3), (0.02, 0.1), (0.1, 0.7), (2, 4), (2.0, 4)])
    assert (checks.check_strategies(args, None) == []) is accepted


def test_optimizer_and_schedule_are_tried_beforehand() -> None:
    assert checks.check_optimisation(given()) == []
    assert checks.check_optimisation(given(lr_scheduler_type="polynomial", optim="sgd")) == []
    min_lr = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}}
    assert checks.check_optimisation(given(**min_lr)) == []
    wrong = {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"mn_lr": 1e-6}}
    assert "mn_lr" in checks.check_optimisation(given(**wrong))[0]
    assert "bitsandbytes" in checks.check_optimisation(given(optim="paged_adamw_8bit"))[0]
