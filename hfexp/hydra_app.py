"""Hydra, called with the words of a command line: its own decorator, with messages that people understand."""

import argparse
import contextlib
import io
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hfexp import composition, screen
from hfexp.arguments import way_out
from hfexp.errors import ConfigError, did_you_mean, one_of
from hfexp.habits import advise
from hfexp.own_options import conf_dir, find_replaced, own_options_first
from hfexp.secret_names import is_secret_name
from hfexp.secret_shapes import MASK
from hfexp.secrets import learn_secrets, mask_secrets, mask_values

CALLBACKS = "Callbacks"
"""Name in `hydra._internal.hydra` of the class that builds `hydra.callbacks`."""


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
    args = _parse(words)
    own = [Path(given).resolve() for given in (args.config_dir, args.config_path) if given]
    app = hydra.main(config_path=str(conf_dir()), config_name=composition.CONFIG_NAME, **composition.hydra_kwargs())
    options = own_options_first(*own, *composition.searched(args.overrides))
    with options, composition.explained(), _hydra_raises(), _checked_sections():
        sys.argv[1:] = hydra_words(words, commands)
        _say_what_is_replaced(args.shell_completion)
        with _prints_masked(args):
            app(function)()


def hydra_words(words: list[str], commands: Collection[str]) -> list[str]:
    """Flags as they are, but directories absolute; overrides prepared; flags may stand anywhere."""
    args = _parse(words)
    if args.shell_completion:
        _strip_command_from_completion(commands)
        return words
    for word in args.overrides:
        if "=" not in word and not word.startswith("~"):
            raise ConfigError(
                f"{word!r} is neither a command nor key=value.{did_you_mean(word, commands)} "
                f"Commands: {one_of(commands)}; `hfexp --help` lists the keys"
            )
        _refuse_other_places(word)
    overrides = Counter(args.overrides)
    flags = []
    for word in words:
        if overrides[word] > 0:
            overrides[word] -= 1
        else:
            flags.append(word)
    if args.config_path:  # Hydra takes a relative one from the package, not from where the user is
        flags += ["--config-path", str(Path(args.config_path).absolute())]
    return flags + composition.prepare_overrides(args.overrides, args.config_name or composition.CONFIG_NAME)


def _parse(words: list[str]) -> argparse.Namespace:
    args, unknown = get_args_parser().parse_known_intermixed_args(words)
    if unknown:
        name, _, value = unknown[0].lstrip("-").partition("=")
        key = name.replace("-", "_")
        following = words[words.index(unknown[0]) + 1 :][:1]
        value = value or next((word for word in following if not word.startswith("-")), "...")
        raise ConfigError(
            f"{unknown[0]} is not a flag of hfexp, which takes key=value: "
            f"{way_out(advise(key, value) or f'{key}={value}', 'write')} "
            "(`hfexp --help` lists the keys, `hfexp --hydra-help` the flags)"
        )
    return args


def _refuse_other_places(word: str) -> None:
    """Hydra's own directory would be made and stay empty, and relative paths would mean other files in it."""
    key, _, value = word.lstrip("+").partition("=")
    if key == "hydra.run.dir" or (key == "hydra.job.chdir" and value.lower() != "false"):
        raise ConfigError(
            f"{word}: hfexp runs where you are, so that relative paths mean what they say; "
            "output_dir=DIR is where it writes"
        )


def _say_what_is_replaced(quiet: bool) -> None:
    replaced = find_replaced()
    if replaced and not quiet:
        several = len(replaced) > 1
        screen.note(
            f"{one_of(replaced)} {'take' if several else 'takes'} the place of the shipped "
            f"file{'s' if several else ''} with {'these names' if several else 'this name'}"
        )


@contextlib.contextmanager
def _checked_sections() -> Iterator[None]:
    """Check Hydra's own sections once they are composed; its callbacks are the first thing that it builds of them."""
    from hydra._internal import hydra as internal
    from omegaconf import OmegaConf

    from hfexp.targets import check_hydra

    original: Any = getattr(internal, CALLBACKS)

    def checked(config: Any = None) -> Any:
        if config is not None:
            sections: Any = OmegaConf.to_container(config.hydra, resolve=False)
            allowed = OmegaConf.select(config, "security.allowed_targets")
            check_hydra(sections, list(allowed or []))
        return original(config)

    setattr(internal, CALLBACKS, checked)
    try:
        yield
    finally:
        setattr(internal, CALLBACKS, original)


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


@contextlib.contextmanager
def _prints_masked(args: argparse.Namespace) -> Iterator[None]:
    """Mask what Hydra prints by itself: the configuration (`--cfg`), and what it was made of."""
    if not (args.cfg or args.info or args.help):
        yield
        return
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            yield
    finally:
        text = printed.getvalue()
        print(_masked_config(text, args.package or "") if args.cfg else mask_secrets(text), end="")


def _masked_config(text: str, package: str) -> str:
    """Mask a configuration as `--cfg` prints it.

    Args:
        package: the key of what is printed; empty: it is the whole.
    """
    if is_secret_name(package):
        return f"{MASK}\n"
    try:
        shown: Any = OmegaConf.to_container(OmegaConf.create(text))
    except (OmegaConfBaseException, yaml.YAMLError, AssertionError):  # a single value, or a word of Hydra's
        return mask_secrets(text)
    learn_secrets(shown)
    masked = mask_values(shown)
    if masked == shown:
        return text
    head = text.partition("\n")[0] + "\n" if text.startswith("# @package") else ""
    return head + OmegaConf.to_yaml(masked)


def _strip_command_from_completion(commands: Collection[str]) -> None:
    """Hydra completes keys and values; our command word before them is not its business."""
    line = os.environ.get("COMP_LINE", "").split(" ")
    if len(line) > 2 and line[1] in commands:
        os.environ["COMP_LINE"] = " ".join([line[0], *line[2:]])
