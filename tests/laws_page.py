"""A plugin of pytest that writes docs/laws.md from the results of a run of all laws.

PYTHONPATH=tests python -m pytest -p laws_page tests/invariants/test_laws.py     as `make laws` does
"""

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import laws
import pytest

PAGE = Path(__file__).parent.parent / "docs" / "laws.md"
HOLDS, FAILS, NOT_APPLICABLE = "holds", "FAILS", "does not apply"
Cell = tuple[str, str]
"""An outcome, and why a law does not apply or why it is known to fail."""
_cells: dict[tuple[str, int], Cell] = {}
"""By task and law."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the reports of the laws say which task and law they are of, also to the process that collects them."""
    for item in items:
        number = getattr(getattr(item, "function", None), "law", None)
        if number is not None:
            item.user_properties.append(("law", (item.callspec.params["task"], number)))  # pyright: ignore


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    key: Any = dict(report.user_properties).get("law")
    if key is None or (report.passed and report.when != "call"):
        return
    if hasattr(report, "wasxfail"):
        cell = FAILS, report.wasxfail
    elif report.skipped and isinstance(report.longrepr, tuple):
        cell = NOT_APPLICABLE, report.longrepr[2].removeprefix("Skipped: ")
    else:
        cell = HOLDS if report.passed else FAILS, ""
    if _cells.get(tuple(key), ("", ""))[0] != FAILS:  # a failure of the call, or of what follows it, stays
        _cells[tuple(key)] = cell


def pytest_sessionfinish(session: pytest.Session) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    wanted = {(task, law) for task in laws.ENTRIES for law in laws.LAWS}
    if _cells.keys() == wanted:
        PAGE.write_text(page(_cells), encoding="utf-8")
        print(f"\n{PAGE} is written")
    else:
        print(f"\n{PAGE.name} is not written: {len(_cells)} of {len(wanted)} cells were run")


def page(cells: Mapping[tuple[str, int], Cell]) -> str:
    """Write the laws, the table of tasks and laws, and the reasons as footnotes."""
    footnotes: dict[str, int] = {}

    def cell(task: str, law: int) -> str:
        outcome, reason = cells[task, law]
        reason = reason or laws.ENTRIES[task].notes.get(law, "")
        mark = f" <sup>{footnotes.setdefault(reason, len(footnotes) + 1)}</sup>" if reason else ""
        return f"{outcome}{mark}"

    titles = "\n".join(f"{law}. {title}" for law, title in laws.LAWS.items())
    head = f"| task | {' | '.join(map(str, laws.LAWS))} |\n|---|{'---|' * len(laws.LAWS)}"
    rows = [f"| `{task}` | " + " | ".join(cell(task, law) for law in laws.LAWS) + " |" for task in laws.ENTRIES]
    counts = Counter(outcome for outcome, _ in cells.values())
    told = ", ".join(f"{outcome} {count}" for outcome, count in counts.most_common())
    reasons = "\n".join(f"* {number}: {reason}" for reason, number in footnotes.items())
    return (
        "# Laws\n\nEvery task keeps the same laws. `tests/invariants/test_laws.py` tests each law on each task, with "
        "a tiny model and a few rows, on a CPU. `make laws` runs all of them and writes this page from the results.\n"
        f"\n{titles}\n\n{head}\n" + "\n".join(rows) + f"\n\nCells: {told}.\n\n{reasons}\n"
    )


def listed() -> tuple[list[str], dict[int, str]]:
    """Read the tasks and laws that the page lists."""
    text = PAGE.read_text()
    titles = {int(number): title for number, title in re.findall(r"^(\d+)\. (.+)$", text, re.M)}
    return re.findall(r"^\| `(\w+)` \|", text, re.M), titles
