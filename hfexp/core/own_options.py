"""The config search path: the user's own directories come before the shipped config."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.plugins.search_path_plugin import SearchPathPlugin

from hfexp.core.bounded_yaml import check_directory
from hfexp.core.errors import ConfigError

_own_directories: tuple[Path, ...] | None = None
"""Config directories of the user; None while Hydra is not composing for hfexp."""


def conf_dir() -> Path:
    """Return the directory of the shipped config: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "conf"
    return shipped if shipped.is_dir() else package.parent / "conf"


def search_path() -> tuple[Path, ...]:
    """Return the directories that options are looked up in; the first one that has an option wins."""
    return (*(_own_directories or ()), conf_dir())


@contextlib.contextmanager
def own_options_first(*directories: Path) -> Iterator[None]:
    """Make Hydra search these directories before the shipped config.

    Raises:
        ConfigError: one of them does not exist, or has a file whose aliases expand to too many values.
    """
    global _own_directories
    before = _own_directories
    for directory in directories:
        if not os.path.isdir(directory):
            raise ConfigError(f"--config-dir: there is no directory {directory}")
        check_directory(directory)
    _own_directories = directories
    try:
        yield
    finally:
        _own_directories = before


def find_replaced() -> list[str]:
    """List the user's config files that replace a shipped one and differ from it."""
    found = []
    for directory in search_path()[:-1]:
        for path in sorted(directory.rglob("*.yaml")):
            shipped = conf_dir() / path.relative_to(directory)
            if shipped.is_file() and path.is_file() and shipped.read_bytes() != path.read_bytes():
                found.append(str(path))
    return found


class OwnOptionsFirst(SearchPathPlugin):
    """Puts the directories of `own_options_first` first, and adds the shipped config if `--config-path` dropped it."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if _own_directories is None:
            return
        for directory in _own_directories:
            search_path.prepend("hfexp", f"file://{directory}", SearchPathQuery(provider="main"))
        if not any(str(conf_dir()) in str(element.path) for element in search_path.get_path()):
            search_path.append("hfexp", f"file://{conf_dir()}")
