"""Optuna's pruners, built in the same way by the sweep and by its jobs."""

import inspect
import warnings
from typing import Any

from hfexp.core.config import Pruner
from hfexp.core.errors import ConfigError, one_of

CLASSES = {
    Pruner.none: "NopPruner",
    Pruner.median: "MedianPruner",
    Pruner.asha: "SuccessiveHalvingPruner",
    Pruner.hyperband: "HyperbandPruner",
    Pruner.wilcoxon: "WilcoxonPruner",
}
BETWEEN_EVALUATIONS = (Pruner.median, Pruner.asha, Pruner.hyperband)
"""Pruners that compare the evaluations of runs; their steps are training steps."""


def make_pruner(name: str, args: dict[str, Any]) -> Any:
    """Build the pruner of `search.pruner` and `search.pruner_args`.

    Raises:
        ConfigError: the pruner does not accept these arguments.
    """
    import optuna

    pruner_class = getattr(optuna.pruners, CLASSES[Pruner(name)])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return pruner_class(**args)
    except (TypeError, ValueError) as error:
        allowed = one_of(inspect.signature(pruner_class).parameters) or "none"
        raise ConfigError(f"search.pruner_args for search.pruner={name}: {error}. Allowed: {allowed}") from error
