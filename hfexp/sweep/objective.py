"""The metrics that a sweep optimises, their directions, and checks of the settings that depend on them."""

from collections.abc import Mapping, Sequence
from typing import Any

from hfexp.core import targets
from hfexp.core.directions import lower_is_better
from hfexp.core.errors import ConfigError, one_of
from hfexp.core.search_config import Method, Optimise, Pruner, SearchConfig

DIRECTIONS = ("minimize", "maximize")


CHOICE_OF_BEST = ("trainer.args.metric_for_best_model", "trainer.args.greater_is_better")
"""Keys that choose the best model of a run."""


def metrics_and_directions(search: SearchConfig, configs: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Return the names of the metrics to optimise, and `minimize` or `maximize` for each.

    Args:
        search: the `search` section.
        configs: whole configs of points that may differ in how they choose the best model, as plain containers.

    Raises:
        ConfigError: a direction is missing or invalid, or the points choose their best models by different metrics.
    """
    defaults = list(dict.fromkeys(map(_of_the_best_model, configs)))
    default = defaults[0]
    if len(defaults) > 1 and not search.metrics:
        named = ", ".join(f"{found[1] or 'optimise'} {found[0]}" for found in defaults if found)
        raise ConfigError(
            f"the points of this sweep choose their best models differently ({named}), so nothing says what is best "
            "of all: give search.metrics and search.directions"
        )
    metrics = search.metrics or [default[0] if default else "objective"]
    check_directions(search)
    if search.directions:
        return metrics, search.directions
    if len(metrics) > 1:
        raise ConfigError(f"search.directions: give one of {one_of(DIRECTIONS)} for each of search.metrics")
    name = metrics[0]
    chooses_best = default is not None and _plain(name) == _plain(default[0])
    if default and chooses_best and default[1]:
        return metrics, [default[1]]
    lower = lower_is_better(name)
    if lower is not None:
        return metrics, [DIRECTIONS[not lower]]
    of_both = "trainer.args.greater_is_better=true, or for the sweep alone " if chooses_best else ""
    raise ConfigError(
        f"search.directions: is {name} to be minimized or maximized? e.g. {of_both}search.directions=[maximize]"
    )


def check_directions(search: SearchConfig) -> None:
    """Refuse directions, pruners and samplers that do not go with the metrics."""
    wrong = [direction for direction in search.directions if direction not in DIRECTIONS]
    if wrong:
        raise ConfigError(f"search.directions={wrong[0]}: allowed are {one_of(DIRECTIONS)}")
    if search.directions and len(search.directions) != max(1, len(search.metrics)):
        raise ConfigError(
            f"search.directions has {len(search.directions)} entries, search.metrics {max(1, len(search.metrics))}"
        )
    several = len(search.metrics) > 1
    if several and search.pruner is not Pruner.none:
        raise ConfigError(f"search.pruner={search.pruner.value} compares one metric, but search.metrics has several")
    if several and search.method is Method.cmaes:
        raise ConfigError("search=cmaes optimises one metric; for several use search=nsga2, tpe, gp or random")


def check_counts(search: SearchConfig) -> None:
    """Refuse missing or too small counts, and settings that do not go with the number of replicates.

    Raises:
        ConfigError: the message names the key and what is allowed.
    """
    if search.method is not Method.grid and search.trials is None:
        raise ConfigError(
            f"search={search.method.value} needs search.trials: how many points to try, e.g. search.trials=50"
        )
    least = {"trials": 1, "replicates": 1, "retries": 0, "max_failures": 1}
    for name, lowest in least.items():
        value = getattr(search, name)
        if value is not None and value < lowest:
            raise ConfigError(f"search.{name}={value} must be at least {lowest}")
    if search.optimise is Optimise.bound and search.replicates == 1:
        raise ConfigError(
            "search.optimise=bound takes the worse end of an interval over several seeds: give search.replicates, at "
            "least 2"
        )
    if search.replicates > 1 and search.pruner not in (Pruner.none, Pruner.wilcoxon):
        raise ConfigError(
            f"search.pruner={search.pruner.value} compares evaluations of one run, and search.replicates="
            f"{search.replicates} makes several of each point; use search.pruner=wilcoxon, which leaves out the other "
            "replicates of a hopeless point"
        )
    if search.pruner is Pruner.wilcoxon and search.replicates == 1:
        raise ConfigError("search.pruner=wilcoxon compares replicates: give search.replicates, at least 3")


def _of_the_best_model(config: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """Return the metric that chooses the best model, with its direction if known; None for another application."""
    if not isinstance(config.get("trainer"), Mapping) or not isinstance(config.get("task"), Mapping):
        return None
    args = config["trainer"].get("args") or {}
    name, greater = args.get("metric_for_best_model"), args.get("greater_is_better")
    if name is None:
        allowed = (config.get("security") or {}).get("allowed_targets")
        task = targets.locate(str(config["task"].get("_target_")), "task._target_", allowed)
        name, greater = task.metric, task.greater_is_better
    elif greater is None:
        lower = lower_is_better(name)
        greater = None if lower is None else not lower
    return f"eval_{_plain(name)}", None if greater is None else DIRECTIONS[bool(greater)]


def _plain(name: str) -> str:
    for prefix in ("best_", "final_", "eval_"):
        name = name.removeprefix(prefix)
    return name
