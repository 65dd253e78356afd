"""The command `hfexp list`: the options of the config groups, one line each."""

from collections.abc import Iterable

from hfexp.core.compose import own_directories, own_options_first, split_config_dir
from hfexp.core.console import build_table, cell, print_table, say
from hfexp.core.errors import ConfigError, did_you_mean, one_of
from hfexp.core.options import GROUPS, Option, list_options

USAGE = "usage: hfexp list [GROUP] [WORD] [--config-dir DIR]"
FITS = {"image": "images", "text": "texts", "causal_lm": "texts, generation", "seq2seq": "texts to texts"}
"""What a model or a dataset of a kind is for."""


def main(args: list[str]) -> int:
    """List the groups, the options of one group, or the options that contain a word."""
    if {"--help", "-h"} & set(args):
        say(f"{USAGE}\n\nGroups: {', '.join(GROUPS)}")
        return 0
    args, config_dir = split_config_dir(args)
    flag = next((arg for arg in args if arg.startswith("-")), None)
    if flag is not None:
        raise ConfigError(f"hfexp list takes no flag {flag}. {USAGE}")
    if len(args) > 2:
        raise ConfigError(f"hfexp list takes a group and a word, not {len(args)} words. {USAGE}")
    with own_options_first(*own_directories(config_dir)):
        if not args:
            _show_groups()
            return 0
        group = group_called(args[0])
        if group is not None:
            _show_options([group], args[1] if len(args) == 2 else "")
        elif len(args) == 1:
            _show_options(list(GROUPS), args[0])
        else:
            raise ConfigError(
                f"there is no group {args[0]!r}.{did_you_mean(args[0], GROUPS)} Groups: {one_of(GROUPS)}"
            )
    return 0


def group_called(name: str) -> str | None:
    """Return the group of a name in the singular or the plural; None if there is none."""
    return next((group for group in GROUPS if name in (group, f"{group}s", f"{group}es")), None)


def _show_groups() -> None:
    table = build_table(show_header=False)
    for group, text in GROUPS.items():
        table.add_row(cell(group, "bold"), cell(len(list_options(group))), cell(text))
    print_table(table)
    say("\nhfexp list GROUP [WORD] lists the options of a group; choose one with GROUP=OPTION.")


def _show_options(groups: list[str], word: str) -> None:
    """Print the options that contain a word.

    Raises:
        ConfigError: no option does.
    """
    options = [option for group in groups for option in list_options(group) if word.lower() in _searched(option)]
    if not options and len(groups) == 1:
        raise ConfigError(f"no option of {groups[0]} contains {word!r}; `hfexp list {groups[0]}` lists all of them")
    if not options:
        raise ConfigError(f"no option contains {word!r}.{did_you_mean(word, GROUPS)} Groups: {one_of(GROUPS)}")
    table = build_table(show_header=False)
    for option in options:
        name = option.name if len(groups) == 1 else f"{option.group}={option.name}"
        table.add_row(cell(name, "bold"), *map(cell, _columns(option, options)), cell(option.text))
    print_table(table)


def _columns(option: Option, options: Iterable[Option]) -> list[str]:
    """Return what an option is for and what it needs; a column that is empty in all rows is left out."""
    columns = [lambda entry: FITS.get(entry.kind or "", ""), lambda entry: entry.needs]
    return [column(option) for column in columns if any(column(entry) for entry in options)]


def _searched(option: Option) -> str:
    """Return the text in which a word is looked for."""
    path = str(option.content.get("path", ""))
    return " ".join((option.name, option.text, FITS.get(option.kind or "", ""), option.needs, path)).lower()
