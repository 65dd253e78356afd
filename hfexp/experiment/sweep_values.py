"""What a sweep and its jobs agree on: the values of a run that are optimised, and the pruner that may end it."""

import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hfexp.core.config import Pruner
from hfexp.core.errors import ConfigError, did_you_mean, one_of
from hfexp.tracking.membership import TrialKey, read_sweep_info

TRAIN_SECONDS = "train_seconds"


def values_of_point(
    point: str, metrics: Mapping[str, float], objective: float | None, train_seconds: float
) -> list[float]:
    """Return the values of a job that its sweep optimises; `values_of` has the arguments and errors."""
    names = read_sweep_info(TrialKey.parse(point).directory).metrics
    return values_of(names, {**metrics, TRAIN_SECONDS: train_seconds}, objective)


def values_of(names: Sequence[str], metrics: Mapping[str, float], objective: float | None) -> list[float]:
    """Return the values of a run that the sweep optimises.

    Args:
        names: `search.metrics`. With `best_`, `final_` or `test_`, a name means exactly that metric. Any other name is
            a metric of the best model on the validation split, or of the final one if none was chosen.
        metrics: metrics of the run (`hfexp.experiment.result.Result.metrics`), and `train_seconds`.
        objective: the value for a sweep that names no metric.

    Raises:
        ConfigError: the run has no such metric.
    """
    if names:
        return [float(metrics[_find(name, metrics)]) for name in names]
    if objective is None:
        raise ConfigError("this run has no metric that chooses the best model; set search.metrics")
    return [float(objective)]


def check_names(names: Sequence[str], evaluated: Iterable[str], has_test: bool, keeps_best: bool = True) -> None:
    """Check after the first evaluation that the run will have these metrics at its end.

    Args:
        evaluated: names of the metrics of the validation split, with `eval_`.
        has_test: the dataset has a test split.
        keeps_best: the run saves the best model; otherwise the last one, and reports no metrics of the best.

    Raises:
        ConfigError: it will lack one of them.
    """
    bases = [name.removeprefix("eval_") for name in evaluated if name.startswith("eval_")]
    prefixes = ["final_eval_", *(["best_eval_"] if keeps_best else []), *(["test_"] if has_test else [])]
    expected = {prefix + base for prefix in prefixes for base in bases} | {TRAIN_SECONDS}
    for name in names:
        _find(name, expected)


def validation_name(name: str) -> str | None:
    """Return the name of a metric in an evaluation during training; None if it is measured only at the end."""
    if name.startswith("test_") or name == TRAIN_SECONDS:
        return None
    return f"eval_{_base(name)}"


def _base(name: str) -> str:
    return name.removeprefix("best_").removeprefix("final_").removeprefix("eval_")


def _find(name: str, metrics: Iterable[str]) -> str:
    available = set(metrics)
    short = {n.removeprefix("best_eval_").removeprefix("final_eval_") for n in available}
    prefix = name.partition("_")[0]
    if prefix in ("best", "final"):  # no fallback: the run may lack this one
        candidates, allowed = [name, f"{prefix}_eval_{_base(name)}"], available
    elif validation_name(name) is None:
        candidates, allowed = [name], available
    else:
        candidates, allowed = [name, f"best_eval_{_base(name)}", f"final_eval_{_base(name)}"], short
    for candidate in candidates:
        if candidate in available:
            return candidate
    raise ConfigError(
        f"search.metrics: no metric {name!r}.{did_you_mean(name, allowed)} This run has: {one_of(allowed)}"
    )


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
