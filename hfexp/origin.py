"""Where a run comes from: the choices, overrides and command that asked for it, and the state of the code."""

import os
import platform
import re
import shlex
import socket
import subprocess
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


def command_line(words: list[str]) -> str:
    """The command as it can be typed again, with tokens masked.

    Args:
        words: what was typed after the program's name.
    """
    program = "hfexp" if sys.argv[0].endswith("__main__.py") else Path(sys.argv[0]).name
    return mask_secrets(shlex.join([program, *words]))


def git_state() -> dict[str, str]:
    """Commit, branch, remote and uncommitted changes of the current directory; empty outside a repository."""
    sha = _git("rev-parse", "HEAD").strip()
    if not sha:
        return {}
    return {
        "git_sha": sha,
        "git_branch": _git("rev-parse", "--abbrev-ref", "HEAD").strip(),
        "git_remote": mask_secrets(_git("config", "--get", "remote.origin.url").strip()),
        "git_diff": mask_secrets(_git("diff", "HEAD")),
        "git_untracked": _git("ls-files", "--others", "--exclude-standard"),
    }


def _git(*words: str) -> str:
    try:
        done = subprocess.run(
            ["git", *words], capture_output=True, text=True, timeout=20, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def machine() -> dict[str, str]:
    """Host, process and Python of this run."""
    return {
        "host": socket.gethostname(),
        "pid": str(os.getpid()),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


_TOKEN_SHAPES = re.compile(
    r"\b(hf_[A-Za-z0-9]{8,}|gh[pousr]_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|AKIA[A-Z0-9]{12,})"
)
_URL_PASSWORD = re.compile(r"(://[^/\s:@]+:)[^@/\s]+@")
_SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY", re.IGNORECASE)


def mask_secrets(text: str) -> str:
    """Replace access tokens, URL passwords and the values of secret-looking environment variables by `***`."""
    for name, value in os.environ.items():
        if _SECRET_NAMES.search(name) and len(value) >= 8:
            text = text.replace(value, "***")
    return _URL_PASSWORD.sub(r"\1***@", _TOKEN_SHAPES.sub("***", text))
