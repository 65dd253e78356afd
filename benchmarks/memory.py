"""Most memory of a training on 1, 4 and 16 times as many images: it should hardly grow.

One process per size: one epoch of a tiny ViT at 64 px on JPEG files with edges of 64 to 96 pixels; hfexp without
prepared data (it builds them) and with, and the notebook it grew out of, alone and with Transformers' own MLflow
callback, which loads the libraries that hfexp records with.
"""

import json
import os
import statistics
import sys
from pathlib import Path

from benchmarks.harness import Report, child, parser, publish, ratio, scratch, silence, table
from benchmarks.pictures import write_pictures
from benchmarks.variants import Job, Shape, hfexp_words, notebook

SIZES = {"1x": 1000, "4x": 4000, "16x": 16000}
QUICK = {"1x": 16, "4x": 64}
LIMIT = 1.10
COLD, WARM, NOTEBOOK, RECORDED = "hfexp, building", "hfexp, prepared", "notebook", "notebook with MLflow"
LIMIT_BESIDE = 1.05
"""Of hfexp's memory, as a multiple of that of the notebook with the same libraries."""
FUNCTIONS = {COLD: "own", WARM: "own", NOTEBOOK: "peer", RECORDED: "recorded_peer"}
SHAPE = Shape(64, width=32, layers=1, heads=2, intermediate=32)
CHILD = "import sys; from benchmarks import memory; memory.{}(sys.argv[1])"
MOMENTS = {
    "training": "Most resident memory until the end of training",
    "anonymous": "Resident at the end of training, without pages of mapped files",
    "whole": "Most resident memory of the whole run",
}
Peaks = dict[str, dict[str, list[dict[str, float]]]]
"""By variant and size, one per round."""


def run(rounds: int | None = None, quick: bool = False) -> Report:
    """Measure all sizes."""
    report = Report("memory", (__doc__ or "").splitlines()[0].rstrip("."))
    sizes = QUICK if quick else SIZES
    with scratch() as place:
        for name, count in sizes.items():
            write_pictures(place / name, {"train": count, "validation": 40}, (64, 96))
        peaks = measure(place, list(sizes), 1 if quick else rounds or 1)
    show(report, peaks, sizes)
    return report


def measure(place: Path, sizes: list[str], rounds: int) -> Peaks:
    """All variants and sizes. The order is fixed: the run that builds prepared data comes before the one with them."""
    peaks: Peaks = {name: {size: [] for size in sizes} for name in FUNCTIONS}
    for number in range(rounds):
        for size in sizes:
            os.environ["HFEXP_CACHE"] = str(place / f"cache-{size}-{number}")
            for name in peaks:
                words = ["-c", CHILD.format(FUNCTIONS[name]), str(place / size)]
                peaks[name][size].append(json.loads(child(words)))
                print(f"  round {number + 1} of {rounds}: {name}, {size}", file=sys.stderr, flush=True)
    return peaks


def show(report: Report, peaks: Peaks, sizes: dict[str, int]) -> None:
    """Memory by size, and how much the largest has more than the smallest."""
    first, *_, last = sizes
    for moment, title in MOMENTS.items():
        rows, report.data[moment] = [], {}
        for name, by_size in peaks.items():
            if moment not in by_size[first][0]:
                continue
            values = {size: [found[moment] for found in rounds] for size, rounds in by_size.items()}
            limit = LIMIT if moment == "training" and name in (COLD, WARM) else None
            growth = ratio(values, last, first, limit)
            report.ratios.append(growth)
            report.data[moment][name] = {"mb": values, "growth": growth.facts()}
            cells = [f"{statistics.median(found):.0f}" for found in values.values()]
            rows.append([name, *cells, f"{growth.median - 1:+.1%}", growth.verdict()])
        head = ["", *(f"{size}, MB" for size in sizes), f"growth {last} / {first}", "bound"]
        report.blocks += [f"## {title}", table(head, rows)]
    beside = {name: [found["training"] for found in peaks[name][first]] for name in (WARM, RECORDED)}
    report.ratios.append(ratio(beside, WARM, RECORDED, LIMIT_BESIDE))
    report.blocks.append(table(["ratio", "median", "from, to", "bound"], [report.ratios[-1].row()]))
    counts = ", ".join(f"{name} = {count:,}" for name, count in sizes.items())
    report.blocks.append(
        f"Training images: {counts}; 40 for validation. Resident memory counts pages of mapped files, which the "
        "system takes back when it needs room."
    )


def own(data: str) -> None:
    """In the child: hfexp."""
    from hfexp.commands import api

    with silence():
        from benchmarks.steps import TrainingPeak, peak_memory

        callback = "trainer.callbacks.peak={_target_: benchmarks.steps.TrainingPeak}"
        api.train(*hfexp_words(Job(SHAPE, Path(data)), callback))
    facts = {"training": TrainingPeak.peak, "anonymous": TrainingPeak.anonymous, "whole": peak_memory()}
    print(json.dumps(facts))


def peer(data: str) -> None:
    """In the child: the notebook."""
    with silence():
        from benchmarks.steps import TrainingPeak

        notebook(Job(SHAPE, Path(data)), TrainingPeak()).train()
    print(json.dumps({"training": TrainingPeak.peak, "anonymous": TrainingPeak.anonymous}))


def recorded_peer(data: str) -> None:
    """In the child: the notebook, recorded by Transformers' callback."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{data}-mlflow.db"
    with silence():
        from transformers.integrations import MLflowCallback

        from benchmarks.steps import TrainingPeak

        notebook(Job(SHAPE, Path(data)), MLflowCallback(), TrainingPeak()).train()
    print(json.dumps({"training": TrainingPeak.peak, "anonymous": TrainingPeak.anonymous}))


def main(argv: list[str] | None = None) -> None:
    """Run as a program."""
    args = parser(__doc__).parse_args(argv)
    publish(run(args.rounds, args.quick), keep=not args.quick)


if __name__ == "__main__":
    main()
