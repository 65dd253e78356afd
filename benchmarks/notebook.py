"""Runs docs/notebook.ipynb from a clean kernel and keeps what it shows: `python -m benchmarks.notebook`."""

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"
SECONDS = 900
"""For one cell."""


def executed(path: Path = NOTEBOOK) -> Any:
    """The notebook after all of its cells; one that fails without being meant to is an error."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3").execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata.pop("execution", None)
            cell.outputs = _joined(cell.outputs)
    notebook.metadata.pop("language_info", None)
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    """Outputs in the one form that is shown; lines of one stream together."""
    kept: list[Any] = []
    for output in outputs:
        data = output.get("data", {})
        if "text/html" in data or "image/png" in data:
            for other in ("text/plain", "image/jpeg"):
                data.pop(other, None)
        if kept and output.output_type == "stream" == kept[-1].output_type and output.name == kept[-1].name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def main() -> None:
    """Rewrite the notebook with what it shows now."""
    notebook = executed()
    nbformat.validate(notebook)
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    sys.exit(main())
