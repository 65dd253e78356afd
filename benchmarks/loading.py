"""Loading alone: images per second of whole epochs through the Trainer's own data loader, without a model.

Every batch goes through `Trainer._prepare_inputs`, as in training, and must come out as normalised float32. hfexp
with its prepared data (built in an epoch before), hfexp decoding the files every time, the notebook it grew out of,
and Transformers' example script.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import Report, interleave, parser, publish, ratio, scratch, silence, turns
from benchmarks.pictures import write_pictures
from benchmarks.variants import Job, Shape, hfexp_words, notebook, script
from hfexp.core.machine import let_idle_threads_sleep

CACHED, STREAMING, NOTEBOOK = "hfexp, prepared", "hfexp, decoding", "notebook"
SCRIPT = "run_image_classification"
SIZES = {64: 2000, 224: 1000}
"""Number of images by edge in pixels."""
QUICK = {32: 48}
ROUNDS = 5
LEAST_SECONDS = 1.0
"""Epochs are repeated until then, and counted."""


def run(rounds: int | None = None, quick: bool = False) -> Report:
    """Measure every size."""
    let_idle_threads_sleep()  # as hfexp's command does, before torch is loaded
    report = Report("loading", (__doc__ or "").splitlines()[0].rstrip("."))
    for size, images in (QUICK if quick else SIZES).items():
        with scratch() as place:
            measure(report, size, images, place, 1 if quick else rounds or ROUNDS, 0.0 if quick else LEAST_SECONDS)
    report.blocks.append(
        "Files are JPEGs of 250x250 pixels that the system has in memory. A turn is one epoch, or as many as take "
        f"{LEAST_SECONDS:g} s. All variants share a process, and so what hfexp sets of memory and threads."
    )
    return report


def measure(report: Report, size: int, images: int, place: Path, rounds: int, least: float) -> None:
    """One size: all variants in turns."""
    data = write_pictures(place / "data", {"train": images, "validation": 40}, (250, 250))
    # The model is never called; hfexp wants one.
    job = Job(Shape(size, width=16, layers=1, heads=2, intermediate=16), data)
    with silence():
        trainers = build(job)
        for trainer in trainers.values():
            epoch(trainer, size)
    found = interleave({name: _turn(trainer, size, least) for name, trainer in trainers.items()}, rounds)
    report.section(
        f"{size} px, {images:,} images, {turns(rounds)}",
        "images/s",
        found,
        [
            ratio(found, CACHED, NOTEBOOK, target=20),
            ratio(found, STREAMING, NOTEBOOK, target=1.5),
            ratio(found, CACHED, SCRIPT),
            ratio(found, STREAMING, SCRIPT),
        ],
        ",.0f",
    )


def build(job: Job) -> dict[str, Any]:
    """The Trainers of all variants."""
    from benchmarks.captured import capture

    return {
        CACHED: capture(*hfexp_words(job)),
        STREAMING: capture(*hfexp_words(job, "transform.cache.enabled=false")),
        NOTEBOOK: notebook(job),
        SCRIPT: script(job),
    }


def _turn(trainer: Any, size: int, least: float) -> Callable[[], float]:
    """A function that gives the images per second of some epochs."""

    def turn() -> float:
        images, start = 0, time.perf_counter()
        while images == 0 or time.perf_counter() - start < least:
            images += epoch(trainer, size)
        return images / (time.perf_counter() - start)

    def silently() -> float:
        with silence():
            return turn()

    return silently


def epoch(trainer: Any, size: int) -> int:
    """Load everything once, as training does; returns the number of images."""
    import torch

    images = 0
    for batch in trainer.get_train_dataloader():
        pixels = trainer._prepare_inputs(batch)["pixel_values"]
        assert pixels.dtype == torch.float32, pixels.dtype
        assert pixels.shape[1:] == (3, size, size), pixels.shape
        images += len(pixels)
    return images


def main(argv: list[str] | None = None) -> None:
    """Run as a program."""
    args = parser(__doc__).parse_args(argv)
    publish(run(args.rounds, args.quick), keep=not args.quick)


if __name__ == "__main__":
    main()
