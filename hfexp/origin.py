"""Where a run comes from: the choices, overrides and command that asked for it; nothing of it shows a secret."""

import hashlib
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path


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


def command_line(words: list[str]) -> str:
    """The command as it can be typed again, with tokens masked.

    Args:
        words: what was typed after the program's name.
    """
    program = "hfexp" if sys.argv[0].endswith("__main__.py") else Path(sys.argv[0]).name
    return mask_secrets(shlex.join([program, *words]))


def without_sweep(words: list[str]) -> list[str]:
    """Overrides that say something of a run itself, and not of the sweep that it is a part of."""
    keys = (re.split(r"[=@./]", word.lstrip("+~"), maxsplit=1)[0] for word in words)
    return [word for word, key in zip(words, keys, strict=True) if key not in ("point", "search")]


MASK = "***"
_TOKEN_SHAPES = re.compile(
    r"\b(hf_[A-Za-z0-9]{8,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{20,}|glpat-[\w-]{16,}|sk-[A-Za-z0-9_-]{16,}|AKIA[A-Z0-9]{12,})"
)
# Up to the last `@`, as a password may hold one; but the port of an address without a password is none.
_URL_PASSWORD = re.compile(r"(://[^/\s:@]*:)(?!\d+/)[^\s'\"]+@")
_SIGNATURE = re.compile(r"([?&](?:sig|X-Amz-Signature|password|passwd|pwd|sslpassword)=)[^&\s'\"]+", re.IGNORECASE)
_SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY", re.IGNORECASE)


def mask_secrets(text: str) -> str:
    """Replace access tokens, URL passwords and the values of secret-looking environment variables by `***`."""
    for name, value in os.environ.items():
        if _SECRET_NAMES.search(name) and len(value) >= 8:
            text = text.replace(value, MASK)
    text = _SIGNATURE.sub(rf"\1{MASK}", _TOKEN_SHAPES.sub(MASK, text))
    return _URL_PASSWORD.sub(rf"\1{MASK}@", text)


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
