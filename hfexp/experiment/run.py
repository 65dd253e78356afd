"""One run of an experiment, from a typed config to a recorded result."""

import functools
import json
import logging
import time
from dataclasses import fields
from pathlib import Path

from hfexp.core import console
from hfexp.core.checkpoint import processes_of
from hfexp.core.config import Config, OnExisting
from hfexp.core.machine import keep_freed_memory, processors_shared
from hfexp.core.outside import DamagedRecord, read_record
from hfexp.core.provenance import Origin
from hfexp.data.dataset import show_rows
from hfexp.data.threads import threads_given_back, use_threads
from hfexp.experiment import distributed
from hfexp.experiment.context import Inputs, Outcome, RunContext
from hfexp.experiment.fit import fit
from hfexp.experiment.preflight import load_inputs
from hfexp.experiment.result import RESULT, Result, StoredResult, save_result, show_result
from hfexp.experiment.sweep_values import values_of_point
from hfexp.launch import world
from hfexp.launch.time_limit import limited
from hfexp.tracking.environment import Environment
from hfexp.tracking.lineage import split_digests
from hfexp.tracking.membership import VALUES
from hfexp.tracking.recovery import close_finished
from hfexp.tracking.run_directory import RunDirectory, find_run, held_run, open_run_directory
from hfexp.tracking.store import tracking_uri
from hfexp.tracking.tracker import SystemMonitor, Tracker, open_run
from hfexp.training import callbacks
from hfexp.training.callbacks import StopOnSignal

logger = logging.getLogger(__name__)


def run(config: Config, origin: Origin, began: float | None = None) -> Result:
    """Run one experiment and show its result.

    Args:
        began: time of the monotonic clock from which `launch.time_limit` counts; None: now.

    Raises:
        ConfigError: the experiment can't run as configured; nothing was created.
        Terminated: a signal or the time limit stopped it; the same command continues from the checkpoint.
    """
    console.quiet_libraries()
    world.resolve(config.launch, bool(config.trainer.args.get("use_cpu")))
    keep_freed_memory()
    began = time.monotonic() if began is None else began
    with threads_given_back():
        use_threads(config.launch)
        if config.launch.num_machines > 1:
            recording = functools.partial(record, began=began)
            result, is_first = distributed.start_among_machines(recording, config, origin)
        else:
            result, is_first = record(config, origin, began), world.rank() == 0
    if is_first:
        show_result(result)
    return result


def record(config: Config, origin: Origin, began: float) -> Result:
    """Run one experiment, step by step in the order in which the data flows.

    Args:
        config: its `launch` section is resolved.
        began: as of `run`.
    """
    started = time.monotonic()
    use_cpu, processes = bool(config.trainer.args.get("use_cpu")), int(config.launch.num_processes)
    with distributed.joined_processes(config) as is_first:
        if not is_first:
            return follow()
        inputs = load_inputs(config)
        finished = complete_end(config, origin, inputs)
        if finished is not None:
            return world.share(finished) if world.is_together() else finished
        if config.tracking.backend != "none":
            console.load("mlflow")
        console.status("opening the record")
        environment = Environment.gather(origin)
        with (
            processors_shared(use_cpu),
            StopOnSignal() as stop_on_signal,
            open_run_directory(
                config, origin, environment.git.get("sha", ""), split_digests(inputs.dataset)
            ) as directory,
            console.log_to(directory.path / "hfexp.log"),
            open_run(config, directory, origin, environment) as tracker,
            SystemMonitor(tracker, config.tracking.system_metrics_interval, directory.state.first_started, processes),
            limited(config.launch.time_limit, began),
        ):
            announce(directory, inputs, environment.git, processes)
            opened = (tracker.uri, tracker.run_id, console.is_terminal())
            context = RunContext(config, origin, environment, directory, started, *opened)
            outcome = train(context, inputs, tracker, stop_on_signal)
            result = summarise(context, inputs, outcome)
            directory.state.values, directory.state.pruned_step = result.values, result.pruned_step
            if result.values is not None:
                tracker.set_tags({VALUES: json.dumps(result.values)})
            save_result(result)
        result.run_id = tracker.run_id  # a server that was unreachable at the start may have assigned it since
    return result


def complete_end(config: Config, origin: Origin, inputs: Inputs) -> Result | None:
    """Finish recording a run whose process was killed after the run had finished, and return its result.

    Return None if there is no such run.
    """
    existing = find_run(config, origin)
    if existing is None or config.point or config.on_existing is not OnExisting.resume:
        return None
    path, uri = existing[0], tracking_uri(config.tracking.uri, config.output_dir)
    with held_run(path) as state:
        if state is None or state.status != "finished" or state.closed:
            return None
        try:
            stored = read_record(path / RESULT, StoredResult)
        except (FileNotFoundError, DamagedRecord):
            return None
        if config.tracking.backend != "none":
            close_finished(path, state, uri, Path(config.output_dir))
    console.note(f"{path.name} had already finished when its process was killed: not training again")
    return Result(
        **{entry.name: getattr(stored, entry.name) for entry in fields(StoredResult)},
        task_metric=inputs.task.metric,
        run_dir=path,
        run_id=state.run_id,
        tracking_uri=uri,
        report=None,
        values=state.values,
        pruned_step=state.pruned_step,
        processor=inputs.processor,
        _model=None,
        _model_class=inputs.task.model_class,
        _remote_code=config.model.trust_remote_code,
    )


def train(context: RunContext, inputs: Inputs, tracker: Tracker, stop_on_signal: StopOnSignal) -> Outcome:
    """Run `hfexp.experiment.fit.fit` in this process, or in as many processes as the config asks for."""
    if context.config.launch.num_processes == 1:
        return fit(context, inputs, tracker, stop_on_signal)
    callbacks.forget(context.directory.path)
    if world.is_together():
        return distributed.lead(fit, context, inputs, tracker)
    return distributed.start_processes(fit, context, tracker)


def follow() -> Result:
    """Take part in the run that the first process opens, or return its result if there is nothing left to do."""
    context = distributed.wait_for_first()
    if isinstance(context, Result):
        return context
    inputs, outcome = distributed.follow(fit, context)
    return summarise(context, inputs, outcome)


def summarise(context: RunContext, inputs: Inputs, outcome: Outcome) -> Result:
    """Build the result for the caller; a trial of a sweep also gets its objective values."""
    result = Result(
        metrics=outcome.metrics,
        metric_name=outcome.metric_name,
        best_metric=outcome.best_metric,
        task_metric=inputs.task.metric,
        best_step=outcome.best_step,
        run_dir=context.directory.path,
        run_id=context.run_id,
        tracking_uri=context.uri,
        report=outcome.report,
        seconds=time.monotonic() - context.started,
        train_seconds=outcome.train_seconds,
        values=None,
        pruned_step=outcome.pruned_step,
        processor=inputs.processor,
        _model=outcome.model,
        _model_class=inputs.task.model_class,
        _remote_code=context.config.model.trust_remote_code,
    )
    if context.config.point is not None:
        result.values = values_of_point(context.config.point, result.metrics, result.objective, result.train_seconds)
    return result


def announce(directory: RunDirectory, inputs: Inputs, git: dict[str, str], processes: int) -> None:
    """Print how much data the run has, and what it continues from."""
    sizes = ", ".join(f"{show_rows(rows)} {split}" for split, rows in inputs.dataset.items())
    classes = f", {len(inputs.id2label)} classes" if inputs.id2label else ""
    console.say(f"  data: {sizes}{classes}")
    for split, count in inputs.dropped.items():
        if count:
            console.note(f"{count} unreadable {split} samples skipped (dataset.on_bad_sample=skip)")
    if directory.resumed:
        start = directory.checkpoint.name if directory.checkpoint else "the start, as it has no complete checkpoint"
        console.note(f"continuing {directory.name} from {start}")
        logger.info("continuing from %s", start)
        previous = processes_of(directory.checkpoint) if directory.checkpoint else processes
        if previous != processes:
            console.note(f"{processes} processes instead of {previous}: same samples, new random numbers (dropout)")
        before = directory.state.git_sha_before
        if before and git and before != git["sha"]:
            console.note(f"the code has changed since it was started ({before[:8]} -> {git['sha'][:8]})")
