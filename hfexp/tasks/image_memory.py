"""A limit on the memory of images that threads decode in parallel, whatever the number of threads."""

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from hfexp.core.memory import give_back_freed_memory

FORMATS = (
    "AVIF", "BLP", "BMP", "CUR", "DCX", "DDS", "DIB", "FLI", "FTEX", "GBR", "GIF", "ICNS", "ICO", "IM", "IMT",
    "JPEG", "JPEG2000", "MCIDAS", "MPO", "MSP", "PCD", "PCX", "PIXAR", "PNG", "PPM", "PSD", "QOI", "SGI", "SPIDER",
    "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM", "XVTHUMB",
)  # fmt: skip
"""Formats that are decoded, in training and in prediction, if this Pillow supports them.

Not listed are EPS, which starts Ghostscript; IPTC, which opens its content as any format, EPS included; FITS, which
unpacks gzip without a limit; BUFR, GRIB, HDF5, MPEG and WMF, which Pillow can't decode by itself; formats of plugins.
"""


MAX_PIXELS = 178_956_970
"""Default limit on the pixels of an image: Pillow's own, which is twice the number from which on it warns."""


Given = ParamSpec("Given")
Made = TypeVar("Made")

MEMORY_BYTES = 2 * 2**30
"""Bytes that images being decoded may take together; an image that takes more is decoded alone."""
GIVEN_BACK = MEMORY_BYTES // 4
"""Bytes of a row above which its freed memory returns to the system; the C library would keep it for each thread."""
SMALL = 2**20
"""Pixels up to which an image is not counted: hundreds of threads can hold one such image each."""
BYTES_PER_PIXEL = 13
"""Bytes of a pixel on its way to a tensor: two or three copies of 4 bytes (Pillow's), or one of these, three of 3."""


class Budget:
    """A count of the bytes of images being decoded; threads wait in it for room."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.in_work = 0
        self.changed = threading.Condition()
        self.own = threading.local()
        """Bytes of the calling thread's row, in `bytes`; None if it has no row in work and is not counted."""

    def take(self, pixels: int, bytes_per_pixel: int) -> None:
        """Wait until there is room for an image of the calling thread's row (see `row_of_images`)."""
        mine = getattr(self.own, "bytes", None)
        if pixels <= SMALL or mine is None:
            return
        needed = pixels * bytes_per_pixel
        with self.changed:
            # A thread that holds an image must not wait for others: they might be waiting for its image.
            self.changed.wait_for(lambda: mine or not self.in_work or self.in_work + needed <= self.most)
            self.in_work += needed
        self.own.bytes = mine + needed

    def release(self) -> None:
        """Stop counting the images of the calling thread's row."""
        if self.own.bytes > GIVEN_BACK:
            give_back_freed_memory()
        if self.own.bytes:
            with self.changed:
                self.in_work -= self.own.bytes
                self.changed.notify_all()
        self.own.bytes = None


budget = Budget(MEMORY_BYTES)
"""The budget of this process."""


def row_of_images(function: Callable[Given, Made]) -> Callable[Given, Made]:
    """Decorate a function that brings a row from its files to its final size: its images count until it returns."""

    @functools.wraps(function)
    def counted(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        budget.own.bytes = 0
        try:
            return function(*args, **kwargs)
        finally:
            budget.release()

    return counted
