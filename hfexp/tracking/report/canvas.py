"""Plotting with matplotlib but without pyplot: one style, labels in any script, failures that only warn."""

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
    "text.parse_math": False,  # a `$` in a class name must not start a formula
    "axes.titley": 1.0,  # a fixed position: automatic placement measures every tick
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
"""Fonts for characters that matplotlib's DejaVu Sans lacks; the first two that are installed are used."""
MISSING = "\u25a1"


_RC_LOCK = threading.RLock()
"""Serializes use of matplotlib's rcParams, which are global to the process."""


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Apply matplotlib's defaults and our settings inside the block, whatever the user's matplotlibrc says."""
    import matplotlib

    with _RC_LOCK, matplotlib.rc_context():
        matplotlib.rcdefaults()
        settings: dict[Any, Any] = {**STYLE, "font.family": list(_families())}
        matplotlib.rcParams.update(settings)
        yield


@contextlib.contextmanager
def guarded(name: str) -> Iterator[None]:
    """Log a warning if the block, which makes one part of a report, fails; the rest of the report goes on."""
    try:
        yield
    except Exception as error:
        logger.warning("%s could not be created: %s: %s", name, type(error).__name__, error)


class Pictures:
    """The plots of one report: each is drawn once and kept as bytes for the HTML page."""

    def __init__(self, directory: Path, wanted: bool = True) -> None:
        """Set up the plots; with `wanted` false, none is drawn, and matplotlib is not imported."""
        self.directory, self.wanted = directory, wanted
        self.made: dict[str, bytes] = {}
        """PNG bytes by file name."""

    def draw(self, name: str, function: "Callable[..., Figure | None]", *args: Any) -> None:
        """Save the figure that `function(*args)` returns as `name`; do nothing if it returns None."""
        if not self.wanted:
            return
        with guarded(name):
            figure = function(*args)
            if figure is None:
                return
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png")
            (self.directory / name).write_bytes(buffer.getvalue())
            self.made[name] = buffer.getvalue()

    def take(self, name: str) -> None:
        """Use a plot that was drawn earlier, if its file exists."""
        with guarded(name):
            if (self.directory / name).is_file():
                self.made[name] = (self.directory / name).read_bytes()


def panel(figure: "Figure", left: float, bottom: float, width: float, height: float) -> Any:
    """Add axes at a position in inches: matplotlib's automatic layouts take longer than the drawing."""
    full_width, full_height = figure.get_size_inches()
    return figure.add_axes((left / full_width, bottom / full_height, width / full_width, height / full_height))


def text_width(texts: Sequence[str], size: float = 9) -> float:
    """Estimate the width in inches of the longest text (DejaVu Sans: 0.6 em per letter, wide scripts 1 em)."""
    widths = (sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.6 for c in text) for text in texts)
    return max(widths, default=0.0) * size / 72


def drawable(text: str, limit: int = 24) -> str:
    """Return a text that matplotlib can draw: one line of at most `limit` characters, boxes for missing glyphs."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    line = line if len(line) <= limit else line[: limit - 1] + "\u2026"
    return "".join(c if ord(c) in _glyphs() else MISSING for c in line)


def drawable_labels(labels: Sequence[str], limit: int = 24) -> list[str]:
    """Return drawable class names, prefixed with the id where they are empty, ambiguous or have missing glyphs."""
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
    """Return the code points that the fonts in use can draw."""
    from matplotlib import font_manager

    glyphs: set[int] = set()
    for family in _families():
        glyphs |= set(font_manager.get_font(font_manager.findfont(family)).get_charmap())
    return frozenset(glyphs)
