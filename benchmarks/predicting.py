"""Prediction: a folder of images through `hfexp.predict`, beside a Transformers pipeline called with its files.

The pipeline is called as in the notebook that hfexp grew out of: a list of paths, one image at a time. Models have
random weights; loading them is left out, decoding is in.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import Report, interleave, parser, publish, ratio, scratch, silence, turns
from benchmarks.pictures import write_pictures

OURS, PIPELINE, BATCHED = "hfexp predict", "pipeline", "pipeline, batch_size=32"
CLASSES = 10
SMALL = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
Case = tuple[dict[str, int], int, float | None]
"""Sizes of the model, images, and how much faster hfexp has to be."""
SHAPES: dict[str, Case] = {
    "ViT, 6 layers of width 192": (SMALL, 500, 1.5),
    "ViT-Base, 12 layers of width 768": (BASE, 64, None),
}
QUICK: dict[str, Case] = {"tiny ViT": (TINY, 8, None)}
ROUNDS = 5


def run(rounds: int | None = None, quick: bool = False) -> Report:
    """Measure every model."""
    report = Report("predicting", (__doc__ or "").splitlines()[0].rstrip("."))
    for name, shape in (QUICK if quick else SHAPES).items():
        with scratch() as place:
            measure(report, name, shape, place, 1 if quick else rounds or ROUNDS)
    report.blocks.append("Files are JPEGs of 250x250 pixels that the system has in memory; models take 224x224.")
    return report


def measure(report: Report, name: str, shape: Case, place: Path, rounds: int) -> None:
    """One model: all ways in turns, and how far their answers differ."""
    sizes, images, target = shape
    data = write_pictures(place / "data", {"train": images}, (250, 250))
    paths = sorted(str(path) for path in Path(data).rglob("*.jpg"))[:images]
    save(sizes, place / "model")
    with silence():
        ways = build(place / "model", paths)
        answers = {way: call() for way, call in ways.items()}
    found = interleave({way: _timed(call, len(paths)) for way, call in ways.items()}, rounds)
    difference = max(abs(a - b) for a, b in zip(*(flat(answers[way]) for way in (OURS, PIPELINE)), strict=True))
    same = sum(top(a) == top(b) for a, b in zip(answers[OURS], answers[PIPELINE], strict=True))
    report.section(
        f"{name}, {len(paths)} images, {turns(rounds)}",
        "images/s",
        found,
        [ratio(found, OURS, PIPELINE, target=target), ratio(found, OURS, BATCHED)],
        ",.1f",
    )
    agreement = f"The same class for {same} of {len(paths)}"
    report.blocks.append(f"{agreement}; probabilities differ by {difference:.1e} at most.")
    report.data[name] = {"same": same, "of": len(paths), "difference": difference}


def save(sizes: dict[str, int], directory: Path) -> None:
    """A model as `save_pretrained` leaves it; its classes are made to differ."""
    import transformers

    transformers.set_seed(0)
    config = transformers.ViTConfig(**sizes, num_labels=CLASSES, initializer_range=0.05)  # pyright: ignore
    transformers.ViTForImageClassification(config).save_pretrained(directory)
    transformers.ViTImageProcessor().save_pretrained(directory)


def build(model: Path, paths: list[str]) -> dict[str, Callable[[], list[dict[str, float]]]]:
    """Ways to the probabilities of each image, by the names of the classes."""
    import transformers

    from hfexp.inference.inputs import read_inputs, row_of
    from hfexp.inference.load import load

    asked = load(str(model), None, [], output_dir="outputs", uri=None, device=None)
    predictor = asked.predictor
    names = predictor.id2label or {}
    pipeline: Any = transformers.pipeline("image-classification", str(model), top_k=CLASSES)

    def ours() -> list[dict[str, float]]:
        inputs = read_inputs(paths, [], predictor.task, {})
        outputs = predictor.outputs(row_of, inputs)
        return [{names[index]: float(value) for index, value in enumerate(row)} for row in outputs]

    def theirs(**options: Any) -> list[dict[str, float]]:
        return [{one["label"]: one["score"] for one in answers} for answers in pipeline(paths, **options)]

    return {OURS: ours, PIPELINE: theirs, BATCHED: lambda: theirs(batch_size=32)}


def flat(answers: list[dict[str, float]]) -> list[float]:
    """All probabilities, in the order of the names of the classes."""
    return [answer[name] for answer in answers for name in sorted(answer)]


def top(answer: dict[str, float]) -> str:
    """The most probable class."""
    return max(answer, key=lambda name: answer[name])


def _timed(call: Callable[[], Any], images: int) -> Callable[[], float]:
    def turn() -> float:
        start = time.perf_counter()
        with silence():
            call()
        return images / (time.perf_counter() - start)

    return turn


def main(argv: list[str] | None = None) -> None:
    """Run as a program."""
    args = parser(__doc__).parse_args(argv)
    publish(run(args.rounds, args.quick), keep=not args.quick)


if __name__ == "__main__":
    main()
