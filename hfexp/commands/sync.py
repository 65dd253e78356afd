"""`hfexp sync`: deliver to MLflow what runs could not deliver, and close runs whose process is gone."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hfexp.commands.parser import StoreParser
from hfexp.core.console import say
from hfexp.core.errors import ConfigError, RunError, first_line
from hfexp.core.outside import why_foreign, why_not_contained, why_not_owned
from hfexp.core.secrets import mask_secrets

if TYPE_CHECKING:
    from hfexp.tracking.run_directory import RunState


def main(argv: list[str]) -> int:
    """Sync the run directories; leave those of living runs alone."""
    parser = StoreParser(
        "sync",
        "Deliver to MLflow what runs could not deliver, e.g. because the server was away, "
        "and close runs whose process is gone.",
        uri="tracking URI, if it is not the one that the run was started with",
    )
    parser.add_argument("run_dir", nargs="*", type=Path, help="run directories (default: all in --output-dir)")
    parser.add_argument("--force", action="store_true", help="also sync runs that may be alive on another machine")
    args = parser.parse(argv)
    args.output_dir = Path(args.output_dir)

    from hfexp.core import console
    from hfexp.tracking import journal

    console.quiet_libraries()
    directories = args.run_dir or sorted(path.parent.parent for path in args.output_dir.glob("*/*/tracking/*.jsonl"))
    for directory in args.run_dir:
        if not journal.exists(directory):
            raise ConfigError(f"{directory} is not the directory of a recorded run")
    counts = {"delivered": 0, "complete": 0, "running": 0, "failed": 0}
    for directory in directories:
        counts[_sync(directory, args)] += 1
    say(
        f"{counts['delivered']} delivered, {counts['complete']} already complete"
        + (f", {counts['running']} still running" if counts["running"] else "")
    )
    if counts["failed"]:
        runs = "1 run" if counts["failed"] == 1 else f"{counts['failed']} runs"
        raise RunError(f"{runs} could not be delivered; nothing is lost, try again later")
    return 0


def _sync(path: Path, args: argparse.Namespace) -> str:
    """Deliver one run directory, and return the outcome as a key of the counts in `main`."""
    from hfexp.tracking.run_directory import held_run, read_state

    problem = why_not_owned(path, args.output_dir) or why_not_contained(path, path)
    if problem or read_state(path) is None:
        say(f"{path}: not delivered: {problem or 'it has no readable run.json'}")
        return "failed"
    try:
        with held_run(path) as state:
            return "running" if state is None else _deliver(path, state, args)
    except Exception as error:
        say(mask_secrets(f"{path}: not delivered: {first_line(error)}"))
        return "failed"


def _deliver(path: Path, state: "RunState", args: argparse.Namespace) -> str:
    """Deliver a run whose lock this process holds."""
    from hfexp.core.process import ProcessId
    from hfexp.tracking.recovery import deliver_rest, is_complete

    # Holding the lock is no proof: locks do not reach every machine that shares a file system.
    is_gone = ProcessId(state.host, state.pid, state.process).is_gone()
    if state.status == "running" and not is_gone and not args.force:
        say(f"{path}: skipped, as it may still be running on {state.host} (use --force if it is not)")
        return "running"
    wanted = _store_for(path, args)
    if is_complete(path, state, wanted):
        return "complete"
    delivery = deliver_rest(path, state, wanted, args.output_dir)
    say(mask_secrets(f"{path}: {state.status}, delivered to {wanted}, run {delivery.state.run_id}"))
    return "delivered"


def _store_for(path: Path, args: argparse.Namespace) -> str:
    """Return the tracking URI: `--uri`, or else the one that the run directory names, if it is in --output-dir.

    Raises:
        ConfigError: the run directory lies elsewhere and names a store of its own.
    """
    from hfexp.tracking.recovery import recorded_uri
    from hfexp.tracking.store import tracking_uri

    if args.uri:
        return args.uri
    wanted = recorded_uri(path, args.output_dir)
    if wanted != tracking_uri(None, str(args.output_dir)) and why_foreign(path, args.output_dir):
        raise ConfigError(
            f"it is outside --output-dir={args.output_dir} and names the store {wanted}; to deliver it there, give "
            f"--uri={wanted}"
        )
    return wanted
