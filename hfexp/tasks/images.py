"""Images: open one upright within limits, decode JPEG fast, convert to RGB, resize for the model, collate batches."""

import base64
import binascii
import contextlib
import functools
import io
import math
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, ParamSpec, TypeVar

import numpy as np
import PIL.features
import PIL.Image
import simplejpeg
import torch
import transformers
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import Image

from hfexp.core.errors import ConfigError, DataError
from hfexp.core.files import MAX_BYTES, is_address, local_path, open_regular, read_address
from hfexp.core.machine import give_back_freed_memory

# A limit on the memory of images that threads decode in parallel, whatever the number of threads.


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


# The geometry of an image processor: how it resizes, crops and normalises, as numbers.


USE_PROCESSOR = ": use transform=processor, which leaves all of it to the processor (slower, and without augmentation)"

FILTERS = {"nearest": 0, "bilinear": 2, "bicubic": 3}
"""PIL's resampling filters that torchvision also has for tensors, by timm's names."""


@dataclass(frozen=True)
class Geometry:
    """Sizes, interpolation and normalisation of an image processor."""

    size: tuple[int, int]
    """Height and width of the model's input, in pixels."""
    resize: int | tuple[int, int]
    """Length of the shortest edge before a centre crop to `size`, or height and width to resize to, in pixels."""
    interpolation: int
    """PIL's resampling filter."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Mean and standard deviation per channel, for levels in 0..1; empty if images are not normalised."""
    rounds_to_even: bool = False
    """True if the centre crop rounds half of an odd margin to even, as torchvision does, and not down."""

    @classmethod
    def of(cls, processor: Any) -> "Geometry":
        """Read the geometry of a Transformers image processor (or of its wrapper of a timm model).

        Raises:
            ConfigError: it gives no size in pixels, or its timm model crops or interpolates in an unsupported way.
        """
        settings = processor.to_dict() if not hasattr(processor, "data_config") else {}
        if not settings:
            return cls._of_timm(processor.data_config)
        size, resize = _size_and_resize(settings)
        resample = int(settings.get("resample", PIL.Image.Resampling.BILINEAR))
        return cls(size, resize, resample, *mean_and_std(processor))

    @classmethod
    def _of_timm(cls, config: dict[str, Any]) -> "Geometry":
        """Read timm's `resolve_data_config` as `timm.data.transforms_factory.transforms_imagenet_eval` does."""
        (_, height, width), mode, filter_name = config["input_size"], config["crop_mode"], config["interpolation"]
        resize: int | tuple[int, int] = (
            math.floor(height / config["crop_pct"]),
            math.floor(width / config["crop_pct"]),
        )
        if mode == "center" and height == width:
            resize = resize[0]
        elif mode != "squash":
            raise ConfigError(
                f"crop_mode={mode} of the timm model ({height} x {width} pixels) is not supported{USE_PROCESSOR}"
            )
        if filter_name not in FILTERS:
            raise ConfigError(f"interpolation={filter_name} of the timm model is not supported{USE_PROCESSOR}")
        mean, std = tuple(config["mean"]), tuple(config["std"])
        return cls((height, width), resize, FILTERS[filter_name], mean, std, rounds_to_even=True)


def _size_and_resize(settings: dict[str, Any]) -> tuple[tuple[int, int], int | tuple[int, int]]:
    """Return the final size and the resize step from the settings of a Transformers image processor."""
    size = settings.get("size") or {}
    crop = settings.get("crop_size") if settings.get("do_center_crop") else None
    edge = size.get("shortest_edge")
    if edge is None:
        if not {"height", "width"} <= size.keys():
            raise ConfigError(f"the processor has no image size in pixels (size={size or None}){USE_PROCESSOR}")
        resized = (size["height"], size["width"])
        return ((crop["height"], crop["width"]) if crop else resized), resized
    if "crop_pct" in settings and settings["crop_pct"]:
        # As ConvNextImageProcessor.resize: it crops below 384 pixels, and warps the image from 384 on.
        return (edge, edge), (int(edge / settings["crop_pct"]) if edge < 384 else (edge, edge))
    return ((crop["height"], crop["width"]) if crop else (edge, edge)), edge


def mean_and_std(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, for levels in 0..1; empty if images are not normalised."""
    if hasattr(processor, "data_config"):
        return tuple(processor.data_config["mean"]), tuple(processor.data_config["std"])
    settings = processor.to_dict()
    normalises = settings.get("do_normalize", True)
    mean, std = (tuple(settings.get(name) or ()) if normalises else () for name in ("image_mean", "image_std"))
    return mean, std


HALVED_FROM = MAX_PIXELS // 2
"""Pixels above which a JPEG is decoded at half its width and height, which takes a quarter of the memory."""
MORE_PIXELS = "task.max_image_pixels=NUMBER allows more."
BAND = 2**22
"""Pixels that are converted to RGB at once."""
COMMON = ("BMP", "GIF", "JPEG", "PPM", "PNG")
"""Formats whose readers Pillow always imports (`PIL.Image.preinit`)."""

TRIED_SHAPES = ((128, 96), (101, 157), (61, 61), (33, 20))
"""Width and height of the pictures on which `Fit` is compared with a processor."""
MAX_DIFFERENCE = 1.5
"""Mean difference from the processor's image, in levels of 255, that is allowed: backends round differently."""
ORIENTATION = 0x0112
"""EXIF tag of the orientation; its value 1 means upright."""
_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
"""Turn that sets an image upright, by its orientation (CIPA DC-008, "Exchangeable image file format", tag 0x0112)."""
SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_KEY_SCALES: dict[str, Callable[[int], int]] = {
    "L;2": lambda level: level * 85, "L;4": lambda level: level * 17, "RGB;16B": lambda level: level >> 8,
}  # fmt: skip
"""Functions by which Pillow brings the levels of a PNG to 8 bits, by the layout of the file."""


def open_image(stored: Any, max_pixels: int = MAX_PIXELS) -> PIL.Image.Image:
    """Open an image that `datasets` stores undecoded ({"bytes", "path"}), and turn it by its EXIF orientation.

    Raises:
        DataError: the image can't be read, or has more than `max_pixels`; the message names the file.
    """
    if isinstance(stored, PIL.Image.Image):
        with reading("an image"):
            return _upright(stored)
    if not isinstance(stored, Mapping) or (stored.get("path") is None and stored.get("bytes") is None):
        shown = "nothing" if stored is None or isinstance(stored, Mapping) else f"{stored!r:.80}"
        raise DataError(f"column 'image' holds {shown}, expected an image (bytes, or the path of a file)")
    name = str(stored.get("path") or "an embedded image")
    with reading(name), _open(stored) as file:
        return _upright(read_encoded(file, name, max_pixels))


def stored_bytes(stored: Mapping[str, Any]) -> bytes:
    """Return the encoded bytes of an image.

    Raises:
        DataError: the image's file can't be read.
    """
    with reading(str(stored.get("path"))), _open(stored) as file:
        return file.read()


def _open(stored: Mapping[str, Any]) -> IO[bytes]:
    path, data = stored.get("path"), stored.get("bytes")
    if data is None and is_address(str(path)):
        data = read_address(str(path))
    return open_regular(local_path(str(path))) if data is None else io.BytesIO(data)


class reading:
    """Context manager that turns errors of reading an image into a DataError with the image's name.

    It catches every exception, because decoders fail on a damaged file with whatever their libraries and their own
    arithmetic raise. It is a class because a generator would take a tenth of the time that a small image takes.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, DataError):
            return
        reason = str(error) or type(error).__name__
        if isinstance(error, PIL.UnidentifiedImageError):
            reason = "its format is unknown"
        elif isinstance(error, PIL.Image.DecompressionBombError):
            reason += f" {MORE_PIXELS}"
        raise DataError(f"{self.name} can't be read as an image: {reason}") from error


def read_encoded(file: IO[bytes], name: str, max_pixels: int = MAX_PIXELS) -> PIL.Image.Image:
    """Decode an image from its file; a JPEG of more than `HALVED_FROM` pixels at half its width and height.

    Args:
        name: name of the file, for messages.

    Raises:
        DataError: the image has more than `max_pixels`.
        Exception: the image can't be read (see `reading`).
    """
    if max_pixels > MAX_PIXELS:
        PIL.Image.MAX_IMAGE_PIXELS = max_pixels
    image = _identified(file)
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise DataError(f"{name} has {pixels:,} pixels, more than {max_pixels:,}. {MORE_PIXELS}")
    if image.format in ("JPEG", "MPO") and pixels > HALVED_FROM:
        image.draft(None, (image.width // 2, image.height // 2))
    budget.take(image.width * image.height, BYTES_PER_PIXEL)
    load_pixels(image)
    return image


def _identified(file: IO[bytes]) -> PIL.Image.Image:
    """Open an image of one of `FORMATS`, common ones first: importing the other readers takes a tenth of a second."""
    try:
        return PIL.Image.open(file, formats=COMMON)
    except PIL.UnidentifiedImageError:
        PIL.Image.init()
        file.seek(0)
        return PIL.Image.open(file, formats=[name for name in PIL.Image.ID if name in FORMATS])


def load_pixels(image: PIL.Image.Image) -> None:
    """Read the pixels of an opened image, and bring its transparent colour to 8 bits as well.

    A PNG may name one colour as transparent (chunk tRNS). Pillow (12) converts pixels of 2, 4 or 3 x 16 bits to 8, but
    not that colour, so that no pixel or the wrong pixels would match it.
    """
    scale = _KEY_SCALES.get(str(image.tile[0].args)) if image.format == "PNG" and image.tile else None  # pyright: ignore
    image.load()
    key = image.info.get("transparency")
    if scale is not None and key is not None:
        image.info["transparency"] = tuple(map(scale, key)) if isinstance(key, tuple) else scale(key)


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return a copy, turned by its EXIF orientation; PIL's function also rewrites EXIF, which fails for odd data."""
    turn = _TURNS.get(image.getexif().get(ORIENTATION, 1))
    return image.copy() if turn is None else image.transpose(turn)


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Convert any image, palettes and CMYK too, to 8-bit RGB: transparency on white, 16-bit and float levels scaled.

    A large image is converted band by band, because most conversions make several copies.
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    bands = list(_bands(image))
    highest = max((_highest(image.crop(band)) for band in bands), default=0) if image.mode in ("F", "I") else 0
    if len(bands) <= 1:
        return _band_to_rgb(image, highest)
    result = PIL.Image.new("RGB", image.size)
    for band in bands:
        result.paste(_band_to_rgb(image.crop(band), highest), band)
    return result


def _bands(image: PIL.Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes (left, top, right, bottom) of at most `BAND` pixels (but at least one row), from the top down."""
    rows = max(1, BAND // max(1, image.width))
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _highest(image: PIL.Image.Image) -> float:
    return float(np.nan_to_num(np.asarray(image)).max(initial=0))


def _band_to_rgb(image: PIL.Image.Image, highest: float) -> PIL.Image.Image:
    """Convert a band to RGB; `highest` is the highest level of the whole image, for modes F and I."""
    if image.mode in SIXTEEN_BIT_MODES:
        return PIL.Image.fromarray(_to_8_bit(image, highest)).convert("RGB")
    if image.mode == "F":
        levels = np.nan_to_num(np.asarray(image))
        scale = 255.0 if highest <= 1 else 1.0
        return PIL.Image.fromarray((levels * scale).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = PIL.Image.new("RGBA", rgba.size, "white")
        return PIL.Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bit(image: PIL.Image.Image, highest: float) -> np.ndarray:
    """Reduce 16-bit levels to their high byte; an "I" (32-bit) image with levels of 0..255 only is 8-bit already."""
    levels = np.asarray(image)
    if image.mode == "I" and highest <= 255:
        return levels.clip(0).astype(np.uint8)
    small = (levels.clip(0, 65535) >> 8).astype(np.uint8)
    small[levels == image.info.get("transparency", -1)] = 255  # transparency becomes white, as in other modes
    return small


class ToRGB(torch.nn.Module):
    """Transform operation that applies `to_rgb`."""

    def forward(self, row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "image": to_rgb(row["image"])}


class ConvertRGB(torch.nn.Module):
    """Transform operation that calls PIL's `convert("RGB")`, which drops transparency and saturates 16-bit levels."""

    def forward(self, row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "image": row["image"].convert("RGB")}


class Fit(torch.nn.Module):
    """Transform operation that resizes (and centre-crops) a tensor (C, H, W; uint8) as the model's processor would."""

    def __init__(self, geometry: Geometry, processor: Any = None) -> None:
        """Compare with `processor`, if one is given, for some do more than resizing, cropping and normalising.

        Raises:
            ConfigError: this processor does more.
        """
        super().__init__()
        self.geometry = geometry
        self.interpolation = InterpolationMode(_filter_name(geometry.interpolation))
        if isinstance(processor, transformers.image_processing_utils.BaseImageProcessor):
            self._require_same_result(processor)

    def _require_same_result(self, processor: Any) -> None:
        """Compare with the processor on pictures of several shapes, because processors round margins differently."""
        collator, level = ImageCollator.for_processor(processor), 1 / 255 / min(self.geometry.std or (1,))
        for shape in TRIED_SHAPES:
            noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
            picture = PIL.Image.fromarray(noise).resize(shape, PIL.Image.Resampling.BICUBIC)
            theirs = processor(picture, return_tensors="pt")["pixel_values"]
            row = self.forward({"image": functional.pil_to_tensor(picture)})
            ours = collator.finish({"pixel_values": row["image"][None]})["pixel_values"]
            if ours.shape != theirs.shape or (ours - theirs).abs().mean() > MAX_DIFFERENCE * level:
                raise ConfigError(
                    f"{type(processor).__name__} with these settings does more to an image than resizing, cropping "
                    f"and normalising it{USE_PROCESSOR}"
                )

    def forward(self, row: dict[str, Any]) -> dict[str, Any]:
        # Call the function for plain tensors on a plain tensor: torchvision's dispatch, and keeping the class of its
        # images at every step, take as long as resizing to 64 px and hold Python's global lock meanwhile.
        pixels, geometry = row["image"].as_subclass(torch.Tensor), self.geometry
        if tuple(pixels.shape[-2:]) == geometry.size == geometry.resize:
            return row
        size = [geometry.resize] if isinstance(geometry.resize, int) else list(geometry.resize)
        pixels = functional.resize_image(pixels, size, self.interpolation, antialias=True)
        crop = functional.center_crop_image if geometry.rounds_to_even else _center_crop
        return {**row, "image": crop(pixels, list(geometry.size)).as_subclass(type(row["image"]))}


class ByProcessor(torch.nn.Module):
    """Transform operation that lets the model's processor do all: a PIL image to (C, H, W) float32, normalised."""

    def __init__(self, processor: Any) -> None:
        super().__init__()
        self.processor = processor

    def forward(self, row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "image": self.processor(row["image"], return_tensors="pt")["pixel_values"][0]}


class RandomAffine(torch.nn.Module):
    """Batch operation that turns, shifts and scales every image by its own draw, in one call for the whole batch.

    It draws from the distribution of torchvision's `v2.RandomAffine` (`interpolation=BILINEAR`, black outside), except
    that shifts are not rounded to whole pixels. It takes a tenth of the time of that class on small images.
    """

    num_draws = 4
    """Uniform random numbers that one image takes."""

    def __init__(
        self, degrees: float = 0, translate: Sequence[float] = (0, 0), scale: Sequence[float] = (1, 1)
    ) -> None:
        """Draw angles in +-`degrees`, shifts in +-`translate` (shares of width and height), scales in `scale`."""
        super().__init__()
        self.degrees = float(degrees)
        self.translate = tuple(translate)
        self.scale = tuple(scale)

    def forward(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Transform `images` (B, C, H, W) uint8 by `draws` (B, 4) in [0, 1); the shape and the dtype stay the same."""
        height, width = images.shape[-2:]
        angle = torch.deg2rad((2 * draws[:, 0] - 1) * self.degrees)
        zoom = self.scale[0] + draws[:, 1] * (self.scale[1] - self.scale[0])
        x, y = ((1 - 2 * draws[:, 2 + i]) * self.translate[i] * (width, height)[i] for i in (0, 1))
        # Map each pixel of the result to its source, relative to the centre: shift back first, then turn and scale
        # back (`torchvision.transforms.functional._get_inverse_affine_matrix`). grid_sample's unit is half an image.
        cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
        rows = [cos, sin * height / width, -2 / width * (cos * x + sin * y)]
        rows += [-sin * width / height, cos, 2 / height * (sin * x - cos * y)]
        matrices = torch.stack(rows, 1).view(-1, 2, 3).float()
        grid = torch.nn.functional.affine_grid(matrices, list(images.shape), align_corners=False)
        moved = torch.nn.functional.grid_sample(images.float(), grid, align_corners=False)
        return moved.round().clamp(0, 255).to(torch.uint8)


def _center_crop(image: torch.Tensor, size: list[int]) -> torch.Tensor:
    """Crop as Transformers' image processors do: half of an odd margin is rounded down (torchvision: to even)."""
    height, width = size
    top, left = image.shape[-2] - height, image.shape[-1] - width
    if top == left == 0:
        return image
    if top < 0 or left < 0:
        return functional.center_crop_image(image, size)
    return functional.crop(image, top // 2, left // 2, height, width)


def _filter_name(resample: int) -> str:
    return PIL.Image.Resampling(resample).name.lower()


class ImageCollator:
    """Collator of image rows: `pixel_values` (B, C, H, W) in the dtype of the rows, `labels` (B,) int64."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Set mean and std per channel, for levels in 0..1; empty ones mean 0 and 1."""
        shift, scale = (torch.tensor(v or (default,)).view(-1, 1, 1) for v, default in ((mean, 0.0), (std, 1.0)))
        # (x / 255 - mean) / std in one multiplication and one addition.
        self.factor, self.offset = 1 / (255 * scale), -shift / scale

    @classmethod
    def for_processor(cls, processor: Any) -> "ImageCollator":
        """Build a collator that normalises as the processor does; images that are floats already stay as they are."""
        return cls(*mean_and_std(processor))

    def __call__(self, rows: list[dict[str, Any]] | dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Stack rows into a batch; return a batch that is stacked already as it is."""
        if isinstance(rows, dict):
            return rows
        images = torch.stack([torch.as_tensor(row["pixel_values"]) for row in rows])
        return {"pixel_values": images, "labels": torch.tensor([row["labels"] for row in rows])}

    def finish(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Normalise uint8 images to float32, on the device where they are."""
        images = batch["pixel_values"]
        if images.dtype != torch.uint8:
            return batch
        factor, offset = self.factor.to(images.device), self.offset.to(images.device)
        # Converting and multiplying in one call would allocate one more array of floats and take twice the time.
        return {**batch, "pixel_values": images.float().mul_(factor).add_(offset)}


# Images for prediction as callers pass them: encoded, as base64 text, or as arrays.


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
        f"expected an encoded image (bytes or base64 text), a uint8 array or a PIL image, got {type(value).__name__}"
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
        raise DataError(f"this text is not an image in base64 (file names are not accepted): {error}") from error


def _from_array(array: np.ndarray) -> PIL.Image.Image:
    if array.dtype != np.uint8:
        raise DataError(f"an image array must be uint8, not {array.dtype}")
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))) or 0 in array.shape:
        raise DataError(f"an image array must be (H, W), (H, W, 3) or (H, W, 4), not {array.shape}")
    return PIL.Image.fromarray(array)


# Decoding of JPEG files straight to tensors, with the same pixels as PIL in about half the time.
#
# simplejpeg contains libjpeg-turbo, as Pillow does, but avoids the detour through Pillow's own memory. For torch its
# output is "channels last", which suits torch's resize of uint8 images best. PIL decodes all but plain JPEG files.


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
