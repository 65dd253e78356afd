"""The shape of the code: small functions, and a pipeline that knows no task by name.

`make lint` checks the direction of the imports (pyproject.toml, `importlinter`).
"""

import ast
import functools
import itertools
import tomllib
from pathlib import Path

import grimp
from conftest import ROOT
from documents import read_section, write_section

import hfexp

PACKAGE = Path(hfexp.__file__).parent


def test_no_task_is_known_by_name_outside_its_file() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "tasks":
            continue
        words = {
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        names = (
            "image_classification", "token_classification", "fill_mask", "multiple_choice", "question_answering",
            "text2text", "summarization", "embedding_similarity",
        )  # fmt: skip
        assert not any(name in word for name in names for word in words), path


def test_functions_stay_small() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"


def test_chains_of_imports_stay_short() -> None:
    """A change in a module can break only what is above it; the longest way up has at most 16 modules."""
    graph = grimp.build_graph("hfexp", cache_dir=None)

    @functools.cache
    def length(module: str) -> int:
        return 1 + max(map(length, graph.find_modules_directly_imported_by(module)), default=0)

    longest = max(graph.modules - {"hfexp"}, key=length)
    assert length(longest) <= 16, longest


def layers() -> list[list[str]]:
    """The rooms, from the top down; those of one layer do not import each other."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    return [layer.split(" | ") for layer in contract["layers"]]


def purpose(room: str) -> str:
    docstring = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
    assert docstring is not None
    return docstring.removesuffix(".")


def test_the_picture_of_the_rooms_is_drawn_from_their_contract() -> None:
    lines = ["```mermaid", "flowchart TD"]
    lines += [f'    {room}["<b>{room}</b><br>{purpose(room)}"]' for layer in layers() for room in layer]
    for above, below in itertools.pairwise(layers()):
        lines += [f"    {upper} --> {lower}" for upper in above for lower in below]
    picture = "\n".join([*lines, "```"])
    write_section("architecture.md", "## The rooms", picture)
    assert read_section("architecture.md", "## The rooms").strip() == f"## The rooms\n\n{picture}"


def test_the_readme_lists_the_rooms() -> None:
    readme = (ROOT / "README.md").read_text()
    for room in itertools.chain(*layers()):
        assert f"\n  {room + '/':<15}{purpose(room)[0].lower()}{purpose(room)[1:]}\n" in readme
