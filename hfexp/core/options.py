"""The options of the config groups, as their files describe them: what each one is and what it needs."""

import dataclasses
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from hfexp.core import outside
from hfexp.core.compose import search_path
from hfexp.core.errors import ConfigError

GROUPS = {
    "experiment": "whole experiments, ready to run",
    "task": "kinds of problems",
    "model": "models",
    "dataset": "datasets, and ways to read your own",
    "transform": "what happens to a row before the model sees it",
    "trainer": "settings of the training",
    "metrics": "metrics that evaluations compute",
    "search": "methods of a sweep (-m)",
    "launch": "one process or several",
    "tracking": "where runs are recorded",
    "debug": "short runs that check a set-up",
}
"""The config groups in the order in which a person chooses, and what their options are."""
NOT_TEXT = ("# @package", "# yaml-language-server:")
"""Beginnings of comments for programs."""
HUB_SOURCES = ("hfexp.data.sources.hub",)
"""Values of `dataset.source._target_` that read from the Hugging Face Hub."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a config group."""

    group: str
    name: str
    path: Path

    @cached_property
    def lines(self) -> list[str]:
        return outside.read_bytes(self.path).decode(errors="replace").splitlines()

    @cached_property
    def content(self) -> dict[str, Any]:
        """Return the file as plain values; empty if it is no YAML of keys, which a run that chooses it reports."""
        try:
            content = outside.load("\n".join(self.lines), self.path)
        except ConfigError:
            return {}
        return content if isinstance(content, dict) else {}

    @cached_property
    def paragraphs(self) -> list[str]:
        """Return the comment at the head of the file, in paragraphs; only the first one is unwrapped."""
        lines = [line for line in self.lines if not line.startswith(NOT_TEXT)]
        head = next((index for index, line in enumerate(lines) if not line.startswith("#")), len(lines))
        text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:head])
        first, *others = re.split(r"\n\s*\n", text)
        return [" ".join(first.split()), *(other.strip("\n") for other in others)]

    @property
    def text(self) -> str:
        """Return what the option is: the first paragraph of its comment, or the names of its keys."""
        return self.paragraphs[0] or ", ".join(map(str, self.content))

    @property
    def kind(self) -> str | None:
        """Return its kind, or that of the option of the same group that it begins with."""
        defaults = self.content.get("defaults")
        names = [name for name in defaults if isinstance(name, str)] if isinstance(defaults, list) else []
        options = [self, *filter(None, (find_option(self.group, name) for name in names))]
        kinds = (option.content.get("kind") for option in options)
        return next((kind for kind in kinds if isinstance(kind, str)), None)

    def comment(self, key: str) -> str:
        """Return the comment above a key at the top level of the file."""
        index = next((index for index, line in enumerate(self.lines) if line.startswith(f"{key}:")), 0)
        above = []
        while index and self.lines[index - 1].startswith("#"):
            index -= 1
            above.insert(0, self.lines[index].lstrip("# "))
        return " ".join(above) if index else ""

    def chosen(self) -> Iterator["Option"]:
        """Yield the options that this one's defaults list chooses in other groups."""
        defaults = self.content.get("defaults")
        for entry in defaults if isinstance(defaults, list) else ():
            for key, name in entry.items() if isinstance(entry, dict) else ():
                group = str(key).removeprefix("override ").strip(" /").partition("@")[0]
                option = find_option(group, name) if isinstance(name, str) else None
                if option is not None and option.group != self.group:
                    yield option

    @property
    def needs(self) -> str:
        """Return what the option has to download or find: `Hub`, the name of a package, or nothing."""
        path, source = self.content.get("path"), self.content.get("source")
        if self.group == "model" and isinstance(path, str) and path != "???":
            return path.removeprefix("pkg://").partition("/")[0] if path.startswith("pkg://") else "Hub"
        if self.group == "dataset" and isinstance(source, dict) and source.get("_target_") in HUB_SOURCES:
            return "Hub"
        if self.group != "experiment":
            return ""
        return ", ".join(dict.fromkeys(option.needs for option in self.chosen() if option.needs))


def list_options(group: str) -> list[Option]:
    """Return the options of a group by name; those of the user's own directories replace the shipped ones."""
    files = (path for directory in reversed(search_path()) for path in (directory / group).glob("*.yaml"))
    paths = {path.stem: path for path in files if path.is_file()}
    return [Option(group, name, paths[name]) for name in sorted(paths)]


def find_option(group: str, name: str) -> Option | None:
    """Return one option of a group; None if there is no such option."""
    return next((option for option in list_options(group) if option.name == name), None)
