"""The Hydra app of the command line: `hydra.main`, with error messages that users understand."""

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
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hfexp.core import compose, console
from hfexp.core.compose import conf_dir, find_replaced, own_directories, own_options_first
from hfexp.core.config import advise
from hfexp.core.errors import ConfigError, did_you_mean, one_of
from hfexp.core.secrets import MASK, is_secret_name, learn_secrets, mask_secrets, mask_values
from hfexp.core.training_args import way_out


def run(args: list[str], function: Callable[[Any], Any], commands: Collection[str]) -> None:
    """Compose the config with Hydra and call a function with it, or hand the function to Hydra's sweeper with `-m`.

    Args:
        args: flags and overrides as the user typed them; `sys.argv` is set from them.
        function: Hydra's task function.
        commands: names of hfexp's commands, for error messages.

    Raises:
        ConfigError: the config does not take a key, an option or a value.
    """
    compose.register_schema()
    compose.importable_cwd()
    parsed = _parse(args)
    own = own_directories(parsed.config_dir, parsed.config_path)
    app = hydra.main(config_path=str(conf_dir()), config_name=compose.CONFIG_NAME, **compose.hydra_kwargs())
    if parsed.hydra_help:  # about Hydra alone: hfexp's checks and defaults would not apply to it
        sys.argv[1:] = ["--hydra-help"]
        app(function)()
        return
    options = own_options_first(*own, *compose.searched(parsed.overrides))
    with options, compose.explained(), _hydra_raises(), _checked_sections():
        sys.argv[1:] = hydra_args(args, commands)
        _note_replaced_files(parsed.shell_completion)
        with _masked_output(parsed):
            app(function)()


def hydra_args(args: list[str], commands: Collection[str]) -> list[str]:
    """Return Hydra's arguments: first the flags, with an absolute `--config-path`, then the prepared overrides."""
    parsed = _parse(args)
    if parsed.shell_completion:
        return args
    for override in parsed.overrides:
        if "=" not in override and not override.startswith("~"):
            raise ConfigError(
                f"{override!r} is neither a command nor key=value.{did_you_mean(override, commands)} "
                f"Commands: {one_of(commands)}; `hfexp help` says how to find keys"
            )
    overrides = Counter(parsed.overrides)
    flags = []
    for arg in args:
        if overrides[arg] > 0:
            overrides[arg] -= 1
        else:
            flags.append(arg)
    if parsed.config_path:  # Hydra resolves a relative one against the package, not the user's directory
        flags += ["--config-path", str(Path(parsed.config_path).absolute())]
    return flags + compose.prepare_overrides(parsed.overrides, parsed.config_name or compose.CONFIG_NAME)


def _parse(args: list[str]) -> argparse.Namespace:
    parsed, unknown = get_args_parser().parse_known_intermixed_args(args)
    if unknown:
        name, _, value = unknown[0].lstrip("-").partition("=")
        key = name.replace("-", "_")
        rest = args[args.index(unknown[0]) + 1 :][:1]
        value = value or next((arg for arg in rest if not arg.startswith("-")), "...")
        advice = advise(key, value) or (f"{key}={value}" if "." in key else None)
        shown = f": {way_out(advice, 'write')}" if advice else ""
        raise ConfigError(
            f"{unknown[0]} is not a flag of hfexp, which takes key=value{shown} "
            "(`hfexp help` says how to find keys and flags)"
        )
    return parsed


def _note_replaced_files(quiet: bool) -> None:
    replaced = find_replaced()
    if replaced and not quiet:
        several = len(replaced) > 1
        console.note(
            f"{one_of(replaced)} {'replace the shipped files' if several else 'replaces the shipped file'} of the "
            f"same name{'s' if several else ''}"
        )


@contextlib.contextmanager
def _checked_sections() -> Iterator[None]:
    """Check Hydra's own sections as soon as they are composed, because Hydra sets up logging from them at once."""
    original = ConfigLoaderImpl.load_configuration

    def checked(*args: Any, **kwargs: Any) -> Any:
        from hfexp.core.targets import check_hydra

        config = original(*args, **kwargs)
        compose.require_typed(config)
        check_hydra(_resolved(config.hydra), list(OmegaConf.select(config, "security.allowed_targets") or []))
        return config

    ConfigLoaderImpl.load_configuration = checked
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = original


def _resolved(node: Any) -> Any:
    """Return a section as plain values; a text that only a running job can resolve stays as it is written."""
    if not OmegaConf.is_config(node):
        return node
    if node._is_none() or node._is_missing():
        return None
    keys = range(len(node)) if OmegaConf.is_list(node) else node.keys()
    values: dict[Any, Any] = {}
    for key in keys:
        try:
            values[key] = _resolved(node[key])
        except OmegaConfBaseException:
            values[key] = node._get_node(key)._value()
    return list(values.values()) if OmegaConf.is_list(node) else values


@contextlib.contextmanager
def _hydra_raises() -> Iterator[None]:
    """Make Hydra raise its exceptions, which `main()` explains; by default it prints them and exits."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextlib.contextmanager
def _masked_output(parsed: argparse.Namespace) -> Iterator[None]:
    """Mask secrets in what Hydra itself prints for `--cfg` and `--info`."""
    if not (parsed.cfg or parsed.info):
        yield
        return
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            yield
    finally:
        text = printed.getvalue()
        print(_masked_config(text, parsed.package or "") if parsed.cfg else mask_secrets(text), end="")


def _masked_config(text: str, package: str) -> str:
    """Mask the secrets of a config as `--cfg` prints it.

    Args:
        package: key of the part that is printed; empty for the whole config.
    """
    if is_secret_name(package):
        return f"{MASK}\n"
    try:
        shown: Any = OmegaConf.to_container(OmegaConf.create(text))
    except (OmegaConfBaseException, yaml.YAMLError, AssertionError):  # a single value, or a message of Hydra's
        return mask_secrets(text)
    learn_secrets(shown)
    masked = mask_values(shown)
    if masked == shown:
        return text
    head = text.partition("\n")[0] + "\n" if text.startswith("# @package") else ""
    return head + OmegaConf.to_yaml(masked)
