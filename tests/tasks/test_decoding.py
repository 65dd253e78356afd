"""JPEG files straight to tensors: what PIL and `v2.ToImage` give, bit for bit."""

import gc
import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision.transforms import v2

from hfexp.core.errors import DataError
from hfexp.tasks import images
from hfexp.tasks.image_classification import ImageClassification
from hfexp.tasks.images import ConvertRGB, Fit, Geometry, ToRGB, open_image

PLAIN: dict[str, dict[str, Any]] = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
    "low quality": {"quality": 5},
    "optimised": {"optimize": True, "quality": 100},
    "restart markers": {"restart_marker_blocks": 3},
    "no YCbCr": {"keep_rgb": True, "subsampling": 0},
    "a comment": {"comment": b"taken with a potato"},
}


def picture(mode: str, size: tuple[int, int]) -> PIL.Image.Image:
    """Smooth, with noise."""
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    waves = np.stack([np.sin(rows / 9), np.cos(columns / 7), np.sin((rows + columns) / 11)], -1)
    noise = np.random.default_rng(0).normal(0, 0.1, waves.shape)
    levels = ((waves + noise).clip(-1, 1) * 127 + 128).astype(np.uint8)
    return PIL.Image.fromarray(levels).convert(mode)


def encoded(mode: str = "RGB", size: tuple[int, int] = (61, 37), kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture(mode, size).save(file, kind, **options)
    return file.getvalue()


def with_orientation(number: int) -> bytes:
    exif = PIL.Image.Exif()
    exif[images.ORIENTATION] = number
    return encoded(exif=exif)


def by_pil(stored: Any, first: Any) -> torch.Tensor:
    return v2.ToImage()(first({"image": open_image(stored)}))["image"]


@pytest.mark.parametrize("size", [(61, 37), (8, 8), (1, 5), (250, 251)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_files_are_decoded_as_pil_does(name: str, mode: str, size: tuple[int, int], tmp_path: Path) -> None:
    options = {key: value for key, value in PLAIN[name].items() if mode == "RGB" or key not in ("keep_rgb",)}
    path = tmp_path / "picture.jpg"
    path.write_bytes(encoded(mode, size, **options))
    for stored in ({"bytes": path.read_bytes(), "path": None}, {"bytes": None, "path": str(path)}):
        assert images._plain_jpeg(stored) is not None
        for first in (ToRGB(), ConvertRGB()):
            found = images.decode_to_tensor({"image": stored, "label": 3}, first)
            assert found["label"] == 3
            assert type(found["image"]) is type(by_pil(stored, first))
            assert torch.equal(found["image"], by_pil(stored, first))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("turned", with_orientation(6)),
        ("CMYK", encoded("CMYK")),
        ("a PNG", encoded("RGBA", kind="PNG")),
        ("cut off at its end", encoded() + b""),
    ],
)
def test_other_files_go_through_pil(name: str, data: bytes) -> None:
    stored = {"bytes": data, "path": None}
    if name.startswith("cut"):
        stored = {"bytes": data[:-40], "path": "cut.jpg"}
        with pytest.raises(DataError, match=r"cut\.jpg can't be read as an image"):
            images.decode_to_tensor({"image": stored}, ToRGB())
    else:
        found = images.decode_to_tensor({"image": stored}, ToRGB())["image"]
        assert torch.equal(found, by_pil(stored, ToRGB()))
    assert images._plain_jpeg(stored) is None


def test_a_damaged_file_is_closed_again(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(size=(300, 300))[:-2000])
    with pytest.raises(DataError, match=r"cut\.jpg"):
        images.decode_to_tensor({"image": {"bytes": None, "path": str(path)}}, ToRGB())
    gc.collect()
    assert [warning for warning in recwarn if warning.category is ResourceWarning] == []


def test_another_jpeg_library_in_pillow_keeps_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_decodes_alike", lambda: False)
    task = ImageClassification()
    assert task.decoder([ToRGB(), v2.ToImage()]) == (task.decode, 0)


def test_upright_photos_are_plain() -> None:
    assert images._plain_jpeg({"bytes": with_orientation(1), "path": None}) is not None


def test_a_missing_file_is_named() -> None:
    with pytest.raises(DataError, match=r"gone\.jpg"):
        images.decode_to_tensor({"image": {"bytes": None, "path": "gone.jpg"}}, ToRGB())


def test_too_many_pixels_are_refused() -> None:
    stored = {"bytes": encoded(size=(61, 37)), "path": None}
    with pytest.raises(DataError, match=r"2,257 pixels, more than 2,256\. task\.max_image_pixels="):
        images.decode_to_tensor({"image": stored}, ToRGB(), max_pixels=2256)
    assert images.decode_to_tensor({"image": stored}, ToRGB(), max_pixels=2257)["image"].shape == (3, 37, 61)


def test_resizing_is_the_same() -> None:
    stored = {"bytes": encoded(size=(250, 190)), "path": None}
    for size in (8, 64, 224):
        for interpolation in (2, 3):
            fit = Fit(Geometry((size, size), (size, size), interpolation, (), ()))
            fast = fit(images.decode_to_tensor({"image": stored}, ToRGB()))["image"]
            assert torch.equal(fast, fit({"image": by_pil(stored, ToRGB())})["image"])
            filtered = v2.Resize((size, size), v2.InterpolationMode(fit.interpolation))(by_pil(stored, ToRGB()))
            assert type(fast) is type(filtered)
            assert torch.equal(fast, filtered)


def test_who_gets_pils_image() -> None:
    """An operation of the user's own, one that looks at the image first, and a task that decodes otherwise."""

    class Own(ImageClassification):
        def decode(self, row: dict[str, Any]) -> dict[str, Any]:
            return row

    task, plain = ImageClassification(), [ToRGB(), v2.ToImage()]
    assert task.decoder([*plain, v2.RandomHorizontalFlip()])[1] == 2
    for other in ([v2.ToImage()], [ToRGB()], [ToRGB(), v2.Grayscale(), v2.ToImage()], [v2.ToImage(), ToRGB()]):
        assert task.decoder(other) == (task.decode, 0)
    own = Own()
    assert own.decoder(plain) == (own.decode, 0)
