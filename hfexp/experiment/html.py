"""HTML of a result for notebooks: metrics, learning curves and the confusion matrix."""

import base64
import html
from collections.abc import Mapping
from pathlib import Path

PICTURES = ("learning_curves.png", "confusion_matrix_test.png", "confusion_matrix_validation.png")
"""Artifacts of a run that are shown; of the two matrices, only the first that exists."""
SHOWN = ("best_eval_", "final_eval_", "test_")
"""Prefixes of the metrics that are shown, one column each."""
MINOR = ("_runtime", "_per_second", "_preparation_time")
"""Ends of the names of metrics that are left out."""


def result_html(title: str, metrics: Mapping[str, float], directory: Path | None) -> str:
    """Render a table of the final metrics, with one column per prefix of `SHOWN`, and the pictures of the run.

    Args:
        directory: the run directory; None shows no pictures.
    """
    names = sorted({name.removeprefix(prefix) for prefix in SHOWN for name in metrics if _is_shown(name, prefix)})
    moments = [prefix for prefix in SHOWN if any(f"{prefix}{name}" in metrics for name in names)]
    head = "".join(f"<th>{prefix.strip('_').replace('_', ' ')}</th>" for prefix in moments)
    rows = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        + "".join(f"<td>{_number(metrics.get(f'{prefix}{name}'))}</td>" for prefix in moments)
        + "</tr>"
        for name in names
    )
    pictures = "".join(_picture(path) for path in _pictures(directory))
    return f"<div><b>{html.escape(title)}</b><table><tr><th></th>{head}</tr>{rows}</table>{pictures}</div>"


def _is_shown(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and not name.endswith(MINOR)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _pictures(directory: Path | None) -> list[Path]:
    if directory is None:
        return []
    found = [path for name in PICTURES if (path := directory / "artifacts" / name).is_file()]
    matrices = [path for path in found if path.name.startswith("confusion")]
    return [path for path in found if path not in matrices[1:]]


def _picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    style = "max-width:48%;vertical-align:top"
    return f"<img alt='{html.escape(path.stem)}' style='{style}' src='data:image/png;base64,{data}'>"
