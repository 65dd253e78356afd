"""Large data: what passes before a run on a million images, or on millions of texts, could take its first step.

A process of its own lists, labels, splits, checks and hashes the data, as every run does. The images are small, and
hard links to one another, so that the disk has room for them; a folder is listed and its files are looked up one by
one all the same. Decoding and tokenizing are left out: `loading` measures them.
"""

import json
import os
import time
from pathlib import Path

from benchmarks.harness import Ratio, Report, child, parser, publish, scratch, silence, spread, table, turns

ROUNDS = 3
IMAGES, CLASSES, TEXTS = 1_000_000, 1_000, 5_000_000
QUICK = (2_000, 20, 2_000)
SECONDS, MEGABYTES = 60.0, 1_500.0
"""What a million images may take."""
LINKS = 30_000
"""Names that one file gets; ext4 allows 65,000."""
CHILD = "import sys; from benchmarks import large; large.begin(sys.argv[1:])"
FOLDER = ("dataset=imagefolder", "model=vit_digits", "model.config.image_size=32", "transform=eval")
TEXT = ("task=text_classification", "dataset=table", "model=tiny_bert")


def run(rounds: int | None = None, quick: bool = False) -> Report:
    """Measure both kinds of data."""
    report = Report("large", (__doc__ or "").splitlines()[0].rstrip("."))
    images, classes, texts = QUICK if quick else (IMAGES, CLASSES, TEXTS)
    count = 1 if quick else rounds or ROUNDS
    with scratch() as place:
        make_images(place / "photos", images, classes)
        make_texts(place / "rows.parquet", texts)
        cases = {
            f"{images:,} images in {classes:,} folders": (*FOLDER, f"dataset.source.data_dir={place}/photos"),
            f"{texts:,} texts in a Parquet file": (*TEXT, f"dataset.source.data_files={place}/rows.parquet"),
        }
        found = {
            name: [json.loads(child(["-c", CHILD, *words])) for _ in range(count)] for name, words in cases.items()
        }
    rows = []
    for number, (name, facts) in enumerate(found.items()):
        of_images = number == 0 and not quick
        for what, unit, limit in (("seconds", "s", SECONDS), ("megabytes", "MB", MEGABYTES)):
            values = tuple(fact[what] for fact in facts)
            measured = Ratio(f"{name}, {unit}", values, limit if of_images else None)
            report.ratios.append(measured)
            rows.append([name, unit, f"{measured.median:.1f}", spread(values, ".1f"), measured.verdict()])
    report.blocks.append(table(["", "unit", "median", "from, to", "bound"], rows))
    report.blocks.append(f"{turns(count)}; memory is the most that was resident, libraries included.")
    report.data = dict(found)
    return report


def make_images(folder: Path, count: int, classes: int) -> None:
    """Write a folder for each class, with equally many names of images."""
    import PIL.Image

    for number in range(classes):
        place = folder / f"class_{number:04}"
        place.mkdir(parents=True)
        for index in range(count // classes):
            path = place / f"{index:07}.png"
            if (number * (count // classes) + index) % LINKS == 0:
                PIL.Image.new("RGB", (32, 32), (200, 30, 30)).save(path)
                first = path
            else:
                os.link(first, path)


def make_texts(path: Path, count: int) -> None:
    """Write texts that all differ, of two classes."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([("text", pyarrow.string()), ("label", pyarrow.string())])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, count, 500_000):
            numbers = range(start, min(start + 500_000, count))
            texts = [f"the {number}th text is {'good' if number % 3 else 'bad'}" for number in numbers]
            labels = ["yes" if number % 3 else "no" for number in numbers]
            writer.write_table(pyarrow.table([texts, labels], schema=schema))


def begin(words: list[str]) -> None:
    """In the child: do what a run does before it builds its model; print the seconds and the memory."""
    with silence():
        from benchmarks.steps import peak_memory
        from hfexp.commands.api import compose
        from hfexp.experiment.preflight import load_inputs
        from hfexp.tracking.lineage import split_digests

        config = compose(*words, "trainer=scratch", "tracking=none", "dataset.test_size=0.1")
        import transformers.trainer  # noqa: F401 - every run imports it; it is not what is measured

        start = time.perf_counter()
        split_digests(load_inputs(config).dataset)
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "megabytes": peak_memory()}))


def main(argv: list[str] | None = None) -> None:
    """Run as a program."""
    args = parser(__doc__).parse_args(argv)
    publish(run(args.rounds, args.quick), keep=not args.quick)


if __name__ == "__main__":
    main()
