"""The jobs of a planned command, the measurement of a shortened one, and the estimate for all of them."""

import contextlib
import heapq
import io
import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.errors import ConfigCompositionException, HydraException
from omegaconf.errors import OmegaConfBaseException

from hfexp.core import compose
from hfexp.core.config import Config, OnExisting, to_config, to_dict
from hfexp.core.errors import ConfigError, RunError, first_line
from hfexp.core.identity import config_hash
from hfexp.core.provenance import Origin
from hfexp.core.secrets import mask_override
from hfexp.core.sqlite import sqlite_address, sqlite_path
from hfexp.experiment.choices import check_choices
from hfexp.launch import world
from hfexp.sweep.request import Composer, Request
from hfexp.tracking.membership import TrialKey, run_directory_of
from hfexp.tracking.run_directory import find_run

# The result of measuring a shortened job.


@dataclass(frozen=True)
class Measurement:
    """Times in seconds and sizes in bytes, extrapolated to whole splits."""

    step: float
    """Median time of an optimizer step."""
    steps_per_epoch: float
    evaluation: float
    """Time of one evaluation during training."""
    checkpoint: float
    """Time to write a checkpoint."""
    start: float
    """Time from the start of the run to the start of training, with imports done and data prepared."""
    end: float
    """Time after training: final evaluations, saving the model, tracking."""
    checkpoint_bytes: int
    other_bytes: int
    """Size of everything else that the run writes, the final model included."""
    memory_bytes: int
    """Peak memory of all processes of the job."""
    device_bytes: int = 0
    """Peak memory on one accelerator."""

    def __str__(self) -> str:
        return f"{self.step:.3g} s per step"


BATCHES = 32
"""Batches that are evaluated of each split; the time of the whole split is extrapolated from them."""
SPLITS = {"validation": ("max_validation_samples", ("eval", "final_eval")), "test": ("max_test_samples", ("test",))}
"""For each evaluated split: the key that shortens it, and the metric prefixes of its evaluations."""


def measure(cfg: Any) -> Measurement:
    """Run a few steps, an evaluation and a checkpoint of the job in a temporary directory; Hydra's task function.

    The job's prepared data are cached as in a real run.

    Raises:
        ConfigError: the job's config is wrong.
        RunError: training ended before a step could be measured.
    """
    from hydra.core.hydra_config import HydraConfig

    choices = {k: v for k, v in HydraConfig.get().runtime.choices.items() if "/" not in k}
    origin = Origin(choices, [], "hfexp plan")
    with tempfile.TemporaryDirectory(prefix="hfexp-plan-") as place, _silence():
        return _measure(to_config(cfg), origin, Path(place))


def _measure(config: Config, origin: Origin, place: Path) -> Measurement:
    from hfexp.core.console import quiet_libraries
    from hfexp.experiment import run
    from hfexp.tracking.store import open_store

    quiet_libraries()
    config, shares = _shortened(config, place)
    if config.tracking.uri:
        open_store(config.tracking.uri, place, "plan")  # before the clock starts: later jobs find a store too
    began = time.time()
    run.run(config, origin)
    ended = time.time()
    try:
        timings = json.loads((place / "times.json").read_text())
    except (OSError, ValueError) as error:
        raise RunError("the training ended before a step could be measured") from error
    taken = timings["evaluations"]
    full = {name: seconds / shares.get(name, 1.0) for name, seconds in taken.items()}
    final = sum(full[name] - taken[name] for name in taken if name != "eval")
    checkpoints = [path for path in (place / "runs").rglob("checkpoint-*") if path.is_dir()]
    return Measurement(
        step=timings["step"],
        steps_per_epoch=timings["steps_per_epoch"],
        evaluation=full.get("eval", 0.0),
        checkpoint=timings["checkpoint"],
        start=timings["begun"] - began,
        end=ended - timings["ended"] + final,
        checkpoint_bytes=max(map(_bytes_below, checkpoints), default=0),
        other_bytes=_bytes_below(place) - sum(map(_bytes_below, checkpoints)),
        memory_bytes=_memory(timings["memory"], int(config.launch.num_processes)),
        device_bytes=timings["device_memory"],
    )


def _shortened(config: Config, place: Path) -> tuple[Config, dict[str, float]]:
    """Return the job with output and tracking moved to `place`, and the share of its split each evaluation sees."""
    from hfexp.data.streaming import num_rows
    from hfexp.experiment.fit import build_splits
    from hfexp.experiment.preflight import load_inputs
    from hfexp.launch import world

    world.settle(config.launch, bool(config.trainer.args.get("use_cpu")))
    inputs = load_inputs(config)
    build_splits(config, inputs)  # fills the cache of prepared data, also for the jobs themselves
    most = BATCHES * int(config.trainer.args.get("per_device_eval_batch_size") or 8) * int(config.launch.num_processes)
    dataset, shares = config.dataset, {}
    for split, (key, names) in SPLITS.items():
        rows = num_rows(inputs.dataset[split]) if split in inputs.dataset else None
        if rows is not None and rows > most:
            dataset = replace(dataset, **{key: most})
            shares |= dict.fromkeys(names, most / rows)
    stopwatch = {"_target_": "hfexp.commands.plan_stopwatch.Stopwatch", "path": str(place / "times.json")}
    allowed = [*config.security.allowed_targets, "hfexp.commands.plan_stopwatch"]
    tracks = config.tracking.backend == "mlflow"
    uri = sqlite_address(place / "mlflow.db") if tracks else None
    shortened = replace(
        config,
        dataset=dataset,
        trainer=replace(config.trainer, callbacks={**config.trainer.callbacks, "stopwatch": stopwatch}),
        tracking=replace(config.tracking, uri=uri, register=None),
        security=replace(config.security, allowed_targets=allowed),
        output_dir=str(place / "runs"),
        on_existing=OnExisting.rerun,
        point=None,
    )
    return shortened, shares


@contextlib.contextmanager
def _silence() -> Any:
    """Discard everything that a run prints inside the block."""
    from hfexp.core import console

    console.speak_through(lambda *arguments: None)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        console.speak_through(None)


def _bytes_below(directory: Path) -> int:
    """Return the size of all files below a directory; hard links to one file count once."""
    stats = [path.lstat() for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum({stat.st_ino: stat.st_size for stat in stats}.values())


def _memory(trained: int, processes: int) -> int:
    """Return the peak memory in bytes of this process and its training processes together."""
    from hfexp.commands.plan_stopwatch import peak_memory

    return peak_memory() + processes * trained if processes > 1 else max(peak_memory(), trained)


def find_problem(config: Config) -> str | None:
    """Return the error that a run would raise before it loads any weights; None if there is none."""
    from hfexp.core.console import quiet_libraries
    from hfexp.experiment.preflight import load_inputs

    quiet_libraries()
    with _silence():
        try:
            load_inputs(config)
        except ConfigError as error:
            return str(error)
        except Exception as error:  # raised by the user's code: reported for this job, the plan goes on
            return f"{type(error).__name__}: {error}"
    return None


# Cost estimates: from the measurements of a few jobs to the time, memory and disk of all of them.


FREE_ARGS = frozenset(
    {
        "eval_delay", "eval_steps", "greater_is_better", "logging_steps", "logging_strategy", "lr_scheduler_kwargs",
        "lr_scheduler_type", "max_steps", "metric_for_best_model", "num_train_epochs", "save_steps",
        "save_total_limit", "warmup_steps",
    }
)  # fmt: skip
"""Keys of `trainer.args` that change neither the cost of a step, evaluation or checkpoint nor whether there is one."""
COSTLY = ("task", "model", "dataset", "transform", "metrics", "launch")
"""Sections of the config that do change it."""
DEFAULT_EVERY = 500
"""Default of `save_steps` and `logging_steps` in `TrainingArguments`, and so of `eval_steps`."""


@dataclass(frozen=True)
class JobCost:
    """The estimated cost of one run."""

    steps: int
    """Optimizer steps of the whole training, those already done included."""
    seconds: float
    disk_bytes: int


@dataclass(frozen=True)
class Total:
    """The estimated cost of all runs that are left."""

    runs: int
    seconds: float
    """Wall-clock time until the last run ends."""
    computing_seconds: float
    """Sum over all runs."""
    memory_bytes: int
    """Peak of all concurrent runs together."""
    device_bytes: int
    disk_bytes: int


def cost_key(config: Config) -> str:
    """Return a key that is equal for jobs whose steps cost the same.

    In the model and in `trainer.args`, floats (rates, probabilities) are ignored.
    """
    plain = to_dict(config)
    args = {key: value for key, value in plain["trainer"]["args"].items() if key not in FREE_ARGS}
    kept = {name: plain[name] for name in COSTLY}
    kept["model"] = _without_fractions(kept["model"])
    kept["trainer"] = [plain["trainer"]["_target_"], _without_fractions(args), sorted(plain["trainer"]["callbacks"])]
    return json.dumps(kept, sort_keys=True, default=str)


def cost_of(config: Config, measured: Measurement, steps_done: int = 0) -> JobCost:
    """Estimate the cost of one run from the measurement of a job with the same shape.

    Args:
        steps_done: steps in the run's checkpoint, which are not repeated.
    """
    args = config.trainer.args
    steps = total_steps(args, measured.steps_per_epoch)
    done = min(steps_done, steps)
    share = (steps - done) / steps if steps else 0.0
    evaluations = times(args, "eval", steps, measured.steps_per_epoch)
    saves = times(args, "save", steps, measured.steps_per_epoch)
    seconds = (
        measured.start + (steps - done) * measured.step
        + share * (evaluations * measured.evaluation + saves * measured.checkpoint) + measured.end
    )  # fmt: skip
    kept = min(saves, _most_kept(args) or saves)
    return JobCost(steps, seconds, kept * measured.checkpoint_bytes + measured.other_bytes)


def total_steps(args: Mapping[str, Any], steps_per_epoch: float) -> int:
    """Return the number of optimizer steps of the whole training."""
    if int(args.get("max_steps") or -1) > 0:
        return int(args["max_steps"])
    return math.ceil(float(args.get("num_train_epochs", 3)) * steps_per_epoch)


def times(args: Mapping[str, Any], action: str, steps: int, steps_per_epoch: float) -> int:
    """Return how many times a training evaluates (`eval`) or writes a checkpoint (`save`), at most."""
    strategy = str(args.get(f"{action}_strategy") or ("no" if action == "eval" else "steps"))
    if strategy == "best":  # saves at evaluations only, and at most at each
        return times(args, "eval", steps, steps_per_epoch)
    if strategy == "no":
        return 0
    if strategy == "epoch":
        return math.ceil(steps / steps_per_epoch) if steps_per_epoch else 0
    every = float(args.get(f"{action}_steps") or (action == "eval" and args.get("logging_steps")) or DEFAULT_EVERY)
    return math.ceil(steps / max(1, math.ceil(every * steps) if every < 1 else every))  # ceil: also at the last step


def add_up(costs: Sequence[JobCost], measured: Sequence[Measurement], slots: int, jobs_per_device: int = 1) -> Total:
    """Simulate all runs in order, each in the slot that becomes free first, and return the totals."""
    free = [0.0] * slots
    for cost in costs:
        heapq.heapreplace(free, free[0] + cost.seconds)
    at_once = min(slots, len(costs))
    return Total(
        runs=len(costs),
        seconds=max(free),
        computing_seconds=sum(cost.seconds for cost in costs),
        memory_bytes=at_once * max((measurement.memory_bytes for measurement in measured), default=0),
        device_bytes=jobs_per_device * max((measurement.device_bytes for measurement in measured), default=0),
        disk_bytes=sum(cost.disk_bytes for cost in costs),
    )


def worst(measurements: Sequence[Measurement]) -> Measurement:
    """Return the field-wise maximum of several measurements of one shape."""
    facts = [asdict(measurement) for measurement in measurements]
    return Measurement(**{name: max(measurement[name] for measurement in facts) for name in facts[0]})


def _most_kept(args: Mapping[str, Any]) -> int | None:
    """Return the maximum number of checkpoints on disk, None if unlimited; the best stays beside the last."""
    limit = args.get("save_total_limit")
    if not limit:
        return None
    return max(2, limit) if args.get("load_best_model_at_end") else limit


def _without_fractions(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_fractions(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_fractions(item) for item in node]
    return "fraction" if isinstance(node, float) else node


# The jobs of a planned command, and the state in which earlier starts left each of them.


class JobStatus(Enum):
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
    overrides: tuple[str, ...]
    """All Hydra overrides of the job."""
    shown: str
    """The overrides that tell the job from the others, without secrets."""
    status: JobStatus
    remark: str = ""
    config: Config | None = None
    identity: str = ""
    runs: int = 1
    """Number of runs still to be made: at most one, or at most the number of replicates."""
    steps_done: int = 0
    """Steps already done in each of these runs, on average."""

    @property
    def is_to_run(self) -> bool:
        return self.status in (JobStatus.new, JobStatus.begun)

    def invalid(self, problem: str) -> "PlannedJob":
        """Return a copy of this job marked as one that can't be run."""
        return replace(self, status=JobStatus.invalid, remark=problem, runs=0)


def plan_run(composer: Composer, request: Request, overrides: list[str]) -> PlannedJob:
    """Plan the single run of a command without `-m`.

    Raises:
        ConfigError: the command is a sweep or a search.
    """
    if request.space.dimensions or request.points is None:
        swept = ", ".join(request.space.texts) or f"search={request.search.method.value}"
        raise ConfigError(f"{swept}: several values or a search need a sweep: hfexp plan -m ...")
    job = _composed(composer, PlannedJob("0", tuple(overrides), "", JobStatus.new))
    if job.config is None:
        return job
    existing = find_run(job.config, _origin(composer, job.overrides))
    if existing is None:
        return job
    path, state = existing
    if job.config.on_existing is OnExisting.error:
        return job.invalid(f"on_existing=error: this experiment exists already ({state.status}) in {path}")
    if state.status == "finished" and not state.closed and job.config.on_existing is OnExisting.resume:
        return replace(job, status=JobStatus.finished, runs=0, remark=f"(only delivers the record of {path.name})")
    again = replace(job, remark=f"runs again; {path.name} is {state.status}")
    if state.status == "finished" or job.config.on_existing is OnExisting.rerun:
        return again
    continued = _continued(job, path)
    return again if state.status == "failed" and not continued.steps_done else continued


def plan_sweep(composer: Composer, request: Request, directory: Path | None) -> list[PlannedJob]:
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
        job = PlannedJob(name, request.space.job(point.overrides), show(point.overrides), JobStatus.new)
        earlier = first.setdefault(frozenset(point.overrides), name)
        if number in closed:
            jobs.append(closed[number])
            continue
        if earlier != name:
            jobs.append(replace(job, status=JobStatus.same, remark=f"as job {earlier}", runs=0))
            continue
        job = _composed(composer, replace(job, runs=request.search.replicates))
        twin = by_identity.setdefault(job.identity or name, name)
        if twin != name:
            job = replace(job, remark=f"the same experiment as job {twin}: these overrides do not change it")
        jobs.append(_with_progress(job, request, directory, number) if directory else job)
    return jobs


def show(overrides: tuple[str, ...]) -> str:
    """Format overrides as the user types them, with secrets masked."""
    return " ".join(mask_override(compose.as_typed(override)) for override in overrides)


def _examples(composer: Composer, request: Request) -> list[PlannedJob]:
    points = enumerate(request.space.samples(composer.groups(request.space), limit=8))
    runs = request.search.replicates
    jobs = (PlannedJob(f"e.g. {n}", request.space.job(p), show(p), JobStatus.new, runs=runs) for n, p in points)
    return [_composed(composer, job) for job in jobs]


def _composed(composer: Composer, job: PlannedJob) -> PlannedJob:
    """Return the job with its config and identity, or marked as invalid with the reason."""
    try:
        composed = composer.compose(job.overrides)
        choices = compose.choices_of(composed)
        config = to_config(compose.without_hydra(composed))
        check_choices(config, choices)
        world.settle(config.launch, bool(config.trainer.args.get("use_cpu")))
        return replace(job, config=config, identity=config_hash(config))
    except ConfigError as error:
        return job.invalid(str(error))
    except (HydraException, OmegaConfBaseException, ConfigCompositionException) as error:
        return job.invalid(compose.explain(error))


def _origin(composer: Composer, overrides: tuple[str, ...]) -> Origin:
    return Origin(compose.choices_of(composer.compose(overrides)), list(overrides), "hfexp plan")


def _continued(job: PlannedJob, run_dir: Path) -> PlannedJob:
    """Return the job as one that continues the unfinished run in `run_dir`."""
    from hfexp.core.checkpoint import newest_whole

    checkpoint = newest_whole(run_dir / "checkpoints")
    if checkpoint is None:
        return replace(job, status=JobStatus.begun, remark="from the start")
    step = int(checkpoint.name.rpartition("-")[2])
    return replace(job, status=JobStatus.begun, remark=f"from step {step}", steps_done=job.steps_done + step)


def _with_progress(job: PlannedJob, request: Request, directory: Path, number: int) -> PlannedJob:
    """Return the job of an open trial, reduced to the replicates that have not finished."""
    from hfexp.sweep.scheduler import finished_before

    left = []
    for replicate in range(request.search.replicates):
        point = TrialKey(directory, number, replicate)
        if finished_before(point, len(request.metrics)) is None:
            left.append(point)
    if not left and job.status is not JobStatus.invalid:
        return replace(job, status=JobStatus.finished, runs=0)
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

    statuses = {"COMPLETE": JobStatus.finished, "PRUNED": JobStatus.pruned, "FAIL": JobStatus.failed}
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
        status = statuses.get(trial.state.name)
        if status is not None:
            overrides = tuple(trial.user_attrs.get(study.WORDS, ()))
            error = first_line(Exception(trial.user_attrs.get(study.ERROR, ""))) if status is JobStatus.failed else ""
            values = ", ".join(f"{value:.6g}" for value in trial.values or []) if status is JobStatus.finished else ""
            job = PlannedJob(str(trial.number), overrides, show(overrides), status, values or error, runs=0)
            yield trial.number, job
