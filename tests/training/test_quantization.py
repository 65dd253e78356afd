"""Adapters on quantised weights: trained, saved without them, resumed, and asked again; and what can't be."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import assert_equal_weights
from faults import fault_at
from safetensors.torch import load_file

from hfexp import predict, train
from hfexp.commands import api
from hfexp.core.errors import ConfigError
from hfexp.experiment.preflight import load_inputs
from hfexp.tasks.text import byte_tokenizer
from hfexp.training.adapters import load_saved

FOUR_BITS = "model.quantization.load_in_4bit=true"


@pytest.fixture
def words(place: Path) -> list[str]:
    """A pretrained language model, and a table of texts."""
    sizes: Any = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.LlamaConfig(
        vocab_size=261, max_position_embeddings=64, pad_token_id=0, bos_token_id=2, eos_token_id=3, **sizes
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained("base")
    byte_tokenizer(64, generates=True).save_pretrained("base")
    Path("rows.jsonl").write_text("".join(json.dumps({"text": f"{n} and {n + 1}"}) + "\n" for n in range(60)))
    return [
        "task=text_generation", "model=local", "model.path=base", "dataset=table",
        "dataset.source.data_files=rows.jsonl", "dataset.test_size=0.2", "trainer=scratch", "task.block_size=16",
        "trainer.args.per_device_train_batch_size=4", "trainer.args.num_train_epochs=2", "model.peft.r=2",
        "trainer.args.learning_rate=0.01", "model.peft.lora_dropout=0.1", "tracking.pictures=false",
    ]  # fmt: skip


def quantised(model: Any) -> tuple[type, str]:
    """Type and format of the weights of a layer below an adapter."""
    weight = model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight
    return type(weight), weight.quant_state.quant_type


@pytest.mark.slow
def test_an_adapter_on_weights_of_four_bits(words: list[str], place: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs the extra hfexp[bitsandbytes]")
    every = [f"trainer.args.{name}_{what}" for name in ("eval", "save") for what in ("strategy=steps", "steps=3")]
    words += [FOUR_BITS, "model.quantization.bnb_4bit_quant_type=nf4", *every, *fault_at(8)]
    whole = train(*words, "output_dir=whole")
    assert quantised(whole.model) == (bitsandbytes.nn.Params4bit, "nf4")
    assert not list(whole.run_dir.rglob("model.safetensors"))
    full = transformers.AutoModelForCausalLM.from_pretrained("base").num_parameters()
    added = sum(p.numel() for p in whole.model.parameters() if p.requires_grad)
    card = (whole.run_dir / "model" / "README.md").read_text()
    assert f"{full + added:,}" in card
    assert "load_in_4bit" in card
    assert whole.metrics["best_eval_loss"] == whole.metrics["final_eval_loss"]
    Path("fault").write_text("error")
    with pytest.raises(RuntimeError, match="caught fire"):
        train(*words)
    resumed = train(*words)
    first, second = (load_file(run.run_dir / "model" / "adapter_model.safetensors") for run in (whole, resumed))
    assert_equal_weights(first, second)
    assert whole.metrics["test_loss"] == resumed.metrics["test_loss"]
    loaded = load_saved(transformers.AutoModelForCausalLM, whole.run_dir / "model")
    assert quantised(loaded) == (bitsandbytes.nn.Params4bit, "nf4")
    tokens = torch.tensor([[60, 61, 62]])
    with torch.inference_mode():
        assert torch.equal(loaded.eval()(tokens).logits, whole.model.eval()(tokens).logits)
    assert len(predict("generation.max_new_tokens=3", "prompt=1 and", run=whole.run_dir)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([FOUR_BITS, "~model.peft"], "model.quantization: quantised weights can't be trained; add an adapter"),
        ([FOUR_BITS, "model.quantization.load_in_8bit=true"], "load_in_4bit and load_in_8bit are both True"),
        ([FOUR_BITS, "model.quantization.bnb_4bit_quant_typ=nf4"], "'model.quantization.bnb_4bit_quant_typ'. Did you"),
        (["model.quantization.quant_method=nothing"], "model.quantization: Unknown quantization type, got nothing"),
        ([FOUR_BITS], r"model.quantization: Using `bitsandbytes` 4-bit quantization requires bitsandbytes: `pip"),
    ],
)
def test_what_can_not_be_quantised_is_one_message(
    words: list[str], changes: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda: False)
    words = [word for word in words if not (word.startswith("model.peft") and "~model.peft" in changes)]
    with pytest.raises(ConfigError, match=message):
        load_inputs(api.compose(*words, *(word for word in changes if word[0] != "~")))


def test_quantised_checkpoints_are_not_quantised_again(words: list[str], place: Path) -> None:
    path = place / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"load_in_4bit": True}}))
    with pytest.raises(ConfigError, match="the weights of base are quantised already: leave it out"):
        load_inputs(api.compose(*words, FOUR_BITS))
    without = [word for word in words if not word.startswith("model.peft")]
    with pytest.raises(ConfigError, match="model.path=base: quantised weights can't be trained; add an adapter"):
        load_inputs(api.compose(*without))
