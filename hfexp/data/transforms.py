"""Operations on rows between the dataset and the model, as `transform` lists them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from hfexp.core.config import TransformConfig
from hfexp.core.errors import ConfigError
from hfexp.core.targets import check, instantiate, locate, parameters, targets_in
from hfexp.data.row_arrays import Row

GEOMETRY = {"geometry", "size", "mean", "std"}
"""Parameters of image operations that the processor gives."""


@dataclass(frozen=True)
class Steps:
    """Operations on the decoded rows of a split before they become model inputs."""

    fixed: list[Any]
    """Operations that give the same result in every epoch."""
    random: list[Any] = field(default_factory=list)
    """Operations that draw random numbers for each row."""
    batched: list[Any] = field(default_factory=list)
    """Random operations on many images at once, called with images (B, C, H, W) and draws (B, num_draws)."""

    def __call__(self, row: Row) -> Row:
        """Apply the operations on single rows."""
        for operation in (*self.fixed, *self.random):
            row = apply(operation, row)
        return row


@dataclass(frozen=True)
class Transforms:
    """Operations on decoded rows, by split, and on training batches."""

    train: Steps
    evaluation: Steps
    batch: Callable[..., Any] | None
    """Operation called with (images, labels) of a training batch; None if there is none."""
    is_random: bool
    """True if training rows or batches draw random numbers."""


def build_transforms(
    config: TransformConfig, processor: Any, id2label: dict[int, str] | None, allowed: list[str]
) -> Transforms:
    """Build the operations; those that take `size`, `mean`, ... and have no value for it get the processor's."""
    runtime: dict[str, Any] = {"num_classes": len(id2label or {}) or None, "processor": processor}
    targets = targets_in([config.prepare, config.augment, config.evaluate])
    if any(GEOMETRY & set(parameters(locate(target, "transform", allowed))) for target in targets):
        runtime |= _geometry(processor)

    def build(name: str) -> list[Any]:
        nodes = getattr(config, name)
        return [_build_operation(node, f"transform.{name}.{i}", runtime, allowed) for i, node in enumerate(nodes)]

    prepare, augment, evaluate = build("prepare"), build("augment"), build("evaluate")
    batch = build("batch_augment")
    single = [operation for operation in augment if not hasattr(operation, "num_draws")]
    if single != augment[: len(single)]:
        raise ConfigError(
            "transform.augment: operations on whole batches (hfexp.tasks.images.RandomAffine) must come last"
        )
    return Transforms(
        train=Steps(prepare, single, augment[len(single) :]),
        evaluation=Steps(prepare + evaluate),
        batch=_RandomChoice(batch) if batch else None,
        is_random=bool(augment or batch),
    )


def _geometry(processor: Any) -> dict[str, Any]:
    """Return the values of `GEOMETRY` from an image processor; nothing from other processors."""
    from hfexp.tasks.images import Geometry

    if not (hasattr(processor, "size") or hasattr(processor, "data_config")):
        return {}
    geometry = Geometry.of(processor)
    return {"geometry": geometry, "size": list(geometry.size), "mean": geometry.mean, "std": geometry.std}


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
    """Apply one operation: v2 operations and ours map rows; v1 operations and plain functions map only the image."""
    module = type(operation).__module__
    is_v1 = module.startswith("torchvision.transforms.") and not module.startswith("torchvision.transforms.v2.")
    if is_v1 or not isinstance(operation, torch.nn.Module):
        return {**row, "image": operation(row["image"])}
    return operation(row)


class _RandomChoice:
    """A choice among batch operations, drawn anew for each batch."""

    def __init__(self, operations: list[Any]) -> None:
        self.operations = operations

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> Any:
        return self.operations[int(torch.randint(len(self.operations), ()))](images, labels)
