"""The model: pretrained or built from sizes, with the dataset's label maps, its head and its frozen parameters."""

import copy
import functools
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from hfexp.core.collective import gather_rows
from hfexp.core.config import ModelConfig
from hfexp.core.errors import ConfigError, did_you_mean, one_of
from hfexp.core.hub import check_path, explain_hub_errors, local_model
from hfexp.core.targets import check, instantiate
from hfexp.tasks.base import NUMBER, PROBLEMS, Task
from hfexp.training.adapters import adapt, adapter_config, base_of
from hfexp.training.quantization import keep_format, loading_options
from hfexp.training.rates import matching

# Batch normalisation: frozen layers keep their statistics, trained ones normalise over the rows of all processes.


PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""Types that `torch.nn.SyncBatchNorm` can replace; subclasses may do more (timm's also apply the activation)."""


def freeze_statistics(model: nn.Module, patterns: Iterable[str] = ()) -> None:
    """Keep the running statistics of frozen layers fixed, and let these layers normalise by them in training too.

    A layer is frozen if all of its own weights are frozen, or if it has no weights and a pattern of `model.freeze`
    matches the name of its statistics.
    """
    for name, module in model.named_modules():
        if not isinstance(module, _NormBase) or module.running_mean is None:
            continue
        weights = list(module.parameters(recurse=False))
        by_name = any(re.match(pattern, f"{name}.running_mean") for pattern in patterns)
        if not any(weight.requires_grad for weight in weights) and (weights or by_name):
            module.register_forward_pre_hook(_evaluate)


def _evaluate(module: nn.Module, inputs: Any) -> None:
    """Put a layer into evaluation mode; `model.train()` ends that mode before every step."""
    module.training = False


def normalises_over_rows(model: nn.Module) -> bool:
    """Return True if a trained layer normalises over the rows of a batch."""
    return any(
        isinstance(module, _BatchNorm) and _evaluate not in module._forward_pre_hooks.values()
        for module in model.modules()
    )


def share_statistics(model: nn.Module, on_accelerator: bool) -> None:
    """Let trained layers normalise over the rows of all processes, as one process with all these rows would."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if not isinstance(module, _BatchNorm) or isinstance(module, nn.SyncBatchNorm):
                continue
            if _evaluate in module._forward_pre_hooks.values():  # frozen
                continue
            if on_accelerator and type(module) in PLAIN:
                setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(module))
            else:  # torch (2.14) has no SyncBatchNorm for the CPU
                module.forward = functools.partial(_forward_with_all_rows, module)  # pyright: ignore


def _forward_with_all_rows(module: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Apply a layer to the rows (B, ...) of all processes, and return the output for the rows of this process."""
    forward = type(module).forward
    if not module.training:
        return forward(module, rows)
    everything, before = gather_rows(rows)
    # A copy: where a model changes a view in place (ResNet adds so), FSDP2's hook on it would not be called.
    return forward(module, everything)[before : before + len(rows)].clone()


logger = logging.getLogger(__name__)

# The head of a checkpoint: match its outputs to the dataset's classes, or initialise it anew for other classes.


SHOWN_CLASSES = 4
"""Class names that a message lists."""


@dataclass
class Head:
    """The changes that were made to a checkpoint's head."""

    new: list[str] = field(default_factory=list)
    """Tensors that were initialised at random, because those of the checkpoint belong to other classes."""
    moved: list[str] = field(default_factory=list)
    """Tensors whose rows were put into the order of the dataset's classes."""
    message: str | None = None
    """Message for the user; None if there was nothing to decide."""


def match_head(model: Any, stored: Any, labels: dict[str, Any], new_tensors: set[str], missing: set[str]) -> Head:
    """Give each class the row of the head that has its name; if the names differ, initialise the head anew.

    A head of the right size whose classes have no names (LABEL_0, ...) is kept, as `from_pretrained` would do.

    Args:
        model: the loaded model, with a head of the right size.
        stored: the checkpoint's own config.
        labels: `Task.model_fields` of the dataset.
        new_tensors: tensors that were not loaded, because the checkpoint lacks them (`missing`) or their size differs.
    """
    if not {"id2label", "problem_type"} & labels.keys():
        return Head()
    tensors = _head_tensors(model)
    ours = [str(name) for name in labels.get("id2label", {}).values()]
    theirs = [str(stored.id2label[place]) for place in sorted(stored.id2label or {})]
    if not set(tensors) - missing:
        return Head()  # the checkpoint has no head
    nameless = all(name == f"LABEL_{place}" for place, name in enumerate(theirs))
    why = _why_foreign(stored, labels.get("problem_type"), ours, theirs, nameless)
    if why is None and set(tensors) & new_tensors:
        why = f"the checkpoint's has {len(theirs)} outputs, the task needs {len(ours) or 1}"
    if why is not None:
        loaded = sorted(set(tensors) - new_tensors)
        _reinitialise(model, loaded)
        return Head(new=loaded, message=f"the head is initialised anew: {why}")
    if not ours or theirs == ours:
        return Head()
    if nameless:
        return Head(message=f"the checkpoint's classes have no names: taking its outputs as {_shown(ours)}, in order")
    rows = torch.tensor([theirs.index(name) for name in ours])
    with torch.no_grad():
        for name, axis in tensors.items():
            parameter = model.get_parameter(name)
            parameter.copy_(parameter.index_select(axis, rows.to(parameter.device)))
    return Head(moved=sorted(tensors), message=f"reordered the head's rows to match the classes: {_shown(ours)}")


def _why_foreign(stored: Any, problem: str | None, ours: list[str], theirs: list[str], nameless: bool) -> str | None:
    """Say why the checkpoint's outputs do not mean the dataset's labels; None if they do, as far as one can tell."""
    stored_problem = getattr(stored, "problem_type", None)
    problems = (stored_problem, problem)
    if stored_problem not in (None, problem) and (nameless or PROBLEMS[NUMBER] in problems):
        return f"the checkpoint's is for {stored_problem}, the task is {problem}"
    same = len(set(theirs)) == len(theirs) and sorted(theirs) == sorted(ours)
    if not ours or nameless or theirs == ours or same:
        return None
    return f"the checkpoint's classes are {_shown(theirs)}, the dataset's {_shown(ours)}"


def _shown(names: list[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > SHOWN_CLASSES else ""
    return ", ".join(names[:SHOWN_CLASSES]) + more


def _head_tensors(model: Any) -> dict[str, int]:
    """Return the parameters whose size depends on the number of labels, and the axis along which it does."""
    if model.config.model_type == "timm_wrapper":
        classifiers = model.timm_model.get_classifier()
        modules = classifiers if isinstance(classifiers, tuple | list) else (classifiers,)  # two in a distilled model
        own = {id(parameter) for module in modules for parameter in module.parameters()}
        return {name: 0 for name, parameter in model.named_parameters() if id(parameter) in own}
    config = copy.deepcopy(model.config)
    config.num_labels = model.config.num_labels + 1
    with torch.device("meta"):
        other = {name: parameter.shape for name, parameter in type(model)(config).named_parameters()}
    pairs = ((name, parameter.shape, other[name]) for name, parameter in model.named_parameters())
    return {
        name: next(axis for axis, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        for name, ours, theirs in pairs
        if ours != theirs
    }


def _reinitialise(model: Any, names: list[str]) -> None:
    """Initialise these parameters as the architecture does, and leave all others alone.

    Transformers' `initialize_weights` skips what is marked `_is_hf_initialized`; `from_pretrained` relies on the same
    mark to fill in the weights that a checkpoint lacks.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor._is_hf_initialized = True
    for module in model.modules():
        module._is_hf_initialized = True
    for name in names:
        model.get_parameter(name)._is_hf_initialized = False
        while name:
            name = name.rpartition(".")[0]
            model.get_submodule(name)._is_hf_initialized = False
    model.initialize_weights()


OWNED_FIELDS = ("num_labels", "id2label", "label2id", "problem_type")
"""Config fields that follow from the dataset, so that `model.config` may not set them."""


def load_model_config(config: ModelConfig, task: Task, allowed: list[str]) -> Any:
    """Return the config of the model with `model.config` applied, without reading weights; None for `model.build`.

    Raises:
        ConfigError: the checkpoint, the architecture or a field does not exist.
    """
    if config.build is not None:
        check(config.build, "model", allowed, frozenset({"task", "id2label"}))
        return None
    for owned in OWNED_FIELDS:
        if owned in config.config:
            raise ConfigError(f"model.config.{owned} comes from the dataset; set dataset.labels to change it")
    if (config.path is None) == (config.model_type is None):
        raise ConfigError(
            "exactly one of model.path (pretrained) and model.model_type (built from model.config) must be set"
        )
    if config.path is not None:
        check_path(config.path)
        with explain_hub_errors("model", config.path):
            place, options = local_model(config.path), _source_options(config)
            stored = transformers.AutoConfig.from_pretrained(place, **options)
            _require_fields(config.config, stored)  # from_pretrained silently ignores fields it does not know
            return transformers.AutoConfig.from_pretrained(place, **options, **config.config)
    known = transformers.CONFIG_MAPPING
    kind = str(config.model_type)
    if kind not in known:
        raise ConfigError(f"model.model_type={kind} is unknown.{did_you_mean(kind, known)}")
    config_class = known[kind]
    _require_fields(config.config, config_class())
    try:
        return transformers.AutoConfig.for_model(kind, **config.config)
    except Exception as error:  # the type of a validation error depends on the architecture
        raise ConfigError(f"model.config does not fit {config_class.__name__}: {_first_lines(error)}") from error


def _source_options(config: ModelConfig) -> dict[str, Any]:
    return {"revision": config.revision, "trust_remote_code": config.trust_remote_code}


def _first_lines(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:2])


def _require_fields(fields: dict[str, Any], defaults: Any) -> None:
    allowed = set(defaults.to_dict()) | set(getattr(defaults, "attribute_map", {}))
    # Every encoder-decoder reads this field, but the class of T5's config (Transformers 5.23) does not declare it.
    allowed |= {"decoder_start_token_id"} if defaults.is_encoder_decoder else set()
    for name in fields:
        if name not in allowed:
            raise ConfigError(
                f"unknown key 'model.config.{name}'.{did_you_mean(name, allowed)} "
                f"{type(defaults).__name__} has: {one_of(allowed)}"
            )


@dataclass
class ModelSummary:
    """Facts about the model that was built, for the console and the tracking store."""

    name: str
    num_parameters: int
    num_trainable: int
    new_tensors: list[str] = field(default_factory=list)
    """Weights that start random: not in the checkpoint, of another shape there, or for other classes."""
    head: str | None = None
    """Message about the checkpoint's head; None if nothing had to be decided."""

    def __str__(self) -> str:
        text = f"{self.name}, {self.num_parameters:,} parameters"
        if self.num_trainable != self.num_parameters:
            text += f" ({self.num_trainable:,} trained)"
        return text


def build_model(
    config: ModelConfig, task: Task, id2label: dict[int, str] | None, allowed: list[str]
) -> tuple[Any, ModelSummary]:
    """Build or load the model with the right head and label maps.

    Returns:
        The model and its summary.
    """
    labels = task.model_fields(id2label)
    new_tensors: list[str] = []
    head = Head()
    if config.build is not None:
        model = build_own(config.build, task, id2label, allowed)
    elif config.path is not None:
        model, new_tensors, head = _load(config, task, labels)
    else:
        model_config = transformers.AutoConfig.for_model(str(config.model_type), **config.config, **labels)
        auto_class = getattr(transformers, task.model_class)
        model = auto_class.from_config(model_config, **_load_options(config))
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    # PEFT must save these layers with the adapter: they differ from the pretrained weights, reordered heads included.
    model = freeze_or_adapt(model, config, [*new_tensors, *head.moved], allowed)
    base = base_of(model)
    trainable = sum(p.numel() for p in base.parameters() if p.requires_grad)
    # Two weights of four bits lie in one element, which Transformers' own count knows.
    own = base.num_parameters() if config.quantization else sum(p.numel() for p in base.parameters())
    return model, ModelSummary(type(base).__name__, own, trainable, new_tensors, head.message)


def freeze_or_adapt(model: Any, config: ModelConfig, new_tensors: list[str], allowed: list[str]) -> Any:
    """Freeze the parameters that `model.freeze` names and add the adapter that `model.peft` describes.

    Raises:
        ConfigError: a pattern of `model.freeze` or the adapter does not fit the model.
    """
    if config.peft:
        if config.freeze:
            raise ConfigError("model.freeze: with model.peft all pretrained weights are frozen; remove one of the two")
        if config.path is None:
            raise ConfigError("model.peft adds an adapter to pretrained weights: set model.path")
        revision = getattr(model.config, "_commit_hash", None) or config.revision
        model = adapt(model, adapter_config(config.peft, new_tensors, allowed), config.path, revision)
    for parameter in frozen_parameters(model, config.freeze):
        parameter.requires_grad_(False)
    freeze_statistics(model, config.freeze)
    return model


def build_own(node: dict[str, Any], task: Task, id2label: dict[int, str] | None, allowed: list[str]) -> Any:
    """Call the user's model function; it gets those of the run-time objects that its signature has."""
    from hfexp.core.targets import locate, parameters

    takes = parameters(locate(str(node.get("_target_")), "model._target_", allowed))
    given = {k: v for k, v in {"task": task, "id2label": id2label}.items() if k in takes}
    return instantiate(node, "model", allowed, **given)


def _load_options(config: ModelConfig) -> dict[str, Any]:
    options: dict[str, Any] = {"dtype": config.dtype}
    if config.attn_implementation:
        options["attn_implementation"] = config.attn_implementation
    return options


def _load(config: ModelConfig, task: Task, labels: dict[str, Any]) -> tuple[Any, list[str], Head]:
    """Load pretrained weights; replace a head that has another size or other classes."""
    auto_class = getattr(transformers, task.model_class)
    path = local_model(str(config.path))
    options = _source_options(config)
    with explain_hub_errors("model", path):
        stored = transformers.AutoConfig.from_pretrained(path, **options)
        model_config = transformers.AutoConfig.from_pretrained(path, **options, **config.config, **labels)
        try:
            model, info = auto_class.from_pretrained(
                path,
                config=model_config,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
                **_load_options(config),
                **loading_options(config.quantization),
            )
        except (OSError, ValueError) as error:
            text = str(error)
            if "Unrecognized configuration class" in text:
                kind = type(model_config).__name__
                raise ConfigError(f"model.path={config.path}: {kind} has no {auto_class.__name__}") from error
            if "does not appear to have a file named" in text or "no file named" in text:
                raise ConfigError(
                    f"model.path={config.path} has no model.safetensors (other formats can run code)"
                ) from error
            raise
    keep_format(model)
    if hasattr(model.config, "label_names"):  # the timm wrapper saves this list and would keep the checkpoint's names
        model.config.label_names = list(model.config.id2label.values())
    resized = [str(entry[0] if isinstance(entry, tuple | list) else entry) for entry in info["mismatched_keys"]]
    missing = {str(key) for key in info["missing_keys"]}
    head = match_head(model, stored, labels, {*resized, *missing}, missing)
    return model, sorted({*resized, *missing, *head.new}), head


def frozen_parameters(model: Any, patterns: list[str]) -> list[Any]:
    """Return the parameters whose names match a pattern at their start.

    Raises:
        ConfigError: a pattern matches nothing, or all patterns together match every parameter.
    """
    named = dict(model.named_parameters())
    frozen = {}
    for pattern in patterns:
        frozen |= {name: named[name] for name in matching(pattern, list(named), "model.freeze")}
    if len(frozen) == len(named):
        raise ConfigError("model.freeze matches every parameter: nothing is left to train")
    return list(frozen.values())
