"""The words of `hfexp predict`: what is asked, of which model, and where the answers go.

They do not go through Hydra's grammar, which would want texts quoted twice: what is typed is what the model gets.
Words that choose a model (`task=`, `model=`, `transform=`) are left to Hydra.
"""

import glob
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hfexp.bounded_yaml import load
from hfexp.errors import ConfigError, did_you_mean, one_of

COMPOSED = ("task", "model", "transform", "security")
"""Sections of the configuration that say what a model is that no run of ours has trained."""
TEXTS = ("text", "prompt")
"""Both name a text that is asked."""
FORMATS = (".csv", ".jsonl", ".parquet")
ALL = "all"
STANDARD_INPUT = "-"


@dataclass
class PredictSettings:
    """What `hfexp predict` is asked for."""

    run: str | None = None
    """A run's id or name, a directory, or a model's id on the Hub (OWNER/NAME)."""
    sweep: str | None = None
    """In place of `run`: the best run of this sweep."""
    inputs: list[str] = field(default_factory=list)
    """Files, folders, patterns, addresses (http, s3, ...), or `-` for a line each on standard input."""
    text: list[str] = field(default_factory=list)
    """Texts themselves."""
    system: str | None = None
    """What a chat model is told before the prompt."""
    columns: dict[str, str] = field(default_factory=dict)
    """What the task's columns are called in tables."""
    top_k: int | str = 1
    """How many classes are named; `all`."""
    batch_size: int = 32
    """Rows that the model gets at once."""
    generation: dict[str, Any] = field(default_factory=dict)
    """Fields of `transformers.GenerationConfig`."""
    output: str | None = None
    """A file for all answers: .csv, .jsonl or .parquet."""
    show: int = 20
    """Answers on the screen at most, where they are many."""
    stream: bool | None = None
    """Write a text while it is generated; null: in a terminal, if there is one prompt."""
    record: bool = False
    """Keep the answers with the run in MLflow."""
    device: str | None = None
    """null: the accelerator if there is one."""
    output_dir: str = "outputs"
    """Where runs are."""
    uri: str | None = None
    """Tracking URI of the runs, if it is not the one in `output_dir`."""
    composed: list[str] = field(default_factory=list)
    """Words for Hydra."""

    def check(self) -> None:
        """Raises ConfigError for what contradicts itself."""
        if self.run and self.sweep:
            raise ConfigError("run and sweep both name a model: give one of them")
        if self.output is not None and Path(self.output).suffix not in FORMATS:
            raise ConfigError(f"output={self.output}: the name has to end in {one_of(FORMATS)}")
        check_output(self.output)
        if self.top_k != ALL and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise ConfigError(f"top_k={self.top_k}: a number from 1 on, or {ALL}, is needed")
        for name in ("batch_size", "show"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: at least 1 is needed")


NAMES = tuple(f.name for f in fields(PredictSettings) if f.name != "composed")
KEYS = (*NAMES, "prompt")
LISTS = ("inputs", *TEXTS)
SECTIONS = ("columns", "generation")
_AS_TYPED = ("run", "sweep", "system", "output", "output_dir", "uri", "device")


def parse(words: Sequence[str]) -> PredictSettings:
    """Words `key=value`; what has no key is an input.

    Raises:
        ConfigError: a key does not exist, or a value is not of its type.
    """
    settings = PredictSettings()
    for word in words:
        key, equals, value = word.partition("=")
        head, _, rest = key.lstrip("+").partition(".")
        if head in COMPOSED and equals:
            settings.composed.append(word)
        elif key in KEYS and equals and key not in SECTIONS:
            _set(settings, key, value)
        elif head in SECTIONS and rest and equals:
            getattr(settings, head)[rest] = value if head == "columns" else _plain(value, key)
        elif equals and not os.path.exists(word) and "://" not in key and key.replace("_", "").isalnum():
            raise ConfigError(
                f"unknown key {key!r}.{did_you_mean(key, (*KEYS, *COMPOSED))} There are: {one_of((*KEYS, *COMPOSED))}"
            )
        else:
            settings.inputs.append(word)
    settings.check()
    return settings


def as_words(settings: Mapping[str, Any]) -> list[str]:
    """Settings by name, as Python gives them: a list has a word for each of its items, a mapping one for each key."""
    words = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            spell = str if name == "columns" else json.dumps  # YAML reads JSON; a column is taken as it is typed
            words += [f"{name}.{key}={spell(one)}" for key, one in value.items()]
        else:
            several = value if isinstance(value, list | tuple) else [] if value is None else [value]
            words += [f"{name}={str(one).lower() if isinstance(one, bool) else one}" for one in several]
    return words


def check_output(path: str | None) -> None:
    """Raise ConfigError if what is to be written would wait for a reader, or take the place of a device."""
    if path is not None and os.path.exists(path) and not os.path.isfile(path):
        raise ConfigError(f"output={path} is there and is not a regular file: give another name")


def says_the_model(word: str) -> bool:
    """Whether a word of a command says something of a model that no run has trained."""
    return word.lstrip("+~").partition("=")[0].partition(".")[0] in COMPOSED


def check_paths(words: Sequence[str]) -> None:
    """Find mistyped paths before a model is loaded.

    Raises:
        ConfigError: one does not exist, or is a FIFO, a device or a socket.
    """
    for word in words:
        if word == STANDARD_INPUT or "://" in word:
            continue
        path = os.path.expanduser(word)
        if not (os.path.exists(path) or glob.glob(path, recursive=True)):
            kind = "no file fits this pattern" if glob.has_magic(word) else "there is no such file or folder"
            raise ConfigError(f"{word}: {kind}; a text is given with text=... or prompt=...")
        if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
            raise ConfigError(f"{word} is neither a regular file nor a folder")


def _set(settings: PredictSettings, key: str, value: str) -> None:
    if key in LISTS:
        getattr(settings, "text" if key in TEXTS else key).append(value)
    elif key in _AS_TYPED:
        setattr(settings, key, value)
    else:
        kinds = {"top_k": int, "batch_size": int, "show": int, "stream": bool, "record": bool}
        parsed = _plain(value, key)
        if type(parsed) is not kinds[key] and not (key == "top_k" and parsed == ALL):
            raise ConfigError(
                f"{key}={value}: {'true or false' if kinds[key] is bool else 'a whole number'} is needed"
            )
        setattr(settings, key, parsed)


def _plain(value: str, key: str) -> Any:
    return load(value, f"{key}={value}")
