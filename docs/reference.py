"""The pages of the reference, written from the code: keys, commands, options, metrics, tags, files and exit codes."""

import contextlib
import io
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from hfexp.commands import cli
from hfexp.commands.help import SCREEN
from hfexp.core import errors
from hfexp.core.keys import Key, keys
from hfexp.core.options import GROUPS, list_options

HERE = Path(__file__).parent


def write(place: Path) -> None:
    """Write all pages to a directory; unchanged ones keep their time, so that Sphinx does not read them again."""
    place.mkdir(exist_ok=True)
    for name, build in PAGES.items():
        path, text = place / f"{name}.md", "\n".join(build()) + "\n"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def all_keys() -> Iterator[str]:
    """Yield the page of all keys: a section for each group, and in it an entry for each key."""
    yield from ("# Keys", "")
    yield "Every key of the configuration, with its type, its default and the values that it takes. `hfexp help KEY`"
    yield "prints the same, and where the value of a command comes from."
    sections: dict[str, list[Key]] = {}
    for key in keys().values():
        sections.setdefault(_section(key.name), []).append(key)
    for section, members in sorted(sections.items(), key=lambda item: (item[0] == "trainer.args", item[0] != "")):
        yield from ("", f"## {section or 'Top level'}", "")
        about = keys().get(section)
        if about is not None:
            yield from (about.text, "")
        for key in members:
            if key is not about and key.type != "section":
                yield from _entry(key)


def _section(name: str) -> str:
    head, _, rest = name.partition(".")
    if name.startswith("trainer.args."):
        return "trainer.args"
    return head if rest or head in GROUPS else ""


def _entry(key: Key) -> Iterator[str]:
    yield f"`{key.name}`"
    yield f": {_paragraphs(key.text) or 'No text.'}"
    facts = [] if key.values else [f"Type `{key.type}`."]
    facts += [] if key.default is None else [f"Default `{_yaml(key.default)}`."]
    values = key.allowed.split("\n") if key.allowed else []
    facts += [f"Allowed: {_paragraphs(values[0])}."] if len(values) == 1 else []
    yield from ("", f"  {' '.join(facts)}", "")
    if len(values) > 1:
        meanings = [value.partition(": ") for value in values]
        yield from (*(f"  * `{name}`: {_paragraphs(meaning)}" for name, _, meaning in meanings), "")


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _paragraphs(text: str) -> str:
    """Return a text as the indented body of a definition; outside code, `<` and `*` stand for themselves."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([<*_|\[])", r"\\\1", part) for part in parts[::2]]
    return "\n\n  ".join(" ".join(part.split()) for part in "`".join(parts).split("\n\n"))


def commands() -> Iterator[str]:
    """Yield the page of all commands: the screen of `hfexp help`, and what each command says of itself."""
    yield from ("# Commands", "", "```text", SCREEN, "```")
    for name in cli.COMMANDS:
        if name in ("train", "help", "version"):
            continue
        yield from ("", f"## hfexp {name}", "", "```text", _help_of(name), "```")


def _help_of(command: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        cli.COMMANDS[command](["--help"])
    return output.getvalue().rstrip()


def options() -> Iterator[str]:
    """Yield the page of the options that come with hfexp, by group."""
    yield from ("# Options", "", "The files that come with hfexp, by group. `hfexp list` prints them, with your own.")
    for group, about in GROUPS.items():
        yield from ("", f"## {group}", "", f"{about[0].upper()}{about[1:]}: `{group}=NAME`.", "")
        yield from ("| name | what it is | needs |", "|---|---|---|")
        for option in list_options(group):
            yield f"| `{option.name}` | {option.text.replace('|', chr(92) + '|')} | {option.needs} |"


def exit_codes() -> Iterator[str]:
    """Yield the page of the exit codes."""
    yield from ("# Exit codes", "", "| code | meaning |", "|---|---|")
    for code, meaning in MEANINGS.items():
        yield f"| {code} | {meaning} |"


CONTINUE = "the same command continues the run"
MEANINGS = {
    0: "success",
    errors.EXIT_FAILED: "the run failed, or a job of a sweep, or `hfexp predict` could not read some inputs",
    errors.EXIT_WRONG_INPUT: "wrong input: a key, a value or a file; nothing was created",
    errors.EXIT_HANGUP: f"SIGHUP: the terminal was closed; {CONTINUE}",
    errors.EXIT_INTERRUPTED: f"Ctrl-C; {CONTINUE}",
    errors.exit_code(signal.SIGPIPE): "the program that read the output has ended, as `| head` does",
    errors.EXIT_TERMINATED: f"SIGTERM, SIGUSR1 or `launch.time_limit`: a checkpoint was written; {CONTINUE}",
}

PAGES: dict[str, Callable[[], Iterable[str]]] = {
    "keys": all_keys,
    "commands": commands,
    "options": options,
    "exit-codes": exit_codes,
}
