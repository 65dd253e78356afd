"""The processor, which brings inputs into the form that a model was trained on, and the fit of tokenizer and model."""

from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.processing_utils import ImagesKwargs

from hfexp.core.config import ModelConfig
from hfexp.core.console import note
from hfexp.core.errors import ConfigError, did_you_mean, one_of
from hfexp.core.hub import check_path, explain_hub_errors, local_model
from hfexp.core.targets import instantiate, locate, parameters
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
    processor = _load(config, task, allowed)
    if isinstance(processor, PreTrainedTokenizerBase):
        task.fit_processor(processor)
    return processor


def _load(config: ModelConfig, task: Task, allowed: list[str]) -> Any:
    if config.processor.get("_target_"):
        takes = parameters(locate(str(config.processor["_target_"]), "model.processor._target_", allowed))
        try:
            own = {"task": task} if "task" in takes else {}
            return instantiate(config.processor, "model.processor", allowed, **own)
        except ConfigError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigError(f"model.processor can't be built: {error}") from error
    if config.path is None:
        raise ConfigError(
            "model.processor._target_ is missing: set it, as there is no model.path to load a processor from"
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


# Fit a tokenizer to its model: the longest text, the tokens that the model knows, and the padding.


POSITIONS = ("max_position_embeddings", "max_seq_len")
"""Fields of a model's config that limit the tokens of a text; the second is MPT's."""
NON_TEXT_TOKENS = ("audio_token", "image_token", "video_token")
"""A tokenizer's special tokens that no text contains: a text-only model may have no embedding for them (Gemma 3)."""


def fit_tokenizer(tokenizer: Any, model: Any, task: Task) -> None:
    """Set the longest text and the padding that a tokenizer shares with its model; leave other processors unchanged.

    Args:
        model: may be on the meta device; its config gets the tokenizer's padding token if it has none.

    Raises:
        ConfigError: the tokenizer and the model can't be used together.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return
    _fit_length(tokenizer, model, task)
    _fit_padding(tokenizer, model, task)
    _require_embeddings(tokenizer, model)


def longest_text(model: Any) -> int | None:
    """Return how many tokens a model takes; None: any number, e.g. with relative positions (T5)."""
    config = model.config.get_text_config()
    known = [getattr(config, name, None) for name in POSITIONS]
    limits = [limit for limit in known if isinstance(limit, int) and limit > 0]
    counted = _counted_positions(model)
    return min([*limits, *(e.num_embeddings - int(e.padding_idx) - 1 for e in counted)], default=None)


def _counted_positions(model: Any) -> list[Any]:
    """Return embeddings of positions that count from the padding token's id, as in RoBERTa and its relatives."""
    named = model.named_modules()
    embeddings = [m for name, m in named if name.endswith("position_embeddings") and isinstance(m, nn.Embedding)]
    return [embedding for embedding in embeddings if embedding.padding_idx is not None]


def _require_embeddings(tokenizer: Any, model: Any) -> None:
    config = model.config.get_text_config()
    rows = getattr(config, "vocab_size", None)
    if rows is None:  # CANINE reads characters and has no vocabulary
        return
    ignored = {str(getattr(tokenizer, name, None)) for name in NON_TEXT_TOKENS}
    vocabulary = tokenizer.get_vocab()
    unknown = sorted(
        (token for token, n in vocabulary.items() if n >= rows and token not in ignored), key=vocabulary.get
    )
    if not unknown:
        return
    needed = max(vocabulary.values()) + 1
    way_out = (
        f"add rows to it once and save both: model.resize_token_embeddings({needed}), model.save_pretrained(DIR), "
        "tokenizer.save_pretrained(DIR); then model.path=DIR"
        if config.name_or_path
        else f"set model.config.vocab_size={needed}"
    )
    raise ConfigError(
        f"the model has embeddings for {rows} tokens, but its tokenizer has {len(unknown)} more "
        f"({one_of(map(repr, unknown), 3)}): {way_out}"
    )


def _fit_length(tokenizer: Any, model: Any, task: Task) -> None:
    limit = longest_text(model)
    if limit is None:
        return
    if task.block_size is not None and task.block_size > limit:
        raise ConfigError(f"task.block_size={task.block_size} is more than the {limit} tokens that the model takes")
    if tokenizer.model_max_length > limit:
        before = tokenizer.model_max_length
        tokenizer.model_max_length = limit
        if task.block_size is None:  # blocks were checked above, and no text is truncated
            stated = f"says {before}" if before < 10**9 else "sets no limit"
            note(f"texts are limited to {limit} tokens, the model's maximum (its tokenizer {stated})")


def _fit_padding(tokenizer: Any, model: Any, task: Task) -> None:
    config = model.config.get_text_config()
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None and not task.loss_per_token:
        tokenizer.pad_token = tokenizer.eos_token
        note(f"the tokenizer has no padding token; using {tokenizer.eos_token!r}, its end-of-text token")
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    for embedding in _counted_positions(model):
        if tokenizer.pad_token_id not in (None, embedding.padding_idx):
            right = tokenizer.convert_ids_to_tokens(int(embedding.padding_idx))
            raise ConfigError(
                f"the tokenizer pads with {tokenizer.pad_token!r} (token {tokenizer.pad_token_id}), but the model "
                f"counts positions from token {embedding.padding_idx}: set model.processor.pad_token={right!r}"
            )
