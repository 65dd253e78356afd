"""A tokenizer and a model that do not fit are brought together, or refused, before any weight is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hfexp import predict, train
from hfexp.core.errors import ConfigError
from hfexp.tasks.base import Task
from hfexp.tasks.text import byte_tokenizer
from hfexp.tasks.text_classification import TextClassification
from hfexp.tasks.text_generation import TextGeneration
from hfexp.training.processor import fit_tokenizer

BERT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 261}
GPT = {"n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 261, "eos_token_id": 3, "bos_token_id": 2}
ANY = 10**30
"""Transformers' word for a tokenizer that knows no longest text."""


def classifier(kind: str, **sizes: Any) -> Any:
    config = transformers.AutoConfig.for_model(kind, **sizes)
    with torch.device("meta"):
        return transformers.AutoModelForSequenceClassification.from_config(config)


def fitted(tokenizer: Any, model: Any, task: Task | None = None) -> Any:
    fit_tokenizer(tokenizer, model, task or TextClassification())
    return tokenizer


@pytest.mark.parametrize(
    ("kind", "sizes", "says", "expected"),
    [
        ("bert", {**BERT, "max_position_embeddings": 24}, 512, 24),
        ("bert", {**BERT, "max_position_embeddings": 24}, ANY, 24),
        ("bert", {**BERT, "max_position_embeddings": 24}, 16, 16),
        # Positions begin behind the padding token's id: 24 of these 25 are left, roberta-base has 514 for 512.
        ("roberta", {**BERT, "max_position_embeddings": 25, "pad_token_id": 0}, 512, 24),
        ("gpt2", {**GPT, "n_positions": 24}, ANY, 24),
        ("mpt", {"d_model": 8, "n_heads": 1, "n_layers": 1, "max_seq_len": 24, "vocab_size": 261}, ANY, 24),
        ("t5", {"d_model": 8, "d_kv": 8, "d_ff": 8, "num_layers": 1, "num_heads": 1, "vocab_size": 261,
                "decoder_start_token_id": 0}, ANY, ANY),
    ],
)  # fmt: skip
def test_texts_are_as_long_as_tokenizer_and_model_both_take(
    kind: str, sizes: dict[str, Any], says: int, expected: int
) -> None:
    assert fitted(byte_tokenizer(says), classifier(kind, **sizes)).model_max_length == expected


def test_blocks_and_texts_of_a_language_model_are_no_longer_than_it_takes() -> None:
    config = transformers.GPT2Config(**GPT, n_positions=24)  # pyright: ignore
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ConfigError, match=r"task\.block_size=32 is more than the 24 tokens that the model takes"):
        fitted(byte_tokenizer(512, generates=True), model, TextGeneration(block_size=32))
    tokenizer = fitted(byte_tokenizer(512, generates=True), model, TextGeneration())
    row = TextGeneration().preprocess({"input_ids": list(range(30))}, tokenizer)
    assert row == {"input_ids": list(range(24)), "labels": list(range(24))}


def test_tokens_without_an_embedding_are_named() -> None:
    tokenizer = byte_tokenizer(64)
    tokenizer.add_tokens(["pump", "valve"])
    with pytest.raises(ConfigError, match=r"261 tokens, but its tokenizer has 2 more \('pump', 'valve'\): set .*=263"):
        fitted(tokenizer, classifier("bert", **BERT))
    pretrained = classifier("bert", **BERT)
    pretrained.config.name_or_path = "dir"
    with pytest.raises(ConfigError, match=r"model\.resize_token_embeddings\(263\)"):
        fitted(tokenizer, pretrained)
    fitted(tokenizer, classifier("bert", **{**BERT, "vocab_size": 264}))
    for_images = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(64).backend_tokenizer, pad_token="[PAD]", model_max_length=64,
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    assert len(for_images) == 262
    fitted(for_images, classifier("bert", **BERT))


def test_a_padding_token_is_found_or_asked_for() -> None:
    tokenizer = byte_tokenizer(64, generates=True)
    tokenizer.pad_token = None
    model = classifier("gpt2", **GPT, pad_token_id=None)
    assert (fitted(tokenizer, model).pad_token, model.config.pad_token_id) == ("[SEP]", 3)
    with pytest.raises(ConfigError, match=r"pads with '\[PAD\]' .* positions from token 1: .*pad_token='\[UNK\]'"):
        fitted(byte_tokenizer(24), classifier("roberta", **BERT, max_position_embeddings=26, pad_token_id=1))


def test_late_long_texts_and_no_padding_token(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """GPT-2 as it comes, whose classes are read off the last token that is no padding."""
    tokenizer = byte_tokenizer(512, generates=True)
    tokenizer.pad_token = None
    tokenizer.save_pretrained("gpt")
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT, n_positions=24)).save_pretrained("gpt")  # pyright: ignore
    rows = [{"text": "ab" * (30 if n % 6 == 5 else 1 + n % 3), "label": "ab"[n % 2]} for n in range(40)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ("task=text_classification", "dataset=table", "dataset.source.data_files=rows.jsonl", "tracking=none")
    result = train(*words, "debug=fast", "model=local", "model.path=gpt", "dataset.test_size=0.25")
    said = capfd.readouterr().err
    assert said.count("texts are limited to 24 tokens, the model's maximum (its tokenizer says 512)") == 1
    assert said.count("the tokenizer has no padding token; using '[SEP]', its end-of-text token") == 1
    weights = result.run_dir / "model"
    assert json.loads((weights / "config.json").read_text())["pad_token_id"] == 3
    asked = predict(text=["ab", "ab" * 40], run=str(weights))
    alone = predict(text=["ab"], run=str(weights))
    assert asked["score"][0] == pytest.approx(alone["score"][0], abs=1e-6)
