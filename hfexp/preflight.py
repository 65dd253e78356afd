"""Everything that can be known to be wrong before any weight is loaded: all problems at once, in seconds."""

import os
import shutil
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from hfexp import processing
from hfexp.arguments import check_choices
from hfexp.config import Config
from hfexp.data import drop_bad_samples, load_dataset
from hfexp.errors import ConfigError, did_you_mean, join_problems, one_of
from hfexp.metrics import MetricSet, build_metrics
from hfexp.model import frozen_parameters, load_model_config
from hfexp.targets import instantiate
from hfexp.tasks.base import Task
from hfexp.tracking.store import find_problem, tracking_uri
from hfexp.training import trainer_class


@dataclass
class Inputs:
    """What a run is made of, apart from the weights."""

    task: Task
    dataset: DatasetDict
    dropped: dict[str, int]
    """Unreadable samples left out, by split."""
    id2label: dict[int, str] | None
    processor: Any
    transforms: processing.Transforms
    metrics: MetricSet
    model_config: Any
    """The model's own configuration; None for a model that the user builds."""


class _Problems:
    """Collects the wrong inputs found by several steps; a step that depends on a failed one is left out."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def __enter__(self) -> "_Problems":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: types.TracebackType | None) -> bool:
        if isinstance(error, ConfigError):
            self.found.append(str(error))
            return True
        return isinstance(error, _Skipped)

    def add(self, problems: list[str]) -> None:
        self.found += problems


class _Skipped(Exception):
    """A step's input is missing because an earlier step failed."""


def _need(value: Any) -> Any:
    if value is None:
        raise _Skipped
    return value


def prepare(config: Config) -> Inputs:
    """Load everything but the weights and check that it fits together.

    Raises:
        ConfigError: all problems found; nothing was created.
    """
    problems = _Problems()
    allowed = config.security.allowed_targets
    task = dataset = dropped = processor = transforms = metrics = model_config = id2label = None
    problems.add(
        _check_places(config) + _check_strategies(config.trainer.args, config.trainer.early_stopping_patience)
    )
    with problems:
        check_choices(config.trainer.args)
    with problems:
        trainer_class(config.trainer._target_, allowed)
    with problems:
        task = instantiate(config.task, "task", allowed)
    with problems:
        dataset, dropped = drop_bad_samples(
            load_dataset(config.dataset, _need(task), allowed), config.dataset, _need(task)
        )
        id2label = _need(task).id2label(dataset)
        problems.add(_check_labels(id2label, dataset))
    with problems:
        model_config = load_model_config(config.model, _need(task))
    with problems:
        processor = processing.load_processor(config.model, _need(task))
    with problems:
        metrics = build_metrics(config.metrics, allowed)
        problems.add(_check_metrics(config, _need(task), _need(dataset), metrics, id2label))
    with problems:
        transforms = processing.build_transforms(config.transform, _need(processor), id2label, allowed)
        if not problems.found:
            problems.add(
                _check_fit(config, _need(task), _need(dataset), processor, transforms, model_config, id2label)
            )
    if problems.found:
        raise ConfigError(join_problems(list(dict.fromkeys(problems.found))))
    return Inputs(
        _need(task),
        _need(dataset),
        dropped or {},
        id2label,
        processor,
        _need(transforms),
        _need(metrics),
        model_config,
    )


def _check_places(config: Config) -> list[str]:
    """The tracking store and the output directory."""
    problems = []
    if config.tracking.backend not in ("mlflow", "none"):
        problems.append(f"tracking.backend={config.tracking.backend}; allowed: mlflow, none")
    if config.tracking.backend == "mlflow":
        problem = find_problem(tracking_uri(config.tracking.uri, config.output_dir))
        problems += [problem] if problem else []
    place = Path(config.output_dir).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        problems.append(f"output_dir={config.output_dir}: {place} is not a directory that you can write to")
    return problems


def _check_strategies(args: dict[str, Any], patience: int | None) -> list[str]:
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
    return problems + _check_precision(args)


def _check_precision(args: dict[str, Any]) -> list[str]:
    import torch

    cuda = torch.cuda.is_available() and not args.get("use_cpu")
    other = torch.accelerator.is_available() and not args.get("use_cpu")
    problems = []
    if args.get("fp16") and not (cuda or other):
        problems.append("trainer.args.fp16=true needs an accelerator; on a CPU use bf16=true or full precision")
    if args.get("bf16") and cuda and not torch.cuda.is_bf16_supported():
        problems.append("trainer.args.bf16=true is not supported by this GPU; use fp16=true")
    if args.get("tf32") and not cuda:
        problems.append("trainer.args.tf32=true needs an NVIDIA GPU")
    return problems


def _check_labels(id2label: dict[int, str] | None, dataset: DatasetDict) -> list[str]:
    if id2label is not None and len(id2label) < 2:
        return [
            f"one class only ({one_of(id2label.values())}) in {len(dataset['train'])} training rows; "
            "at least two are needed"
        ]
    return []


def _check_metrics(
    config: Config, task: Task, dataset: DatasetDict, metrics: MetricSet, id2label: dict[int, str] | None
) -> list[str]:
    """Try the metrics on made-up predictions: they must work, and give the one that chooses the best model."""
    offered = dict(task.metric_inputs(*task.fake_predictions(id2label)))
    names = [*metrics.scalars(offered), "loss"]
    wanted = str(config.trainer.args.get("metric_for_best_model") or task.metric).removeprefix("eval_")
    problems = []
    if wanted not in names:
        problems.append(
            f"trainer.args.metric_for_best_model={wanted} is not computed.{did_you_mean(wanted, names)} "
            f"There are: {one_of(names)}; more with the metrics section"
        )
    size, rows = config.trainer.args.get("per_device_train_batch_size", 8), len(dataset["train"])
    if size > rows:
        problems.append(f"trainer.args.per_device_train_batch_size={size} is more than the {rows} training samples")
    return problems


def _check_fit(
    config: Config,
    task: Task,
    dataset: DatasetDict,
    processor: Any,
    transforms: processing.Transforms,
    model_config: Any,
    id2label: dict[int, str] | None,
) -> list[str]:
    """A real batch through a model without weights, the head's labels, and the space that checkpoints take."""
    problems = _check_head(model_config, id2label) if config.model.path else []
    splits = processing.process(dataset, task, processor, transforms, config.seed)
    collate = processing.Collator(task, processor, None, config.seed)
    first = {split: collate([_first(splits[split], split)] * 2) for split in ("train", "validation")}
    shapes = {split: {k: tuple(v.shape) for k, v in batch.items()} for split, batch in first.items()}
    if shapes["train"] != shapes["validation"]:
        problems.append(
            f"transform: training inputs {shapes['train']} differ from validation inputs {shapes['validation']}"
        )
    if model_config is not None and model_config.model_type != "timm_wrapper":
        skeleton = _skeleton(config, task, model_config)
        frozen_parameters(skeleton, config.model.freeze)
        problems += _try_forward(skeleton, first["train"], shapes["train"])
        problems += _check_disk(config, sum(p.numel() for p in skeleton.parameters()))
    return problems


def _first(split: Any, name: str) -> dict[str, Any]:
    try:
        return split[0]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"transform: the first {name} sample can't be transformed: {error}") from error


def _check_head(model_config: Any, id2label: dict[int, str] | None) -> list[str]:
    """A head for the same classes in another order would be trained from a wrong start, and mislabel."""
    if model_config is None or id2label is None:
        return []
    head = [str(model_config.id2label[i]) for i in sorted(model_config.id2label)]
    ours = list(id2label.values())
    if head != ours and sorted(head) == sorted(ours):
        return [
            "the checkpoint's head has the same labels as the dataset in another order; "
            f"set 'dataset.labels=[{','.join(head)}]' to keep its order"
        ]
    return []


def _skeleton(config: Config, task: Task, model_config: Any) -> Any:
    """The model's structure on the meta device: no memory, no weights."""
    import torch
    import transformers

    try:
        with torch.device("meta"):
            return getattr(transformers, task.model_class).from_config(model_config).eval()
    except ValueError as error:
        raise ConfigError(
            f"model: {type(model_config).__name__} can't be built as {task.model_class}: {error}"
        ) from error
    except (RuntimeError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(f"model.config: these sizes give no model: {error}") from error


def _try_forward(skeleton: Any, batch: dict[str, Any], shapes: dict[str, Any]) -> list[str]:
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


def _check_disk(config: Config, num_parameters: int) -> list[str]:
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
