"""The command `hfexp cache`, which lists the prepared data or removes it."""

import argparse
import time
from pathlib import Path

from hfexp.core.console import say
from hfexp.core.errors import ConfigError
from hfexp.data.cache import VARIABLE, Cache, Entry, default_directory, show_size


def main(words: list[str]) -> int:
    """Run `hfexp cache`: list the prepared data, or remove it."""
    parser = argparse.ArgumentParser(
        prog="hfexp cache", description="List the prepared data that jobs share, or remove it."
    )
    parser.add_argument("action", nargs="?", choices=["list", "clear"], default="list")
    parser.add_argument("key", nargs="*", help="entries to remove (beginnings of their names); none: all")
    parser.add_argument("--dir", type=Path, help=f"the cache; default: {VARIABLE}, else in your cache directory")
    args = parser.parse_args(words)
    directory = (args.dir or default_directory()).absolute()
    cache = Cache(directory, 0)  # the size limit matters only when an entry is built
    entries = cache.entries()
    if args.action == "clear":
        _clear(cache, entries, args.key)
        return 0
    for entry in reversed(entries):
        days = (time.time() - entry.used) / 86400
        when = "today" if days < 1 else f"{days:.0f} days ago" if entry.used else "never again"
        size, name = show_size(entry.bytes), entry.path.name[:12]
        say(f"{name}  {size:>8}  {entry.rows:>9,} rows  used {when:<13} {entry.about}")
    say(f"{len(entries)} entries, {show_size(sum(entry.bytes for entry in entries))} in {directory}")
    return 0


def _clear(cache: Cache, entries: list[Entry], keys: list[str]) -> None:
    for key in keys:
        if not any(entry.path.name.startswith(key) for entry in entries):
            raise ConfigError(f"no entry of {cache.directory} begins with {key!r}; `hfexp cache` lists them")
    chosen = [e for e in entries if not keys or e.path.name.startswith(tuple(keys))]
    removed = [entry for entry in chosen if cache.remove(entry.path)]
    cache.remove_dead()
    kept = len(chosen) - len(removed)
    say(
        f"{len(removed)} entries removed, {show_size(sum(entry.bytes for entry in removed))}"
        + (f"; {kept} are in use and stay" if kept else "")
    )
