"""Drawing without pyplot: one look, labels in any script, and no failure that costs a run its result."""

import contextlib
import functools
import io
import logging
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

BLUE, ORANGE, GREEN, RED, GREY = "#2f6db5", "#d9822b", "#3a8f5c", "#b5342f", "#8a8a8a"
SPLIT_COLOURS = {"train": BLUE, "validation": ORANGE, "test": GREEN}
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "text.parse_math": False,  # names of classes are no formulas
    "axes.titley": 1.0,  # a fixed place: finding a free one measures every tick
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": "figure",
}
FALLBACK_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei",
    "Droid Sans Fallback", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "SimHei", "Arial Unicode MS",
)  # fmt: skip
"""Looked for, in this order, for what matplotlib's own DejaVu Sans lacks."""
MISSING = "\u25a1"


_ONE_AT_A_TIME = threading.RLock()
"""Matplotlib's settings are those of the whole process."""


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Matplotlib's defaults and our few settings, whatever the user's matplotlibrc says."""
    import matplotlib

    with _ONE_AT_A_TIME, matplotlib.rc_context():
        matplotlib.rcdefaults()
        settings: dict[Any, Any] = {**STYLE, "font.family": list(_families())}
        matplotlib.rcParams.update(settings)
        yield


@contextlib.contextmanager
def guarded(name: str) -> Iterator[None]:
    """Make one part of a report; when it fails, that is a warning and the rest goes on."""
    try:
        yield
    except Exception as error:
        logger.warning("%s could not be made: %s: %s", name, type(error).__name__, error)


class Pictures:
    """The pictures of one report: drawn once, kept as bytes for the page."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.made: dict[str, bytes] = {}
        """PNG by file name."""

    def draw(self, name: str, function: "Callable[..., Figure | None]", *args: Any) -> None:
        """Draw `function(*args)` to `name`; None means that there is nothing to show."""
        with guarded(name):
            figure = function(*args)
            if figure is None:
                return
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png")
            (self.directory / name).write_bytes(buffer.getvalue())
            self.made[name] = buffer.getvalue()

    def take(self, name: str) -> None:
        """Use a picture that was drawn earlier, if there is one."""
        with guarded(name):
            if (self.directory / name).is_file():
                self.made[name] = (self.directory / name).read_bytes()


def panel(figure: "Figure", left: float, bottom: float, width: float, height: float) -> Any:
    """Axes at a place given in inches: the automatic layouts take longer than the drawing."""
    full_width, full_height = figure.get_size_inches()
    return figure.add_axes((left / full_width, bottom / full_height, width / full_width, height / full_height))


def text_width(texts: Sequence[str], size: float = 9) -> float:
    """Inches that the longest of these takes, estimated (DejaVu Sans: 0.6 em a letter, wide scripts 1 em)."""
    widths = (sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.6 for c in text) for text in texts)
    return max(widths, default=0.0) * size / 72


def drawable(text: str, limit: int = 24) -> str:
    """Make a text that matplotlib can draw: one line, a box for what no font has, cut at `limit`."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    line = line if len(line) <= limit else line[: limit - 1] + "\u2026"
    return "".join(c if ord(c) in _glyphs() else MISSING for c in line)


def drawable_labels(labels: Sequence[str], limit: int = 24) -> list[str]:
    """Names of classes for drawing; the id is put before those that could not be told apart otherwise."""
    drawn = [drawable(label, limit) for label in labels]
    seen: dict[str, int] = {}
    for text in drawn:
        seen[text] = seen.get(text, 0) + 1
    return [
        f"{number}: {text}" if seen[text] > 1 or MISSING in text or not text else text
        for number, text in enumerate(drawn)
    ]


@functools.cache
def _families() -> tuple[str, ...]:
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return ("DejaVu Sans", *[name for name in FALLBACK_FONTS if name in installed][:2])


@functools.cache
def _glyphs() -> frozenset[int]:
    """Characters that the fonts in use have."""
    from matplotlib import font_manager

    found: set[int] = set()
    for family in _families():
        found |= set(font_manager.get_font(font_manager.findfont(family)).get_charmap())
    return frozenset(found)
