"""Batch normalisation: frozen layers keep their statistics, trained ones normalise over the rows of all processes."""

import functools
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""Types that `torch.nn.SyncBatchNorm` can replace; subclasses may do more (timm's also apply the activation)."""


def freeze_statistics(model: nn.Module, patterns: Iterable[str] = ()) -> None:
    """Keep the running statistics of frozen layers fixed, and let these layers normalise by them in training too.

    A layer is frozen if all of its own weights are frozen, or if it has no weights and a pattern of `model.freeze`
    matches the name of its statistics.
    """
    for name, module in model.named_modules():
        if not isinstance(module, _NormBase) or module.running_mean is None:
            continue
        weights = list(module.parameters(recurse=False))
        by_name = any(re.match(pattern, f"{name}.running_mean") for pattern in patterns)
        if not any(weight.requires_grad for weight in weights) and (weights or by_name):
            module.register_forward_pre_hook(_evaluate)


def _evaluate(module: nn.Module, inputs: Any) -> None:
    """Put a layer into evaluation mode; `model.train()` ends that mode before every step."""
    module.training = False


def share_statistics(model: nn.Module, on_accelerator: bool) -> None:
    """Let trained layers normalise over the rows of all processes, as one process with all these rows would."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if not isinstance(module, _BatchNorm) or isinstance(module, nn.SyncBatchNorm):
                continue
            if _evaluate in module._forward_pre_hooks.values():  # frozen
                continue
            if on_accelerator and type(module) in PLAIN:
                setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(module))
            else:  # torch (2.14) has no SyncBatchNorm for the CPU
                module.forward = functools.partial(_forward_with_all_rows, module)  # pyright: ignore


def _forward_with_all_rows(module: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Apply a layer to the rows (B, ...) of all processes, and return the output for the rows of this process."""
    forward = type(module).forward
    if not module.training:
        return forward(module, rows)
    from torch.distributed import all_gather_object, get_rank, get_world_size
    from torch.distributed.nn.functional import all_gather

    sizes: list[int] = [0] * get_world_size()
    all_gather_object(sizes, len(rows))
    largest, before = max(sizes), sum(sizes[: get_rank()])
    # all_gather needs equal shapes, and processes can have different numbers of rows.
    filled = torch.cat([rows, rows.new_zeros(largest - len(rows), *rows.shape[1:])])
    everything = [part[:size] for part, size in zip(all_gather(filled), sizes, strict=True)]
    return forward(module, torch.cat(everything))[before : before + len(rows)]
