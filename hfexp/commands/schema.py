"""The command `hfexp schema`: JSON Schemas of the config groups, by which editors complete and check YAML."""

import argparse
import ast
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hfexp.core.console import say
from hfexp.core.errors import ConfigError
from hfexp.core.files import replace_file
from hfexp.core.keys import Key, keys
from hfexp.core.options import GROUPS

DIRECTORY = "schemas"
DIALECT = "http://json-schema.org/draft-07/schema#"
"""The newest dialect that yaml-language-server (1.19) supports in full."""
WHOLE = ("experiment", "debug")
"""Groups whose files may set any key (`# @package _global_`)."""
OPEN = ("task", "metrics", "model")
"""Groups with keys that depend on a `_target_`."""
LATER = {"type": "string", "pattern": r"\$\{|^\?\?\?$"}
"""An interpolation, or the mark of a value that is still to come: both may stand for a value of any type."""
DEFAULTS = {
    "description": "Options of other groups that this file chooses, e.g. `override /model: vit_tiny`.",
    "type": "array",
    "items": {"type": ["string", "object"]},
}
TARGET = {"description": "The class or function that is called, e.g. `my_package.module.name`.", "type": "string"}
PLAIN = {
    "int": "integer", "float": "number", "bool": "boolean", "str": "string", "None": "null", "dict": "object",
    "list": "array", "Mapping": "object",
}  # fmt: skip
"""JSON's names of Python's types."""


def main(argv: list[str]) -> int:
    """Write the schemas to a directory, and print the line by which a YAML file names its schema."""
    parser = argparse.ArgumentParser(
        prog="hfexp schema",
        description="Write a JSON Schema for each config group. Editors with the YAML language server (VS Code, "
        "PyCharm, Neovim, Emacs) then complete keys, show what they mean and mark misspelt ones.",
    )
    parser.add_argument("directory", nargs="?", default=DIRECTORY, help=f"where to write (default: {DIRECTORY})")
    place = Path(parser.parse_args(argv).directory)
    try:
        write_schemas(place)
    except OSError as error:
        raise ConfigError(f"{place} can't be written: {error.strerror}") from error
    say(f"{place}: {len(GROUPS) + 1} schemas. Begin a YAML file with the line that names its schema:")
    path = os.path.relpath(place / "dataset.json", "conf/dataset")
    say(f"  conf/dataset/NAME.yaml    # yaml-language-server: $schema={path}")
    return 0


def write_schemas(place: Path) -> None:
    """Write `GROUP.json` for each group, and `config.json` for a whole config."""
    place.mkdir(parents=True, exist_ok=True)
    for name in ("config", *GROUPS):
        replace_file(place / f"{name}.json", json.dumps(schema(name), indent=1) + "\n")


def schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema of the files of a group; `config` is a whole config.

    The files of `experiment` and `debug` refer to `config.json`, and that one to the files of the groups.
    """
    if name in WHOLE:
        return {"$schema": DIALECT, "title": GROUPS[name], "allOf": [{"$ref": "config.json"}]}
    if name == "config":
        properties = {part: {"$ref": f"{part}.json"} for part in GROUPS if part not in WHOLE}
        properties["model"] = _object(_properties("model"), closed=False)  # it may add to a model with a `_target_`
        top = {key: value for key, value in _properties("").items() if key not in properties}
        hydra = {"description": "Settings of Hydra itself: launcher, sweeper, directories.", "type": "object"}
        return {"$schema": DIALECT, **_object({**properties, **top, "hydra": hydra, "defaults": DEFAULTS})}
    content = _object(_properties(name) | {"defaults": DEFAULTS, "_target_": TARGET}, name not in OPEN)
    if name == "model":  # a `_target_` takes arguments that no schema knows; without one, only these keys exist
        content["if"] = {"not": {"required": ["_target_"]}}
        content["then"] = {"propertyNames": {"enum": sorted(content["properties"])}}
    return {"$schema": DIALECT, "title": GROUPS[name], **content}


def _object(properties: Mapping[str, Any], closed: bool = True) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "additionalProperties": not closed}


def _properties(section: str) -> dict[str, Any]:
    """Return the schemas of the keys directly below a section; "" is the root."""
    prefix = f"{section}." if section else ""
    below = [key for key in keys().values() if key.name.startswith(prefix) and key.taken]
    direct = [key for key in below if "." not in key.name.removeprefix(prefix)]
    return {key.name.removeprefix(prefix): _value(key, section) for key in direct}


def _value(key: Key, section: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"description": f"{key.text}\n\n{key.allowed}".strip()}
    inner = _properties(key.name)
    if inner:
        return facts | _object(inner, closed=section != "task")
    if key.default is not None:
        facts["default"] = key.default
    if section == "task":  # tasks of one's own may take other types
        return facts
    kinds = [{"enum": list(key.values)}] if key.values else []
    kinds += _types(ast.parse(key.type, mode="eval").body, bool(key.values))
    return facts if {} in kinds else facts | {"anyOf": [*kinds, LATER]}


def _types(annotation: ast.expr, has_values: bool) -> list[dict[str, Any]]:
    """Return the JSON types of a Python annotation; `{}` is any type."""
    found = []
    for name, arguments in _members(annotation):
        if name in PLAIN and not (has_values and name == "str"):  # the values are the strings that are taken
            kind: dict[str, Any] = {"type": PLAIN[name]}
            if name == "list" and arguments:
                kind["items"] = {"anyOf": _types(arguments[0], False)}
            found.append(kind if {} not in kind.get("items", {}).get("anyOf", []) else {"type": "array"})
        elif name not in PLAIN and not has_values:
            found.append({})
    return found


def _members(annotation: ast.expr) -> Iterator[tuple[str, list[ast.expr]]]:
    """Yield the name and the arguments of each member of a union."""
    if isinstance(annotation, ast.BinOp):
        yield from _members(annotation.left)
        yield from _members(annotation.right)
    elif isinstance(annotation, ast.Subscript):
        inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        name = ast.unparse(annotation.value).rpartition(".")[2]
        if name in ("Optional", "Union"):
            yield from (member for part in inner for member in _members(part))
            yield from [("None", [])] if name == "Optional" else []
        else:
            yield name, inner
    elif isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):  # a quoted annotation
        yield from _members(ast.parse(annotation.value, mode="eval").body)
    else:
        yield ast.unparse(annotation), []
