"""The commands that free space: `hfexp remove` deletes runs and sweeps, `hfexp clean` what finished runs left over."""

import argparse
import contextlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfexp.commands.parser import StoreParser
from hfexp.core.console import build_table, cell, print_table, quiet_libraries, say
from hfexp.core.errors import EXIT_FAILED, ConfigError, RunError, one_of
from hfexp.core.files import bytes_below, sqlite_path
from hfexp.core.outside import DamagedRecord
from hfexp.data.cache import Cache, default_directory, show_size
from hfexp.tracking import removal
from hfexp.tracking.membership import read_sweep_info
from hfexp.tracking.removal import Holdings
from hfexp.tracking.runs import RunRecord, choose_runs, deleted_runs, is_sweep, read_runs
from hfexp.tracking.store import tracking_uri

SHOWN = 20
"""Runs that `hfexp remove` lists; it counts the others."""


def remove(argv: list[str]) -> int:
    """Delete runs and sweeps, from the disk and from MLflow."""
    parser = _parser("remove", "Delete runs and sweeps: their directories, models and records in MLflow.")
    parser.add_argument("names", nargs="+", help="runs (name, id, or the beginning of one), experiments, sweep=NAME")
    parser.add_argument("--where", metavar="FILTER", help="only runs that pass a filter as in MLflow")
    parser.add_argument("--force", action="store_true", help="also runs that may be alive on another machine")
    args = parser.parse(argv)
    uri, output_dir = tracking_uri(args.uri, args.output_dir), Path(args.output_dir)
    runs = _chosen(uri, args.names, args.where)
    if not runs:
        say("no run matches")
        return 0
    client = _client(uri)
    doomed = [removal.find_holdings(client, uri, output_dir, run) for run in runs]
    for holdings in doomed:
        removal.check_removable(holdings, args.force)
    _show(doomed)
    if not _confirmed(f"Delete {_count(len(doomed), 'run')}?", args):
        return EXIT_FAILED
    freed = 0
    for holdings in doomed:
        freed += _remove(client, holdings, args.force)
    say(f"{_count(len(doomed), 'run')} deleted, {show_size(freed)} freed{_where_rest_is(uri)}")
    return 0


def clean(argv: list[str]) -> int:
    """Free the space of what is no longer needed."""
    parser = _parser("clean", "Free the space of what is no longer needed; without KIND, of all kinds but the cache.")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="; ".join(f"{k}: {v[0]}" for k, v in KINDS.items()))
    args = parser.parse(argv)
    unknown = [kind for kind in args.kinds if kind not in KINDS]
    if unknown:
        raise ConfigError(f"hfexp clean has no kind {unknown[0]!r}: {one_of(KINDS)}")
    uri, output_dir = tracking_uri(args.uri, args.output_dir), Path(args.output_dir)
    client, runs = _client(uri), read_runs(uri)
    kinds = args.kinds or [kind for kind in KINDS if kind != "cache"]
    items = [item for kind in kinds for item in KINDS[kind][1](client, uri, output_dir, runs)]
    if not items:
        say(f"nothing to clean ({', '.join(kinds)})")
        return 0
    table = build_table("kind", "what", "size")
    for item in items:
        table.add_row(cell(item.kind), cell(item.name), cell(show_size(item.bytes)))
    print_table(table)
    if not _confirmed(f"Delete {show_size(sum(item.bytes for item in items))}?", args):
        return EXIT_FAILED
    for item in items:
        item.remove()
    say(f"{show_size(sum(item.bytes for item in items))} freed")
    return 0


@dataclass(frozen=True)
class _Item:
    """Something that `hfexp clean` can remove."""

    kind: str
    name: str
    bytes: int
    remove: Callable[[], Any]


def _checkpoints(client: Any, uri: str, output_dir: Path, runs: list[RunRecord]) -> list[_Item]:
    places = removal.spent_checkpoints([run for run in runs if not _is_debug(run)], output_dir)
    return [
        _Item("checkpoints", name, bytes_below(place), lambda n=name, p=place: removal.remove_checkpoints(n, p))
        for name, place in places
    ]


def _is_debug(run: RunRecord) -> bool:
    """Tell whether `debug` removes a run as a whole; a job goes with its sweep."""
    return "hfexp.debug" in run.tags and "hfexp.sweep" not in run.tags and not is_sweep(run)


def _debug_runs(client: Any, uri: str, output_dir: Path, runs: list[RunRecord]) -> list[_Item]:
    debug = [run for run in runs if _is_debug(run) and run.status != "RUNNING"]
    return _whole_runs("debug", client, uri, output_dir, debug)


def _deleted_runs(client: Any, uri: str, output_dir: Path, runs: list[RunRecord]) -> list[_Item]:
    items = _whole_runs("deleted", client, uri, output_dir, deleted_runs(uri))
    return [item for item in items if item.bytes]


def _whole_runs(kind: str, client: Any, uri: str, output_dir: Path, runs: list[RunRecord]) -> list[_Item]:
    found = [removal.find_holdings(client, uri, output_dir, run) for run in runs]
    return [
        _Item(kind, h.run.name, h.bytes_here + h.bytes_stored, lambda holdings=h: _remove(client, holdings))
        for h in found
        if not h.registered
    ]


def _leftovers(client: Any, uri: str, output_dir: Path, runs: list[RunRecord]) -> list[_Item]:
    return [
        _Item("leftovers", path.name, bytes_below(path), lambda p=path: shutil.rmtree(p))
        for path in removal.leftovers(output_dir)
    ]


def _cache(client: Any, uri: str, output_dir: Path, runs: list[RunRecord]) -> list[_Item]:
    cache = Cache(default_directory(), 0)
    return [_Item("cache", e.about, e.bytes, lambda path=e.path: cache.remove(path)) for e in cache.entries()]


KINDS: dict[str, tuple[str, Callable[[Any, str, Path, list[RunRecord]], list[_Item]]]] = {
    "checkpoints": ("optimizer states of finished runs, which keep their final model", _checkpoints),
    "debug": ("runs with debug=...", _debug_runs),
    "deleted": ("files of runs that were deleted in MLflow", _deleted_runs),
    "leftovers": ("what an interrupted removal left", _leftovers),
    "cache": ("prepared data, which other projects may share", _cache),
}
"""What can be cleaned: its description, and the function that finds it."""


def _parser(command: str, description: str) -> StoreParser:
    parser = StoreParser(command, description)
    parser.add_argument("--yes", "-y", action="store_true", help="delete without a question")
    return parser


def _chosen(uri: str, names: list[str], where: str | None) -> list[RunRecord]:
    """Return the runs that the user names; of a sweep, its jobs and its own run."""
    runs, _ = choose_runs(uri, names, where)
    return removal.with_sweeps(uri, runs, set() if where else {name.removeprefix("sweep=") for name in names})


def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    quiet_libraries()
    return MlflowClient(uri)


def _show(doomed: list[Holdings]) -> None:
    table = build_table("experiment", "name", "status", "in its directory", "in the store")
    for holdings in doomed[:SHOWN]:
        run = holdings.run
        here = show_size(holdings.bytes_here) if holdings.home else "not on this machine"
        stored = show_size(holdings.bytes_stored) if holdings.stored else "record only"
        table.add_row(*map(cell, (run.experiment, run.name, run.status, here, stored)))
    print_table(table)
    if len(doomed) > SHOWN:
        say(f"(and {len(doomed) - SHOWN} more)")


def _confirmed(question: str, args: argparse.Namespace) -> bool:
    """Ask the user; raise ConfigError where nobody can answer."""
    if args.yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigError("nothing was deleted, as nobody can be asked here; add --yes")
    if input(f"{question} [y/N] ").strip().lower() in ("y", "yes"):
        return True
    say("nothing was deleted")
    return False


def _remove(client: Any, holdings: Holdings, force: bool = False) -> int:
    """Remove a run; return the bytes that this freed."""
    freed = holdings.bytes_here + holdings.bytes_stored
    if is_sweep(holdings.run) and holdings.home is not None:
        _delete_shared_study(holdings.home)
    removal.remove(client, holdings, force)
    return freed


def _delete_shared_study(sweep_dir: Path) -> None:
    """Delete the study of a sweep if it is in a database outside of the sweep's directory (`search.storage`)."""
    try:
        info = read_sweep_info(sweep_dir)
    except (FileNotFoundError, DamagedRecord):
        return
    path = sqlite_path(info.storage)
    if path is not None and path.is_relative_to(sweep_dir):
        return
    import optuna

    from hfexp.experiment.sweep_storage import close_storage, open_storage

    try:
        storage = open_storage(info.storage)
    except ConfigError:
        raise
    except Exception as error:
        raise RunError(f"the study of the sweep {info.name} can't be deleted from search.storage: {error}") from error
    try:
        with contextlib.suppress(KeyError):  # somebody has deleted it
            optuna.delete_study(study_name=info.study, storage=storage)
    finally:
        close_storage(storage)


def _where_rest_is(uri: str) -> str:
    return "" if sqlite_path(uri) else "; the server keeps deleted runs and their files until `mlflow gc` runs on it"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
