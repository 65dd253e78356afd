"""Source code of Python's standard library, which every installation has: its files, and the roles of its names."""

import ast
import functools
import io
import math
import sysconfig
import tokenize
import zlib
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = ("test", "tests", "idlelib", "lib2to3", "site-packages", "pydoc_data", "turtledemo", "ensurepip")
"""Directories of the standard library to skip, as they hold no documentation of their own."""
FEWEST, MOST = 4, 32
"""Words of a line, or of a description, that is used."""
LARGEST = 16_000
"""Bytes of a file that is used: `tokenize` reads about a megabyte in two seconds."""
LITERAL = '""'
"""Word in place of any text in quotes."""
SPACE = (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER)
AFTER = {"def": "function", "class": "class"}
"""Role of the name behind a keyword."""
Place = tuple[int, int]
"""Line and column of a token."""
Line = tuple[tuple[str, ...], tuple[str, ...]]
"""Words of a logical line of code, and their tags in BIO."""


def standard_library(largest: float = math.inf) -> Iterator[tuple[str, str, ast.Module]]:
    """Yield package, text and syntax tree of the files of the standard library, ordered by their path.

    Args:
        largest: bytes of a file from which on it is left out.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if path.stat().st_size > largest:
            continue
        if set(parts) & set(LEFT_OUT) or parts[0].startswith(("_", "lib-")):
            continue
        try:
            text = path.read_text(encoding="utf-8")
            yield parts[0].removesuffix(".py"), text, ast.parse(text)
        except (OSError, SyntaxError, ValueError):  # templates, and files for another version of Python
            continue


@functools.cache
def functions_by_split() -> dict[str, list[tuple[str, str]]]:
    """Return description and signature of the public functions, each once; no package is in two splits.

    The description is the first sentence of the docstring.
    """
    splits: dict[str, list[tuple[str, str]]] = {"train": [], "validation": [], "test": []}
    seen: set[str] = set()
    for package, _, tree in standard_library():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            text, signature = text.partition(". ")[0], f"{node.name}({ast.unparse(node.args)})"
            if FEWEST <= len(text.split()) <= MOST and not {text, signature} & seen:
                seen |= {text, signature}
                splits[_split_of(package)].append((text, signature))
    return splits


def _split_of(package: str) -> str:
    """Return the split of a package's rows: of ten packages, two are for the test, and one is for validation."""
    tenth = zlib.crc32(package.encode()) % 10
    return "test" if tenth < 2 else "validation" if tenth == 2 else "train"


@functools.cache
def lines_by_split() -> dict[str, list[Line]]:
    """Return the lines that hold a module or two other names with a role, each once; no package is in two splits."""
    splits: dict[str, dict[Line, None]] = {"train": {}, "validation": {}, "test": {}}
    seen: set[tuple[str, ...]] = set()
    for package, text, tree in standard_library(LARGEST):
        if not text.isascii():  # the tree counts bytes, the tokens characters
            continue
        split = _split_of(package)
        for words, tags in tagged_lines(text, tree):
            enough = "B-module" in tags or sum(tag[0] == "B" for tag in tags) >= 2
            if enough and FEWEST <= len(words) <= MOST and words not in seen:
                seen.add(words)
                splits[split][words, tags] = None
    return {split: list(lines) for split, lines in splits.items()}


def tagged_lines(text: str, tree: ast.Module) -> Iterator[Line]:
    """Yield the logical lines of a file: their words, and the tags of the names among them."""
    roles = _roles(tree)
    line: list[tuple[str, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NEWLINE:
            yield tuple(word for word, _ in line), _bio(line)
            line = []
        elif token.type not in SPACE:
            before = line[-1][0] if line else ""
            role = roles.get(token.start) or (AFTER.get(before, "") if token.type == tokenize.NAME else "")
            line.append((LITERAL if token.type == tokenize.STRING else token.string, role))


def _bio(line: list[tuple[str, str]]) -> tuple[str, ...]:
    """Return the tags of a line; a module's dotted name is one entity, any other name one by itself."""
    words = [word for word, _ in line]
    tags, is_module = [], False
    for place, (word, role) in enumerate(line):
        joins = is_module and (word == "." or words[place - 1] == ".") and word != "import"
        is_module = role == "module" or joins
        tags.append("I-module" if joins else f"B-{role}" if role else "O")
    return tuple(tags)


def _roles(tree: ast.Module) -> dict[Place, str]:
    """Return the roles of the names in a file by the places of their tokens."""
    nodes = list(ast.walk(tree))
    roles = {_end(node, node.attr): "attribute" for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Attribute):
                roles[_end(called, called.attr)] = "method"
            elif isinstance(called, ast.Name):
                roles[called.lineno, called.col_offset] = "call"
        else:
            roles |= _declared(node)
    return roles


def _declared(node: ast.AST) -> dict[Place, str]:
    """Return the roles of parameters, of arguments with a name, and of imported modules."""
    if isinstance(node, ast.arg):
        return {(node.lineno, node.col_offset): "parameter"}
    if isinstance(node, ast.keyword) and node.arg is not None:
        return {(node.lineno, node.col_offset): "keyword"}
    if isinstance(node, ast.Import):
        return {(alias.lineno, alias.col_offset): "module" for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {(node.lineno, node.col_offset + len("from ")): "module"}
    return {}


def _end(node: ast.Attribute, name: str) -> Place:
    """Return the place of an attribute's name, which is the last one of its expression."""
    return node.end_lineno or 0, (node.end_col_offset or 0) - len(name)
