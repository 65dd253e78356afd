"""Samples as the model gets them: training rows before training, the most confident mistakes after it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
from datasets import DatasetDict

from hfexp.data.sampling import preserved_rng
from hfexp.data.streams import num_rows
from hfexp.tasks.base import Task
from hfexp.tracking.report.canvas import RED, Pictures, drawable, guarded, style
from hfexp.tracking.report.facts import SplitScores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hfexp.data.dataset import ProcessedDataset

SMALL, LARGE = 128, 224
"""Side of a sample's cell on a sheet in pixels: `SMALL` if no picture is larger than that, else `LARGE`."""
LETTER = 6.3
"""Average width of a letter of a caption, in pixels."""
MAX_PICTURES = 16
MAX_LISTED = 200

Shown = PIL.Image.Image | str
Caption = list[tuple[str, str, str]]
"""Lines below a picture: a text that is cut to fit, an ending that is never cut, and the colour."""


def draw_samples(dataset: "ProcessedDataset", task: Task, processor: Any, directory: Path, count: int = 16) -> None:
    """Write `samples.png` (or `samples.txt`): training rows as the model gets them, augmentation included.

    The rows are evenly spaced over the split and have the keys of the first epoch; the training's random numbers do
    not change. A stream gives its first rows. A task that can't show its inputs gives no file.
    """
    with guarded("samples"), preserved_rng(), style():
        size = num_rows(dataset)
        size = len(dataset.first) if size is None else size  # pyright: ignore
        indices = np.unique(np.linspace(0, size - 1, min(count, size)).round().astype(int))
        rows = [dataset[int(index)] for index in indices]
        names = task.id2label(DatasetDict({"train": dataset.rows}))
        shown = [task.picture(row, processor) for row in rows]
        labels = [label_of(row, names) for row in rows]
        texts = [f"[{label}] {text}" for text, label in zip(shown, labels, strict=True) if isinstance(text, str)]
        directory.mkdir(parents=True, exist_ok=True)
        if texts:
            (directory / "samples.txt").write_text("\n\n".join(texts), encoding="utf-8", errors="backslashreplace")
        if any(isinstance(picture, PIL.Image.Image) for picture in shown):
            kind = "without augmentation" if dataset.seed is None else "after augmentation"
            title = f"Training samples {kind}, as the model sees them: {shapes(rows[0])}"
            captions: list[Caption] = [[(label, "", "black")] for label in labels]
            Pictures(directory).draw("samples.png", sheet, shown, captions, title)


def label_of(row: dict[str, Any], names: dict[int, str] | None) -> str:
    """Return the label of one row of model inputs as text: a class, several classes, or a number."""
    label = row.get("labels")
    if isinstance(label, int | np.integer) and names is not None:
        return names.get(int(label), "no label")
    if isinstance(label, tuple) and names is not None:
        return ", ".join(names[number] for number, value in enumerate(label) if value) or "none"
    return f"{label:.4g}" if isinstance(label, float) else ""


def shapes(row: dict[str, Any]) -> str:
    """Return names, shapes and dtypes of one row's arrays, e.g. `pixel_values 3 x 8 x 8 uint8`."""
    arrays = {name: value for name, value in row.items() if getattr(value, "ndim", 0)}
    return ", ".join(
        f"{name} {' x '.join(map(str, value.shape))} {str(value.dtype).removeprefix('torch.')}"
        for name, value in arrays.items()
    )


def sheet(shown: Sequence[Shown | None], captions: Sequence[Caption], title: str) -> "Figure | None":
    """Draw pictures in rows with captions below; small pictures are enlarged by a whole factor, large ones reduced."""
    from matplotlib.figure import Figure

    pairs = [(p, c) for p, c in zip(shown, captions, strict=True) if isinstance(p, PIL.Image.Image)]
    if not pairs:
        return None
    side = SMALL if max(max(p.size) for p, _ in pairs) <= SMALL else LARGE
    columns = min(len(pairs), 8 if side == SMALL else 4)
    lines = max(len(c) for _, c in pairs)
    cell_width, cell_height, head = side + 12, side + 8 + 15 * lines, 34
    rows = -(-len(pairs) // columns)
    width = max(columns * cell_width + 12, int(len(title) * LETTER) + 30)
    height = head + rows * cell_height + 6
    # Matplotlib truncates inches times dots per inch: half a pixel more keeps the width and the height whole.
    figure = Figure(figsize=((width + 0.5) / 100, (height + 0.5) / 100), dpi=100)
    figure.text(12 / width, 1 - 20 / height, drawable(title, 160), fontsize=10, va="baseline")
    for number, (picture, caption) in enumerate(pairs):
        row, column = divmod(number, columns)
        pixels = fit(picture, side)
        left, top = 12 + column * cell_width, head + row * cell_height
        figure.figimage(pixels, left + (side - pixels.shape[1]) // 2, height - top - side + (side - len(pixels)) // 2)
        for line, (text, ending, colour) in enumerate(caption):
            place = left / width, 1 - (top + side + 13 + 15 * line) / height
            words = drawable(text, int(side / LETTER) - len(ending)) + ending
            figure.text(*place, words, fontsize=8, color=colour, va="baseline")
    return figure


def fit(picture: PIL.Image.Image, side: int) -> np.ndarray:
    """Return pixels (H, W, 3) uint8, enlarged by a whole factor (nearest neighbour) or reduced to fit `side`."""
    picture = picture.convert("RGB")
    largest = max(picture.size)
    if largest <= side:
        factor = side // largest
        picture = picture.resize((picture.width * factor, picture.height * factor), PIL.Image.Resampling.NEAREST)
    else:
        picture.thumbnail((side, side), PIL.Image.Resampling.LANCZOS)
    return np.asarray(picture)


@dataclass
class Mistakes:
    """The misclassified samples of one split, the most confident first."""

    total: int
    indices: list[int]
    """Indices of at most 200 of them in the split."""
    ranked: bool
    """True if they are sorted by the probability of the predicted class; else they are in the order of the split."""

    @classmethod
    def of(cls, scores: SplitScores, num_classes: int) -> "Mistakes":
        """Build from the scores of a split; samples without a label don't count."""
        wrong = np.flatnonzero(scores.labelled(num_classes) & (scores.predictions != scores.references))
        confidence = scores.confidence
        if confidence is not None:
            wrong = wrong[np.argsort(-np.nan_to_num(confidence[wrong]), kind="stable")]
        return cls(len(wrong), [int(i) for i in wrong[:MAX_LISTED]], confidence is not None)


def mistakes_sheet(
    mistakes: Mistakes, scores: SplitScores, names: dict[int, str], shown: list[Shown | None], split: str
) -> "Figure | None":
    """Draw the first mistakes as pictures: true class in black, predicted class and its probability in red."""
    confidence = scores.confidence
    captions: list[Caption] = []
    for index in mistakes.indices[: len(shown)]:
        said = names[int(scores.predictions[index])]
        share = "" if confidence is None else f" ({100 * np.nan_to_num(confidence[index]):.0f} %)"
        captions.append([(names[int(scores.references[index])], "", "black"), (said, share, RED)])
    kind = "The most confident mistakes" if mistakes.ranked else "Mistakes"
    return sheet(shown, captions, f"{kind} ({split}, {mistakes.total:,} in all): true class, in red the predicted one")
