"""Hydra launcher for SLURM: each job of a sweep is a job of the cluster, submitted by submitit as slots get free.

Hydra imports this module at every start of the command line, so nothing heavy is imported at the top.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hfexp.core.console import note, say
from hfexp.core.errors import ConfigError, RunError, did_you_mean, first_line, one_of
from hfexp.launch.local import Source, SweepJob

if TYPE_CHECKING:
    from submitit import Executor, Job

    from hfexp.launch.job import JobSpec
    from hfexp.launch.slurm_jobs import Task

KEY = "hydra.launcher"
FOLDER = ".submitit"
"""Folder for the files of submitit; only its owner can enter it, as pickled configs may hold secrets."""
COMMANDS = ("sbatch", "srun", "squeue", "scancel", "sinfo")
ANSWER_SECONDS = 60
"""Seconds that the cluster has to answer; SLURM's commands mostly give up by themselves after ten."""


@dataclass
class SlurmLauncherConf:
    """Schema of `hydra.launcher` with `hydra/launcher=slurm`: keys of submitit, in its own words.

    The other options of sbatch go into `additional_parameters`, under SLURM's names.
    """

    _target_: str = "hydra_plugins.hfexp.SlurmLauncher"
    array_parallelism: int = 16
    """Jobs of a sweep that wait or run at once; the next one is chosen when one of them has ended."""
    timeout_min: int = 60
    """Minutes after which SLURM ends a job."""
    signal_delay_s: int = 120
    """Seconds before that, at which the job writes a checkpoint and is requeued."""
    max_num_timeout: int = 3
    """Times that a job may be requeued when its time is over."""
    grace_seconds: float = 60.0
    """Seconds that the command waits for its jobs to end when it is stopped; SLURM kills them after its `KillWait`."""
    name: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    comment: str | None = None
    nodes: int = 1
    tasks_per_node: int = 1
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    mem_gb: float | None = None
    setup: list[str] | None = None
    """Lines of shell to run in the job before Python starts (`module load ...`)."""
    srun_args: list[str] | None = None
    additional_parameters: dict[str, Any] = field(default_factory=dict)


class SlurmLauncher(Launcher):
    """Runs each job in an allocation of its own; the jobs outlive a command that is killed."""

    jobs_survive = True

    def __init__(self, array_parallelism: int, max_num_timeout: int, grace_seconds: float, **parameters: Any) -> None:
        self.array_parallelism, self.max_num_timeout = array_parallelism, max_num_timeout
        self.grace_seconds = grace_seconds
        values: dict[str, Any] = {
            key: OmegaConf.to_object(v) if OmegaConf.is_config(v) else v for key, v in parameters.items()
        }
        self.name = values.pop("name")
        self.parameters = {key: value for key, value in values.items() if value is not None and value != {}}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store what Hydra passes in, and check the settings.

        Raises:
            ConfigError: a job can't be submitted like this; nothing has been created.
        """
        from hfexp.launch.pool import Slot

        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        self.check()
        self.slots = [Slot((), self.parameters.get("cpus_per_task") or 1)] * self.array_parallelism

    def check(self) -> None:
        """Raise ConfigError if a job can't be submitted with these settings, or from this machine."""
        if self.array_parallelism < 1 or self.max_num_timeout < 0:
            raise ConfigError(f"{KEY}: array_parallelism must be at least 1, and max_num_timeout at least 0")
        for key in ("nodes", "tasks_per_node"):
            if self.parameters.get(key, 1) != 1:
                raise ConfigError(
                    f"{KEY}.{key}={self.parameters[key]} must be 1: a run uses one node, on which launch=ddp starts "
                    "the processes itself"
                )
        if any("\n" in text for text in _texts(self.parameters)):
            raise ConfigError(f"{KEY}: no value may have several lines: it would end the line of the batch script")
        elsewhere = "clusters" in self.parameters.get("additional_parameters", {})
        require_cluster(None if elsewhere else self.parameters.get("partition"))
        self._executor(Path(FOLDER), "hfexp")

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs and return their results in order, failures included."""
        from hfexp.launch.job import differing_overrides

        jobs = zip(job_overrides, differing_overrides(job_overrides), strict=True)
        batch = [
            SweepJob(number, str(number), tuple(overrides), shown)
            for number, (overrides, shown) in enumerate(jobs, initial_job_idx)
        ]
        source = _Batch(batch)
        directory = Path(str(self.config.hydra.sweep.dir)) / "sweeps"
        self.serve(source, directory / f"{time.strftime('%Y-%m-%d-%H-%M-%S')}-{os.getpid()}" / "logs")
        return [source.results[job.name] for job in batch]

    def serve(self, source: Source, logs: Path) -> None:
        """Run jobs until the source has no more; ask for the next one as soon as one of them has ended.

        A job that an earlier command has submitted, and that still waits or runs, is not submitted again.

        Args:
            source: supplies the jobs, and gets each result as soon as the job ends.
            logs: directory for one log file per job.
        """
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        logs = logs.absolute()
        logs.mkdir(parents=True, exist_ok=True)
        _Service(self, source, logs).run()

    def submit(self, task: "Task", folder: Path, name: str) -> "Job[Any]":
        """Submit a job.

        Args:
            folder: made by `own_folder`.
            name: the job's name in the queue.

        Raises:
            RunError: SLURM does not accept it.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            return self._executor(folder, f"{self.name}-{name}" if self.name else name).submit(task)
        except (FailedJobError, FailedSubmissionError) as error:
            raise RunError(f"SLURM refuses the job: {first_line(error)} (see {KEY}.*)") from error

    def _executor(self, folder: Path, name: str) -> "Executor":
        try:
            from hfexp.launch.slurm_jobs import Executor
        except ImportError as error:
            raise ConfigError(f"hydra/launcher=slurm needs submitit: pip install 'hfexp[slurm]' ({error})") from error
        try:
            return Executor(folder, {**self.parameters, "name": name}, self.max_num_timeout)
        except ValueError as error:
            raise ConfigError(f"{KEY}: {error}") from error


def require_cluster(partition: str | None) -> None:
    """Check that there is a cluster which answers, as a sweep creates its record before its first job is submitted.

    Args:
        partition: names of partitions that it must have, with commas between them; None: any.

    Raises:
        ConfigError: it does not answer, or has no such partition.
    """
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        raise ConfigError(f"hydra/launcher=slurm: this machine has no commands of SLURM ({', '.join(missing)})")
    question = ["sinfo", "--all", "--noheader", "--format=%R"]
    refusal = "hydra/launcher=slurm: the cluster does not answer"
    try:
        done = subprocess.run(question, capture_output=True, text=True, check=False, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{refusal} within {ANSWER_SECONDS} s") from None
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise ConfigError(f"{refusal}: {reason[0]}")
    known = done.stdout.split()
    for name in partition.split(",") if partition else ():
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(
                f"{KEY}.partition={name}: the cluster has no such partition.{hint} It has: {one_of(known)}"
            )


def _texts(node: Any) -> Iterator[str]:
    """Yield all texts in a tree, keys too."""
    items = [*node, *node.values()] if isinstance(node, dict) else node if isinstance(node, list) else ()
    yield from (node,) if isinstance(node, str) else (text for item in items for text in _texts(item))


def own_folder(path: Path) -> Path:
    """Create the folder for the files of submitit, which only its owner can enter.

    Raises:
        RunError: it belongs to another user, whose pickles would be read here.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.stat().st_uid != os.getuid():
        raise RunError(f"{path} belongs to another user; use an output_dir of your own")
    path.chmod(0o700)
    return path


class _Batch:
    """A source of jobs that are known beforehand; it keeps their results."""

    def __init__(self, jobs: Sequence[SweepJob]) -> None:
        self.total = len(jobs)
        self.results: dict[str, JobReturn] = {}
        self._waiting = iter(jobs)

    def next(self) -> SweepJob | None:
        return next(self._waiting, None)

    def ended(self, name: str, result: JobReturn) -> None:
        self.results[name] = result


@dataclass
class _Open:
    """A job that waits or runs."""

    spec: "JobSpec"
    job: "Job[Any]"
    began: float = field(default_factory=time.monotonic)


class _Service:
    """The jobs that one command keeps open in the queue."""

    def __init__(self, launcher: SlurmLauncher, source: Source, logs: Path) -> None:
        import cloudpickle
        from hydra.core.singleton import Singleton

        from hfexp.launch.pool import LineDisplay

        self.launcher, self.source, self.logs = launcher, source, logs
        self.folder = own_folder(logs.parent / FOLDER)
        state = (launcher.hydra_context, launcher.config, launcher.task_function, Singleton.get_state())
        self.payload = cloudpickle.dumps(state)
        self.display = LineDisplay(source.total)
        self.open: list[_Open] = []

    def run(self) -> None:
        """Keep jobs open until the source has no more; if this command is stopped, cancel them."""
        from hfexp.core.process import stop_raises, uninterrupted

        with stop_raises():
            try:
                while True:
                    while len(self.open) < self.launcher.array_parallelism and (job := self.source.next()):
                        with uninterrupted():
                            self.open.append(self._start(job))
                    if not self.open:
                        break
                    time.sleep(1)
                    for item in [item for item in self.open if item.job.done()]:
                        self._end(item)
            except BaseException:
                self._cancel()
                raise

    def _start(self, job: SweepJob) -> _Open:
        """Submit a job, or find it among those of an earlier command."""
        from hfexp.launch.job import JobSpec, ProcessEnv, perform
        from hfexp.launch.slurm_jobs import Job, Task

        log, known, grace = self.logs / f"{job.name}.log", self._id_file(job.name), self.launcher.grace_seconds
        env = ProcessEnv.capture(variables=False)  # sbatch passes those on, and no file should have them
        spec = JobSpec(job.number, job.overrides, env, {}, self.payload, grace, job.shown, log, job.name)
        if known.exists():
            earlier = Job(self.folder, known.read_text())
            if earlier.paths.result_pickle.exists() or not earlier.done():
                say(f"job {job.name} was submitted before, as SLURM job {earlier.job_id}  {job.shown}".rstrip())
                return _Open(spec, earlier)
        task = Task(partial(perform, spec), env, str(log))
        submitted = self.launcher.submit(task, self.folder, f"{self.logs.parent.name}-{job.name}")
        known.write_text(submitted.job_id)
        say(f"job {job.name} submitted as SLURM job {submitted.job_id}  {job.shown}".rstrip())
        return _Open(spec, submitted)

    def _end(self, item: _Open) -> None:
        import cloudpickle

        from hfexp.launch.job import failure
        from hfexp.launch.slurm_jobs import result_of

        try:
            result = cloudpickle.loads(result_of(item.job))
            for file in self.folder.glob(f"{item.job.job_id}_*"):
                file.unlink()
            for link in self.folder.glob(".submission_file_*"):
                if not link.exists():  # it led to one of those files
                    link.unlink()
        except RunError as error:
            result = failure(item.spec.overrides, error)
        self.open.remove(item)
        self._id_file(item.spec.name).unlink(missing_ok=True)
        self.display.ended(item.spec, result, time.monotonic() - item.began)
        self.source.ended(item.spec.name, result)

    def _cancel(self) -> None:
        """Cancel all jobs, and wait for their checkpoints until they have ended, or a further signal arrives."""
        from hfexp.core.process import noted

        with noted() as signals:
            if self.open:
                count = f"{len(self.open)} job{'s' if len(self.open) > 1 else ''}"
                grace = self.launcher.grace_seconds
                note(f"cancelling {count} of SLURM (up to {grace:g} s; press Ctrl-C again to leave at once)")
            for item in self.open:
                item.job.cancel(check=False)
            deadline = time.monotonic() + self.launcher.grace_seconds
            while self.open and not signals and time.monotonic() < deadline:
                self.open = [item for item in self.open if not item.job.done()]
                time.sleep(0.5)

    def _id_file(self, name: str) -> Path:
        """Return the file with the id of a job's SLURM job, by which the next command finds it."""
        return self.folder / f"{name}.id"
