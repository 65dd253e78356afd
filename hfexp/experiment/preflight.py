"""Preflight checks: load everything but the weights, and report all problems at once, within seconds."""

import os
import types
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from hfexp.core import console
from hfexp.core.config import Config
from hfexp.core.errors import ConfigError, did_you_mean, join_problems, one_of
from hfexp.core.foreign_settings import find_foreign_settings
from hfexp.core.hub import is_local
from hfexp.core.targets import instantiate
from hfexp.core.training_args import build_arguments, check_choices
from hfexp.data import dataset as processing
from hfexp.data import streaming
from hfexp.data.dataset import num_rows
from hfexp.data.labels import label_counts
from hfexp.data.prepare import PreparedCache, require_deterministic
from hfexp.data.splits import drop_bad_samples, load_dataset
from hfexp.data.streaming import check_streaming
from hfexp.data.transforms import Transforms, build_transforms
from hfexp.experiment.checks import (
    check_activation_checkpointing,
    check_architecture,
    check_disk,
    check_forward,
    check_labels,
    check_loader,
    check_optimisation,
    check_places,
    check_processor,
    check_sampling,
    check_semaphores,
    check_strategies,
    check_support,
    loss_of,
)
from hfexp.experiment.context import Inputs
from hfexp.tasks.base import Task
from hfexp.tasks.metrics import MetricSet, build_metrics
from hfexp.training.adapters import is_adapted
from hfexp.training.losses import Loss, build_loss
from hfexp.training.model import freeze_or_adapt, load_model_config
from hfexp.training.processor import fit_tokenizer, load_processor
from hfexp.training.quantization import check_quantization
from hfexp.training.recipes import check_model, check_recipes
from hfexp.training.sharding import check_layers, check_sharding
from hfexp.training.trainer import check_own, trainer_class


class _Problems:
    """Collects the problems of several steps; a step whose input is missing because another failed is skipped."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def __enter__(self) -> "_Problems":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: types.TracebackType | None) -> bool:
        if isinstance(error, ConfigError):
            self.messages.append(str(error))
            return True
        return isinstance(error, _Skipped)

    def add(self, problems: list[str]) -> None:
        self.messages += problems

    def raise_any(self) -> None:
        """Raise all problems found, each once, as one ConfigError."""
        if self.messages:
            raise ConfigError(join_problems(list(dict.fromkeys(self.messages))))


class _Skipped(Exception):
    """An earlier step failed, so this step has no input."""


def _need(value: Any) -> Any:
    if value is None:
        raise _Skipped
    return value


def load_inputs(config: Config) -> Inputs:
    """Load everything but the weights and check that it fits together.

    Raises:
        ConfigError: names all problems found; nothing has been created.
    """
    _announce_downloads(config)
    problems = _Problems()
    allowed = config.security.allowed_targets
    task = dataset = dropped = processor = transforms = metrics = model_config = skeleton = id2label = None
    callbacks: list[Any] = []
    loss: Loss | None = None
    _check_settings(config, problems)
    for name, node in config.trainer.callbacks.items():
        with problems:
            callbacks += [instantiate(node, f"trainer.callbacks.{name}", allowed)] if node else []
    with problems:
        task = instantiate(config.task, "task", allowed)
        problems.add(_try_arguments(config, task) + check_recipes(config, task) + check_sharding(config, task))
    console.status("reading the data")
    with problems:
        dataset, dropped = drop_bad_samples(
            load_dataset(config.dataset, _need(task), allowed), config.dataset, _need(task)
        )
        id2label = _need(task).id2label(dataset)
        _need(task).set_classes(id2label)
        problems.add(check_labels(id2label, dataset))
    console.status("checking that data, model and transforms fit together")
    with problems:
        model_config = load_model_config(config.model, _need(task), allowed)
        problems.add(check_architecture(model_config, _need(task)) + check_quantization(config, model_config))
    with problems:
        if "source" in config.model.processor:  # it learns from the rows, and would tell their problem once more
            _need(dataset)
        processor = load_processor(config.model, _need(task), allowed)
        problems.add(check_processor(processor, _need(task)))
    with problems:
        skeleton = build_skeleton(config, _need(task), model_config)
        if skeleton is not None:
            fit_tokenizer(_need(processor), skeleton, _need(task))
            check_model(config, skeleton)
    with problems:
        metrics = build_metrics(config.metrics, allowed)
        problems.add(check_metrics(config, _need(task), _need(dataset), metrics, id2label))
    with problems:
        transforms = build_transforms(config.transform, _need(processor), id2label, allowed)
        if not problems.messages:
            problems.add(check_fit(config, _need(task), _need(dataset), processor, transforms, skeleton))
    with problems:
        loss = _build_loss(config, _need(task), _need(dataset), id2label)
    problems.raise_any()
    return Inputs(
        _need(task), _need(dataset), dropped or {}, id2label, processor, _need(transforms), _need(metrics), callbacks,
        model_config, loss,
    )  # fmt: skip


def _build_loss(config: Config, task: Task, dataset: DatasetDict, id2label: dict[int, str] | None) -> Loss | None:
    def count() -> dict[str, int] | None:
        return None if config.dataset.streaming else label_counts(dataset["train"], task)

    smoothing = float(config.trainer.args.get("label_smoothing_factor") or 0)
    task.build_loss()
    allowed = config.security.allowed_targets
    return build_loss(config.trainer.loss, config.trainer.class_weights, task, id2label, count, smoothing, allowed)


def _check_settings(config: Config, problems: _Problems) -> None:
    """Check what needs neither task nor data: paths, and settings that contradict each other."""
    args = config.trainer.args
    problems.add(check_places(config) + check_strategies(args, config.trainer.early_stopping_patience))
    problems.add(check_support(config) + find_foreign_settings(args))
    problems.add(check_streaming(config) + check_sampling(config) + check_semaphores(config))
    with problems:
        kind = trainer_class(config.trainer._target_, config.security.allowed_targets)
        recipe = config.trainer
        problems.add(check_own(kind, recipe.options, config.dataset.streaming, recipe.balanced_sampling))


def _try_arguments(config: Config, task: Task) -> list[str]:
    """Build and check TrainingArguments before anything is created."""
    check_choices(config.trainer.args)
    arguments = build_arguments(
        config.trainer.args,
        output_dir=Path(config.output_dir),
        seed=config.seed,
        run_name="check",
        metric=task.metric,
        greater_is_better=task.greater_is_better,
        deterministic=config.trainer.deterministic,
    )
    return check_loader(arguments) + check_optimisation(arguments)


def _announce_downloads(config: Config) -> None:
    """Announce what may have to come from the Hub: a download can take long, and is retried without a network."""
    paths = {"model": config.model.path, "dataset": config.dataset.source.get("path")}
    remote = [f"{kind} {path}" for kind, path in paths.items() if path and not is_local(str(path))]
    if remote and os.environ.get("HF_HUB_OFFLINE") != "1":
        console.say(f"  from the Hub, unless cached: {', '.join(remote)}")


def check_metrics(
    config: Config, task: Task, dataset: DatasetDict, metrics: MetricSet, id2label: dict[int, str] | None
) -> list[str]:
    """Try the metrics on made-up predictions: they must work and include `metric_for_best_model`."""
    metric_inputs = dict(task.metric_inputs(*task.fake_predictions(id2label)))
    names = [*metrics.scalars(metric_inputs), "loss"]
    metric = str(config.trainer.args.get("metric_for_best_model") or task.metric).removeprefix("eval_")
    problems = []
    if metric not in names:
        problems.append(
            f"trainer.args.metric_for_best_model={metric} is not computed.{did_you_mean(metric, names)} "
            f"There are: {one_of(names)}; add others in the metrics section"
        )
    size, rows = config.trainer.args.get("per_device_train_batch_size", 8), num_rows(dataset["train"])
    if rows is not None and size > rows and task.block_size is None:
        problems.append(f"trainer.args.per_device_train_batch_size={size} is more than the {rows} training samples")
    return problems


def process_splits(
    config: Config,
    dataset: DatasetDict,
    task: Task,
    processor: Any,
    transforms: Transforms,
    prepared_cache: PreparedCache | None = None,
) -> dict[str, Any]:
    """Return each split as a dataset of model inputs, streamed or kept; `prepared_cache` caches the kept ones."""
    if config.dataset.streaming:
        return streaming.process(dataset, task, processor, transforms, config.seed, config.dataset, prepared_cache)
    return dict(processing.process(dataset, task, processor, transforms, config.seed, prepared_cache))


def check_fit(
    config: Config,
    task: Task,
    dataset: DatasetDict,
    processor: Any,
    transforms: Transforms,
    skeleton: Any,
) -> list[str]:
    """Check the first rows: deterministic steps, equal shapes, a forward pass without weights; and the disk space."""
    problems: list[str] = []
    splits = process_splits(config, dataset, task, processor, transforms)
    collate = processing.Collator(task, processor, None, config.seed)
    first = {split: collate([_first(splits[split], split)] * 2) for split in ("train", "validation")}
    for split in ("train", "validation"):
        require_deterministic(task.decode(dataset[split][0]), splits[split].steps.fixed)
    shapes = {split: {k: tuple(v.shape) for k, v in batch.items()} for split, batch in first.items()}
    if shapes["train"] != shapes["validation"] and not task.varying_shapes:
        problems.append(
            f"transform: training inputs {shapes['train']} differ from validation inputs {shapes['validation']}"
        )
    if config.trainer.args.get("train_sampling_strategy") == "group_by_length" and not task.varying_shapes:
        problems.append(
            "trainer.args.train_sampling_strategy=group_by_length: all rows of this task have the same length"
        )
    if skeleton is not None:
        problems += check_activation_checkpointing(skeleton, config.trainer.args) + check_layers(config, skeleton)
        problems += check_forward(skeleton, task, first["train"], shapes["train"])
        saved = [p for p in skeleton.parameters() if p.requires_grad or not is_adapted(skeleton)]
        problems += check_disk(config, sum(p.numel() for p in saved))
    return problems


def leaves_parameters_unused(config: Config, inputs: Inputs, batch: dict[str, Any]) -> bool | None:
    """Try a training step without weights, and tell whether it leaves trained parameters without a gradient.

    If so, `DistributedDataParallel` must look for them in every step. Return None if it can't be told.
    """
    skeleton = build_skeleton(config, inputs.task, inputs.model_config)
    if skeleton is None:
        return None
    fit_tokenizer(inputs.processor, skeleton, inputs.task)
    skeleton.train()
    batch = {name: value.to("meta") for name, value in batch.items()}
    try:
        loss_of(skeleton, inputs.task, batch).backward()
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError):
        return None  # e.g. an operation that the meta device does not support because it needs real numbers
    return any(p.requires_grad and p.grad is None for p in skeleton.parameters())


def _first(split: Any, name: str) -> dict[str, Any]:
    try:
        return split[0]
    except ConfigError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"transform: the first {name} sample can't be transformed: {error}") from error


def build_skeleton(config: Config, task: Task, model_config: Any) -> Any:
    """Build the model on the meta device, with frozen parameters and adapter: it has no weights and takes no memory.

    Return None for models that can't be built from a config alone: the user's own, and timm's.
    """
    if model_config is None or model_config.model_type == "timm_wrapper":
        return None
    import torch
    import transformers

    try:
        with torch.device("meta"):
            model = getattr(transformers, task.model_class).from_config(model_config)
            return freeze_or_adapt(model, config.model, [], config.security.allowed_targets).eval()
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(
            f"model: {type(model_config).__name__} can't be built as {task.model_class}: {error}"
        ) from error
    except (RuntimeError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(f"model.config: can't build a model of these sizes: {error}") from error
