"""Optuna's pruners and storage, made alike by the sweep and by its jobs."""

import inspect
import warnings
from typing import Any

from hfexp.errors import ConfigError, one_of
from hfexp.origin import mask_secrets
from hfexp.sweep.settings import Pruner

CLASSES = {
    Pruner.none: "NopPruner",
    Pruner.median: "MedianPruner",
    Pruner.asha: "SuccessiveHalvingPruner",
    Pruner.hyperband: "HyperbandPruner",
    Pruner.wilcoxon: "WilcoxonPruner",
}
BETWEEN_EVALUATIONS = (Pruner.median, Pruner.asha, Pruner.hyperband)
"""Those that look at the evaluations of a run; their steps are training steps."""
WAIT_SECONDS = 60
"""For another process that writes to a SQLite file."""
CONNECT_SECONDS = 10
"""For a database server to answer."""


def make_pruner(name: str, args: dict[str, Any]) -> Any:
    """The pruner of `search.pruner` and `search.pruner_args`.

    Raises:
        ConfigError: it takes no such arguments.
    """
    import optuna

    kind = getattr(optuna.pruners, CLASSES[Pruner(name)])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return kind(**args)
    except (TypeError, ValueError) as error:
        allowed = one_of(inspect.signature(kind).parameters) or "nothing"
        raise ConfigError(f"search.pruner_args for search.pruner={name}: {error}. It takes: {allowed}") from error


def open_storage(url: str) -> Any:
    """Optuna's storage at an SQLAlchemy URL; close it with `close_storage`.

    Raises:
        ConfigError: the Python module is missing through which SQLAlchemy speaks to this database.
        Exception: the database can't be reached.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = {"sqlite": {"timeout": WAIT_SECONDS}, "postgresql": {"connect_timeout": CONNECT_SECONDS}}
    connect_args = kinds.get(url.partition(":")[0].partition("+")[0], {})
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": connect_args, "pool_pre_ping": True})
    except ImportError as error:
        raise ConfigError(f"search.storage={mask_secrets(url)}: {error}") from error


def close_storage(storage: Any) -> None:
    """Let go of all connections."""
    storage.remove_session()
    storage.engine.dispose()
