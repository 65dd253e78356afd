"""Pretrained weights that are quantised as they are loaded, so that an adapter can be trained on a larger model.

(T. Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023.) Transformers does it, with
bitsandbytes, torchao or another package that the fields of `model.quantization` choose.
"""

from collections.abc import Mapping
from typing import Any

from hfexp.core.config import Config
from hfexp.core.errors import ConfigError, did_you_mean, first_line, one_of
from hfexp.core.targets import parameters

KEY = "model.quantization"


def loading_options(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the argument of `from_pretrained` that quantises the weights; none without fields."""
    from transformers.quantizers.auto import AutoQuantizationConfig

    return {"quantization_config": AutoQuantizationConfig.from_dict(dict(fields))} if fields else {}


def check_quantization(config: Config, stored: Any) -> list[str]:
    """Check, before any weight is loaded, that an adapter can be trained on the quantised weights.

    Args:
        stored: the checkpoint's config, which says if its own weights are quantised; None: nothing is known.
    """
    fields, own = config.model.quantization, getattr(stored, "quantization_config", None) or {}
    if not fields and not own:
        return []
    if fields and own:
        return [f"{KEY}: the weights of {config.model.path} are quantised already: leave it out"]
    key = KEY if fields else f"model.path={config.model.path}"
    if not config.model.peft:
        return [f"{key}: quantised weights can't be trained; add an adapter, e.g. model.peft.r=16"]
    if config.trainer.args.get("use_cpu") and _has_accelerator():
        return [f"{key}: Transformers puts quantised weights on the accelerator; leave trainer.args.use_cpu out"]
    try:
        _check_trainable(fields or own, pre_quantized=bool(own))
    except ConfigError as error:
        return [str(error)]
    except (ImportError, RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        return [f"{key}: {first_line(error)}"]
    return []


def _has_accelerator() -> bool:
    import torch

    return torch.accelerator.is_available()


def _check_trainable(fields: Mapping[str, Any], pre_quantized: bool) -> None:
    """Raise an error if Transformers does not know a field, lacks the package or the hardware, or can't train."""
    from transformers.quantizers.auto import AutoHfQuantizer

    chosen = loading_options(fields)["quantization_config"]
    known = {*parameters(type(chosen)), "quant_method"} - {"kwargs"}  # which swallows unknown names
    for name in () if pre_quantized else fields.keys() - known:
        raise ConfigError(
            f"unknown key '{KEY}.{name}'.{did_you_mean(name, known)} {type(chosen).__name__} takes: {one_of(known)}"
        )
    quantizer = AutoHfQuantizer.from_config(chosen, pre_quantized=pre_quantized)
    quantizer.validate_environment(device_map=None)
    if not quantizer.is_trainable:
        raise ValueError(f"Transformers can't train adapters on weights of {chosen.quant_method.value}")


def keep_format(model: Any) -> None:
    """Keep the weights of a model as they are quantised.

    On CPUs with bf16 instructions, the first evaluation of bitsandbytes (0.50) rounds the scales of 4-bit weights and
    packs them for inference, in place. The training that goes on then lacks the gradients of the layers below.
    """
    for module in model.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            module.support_avx512bf16_for_cpu = False


def saved_options(saved: Any, path: str, revision: str | None, remote_code: bool) -> dict[str, Any]:
    """Return the argument of `from_pretrained` that quantises the base of a saved adapter as in the training.

    In the config of a model, the same fields mean that the stored weights are quantised. So they are removed from
    `saved`, the config that was saved with the adapter, unless this is true of the pretrained model.
    """
    import transformers

    fields = getattr(saved, "quantization_config", None)
    if fields is None:
        return {}
    stored = transformers.AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=remote_code)
    if getattr(stored, "quantization_config", None) is not None:
        return {}
    del saved.quantization_config
    return loading_options(fields)
