"""Batch normalisation: frozen layers keep their statistics, and several processes take those of the whole batch."""

import functools
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""Types that `torch.nn.SyncBatchNorm` can stand for; subclasses may do more (timm's also apply the activation)."""


def freeze_statistics(model: nn.Module, patterns: Iterable[str] = ()) -> None:
    """Keep the running statistics of frozen layers as they are, and normalise by them, also while training.

    A layer is frozen if all of its own weights are, or if it has none and a pattern of `model.freeze` matches the name
    of its statistics.
    """
    for name, module in model.named_modules():
        if not isinstance(module, _NormBase) or module.running_mean is None:
            continue
        weights = list(module.parameters(recurse=False))
        by_name = any(re.match(pattern, f"{name}.running_mean") for pattern in patterns)
        if not any(weight.requires_grad for weight in weights) and (weights or by_name):
            module.register_forward_pre_hook(_evaluate)


def _evaluate(module: nn.Module, inputs: Any) -> None:
    """Put a layer into evaluation mode, which `model.train()` ends before every step."""
    module.training = False


def share_statistics(model: nn.Module, on_accelerator: bool) -> None:
    """Let layers that are trained normalise by the rows of all processes, as one process with all of them would."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if not isinstance(module, _BatchNorm) or isinstance(module, nn.SyncBatchNorm):
                continue
            if _evaluate in module._forward_pre_hooks.values():
                continue
            if on_accelerator and type(module) in PLAIN:
                setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(module))
            else:  # torch (2.14) has none for the CPU
                module.forward = functools.partial(_forward_with_all_rows, module)  # pyright: ignore


def _forward_with_all_rows(module: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Apply a layer to the rows (B, ...) of all processes, and return those of this one."""
    forward = type(module).forward
    if not module.training:
        return forward(module, rows)
    from torch.distributed import all_gather_object, get_rank, get_world_size
    from torch.distributed.nn.functional import all_gather

    sizes: list[int] = [0] * get_world_size()
    all_gather_object(sizes, len(rows))
    largest, before = max(sizes), sum(sizes[: get_rank()])
    filled = torch.cat([rows, rows.new_zeros(largest - len(rows), *rows.shape[1:])])
    everything = [part[:size] for part, size in zip(all_gather(filled), sizes, strict=True)]
    return forward(module, torch.cat(everything))[before : before + len(rows)]
