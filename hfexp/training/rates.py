"""Learning rates that differ by parameter: smaller in lower layers, or multiplied where a name matches a pattern."""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from hfexp.core.errors import ConfigError
from hfexp.training.adapters import base_of
from hfexp.training.callbacks import TrainerMixin


def rate_factors(model: Any, patterns: Mapping[str, float], layer_decay: float | None) -> dict[str, float]:
    """Return the factor of each parameter's learning rate, by its name; of an adapted model, in the model inside it.

    Args:
        patterns: factors by regular expression (`trainer.lr_factors`). It holds for the names whose beginning it
            matches; the factors of several patterns are multiplied.
        layer_decay: rate of a layer as a share of that of the layer above (`trainer.layer_decay`); None: equal rates.

    Raises:
        ConfigError: a pattern matches nothing, or the model's layers can't be told.
    """
    names = [name for name, _ in base_of(model).named_parameters()]
    factors = dict.fromkeys(names, 1.0)
    if layer_decay is not None:
        numbers = layer_numbers(base_of(model))
        top = max(numbers.values())
        factors = {name: layer_decay ** (top - numbers[name]) for name in names}
    for pattern, factor in patterns.items():
        matched = matching(pattern, names, "trainer.lr_factors")
        factors |= {name: factors[name] * factor for name in matched}
    return factors


def matching(pattern: str, names: list[str], key: str) -> list[str]:
    """Return the names whose beginning a regular expression matches.

    Raises:
        ConfigError: there is none, or the expression is wrong; `key` is where it stands.
    """
    try:
        matched = [name for name in names if re.match(pattern, name)]
    except re.error as error:
        raise ConfigError(f"{key}: {pattern!r} is not a regular expression: {error}") from error
    if not matched:
        raise ConfigError(f"{key}: {pattern!r} matches no parameter; they are named like {names[0]}, {names[-1]}")
    return matched


def layer_numbers(model: nn.Module) -> dict[str, int]:
    """Return the number of each parameter's layer: 0 before the first one, and one more than the last one behind it.

    So do BEiT (`optim_factory.get_num_layer_for_vit` in microsoft/unilm) and ELECTRA (`optimization.py` in
    google-research/electra). The layers are the model's largest `ModuleList`, which in a model of stages holds the
    stages; timm's models tell their layers themselves.

    Raises:
        ConfigError: the model has no list of layers, or one in the encoder and one in the decoder.
    """
    timm_model: Any = getattr(model, "timm_model", None)
    if timm_model is not None:
        from timm.models import group_parameters

        grouped: Any = group_parameters(timm_model, timm_model.group_matcher(coarse=False), reverse=True)
        return {f"timm_model.{name}": number for name, number in grouped.items()}
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    if not lists or getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ConfigError(
            f"trainer.layer_decay: {type(model).__name__} has no single list of layers; set trainer.lr_factors instead"
        )
    name = max(lists, key=lambda name: sum(p.numel() for p in lists[name].parameters()))
    numbers, outside = {}, 0
    for parameter, _ in model.named_parameters():
        inside = parameter.startswith(f"{name}.")
        number = int(parameter[len(name) + 1 :].split(".")[0]) + 1 if inside else outside
        outside = len(lists[name]) + 1 if inside else outside
        numbers[parameter] = number
    return numbers


class LearningRates(TrainerMixin):
    """Mixin for a Transformers `Trainer` that multiplies the learning rates of some parameters."""

    lr_factors: Mapping[str, float] = {}
    layer_decay: float | None = None
    _divided: Any = None
    """Optimizer whose groups have been divided."""

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Divide the optimizer's groups by learning rate, and create the Trainer's schedule, which multiplies these.

        The groups keep their weight decay. The optimizer may come from a `create_optimizer` of the user's.
        """
        if self._divided is not self.optimizer and (self.lr_factors or self.layer_decay is not None):
            factors = rate_factors(self.model, self.lr_factors, self.layer_decay)
            of_parameter = {id(p): factors[name] for name, p in base_of(self.model).named_parameters()}
            divide_groups(self.optimizer, of_parameter)
            self._divided = self.optimizer
        return super().create_scheduler(*args, **kwargs)


def divide_groups(optimizer: Any, factors: Mapping[int, float]) -> None:
    """Divide an optimizer's groups so that each has one learning rate; those with the factor 1 come first.

    The Trainer logs the learning rate of the first group.

    Args:
        factors: by `id` of the parameter; others have 1.
    """
    divided: list[tuple[float, dict[str, Any]]] = []
    for group in optimizer.param_groups:
        by_factor: dict[float, list[Any]] = {}
        for parameter in group["params"]:
            by_factor.setdefault(factors.get(id(parameter), 1.0), []).append(parameter)
        divided += [(f, {**group, "params": params, "lr": group["lr"] * f}) for f, params in by_factor.items()]
    optimizer.param_groups[:] = [group for factor, group in sorted(divided, key=lambda pair: pair[0] != 1)]


def check_rates(lr_factors: Mapping[str, float], layer_decay: float | None) -> list[str]:
    """Check the values of `trainer.lr_factors` and `trainer.layer_decay`."""
    problems = [
        f"trainer.lr_factors.{pattern}={factor!r}: expected a number above 0; to train nothing there, set model.freeze"
        for pattern, factor in lr_factors.items()
        if not 0 < factor < math.inf
    ]
    if layer_decay is not None and not 0 < layer_decay <= 1:
        problems.append(f"trainer.layer_decay={layer_decay} must be above 0 and at most 1")
    return problems
