"""The command `hfexp status`, which lists the jobs of SLURM and what their runs have reached."""

import subprocess
from pathlib import Path

from hfexp.commands.parser import StoreParser
from hfexp.commands.submit import PLACE
from hfexp.core.console import build_table, cell, note, print_table, say
from hfexp.core.errors import ConfigError
from hfexp.launch.slurm import FOLDER
from hfexp.launch.squeue import ENDED, squeue
from hfexp.tracking.environment import SLURM_JOB
from hfexp.tracking.runs import RunRecord, read_runs
from hfexp.tracking.store import tracking_uri

SHOWN = 20
"""Jobs that have ended and are shown without `--top`."""


def main(argv: list[str]) -> int:
    """List the jobs that wait and run, then those that have ended, newest first, each with its last metric."""
    parser = StoreParser("status", "List the jobs of SLURM: queued, running and ended ones, with their last metric.")
    parser.add_argument("--top", type=int, default=SHOWN, help=f"number of ended jobs to show (default: {SHOWN})")
    args = parser.parse(argv)
    if args.top < 0:
        raise ConfigError(f"--top {args.top}: must be at least 0")
    submitted = _submitted(Path(args.output_dir))
    try:
        records = _records(tracking_uri(args.uri, args.output_dir))
    except ConfigError:
        if args.uri or not submitted:
            raise
        records = {}  # no job has begun yet, so there is no store
    queue = _queue()
    active = {job: state for job, (state, _) in queue.items() if state not in ENDED and job in submitted | {*records}}
    ended = [job for job in records if job not in active][: args.top]
    if not active and not ended:
        say("no job of SLURM is known here")
        return 0
    table = build_table("job", "state", "run", "last metric")
    for job in [*sorted(active, key=int), *ended]:
        run = records.get(job)
        # A finished run's process may take a moment to end; a killed one may wait for its next turn.
        state = run.status if run and (job not in active or run.status == "FINISHED") else active[job]
        name = run.name if run else queue[job][1]
        table.add_row(job, state.lower(), cell(name), _last_metric(run) if run else "")
    print_table(table)
    return 0


def _queue() -> dict[str, tuple[str, str]]:
    """Return state and name of the user's jobs that SLURM knows, by id."""
    try:
        shown = subprocess.run(squeue("%i|%T|%j"), capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        note("squeue is not on this machine: only what the runs have recorded is shown")
        return {}
    except subprocess.CalledProcessError as error:
        note(f"squeue failed: {error.stderr.strip()}")
        return {}
    parts = (line.split("|", 2) for line in shown.splitlines() if line.count("|") >= 2)
    return {job: (state, name) for job, state, name in parts}


def _submitted(output_dir: Path) -> set[str]:
    """Return the ids of the jobs that were submitted from here and are not cleared away."""
    files = (path for place in (PLACE, "sweeps/*") for path in output_dir.glob(f"{place}/{FOLDER}/*_submission.sh"))
    return {path.name.partition("_")[0] for path in files}


def _records(uri: str) -> dict[str, RunRecord]:
    """Return the newest run of each job, newest first."""
    found: dict[str, RunRecord] = {}
    for run in sorted(read_runs(uri), key=lambda run: run.start_time or 0, reverse=True):
        if SLURM_JOB in run.tags:
            found.setdefault(run.tags[SLURM_JOB], run)
    return found


def _last_metric(run: RunRecord) -> str:
    metric = run.tags.get("hfexp.metric", "")
    for name in (metric, metric.removeprefix("final_"), "loss"):
        if name in run.metrics:
            return f"{name.removeprefix('final_')} {run.metrics[name]:.4g}"
    return ""
