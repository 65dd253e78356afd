"""JPEG files straight to tensors, with the pixels that PIL gives, in about half the time.

simplejpeg brings libjpeg-turbo, as Pillow does, but without Pillow's way over its own memory: decoded rows are torch's
"channels last", which its resize of uint8 images likes best. Everything that is not a plain JPEG goes through PIL.
"""

import contextlib
import functools
import io
from typing import Any

import numpy as np
import PIL.features
import PIL.Image
import simplejpeg
import torch
from torchvision.transforms import v2
from torchvision.tv_tensors import Image

from hfexp.images import ORIENTATION, ConvertRGB, ToRGB, open_image

JPEG = b"\xff\xd8\xff"
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


def decode_to_tensor(row: dict[str, Any], first: Any) -> dict[str, Any]:
    """The row with its image as `v2.ToImage` would give it after the operation `first`: (3, H, W), uint8.

    Raises:
        DataError: it can't be read; the message names the file.
    """
    pixels = _plain_jpeg(row["image"])
    if pixels is None:
        return v2.ToImage()(first({**row, "image": open_image(row["image"])}))
    return {**row, "image": Image(torch.from_numpy(pixels).permute(2, 0, 1))}


def _plain_jpeg(stored: Any) -> np.ndarray | None:
    """Levels (H, W, 3), uint8; None if it is another kind of file, or not in order."""
    data = _jpeg_data(stored)
    if data is None:
        return None
    with contextlib.suppress(ValueError, OSError, SyntaxError):  # PIL may know better, or says what is wrong
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        most = PIL.Image.MAX_IMAGE_PIXELS
        if colours in COLOURS and (most is None or int(height) * int(width) <= most) and not _is_turned(data):
            return simplejpeg.decode_jpeg(data, "RGB")
    return None


def _jpeg_data(stored: Any) -> bytes | None:
    """The encoded image, if it is a JPEG in memory or in a file of this machine."""
    if not isinstance(stored, dict):
        return None
    data, path = stored.get("bytes"), stored.get("path")
    if data is not None:
        return data if data.startswith(JPEG) else None
    if path and "://" not in path:
        with contextlib.suppress(OSError), open(path, "rb") as file:  # PIL says what is wrong with it
            start = file.read(len(JPEG))
            return start + file.read() if start == JPEG else None
    return None


def _is_turned(data: bytes) -> bool:
    if not any(mark in data for mark in TURNS):
        return False
    with PIL.Image.open(io.BytesIO(data)) as image:
        return image.getexif().get(ORIENTATION, 1) != 1
