"""hfexp: config-driven experiments for Hugging Face models. The shell command is the experiment."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Result", "compose", "evaluate", "load_run", "predict", "train"]

if TYPE_CHECKING:
    from hfexp.api import compose, evaluate, load_run, predict, train
    from hfexp.experiment import Result


def __getattr__(name: str) -> Any:
    """Load the public names on first use: importing hfexp alone stays cheap."""
    if name in ("compose", "evaluate", "load_run", "predict", "train"):
        from hfexp import api

        return getattr(api, name)
    if name == "Result":
        from hfexp.experiment import Result

        return Result
    raise AttributeError(f"module 'hfexp' has no attribute {name!r}")
