"""YAML from outside: refused where its aliases stand for more values than anybody has written."""

import re
from pathlib import Path
from typing import Any

import yaml

from hfexp.errors import ConfigError

MAX_VALUES = 100_000
"""Values of a text with aliases, each counted as often as it is referred to."""
_ALIASES = re.compile(r"&\S.*\*\S", re.DOTALL)
"""Without both an anchor and an alias, a text has as many values as are written."""


def load(text: str, where: object) -> Any:
    """Read a text.

    Args:
        where: file or key, for messages.

    Raises:
        ConfigError: it is not YAML, or its aliases stand for too much.
    """
    check(text, where)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not YAML: {error}") from error


def check(text: str, where: object) -> None:
    """Raise ConfigError if aliases of a text stand for too much; what is not YAML is left to who reads it."""
    if not _ALIASES.search(text):
        return
    try:
        size = _size(yaml.compose(text, yaml.SafeLoader), {})
    except (yaml.YAMLError, ValueError):
        return
    except RecursionError as error:
        raise ConfigError(f"{where} is nested too deeply") from error
    if size > MAX_VALUES:
        raise ConfigError(
            f"{where}: its aliases (*name) stand for more than {MAX_VALUES:,} values; write out what is meant"
        )


def check_directory(directory: Path) -> None:
    """Raise ConfigError for a file of options below whose aliases stand for too much."""
    for path in directory.rglob("*.yaml"):
        if path.is_file():
            check(path.read_text(encoding="utf-8", errors="replace"), path)


def _size(node: yaml.Node | None, known: dict[int, float]) -> float:
    """Count the values of a node with all that its aliases refer to; infinity if it refers to itself."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = float("inf")  # until it is counted
        inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_size(part, known) for part in inner)
    return known[id(node)]
