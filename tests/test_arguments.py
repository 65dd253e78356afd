"""`trainer.args` against the installed TrainingArguments."""

import dataclasses
import sys
from pathlib import Path

import pytest
import transformers

from hfexp import api, checks
from hfexp.arguments import OWNED, RENAMED, build_arguments, check_args, loader_defaults, training_argument_types
from hfexp.errors import ConfigError


def test_the_fields_read_from_source_are_the_real_ones() -> None:
    real = {field.name for field in dataclasses.fields(transformers.TrainingArguments) if field.init}
    assert set(training_argument_types()) == real
    assert set(OWNED) <= real
    assert not set(RENAMED) & real


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
        assert "there is no no-such-compiler -O3" in problem
        assert "CXX" in problem
    assert checks.check_compiler({}) == []
    assert checks.check_compiler({"torch_compile_backend": "aot_eager", "use_cpu": True}) == []
    monkeypatch.setenv("CXX", f"'{sys.executable}' -E")
    assert checks.check_compiler({"torch_compile": True, "use_cpu": True}) == []
