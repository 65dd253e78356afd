"""The jobs of a planned command, and the state in which earlier starts left each of them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from hydra.errors import ConfigCompositionException, HydraException
from omegaconf.errors import OmegaConfBaseException

from hfexp.core import compose
from hfexp.core.config import Config, OnExisting, to_config
from hfexp.core.errors import ConfigError, first_line
from hfexp.core.identity import config_hash
from hfexp.core.provenance import Origin
from hfexp.core.secrets import mask_override
from hfexp.core.sqlite_address import sqlite_path
from hfexp.experiment.choices import check_choices
from hfexp.launch import world
from hfexp.sweep.request import Composer, Request
from hfexp.tracking.membership import Point, run_directory_of
from hfexp.tracking.run_directory import find_run


class Standing(Enum):
    """State of a planned job, with the word that the user sees."""

    new = "new"
    begun = "continues"
    finished = "finished"
    pruned = "pruned"
    failed = "failed"
    """All of its permitted attempts failed."""
    same = "same"
    """Another job has the same overrides; this one takes over its result."""
    invalid = "invalid"


@dataclass(frozen=True)
class PlannedJob:
    """One point of a sweep, or the one run of a command without `-m`."""

    name: str
    words: tuple[str, ...]
    """All Hydra overrides of the job."""
    shown: str
    """The overrides that tell the job from the others, without secrets."""
    standing: Standing
    remark: str = ""
    config: Config | None = None
    identity: str = ""
    runs: int = 1
    """Number of runs still to be made: at most one, or at most the number of replicates."""
    steps_done: int = 0
    """Steps already done in each of these runs, on average."""

    @property
    def is_to_run(self) -> bool:
        return self.standing in (Standing.new, Standing.begun)

    def invalid(self, problem: str) -> "PlannedJob":
        """Return a copy of this job marked as one that can't be run."""
        return replace(self, standing=Standing.invalid, remark=problem, runs=0)


def the_job(composer: Composer, request: Request, words: list[str]) -> PlannedJob:
    """Plan the single run of a command without `-m`.

    Raises:
        ConfigError: the command is a sweep or a search.
    """
    if request.space.dimensions or request.points is None:
        swept = ", ".join(request.space.texts) or f"search={request.search.method.value}"
        raise ConfigError(f"{swept}: several values, or a search, are for sweeps: hfexp plan -m ...")
    job = _composed(composer, PlannedJob("0", tuple(words), "", Standing.new))
    if job.config is None:
        return job
    found = find_run(job.config, _origin(composer, job.words))
    if found is None:
        return job
    path, state = found
    if job.config.on_existing is OnExisting.error:
        return job.invalid(f"on_existing=error: it exists already ({state.status}) in {path}")
    if state.status == "finished" and not state.closed and job.config.on_existing is OnExisting.resume:
        return replace(job, standing=Standing.finished, runs=0, remark=f"only the record of {path.name} is completed")
    again = replace(job, remark=f"runs again; {path.name} is {state.status}")
    if state.status == "finished" or job.config.on_existing is OnExisting.rerun:
        return again
    continued = _continued(job, path)
    return again if state.status == "failed" and not continued.steps_done else continued


def jobs_of_sweep(composer: Composer, request: Request, directory: Path | None) -> list[PlannedJob]:
    """Plan a sweep: all points of a grid; for a search, its closed trials and examples of further points.

    Args:
        directory: the sweep's directory; None if the sweep is new.
    """
    closed = dict(_closed(request, directory)) if directory else {}
    if request.points is None:
        tried = list(closed.values())
        left = request.total - len(tried)
        return [*tried, *(_examples(composer, request) if left else [])]
    jobs: list[PlannedJob] = []
    first: dict[frozenset[str], str] = {}
    by_identity: dict[str, str] = {}
    for number, point in enumerate(request.points[: request.total]):
        name = str(number)
        job = PlannedJob(name, request.space.job(point.words), show(point.words), Standing.new)
        earlier = first.setdefault(frozenset(point.words), name)
        if number in closed:
            jobs.append(closed[number])
            continue
        if earlier != name:
            jobs.append(replace(job, standing=Standing.same, remark=f"as job {earlier}", runs=0))
            continue
        job = _composed(composer, replace(job, runs=request.search.replicates))
        twin = by_identity.setdefault(job.identity or name, name)
        if twin != name:
            job = replace(job, remark=f"the same experiment as job {twin}, which nothing here changes")
        jobs.append(_as_far_as_it_is(job, request, directory, number) if directory else job)
    return jobs


def show(words: tuple[str, ...]) -> str:
    """Format overrides as the user types them, with secrets masked."""
    return " ".join(mask_override(compose.as_typed(word)) for word in words)


def _examples(composer: Composer, request: Request) -> list[PlannedJob]:
    found = enumerate(request.space.samples(composer.groups(request.space), limit=8))
    runs = request.search.replicates
    jobs = (PlannedJob(f"e.g. {n}", request.space.job(w), show(w), Standing.new, runs=runs) for n, w in found)
    return [_composed(composer, job) for job in jobs]


def _composed(composer: Composer, job: PlannedJob) -> PlannedJob:
    """Return the job with its config and identity, or marked as invalid with the reason."""
    try:
        composed = composer.compose(job.words)
        choices = compose.choices_of(composed)
        config = to_config(compose.without_hydra(composed))
        check_choices(config, choices)
        world.settle(config.launch, bool(config.trainer.args.get("use_cpu")))
        return replace(job, config=config, identity=config_hash(config))
    except ConfigError as error:
        return job.invalid(str(error))
    except (HydraException, OmegaConfBaseException, ConfigCompositionException) as error:
        return job.invalid(compose.explain(error))


def _origin(composer: Composer, words: tuple[str, ...]) -> Origin:
    return Origin(compose.choices_of(composer.compose(words)), list(words), "hfexp plan")


def _continued(job: PlannedJob, run_dir: Path) -> PlannedJob:
    """Return the job as one that continues the unfinished run in `run_dir`."""
    from hfexp.core.checkpoint import newest_whole

    checkpoint = newest_whole(run_dir / "checkpoints")
    if checkpoint is None:
        return replace(job, standing=Standing.begun, remark="from its start")
    step = int(checkpoint.name.rpartition("-")[2])
    return replace(job, standing=Standing.begun, remark=f"from step {step}", steps_done=job.steps_done + step)


def _as_far_as_it_is(job: PlannedJob, request: Request, directory: Path, number: int) -> PlannedJob:
    """Return the job of an open trial, reduced to the replicates that have not finished."""
    from hfexp.sweep.outcome import finished_before

    left = []
    for replicate in range(request.search.replicates):
        point = Point(directory, number, replicate)
        if finished_before(point, len(request.metrics)) is None:
            left.append(point)
    if not left and job.standing is not Standing.invalid:
        return replace(job, standing=Standing.finished, runs=0)
    for point in left:
        run_dir = run_directory_of(point)
        job = _continued(job, run_dir) if run_dir and job.is_to_run else job
    if not job.is_to_run:
        return job
    return replace(job, runs=len(left), steps_done=job.steps_done // len(left))


def _closed(request: Request, directory: Path) -> Iterator[tuple[int, PlannedJob]]:
    """Yield the closed trials of the sweep's study, with their numbers."""
    import optuna

    from hfexp.experiment.sweep_storage import close_storage, open_storage, storage_url
    from hfexp.sweep import study

    standings = {"COMPLETE": Standing.finished, "PRUNED": Standing.pruned, "FAIL": Standing.failed}
    url = storage_url(directory, request.search.storage)
    path = sqlite_path(url)
    if path is not None and not path.exists():
        return
    storage = open_storage(url)
    try:
        trials = optuna.load_study(study_name=directory.name, storage=storage).get_trials(deepcopy=False)
    except KeyError:  # the sweep was killed before it created its study
        return
    finally:
        close_storage(storage)
    for trial in trials:
        standing = standings.get(trial.state.name)
        if standing is not None:
            words = tuple(trial.user_attrs.get(study.WORDS, ()))
            error = first_line(Exception(trial.user_attrs.get(study.ERROR, ""))) if standing is Standing.failed else ""
            values = ", ".join(f"{value:.6g}" for value in trial.values or []) if standing is Standing.finished else ""
            yield trial.number, PlannedJob(str(trial.number), words, show(words), standing, values or error, runs=0)
