"""The processor: brings inputs into the form that a model was trained on."""

from typing import Any

import transformers
from transformers.processing_utils import ImagesKwargs

from hfexp.core.config import ModelConfig
from hfexp.core.errors import ConfigError, did_you_mean, one_of
from hfexp.core.hub import explain_hub_errors
from hfexp.core.pretrained import check_path, local_model
from hfexp.core.targets import instantiate
from hfexp.data.prepare import settings_of
from hfexp.tasks.base import Task

TOKENIZER_SETTINGS = (
    "bos_token", "cls_token", "eos_token", "mask_token", "model_max_length", "pad_token", "padding_side", "sep_token",
    "truncation_side", "unk_token", "use_fast",
)  # fmt: skip
"""Settings that every tokenizer takes."""


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
