"""Parsing of untrusted YAML, which refuses aliases that expand to far more values than are written."""

import re
from pathlib import Path
from typing import Any

import yaml

from hfexp.core.errors import ConfigError

MAX_VALUES = 100_000
"""Values that a text with aliases may have, each counted as often as it is referenced."""
_ALIASES = re.compile(r"&\S.*\*\S", re.DOTALL)
"""Matches an anchor with an alias after it; a text without both has only the values that it spells out."""


def load(text: str, where: object) -> Any:
    """Parse a YAML text into plain values.

    Args:
        where: file or key that error messages name.

    Raises:
        ConfigError: the text is not YAML, or its aliases expand to too many values.
    """
    check(text, where)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not YAML: {error}") from error


def check(text: str, where: object) -> None:
    """Raise ConfigError if the aliases of a text expand to too many values; leave invalid YAML to the parser."""
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
    """Raise ConfigError if a YAML file below a directory has aliases that expand to too many values."""
    for path in directory.rglob("*.yaml"):
        if path.is_file():
            check(path.read_text(encoding="utf-8", errors="replace"), path)


def _size(node: yaml.Node | None, known: dict[int, float]) -> float:
    """Count the values of a node with its aliases expanded; return infinity if it refers to itself."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = float("inf")  # what a reference to itself finds
        inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_size(part, known) for part in inner)
    return known[id(node)]
