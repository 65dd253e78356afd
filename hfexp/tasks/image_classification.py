"""Image classification: one class for an image."""

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hfexp.core.errors import ConfigError
from hfexp.tasks import column_names
from hfexp.tasks.base import Classification
from hfexp.tasks.images import MAX_PIXELS

if TYPE_CHECKING:
    import PIL.Image


class ImageClassification(Classification):
    """Image classification on the columns `image` and `label`."""

    model_class: ClassVar[str] = "AutoModelForImageClassification"
    processor_class: ClassVar[str] = "AutoImageProcessor"
    columns: ClassVar[tuple[str, ...]] = ("image", "label")
    usual_names: ClassVar[Mapping[str, tuple[Any, ...]]] = {"image": column_names.IMAGE, "label": column_names.CLASS}
    takes_columns: ClassVar[bool] = True

    def __init__(self, max_image_pixels: int = MAX_PIXELS) -> None:
        """Set up the task; images with more than `max_image_pixels` are not read."""
        if max_image_pixels < 1:
            raise ConfigError(f"task.max_image_pixels={max_image_pixels} must be at least 1")
        self.max_image_pixels = max_image_pixels

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """Open the image, turned by its EXIF orientation; the transform converts it to RGB."""
        from hfexp.tasks.images import open_image

        return {**row, "image": open_image(row["image"], self.max_image_pixels)}

    def decoder(self, operations: list[Any]) -> tuple[Callable[[dict[str, Any]], dict[str, Any]], int]:
        """Decode straight to tensors if the first two operations only convert to RGB and to a tensor."""
        from hfexp.tasks.images import begins_with_tensor, decode_to_tensor

        if type(self).decode is not ImageClassification.decode or not begins_with_tensor(operations):
            return self.decode, 0
        return functools.partial(decode_to_tensor, first=operations[0], max_pixels=self.max_image_pixels), 2

    def preprocess(self, row: dict[str, Any], processor: Any) -> dict[str, Any]:
        """Rename `image` (C, H, W; uint8, or float if normalised already) to `pixel_values`."""
        return {"pixel_values": row["image"], "labels": row["label"]}

    def picture(self, inputs: dict[str, Any], processor: Any) -> "PIL.Image.Image":
        """Return `pixel_values` as an image: floats are denormalised and clipped to 0..1."""
        import PIL.Image

        from hfexp.tasks.images import mean_and_std

        pixels = np.asarray(inputs["pixel_values"])
        if pixels.dtype != np.uint8:
            levels = zip(mean_and_std(processor), (0, 1), strict=True)
            mean, std = (np.array(value or (default,))[:, None, None] for value, default in levels)
            pixels = (np.nan_to_num(pixels * std + mean).clip(0, 1) * 255).round().astype(np.uint8)
        # Of more than three channels show the first three, of two the first.
        pixels = pixels[:3] if len(pixels) >= 3 else pixels[:1]
        return PIL.Image.fromarray(
            pixels.transpose(1, 2, 0).squeeze(-1) if len(pixels) == 1 else pixels.transpose(1, 2, 0)
        )

    def inference_row(self, value: Any) -> dict[str, Any]:
        """Turn an encoded image (bytes, or base64 text), a uint8 array (H, W[, C]) or a PIL image into a row."""
        from hfexp.tasks.images import image_row

        return image_row(value, self.max_image_pixels)

    def inference_example(self, row: dict[str, Any]) -> bytes:
        """Return the encoded image; a large one is scaled down."""
        from hfexp.tasks.images import image_bytes

        return image_bytes(row)

    def collator(self, processor: Any) -> Callable[..., dict[str, Any]]:
        """Return a collator that stacks images to (B, C, H, W); `finish` normalises uint8 ones, once per batch."""
        from hfexp.tasks.images import ImageCollator

        return ImageCollator.for_processor(processor)
