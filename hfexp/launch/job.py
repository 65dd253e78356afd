"""The process of a job: it enters the launcher's environment, runs the job, reports progress, returns the result."""

import contextlib
import io
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from hfexp.core.errors import EXIT_TERMINATED, Interrupted, RunError, Terminated
from hfexp.core.process import URGENT, how_it_ended
from hfexp.launch import forkserver

# The environment, directory and paths of a launcher, restored in processes forked from the server.


@dataclass(frozen=True)
class ProcessEnv:
    """A snapshot of a process's state; a forked process would otherwise have the fork server's, which is older."""

    environment: dict[str, str]
    directory: str
    path: tuple[str, ...]
    argv: tuple[str, ...]
    start_method: str | None
    """Start method of multiprocessing, which data loader workers use; None: the platform's default."""

    @classmethod
    def capture(cls, variables: bool = True) -> "ProcessEnv":
        """Return the state of this process; without its environment variables if something else passes these on."""
        method = multiprocessing.get_start_method(allow_none=True)
        return cls(dict(os.environ) if variables else {}, os.getcwd(), tuple(sys.path), tuple(sys.argv), method)

    def enter(self) -> None:
        os.environ.clear()
        os.environ.update(self.environment)
        self.enter_directory()
        # Python makes a process that comes from a fork server use fork servers for all its own children.
        multiprocessing.set_start_method(self.start_method, force=True)  # pyright: ignore

    def enter_directory(self) -> None:
        """Restore the current directory, the module path and the arguments, but not the environment."""
        os.chdir(self.directory)
        sys.path[:] = [path or self.directory for path in self.path]
        sys.argv[:] = self.argv


def call_warm(function: Callable[..., None], *args: Any) -> None:
    """Call a module-level function in a process that the fork server makes, and wait until that process has ended.

    Raises:
        RunError: the process failed, or the server has died.
    """
    process = forkserver.context().Process(target=_called, args=(ProcessEnv.capture(), function, args))
    try:
        with forkserver.hidden_main():
            process.start()
        process.join()
    except (EOFError, ConnectionError) as error:
        raise RunError(forkserver.SERVER_ENDED) from error
    finally:
        if process.is_alive():
            process.kill()
    if process.exitcode:
        raise RunError(f"its process {how_it_ended(process.exitcode)}")


def _called(env: ProcessEnv, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller gets Ctrl-C too, and ends this process
    env.enter()
    stop_when_orphaned(0)
    function(*args)


# Progress reports from a job to its launcher; they are dropped when nobody listens.


INTERVAL = 0.5
"""Minimum number of seconds between two reports."""


@dataclass(frozen=True)
class Progress:
    """One progress report of a run."""

    name: str
    """Name of the run."""
    step: int
    max_steps: int
    metrics: dict[str, float]


_listener: Callable[[Progress], None] | None = None
_next = 0.0


def listen(listener: Callable[[Progress], None] | None) -> None:
    """Send reports to this function from now on (None: drop them)."""
    global _listener, _next
    _listener, _next = listener, 0.0


def report(name: str | None, step: int, max_steps: int, metrics: Mapping[str, float]) -> None:
    """Report progress if someone listens, at most once per `INTERVAL`; the last step is always reported."""
    global _next
    if _listener is None or (time.monotonic() < _next and step < max_steps):
        return
    _next = time.monotonic() + INTERVAL
    _listener(Progress(name or "", step, max_steps, {key: float(value) for key, value in metrics.items()}))


def pass_on(progress: Progress) -> None:
    """Forward a report that came from another process."""
    if _listener is not None:
        _listener(progress)


# Stopping jobs whose launcher has died: a process from a fork server outlives even a SIGKILL of its launcher.


def stop_when_orphaned(grace: float = 30.0) -> None:
    """Stop this multiprocessing child when its parent process dies.

    This process then sends itself SIGTERM (training writes a checkpoint on it). After `grace` seconds it exits in any
    case, and kills all its children.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent.sentinel, grace), name="hfexp-watch", daemon=True).start()


def _watch(sentinel: int, grace: float) -> None:
    wait([sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    kill_children(os.getpid())
    os._exit(EXIT_TERMINATED)


def kill_children(pid: int) -> None:
    """Send SIGKILL to all descendants of a process."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()


HIDDEN_PREFIXES = ("hydra.", "point=")
"""Beginnings of overrides that are not shown to people."""


@dataclass(frozen=True)
class JobSpec:
    """A job as its process receives it."""

    number: int
    overrides: tuple[str, ...]
    env: ProcessEnv
    variables: dict[str, str]
    """Environment variables of the job's slot."""
    payload: bytes
    """Hydra's context and config, the function to run, and Hydra's singletons, pickled by cloudpickle."""
    grace: float
    """Seconds that the job has to end after it is asked to."""
    shown: str = ""
    """Overrides that distinguish the job from the others, for display."""
    log: Path | None = None
    """File for the job's output; None: the launcher's own output."""
    label: str | None = None
    """Name of the job if its number does not distinguish it from the others."""

    @property
    def name(self) -> str:
        """Return the name of the job for display."""
        return self.label or str(self.number)


def main(spec: JobSpec, connection: Connection) -> None:
    """Run a job, and send its progress and result through the connection."""
    with connection:
        _enter(spec)
        stop_when_orphaned(spec.grace)
        listen(lambda progress: _send_progress(connection, progress))
        code = 0
        try:
            content = perform(spec)
        except Terminated as error:
            content, code = _pickle(spec, failure(spec.overrides, _explain(error))), error.code
        for number in (*URGENT, signal.SIGHUP):  # from here on a signal would only cut the result short
            signal.signal(number, signal.SIG_IGN)
        with contextlib.suppress(OSError):  # the launcher is gone
            connection.send_bytes(content)
    sys.exit(code)


def perform(spec: JobSpec) -> bytes:
    """Run a job and return Hydra's `JobReturn`, pickled; it has the job's error, if there is one.

    Raises:
        Terminated: a signal stopped the job.
    """
    try:
        result = _run(spec)
    except Terminated:
        raise
    except BaseException as error:
        result = failure(spec.overrides, _explain(error))
    return _pickle(spec, result)


def failure(overrides: Sequence[str], error: Exception) -> Any:
    """Return Hydra's `JobReturn` for a job that failed."""
    from hydra.core.utils import JobReturn, JobStatus

    result = JobReturn(overrides=list(overrides), status=JobStatus.FAILED)
    result.return_value = error
    return result


def differing_overrides(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Return the overrides of each job that not all jobs share (all of a single job's), with secrets masked."""
    from hfexp.core.secrets import mask_override

    common = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    own = (
        [override for override in job if override not in common and not override.startswith(HIDDEN_PREFIXES)]
        for job in jobs
    )
    return [" ".join(map(mask_override, overrides)) for overrides in own]


def error_of(result: Any) -> Exception | None:
    """Return the error of a failed job from Hydra's `JobReturn`; silence the line that Hydra prints on reading it."""
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            result.return_value  # noqa: B018  (it raises)
        except Exception as error:
            return error
    return None


def _enter(spec: JobSpec) -> None:
    # A process group of its own: signals to the launcher's group (the terminal's Ctrl-C, `timeout`, a batch system)
    # would otherwise arrive twice, as the launcher passes them on, and the second one does not wait for a checkpoint.
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if spec.log is not None:
        redirect_output(spec.log)
    spec.env.enter()
    os.environ.update(spec.variables)
    # torch and numpy read their variables and drew their seeds when the server imported them.
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(int(spec.variables["OMP_NUM_THREADS"]))
    if "numpy" in sys.modules:
        import numpy as np

        np.random.seed()


def redirect_output(log: Path) -> None:
    """Append what this process prints from now on to a file."""
    with log.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # pyright: ignore


def _run(spec: JobSpec) -> Any:
    """Run the job as Hydra's basic launcher does, with Hydra's state from the launcher's process."""
    import cloudpickle
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.plugins import Plugins
    from hydra.core.singleton import Singleton
    from hydra.core.utils import run_job, setup_globals
    from omegaconf import open_dict

    _require_clean_server()
    context, config, task_function, state = cloudpickle.loads(spec.payload)
    setup_globals()
    state["instances"].setdefault(Plugins, Plugins.instance())  # the server has scanned for plugins already
    Singleton.set_state(state)
    sweep_config = context.config_loader.load_sweep_config(config, list(spec.overrides))
    with open_dict(sweep_config):
        sweep_config.hydra.job.id = spec.number
        sweep_config.hydra.job.num = spec.number
    HydraConfig.instance().set_config(sweep_config)
    return run_job(
        hydra_context=context,
        task_function=task_function,
        config=sweep_config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def _require_clean_server() -> None:
    warm = sys.modules.get("hfexp.launch.warm")
    if warm is not None and warm.problem:
        raise RunError(f"{warm.problem}; hydra/launcher=basic runs jobs without forking")


def _explain(error: BaseException) -> Exception:
    """Turn whatever ended a job into an `Exception`, so that it does not end the sweep."""
    if isinstance(error, Terminated):
        explained: Exception = Interrupted(f"{error.reason}; the same command continues it")
    elif isinstance(error, SystemExit):
        explained = RunError(f"the job called sys.exit({error.code!r})")
    elif isinstance(error, Exception):
        explained = error
    else:
        explained = RunError(f"the job was ended by {type(error).__name__}")
    return explained.with_traceback(error.__traceback__)


def _pickle(spec: JobSpec, result: Any) -> bytes:
    """Pickle the result for the launcher; an error gets its traceback as a note, and a form that can be unpickled."""
    import cloudpickle

    error = error_of(result)
    if error is not None:
        text = "".join(traceback.format_exception(error))
        if spec.log is not None:
            _write_masked(text)
        error.add_note(f"In job {spec.name}:\n{text}")
        result.return_value = _portable(error)
    try:
        return cloudpickle.dumps(result)
    except Exception as problem:
        lost = RunError(f"the job's return value can't be sent to the launcher: {problem}")
        return cloudpickle.dumps(failure(spec.overrides, lost))


def _portable(error: Exception) -> Exception:
    """Return the error itself, or a RunError with its text if pickling would change or break it."""
    import cloudpickle

    try:
        if type(cloudpickle.loads(cloudpickle.dumps(error))) is type(error):
            return error
    except Exception:  # noqa: S110  a user's class may raise anything: its text is sent instead
        pass
    replaced = RunError(f"{type(error).__name__}: {error}")
    for note in error.__notes__:
        replaced.add_note(note)
    return replaced


def _write_masked(text: str) -> None:
    from hfexp.core.console import printable
    from hfexp.core.secrets import mask_secrets

    print(printable(mask_secrets(text)), file=sys.stderr, flush=True)


def _send_progress(connection: Connection, progress: Progress) -> None:
    """Send progress only if it fits: a launcher that does not read (Ctrl-Z) must not hold the training up."""
    import cloudpickle

    with contextlib.suppress(OSError):
        if select.select([], [connection], [], 0)[1]:
            connection.send_bytes(cloudpickle.dumps(progress))
