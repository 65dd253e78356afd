"""The report of one run: its plots, tables and pages, made in reading order."""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfexp.core.console import duration
from hfexp.core.training_args import TIMINGS
from hfexp.data.dataset import num_rows
from hfexp.tasks.base import Task
from hfexp.tracking.report import figures
from hfexp.tracking.report.canvas import Pictures, guarded, style
from hfexp.tracking.report.classes import ClassReport, digits, write_csv
from hfexp.tracking.report.facts import ItemScores, ReportFacts, Scores, SplitScores, TextScores
from hfexp.tracking.report.figures import MAX_PICTURES, Mistakes, mistakes_sheet
from hfexp.tracking.report.page import Block, Code, Heading, Marked, Picture, Report, Section, Table, Text

MAX_CLASS_ROWS = 50
WORST_CLASSES = 25
CONFUSED_ROWS = 10
SAMPLE_ROWS = 100
"""Most rows of each split in its table of predictions."""
MAX_TEXT = 2_000
"""Most characters of one sample's text."""
RESULT_COLUMNS = (("best_eval_", "best recorded"), ("final_eval_", "validation"), ("test_", "test"))
"""Prefix of a column's metrics, and the column's title."""


@dataclass
class SplitParts:
    """Results on one split."""

    classes: ClassReport
    mistakes: Mistakes | None = None
    texts: list[tuple[str, str, str]] = field(default_factory=list)
    """Mistakes of a task with text inputs: true class, predicted class, text."""


def _sections(
    facts: ReportFacts,
    parts: dict[str, SplitParts],
    scores: Mapping[str, Scores],
    made: list[str],
    directory: Path,
) -> list[Section]:
    """Build all sections; `made` has the file names of the pictures that exist."""
    items = {split: found for split, found in scores.items() if isinstance(found, ItemScores)}
    texts = {split: found for split, found in scores.items() if isinstance(found, TextScores)}
    return [
        Section("Result", _result(facts, parts)),
        Section("Learning curves", _pictures(made, ("learning_curves.png", "Learning curves"))),
        Section("Data", _data(facts) + _pictures(made, ("classes.png", "Samples of each class"))),
        Section("Training samples", _samples(made, directory)),
        Section("Classes", [block for split, part in parts.items() for block in _classes(split, part, made)]),
        Section("Types", [block for split, found in items.items() for block in _items(split, found)]),
        Section("Marked texts", [Marked(pieces) for found in items.values() for pieces in found.examples]),
        Section("Written texts", [_written(split, found) for split, found in texts.items()]),
        Section("Calibration", _pictures(made, *((f"calibration_{s}.png", f"Calibration, {s}") for s in parts))),
        Section("Mistakes", [block for split, part in parts.items() for block in _mistakes(split, part, made)]),
        Section("Model", _pairs(facts.model)),
        Section("Configuration", _pairs(facts.params)),
        Section("Environment", _pairs(facts.environment)),
        Section("Command", [Code(facts.command)] if facts.command else []),
    ]


def _number(value: float | None) -> str:
    """Format a score with four decimals; very small and very large ones with four significant digits."""
    if value is None:
        return ""
    if math.isnan(value):
        return "\u2013"
    return f"{value:.4f}" if value == 0 or 0.001 <= abs(value) < 1e5 else f"{value:.4g}"


def _result(facts: ReportFacts, parts: dict[str, SplitParts]) -> list[Block]:
    """Build a table of one row for each metric, the task's own first, and a row with the majority-class baseline."""
    columns = [(prefix, title) for prefix, title in RESULT_COLUMNS if any(k.startswith(prefix) for k in facts.metrics)]
    names = dict.fromkeys(
        key.removeprefix(prefix)
        for prefix, _ in columns
        for key in facts.metrics
        if key.startswith(prefix) and not key.endswith(TIMINGS)
    )
    ordered = sorted(names, key=lambda name: (name != facts.metric, name != "loss"))
    rows = [[name, *(_number(facts.metrics.get(prefix + name)) for prefix, _ in columns)] for name in ordered]
    shares = {split: part.classes.majority_share for split, part in parts.items()}
    if shares:
        rows.append(["accuracy of predicting the most frequent class", *(_number(shares.get(t)) for _, t in columns)])
    if not rows:
        return []
    blocks: list[Block] = [Table(["", *(title for _, title in columns)], rows, strong=frozenset({0}))]
    if facts.best_step is not None:
        blocks.append(Text(f"The best evaluation was at step {facts.best_step:,}."))
    return blocks


def _data(facts: ReportFacts) -> list[Block]:
    """Build a table of one row for each split."""
    rows = []
    for split, known in facts.data.items():
        counts = list((known.get("classes") or {}).values())
        rows.append(
            [
                split,
                "streamed" if known.get("rows", 0) is None else f"{known.get('rows', 0):,}",
                f"{len(counts):,}" if counts else "",
                f"{min(counts):,} to {max(counts):,}" if counts else "",
                str(known.get("source", "")),
                str(known.get("digest", "")),
            ]
        )
    header = ["split", "samples", "classes", "samples per class", "source", "digest"]
    return [Table(header, rows, numbers=frozenset({1, 2, 3}))] if rows else []


def _samples(made: list[str], directory: Path) -> list[Block]:
    blocks = _pictures(made, ("samples.png", "Training samples as the model sees them"))
    texts = directory / "samples.txt"
    if texts.is_file():
        blocks.append(Code(texts.read_text(encoding="utf-8", errors="replace")[: 8 * MAX_TEXT]))
    return blocks


def _classes(split: str, part: SplitParts, made: list[str]) -> list[Block]:
    """Build plots, scores of each class (above 50 classes: of the worst) and the most frequent mistakes."""
    report = part.classes
    blocks: list[Block] = [Heading(f"{split}: {report.matrix.sum():,} samples")]
    blocks += _pictures(
        made,
        (f"confusion_matrix_{split}.png", f"Confusion matrix, {split}"),
        (f"most_confused_{split}.png", f"Most confused classes, {split}"),
    )
    few = len(report.labels) <= MAX_CLASS_ROWS
    chosen = list(range(len(report.labels))) if few else report.worst_ids(WORST_CLASSES)
    if not few:
        blocks.append(
            Text(f"The {len(chosen)} of {len(report.labels):,} classes of lowest recall (all: per_class_{split}.csv).")
        )
    columns = (report.precision, report.recall, report.f1)
    rows = [[report.labels[i], *(_number(c[i]) for c in columns), f"{report.support[i]:,}"] for i in chosen]
    blocks.append(Table(["class", "precision", "recall", "F1", "samples"], rows))
    pairs = report.most_confused(CONFUSED_ROWS)
    if pairs:
        rows = [[report.labels[i], report.labels[j], f"{n:,}", f"{report.support[i]:,}"] for i, j, n in pairs]
        header = ["true", "predicted", "count", "of samples"]
        blocks.append(Table(header, rows, numbers=frozenset({2, 3}), title="The most frequent mistakes"))
    return blocks


def _items(split: str, found: ItemScores) -> list[Block]:
    """Build a table of one row for each class of items."""
    rows = []
    for name, (right, predicted, true) in found.counts.items():
        scores = (right / predicted if predicted else 0.0, right / true if true else 0.0)
        f1 = 2 * right / (predicted + true) if predicted + true else 0.0
        rows.append([name, *map(_number, (*scores, f1)), f"{true:,}", f"{predicted:,}"])
    return [Table(["type", "precision", "recall", "F1", "true", "predicted"], rows, title=split)]


def _written(split: str, found: TextScores) -> Block:
    """Build a table of the best and the worst texts."""
    rows = [
        [_number(row.score), *(t[:MAX_TEXT] for t in (row.source, row.target, row.written))] for row in found.examples
    ]
    header = [f"{found.metric} of the row", "source", "target", "written"]
    return Table(header, rows, numbers=frozenset({0}), title=f"{split}: the best and the worst")


def _mistakes(split: str, part: SplitParts, made: list[str]) -> list[Block]:
    if part.mistakes is None:
        return []
    total = part.mistakes.total
    if not total:
        return [Text(f"{split}: no mistakes.")]
    blocks: list[Block] = [Text(f"{split}: {total:,} of {part.classes.matrix.sum():,} samples; mistakes_{split}.csv.")]
    blocks += _pictures(made, (f"mistakes_{split}.png", f"The most confident mistakes, {split}"))
    if part.texts:
        rows = [[true, predicted, text[:MAX_TEXT]] for true, predicted, text in part.texts]
        blocks.append(Table(["true", "predicted", "input"], rows, numbers=frozenset()))
    return blocks


def _pairs(values: dict[str, str]) -> list[Block]:
    rows = [[str(name), str(value)] for name, value in values.items()]
    return [Table(["", ""], rows, numbers=frozenset(), small=True)] if rows else []


def _pictures(made: list[str], *wanted: tuple[str, str]) -> list[Block]:
    """Keep the pictures that exist, given as pairs of file name and description."""
    return [Picture(name, alt) for name, alt in wanted if name in made]


def draw_report(
    facts: ReportFacts,
    scores: Mapping[str, Scores],
    id2label: dict[int, str] | None,
    splits: Mapping[str, Any],
    task: Task,
    processor: Any,
    drawn: Pictures,
) -> ClassReport | None:
    """Write plots, tables, `report.html` and `report.md`; a part that fails is left out with a warning.

    Args:
        scores: predictions of the final model by split, in the order in which the report shows the splits.
        id2label: names of the classes; None for a task without classes, whose scores are ignored.
        splits: datasets of model inputs by split, with their rows in the order of the scores; mistakes are read from
            them.
        drawn: takes the plots; everything is written to its directory.

    Returns:
        The class report of the last split with a labelled sample; None if no split has one.
    """
    directory = drawn.directory
    directory.mkdir(parents=True, exist_ok=True)
    parts: dict[str, SplitParts] = {}
    with style() if drawn.wanted else contextlib.nullcontext():
        drawn.draw("learning_curves.png", figures.learning_curves, facts)
        drawn.draw("classes.png", figures.class_histogram, facts.data)
        drawn.take("samples.png")
        for split, split_scores in scores.items() if id2label else ():
            if isinstance(split_scores, SplitScores) and split_scores.labelled(len(id2label or {})).any():
                parts[split] = _draw_split(split, split_scores, id2label or {}, drawn)
                _draw_mistakes(
                    split, parts[split], split_scores, id2label or {}, splits.get(split), task, processor, drawn
                )
    with guarded("report"):
        lead = (facts.experiment, facts.status, duration(facts.seconds), f"metric: {facts.metric}")
        report = Report(
            facts.name, " \u00b7 ".join(lead), _sections(facts, parts, scores, list(drawn.made), directory)
        )
        (directory / "report.html").write_text(report.html(drawn.made), encoding="utf-8", errors="backslashreplace")
        (directory / "report.md").write_text(report.markdown(), encoding="utf-8", errors="backslashreplace")
    return list(parts.values())[-1].classes if parts else None


def _draw_split(split: str, scores: SplitScores, names: dict[int, str], drawn: Pictures) -> SplitParts:
    """Write tables per class, and plot confusion and calibration of one split."""
    classes = ClassReport.of(scores.predictions, scores.references, names)
    with guarded(f"tables of {split}"):
        classes.save(drawn.directory, split)
        rows = range(min(SAMPLE_ROWS, len(scores.references)))
        _write_rows(drawn.directory / f"predictions_{split}.csv", rows, scores, names)
    drawn.draw(f"confusion_matrix_{split}.png", figures.confusion_matrix, classes, split)
    if len(names) > figures.MAX_LABELLED:
        drawn.draw(f"most_confused_{split}.png", figures.most_confused, classes, split)
    drawn.draw(f"calibration_{split}.png", figures.calibration, scores, len(names), split)
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
