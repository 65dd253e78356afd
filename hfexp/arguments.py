"""`trainer.args` to `transformers.TrainingArguments`: passed through, never mirrored."""

import ast
import functools
import importlib.util
import os
import re
from enum import Enum
from pathlib import Path
from typing import Any

from hfexp.directions import lower_is_better
from hfexp.errors import ConfigError, did_you_mean
from hfexp.machine import cpus

OWNED = {
    "output_dir": "output_dir (top level)",
    "seed": "seed (top level)",
    "data_seed": "seed (top level)",
    "run_name": "name (top level)",
    "report_to": "tracking=mlflow or tracking=none",
    "remove_unused_columns": "nothing: hfexp sets it by the task",
    "resume_from_checkpoint": "on_existing (top level)",
    "full_determinism": "trainer.deterministic",
    "push_to_hub": "nothing: hfexp does not push models yet",
    "enable_jit_checkpoint": "nothing: on SIGTERM hfexp checkpoints by itself",
}
"""Fields that hfexp sets itself, and what the user sets instead."""

RENAMED = {
    "warmup_ratio": "trainer.args.warmup_steps (a value below 1 is a fraction)",
    "evaluation_strategy": "trainer.args.eval_strategy",
    "logging_dir": "output_dir",
    "overwrite_output_dir": "on_existing=rerun",
    "tokenizer": "nothing: the processor comes from the model",
    "no_cuda": "trainer.args.use_cpu",
    "save_safetensors": "nothing: checkpoints are always safetensors",
    "group_by_length": "trainer.args.train_sampling_strategy=group_by_length",
    "per_gpu_train_batch_size": "trainer.args.per_device_train_batch_size",
    "per_gpu_eval_batch_size": "trainer.args.per_device_eval_batch_size",
    "use_mps_device": "nothing: an accelerator is used when there is one",
    "fp16_backend": "trainer.args.fp16",
    "half_precision_backend": "trainer.args.fp16",
    "use_legacy_prediction_loop": "nothing: it is gone",
}
"""Names from older tutorials, and what they are called now."""

_TYPES = {"int": int, "float": (int, float), "bool": bool, "str": str, "dict": dict, "list": list, "None": type(None)}


@functools.cache
def training_argument_types() -> dict[str, str]:
    """Fields of the installed `TrainingArguments` with their annotations, read from its source.

    Reading (20 ms) instead of importing (3 s) lets a wrong key fail at once.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise ConfigError("the package transformers is not installed")
    tree = ast.parse((Path(spec.origin).parent / "training_args.py").read_text(encoding="utf-8"))
    body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "TrainingArguments")
    fields = (n for n in body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name))
    return {n.target.id: ast.unparse(n.annotation) for n in fields}  # pyright: ignore


def check_args(args: dict[str, Any]) -> dict[str, Any]:
    """Check names and types; give YAML's boolean `no` back its meaning.

    Returns:
        The arguments, with `False` of a `*_strategy` as the string `no`.

    Raises:
        ConfigError: all wrong names and values at once.
    """
    from hfexp.errors import join_problems

    types, checked, problems = training_argument_types(), {}, []
    for name, value in args.items():
        if value is False and name.endswith("_strategy"):
            value = "no"  # YAML 1.1 reads a bare `no` as a boolean
        problem = _problem(name, value, types)
        if problem:
            problems.append(problem)
        checked[name] = value
    if problems:
        raise ConfigError(join_problems(problems))
    return checked


def _problem(name: str, value: Any, types: dict[str, str]) -> str | None:
    key = f"trainer.args.{name}"
    if name in RENAMED and name not in types:
        return f"{key} is no longer a TrainingArguments field; use {RENAMED[name]}"
    if name not in types:
        return f"unknown key {key!r}: not a field of transformers.TrainingArguments.{did_you_mean(name, types)}"
    if name in OWNED:
        return f"{key} is set by hfexp; use {OWNED[name]}"
    if not _fits(value, types[name]):
        return f"{key}={value!r} ({type(value).__name__}) must be of type {types[name]}"
    return None


def _fits(value: Any, annotation: str) -> bool:
    """Whether a plain value fits an annotation; classes we don't know (enums take strings) are not held against it."""
    names = set(re.sub(r"\[[^\]]*\]", "", annotation).replace(" ", "").split("|"))
    known = [_TYPES[name] for name in names if name in _TYPES]
    if not known:
        return True
    if isinstance(value, bool):
        return bool in known
    return any(isinstance(value, kind) for kind in known)


def check_choices(args: dict[str, Any]) -> None:
    """Check the fields that take one of a few words (strategies, optimizer, scheduler) against their enums.

    Raises:
        ConfigError: a word is not one of them.
    """
    from transformers import training_args

    from hfexp.errors import join_problems, one_of

    problems = []
    for name, annotation in training_argument_types().items():
        enum = getattr(training_args, annotation.partition(" | ")[0], None)
        if name not in args or not (isinstance(enum, type) and issubclass(enum, Enum)):
            continue
        allowed = [str(member.value) for member in enum]
        if args[name] not in allowed:
            hint = did_you_mean(str(args[name]), allowed)
            problems.append(f"trainer.args.{name}={args[name]}: no such choice.{hint} Allowed: {one_of(allowed)}")
    if problems:
        raise ConfigError(join_problems(problems))


def loader_defaults(processors: int, processes: int) -> dict[str, Any]:
    """Data loader workers for rows that are decoded or augmented one by one while an accelerator computes.

    One per processor that this training process has to itself, but one, and at most eight. On a CPU the model needs
    the processors: there rows are decoded by threads between two steps (`hfexp.threads`), and workers only compete.
    """
    workers = min(processors // processes - 1, 8)
    if workers < 1:
        return {}
    return {"dataloader_num_workers": workers, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 4}


def build_arguments(
    args: dict[str, Any],
    *,
    output_dir: Path,
    seed: int,
    run_name: str,
    metric: str,
    greater_is_better: bool,
    deterministic: bool,
    loads_little: bool = True,
    loss_per_token: bool = False,
) -> Any:
    """Construct `TrainingArguments`: the user's fields, and those that hfexp owns.

    Args:
        args: checked `trainer.args`.
        output_dir: where checkpoints go.
        metric: the task's metric, used unless the user names one.
        greater_is_better: whether that metric is to be maximised.
        loads_little: a batch takes a millisecond or two to load, so that data loader workers would only cost time.
        loss_per_token: the loss is a mean over tokens, of which several processes may have unequally many. Of samples
            they have equally many, so that nothing need be counted over all of them at each step.
    """
    import torch
    import transformers

    fields = dict(args)
    if fields.get("metric_for_best_model") is None:
        fields |= {"metric_for_best_model": metric, "greater_is_better": greater_is_better}
    elif fields.get("greater_is_better") is None:
        fields["greater_is_better"] = not lower_is_better(str(fields["metric_for_best_model"]))
    fields.setdefault("average_tokens_across_devices", loss_per_token)
    if not torch.accelerator.is_available():
        fields.setdefault("use_cpu", True)
        fields.setdefault("dataloader_pin_memory", False)
    elif not (loads_little or fields.get("use_cpu") or "dataloader_num_workers" in fields):
        fields = loader_defaults(cpus(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) | fields
    try:
        arguments = transformers.TrainingArguments(
            output_dir=str(output_dir),
            seed=seed,
            run_name=run_name,
            report_to="none",
            remove_unused_columns=False,
            disable_tqdm=fields.pop("disable_tqdm", True),
            full_determinism=deterministic,
            **fields,
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"trainer.args: {error}") from error
    if arguments.parallel_mode == transformers.training_args.ParallelMode.NOT_DISTRIBUTED:
        # Several visible GPUs would silently become nn.DataParallel; a single process uses one device.
        arguments._n_gpu = 1
    return arguments
