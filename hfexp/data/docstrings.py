"""A text dataset that comes with every Python: docstrings of the standard library, labelled by their package."""

import ast
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Value

LEFT_OUT = ("test", "tests", "idlelib", "lib2to3", "site-packages", "pydoc_data", "turtledemo", "ensurepip")
"""Directories of the standard library to skip, as they hold no documentation of their own."""
SHORTEST = 40
"""Characters that a docstring needs to be used; texts that agree in as many characters count as the same."""
MASK = "___"
"""Text in place of the label's name."""


def docstrings(num_classes: int = 10, most: int = 400) -> Dataset:
    """Build a dataset of docstrings of modules, classes and functions; the label is their top-level package or module.

    The label's name is replaced by `___` in the text. Of texts that begin with the same 40 characters, only the first
    is kept. The rows depend on the version of Python.

    Args:
        num_classes: how many packages to take; those with the most docstrings are taken.
        most: docstrings to take of each package.
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
    """Yield package and docstring, ordered by the path of the file."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if set(parts) & set(LEFT_OUT) or parts[0].startswith(("_", "lib-")):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):  # templates, and files for another version of Python
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
