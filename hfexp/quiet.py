"""Libraries speak through us: their progress bars and walls of warnings stay off the screen."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from hfexp.errors import first_line
from hfexp.screen import note
from hfexp.secrets import mask_secrets


def quiet_libraries() -> None:
    """Show our own warnings, and only errors of the libraries; `HFEXP_VERBOSE=1` lets everything through."""
    own = logging.getLogger("hfexp")
    if not any(isinstance(handler, _ScreenHandler) for handler in own.handlers):
        own.addHandler(_ScreenHandler(logging.WARNING))
    if os.environ.get("HFEXP_VERBOSE") == "1":
        return
    import datasets
    import huggingface_hub
    import transformers

    huggingface_hub.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in ("mlflow", "alembic", "filelock", "fsspec", "matplotlib", "httpx", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Accelerate moves batches that are on the CPU already; torch warns about pinning without an accelerator.
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    # Of odd image files Pillow tells with lines of its own code; those that can't be read are named by us.
    warnings.filterwarnings("ignore", module=r"PIL\b")


class _ScreenHandler(logging.Handler):
    """Shows our warnings as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


class _MaskingFormatter(logging.Formatter):
    """Without secrets: the log becomes part of the record, and libraries put whole addresses into their errors."""

    def format(self, record: logging.LogRecord) -> str:
        return mask_secrets(super().format(record))


class _LogFile(logging.FileHandler):
    """A log file that says once that it can't be written; `logging` prints a traceback for each line."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Tell of the error that is being handled."""
        if not self._told:
            self._told = True
            note(f"{self.baseFilename} can't be written: {first_line(sys.exception() or OSError())}")

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what was not written by now; it was told
            super().close()


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Write hfexp's log messages to a file meanwhile."""
    root = logging.getLogger("hfexp")
    handler = _LogFile(path)
    handler.setFormatter(_MaskingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
