"""The shape of the code: small functions, and a pipeline that knows no task by name.

`make lint` checks the direction of the imports (pyproject.toml, `importlinter`).
"""

import ast
from pathlib import Path

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
        assert not any("image_classification" in word for word in words), path


def test_functions_stay_small() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"
