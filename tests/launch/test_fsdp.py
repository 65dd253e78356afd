"""A model spread over the processes of a run: the numbers of one process, its checkpoints, and clear refusals."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trainings
import transformers
from conftest import SMALL_DIGITS, SMALL_TABLES
from faults import fault_at
from safetensors.torch import load_file
from test_ddp import start
from test_machines import free_port
from torch import nn

from hfexp.commands import api
from hfexp.core.config import LaunchConfig, Strategy
from hfexp.core.errors import ConfigError, RunError, Terminated
from hfexp.core.identity import config_hash
from hfexp.experiment.preflight import load_inputs
from hfexp.launch import world
from hfexp.tasks.text import byte_tokenizer
from hfexp.training.sharding import Sharding, check_layers, check_sharding, gathered_layers, mesh_sizes

TWO = ("launch=fsdp", "launch.num_processes=2", "trainer.args.per_device_train_batch_size=16", "launch.num_threads=1")
"""The same batches of 32 as `SMALL_DIGITS`."""
FOUR = (TWO[0], "launch.num_processes=4", "trainer.args.per_device_train_batch_size=8", TWO[3])
ONE = ("launch.num_threads=1",)
GROUPS = (*FOUR, "launch.parallelism.dp_shard_size=2")
"""Two groups of two processes, each with the whole model."""


def weights(run: Any) -> dict[str, torch.Tensor]:
    return load_file(run.run_dir / "model" / "model.safetensors")


def assert_equal_weights(one: Any, other: Any, rtol: float = 1e-3, atol: float = 1e-4) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=rtol, atol=atol)


# What is refused, before anything starts.


def test_it_needs_several_processes() -> None:
    launch = LaunchConfig(Strategy.fsdp, 2)
    world.resolve(launch, use_cpu=True)
    assert launch.num_processes == 2
    with pytest.raises(ConfigError, match="use launch=single"):
        world.resolve(LaunchConfig(Strategy.fsdp, 1), use_cpu=True)


def test_the_identity_is_that_of_the_whole_batch() -> None:
    one = config_hash(api.compose(*SMALL_DIGITS))
    assert config_hash(api.compose(*SMALL_DIGITS, *TWO, "launch.fsdp.reshard_after_forward=false")) == one


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["launch.fsdp.reshard_after_foward=true"], "Did you mean 'reshard_after_forward'?"),
        (["launch.fsdp.cpu_offload=1"], "launch.fsdp.cpu_offload=1 must be of type bool"),
        (["launch.fsdp.cpu_offload=true"], "the model is on the CPU already"),
        (["launch.fsdp.auto_wrap_policy=SIZE_BASED_WRAP"], "use transformer_layer_cls_to_wrap=[CLASS]"),
        (["launch.fsdp.activation_checkpointing=true"], "use trainer.args.activation_checkpointing=true"),
        (["launch.fsdp.state_dict_type=SHARDED_STATE_DICT"], "checkpoints hold whole tensors"),
        (["trainer.args.torch_compile=true"], "trainer.args.torch_compile=True is not supported with launch=fsdp"),
        (["trainer.args.optim=adafactor"], "trainer.args.optim=adafactor is not supported with launch=fsdp"),
        (["trainer.thaw_at=1", "model.freeze=[vit.embeddings]"], "trainer.thaw_at is not supported with launch=fsdp"),
        (["trainer.args.save_only_model=true"], "trainer.args.save_only_model with load_best_model_at_end"),
        (["trainer.soup=2"], "trainer.soup is not supported with launch=fsdp; use launch=ddp"),
        (["trainer.auto_batch=true"], "trainer.auto_batch is not supported with launch=fsdp"),
        (["model.quantization.load_in_4bit=true"], "model.quantization is not supported with launch=fsdp"),
        (
            ["launch.parallelism.tp_size=2"],
            "launch.parallelism.tp_size is not supported: tensor parallelism",
        ),
        (["launch.parallelism.dp_shard_sise=2"], "Did you mean 'dp_shard_size'?"),
        (
            ["launch.parallelism.dp_shard_size=0"],
            "launch.parallelism.dp_shard_size=0 must be an integer of at least 1",
        ),
        (["launch.parallelism.dp_shard_size=3"], "1 x 3 (dp_replicate_size x dp_shard_size) is not 2"),
        (["launch.parallelism.dp_replicate_size=2"], "each process would hold the whole model; use launch=ddp"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(words: list[str], message: str) -> None:
    config = api.compose(*SMALL_DIGITS, *TWO, *words)
    assert message in "\n".join(check_sharding(config, SimpleNamespace(needs_reference=False)))  # pyright: ignore


@pytest.mark.parametrize("key", ["launch.fsdp.cpu_offload", "launch.parallelism.dp_shard_size"])
def test_settings_without_the_strategy_are_refused(key: str) -> None:
    config = api.compose(*SMALL_DIGITS, f"{key}=1")
    assert check_sharding(config, SimpleNamespace()) == [f"{key} needs launch=fsdp"]  # pyright: ignore


def test_the_size_that_is_left_out_follows_from_the_processes() -> None:
    both = {"dp_replicate_size": 4, "dp_shard_size": 2}
    assert (
        mesh_sizes({"dp_shard_size": 2}, 8) == mesh_sizes({"dp_replicate_size": 4}, 8) == mesh_sizes(both, 8) == both
    )
    assert mesh_sizes({}, 8) == {}


def test_variables_of_accelerate_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(ConfigError, match="FSDP_OFFLOAD_PARAMS would change launch=fsdp"):
        load_inputs(api.compose(*SMALL_DIGITS, *TWO))


def test_a_task_with_a_second_model_is_refused() -> None:
    config = api.compose(*SMALL_DIGITS, *TWO)
    (problem,) = check_sharding(config, SimpleNamespace(needs_reference=True))  # pyright: ignore
    assert "it keeps a second, whole model" in problem


def test_layers_that_the_model_does_not_have_are_named() -> None:
    vit = transformers.AutoConfig.for_model("vit", **trainings.CONFIGS["vit"])
    model = transformers.AutoModelForImageClassification.from_config(vit)
    assert gathered_layers(model) == ["ViTLayer"]  # `ViTEmbeddings` holds what Accelerate divides by itself
    for words, message in (
        (["launch.fsdp.transformer_layer_cls_to_wrap=[VitLayer]"], "has no VitLayer. Did you mean 'ViTLayer'?"),
        (["launch.fsdp.transformer_layer_cls_to_wrap=ViTEmbeddings"], "ViTEmbeddings can't be gathered by itself"),
    ):
        assert message in "\n".join(check_layers(api.compose(*SMALL_DIGITS, *TWO, *words), model))
    words = "launch.fsdp.transformer_layer_cls_to_wrap=[ViTLayer]"
    assert check_layers(api.compose(*SMALL_DIGITS, *TWO, words), model) == []
    model.scale = nn.Parameter(torch.tensor(1.0))
    (problem,) = check_layers(api.compose(*SMALL_DIGITS, *TWO), model)
    assert "can't divide a parameter that is a single number: scale" in problem


class _Whole:
    """A Trainer that prepares nothing."""

    args = SimpleNamespace(fsdp=True)
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=SimpleNamespace(transformer_cls_names_to_wrap=[])))
    model = nn.Linear(2, 2)

    def _prepare_for_training(self) -> None:
        """Leave the model as it is."""


def test_a_model_that_was_not_divided_is_not_trained() -> None:
    class Careful(Sharding, _Whole):  # pyright: ignore
        pass

    with pytest.raises(RuntimeError, match="2 parameters are not divided, e.g. weight"):
        Careful()._prepare_for_training()


# What is trained, saved and continued.


def test_two_parts_do_what_the_whole_does(place: Path) -> None:
    words = [*SMALL_DIGITS, "dataset.max_validation_samples=41", "trainer.args.logging_steps=1", "tracking=none"]
    words += ["trainer.args.max_grad_norm=0.5", "trainer.ema.decay=0.9", "trainer.layer_decay=0.8"]
    two, one = api.train(*words, *TWO), api.train(*words, *ONE, "output_dir=one")
    assert_equal_weights(one, two)
    histories = [
        json.loads((run.run_dir / "checkpoints" / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
        for run in (one, two)
    ]
    for key in ("loss", "grad_norm", "eval_loss"):
        of_one, of_two = ([entry[key] for entry in history if key in entry] for history in histories)
        assert len(of_one) >= 2
        assert of_two == pytest.approx(of_one, rel=2e-4)
    assert two.metrics["best_eval_loss"] == two.metrics["final_eval_loss"]
    assert two.metrics["test_loss"] == pytest.approx(one.metrics["test_loss"], rel=2e-4)
    assert two.report is not None
    assert two.report.support.sum() == one.report.support.sum()  # pyright: ignore
    # Each tensor is whole in the checkpoints, which differ in nothing but rounding.
    for name in ("model.safetensors", "trained_weights.safetensors"):
        ours, theirs = (load_file(run.run_dir / "checkpoints" / "checkpoint-6" / name) for run in (one, two))
        assert {key: value.shape for key, value in ours.items()} == {key: v.shape for key, v in theirs.items()}
    model = transformers.AutoModelForImageClassification.from_pretrained(two.run_dir / "model")
    assert type(model).__name__ == "ViTForImageClassification"
    assert torch.equal(model.classifier.weight, weights(two)["classifier.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["SIGTERM", "SIGKILL"])
def test_a_process_that_is_stopped_or_killed_changes_nothing(fault: str, place: Path) -> None:
    every = [f"trainer.args.{name}_{what}" for name in ("eval", "save") for what in ("strategy=steps", "steps=3")]
    words = [*SMALL_DIGITS, *TWO, *every, "trainer.ema.decay=0.9", "tracking=none", *fault_at(5, rank=1)]
    (place / "fault").write_text(fault)
    with pytest.raises((Terminated, RunError)):
        api.train(*words)
    resumed, whole = api.train(*words), api.train(*words, "output_dir=whole")
    assert re.search(r"continuing from checkpoint-[356]\b", (resumed.run_dir / "hfexp.log").read_text())
    assert_equal_weights(resumed, whole, rtol=0, atol=0)
    assert resumed.metrics["test_loss"] == whole.metrics["test_loss"]


@pytest.mark.slow
@pytest.mark.parametrize(("begun_by", "continued_by"), [(TWO, ONE), (ONE, TWO), (TWO, FOUR), (GROUPS, ONE)])
def test_another_number_of_processes_goes_on(
    begun_by: tuple[str, ...], continued_by: tuple[str, ...], place: Path
) -> None:
    words = [*SMALL_DIGITS, "tracking=none", "trainer.ema.decay=0.9", "trainer.args.num_train_epochs=3", *fault_at(4)]
    (place / "fault").write_text("SIGTERM")
    with pytest.raises(Terminated):
        api.train(*words, *begun_by)
    resumed, whole = api.train(*words, *continued_by), api.train(*words, *ONE, "output_dir=whole")
    assert re.search(r"continuing from checkpoint-[45]\b", (resumed.run_dir / "hfexp.log").read_text())
    assert_equal_weights(whole, resumed)
    assert resumed.metrics["test_loss"] == pytest.approx(whole.metrics["test_loss"], rel=2e-4)


class Layout(transformers.TrainerCallback):
    """Writes how the first parameter is divided, once it is."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        parameter = next(model.parameters())
        if args.process_index == 0:
            Path("layout").write_text(f"{tuple(parameter.device_mesh.shape)} {parameter.placements}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "layout"), [(FOUR, "(4,) (Shard(dim=0),)"), (GROUPS, "(2, 2) (Replicate(), Shard(dim=0))")]
)
def test_four_processes_do_what_one_does(processes: tuple[str, ...], layout: str, place: Path) -> None:
    words = [*SMALL_DIGITS, "dataset.max_validation_samples=41", "tracking=none", "trainer.args.max_grad_norm=0.5"]
    words += ["trainer.ema.decay=0.9", "security.allowed_targets=[test_fsdp]"]
    looks = "trainer.callbacks.layout._target_=test_fsdp.Layout"
    four, one = api.train(*words, *processes, looks), api.train(*words, *ONE, "output_dir=one")
    assert (place / "layout").read_text() == layout
    assert_equal_weights(one, four)
    assert four.metrics["test_loss"] == pytest.approx(one.metrics["test_loss"], rel=2e-4)
    assert four.metrics["best_eval_loss"] == four.metrics["final_eval_loss"]


@pytest.fixture
def base(place: Path) -> tuple[str, ...]:
    """A pretrained model without a head in `start`, and a table of texts."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=261, max_position_embeddings=40, **sizes, **trainings.NO_DROPOUT)
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained("start")
    byte_tokenizer(40).save_pretrained("start")
    for split, count in (("train", 46), ("validation", 13), ("test", 9)):
        rows = [{"text": "ice snow"[: 2 + n % 7], "label": ("cold", "warm")[n % 3 == 0]} for n in range(count)]
        Path(f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return (*SMALL_TABLES, "task=text_classification", "trainer=scratch", "metrics=accuracy", "tracking=none")


TWO_OF_FOUR = (*TWO[:2], "trainer.args.per_device_train_batch_size=4", TWO[3])


@pytest.mark.slow
def test_an_adapter_in_parts_is_the_adapter_of_the_whole(base: tuple[str, ...], place: Path) -> None:
    words = [*base, "model.peft.r=2", "trainer.args.activation_checkpointing=true", *fault_at(8)]
    (place / "fault").write_text("SIGTERM")
    with pytest.raises(Terminated):
        api.train(*words, *TWO_OF_FOUR)
    two, one = api.train(*words, *TWO_OF_FOUR), api.train(*words, *ONE, "output_dir=one")
    assert re.search(r"continuing from checkpoint-[89]\b", (two.run_dir / "hfexp.log").read_text())
    ours, theirs = (load_file(run.run_dir / "model" / "adapter_model.safetensors") for run in (two, one))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-3, atol=1e-4)
    assert two.metrics["test_loss"] == pytest.approx(one.metrics["test_loss"], rel=2e-4)
    assert two.metrics["best_eval_loss"] == two.metrics["final_eval_loss"]
    answers = [api.predict(run=run.run_dir, inputs=["ice"])["probabilities"][0] for run in (one, two)]
    assert answers[0] == pytest.approx(answers[1], abs=1e-3)


@pytest.mark.slow
def test_texts_of_all_lengths_are_written_by_parts_as_by_the_whole(place: Path) -> None:
    """In an evaluation; the processes' texts have different lengths, and each token needs all of them."""
    numbers = ["one", "two", "three", "four", "five", "six", "seven"]
    rows = [{"text": " ".join(numbers[: 1 + n % 5]), "target": " ".join(numbers[n % 3 :])} for n in range(40)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = (
        "task=translation", "model=tiny_t5_subwords", "model.config.vocab_size=300", "trainer=scratch",
        "tracking=none", "dataset=table", "dataset.source.data_files=rows.jsonl", "dataset.test_size=0.2",
        "model.config.d_model=16", "model.config.d_kv=8", "model.config.d_ff=16", "model.config.num_layers=1",
        "model.config.num_decoder_layers=1", "model.config.num_heads=2",
        "++model.config.dropout_rate=0", "task.generation.max_new_tokens=12",
        "trainer.args.num_train_epochs=2", "trainer.args.per_device_train_batch_size=8", "tracking.pictures=false",
        "trainer.args.learning_rate=0.01", "trainer.args.per_device_eval_batch_size=3",
    )  # fmt: skip
    two, one = api.train(*words, *TWO_OF_FOUR), api.train(*words, *ONE, "output_dir=one")
    for name in ("test_loss", "test_chrf", "final_eval_chrf"):
        assert two.metrics[name] == pytest.approx(one.metrics[name], rel=2e-4), name
    assert_equal_weights(one, two)


@pytest.mark.slow
def test_each_architecture_learns_in_parts_what_it_learns_as_a_whole(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, trainings.__file__, str(tmp_path / "found.json"), "fsdp"]
    processes = [
        subprocess.Popen(command, env={**os.environ, **place, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"
    ]
    assert [process.wait(600) for process in processes] == [0, 0]
    trained = json.loads((tmp_path / "found.json").read_text())
    for (architecture, kind, settings), parts in zip(trainings.IN_PARTS, trained, strict=True):
        whole = trainings.train(architecture, kind, 8, **settings)
        for key, tolerance in {"loss": 1e-4, "grad_norm": 1e-3, "eval_loss": 1e-4}.items():
            assert parts[key] == pytest.approx(whole[key], rel=tolerance), (architecture, kind, key)
        for name, values in whole["weights"].items():
            found = torch.tensor(parts["weights"][name])
            assert torch.allclose(found, torch.tensor(values), rtol=0, atol=1e-5), (architecture, kind, name)


@pytest.mark.slow
def test_two_machines_train_as_one_process_does(place: Path) -> None:
    machines = ["launch.num_processes=1", "launch.num_machines=2", f"launch.rdzv_endpoint=127.0.0.1:{free_port()}"]
    words = [*SMALL_DIGITS, *TWO, *machines, "launch.timeout=300", "tracking=none"]
    both = [start(words, place) for _ in range(2)]
    for process in both:
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output
    (saved,) = place.glob("outputs/*/*/model/model.safetensors")
    one = weights(api.train(*SMALL_DIGITS, *ONE, "tracking=none", "output_dir=one"))
    for name, weight in load_file(saved).items():
        torch.testing.assert_close(weight, one[name], rtol=1e-3, atol=1e-4)
