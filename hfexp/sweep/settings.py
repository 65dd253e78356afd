"""The `search` section: what a sweep (`-m`) is asked for. Nothing in it changes the result of a single run."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Method(Enum):
    """How the points of a sweep are chosen."""

    grid = "grid"
    """All combinations of the values given."""
    random = "random"
    tpe = "tpe"
    gp = "gp"
    cmaes = "cmaes"
    nsga2 = "nsga2"


class Pruner(Enum):
    """How hopeless trials are recognised before their end (Optuna's pruners)."""

    none = "none"
    median = "median"
    asha = "asha"
    hyperband = "hyperband"
    wilcoxon = "wilcoxon"
    """Compares replicates instead of evaluations: the remaining seeds of a hopeless point are left out."""


class Optimise(Enum):
    """Which number of several replicates the search looks at."""

    mean = "mean"
    bound = "bound"
    """The worse end of the 95 % interval of the mean."""


@dataclass
class SearchConfig:
    """A sweep: its points, how many, and what becomes of those that fail."""

    method: Method = Method.grid
    trials: int | None = None
    """How many points in all, over all starts of the sweep; a grid has as many as there are combinations."""
    name: str | None = None
    """Of the sweep: what is continued when the command is given again; null: from the sweep's own definition."""
    seed: int = 0
    """Of the sampler."""
    space: dict[str, Any] = field(default_factory=dict)
    """Key to values, in the words of Hydra's command line (`interval(1, 3)`, `choice(a, b)`, `tag(log, ...)`), or a
    mapping `{values: ..., when: {key: value}}` for a key that exists only under a choice of another; or a `_target_`
    of the user's own."""
    metrics: list[str] = field(default_factory=list)
    """What is optimised, by the name of a metric of the run; empty: the metric that chooses the best model."""
    directions: list[str] = field(default_factory=list)
    """`minimize` or `maximize` for each of `metrics`."""
    sampler: dict[str, Any] = field(default_factory=dict)
    """Arguments of Optuna's sampler."""
    pruner: Pruner = Pruner.none
    pruner_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of Optuna's pruner."""
    replicates: int = 1
    """Runs of each point, with seeds that follow on `seed`; the point's value is their mean."""
    optimise: Optimise = Optimise.mean
    retries: int = 1
    """How often a failed job is tried again, when the sweep is started again."""
    max_failures: int | None = None
    """End the sweep when so many trials have failed; null: never."""
    storage: str | None = None
    """Database of the study (an SQLAlchemy URL); null: a file in the sweep's directory."""
