"""Where a run comes from: its choices, overrides and command, and the Git state of its code; secrets are masked."""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from hfexp.core.secrets import is_secret_file, mask_code, mask_override, mask_secrets, mask_settings


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


def command_line(args: list[str], program: str | None = None) -> str:
    """Return the command in a form that can be typed again, with secrets masked.

    Args:
        args: the arguments after the program's name.
        program: path of the program; None: that of this process.
    """
    path = sys.argv[0] if program is None else program
    name = "hfexp" if path.endswith("__main__.py") else Path(path).name
    return mask_secrets(shlex.join([name, *map(mask_override, args)]))


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


# Git state of a run's code, read so that nothing in the repository can start a program or fetch anything.


TIMEOUT = 20.0
"""Seconds that one git command may take."""
LARGEST_DIFF = 10 * 2**20
"""Bytes that one git command may print; a comment takes the place of a longer output."""
_SETTINGS = {
    "core.fsmonitor": "false", "core.hooksPath": os.devnull, "core.quotePath": "false", "core.sshCommand": "false",
    "core.gitProxy": "", "protocol.allow": "never", "diff.orderFile": os.devnull,
}  # fmt: skip
"""Overrides of what a repository's `.git/config` could make git run (file monitor, hooks, ssh, proxy) or print."""
_VARIABLES = {
    "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none",
}  # fmt: skip
"""Environment variables by which git takes no optional locks, asks nothing and fetches nothing."""
_DIFF = (
    "diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames", "--no-relative", "--binary",
    "--full-index", "--unified=3", "--src-prefix=a/", "--dst-prefix=b/", "--diff-algorithm=myers",
    "--submodule=short", "--ignore-submodules=dirty",
)  # fmt: skip
"""`git diff` without external diff and textconv programs, in a format that the user's settings can't change."""
_DIFF_FAILED = "# git diff failed: the uncommitted changes are not known\n"
_FILTERS = (".clean", ".smudge", ".process", ".required")
"""Ends of the settings that name a filter's programs, or require them to succeed."""
_CODE = (".py", ".pyi", ".ipynb", ".js", ".ts", ".c", ".cc", ".cpp", ".cu", ".h", ".hpp", ".rs", ".go", ".java")
"""Endings of files whose changes are masked as code; changes of other files are masked as settings."""


def git_state() -> dict[str, str]:
    """Read commit, branch, remote and uncommitted changes of the current directory, with secrets masked.

    Returns:
        `sha`, `branch`, `remote`, `diff`, `untracked` (file names); empty outside a repository, and in one whose work
        tree is not where its `.git` is.
    """
    settings = {**_SETTINGS, **_disabled_filters()}
    sha = _git("rev-parse", "HEAD", settings=settings).strip()
    if not sha or not _is_work_tree_here(settings):
        return {}
    return {
        "sha": sha,
        "branch": _git("rev-parse", "--abbrev-ref", "HEAD", settings=settings).strip(),
        "remote": mask_secrets(_git("config", "--get", "remote.origin.url", settings=settings).strip()),
        "diff": _diff(settings),
        "untracked": _git("ls-files", "--others", "--exclude-standard", settings=settings),
    }


def _disabled_filters() -> dict[str, str]:
    """Return settings that disable the filter programs of the repository's own config, but not those of the user's."""
    pairs = _git("config", "--show-scope", "--includes", "--name-only", "-z", "--get-regexp", r"^filter\.").split("\0")
    names = [name for scope, name in zip(pairs[::2], pairs[1::2], strict=False) if scope in ("local", "worktree")]
    return {name: "false" if name.endswith(".required") else "" for name in names if name.endswith(_FILTERS)}


def _is_work_tree_here(settings: dict[str, str]) -> bool:
    """Tell whether the work tree is where `.git` is: `core.worktree` can name any directory of the machine."""
    if "GIT_DIR" in os.environ or "GIT_WORK_TREE" in os.environ:
        return True  # the user chose the repository
    here = Path.cwd()
    root = next((directory for directory in (here, *here.parents) if (directory / ".git").exists()), None)
    top = _git("rev-parse", "--show-toplevel", settings=settings).rstrip("\n")
    return root is not None and bool(top) and Path(top).resolve() == root.resolve()


def _diff(settings: dict[str, str]) -> str:
    """Return the uncommitted changes, which `git apply` takes unless masked; comments name the files left out."""
    names = _git(*_DIFF, "--name-only", "-z", settings=settings, failing=_DIFF_FAILED)
    if names.startswith("# git"):
        return names
    changed = [name for name in names.split("\0") if name]
    hidden = [name for name in changed if is_secret_file(name)]
    comments = "".join(
        f"# left out, as it may hold secrets: {json.dumps(name, ensure_ascii=False)}\n" for name in hidden
    )
    if len(changed) == len(hidden):
        return comments
    others = [":(top)", *(f":(top,exclude,literal){name}" for name in hidden)]
    parts = re.split(r"(?m)^(?=diff --git )", _git(*_DIFF, "--", *others, settings=settings, failing=_DIFF_FAILED))
    return comments + "".join(map(_masked, parts))


def _masked(part: str) -> str:
    """Mask the secrets in the changes of one file."""
    header = part.partition("\n")[0]
    if "\nGIT binary patch\n" in part:
        return part
    if header.rstrip('"').endswith(_CODE):
        return mask_code(part)
    return mask_settings(part)


def _git(*args: str, settings: dict[str, str] | None = None, failing: str = "") -> str:
    """Return the output of a git command, or a comment if it takes too long or prints too much.

    Args:
        settings: settings that override those of the repository and the user.
        failing: text to return if the command fails.
    """
    command = ["git", "--no-pager", *args]
    environment = {**os.environ, **_VARIABLES, **_as_variables(settings or _SETTINGS)}
    try:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError:
        return ""
    timer = threading.Timer(TIMEOUT, process.kill)
    timer.start()
    with process:
        assert process.stdout is not None
        content = process.stdout.read(LARGEST_DIFF + 1)
        is_late = not timer.is_alive()
        timer.cancel()
        process.kill() if len(content) > LARGEST_DIFF else process.wait()
    if is_late:
        return f"# git {args[0]} took longer than {TIMEOUT:.0f} s\n"
    if len(content) > LARGEST_DIFF:
        return f"# git {args[0]} printed more than {LARGEST_DIFF:,} bytes, which were left out\n"
    return content.decode("utf-8", "surrogateescape") if process.returncode == 0 else failing


def _as_variables(settings: dict[str, str]) -> dict[str, str]:
    """Return settings as environment variables, which git reads last, after those of the user's own environment.

    `-c NAME=VALUE` would be unsafe: git would split a name that contains `=` at the wrong place.
    """
    count = os.environ.get("GIT_CONFIG_COUNT", "")
    first = int(count) if count.isdigit() else 0
    variables = {"GIT_CONFIG_COUNT": str(first + len(settings))}
    for number, (name, value) in enumerate(settings.items(), first):
        variables |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return variables
