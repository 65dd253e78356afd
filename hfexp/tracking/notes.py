"""The note of a run, which MLflow shows as its description: the user's own text, then a summary of the result."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hfexp.core.console import code, plain

if TYPE_CHECKING:
    from hfexp.tracking.report.classes import ClassReport

NOTE = "mlflow.note.content"
"""Tag that holds the note, as Markdown."""
LONGEST_COMMAND = 1000
SUMMARY = "**Result**"
"""First line of the summary."""


def split_note(note: str) -> tuple[str, str]:
    """Split a note into the user's own text and hfexp's summary; either may be empty."""
    own, mark, summary = f"\n{note}".partition(f"\n{SUMMARY}\n")
    return own.strip(), f"{SUMMARY}\n{summary}" if mark else ""


def join_note(own: str, summary: str) -> str:
    """Put the user's own text before hfexp's summary."""
    return "\n\n".join(part for part in (own, summary) if part)


def summarize(metric: str, metrics: Mapping[str, float], report: "ClassReport | None", command: str) -> str:
    """Summarize a finished run in Markdown: its result beside the baseline, its best and worst class, its command.

    Args:
        metric: the task's main metric, without a prefix.
        report: scores by class, for a task with classes.
    """
    names = {"validation": f"final_eval_{metric}", "test": f"test_{metric}"}
    rows = [f"| {split} | {metrics[name]:.4f} |" for split, name in names.items() if name in metrics]
    lines = [SUMMARY, "", f"| | {plain(metric)} |", "|---|---|", *rows]
    best = report.best() if report else None
    if report is not None and best is not None:
        if metric == "accuracy":
            lines.append(f"| always the most frequent class | {report.majority_share:.4f} |")
        parts = [_recall(best), *map(_recall, report.worst(1))]
        lines += ["", f"Highest recall: {parts[0]}. Lowest: {parts[-1]}."]
    return "\n".join(
        [*lines, "", code(command[:LONGEST_COMMAND]), "", "The artifact `report.html` is the whole report."]
    )


def _recall(scores: tuple[str, float, int]) -> str:
    label, recall, count = scores
    return f"{code(label)} {recall:.2f} ({count} rows)"
