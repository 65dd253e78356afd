"""Jobs of SLURM: submitit submits them, `squeue` says how they are, and here is what runs in their allocation.

The launcher imports this module when it needs it, because submitit is an optional package.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError, JobPaths, UncompletedJobError
from submitit.slurm.slurm import SlurmInfoWatcher

from hfexp.core import machine
from hfexp.core.errors import Interrupted, RunError, Terminated
from hfexp.core.process import stop_raises
from hfexp.launch.job import ProcessEnv, redirect_output
from hfexp.launch.pool import Slot
from hfexp.launch.squeue import ENDED, FAILED, GONE, squeue


def _stopped_file(job_id: str, paths: JobPaths) -> Path:
    """Return the file with the reason why a job has stopped without a result."""
    return paths.folder / f"{job_id}_stopped"


class Watcher(SlurmInfoWatcher):
    """Asks `squeue` how the jobs are, where submitit asks `sacct`."""

    def _make_command(self) -> list[str] | None:
        return squeue("%i %T") if self._registered - self._finished else None

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        text = string if isinstance(string, str) else string.decode()
        states = dict(line.split() for line in text.splitlines() if line)
        return {job: {"State": states.get(job, GONE)} for job in self._registered - self._finished}

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        return self.get_state(job_id, mode=mode) in ENDED


class Job(submitit.SlurmJob):
    """A job whose state comes from `squeue`: within seconds at first, and after a minute every half minute."""

    watcher = Watcher(delay_s=30)
    _results_timeout_s = 5


class Executor(submitit.SlurmExecutor):
    """Submits jobs with sbatch's options in submitit's words (`timeout_min`, `mem_gb`) or in SLURM's own."""

    job_class = Job

    def __init__(self, folder: Path, parameters: dict[str, Any], max_num_timeout: int) -> None:
        """Check the parameters.

        Raises:
            ValueError: there is no such parameter.
        """
        # -P: as the user's command does, Python must not find a user's `datasets.py` before the library.
        # A folder for each job (`%j`) would be made only after the job may have begun, without a place for its output.
        super().__init__(folder, max_num_timeout, python=f"{shlex.quote(sys.executable)} -P")
        if parameters.get("cpus_per_task"):  # srun does not take it from sbatch (since SLURM 22.05)
            own = parameters.get("srun_args") or []
            parameters = {**parameters, "srun_args": [*own, f"--cpus-per-task={parameters['cpus_per_task']}"]}
        self.update_parameters(**self._convert_parameters(parameters))


@dataclass
class Task:
    """What submitit pickles and calls in the allocation of a job.

    When SLURM announces the end of the job's time (SIGUSR2 or SIGUSR1, whichever submitit has asked for), the run
    writes a checkpoint, and submitit's own handler requeues the job, as long as `max_num_timeout` allows it; the
    requeued job calls the task again. A job that SIGTERM stops (`scancel`, preemption) leaves no result: its state in
    the queue says whether it will run again.
    """

    run: Callable[[], Any]
    """It raises `Terminated` if a signal stops it, and otherwise returns."""
    env: ProcessEnv
    log: str
    """File for the output; `%j` in it is the job's id."""

    def __call__(self) -> Any:
        job = submitit.JobEnvironment()
        number = signal.Signals[f"SIG{job.USR_SIG}"]
        requeue: Any = signal.getsignal(number)
        stopped = _stopped_file(job.job_id, job.paths)
        stopped.unlink(missing_ok=True)
        self._enter(job.job_id)
        try:
            with stop_raises():
                if number != signal.SIGUSR1:
                    signal.signal(number, lambda *_: signal.raise_signal(signal.SIGUSR1))
                return self.run()
        except Terminated as stop:
            reason = stop.reason
            if stop.number == signal.SIGUSR1:
                try:
                    requeue(number, None)  # it ends the process
                except (UncompletedJobError, subprocess.SubprocessError) as error:
                    reason = f"{reason}; {error}"
            stopped.write_text(reason)
            raise
        finally:
            for late in (number, signal.SIGTERM):  # from here on a signal would only cut the result short
                signal.signal(late, signal.SIG_IGN)
            machine.leave_all()

    def checkpoint(self) -> DelayedSubmission:
        """Return what submitit calls in the requeued job."""
        return DelayedSubmission(self)

    def _enter(self, job_id: str) -> None:
        """Take the place of the command; its environment comes with the job already, as sbatch passes it on."""
        redirect_output(Path(self.log.replace("%j", job_id)))
        self.env.enter_directory()
        cpus = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE") or machine.cpus()
        os.environ.update(Slot(machine.visible_devices(), int(cpus)).environment())


def result_of(job: submitit.Job[Any]) -> Any:
    """Return what the task of an ended job has returned.

    Raises:
        Interrupted: the job was stopped before its end; the same command continues it.
        RunError: it failed outside of the task.
    """
    try:
        return job.result()
    except FailedJobError as error:
        trace = re.search(r"-{10,}\n(.*)\n-{10,}\n", str(error), re.DOTALL)
        cause = trace[1].strip().splitlines()[-1] if trace else str(error)
        raise RunError(f"SLURM job {job.job_id}: {cause} ({job.paths.stderr})") from None
    except UncompletedJobError:
        stopped = _stopped_file(job.job_id, job.paths)
        if stopped.exists():
            raise Interrupted(f"{stopped.read_text()}; the same command continues it") from None
        if job.state in FAILED:
            raise RunError(f"SLURM job {job.job_id} ended as {job.state} ({job.paths.stderr})") from None
        raise Interrupted(f"SLURM job {job.job_id} ended as {job.state}; the same command continues it") from None
