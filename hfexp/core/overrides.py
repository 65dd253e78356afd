"""Overrides whose value stays a text even if it looks like a number or a truth value: `name=1E5` sets "1E5"."""

import functools
import re
import typing
from dataclasses import is_dataclass
from typing import Any

from hydra.core.override_parser.types import (
    Quote,
    QuotedString,
)

from hfexp.core.config import Config, ModelConfig

PLAIN = re.compile(r"[A-Za-z_][\w./:-]*", re.ASCII)
"""Strings that Hydra's grammar reads without quotes, except those in `RESERVED`."""


RESERVED = ("null", "true", "false", "nan", "inf")


TEXTS = (
    "tracking.tags.", "dataset.columns.", "dataset.source.data_dir", "dataset.source.data_files",
    "dataset.source.image_dir", "dataset.source.image_column", "dataset.source.name", "dataset.source.path",
    "dataset.source.revision", "dataset.source.split",
)  # fmt: skip
"""Keys, or prefixes of keys, that hold texts, in addition to those that the schema types as texts."""
_NUMBER = r"[+-]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d+)?|[+-]?(?:nan|inf)|true|false"
_NON_TEXT = re.compile(rf"(^|[\[,{{]\s*(?:[\w./-]+\s*:\s*)?)({_NUMBER})(?=\s*(?:$|[,\]}}]))", re.IGNORECASE)
"""Pattern of a number or a truth value that stands alone or is an element of a list or a mapping."""


def quote_texts(override: str) -> str:
    """Quote the numbers and truth values in an override if its key holds a text (`name=1E5`)."""
    key, equals, value = override.partition("=")
    bare = key.lstrip("+")
    is_text = bare in _text_keys() or bare.startswith(TEXTS)
    if not is_text or not equals or "(" in value or "'" in value or '"' in value:
        return override
    quoted = _NON_TEXT.sub(r"\1'\2'", value)
    return f"{key}={quoted}"


@functools.cache
def _text_keys(schema: Any = Config, prefix: str = "") -> frozenset[str]:
    """Return the keys of the schema that hold texts, or lists or mappings of texts."""
    keys: set[str] = set()
    for name, annotation in typing.get_type_hints(schema).items():
        types = set(typing.get_args(annotation)) - {type(None)} or {annotation}
        if name == "model":
            types = {ModelConfig}
        for inner in types if len(types) == 1 else ():
            if is_dataclass(inner):
                keys |= _text_keys(inner, f"{prefix}{name}.")
            elif inner in (str, list[str], dict[str, str]):
                keys.add(f"{prefix}{name}")
    return frozenset(keys)


def spelling(value: Any) -> str:
    """Write a plain value in Hydra's grammar."""
    if isinstance(value, str):
        if PLAIN.fullmatch(value) and value.lower() not in RESERVED:
            return value
        return QuotedString(value, Quote.single).with_quotes()
    if isinstance(value, list | tuple):
        return f"[{','.join(spelling(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{spelling(key)}:{spelling(item)}" for key, item in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
