"""Sections of a run's report."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from hfexp.tracking.report.classes import ClassReport
from hfexp.tracking.report.facts import ReportFacts
from hfexp.tracking.report.page import Block, Code, Heading, Picture, Section, Table, Text
from hfexp.tracking.report.samples import Mistakes

MAX_CLASS_ROWS = 50
WORST_CLASSES = 25
CONFUSED_ROWS = 10
MAX_TEXT = 2_000
"""Most characters of one sample's text."""
NOT_RESULTS = ("_runtime", "_samples_per_second", "_steps_per_second", "_model_preparation_time")
"""Suffixes of the timings that the Trainer adds to the metrics of an evaluation."""
RESULT_COLUMNS = (("best_eval_", "best recorded"), ("final_eval_", "validation"), ("test_", "test"))
"""Prefix of a column's metrics, and the column's title."""


@dataclass
class SplitParts:
    """Results on one split."""

    classes: ClassReport
    mistakes: Mistakes | None = None
    texts: list[tuple[str, str, str]] = field(default_factory=list)
    """Mistakes of a task with text inputs: true class, predicted class, text."""


def lead(facts: ReportFacts) -> str:
    """Describe the run in one line."""
    return f"{facts.experiment} \u00b7 {facts.status} \u00b7 {duration(facts.seconds)} \u00b7 judged by {facts.metric}"


def all_sections(facts: ReportFacts, parts: dict[str, SplitParts], made: list[str], directory: Path) -> list[Section]:
    """Build all sections; `made` has the file names of the pictures that exist."""
    return [
        Section("Result", _result(facts, parts)),
        Section("Learning curves", _pictures(made, ("learning_curves.png", "Learning curves"))),
        Section("Data", _data(facts) + _pictures(made, ("classes.png", "Samples of each class"))),
        Section("Training samples", _samples(made, directory)),
        Section("Classes", [block for split, part in parts.items() for block in _classes(split, part, made)]),
        Section("Calibration", _pictures(made, *((f"calibration_{s}.png", f"Calibration, {s}") for s in parts))),
        Section("Mistakes", [block for split, part in parts.items() for block in _mistakes(split, part, made)]),
        Section("Model", _pairs(facts.model)),
        Section("Configuration", _pairs(facts.params)),
        Section("Environment", _pairs(facts.environment)),
        Section("Command", [Code(facts.command)] if facts.command else []),
    ]


def duration(seconds: float) -> str:
    """Format seconds for people, e.g. `90.0 s`, `5 min`, `2.5 h`."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def number(value: float | None) -> str:
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
        if key.startswith(prefix) and not key.endswith(NOT_RESULTS)
    )
    ordered = sorted(names, key=lambda name: (name != facts.metric, name != "loss"))
    rows = [[name, *(number(facts.metrics.get(prefix + name)) for prefix, _ in columns)] for name in ordered]
    shares = {split: part.classes.majority_share for split, part in parts.items()}
    if shares:
        rows.append(["accuracy of always the most frequent class", *(number(shares.get(t)) for _, t in columns)])
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
    header = ["split", "samples", "classes", "samples a class", "source", "digest"]
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
            Text(f"The {len(chosen)} of {len(report.labels):,} classes least recognised; all: per_class_{split}.csv.")
        )
    columns = (report.precision, report.recall, report.f1)
    rows = [[report.labels[i], *(number(c[i]) for c in columns), f"{report.support[i]:,}"] for i in chosen]
    blocks.append(Table(["class", "precision", "recall", "F1", "samples"], rows))
    pairs = report.most_confused(CONFUSED_ROWS)
    if pairs:
        rows = [[report.labels[i], report.labels[j], f"{n:,}", f"{report.support[i]:,}"] for i, j, n in pairs]
        header = ["true", "predicted", "times", "of samples"]
        blocks.append(Table(header, rows, numbers=frozenset({2, 3}), title="The most frequent mistakes"))
    return blocks


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
