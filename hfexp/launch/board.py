"""The display of jobs that run side by side: a live table in a terminal, lines elsewhere."""

import os
import sys
import time
from typing import Any

from hfexp.core.console import cell, console, note, say
from hfexp.core.errors import first_line
from hfexp.launch.jobs import Order, error_of
from hfexp.launch.reports import Progress


class Board:
    """Display that reports only failures: jobs that run one at a time print their own output."""

    interval: float | None = None
    """Seconds between two refreshes; None: refresh only on events."""

    def __init__(self, total: int) -> None:
        self.total = total

    def started(self, order: Order) -> None:
        """Handle the start of a job."""

    def progressed(self, order: Order, progress: Progress) -> None:
        """Handle a progress report of a job."""

    def ended(self, order: Order, result: Any, seconds: float) -> None:
        """Handle the end of a job: show it if the job failed."""
        error = error_of(result)
        if error is not None:
            where = f" (log: {os.path.relpath(order.log)})" if order.log else ""
            note(f"job {order.name} failed after {seconds:.1f} s: {first_line(error)}{where}")

    def refresh(self) -> None:
        """Redraw what changes with time."""

    def close(self) -> None:
        """Close the display after the last job."""


class Lines(Board):
    """Display with a line for each start and each end of a job."""

    def started(self, order: Order) -> None:
        say(f"job {order.name} started" + (f": {order.words}" if order.words else ""))

    def ended(self, order: Order, result: Any, seconds: float) -> None:
        super().ended(order, result, seconds)
        if error_of(result) is None:
            value = show_objective(result.return_value)
            say(f"job {order.name} done in {seconds:.1f} s: {value}  {order.words}".rstrip())


class Live(Lines):
    """Display with a table of the running jobs at the bottom of the terminal, and lines for ended jobs above it."""

    interval: float = 0.5  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, total: int) -> None:
        from rich.live import Live as RichLive

        super().__init__(total)
        self._rows: dict[str, tuple[Order, float, Progress | None, Progress | None, float]] = {}
        """By name of a job: the job, its start, its first and its last report, and the time of the first report."""
        self._done = 0
        self._shown = 0.0
        self._live = RichLive(auto_refresh=False, transient=True, console=console())
        self._live.start()

    def started(self, order: Order) -> None:
        self._rows[order.name] = (order, time.monotonic(), None, None, 0.0)

    def progressed(self, order: Order, progress: Progress) -> None:
        _, began, first, _, since = self._rows[order.name]
        if first is None:
            first, since = progress, time.monotonic()
        self._rows[order.name] = (order, began, first, progress, since)

    def ended(self, order: Order, result: Any, seconds: float) -> None:
        del self._rows[order.name]
        self._done += 1
        super().ended(order, result, seconds)

    def refresh(self) -> None:
        if time.monotonic() - self._shown >= self.interval / 2:
            self._shown = time.monotonic()
            self._live.update(self._table(), refresh=True)

    def close(self) -> None:
        self._live.stop()

    def _table(self) -> Any:
        from rich.table import Table

        title = f"{self._done} of {self.total} jobs done"
        table = Table(box=None, padding=(0, 2, 0, 0), title=title, title_justify="left")
        for head in ("job", "overrides", "run", "step", "last metric", "to go"):
            widest = 24 if head == "run" else None
            table.add_column(head, no_wrap=head != "overrides", overflow="ellipsis", max_width=widest)
        now = time.monotonic()
        for name, (order, began, first, last, since) in self._rows.items():
            if first is None or last is None:
                table.add_row(name, cell(order.words), "", f"starting, {now - began:.0f} s", "", "")
                continue
            metric = "  ".join(f"{name} {value:.4f}" for name, value in list(last.metrics.items())[-1:])
            done, left = last.step - first.step, last.max_steps - last.step
            to_go = f"{left * (now - since) / done:.0f} s" if done else ""
            step = f"{last.step}/{last.max_steps}"
            table.add_row(name, cell(order.words), cell(last.name), step, cell(metric), to_go)
        return table


def board_for(total: int, side_by_side: bool) -> Board:
    """Return a live table for a terminal, or lines; for jobs that run one at a time, show only failures."""
    if not side_by_side:
        return Board(total)
    return Live(total) if sys.stdout.isatty() else Lines(total)


def show_objective(value: Any) -> str:
    """Format what a job returned in at most 40 characters."""
    return f"{value:.6g}" if isinstance(value, float) else "-" if value is None else str(value)[:40]
