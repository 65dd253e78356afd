"""One run in several processes, started by the process that composes, or by torchrun or `accelerate launch`."""

from multiprocessing.connection import Connection
from typing import Any

from hfexp.core import console, quiet
from hfexp.core.checkpoint import newest_whole, set_aside_newer
from hfexp.core.memory import keep_freed_memory
from hfexp.core.secrets import share_secrets
from hfexp.data.threads import use_threads
from hfexp.experiment.fit import Job, Outcome, work
from hfexp.experiment.preflight import Inputs, prepare
from hfexp.experiment.relay import Relay, relayed
from hfexp.launch import forkserver, reports, workers, world
from hfexp.tracking.tracker import MlflowTracker, NullTracker, Tracker
from hfexp.training import stop
from hfexp.training.stop import StopTogether


def start_processes(job: Job, tracker: Tracker) -> Outcome:
    """Run `work` in processes of its own; the first of them tells this process what to record and to show."""
    receiver, sender = forkserver.context().Pipe(duplex=False)

    def restarted() -> None:
        console.note("a process died; all start again from the newest checkpoint")
        if isinstance(tracker, MlflowTracker):
            tracker.continue_journal()

    with relayed(receiver, sender, tracker, restarted=restarted, pass_on=reports.pass_on):
        return workers.start(job.config.launch, job.directory.path, _started_process, job, sender, share_secrets())


def lead(job: Job, inputs: Inputs, tracker: Tracker) -> Outcome:
    """Run `work` as the first of several processes that torchrun or `accelerate launch` started."""
    return _work_together(world.share(job), inputs, tracker)


def wait_for_first() -> Any:
    """Wait, as one of the others, for what the first process shares (its job or result); print nothing from now on."""
    console.speak_through(lambda name, *args: None)
    return world.share(None)


def follow(job: Job) -> tuple[Inputs, Outcome]:
    """Run `work` as one of the others, on the run that the first process has opened."""
    inputs = prepare(job.config)
    return inputs, _work_together(job, inputs, NullTracker())


def _work_together(job: Job, inputs: Inputs, tracker: Tracker) -> Outcome:
    """Run `work` as one of several connected processes."""
    is_first = world.rank() == 0
    with StopTogether(job.directory.path, is_first) as signals:
        return work(job, inputs, tracker if is_first else NullTracker(), signals)


def _started_process(job: Job, sender: Connection, known_secrets: frozenset[str]) -> Outcome | None:
    """Run `work` in a process that the composing process has started; `sender` leads to that process."""
    share_secrets(known_secrets)
    rank, directory = world.rank(), job.directory
    quiet.quiet_libraries()
    use_threads(job.config.launch)
    keep_freed_memory()
    world.connect(job.config.launch, bool(job.config.trainer.args.get("use_cpu")))
    inputs = prepare(job.config)
    relay = Relay(sender, job.uri, job.run_id)
    if rank == 0:
        console.speak_through(relay.tell, job.terminal)
        reports.listen(lambda progress: relay.tell("pass_on", progress))
        if world.restarts():
            relay.tell("restarted")
            stop.forget(directory.path)
            directory.checkpoint = newest_whole(directory.checkpoints)
            directory.resumed = True
            set_aside_newer(directory.checkpoints, directory.checkpoint)
    directory.checkpoint, directory.resumed = world.share((directory.checkpoint, directory.resumed))
    log = directory.path / ("hfexp.log" if rank == 0 else f"{workers.LOGS}/rank{rank}.log")
    with quiet.log_to(log):
        outcome = _work_together(job, inputs, relay)
    world.disconnect()
    outcome.model = None
    return outcome if rank == 0 else None
