"""A bound on the memory of images that threads decode side by side, however many threads there are."""

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from hfexp.memory import give_back_freed_memory

Given = ParamSpec("Given")
Made = TypeVar("Made")

MAX_BYTES = 2 * 2**30
"""Bytes that images in work may take together; one that takes more is in work alone."""
GIVEN_BACK = MAX_BYTES // 4
"""Bytes from which on the C library gives back what an image took: it keeps what is free for each thread apart."""
SMALL = 2**20
"""Pixels up to which an image is not counted: of those, hundreds of threads can have one each."""
BYTES_PER_PIXEL = 13
"""Of an image on its way to a tensor: two or three times 4 bytes as Pillow keeps it, or once and three times 3."""


class Budget:
    """Counts the bytes that are in work, and lets threads wait for room."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.in_work = 0
        self.changed = threading.Condition()
        self.own = threading.local()
        """Bytes of the calling thread's row; None: it has no row in work, and is not counted."""

    def take(self, pixels: int, bytes_per_pixel: int) -> None:
        """Wait until there is room for an image of the row in work (see `row_of_images`)."""
        mine = getattr(self.own, "bytes", None)
        if pixels <= SMALL or mine is None:
            return
        needed = pixels * bytes_per_pixel
        with self.changed:
            # Who has an image already does not wait for others, who might wait for it.
            self.changed.wait_for(lambda: mine or not self.in_work or self.in_work + needed <= self.most)
            self.in_work += needed
        self.own.bytes = mine + needed

    def release(self) -> None:
        """Count the images of the row no longer."""
        if self.own.bytes > GIVEN_BACK:
            give_back_freed_memory()
        if self.own.bytes:
            with self.changed:
                self.in_work -= self.own.bytes
                self.changed.notify_all()
        self.own.bytes = None


budget = Budget(MAX_BYTES)
"""Of this process."""


def row_of_images(function: Callable[Given, Made]) -> Callable[Given, Made]:
    """Make a function one that brings a row from its files to its final size; its images count until it returns."""

    @functools.wraps(function)
    def counted(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        budget.own.bytes = 0
        try:
            return function(*args, **kwargs)
        finally:
            budget.release()

    return counted
