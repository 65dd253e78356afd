"""A model that is spread over the processes of a run, by FSDP2 (`torch.distributed.fsdp.fully_shard`) and Accelerate.

Each process holds a part of every parameter, of its gradient and of the optimizer's state. It gathers the whole
parameters of a layer only while that layer computes (S. Rajbhandari et al., "ZeRO: Memory Optimizations Toward
Training Trillion Parameter Models", SC 2020, stage 3).

Checkpoints hold whole tensors, as those of any other run: the first process gathers them one after the other, outside
of its accelerator. So a run goes on with any number of processes, one included. Each process reads from the files only
its own parts.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import _IncompatibleKeys
from torch.utils._pytree import tree_map_only
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from hfexp.core.collective import part_of, whole
from hfexp.core.config import Config, LaunchConfig, Strategy
from hfexp.core.errors import did_you_mean, one_of, unknown_key
from hfexp.core.machine import visible_devices
from hfexp.launch import world
from hfexp.tasks.base import Task
from hfexp.training.adapters import METHOD, WEIGHTS_FILE, is_adapted, weights_of
from hfexp.training.callbacks import TrainerMixin

SETTINGS: dict[str, tuple[type, ...]] = {
    "reshard_after_forward": (bool,),
    "cpu_offload": (bool,),
    "auto_wrap_policy": (str,),
    "transformer_layer_cls_to_wrap": (str, list),
}
"""Types of the keys of `launch.fsdp`: those of Transformers' `fsdp_config` that FSDP2 has and that change no result.

Transformers ignores others silently.
"""
POLICIES = ("TRANSFORMER_BASED_WRAP", "NO_WRAP")
"""Values of `auto_wrap_policy`: gather layer by layer, or all at once."""
BY_NAME = "use transformer_layer_cls_to_wrap=[CLASS]: division by size fails at lists of layers (Accelerate 1.15)"
INSTEAD = {
    "activation_checkpointing": "use trainer.args.activation_checkpointing=true: Accelerate's own (1.15) draws "
    "another dropout when it computes a layer again, so that the gradients are wrong",
    "cpu_ram_efficient_loading": "leave it out: each process reads the weights",
    "fsdp_version": "leave it out: hfexp uses version 2",
    "ignored_modules": "leave it out: each process would train such a module on its own rows only",
    "min_num_params": BY_NAME,
    "mixed_precision_policy": "use trainer.args.bf16=true",
    "state_dict_type": "leave it out: checkpoints hold whole tensors, so that any number of processes can go on",
    "version": "leave it out: hfexp uses version 2",
}
"""Other settings of FSDP that users know, each with what to do."""
SIZES = ("dp_replicate_size", "dp_shard_size")
"""Keys of `launch.parallelism`: those of Accelerate's `ParallelismConfig` with which each process has its own rows."""
OTHER_SIZES = {
    "cp_size": "context parallelism works on accelerators only (torch 2.14) and without masks for padded rows "
    "(Accelerate 1.15); trainer.args.activation_checkpointing=true saves memory, too",
    "pp_size": "pipeline parallelism is not in Accelerate (1.15); dp_shard_size divides a model, too",
    "sp_size": "sequence parallelism is DeepSpeed's; trainer.args.activation_checkpointing=true saves memory, too",
    "tp_size": "tensor parallelism gives several processes the same rows, which hfexp counts by process, and "
    "Transformers (5.23) can't continue such a training; dp_shard_size divides a model, too",
}
"""Other keys of `ParallelismConfig`, each with why not, or what to do."""
REFUSED_ARGS = ("fp16", "torch_compile", "use_liger_kernel", "bf16_full_eval", "fp16_full_eval")
"""`trainer.args` that have not been tried with parameters in parts, or fail with them."""
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "rmsprop")
"""Values of `trainer.args.optim` that work with parameters in parts.

Others factor or quantise whole matrices, or begin their state before the parameters are divided (adagrad).
"""
GETTERS = ("get_input_embeddings", "get_output_embeddings")
"""Methods of a Transformers model that return modules, or None."""
ENVIRONMENT = "FSDP_"
"""Beginning of the environment variables from which Accelerate's plugin takes what the config does not set."""


def check_sharding(config: Config, task: Task) -> list[str]:
    """Check `launch=fsdp`: its settings, and what can't be done with a model that no process holds as a whole."""
    launch = config.launch
    if launch.strategy is not Strategy.fsdp:
        sections = {"fsdp": launch.fsdp, "parallelism": launch.parallelism}
        return [f"launch.{name}.{next(iter(keys))} needs launch=fsdp" for name, keys in sections.items() if keys]
    return _check_settings(launch.fsdp, config.trainer.args) + _check_sizes(launch) + _check_companions(config, task)


def _check_settings(settings: Mapping[str, Any], args: Mapping[str, Any]) -> list[str]:
    """Check `launch.fsdp`, and that nothing else changes it."""
    problems = [problem for name, value in settings.items() if (problem := _problem(name, value))]
    on_cpu = bool(args.get("use_cpu")) or not visible_devices()
    if on_cpu and settings.get("cpu_offload"):
        problems.append("launch.fsdp.cpu_offload=true: the model is on the CPU already; remove it")
    if args.get("use_cpu") and visible_devices():
        problems.append(
            "trainer.args.use_cpu=true: launch=fsdp uses the accelerators; set CUDA_VISIBLE_DEVICES= (empty)"
        )
    return problems + [
        f"the environment variable {name} would change launch=fsdp without appearing in the config; unset it and use "
        f"launch.fsdp, which has: {one_of(SETTINGS)}"
        for name in os.environ
        if name.startswith(ENVIRONMENT)
    ]


def _problem(name: str, value: Any) -> str | None:
    """Check a key of `launch.fsdp`."""
    key = f"launch.fsdp.{name}"
    if name in INSTEAD:
        return f"{key} is not supported; {INSTEAD[name]}"
    if name not in SETTINGS:
        return unknown_key(key, SETTINGS)
    if type(value) not in SETTINGS[name]:
        return f"{key}={value!r} must be of type {' or '.join(kind.__name__ for kind in SETTINGS[name])}"
    if name == "auto_wrap_policy" and value not in POLICIES:
        return f"{key}={value} is not supported; {BY_NAME}. Allowed: {one_of(POLICIES)}"
    return None


def _check_sizes(launch: LaunchConfig) -> list[str]:
    """Check `launch.parallelism`: its keys, and that the groups of processes come to all of them."""
    problems = [problem for name, value in launch.parallelism.items() if (problem := _size_problem(name, value))]
    processes, are_together = launch.num_processes, launch.num_machines == 1 or world.is_together()
    # Each machine may have another number of processes: they are counted once the machines have met.
    if problems or not launch.parallelism or not are_together or not isinstance(processes, int):
        return problems
    replicas, shards = mesh_sizes(launch.parallelism, processes).values()
    if shards == 1:
        return ["launch.parallelism.dp_shard_size=1: each process would hold the whole model; use launch=ddp"]
    if replicas * shards != processes:
        product = f"{replicas} x {shards} (dp_replicate_size x dp_shard_size)"
        return [f"launch.parallelism: {product} is not {processes}, the number of processes"]
    return []


def _size_problem(name: str, size: Any) -> str | None:
    """Check a key of `launch.parallelism`."""
    key = f"launch.parallelism.{name}"
    if name in OTHER_SIZES:
        return f"{key} is not supported: {OTHER_SIZES[name]}"
    if name not in SIZES:
        return unknown_key(key, SIZES)
    return None if type(size) is int and size >= 1 else f"{key}={size!r} must be an integer of at least 1"


def sharding_fields(launch: LaunchConfig) -> dict[str, Any]:
    """Return the fields of `TrainingArguments` that spread a model over the processes of this run, if it is to be."""
    if launch.strategy is not Strategy.fsdp or not world.is_together():
        return {}
    sizes = mesh_sizes(launch.parallelism, world.size())
    # Sizes that are left out would come from the environment.
    every: dict[str, Any] = {**sizes, "tp_size": 1, "cp_size": 1, "sp_size": 1}
    groups = ParallelismConfig(**every) if sizes else None
    return {"fsdp": True, "fsdp_config": {**launch.fsdp, "version": 2}, "parallelism_config": groups}


def mesh_sizes(sizes: Mapping[str, int], processes: int) -> dict[str, int]:
    """Return `launch.parallelism` with the size that it leaves out, for a number of processes; empty stays empty."""
    if not sizes:
        return {}
    shards = sizes.get("dp_shard_size") or max(processes // sizes["dp_replicate_size"], 1)
    replicas = sizes.get("dp_replicate_size") or max(processes // shards, 1)
    return {"dp_replicate_size": replicas, "dp_shard_size": shards}


def _check_companions(config: Config, task: Task) -> list[str]:
    """Refuse what does not work, or has not been tried, with a model in parts."""
    args, sharded = config.trainer.args, "is not supported with launch=fsdp"
    problems = [f"trainer.args.{name}={args[name]} {sharded}; remove it" for name in REFUSED_ARGS if args.get(name)]
    if args.get("optim", OPTIMIZERS[0]) not in OPTIMIZERS:
        problems.append(f"trainer.args.optim={args['optim']} {sharded}; use {one_of(OPTIMIZERS)}")
    if args.get("save_only_model") and args.get("load_best_model_at_end"):
        problems.append(f"trainer.args.save_only_model with load_best_model_at_end {sharded}; remove one of them")
    others = {
        "trainer.soup": (config.trainer.soup, "; use launch=ddp"),
        "trainer.auto_batch": (config.trainer.auto_batch, "; lower trainer.args.per_device_train_batch_size"),
        "trainer.thaw_at": (config.trainer.thaw_at, ": FSDP2 settles at the start which parameters are trained"),
        "model.quantization": (config.model.quantization, "; use launch=ddp"),
        "model.trust_remote_code": (config.model.trust_remote_code, "; use launch=ddp"),
    }
    problems += [f"{key} {sharded}{advice}" for key, (value, advice) in others.items() if value]
    if config.model.peft and config.model.peft.get("_target_", METHOD) != METHOD:
        problems.append(f"model.peft._target_={config.model.peft['_target_']} {sharded}; use {METHOD}")
    if task.needs_reference:
        problems.append(f"{type(task).__name__} {sharded}: it keeps a second, whole model; use launch=ddp")
    return problems


def check_layers(config: Config, skeleton: Any) -> list[str]:
    """Check that a model on the meta device can be spread over processes, by the layers that the config names."""
    if config.launch.strategy is not Strategy.fsdp:
        return []
    named, kind = config.launch.fsdp.get("transformer_layer_cls_to_wrap") or [], type(skeleton).__name__
    named = [named] if isinstance(named, str) else named
    present = {type(module).__name__ for module in skeleton.modules()}
    problems = [
        f"launch.fsdp.transformer_layer_cls_to_wrap: {kind} has no {name}.{did_you_mean(name, present)}"
        for name in named
        if name not in present
    ]
    layers = {type(module).__name__: module for module in skeleton.modules() if type(module).__name__ in named}
    problems += [
        f"launch.fsdp.transformer_layer_cls_to_wrap: {name} can't be gathered by itself, as others use its parameters "
        "or Accelerate gathers its embeddings; leave it out"
        for name, layer in layers.items()
        if not _stands_alone(layer, skeleton)
    ]
    scalars = [name for name, parameter in skeleton.named_parameters() if parameter.ndim == 0]
    if scalars:
        problems.append(
            f"launch=fsdp can't divide a parameter that is a single number: {one_of(scalars)}; use launch=ddp"
        )
    return problems


def gathered_layers(model: Any) -> list[str]:
    """Return the classes of a model's layers, which are gathered one by one, as Transformers names them.

    Accelerate (1.15) fails at a name that the model does not have, e.g. that of CLIP's layers for texts.
    """
    named = set(getattr(model, "_no_split_modules", None) or ())
    layers = {type(module).__name__: module for module in model.modules() if type(module).__name__ in named}
    return sorted(name for name, layer in layers.items() if _stands_alone(layer, model))


def _stands_alone(layer: Any, model: Any) -> bool:
    """Return True if a layer can be divided by itself: torch refuses to divide a parameter with two modules."""
    inside = {id(inner) for inner in layer.modules() if inner is not layer}
    return not any(id(module) in inside for module in embeddings_of(model)) and not _are_shared([layer], model)


def _are_shared(modules: Sequence[Any], model: Any) -> bool:
    """Return True if modules of the model outside of these have the same parameters."""
    inside = {id(inner) for module in modules for inner in module.modules()}
    own = {id(parameter) for module in modules for parameter in module.parameters()}
    outside = (module for module in model.modules() if id(module) not in inside)
    return any(id(parameter) in own for module in outside for parameter in module.parameters(recurse=False))


def embeddings_of(model: Any) -> list[Any]:
    """Return the embeddings of inputs and outputs, which Accelerate (1.15) divides after the layers, by themselves.

    There are none where that would fail (`fsdp2_prepare_model`): if the model does not tell them (ResNet), or if other
    modules have the same parameters (the embeddings of BART's encoder and decoder, the bias of BERT's head).
    """
    getters = [getattr(model, name, None) for name in GETTERS]
    try:
        found = [module for getter in getters if getter is not None and (module := getter()) is not None]
    except NotImplementedError:
        return []
    return [] if _are_shared(found, model) else found


@contextlib.contextmanager
def hidden_embeddings(model: Any) -> Iterator[None]:
    """Keep Accelerate from dividing embeddings by themselves if it can't; they go with all that is in no layer."""
    hides = not embeddings_of(model)
    if hides:
        vars(model).update(dict.fromkeys(GETTERS, lambda: None))
    try:
        yield
    finally:
        for name in GETTERS if hides else ():
            del vars(model)[name]


def let_go(model: Any) -> None:
    """Let go of gathered parameters, so that the next forward pass gathers those of changed parts.

    After an evaluation FSDP2 keeps those of the last layers for a backward pass.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


class Sharding(TrainerMixin):
    """Mixin for a Transformers `Trainer` whose model is spread over processes, if `args.fsdp` is set."""

    @property
    def is_sharded(self) -> bool:
        """Return True if each process holds only a part of each parameter."""
        return bool(self.args.fsdp)

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        """Leave out the sizes of groups: before FSDP2 is turned on, Accelerate (1.15) refuses them on CPUs."""
        arguments = super()._build_accelerator_args(**kwargs)
        return {name: value for name, value in arguments.items() if name != "parallelism_config"}

    def create_accelerator_and_postprocess(self) -> None:
        """Create the Trainer's accelerator, and have it use FSDP2 on CPUs, too.

        Accelerate (1.15) takes the plugin for accelerators only; on CPUs it would silently train a whole copy of the
        model in each process. FSDP2 itself works there, over Gloo.
        """
        super().create_accelerator_and_postprocess()
        state, sizes = self.accelerator.state, self.args.parallelism_config
        if self.is_sharded and state.distributed_type is DistributedType.MULTI_CPU:
            plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)  # pyright: ignore
            if state.mixed_precision != "no":
                plugin.set_mixed_precision(state.mixed_precision)
            state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
            self.is_fsdp_enabled = True
        if sizes is not None:  # the mesh stays out of `sizes`, which `training_args.bin` holds
            state.parallelism_config, state.device_mesh = sizes, sizes.build_device_mesh(self.args.device.type)
            sizes._validate_accelerator(self.accelerator)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Prepare the model, and make sure that it is divided: Accelerate has more than one way to train."""
        if not self.is_sharded:
            return super()._prepare_for_training(*args, **kwargs)
        plugin: Any = self.accelerator.state.fsdp_plugin
        if plugin.transformer_cls_names_to_wrap is None:
            plugin.transformer_cls_names_to_wrap = gathered_layers(self.model)
        with hidden_embeddings(self.model):
            prepared = super()._prepare_for_training(*args, **kwargs)
        undivided = [name for name, p in self.model.named_parameters() if not isinstance(p, DTensor)]  # pyright: ignore
        if undivided:
            raise RuntimeError(f"launch=fsdp: {len(undivided)} parameters are not divided, e.g. {undivided[0]}")
        # Transformers' generation then goes on in all processes until the longest text is done: each step is shared.
        self.model._is_fsdp_managed_module = True  # pyright: ignore
        return prepared

    # Checkpoints: whole tensors in the files, parts in the model.

    def whole_weights(self) -> dict[str, Any] | None:
        """Gather the weights to save: all of them, or the trained ones if the model has an adapter.

        All processes must call this.

        Returns:
            The tensors by name, in the memory of the machine; empty in all processes but the first. None if each
            process has the whole model.
        """
        if not self.is_sharded:
            return None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=is_adapted(self.model))
        weights = get_model_state_dict(self.model, options=options)  # pyright: ignore
        first: dict[int, str] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):  # pyright: ignore
            if name in weights:  # a parameter of several names was gathered once for each; `save_pretrained` saves one
                weights[name] = weights[first.setdefault(id(parameter), name)]
        return weights

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not self.is_sharded:
            return super().save_model(output_dir, _internal_call)
        return self._save(output_dir, self.whole_weights())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.is_sharded:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        return self._load_parts(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if not self.is_sharded:
            return super()._load_best_model()
        return self._load_parts(Path(str(self.state.best_model_checkpoint)))

    @torch.no_grad()
    def _load_parts(self, checkpoint: Path) -> None:
        """Load this process's parts of the weights of a checkpoint."""
        model: Any = self.model
        tensors = weights_of(model) if is_adapted(model) else model.state_dict()
        files = [checkpoint / WEIGHTS_FILE] if is_adapted(model) else sorted(checkpoint.glob("model*.safetensors"))
        stored: dict[str, Any] = {}
        for file in files:
            stored |= load_file(file)  # maps the file into memory: only what is used is read
        for name in tensors.keys() & stored.keys():
            tensors[name].copy_(part_of(stored[name], tensors[name]))
        missing, unknown = tensors.keys() - stored.keys(), stored.keys() - tensors.keys()
        self._issue_warnings_after_load(_IncompatibleKeys(sorted(missing), sorted(unknown)))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_sharded:
            return super()._save_optimizer_and_scheduler(output_dir)
        state = tree_map_only(DTensor, whole, self.optimizer.state_dict())  # pyright: ignore
        if self.args.should_save:
            torch.save(state, Path(output_dir, OPTIMIZER_NAME))
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))  # pyright: ignore
        return None

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load this process's parts of the optimizer's state; `optimizer.pt` numbers the parameters in their order."""
        if checkpoint is None or not self.is_sharded:
            return super()._load_optimizer_and_scheduler(checkpoint)
        optimizer: Any = self.optimizer
        stored = torch.load(Path(checkpoint, OPTIMIZER_NAME), map_location="cpu", weights_only=True, mmap=True)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for number, values in stored["state"].items():
            parameter = parameters[number]
            for name, value in values.items():
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    values[name] = part_of(value, parameter).clone()
        optimizer.load_state_dict(stored)
        schedule = torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True)
        return self.lr_scheduler.load_state_dict(schedule)  # pyright: ignore
