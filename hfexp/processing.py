"""The processor, the transforms, and datasets whose rows are model inputs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from datasets import Dataset, DatasetDict
from torch.utils.data import Dataset as TorchDataset
from transformers.processing_utils import ImagesKwargs

from hfexp.config import ModelConfig, TransformConfig
from hfexp.errors import ConfigError, did_you_mean, one_of
from hfexp.hub import explain_hub_errors
from hfexp.model import check_path
from hfexp.preparing import Preparation, Prepared
from hfexp.row_arrays import Row
from hfexp.sampling import mix, preserved_rng, seed_cpu, uniforms
from hfexp.targets import check, instantiate, locate, parameters
from hfexp.tasks.base import Task


def load_processor(config: ModelConfig, task: Task, allowed: list[str]) -> Any:
    """The processor named by `model.processor._target_`, or else the pretrained model's own, with the given settings.

    Raises:
        ConfigError: the checkpoint has none, or a setting does not exist.
    """
    if config.processor.get("_target_"):
        try:
            return instantiate(config.processor, "model.processor", allowed)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"model.processor can't be built: {error}") from error
    if config.path is None:
        raise ConfigError(
            "model.processor._target_ is missing: a model without model.path needs to be told its processor"
        )
    check_path(config.path)
    with explain_hub_errors("processor", config.path):
        try:
            processor = getattr(transformers, task.processor_class).from_pretrained(
                config.path, revision=config.revision, trust_remote_code=config.trust_remote_code, **config.processor
            )
        except (OSError, ValueError) as error:
            if "preprocessor_config" in str(error) or "image processor" in str(error):
                raise ConfigError(
                    f"model.path={config.path} has no processor of its own; set model.processor._target_, "
                    "e.g. transformers.ViTImageProcessor"
                ) from error
            raise
    _require_settings(processor, config.processor)
    return processor


def _require_settings(processor: Any, settings: dict[str, Any]) -> None:
    """Processors ignore settings they don't know."""
    allowed = set(processor.to_dict()) | set(ImagesKwargs.__annotations__)
    for name in settings:
        if name not in allowed:
            raise ConfigError(
                f"unknown key 'model.processor.{name}'.{did_you_mean(name, allowed)} "
                f"{type(processor).__name__} takes: {one_of(allowed)}"
            )


@dataclass(frozen=True)
class Steps:
    """What happens to a decoded row of a split before it becomes model inputs."""

    fixed: list[Any]
    """Operations that give the same result in every epoch."""
    random: list[Any] = field(default_factory=list)
    batched: list[Any] = field(default_factory=list)
    """Random too, many images at once: called with images (B, C, H, W) and draws (B, num_draws)."""

    def __call__(self, row: Row) -> Row:
        """The operations on single rows."""
        for operation in (*self.fixed, *self.random):
            row = apply(operation, row)
        return row


@dataclass(frozen=True)
class Transforms:
    """What happens to a decoded row, by split."""

    train: Steps
    evaluation: Steps
    batch: Callable[..., Any] | None
    """Called with (images, labels) of a training batch."""
    is_random: bool
    """Training rows draw random numbers."""


def build_transforms(
    config: TransformConfig, processor: Any, id2label: dict[int, str] | None, allowed: list[str]
) -> Transforms:
    """Build the operations; one that takes `size`, `mean`, ... and was given none gets the processor's."""
    from hfexp.images import Geometry

    runtime = {"geometry": None, "size": None, "num_classes": len(id2label or {}) or None}
    if any((config.prepare, config.augment, config.evaluate)):
        geometry = Geometry.of(processor)
        runtime |= {"geometry": geometry, "size": list(geometry.size), "mean": geometry.mean, "std": geometry.std}

    def build(name: str) -> list[Any]:
        nodes = getattr(config, name)
        return [_build_operation(node, f"transform.{name}.{i}", runtime, allowed) for i, node in enumerate(nodes)]

    prepare, augment, evaluate = build("prepare"), build("augment"), build("evaluate")
    batch = build("batch_augment")
    single = [operation for operation in augment if not hasattr(operation, "num_draws")]
    if single != augment[: len(single)]:
        raise ConfigError("transform.augment: operations on whole batches (hfexp.images.RandomAffine) must come last")
    return Transforms(
        train=Steps(prepare, single, augment[len(single) :]),
        evaluation=Steps(prepare + evaluate),
        batch=_RandomChoice(batch) if batch else None,
        is_random=bool(augment or batch),
    )


def _build_operation(node: Any, key: str, runtime: dict[str, Any], allowed: list[str]) -> Any:
    if not isinstance(node, dict) or "_target_" not in node:
        raise ConfigError(f"{key} must be a mapping with a _target_, got {node!r}")
    accepted = parameters(locate(str(node["_target_"]), f"{key}._target_", allowed))
    given = {k: v for k, v in runtime.items() if v is not None and k in accepted and node.get(k) is None}
    node = {k: v for k, v in node.items() if k not in given}
    check(node, key, allowed, frozenset(given))
    try:
        return instantiate(node, key, allowed, **given)
    except Exception as error:
        raise ConfigError(f"{key}: {node['_target_']} can't be built: {error.__cause__ or error}") from error


def apply(operation: Any, row: Row) -> Row:
    """Do one operation: v2 operations and ours map rows; v1 operations (and plain functions) map the image alone."""
    module = type(operation).__module__
    if module.startswith("torchvision.transforms.transforms") or not isinstance(operation, torch.nn.Module):
        return {**row, "image": operation(row["image"])}
    return operation(row)


class _RandomChoice:
    """One of several batch operations, drawn anew for each batch."""

    def __init__(self, operations: list[Any]) -> None:
        self.operations = operations

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> Any:
        return self.operations[int(torch.randint(len(self.operations), ()))](images, labels)


class ProcessedDataset(TorchDataset):
    """Rows of a `datasets.Dataset` as model inputs, processed when they are read, a batch at a time.

    Indexed by keys `epoch * len + index` (see `hfexp.sampling`); a random transform draws from a generator
    seeded by (seed, key), so a row of an epoch looks the same whoever reads it and whenever.
    """

    def __init__(
        self,
        rows: Dataset,
        task: Task,
        processor: Any,
        steps: Steps,
        seed: int | None = None,
        prepared: Prepared | None = None,
    ) -> None:
        """`seed`: None for a split without randomness; `prepared`: the rows after `steps.fixed`, or some of them."""
        self.rows = rows
        self.task = task
        self.processor = processor
        self.steps = steps
        self.seed = seed
        self.prepared = prepared
        self.rest = steps.fixed if prepared is None else prepared.rest
        self.reads_columns = (
            task.takes_columns and prepared is not None and prepared.is_whole and not steps.random
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int) -> Row:
        batch = self.__getitems__([key])
        if isinstance(batch, list):
            return batch[0]
        first = {name: values[0] for name, values in batch.items()}
        return {name: v.item() if torch.is_tensor(v) and not v.ndim else v for name, v in first.items()}

    def __getitems__(self, keys: list[int]) -> list[Row] | Row:
        """A batch as `torch.utils.data` asks for it: rows, or each of their fields stacked to (B, ...)."""
        indices = [key % len(self.rows) for key in keys]
        if self.reads_columns:
            assert self.prepared is not None
            inputs: Any = self.task.preprocess(self._batched(self.prepared.columns(indices), keys), self.processor)
            return inputs if self.seed is None else {**inputs, "sample_key": keys}
        rows = self._fixed(indices)
        if self.seed is None:
            return [self.task.preprocess(row, self.processor) for row in rows]
        rows = self._random(rows, keys, self.seed)
        inputs = [self.task.preprocess(row, self.processor) for row in rows]
        return [{**row, "sample_key": key} for row, key in zip(inputs, keys, strict=True)]

    def _fixed(self, indices: list[int]) -> list[Row]:
        """Rows after the deterministic operations."""
        if self.prepared is not None:
            rows = self.prepared.rows(indices)
        else:
            columns = self.rows[indices]
            values = zip(*columns.values(), strict=True)
            rows = [self.task.decode(dict(zip(columns, row, strict=True))) for row in values]
        for operation in self.rest:
            rows = [apply(operation, row) for row in rows]
        return rows

    def _random(self, rows: list[Row], keys: list[int], seed: int) -> list[Row]:
        """Transform each row under its own random numbers."""
        if self.steps.random:
            result = []
            with preserved_rng():
                for row, key in zip(rows, keys, strict=True):
                    seed_cpu(mix(seed, key))
                    for operation in self.steps.random:
                        row = apply(operation, row)
                    result.append(row)
            rows = result
        if not self.steps.batched:
            return rows
        images = self._batched({"image": torch.stack([row["image"] for row in rows])}, keys)["image"]
        return [{**row, "image": image} for row, image in zip(rows, images, strict=True)]

    def _batched(self, columns: Row, keys: list[int]) -> Row:
        if self.seed is None:
            return columns
        for operation in self.steps.batched:
            draws = torch.from_numpy(uniforms(self.seed, keys, operation.num_draws))
            columns = {**columns, "image": operation(columns["image"], draws)}
        return columns


class Collator:
    """The task's collator, plus batch operations on training batches, drawn from (seed, first key).

    With `finishes=False` the last part (normalisation) is left to `finish`, to be called where the model computes.
    """

    def __init__(
        self,
        task: Task,
        processor: Any,
        batch_augment: Callable[..., Any] | None,
        seed: int,
        finishes: bool = True,
    ) -> None:
        self.collate = task.collator(processor)
        self.finish: Callable[[dict[str, Any]], dict[str, Any]] = getattr(self.collate, "finish", lambda batch: batch)
        self.batch_augment = batch_augment
        self.seed = seed
        self.finishes = finishes

    def __call__(self, rows: list[Row] | Row) -> dict[str, torch.Tensor]:
        if isinstance(rows, dict):
            keys = rows.pop("sample_key", [None])
        else:
            keys = [row.pop("sample_key", None) for row in rows]
        batch = self.collate(rows)
        if self.batch_augment is not None and keys[0] is not None:
            batch = self.finish(batch)
            with preserved_rng():
                seed_cpu(mix(self.seed, keys[0], len(keys)))
                images, labels = self.batch_augment(batch["pixel_values"], batch["labels"])
            return {**batch, "pixel_values": images, "labels": labels}
        return self.finish(batch) if self.finishes else batch


def process(
    dataset: DatasetDict,
    task: Task,
    processor: Any,
    transforms: Transforms,
    seed: int,
    preparation: Preparation | None = None,
) -> dict[str, ProcessedDataset]:
    """Each split as a dataset of model inputs; only the training split is augmented.

    Args:
        preparation: keeps what is the same in every epoch; None: rows are processed from the start when they are read.
    """
    splits = {}
    for split, rows in dataset.items():
        steps = transforms.train if split == "train" else transforms.evaluation
        draws = split == "train" and transforms.is_random
        prepared = preparation.prepare(str(split), rows, steps.fixed, apply) if preparation else None
        splits[str(split)] = ProcessedDataset(rows, task, processor, steps, seed if draws else None, prepared)
    return splits
