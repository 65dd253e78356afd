"""The report of one run: its plots, tables and pages, made in reading order."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfexp.data.streams import num_rows
from hfexp.tasks.base import Task
from hfexp.tracking.report import confusion, pictures
from hfexp.tracking.report.canvas import Pictures, guarded, style
from hfexp.tracking.report.classes import ClassReport, digits, write_csv
from hfexp.tracking.report.facts import ReportFacts, SplitScores
from hfexp.tracking.report.page import Report
from hfexp.tracking.report.samples import MAX_PICTURES, Mistakes, mistakes_sheet
from hfexp.tracking.report.sections import SplitParts, all_sections, lead

SAMPLE_ROWS = 100
"""Most rows of each split in its table of predictions."""


def draw_report(
    facts: ReportFacts,
    scores: dict[str, SplitScores],
    id2label: dict[int, str] | None,
    splits: Mapping[str, Any],
    task: Task,
    processor: Any,
    directory: Path,
) -> ClassReport | None:
    """Write plots, tables, `report.html` and `report.md`; a part that fails is left out with a warning.

    Args:
        scores: predictions of the final model by split, in the order in which the report shows the splits.
        id2label: names of the classes; None for a task without classes, whose scores are ignored.
        splits: datasets of model inputs by split, with their rows in the order of the scores; mistakes are read from
            them.

    Returns:
        The class report of the last split with a labelled sample; None if no split has one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    drawn = Pictures(directory)
    parts: dict[str, SplitParts] = {}
    with style():
        drawn.draw("learning_curves.png", pictures.learning_curves, facts)
        drawn.draw("classes.png", pictures.class_histogram, facts.data)
        drawn.take("samples.png")
        for split, of_split in scores.items() if id2label else ():
            if of_split.labelled(len(id2label or {})).any():
                parts[split] = _draw_split(split, of_split, id2label or {}, drawn)
                _draw_mistakes(
                    split, parts[split], of_split, id2label or {}, splits.get(split), task, processor, drawn
                )
    with guarded("report"):
        report = Report(facts.name, lead(facts), all_sections(facts, parts, list(drawn.made), directory))
        _write(directory / "report.html", report.html(drawn.made))
        _write(directory / "report.md", report.markdown())
    return list(parts.values())[-1].classes if parts else None


def _draw_split(split: str, scores: SplitScores, names: dict[int, str], drawn: Pictures) -> SplitParts:
    """Write tables per class, and plot confusion and calibration of one split."""
    classes = ClassReport.of(scores.predictions, scores.references, names)
    with guarded(f"tables of {split}"):
        classes.save(drawn.directory, split)
        rows = range(min(SAMPLE_ROWS, len(scores.references)))
        _write_rows(drawn.directory / f"predictions_{split}.csv", rows, scores, names)
    drawn.draw(f"confusion_matrix_{split}.png", confusion.confusion_matrix, classes, split)
    if len(names) > confusion.MAX_LABELLED:
        drawn.draw(f"most_confused_{split}.png", confusion.most_confused, classes, split)
    drawn.draw(f"calibration_{split}.png", pictures.calibration, scores, len(names), split)
    return SplitParts(classes)


def _draw_mistakes(
    split: str,
    parts: SplitParts,
    scores: SplitScores,
    names: dict[int, str],
    dataset: Any,
    task: Task,
    processor: Any,
    drawn: Pictures,
) -> None:
    """Write the mistakes of one split to a table; add the first as images or texts if the task can show them."""
    with guarded(f"mistakes_{split}"):
        parts.mistakes = mistakes = Mistakes.of(scores, len(names))
        _write_rows(drawn.directory / f"mistakes_{split}.csv", mistakes.indices, scores, names)
        if not mistakes.indices or dataset is None or num_rows(dataset) != len(scores.references):
            return  # a dataset of another length would show the wrong rows; a stream can't be read again by index
        rows = [dataset[index] for index in mistakes.indices[:MAX_PICTURES]]
        shown = [task.picture(row, processor) for row in rows]
        parts.texts = [
            (names[int(scores.references[i])], names[int(scores.predictions[i])], text)
            for i, text in zip(mistakes.indices, shown, strict=False)
            if isinstance(text, str)
        ]
        drawn.draw(f"mistakes_{split}.png", mistakes_sheet, mistakes, scores, names, shown, split)


def _write_rows(path: Path, indices: Any, scores: SplitScores, names: dict[int, str]) -> None:
    """Write samples as CSV: index in the split, true and predicted class, probability of the predicted class."""
    confidence = scores.confidence
    rows = (
        [
            index,
            names.get(int(scores.references[index]), ""),
            names.get(int(scores.predictions[index]), ""),
            digits(None if confidence is None else float(confidence[index])),
        ]
        for index in indices
    )
    write_csv(path, ["index", "true", "predicted", "probability"], rows)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
