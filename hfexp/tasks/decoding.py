"""Decoding of JPEG files straight to tensors, with the same pixels as PIL in about half the time.

simplejpeg contains libjpeg-turbo, as Pillow does, but avoids the detour through Pillow's own memory. For torch its
output is "channels last", which suits torch's resize of uint8 images best. PIL decodes all but plain JPEG files.
"""

import contextlib
import functools
import io
import os
from typing import Any

import numpy as np
import PIL.features
import PIL.Image
import simplejpeg
import torch
from torchvision.transforms import v2
from torchvision.tv_tensors import Image

from hfexp.core.input_files import MAX_BYTES, is_address, local_path, open_regular
from hfexp.tasks.image_memory import MAX_PIXELS, budget
from hfexp.tasks.images import HALVED_FROM, ORIENTATION, ConvertRGB, ToRGB, open_image

JPEG = b"\xff\xd8\xff"
LEVELS = 3
"""Bytes per pixel of a decoded tensor."""
COLOURS = ("YCbCr", "RGB", "Gray")
"""Colour spaces of a file that all programs read alike; CMYK also comes inverted."""
TURNS = (b"Exif\0", b"tiff:Orientation")
"""Markers of the metadata that may hold an orientation."""


def begins_with_tensor(operations: list[Any]) -> bool:
    """Return True if the first two operations are exactly RGB and tensor conversion, and Pillow decodes alike."""
    first = [type(operation) for operation in operations[:2]]
    return first in ([ToRGB, v2.ToImage], [ConvertRGB, v2.ToImage]) and _decodes_alike()


@functools.cache
def _decodes_alike() -> bool:
    """Return True if Pillow has libjpeg-turbo too, as its own builds do; other libraries round differently."""
    return bool(PIL.features.check_feature("libjpeg_turbo"))


def decode_to_tensor(row: dict[str, Any], first: Any, max_pixels: int = MAX_PIXELS) -> dict[str, Any]:
    """Return the row with its image as `v2.ToImage` would give it after the operation `first`: (3, H, W), uint8.

    Raises:
        DataError: the image can't be read, or has more than `max_pixels`; the message names the file.
    """
    pixels = _plain_jpeg(row["image"], max_pixels)
    if pixels is None:
        return v2.ToImage()(first({**row, "image": open_image(row["image"], max_pixels)}))
    return {**row, "image": Image(torch.from_numpy(pixels).permute(2, 0, 1))}


def _plain_jpeg(stored: Any, max_pixels: int = MAX_PIXELS) -> np.ndarray | None:
    """Decode to an array (H, W, 3), uint8; return None if the file is not a plain JPEG, is huge or is damaged."""
    data = _jpeg_data(stored)
    if data is None:
        return None
    with contextlib.suppress(Exception):  # PIL then decodes it, or says what is wrong
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        pixels = int(height) * int(width)
        if colours in COLOURS and pixels <= min(HALVED_FROM, max_pixels) and not _is_turned(data):
            budget.take(pixels, LEVELS)
            return simplejpeg.decode_jpeg(data, "RGB")
    return None


def _jpeg_data(stored: Any) -> bytes | None:
    """Return the encoded image if it is a JPEG in memory or in a local file, else None."""
    if not isinstance(stored, dict):
        return None
    data, path = stored.get("bytes"), stored.get("path")
    if data is not None:
        return data if data.startswith(JPEG) else None
    if path and not is_address(path):
        # If it can't be read, PIL says what is wrong with it.
        with contextlib.suppress(OSError, ValueError), open_regular(local_path(path)) as file:
            start = file.read(len(JPEG))
            if start == JPEG and os.fstat(file.fileno()).st_size <= MAX_BYTES:
                return start + file.read()
    return None


def _is_turned(data: bytes) -> bool:
    if not any(mark in data for mark in TURNS):
        return False
    with PIL.Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        return image.getexif().get(ORIENTATION, 1) != 1
