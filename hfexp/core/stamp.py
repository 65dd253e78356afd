"""A fingerprint of the local files that data comes from, computed without reading them."""

import glob
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NAMES_FILES = re.compile(r"(dir|file|path|root)s?$")
"""Keys of `dataset.source` whose values name files or folders."""


def data_stamp(source: dict[str, Any]) -> str:
    """Hash path, size and modification time of each local file that `dataset.source` names, itself or by its folder.

    Data on the Hub, data made by code, and files named only inside a file (the images of a CSV) do not count.
    """
    state = hashlib.sha256()
    named = [value for key, value in source.items() if _NAMES_FILES.search(key)]
    for path in sorted(set(_files(named))):
        stat = path.stat()
        state.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return state.hexdigest()[:32]


def _files(node: Any) -> Iterator[Path]:
    if isinstance(node, dict | list):
        for item in node.values() if isinstance(node, dict) else node:
            yield from _files(item)
        return
    if not isinstance(node, str) or "://" in node or len(node) > 4096:
        return
    named = os.path.expanduser(node)
    for name in [named] if os.path.exists(named) else glob.glob(named, recursive=True):
        path = Path(name).absolute()
        yield from _below(path) if path.is_dir() else (path,)


def _below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, following links; visit each folder once, as links can form a cycle."""
    seen = {os.path.realpath(folder)}
    for place, inner, names in os.walk(folder, followlinks=True):
        real = {name: os.path.realpath(os.path.join(place, name)) for name in inner}
        inner[:] = [name for name in inner if real[name] not in seen]
        seen.update(real.values())
        yield from (path for path in (Path(place, name) for name in names) if path.is_file())
