"""Read files that other people, other versions or a crash may have written: as plain data, inside their directory.

A run directory may come from an archive, lie on a disk that others can write to, or be named by a tag of a shared
tracking store. Its files can claim anything, so nothing that they name is opened, sent, removed or built unless it has
passed a check here.
"""

import functools
import os
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml

from hfexp.core.errors import ConfigError, DataError
from hfexp.core.files import open_regular

# Parsing of untrusted YAML, which refuses aliases that expand to far more values than are written.


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
        raise ConfigError(f"{where} is not valid YAML: {error}") from error


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
            f"{where}: its aliases (*name) expand to more than {MAX_VALUES:,} values; write the values out"
        )


def check_directory(directory: Path) -> None:
    """Raise ConfigError if a YAML file below a directory has aliases that expand to too many values."""
    for path in directory.rglob("*.yaml"):
        if path.is_file():
            check(path.read_text(encoding="utf-8", errors="replace"), path)


def _size(node: yaml.Node | None, sizes: dict[int, float]) -> float:
    """Count the values of a node with its aliases expanded; return infinity if it refers to itself."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in sizes:
        sizes[id(node)] = float("inf")  # what a reference to itself finds
        children = (
            [child for pair in node.value for child in pair] if isinstance(node, yaml.MappingNode) else node.value
        )
        sizes[id(node)] = 1 + sum(_size(child, sizes) for child in children)
    return sizes[id(node)]


MAX_BYTES = 64 * 2**20
"""Bytes of the largest record that is read; a real one has a few kilobytes."""

T = TypeVar("T")


class DamagedRecord(DataError):
    """A record file can't be read, or does not hold the expected values."""


def read_bytes(path: Path) -> bytes:
    """Read a regular file; refuse a pipe or a device, which could block for ever.

    Raises:
        FileNotFoundError: the file does not exist.
        DamagedRecord: it can't be read, or is larger than `MAX_BYTES`.
    """
    try:
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(str(path)) from error
    except OSError as error:
        raise DamagedRecord(f"{path} can't be read: {error.strerror or error}") from error
    if len(content) > MAX_BYTES:
        raise DamagedRecord(f"{path} is larger than {MAX_BYTES >> 20} MiB, the limit for a record")
    return content


def read_record(path: Path, shape: type[T]) -> T:
    """Read a JSON file as a dataclass or another type; keys that the type does not have are ignored.

    Raises:
        FileNotFoundError: the file does not exist.
        DamagedRecord: it can't be read, or a value is missing or has another type.
    """
    return parse(read_bytes(path), shape, str(path))


def parse(content: bytes, shape: type[T], name: str) -> T:
    """Parse JSON as a dataclass or another type; `name` is its source, for messages.

    Raises:
        DamagedRecord: it is not JSON, or a value is missing or has another type.
    """
    from pydantic import ValidationError

    try:
        return _adapter(shape).validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        location = ".".join(map(str, first["loc"]))
        raise DamagedRecord(f"{name} is damaged{f' at {location!r}' if location else ''}: {first['msg']}") from error


@functools.cache
def _adapter(shape: type[T]) -> Any:
    """Build the validator of a type once; pydantic is imported late so that `--help` does not wait for it."""
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


def prepare_to_read(shape: Any) -> None:
    """Build the validator for files of this type, which takes pydantic 30 ms, before the first one is read."""
    _adapter(shape)


def has_shape(value: Any, shape: Any) -> bool:
    """Check whether a value parsed from JSON fits a type."""
    from pydantic import ValidationError

    try:
        _adapter(shape).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def read_yaml(path: Path) -> Any:
    """Read a YAML file as plain values.

    Raises:
        FileNotFoundError: the file does not exist.
        DamagedRecord: it can't be read.
        ConfigError: it is not YAML, or its aliases expand to too many values.
    """
    return load(read_bytes(path).decode(errors="replace"), path)


def inside(directory: Path, name: str) -> Path:
    """Return the path of a file or directory below `directory`.

    Raises:
        DamagedRecord: the name is absolute or has a `..`, or a symlink on its way leads out of the directory.
    """
    path = directory / name
    is_plain = bool(name) and not Path(name).is_absolute() and ".." not in Path(name).parts and "\0" not in name
    if not is_plain or not path.resolve().is_relative_to(directory.resolve()):
        raise DamagedRecord(f"{name!r} is not inside {directory}")
    return path


def why_foreign(directory: Path, output_dir: Path) -> str | None:
    """Return the reason why a run directory is not one of the user's own; None if it is one.

    With symlinks resolved, it must lie in `output_dir` and belong to the user of this process or to the owner of
    `output_dir`, a directory that the user has named: on some network disks and in containers, files belong neither
    to root nor to the user.
    """
    try:
        resolved, root = directory.resolve(strict=True), output_dir.resolve(strict=True)
    except OSError as error:
        return f"{directory} can't be read: {error.strerror}"
    if resolved == root or not resolved.is_relative_to(root):
        return f"{directory} is not in {output_dir}"
    return why_not_owned(resolved, output_dir)


def why_not_owned(directory: Path, output_dir: Path) -> str | None:
    """Return the problem if a directory belongs neither to the user nor to the owner of `output_dir`; else None."""
    if not hasattr(os, "geteuid"):
        return None
    owner = directory.stat().st_uid
    owners = {os.geteuid(), *([output_dir.stat().st_uid] if output_dir.is_dir() else [])}
    return None if owner in owners else f"{directory} belongs to another user (uid {owner})"


def why_not_contained(path: Path, directory: Path) -> str | None:
    """Return the first problem of a file or tree: a path that leaves `directory`, or is neither file nor directory."""
    if path.is_symlink() or not path.is_dir():
        return _why_not_plain(path, directory)
    with os.scandir(path) as entries:
        for entry in entries:
            child = Path(entry.path)
            is_plain = entry.is_file(follow_symlinks=False)
            problem = None if is_plain else why_not_contained(child, directory)
            if problem:
                return problem
    return None


def _why_not_plain(path: Path, directory: Path) -> str | None:
    if not path.resolve().is_relative_to(directory.resolve()):
        return f"{path} is a symlink that points outside {directory}"
    return None if path.is_file() or path.is_dir() else f"{path} is neither a file nor a directory"
