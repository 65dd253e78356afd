"""The command `hfexp completion`: words that complete a command line, and the lines that make a shell ask for them."""

import contextlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING

from hfexp.commands.list import group_called
from hfexp.core.console import say
from hfexp.core.errors import ConfigError, RunError, one_of
from hfexp.core.options import GROUPS, find_option, list_options

if TYPE_CHECKING:
    from hfexp.tracking.runs import RunRecord

SHELLS = {
    "bash": """\
_hfexp() {
    local line="${COMP_LINE:0:COMP_POINT}" word start
    word="${line##* }"
    start="${word%"${word##*[=:]}"}"  # bash itself splits words there
    mapfile -t COMPREPLY < <(hfexp completion answer "$line" 2>/dev/null)
    COMPREPLY=("${COMPREPLY[@]#"$start"}")
    [[ ${COMPREPLY[0]} == *[=.] ]] && compopt -o nospace
}
complete -o default -F _hfexp hfexp
""",
    "zsh": """\
_hfexp() {
    local -a answers
    answers=("${(@f)$(hfexp completion answer "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}")
    if [[ -n $answers[1] ]]; then
        compadd -S '' -- ${(M)answers:#*[=.]}
        compadd -- ${answers:#*[=.]}
    else
        compset -P '*='
        _files
    fi
}
compdef _hfexp hfexp
""",
    "fish": """\
function __hfexp_answers
    set -l answers (hfexp completion answer (commandline -cp) 2>/dev/null)
    if test (count $answers) -gt 0
        printf '%s\\n' $answers
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c hfexp -f -a '(__hfexp_answers)'
""",
}
"""By shell: the code that `hfexp completion SHELL` prints."""
USAGE = """\
usage: hfexp completion bash|zsh|fish

Print the code that completes commands, options, keys, values and runs. Add one line to your shell's start-up file:

  bash  (~/.bashrc)                     eval "$(hfexp completion bash)"
  zsh   (~/.zshrc, after compinit)      eval "$(hfexp completion zsh)"
  fish  (~/.config/fish/config.fish)    hfexp completion fish | source"""
FLAGS = ("-m", "--multirun", "--cfg", "--config-dir", "--config-name", "--help", "--hydra-help", "--info", "--version")
"""Flags of `hfexp`, `hfexp plan` and `hfexp submit`, most of which are Hydra's."""
COMPOSING = ("train", "plan", "submit", "predict", "evaluate")
"""Commands that take overrides."""
NAMING_RUNS = ("runs", "compare", "note", "tag", "remove", "rerun")
"""Commands whose words are runs, experiments and sweeps."""

Commands = Mapping[str, Callable[[list[str]], int]]


def main(args: list[str], commands: Commands) -> int:
    """Print a shell's code, or, for `answer LINE`, the words that complete a line.

    Args:
        args: the shell, or `answer` and the line up to the cursor.
        commands: hfexp's commands by name.

    Raises:
        ConfigError: there is no such shell.
    """
    if len(args) == 2 and args[0] == "answer":
        for word in answers(args[1], commands):
            print(word)
        return 0
    if not args or {"--help", "-h"} & set(args):
        say(USAGE)
        return 0
    if args[0] not in SHELLS or len(args) > 1:
        raise ConfigError(f"hfexp completion {' '.join(args)}: give one shell: {one_of(SHELLS)}")
    print(SHELLS[args[0]], end="")
    return 0


def answers(line: str, commands: Commands) -> list[str]:
    """Return the words that the last word of a command line can become; each replaces the whole word."""
    words = line.split()[1:]
    current = "" if line[-1:].isspace() or not words else words.pop()
    is_first = not words
    command = words[0] if words and words[0] in commands else "train"
    words = words[1:] if words and words[0] in commands else words
    with contextlib.suppress(ConfigError, RunError):  # what is on the line may be wrong, and a store unreadable
        candidates = [*(commands if is_first else ()), *_candidates(command, words, current, commands)]
        return sorted({word for word in candidates if word.startswith(current) and word != current})
    return []


def _candidates(command: str, words: list[str], current: str, commands: Commands) -> Iterable[str]:
    from hfexp.core.compose import own_directories, own_options_first, split_config_dir

    if current.startswith("-"):
        return FLAGS if command in ("train", "plan", "submit") else _flags(commands[command])
    with own_options_first(*own_directories(split_config_dir(words)[1])):
        if command in COMPOSING:
            return [*_settings(command), *_overrides(words, current)]
        if command in NAMING_RUNS:
            overrides = _overrides(words, current) if command == "rerun" and words else ()
            return [*_run_names(), *_sweeps(), *overrides]
        return list(_topics(command, words, commands))


def _flags(command: Callable[[list[str]], int]) -> list[str]:
    """Return the flags that a command's own help names."""
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        command(["--help"])
    return re.findall(r"(?<![\w-])--[a-z][a-z-]*", text.getvalue())


def _topics(command: str, words: list[str], commands: Commands) -> Iterator[str]:
    """Yield the first words of the commands about neither a config nor a run."""
    if command == "completion":
        yield from SHELLS
    elif command == "cache":
        yield from ("list", "clear")
    elif command == "clean":
        from hfexp.commands.remove import KINDS

        yield from KINDS
    elif command == "list":
        yield from GROUPS if not words else ()
        groups = filter(None, map(group_called, words[:1]))
        yield from (option.name for group in groups for option in list_options(group))
    elif command == "help":
        from hfexp.core.keys import keys

        yield from commands
        yield from keys()
        yield from (option.name for option in list_options("task"))


def _settings(command: str) -> list[str]:
    """Return the arguments of `predict` and `evaluate` that are no overrides, as `name=`."""
    from hfexp.commands.evaluate import EvaluationSettings
    from hfexp.commands.predict import PredictSettings

    shapes = {"predict": PredictSettings, "evaluate": EvaluationSettings}
    settings = [field.name for field in fields(shapes[command])] if command in shapes else []
    return [f"{name}=" for name in settings if name not in ("inputs", "composed")]


def _overrides(words: list[str], current: str) -> Iterator[str]:
    """Yield what an override can become: `group=`, `group=option`, `key=`, `key=value`, or the next part of a key."""
    mark = re.match("[+~]*", current)[0]  # pyright: ignore  # it matches any text
    name, equals, value = current.removeprefix(mark).partition("=")
    if equals:
        before = value.rpartition(",")[0] + "," if "," in value else ""  # of a sweep: model=a,b
        yield from (f"{mark}{name}={before}{candidate}" for candidate in _values(name))
        return
    yield from (f"{mark}{group}=" for group in GROUPS)
    depth = name.count(".") + 1
    for key in _keys(words):
        parts = key.split(".")
        yield f"{mark}{key}=" if len(parts) <= depth else f"{mark}{'.'.join(parts[:depth])}."


def _keys(words: list[str]) -> Iterator[str]:
    """Yield the keys of the schema, and those of the options that are chosen on the line."""
    from hfexp.core.keys import keys

    yield from (key.name for key in keys().values() if key.type != "section")
    for word in words:
        group, _, name = word.partition("=")
        option = find_option(group, name) if group in GROUPS else None
        if option is not None and group not in ("experiment", "metrics", "search", "debug"):
            yield from _leaves(option.content, group)


def _leaves(values: Mapping[str, object], prefix: str) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}.{key}")
        elif key not in ("defaults", "_target_"):
            yield f"{prefix}.{key}"


def _values(name: str) -> list[str]:
    """Return the values that a group, a key or an argument can have, as far as they can be listed."""
    from hfexp.core.keys import keys

    if name in GROUPS:
        return [option.name for option in list_options(name)]
    if name == "run":
        return _run_names()
    if name == "sweep":
        return [sweep.removeprefix("sweep=") for sweep in _sweeps()]
    key = keys().get(name)
    if key is None:
        return []
    if key.type.split(" | ")[0] == "bool":
        return ["true", "false"]
    listed = key.allowed.split("\n") if "\n" in key.allowed else key.allowed.split(", ")
    values = [text.partition(":")[0].strip() for text in listed]
    return values if all(re.fullmatch(r"[\w@.-]+", text) for text in values) else []


def _run_names() -> list[str]:
    from hfexp.tracking.runs import BEST, LAST, is_sweep

    runs = [run for run in _recorded() if not is_sweep(run)]
    special = [LAST, BEST, *(f"{BEST}:{name}" for name in sorted({run.experiment for run in runs}))]
    return [*special, *(run.name for run in runs)] if runs else []


def _sweeps() -> list[str]:
    from hfexp.tracking.runs import SWEEP, is_sweep

    return [f"{SWEEP}{run.name}" for run in _recorded() if is_sweep(run)]


def _recorded() -> "list[RunRecord]":
    """Read the runs of a SQLite store; a server would answer too slowly."""
    from hfexp.core.files import sqlite_path
    from hfexp.tracking.runs import read_runs
    from hfexp.tracking.store import tracking_uri

    uri = tracking_uri(None, "outputs")
    return read_runs(uri) if sqlite_path(uri) else []
