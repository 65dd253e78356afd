"""The command `hfexp rerun`, which repeats the command of a recorded run or sweep, with changes."""

import shlex
from pathlib import Path

from hfexp.commands.parser import StoreParser
from hfexp.commands.records import RUN
from hfexp.core.console import say
from hfexp.core.errors import ConfigError
from hfexp.core.outside import read_bytes
from hfexp.core.secrets import MASK
from hfexp.tracking.run_directory import COMMAND
from hfexp.tracking.runs import SWEEP, find_run, find_sweep, home_of
from hfexp.tracking.store import tracking_uri

NAMES_A_CONFIG = ("--config-name", "-cn", "--config-path", "-cp")
"""Flags of Hydra that name the user's own primary config."""


def command_of(argv: list[str]) -> list[str]:
    """Return the arguments of a recorded command with the user's changes, and print the command.

    Only commands from run directories of the user's own are repeated: a tag of a shared store can hold anything.

    Raises:
        ConfigError: there is no such run, or its command can't be repeated.
    """
    parser = StoreParser("rerun", "Repeat the command of a recorded run or sweep, with changes.")
    parser.add_argument("run", help=f"{RUN}, or sweep=NAME")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="what to change, e.g. seed=2")
    args = parser.parse_intermixed_args(argv)
    uri = tracking_uri(args.uri, args.output_dir)
    is_sweep = args.run.startswith(SWEEP)
    run = find_sweep(uri, args.run.removeprefix(SWEEP)) if is_sweep else find_run(uri, args.run)
    home = home_of(run, Path(args.output_dir))
    if home is None:
        recorded = run.tags.get("hfexp.command", "not recorded")
        raise ConfigError(
            f"{run.name} was not trained in {args.output_dir} on this machine, so its command is not repeated; "
            f"it was: {recorded}"
        )
    try:
        command = read_bytes(home / "artifacts" / COMMAND).decode().strip()
        program, *words = shlex.split(command)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"the command of {run.name} can't be read: {error}") from error
    if program != "hfexp":
        raise ConfigError(f"{run.name} was not started by the command hfexp but by {command}; start it there again")
    if MASK in command:
        raise ConfigError(f"the command of {run.name} held a secret, which is not recorded; type it again: {command}")
    changed = {_key(word) for word in args.overrides}
    words += _implied_by(words, args.overrides)
    words = [word for word in words if word.startswith("-") or _key(word) not in changed] + args.overrides
    say(shlex.join(["hfexp", *words]))
    return words


def _implied_by(words: list[str], changes: list[str]) -> list[str]:
    """Return the default experiment of a command that chose nothing, if a change of the model would take it away."""
    from hfexp.core.compose import implied_experiment, own_directories, own_options_first, split_config_dir

    words, config_dir = split_config_dir(words)
    chosen = {_key(change) for change in changes}
    if "experiment" in chosen or not chosen & {"task", "model", "dataset"}:
        return []
    if any(word.startswith(NAMES_A_CONFIG) for word in words):  # which chooses for itself
        return []
    with own_options_first(*own_directories(config_dir)):
        return implied_experiment(word for word in words if word[:1] != "-")


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]
