"""A dataset of real text that comes with every Python: docstrings of the standard library, and where they stand."""

import ast
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Value

LEFT_OUT = ("test", "tests", "idlelib", "lib2to3", "site-packages", "pydoc_data", "turtledemo", "ensurepip")
"""Directories of the standard library that hold no documentation of their own."""
SHORTEST = 40
"""Characters of a docstring that says something."""
MASK = "___"


def docstrings(num_classes: int = 10, most: int = 400) -> Dataset:
    """Docstrings of modules, classes and functions; the class is the package or module that they are from.

    The name of the class in a text is replaced by `___`. A text that stands in several places, or begins like another
    one, is there once. What there is depends on the version of Python.

    Args:
        num_classes: the packages with most docstrings.
        most: docstrings of each.
    """
    found: dict[str, list[str]] = {}
    for name, text in _distinct(_texts(Path(sysconfig.get_paths()["stdlib"]))):
        found.setdefault(name, []).append(text)
    counts = Counter({name: len(texts) for name, texts in found.items()})
    names = sorted(name for name, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:num_classes])
    rows: dict[str, list[Any]] = {"text": [], "label": []}
    for label, name in enumerate(names):
        texts = found[name]
        step = max(1.0, len(texts) / most)
        chosen = [texts[int(place * step)] for place in range(min(most, len(texts)))]
        rows["text"] += [_masked(text, name) for text in chosen]
        rows["label"] += [label] * len(chosen)
    return Dataset.from_dict(rows, features=Features({"text": Value("string"), "label": ClassLabel(names=names)}))


def _texts(root: Path) -> Iterator[tuple[str, str]]:
    """Package and docstring, in the order of the files' names."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if set(parts) & set(LEFT_OUT) or parts[0].startswith(("_", "lib-")):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):  # templates, and files of another version
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = " ".join((ast.get_docstring(node) or "").split())
                if len(text) >= SHORTEST:
                    yield parts[0].removesuffix(".py"), text


def _distinct(pairs: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    seen = set()
    for name, text in pairs:
        start = text[:SHORTEST].lower()
        if start not in seen:
            seen.add(start)
            yield name, text


def _masked(text: str, name: str) -> str:
    return re.sub(re.escape(name), MASK, text, flags=re.IGNORECASE)
