"""Hydra, called with the words of a command line: its own decorator, with messages that people understand."""

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf.errors import OmegaConfBaseException

from hfexp import composition
from hfexp.errors import ConfigError, did_you_mean, one_of


def run(words: list[str], function: Callable[[Any], Any], commands: Collection[str]) -> None:
    """Compose with Hydra and call a function with the configuration, or hand it to Hydra's sweeper with `-m`.

    Args:
        words: flags and overrides, as typed; they become those of `sys.argv`.
        function: Hydra's task function.
        commands: words that may stand before them.

    Raises:
        ConfigError: a key, an option or a value is not what the configuration takes.
    """
    composition.register_schema()
    composition.importable_cwd()
    sys.argv[1:] = hydra_words(words, commands)
    app = hydra.main(
        config_path=str(composition.conf_dir()), config_name=composition.CONFIG_NAME, **composition.hydra_kwargs()
    )
    try:
        with _hydra_raises():
            app(function)()
    except (HydraException, OmegaConfBaseException, ConfigCompositionException) as error:
        raise ConfigError(composition.explain(error)) from error


def hydra_words(words: list[str], commands: Collection[str]) -> list[str]:
    """Flags as they are, overrides prepared; flags may stand anywhere."""
    args = get_args_parser().parse_intermixed_args(words)
    if args.shell_completion:
        _strip_command_from_completion(commands)
        return words
    for word in args.overrides:
        if "=" not in word and not word.startswith("~"):
            raise ConfigError(
                f"{word!r} is neither a command nor key=value.{did_you_mean(word, commands)} "
                f"Commands: {one_of(commands)}; `hfexp --help` lists the keys"
            )
    overrides = Counter(args.overrides)
    flags = []
    for word in words:
        if overrides[word] > 0:
            overrides[word] -= 1
        else:
            flags.append(word)
    return flags + composition.prepare_overrides(args.overrides)


@contextlib.contextmanager
def _hydra_raises() -> Iterator[None]:
    """Hydra prints errors and exits on its own unless asked for the exceptions; main() explains them."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def _strip_command_from_completion(commands: Collection[str]) -> None:
    """Hydra completes keys and values; our command word before them is not its business."""
    line = os.environ.get("COMP_LINE", "").split(" ")
    if len(line) > 2 and line[1] in commands:
        os.environ["COMP_LINE"] = " ".join([line[0], *line[2:]])
