"""Errors that a user can cause, and the exit codes of the command line."""

import contextlib
import difflib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

EXIT_FAILED = 1
EXIT_WRONG_INPUT = 2
EXIT_HANGUP = 129
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
EXITS_ASKED_FOR = (EXIT_HANGUP, EXIT_TERMINATED)
"""Of a process that ended itself because SIGHUP or SIGTERM asked it to."""


class _Told(Exception):
    """An error whose message says it all."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback; an error in here lets it show that one after all."""
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise NotImplementedError
        return [f"{type(self).__name__}: {self}"]


class ConfigError(_Told, ValueError):
    """What the user asked for cannot be done as written: the message names the key or file and what is allowed."""


class RunError(_Told, RuntimeError):
    """What went wrong while running, in words that need no traceback."""


class Interrupted(RunError):
    """A job was asked to stop; the same command continues it."""


class SweepError(RunError):
    """Some jobs of a sweep failed; the others were done."""

    def __init__(self, failures: Sequence[tuple[str, Exception]], total: int, more: str = "") -> None:
        """`failures`: name of each job that failed, and why; `total`: of jobs; `more`: what is to be said as well."""
        super().__init__(f"{len(failures)} of {total} jobs failed{more}")
        self.failures = list(failures)


class DataError(RunError):
    """A sample or file turned out to be unusable while it was being read."""


LEAVE_OUT = "dataset.on_bad_sample=skip leaves out the rows that can't be read"


@contextlib.contextmanager
def in_row(number: Callable[[], int], advice: str = "") -> Iterator[None]:
    """Name the row that could not be used.

    Args:
        number: gives it, from 0, as the source counts its rows.
        advice: what the user may do.
    """
    try:
        yield
    except DataError as error:
        message = f"row {number()}: {error}"
        raise DataError(f"{message.rstrip('.')}. {advice}" if advice else message) from error


def exit_code(number: int) -> int:
    """Give the exit code for an end by a signal, as shells count: 128 and its number."""
    return 128 + number


class Terminated(SystemExit):
    """The process was asked to stop (SIGTERM, SIGHUP); a checkpoint has been written if training had begun."""

    def __init__(self, code: int = EXIT_TERMINATED) -> None:
        super().__init__(code)

    @property
    def reason(self) -> str:
        """Say what asked it to."""
        return (
            "stopped by SIGHUP (hangup: its terminal was closed)" if self.code == EXIT_HANGUP else "stopped by SIGTERM"
        )


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """A hint such as ` Did you mean 'model'?`, or nothing when no allowed word is close."""
    close = difflib.get_close_matches(str(word), [str(a) for a in allowed], n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def one_of(allowed: Iterable[object], limit: int = 40) -> str:
    """Allowed values as one readable list; long lists are cut and say so."""
    words = sorted(str(a) for a in allowed)
    more = f", ... ({len(words) - limit} more)" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more


def first_line(error: BaseException) -> str:
    """What an error says, in one short line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def join_problems(problems: list[str]) -> str:
    """One message for all problems found, numbered when there are several."""
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} problems:\n" + "\n".join(f"  {n}. {p}" for n, p in enumerate(problems, 1))
