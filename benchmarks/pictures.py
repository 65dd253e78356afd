"""Generated photographs for the benchmarks: smooth random colours as JPEG files, in folders named by their class."""

from pathlib import Path

NUM_CLASSES = 10


def write_pictures(root: Path, counts: dict[str, int], sizes: tuple[int, int], quality: int = 90) -> Path:
    """Write `counts[split]` pictures below `root/split/class_i/`, with edges from `sizes[0]` to `sizes[1]` pixels.

    A file of smooth colours with a little noise takes a decoder about as long as a photograph of its size.
    """
    import numpy as np

    generator = np.random.default_rng(0)
    for split, count in counts.items():
        for index in range(count):
            folder = root / split / f"class_{index % NUM_CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            width, height = (int(edge) for edge in generator.integers(sizes[0], sizes[1] + 1, 2))
            picture(generator, width, height).save(folder / f"{index:06}.jpg", quality=quality)
    return root


def picture(generator, width: int, height: int):  # noqa: ANN001
    """8x8 random colours, scaled up smoothly, plus noise."""
    import numpy as np
    import PIL.Image

    coarse = PIL.Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), PIL.Image.Resampling.BICUBIC), dtype=np.int16)
    noise = generator.integers(-6, 7, smooth.shape, dtype=np.int16)
    return PIL.Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))
