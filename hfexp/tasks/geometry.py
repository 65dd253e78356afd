"""The geometry of an image processor: how it resizes, crops and normalises, as numbers."""

import math
from dataclasses import dataclass
from typing import Any

import PIL.Image

from hfexp.core.errors import ConfigError

OTHERWISE = ": use transform=processor, which lets it do all by itself (more slowly, and without augmentation)"

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
                f"the timm model fits images with crop_mode={mode} to {height} x {width} pixels{OTHERWISE}"
            )
        if filter_name not in FILTERS:
            raise ConfigError(f"the timm model resizes images with interpolation={filter_name}{OTHERWISE}")
        mean, std = tuple(config["mean"]), tuple(config["std"])
        return cls((height, width), resize, FILTERS[filter_name], mean, std, rounds_to_even=True)


def _size_and_resize(settings: dict[str, Any]) -> tuple[tuple[int, int], int | tuple[int, int]]:
    """Return the final size and the resize step from the settings of a Transformers image processor."""
    size = settings.get("size") or {}
    crop = settings.get("crop_size") if settings.get("do_center_crop") else None
    edge = size.get("shortest_edge")
    if edge is None:
        if not {"height", "width"} <= size.keys():
            raise ConfigError(f"the processor gives no size of images in pixels (size={size or None}){OTHERWISE}")
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
