"""Locations of pretrained weights: a Hub id, a directory, or a directory inside an installed package."""

import importlib.util
from pathlib import Path

from hfexp.core.errors import ConfigError

PACKAGE = "pkg://"
"""Prefix of a directory in a package, as in Hydra's search path: `pkg://package/directory`."""


def local_model(path: str) -> str:
    """Return the argument for `from_pretrained`: the directory of `pkg://...`, anything else unchanged.

    Raises:
        ConfigError: the package is not installed.
    """
    if not path.startswith(PACKAGE):
        return path
    name, _, below = path.removeprefix(PACKAGE).partition("/")
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise ConfigError(f"model.path={path}: there is no package {name}; pip install {name.replace('_', '-')}")
    return str(Path(found.submodule_search_locations[0], below))


def check_path(path: str) -> None:
    """Check that a path that looks local is the directory of a model.

    Raises:
        ConfigError: it is not.
    """
    directory = Path(local_model(path)).expanduser()
    if not (directory.exists() or path.startswith((".", "/", "~", PACKAGE))):
        return  # an id on the Hub
    if not directory.is_dir():
        raise ConfigError(f"model.path={path}: there is no such directory")
    if not (directory / "config.json").is_file():
        raise ConfigError(f"model.path={path} has no config.json: it was not written by save_pretrained")


def is_local(path: str) -> bool:
    """Tell whether the path is local, so that nothing has to be fetched from the Hub."""
    return path.startswith(PACKAGE) or Path(path).expanduser().exists()
