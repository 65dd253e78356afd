"""Logging setup: show hfexp's own warnings, and silence the progress bars and warnings of libraries."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from hfexp.core.console import note
from hfexp.core.errors import first_line
from hfexp.core.secrets import mask_secrets


def quiet_libraries() -> None:
    """Show hfexp's warnings, and only errors of the libraries; `HFEXP_VERBOSE=1` shows everything."""
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
    # Without an accelerator, torch warns about pinned memory; batches are on the CPU already.
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    # Pillow warns about odd image files with lines of its own code; hfexp names the files that can't be read.
    warnings.filterwarnings("ignore", module=r"PIL\b")


class _ScreenHandler(logging.Handler):
    """Shows hfexp's warnings as notes on the console."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


class _MaskingFormatter(logging.Formatter):
    """Masks secrets: the log file is recorded with the run, and libraries put whole addresses into their errors."""

    def format(self, record: logging.LogRecord) -> str:
        return mask_secrets(super().format(record))


class _LogFile(logging.FileHandler):
    """A log file that reports once that it can't be written; `logging` would print a traceback for each line."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Print a note about the exception that is being handled."""
        if not self._told:
            self._told = True
            note(f"{self.baseFilename} can't be written: {first_line(sys.exception() or OSError())}")

    def close(self) -> None:
        with contextlib.suppress(OSError):  # `handleError` has already reported that the file can't be written
            super().close()


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Write hfexp's log messages to a file within the block."""
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
