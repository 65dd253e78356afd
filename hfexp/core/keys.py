"""The keys of the config: their types, defaults, allowed values and texts, read from the source that defines them.

Nothing is imported that a run needs: `hfexp help KEY` answers at once.
"""

import ast
import dataclasses
import functools
import inspect
from collections.abc import Iterator
from enum import Enum
from typing import Any

from hfexp.core import config
from hfexp.core.config import ARGS
from hfexp.core.errors import one_of
from hfexp.core.options import list_options
from hfexp.core.training_args import OWNED, RANGES, REFUSED, training_argument_fields, transformers_classes, way_out

SECTIONS = {"model": config.ModelConfig}
"""Sections whose class the annotation does not tell: the user's own model may replace this one."""
NOT_SET = ("point",)
"""Keys that hfexp sets itself."""


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of the config."""

    name: str
    type: str
    default: Any
    text: str
    allowed: str = ""
    values: tuple[str, ...] = ()
    """All values that it takes besides null, if they are names."""
    taken: bool = True
    """False for a field of `TrainingArguments` that hfexp sets itself or refuses."""


@functools.cache
def keys() -> dict[str, Key]:
    """Return all keys by name: those of the schema, and the fields of `TrainingArguments` as `trainer.args.*`."""
    return {key.name: key for key in (*_schema_keys(config.Config, ""), *_training_keys(), *_task_keys())}


def _schema_keys(section: type, prefix: str) -> Iterator[Key]:
    texts = _attribute_texts()
    empty = section()
    for field in dataclasses.fields(section):
        name, default = f"{prefix}{field.name}", getattr(empty, field.name)
        inner = SECTIONS.get(name) or (type(default) if dataclasses.is_dataclass(default) else None)
        annotation, text = texts[section.__name__, field.name]
        if name in NOT_SET:
            continue
        if inner is not None:
            yield Key(name, "section", None, text or texts[inner.__name__, ""][1])
            yield from _schema_keys(inner, f"{name}.")
        else:
            enum = texts.get((type(default).__name__, ""), ("", ""))[1]
            values = tuple(member.name for member in type(default)) if isinstance(default, Enum) else ()
            yield Key(name, annotation, _plain(default), text or enum, _allowed(default), values)


def _allowed(default: Any) -> str:
    """Return the values of a default's enum, each with its meaning, one per line."""
    if not isinstance(default, Enum):
        return ""
    kind = type(default)
    return "\n".join(f"{member.name}: {_attribute_texts()[kind.__name__, member.name][1]}" for member in kind)


def _plain(value: Any) -> Any:
    """Return a default as it is written in YAML."""
    value = value.value if isinstance(value, Enum) else value
    return None if value == config.MISSING else value


@functools.cache
def _attribute_texts() -> dict[tuple[str, str], tuple[str, str]]:
    """Return annotation and docstring of each attribute of the schema's classes; "" stands for the class itself."""
    texts = {}
    for node in ast.parse(inspect.getsource(config)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        texts[node.name, ""] = ("", ast.get_docstring(node) or "")
        following = [*node.body[1:], None]
        for statement, after in zip(node.body, following, strict=True):
            targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
            if isinstance(targets[0], ast.Name):
                annotation = ast.unparse(statement.annotation) if isinstance(statement, ast.AnnAssign) else ""
                text = after.value.value if _is_text(after) else ""  # pyright: ignore
                texts[node.name, targets[0].id] = (annotation, inspect.cleandoc(text))
    return texts


def _is_text(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _training_keys() -> Iterator[Key]:
    """Yield the fields of the installed `TrainingArguments`, with their own help texts."""
    constants = _class_constants("TrainingArguments")
    for name, node in training_argument_fields().items():
        annotation = ast.unparse(node.annotation)
        field = {word.arg: word.value for word in node.value.keywords} if isinstance(node.value, ast.Call) else {}
        instead = OWNED.get(name) or REFUSED.get(name)
        text = f"hfexp does not take this field: {way_out(instead)}." if instead else _help(field.get("metadata"))
        default = _literal(field["default"]) if "default" in field else None
        default = constants.get(default, default) if isinstance(default, str) else default
        members = _members(annotation.partition(" | ")[0])
        allowed = RANGES[name][0] if name in RANGES else one_of(members)
        yield Key(f"{ARGS}{name}", annotation, default, text, allowed, tuple(members), not instead)


def _help(metadata: ast.expr | None) -> str:
    """Return the text under `help` of a field's metadata."""
    if not isinstance(metadata, ast.Dict):
        return ""
    entries = {_literal(key): value for key, value in zip(metadata.keys, metadata.values, strict=True) if key}
    text = " ".join(str(_literal(entries["help"])).split()) if "help" in entries else ""
    return text.replace("%%", "%")  # argparse, which the texts are for, takes a single one as a mark


def _class_constants(name: str) -> dict[str, Any]:
    """Return the plain values that the body of one of Transformers' classes assigns, of several the last."""
    body = transformers_classes("training_args.py")[name]
    assigned = [
        node for node in ast.walk(body) if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    ]
    return {node.targets[0].id: _literal(node.value) for node in assigned if isinstance(node.targets[0], ast.Name)}


def _members(name: str) -> list[str]:
    """Return the values of one of Transformers' enums; none if it has no enum of this name."""
    for file in ("training_args.py", "trainer_utils.py"):
        if name in transformers_classes(file):
            assigned = [node.value for node in transformers_classes(file)[name].body if isinstance(node, ast.Assign)]
            return [str(_literal(value)) for value in assigned]
    return []


def _literal(node: ast.expr) -> Any:
    """Return the value of a literal, also of added texts; anything else as it is written."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return f"{_literal(node.left)}{_literal(node.right)}"
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def _task_keys() -> Iterator[Key]:
    """Yield the settings of the shipped tasks, which their files explain."""
    for option in list_options("task"):
        for name, default in option.content.items():
            if name not in ("_target_", "defaults"):
                yield Key(
                    f"task.{name}", "Any" if default is None else type(default).__name__, default, option.comment(name)
                )
