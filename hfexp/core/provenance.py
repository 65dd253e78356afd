"""The choices, overrides and command that a run was started with; secrets are masked."""

import hashlib
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from hfexp.core.secrets import mask_override, mask_secrets


@dataclass(frozen=True)
class Origin:
    """The user's request: choices, overrides and command, beside the composed config."""

    choices: dict[str, str]
    """Option chosen in each config group."""
    overrides: list[str]
    command: str
    program: str = "hfexp"
    config_sources: tuple[str, ...] = ()
    """Directories and packages that the config was composed from."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "command", mask_secrets(self.command))
        object.__setattr__(self, "overrides", list(map(mask_override, self.overrides)))


def command_line(args: list[str]) -> str:
    """Return the command in a form that can be typed again, with secrets masked.

    Args:
        args: the arguments after the program's name.
    """
    program = "hfexp" if sys.argv[0].endswith("__main__.py") else Path(sys.argv[0]).name
    return mask_secrets(shlex.join([program, *map(mask_override, args)]))


def without_sweep(overrides: list[str]) -> list[str]:
    """Drop the overrides that belong to the sweep (`point`, `search`) and keep those of the run itself."""
    keys = (re.split(r"[=@./]", override.lstrip("+~"), maxsplit=1)[0] for override in overrides)
    return [override for override, key in zip(overrides, keys, strict=True) if key not in ("point", "search")]


LONGEST_NAME = 200
"""UTF-8 bytes of a name: file systems allow 255, and an identity, a number and a suffix are added to some names."""


def file_name(text: str) -> str:
    """Make a name that is safe for a file or directory; a long one is cut, and a hash keeps it distinct."""
    name = re.sub(r"[^\w.=+-]+", "_", text).strip("._") or "run"
    if len(name.encode()) <= LONGEST_NAME:
        return name
    # The hash has a letter before it, because a number at the end counts the starts of a sweep.
    ending = f"-h{hashlib.sha256(text.encode(errors='backslashreplace')).hexdigest()[:8]}"
    return name.encode()[: LONGEST_NAME - len(ending)].decode(errors="ignore") + ending
