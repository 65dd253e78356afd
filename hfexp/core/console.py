"""Console output: messages, progress bars and tables, and texts made safe for a terminal or for Markdown."""

import contextlib
import html
import importlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hfexp.core.errors import first_line
from hfexp.core.secrets import mask_secrets

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


_UNPRINTABLE = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""Characters that act on a terminal or on the direction of text: control characters (C0 and C1, except newlines and
tabs), bidirectional controls (Unicode Annex 9), and code points that are not characters."""


class _Redirect(Protocol):
    def __call__(self, name: str, /, *args: Any) -> None: ...


_redirect: _Redirect | None = None
_redirect_is_terminal = False
_bar: Any = None
_has_status = False
ERASE_LINE = "\r\x1b[2K"
"""ECMA-48: go to the beginning of the line, and erase it."""


def redirect(function: _Redirect | None, terminal: bool = False) -> None:
    """Redirect output to a function, which gets the name of a function of this module and its arguments.

    Args:
        function: None ends the redirection.
        terminal: True if a person watches the output at the other end in a terminal.
    """
    global _redirect, _redirect_is_terminal
    _redirect, _redirect_is_terminal = function, terminal


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Drop output while the block runs."""
    redirect(lambda name, *args: None)
    try:
        yield
    finally:
        redirect(None)


def is_terminal() -> bool:
    """Tell whether output goes to a terminal, where lines can be updated."""
    return _redirect_is_terminal if _redirect is not None else sys.stdout.isatty()


def printable(text: object) -> str:
    """Escape characters of a text that would move the cursor, change colours or reverse the direction of letters."""
    return _UNPRINTABLE.sub(_escaped, str(text).replace("\r\n", "\n"))


def one_line(text: object) -> str:
    """Make a text safe to show within a line, with newlines and tabs escaped."""
    return re.sub(r"[\n\t]", _escaped, printable(text))


def _escaped(character: re.Match[str]) -> str:
    return character.group().encode("unicode_escape").decode()


def duration(seconds: float) -> str:
    """Format seconds for people, e.g. `9.5 s`, `1 min 48 s`, `25 min`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, of_hour = divmod(minutes, 60)
    if hours:
        return f"{hours} h {of_hour} min"
    return f"{minutes} min {rest} s" if minutes < 10 else f"{minutes} min"


def cell(text: object, style: str = "") -> "Text":
    """Build a table cell; Rich would parse a `str` as its own markup."""
    from rich.text import Text

    return Text(one_line(text), style)


def build_table(*headings: str, **settings: Any) -> "Table":
    """Build a table without lines; `settings` are those of Rich's own."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), **settings)
    for heading in headings:
        table.add_column(cell(heading))
    return table


def print_table(table: "Table", soft_wrap: bool = False) -> None:
    """Print a table as wide as the terminal."""
    status("")
    console(highlight=False).print(table, soft_wrap=soft_wrap)


def say(text: str = "") -> None:
    """Print one line to standard output at once, with secrets masked."""
    text = mask_secrets(text)
    if _redirect is not None:
        _redirect("say", text)
        return
    status("")
    with contextlib.suppress(OSError):  # a closed pipe or a full disk under a log file must not stop the run
        print(printable(text), flush=True)


def note(text: str) -> None:
    """Print a line worth noticing to standard error, with secrets masked; a failed write is ignored."""
    text = mask_secrets(text)
    if _redirect is not None:
        _redirect("note", text)
        return
    status("")
    with contextlib.suppress(OSError):
        print(f"hfexp: {printable(text)}", file=sys.stderr, flush=True)


def status(text: str) -> None:
    """Show what takes its time, on a line that the next output replaces; for terminals only.

    Args:
        text: what is being done, e.g. `reading the data`; empty: remove the line.
    """
    global _has_status
    if _redirect is not None:
        _redirect("status", text)
    elif (text or _has_status) and is_terminal() and _bar is None:
        shown = f"  {one_line(mask_secrets(text))} ..." if text else ""
        with contextlib.suppress(OSError):
            print(f"{ERASE_LINE if _has_status else ''}{shown}", end="", flush=True)
        _has_status = bool(text)


def load(*modules: str) -> None:
    """Import modules that take a second or two each, and show which one is being imported."""
    for module in modules:
        if module not in sys.modules:
            status(f"importing {module}")
            importlib.import_module(module)
    status("")


class _SafeStdout:
    """Standard output for Rich that ignores failed writes: the run goes on after its terminal or pipe has closed."""

    def __init__(self) -> None:
        self._stream = sys.stdout

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def console(**settings: Any) -> Any:
    """Open Rich's console on standard output, 200 columns wide where that is not a terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 200
    return Console(file=_SafeStdout(), width=width, **settings)  # pyright: ignore


def move_bar(completed: int, total: int, description: str, values: str) -> None:
    """Show the progress of training as a bar, for terminals only; the first call draws it."""
    global _bar
    if _redirect is not None:
        _redirect("move_bar", completed, total, description, values)
        return
    if _bar is None:
        status("")
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
        )
        values_column = TextColumn("{task.fields[values]}", markup=False)
        columns = (*columns, values_column, TimeRemainingColumn())
        _bar = Progress(*columns, refresh_per_second=4, console=console())
        _bar.start()
        _bar.add_task("training", total=total, completed=completed, values="")
    texts = {"description": one_line(description), "values": one_line(values)}
    _bar.update(_bar.task_ids[0], completed=completed, **texts)


def end_bar() -> None:
    """Remove the bar, if there is one, and release the terminal."""
    global _bar
    if _redirect is not None:
        _redirect("end_bar")
    elif _bar is not None:
        _bar.stop()
        _bar = None


@contextlib.contextmanager
def progress(total: int, description: str) -> Iterator[Callable[[int], None]]:
    """Yield the function that shows how much is done, as a bar in a terminal; release the terminal at the end."""

    def move(completed: int) -> None:
        if is_terminal():
            move_bar(min(completed, total), total, description, "")

    try:
        yield move
    finally:
        end_bar()


# Logging setup: show hfexp's own warnings, and silence the progress bars and warnings of libraries.


def quiet_libraries() -> None:
    """Show hfexp's warnings, and only errors of the libraries; `HFEXP_VERBOSE=1` shows everything."""
    own = logging.getLogger("hfexp")
    if not any(isinstance(handler, _ConsoleHandler) for handler in own.handlers):
        own.addHandler(_ConsoleHandler(logging.WARNING))
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
    for name in (
        "mlflow",
        "alembic",
        "filelock",
        "fsspec",
        "matplotlib",
        "httpx",
        "torch.utils.cpp_extension",
        "bitsandbytes",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Without an accelerator, torch warns about pinned memory; batches are on the CPU already.
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    # Pillow warns about odd image files with lines of its own code; hfexp names the files that can't be read.
    warnings.filterwarnings("ignore", module=r"PIL\b")


class _ConsoleHandler(logging.Handler):
    """Shows hfexp's warnings as notes on the console."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


class _MaskingFormatter(logging.Formatter):
    """Masks secrets: the log file is recorded with the run, and libraries put whole addresses into their errors."""

    def format(self, record: logging.LogRecord) -> str:
        return mask_secrets(super().format(record))


class _LogFile(logging.FileHandler):
    """A log file that reports once that it can't be written; `logging` would print a traceback for each line."""

    _reported = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Print a note about the exception that is being handled."""
        if not self._reported:
            self._reported = True
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


# Escape names and values for Markdown, so that they stay plain text on one line: no markup, no HTML.


_CODE = re.compile(r"[\w ./:,@=+%()\[\]{}'\"~^#?!;$*-]+")
"""Texts that may stand in backticks: they have no backtick, no table bar and no HTML character."""


def plain(text: object) -> str:
    """Escape a text so that neither Markdown nor HTML gives any of it a meaning."""
    line = " ".join(printable(text).split())
    line = re.sub(r"([\\`*\[\]|~$#])", r"\\\1", line)
    line = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)  # an underscore inside a word is not markup
    return html.escape(line, quote=False)


def code(text: object) -> str:
    """Format a text as inline code."""
    line = " ".join(printable(text).split())
    return f"`{line}`" if _CODE.fullmatch(line) else f"<code>{plain(line)}</code>"
