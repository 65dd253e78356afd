"""hfexp: config-driven experiments for Hugging Face models. The shell command is the experiment."""

from typing import TYPE_CHECKING, Any

from hfexp.core import __version__

__all__ = ["Result", "__version__", "compose", "evaluate", "load_run", "predict", "train"]

if TYPE_CHECKING:
    from hfexp.commands.api import compose, evaluate, load_run, predict, train
    from hfexp.experiment.result import Result


def __getattr__(name: str) -> Any:
    """Load the public names on first use: importing hfexp alone stays cheap."""
    if name in ("compose", "evaluate", "load_run", "predict", "train"):
        from hfexp.commands import api

        return getattr(api, name)
    if name == "Result":
        from hfexp.experiment.result import Result

        return Result
    raise AttributeError(f"module 'hfexp' has no attribute {name!r}")
