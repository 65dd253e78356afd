"""Where a run comes from: the choices, overrides and command that asked for it; nothing of it shows a secret."""

import hashlib
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from hfexp.secrets import mask_override, mask_secrets


@dataclass(frozen=True)
class Origin:
    """What the user asked for, beside the composed values."""

    choices: dict[str, str]
    """Option chosen in each configuration group."""
    overrides: list[str]
    command: str
    program: str = "hfexp"
    config_sources: tuple[str, ...] = ()
    """Directories and packages that the configuration was composed from."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "command", mask_secrets(self.command))
        object.__setattr__(self, "overrides", list(map(mask_override, self.overrides)))


def command_line(words: list[str]) -> str:
    """Write the command as it can be typed again, with secrets masked.

    Args:
        words: what was typed after the program's name.
    """
    program = "hfexp" if sys.argv[0].endswith("__main__.py") else Path(sys.argv[0]).name
    return mask_secrets(shlex.join([program, *map(mask_override, words)]))


def without_sweep(words: list[str]) -> list[str]:
    """Overrides that say something of a run itself, and not of the sweep that it is a part of."""
    keys = (re.split(r"[=@./]", word.lstrip("+~"), maxsplit=1)[0] for word in words)
    return [word for word, key in zip(words, keys, strict=True) if key not in ("point", "search")]


LONGEST_NAME = 200
"""Bytes of a name in UTF-8: file systems take 255, of which an identity, a number and an ending need some."""


def file_name(text: str) -> str:
    """Make a name that is safe as a file or directory; a long one is shortened, and told from others by a hash."""
    name = re.sub(r"[^\w.=+-]+", "_", text).strip("._") or "run"
    if len(name.encode()) <= LONGEST_NAME:
        return name
    # With a letter: numbers at the end count the starts of one sweep.
    ending = f"-h{hashlib.sha256(text.encode(errors='backslashreplace')).hexdigest()[:8]}"
    return name.encode()[: LONGEST_NAME - len(ending)].decode(errors="ignore") + ending
