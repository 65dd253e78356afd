"""The processor: brings inputs into the form that a model was trained on."""

import hashlib
import json
from typing import Any

import transformers
from transformers.processing_utils import ImagesKwargs

from hfexp.config import ModelConfig
from hfexp.errors import ConfigError, did_you_mean, one_of
from hfexp.hub import explain_hub_errors
from hfexp.pretrained import check_path, local_model
from hfexp.targets import instantiate
from hfexp.tasks.base import Task

TOKENIZER_SETTINGS = (
    "bos_token", "cls_token", "eos_token", "mask_token", "model_max_length", "pad_token", "padding_side", "sep_token",
    "truncation_side", "unk_token", "use_fast",
)  # fmt: skip
"""Settings that every tokenizer takes."""
LIVE_SETTINGS = (
    "chat_template", "model_max_length", "padding_side", "special_tokens_map", "split_special_tokens",
    "truncation_side",
)  # fmt: skip
"""Tokenizer settings that can change after it was created."""
PLACES = ("name_or_path", "tokenizer_file", "vocab_file", "tokenizer_object", "vocab", "merges")
"""Tokenizer settings that `settings_of` leaves out: they say where its files are, or repeat their content."""


def load_processor(config: ModelConfig, task: Task, allowed: list[str]) -> Any:
    """Load the processor of `model.processor._target_`, or the pretrained model's own, with the configured settings.

    Raises:
        ConfigError: the checkpoint has no processor, or a setting does not exist.
    """
    if config.processor.get("_target_"):
        try:
            return instantiate(config.processor, "model.processor", allowed)
        except ConfigError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigError(f"model.processor can't be built: {error}") from error
    if config.path is None:
        raise ConfigError(
            "model.processor._target_ is missing: a model without model.path needs to be told its processor"
        )
    check_path(config.path)
    with explain_hub_errors("processor", config.path):
        try:
            processor = getattr(transformers, task.processor_class).from_pretrained(
                local_model(config.path),
                revision=config.revision,
                trust_remote_code=config.trust_remote_code,
                **config.processor,
            )
        except (OSError, ValueError) as error:
            if "preprocessor_config" in str(error) or "image processor" in str(error) or "tokenizer" in str(error):
                raise ConfigError(
                    f"model.path={config.path} has no processor of its own; set model.processor._target_, "
                    "e.g. transformers.ViTImageProcessor"
                ) from error
            raise
    _require_settings(processor, config.processor)
    return processor


def settings_of(processor: Any) -> dict[str, Any]:
    """Return everything that decides what a processor does, as plain values; a tokenizer's content is hashed."""
    if processor is None:
        return {}
    if not isinstance(processor, transformers.PreTrainedTokenizerBase):
        return {"class": type(processor).__name__, **processor.to_dict()}
    backend = getattr(processor, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(processor.get_vocab(), sort_keys=True)
    named = {name: str(value) for name, value in processor.init_kwargs.items() if name not in PLACES}
    named |= {name: str(getattr(processor, name, None)) for name in LIVE_SETTINGS}
    digest = hashlib.sha256(content.encode()).hexdigest()
    return {"class": type(processor).__name__, **named, "content": digest}


def _require_settings(processor: Any, settings: dict[str, Any]) -> None:
    """Raise ConfigError for settings that a processor would silently ignore: unknown ones, and all for timm models."""
    if settings and hasattr(processor, "data_config"):
        raise ConfigError(
            f"model.processor.{next(iter(settings))}: the processor of a timm model takes no settings; how it fits "
            "images is in the checkpoint's config.json, under pretrained_cfg (input_size, crop_pct, mean, ...)"
        )
    is_tokenizer = isinstance(processor, transformers.PreTrainedTokenizerBase)
    extra = TOKENIZER_SETTINGS if is_tokenizer else ImagesKwargs.__annotations__
    allowed = {*settings_of(processor), *extra}
    for name in settings:
        if name not in allowed:
            raise ConfigError(
                f"unknown key 'model.processor.{name}'.{did_you_mean(name, allowed)} "
                f"{type(processor).__name__} takes: {one_of(allowed)}"
            )
