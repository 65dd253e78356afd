"""PEFT adapters: train a few added weights while the pretrained ones stay frozen.

The method is LoRA (E. J. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022) unless
`model.peft._target_` names another class. hfexp saves only the adapter and the layers that the checkpoint lacks (a new
head); the saved adapter names the pretrained model, which is loaded again from there.
"""

import contextlib
import importlib.util
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hfexp.core.errors import ConfigError, DataError
from hfexp.core.hub import explain_hub_errors, local_model
from hfexp.core.targets import instantiate, locate, parameters
from hfexp.training.quantization import keep_format, saved_options

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
BASE = "base"
"""Subdirectory for the base model's config: right beside the adapter, `from_pretrained` would take it for a model."""
ADAPTER = "default"
"""PEFT's name for the only adapter of a model."""
METHOD = "peft.LoraConfig"
TARGETS = "all-linear"
"""Adapt all linear layers: this matches full fine-tuning, and adapting only the attention layers does not (T. Dettmers
et al., "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023, section 4)."""


def is_adapted(model: Any) -> bool:
    """Return True for a PEFT model, without importing PEFT."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def base_of(model: Any) -> Any:
    """Return the model inside a PEFT model; return any other model unchanged."""
    return model.get_base_model() if is_adapted(model) else model


def class_of(model: Any) -> type:
    """Return the class of the model inside a PEFT model, and of one whose class FSDP2 has replaced by its own."""
    kind = type(base_of(model))
    return kind.__bases__[-1] if kind.__module__.startswith("torch.distributed.") else kind


def adapter_config(node: Mapping[str, Any], new_tensors: Iterable[str], allowed: list[str]) -> Any:
    """Build PEFT's config of an adapter.

    Args:
        node: `model.peft`: arguments of `peft.LoraConfig`, or of the class that its `_target_` names.
        new_tensors: names of weights that the checkpoint lacks. Their layers are trained and saved whole.

    Raises:
        ConfigError: PEFT is not installed, or an argument is wrong.
    """
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("model.peft needs the package peft: pip install 'hfexp[peft]'")
    from peft import PeftConfig

    node = {"_target_": METHOD, **node}
    takes = parameters(locate(str(node["_target_"]), "model.peft._target_", allowed))
    if "target_modules" in takes:
        node = {"target_modules": TARGETS, **node}
    new_layers = sorted({name.rpartition(".")[0] for name in new_tensors} - {""})
    if "modules_to_save" in takes and new_layers:
        node = {**node, "modules_to_save": sorted({*new_layers, *(node.get("modules_to_save") or ())})}
    try:
        config = instantiate(node, "model.peft", allowed)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.peft: {error}") from error
    if not isinstance(config, PeftConfig) or config.is_prompt_learning:
        raise ConfigError(
            f"model.peft._target_={node['_target_']}: expected an adapter inside the layers, e.g. peft.LoraConfig"
        )
    return config


def adapt(model: Any, config: Any, path: str, revision: str | None) -> Any:
    """Add a new adapter, and freeze all weights except its own and those of new layers.

    Args:
        path: where the pretrained weights come from; the saved adapter names it.
        revision: commit of the pretrained weights.

    Raises:
        ConfigError: PEFT can't adapt the model, e.g. because it has no such layers.
    """
    from peft import get_peft_model

    _require_untied(model, getattr(config, "modules_to_save", None) or ())
    try:
        with _quiet():
            adapted = get_peft_model(model, config, adapter_name=ADAPTER)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(f"model.peft: {error}") from error
    directory = Path(path).expanduser()
    made = adapted.peft_config[ADAPTER]
    made.base_model_name_or_path, made.revision = str(directory.absolute()) if directory.is_dir() else path, revision
    return adapted


def _require_untied(model: Any, whole: Iterable[str]) -> None:
    """Raise ConfigError for a layer to train whole whose weights are another's: PEFT (0.21) can't load it again."""
    for name in getattr(model, "all_tied_weights_keys", None) or {}:
        layer = name.rpartition(".")[0]
        if layer in whole:
            raise ConfigError(
                f"model.peft: {layer} would be trained whole, as the checkpoint lacks parts of it, but shares weights "
                "with the embeddings, which PEFT can't load again: take a checkpoint that has this layer, or leave "
                "model.peft out"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence a FutureWarning: PEFT (0.21) reads a model property that Transformers (5.23) has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def save(model: Any, directory: Path, weights: dict[str, Any] | None = None) -> None:
    """Save a whole model, or an adapter and its base model's config (label maps), for `load_saved`.

    Args:
        weights: tensors by name, if the model itself has only parts of them.
    """
    if not is_adapted(model):
        model.save_pretrained(directory, state_dict=weights)
        return
    # By default PEFT asks the Hub at each save whether the vocabulary has grown.
    model.save_pretrained(directory, save_embedding_layers=False, state_dict=weights)
    base_of(model).config.save_pretrained(directory / BASE)


def load_saved(auto_class: Any, directory: Path, remote_code: bool = False) -> Any:
    """Load the model saved in a directory: a whole model, or an adapter of another one.

    Args:
        remote_code: trust the code that lies beside the weights (`auto_map`).

    Raises:
        ConfigError: the directory has no weights, or it holds an adapter and PEFT or the pretrained model is missing.
    """
    if (directory / CONFIG_FILE).is_file():
        return load_adapted(auto_class, directory, remote_code)
    if not any(directory.glob("*.safetensors")):
        raise ConfigError(f"{directory} has no weights (model.safetensors); other formats can run code")
    return auto_class.from_pretrained(
        directory, use_safetensors=True, local_files_only=True, trust_remote_code=remote_code
    )


def load_adapted(auto_class: Any, directory: Path, remote_code: bool = False) -> Any:
    """Load the pretrained model and the adapter that `save` wrote.

    Raises:
        ConfigError: PEFT or the pretrained model is missing.
    """
    import transformers

    if importlib.util.find_spec("peft") is None:
        raise ConfigError(f"{directory} holds an adapter; it needs the package peft: pip install 'hfexp[peft]'")
    from peft import PeftConfig, PeftModel

    adapter = PeftConfig.from_pretrained(str(directory))
    path = str(adapter.base_model_name_or_path)
    if Path(path).is_absolute() and not Path(path).is_dir():
        raise ConfigError(f"{directory} is an adapter of the model in {path}, which does not exist")
    saved = transformers.AutoConfig.from_pretrained(
        directory / BASE, local_files_only=True, trust_remote_code=remote_code
    )
    with explain_hub_errors("model", path):
        base = auto_class.from_pretrained(
            local_model(path),
            config=saved,
            trust_remote_code=remote_code,
            revision=adapter.revision,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            **saved_options(saved, local_model(path), adapter.revision, remote_code),
        )
    keep_format(base)
    with _quiet():
        model = PeftModel.from_pretrained(base, str(directory))
    require_same_weights(model, directory)
    return model


def weights_of(model: Any) -> dict[str, Any]:
    """Return the weights of a model's adapter by the names of its file; they share the model's memory."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(model, save_embedding_layers=False)


def require_same_weights(model: Any, directory: Path) -> None:
    """Check that an adapter file fits the model: PEFT would ignore an adapter of other layers without an error.

    Raises:
        DataError: the file does not hold exactly the weights of the model's adapter.
    """
    import safetensors

    with safetensors.safe_open(directory / WEIGHTS_FILE, "pt") as file:
        saved = set(file.keys())
    ours = set(weights_of(model))
    if saved != ours:
        raise DataError(
            f"the adapter in {directory} does not fit the model: {len(ours - saved)} weights missing "
            f"{sorted(ours - saved)[:3]}, {len(saved - ours)} unknown {sorted(saved - ours)[:3]}"
        )
