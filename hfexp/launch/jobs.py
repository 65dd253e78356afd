"""What the process of a job does: take over the launcher's surroundings, run the job, send what came out."""

import contextlib
import io
import os
import select
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hfexp.errors import EXIT_FAILED, Interrupted, RunError, Terminated
from hfexp.launch import reports, watch
from hfexp.launch.place import Place
from hfexp.launch.reports import Progress

HIDDEN = ("hydra.", "point=")
"""Words that tell a person nothing."""


@dataclass(frozen=True)
class Order:
    """One job, as its process gets it."""

    number: int
    overrides: tuple[str, ...]
    place: Place
    variables: dict[str, str]
    """Environment variables of the slot."""
    payload: bytes
    """Pickled by cloudpickle: Hydra's context and configuration, the function to run, and Hydra's singletons."""
    grace: float
    """Seconds that a job has to end when it is asked to."""
    words: str = ""
    """What tells the job from the others, for a person."""
    log: Path | None = None
    """Where its output goes; None: where the launcher's goes."""
    label: str | None = None
    """What the job is called where its number does not tell it from the others."""

    @property
    def name(self) -> str:
        """What the job is called."""
        return self.label or str(self.number)


def main(order: Order, connection: Connection) -> None:
    """Run a job; progress and the result go through the connection."""
    with connection:
        _settle(order)
        watch.stop_when_orphaned(order.grace)
        reports.listen(lambda progress: _send_progress(connection, progress))
        code = 0
        try:
            result = _run(order)
        except BaseException as error:
            result = failure(order.overrides, _explain(error))
            code = error.code if isinstance(error, Terminated) else EXIT_FAILED
        content = _pickle(order, result)
        for number in (signal.SIGTERM, signal.SIGHUP):  # from here on they would only cut the result short
            signal.signal(number, signal.SIG_IGN)
        with contextlib.suppress(OSError):  # the launcher is gone
            connection.send_bytes(content)
    sys.exit(code)


def failure(overrides: Sequence[str], error: Exception) -> Any:
    """Hydra's `JobReturn` of a job that failed."""
    from hydra.core.utils import JobReturn, JobStatus

    result = JobReturn(overrides=list(overrides), status=JobStatus.FAILED)
    result.return_value = error
    return result


def differing_words(jobs: Sequence[Sequence[str]]) -> list[str]:
    """The overrides of each job that not all of them have; of a single job all. Without secrets."""
    from hfexp.secrets import mask_override

    common = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    own = ([word for word in job if word not in common and not word.startswith(HIDDEN)] for job in jobs)
    return [" ".join(map(mask_override, words)) for words in own]


def error_of(result: Any) -> Exception | None:
    """Why a job failed, from Hydra's `JobReturn`; reading that prints a line of Hydra's own."""
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            result.return_value  # noqa: B018  (it raises)
        except Exception as error:
            return error
    return None


def _settle(order: Order) -> None:
    # A group of its own: signals to the launcher's group (the terminal's Ctrl-C, `timeout`, a batch system) would
    # otherwise come twice, as the launcher passes them on, and the second one does not wait for a checkpoint.
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if order.log is not None:
        _write_to(order.log)
    order.place.enter()
    os.environ.update(order.variables)
    # These have read their variables and drawn their seeds when the server imported them.
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(int(order.variables["OMP_NUM_THREADS"]))
    if "numpy" in sys.modules:
        import numpy as np

        np.random.seed()


def _write_to(log: Path) -> None:
    with log.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # pyright: ignore


def _run(order: Order) -> Any:
    """As the basic launcher runs a job, with Hydra's state as it is in the launcher's process."""
    import cloudpickle
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.plugins import Plugins
    from hydra.core.singleton import Singleton
    from hydra.core.utils import run_job, setup_globals
    from omegaconf import open_dict

    _require_clean_server()
    context, config, task_function, state = cloudpickle.loads(order.payload)
    setup_globals()
    state["instances"].setdefault(Plugins, Plugins.instance())  # already scanned by the server
    Singleton.set_state(state)
    sweep_config = context.config_loader.load_sweep_config(config, list(order.overrides))
    with open_dict(sweep_config):
        sweep_config.hydra.job.id = order.number
        sweep_config.hydra.job.num = order.number
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
    """What ended a job otherwise than by an error: that is no end of the sweep."""
    if isinstance(error, Terminated):
        explained: Exception = Interrupted(f"{error.reason}; the same command continues it")
    elif isinstance(error, SystemExit):
        explained = RunError(f"the job ended itself by sys.exit({error.code!r})")
    elif isinstance(error, Exception):
        explained = error
    else:
        explained = RunError(f"the job was ended by {type(error).__name__}")
    return explained.with_traceback(error.__traceback__)


def _pickle(order: Order, result: Any) -> bytes:
    """The result for the launcher: an error with its traceback as a note, and everything in a form that arrives."""
    import cloudpickle

    error = error_of(result)
    if error is not None:
        text = "".join(traceback.format_exception(error))
        if order.log is not None:
            _write_masked(text)
        error.add_note(f"In job {order.name}:\n{text}")
        result.return_value = _portable(error)
    try:
        return cloudpickle.dumps(result)
    except Exception as problem:
        lost = RunError(f"what the job returned can't be sent to the launcher: {problem}")
        return cloudpickle.dumps(failure(order.overrides, lost))


def _portable(error: Exception) -> Exception:
    """The error itself, or its text if it would not come out of a pickle as it went in."""
    import cloudpickle

    try:
        if type(cloudpickle.loads(cloudpickle.dumps(error))) is type(error):
            return error
    except Exception:  # noqa: S110  whatever a class of the user raises: its text is sent instead
        pass
    replaced = RunError(f"{type(error).__name__}: {error}")
    for note in error.__notes__:
        replaced.add_note(note)
    return replaced


def _write_masked(text: str) -> None:
    from hfexp.screen import printable
    from hfexp.secrets import mask_secrets

    print(printable(mask_secrets(text)), file=sys.stderr, flush=True)


def _send_progress(connection: Connection, progress: Progress) -> None:
    """Only if it fits: a launcher that does not read (Ctrl-Z) must not hold the training up."""
    import cloudpickle

    with contextlib.suppress(OSError):
        if select.select([], [connection], [], 0)[1]:
            connection.send_bytes(cloudpickle.dumps(progress))
