"""From `trainer.args` to `transformers.TrainingArguments` (fields are passed through) and the direction of metrics."""

import ast
import functools
import importlib.util
import math
import os
import re
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

from hfexp.core.errors import ConfigError, did_you_mean
from hfexp.core.machine import cpus

# What the name of a metric tells: a timing or a score, and whether lower or higher is better.


TIMINGS = ("_runtime", "_samples_per_second", "_steps_per_second", "_model_preparation_time")
"""Endings of the timings that the Trainer adds to the metrics of an evaluation."""
_LOWER = re.compile(
    r"(^|[_/.-])(loss|logloss|nll|perplexity|entropy|deviance|brier(_score)?|[em]ce|errors?|error_rate|wer|cer|ter|eer"
    r"|r?mse|mae|s?mape|r?msle|fid|bpb|bpc)$"
)
_HIGHER = re.compile(
    r"(^|[_/.-])((accuracy|acc|f1|precision|recall|rouge|bleu|iou|map|hits|ndcg)([_@-]\w+|\d+|lsum|l|score)?"
    r"|(pr_|roc_)?auc|auroc|auprc|exact_match|em|r2|r2_score|pearsonr?|spearmanr?|correlation|mcc|kappa|sacrebleu"
    r"|meteor|chrf|dice|mrr|specificity|sensitivity)$"
)


def lower_is_better(name: str) -> bool | None:
    """Tell whether a metric is to be minimised; None if its name does not say.

    Args:
        name: with or without a prefix, e.g. `mse`, `final_eval_mse`, `test_mse`.
    """
    if _LOWER.search(name.lower()):
        return True
    return False if _HIGHER.search(name.lower()) else None


AUTOMATIC = "nothing: hfexp trains, evaluates afterwards, and evaluates the test split if there is one"
NOT_YET_PUSHED = "nothing: hfexp does not push models; `hf upload` does, with the run's directory model/"
SHARDED = "launch=fsdp, which spreads the model over the processes, with its settings in launch.fsdp"
STRATEGIES = "launch=ddp, or launch=fsdp for a model that no single device holds"
ZERO = (
    "launch=fsdp for ZeRO's stage 3, with launch.fsdp.reshard_after_forward=false for stage 2, and with "
    "launch.fsdp.cpu_offload=true to offload"
)

OWNED = {
    "output_dir": "output_dir (top level)",
    "seed": "seed (top level)",
    "data_seed": "seed (top level)",
    "run_name": "name (top level)",
    "report_to": "tracking.also=[NAME], with tensorboard, trackio or wandb; MLflow has every run",
    "remove_unused_columns": "nothing: hfexp sets it to match the task",
    "resume_from_checkpoint": "on_existing (top level); the same command continues the run",
    "full_determinism": "trainer.deterministic",
    "enable_jit_checkpoint": "nothing: hfexp itself writes a checkpoint on SIGTERM",
    "do_train": AUTOMATIC,
    "do_eval": AUTOMATIC,
    "do_predict": AUTOMATIC,
    "local_rank": "launch=ddp",
    "ddp_timeout": "launch.timeout",
    "label_names": "dataset.columns, and dataset.labels for the names of classes",
    "length_column_name": "nothing: hfexp computes the lengths of the rows itself",
    "project": "tracking.experiment",
}
"""Fields that hfexp sets itself, each with what the user sets instead."""

REFUSED = {
    "push_to_hub": NOT_YET_PUSHED,
    "hub_token": NOT_YET_PUSHED,
    "hub_private_repo": NOT_YET_PUSHED,
    "hub_model_id": NOT_YET_PUSHED,
    "hub_strategy": NOT_YET_PUSHED,
    "hub_always_push": NOT_YET_PUSHED,
    "hub_revision": NOT_YET_PUSHED,
    "trackio_space_id": "tracking.also=[trackio], which records on this machine",
    "trackio_bucket_id": "tracking.also=[trackio], which records on this machine",
    "trackio_static_space_id": "tracking.also=[trackio], which records on this machine",
    "fsdp": SHARDED,
    "fsdp_config": SHARDED,
    "deepspeed": ZERO,
    "parallelism_config": "launch=fsdp with launch.parallelism.dp_shard_size=N",
    "accelerator_config": STRATEGIES,
    "auto_find_batch_size": "trainer.auto_batch=true, which passes a batch through the model in parts: a batch size "
    "that depends on the machine would change the experiment",
    "eval_do_concat_batches": "nothing: metrics need all predictions at once",
    "include_for_metrics": "nothing: metrics get predictions and labels",
    "prediction_loss_only": "nothing: metrics need all predictions at once",
    "batch_eval_metrics": "nothing: metrics need all predictions at once",
}
"""Fields that would do nothing or fail in mid-run, each with its replacement.

A falsy value (false, null, empty) passes.
"""

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
    "use_legacy_prediction_loop": "nothing: it was removed",
}
"""Fields from older tutorials that no longer exist, each with its replacement."""

SHORT = {
    "accumulate_grad_batches": "gradient_accumulation_steps",
    "batch_size": "per_device_train_batch_size",
    "clip_grad": "max_grad_norm",
    "epochs": "num_train_epochs",
    "eval_batch_size": "per_device_eval_batch_size",
    "grad_accum": "gradient_accumulation_steps",
    "gradient_clip_val": "max_grad_norm",
    "label_smoothing": "label_smoothing_factor",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "max_epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "num_workers": "dataloader_num_workers",
    "steps": "max_steps",
    "train_batch_size": "per_device_train_batch_size",
    "warmup": "warmup_steps",
    "wd": "weight_decay",
    "workers": "dataloader_num_workers",
}
"""Names that other tools use, each with the `TrainingArguments` field that it stands for."""

OPTIMIZERS = {"adam": "adamw_torch", "adamw": "adamw_torch", "adamw_hf": "adamw_torch", "momentum": "sgd"}
"""Optimizer names that other tools use, each with the value of `optim` that it stands for."""

COUNT = ("at least 1", lambda value: value >= 1)
POSITIVE = ("more than 0, and finite", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = ("at least 0, and finite", lambda value: 0 <= value < math.inf)
SHARE = ("at least 0 and less than 1", lambda value: 0 <= value < 1)
RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "max_steps": ("at least 1, or -1 (num_train_epochs decides)", lambda value: value == -1 or value >= 1),
    "num_train_epochs": POSITIVE,
    "save_steps": POSITIVE,
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
         "save_total_limit", "eval_accumulation_steps", "dataloader_prefetch_factor", "torch_empty_cache_steps"),
        COUNT,
    ),
    **dict.fromkeys(
        ("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps", "eval_steps",
         "logging_steps", "eval_delay", "dataloader_num_workers", "neftune_noise_alpha"),
        NOT_NEGATIVE,
    ),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), SHARE),
}  # fmt: skip
"""Allowed ranges: outside them, Transformers or torch fails in mid-run or trains something else."""

_TYPES = {"int": int, "float": (int, float), "bool": bool, "str": str, "dict": dict, "list": list, "None": type(None)}


@functools.cache
def training_argument_types() -> dict[str, str]:
    """Return the fields of the installed `TrainingArguments` and their annotations."""
    return {name: ast.unparse(field.annotation) for name, field in training_argument_fields().items()}


def training_argument_fields() -> dict[str, ast.AnnAssign]:
    """Return the fields of the installed `TrainingArguments` as its source defines them, by name."""
    body = transformers_classes("training_args.py")["TrainingArguments"].body
    return {n.target.id: n for n in body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}


@functools.cache
def transformers_classes(file: str) -> dict[str, ast.ClassDef]:
    """Return the classes that a source file of Transformers defines.

    Parsing the source takes 20 ms and importing it 3 s, so a wrong key fails at once.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise ConfigError("the package transformers is not installed")
    tree = ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def check_args(args: dict[str, Any]) -> dict[str, Any]:
    """Check names, types and ranges, and turn YAML's boolean `no` back into a string.

    Returns:
        The arguments, with the string `no` in place of `False` for each `*_strategy`.

    Raises:
        ConfigError: lists all wrong names and values at once.
    """
    from hfexp.core.errors import join_problems

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
        return f"{key} is no longer a TrainingArguments field; {way_out(RENAMED[name])}"
    if name not in types:
        hint = f" Use {SHORT[name]}" if name in SHORT else did_you_mean(name, types)
        return f"unknown key {key!r}: not a field of transformers.TrainingArguments.{hint}"
    if name in OWNED:
        return f"{key} is set by hfexp; {way_out(OWNED[name])}"
    if name in REFUSED and value:
        return f"{key}={str(value).lower() if value is True else value} is not supported; {way_out(REFUSED[name])}"
    if not _fits(value, types[name]):
        return f"{key}={value!r} ({type(value).__name__}) must be of type {types[name]}"
    allowed, is_allowed = RANGES.get(name, ("", bool))
    if name in RANGES and value is not None and not is_allowed(value):
        return f"{key}={value} must be {allowed}"
    return None


def way_out(instead: str, verb: str = "use") -> str:
    """Say what to write in place of a key that does not exist; `nothing: why` becomes `leave it out: why`."""
    return instead.replace("nothing: ", "leave it out: ", 1) if instead.startswith("nothing") else f"{verb} {instead}"


def _fits(value: Any, annotation: str) -> bool:
    """Return True if a plain value fits an annotation, or if all its types are unknown (enums take strings)."""
    names = set(re.sub(r"\[[^\]]*\]", "", annotation).replace(" ", "").split("|"))
    known = [_TYPES[name] for name in names if name in _TYPES]
    if not known:
        return True
    if isinstance(value, bool):
        return bool in known
    return any(isinstance(value, kind) for kind in known)


def check_choices(args: dict[str, Any]) -> None:
    """Check the fields whose type is an enum (strategies, optimizer, scheduler) against that enum.

    Raises:
        ConfigError: a value is not a member of its enum.
    """
    from transformers import training_args

    from hfexp.core.errors import join_problems, one_of

    problems = []
    for name, annotation in training_argument_types().items():
        enum = getattr(training_args, annotation.partition(" | ")[0], None)
        if name not in args or not (isinstance(enum, type) and issubclass(enum, Enum)):
            continue
        allowed = [str(member.value) for member in enum]
        if args[name] not in allowed:
            usual = OPTIMIZERS.get(str(args[name])) if name == "optim" else None
            hint = f" Did you mean {usual!r}?" if usual else did_you_mean(str(args[name]), allowed)
            problems.append(
                f"trainer.args.{name}={args[name]} is not a valid choice.{hint} Allowed: {one_of(allowed)}"
            )
    if problems:
        raise ConfigError(join_problems(problems))


def loader_defaults(processors: int, processes: int) -> dict[str, Any]:
    """Return data loader settings for rows that are decoded or augmented one by one while an accelerator computes.

    There is one worker per processor of this training process, less one, and at most eight. On a CPU the model needs
    the processors: threads decode the rows between two steps (`hfexp.data.threads`), and workers would only compete.
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
    sharding: dict[str, Any] | None = None,
) -> Any:
    """Build `TrainingArguments` from the user's fields and those that hfexp owns.

    Args:
        args: checked `trainer.args`.
        output_dir: directory for checkpoints.
        metric: the task's metric, which selects the best model unless the user names another one.
        greater_is_better: whether a larger value of that metric is better.
        loads_little: a batch takes a millisecond or two to load, so data loader workers would only cost time.
        loss_per_token: the loss is a mean over tokens. Processes can have different numbers of tokens, which must be
            counted over all of them at each step; they have the same number of samples, which need no such count.
        sharding: fields that spread the model over the processes (`hfexp.training.sharding.sharding_fields`).
    """
    import torch
    import transformers

    fields = dict(args)
    if fields.get("metric_for_best_model") is None:
        fields |= {"metric_for_best_model": metric, "greater_is_better": greater_is_better}
    elif fields.get("greater_is_better") is None:
        fields["greater_is_better"] = not lower_is_better(str(fields["metric_for_best_model"]))
    fields.setdefault("average_tokens_across_devices", loss_per_token)
    fields |= sharding or {}
    if not torch.accelerator.is_available():
        # Without `use_cpu`, each process that torchrun starts would train alone, with a world size of 1.
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
            label_names=["labels"],  # as in every batch; some models would have others
            disable_tqdm=fields.pop("disable_tqdm", True),
            full_determinism=deterministic,
            **fields,
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"trainer.args: {error}") from error
    if arguments.parallel_mode == transformers.training_args.ParallelMode.NOT_DISTRIBUTED:
        # With several visible GPUs the Trainer would silently use nn.DataParallel; one process uses one device.
        arguments._n_gpu = 1
    return arguments
