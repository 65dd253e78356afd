"""Jobs as Ray tasks: handed out as the cluster has room, started again if their node is lost, and asked to stop."""

import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cloudpickle
import ray  # pyright: ignore[reportMissingImports]
from ray import exceptions  # pyright: ignore[reportMissingImports]

from hfexp.core.console import note
from hfexp.core.errors import AlreadyRunning, Interrupted, RunError, first_line
from hfexp.core.process import noted
from hfexp.launch import forkserver
from hfexp.launch.job import JobSpec, error_of, failure
from hfexp.launch.pool import JobDisplay, Pool, Slot

INTERVAL = 0.5
"""Seconds between two looks for a request to stop."""
PATIENCE = 60.0
"""Seconds beyond its grace period that a job whose worker was lost may take to end."""
MOVES = ("working_dir", "py_modules", "pip", "uv", "conda", "py_executable")
"""Fields of `runtime_env` that decide where a job finds its modules; without them, it looks where the command does."""
LOST = (
    exceptions.NodeDiedError, exceptions.WorkerCrashedError, exceptions.LocalRayletDiedError,
    exceptions.ObjectLostError, exceptions.OutOfMemoryError,
)  # fmt: skip
"""Errors of a task whose node or worker is gone."""


@dataclass
class _Task:
    """A job that Ray runs or will run."""

    spec: JobSpec
    slot: Slot
    ref: Any = None
    losses: int = 0
    """Times that its node or worker was lost."""
    began: float = field(default_factory=time.monotonic)


class RayPool(Pool):
    """Runs each job as a Ray task; a slot stands for the room of one job, wherever it is."""

    _running: list[_Task]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        slots: Sequence[Slot],
        display: JobDisplay,
        grace: float,
        options: Mapping[str, Any],
        runtime_env: Mapping[str, Any],
        max_retries: int,
    ) -> None:
        """Create a pool; `options` are those of `ray.remote` for each job."""
        super().__init__(slots, display, grace)
        # Ray's own retries are off: a job that is started again has to wait until the lost one has ended.
        self._run = ray.remote(**options, max_retries=0)(run_job)
        self._env = dict(runtime_env.get("env_vars", {})), any(name in runtime_env for name in MOVES)
        self._max_retries = max_retries

    def _start(self, spec: JobSpec, slot: Slot) -> None:
        task = _Task(spec, slot)
        self._running.append(task)
        self._submit(task)
        self.display.started(spec)

    def _submit(self, task: _Task) -> None:
        patience = self.grace + PATIENCE if task.losses else 0.0
        run = self._run.options(name=f"job {task.spec.name}")
        task.ref = run.remote(task.spec, *self._env, forkserver.modules, patience)

    def _wait(self) -> None:
        """Wait for an ended task, up to `INTERVAL`, and handle it."""
        tasks = {task.ref: task for task in self._running}
        ready, _ = ray.wait(list(tasks), num_returns=1, timeout=INTERVAL)
        for ref in ready:
            self._end(tasks[ref])
        self.display.refresh()

    def _end(self, task: _Task) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        result = self._result(task)
        if result is None:
            self._submit(task)
            return
        self._running.remove(task)
        self._free.append(task.slot)
        self.display.ended(task.spec, result, time.monotonic() - task.began)
        self._ended(task.spec, result)

    def _result(self, task: _Task) -> Any:
        """Return the job's result; None if its node or worker was lost and it is to be started again."""
        try:
            return cloudpickle.loads(ray.get(task.ref))
        except LOST as error:
            task.losses += 1
            if task.losses <= self._max_retries:
                note(f"job {task.spec.name} has lost its node or worker: starting it again")
                return None
            times = f"{task.losses} times" if task.losses > 1 else "once"
            reason: Exception = RunError(f"the job has lost its node or worker {times}: {first_line(error)}")
        except exceptions.TaskCancelledError:
            reason = Interrupted("its Ray task was cancelled; the same command continues it")
        except Exception as error:
            cause = getattr(error, "cause", None) or error
            reason = RunError(f"Ray could not run the job: {type(cause).__name__}: {first_line(cause)}")
        return failure(task.spec.overrides, reason)

    def _stop(self) -> None:
        """Cancel all tasks, wait until their jobs have ended, and kill those that do not."""
        with noted() as signals:
            pending = [task.ref for task in self._running if task.ref is not None]
            if pending:
                count = f"{len(pending)} job{'s' if len(pending) > 1 else ''}"
                note(f"stopping {count} (up to {self.grace:g} s; press Ctrl-C again to kill at once)")
            for ref in pending:
                ray.cancel(ref)
            deadline = time.monotonic() + self.grace + PATIENCE
            while pending and not (set(signals) - {signal.SIGHUP} or time.monotonic() > deadline):
                _, pending = ray.wait(pending, num_returns=len(pending), timeout=INTERVAL)
            for ref in pending:
                ray.cancel(ref, force=True)
            self._running.clear()


class _Silent(JobDisplay):
    """Display that shows nothing, but lets a request to stop interrupt the wait for a job."""

    interval = INTERVAL  # pyright: ignore[reportAssignmentType]

    def ended(self, spec: JobSpec, result: Any, seconds: float) -> None:
        """Leave it to the command to report a failure."""


def run_job(
    spec: JobSpec, variables: Mapping[str, str], moves: bool, modules: tuple[str, ...], patience: float
) -> bytes:
    """Run a job in a process that this one, a Ray worker, forks from a warm server.

    Args:
        spec: the job as the command describes it.
        variables: environment variables for the job.
        moves: the job looks for modules and files where this worker does, not where the command does.
        modules: what the server imports.
        patience: seconds to wait for a process that has the job's run open, because its worker was lost.

    Returns:
        Hydra's `JobReturn`, pickled.
    """
    if spec.log is not None and not spec.log.parent.is_dir():
        text = f"{socket.gethostname()} has no {spec.log.parent}: all nodes need the file system that output_dir is on"
        return cloudpickle.dumps(failure(spec.overrides, RunError(text)))
    # Ray cancels a task by SIGINT, which its processes ignore where the cluster was started in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    forkserver.modules = modules
    devices = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    env = replace(spec.env, environment={**spec.env.environment, **variables})
    if moves:
        env = replace(env, directory=os.getcwd(), path=tuple(sys.path))
    spec = replace(spec, env=env, variables={**spec.variables, "CUDA_VISIBLE_DEVICES": ",".join(devices)})
    until = time.monotonic() + patience
    while True:
        (result,) = Pool([Slot((), 1)], _Silent(1), spec.grace).run([lambda slot: spec])
        if not isinstance(error_of(result), AlreadyRunning) or time.monotonic() > until:
            return cloudpickle.dumps(result)
        time.sleep(INTERVAL)
