"""Libraries speak through us: their progress bars and walls of warnings stay off the screen."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path


def quiet_libraries() -> None:
    """Only errors of the libraries reach the screen; `HFEXP_VERBOSE=1` lets everything through."""
    if os.environ.get("HFEXP_VERBOSE") == "1":
        return
    import datasets
    import transformers

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in ("mlflow", "alembic", "filelock", "fsspec", "matplotlib", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Accelerate moves batches that are on the CPU already; torch warns about pinning without an accelerator.
    warnings.filterwarnings("ignore", message=".*pin_memory.*")


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Write hfexp's log messages to a file, and its warnings to the screen."""
    root = logging.getLogger("hfexp")
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
