"""The command `hfexp rerun`, which repeats the command of a recorded run or sweep, with changes."""

import shlex
from collections.abc import Iterable
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
    if not _implied(args.overrides):  # a change of the model alone would take the default experiment away
        words += _implied(word for word in words if not word.startswith("-"))
    words = [word for word in words if word.startswith("-") or _key(word) not in changed] + args.overrides
    say(shlex.join(["hfexp", *words]))
    return words


def _implied(overrides: Iterable[str]) -> list[str]:
    from hfexp.core.compose import implied_experiment

    return implied_experiment(overrides)


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]
