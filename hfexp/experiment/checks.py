"""Individual checks of a run's config; each returns the problems that it found."""

import importlib.util
import inspect
import multiprocessing
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from hfexp.core import console
from hfexp.core.config import Config
from hfexp.core.errors import ConfigError, did_you_mean, first_line, one_of
from hfexp.core.machine import computes_in_bf16
from hfexp.data.cache import parse_size, show_size
from hfexp.data.dataset import show_rows
from hfexp.tasks.base import Task
from hfexp.tracking.mirrors import check_mirrors
from hfexp.tracking.store import find_problem, tracking_uri, why_not_writable
from hfexp.training.adapters import base_of

MAX_EXPERIMENT_NAME = 500
"""Characters that MLflow allows in an experiment's name (`mlflow/utils/validation.py`)."""
SAMPLING = ("random", "sequential", "group_by_length")


def check_places(config: Config) -> list[str]:
    """Check the tracking settings, the size of the cache and the output directory."""
    problems = []
    if config.tracking.backend not in ("mlflow", "none"):
        problems.append(f"tracking.backend={config.tracking.backend}; allowed: mlflow, none")
    if config.tracking.backend == "mlflow":
        uri = tracking_uri(config.tracking.uri, config.output_dir)
        problem = find_problem(uri) or why_not_writable(uri)
        problems += [problem] if problem else []
    problems += check_mirrors(config.tracking.also)
    if config.tracking.register is not None and not re.fullmatch(r"[^/:]{1,250}", config.tracking.register):
        problems.append(f"tracking.register={config.tracking.register} must be 1 to 250 characters without / and :")
    if len(config.tracking.experiment or "") > MAX_EXPERIMENT_NAME:
        problems.append(f"tracking.experiment has more than {MAX_EXPERIMENT_NAME} characters")
    try:
        parse_size(config.transform.cache.max_size)
    except ConfigError as error:
        problems.append(str(error))
    directory = Path(config.output_dir).absolute()
    while not os.path.exists(directory) and directory != directory.parent:  # also false where we may not look
        directory = directory.parent
    if not directory.is_dir() or not os.access(directory, os.W_OK | os.X_OK):
        problems.append(f"output_dir={config.output_dir}: {directory} is not a directory you can write to")
    return problems


def check_semaphores(config: Config) -> list[str]:
    """Refuse several processes if `/dev/shm`, where Linux keeps their semaphores, has no room."""
    keys = [
        f"{key}={value}"
        for key, value, single in (
            ("launch.num_processes", config.launch.num_processes, ("1", "auto")),
            ("trainer.args.dataloader_num_workers", config.trainer.args.get("dataloader_num_workers", 0), ("0",)),
        )
        if str(value) not in single
    ]
    if not keys:
        return []
    try:
        multiprocessing.get_context("fork").Lock()
    except OSError as error:
        return [f"{keys[0]} needs /dev/shm: {error.strerror}; free some space there (in a container: --shm-size=1g)"]
    return []


def check_strategies(args: dict[str, Any], patience: int | None) -> list[str]:
    """Check settings that only make sense together."""
    problems = []
    evaluate, save = str(args.get("eval_strategy", "no")), str(args.get("save_strategy", "steps"))
    best = args.get("load_best_model_at_end", False)
    if best and save not in (evaluate, "best"):
        problems.append(
            f"trainer.args.load_best_model_at_end needs equal save_strategy ({save}) and eval_strategy ({evaluate})"
        )
    if best and evaluate == "no":
        problems.append("trainer.args.load_best_model_at_end needs evaluations: set eval_strategy to epoch or steps")
    if best and evaluate == save == "steps":
        every, saved = args.get("eval_steps") or args.get("logging_steps", 500), args.get("save_steps", 500)
        if not _is_multiple(saved, every):
            problems.append(f"trainer.args.save_steps={saved} must be a multiple of eval_steps={every}")
    if patience is not None and not best:
        problems.append("trainer.early_stopping_patience needs trainer.args.load_best_model_at_end=true")
    return problems + check_precision(args) + check_compiler(args)


def _is_multiple(saved: float, every: float) -> bool:
    """Return True if `save_steps` is a multiple of `eval_steps`, by the rule of `TrainingArguments._validate_args`."""
    if (saved < 1) is not (every < 1):
        return False  # one is a share of all steps, the other a number of steps
    return (saved * 1_000_000) % (every * 1_000_000) == 0


def check_support(config: Config) -> list[str]:
    """Check values that Transformers or torch would refuse only after the run was opened."""
    import torch

    problems = []
    if not 0 <= config.seed < 2**32:
        problems.append(f"seed={config.seed} must be between 0 and {2**32 - 1}")
    dtype = config.model.dtype
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        problems.append(f"model.dtype={dtype} is not a dtype of torch; use float32, bfloat16, float16 or auto")
    if config.trainer.args.get("use_liger_kernel") and importlib.util.find_spec("liger_kernel") is None:
        problems.append("trainer.args.use_liger_kernel=true needs the package liger-kernel (pip install liger-kernel)")
    return problems


def check_sampling(config: Config) -> list[str]:
    """Check the sampling strategy: the Trainer treats an unknown one as `random`, and ignores all for streams."""
    name = "trainer.args.train_sampling_strategy"
    strategy = config.trainer.args.get("train_sampling_strategy", SAMPLING[0])
    if strategy not in SAMPLING:
        return [
            f"{name}={strategy} is not supported.{did_you_mean(str(strategy), SAMPLING)} Allowed: {one_of(SAMPLING)}"
        ]
    if config.dataset.streaming and strategy != SAMPLING[0]:
        return [
            f"{name}={strategy}: a stream can't be reordered; set dataset.shuffle_buffer to shuffle it (1 disables "
            "shuffling)"
        ]
    return []


def check_precision(args: dict[str, Any]) -> list[str]:
    """Check that this machine can compute in the requested number formats."""
    import torch

    cuda = torch.cuda.is_available() and not args.get("use_cpu")
    other = torch.accelerator.is_available() and not args.get("use_cpu")
    problems = []
    if args.get("fp16") and not (cuda or other):
        problems.append("trainer.args.fp16=true needs an accelerator; on a CPU use bf16=true or full precision")
    if args.get("bf16") and cuda and not torch.cuda.is_bf16_supported():
        problems.append("trainer.args.bf16=true is not supported by this GPU; use fp16=true")
    if args.get("bf16") and not (cuda or other) and not computes_in_bf16():
        console.note("trainer.args.bf16=true: this CPU has no bf16 instructions, and float32 is faster on it")
    if args.get("tf32") and not cuda:
        problems.append("trainer.args.tf32=true needs an NVIDIA GPU")
    return problems


def check_optimisation(arguments: Any) -> list[str]:
    """Build the optimizer and the schedule for a 1x1 layer, as the Trainer will for the model after the run is opened.

    Args:
        arguments: `TrainingArguments`.
    """
    import torch
    import transformers

    model = torch.nn.Linear(1, 1)
    try:
        optimizer = torch.optim.SGD(model.parameters(), lr=arguments.learning_rate)
        if arguments.optim_target_modules is None:  # with target modules it needs the real model
            kind, settings = transformers.Trainer.get_optimizer_cls_and_kwargs(arguments)
            if kind.__module__.startswith("torch.optim"):  # one from another package may need its device
                optimizer = kind(model.parameters(), **settings)
    except (ImportError, ValueError, TypeError) as error:
        return [f"trainer.args.optim={arguments.optim.value}: {first_line(error)}"]
    kwargs = arguments.lr_scheduler_kwargs
    try:
        transformers.get_scheduler(arguments.lr_scheduler_type, optimizer, 1, 10, kwargs)
    except (ImportError, ValueError, TypeError, AttributeError) as error:
        return [
            f"trainer.args.lr_scheduler_type={arguments.lr_scheduler_type.value} with lr_scheduler_kwargs={kwargs}: "
            f"{first_line(error)}"
        ]
    return []


def check_loader(arguments: Any) -> list[str]:
    """Refuse settings of data loader workers if there are no workers; torch would refuse them at the first batch."""
    if arguments.dataloader_num_workers > 0:
        return []
    names = ("dataloader_persistent_workers", "dataloader_multiprocessing_context")
    return [
        f"trainer.args.{name}={getattr(arguments, name)} needs workers: set trainer.args.dataloader_num_workers"
        for name in names
        if getattr(arguments, name)
    ]


def check_activation_checkpointing(skeleton: Any, args: dict[str, Any]) -> list[str]:
    """Refuse activation checkpointing for an architecture that does not support it."""
    names = [name for name in ("activation_checkpointing", "gradient_checkpointing") if args.get(name)]
    if not names or base_of(skeleton).supports_gradient_checkpointing:
        return []
    return [f"trainer.args.{names[0]}=true: {type(base_of(skeleton)).__name__} does not support it; remove it"]


def check_processor(processor: Any, task: Task) -> list[str]:
    """Refuse an image processor for a text task, and a tokenizer for an image task."""
    from transformers import PreTrainedTokenizerBase
    from transformers.image_processing_utils import BaseImageProcessor

    unfit = {"AutoTokenizer": BaseImageProcessor, "AutoImageProcessor": PreTrainedTokenizerBase}
    if not isinstance(processor, unfit.get(task.processor_class, ())):
        return []
    return [
        f"model.processor: {type(task).__name__} can't use a {type(processor).__name__}; choose another model or "
        "task, or set model.processor._target_"
    ]


def check_architecture(model_config: Any, task: Task) -> list[str]:
    """Refuse a model whose architecture the task can't train; `model_config` is None for the user's own model."""
    import transformers

    mapping = getattr(transformers, task.model_class)._model_mapping
    if model_config is None:
        return []
    if type(model_config) not in mapping:
        return [
            f"model: Transformers has no {task.model_class.removeprefix('AutoModelFor')} model of the type "
            f"{model_config.model_type}, which {type(task).__name__} needs; choose another model or task"
        ]
    if task.model_class == "AutoModelForCausalLM" and _reads_ahead(mapping[type(model_config)], model_config):
        return [
            f"model: {model_config.model_type} attends in both directions and would see the tokens that it predicts; "
            "choose a causal language model, or set model.config.is_decoder=true"
        ]
    return []


def _reads_ahead(model_class: Any, model_config: Any) -> bool:
    """Return True if each token would see those that it has to predict; the class then has a warning in its source.

    Args:
        model_class: the model class, or several of which the model's config chooses one.
    """
    classes = model_class if isinstance(model_class, tuple) else (model_class,)
    warns = any("add `is_decoder=True" in inspect.getsource(cls) for cls in classes)
    return warns and not model_config.is_decoder


def check_compiler(args: dict[str, Any]) -> list[str]:
    """Check that `torch.compile` for a CPU finds its C++ compiler, chosen as in `torch/_inductor/config.py`."""
    import torch

    backend = args.get("torch_compile_backend")
    compiles = args.get("torch_compile") or args.get("torch_compile_mode") or backend
    if not compiles or backend not in (None, "inductor") or os.getenv("TORCH_INDUCTOR_INSTALL_GXX"):
        return []
    if torch.accelerator.is_available() and not args.get("use_cpu"):
        return []
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    compiler = os.environ.get("CXX", usual)
    if shutil.which((shlex.split(compiler) or [usual])[0]) is not None:
        return []
    return [
        f"trainer.args.torch_compile needs a C++ compiler on a CPU, and {compiler} was not found; "
        "install it, set the variable CXX to another one, or remove torch_compile"
    ]


def check_labels(id2label: dict[int, str] | None, dataset: DatasetDict) -> list[str]:
    """Refuse a training split with fewer than two classes."""
    if id2label is not None and len(id2label) < 2:
        return [
            f"the training rows ({show_rows(dataset['train'])}) have only one class ({one_of(id2label.values())}); "
            "at least two are needed"
        ]
    return []


def check_forward(skeleton: Any, task: Task, batch: dict[str, Any], shapes: dict[str, Any]) -> list[str]:
    """Check that a model on the meta device takes a batch of these shapes, and a loss of the task its outputs."""
    import torch

    inputs = {name: value.to("meta") for name, value in batch.items()}
    try:
        with torch.no_grad():
            if task.has_own_loss:
                loss_of(skeleton, task, inputs)
            else:
                task.forward(skeleton, inputs)
    except (ValueError, RuntimeError) as error:
        if "meta" in str(error):  # an operation needs real values; no shape is wrong
            return []
        sizes = ", ".join(f"{name} {shape[1:]}" for name, shape in shapes.items() if name != "labels")
        reason = " ".join(str(error).split())
        return [f"the model can't take {sizes}: {reason}. Check model.processor (size), model.config and transform"]
    return []


def loss_of(skeleton: Any, task: Task, batch: dict[str, Any]) -> Any:
    """Return the loss of a batch, all on the meta device; a task that needs a reference gets the model itself."""
    if not task.has_own_loss:
        return skeleton(**batch).loss
    task.reference = skeleton if task.needs_reference else None
    try:
        return task.loss(task.forward(skeleton, batch), batch)
    finally:
        task.reference = None


def check_disk(config: Config, num_parameters: int) -> list[str]:
    """Check that the disk has room for the checkpoints, one more while it is written, and two copies of the model.

    A checkpoint holds float32 weights and Adam's moments, and with an average of the weights both of them; without
    `save_total_limit` the check assumes 10 checkpoints.
    """
    num_checkpoints = max(config.trainer.args.get("save_total_limit") or 10, (config.trainer.soup or 0) + 1)
    moments = 0 if config.trainer.args.get("save_only_model") else 2 + (config.trainer.ema.decay is not None)
    needed = 4 * num_parameters * ((num_checkpoints + 1) * (1 + moments) + 2)
    if config.trainer.args.get("save_strategy") == "no":
        needed = 4 * num_parameters * 2
    directory = Path(config.output_dir).absolute()
    while not directory.exists():
        directory = directory.parent
    free = shutil.disk_usage(directory).free
    if needed > free:
        return [
            f"output_dir={config.output_dir}: checkpoints need about {show_size(needed)}, but only {show_size(free)} "
            "are free; lower trainer.args.save_total_limit, or use another output_dir"
        ]
    return []
