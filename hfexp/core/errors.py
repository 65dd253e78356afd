"""Errors that a user can cause, and the exit codes of the command line."""

import contextlib
import difflib
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence

EXIT_FAILED = 1
EXIT_WRONG_INPUT = 2
EXIT_HANGUP = 129
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
STOP_EXIT_CODES = (EXIT_HANGUP, EXIT_TERMINATED)
"""Exit codes of a process that ended because a signal asked it to: SIGHUP, or SIGTERM or SIGUSR1."""

NOT_ON_WINDOWS = (
    "hfexp does not run on Windows itself, which has no fork, file locks and signals of POSIX; use WSL, Linux within "
    "Windows: https://learn.microsoft.com/windows/wsl/install"
)


class _ExplainedError(Exception):
    """Base of the errors whose message is enough, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows instead of a traceback; if this raises, it shows the traceback."""
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise NotImplementedError
        return [f"{type(self).__name__}: {self}"]


class ConfigError(_ExplainedError, ValueError):
    """Raised when a request can't be met as written; the message names the key or file and what is allowed."""


class AlreadyRunning(ConfigError):
    """Raised when another process runs the same experiment or sweep now."""


class RunError(_ExplainedError, RuntimeError):
    """Raised when a run fails for a reason that its message explains without a traceback."""


class OutOfMemory(RunError):
    """Raised when one of several processes has no memory for the rows that its model takes at once."""


class EvaluationOutOfMemory(OutOfMemory):
    """Raised when that happens in an evaluation."""


class Interrupted(RunError):
    """Raised when a job was asked to stop; the same command continues it."""


class SweepError(RunError):
    """Raised when some jobs of a sweep failed; the others were done."""

    def __init__(self, failures: Sequence[tuple[str, Exception]], total: int, more: str = "") -> None:
        """Take each failed job's name and error, the `total` number of jobs, and `more` text for the message."""
        super().__init__(f"{len(failures)} of {total} jobs failed{more}")
        self.failures = list(failures)


class DataError(RunError):
    """Raised when a sample or file turns out to be unusable while it is being read."""


LEAVE_OUT = "dataset.on_bad_sample=skip leaves out the rows that can't be read"


@contextlib.contextmanager
def in_row(number: Callable[[], int], advice: str = "") -> Iterator[None]:
    """Add the row's number to a DataError that the block raises.

    Args:
        number: returns the row's number, which counts from 0 in the source.
        advice: what the user can do about it.
    """
    try:
        yield
    except DataError as error:
        message = f"row {number()}: {error}"
        raise DataError(f"{message.rstrip('.')}. {advice}" if advice else message) from error


def exit_code(number: int) -> int:
    """Return the exit code of a process that a signal ended, as shells count: 128 plus the signal's number."""
    return 128 + number


class Terminated(SystemExit):
    """Raised when a signal asks the process to stop; a checkpoint was written if training had begun.

    The signals are SIGTERM, SIGHUP and SIGUSR1, by which queues announce that a job's time is nearly over.
    """

    def __init__(self, number: int = signal.SIGTERM, reason: str = "") -> None:
        """Take the signal's number, and the reason in words if another than the signal is known."""
        super().__init__(EXIT_HANGUP if number == signal.SIGHUP else EXIT_TERMINATED)
        hangup = " (hangup: its terminal was closed)" if number == signal.SIGHUP else ""
        self.number = number
        self.reason = reason or f"stopped by {signal.Signals(number).name}{hangup}"

    @classmethod
    def with_code(cls, code: int) -> "Terminated":
        """Return the error of a process that ended with one of `STOP_EXIT_CODES`."""
        return cls(signal.SIGHUP if code == EXIT_HANGUP else signal.SIGTERM)


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return a hint such as ` Did you mean 'model'?`, or an empty text when no allowed word is close."""
    close = difflib.get_close_matches(str(name), [str(a) for a in allowed], n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def one_of(allowed: Iterable[object], limit: int = 40) -> str:
    """Join allowed values into one sorted list for a message; a list longer than `limit` is cut and says so."""
    values = sorted(str(a) for a in allowed)
    more = f", ... ({len(values) - limit} more)" if len(values) > limit else ""
    return ", ".join(values[:limit]) + more


def unknown_key(key: str, allowed: Iterable[object]) -> str:
    """Return the message on a dotted key that does not exist, with what is allowed in its section."""
    names = [str(name) for name in allowed]
    hint = did_you_mean(key.rpartition(".")[2], names)
    return f"unknown key {key!r}.{hint} Allowed here: {one_of(names)}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, cut to 300 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def join_problems(problems: list[str]) -> str:
    """Join all problems into one message, numbered when there are several."""
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} problems:\n" + "\n".join(f"  {n}. {p}" for n, p in enumerate(problems, 1))
