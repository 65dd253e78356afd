"""Single checks of what a run is asked for; each returns the problems that it found."""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from hfexp import screen
from hfexp.cache import parse_size
from hfexp.config import Config
from hfexp.errors import ConfigError, did_you_mean, one_of
from hfexp.machine import computes_in_bf16
from hfexp.streams import show_rows
from hfexp.tracking.store import find_problem, tracking_uri

MAX_EXPERIMENT_NAME = 500
"""Of MLflow (`mlflow/utils/validation.py`)."""
SAMPLING = ("random", "sequential", "group_by_length")


def check_places(config: Config) -> list[str]:
    """The tracking store and the output directory."""
    problems = []
    if config.tracking.backend not in ("mlflow", "none"):
        problems.append(f"tracking.backend={config.tracking.backend}; allowed: mlflow, none")
    if config.tracking.backend == "mlflow":
        problem = find_problem(tracking_uri(config.tracking.uri, config.output_dir))
        problems += [problem] if problem else []
    if config.tracking.register is not None and not re.fullmatch(r"[^/:]{1,250}", config.tracking.register):
        problems.append(f"tracking.register={config.tracking.register}: a name without / and : is needed")
    if len(config.tracking.experiment or "") > MAX_EXPERIMENT_NAME:
        problems.append(f"tracking.experiment has more than {MAX_EXPERIMENT_NAME} characters")
    try:
        parse_size(config.transform.cache.max_size)
    except ConfigError as error:
        problems.append(str(error))
    place = Path(config.output_dir).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        problems.append(f"output_dir={config.output_dir}: {place} is not a directory that you can write to")
    return problems


def check_strategies(args: dict[str, Any], patience: int | None) -> list[str]:
    """Settings that only make sense together."""
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
        if saved % every:
            problems.append(f"trainer.args.save_steps={saved} must be a multiple of eval_steps={every}")
    if patience is not None and not best:
        problems.append("trainer.early_stopping_patience needs trainer.args.load_best_model_at_end=true")
    return problems + check_precision(args) + check_compiler(args)


def check_support(config: Config) -> list[str]:
    """Values that Transformers or torch would refuse only after a run was opened, or that leave nothing to report."""
    import torch

    problems = []
    if not 0 <= config.seed < 2**32:
        problems.append(f"seed={config.seed} must be between 0 and {2**32 - 1}")
    dtype = config.model.dtype
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        problems.append(f"model.dtype={dtype}: no such type; use float32, bfloat16, float16 or auto")
    for name in ("prediction_loss_only", "batch_eval_metrics"):
        if config.trainer.args.get(name):
            problems.append(f"trainer.args.{name}=true is not supported: metrics need all predictions at once")
    return problems


def check_sampling(config: Config) -> list[str]:
    """Orders of rows that there are; the Trainer takes any other word for `random`, and ignores all for streams."""
    name = "trainer.args.train_sampling_strategy"
    strategy = config.trainer.args.get("train_sampling_strategy", SAMPLING[0])
    if strategy not in SAMPLING:
        return [
            f"{name}={strategy} is not supported.{did_you_mean(str(strategy), SAMPLING)} Allowed: {one_of(SAMPLING)}"
        ]
    if config.dataset.streaming and strategy != SAMPLING[0]:
        return [
            f"{name}={strategy}: a stream is not ordered beforehand; dataset.shuffle_buffer says how well it is mixed "
            "(1: not at all)"
        ]
    return []


def check_precision(args: dict[str, Any]) -> list[str]:
    """Number formats that this machine can't compute in."""
    import torch

    cuda = torch.cuda.is_available() and not args.get("use_cpu")
    other = torch.accelerator.is_available() and not args.get("use_cpu")
    problems = []
    if args.get("fp16") and not (cuda or other):
        problems.append("trainer.args.fp16=true needs an accelerator; on a CPU use bf16=true or full precision")
    if args.get("bf16") and cuda and not torch.cuda.is_bf16_supported():
        problems.append("trainer.args.bf16=true is not supported by this GPU; use fp16=true")
    if args.get("bf16") and not (cuda or other) and not computes_in_bf16():
        screen.note("trainer.args.bf16=true: this CPU has no bf16 instructions, and float32 is faster on it")
    if args.get("tf32") and not cuda:
        problems.append("trainer.args.tf32=true needs an NVIDIA GPU")
    return problems


def check_compiler(args: dict[str, Any]) -> list[str]:
    """What `torch.compile` makes for a CPU is compiled by the program that `torch/_inductor/config.py` names."""
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
        f"trainer.args.torch_compile needs a C++ compiler on a CPU, and there is no {compiler}; "
        "install it, name another one in the variable CXX, or leave torch_compile out"
    ]


def check_labels(id2label: dict[int, str] | None, dataset: DatasetDict) -> list[str]:
    """There must be something to tell apart."""
    if id2label is not None and len(id2label) < 2:
        return [
            f"one class only ({one_of(id2label.values())}) in the training rows ({show_rows(dataset['train'])}); "
            "at least two are needed"
        ]
    return []


def check_forward(skeleton: Any, batch: dict[str, Any], shapes: dict[str, Any]) -> list[str]:
    """Whether a model on the meta device takes a batch of these shapes."""
    import torch

    inputs = {name: value.to("meta") for name, value in batch.items() if name != "labels"}
    try:
        with torch.no_grad():
            skeleton(**inputs)
    except (ValueError, RuntimeError) as error:
        if "meta" in str(error):  # an operation that needs real numbers, not a wrong shape
            return []
        sizes = ", ".join(f"{name} {shape[1:]}" for name, shape in shapes.items() if name != "labels")
        reason = " ".join(str(error).split())
        return [f"the model can't take {sizes}: {reason}. Check model.processor (size), model.config and transform"]
    return []


def check_disk(config: Config, num_parameters: int) -> list[str]:
    """Float32 weights and Adam's moments for each checkpoint and one being written, and the final model twice."""
    kept = config.trainer.args.get("save_total_limit") or 10
    moments = 0 if config.trainer.args.get("save_only_model") else 2
    needed = 4 * num_parameters * ((kept + 1) * (1 + moments) + 2)
    if config.trainer.args.get("save_strategy") == "no":
        needed = 4 * num_parameters * 2
    place = Path(config.output_dir).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        return [
            f"output_dir={config.output_dir}: checkpoints need about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are "
            "free; lower trainer.args.save_total_limit, or use another output_dir"
        ]
    return []
