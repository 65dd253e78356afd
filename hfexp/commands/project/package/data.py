"""The data: any function that returns a `datasets.Dataset` or `DatasetDict`."""

import datasets
import numpy as np
import PIL.Image
import PIL.ImageDraw

NAMES = ["circle", "square", "triangle"]


def shapes(rows: int, seed: int = 0) -> datasets.Dataset:
    """Draw white shapes of random size and place on black, 32 x 32 pixels; columns `image` and `label`."""
    draw = np.random.default_rng(seed)
    images = [draw_shape(NAMES[row % 3], draw) for row in range(rows)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    return datasets.Dataset.from_dict({"image": images, "label": [row % 3 for row in range(rows)]}, features=features)


def draw_shape(name: str, draw: np.random.Generator) -> PIL.Image.Image:
    left, top, size = (int(number) for number in draw.integers([1, 1, 8], [13, 13, 19]))
    box = (left, top, left + size, top + size)
    image = PIL.Image.new("L", (32, 32))
    pen = PIL.ImageDraw.Draw(image)
    if name == "circle":
        pen.ellipse(box, fill=255)
    elif name == "square":
        pen.rectangle(box, fill=255)
    else:
        pen.polygon([(left, box[3]), (box[2], box[3]), (left + size // 2, top)], fill=255)
    return image
