"""Command-line arguments of `hfexp predict`: the inputs, the model, and the output of the answers.

They bypass Hydra's grammar, which would need texts to be quoted twice: the model gets exactly the typed text.
Overrides that choose a model (`task=`, `model=`, `transform=`, `security=`) are passed on to Hydra.
"""

import glob
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hfexp.core.bounded_yaml import load
from hfexp.core.errors import ConfigError, did_you_mean, one_of
from hfexp.core.input_files import STANDARD_INPUT

COMPOSED = ("task", "model", "transform", "security")
"""Config sections that define a model which no run of ours has trained."""
TEXTS = ("text", "prompt")
"""Two keys for the same thing: a text as input."""
FORMATS = (".csv", ".jsonl", ".parquet")
ALL = "all"


@dataclass
class PredictSettings:
    """Parsed arguments of `hfexp predict`."""

    run: str | None = None
    """Id or name of a run, a directory, or the id of a model on the Hub (OWNER/NAME)."""
    sweep: str | None = None
    """Name of a sweep whose best run is used, in place of `run`."""
    inputs: list[str] = field(default_factory=list)
    """Files, folders, patterns, URLs (http, s3, ...), or `-` for one input per line of standard input."""
    text: list[str] = field(default_factory=list)
    """Texts that are themselves inputs."""
    system: str | None = None
    """System prompt for a chat model."""
    columns: dict[str, str] = field(default_factory=dict)
    """Names that the task's columns have in the input tables."""
    top_k: int | str = 1
    """Number of most probable classes to show, or `all`."""
    batch_size: int = 32
    """Rows per batch."""
    generation: dict[str, Any] = field(default_factory=dict)
    """Fields of `transformers.GenerationConfig` to set."""
    output: str | None = None
    """File for all answers: .csv, .jsonl or .parquet."""
    show: int = 20
    """Maximum number of answers to print."""
    stream: bool | None = None
    """Print a text while it is generated; null: only in a terminal and for one prompt."""
    record: bool = False
    """Log the answers as an artifact of the run in MLflow."""
    device: str | None = None
    """Torch device; null: the accelerator if there is one."""
    output_dir: str = "outputs"
    """Directory that contains the runs."""
    uri: str | None = None
    """Tracking URI of the runs, if it is not the store in `output_dir`."""
    composed: list[str] = field(default_factory=list)
    """Hydra overrides."""

    def check(self) -> None:
        """Raise ConfigError for settings that are out of range or contradict each other."""
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
    """Parse arguments of the form `key=value`; arguments without a key are inputs.

    Raises:
        ConfigError: a key does not exist, or a value has the wrong type or is out of range.
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
    """Convert keyword arguments to command-line arguments: one per item of a list, one per key of a mapping."""
    words = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            spell = str if name == "columns" else json.dumps  # JSON is valid YAML; column names are not parsed
            words += [f"{name}.{key}={spell(one)}" for key, one in value.items()]
        else:
            several = value if isinstance(value, list | tuple) else [] if value is None else [value]
            words += [f"{name}={str(one).lower() if isinstance(one, bool) else one}" for one in several]
    return words


def check_output(path: str | None) -> None:
    """Raise ConfigError if the output exists but is not a file: a FIFO would block, a device would be replaced."""
    if path is not None and os.path.exists(path) and not os.path.isfile(path):
        raise ConfigError(f"output={path} is there and is not a regular file: give another name")


def says_the_model(word: str) -> bool:
    """Tell whether an argument configures a model that no run has trained."""
    return word.lstrip("+~").partition("=")[0].partition(".")[0] in COMPOSED


def check_paths(words: Sequence[str]) -> None:
    """Check input paths before a model is loaded, to catch typing errors early.

    Raises:
        ConfigError: a path does not exist, or is a FIFO, a device or a socket.
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
