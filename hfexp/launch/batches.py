"""Jobs of a sweep that come one by one, for launchers that take jobs only in batches."""

from collections.abc import Iterator
from typing import Any

from hfexp.core import machine
from hfexp.core.console import note
from hfexp.core.errors import first_line
from hfexp.launch.jobs import failure
from hfexp.launch.local import Job, Source


def run_in_batches(launcher: Any, config: Any, source: Source, size: int | None, together: bool) -> None:
    """Run jobs until the source has no more; ask for a batch when the one before has ended.

    Args:
        launcher: a launcher of Hydra.
        config: the config, with the section `hydra`.
        source: where the jobs come from.
        size: jobs per batch; None: what suits the launcher.
        together: no job needs the results of others, so one batch may hold all jobs.
    """
    size = size or _size(config, together)
    for batch in _batches(source, size):
        words = [list(job.overrides) for job in batch]
        try:
            results = list(launcher.launch(words, initial_job_idx=batch[0].number))
        except Exception as error:  # some launchers raise one job's error and report on no other job
            if len(batch) > 1:
                note(f"the launcher ended {len(batch)} jobs at once: {first_line(error)}")
            results = [failure(job, error) for job in words]
        for job, result in zip(batch, results, strict=True):
            source.ended(job.name, result)


def _batches(source: Source, size: int | None) -> Iterator[list[Job]]:
    """Yield batches of jobs with consecutive numbers: a launcher is told only the number of the first job."""
    batch: list[Job] = []
    while True:
        while (job := source.next() if size is None or len(batch) < size else None) is not None:
            if batch and job.number != batch[-1].number + 1:
                yield batch
                batch = []
            batch.append(job)
        if not batch:
            return
        yield batch
        batch = []


def _size(config: Any, together: bool) -> int | None:
    """Return the jobs per batch: one for the basic launcher, as many as workers for joblib; None for no limit."""
    section = config.hydra.launcher
    if str(section.get("_target_", "")).endswith("BasicLauncher"):
        return 1
    n_jobs = section.get("n_jobs")
    if n_jobs is not None:
        return int(n_jobs) if int(n_jobs) > 0 else machine.cpus()
    return None if together else 1
