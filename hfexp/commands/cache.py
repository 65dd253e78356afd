"""The command `hfexp cache`, which lists the prepared data or removes it."""

import argparse
import time
from pathlib import Path

from hfexp.core.console import say
from hfexp.core.errors import ConfigError
from hfexp.data.cache import VARIABLE, Cache, Entry, default_directory, show_size


def main(argv: list[str]) -> int:
    """Run `hfexp cache`: list the prepared data, or remove it."""
    parser = argparse.ArgumentParser(
        prog="hfexp cache", description="List the prepared data that jobs share, or remove it."
    )
    parser.add_argument("action", nargs="?", choices=["list", "clear"], default="list")
    parser.add_argument("key", nargs="*", help="prefixes of the entries to remove (default: all)")
    parser.add_argument("--dir", type=Path, help=f"cache directory (default: {VARIABLE} or your user cache directory)")
    args = parser.parse_args(argv)
    directory = (args.dir or default_directory()).absolute()
    cache = Cache(directory, 0)  # the size limit matters only when an entry is built
    entries = cache.entries()
    if args.action == "clear":
        _clear(cache, entries, args.key)
        return 0
    for entry in reversed(entries):
        days = (time.time() - entry.used) / 86400
        when = "used today" if days < 1 else f"used {days:.0f} days ago" if entry.used else "damaged"
        size, name = show_size(entry.bytes), entry.path.name[:12]
        say(f"{name}  {size:>8}  {entry.rows:>9,} rows  {when:<18} {entry.about}")
    say(f"{len(entries)} entries, {show_size(sum(entry.bytes for entry in entries))} in {directory}")
    return 0


def _clear(cache: Cache, entries: list[Entry], keys: list[str]) -> None:
    for key in keys:
        if not any(entry.path.name.startswith(key) for entry in entries):
            raise ConfigError(f"no entry in {cache.directory} starts with {key!r}; `hfexp cache` lists the entries")
    chosen = [e for e in entries if not keys or e.path.name.startswith(tuple(keys))]
    removed = [entry for entry in chosen if cache.remove(entry.path)]
    cache.remove_dead()
    kept = len(chosen) - len(removed)
    say(
        f"{len(removed)} entries removed, {show_size(sum(entry.bytes for entry in removed))}"
        + (f"; {kept} kept, as they are in use" if kept else "")
    )
