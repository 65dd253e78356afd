"""hfexp: config-driven experiments for Hugging Face models. The shell command is the experiment."""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from hfexp.core import __version__

if TYPE_CHECKING:
    from hfexp.commands.api import compose, evaluate, load_run, predict, train
    from hfexp.core.errors import ConfigError, RunError
    from hfexp.experiment.result import Result
    from hfexp.tasks.base import Task
    from hfexp.training.trainer import Trainer

__all__ = [
    "ConfigError",
    "Result",
    "RunError",
    "Task",
    "Trainer",
    "__version__",
    "compose",
    "evaluate",
    "load_run",
    "predict",
    "train",
]

_MODULES = {
    "ConfigError": "hfexp.core.errors",
    "Result": "hfexp.experiment.result",
    "RunError": "hfexp.core.errors",
    "Task": "hfexp.tasks.base",
    "Trainer": "hfexp.training.trainer",
    **dict.fromkeys(("compose", "evaluate", "load_run", "predict", "train"), "hfexp.commands.api"),
}


def __getattr__(name: str) -> Any:
    """Load the public names on first use: importing hfexp alone stays cheap."""
    if name not in _MODULES:
        raise AttributeError(f"module 'hfexp' has no attribute {name!r}")
    if sys.platform == "win32":
        from hfexp.core.errors import NOT_ON_WINDOWS

        raise ImportError(NOT_ON_WINDOWS)
    return getattr(importlib.import_module(_MODULES[name]), name)
