"""The `search` section: settings of a sweep (`-m`). None of them changes the result of a single run."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Method(Enum):
    """Method that chooses the points of a sweep."""

    grid = "grid"
    """All combinations of the given values."""
    random = "random"
    tpe = "tpe"
    gp = "gp"
    cmaes = "cmaes"
    nsga2 = "nsga2"


class Pruner(Enum):
    """Optuna's pruner, which recognises hopeless trials before their end."""

    none = "none"
    median = "median"
    asha = "asha"
    hyperband = "hyperband"
    wilcoxon = "wilcoxon"
    """Compares replicates instead of evaluations, and leaves out the remaining seeds of a hopeless point."""


class Optimise(Enum):
    """The number that the search optimises where a point has several replicates."""

    mean = "mean"
    bound = "bound"
    """The worse end of the mean's 95 % interval."""


@dataclass
class SearchConfig:
    """Settings of a sweep: its search space, sampler and pruner, and its numbers of points, runs and retries."""

    method: Method = Method.grid
    trials: int | None = None
    """Number of points over all starts of the sweep; samplers need it, a grid without it has all combinations."""
    name: str | None = None
    """Name under which the same command continues the sweep; null: the method and a hash of the definition."""
    seed: int = 0
    """Seed of the sampler and of `shuffle(...)`."""
    space: dict[str, Any] = field(default_factory=dict)
    """Values by key, in Hydra's override grammar (`interval(1, 3)`, `choice(a, b)`, `tag(log, ...)`), or a mapping
    `{values: ..., when: {key: value}}` for a key that only exists under some values of another; or the `_target_` of
    the user's own function."""
    metrics: list[str] = field(default_factory=list)
    """Names of the run's metrics to optimise; empty: the metric that chooses the best model."""
    directions: list[str] = field(default_factory=list)
    """`minimize` or `maximize` for each of `metrics`; may be empty for one metric whose direction is known."""
    sampler: dict[str, Any] = field(default_factory=dict)
    """Arguments of Optuna's sampler."""
    pruner: Pruner = Pruner.none
    pruner_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of Optuna's pruner."""
    replicates: int = 1
    """Runs of each point, with consecutive seeds from `seed` on; `optimise` makes one value of them."""
    optimise: Optimise = Optimise.mean
    retries: int = 1
    """How many times a failed point is tried again, once in each further start of the sweep."""
    max_failures: int | None = None
    """Start no further job once this many points have failed; null: no limit."""
    storage: str | None = None
    """SQLAlchemy URL of the study's database, which machines can share; null: a file in the sweep's directory."""
