"""Images for prediction as callers pass them: encoded, as base64 text, or as arrays."""

import base64
import binascii
import io
import re
from typing import Any

import numpy as np
import PIL.Image

from hfexp.core.errors import DataError
from hfexp.tasks.image_memory import MAX_PIXELS
from hfexp.tasks.images import open_image, read_encoded, reading, stored_bytes, to_rgb

Row = dict[str, Any]

_BASE64 = re.compile(rb"[A-Za-z0-9+/\r\n]+={0,2}\s*")


def image_row(value: Any, max_pixels: int = MAX_PIXELS) -> Row:
    """Turn one raw image into a row.

    Raises:
        DataError: it is not an image, can't be read, or has more than `max_pixels`.
    """
    if isinstance(value, PIL.Image.Image):
        return {"image": value}
    if isinstance(value, np.ndarray):
        return {"image": _from_array(value)}
    if isinstance(value, str | bytes | bytearray | memoryview):
        data = value.encode() if isinstance(value, str) else bytes(value)
        # Depending on the request, MLflow's server passes base64 text as bytes; no encoded image looks like that.
        is_text = isinstance(value, str) or _BASE64.fullmatch(data)
        data = _from_base64(data) if is_text else data
        name = f"an image of {len(data):,} bytes"
        with reading(name):  # a copy, because some of Pillow's decoders read again when their image is used
            return {"image": read_encoded(io.BytesIO(data), name, max_pixels).copy()}
    raise DataError(
        f"an encoded image (bytes or base64 text), a uint8 array or a PIL image is needed, not {type(value).__name__}"
    )


def image_bytes(row: Row, most: int = 100_000) -> bytes:
    """Return a row's encoded image, which `datasets` has not decoded; shrink it if it has more than `most` bytes."""
    data = stored_bytes(row["image"])
    if len(data) <= most:
        return data
    image = to_rgb(open_image({"bytes": data, "path": row["image"].get("path")}))
    image.thumbnail((256, 256))
    small = io.BytesIO()
    image.save(small, "JPEG")
    return small.getvalue()


def _from_base64(text: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error as error:
        raise DataError(f"this text is not base64 of an image (names of files are no inputs): {error}") from error


def _from_array(array: np.ndarray) -> PIL.Image.Image:
    if array.dtype != np.uint8:
        raise DataError(f"an image array must be uint8, not {array.dtype}")
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))) or 0 in array.shape:
        raise DataError(f"an image array must be (H, W), (H, W, 3) or (H, W, 4), not {array.shape}")
    return PIL.Image.fromarray(array)
