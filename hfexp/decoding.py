"""JPEG files straight to tensors, with the pixels that PIL gives, in about half the time.

simplejpeg brings libjpeg-turbo, as Pillow does, but without Pillow's way over its own memory: decoded rows are torch's
"channels last", which its resize of uint8 images likes best. Everything that is not a plain JPEG goes through PIL.
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

from hfexp.image_files import MAX_PIXELS
from hfexp.image_memory import budget
from hfexp.images import HALVED_FROM, ORIENTATION, ConvertRGB, ToRGB, open_image
from hfexp.input_files import MAX_BYTES, is_address, local_path, open_regular

JPEG = b"\xff\xd8\xff"
LEVELS = 3
"""Bytes of a pixel of a tensor."""
COLOURS = ("YCbCr", "RGB", "Gray")
"""Colour spaces of a file that mean the same to everybody; CMYK has its inverted kind."""
TURNS = (b"Exif\0", b"tiff:Orientation")
"""What a file holds that may say how it is to be turned."""


def begins_with_tensor(operations: list[Any]) -> bool:
    """Whether the first operations bring an image to RGB and make it a tensor, no more and no less."""
    first = [type(operation) for operation in operations[:2]]
    return first in ([ToRGB, v2.ToImage], [ConvertRGB, v2.ToImage]) and _decodes_alike()


@functools.cache
def _decodes_alike() -> bool:
    """Whether Pillow has libjpeg-turbo too, as its own builds do; other libraries round differently."""
    return bool(PIL.features.check_feature("libjpeg_turbo"))


def decode_to_tensor(row: dict[str, Any], first: Any, max_pixels: int = MAX_PIXELS) -> dict[str, Any]:
    """The row with its image as `v2.ToImage` would give it after the operation `first`: (3, H, W), uint8.

    Raises:
        DataError: it can't be read, or has more than `max_pixels`; the message names the file.
    """
    pixels = _plain_jpeg(row["image"], max_pixels)
    if pixels is None:
        return v2.ToImage()(first({**row, "image": open_image(row["image"], max_pixels)}))
    return {**row, "image": Image(torch.from_numpy(pixels).permute(2, 0, 1))}


def _plain_jpeg(stored: Any, max_pixels: int = MAX_PIXELS) -> np.ndarray | None:
    """Decode to levels (H, W, 3), uint8; None if it is another kind of file, a huge one, or not in order."""
    data = _jpeg_data(stored)
    if data is None:
        return None
    with contextlib.suppress(Exception):  # PIL may know better, or says what is wrong
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        pixels = int(height) * int(width)
        if colours in COLOURS and pixels <= min(HALVED_FROM, max_pixels) and not _is_turned(data):
            budget.take(pixels, LEVELS)
            return simplejpeg.decode_jpeg(data, "RGB")
    return None


def _jpeg_data(stored: Any) -> bytes | None:
    """The encoded image, if it is a JPEG in memory or in a file of this machine."""
    if not isinstance(stored, dict):
        return None
    data, path = stored.get("bytes"), stored.get("path")
    if data is not None:
        return data if data.startswith(JPEG) else None
    if path and not is_address(path):
        # PIL says what is wrong with it.
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
