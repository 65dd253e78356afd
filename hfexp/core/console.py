"""Console output: messages, progress bar, the choices at the start and the result table at the end."""

import contextlib
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hfexp import __version__
from hfexp.config import Config
from hfexp.origin import Origin
from hfexp.secrets import mask_secrets
from hfexp.sqlite_address import sqlite_address, sqlite_path

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from hfexp.experiment import Result
    from hfexp.model import ModelSummary

SHOWN_GROUPS = ("model", "dataset", "transform", "trainer", "metrics", "tracking", "experiment", "debug")
"""Config groups whose chosen option is shown at the start, in this order."""


_UNSHOWN = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""Characters that act on a terminal or on the direction of text: control characters (C0 and C1, except newlines and
tabs), bidirectional controls (Unicode Annex 9), and code points that are not characters."""


class _Elsewhere(Protocol):
    def __call__(self, name: str, /, *args: Any) -> None: ...


_elsewhere: _Elsewhere | None = None
_terminal_elsewhere = False
_bar: Any = None


def speak_through(speaker: _Elsewhere | None, terminal: bool = False) -> None:
    """Redirect output to a function, which gets the name of a function of this module and its arguments.

    This is for a process without a console of its own; `terminal` says if there is one at the other end.
    """
    global _elsewhere, _terminal_elsewhere
    _elsewhere, _terminal_elsewhere = speaker, terminal


def is_terminal() -> bool:
    """Tell whether output goes to a terminal, where lines can be updated."""
    return _terminal_elsewhere if _elsewhere is not None else sys.stdout.isatty()


def printable(text: object) -> str:
    """Escape characters of a text that would move the cursor, change colours or reverse the direction of letters."""
    return _UNSHOWN.sub(_escaped, str(text).replace("\r\n", "\n"))


def one_line(text: object) -> str:
    """Make a text safe to show within a line, with newlines and tabs escaped."""
    return re.sub(r"[\n\t]", _escaped, printable(text))


def _escaped(character: re.Match[str]) -> str:
    return character.group().encode("unicode_escape").decode()


def cell(text: object, style: str = "") -> "Text":
    """Build a table cell; Rich would parse a `str` as its own markup."""
    from rich.text import Text

    return Text(one_line(text), style)


def print_table(table: "Table", soft_wrap: bool = False) -> None:
    """Print a table as wide as the terminal."""
    console(highlight=False).print(table, soft_wrap=soft_wrap)


def say(text: str = "") -> None:
    """Print one line to standard output at once, with secrets masked."""
    text = mask_secrets(text)
    if _elsewhere is not None:
        _elsewhere("say", text)
        return
    with contextlib.suppress(OSError):  # a closed pipe or a full disk under a log file must not stop the run
        print(printable(text), flush=True)


def note(text: str) -> None:
    """Print a line worth noticing to standard error, with secrets masked; a failed write is ignored."""
    text = mask_secrets(text)
    if _elsewhere is not None:
        _elsewhere("note", text)
        return
    with contextlib.suppress(OSError):
        print(f"hfexp: {printable(text)}", file=sys.stderr, flush=True)


class _Reader:
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
    return Console(file=_Reader(), width=width, **settings)  # pyright: ignore


def move_bar(completed: int, total: int, description: str, values: str) -> None:
    """Show the progress of training as a bar, for terminals only; the first call draws it."""
    global _bar
    if _elsewhere is not None:
        _elsewhere("move_bar", completed, total, description, values)
        return
    if _bar is None:
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
    if _elsewhere is not None:
        _elsewhere("end_bar")
    elif _bar is not None:
        _bar.stop()
        _bar = None


def show_choices(config: Config, origin: Origin) -> None:
    """Print the chosen options and the changed values, before anything slow is imported."""
    chosen = [f"{group} {origin.choices[group]}" for group in SHOWN_GROUPS if origin.choices.get(group)]
    say(f"hfexp {__version__}  {origin.choices.get('task', 'experiment')}, seed {config.seed}")
    say("  " + ", ".join(chosen))
    changed = [word.lstrip("+") for word in origin.overrides if "." in word.partition("=")[0]]
    if changed:
        say("  changed: " + ", ".join(changed))


def show_model(summary: "ModelSummary") -> None:
    """Print the model that was built, and which of its weights start random."""
    say(f"  model: {summary}")
    if summary.new_tensors:
        shown = ", ".join(summary.new_tensors[:4]) + (", ..." if len(summary.new_tensors) > 4 else "")
        say(f"  new weights, not from the checkpoint: {shown}")
    if summary.head:
        say(f"  {summary.head}")


def show_result(result: "Result") -> None:
    """Print the final table: metrics, baseline, weakest classes, and where everything is."""
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in _rows(result):
        table.add_row(cell(name), cell(value), style="bold" if name.startswith("best") else None)
    say()
    print_table(table, soft_wrap=True)


def _rows(result: "Result") -> list[tuple[str, str]]:
    rows = []
    name = result.task_metric
    if f"best_eval_{name}" in result.metrics:
        at = f"at step {result.best_step}, chosen by eval_{result.metric_name} {result.best_metric:.4f}"
        rows.append((f"best eval_{name}", f"{result.metrics[f'best_eval_{name}']:.4f}  ({at})"))
    for prefix, label in (("final_eval", "validation"), ("test", "test")):
        value = result.metrics.get(f"{prefix}_{name}")
        if value is not None:
            rows.append((f"{label} {name}", f"{value:.4f}  (the saved model)"))
    if result.pruned_step is not None:
        rows.append(("pruned", f"at step {result.pruned_step}, by the sweep that it is a part of"))
    if result.report is not None:
        rows.append(("baseline", f"{result.report.majority_share:.4f}  (always the most frequent class)"))
        worst = ", ".join(f"{label} {recall:.2f} of {count}" for label, recall, count in result.report.worst())
        rows.append(("worst classes", f"{worst}  (recall)"))
    rows.append(("time", f"{result.train_seconds:.1f} s of training, {result.seconds:.1f} s in all"))
    rows.append(("run", os.path.relpath(result.run_dir)))
    if result.tracking_uri:
        rows.append(("look at it", mask_secrets(_how_to_look(result.tracking_uri))))
    return rows


def _how_to_look(uri: str) -> str:
    """Return the command or address that shows this tracking store."""
    path = sqlite_path(uri)
    if path is None:
        return uri
    path = os.path.relpath(path)
    address = shlex.quote(sqlite_address(Path(path)))
    return "hfexp ui" if path == os.path.join("outputs", "mlflow.db") else f"hfexp ui --uri {address}"
