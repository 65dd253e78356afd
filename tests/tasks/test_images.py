"""Pixels: every kind of image, the processors' geometry, the notebook's transform, augmentation."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import torchvision.transforms as v1
import transformers
from torchvision.transforms.v2 import functional

from hfexp.commands import api
from hfexp.core.errors import ConfigError, DataError
from hfexp.data.dataset import Collator, ProcessedDataset, process
from hfexp.data.sources import digits
from hfexp.data.transforms import apply, build_transforms
from hfexp.tasks import images as raw_images
from hfexp.tasks.image_classification import ImageClassification
from hfexp.tasks.images import Geometry, ImageCollator, RandomAffine, open_image, to_rgb

TASK = ImageClassification()
COLOUR = (200, 100, 50)


def image(mode: str) -> PIL.Image.Image:
    """A plain image of one colour (or grey 128) in a mode."""
    if mode in ("I;16", "I"):
        pixels = np.full((6, 4), 128 * 256 + 7, dtype=np.uint16 if mode == "I;16" else np.int32)
        return PIL.Image.fromarray(pixels)
    if mode == "F":
        return PIL.Image.fromarray(np.full((6, 4), 128 / 255, dtype=np.float32))
    if mode in ("L", "LA", "1"):
        return PIL.Image.new("L", (4, 6), 128 if mode != "1" else 255).convert(mode)
    return PIL.Image.new("RGB", (4, 6), COLOUR).convert(mode)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("RGB", COLOUR), ("RGBA", COLOUR), ("P", COLOUR), ("CMYK", COLOUR), ("L", (128,) * 3), ("LA", (128,) * 3),
     ("I;16", (128,) * 3), ("I", (128,) * 3), ("F", (128,) * 3), ("1", (255,) * 3), ("YCbCr", COLOUR)],
)  # fmt: skip
def test_every_mode_comes_out_as_rgb(mode: str, expected: tuple[int, ...]) -> None:
    result = to_rgb(image(mode))
    assert result.mode == "RGB"
    tolerance = 26 if mode == "P" else 3  # the web palette has steps of 51
    assert np.abs(np.asarray(result)[0, 0].astype(int) - expected).max() <= tolerance


def test_transparency_is_white() -> None:
    for mode in ("RGBA", "LA", "P"):
        clear = PIL.Image.new("RGBA", (2, 2), (10, 10, 10, 0)).convert(mode)
        if mode == "P":
            clear.info["transparency"] = clear.getpixel((0, 0))
        assert to_rgb(clear).getpixel((0, 0)) == (255, 255, 255)


WHITE, BLUE = (255, 255, 255), (10, 20, 30)
KEYED = {
    "RGB": (8, 2, bytes([255, 0, 255, *BLUE]), struct.pack(">3H", 255, 0, 255), BLUE),
    "RGB, 16 bits": (16, 2, struct.pack(">6H", 40000, 0, 0, 2560, 5120, 7680), struct.pack(">3H", 40000, 0, 0), BLUE),
    "grey": (8, 0, bytes([7, 8]), struct.pack(">H", 7), (8,) * 3),
    "grey, 16 bits": (16, 0, struct.pack(">2H", 0x0701, 0x0702), struct.pack(">H", 0x0701), (7,) * 3),
    "grey, 4 bits": (4, 0, bytes([0x37]), struct.pack(">H", 3), (0x77,) * 3),
    "grey, 2 bits": (2, 0, bytes([0b01100000]), struct.pack(">H", 1), (0xAA,) * 3),
}  # fmt: skip
"""Bits, colour type, two pixels, the transparent colour (chunk tRNS), and what the second pixel is."""


@pytest.mark.parametrize("kind", KEYED)
def test_a_transparent_colour_is_white(kind: str) -> None:
    depth, colour_type, levels, key, expected = KEYED[kind]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 2, 1, depth, colour_type, 0, 0, 0)), (b"tRNS", key),
        (b"IDAT", zlib.compress(b"\0" + levels)), (b"IEND", b""),
    ]  # fmt: skip
    parts = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    for opened in (open_image({"bytes": data, "path": None}), raw_images.image_row(data)["image"]):
        assert [to_rgb(opened).getpixel((x, 0)) for x in (0, 1)] == [WHITE, expected]


def test_odd_exif_data_does_not_keep_an_image_from_being_turned() -> None:
    exif = PIL.Image.Exif()
    exif[0x0100], exif[0x0112] = 100, 6
    content = exif.tobytes()
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 4)).save(buffer, "JPEG", exif=content)
    data, start = bytearray(buffer.getvalue()), buffer.getvalue().index(content)
    for kind in (2, 5, 7, 10):  # a width that is text, a fraction, ...: PIL can read that, and not write it again
        data[start + 16 : start + 18] = kind.to_bytes(2, "little" if content[6:8] == b"II" else "big")
        assert open_image({"bytes": bytes(data), "path": None}).size == (4, 8)


@pytest.mark.parametrize("stored", [None, {"bytes": None, "path": None}, "cat.jpg", 7])
def test_what_is_no_image_is_said(stored: Any) -> None:
    with pytest.raises(DataError, match="column 'image' holds .*, expected an image"):
        open_image(stored)
    with pytest.raises(DataError, match="an embedded image can't be read as an image: its format is unknown"):
        open_image({"bytes": b"nothing", "path": None})


def test_operations_of_torchvisions_first_version_get_the_image() -> None:
    picture = PIL.Image.new("RGB", (16, 16))
    for operation in (v1.TrivialAugmentWide(), v1.RandAugment(), v1.Resize(8)):
        assert isinstance(apply(operation, {"image": picture, "label": 1})["image"], PIL.Image.Image)


def test_exif_orientation_is_applied() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees to view
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 4)).save(buffer, "JPEG", exif=exif)
    assert open_image({"bytes": buffer.getvalue(), "path": None}).size == (4, 8)


def timm_processor(**settings: Any) -> Any:
    """The processor of a timm model."""
    about = {"input_size": (3, 32, 32), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.25,) * 3}
    return transformers.TimmWrapperImageProcessor(pretrained_cfg={**about, **settings})


PROCESSORS = {
    "vit": transformers.ViTImageProcessor(size={"height": 32, "width": 32}),
    "vit, not square": transformers.ViTImageProcessor(size={"height": 24, "width": 32}),
    "deit": transformers.DeiTImageProcessor(size={"height": 40, "width": 40}, crop_size={"height": 32, "width": 32}),
    "convnext": transformers.ConvNextImageProcessor(size={"shortest_edge": 32}),
    "convnext, large": transformers.ConvNextImageProcessor(size={"shortest_edge": 384}),
    "bit (dinov2)": transformers.BitImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
    "no normalisation": transformers.ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False),
}


TIMM = {
    "timm, odd margins": timm_processor(crop_pct=0.9),
    "timm, squashed": timm_processor(crop_pct=0.9, crop_mode="squash"),
    "timm, squashed, not square": timm_processor(input_size=(3, 40, 25), crop_pct=0.875, crop_mode="squash"),
    "timm, larger than resized": timm_processor(crop_pct=1.1),
}


@pytest.mark.parametrize("name", [*PROCESSORS, *TIMM])
@pytest.mark.parametrize("size", [(50, 70), (70, 50), (32, 32), (20, 33)])
def test_eval_transform_is_what_the_processor_does(name: str, size: tuple[int, int]) -> None:
    processor = {**PROCESSORS, **TIMM}[name]
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    transforms = build_transforms(api.compose("transform=eval").transform, processor, {0: "a", 1: "b"}, [])
    row = TASK.preprocess(transforms.evaluation({"image": picture, "label": 0}), processor)
    collate = ImageCollator.for_processor(processor)
    ours = collate.finish(collate([row]))["pixel_values"]
    theirs = processor(picture, return_tensors="pt")["pixel_values"]
    assert ours.shape == theirs.shape
    if name in TIMM:  # PIL resizes there; a margin that is one pixel off would be 80 levels
        assert (ours - theirs).abs().mean() <= 0.5 / 255 / 0.25
        return
    # Both resize 8-bit pixels; rounding may differ by one level.
    assert (ours - theirs).abs().max() <= 1.01 / 255 / min(Geometry.of(processor).std or (1,))


OTHERS = {
    "timm, with borders": timm_processor(crop_pct=0.9, crop_mode="border"),
    "timm, not square": timm_processor(input_size=(3, 40, 25), crop_pct=0.9),
    "mobilevit": transformers.MobileViTImageProcessor(),
    "efficientnet": transformers.EfficientNetImageProcessor(size={"height": 32, "width": 32}, include_top=True),
    "levit": transformers.LevitImageProcessor(),
    "rescaled": transformers.ViTImageProcessor(size={"height": 32, "width": 32}, rescale_factor=1 / 127.5),
    "not resized": transformers.ViTImageProcessor(size={"height": 32, "width": 32}, do_resize=False),
    "without a size": transformers.Siglip2ImageProcessor(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_processors_that_do_more_are_refused_and_work_by_themselves(name: str) -> None:
    processor = OTHERS[name]
    picture = image("RGB").resize((64, 64))
    with pytest.raises(ConfigError, match="use transform=processor"):
        build_transforms(api.compose("transform=eval").transform, processor, {0: "a", 1: "b"}, [])
    transforms = build_transforms(api.compose("transform=processor").transform, processor, {0: "a", 1: "b"}, [])
    row = TASK.preprocess(transforms.evaluation({"image": picture, "label": 0}), processor)
    collate = ImageCollator.for_processor(processor)
    ours = collate.finish(collate([row]))["pixel_values"]
    assert torch.equal(ours, processor(picture, return_tensors="pt")["pixel_values"])


def test_notebook_transform_is_the_notebooks() -> None:
    from torchvision.transforms import Compose, Normalize, Resize, ToTensor

    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    rows = digits().select(range(20))
    theirs = Compose([Resize((32, 32)), ToTensor(), Normalize(mean=processor.image_mean, std=processor.image_std)])

    def apply(examples: dict[str, Any]) -> dict[str, Any]:
        examples["pixel_values"] = [theirs(img.convert("RGB")) for img in examples["image"]]
        del examples["image"]
        return examples

    expected = torch.stack([row["pixel_values"] for row in rows.with_transform(apply)])  # pyright: ignore
    transforms = build_transforms(api.compose("transform=notebook").transform, processor, {0: "a", 1: "b"}, [])
    dataset = ProcessedDataset(rows, TASK, processor, transforms.train)
    ours = Collator(TASK, processor, None, 0)([dataset[i] for i in range(20)])["pixel_values"]
    assert torch.equal(ours, expected)


def splits(transform: str, seed: int = 0) -> tuple[dict[str, Any], Any, Any]:
    """The digits' first rows with a transform, as the pipeline makes them."""
    from datasets import DatasetDict

    processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16})
    transforms = build_transforms(api.compose(f"transform={transform}").transform, processor, TEN, [])
    rows = DatasetDict({"train": digits().select(range(8)), "validation": digits().select(range(8))})
    return process(rows, TASK, processor, transforms, seed), processor, transforms


TEN = {i: str(i) for i in range(10)}


def pixels(rows: list[dict[str, Any]]) -> torch.Tensor:
    return torch.stack([row["pixel_values"] for row in rows])


@pytest.mark.parametrize("transform", ["augment", "jitter"])
def test_augmentation_follows_seed_epoch_and_index_alone(transform: str) -> None:
    train = splits(transform)[0]["train"]
    torch.manual_seed(0)
    before = torch.get_rng_state()
    whole = pixels(train.__getitems__(list(range(8))))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(pixels([train[i] for i in reversed(range(8))]).flip(0), whole)
    assert not torch.equal(pixels(train.__getitems__(list(range(8, 16)))), whole)
    assert not torch.equal(pixels(splits(transform, seed=1)[0]["train"].__getitems__(list(range(8)))), whole)
    same = train.rows.select([0] * 8)
    copies = pixels(ProcessedDataset(same, TASK, None, train.steps, 0).__getitems__(list(range(8))))
    assert len({tuple(c.flatten().tolist()) for c in copies}) > 1


def test_a_turn_a_shift_and_a_zoom_are_one_affine_map_as_torchvisions() -> None:
    height, width, draws = 40, 57, torch.rand(16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = functional.gaussian_blur(torch.randint(0, 256, (16, 3, height, width), dtype=torch.uint8), [5, 5])
    ours = RandomAffine(30, (0.2, 0.1), (0.7, 1.3))(images, draws)
    for image, made, (turn, zoom, x, y) in zip(images, ours, draws.tolist(), strict=True):
        shift = [(1 - 2 * x) * 0.2 * width, (1 - 2 * y) * 0.1 * height]
        theirs = functional.affine(
            image, (2 * turn - 1) * 30, shift, 0.7 + zoom * 0.6, [0.0, 0.0], v1.InterpolationMode.BILINEAR
        )
        assert (made.int() - theirs.int()).abs().max() <= 1


def test_only_training_images_are_augmented() -> None:
    validation = splits("jitter")[0]["validation"]
    assert torch.equal(pixels([validation[0]]), pixels([validation[8]]))
    assert "sample_key" not in validation[0]


def test_mixup_and_cutmix_give_class_probabilities_on_training_batches_only() -> None:
    parts, processor, transforms = splits("augment_mix")
    collate = Collator(TASK, processor, transforms.batch, 0)
    batch = collate(parts["train"].__getitems__(list(range(8))))
    assert batch["labels"].shape == (8, 10)
    assert torch.allclose(batch["labels"].sum(1), torch.ones(8))
    again = collate(parts["train"].__getitems__(list(range(8))))
    assert torch.equal(batch["pixel_values"], again["pixel_values"])
    assert collate([parts["validation"][0]])["labels"].tolist() == [0]


def test_a_remote_or_missing_file_is_named(tmp_path: Path) -> None:
    from hfexp.core.errors import DataError

    with pytest.raises(DataError, match="nothing.png can't be read"):
        open_image({"path": str(tmp_path / "nothing.png"), "bytes": None})
